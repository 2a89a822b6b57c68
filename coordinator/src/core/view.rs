//! The brain as it stands, for people and metrics: copied out, bounded by what is in progress. Decides and changes nothing.

use obelysk_node::engine::WorkKind;

use super::State;
use super::job::{Item, Job};
use super::members::Presence;
use super::types::{JobId, NodeId, Work};

/// The whole cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Milliseconds that passed for the brain; jumps of the caller's clock are not among them.
    pub now_ms: u64,
    /// Nodes by number; the referee is among them.
    pub nodes: Vec<NodeView>,
    /// Jobs in progress, by arrival.
    pub jobs: Vec<JobView>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its number.
    pub node: NodeId,
    /// Cores it offers.
    pub cores: u32,
    /// How it stands.
    pub standing: Standing,
    /// What it runs.
    pub running: Option<Running>,
}

/// How a node stands with the brain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Takes work.
    Here,
    /// Its connection broke; it may return.
    Away,
    /// Finishes what it runs.
    Draining,
    /// Found wrong.
    Quarantined,
}

/// A lease as its node runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Its number.
    pub epoch: u64,
    /// The job.
    pub job: JobId,
    /// The item.
    pub work: Work,
    /// How far, 0 to 1000.
    pub permille: u32,
    /// The item may have gone to another node; this result is still welcome.
    pub expired: bool,
}

/// A job in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// The job.
    pub job: JobId,
    /// Its model.
    pub model: [u8; 32],
    /// Its segments.
    pub segments: u32,
    /// All items, by kind and segment.
    pub items: Vec<ItemView>,
    /// The challenge is drawn for the commits that stand now.
    pub challenged: bool,
    /// The whole is being verified.
    pub finishing: bool,
    /// Since when no node can work on it.
    pub waiting_since_ms: Option<u64>,
    /// Core-microseconds of accepted results, in the order of [`WorkKind::ALL`]; joint steps count as openings.
    pub core_us: [u64; WorkKind::ALL.len()],
}

/// A work item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemView {
    /// The item.
    pub work: Work,
    /// How it stands.
    pub state: ItemState,
    /// Somebody says that the result before it is wrong.
    pub disputed: bool,
    /// Failures that nodes reported of it, and nodes lost while they ran it.
    pub tries: u32,
}

/// How a work item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemState {
    /// What it needs is not there yet.
    Blocked,
    /// Waits for a node.
    Ready,
    /// A node runs it.
    Leased {
        /// The node.
        node: NodeId,
        /// How far, 0 to 1000.
        permille: u32,
    },
    /// Its result is being checked.
    Checking {
        /// Whose result.
        node: NodeId,
    },
    /// Done.
    Accepted {
        /// By whom.
        node: NodeId,
    },
}

impl JobView {
    /// Items of a kind that are accepted.
    #[must_use]
    pub fn accepted(&self, kind: WorkKind) -> u32 {
        let done = |item: &&ItemView| item.work.kind == kind && matches!(item.state, ItemState::Accepted { .. });
        u32::try_from(self.items.iter().filter(done).count()).unwrap_or(u32::MAX)
    }
}

