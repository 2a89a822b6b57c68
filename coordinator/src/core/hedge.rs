//! Second leases for stragglers: an idle node does the same item again, the first valid result wins, the other is revoked and no fault.

use std::collections::BTreeSet;

use super::fleet::CORE;
use super::types::{Effect, JobId, NodeId, Work};
use super::{Lease, State};

/// Nothing that takes less than this is worth a second lease, nor less than an eighth of a lease's time.
const FLOOR_MS: u64 = 2_000;

impl State {
    /// Brings second leases up to date: those of items that are done are revoked, those whose first lease is gone take its place.
    pub(super) fn settle_hedges(&mut self, out: &mut Vec<Effect>) {
        for ((id, work), epoch) in std::mem::take(&mut self.hedges) {
            let live = self.leases.get(&epoch).is_some_and(|lease| !lease.expired);
            let Some(item) = self.jobs.get_mut(&id).and_then(|job| job.items.get_mut(&work)).filter(|_| live) else { continue };
            if item.accepted.is_some() {
                if let Some(lease) = self.leases.remove(&epoch) {
                    out.push(Effect::Revoke { node: lease.node, epoch });
                }
            } else if item.lease.is_none() && item.checking.is_none() {
                item.lease = Some(epoch);
            } else {
                self.hedges.insert((id, work), epoch);
            }
        }
    }

    /// Gives stragglers of a job to nodes that would be idle otherwise.
    pub(super) fn hedge(&mut self, id: JobId, idle: &mut BTreeSet<NodeId>, out: &mut Vec<Effect>) {
        while let Some((work, node)) = self.straggler(id, idle) {
            idle.remove(&node);
            let Some(first) = self.jobs.get(&id).and_then(|job| job.items.get(&work)).and_then(|item| item.lease) else { return };
            let Some((home, challenge)) =
                self.jobs.get(&id).map(|job| (job.home.get(&work.segment).copied(), job.current_challenge()))
            else {
                return;
            };
            self.assign(id, work, node, challenge, out);
            // The second lease is the one that assignment put in the item; the first keeps its place and the segment its home.
            let Some(job) = self.jobs.get_mut(&id) else { return };
            if let Some(home) = home {
                job.home.insert(work.segment, home);
            }
            let second = job.items.get_mut(&work).and_then(|item| item.lease.replace(first));
            if let Some(second) = second.filter(|second| *second != first) {
                self.hedges.insert((id, work), second);
            } else {
                return;
            }
        }
    }

    /// The item that has run longest beyond what an idle node would need for it, and that node.
    fn straggler(&self, id: JobId, idle: &BTreeSet<NodeId>) -> Option<(Work, NodeId)> {
        let job = self.jobs.get(&id)?;
        let mut found: Option<(u64, Work, NodeId)> = None;
        for (work, item) in &job.items {
            let Some(lease) = item.lease.filter(|_| item.doubt.is_none() && item.checking.is_none()) else { continue };
            if self.hedges.contains_key(&(id, *work)) {
                continue;
            }
            let (Some(held), Some(since)) = (self.leases.get(&lease), self.fleet.started(lease)) else { continue };
            let Some(quartile) = self.fleet.quartile(job.model, work.kind) else { continue };
            let ran = self.now_ms.saturating_sub(since);
            let beyond = |node: NodeId| ran.checked_sub(self.patience(quartile, node)).filter(|beyond| *beyond > 0);
            let able = idle.iter().filter(|node| **node != held.node && self.may(id, *work, **node) && !item.dead.contains(node));
            let best =
                able.filter_map(|node| Some((beyond(*node)?, *node))).max_by_key(|(beyond, node)| (*beyond, u32::MAX - node.0));
            if let Some((beyond, node)) = best.filter(|_| self.worth_it(held))
                && found.is_none_or(|(most, ..)| beyond > most)
            {
                found = Some((beyond, *work, node));
            }
        }
        found.map(|(_, work, node)| (work, node))
    }

    /// How long an item may run before a node of this speed takes a second lease: twice what it would need itself.
    fn patience(&self, quartile: u64, node: NodeId) -> u64 {
        let floor = FLOOR_MS.min(self.policy.lease_ms / 8);
        (2 * quartile).saturating_mul(CORE).checked_div(self.speed(node)).unwrap_or(u64::MAX).max(floor)
    }

    /// What is nearly done is left alone.
    const fn worth_it(&self, lease: &Lease) -> bool {
        !lease.expired && lease.permille < 900
    }
}
