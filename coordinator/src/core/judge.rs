//! What follows from a verdict: acceptance, quarantine, or a dispute that a third party settles.
//!
//! A rejected item may be its own author's fault or that of the earlier result it builds on. When one node made both, it is
//! out. Otherwise somebody uninvolved runs the rejected item again: accepted, the first reporter lied; rejected again, the
//! earlier result's author did. The referee's word needs no second. When nobody is left to ask, one of the two is set aside for this job and the
//! other redoes both, so that its next lie is its own: a proof cannot be made for a wrong computation.

use obelysk_node::engine::{Verdict, WorkKind};

use super::job::{Candidate, Doubt};
use super::outcome::{JobEvent, JobFailure};
use super::types::{Effect, JobId, NodeId, Work};
use super::{Fact, MAX_TIES, State, tell};

impl State {
    pub(super) fn judged(&mut self, id: JobId, work: Work, epoch: u64, verdict: Verdict, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(item) = job.item_mut(work) else { return };
        let Some(candidate) = item.checking.take_if(|c| c.epoch == epoch) else { return };
        self.checking.remove(&epoch);
        let node = candidate.record.node;
        self.weigh(id, work, candidate, verdict, out);
        // Last: what follows from the verdict is recorded before the node forgets the result.
        out.push(Effect::Ack { node, epoch });
    }

    fn weigh(&mut self, id: JobId, work: Work, candidate: Candidate, verdict: Verdict, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let node = candidate.record.node;
        let quarantined = self.members.is_quarantined(node);
        // Judged against results that were taken back since, or made by a liar: as if it had never come.
        if quarantined || job.needs(work).as_ref() != Some(&candidate.record.needs) {
            return;
        }
        job.drop_void_doubt(work);
        if !self.may_settle(id, work, node) {
            return;
        }
        match verdict {
            Verdict::Accept => self.accept(id, work, candidate, out),
            Verdict::Reject(reason) => {
                // A boundary of wrong shape, a commit wrong in itself, or a joint part whose author answers for all before it, has
                // nobody else to blame.
                let alone = matches!(work.kind, WorkKind::Forward | WorkKind::Commit | WorkKind::Joint);
                if alone {
                    self.quarantine(node, format!("{work} of job {id}: {reason}"), out);
                } else {
                    self.contradicted(id, work, node, reason, out);
                }
            }
            Verdict::Dispute(reason) => self.contradicted(id, work, node, reason, out),
        }
    }

    fn accept(&mut self, id: JobId, work: Work, candidate: Candidate, out: &mut Vec<Effect>) {
        let now = self.now_ms;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.spent(work.kind, now, &candidate);
        let Some(item) = job.item_mut(work) else { return };
        let Candidate { record, core_us, peak_bytes, .. } = candidate;
        let (node, needs, output) = (record.node, record.needs.clone(), record.output);
        (item.lease, item.second) = (None, None);
        let (doubt, challenge) = (item.doubt.take(), job.current_challenge());
        job.enter_result(work, record);
        let (done, total) = (job.count(work.kind), job.segments);
        // A joint step costs no sync: after a restart the opening of all begins anew.
        if work.kind != WorkKind::Joint {
            out.push(Effect::Record(Fact::Accepted { job: id, work, node, needs, output, core_us, peak_bytes }));
        }
        tell(id, JobEvent::Accepted { work, node, done, total }, out);
        job.drop_stale_after(work, challenge).into_iter().for_each(|event| tell(id, event, out));
        // Whoever else has the item, in time or overdue, need not go on.
        for epoch in self.leases.of_item(id, work) {
            if let Some(lease) = self.leases.remove(epoch) {
                out.push(Effect::Revoke { node: lease.node, epoch });
            }
        }
        if let Some(Doubt { reporter, reason, .. }) = doubt.filter(|doubt| doubt.reporter != node) {
            self.quarantine(reporter, format!("{work} of job {id}: {reason}; {node} did it correctly"), out);
        }
    }

    /// Whether this node's result may count while the item is in dispute. A lease from before the dispute can still bring a result
    /// of somebody involved, or of anybody where only the referee is to be asked: it is as if it had never come.
    pub(super) fn may_settle(&self, id: JobId, work: Work, node: NodeId) -> bool {
        let Some(job) = self.jobs.get(&id) else { return false };
        let Some(doubt) = job.items.get(&work).and_then(|item| item.doubt.as_ref()) else { return true };
        if self.referee(job).is_some() {
            return node == NodeId::REFEREE;
        }
        let author = job.cause(work).map(|(_, author)| author);
        node != doubt.reporter && Some(node) != author
    }

