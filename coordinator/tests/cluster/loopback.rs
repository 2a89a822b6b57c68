//! Whole clusters on the loopback interface with the toy engine: sizes, kills, lies, drain, version skew, broken frames, clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::toy::{MODEL, Toy, expected_proof, spec, toy};
use obelysk_coordinator::line::{Faults, Line};
use obelysk_coordinator::{
    Admissions, Coordinator, CoordinatorConfig, CoordinatorError, Handle, JobResult, Progress, submit_remote,
};
use obelysk_node::engine::{Engine, EngineError, WorkKind, WorkOutput, WorkRequest};
use obelysk_node::error::{NodeError, TransportError};
use obelysk_node::transport::quinn::Connection;
use obelysk_node::transport::{connect, connect_alpn, read_message};
use obelysk_node::{CoordinatorAddress, ExitReason, IdentityStore, Node, NodeConfig, Token};
use obelysk_protocol::wire::{FrameHeader, MAX_CONTROL_BYTES, Message, MessageId, ResultAck};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longer than any of these jobs takes on a loaded machine; a test that gets here has hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn config() -> CoordinatorConfig {
    CoordinatorConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        lease_ms: 3000,
        away_grace_ms: 300,
        idle_timeout_ms: 1500,
        wait_deadline_ms: 20_000,
        retry_pause_ms: 50,
        ..CoordinatorConfig::default()
    }
}

pub fn admissions() -> Arc<Admissions> {
    Arc::new(Admissions::in_memory().expect("made"))
}

/// A token for one machine that keeps nothing.
pub fn invited(handle: &Handle) -> (IdentityStore, Option<Token>) {
    (IdentityStore::Memory, Some(handle.invite(PATIENCE, 1).expect("made")))
}

pub async fn start(checker: Arc<Toy>, referee: Option<Arc<dyn Engine>>) -> Handle {
    Coordinator::start(config(), admissions(), checker, referee).await.expect("starts")
}

pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<Result<ExitReason, NodeError>>,
}

pub fn node(handle: &Handle, name: &str, engine: Arc<dyn Engine>) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    let config = NodeConfig { threads: 1, ..NodeConfig::new(name) };
    let stopped = async {
        let _ = stopped.await;
    };
    Running { stop: Some(stop), task: tokio::spawn(Node::run_until(config, invited(handle), engine, stopped)) }
}

pub async fn prove(handle: &Handle, spec: Vec<u8>) -> (Result<JobResult, CoordinatorError>, Vec<Progress>) {
    prove_on(handle, spec, MODEL).await
}

pub async fn prove_on(handle: &Handle, spec: Vec<u8>, model: [u8; 32]) -> (Result<JobResult, CoordinatorError>, Vec<Progress>) {
    let mut job = handle.submit(spec, model).await.expect("submitted");
    let collect = async {
        let mut events = Vec::new();
        while let Some(event) = job.next().await {
            events.push(event);
        }
        (job.result().await, events)
    };
    tokio::time::timeout(PATIENCE, collect).await.expect("the job hangs")
}

pub async fn joined(handle: &Handle, nodes: usize) {
    handle.wait_for_nodes(nodes, PATIENCE).await.expect("nodes join");
}

/// An engine that misbehaves as a closure says: the only way in which faults get into these tests.
pub struct Faulty<F>(pub F);

pub type Outcome = Result<WorkOutput, EngineError>;

impl<F: Fn(&WorkRequest, Outcome) -> Outcome + Send + Sync + 'static> Engine for Faulty<F> {
    fn models(&self) -> Vec<[u8; 32]> {
        vec![MODEL]
    }

    fn run(&self, request: &WorkRequest, inputs: &[Vec<u8>], progress: &dyn Fn(u32)) -> Outcome {
        (self.0)(request, toy().run(request, inputs, progress))
    }
}

