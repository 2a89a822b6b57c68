//! What of speeds, costs and priorities outlives a leader: recorded at a bounded rate, and taken over by the next. None of it says what is
//! right; without it the next leader would learn it again.

use obelysk_node::engine::WorkKind;

use super::State;
use super::fact::{Fact, Learned};
use super::fleet::{CORE, Cost, MAX_COSTS, MOST_CORE_US};
use super::shares::DEFAULT_PRIORITY;
use super::types::{Effect, JobId, NodeId, Work};
use crate::ledger::{Ledger, Roster};

/// What was learned of a model is recorded at the end of a job, and not more often than this.
const LEARNED_EVERY_MS: u64 = 600_000;
/// A machine is recorded again when it is by more than this part of its speed another: calibrations of one machine differ by less.
const SPEED_PARTS: u64 = 8;

impl State {
    pub(super) fn measured(&mut self, node: NodeId, core_us: Option<[u64; 4]>, memory_bytes: u64, out: &mut Vec<Effect>) {
        self.fleet.measured(node, core_us, memory_bytes);
        self.members.touch(node);
        self.record_machine(node, out);
    }

    /// Records what is known of a machine, if that is another than what was recorded.
    fn record_machine(&mut self, node: NodeId, out: &mut Vec<Effect>) {
        let Some(machine) = self.fleet.machines.get_mut(&node).filter(|machine| machine.trial_us > 0) else { return };
        let memory_bytes = machine.memory_bytes;
        let (trial_us, before) = (machine.trial_us, machine.recorded.0);
        let other = trial_us.abs_diff(before) > before / SPEED_PARTS || machine.recorded.1 != memory_bytes;
        if other && self.fleet.paces.0.now(node, self.now_ms) {
            machine.recorded = (trial_us, memory_bytes);
            out.push(Effect::Record(Fact::Measured { node, trial_us, memory_bytes }));
        }
    }

    pub(super) fn sized(&mut self, job: JobId, priority: u8, peak_bytes: Vec<u64>, out: &mut Vec<Effect>) {
        let before = (self.shares.priority(job), self.fleet.sizes.get(&job).cloned());
        self.shares.prioritise(job, priority);
        self.fleet.sized(job, peak_bytes);
        let Some(open) = self.jobs.get_mut(&job) else { return };
        open.touch_all();
        // A client that comes back says it again.
        if before != (self.shares.priority(job), self.fleet.sizes.get(&job).cloned()) {
            self.record_size(job, out);
        }
    }

    /// Records what changed of machines and jobs and was not recorded because it changed a moment before.
    pub(super) fn record_late(&mut self, out: &mut Vec<Effect>) {
        for node in self.fleet.paces.0.due(self.now_ms) {
            self.record_machine(node, out);
        }
        for job in self.fleet.paces.1.due(self.now_ms) {
            self.record_size(job, out);
        }
    }

    /// Records what is known of a job that is in progress, if anything is.
    pub(super) fn record_size(&mut self, job: JobId, out: &mut Vec<Effect>) {
        let priority = self.shares.priority(job);
        let Some(segments) = self.jobs.get(&job).map(|job| job.segments as usize) else { return };
        let mut peak_bytes = self.fleet.sizes.get(&job).cloned().unwrap_or_default();
        peak_bytes.truncate(segments);
        let said = priority != DEFAULT_PRIORITY || !peak_bytes.is_empty();
        if said && self.fleet.paces.1.now(job, self.now_ms) {
            out.push(Effect::Record(Fact::Sized { job, priority, peak_bytes }));
        }
    }

    /// Records what was learned of a model, if that was not done lately.
    pub(super) fn record_learned(&mut self, model: [u8; 32], out: &mut Vec<Effect>) {
        let now = self.now_ms;
        if self.fleet.recorded_ms.get(&model).is_some_and(|at| now < at + LEARNED_EVERY_MS) {
            return;
        }
        // Jobs are of few models at a time; those of long ago may be recorded early.
        self.fleet.recorded_ms.retain(|_, at| now < *at + LEARNED_EVERY_MS);
        let costs = self.fleet.costs.range((model, Work::FIRST)..=(model, Work::LAST));
        // The least memory seen may have been that of a small job: it says nothing about those of the next leader.
        let costs: Vec<(Work, u64, u64)> = costs.map(|((_, work), cost)| (*work, cost.core_us, 0)).collect();
        let quartile = |kind: WorkKind| Some((kind, self.fleet.quartile(model, kind)?));
        let quartiles = WorkKind::EVERY.into_iter().filter_map(quartile).collect();
        if !costs.is_empty() {
            self.fleet.recorded_ms.insert(model, now);
            out.push(Effect::Record(Fact::Learned { model, learned: Learned { costs, quartiles } }));
        }
    }

