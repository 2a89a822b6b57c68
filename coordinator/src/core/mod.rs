//! The brain: a pure function from state and input to effects. No clock, network, threads, randomness or hash maps.
//!
//! What it holds to: every lease has an epoch of its own; an item has at most one accepted result until that is expressly taken
//! back ([`JobEvent::Redo`]); a result counts only for the inputs it was computed from; a node is quarantined only for
//! a result that arrived whole and is wrong. Forward results are believed until a commit contradicts them.

pub mod demand;
mod fact;
mod fleet;
mod hedge;
mod job;
mod judge;
mod outbox;
mod outcome;
mod partition;
mod restore;
mod schedule;
mod shares;
mod types;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};

use obelysk_node::engine::WorkKind;
use obelysk_protocol::wire::{BlobRef, PERMILLE};

pub use fact::Fact;
use fleet::Fleet;
pub use fleet::{FAULT_WINDOW_MS, MAX_FAULTS};
use job::{Asked, Candidate, Job, Record};
pub use outbox::Outbox;
pub use outcome::{JobEvent, JobFailure, Report};
pub use restore::MAX_TERM;
use shares::Shares;
pub use shares::{DEFAULT_PRIORITY, MAX_BACKLOG_S};
pub use types::{Effect, Input, JobId, Needs, NodeId, Policy, Work};

/// An item that took down this many distinct nodes fails its job: two may be coincidence, and the fleet must survive.
pub const MAX_NODE_DEATHS: usize = 3;
/// Failures of one item reported by nodes, before its job fails: every node of a small cluster gets a few tries.
pub const MAX_ATTEMPTS: usize = 12;
/// Unsettled contradictions before a job fails: each sets one node aside, more means no honest majority.
pub const MAX_TIES: u32 = 16;
/// Jobs in progress: each holds a few blobs per segment in memory.
pub const MAX_JOBS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Here,
    Away { since_ms: u64 },
    Draining,
    Quarantined,
}

#[derive(Debug, Clone)]
struct Member {
    models: BTreeSet<[u8; 32]>,
    cores: u32,
    presence: Presence,
    /// Epoch on its device, live or expired: it takes nothing else until it reports.
    running: Option<u64>,
}

#[derive(Debug, Clone)]
struct Lease {
    job: JobId,
    work: Work,
    node: NodeId,
    needs: Needs,
    deadline_ms: u64,
    permille: u32,
    expired: bool,
}

/// The whole state of the cluster.
#[derive(Debug, Clone)]
pub struct State {
    policy: Policy,
    now_ms: u64,
    next_epoch: u64,
    /// Epochs below this were given by earlier leaders.
    term_epoch: u64,
    next_number: u64,
    members: BTreeMap<NodeId, Member>,
    leases: BTreeMap<u64, Lease>,
    jobs: BTreeMap<JobId, Job>,
    fleet: Fleet,
    shares: Shares,
    /// Second leases of items.
    hedges: BTreeMap<(JobId, Work), u64>,
    /// Jobs by arrival: the first is served first.
    queue: Vec<JobId>,
    /// Jobs that ended and are still known: they are not opened again.
    ended: BTreeSet<JobId>,
    /// Nothing was taken yet since this brain was restored.
    unswept: bool,
}

