//! A new leader's brain from the facts, and what nodes still hold from leases of an earlier one.
//!
//! Leases are not facts: they end with the leader who gave them, and epochs carry its term, so that none is ever given twice. What a node
//! computed under such a lease is still right or wrong by itself. So the node names job, item and inputs, and if
//! that is what the job needs now, the lease is taken over with its epoch; otherwise it is revoked.

use obelysk_protocol::wire::BlobRef;

use super::job::{Challenge, Job, Record};
use super::leases::Lease;
use super::types::{Effect, JobId, NodeId, Policy, Work};
use super::{State, tell};
use crate::ledger::{Ledger, OpenJob, Roster};

/// Bits of an epoch below the term: a leader that gives out a thousand leases a second needs 34 years.
const COUNTER_BITS: u32 = 40;
/// The last term that an epoch can carry. The upper half of all numbers is left to the nodes, who number what they compute for
/// calibration with it.
pub const MAX_TERM: u64 = (1 << (u64::BITS - 1 - COUNTER_BITS)) - 1;

/// First epoch of a term; those of all earlier terms are below it.
const fn first_epoch(term: u64) -> u64 {
    (term & MAX_TERM) << COUNTER_BITS
}

impl State {
    /// The brain of the leader of this term: what the facts say, and nobody connected. The roster must number every node that the
    /// ledger names ([`Roster::of`]). Terms above [`MAX_TERM`] cannot be fenced: the caller does not lead in them.
    #[must_use]
    pub fn restore(policy: Policy, ledger: &Ledger, roster: &Roster, term: u64) -> Self {
        let mut state = Self::new(policy);
        state.term_epoch = first_epoch(term);
        state.next_epoch = state.term_epoch + 1;
        state.next_number = ledger.next_number();
        state.ended = ledger.ended_jobs().map(|(id, _)| id).collect();
        for node in ledger.quarantined().filter_map(|(key, _)| roster.number(key)) {
            state.members.quarantine(node);
        }
        let mut jobs: Vec<(u64, JobId, Job)> =
            ledger.open_jobs().map(|(id, open)| (open.number, id, restored(open, roster))).collect();
        jobs.sort_by_key(|(number, id, _)| (*number, *id));
        state.queue = jobs.iter().map(|(_, id, _)| *id).collect();
        state.jobs = jobs.into_iter().map(|(_, id, job)| (id, job)).collect();
        state.remember(ledger, roster);
        state.unswept = true;
        state
    }

    /// What a leader that ended between two facts had still to take back: done once, before anything else.
    pub(super) fn sweep(&mut self, out: &mut Vec<Effect>) {
        if !std::mem::take(&mut self.unswept) {
            return;
        }
        let out_of = |node: &NodeId| self.members.is_quarantined(*node);
        let liars: Vec<NodeId> = self.members.iter().map(|(node, _)| node).filter(out_of).collect();
        for (id, job) in &mut self.jobs {
            let mut events: Vec<_> = liars.iter().flat_map(|node| job.distrust(*node)).collect();
            events.extend(job.drop_stale());
            events.into_iter().for_each(|event| tell(*id, event, out));
        }
    }

    /// The bytes of a blob are gone: what stands on them is made again. A specification cannot be.
    pub(super) fn blob_lost(&mut self, blob: BlobRef, out: &mut Vec<Effect>) {
        let mut hopeless = Vec::new();
        for (id, job) in &mut self.jobs {
            if job.spec == blob {
                hopeless.push(*id);
            }
            let mine = |work: &&Work| job.accepted(work.kind, work.segment).is_some_and(|record| record.output == blob);
            let lost: Vec<Work> = job.items.keys().filter(mine).copied().collect();
            let mut events: Vec<_> = lost.into_iter().filter_map(|work| job.retract(work, "its bytes were lost")).collect();
            let challenge = job.challenge().is_some_and(|challenge| challenge.extra == blob);
            if challenge {
                job.set_challenge(None);
            }
            let joint = job.joins_with(blob);
            if challenge || joint || !events.is_empty() {
                // Whatever was being made of it comes to nothing, and says nothing.
                job.deriving = None;
                job.asked = None;
                job.stirred = true;
            }
            if joint {
                events.extend(job.unjoin("bytes of it were lost"));
            }
            events.into_iter().for_each(|event| tell(*id, event, out));
            for candidate in job.drop_candidates_with(blob) {
                self.checking.remove(&candidate.epoch);
                out.push(Effect::Ack { node: candidate.record.node, epoch: candidate.epoch });
            }
        }
        for id in hopeless {
            let text = "the specification's bytes were lost from the coordinator's store; submit again".to_owned();
            self.fail(id, super::JobFailure::Pieces(text), out);
        }
    }

