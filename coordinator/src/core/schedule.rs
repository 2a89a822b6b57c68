//! Who does what next, critical path first, jobs in turn by their shares. Looks only at what changed: items that came to be ready, and
//! nodes that came to be idle or to have leisure.

use obelysk_node::engine::WorkKind;

use super::State;
use super::agenda::{Entry, Phase};
use super::choose::{Choice, may_leave_home};
use super::job::Job;
use super::leases::Lease;
use super::outcome::{JobEvent, JobFailure};
use super::types::{Effect, JobId, NodeId, Work};

impl State {
    pub(super) fn schedule(&mut self, ticked: bool, out: &mut Vec<Effect>) {
        self.settle_shares();
        self.tidy_fleet();
        self.refresh();
        self.dispatch(out);
        if ticked && self.hedge(out) {
            self.dispatch(out);
        }
        for id in self.queue.clone() {
            self.wait(id, out);
        }
    }

    /// Looks at all that is hot until nothing is.
    fn dispatch(&mut self, out: &mut Vec<Effect>) {
        let mut offer = true;
        loop {
            if std::mem::take(&mut offer) {
                self.offer();
            }
            // One item at a time, to the job that has had least: so equals are served alike, whoever came first.
            let Some(id) = self.next_turn() else { break };
            let Some(work) = self.jobs.get_mut(&id).and_then(|job| job.agenda.pop_hot()) else { continue };
            if self.place(id, work, out) {
                self.refresh();
                offer = true;
            }
        }
        self.jobs.values_mut().for_each(|job| drop(job.agenda.take_woken()));
    }

    /// Brings what is kept of nodes and items up to date with all that was touched.
    pub(super) fn refresh(&mut self) {
        self.seat();
        let now_ms = self.now_ms;
        let restless: Vec<JobId> = self.jobs.iter().filter(|(_, job)| job.is_restless(now_ms)).map(|(id, _)| *id).collect();
        for id in restless {
            self.plan(id);
            self.enter(id);
        }
    }

    fn enter(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        for work in job.take_touched(self.now_ms) {
            if let Some(item) = job.items.get_mut(&work) {
                item.second.take_if(|second| !self.leases.live(*second));
                if item.open() {
                    // The first lease is gone: the second takes its place.
                    item.lease = item.second.take();
                }
            }
            let job = &*job;
            let room = |home: NodeId| self.fleet.has_room(id, job.model, work, home);
            let since = |epoch: u64| Some(self.leases.get(epoch)?.since_ms);
            let Some(entry) = entry(job, work, self.now_ms, &room, &since) else { continue };
            self.entered.push((work, entry));
        }
        job.weighed = false;
        for (work, entry) in self.entered.drain(..) {
            for home in job.agenda.enter(work, entry).into_iter().flatten() {
                let rank = job.agenda.rank(home);
                if job.crew.set_rank(home, rank) && job.crew.is_free(home) {
                    job.agenda.wake(home);
                }
            }
        }
    }

