//! Nodes as processes of their own, ended by real signals. A node is this test binary run again with one ignored test.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use obelysk_coordinator::Handle;
use obelysk_node::engine::WorkRequest;
use obelysk_node::{ExitReason, IdentityStore, Node, NodeConfig};

use crate::loopback::{Faulty, Outcome, PATIENCE, joined, prove, start};
use crate::toy::{expected_proof, spec, toy};

/// Gives the child its token.
const TOKEN: &str = "OBELYSK_TEST_TOKEN";
/// Each work item of a child takes this long, so that a signal meets it at work.
const WORK: Duration = Duration::from_millis(100);

#[test]
#[ignore = "the body of the child processes below"]
fn child_node() {
    let Ok(token) = std::env::var(TOKEN) else { return };
    let membership = (IdentityStore::Memory, Some(token.parse().expect("a token")));
    let slow = std::sync::Arc::new(Faulty(|_: &WorkRequest, outcome: Outcome| {
        std::thread::sleep(WORK);
        outcome
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let exit = runtime.block_on(Node::run(NodeConfig::new("child"), membership, slow)).expect("in good order");
    std::process::exit(if exit == ExitReason::Drained { 42 } else { 43 });
}

fn spawn(handle: &Handle) -> Child {
    let token = handle.invite(PATIENCE, 1).expect("made");
    let this = std::env::current_exe().expect("own path");
    let arguments = ["--exact", "process::child_node", "--ignored"];
    Command::new(this).args(arguments).env(TOKEN, token.to_line().as_str()).stdout(Stdio::null()).spawn().expect("starts")
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().expect("kill runs").success());
}

async fn exit_code(mut child: Child) -> Option<i32> {
    tokio::task::spawn_blocking(move || child.wait().expect("ends").code()).await.expect("waited")
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_and_sigstop_cost_no_job_and_sigterm_drains() {
    for name in ["-KILL", "-STOP", "-TERM"] {
        let handle = start(toy(), None).await;
        let victim = spawn(&handle);
        joined(&handle, 1).await;
        let survivor = spawn(&handle);
        joined(&handle, 2).await;
        let spec = spec(6, 200);
        let strike = async {
            // In the middle of the second work item of the victim.
            tokio::time::sleep(WORK + WORK / 2).await;
            signal(&victim, name);
        };
        let ((result, events), ()) = tokio::join!(prove(&handle, spec.clone()), strike);
        assert!(result.expect("proved").proof == expected_proof(&spec, 64), "{name}");
        let lost = events.iter().any(|e| e.text.contains("another node"));
        assert_eq!(lost, name != "-TERM", "{name}: {events:?}");
        if name == "-STOP" {
            signal(&victim, "-KILL");
        }
        let code = exit_code(victim).await;
        assert_eq!(code, if name == "-TERM" { Some(42) } else { None }, "{name}");
        handle.shutdown().await;
        assert_eq!(exit_code(survivor).await, Some(43), "dismissed by the coordinator");
    }
}