impl State {
    /// An empty cluster.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            now_ms: 0,
            next_epoch: 1,
            term_epoch: 0,
            next_number: 1,
            members: BTreeMap::new(),
            leases: BTreeMap::new(),
            jobs: BTreeMap::new(),
            fleet: Fleet::default(),
            shares: Shares::default(),
            hedges: BTreeMap::new(),
            queue: Vec::new(),
            ended: BTreeSet::new(),
            unswept: false,
        }
    }

    /// Takes one input at a time of the caller's clock (which may not run backwards; if it does, it stands still) and says what
    /// is to be done, in this order. Inputs about unknown or finished things are ignored: they are late, not wrong.
    pub fn apply(&mut self, now_ms: u64, input: Input) -> Vec<Effect> {
        self.now_ms = self.now_ms.max(now_ms);
        let mut out = Vec::new();
        self.sweep(&mut out);
        self.observe(&input);
        if self.turned_away(&input, &mut out) {
            return out;
        }
        match input {
            Input::Tick => self.tick(&mut out),
            Input::NodeJoined { node, models, cores, held } => self.joined(node, models, cores, &held, &mut out),
            Input::NodeMeasured { node, core_us, memory_bytes } => self.fleet.measured(node, core_us, memory_bytes),
            Input::NodeAway { node } => self.away(node),
            Input::NodeDraining { node } => self.draining(node),
            Input::NodeLeft { node } => self.gone(node, None, &mut out),
            Input::Progress { node, epoch, permille } => self.progress(node, epoch, permille),
            Input::WorkDone { node, epoch, output, core_us, peak_bytes } => {
                self.work_done(node, epoch, (output, core_us, peak_bytes), &mut out);
            }
            Input::WorkFailed { node, epoch, disagrees, reason } => self.work_failed(node, epoch, disagrees, reason, &mut out),
            Input::WorkReturned { node, epoch } => {
                // A result at the checker is not taken back; anything else is open again, or goes on under its other lease.
                if !self.at_checker(node, epoch) {
                    out.push(Effect::Ack { node, epoch });
                    self.settle(node, epoch);
                }
            }
            Input::CheckResult { job, work, epoch, verdict } => self.judged(job, work, epoch, verdict, &mut out),
            Input::CheckerFailed { job, reason } => self.fail(job, JobFailure::Pieces(reason), &mut out),
            Input::ChallengeDerived { job, commits, result } => self.challenged(job, commits, result, &mut out),
            Input::Finished { job, result } => self.finished(job, result, &mut out),
            Input::Joined { job, after, step } => self.joined_up(job, after, step, &mut out),
            Input::NodeHolds { node, epoch, job, work, inputs, extra } => {
                self.held(node, epoch, (job, work, &inputs, extra), &mut out);
            }
            Input::BlobLost { blob } => self.blob_lost(blob, &mut out),
            Input::JobSubmitted { job, model, spec, segments } => self.submitted(job, model, spec, segments, &mut out),
            Input::Forget { job } => {
                if self.ended.remove(&job) {
                    out.push(Effect::Record(Fact::Forgotten { job }));
                    out.push(Effect::Forgotten { job });
                }
            }
            Input::JobSized { job, priority, peak_bytes } => {
                self.shares.prioritise(job, priority);
                self.fleet.sized(job, peak_bytes);
            }
            Input::Cancel { job } => self.fail(job, JobFailure::Cancelled, &mut out),
        }
        self.advance(&mut out);
        self.schedule(&mut out);
        out
    }

    /// Jobs in progress.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    fn submitted(&mut self, job: JobId, model: [u8; 32], spec: BlobRef, segments: u32, out: &mut Vec<Effect>) {
        if !self.jobs.contains_key(&job) && !self.ended.contains(&job) {
            if self.jobs.len() >= MAX_JOBS || segments == 0 {
                out.push(Effect::FailJob { job, failure: JobFailure::TooMany(MAX_JOBS) });
                return;
            }
            let number = self.next_number;
            self.next_number += 1;
            self.jobs.insert(job, Job::new(model, spec, segments));
            self.queue.push(job);
            out.push(Effect::Record(Fact::JobOpened { job, number, model, spec, segments }));
        }
        out.push(Effect::Opened { job });
    }

    fn tick(&mut self, out: &mut Vec<Effect>) {
        let now = self.now_ms;
        let overdue: Vec<u64> =
            self.leases.iter().filter(|(_, l)| !l.expired && l.deadline_ms < now).map(|(epoch, _)| *epoch).collect();
        for epoch in overdue {
            let Some(lease) = self.leases.get_mut(&epoch) else { continue };
            // Kept, expired: a result that still comes is welcome when nobody else was faster.
            lease.expired = true;
            let (job, work, node) = (lease.job, lease.work, lease.node);
            self.reclaim(job, work, epoch, node, Some("made no progress for a whole lease"), out);
        }
        let grace = self.policy.away_grace_ms;
        let vanished = |m: &Member| matches!(m.presence, Presence::Away { since_ms } if since_ms + grace < now);
        let lost: Vec<NodeId> = self.members.iter().filter(|(_, m)| vanished(m)).map(|(node, _)| *node).collect();
        for node in lost {
            self.gone(node, Some("its connection broke and it did not return"), out);
        }
    }

    fn joined(&mut self, node: NodeId, models: BTreeSet<[u8; 32]>, cores: u32, held: &BTreeSet<u64>, out: &mut Vec<Effect>) {
        if self.members.get(&node).is_some_and(|m| m.presence == Presence::Quarantined) {
            out.push(Effect::Quarantine { node, reason: "it was quarantined before".to_owned() });
            return;
        }
        let forgotten: Vec<u64> =
            self.leases.iter().filter(|(epoch, l)| l.node == node && !held.contains(epoch)).map(|(epoch, _)| *epoch).collect();
        for epoch in forgotten {
            if let Some(lease) = self.leases.remove(&epoch) {
                self.reclaim(lease.job, lease.work, epoch, node, None, out);
            }
        }
        // Its device is busy with the latest of what it holds, or soon delivers it. What that is about it says next.
        let earlier = |epoch: &u64| *epoch < self.term_epoch || self.leases.get(epoch).is_some_and(|l| l.node == node);
        let running = held.iter().rev().copied().find(earlier);
        self.members.insert(node, Member { models, cores: cores.max(1), presence: Presence::Here, running });
    }

    fn away(&mut self, node: NodeId) {
        let since_ms = self.now_ms;
        if let Some(member) = self.members.get_mut(&node)
            && matches!(member.presence, Presence::Here | Presence::Draining)
        {
            member.presence = Presence::Away { since_ms };
        }
    }

    fn draining(&mut self, node: NodeId) {
        if let Some(member) = self.members.get_mut(&node)
            && member.presence == Presence::Here
        {
            member.presence = Presence::Draining;
        }
    }

    /// A node is gone: in good order, or for the reason given, which counts against the item it ran.
    fn gone(&mut self, node: NodeId, reason: Option<&str>, out: &mut Vec<Effect>) {
        if self.members.get(&node).is_none_or(|m| m.presence == Presence::Quarantined) {
            return;
        }
        self.members.remove(&node);
        self.drop_leases(node, reason, out);
    }

    fn drop_leases(&mut self, node: NodeId, reason: Option<&str>, out: &mut Vec<Effect>) {
        let held: Vec<u64> = self.leases.iter().filter(|(_, l)| l.node == node).map(|(epoch, _)| *epoch).collect();
        for epoch in held {
            if let Some(lease) = self.leases.remove(&epoch) {
                // An expired lease was counted when it expired.
                let reason = reason.filter(|_| !lease.expired);
                self.reclaim(lease.job, lease.work, epoch, node, reason, out);
            }
        }
    }

    /// Frees the item of a lease. A `reason` counts as one node taken down by the item.
    fn reclaim(&mut self, id: JobId, work: Work, epoch: u64, node: NodeId, reason: Option<&str>, out: &mut Vec<Effect>) {
        let Some(item) = self.jobs.get_mut(&id).and_then(|job| job.items.get_mut(&work)) else { return };
        if item.lease == Some(epoch) {
            item.lease = None;
        }
        let Some(reason) = reason else { return };
        item.dead.insert(node);
        let (nodes, who) = (item.dead.len(), item.dead.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        out.push(Effect::Notify { job: id, event: JobEvent::Lost { work, node, reason: reason.to_owned() } });
        if nodes >= MAX_NODE_DEATHS {
            self.fail(id, JobFailure::Lethal { work, nodes, who }, out);
        }
    }

    fn progress(&mut self, node: NodeId, epoch: u64, permille: u32) {
        let deadline_ms = self.now_ms + self.policy.lease_ms;
        if let Some(lease) = self.leases.get_mut(&epoch)
            && lease.node == node
            // Only rising values renew, so an engine that goes in circles cannot hold a lease for ever.
            && permille.min(PERMILLE) > lease.permille
        {
            lease.permille = permille.min(PERMILLE);
            lease.deadline_ms = deadline_ms;
        }
    }

    /// Takes a lease out of the table because its node reported, whatever it reported.
    fn settle(&mut self, node: NodeId, epoch: u64) -> Option<Lease> {
        let member = self.members.get_mut(&node)?;
        if member.running == Some(epoch) {
            member.running = None;
        }
        let trusted = member.presence != Presence::Quarantined;
        self.leases.get(&epoch).filter(|l| l.node == node)?;
        let lease = self.leases.remove(&epoch)?;
        let item = self.jobs.get_mut(&lease.job)?.items.get_mut(&lease.work)?;
        if item.lease == Some(epoch) {
            item.lease = None;
        }
        trusted.then_some(lease)
    }

    fn work_done(&mut self, node: NodeId, epoch: u64, result: (BlobRef, u64, u64), out: &mut Vec<Effect>) {
        // Said twice: the answer follows the verdict.
        if self.at_checker(node, epoch) {
            return;
        }
        let judged = self.settle(node, epoch).and_then(|lease| self.candidate(lease, epoch, result));
        out.push(judged.unwrap_or(Effect::Ack { node, epoch }));
    }

    /// Sends a result to the checker, if it is wanted. It is acknowledged when it was judged: until then only its node has it for certain.
    fn candidate(&mut self, lease: Lease, epoch: u64, (output, core_us, peak_bytes): (BlobRef, u64, u64)) -> Option<Effect> {
        let Lease { job: id, work, node, needs, .. } = lease;
        let job = self.jobs.get_mut(&id)?;
        // Computed from results that were taken back since: neither right nor wrong.
        if job.needs(work).as_ref() != Some(&needs) {
            return None;
        }
        let spec = job.spec;
        let item = job.items.get_mut(&work).filter(|item| item.accepted.is_none() && item.checking.is_none())?;
        let record = Record { node, needs: needs.clone(), output };
        item.checking = Some(Candidate { epoch, record, core_us, peak_bytes });
        Some(Effect::Check { node, job: id, work, epoch, spec, needs, output })
    }

    fn work_failed(&mut self, node: NodeId, epoch: u64, disagrees: bool, reason: String, out: &mut Vec<Effect>) {
        if self.at_checker(node, epoch) {
            return;
        }
        out.push(Effect::Ack { node, epoch });
        let Some(lease) = self.settle(node, epoch) else { return };
        let (now, pause) = (self.now_ms, self.policy.retry_pause_ms);
        let Some(job) = self.jobs.get_mut(&lease.job) else { return };
        if job.needs(lease.work).as_ref() != Some(&lease.needs) {
            return;
        }
        job.drop_void_doubt(lease.work);
        let blames_other = disagrees && job.cause(lease.work).is_some_and(|(_, author)| author != node);
        if blames_other {
            if !self.may_settle(lease.job, lease.work, node) {
                return;
            }
            self.contradicted(lease.job, lease.work, node, reason, out);
            return;
        }
        let Some(item) = job.items.get_mut(&lease.work) else { return };
        item.failures.push((node, reason.clone()));
        let times = item.failures.len();
        item.not_before_ms = now + pause * times as u64;
        let failed: BTreeSet<NodeId> = item.failures.iter().map(|(node, _)| *node).collect();
        let event = JobEvent::Failed { work: lease.work, node, reason: reason.clone() };
        out.push(Effect::Notify { job: lease.job, event });
        // A failure that is only reported costs little, so somebody who has not tried yet is asked first.
        let untried = self.jobs.get(&lease.job).is_some_and(|job| !self.usable(job).is_subset(&failed));
        if times >= MAX_ATTEMPTS || (failed.len() >= MAX_NODE_DEATHS && !untried) {
            self.fail(lease.job, JobFailure::Failing { work: lease.work, times, node, reason }, out);
        }
    }

    fn challenged(&mut self, id: JobId, commits: Vec<BlobRef>, result: Result<BlobRef, String>, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.deriving.as_ref() != Some(&commits) {
            return;
        }
        job.deriving = None;
        match result {
            Ok(extra) => {
                job.challenge = Some(job::Challenge { commits: commits.clone(), extra });
                out.push(Effect::Record(Fact::Challenged { job: id, commits, extra }));
                tell(id, JobEvent::Challenged, out);
                job.drop_stale().into_iter().for_each(|event| tell(id, event, out));
            }
            Err(reason) => self.fail(id, JobFailure::Pieces(reason), out),
        }
    }

    fn finished(&mut self, id: JobId, result: Result<BlobRef, String>, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id).filter(|job| job.asked.is_some()) else { return };
        match result {
            Ok(proof) => {
                let report = job.report();
                out.push(Effect::Record(Fact::Published { job: id, proof, report: report.clone() }));
                self.close(id, out);
                out.push(Effect::Publish { job: id, proof, report });
            }
            Err(reason) => self.fail(id, JobFailure::Pieces(reason), out),
        }
    }

    /// All segments have a step to do together, the one after `after`.
    fn joined_up(&mut self, id: JobId, after: Option<BlobRef>, step: BlobRef, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.asked.as_ref().is_none_or(|asked| asked.joint.as_ref().map(|(step, _)| *step) != after) {
            return;
        }
        if let Some(number) = job.join(step) {
            tell(id, JobEvent::Joining { number }, out);
        }
    }

    fn fail(&mut self, job: JobId, failure: JobFailure, out: &mut Vec<Effect>) {
        if self.jobs.contains_key(&job) {
            out.push(Effect::Record(Fact::Failed { job, reason: failure.to_string() }));
            self.close(job, out);
            out.push(Effect::FailJob { job, failure });
        }
    }

    fn close(&mut self, id: JobId, out: &mut Vec<Effect>) {
        self.ended.insert(id);
        for candidate in self.jobs.remove(&id).into_iter().flat_map(|job| job.items.into_values()).filter_map(|i| i.checking) {
            // Its verdict comes too late to be heard.
            out.push(Effect::Ack { node: candidate.record.node, epoch: candidate.epoch });
        }
        self.queue.retain(|job| *job != id);
        let mine = |lease: &Lease| lease.job == id;
        out.extend(self.leases.iter().filter(|(_, l)| mine(l)).map(|(epoch, l)| Effect::Revoke { node: l.node, epoch: *epoch }));
        self.leases.retain(|_, lease| !mine(lease));
    }

    /// Starts what needs no node: the challenge when all commits are in, the stitching when all pieces are.
    fn advance(&mut self, out: &mut Vec<Effect>) {
        for (id, job) in &mut self.jobs {
            let Some(commits) = job.settled_commits() else { continue };
            let spec = job.spec;
            let Some(challenge) = job.current_challenge() else {
                if job.deriving.as_ref() != Some(&commits) {
                    job.deriving = Some(commits.clone());
                    out.push(Effect::DeriveChallenge { job: *id, spec, commits });
                }
                continue;
            };
            let Some(basis) = job.basis().filter(|_| job.asked.is_none()) else { continue };
            if job.joint.as_ref().is_some_and(|joint| joint.basis != basis) {
                job.unjoin("what it opens has changed").into_iter().for_each(|event| tell(*id, event, out));
            }
            let Some(asked) = job.joinable() else { continue };
            let Asked { basis: (_, proves, opens), joint } = asked.clone();
            job.asked = Some(asked);
            if joint.is_none() {
                out.push(Effect::Notify { job: *id, event: JobEvent::Finishing });
            }
            out.push(Effect::Finish { job: *id, spec, commits, challenge, proves, opens, joint });
        }
    }
}

/// Tells of an event, and records it where it changes a fact.
fn tell(job: JobId, event: JobEvent, out: &mut Vec<Effect>) {
    if let JobEvent::Redo { work, .. } = &event
        && work.kind != WorkKind::Joint
    {
        out.push(Effect::Record(Fact::Retracted { job, work: *work }));
    }
    out.push(Effect::Notify { job, event });
}