impl State {
    /// Everything as it stands.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            now_ms: self.now_ms,
            nodes: self.members.iter().filter_map(|(node, _)| self.node_view(node)).collect(),
            jobs: self.queue.iter().filter_map(|id| Some(self.job_view(*id, self.jobs.get(id)?))).collect(),
        }
    }

    fn node_view(&self, node: NodeId) -> Option<NodeView> {
        let member = self.members.get(node)?;
        let standing = match member.presence {
            Presence::Here => Standing::Here,
            Presence::Away { .. } => Standing::Away,
            Presence::Draining => Standing::Draining,
            Presence::Quarantined => Standing::Quarantined,
        };
        let running = member.running.and_then(|epoch| {
            let lease = self.leases.get(epoch)?;
            Some(Running { epoch, job: lease.job, work: lease.work, permille: lease.permille, expired: lease.expired })
        });
        Some(NodeView { node, cores: member.cores, standing, running })
    }

    fn job_view(&self, id: JobId, job: &Job) -> JobView {
        let items = job.items.iter().map(|(work, item)| ItemView {
            work: *work,
            state: self.item_state(job, *work, item),
            disputed: item.doubt.is_some(),
            tries: u32::try_from(item.failures.len() + item.dead.len()).unwrap_or(u32::MAX),
        });
        JobView {
            job: id,
            model: job.model,
            segments: job.segments,
            items: items.collect(),
            challenged: job.current_challenge().is_some(),
            finishing: job.asked.as_ref().is_some_and(|asked| asked.joint.is_none()),
            waiting_since_ms: job.waiting_since_ms,
            core_us: WorkKind::ALL.map(|kind| {
                let steps = if kind == WorkKind::Open { job.core_us(WorkKind::Joint) } else { 0 };
                job.core_us(kind).saturating_add(steps)
            }),
        }
    }

    fn item_state(&self, job: &Job, work: Work, item: &Item) -> ItemState {
        let lease = item.lease.and_then(|epoch| self.leases.get(epoch));
        match (&item.accepted, &item.checking, lease) {
            (Some(record), _, _) => ItemState::Accepted { node: record.node },
            (None, Some(candidate), _) => ItemState::Checking { node: candidate.record.node },
            (None, None, Some(lease)) => ItemState::Leased { node: lease.node, permille: lease.permille },
            (None, None, None) if job.needs(work).is_some() => ItemState::Ready,
            (None, None, None) => ItemState::Blocked,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use obelysk_protocol::wire::BlobRef;

    use super::*;
    use crate::core::{Effect, Input, Policy};

    const MODEL: [u8; 32] = [7; 32];

    #[test]
    fn a_view_follows_a_job_from_ready_to_accepted() {
        let policy = Policy { lease_ms: 100, away_grace_ms: 50, wait_deadline_ms: 1000, retry_pause_ms: 1 };
        let (mut state, job, node) = (State::new(policy), JobId([1; 32]), NodeId(1));
        let first = Work::new(WorkKind::Forward, 0);
        let at = |state: &State, work: Work| {
            let view = state.view();
            view.jobs.iter().flat_map(|j| &j.items).find(|i| i.work == work).map(|i| i.state)
        };
        state.apply(1, Input::JobSubmitted { job, model: MODEL, spec: BlobRef::of(b"spec"), segments: 2 });
        assert_eq!(at(&state, first), Some(ItemState::Ready));
        assert_eq!(at(&state, Work::new(WorkKind::Forward, 1)), Some(ItemState::Blocked));
        assert_eq!(state.view().jobs[0].waiting_since_ms, Some(1));
        let joined = Input::NodeJoined { node, models: BTreeSet::from([MODEL]), cores: 4, held: BTreeSet::new() };
        state.apply(2, joined);
        state.apply(3, Input::Progress { node, epoch: 1, permille: 250 });
        assert_eq!(at(&state, first), Some(ItemState::Leased { node, permille: 250 }));
        let running = Running { epoch: 1, job, work: first, permille: 250, expired: false };
        assert_eq!(state.view().nodes, [NodeView { node, cores: 4, standing: Standing::Here, running: Some(running) }]);
        let output = BlobRef::of(b"boundary");
        let effects = state.apply(4, Input::WorkDone { node, epoch: 1, output, core_us: 9, peak_bytes: 1 });
        assert!(effects.iter().any(|e| matches!(e, Effect::Check { .. })));
        assert_eq!(at(&state, first), Some(ItemState::Checking { node }));
        let verdict = obelysk_node::engine::Verdict::Accept;
        state.apply(5, Input::CheckResult { job, work: first, epoch: 1, verdict });
        assert_eq!(at(&state, first), Some(ItemState::Accepted { node }));
        let view = state.view();
        assert_eq!((view.now_ms, view.jobs[0].accepted(WorkKind::Forward), view.jobs[0].core_us), (5, 1, [9, 0, 0, 0]));
        state.apply(6, Input::NodeAway { node });
        assert_eq!(state.view().nodes[0].standing, Standing::Away);
    }
}