    /// `node` delivered a wrong `work`, or says it cannot be right: itself or the author of the result before is to blame.
    pub(super) fn contradicted(&mut self, id: JobId, work: Work, node: NodeId, reason: String, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let needs = job.needs(work);
        let Some((parent, author)) = job.cause(work) else {
            self.quarantine(node, format!("{work} of job {id}: {reason}"), out);
            return;
        };
        let known_liar = self.members.is_quarantined(author);
        let Some(item) = job.item_mut(work) else { return };
        let second = item.doubt.as_ref().is_some_and(|doubt| doubt.reporter != node);
        if node == author || author == NodeId::REFEREE {
            self.quarantine(node, format!("{work} of job {id}: {reason}"), out);
        } else if known_liar {
            item.doubt = None;
            let events = job.retract_cause(parent, "its author was quarantined");
            events.into_iter().for_each(|event| tell(id, event, out));
        } else if node == NodeId::REFEREE || second {
            item.doubt = None;
            let events = job.retract_cause(parent, "two others contradict it");
            events.into_iter().for_each(|event| tell(id, event, out));
            self.quarantine(author, format!("{parent} of job {id}: {node} finds at {work}: {reason}"), out);
        } else {
            item.doubt = needs.map(|needs| Doubt { reporter: node, reason: reason.clone(), needs });
            out.push(Effect::Notify { job: id, event: JobEvent::Disputed { work, node, reason } });
        }
    }

    /// A dispute that nobody uninvolved can settle.
    pub(super) fn tie(&mut self, id: JobId, work: Work, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.ties += 1;
        if job.ties > MAX_TIES {
            self.fail(id, JobFailure::Undecidable { work }, out);
            return;
        }
        let (parent, author) = job.cause(work).unzip();
        let Some(Doubt { reporter, .. }) = job.item_mut(work).and_then(|item| item.doubt.take()) else { return };
        let here = |node: &NodeId| self.members.is_here(*node);
        match author.filter(here) {
            // Only the author is left: it runs the item itself, and its own proof will tell.
            Some(_) if !here(&reporter) => self.bench(id, reporter),
            _ => {
                let reason = "it was contradicted and nobody else could decide";
                let events = parent.map(|parent| job.retract_cause(parent, reason)).unwrap_or_default();
                events.into_iter().for_each(|event| tell(id, event, out));
                author.into_iter().for_each(|author| self.bench(id, author));
            }
        }
    }

