//! Several jobs at once: whose turn it is, and when there is no room for one more.

use std::collections::BTreeMap;

use obelysk_node::engine::WorkKind;

use super::State;
use super::fleet::CORE;
use super::job::Job;
use super::outcome::JobFailure;
use super::types::{Effect, Input, JobId};

/// Priority of a job that says nothing.
pub const DEFAULT_PRIORITY: u8 = 5;
/// Work that may wait, in seconds of the whole fleet: what comes on top would wait for more than a day.
pub const MAX_BACKLOG_S: u64 = 86_400;
/// Shares are counted in parts of this, so that the weights divide them.
const SCALE: u64 = 1 << 10;

/// What each job has had.
#[derive(Debug, Clone, Default)]
pub(super) struct Shares {
    /// Priorities of jobs, some not submitted yet.
    priorities: BTreeMap<JobId, u8>,
    /// Cost of what was leased, divided by weight.
    had: BTreeMap<JobId, u64>,
    /// The job that was given a priority last: it may not have come yet.
    announced: Option<JobId>,
}

/// Ten to one between highest and lowest: who has little waits, and never for ever.
const fn weight(priority: u8) -> u64 {
    priority as u64 + 1
}

impl Shares {
    pub(super) fn prioritise(&mut self, job: JobId, priority: u8) {
        self.announced = Some(job);
        self.priorities.insert(job, priority.min(obelysk_protocol::wire::MAX_PRIORITY));
    }

    fn weight(&self, job: JobId) -> u64 {
        weight(self.priority(job))
    }

    pub(super) fn priority(&self, job: JobId) -> u8 {
        self.priorities.get(&job).copied().unwrap_or(DEFAULT_PRIORITY)
    }

    /// What a job has had so far.
    pub(super) fn had(&self, job: JobId) -> u64 {
        self.had.get(&job).copied().unwrap_or(0)
    }

    pub(super) fn charge(&mut self, job: JobId, cost: u64) {
        let part = cost.saturating_mul(SCALE) / self.weight(job);
        let had = self.had.entry(job).or_default();
        *had = had.saturating_add(part.max(1));
    }

    /// Lets new jobs begin where the one that had least is, not at nothing: they would crowd the others out.
    fn settle(&mut self, jobs: &[JobId]) {
        let least = jobs.iter().filter_map(|job| self.had.get(job)).min().copied().unwrap_or(0);
        if jobs.iter().any(|job| !self.had.contains_key(job)) {
            for job in jobs {
                self.had.entry(*job).or_insert(least);
            }
        }
        if self.had.len() > jobs.len() || self.priorities.len() > jobs.len() + 1 {
            let announced = self.announced;
            self.had.retain(|job, _| jobs.contains(job));
            self.priorities.retain(|job, _| jobs.contains(job) || Some(*job) == announced);
        }
    }
}

impl State {
    /// Gives every job its share, and forgets those of jobs that are gone.
    pub(super) fn settle_shares(&mut self) {
        self.shares.settle(&self.queue);
    }

    /// The job with something to look at whose turn it is: of equals, the first to come.
    pub(super) fn next_turn(&self) -> Option<JobId> {
        let hot = |id: &&JobId| self.jobs.get(*id).is_some_and(|job| job.agenda.is_hot());
        self.queue.iter().filter(hot).min_by_key(|id| self.shares.had(**id)).copied()
    }

    /// Refuses a job for which there is no room; `true` when it did.
    pub(super) fn turned_away(&mut self, input: &Input, out: &mut Vec<Effect>) -> bool {
        let Input::JobSubmitted { job, model, segments, .. } = input else { return false };
        // Taken on before, whether in progress or ended: what was promised holds.
        if self.jobs.contains_key(job) || self.ended.contains(job) {
            return false;
        }
        let whole = |kind| self.fleet.mean(*model, kind).map(|mean| mean.saturating_mul(u64::from(*segments)));
        let asked: u64 = WorkKind::ALL.into_iter().filter_map(whole).fold(0, u64::saturating_add);
        let waiting = self.backlog_s(asked);
        if waiting <= MAX_BACKLOG_S || self.jobs.is_empty() {
            return false;
        }
        let failure = JobFailure::Busy { wait_s: waiting - MAX_BACKLOG_S, queued: self.jobs.len() };
        out.push(Effect::FailJob { job: *job, failure });
        true
    }

    /// Seconds that the whole fleet needs for everything accepted and `more` core-microseconds.
    fn backlog_s(&self, more: u64) -> u64 {
        // By the means of what was measured; what never ran counts nothing here, so that a guess refuses nobody.
        let open = |job: &Job| {
            let kind = |kind: &WorkKind| Some((self.fleet.mean(job.model, *kind)?, u64::from(job.segments - job.count(*kind))));
            let left = WorkKind::ALL.iter().filter_map(kind).map(|(mean, items)| mean.saturating_mul(items));
            left.fold(0, u64::saturating_add)
        };
        let waiting = self.jobs.values().map(open).fold(more, u64::saturating_add);
        let speed: u64 = self.members.iter().map(|(node, _)| self.speed(node)).fold(0, u64::saturating_add);
        waiting.saturating_mul(CORE) / speed.max(1) / 1_000_000
    }
}