    /// Takes over what earlier leaders learned.
    pub(super) fn remember(&mut self, ledger: &Ledger, roster: &Roster) {
        for (key, trial_us, memory_bytes) in ledger.machines() {
            let Some(node) = roster.number(key) else { continue };
            let machine = self.fleet.machines.entry(node).or_default();
            (machine.trial_us, machine.memory_bytes, machine.recorded) = (trial_us, memory_bytes, (trial_us, memory_bytes));
        }
        for (model, learned) in ledger.learned() {
            for &(work, core_us, _) in &learned.costs {
                self.know(model, work, Cost { core_us: core_us.clamp(1, MOST_CORE_US), peak_bytes: 0 });
            }
            self.fleet.quartiles.extend(learned.quartiles.iter().map(|(kind, ms)| ((model, *kind), *ms)));
        }
        for (id, open) in ledger.open_jobs() {
            if let Some((priority, peak_bytes)) = &open.sized {
                self.shares.prioritise(id, *priority);
                self.fleet.sized(id, peak_bytes.clone());
            }
            for (work, piece) in &open.accepted {
                let Some(node) = roster.number(piece.node) else { continue };
                let core_us = piece.core_us.min(MOST_CORE_US).saturating_mul(self.fleet.core_speed(node)) / CORE;
                self.know(open.model, *work, Cost { core_us: core_us.max(1), peak_bytes: piece.peak_bytes });
                self.fleet.last.insert((open.model, work.segment), node);
            }
        }
    }