    /// Sends a node away and takes back everything of its that no other result confirms.
    fn quarantine(&mut self, node: NodeId, reason: String, out: &mut Vec<Effect>) {
        if node == NodeId::REFEREE {
            // Our own engine and our own checker disagree: no node is to blame, and no job can be decided.
            let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
            for id in jobs {
                self.fail(id, JobFailure::Pieces(format!("the coordinator's own engine fails its own check: {reason}")), out);
            }
            return;
        }
        // Remembered even when it has left, so that it cannot come back.
        self.members.quarantine(node);
        out.push(Effect::Record(Fact::Quarantined { node, reason: reason.clone() }));
        self.drop_leases(node, None, out);
        for (id, job) in &mut self.jobs {
            let event = JobEvent::Quarantined { node, reason: reason.clone() };
            out.push(Effect::Notify { job: *id, event });
            job.distrust(node).into_iter().for_each(|event| tell(*id, event, out));
            job.drop_doubts_of(node);
        }
        out.push(Effect::Quarantine { node, reason });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use obelysk_protocol::wire::BlobRef;

    use super::super::job::{self, Job, Record};
    use super::super::types::{Input, Needs, Policy};
    use super::*;

    const ID: JobId = JobId([1; 32]);
    const MODEL: [u8; 32] = [7; 32];
    const POLICY: Policy = Policy { lease_ms: 100, away_grace_ms: 50, wait_deadline_ms: 1000, retry_pause_ms: 1 };
    /// Made everything before what is judged.
    const AUTHOR: NodeId = NodeId(1);
    /// Said that it is wrong.
    const REPORTER: NodeId = NodeId(2);
    /// Made what is judged.
    const THIRD: NodeId = NodeId(3);

    fn result(job: &Job, work: Work, node: NodeId) -> Record {
        Record { node, needs: job.needs(work).expect("ready"), output: BlobRef::of(work.to_string().as_bytes()) }
    }

    fn put(job: &mut Job, work: Work) {
        let record = result(job, work, AUTHOR);
        job.enter_result(work, record);
    }

    fn doubt(job: &mut Job, work: Work, needs: Needs) {
        job.item_entry(work).doubt = Some(Doubt { reporter: REPORTER, reason: "so it says".to_owned(), needs });
    }

    /// A job of one segment, done up to and with this kind.
    fn done_to(last: WorkKind) -> Job {
        let mut job = Job::new(MODEL, BlobRef::of(b"spec"), 1);
        for kind in WorkKind::ALL.into_iter().filter(|kind| *kind <= last) {
            if kind == WorkKind::Prove {
                let commits = job.settled_commits().expect("committed");
                job.set_challenge(Some(job::Challenge { commits, extra: BlobRef::of(b"challenge") }));
            }
            put(&mut job, Work::new(kind, 0));
        }
        job
    }

    fn step(job: &mut Job, bytes: &[u8]) -> Option<u32> {
        job.asked = job.joinable();
        job.join(BlobRef::of(bytes))
    }

    #[test]
    fn a_joint_step_starts_with_nothing_of_the_one_before() {
        let (mut job, work) = (done_to(WorkKind::Open), Work::new(WorkKind::Joint, 0));
        assert_eq!(step(&mut job, b"first"), Some(0));
        let needs = job.needs(work).expect("joined");
        put(&mut job, work);
        doubt(&mut job, work, needs.clone());
        let item = job.item_entry(work);
        item.dead.extend([AUTHOR, THIRD]);
        item.failures.push((THIRD, "out of memory".to_owned()));
        item.not_before_ms = 99;
        assert_eq!(step(&mut job, b"second"), Some(1));
        let item = &job.items[&work];
        assert!(item.open() && item.doubt.is_none() && item.dead.is_empty() && item.failures.is_empty(), "{item:?}");
        assert_eq!(item.not_before_ms, 0);

        // A doubt about the step before is dropped, one about this step stays until the whole is given up.
        doubt(&mut job, work, needs);
        job.drop_void_doubt(work);
        assert!(job.items[&work].doubt.is_none());
        let needs = job.needs(work).expect("joined");
        doubt(&mut job, work, needs);
        job.drop_void_doubt(work);
        assert!(job.items[&work].doubt.is_some());
        job.unjoin("what it opens has changed");
        assert!(job.items[&work].doubt.is_none());
    }

    #[test]
    fn a_lease_of_a_step_that_was_given_up_counts_against_nobody() {
        for given_up in [false, true] {
            let (mut job, work) = (done_to(WorkKind::Open), Work::new(WorkKind::Joint, 0));
            assert_eq!(step(&mut job, b"first"), Some(0));
            let mut state = State::new(POLICY);
            state.jobs.insert(ID, job);
            state.queue.push(ID);
            let models = BTreeSet::from([MODEL]);
            state.apply(1, Input::NodeJoined { node: THIRD, models, cores: 1, held: BTreeSet::new() });
            let [epoch] = state.leases.of_item(ID, work)[..] else { panic!("not leased") };
            if let Some(job) = state.jobs.get_mut(&ID).filter(|_| given_up) {
                job.unjoin("given up");
                assert_eq!(step(job, b"another"), Some(0));
            }
            let effects: Vec<Effect> = [90, 180].into_iter().flat_map(|at| state.apply(at, Input::Tick)).collect();
            assert!(effects.iter().any(|e| matches!(e, Effect::Notify { event: JobEvent::Lost { .. }, .. })), "{effects:?}");
            assert!(!state.leases.live(epoch));
            assert_eq!(state.jobs[&ID].items[&work].dead.is_empty(), given_up);
            assert_eq!(state.audit(), Ok(()));
        }
    }

    /// Who is sent away for the verdict on a proof that was doubted under the same challenge, or under another.
    fn sent_away(same: bool, verdict: Verdict) -> Vec<NodeId> {
        let (mut job, work, epoch) = (done_to(WorkKind::Commit), Work::new(WorkKind::Prove, 0), 9);
        let commits = job.settled_commits().expect("committed");
        job.set_challenge(Some(job::Challenge { commits, extra: BlobRef::of(b"challenge") }));
        let record = result(&job, work, THIRD);
        let needs = record.needs.clone();
        let other = Needs { extra: BlobRef::of(b"another challenge"), ..needs.clone() };
        doubt(&mut job, work, if same { needs } else { other });
        job.item_entry(work).checking = Some(Candidate { epoch, record, core_us: 1, peak_bytes: 1 });
        let mut state = State::new(POLICY);
        state.jobs.insert(ID, job);
        state.queue.push(ID);
        state.checking.insert(epoch, (ID, work));
        for node in [AUTHOR, REPORTER, THIRD] {
            state.apply(1, Input::NodeJoined { node, models: BTreeSet::from([MODEL]), cores: 1, held: BTreeSet::new() });
        }
        let effects = state.apply(2, Input::CheckResult { job: ID, work, epoch, verdict });
        let away = |effect| if let Effect::Quarantine { node, .. } = effect { Some(node) } else { None };
        effects.into_iter().filter_map(away).collect()
    }

    #[test]
    fn a_doubt_about_other_inputs_sends_nobody_away() {
        let dispute = || Verdict::Dispute("it differs".to_owned());
        assert_eq!(sent_away(true, dispute()), [AUTHOR], "two contradict it");
        assert_eq!(sent_away(true, Verdict::Accept), [REPORTER], "a third did it");
        for verdict in [dispute(), Verdict::Accept] {
            assert!(sent_away(false, verdict).is_empty());
        }
    }
}
