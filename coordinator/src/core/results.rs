//! What nodes report of their leases: progress, results, failures.

use std::collections::BTreeSet;

use obelysk_protocol::wire::{BlobRef, PERMILLE};

use super::fleet::{MOST_CORE_US, most_core_us};
use super::job::{Candidate, Record};
use super::leases::Lease;
use super::outcome::{JobEvent, JobFailure};
use super::types::{Effect, NodeId};
use super::{MAX_ATTEMPTS, MAX_NODE_DEATHS, State};

impl State {
    pub(super) fn progress(&mut self, node: NodeId, epoch: u64, permille: u32) {
        if self.leases.belongs(epoch, node) {
            self.leases.renew(epoch, permille.min(PERMILLE), self.now_ms + self.policy.lease_ms);
        }
    }

    /// Takes a lease out of the table because its node reported, whatever it reported.
    pub(super) fn settle(&mut self, node: NodeId, epoch: u64) -> Option<Lease> {
        if self.members.get(node)?.running == Some(epoch) {
            self.members.run(node, None);
        }
        if !self.leases.belongs(epoch, node) {
            return None;
        }
        let lease = self.leases.remove(epoch)?;
        self.jobs.get_mut(&lease.job)?.item_mut(lease.work)?.release(epoch);
        (!self.members.is_quarantined(node)).then_some(lease)
    }

    pub(super) fn work_done(&mut self, node: NodeId, epoch: u64, result: (BlobRef, u64, u64), out: &mut Vec<Effect>) {
        // Said twice: the answer follows the verdict.
        if self.at_checker(node, epoch) {
            return;
        }
        let judged = self.settle(node, epoch).and_then(|lease| self.candidate(lease, epoch, result));
        out.push(judged.unwrap_or(Effect::Ack { node, epoch }));
    }

    /// Sends a result to the checker, if it is wanted. It is acknowledged when it was judged: until then only its node has it for certain.
    fn candidate(&mut self, lease: Lease, epoch: u64, (output, core_us, peak_bytes): (BlobRef, u64, u64)) -> Option<Effect> {
        let Lease { job: id, work, node, needs, since_ms, adopted, .. } = lease;
        let cores = self.members.get(node).map_or(1, |member| member.cores);
        // How long an adopted lease has run is not known. Beyond that, a millisecond is rounded up.
        let wall_ms = self.now_ms.saturating_sub(since_ms) + 1;
        let core_us = core_us.min(if adopted { MOST_CORE_US } else { most_core_us(wall_ms, cores) });
        let job = self.jobs.get_mut(&id)?;
        // Computed from results that were taken back since: neither right nor wrong.
        if job.needs(work).as_ref() != Some(&needs) {
            return None;
        }
        let spec = job.spec;
        let item = job.item_mut(work).filter(|item| item.accepted.is_none() && item.checking.is_none())?;
        let record = Record { node, needs: needs.clone(), output };
        item.checking = Some(Candidate { epoch, record, core_us, peak_bytes });
        self.checking.insert(epoch, (id, work));
        Some(Effect::Check { node, job: id, work, epoch, spec, needs, output })
    }

    pub(super) fn work_failed(&mut self, node: NodeId, epoch: u64, disagrees: bool, reason: String, out: &mut Vec<Effect>) {
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
        let Some(item) = job.item_mut(lease.work) else { return };
        item.failures.push((node, reason.clone()));
        let times = item.failures.len();
        item.not_before_ms = now + pause * times as u64;
        let failed: BTreeSet<NodeId> = item.failures.iter().map(|(node, _)| *node).collect();
        let event = JobEvent::Failed { work: lease.work, node, reason: reason.clone() };
        out.push(Effect::Notify { job: lease.job, event });
        // A failure that is only reported costs little, so somebody who has not tried yet is asked first.
        self.seat();
        let untried = self.jobs.get(&lease.job).is_some_and(|job| !job.crew.usable().is_subset(&failed));
        if times >= MAX_ATTEMPTS || (failed.len() >= MAX_NODE_DEATHS && !untried) {
            self.fail(lease.job, JobFailure::Failing { work: lease.work, times, node, reason }, out);
        }
    }
}