    /// Looks for something to do for every idle node that may have come to find it, and has what is found looked at.
    fn offer(&mut self) {
        let ids: Vec<JobId> = self.jobs.iter_mut().filter_map(|(id, job)| job.agenda.has_woken().then_some(*id)).collect();
        for id in ids {
            let woken = self.jobs.get_mut(&id).map(|job| job.agenda.take_woken()).unwrap_or_default();
            for node in woken {
                let Some(work) = self.something_for(id, node) else { continue };
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.agenda.heat(work);
                    // Asked again: what was found may go to another.
                    job.agenda.wake(node);
                }
            }
        }
        for job in self.jobs.values_mut() {
            let leisure = job.crew.free_from(WorkKind::Commit.code() + 1).any(|mut nodes| nodes.next().is_some());
            job.agenda.heat_hastened(leisure);
        }
    }

    fn something_for(&self, id: JobId, node: NodeId) -> Option<Work> {
        let job = self.jobs.get(&id).filter(|job| job.crew.is_free(node))?;
        let takes = |work: &Work| self.would_take(id, job, *work, node);
        let own = job.agenda.queue_of(node).find(takes);
        let loose = job.agenda.loose().find(takes);
        // Only where it has leisure: of kinds before what is left of its own.
        let other =
            job.agenda.ready_of(WorkKind::Commit, job.crew.rank(node)).filter(|work| may_leave_home(work.kind)).find(takes);
        [own, loose, other].into_iter().flatten().min()
    }

    /// Finds somebody for one item; `true` when something changed.
    fn place(&mut self, id: JobId, work: Work, out: &mut Vec<Effect>) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else { return false };
        job.drop_void_doubt(work);
        let disputed = job.items.get(&work).is_some_and(|item| item.doubt.is_some());
        if !disputed && !job.crew.anybody_free() {
            return false;
        }
        match self.choose(id, work) {
            Choice::Node(node) => self.assign(id, work, node, out),
            Choice::Tie => self.tie(id, work, out),
            Choice::Later | Choice::Nobody => return false,
        }
        true
    }

    fn assign(&mut self, id: JobId, work: Work, node: NodeId, out: &mut Vec<Effect>) {
        let Some(epoch) = self.lease_out(id, work, node, out) else { return };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(item) = job.item_mut(work) else { return };
        item.lease = Some(epoch);
        if node != NodeId::REFEREE && item.doubt.is_none() {
            // What comes next for this segment finds its values where this item left them.
            job.set_home(work.segment, node);
        }
    }

    /// Gives a lease of an item to a node, beside whatever leases it has.
    pub(super) fn lease_out(&mut self, id: JobId, work: Work, node: NodeId, out: &mut Vec<Effect>) -> Option<u64> {
        let (now, epoch) = (self.now_ms, self.next_epoch);
        let job = self.jobs.get_mut(&id)?;
        let needs = job.needs(work)?;
        self.members.get(node)?;
        job.started(work.kind, now);
        job.waiting_since_ms = None;
        self.members.run(node, Some(epoch));
        self.next_epoch += 1;
        let (since_ms, deadline_ms, adopted) = (now, now + self.policy.lease_ms, false);
        let needed = needs.clone();
        let lease = Lease {
            job: id,
            work,
            node,
            needs: needed,
            since_ms,
            adopted,
            deadline_ms,
            permille: 0,
            expired: false,
            late: false,
        };
        self.leases.insert(epoch, lease);
        let (model, spec) = (job.model, job.spec);
        self.shares.charge(id, self.fleet.cost(model, work));
        out.push(Effect::Assign { node, epoch, job: id, model, work, spec, needs });
        Some(epoch)
    }

    /// Keeps account of how long a job has had nobody, and ends it when that was too long.
    fn wait(&mut self, id: JobId, out: &mut Vec<Effect>) {
        let (now, deadline) = (self.now_ms, self.policy.wait_deadline_ms);
        let busy = self.is_busy(id);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if busy {
            job.waiting_since_ms = None;
            return;
        }
        match job.waiting_since_ms {
            None => {
                job.waiting_since_ms = Some(now);
                out.push(Effect::Notify { job: id, event: JobEvent::Waiting { left_ms: deadline } });
            }
            Some(since) if now - since > deadline => self.fail(id, JobFailure::NoNodes { waited_ms: now - since }, out),
            Some(_) => {}
        }
    }

    /// Whether something of a job is under way, or waits for somebody who is only busy.
    fn is_busy(&mut self, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else { return true };
        if job.deriving.is_some() || job.asked.is_some() || job.agenda.is_busy() {
            return true;
        }
        if job.weighed {
            return job.awaits;
        }
        let awaits = job.agenda.ready().any(|work| self.choose(id, work) != Choice::Nobody);
        if let Some(job) = self.jobs.get_mut(&id) {
            (job.weighed, job.awaits) = (true, awaits);
        }
        awaits
    }
}

/// How an item stands.
pub(super) fn entry(
    job: &Job,
    work: Work,
    now_ms: u64,
    room: &dyn Fn(NodeId) -> bool,
    since: &dyn Fn(u64) -> Option<u64>,
) -> Option<Entry> {
    let item = job.items.get(&work)?;
    let (home, disputed) = (job.home(work.segment), item.doubt.is_some());
    let phase = if item.accepted.is_some() {
        Phase::Done
    } else if item.checking.is_some() {
        Phase::Busy
    } else if let Some(first) = item.lease {
        let latest = since(item.second.unwrap_or(first)).filter(|_| !disputed);
        latest.map_or(Phase::Busy, Phase::Runs)
    } else if !job.has_needs(work) {
        Phase::Blocked
    } else if item.not_before_ms > now_ms {
        Phase::Paused(item.not_before_ms)
    } else {
        Phase::Ready
    };
    let elsewhere = || home.is_none_or(|home| !job.crew.usable().contains(&home) || !room(home));
    let loose = phase == Phase::Ready && (disputed || item.was_tried() || elsewhere());
    Some(Entry { phase, home, loose, disputed })
}
