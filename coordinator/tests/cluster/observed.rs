//! What the coordinator says of jobs is what happened: logs replayed against the result, questions over the wire, who may ask.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::loopback::{Faulty, Outcome, PATIENCE, admissions, config, invited, joined, prove};
use crate::toy::{MODEL, Toy, challenge, compute, spec, toy};
use obelysk_coordinator::server::{DONE, Entry, replay};
use obelysk_coordinator::{Admissions, Coordinator, CoordinatorConfig, Handle, JobResult, Progress};
use obelysk_node::engine::{Engine, WorkKind, WorkRequest};
use obelysk_node::error::TransportError;
use obelysk_node::identity::ask;
use obelysk_node::transport::connect;
use obelysk_node::{CoordinatorAddress, Node, NodeConfig};
use obelysk_protocol::wire::{
    BlobRef, ItemPhase, JobCancel, JobItemsGet, JobLogAfter, JobState, JobsAfter, Message, StatusGet, WorkersAfter,
};

const SEGMENTS: u32 = 8;

fn join(handle: &Handle, name: &str, engine: Arc<dyn Engine>) -> tokio::task::JoinHandle<()> {
    let run =
        Node::run_until(NodeConfig { threads: 1, ..NodeConfig::new(name) }, invited(handle), engine, std::future::pending());
    tokio::spawn(async {
        let _ = run.await;
    })
}

async fn start(logs: &Path, admissions: Arc<Admissions>) -> Handle {
    let config = CoordinatorConfig { job_logs: logs.to_owned(), ..config() };
    Coordinator::start(config, admissions, toy(), None).await.expect("starts")
}

fn log_file(folder: &Path, job: [u8; 32]) -> PathBuf {
    let name: String = job.iter().map(|b| format!("{b:02x}")).collect();
    folder.join(format!("{name}.jsonl"))
}

