//! Who could work, kept up to date as members, leases and speeds change, instead of being looked for: for the cluster as seats, for
//! each job as a crew with its idle nodes in the order in which they would be asked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use obelysk_node::engine::WorkKind;

use super::State;
use super::job::Job;
use super::members::Presence;
use super::types::{JobId, NodeId, Work};

/// Rank of a node with nothing of its own left to do.
pub(super) const NOTHING: u8 = u8::MAX;

/// What steers the choice of a node, as last looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seat {
    /// It is here and not stuck with a lease that ran out: such a node may never come back.
    pub(super) works: bool,
    pub(super) idle: bool,
    /// It keeps failing, or is long overdue with what it runs: others are asked before it, and what is its own gets another home.
    aside: bool,
    pub(super) speed: u64,
    memory: u64,
    greeting: u64,
}

/// Nodes that may work on one job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Crew {
    /// All that have the model.
    all: BTreeSet<NodeId>,
    /// Those of them that are neither benched nor set aside.
    trusted: BTreeSet<NodeId>,
    /// Idle ones of all, with their speed.
    idle: BTreeMap<NodeId, u64>,
    /// Idle ones of the usable: by the rank of their own work, fastest first.
    free: BTreeSet<(u8, Reverse<u64>, NodeId)>,
    /// Ranks of own work, where there is any.
    ranks: BTreeMap<NodeId, u8>,
}

/// What a change of a crew brings about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// Others are usable than before, and not only this one.
    pub(super) all: bool,
    /// This one came to be usable, or is no more.
    pub(super) usable: bool,
}

impl Crew {
    /// Nodes that may work, busy or not: when none is trusted, all.
    pub(super) fn usable(&self) -> &BTreeSet<NodeId> {
        if self.trusted.is_empty() { &self.all } else { &self.trusted }
    }

    pub(super) fn trusts(&self, node: NodeId) -> bool {
        self.trusted.contains(&node)
    }

    /// Whether a usable node is idle.
    pub(super) fn is_free(&self, node: NodeId) -> bool {
        self.idle.contains_key(&node) && self.usable().contains(&node)
    }

    pub(super) fn anybody_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Rank of the first item that a node still has to do on segments of its own.
    pub(super) fn rank(&self, node: NodeId) -> u8 {
        self.ranks.get(&node).copied().unwrap_or(NOTHING)
    }

    /// Idle usable nodes whose own work has this rank or a higher one, each rank by itself, fastest first.
    pub(super) fn free_from(&self, rank: u8) -> impl Iterator<Item = impl Iterator<Item = (u64, NodeId)>> {
        let ranks = (rank..=WorkKind::Joint.code()).chain([NOTHING]);
        let least = (Reverse(u64::MAX), NodeId(0));
        let most = (Reverse(0), NodeId(u32::MAX));
        ranks.map(move |rank| {
            let range = self.free.range((rank, least.0, least.1)..=(rank, most.0, most.1));
            range.map(|(_, Reverse(speed), node)| (*speed, *node))
        })
    }

    /// Idle usable nodes, fastest first.
    pub(super) fn fastest(&self) -> BTreeSet<(Reverse<u64>, NodeId)> {
        self.free.iter().map(|(_, speed, node)| (*speed, *node)).collect()
    }

    /// Speed of the fastest idle usable node.
    pub(super) fn top_speed(&self) -> Option<u64> {
        self.free_from(0).filter_map(|mut nodes| nodes.next()).map(|(speed, _)| speed).max()
    }

    fn unlist(&mut self, node: NodeId) {
        if let Some(speed) = self.idle.get(&node) {
            self.free.remove(&(self.rank(node), Reverse(*speed), node));
        }
    }

    fn list(&mut self, node: NodeId) {
        if let Some(speed) = self.idle.get(&node).filter(|_| self.usable().contains(&node)) {
            self.free.insert((self.rank(node), Reverse(*speed), node));
        }
    }

    /// Sets the rank of a node's own work; whether it rose, so that there is more that it may take.
    pub(super) fn set_rank(&mut self, node: NodeId, rank: u8) -> bool {
        let before = self.rank(node);
        if before == rank {
            return false;
        }
        self.unlist(node);
        if rank == NOTHING {
            self.ranks.remove(&node);
        } else {
            self.ranks.insert(node, rank);
        }
        self.list(node);
        rank > before
    }

    /// Enters a node as it is now.
    fn set(&mut self, node: NodeId, all: bool, trusted: bool, idle: Option<u64>) -> Turn {
        let (was, alone) = (self.usable().contains(&node), self.trusted.is_empty());
        self.unlist(node);
        put(&mut self.all, node, all);
        put(&mut self.trusted, node, trusted && all);
        match idle.filter(|_| all) {
            Some(speed) => self.idle.insert(node, speed),
            None => self.idle.remove(&node),
        };
        let turned = self.trusted.is_empty() != alone;
        if turned {
            let usable = self.usable();
            let listed = self.idle.iter().filter(|(node, _)| usable.contains(node));
            let free = listed.map(|(node, speed)| (self.rank(*node), Reverse(*speed), *node)).collect();
            self.free = free;
        } else {
            self.list(node);
        }
        Turn { all: turned, usable: self.usable().contains(&node) != was }
    }
}

