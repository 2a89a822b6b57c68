//! Large blobs over a network that fails in the middle of them: they go on where they stopped, and nobody takes what is too large.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::loopback::{Faulty, Outcome, PATIENCE, admissions, config, invited, joined, prove};
use crate::toy::{MODEL, Toy, expected_proof, spec, toy};
use obelysk_coordinator::line::{Faults, Line};
use obelysk_coordinator::{Coordinator, CoordinatorConfig, submit_remote};
use obelysk_node::engine::WorkRequest;
use obelysk_node::{CoordinatorAddress, IdentityStore, Node, NodeConfig};

const MIB: u64 = 1 << 20;

/// The node's results of 24 MiB are cut after two thirds of the way; what arrived before is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_cut_in_the_middle_goes_on_where_it_was() {
    let big = Arc::new(Toy { size: 24 << 20 });
    let config = CoordinatorConfig { lease_ms: 30_000, away_grace_ms: 20_000, idle_timeout_ms: 600, ..config() };
    let handle = Coordinator::start(config, admissions(), big.clone(), None).await.expect("starts");
    let line = Line::start(handle.local_address(), Faults::default()).expect("starts");
    let mut token = handle.invite(PATIENCE, 1).expect("made");
    token.addresses = vec![line.address().to_string()];
    let place = tempfile::tempdir().expect("folder");
    let store = IdentityStore::folder(&place.path().join("n")).expect("free");
    let node = tokio::spawn(Node::run_until(NodeConfig::new("far"), (store, Some(token)), big.clone(), std::future::pending()));
    joined(&handle, 1).await;
    let spec = spec(2, 77);
    let proving = prove(&handle, spec.clone());
    let cutting = async {
        while line.relayed()[0] < 16 * MIB {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        line.swallow(true);
        let before = line.relayed()[0];
        // Longer than the patience of both sides.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        line.swallow(false);
        before
    };
    let ((result, _), before) = tokio::join!(proving, cutting);
    assert!(result.expect("proved").proof == expected_proof(&spec, big.size));
    let [up, _] = line.relayed();
    // Two results of 24 MiB and small ones. From the beginning again, it would be 16 MiB more.
    assert!(up > 48 * MIB && up < 57 * MIB, "{up} bytes went up, {before} of them before the cut");
    handle.shutdown().await;
    let _ = tokio::time::timeout(PATIENCE, node).await;
}

/// A result larger than the coordinator takes is refused by name, and by both it costs only the job.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_before_it_travels() {
    let big = Arc::new(Toy { size: 3 << 20 });
    let config = CoordinatorConfig { max_blob_bytes: 2 * MIB, ..config() };
    let handle = Coordinator::start(config, admissions(), big.clone(), None).await.expect("starts");
    let line = Line::start(handle.local_address(), Faults::default()).expect("starts");
    let mut token = handle.invite(PATIENCE, 1).expect("made");
    token.addresses = vec![line.address().to_string()];
    let node = Node::run_until(NodeConfig::new("n"), (IdentityStore::Memory, Some(token)), big, std::future::pending());
    let node = tokio::spawn(node);
    joined(&handle, 1).await;
    let error = prove(&handle, spec(1, 5)).await.0.expect_err("too large").to_string();
    assert!(error.contains("exceeds the limit of 2097152"), "{error}");
    assert!(line.relayed()[0] < MIB, "refused before it travelled");
    handle.shutdown().await;
    let _ = tokio::time::timeout(PATIENCE, node).await;
}

/// Tells the child below how to join, and how large its results are.
const TOKEN: &str = "OBELYSK_TEST_FAR_TOKEN";
const BIG: usize = 16 << 20;

#[test]
#[ignore = "the body of the child processes below"]
fn child_far_node() {
    let Ok(token) = std::env::var(TOKEN) else { return };
    let membership = (IdentityStore::Memory, Some(token.parse().expect("a token")));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let end = runtime.block_on(Node::run(NodeConfig::new("far"), membership, Arc::new(Toy { size: BIG })));
    end.expect("in good order");
}

struct Far(Child);

impl Far {
    fn spawn(token: &str) -> Self {
        let this = std::env::current_exe().expect("own path");
        let arguments = ["--exact", "transfer::child_far_node", "--ignored"];
        Self(Command::new(this).args(arguments).env(TOKEN, token).stdout(Stdio::null()).spawn().expect("starts"))
    }
}

impl Drop for Far {
    /// SIGKILL.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process on a slow line ends without warning while its result goes up, and another while it fetches what it is to work on.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_while_it_uploads_or_fetches_changes_no_byte() {
    let big = Arc::new(Toy { size: BIG });
    for (way, what) in [(0, "uploads"), (1, "fetches")] {
        let config = CoordinatorConfig { lease_ms: 30_000, ..config() };
        let handle = Coordinator::start(config, admissions(), big.clone(), None).await.expect("starts");
        let slow = Faults { rate: 16 * MIB, ..Faults::default() };
        let line = Line::start(handle.local_address(), slow).expect("starts");
        let mut token = handle.invite(PATIENCE, 1).expect("made");
        token.addresses = vec![line.address().to_string()];
        let far = Far::spawn(token.to_line().as_str());
        joined(&handle, 1).await;
        let spec = spec(2, 400 + way as u64);
        let replaced = async {
            while line.relayed()[way] < 6 * MIB {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            drop(far);
            assert!(line.relayed()[way] < 15 * MIB, "in the middle of it");
            let near = Node::run_until(NodeConfig::new("near"), invited(&handle), big.clone(), std::future::pending());
            let _running = tokio::spawn(near);
        };
        let ((result, events), ()) = tokio::join!(prove(&handle, spec.clone()), replaced);
        assert!(result.expect("proved").proof == expected_proof(&spec, BIG), "killed while it {what}");
        assert!(events.iter().any(|e| e.text.contains("another node")), "{what}: {events:?}");
        handle.shutdown().await;
    }
}

/// The client is gone for longer than a silent connection is waited for; it calls again, and nothing was done twice meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_cut_off_comes_back_for_its_proof() {
    let config = CoordinatorConfig { idle_timeout_ms: 600, ..config() };
    let handle = Coordinator::start(config, admissions(), toy(), None).await.expect("starts");
    let line = Line::start(handle.local_address(), Faults::default()).expect("starts");
    let own: CoordinatorAddress = handle.address().parse().expect("own address");
    let address = CoordinatorAddress { port: line.address().port(), ..own };
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let slow = Arc::new(Faulty(move |_: &WorkRequest, outcome: Outcome| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(60));
        outcome
    }));
    let node = tokio::spawn(Node::run_until(NodeConfig::new("n"), invited(&handle), slow, std::future::pending()));
    joined(&handle, 1).await;
    let (spec, again) = (spec(6, 402), AtomicU32::new(0));
    let submitting = submit_remote(&address, "laptop", &spec, MODEL, |event| {
        again.fetch_add(u32::from(event.text.contains("calling again")), Ordering::SeqCst);
    });
    let cutting = async {
        while runs.load(Ordering::SeqCst) < 4 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        line.swallow(true);
        while again.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(runs.load(Ordering::SeqCst) < 24, "it noticed while there was work left");
        line.swallow(false);
    };
    let (result, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(submitting, cutting) }).await.expect("ends");
    assert!(result.expect("proved").proof == expected_proof(&spec, 64));
    assert_eq!(runs.load(Ordering::SeqCst), 24, "each item once");
    handle.shutdown().await;
    node.abort();
}
