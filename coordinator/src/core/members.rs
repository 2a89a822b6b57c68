//! Who is in the cluster, and the inputs that say so: joining, breaking off, draining, leaving, falling silent.

use std::collections::{BTreeMap, BTreeSet};

use super::job::Job;
use super::leases::Lease;
use super::outcome::{JobEvent, JobFailure};
use super::types::{Effect, JobId, NodeId, Work};
use super::{MAX_NODE_DEATHS, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Here,
    Away { since_ms: u64 },
    Draining,
    Quarantined,
}

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) models: BTreeSet<[u8; 32]>,
    pub(super) cores: u32,
    pub(super) presence: Presence,
    /// Epoch on its device, live or expired: it takes nothing else until it reports.
    pub(super) running: Option<u64>,
    /// Counts greetings: what was known of it before may be otherwise.
    pub(super) greeting: u64,
}

impl Member {
    /// Somebody who was put out and is not here: remembered, so that it cannot come back.
    pub(super) const fn absent_and_out() -> Self {
        Self { models: BTreeSet::new(), cores: 1, presence: Presence::Quarantined, running: None, greeting: 0 }
    }
}

/// Members by number. Whoever may have changed is remembered until asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Members {
    all: BTreeMap<NodeId, Member>,
    /// Those whose connection is broken.
    away: BTreeSet<NodeId>,
    touched: BTreeSet<NodeId>,
    greetings: u64,
}

impl Members {
    pub(super) fn get(&self, node: NodeId) -> Option<&Member> {
        self.all.get(&node)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.all.iter().map(|(node, member)| (*node, member))
    }

    pub(super) fn is_quarantined(&self, node: NodeId) -> bool {
        self.all.get(&node).is_some_and(|m| m.presence == Presence::Quarantined)
    }

    pub(super) fn is_here(&self, node: NodeId) -> bool {
        self.all.get(&node).is_some_and(|m| m.presence == Presence::Here)
    }

    pub(super) fn insert(&mut self, node: NodeId, mut member: Member) {
        self.greetings += 1;
        member.greeting = self.greetings;
        self.touched.insert(node);
        self.away.remove(&node);
        self.all.insert(node, member);
    }

    fn remove(&mut self, node: NodeId) {
        self.touched.insert(node);
        self.away.remove(&node);
        self.all.remove(&node);
    }

    /// Puts a node out, known or not.
    pub(super) fn quarantine(&mut self, node: NodeId) {
        self.away.remove(&node);
        self.touched.insert(node);
        self.all.entry(node).or_insert(Member::absent_and_out()).presence = Presence::Quarantined;
    }

    /// Says what a node has on its device.
    pub(super) fn run(&mut self, node: NodeId, running: Option<u64>) {
        if let Some(member) = self.all.get_mut(&node) {
            member.running = running;
            self.touched.insert(node);
        }
    }

    /// Something else is known about it.
    pub(super) fn touch(&mut self, node: NodeId) {
        self.touched.insert(node);
    }

    fn set(&mut self, node: NodeId, presence: Presence) {
        if let Some(member) = self.all.get_mut(&node) {
            member.presence = presence;
            self.touched.insert(node);
            if matches!(presence, Presence::Away { .. }) {
                self.away.insert(node);
            } else {
                self.away.remove(&node);
            }
        }
    }

    /// Nodes whose connection broke before this and that did not come back.
    fn vanished(&self, before_ms: u64) -> Vec<NodeId> {
        let since = |node: &NodeId| match self.all.get(node).map(|member| member.presence) {
            Some(Presence::Away { since_ms }) => since_ms,
            _ => u64::MAX,
        };
        let late = |node: &&NodeId| since(node) < before_ms;
        self.away.iter().filter(late).copied().collect()
    }

    pub(super) fn take_touched(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.touched)
    }

    /// What is wrong with what is kept beside the table, if anything.
    pub(super) fn audit(&self) -> Result<(), String> {
        let away = self.all.iter().filter(|(_, m)| matches!(m.presence, Presence::Away { .. })).map(|(node, _)| *node);
        if self.away == away.collect() { Ok(()) } else { Err("who is away is not kept up to date".to_owned()) }
    }
}