    /// A node says what a lease was about that it holds from before it connected.
    pub(super) fn held(&mut self, node: NodeId, epoch: u64, about: (JobId, Work, &[BlobRef], BlobRef), out: &mut Vec<Effect>) {
        let (id, work, inputs, extra) = about;
        let known = self.leases.belongs(epoch, node) || self.at_checker(node, epoch);
        if !known && !self.adopt(node, epoch, (id, work), (inputs, extra)) {
            out.push(Effect::Revoke { node, epoch });
            return;
        }
        out.push(Effect::Resume { node, epoch, job: id });
    }

    fn adopt(&mut self, node: NodeId, epoch: u64, (id, work): (JobId, Work), (inputs, extra): (&[BlobRef], BlobRef)) -> bool {
        // Only what it named when it greeted, each once: that bounds how many there are.
        let named = self.members.take_held(node, epoch);
        // Only of earlier terms: an epoch of this one that is not in the table is over, or was never given.
        if !named || epoch == 0 || epoch >= self.term_epoch || self.leases.get(epoch).is_some() {
            return false;
        }
        let trusted = self.members.get(node).is_some() && !self.members.is_quarantined(node);
        let Some(job) = self.jobs.get_mut(&id).filter(|_| trusted) else { return false };
        let Some(needs) = job.needs(work).filter(|needs| needs.inputs == inputs && needs.extra == extra) else { return false };
        let Some(item) = job.item_mut(work).filter(|i| i.accepted.is_none() && i.checking.is_none()) else { return false };
        // Somebody else may have been given it meanwhile: then the first result counts.
        let expired = item.lease.is_some();
        if !expired {
            item.lease = Some(epoch);
        }
        job.started(work.kind, self.now_ms);
        job.waiting_since_ms = None;
        let (since_ms, deadline_ms) = (self.now_ms, self.now_ms + self.policy.lease_ms);
        let lease = Lease { job: id, work, node, needs, since_ms, adopted: true, deadline_ms, permille: 0, expired, late: false };
        self.leases.insert(epoch, lease);
        true
    }
}

fn restored(open: &OpenJob, roster: &Roster) -> Job {
    let mut job = Job::new(open.model, open.spec, open.segments);
    for (work, piece) in &open.accepted {
        let Some(node) = roster.number(piece.node) else { continue };
        job.spent_before(work.kind, piece.core_us, piece.peak_bytes);
        if job.items.contains_key(work) {
            job.enter_result(*work, Record { node, needs: piece.needs.clone(), output: piece.output });
        }
    }
    job.set_challenge(open.challenge.clone().map(|(commits, extra)| Challenge { commits, extra }));
    job
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use obelysk_node::engine::WorkKind;

    use super::super::fact::Fact;
    use super::super::types::Input;
    use super::*;
    use crate::consensus::Machine as _;
    use crate::ledger::Entry;

    const POLICY: Policy = Policy { lease_ms: 1000, away_grace_ms: 500, wait_deadline_ms: 10_000, retry_pause_ms: 1 };

    #[test]
    fn only_leases_named_in_the_greeting_are_taken_over_and_each_once() {
        let (job, model, node) = (JobId([1; 32]), [7; 32], NodeId(1));
        let opened = Fact::JobOpened { job, number: 1, model, spec: BlobRef::of(b"spec"), segments: 1 };
        let mut ledger = Ledger::default();
        let entry = Entry::of(&opened, &Roster::of(&ledger), 1).expect("about no node");
        ledger.apply(0, &entry.encode());
        let mut state = State::restore(POLICY, &ledger, &Roster::of(&ledger), 2);
        state.apply(1, Input::NodeJoined { node, models: BTreeSet::from([model]), cores: 1, held: BTreeSet::from([5]) });
        let mut holds = |now, epoch| {
            let (work, inputs, extra) = (Work::new(WorkKind::Forward, 0), Vec::new(), BlobRef::of(&[]));
            let effects = state.apply(now, Input::NodeHolds { node, epoch, job, work, inputs, extra });
            let resumed = effects.iter().any(|effect| matches!(effect, Effect::Resume { .. }));
            (resumed, state.leases.len())
        };
        assert_eq!((2..=4).map(|epoch| holds(2, epoch)).collect::<Vec<_>>(), [(false, 0); 3], "never named");
        assert_eq!([holds(3, 5), holds(3, 5)], [(true, 1); 2], "the same lease");
        state.apply(4, Input::WorkFailed { node, epoch: 5, disagrees: false, reason: "out of memory".to_owned() });
        let again = Input::NodeHolds {
            node,
            epoch: 5,
            job,
            work: Work::new(WorkKind::Forward, 0),
            inputs: Vec::new(),
            extra: BlobRef::of(&[]),
        };
        let effects = state.apply(4, again);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Revoke { epoch: 5, .. })), "{effects:?}");
    }
}
