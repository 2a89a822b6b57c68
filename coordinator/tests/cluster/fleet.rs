//! Machines that differ: calibrated before they work, taken away with notice, leaving when there is nothing to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::loopback::{Faulty, Outcome, PATIENCE, admissions, config, invited, joined, node, prove, start};
use crate::toy::{MODEL, Toy, expected_proof, spec, toy};
use obelysk_coordinator::{Coordinator, Handle, ProofChecker};
use obelysk_node::engine::{CheckError, Checker, Engine, EngineError, Pieces, Trial, Verdict, WorkKind, WorkOutput, WorkRequest};
use obelysk_node::error::{NodeError, TransportError};
use obelysk_node::{ExitReason, Leave, Node, NodeBackend, NodeConfig, NodeSuite, ProverEngine, calibration};

/// The model of calibration of the toy.
const TRIAL: [u8; 32] = [9; 32];

/// The toy's checker, which also calibrates.
struct Calibrating;

impl Checker for Calibrating {
    fn segments(&self, spec: &[u8]) -> Result<u32, CheckError> {
        toy().segments(spec)
    }

    fn check(&self, s: &[u8], kind: WorkKind, segment: u32, inputs: &[&[u8]], extra: &[u8], output: &[u8]) -> Verdict {
        toy().check(s, kind, segment, inputs, extra, output)
    }

    fn challenge(&self, spec: &[u8], commits: &[&[u8]]) -> Result<Vec<u8>, CheckError> {
        toy().challenge(spec, commits)
    }

    fn finish(&self, spec: &[u8], pieces: Pieces<'_>) -> Result<Vec<u8>, CheckError> {
        toy().finish(spec, pieces)
    }

    fn trial(&self, number: u64) -> Option<Trial> {
        Some(Trial { model: TRIAL, spec: spec(3, number), segments: 3 })
    }
}

/// The toy's checker at a coordinator where the model is not registered, as one that leads after another may be.
struct Unknowing;

impl Checker for Unknowing {
    fn segments(&self, spec: &[u8]) -> Result<u32, CheckError> {
        toy().segments(spec)
    }

    fn check(&self, _: &[u8], _: WorkKind, _: u32, _: &[&[u8]], _: &[u8], _: &[u8]) -> Verdict {
        Verdict::Reject("the model is not registered".to_owned())
    }

    fn knows(&self, _: &[u8]) -> Result<(), CheckError> {
        Err(CheckError::Spec("the model is not registered at this coordinator".to_owned()))
    }

    fn challenge(&self, spec: &[u8], commits: &[&[u8]]) -> Result<Vec<u8>, CheckError> {
        toy().challenge(spec, commits)
    }

