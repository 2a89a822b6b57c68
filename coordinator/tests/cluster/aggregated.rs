//! Mode 2 over real connections: nodes that do the opening of all segments together, die in any of its steps, and lie in each. The
//! proof's bytes are those of one process every time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::loopback::{Faulty, Outcome, admissions, config, joined, node, prove, prove_on, start};
use crate::toy::{expected_proof, joint_spec, toy};
use obelysk_coordinator::evidence::{Case, Evidence};
use obelysk_coordinator::{Coordinator, CoordinatorConfig, Facts, Handle, ProofChecker};
use obelysk_model::toy::model as toy_model;
use obelysk_node::engine::{Engine, Verdict, WorkKind, WorkOutput, WorkRequest};
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::joint_bytes::{JointRecord, JointStep};
use obelysk_node::{ModelFolder, NodeBackend, NodeSuite, ProverEngine};
use obelysk_protocol::field::{ONE, QM31};
use obelysk_protocol::verifier::bytes::{Reader, put_felts};
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::local;
use obelysk_shard::registration::register;
use tempfile::TempDir;

/// A registered model, a specification in mode 2, and its proof by one process.
struct Site {
    folder: ModelFolder,
    spec: JobSpec,
    alone: Vec<u8>,
    _dir: TempDir,
}

static SITE: LazyLock<Site> = LazyLock::new(|| {
    let (dir, model) = (tempfile::tempdir().expect("folder"), toy_model(5));
    model.save(dir.path(), None).expect("saved");
    let security = SecurityParams::standard(model.descriptor.blowup_log());
    let k = NodeBackend::default();
    let registered = register::<NodeSuite, _>(&k, &model, security, [7; 32], dir.path(), &|_| ()).expect("registered");
    std::fs::write(dir.path().join("registered.obr"), registered.write()).expect("written");
    let folder = ModelFolder::open::<NodeSuite>(dir.path()).expect("opens");
    let spec = JobSpec { model: folder.id, mode: Mode::Aggregated as u8, ids: vec![1, 2, 3], sequences: Vec::new() };
    let loaded = folder.load::<NodeSuite, NodeBackend>().expect("loads");
    let alone = local::prove_in(&k, &loaded, (&spec.input(), Mode::Aggregated), &|_, _, _| ()).expect("proved").0.write();
    Site { folder, spec, alone, _dir: dir }
});

impl Site {
    fn h(&self) -> usize {
        usize::from(self.folder.registered.descriptor.row_log())
    }

    fn engine(&self) -> ProverEngine<NodeSuite, NodeBackend> {
        ProverEngine::new(NodeBackend::default(), [self.folder.clone()])
    }

    fn checker(&self) -> ProofChecker<NodeSuite, NodeBackend> {
        ProofChecker::new(NodeBackend::default(), [self.folder.registered.clone()])
    }

    async fn start(&self) -> Handle {
        self.start_with(Facts::in_memory()).await
    }

    /// A coordinator whose leases are long enough for a machine that is busy with other tests.
    async fn start_with(&self, facts: Facts) -> Handle {
        let config = CoordinatorConfig { lease_ms: 60_000, wait_deadline_ms: 60_000, ..config() };
        Coordinator::start_with(config, admissions(), Arc::new(self.checker()), None, facts).await.expect("starts")
    }

    async fn same_bytes(&self, handle: &Handle) -> Vec<obelysk_coordinator::Progress> {
        let (result, events) = prove_on(handle, self.spec.encode(), self.spec.model).await;
        assert!(result.expect("proved").proof == self.alone, "other bytes than one process");
        events
    }
}

/// The prover with something done to what it gives.
struct Bent<F> {
    engine: ProverEngine<NodeSuite, NodeBackend>,
    bend: F,
}

