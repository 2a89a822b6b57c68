//! Second leases for stragglers: an idle node does the same item again, the first valid result wins, the other is revoked and no fault.
//!
//! Whoever goes on slowly for ever holds no item for ever: what it says of its progress spares it only for a while, and where both of
//! an item take long, a third takes the place of the first, each time after twice the patience, so that honest work that is merely long gets done.

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
/// Doublings of the patience after which it does not grow: a thousand times as long as expected.
const MAX_RACES: u32 = 10;

impl State {
    /// Gives stragglers of all jobs to nodes that would be idle otherwise; `true` when there were some.
    pub(super) fn hedge(&mut self, out: &mut Vec<Effect>) -> bool {
        let mut raced = false;
        for id in self.queue.clone() {
            while let Some((work, node)) = self.straggler(id) {
                if !self.race(id, work, node, out) {
                    break;
                }
                self.refresh();
                raced = true;
            }
        }
        raced
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

    /// The item that has run longest beyond what an idle node would need for it, and that node.
    fn straggler(&self, id: JobId) -> Option<(Work, NodeId)> {
        let job = self.jobs.get(&id)?;
        let top = job.crew.top_speed()?;
        let mut found: Option<(u64, Work, NodeId)> = None;
        for kind in WorkKind::EVERY {
            let least = self.usual(job, kind, top);
            for (since_ms, work) in job.agenda.running(kind) {
                let ran = self.now_ms.saturating_sub(since_ms);
                if ran <= least {
                    break;
                }
                if let Some((beyond, node)) = self.rescuer(id, job, work, ran)
                    && found.is_none_or(|(most, ..)| beyond > most)
                {
                    found = Some((beyond, work, node));
                }
            }
        }
        found.map(|(_, work, node)| (work, node))
    }

    /// The fastest idle node that would be done with an item sooner than whoever has it, by what it has taken so far.
    fn rescuer(&self, id: JobId, job: &Job, work: Work, ran: u64) -> Option<(u64, NodeId)> {
        let item = job.items.get(&work)?;
        let first = self.leases.get(item.lease?)?;
        let held: Vec<NodeId> = self.leases.of_item(id, work).iter().filter_map(|e| Some(self.leases.get(*e)?.node)).collect();
        if !job.has_needs(work) {
            return None;
        }
        let able = |node: NodeId| !held.contains(&node) && !item.dead.contains(&node) && self.may(id, work, node);
        let (speed, node) = job.crew.fastest().into_iter().find(|(_, node)| able(*node))?;
        let patience = self.patience(job, work, speed, item.races);
        let beyond = ran.checked_sub(patience).filter(|beyond| *beyond > 0)?;
        let known = self.fleet.quartile(job.model, work.kind).is_some();
        (!known || item.second.is_some() || worth_it(first, ran, patience)).then_some((beyond, node))
    }

    /// How long an item may run before a node of this speed takes another lease of it: twice what it would need itself, and twice as long
    /// again for each that was given before.
    fn patience(&self, job: &Job, work: Work, speed: u64, races: u32) -> u64 {
        // Some segments are larger than others: by what they cost, where that is known.
        let mean = self.fleet.mean(job.model, work.kind).unwrap_or(1).max(1);
        let cost = self.fleet.cost(job.model, work).max(mean);
        let own = u128::from(self.usual(job, work.kind, speed)) * u128::from(cost) / u128::from(mean);
        u64::try_from(own).unwrap_or(u64::MAX).saturating_mul(1 << races.min(MAX_RACES))
    }

    /// The same for an item of this kind that costs no more than others.
    fn usual(&self, job: &Job, kind: WorkKind, speed: u64) -> u64 {
        let Some(quartile) = self.fleet.quartile(job.model, kind) else {
            return self.policy.lease_ms.saturating_mul(UNKNOWN_LEASES);
        };
        let floor = FLOOR_MS.min(self.policy.lease_ms / 8);
        (2 * quartile).saturating_mul(CORE).checked_div(speed).unwrap_or(u64::MAX).max(floor)
    }
}

const fn worth_it(lease: &Lease, ran: u64, patience: u64) -> bool {
    lease.permille < NEARLY_DONE || ran > patience.saturating_mul(NEARLY_DONE_PATIENCE)
}