    fn finish(&self, spec: &[u8], pieces: Pieces<'_>) -> Result<Vec<u8>, CheckError> {
        toy().finish(spec, pieces)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_the_model_blames_no_node() {
    let handle = Coordinator::start(config(), admissions(), Arc::new(Unknowing), None).await.expect("starts");
    let _honest = ["one", "two"].map(|name| node(&handle, name, toy()));
    joined(&handle, 2).await;
    let (result, events) = prove(&handle, spec(3, 1)).await;
    let reason = result.err().expect("nothing can be judged here").to_string();
    assert!(reason.contains("not registered at this coordinator"), "{reason}");
    assert!(!events.iter().any(|e| e.text.starts_with("quarantined")), "{events:?}");
    handle.shutdown().await;
}

/// Knows the model of calibration, counts its trials, and spoils those of one kind.
struct Tried {
    trials: AtomicU32,
    spoils: Option<WorkKind>,
}

impl Tried {
    fn new(spoils: Option<WorkKind>) -> Arc<Self> {
        Arc::new(Self { trials: AtomicU32::new(0), spoils })
    }
}

impl Engine for Tried {
    fn models(&self) -> Vec<[u8; 32]> {
        vec![MODEL, TRIAL]
    }

    fn run(&self, request: &WorkRequest, inputs: &[Vec<u8>], progress: &dyn Fn(u32)) -> Result<WorkOutput, EngineError> {
        let trial = request.model == TRIAL;
        self.trials.fetch_add(u32::from(trial), Ordering::SeqCst);
        let mut done = toy().run(request, inputs, progress)?;
        if trial && self.spoils == Some(request.kind) {
            done.blob.pop();
        }
        Ok(done)
    }
}

/// Does nothing but fail, and is lost from then on.
#[derive(Default)]
struct Fragile(AtomicBool);

impl Engine for Fragile {
    fn models(&self) -> Vec<[u8; 32]> {
        vec![MODEL]
    }

    fn lost(&self) -> Option<String> {
        self.0.load(Ordering::SeqCst).then(|| "the card was lost".to_owned())
    }

    fn run(&self, _: &WorkRequest, _: &[Vec<u8>], _: &dyn Fn(u32)) -> Result<WorkOutput, EngineError> {
        self.0.store(true, Ordering::SeqCst);
        Err(EngineError::Resources("its card".to_owned()))
    }
}

async fn calibrating() -> Handle {
    Coordinator::start(config(), admissions(), Arc::new(Calibrating), None).await.expect("starts")
}

fn settings(name: &str) -> NodeConfig {
    NodeConfig { threads: 1, ..NodeConfig::new(name) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_calibrated_once_and_then_works() {
    let handle = calibrating().await;
    let engine = Tried::new(None);
    let node = tokio::spawn(Node::run_until(settings("a"), invited(&handle), engine.clone(), std::future::pending()));
    joined(&handle, 1).await;
    assert_eq!(engine.trials.load(Ordering::SeqCst), 12, "three segments of four kinds");
    let spec = spec(4, 900);
    assert!(prove(&handle, spec.clone()).await.0.expect("proved").proof == expected_proof(&spec, 64));
    assert_eq!(engine.trials.load(Ordering::SeqCst), 12);
    handle.shutdown().await;
    node.await.expect("no panic").expect("in good order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fails_calibration_is_refused_with_the_reason() {
    for kind in WorkKind::ALL {
        let handle = calibrating().await;
        let run = Node::run_until(settings("liar"), invited(&handle), Tried::new(Some(kind)), std::future::pending());
        let error = tokio::time::timeout(PATIENCE, run).await.expect("ends").expect_err("refused");
        let NodeError::Transport(TransportError::Refused { reason, retry: false }) = &error else { panic!("{error}") };
        assert!(reason.contains(&format!("calibration, {} of segment 0 is wrong", kind.name())), "{reason}");
        assert_eq!(handle.connected_nodes(), 0);
        handle.shutdown().await;
    }
}

/// The model that programs carry, by the engine and checker of proofs: right, and short.
#[tokio::test(flavor = "multi_thread")]
async fn the_real_calibration_is_passed_in_time() {
    let place = tempfile::tempdir().expect("folder");
    let folder = calibration::folder(&place.path().join("calibration")).expect("made");
    let checker = ProofChecker::<NodeSuite, _>::new(NodeBackend::default(), []).with_trial(folder.registered.clone());
    let jobs = checker.segments(&calibration::spec(folder.id, 1).encode()).expect_err("takes no jobs");
    assert!(jobs.to_string().contains("calibration"), "{jobs}");
    let handle = Coordinator::start(config(), admissions(), Arc::new(checker), None).await.expect("starts");
    let engine = Arc::new(ProverEngine::<NodeSuite, _>::new(NodeBackend::default(), [folder]));
    let (cpu, started) = (obelysk_node::usage::cpu_time(), Instant::now());
    let node = tokio::spawn(Node::run_until(settings("a"), invited(&handle), engine, std::future::pending()));
    joined(&handle, 1).await;
    let spent = obelysk_node::usage::cpu_time() - cpu;
    println!("calibrated in {:?}, {spent:?} of processor time on both sides", started.elapsed());
    assert!(spent < Duration::from_secs(20), "{spent:?}: far beyond the two seconds it is to take in a release build");
    handle.shutdown().await;
    node.await.expect("no panic").expect("in good order");
}

/// Work that takes longer than the machine has left goes back at once, and costs nobody an attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_taken_away_gives_back_what_does_not_fit() {
    let handle = start(toy(), None).await;
    let (began, mut hangs) = tokio::sync::watch::channel(false);
    let long = Arc::new(Faulty(move |request: &WorkRequest, outcome: Outcome| {
        if request.kind == WorkKind::Commit {
            began.send_replace(true);
            std::thread::sleep(Duration::from_secs(30));
        }
        outcome
    }));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let leave = async {
        let _ = stopped.await;
        Leave::Preempted(Duration::from_secs(1))
    };
    let victim = tokio::spawn(Node::run_leaving(settings("spot"), invited(&handle), long, leave));
    joined(&handle, 1).await;
    let spec = spec(3, 901);
    let mut job = handle.submit(spec.clone(), MODEL).await.expect("submitted");
    // A commit may begin while a link of the chain is still being checked.
    tokio::time::timeout(PATIENCE, hangs.wait_for(|hangs| *hangs)).await.expect("in time").expect("the engine is there");
    let survivor = tokio::spawn(Node::run_until(settings("b"), invited(&handle), toy(), std::future::pending()));
    joined(&handle, 2).await;
    let started = Instant::now();
    stop.send(()).expect("the node runs");
    let exit = tokio::time::timeout(PATIENCE, victim).await.expect("ends").expect("no panic").expect("in good order");
    assert_eq!(exit, ExitReason::Preempted);
    assert!(started.elapsed() < Duration::from_secs(15), "it did not wait for its work");
    let mut blamed = Vec::new();
    while let Some(event) = job.next().await {
        if !event.text.is_empty() {
            blamed.push(event.text);
        }
    }
    assert!(job.result().await.expect("proved").proof == expected_proof(&spec, 64));
    assert!(blamed.is_empty(), "{blamed:?}");
    handle.shutdown().await;
    survivor.await.expect("no panic").expect("in good order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_nothing_to_do_leaves() {
    let handle = start(toy(), None).await;
    let config = NodeConfig { exit_when_idle_s: 2, ..settings("a") };
    let run = tokio::spawn(Node::run_until(config, invited(&handle), toy(), std::future::pending()));
    joined(&handle, 1).await;
    let spec = spec(2, 902);
    assert!(prove(&handle, spec.clone()).await.0.expect("proved").proof == expected_proof(&spec, 64));
    let worked = Instant::now();
    let exit = tokio::time::timeout(PATIENCE, run).await.expect("ends").expect("no panic").expect("in good order");
    assert_eq!(exit, ExitReason::Idle);
    assert!(worked.elapsed() >= Duration::from_secs(1), "it waited");
    handle.shutdown().await;
}

/// A hook that says yes is a notice; the engine is never asked to hurry.
#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_says_yes_drains_the_node() {
    let handle = start(toy(), None).await;
    let config = NodeConfig { preempt_hook: "exit 0".to_owned(), ..settings("spot") };
    let size = Toy { size: 64 };
    let exit = tokio::time::timeout(PATIENCE, Node::run(config, invited(&handle), Arc::new(size))).await.expect("ends");
    assert_eq!(exit.expect("in good order"), ExitReason::Preempted);
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_engine_is_lost_leaves_and_others_do_the_work() {
    let handle = start(toy(), None).await;
    let fragile = Arc::new(Fragile::default());
    let run = tokio::spawn(Node::run_until(settings("a"), invited(&handle), fragile, std::future::pending()));
    joined(&handle, 1).await;
    let spec = spec(2, 903);
    let replaced = async {
        let exit = tokio::time::timeout(PATIENCE, run).await.expect("ends").expect("no panic").expect("in good order");
        (exit, tokio::spawn(Node::run_until(settings("b"), invited(&handle), toy(), std::future::pending())))
    };
    let ((proved, _), (exit, other)) = tokio::join!(prove(&handle, spec.clone()), replaced);
    assert_eq!(exit, ExitReason::Lost("the card was lost".to_owned()));
    assert!(proved.expect("proved").proof == expected_proof(&spec, 64));
    handle.shutdown().await;
    other.await.expect("no panic").expect("in good order");
}
