//! Who does what next: homes in contiguous runs by measured speed, critical path first, stealing only by nodes with nothing of their own,
//! jobs in turn by their shares.

use std::collections::{BTreeMap, BTreeSet};

use obelysk_node::engine::WorkKind;
use obelysk_protocol::wire::BlobRef;

use super::job::{Item, Job};
use super::outcome::{JobEvent, JobFailure};
use super::partition::{Load, Machine, holds, partition};
use super::types::{Effect, JobId, NodeId, Work};
use super::{Lease, Member, Presence, State};

/// Who may take an item now.
enum Choice {
    /// This node, now.
    Node(NodeId),
    /// Somebody who is busy.
    Later,
    /// Nobody here.
    Nobody,
    /// Nobody uninvolved is here to settle a dispute.
    Tie,
}

/// One job while leases are given out.
struct Course {
    id: JobId,
    /// Items that could start now, last first.
    ready: Vec<Work>,
    able: BTreeSet<NodeId>,
    /// Kind of the first item that each node still has to do on segments of its own.
    own: BTreeMap<NodeId, WorkKind>,
    /// Ready items by home.
    queued: BTreeMap<NodeId, u64>,
    /// From this kind on, no idle node is without work of its own.
    settled: Option<WorkKind>,
    challenge: Option<BlobRef>,
    busy: bool,
}

impl State {
    pub(super) fn schedule(&mut self, out: &mut Vec<Effect>) {
        self.settle_hedges(out);
        self.tidy_fleet();
        let turns = self.turns();
        let free = |(node, m): (&NodeId, &Member)| {
            (*node != NodeId::REFEREE && m.presence == Presence::Here && m.running.is_none()).then_some(*node)
        };
        let mut idle: BTreeSet<NodeId> = self.members.iter().filter_map(free).collect();
        let mut courses: Vec<Course> = turns.iter().filter_map(|id| self.course(*id, idle.is_empty())).collect();
        // One item at a time, to the job that has had least: so equals are served alike, whoever came first.
        while let Some(i) =
            (0..courses.len()).filter(|i| !courses[*i].ready.is_empty()).min_by_key(|i| self.shares.had(courses[*i].id))
        {
            let course = &mut courses[i];
            if let Some(work) = course.ready.pop() {
                self.place(course, work, &mut idle, out);
            }
            if idle.is_empty() {
                courses.iter_mut().for_each(|course| self.leave_disputes(course));
            }
        }
        for course in &courses {
            if !idle.is_empty() {
                self.hedge(course.id, &mut idle, out);
            }
            self.wait(course.id, course.busy, out);
        }
    }

    /// What a job could do now. Where everybody is busy, only what needs no idle node is looked at.
    fn course(&mut self, id: JobId, nobody_idle: bool) -> Option<Course> {
        let job = self.jobs.get(&id)?;
        let at_work = |item: &Item| item.checking.is_some() || item.lease.is_some();
        let mut busy = job.deriving.is_some() || job.asked.is_some() || job.items.values().any(at_work);
        let able = self.usable(job);
        self.plan(id, &able);
        let job = self.jobs.get(&id)?;
        let (own, queued) = (BTreeMap::new(), BTreeMap::new());
        let challenge = job.current_challenge();
        let mut course = Course { id, ready: Vec::new(), able, own, queued, settled: None, challenge, busy };
        if nobody_idle && busy && job.items.values().all(|item| item.doubt.is_none()) {
            return Some(course);
        }
        for (work, item) in &job.items {
            let home = job.home.get(&work.segment);
            if let (None, Some(home)) = (&item.accepted, home) {
                course.own.entry(*home).or_insert(work.kind);
            }
            if !item.open() || job.needs_under(*work, challenge).is_none() {
                continue;
            }
            if item.not_before_ms > self.now_ms {
                busy = true;
                continue;
            }
            if let Some(home) = home {
                *course.queued.entry(*home).or_default() += 1;
            }
            course.ready.push(*work);
        }
        course.ready.reverse();
        course.busy = busy;
        Some(course)
    }

    /// When everybody is busy, only what is in dispute can still find somebody: the referee.
    fn leave_disputes(&self, course: &mut Course) {
        let Some(job) = self.jobs.get(&course.id) else { return };
        course.busy |= !course.able.is_empty() && !course.ready.is_empty();
        course.ready.retain(|work| job.items.get(work).is_some_and(|item| item.doubt.is_some()));
    }