    fn know(&mut self, model: [u8; 32], work: Work, cost: Cost) {
        if self.fleet.costs.len() < MAX_COSTS && !self.fleet.costs.contains_key(&(model, work)) {
            self.fleet.set_cost((model, work), cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use obelysk_node::engine::Verdict;
    use obelysk_node::identity::Id;
    use obelysk_protocol::wire::BlobRef;

    use super::super::types::{Input, Policy};
    use super::*;
    use crate::consensus::Machine as _;
    use crate::ledger::Entry;

    const POLICY: Policy = Policy { lease_ms: 1000, away_grace_ms: 500, wait_deadline_ms: 10_000, retry_pause_ms: 1 };
    const MODEL: [u8; 32] = [7; 32];
    const FIRST: JobId = JobId([1; 32]);
    const SECOND: JobId = JobId([2; 32]);

    struct World {
        state: State,
        ledger: Ledger,
        roster: Roster,
        facts: usize,
        now: u64,
    }

    impl World {
        /// Does all that a cluster of one diligent node does until nothing is to be done.
        fn feed(&mut self, input: Input) {
            let mut inputs = vec![input];
            while let Some(input) = inputs.pop() {
                self.now += 10;
                for effect in self.state.apply(self.now, input) {
                    inputs.extend(self.carry_out(effect));
                }
            }
        }

        fn carry_out(&mut self, effect: Effect) -> Option<Input> {
            match effect {
                Effect::Record(fact) => {
                    self.facts += usize::from(matches!(fact, Fact::Learned { .. } | Fact::Measured { .. } | Fact::Sized { .. }));
                    let entry = Entry::of(&fact, &self.roster, 1).expect("about a known node");
                    self.ledger.apply(0, &entry.encode());
                    None
                }
                Effect::Assign { node, epoch, work, .. } if work.kind != WorkKind::Open || work.segment == 0 => {
                    let output = BlobRef::of(work.to_string().as_bytes());
                    Some(Input::WorkDone { node, epoch, output, core_us: 4000 + u64::from(work.segment), peak_bytes: 77 })
                }
                Effect::Check { job, work, epoch, .. } => Some(Input::CheckResult { job, work, epoch, verdict: Verdict::Accept }),
                Effect::DeriveChallenge { job, commits, .. } => {
                    Some(Input::ChallengeDerived { job, commits, result: Ok(BlobRef::of(b"challenge")) })
                }
                Effect::Finish { job, .. } => Some(Input::Finished { job, result: Ok(BlobRef::of(b"proof")) }),
                _ => None,
            }
        }
    }

    fn submitted(job: JobId, segments: u32) -> Input {
        Input::JobSubmitted { job, model: MODEL, spec: BlobRef::of(b"spec"), segments }
    }

    #[test]
    fn the_next_leader_knows_speeds_costs_and_priorities() {
        let mut roster = Roster::of(&Ledger::default());
        let node = roster.meet(Id([3; 32])).expect("room");
        let mut world = World { state: State::new(POLICY), ledger: Ledger::default(), roster, facts: 0, now: 0 };
        world.feed(Input::NodeMeasured { node, core_us: Some([100_000; 4]), memory_bytes: 1 << 30 });
        world.feed(Input::NodeMeasured { node, core_us: Some([101_000; 4]), memory_bytes: 1 << 30 });
        let models = BTreeSet::from([MODEL]);
        world.feed(Input::NodeJoined { node, models, cores: 2, held: BTreeSet::new() });
        world.feed(submitted(FIRST, 1));
        assert_eq!(world.state.jobs(), 0, "one job is done");
        assert_eq!(world.facts, 2, "the machine once, the model once");
        world.feed(Input::JobSized { job: SECOND, priority: 8, peak_bytes: vec![5, 6] });
        world.feed(submitted(SECOND, 2));
        world.feed(Input::JobSized { job: SECOND, priority: 8, peak_bytes: vec![5, 6] });
        assert_eq!(world.facts, 3, "said again, recorded once");

        let mut copy = Ledger::default();
        copy.restore(&world.ledger.snapshot()).expect("whole");
        assert_eq!(copy, world.ledger);
        let roster = Roster::of(&copy);
        let node = roster.number(Id([3; 32])).expect("named");
        let mut next = State::restore(POLICY, &copy, &roster, 2);
        assert_eq!((next.fleet.core_speed(node), next.fleet.memory(node)), (CORE / 2, 1 << 30));
        assert_eq!(next.shares.priority(SECOND), 8);
        assert_eq!(next.fleet.needs(SECOND, MODEL, Work::new(WorkKind::Open, 1)), 6);
        let commit = |segment| Work::new(WorkKind::Commit, segment);
        assert_eq!(next.fleet.cost(MODEL, commit(0)), world.state.fleet.cost(MODEL, commit(0)));
        assert_eq!(next.fleet.cost(MODEL, commit(1)), 4001 / 2, "of a result that stands, at half the reference's speed");
        assert_eq!(next.fleet.needs(SECOND, MODEL, commit(0)), 5);
        let unsaid = next.fleet.needs(JobId([9; 32]), MODEL, Work::new(WorkKind::Prove, 0));
        assert_eq!(unsaid, 0, "what was enough for a small job is not handed on");
        // Who comes back with work is not calibrated.
        let back = next.apply(1, Input::NodeMeasured { node, core_us: None, memory_bytes: 1 << 30 });
        assert_eq!(next.fleet.core_speed(node), CORE / 2);
        assert!(!back.iter().any(|effect| matches!(effect, Effect::Record(_))), "{back:?}");
    }

    #[test]
    fn who_says_another_thing_each_moment_is_recorded_once_a_minute_and_last_with_the_latest() {
        let mut roster = Roster::of(&Ledger::default());
        let node = roster.meet(Id([3; 32])).expect("room");
        // Nobody comes to do the job.
        let policy = Policy { wait_deadline_ms: 1_000_000, ..POLICY };
        let mut world = World { state: State::new(policy), ledger: Ledger::default(), roster, facts: 0, now: 0 };
        world.feed(submitted(FIRST, 2));
        for n in 1..=100 {
            world.feed(Input::NodeMeasured { node, core_us: Some([100_000; 4]), memory_bytes: n });
            world.feed(Input::JobSized { job: FIRST, priority: (n % 5) as u8, peak_bytes: vec![n] });
        }
        assert_eq!(world.facts, 2, "each once");
        for _ in 0..600 {
            world.now += 100;
            world.feed(Input::Tick);
        }
        assert_eq!(world.facts, 4, "and the latest");
        assert_eq!(world.ledger.machines().map(|(.., memory)| memory).collect::<Vec<_>>(), [100]);
        let (_, open) = world.ledger.open_jobs().next().expect("open");
        assert_eq!(open.sized, Some((0, vec![100])));
    }
}
