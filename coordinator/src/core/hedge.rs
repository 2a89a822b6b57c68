//! Second leases for stragglers: an idle node does the same item again, the first valid result wins, the other is revoked and no fault.
//!
//! Whoever goes on slowly for ever holds no item for ever: what it says of its progress spares it only for a while, and where both of
//! an item take long, a third takes the place of the first, each time after twice the patience, so that honest work that is merely long gets done.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use obelysk_node::engine::WorkKind;

use super::State;
use super::fleet::CORE;
use super::job::Job;
use super::leases::Lease;
use super::types::{Effect, JobId, NodeId, Work};

/// Nothing that takes less than this is worth a second lease, nor less than an eighth of a lease's time.
const FLOOR_MS: u64 = 2_000;
/// What says that it is nearly done is left alone, but not for longer than so many times the patience.
const NEARLY_DONE: u32 = 900;
const NEARLY_DONE_PATIENCE: u64 = 4;
/// Leases that an item may take while nothing is known of how long its kind takes.
const UNKNOWN_LEASES: u64 = 8;
/// Leases that an item may take whatever is known: what is known comes from what nodes say of their speed.
const MOST_LEASES: u64 = 16;
/// Leases after which a node is late with what it runs, so that what waits for it goes to others; however fast it says it is.
const LATE_LEASES: u64 = 4;
/// Doublings of the patience after which it does not grow: a thousand times as long as expected.
const MAX_RACES: u32 = 10;

impl State {
    /// Gives stragglers of all jobs to nodes that would be idle otherwise; `true` when there were some.
    pub(super) fn hedge(&mut self, out: &mut Vec<Effect>) -> bool {
        let mut raced = false;
        for id in self.queue.clone() {
            let (stragglers, mut idle) = self.stragglers(id);
            let mut taken = false;
            for (ran, work) in stragglers {
                if idle.is_empty() {
                    break;
                }
                let Some(rescuer) = self.rescuer(id, work, ran, &idle) else { continue };
                if self.race(id, work, rescuer.1, out) {
                    idle.remove(&rescuer);
                    taken = true;
                }
            }
            if taken {
                // The next job finds fewer idle.
                self.refresh();
                raced = true;
            }
        }
        raced
    }

    /// Finds who is late: too long at one item. It is set aside until it reports, and what is its own gets another home.
    pub(super) fn note_late(&mut self) {
        let lease_ms = self.policy.lease_ms;
        let late = |lease: &Lease| {
            let ran = self.now_ms.saturating_sub(lease.since_ms);
            // The usual case, without asking what is usual.
            if ran <= lease_ms || lease.node == NodeId::REFEREE {
                return false;
            }
            let Some(job) = self.jobs.get(&lease.job) else { return false };
            let own = self.patience(job, lease.work, self.speed(lease.node), 0);
            ran > own.clamp(lease_ms, lease_ms.saturating_mul(LATE_LEASES))
        };
        let late: Vec<u64> = self.leases.in_time().filter(|(_, lease)| late(lease)).map(|(epoch, _)| epoch).collect();
        late.into_iter().for_each(|epoch| self.leases.mark_late(epoch));
    }

    /// Whether a node is late with what it runs.
    pub(super) fn is_late(&self, node: NodeId) -> bool {
        let running = self.members.get(node).and_then(|member| self.leases.get(member.running?));
        running.is_some_and(|lease| lease.late && !lease.expired)
    }

    fn race(&mut self, id: JobId, work: Work, node: NodeId, out: &mut Vec<Effect>) -> bool {
        let Some(item) = self.jobs.get_mut(&id).and_then(|job| job.item_mut(work)) else { return false };
        if let Some(second) = item.second.take()
            && let Some(first) = item.lease.replace(second)
            && let Some(lease) = self.leases.remove(first)
        {
            out.push(Effect::Revoke { node: lease.node, epoch: first });
        }
        let Some(epoch) = self.lease_out(id, work, node, out) else { return false };
        let Some(item) = self.jobs.get_mut(&id).and_then(|job| job.item_mut(work)) else { return false };
        item.second = Some(epoch);
        item.races += 1;
        true
    }