    /// Finds somebody for one item.
    fn place(&mut self, course: &mut Course, work: Work, idle: &mut BTreeSet<NodeId>, out: &mut Vec<Effect>) {
        let id = course.id;
        // An earlier item of this pass may have ended the job.
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.drop_void_doubt(work);
        let Some(job) = self.jobs.get(&id) else { return };
        match self.choose(course, job, work, idle) {
            Choice::Node(node) => {
                idle.remove(&node);
                self.assign(id, work, node, course.challenge, out);
                course.own.entry(node).and_modify(|kind| *kind = work.kind.min(*kind)).or_insert(work.kind);
            }
            Choice::Later => {}
            Choice::Nobody => return,
            Choice::Tie => {
                self.tie(id, work, out);
                // What is ready may have lost its inputs with it: looked at again next time.
                course.ready.clear();
            }
        }
        course.busy = true;
    }

    /// Gives every segment without a usable home one. Segments that have one keep it; a new job is placed as the last one of its model
    /// was, where the weights are, unless that costs a quarter of its time.
    fn plan(&mut self, id: JobId, usable: &BTreeSet<NodeId>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let orphans: Vec<u32> = (0..job.segments).filter(|l| job.home.get(l).is_none_or(|node| !usable.contains(node))).collect();
        if orphans.is_empty() || usable.is_empty() {
            return;
        }
        let nodes: Vec<NodeId> = usable.iter().copied().collect();
        let machine = |node: &NodeId| Machine { speed: self.speed(*node), memory: self.fleet.memory(*node) };
        let machines: Vec<Machine> = nodes.iter().map(machine).collect();
        let load = |segment: &u32| {
            let works = WorkKind::ALL.map(|kind| Work::new(kind, *segment));
            let cost = works.iter().map(|work| self.fleet.cost(job.model, *work)).fold(0, u64::saturating_add);
            Load { cost, memory: works.iter().map(|work| self.fleet.needs(id, job.model, *work)).max().unwrap_or(0) }
        };
        let loads: Vec<Load> = orphans.iter().map(load).collect();
        let mut homes = partition(&loads, &machines);
        let before = |segment: &u32| nodes.binary_search(self.fleet.last.get(&(job.model, *segment))?).ok();
        let kept: Vec<Option<usize>> = orphans.iter().map(before).collect();
        let whole = kept.iter().zip(&loads).all(|(home, load)| home.is_some_and(|i| holds(machines[i], *load)));
        if whole && slowest(&loads, &machines, &kept) <= slowest(&loads, &machines, &homes).saturating_mul(5) / 4 {
            homes = kept;
        }
        let homes = orphans.iter().zip(homes).filter_map(|(segment, home)| Some((*segment, *nodes.get(home?)?)));
        let homes: Vec<(u32, NodeId)> = homes.collect();
        if let Some(job) = self.jobs.get_mut(&id) {
            job.home.extend(homes);
        }
    }

    /// Nodes that may work on this job, busy or not. A node whose lease expired is not: it may never come back.
    pub(super) fn usable(&self, job: &Job) -> BTreeSet<NodeId> {
        let all: BTreeSet<NodeId> =
            self.members.iter().filter(|(node, m)| self.works_on(job, **node, m)).map(|(n, _)| *n).collect();
        let trusted: BTreeSet<NodeId> =
            all.iter().filter(|n| !job.benched.contains(n) && !self.fleet.aside(**n, self.now_ms)).copied().collect();
        if trusted.is_empty() { all } else { trusted }
    }

    fn works_on(&self, job: &Job, node: NodeId, m: &Member) -> bool {
        let stuck = || m.running.is_some_and(|epoch| self.leases.get(&epoch).is_none_or(|lease| lease.expired));
        node != NodeId::REFEREE && m.presence == Presence::Here && m.models.contains(&job.model) && !stuck()
    }

    /// Whether a node has the memory for an item.
    fn has_room(&self, id: JobId, job: &Job, work: Work, node: NodeId) -> bool {
        let (there, needed) = (self.fleet.memory(node), self.fleet.needs(id, job.model, work));
        there == 0 || needed <= there
    }

    /// Whether a node may take an item beside another.
    pub(super) fn may(&self, id: JobId, work: Work, node: NodeId) -> bool {
        let Some(job) = self.jobs.get(&id) else { return false };
        self.members.get(&node).is_some_and(|m| self.works_on(job, node, m))
            && !job.benched.contains(&node)
            && !self.fleet.aside(node, self.now_ms)
            && self.has_room(id, job, work, node)
    }

    /// The referee, when there is one for this job's model.
    pub(super) fn referee(&self, job: &Job) -> Option<&Member> {
        self.members.get(&NodeId::REFEREE).filter(|m| m.models.contains(&job.model))
    }