impl<F: Fn(JointStep, &JointRecord, WorkOutput) -> WorkOutput + Send + Sync + 'static> Engine for Bent<F> {
    fn models(&self) -> Vec<[u8; 32]> {
        self.engine.models()
    }

    fn run(&self, request: &WorkRequest, inputs: &[Vec<u8>], progress: &dyn Fn(u32)) -> Outcome {
        let output = self.engine.run(request, inputs, progress)?;
        if request.kind != WorkKind::Joint {
            return Ok(output);
        }
        let record = JointRecord::decode(&request.extra).expect("of a coordinator of ours");
        Ok((self.bend)(record.step(SITE.h()), &record, output))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_nodes_gives_the_bytes_of_one_process() {
    for nodes in 1..=3 {
        let handle = SITE.start().await;
        let _nodes: Vec<_> = (0..nodes).map(|i| node(&handle, &format!("n{i}"), Arc::new(SITE.engine()))).collect();
        joined(&handle, nodes).await;
        let events = SITE.same_bytes(&handle).await;
        let steps = events.iter().filter(|e| e.phase == "joint").map(|e| e.total).max();
        assert!(steps.is_some() && !events.iter().any(|e| e.text.contains("again")), "{nodes} nodes: {events:?}");
        handle.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_in_a_joint_step_is_replaced_and_nothing_else_is_done_again() {
    let h = SITE.h();
    for wanted in [JointStep::Round(0), JointStep::Round(h / 2), JointStep::Values, JointStep::Fold, JointStep::Answers] {
        let handle = SITE.start().await;
        let reached = Arc::new(AtomicBool::new(false));
        let seen = reached.clone();
        let bend = move |step: JointStep, _: &JointRecord, output: WorkOutput| {
            if step == wanted {
                seen.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_secs(2));
            }
            output
        };
        let victim = node(&handle, "victim", Arc::new(Bent { engine: SITE.engine(), bend }));
        joined(&handle, 1).await;
        let _survivor = node(&handle, "survivor", Arc::new(SITE.engine()));
        joined(&handle, 2).await;
        let killer = async {
            while !reached.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            victim.task.abort();
        };
        let (events, ()) = tokio::join!(SITE.same_bytes(&handle), killer);
        let lost = events.iter().any(|e| e.text.starts_with("joint/") && e.text.contains("goes to another node"));
        let again = events.iter().any(|e| e.text.contains("done again"));
        assert!(lost && !again, "{wanted:?}: {events:?}");
        handle.shutdown().await;
    }
}

fn felts(data: &[u8]) -> Vec<QM31> {
    let mut r = Reader::new(data);
    (0..data.len() / 16).map(|_| r.felt().expect("of an engine of ours")).collect()
}

/// A part that differs from the true one where the checker of this step looks.
fn wrong(part: &[u8], step: JointStep) -> Vec<u8> {
    if step == JointStep::Answers {
        let mut out = part.to_vec();
        *out.last_mut().expect("not empty") ^= 1;
        return out;
    }
    let (mut out, mut values) = (part[..32].to_vec(), felts(&part[32..]));
    values[0] += ONE;
    put_felts(&mut out, &values);
    out
}

/// A share of the combined row that has the right value at the joint point, and is another.
fn wrong_unseen(part: &[u8], record: &JointRecord) -> Vec<u8> {
    let (mut out, mut row) = (part[..32].to_vec(), felts(&part[32..]));
    row[0] += record.zeta[0];
    row[1] += record.zeta[0] - ONE;
    put_felts(&mut out, &row);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_in_a_joint_step_is_quarantined_there_and_others_finish() {
    let h = SITE.h();
    let lies = [
        (JointStep::Round(0), false),
        (JointStep::Round(h - 1), false),
        (JointStep::Values, false),
        (JointStep::Fold, false),
        (JointStep::Fold, true),
        (JointStep::Answers, false),
    ];
    for (wanted, unseen) in lies {
        let handle = SITE.start().await;
        let bend = move |step: JointStep, record: &JointRecord, output: WorkOutput| match step == wanted {
            true if unseen => WorkOutput { blob: wrong_unseen(&output.blob, record), ..output },
            true => WorkOutput { blob: wrong(&output.blob, step), ..output },
            false => output,
        };
        let liar = node(&handle, "liar", Arc::new(Bent { engine: SITE.engine(), bend }));
        joined(&handle, 1).await;
        let _honest = ["honest-1", "honest-2"].map(|name| node(&handle, name, Arc::new(SITE.engine())));
        joined(&handle, 3).await;
        let events = SITE.same_bytes(&handle).await;
        let named: Vec<_> = events.iter().filter(|e| e.text.starts_with("quarantined")).collect();
        let names: Vec<_> = named.iter().map(|e| e.node.as_deref()).collect();
        assert_eq!(names, [Some("liar (node 1)")], "{wanted:?}: {events:?}");
        assert!(named[0].text.contains("joint/"), "{named:?}");
        liar.task.abort();
        handle.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_convicts_a_liar_can_be_judged_again_by_anybody() {
    let dir = tempfile::tempdir().expect("folder");
    let evidence = Evidence::of_coordinator(dir.path());
    let handle = SITE.start_with(Facts { evidence: Some(evidence.clone()), ..Facts::in_memory() }).await;
    // What it computed in truth, and what it said.
    let truth = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = truth.clone();
    let bend = move |step: JointStep, _: &JointRecord, output: WorkOutput| {
        if step != JointStep::Values {
            return output;
        }
        let blob = wrong(&output.blob, step);
        told.lock().expect("whole").push((output.blob, blob.clone()));
        WorkOutput { blob, ..output }
    };
    let liar = node(&handle, "liar", Arc::new(Bent { engine: SITE.engine(), bend }));
    joined(&handle, 1).await;
    let _honest = node(&handle, "honest", Arc::new(SITE.engine()));
    joined(&handle, 2).await;
    SITE.same_bytes(&handle).await;
    liar.task.abort();
    handle.shutdown().await;
    // It may have lied about other segments before the first lie was judged.
    let cases = evidence.list().expect("reads");
    assert!(!cases.is_empty());
    for case in cases {
        let mut case = Case::read(&case).expect("whole");
        assert_eq!(
            (case.charge.name.as_str(), case.charge.kind.as_str(), case.charge.disputed),
            ("liar (node 1)", "joint", false)
        );
        assert_eq!(case.judge(&SITE.checker()), Some(Verdict::Reject(case.charge.reason.clone())));
        // With what it computed in truth in its place, the charge does not hold.
        let known =
            truth.lock().expect("whole").iter().find(|(_, said)| *said == case.exhibits.output).map(|(truth, _)| truth.clone());
        case.exhibits.output = known.expect("a lie of this node");
        assert_eq!(case.judge(&SITE.checker()), Some(Verdict::Accept));
    }
}

/// The same with results that are hashes, so that every byte of a part is lied about, with and without a referee.
#[tokio::test(flavor = "multi_thread")]
async fn liars_about_any_byte_of_a_part_are_found_by_name() {
    let spec = joint_spec(5, 1, 4);
    for (byte, referee) in [0, 32, 64].into_iter().flat_map(|byte| [(byte, None), (byte, Some(toy() as Arc<dyn Engine>))]) {
        let refereed = referee.is_some();
        let handle = start(toy(), referee).await;
        let lie = move |request: &WorkRequest, outcome: Outcome| {
            outcome.map(|mut output| {
                if request.kind == WorkKind::Joint {
                    output.blob[byte] ^= 1;
                }
                output
            })
        };
        let _liar = node(&handle, "liar", Arc::new(Faulty(lie)));
        joined(&handle, 1).await;
        let _honest = ["honest-1", "honest-2"].map(|name| node(&handle, name, toy()));
        joined(&handle, 3).await;
        let (result, events) = prove(&handle, spec.clone()).await;
        assert!(result.expect("proved").proof == expected_proof(&spec, 64));
        let named: Vec<_> = events.iter().filter(|e| e.text.starts_with("quarantined")).map(|e| e.node.as_deref()).collect();
        assert_eq!(named, [Some("liar (node 1)")], "byte {byte}, referee {refereed}: {events:?}");
        handle.shutdown().await;
    }
}
