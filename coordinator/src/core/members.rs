//! Who is in the cluster, and the inputs that say so: joining, breaking off, draining, leaving, falling silent.

use std::collections::{BTreeMap, BTreeSet};

use obelysk_protocol::wire::MAX_CORES;

use super::job::Job;
use super::leases::Lease;
use super::outcome::{JobEvent, JobFailure};
use super::types::{Effect, JobId, NodeId, Work};
use super::{MAX_ATTEMPTS, MAX_NODE_DEATHS, State};

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
    /// Epochs that it said it holds when it greeted, and has not been heard about since.
    pub(super) held: BTreeSet<u64>,
    /// Counts greetings: what was known of it before may be otherwise.
    pub(super) greeting: u64,
}

impl Member {
    /// Somebody who was put out and is not here: remembered, so that it cannot come back.
    pub(super) const fn absent_and_out() -> Self {
        let models = BTreeSet::new();
        Self { models, cores: 1, presence: Presence::Quarantined, running: None, held: BTreeSet::new(), greeting: 0 }
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

    /// Whether a node said in its greeting that it holds this, asked once for each.
    pub(super) fn take_held(&mut self, node: NodeId, epoch: u64) -> bool {
        self.all.get_mut(&node).is_some_and(|member| member.held.remove(&epoch))
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
        self.note_late();
        self.record_late(out);
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
                // It never came, or was forgotten. Once may be chance; a node that does nothing else must not get it for ever.
                self.shun(&lease);
            }
        }
        // Its device is busy with the latest of what it holds, or soon delivers it. What that is about it says next.
        let earlier = |epoch: &u64| *epoch < self.term_epoch || self.leases.belongs(*epoch, node);
        let running = held.iter().rev().copied().find(earlier);
        let (cores, presence, held) = (cores.clamp(1, MAX_CORES), Presence::Here, held.clone());
        self.members.insert(node, Member { models, cores, presence, running, held, greeting: 0 });
    }

    /// Another process speaks for a node than before: whatever the one before was at may have ended it.
    pub(super) fn restarted(&mut self, node: NodeId, out: &mut Vec<Effect>) {
        const WHY: &str = "its process was started anew";
        for epoch in self.leases.of_node(node) {
            let Some(lease) = self.leases.remove(epoch) else { continue };
            // An expired lease was counted when it expired.
            self.reclaim(&lease, epoch, Some(WHY).filter(|_| !lease.expired), out);
            let Some(item) = self.jobs.get_mut(&lease.job).and_then(|job| job.item_mut(lease.work)) else { continue };
            item.restarts += 1;
            let (work, times) = (lease.work, item.restarts);
            // One machine alone would be started again and again by its supervisor.
            if times >= MAX_ATTEMPTS {
                self.fail(lease.job, JobFailure::Failing { work, times, node, reason: WHY.to_owned() }, out);
            }
        }
    }

    /// A node gives work back, because it is about to be taken away: it gets nothing else until it greets again.
    pub(super) fn returned(&mut self, node: NodeId, epoch: u64, out: &mut Vec<Effect>) {
        self.draining(node);
        // A result at the checker is not taken back; anything else is open again, or goes on under its other lease.
        if self.at_checker(node, epoch) {
            return;
        }
        out.push(Effect::Ack { node, epoch });
        if let Some(lease) = self.settle(node, epoch) {
            self.shun(&lease);
        }
    }

    /// The item of this lease goes to somebody else first, if there is one.
    fn shun(&mut self, lease: &Lease) {
        if let Some(item) = self.jobs.get_mut(&lease.job).and_then(|job| job.item_mut(lease.work)) {
            item.missed.insert(lease.node);
        }
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

#[cfg(test)]
mod tests {
    use obelysk_node::engine::Verdict;
    use obelysk_protocol::wire::BlobRef;

    use super::super::fact::Fact;
    use super::super::types::{Input, Policy};
    use super::*;

    const POLICY: Policy = Policy { lease_ms: 60_000, away_grace_ms: 30_000, wait_deadline_ms: 200_000, retry_pause_ms: 1 };
    const MODEL: [u8; 32] = [7; 32];
    const JOB: JobId = JobId([1; 32]);

    fn joined(node: u32, cores: u32) -> Input {
        Input::NodeJoined { node: NodeId(node), models: BTreeSet::from([MODEL]), cores, held: BTreeSet::new() }
    }

    struct World(State, u64);

    impl World {
        /// So many nodes and one job of one segment; with it who has its first item, under which epoch.
        fn with(nodes: u32) -> (Self, (NodeId, u64)) {
            let mut world = Self(State::new(POLICY), 0);
            (1..=nodes).for_each(|node| drop(world.take(joined(node, 1))));
            let submitted = Input::JobSubmitted { job: JOB, model: MODEL, spec: BlobRef::of(b"spec"), segments: 1 };
            let first = assigned(&world.take(submitted)).expect("given out");
            (world, first)
        }

        fn take(&mut self, input: Input) -> Vec<Effect> {
            self.1 += 10;
            let effects = self.0.apply(self.1, input);
            self.0.audit().expect("kept up to date");
            effects
        }
    }

    fn assigned(effects: &[Effect]) -> Option<(NodeId, u64)> {
        effects.iter().find_map(|effect| match effect {
            Effect::Assign { node, epoch, .. } => Some((*node, *epoch)),
            _ => None,
        })
    }

    fn failure(effects: &[Effect]) -> Option<String> {
        effects.iter().find_map(|effect| match effect {
            Effect::FailJob { failure, .. } => Some(failure.to_string()),
            _ => None,
        })
    }

    /// Each time its supervisor starts the process again long before its grace is over.
    #[test]
    fn an_item_that_ends_processes_is_counted_although_they_come_back_at_once() {
        let (mut world, (mut node, _)) = World::with(4);
        let mut victims = BTreeSet::new();
        loop {
            assert!(victims.insert(node), "{node} got it twice, and others wait");
            let mut effects = world.take(Input::NodeRestarted { node });
            effects.extend(world.take(joined(node.0, 1)));
            let lost = |effect: &Effect| matches!(effect, Effect::Notify { event: JobEvent::Lost { .. }, .. });
            assert!(effects.iter().any(lost), "{effects:?}");
            match assigned(&effects) {
                Some((next, _)) => node = next,
                None => break assert!(failure(&effects).is_some_and(|why| why.contains("took down 3 nodes")), "{effects:?}"),
            }
        }
        assert_eq!(victims.len(), MAX_NODE_DEATHS);
        let (mut alone, (node, _)) = World::with(1);
        let mut again = || {
            let mut effects = alone.take(Input::NodeRestarted { node });
            effects.extend(alone.take(joined(node.0, 1)));
            failure(&effects)
        };
        assert!((1..MAX_ATTEMPTS).all(|_| again().is_none()));
        assert!(again().is_some_and(|why| why.contains("started anew")));
    }

    #[test]
    fn who_gives_back_or_comes_back_without_it_does_not_get_it_again_before_others() {
        let (mut world, (first, _)) = World::with(2);
        let (second, epoch) = assigned(&world.take(joined(first.0, 1))).expect("goes on");
        assert_ne!(first, second, "it came back without the item");
        let returned = world.take(Input::WorkReturned { node: second, epoch });
        let (third, epoch) = assigned(&returned).expect("goes on");
        assert_eq!(third, first, "nobody else is left");
        let returned = world.take(Input::WorkReturned { node: third, epoch });
        assert_eq!(assigned(&returned), None, "both are about to go");
        assert_eq!(assigned(&world.take(joined(second.0, 1))).map(|(node, _)| node), Some(second), "it stays after all");
    }

    #[test]
    fn what_a_node_says_it_spent_is_bounded_by_its_cores_and_its_time() {
        let (mut world, (node, epoch)) = World::with(1);
        world.take(joined(2, u32::MAX));
        let output = BlobRef::of(b"hidden state");
        world.take(Input::WorkDone { node, epoch, output, core_us: u64::MAX, peak_bytes: 1 });
        let work = Work::new(obelysk_node::engine::WorkKind::Forward, 0);
        let effects = world.take(Input::CheckResult { job: JOB, work, epoch, verdict: Verdict::Accept });
        let spent = effects.iter().find_map(|effect| match effect {
            Effect::Record(Fact::Accepted { core_us, .. }) => Some(*core_us),
            _ => None,
        });
        assert!(spent.is_some_and(|us| (1..=50_000).contains(&us)), "{spent:?} of one core in 30 ms");
        assert_eq!(world.0.members.get(NodeId(2)).map(|member| member.cores), Some(MAX_CORES));
    }
}