fn put(set: &mut BTreeSet<NodeId>, node: NodeId, there: bool) {
    if there {
        set.insert(node);
    } else {
        set.remove(&node);
    }
}

impl State {
    /// Brings seats and crews up to date with all that was touched.
    pub(super) fn seat(&mut self) {
        let mut touched = self.members.take_touched();
        touched.append(&mut self.leases.take_touched());
        touched.extend(self.fleet.no_longer_aside(self.now_ms));
        for node in touched {
            self.seat_one(node);
        }
    }

    fn seat_one(&mut self, node: NodeId) {
        if node == NodeId::REFEREE {
            // It decides disputes and does nothing else.
            self.jobs.values_mut().for_each(|job| job.agenda.heat_disputes());
            return;
        }
        let seat = self.seat_of(node);
        let before = self.seats.get(&node).copied().unwrap_or_default();
        if seat == before {
            return;
        }
        if seat.works {
            self.seats.insert(node, seat);
        } else {
            self.seats.remove(&node);
        }
        let moved = (seat.speed, seat.memory, seat.greeting) != (before.speed, before.memory, before.greeting);
        let models = self.members.get(node).map(|member| &member.models);
        for job in self.jobs.values_mut() {
            let here = seat.works && models.is_some_and(|models| models.contains(&job.model));
            if here || job.crew.all.contains(&node) {
                job.seat(node, seat, (here, moved));
            }
        }
    }

    pub(super) fn seat_of(&self, node: NodeId) -> Seat {
        let Some(member) = self.members.get(node).filter(|m| m.presence == Presence::Here && node != NodeId::REFEREE) else {
            return Seat::default();
        };
        if !member.running.is_none_or(|epoch| self.leases.live(epoch)) {
            return Seat::default();
        }
        Seat {
            works: true,
            idle: member.running.is_none(),
            aside: self.fleet.aside(node, self.now_ms) || self.is_late(node),
            speed: self.speed(node),
            memory: self.fleet.memory(node),
            greeting: member.greeting,
        }
    }

    /// Gives a job that came just now its crew.
    pub(super) fn man(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        for (node, seat) in &self.seats {
            let here = self.members.get(*node).is_some_and(|member| member.models.contains(&job.model));
            if here {
                job.seat(*node, *seat, (true, false));
            }
        }
    }

    /// Sets a node aside for one job.
    pub(super) fn bench(&mut self, id: JobId, node: NodeId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.benched.insert(node);
        if let Some(seat) = self.seats.get(&node) {
            let here = job.crew.all.contains(&node);
            job.seat(node, *seat, (here, false));
        }
    }

    /// Whether a node has the memory for an item.
    pub(super) fn has_room(&self, id: JobId, job: &Job, work: Work, node: NodeId) -> bool {
        self.fleet.has_room(id, job.model, work, node)
    }

    /// What is wrong with seats and crews, if anything.
    pub(super) fn audit_crews(&self) -> Result<(), String> {
        let seats: BTreeMap<NodeId, Seat> =
            self.members.iter().map(|(node, _)| (node, self.seat_of(node))).filter(|(_, s)| s.works).collect();
        if seats != self.seats {
            return Err(format!("seats are {:?} and should be {seats:?}", self.seats));
        }
        for (id, job) in &self.jobs {
            let mut crew = Crew { ranks: job.own_ranks(), ..Crew::default() };
            for (node, seat) in &seats {
                let all = self.members.get(*node).is_some_and(|member| member.models.contains(&job.model));
                put(&mut crew.all, *node, all);
                put(&mut crew.trusted, *node, all && !seat.aside && !job.benched.contains(node));
                if all && seat.idle {
                    crew.idle.insert(*node, seat.speed);
                }
            }
            crew.idle.clone().into_keys().for_each(|node| crew.list(node));
            if crew != job.crew {
                return Err(format!("the crew of job {id} is {:?} and should be {crew:?}", job.crew));
            }
        }
        Ok(())
    }
}

impl Job {
    /// Enters a node in this job's crew, and what that changes for its items.
    fn seat(&mut self, node: NodeId, seat: Seat, (here, moved): (bool, bool)) {
        let trusted = !seat.aside && !self.benched.contains(&node);
        let turn = self.crew.set(node, here, trusted, seat.idle.then_some(seat.speed));
        if turn.all {
            self.unplaced = true;
            self.agenda.heat_all();
        } else if turn.usable || moved {
            // Who was left without a home may find one; whose home went has none. Who failed may be all there is.
            self.unplaced |= self.agenda.waits_for(node) || self.homeless;
            self.agenda.heat_loose();
        }
        if turn.all {
            self.touch_all();
        } else if turn.usable || moved {
            let own: Vec<Work> = self.agenda.own(node).collect();
            own.into_iter().for_each(|work| self.touch(work));
        }
        if turn.usable || turn.all || moved {
            self.weighed = false;
        }
        if moved {
            self.agenda.hasten(node);
        }
        if self.crew.is_free(node) {
            self.agenda.wake(node);
        }
        if turn.all {
            self.crew.free.iter().for_each(|(.., node)| self.agenda.wake(*node));
        }
    }
}
