//! What a submitter sees of its job: counted phases with an estimate, what happened to nodes, and the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use obelysk_node::engine::WorkKind;
use tokio::sync::{mpsc, oneshot};

use crate::core::{JobEvent, JobId, NodeId, Report};

/// Events a slow reader may be behind; beyond, events are dropped, never the result.
const MAX_EVENTS: usize = 1024;

/// One step of a job, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The phase: a kind of work, `challenge` or `finish`.
    pub phase: &'static str,
    /// Work items finished in it.
    pub done: u32,
    /// Work items it has.
    pub total: u32,
    /// Time the job took so far.
    pub elapsed: Duration,
    /// Estimated time left **in this phase**, by the pace so far.
    pub eta: Option<Duration>,
    /// Node the event is about, when it is about one: `name (node 3)`.
    pub node: Option<String>,
    /// What happened beyond counting: losses, failures, quarantine, waiting; empty for plain progress.
    pub text: String,
}

/// Time one phase took.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// Name: a kind of work, or `finish`.
    pub name: String,
    /// Wall-clock seconds from first lease to last acceptance. Phases overlap.
    pub wall_s: f64,
    /// Core-seconds over all nodes, as they reported them.
    pub core_s: f64,
}

/// A finished job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobResult {
    /// The job.
    pub job: [u8; 32],
    /// The proof, verified as a whole.
    pub proof: Vec<u8>,
    /// Time per phase, and `total` for the whole job last.
    pub phases: Vec<Phase>,
    /// Largest peak memory of any one work item, as reported.
    pub peak_memory_bytes: u64,
    /// Nodes whose results are in the proof: `name (node 3)`.
    pub nodes: Vec<String>,
}

pub(super) struct JobEnd {
    pub(super) proof: Arc<Vec<u8>>,
    pub(super) report: Report,
    pub(super) nodes: Vec<String>,
}

/// The brain's end of a [`JobHandle`](super::JobHandle).
#[derive(Debug)]
pub(super) struct Watcher {
    events: mpsc::Sender<Progress>,
    result: oneshot::Sender<Result<JobResult, String>>,
    started: Instant,
    phase: (&'static str, Instant, u32, u32),
    /// When it was last told something.
    told: Instant,
}

pub(super) type WatcherEnds = (mpsc::Receiver<Progress>, oneshot::Receiver<Result<JobResult, String>>);

impl Watcher {
    pub(super) fn new() -> (Self, WatcherEnds) {
        let (events, event_end) = mpsc::channel(MAX_EVENTS);
        let (result, result_end) = oneshot::channel();
        let now = Instant::now();
        (Self { events, result, started: now, phase: ("forward", now, 0, 0), told: now }, (event_end, result_end))
    }

    pub(super) fn notify(&mut self, event: &JobEvent, name: &dyn Fn(NodeId) -> String) {
        self.told = Instant::now();
        let (node, text) = match event {
            JobEvent::Accepted { work, node, done, total } => {
                // Joint steps are counted, not their parts.
                if work.kind != WorkKind::Joint {
                    self.enter(work.kind.name(), *done, *total);
                }
                (Some(*node), String::new())
            }
            JobEvent::Challenged => {
                self.enter("challenge", 1, 1);
                (None, String::new())
            }
            JobEvent::Finishing => {
                self.enter("finish", 0, 1);
                (None, String::new())
            }
            JobEvent::Joining { number } => {
                self.enter("joint", *number, *number + 1);
                (None, String::new())
            }
            JobEvent::Redo { work, reason } => (None, format!("{work} is done again: {reason}")),
            JobEvent::Disputed { work, node, reason } => (Some(*node), format!("{work} is disputed: {reason}")),
            JobEvent::Lost { work, node, reason } => (Some(*node), format!("{work} goes to another node: {reason}")),
            JobEvent::Failed { work, node, reason } => (Some(*node), format!("{work} failed and is tried again: {reason}")),
            JobEvent::Quarantined { node, reason } => (Some(*node), format!("quarantined: {reason}")),
            JobEvent::Waiting { left_ms } => {
                (None, format!("waiting: no node can work on this job; it fails in {} s unless one joins", left_ms / 1000))
            }
        };
        let (phase, since, done, total) = self.phase;
        let pace = (done > 0).then(|| since.elapsed() / done);
        let eta = pace.map(|pace| pace * total.saturating_sub(done));
        let node = node.map(name);
        // A reader that is behind loses counts it would have overwritten anyway.
        let _ = self.events.try_send(Progress { phase, done, total, elapsed: self.started.elapsed(), eta, node, text });
    }

    /// Whether nobody waits for the end any more.
    pub(super) fn is_gone(&self) -> bool {
        self.result.is_closed()
    }

    fn enter(&mut self, phase: &'static str, done: u32, total: u32) {
        let since = if self.phase.0 == phase { self.phase.1 } else { Instant::now() };
        self.phase = (phase, since, done, total);
    }

    pub(super) fn end(self, job: JobId, outcome: Result<JobEnd, String>) {
        let joining = self.phase.0 == WorkKind::Joint.name();
        let finish_s = if joining { self.told.elapsed() } else { self.phase.1.elapsed() }.as_secs_f64();
        let total_s = self.started.elapsed().as_secs_f64();
        let result = outcome.map(|JobEnd { proof, report, nodes }| {
            let mut phases: Vec<Phase> = report
                .phases
                .iter()
                .map(|(name, wall_ms, core_us)| Phase {
                    name: (*name).to_owned(),
                    wall_s: *wall_ms as f64 / 1e3,
                    core_s: *core_us as f64 / 1e6,
                })
                .collect();
            let core_s = phases.iter().map(|phase| phase.core_s).sum();
            phases.push(Phase { name: "finish".to_owned(), wall_s: finish_s, core_s: 0.0 });
            phases.push(Phase { name: "total".to_owned(), wall_s: total_s, core_s });
            JobResult { job: job.0, proof: proof.to_vec(), phases, peak_memory_bytes: report.peak_bytes, nodes }
        });
        let _ = self.result.send(result);
    }
}
