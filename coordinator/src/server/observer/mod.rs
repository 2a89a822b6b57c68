//! Watches the brain: counts, remembers how jobs ended, logs what happened to each. Nothing here is asked before anything is decided.

mod journal;
mod metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use obelysk_node::engine::{Verdict, WorkKind};
use obelysk_node::trace::{hex, trace_id};
use obelysk_node::traffic::Traffic;
use obelysk_protocol::wire::{BlobRef, MAX_TEXT_BYTES};
use tracing::Span;

use super::clip;
use crate::core::demand::{Costs, Demand, ScalePolicy, Scaler, typical_cores};
use crate::core::view::View;
use crate::core::{Effect, Input, JobEvent, JobId, NodeId, Report, Work};
pub use journal::{DONE, Entry, FAILED, Id, JobFacts, Journal, MAX_JOBS_KEPT, Replay, replay};
pub(super) use metrics::{EVENTS, Metrics, Sample};

/// Leases and results remembered until they are judged: each node has one, and those that are never judged make room.
const MAX_PENDING: usize = 8192;

/// How to name a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Who {
    pub(super) name: String,
    pub(super) id: [u8; 32],
}

/// What a node did since this coordinator started.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) accepted: u64,
    pub(super) core_us: u64,
}

/// A job as it is remembered.
#[derive(Debug, Clone, Default)]
pub(super) struct Remembered {
    pub(super) facts: JobFacts,
    /// When it ended, seconds since 1970, and whether it was proved.
    pub(super) ended: Option<(u64, bool)>,
    pub(super) proof: Option<BlobRef>,
    pub(super) reason: String,
    /// Of its last event.
    number: u64,
    span: Option<Span>,
}

#[derive(Debug)]
struct Lease {
    model: [u8; 32],
    kind: WorkKind,
    started: Instant,
    core_us: u64,
    wall: Duration,
    /// From assignment to report, then from report to verdict.
    span: Span,
}

#[derive(Debug, Default)]
struct Inner {
    leases: BTreeMap<u64, Lease>,
    /// Results at the checker: lease and digest.
    results: BTreeMap<(JobId, Work), (u64, BlobRef)>,
    jobs: BTreeMap<JobId, Remembered>,
    tallies: BTreeMap<NodeId, Tally>,
    quarantined: BTreeSet<NodeId>,
    costs: Costs,
    scaler: Scaler,
    desired: u32,
    demand: Demand,
}

/// The witness. Shared by brain, sessions and those who ask.
#[derive(Debug)]
pub(super) struct Observer {
    inner: Mutex<Inner>,
    journal: Journal,
    started: Instant,
    pub(super) metrics: Metrics,
    pub(super) traffic: Traffic,
}