    /// Items that have run for longer than the fastest idle node would be given for them, with how long; what is most beyond that first.
    /// With them the idle nodes.
    fn stragglers(&self, id: JobId) -> (Vec<(u64, Work)>, Idle) {
        let mut found: Vec<(u64, u64, Work)> = Vec::new();
        let Some((job, top)) = self.jobs.get(&id).and_then(|job| Some((job, job.crew.top_speed()?))) else {
            return (Vec::new(), Idle::new());
        };
        for kind in WorkKind::EVERY {
            let least = self.usual(job, kind, top);
            for (since_ms, work) in job.agenda.running(kind) {
                let ran = self.now_ms.saturating_sub(since_ms);
                if ran <= least {
                    break;
                }
                let races = job.items.get(&work).map_or(0, |item| item.races);
                if let Some(beyond) = ran.checked_sub(self.patience(job, work, top, races)).filter(|beyond| *beyond > 0) {
                    found.push((beyond, ran, work));
                }
            }
        }
        if found.is_empty() {
            return (Vec::new(), Idle::new());
        }
        found.sort_unstable_by_key(|(beyond, _, work)| (Reverse(*beyond), *work));
        (found.into_iter().map(|(_, ran, work)| (ran, work)).collect(), job.crew.fastest())
    }

    /// The fastest of these that would be done with an item sooner than whoever has it, by what it has taken so far.
    fn rescuer(&self, id: JobId, work: Work, ran: u64, idle: &Idle) -> Option<(Reverse<u64>, NodeId)> {
        let job = self.jobs.get(&id)?;
        let item = job.items.get(&work)?;
        let first = self.leases.get(item.lease?)?;
        let held: Vec<NodeId> = self.leases.of_item(id, work).iter().filter_map(|e| Some(self.leases.get(*e)?.node)).collect();
        if !job.has_needs(work) {
            return None;
        }
        let able = |node: NodeId| !held.contains(&node) && !item.dead.contains(&node) && self.may(id, work, node);
        let (speed, node) = idle.iter().copied().find(|(_, node)| able(*node))?;
        let patience = self.patience(job, work, speed.0, item.races);
        let known = self.fleet.quartile(job.model, work.kind).is_some();
        let worth = !known || item.second.is_some() || worth_it(first, ran, patience);
        (ran > patience && worth).then_some((speed, node))
    }

    /// How long an item may run before a node of this speed takes another lease of it: twice what it would need itself, and twice as long
    /// again for each that was given before.
    fn patience(&self, job: &Job, work: Work, speed: u64, races: u32) -> u64 {
        // Some segments are larger than others: by what they cost, where that is known.
        let mean = self.fleet.mean(job.model, work.kind).unwrap_or(1).max(1);
        let cost = self.fleet.cost(job.model, work).max(mean);
        let own = u128::from(self.usual(job, work.kind, speed)) * u128::from(cost) / u128::from(mean);
        u64::try_from(own).unwrap_or(u64::MAX).min(self.most_patience()).saturating_mul(1 << races.min(MAX_RACES))
    }

    /// The same for an item of this kind that costs no more than others.
    fn usual(&self, job: &Job, kind: WorkKind, speed: u64) -> u64 {
        let Some(quartile) = self.fleet.quartile(job.model, kind) else {
            return self.policy.lease_ms.saturating_mul(UNKNOWN_LEASES);
        };
        let floor = FLOOR_MS.min(self.policy.lease_ms / 8);
        let usual = quartile.saturating_mul(2).saturating_mul(CORE).checked_div(speed).unwrap_or(u64::MAX);
        usual.clamp(floor, self.most_patience())
    }

    const fn most_patience(&self) -> u64 {
        self.policy.lease_ms.saturating_mul(MOST_LEASES)
    }
}

/// Idle nodes, fastest first.
type Idle = BTreeSet<(Reverse<u64>, NodeId)>;

const fn worth_it(lease: &Lease, ran: u64, patience: u64) -> bool {
    lease.permille < NEARLY_DONE || ran > patience.saturating_mul(NEARLY_DONE_PATIENCE)
}