impl State {
    pub(super) fn tick(&mut self, out: &mut Vec<Effect>) {
        let now = self.now_ms;
        for epoch in self.leases.overdue(now) {
            self.leases.expire(epoch);
            let Some(lease) = self.leases.get(epoch).cloned() else { continue };
            self.reclaim(&lease, epoch, Some("made no progress for a whole lease"), out);
        }
        for node in self.members.vanished(now.saturating_sub(self.policy.away_grace_ms)) {
            self.gone(node, Some("its connection broke and it did not return"), out);
        }
    }

    pub(super) fn joined(
        &mut self,
        node: NodeId,
        models: BTreeSet<[u8; 32]>,
        cores: u32,
        held: &BTreeSet<u64>,
        out: &mut Vec<Effect>,
    ) {
        if self.members.is_quarantined(node) {
            out.push(Effect::Quarantine { node, reason: "it was quarantined before".to_owned() });
            return;
        }
        for epoch in self.leases.of_node(node).into_iter().filter(|epoch| !held.contains(epoch)) {
            if let Some(lease) = self.leases.remove(epoch) {
                self.reclaim(&lease, epoch, None, out);
            }
        }
        // Its device is busy with the latest of what it holds, or soon delivers it. What that is about it says next.
        let earlier = |epoch: &u64| *epoch < self.term_epoch || self.leases.belongs(*epoch, node);
        let running = held.iter().rev().copied().find(earlier);
        self.members.insert(node, Member { models, cores: cores.max(1), presence: Presence::Here, running, greeting: 0 });
    }

    pub(super) fn away(&mut self, node: NodeId) {
        let since_ms = self.now_ms;
        if self.members.get(node).is_some_and(|m| matches!(m.presence, Presence::Here | Presence::Draining)) {
            self.members.set(node, Presence::Away { since_ms });
        }
    }

    pub(super) fn draining(&mut self, node: NodeId) {
        if self.members.is_here(node) {
            self.members.set(node, Presence::Draining);
        }
    }

    /// A node is gone: in good order, or for the reason given, which counts against the item it ran.
    pub(super) fn gone(&mut self, node: NodeId, reason: Option<&str>, out: &mut Vec<Effect>) {
        if self.members.get(node).is_none_or(|m| m.presence == Presence::Quarantined) {
            return;
        }
        self.members.remove(node);
        self.drop_leases(node, reason, out);
    }

    pub(super) fn drop_leases(&mut self, node: NodeId, reason: Option<&str>, out: &mut Vec<Effect>) {
        for epoch in self.leases.of_node(node) {
            if let Some(lease) = self.leases.remove(epoch) {
                // An expired lease was counted when it expired.
                let reason = reason.filter(|_| !lease.expired);
                self.reclaim(&lease, epoch, reason, out);
            }
        }
    }

    /// Frees the item of a lease. A `reason` counts as one node taken down by the item, if the item still is what was leased.
    fn reclaim(&mut self, lease: &Lease, epoch: u64, reason: Option<&str>, out: &mut Vec<Effect>) {
        let (id, work, node) = (lease.job, lease.work, lease.node);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let same = reason.is_some() && job.needs(work).as_ref() == Some(&lease.needs);
        let Some(item) = job.item_mut(work) else { return };
        item.release(epoch);
        let Some(reason) = reason else { return };
        if same {
            item.dead.insert(node);
        }
        let (nodes, who) = (item.dead.len(), item.dead.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        out.push(Effect::Notify { job: id, event: JobEvent::Lost { work, node, reason: reason.to_owned() } });
        if same && nodes >= MAX_NODE_DEATHS {
            self.fail(id, JobFailure::Lethal { work, nodes, who }, out);
        }
    }

    /// The referee, when there is one for this job's model.
    pub(super) fn referee(&self, job: &Job) -> Option<&Member> {
        self.members.get(NodeId::REFEREE).filter(|m| m.models.contains(&job.model))
    }

    /// Whether a result of this node under this epoch is being judged.
    pub(super) fn at_checker(&self, node: NodeId, epoch: u64) -> bool {
        let of = |(id, work): &(JobId, Work)| self.jobs.get(id)?.items.get(work)?.checking.as_ref();
        let candidate = self.checking.get(&epoch).and_then(of);
        candidate.is_some_and(|c| c.epoch == epoch && c.record.node == node)
    }
}
