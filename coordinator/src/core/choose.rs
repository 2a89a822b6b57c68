//! Who takes an item: its home, or a node with nothing of its own left to do; of a dispute, somebody uninvolved.

use std::collections::BTreeSet;

use obelysk_node::engine::WorkKind;

use super::State;
use super::job::{Item, Job};
use super::types::{JobId, NodeId, Work};

/// Who may take an item now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// This node, now.
    Node(NodeId),
    /// Somebody who is busy.
    Later,
    /// Nobody here.
    Nobody,
    /// Nobody uninvolved is here to settle a dispute.
    Tie,
}

/// An item about which is decided.
struct Case<'a> {
    id: JobId,
    job: &'a Job,
    work: Work,
    item: &'a Item,
    /// Sides of a dispute.
    involved: BTreeSet<NodeId>,
    /// Somebody usable has not had it in vain.
    untried: bool,
}

impl State {
    pub(super) fn choose(&self, id: JobId, work: Work) -> Choice {
        let Some(job) = self.jobs.get(&id) else { return Choice::Nobody };
        let Some(item) = job.items.get(&work) else { return Choice::Nobody };
        let usable = job.crew.usable();
        let mut case = Case { id, job, work, item, involved: BTreeSet::new(), untried: true };
        if let Some(doubt) = &item.doubt {
            if let Some(referee) = self.referee(job) {
                return if referee.running.is_none() { Choice::Node(NodeId::REFEREE) } else { Choice::Later };
            }
            case.involved.insert(doubt.reporter);
            case.involved.extend(job.cause(work).map(|(_, author)| author));
            if usable.is_subset(&case.involved) {
                return Choice::Tie;
            }
        }
        case.untried = usable.iter().any(|node| self.fits(&case, *node) && !case.failed(*node));
        if !case.untried && !usable.iter().any(|node| self.fits(&case, *node)) {
            return Choice::Nobody;
        }
        let home = self.able_home(&case);
        if let Some(home) = home {
            if job.crew.is_free(home) {
                return Choice::Node(home);
            }
            if !may_leave_home(work.kind) {
                return Choice::Later;
            }
        }
        self.thief(&case, home).map_or(Choice::Later, Choice::Node)
    }

    /// Whether an idle node would be one that an item can be given to.
    pub(super) fn would_take(&self, id: JobId, job: &Job, work: Work, node: NodeId) -> bool {
        let Some(item) = job.items.get(&work) else { return false };
        if item.doubt.is_none() && !item.was_tried() {
            // The usual case, without asking who else could.
            let home =
                job.home(work.segment).filter(|home| job.crew.usable().contains(home) && self.has_room(id, job, work, *home));
            let own = home == Some(node);
            let taken = home.is_none() || own || (may_leave_home(work.kind) && self.takes_from(job, work, node, home));
            return taken && self.has_room(id, job, work, node);
        }
        matches!(self.choose(id, work), Choice::Node(_))
    }

    fn fits(&self, case: &Case<'_>, node: NodeId) -> bool {
        !case.involved.contains(&node) && self.has_room(case.id, case.job, case.work, node)
    }

    fn able(&self, case: &Case<'_>, node: NodeId) -> bool {
        case.job.crew.usable().contains(&node) && self.fits(case, node) && !(case.untried && case.failed(node))
    }

    fn able_home(&self, case: &Case<'_>) -> Option<NodeId> {
        case.job.home(case.work.segment).filter(|home| self.able(case, *home))
    }

    /// Whether a node may take an item that another is home to: with leisure, and what would wait there for longer than it takes itself.
    fn takes_from(&self, job: &Job, work: Work, node: NodeId, home: Option<NodeId>) -> bool {
        let Some(home) = home else { return true };
        job.crew.rank(node) > work.kind.code() && self.speed(node) >= self.least_speed(job, home)
    }

    /// Speed from which on a node is done with an item before its home would be with what it runs and all that waits there.
    fn least_speed(&self, job: &Job, home: NodeId) -> u64 {
        self.speed(home).div_ceil(job.agenda.queue(home) + 1)
    }

    /// The fastest idle node that may take an item which its home does not take now; before all, one that has its weights.
    fn thief(&self, case: &Case<'_>, home: Option<NodeId>) -> Option<NodeId> {
        let (job, work) = (case.job, case.work);
        if let Some(near) = self.fleet.last.get(&(job.model, work.segment)).copied()
            && job.crew.is_free(near)
            && self.able(case, near)
            && self.takes_from(job, work, near, home)
        {
            return Some(near);
        }
        let (rank, least) = home.map_or((0, 0), |home| (work.kind.code() + 1, self.least_speed(job, home)));
        let first = |nodes: &mut dyn Iterator<Item = (u64, NodeId)>| {
            nodes.take_while(|(speed, _)| *speed >= least).find(|(_, node)| self.able(case, *node))
        };
        let best = job.crew.free_from(rank).filter_map(|mut nodes| first(&mut nodes));
        best.max_by_key(|(speed, node)| (*speed, u32::MAX - node.0)).map(|(_, node)| node)
    }

    /// Whether a node may take an item beside another.
    pub(super) fn may(&self, id: JobId, work: Work, node: NodeId) -> bool {
        let Some(job) = self.jobs.get(&id) else { return false };
        job.crew.trusts(node) && self.has_room(id, job, work, node)
    }
}

impl Case<'_> {
    fn failed(&self, node: NodeId) -> bool {
        self.item.tried(node)
    }
}

/// Whether an item may go to another node while its home is busy. The forward pass is a chain: its next link gains nothing from a second
/// node. A joint step takes long where the segment's rows are not in memory.
pub(super) const fn may_leave_home(kind: WorkKind) -> bool {
    !matches!(kind, WorkKind::Forward | WorkKind::Joint)
}