impl Observer {
    /// With logs in this folder; nowhere when it is empty, or cannot be used, which costs the logs and nothing else.
    pub(super) fn new(folder: &Path) -> Self {
        let opened = if folder.as_os_str().is_empty() { Ok(Default::default()) } else { Journal::open(folder) };
        let (journal, ends) = opened.unwrap_or_else(|error| {
            tracing::warn!(%error, folder = %folder.display(), "logs of jobs are not kept; jobs go on");
            Default::default()
        });
        let remembered = |ends: journal::Ends| {
            let ended = ends.last.is_last().then(|| (ends.last.unix_ms / 1000, ends.last.event == DONE));
            let done = ended.is_some_and(|(_, done)| done);
            Remembered {
                facts: ends.facts,
                ended,
                proof: done.then(|| ends.last.result()),
                reason: if done { String::new() } else { ends.last.text },
                number: ends.last.number,
                span: None,
            }
        };
        let jobs = ends.into_iter().map(|(job, ends)| (job, remembered(ends))).collect();
        let inner = Mutex::new(Inner { jobs, ..Inner::default() });
        Self { inner, journal, started: Instant::now(), metrics: Metrics::default(), traffic: Traffic::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since this coordinator started.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Measures a step of the checker.
    pub(super) fn time<T>(&self, step: &'static str, run: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let outcome = run();
        let seconds = self.metrics.check_seconds.get_or_create(&[("step", step)]);
        seconds.observe(started.elapsed().as_secs_f64());
        outcome
    }

    /// Sees an input before the brain does.
    pub(super) fn input(&self, input: &Input) {
        let inner = &mut *self.inner();
        match input {
            Input::JobSubmitted { job, model, segments, .. } => self.submitted(inner, *job, *model, *segments),
            Input::WorkDone { epoch, core_us, .. } => {
                let Some(lease) = inner.leases.get_mut(epoch) else { return };
                (lease.core_us, lease.wall) = (*core_us, lease.started.elapsed());
                let seconds = self.metrics.lease_seconds.get_or_create(&metrics::of(lease.kind));
                seconds.observe(lease.wall.as_secs_f64());
                lease.span = Span::none();
            }
            Input::WorkFailed { epoch, .. } => {
                inner.leases.remove(epoch);
            }
            Input::CheckResult { work, epoch, verdict, .. } => {
                if matches!(verdict, Verdict::Reject(_)) {
                    self.metrics.event(work.kind, "rejected").inc();
                }
                if let Some(lease) = inner.leases.get_mut(epoch) {
                    lease.span = Span::none();
                }
            }
            _ => {}
        }
    }

    /// Sees an effect when it is carried out.
    pub(super) fn effect(&self, effect: &Effect, who: &dyn Fn(NodeId) -> Who) {
        let inner = &mut *self.inner();
        match effect {
            Effect::Assign { node, epoch, job, model, work, .. } => {
                self.metrics.leases.get_or_create(&metrics::of(work.kind)).inc();
                let span = part_span("lease", *job, *work, *epoch, &who(*node).name);
                let (model, kind, started) = (*model, work.kind, Instant::now());
                inner.leases.insert(*epoch, Lease { model, kind, started, core_us: 0, wall: Duration::ZERO, span });
                if inner.leases.len() > MAX_PENDING {
                    inner.leases.pop_first();
                }
            }
            Effect::Revoke { epoch, .. } => {
                inner.leases.remove(epoch);
            }
            Effect::Check { job, work, epoch, output, .. } => {
                if let Some(lease) = inner.leases.get_mut(epoch) {
                    lease.span = part_span("check", *job, *work, *epoch, "");
                }
                inner.results.insert((*job, *work), (*epoch, *output));
                if inner.results.len() > MAX_PENDING {
                    inner.results.pop_first();
                }
            }
            Effect::Quarantine { node, .. } => {
                if inner.quarantined.insert(*node) {
                    self.metrics.quarantines.inc();
                }
            }
            Effect::Notify { job, event } => self.notified(inner, *job, event, who),
            Effect::Publish { job, proof, report } => {
                let nodes: Vec<String> = report.nodes.iter().map(|node| who(*node).name).collect();
                self.ended(inner, *job, Ok((*proof, report, nodes)));
            }
            Effect::FailJob { job, failure } => self.ended(inner, *job, Err(failure.to_string())),
            Effect::Record(_)
            | Effect::Resume { .. }
            | Effect::Opened { .. }
            | Effect::Forgotten { .. }
            | Effect::Ack { .. }
            | Effect::DeriveChallenge { .. }
            | Effect::Finish { .. } => {}
        }
    }

    fn submitted(&self, inner: &mut Inner, job: JobId, model: [u8; 32], segments: u32) {
        let seconds = unix_ms() / 1000;
        let remembered = inner.jobs.entry(job).or_default();
        if remembered.span.is_some() {
            return;
        }
        let trace = hex(&trace_id(&job.0));
        remembered.span = Some(tracing::info_span!(parent: None, "job", %job, trace));
        remembered.ended = None;
        remembered.facts = JobFacts { model: Id(model), segments, submitted_unix_s: seconds, ..JobFacts::default() };
        let (facts, text) = (remembered.facts, format!("{segments} segments"));
        self.log(remembered, job, Entry { event: "submitted".to_owned(), job: Some(facts), text, ..Entry::default() });
    }

    fn notified(&self, inner: &mut Inner, job: JobId, event: &JobEvent, who: &dyn Fn(NodeId) -> Who) {
        let mut entry = Entry::default();
        let about = |entry: &mut Entry, work: Option<&Work>, node: Option<&NodeId>, text: &str| {
            let node = node.map(|node| who(*node)).unwrap_or_default();
            entry.work = work.map(ToString::to_string).unwrap_or_default();
            entry.id = if node.id == [0; 32] { String::new() } else { hex(&node.id) };
            (entry.node, entry.text) = (node.name, clip(text.to_owned(), MAX_TEXT_BYTES));
        };
        let count = |kind: WorkKind, what| self.metrics.event(kind, what).inc();
        let remembered = inner.jobs.entry(job).or_default();
        entry.event = match event {
            JobEvent::Accepted { work, node, .. } => {
                count(work.kind, "accepted");
                about(&mut entry, Some(work), Some(node), "");
                if let Some((epoch, output)) = inner.results.remove(&(job, *work)) {
                    (entry.epoch, entry.digest, entry.bytes) = (epoch, hex(&output.digest), output.length);
                }
                tally(&mut remembered.facts, work.kind, |done| done + 1);
                if let Some(lease) = inner.leases.remove(&entry.epoch) {
                    self.metrics.core_seconds.get_or_create(&metrics::of(work.kind)).inc_by(lease.core_us as f64 / 1e6);
                    // Joint steps belong to the openings.
                    remembered.facts.core_us[usize::from(work.kind.min(WorkKind::Open).code())] += lease.core_us;
                    let wall_ms = u64::try_from(lease.wall.as_millis()).unwrap_or(u64::MAX);
                    inner.costs.add(lease.model, work.kind, lease.core_us, wall_ms);
                    let tally = inner.tallies.entry(*node).or_default();
                    (tally.accepted, tally.core_us) = (tally.accepted + 1, tally.core_us + lease.core_us);
                }
                "accepted"
            }
            JobEvent::Redo { work, reason } => {
                count(work.kind, "redone");
                tally(&mut remembered.facts, work.kind, |done| done.saturating_sub(1));
                about(&mut entry, Some(work), None, reason);
                "redo"
            }
            JobEvent::Challenged => "challenged",
            JobEvent::Finishing => "finishing",
            JobEvent::Joining { number } => {
                about(&mut entry, None, None, &journal::joint_step(*number));
                journal::JOINING
            }
            JobEvent::Disputed { work, node, reason } => {
                count(work.kind, "disputed");
                about(&mut entry, Some(work), Some(node), reason);
                "disputed"
            }
            JobEvent::Lost { work, node, reason } => {
                count(work.kind, "lost");
                about(&mut entry, Some(work), Some(node), reason);
                "lost"
            }
            JobEvent::Failed { work, node, reason } => {
                count(work.kind, "failed");
                about(&mut entry, Some(work), Some(node), reason);
                "item_failed"
            }
            JobEvent::Quarantined { node, reason } => {
                about(&mut entry, None, Some(node), reason);
                "quarantined"
            }
            JobEvent::Waiting { left_ms } => {
                let text = format!("no node can work on this job; it fails in {} s unless one joins", left_ms / 1000);
                about(&mut entry, None, None, &text);
                "waiting"
            }
        }
        .to_owned();
        self.log(remembered, job, entry);
    }

    fn ended(&self, inner: &mut Inner, job: JobId, outcome: Result<(BlobRef, &Report, Vec<String>), String>) {
        let (now, remembered) = (unix_ms() / 1000, inner.jobs.entry(job).or_default());
        let done = outcome.is_ok();
        self.metrics.jobs_ended.get_or_create(&[("outcome", if done { "done" } else { "failed" })]).inc();
        remembered.ended = Some((now, done));
        let mut entry = Entry { event: if done { DONE } else { FAILED }.to_owned(), ..Entry::default() };
        match outcome {
            Ok((proof, report, nodes)) => {
                remembered.proof = Some(proof);
                (entry.digest, entry.bytes) = (hex(&proof.digest), proof.length);
                let phases = report.phases.iter().map(|(name, wall_ms, _)| format!("{name} {:.2} s", *wall_ms as f64 / 1e3));
                let phases = phases.collect::<Vec<_>>().join(", ");
                entry.text = clip(format!("by {}: {phases}", nodes.join(", ")), MAX_TEXT_BYTES);
            }
            Err(reason) => {
                entry.text = clip(reason, MAX_TEXT_BYTES);
                remembered.reason.clone_from(&entry.text);
            }
        }
        entry.job = Some(remembered.facts);
        self.log(remembered, job, entry);
        remembered.span = None;
        inner.results.retain(|(of, _), _| *of != job);
        let ended = |(job, r): (&JobId, &Remembered)| r.ended.map(|(at, _)| (at, *job));
        if inner.jobs.len() > MAX_JOBS_KEPT
            && let Some((_, oldest)) = inner.jobs.iter().filter_map(ended).min()
        {
            inner.jobs.remove(&oldest);
        }
    }

    fn log(&self, remembered: &mut Remembered, job: JobId, mut entry: Entry) {
        remembered.number += 1;
        (entry.number, entry.unix_ms) = (remembered.number, unix_ms());
        let Entry { event, work, node, epoch, text, .. } = &entry;
        let say = || match event.as_str() {
            "accepted" | "submitted" | "challenged" | "finishing" | DONE => {
                tracing::info!(%job, event, work, epoch, node, text, "job");
            }
            _ => tracing::warn!(%job, event, work, node, text, "job"),
        };
        match &remembered.span {
            Some(span) => span.in_scope(say),
            None => say(),
        }
        self.journal.write(job, entry);
    }

    /// Looks at the whole: what is wanted of an autoscaler at this moment.
    pub(super) fn look(&self, view: &View, policy: &ScalePolicy) {
        let inner = &mut *self.inner();
        inner.demand = Demand::of(view, &inner.costs);
        let wanted = inner.demand.nodes(typical_cores(view), policy);
        inner.desired = inner.scaler.update(view.now_ms, wanted, policy);
    }

    /// Nodes wanted and core-microseconds queued, as of the last look.
    pub(super) fn desired(&self) -> (u32, u64) {
        let inner = self.inner();
        (inner.desired, inner.demand.queued_core_us)
    }

    /// Jobs in progress and remembered.
    pub(super) fn jobs(&self) -> BTreeMap<JobId, Remembered> {
        self.inner().jobs.clone()
    }

    /// What a node did.
    pub(super) fn tally(&self, node: NodeId) -> Tally {
        self.inner().tallies.get(&node).copied().unwrap_or_default()
    }

    /// Estimated milliseconds left of a job.
    pub(super) fn time_left_ms(&self, job: &crate::core::view::JobView, nodes: usize) -> Option<u64> {
        self.inner().costs.time_left_ms(job, nodes)
    }
}

/// The span of one part of a lease; a trace's ids follow from job and epoch.
fn part_span(part: &'static str, job: JobId, work: Work, epoch: u64, node: &str) -> Span {
    let trace = hex(&trace_id(&job.0));
    match part {
        "lease" => tracing::info_span!(parent: None, "lease", %job, trace, %work, epoch, node),
        _ => tracing::info_span!(parent: None, "check", %job, trace, %work, epoch),
    }
}

/// Counts accepted items; joint steps are no count of a job's.
fn tally(facts: &mut JobFacts, kind: WorkKind, count: impl Fn(u32) -> u32) {
    if let Some(done) = facts.accepted.get_mut(usize::from(kind.code())) {
        *done = count(*done);
    }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