fn corrupt(kind: WorkKind) -> Arc<dyn Engine> {
    Arc::new(Faulty(move |request: &WorkRequest, outcome: Outcome| {
        outcome.map(|mut output| {
            if request.kind == kind {
                output.blob[0] ^= 1;
            }
            output
        })
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_nodes_gives_the_same_bytes() {
    let spec = spec(7, 1);
    for nodes in [1, 2, 3, 5] {
        let handle = start(toy(), None).await;
        let running: Vec<Running> = (0..nodes).map(|i| node(&handle, &format!("n{i}"), toy())).collect();
        joined(&handle, nodes).await;
        let (result, events) = prove(&handle, spec.clone()).await;
        let result = result.expect("proved");
        assert!(result.proof == expected_proof(&spec, 64), "{nodes} nodes");
        assert_eq!(result.nodes.len(), nodes, "every node contributes: {:?}", result.nodes);
        assert_eq!(result.peak_memory_bytes, 1006);
        let names: Vec<&str> = result.phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["forward", "commit", "prove", "open", "finish", "total"]);
        assert_eq!(events.iter().filter(|e| e.phase == "prove" && e.done > 0).map(|e| e.done).max(), Some(7));
        handle.shutdown().await;
        for node in running {
            let exit = tokio::time::timeout(PATIENCE, node.task).await.expect("node ends").expect("no panic");
            assert_eq!(exit.expect("in good order"), ExitReason::Dismissed("the coordinator stops".to_owned()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_several_chunks_travel() {
    let big = Arc::new(Toy { size: 2_500_000 });
    let handle = start(big.clone(), None).await;
    let _nodes = [node(&handle, "a", big.clone()), node(&handle, "b", big.clone())];
    joined(&handle, 2).await;
    let spec = spec(3, 2);
    assert!(prove(&handle, spec.clone()).await.0.expect("proved").proof == expected_proof(&spec, big.size));
    handle.shutdown().await;
}

/// Killing is aborting the task: the connection dies without a word, as after SIGKILL.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_mid_job_costs_only_its_work() {
    for kind in WorkKind::ALL {
        let handle = start(toy(), None).await;
        let reached = Arc::new(AtomicBool::new(false));
        let seen = reached.clone();
        let slow = Arc::new(Faulty(move |request: &WorkRequest, outcome: Outcome| {
            if request.kind == kind {
                seen.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_secs(2));
            }
            outcome
        }));
        let victim = node(&handle, "victim", slow);
        joined(&handle, 1).await;
        let _survivor = node(&handle, "survivor", toy());
        joined(&handle, 2).await;
        let killer = async {
            while !reached.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            victim.task.abort();
        };
        let spec = spec(4, 3);
        let ((result, events), ()) = tokio::join!(prove(&handle, spec.clone()), killer);
        assert!(result.expect("proved").proof == expected_proof(&spec, 64));
        let lost = events.iter().any(|e| e.text.contains("goes to another node") && e.node.as_deref() == Some("victim (node 1)"));
        assert!(lost, "{kind:?}: {events:?}");
        handle.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_quarantined_by_name_whatever_it_lies_about() {
    for kind in WorkKind::ALL {
        for referee in [None, Some(toy() as Arc<dyn Engine>)] {
            let handle = start(toy(), referee.clone()).await;
            let liar = node(&handle, "liar", corrupt(kind));
            joined(&handle, 1).await;
            let _honest = [node(&handle, "honest-1", toy()), node(&handle, "honest-2", toy())];
            joined(&handle, 3).await;
            let spec = spec(6, 4);
            let (result, events) = prove(&handle, spec.clone()).await;
            assert!(result.expect("proved").proof == expected_proof(&spec, 64));
            let named: Vec<_> = events.iter().filter(|e| e.text.starts_with("quarantined")).map(|e| e.node.clone()).collect();
            assert_eq!(named, [Some("liar (node 1)".to_owned())], "{kind:?} {}", referee.is_some());
            let exit = tokio::time::timeout(PATIENCE, liar.task).await.expect("ends").expect("no panic");
            assert!(matches!(exit, Err(NodeError::Transport(TransportError::Refused { retry: false, .. }))), "{exit:?}");
            handle.shutdown().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_panics_and_stalls_are_survived() {
    let handle = start(toy(), None).await;
    let calls = AtomicU32::new(0);
    let shaky = Arc::new(Faulty(move |_: &WorkRequest, outcome: Outcome| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Err(EngineError::Resources("memory".to_owned())),
        1 => panic!("bug"),
        2 => {
            std::thread::sleep(Duration::from_secs(5));
            outcome
        }
        _ => outcome,
    }));
    let _shaky = node(&handle, "shaky", shaky);
    joined(&handle, 1).await;
    let _steady = node(&handle, "steady", toy());
    joined(&handle, 2).await;
    let spec = spec(5, 5);
    let (result, events) = prove(&handle, spec.clone()).await;
    assert!(result.expect("proved").proof == expected_proof(&spec, 64));
    for text in ["ran out of memory", "panicked: bug", "no progress for a whole lease"] {
        assert!(events.iter().any(|e| e.text.contains(text)), "{text}: {events:?}");
    }
    assert!(!events.iter().any(|e| e.text.contains("quarantined")));
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_delivers_and_leaves() {
    let handle = start(toy(), None).await;
    let working = Arc::new(AtomicBool::new(false));
    let started = working.clone();
    let slow = Arc::new(Faulty(move |_: &WorkRequest, outcome: Outcome| {
        started.store(true, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        outcome
    }));
    let mut leaving = node(&handle, "leaving", slow);
    joined(&handle, 1).await;
    let spec = spec(3, 6);
    let stopper = async {
        while !working.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        leaving.stop.take().expect("once").send(()).expect("runs");
        let exit = tokio::time::timeout(PATIENCE, leaving.task).await.expect("ends").expect("no panic");
        assert_eq!(exit.expect("in good order"), ExitReason::Drained);
        node(&handle, "next", toy())
    };
    let ((result, events), _next) = tokio::join!(prove(&handle, spec.clone()), stopper);
    let result = result.expect("proved");
    assert!(result.proof == expected_proof(&spec, 64));
    assert_eq!(result.nodes, ["leaving (node 1)", "next (node 2)"], "what it ran was delivered");
    assert!(events.iter().any(|e| e.text.contains("no node can work on this job")), "{events:?}");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_submits_over_the_network() {
    let handle = start(toy(), None).await;
    let _node = node(&handle, "only", toy());
    joined(&handle, 1).await;
    let address: CoordinatorAddress = handle.address().parse().expect("own address");
    let spec = spec(4, 7);
    let mut phases = Vec::new();
    let result = submit_remote(&address, "laptop", &spec, MODEL, |event| phases.push(event.phase.clone())).await.expect("proved");
    assert!(result.proof == expected_proof(&spec, 64));
    phases.dedup();
    assert!(phases.ends_with(&["finish".to_owned()]) && phases.contains(&"challenge".to_owned()), "{phases:?}");
    let refused = submit_remote(&address, "laptop", b"nonsense", MODEL, |_| {}).await.expect_err("no job");
    assert!(refused.to_string().contains("1 to 64 segments"), "{refused}");
    // Anybody may be a client: what one may make the coordinator hold is small.
    let refused = submit_remote(&address, "laptop", &vec![0; 2 << 20], MODEL, |_| {}).await.expect_err("no job");
    assert!(refused.to_string().contains("no specification"), "{refused}");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_nodes_and_cancel_are_clear_errors() {
    let config = CoordinatorConfig { wait_deadline_ms: 200, ..config() };
    let handle = Coordinator::start(config, admissions(), toy(), None).await.expect("starts");
    let error = prove(&handle, spec(2, 8)).await.0.expect_err("nobody there").to_string();
    assert!(error.contains("no node could work on this job"), "{error}");
    let job = handle.submit(spec(2, 8), MODEL).await.expect("submitted");
    job.cancel().await;
    assert!(job.result().await.expect_err("cancelled").to_string().contains("cancelled"));
    let few = handle.wait_for_nodes(1, Duration::from_millis(50)).await;
    assert!(matches!(few, Err(CoordinatorError::TooFewNodes { joined: 0, wanted: 1, .. })));
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_or_version_ends_the_node_with_the_reason() {
    let handle = start(toy(), None).await;
    let other = start(toy(), None).await;
    let mut wrong = other.invite(PATIENCE, 1).expect("made");
    wrong.addresses = handle.addresses().to_vec();
    let membership = (IdentityStore::Memory, Some(wrong));
    let exit = Node::run_until(NodeConfig::new("n"), membership, toy(), std::future::pending()).await;
    assert!(matches!(exit, Err(NodeError::Transport(TransportError::WrongKey { .. }))), "{exit:?}");

    let address: CoordinatorAddress = handle.address().parse().expect("own address");
    let skewed = connect_alpn(&address, None, &[b"obelysk/999"]).await.expect_err("no common version");
    assert!(matches!(skewed, TransportError::NoCommonVersion), "{skewed}");
    handle.shutdown().await;
    other.shutdown().await;
}

/// Sends raw bytes as the first of a connection, and reads what the coordinator says: an answer, or the reason of its close.
async fn first_words(handle: &Handle, bytes: &[u8]) -> String {
    let address: CoordinatorAddress = handle.address().parse().expect("own address");
    let (_endpoint, connection) = connect(&address, None).await.expect("connects");
    let (mut send, mut recv) = connection.open_bi().await.expect("opens");
    send.write_all(bytes).await.expect("writes");
    send.finish().expect("open");
    let close = async |connection: &Connection| connection.closed().await.to_string();
    match tokio::time::timeout(PATIENCE, read_message(&mut recv)).await.expect("an answer") {
        Ok(Some(Message::Refused(no))) => no.reason,
        _ => tokio::time::timeout(PATIENCE, close(&connection)).await.expect("a close"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_end_their_connection_and_nothing_else() {
    let handle = start(toy(), None).await;
    let header = |message, length| FrameHeader { message, length }.encode().to_vec();
    let mut newer = header(MessageId::Hello, 0);
    newer[4] = 2;
    let mut oversize = header(MessageId::Hello, 0);
    oversize[8..12].copy_from_slice(&(MAX_CONTROL_BYTES + 1).to_le_bytes());
    let garbage = [header(MessageId::Hello, 64), vec![0xff; 64]].concat();
    let early = Message::ResultAck(ResultAck { epoch: 1 }).encode().expect("encodes");
    let cases = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "does not speak obelysk"),
        (newer, "wire version 2"),
        (oversize, "at most 1048576 are allowed"),
        (garbage, "malformed"),
        (header(MessageId::Hello, 64), "inside a payload"),
        (header(MessageId::Hello, 64)[..9].to_vec(), "cut off after 9"),
        (header(MessageId::Chunk, 0), "raw bytes"),
        (early, "expected a hello"),
    ];
    for (bytes, hint) in cases {
        let words = first_words(&handle, &bytes).await;
        assert!(words.contains(hint), "{hint}: {words}");
    }
    let _node = node(&handle, "fine", toy());
    joined(&handle, 1).await;
    prove(&handle, spec(2, 9)).await.0.expect("still proves");
    handle.shutdown().await;
}

/// The network fails while a node works and returns after the result is there: nothing is done twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_survives_the_connection_it_was_made_under() {
    let config = CoordinatorConfig { lease_ms: 30_000, away_grace_ms: 20_000, idle_timeout_ms: 600, ..config() };
    let handle = Coordinator::start(config, admissions(), toy(), None).await.expect("starts");
    let line = Line::start(handle.local_address(), Faults::default()).expect("starts");
    let (working, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (started, counted) = (working.clone(), calls.clone());
    let slow = Arc::new(Faulty(move |request: &WorkRequest, outcome: Outcome| {
        counted.fetch_add(1, Ordering::SeqCst);
        if request.kind == WorkKind::Prove && !started.swap(true, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1500));
        }
        outcome
    }));
    let mut token = handle.invite(PATIENCE, 1).expect("made");
    token.addresses = vec![line.address().to_string()];
    let membership = (IdentityStore::Memory, Some(token));
    let _node = tokio::spawn(Node::run_until(NodeConfig::new("remote"), membership, slow, std::future::pending()));
    joined(&handle, 1).await;
    let spec = spec(2, 10);
    let outage = async {
        while !working.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        line.swallow(true);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        line.swallow(false);
    };
    let ((result, events), ()) = tokio::join!(prove(&handle, spec.clone()), outage);
    assert!(result.expect("proved").proof == expected_proof(&spec, 64));
    assert_eq!(calls.load(Ordering::SeqCst), 8, "each of the 8 items ran once: {events:?}");
    assert!(events.iter().all(|e| !e.text.contains("another node")), "{events:?}");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_share_the_cluster() {
    let handle = start(toy(), None).await;
    let _nodes = [node(&handle, "a", toy()), node(&handle, "b", toy())];
    joined(&handle, 2).await;
    let specs: Vec<Vec<u8>> = (0..4).map(|i| spec(3, 100 + i)).collect();
    let [a, b, c, d] = [0, 1, 2, 3].map(|i: usize| prove(&handle, specs[i].clone()));
    let (a, b, c, d) = tokio::join!(a, b, c, d);
    for ((result, _), spec) in [a, b, c, d].into_iter().zip(&specs) {
        assert!(result.expect("proved").proof == expected_proof(spec, 64));
    }
    handle.shutdown().await;
}