    fn choose(&self, course: &mut Course, job: &Job, work: Work, idle: &BTreeSet<NodeId>) -> Choice {
        let Some(item) = job.items.get(&work) else { return Choice::Nobody };
        let mut involved = BTreeSet::new();
        if let Some(doubt) = &item.doubt {
            if let Some(referee) = self.referee(job) {
                return if referee.running.is_none() { Choice::Node(NodeId::REFEREE) } else { Choice::Later };
            }
            involved.insert(doubt.reporter);
            involved.extend(job.cause(work).map(|(_, author)| author));
            if course.able.is_subset(&involved) {
                return Choice::Tie;
            }
        }
        let fits = |node: &NodeId| !involved.contains(node) && self.has_room(course.id, job, work, *node);
        let failed = |node: &NodeId| item.failures.iter().any(|(who, _)| who == node);
        let untried = course.able.iter().any(|node| fits(node) && !failed(node));
        let able = |node: &NodeId| course.able.contains(node) && fits(node) && !(untried && failed(node));
        if !untried && !course.able.iter().any(fits) {
            return Choice::Nobody;
        }
        let home = job.home.get(&work.segment).filter(|home| able(home));
        if let Some(home) = home {
            if idle.contains(home) {
                return Choice::Node(*home);
            }
            // The forward pass is a chain: its next link gains nothing from a second node. A joint step takes long where the segment's
            // rows are not in memory.
            if matches!(work.kind, WorkKind::Forward | WorkKind::Joint) {
                return Choice::Later;
            }
            if course.settled.is_some_and(|kind| kind <= work.kind) {
                return Choice::Later;
            }
        }
        let leisure = |node: &NodeId| course.own.get(node).is_none_or(|kind| *kind > work.kind);
        // A slow node takes from a fast one only what would wait there for longer than it takes itself.
        let sooner = |node: &NodeId| {
            home.is_none_or(|h| course.queued.get(h).copied().unwrap_or(1).saturating_mul(self.speed(*node)) >= self.speed(*h))
        };
        let thieves = idle.iter().filter(|node| able(node) && (home.is_none() || (leisure(node) && sooner(node))));
        let near = self.fleet.last.get(&(job.model, work.segment));
        let thief = thieves.max_by_key(|node| (near == Some(*node), self.speed(**node), u32::MAX - node.0)).copied();
        if thief.is_none() && !idle.iter().any(leisure) {
            course.settled = Some(work.kind);
        }
        thief.map_or(Choice::Later, Choice::Node)
    }

    pub(super) fn assign(&mut self, id: JobId, work: Work, node: NodeId, challenge: Option<BlobRef>, out: &mut Vec<Effect>) {
        let (now, epoch) = (self.now_ms, self.next_epoch);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (Some(needs), Some(member)) = (job.needs_under(work, challenge), self.members.get_mut(&node)) else { return };
        let Some(item) = job.items.get_mut(&work) else { return };
        item.lease = Some(epoch);
        if node != NodeId::REFEREE && item.doubt.is_none() {
            // What comes next for this segment finds its values where this item left them.
            job.home.insert(work.segment, node);
        }
        job.started(work.kind, now);
        job.waiting_since_ms = None;
        member.running = Some(epoch);
        self.next_epoch += 1;
        let deadline_ms = now + self.policy.lease_ms;
        let lease = Lease { job: id, work, node, needs: needs.clone(), deadline_ms, permille: 0, expired: false };
        self.leases.insert(epoch, lease);
        self.fleet.lease_started(epoch, now);
        let (model, spec) = (job.model, job.spec);
        self.shares.charge(id, self.fleet.cost(model, work));
        out.push(Effect::Assign { node, epoch, job: id, model, work, spec, needs });
    }

    /// Keeps account of how long a job has had nobody, and ends it when that was too long.
    fn wait(&mut self, id: JobId, busy: bool, out: &mut Vec<Effect>) {
        let (now, deadline) = (self.now_ms, self.policy.wait_deadline_ms);
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
}

/// When the last machine is done, in units that mean something only beside one another.
fn slowest(loads: &[Load], machines: &[Machine], homes: &[Option<usize>]) -> u128 {
    let mut sums = vec![0_u128; machines.len()];
    for (load, home) in loads.iter().zip(homes) {
        if let Some(sum) = home.and_then(|i| sums.get_mut(i)) {
            *sum += u128::from(load.cost) << 20;
        }
    }
    sums.iter().zip(machines).map(|(sum, machine)| sum / u128::from(machine.speed.max(1))).max().unwrap_or(0)
}