/// All lines, once the last is there: the log is written beside the job.
fn log(folder: &Path, job: [u8; 32]) -> Vec<Entry> {
    let started = Instant::now();
    loop {
        let text = std::fs::read_to_string(log_file(folder, job)).unwrap_or_default();
        // What follows the last end of a line is being written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let entries: Vec<Entry> = whole.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect();
        if entries.last().is_some_and(Entry::is_last) {
            return entries;
        }
        assert!(started.elapsed() < PATIENCE, "the log does not end: {entries:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The digest of every piece, computed here.
fn pieces(spec: &[u8]) -> Vec<(String, BlobRef)> {
    let size = toy().size;
    let run = |kind, l, inputs: &[&[u8]], extra: &[u8]| compute(kind, spec, l, inputs, extra, size).expect("honest");
    let (mut before, mut all, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    let mut inputs: Vec<Vec<u8>> = Vec::new();
    for l in 0..SEGMENTS {
        inputs.push(before.clone());
        let after = run(WorkKind::Forward, l, &[&before], &[]);
        commits.push(run(WorkKind::Commit, l, &[&before], &[]));
        all.push((format!("forward/{l}"), BlobRef::of(&after)));
        all.push((format!("commit/{l}"), BlobRef::of(&commits[l as usize])));
        before = after;
    }
    let extra = challenge(&commits.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for l in 0..SEGMENTS {
        let before = &inputs[l as usize];
        let proof = run(WorkKind::Prove, l, &[before], &extra);
        let opened = run(WorkKind::Open, l, &[before, &proof], &extra);
        all.push((format!("prove/{l}"), BlobRef::of(&proof)));
        all.push((format!("open/{l}"), BlobRef::of(&opened)));
    }
    all.sort();
    all
}

/// Replaying the log gives the job's final state: every piece, right, from the nodes that the report names, and the proof.
fn agrees(entries: &[Entry], result: &JobResult, events: &[Progress], spec: &[u8]) {
    assert!(entries.iter().zip(1..).all(|(entry, number)| entry.number == number), "no gap");
    assert!(entries.windows(2).all(|w| w[0].unix_ms <= w[1].unix_ms), "in order of time");
    let replayed = replay(entries);
    let mut stand: Vec<(String, String)> =
        replayed.pieces.iter().map(|(work, _, digest)| (work.clone(), digest.clone())).collect();
    stand.sort();
    let hex = |blob: &BlobRef| blob.digest.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let expected: Vec<(String, String)> = pieces(spec).iter().map(|(work, blob)| (work.clone(), hex(blob))).collect();
    assert_eq!(stand, expected);
    let mut nodes: Vec<&str> = replayed.pieces.iter().map(|(_, node, _)| node.as_str()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let mut reported: Vec<&str> = result.nodes.iter().map(String::as_str).collect();
    reported.sort_unstable();
    assert_eq!(nodes, reported);
    // The submitter heard of the same acceptances, in the same order, on its own channel.
    let heard: Vec<(&str, &str)> =
        events.iter().filter(|e| e.text.is_empty()).filter_map(|e| Some((e.phase, e.node.as_deref()?))).collect();
    let logged = entries.iter().filter(|e| e.event == "accepted");
    let logged: Vec<(&str, &str)> = logged.map(|e| (e.work.split('/').next().unwrap_or_default(), e.node.as_str())).collect();
    assert_eq!(logged, heard);
    let end = replayed.end.expect("ended");
    assert_eq!((end.event.as_str(), end.result()), (DONE, BlobRef::of(&result.proof)));
    assert_eq!(end.job.expect("facts").accepted, [SEGMENTS; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_replayed_is_the_job_as_it_ended_whoever_lied_or_died() {
    let folder = tempfile::tempdir().expect("folder");
    for kind in WorkKind::ALL {
        let handle = start(folder.path(), admissions()).await;
        let liar = Arc::new(Faulty(move |request: &WorkRequest, outcome: Outcome| {
            outcome.map(|mut output| {
                output.blob[0] ^= u8::from(request.kind == kind);
                output
            })
        }));
        let reached = Arc::new(AtomicBool::new(false));
        let seen = reached.clone();
        let slow = Arc::new(Faulty(move |_: &WorkRequest, outcome: Outcome| {
            if !seen.swap(true, Ordering::SeqCst) {
                std::thread::sleep(Duration::from_secs(2));
            }
            outcome
        }));
        let _liar = join(&handle, "liar", liar);
        joined(&handle, 1).await;
        let victim = join(&handle, "victim", slow);
        joined(&handle, 2).await;
        let _honest = [join(&handle, "a", toy()), join(&handle, "b", toy())];
        joined(&handle, 4).await;
        let killer = async {
            let started = Instant::now();
            while !reached.load(Ordering::SeqCst) && started.elapsed() < Duration::from_secs(5) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            victim.abort();
        };
        let spec = spec(SEGMENTS, 21);
        let ((result, events), ()) = tokio::join!(prove(&handle, spec.clone()), killer);
        let result = result.expect("proved");
        let entries = log(folder.path(), result.job);
        agrees(&entries, &result, &events, &spec);
        assert!(entries.iter().any(|e| e.event == "quarantined" && e.node == "liar (node 1)" && e.id.len() == 64), "{kind:?}");
        handle.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_costs_the_log_and_nothing_else() {
    let handle = start(Path::new("/dev/null/jobs"), admissions()).await;
    let _node = join(&handle, "only", toy());
    joined(&handle, 1).await;
    prove(&handle, spec(2, 22)).await.0.expect("proved all the same");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_see_jobs_nodes_and_pieces_and_nobody_else_does() {
    let folder = tempfile::tempdir().expect("folder");
    let admissions = admissions();
    let handle = start(folder.path(), admissions.clone()).await;
    let gate = Arc::new(AtomicBool::new(false));
    let open = gate.clone();
    let held = Arc::new(Faulty(move |request: &WorkRequest, outcome: Outcome| {
        while request.kind == WorkKind::Prove && !open.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        outcome
    }));
    let _node = join(&handle, "held", held);
    joined(&handle, 1).await;
    let job = handle.submit(spec(SEGMENTS, 23), MODEL).await.expect("submitted");
    let id = job.id();
    let admin = admissions.new_admin(handle.addresses().to_vec()).expect("made");
    let place = admin.places().expect("addresses").remove(0);
    let (_endpoint, connection) = connect(&place, Some(&admin.client())).await.expect("connects");
    let ask = async |question: Message| ask(&connection, &question).await.expect("answered");
    let items = async || match ask(Message::JobItemsGet(JobItemsGet { job: id, segment: 0 })).await {
        Message::JobItems(answer) => answer.items,
        other => panic!("{other:?}"),
    };
    let started = Instant::now();
    let leased = loop {
        assert!(started.elapsed() < PATIENCE);
        let all = items().await;
        assert_eq!(all.len(), 4 * SEGMENTS as usize);
        let of = |kind: WorkKind, phase: ItemPhase| all.iter().filter(move |i| (i.kind, i.phase) == (kind.code(), phase as u8));
        // There is no challenge before all commits are in.
        if let Some(leased) = of(WorkKind::Prove, ItemPhase::Leased).next() {
            assert_eq!(of(WorkKind::Commit, ItemPhase::Accepted).count(), SEGMENTS as usize);
            break *leased;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let Message::Workers(workers) = ask(Message::WorkersAfter(WorkersAfter { node: 0 })).await else { panic!("workers") };
    let [worker] = workers.workers.as_slice() else { panic!("{workers:?}") };
    assert_eq!((worker.node, worker.name.as_str(), worker.busy, worker.job), (1, "held", true, id));
    assert_eq!((worker.kind, worker.segment, worker.accepted), (leased.kind, leased.segment, 2 * u64::from(SEGMENTS)));
    let Message::Jobs(jobs) = ask(Message::JobsAfter(JobsAfter { job: [0; 32] })).await else { panic!("jobs") };
    assert_eq!(jobs.jobs.len(), 1);
    assert_eq!((jobs.jobs[0].state, jobs.jobs[0].accepted), (JobState::Running as u8, [SEGMENTS, SEGMENTS, 0, 0]));
    let Message::Status(status) = ask(Message::StatusGet(StatusGet { unix_s: 0 })).await else { panic!("status") };
    assert_eq!((status.jobs, status.nodes, status.cores), ([1, 0, 0, 0, 0], [0, 1, 0, 0, 0], 1));
    assert_eq!((status.events[0], status.items[ItemPhase::Accepted as usize]), (2 * u64::from(SEGMENTS), 2 * SEGMENTS));
    assert!(status.received_bytes > 0 && status.sent_bytes > 0 && status.store_bytes[0] > 0);
    gate.store(true, Ordering::SeqCst);
    let result = job.result().await.expect("proved");
    let Message::Jobs(jobs) = ask(Message::JobsAfter(JobsAfter { job: [0; 32] })).await else { panic!("jobs") };
    assert_eq!((jobs.jobs[0].state, jobs.jobs[0].proof), (JobState::Done as u8, BlobRef::of(&result.proof)));
    log(folder.path(), id);
    let Message::JobLog(told) = ask(Message::JobLogAfter(JobLogAfter { job: id, number: 1 })).await else { panic!("log") };
    assert!(told.ended && told.events[0].number == 2 && told.events.last().is_some_and(|e| e.event == DONE), "{told:?}");
    let refused = obelysk_node::identity::ask(&connection, &Message::JobCancel(JobCancel { job: id })).await;
    assert!(refused.as_ref().is_err_and(|e| e.to_string().contains("no job")), "{refused:?}");
    // Without an administrator's certificate nobody learns anything.
    let address: CoordinatorAddress = handle.address().parse().expect("own address");
    let (_other, nobody) = connect(&address, None).await.expect("connects");
    let refused = obelysk_node::identity::ask(&nobody, &Message::StatusGet(StatusGet { unix_s: 0 })).await;
    assert!(matches!(refused, Err(TransportError::Refused { .. })), "{refused:?}");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_jobs_are_remembered_by_the_next_coordinator() {
    let folder = tempfile::tempdir().expect("folder");
    let admissions = admissions();
    let handle = start(folder.path(), admissions.clone()).await;
    let _node = join(&handle, "only", Arc::new(Toy { size: 64 }));
    joined(&handle, 1).await;
    let done = prove(&handle, spec(2, 24)).await.0.expect("proved");
    log(folder.path(), done.job);
    handle.shutdown().await;
    let next = start(folder.path(), admissions.clone()).await;
    let admin = admissions.new_admin(next.addresses().to_vec()).expect("made");
    let (_endpoint, connection) =
        connect(&admin.places().expect("addresses").remove(0), Some(&admin.client())).await.expect("connects");
    let answer = ask(&connection, &Message::JobsAfter(JobsAfter { job: [0; 32] })).await.expect("answered");
    let Message::Jobs(jobs) = answer else { panic!("{answer:?}") };
    assert_eq!((jobs.jobs[0].job, jobs.jobs[0].state, jobs.jobs[0].model), (done.job, JobState::Done as u8, MODEL));
    next.shutdown().await;
}
