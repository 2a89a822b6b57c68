//! What is known of how fast the machines are and how much memory they have, of what work costs, and of who fails. Learned from
//! calibration and accepted results; it steers who does what and never what is right.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use obelysk_node::engine::{Verdict, WorkKind};
use obelysk_protocol::wire::MAX_CORES;

use super::State;
use super::pace::Pace;
use super::types::{Input, JobId, NodeId, Work};

/// Machines, and costs of work, remembered: more than any cluster has, and 1,000 models of 16 segments.
const MAX_MACHINES: usize = 10_000;
pub(super) const MAX_COSTS: usize = 65_536;
/// Durations of a kind of work looked at: recent ones, so that a change shows.
const MAX_DURATIONS: usize = 64;
/// Fewer durations than this say nothing about stragglers.
const MIN_DURATIONS: usize = 4;
/// Speed of one core on which calibration takes [`REFERENCE_US`].
pub(super) const CORE: u64 = 1024;
/// Core-microseconds of calibration on the machine that speeds are relative to.
const REFERENCE_US: u64 = 200_000;
/// Core-microseconds that no item takes: a month of a hundred cores. What an earlier leader recorded is believed up to that.
pub(super) const MOST_CORE_US: u64 = 100 * 30 * 86_400 * 1_000_000;
/// Failures of one node within [`FAULT_WINDOW_MS`] before it is set aside: a job forgives twelve, so one bad machine does not end one.
pub const MAX_FAULTS: usize = 6;
/// How long a failure counts.
pub const FAULT_WINDOW_MS: u64 = 3_600_000;
/// First and longest time that a node is set aside; each time doubles.
const ASIDE_FIRST_MS: u64 = 30_000;
const ASIDE_MOST_MS: u64 = 3_600_000;

/// Work of one segment, by model.
type CostKey = ([u8; 32], Work);

/// Speeds, memory, costs, failures.
#[derive(Debug, Clone, Default)]
pub(super) struct Fleet {
    pub(super) machines: BTreeMap<NodeId, Machine>,
    pub(super) costs: BTreeMap<CostKey, Cost>,
    /// Reference milliseconds that items of a kind took, latest last.
    durations: BTreeMap<([u8; 32], WorkKind), VecDeque<u64>>,
    /// Third quartiles of those.
    pub(super) quartiles: BTreeMap<([u8; 32], WorkKind), u64>,
    /// How many costs of a kind are known, and their sum.
    sums: BTreeMap<([u8; 32], WorkKind), (u64, u128)>,
    /// Who is set aside, by the end of that.
    asides: BTreeSet<(u64, NodeId)>,
    /// What results at the checker took, by epoch.
    reported: BTreeMap<u64, Sample>,
    /// Who worked last on a segment: its weights are there.
    pub(super) last: BTreeMap<([u8; 32], u32), NodeId>,
    /// Memory that segments of a job need at most, as the model's sizes say.
    pub(super) sizes: BTreeMap<JobId, Vec<u64>>,
    /// When what was learned of a model was last recorded.
    pub(super) recorded_ms: BTreeMap<[u8; 32], u64>,
    /// When machines and sizes of jobs were last recorded.
    pub(super) paces: (Pace<NodeId>, Pace<JobId>),
    /// The job that was sized last: it may not have come yet.
    announced: Option<JobId>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    /// Core-microseconds for the job of calibration, all kinds together; 0: not calibrated.
    pub(super) trial_us: u64,
    pub(super) memory_bytes: u64,
    /// Both, as last recorded.
    pub(super) recorded: (u64, u64),
    /// Times of failures, latest last.
    faults: VecDeque<u64>,
    aside_until_ms: u64,
    aside_ms: u64,
}

/// What an item costs: moving average in reference core-microseconds, and the least peak memory seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) core_us: u64,
    pub(super) peak_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    key: CostKey,
    node: NodeId,
    core_us: u64,
    peak_bytes: u64,
    wall_ms: u64,
}

impl Fleet {
    pub(super) fn measured(&mut self, node: NodeId, core_us: Option<[u64; 4]>, memory_bytes: u64) {
        if self.machines.len() >= MAX_MACHINES && !self.machines.contains_key(&node) {
            return;
        }
        let machine = self.machines.entry(node).or_default();
        // Who comes back with work is not calibrated again: it is as fast as it was.
        if let Some(spent) = core_us {
            machine.trial_us = spent.into_iter().fold(0, u64::saturating_add).max(1);
        }
        machine.memory_bytes = memory_bytes;
    }

    pub(super) fn sized(&mut self, job: JobId, peak_bytes: Vec<u64>) {
        self.announced = Some(job);
        self.sizes.insert(job, peak_bytes);
    }

    /// Speed of one of its cores, [`CORE`] for the reference; between 1/64 and 64 times that whatever it claims.
    pub(super) fn core_speed(&self, node: NodeId) -> u64 {
        match self.machines.get(&node).map_or(0, |m| m.trial_us) {
            0 => CORE,
            spent => (REFERENCE_US * CORE / spent).clamp(CORE / 64, CORE * 64),
        }
    }

    /// Speed of a machine with so many cores.
    pub(super) fn speed(&self, node: NodeId, cores: u32) -> u64 {
        self.core_speed(node) * u64::from(cores.clamp(1, MAX_CORES))
    }

    pub(super) fn memory(&self, node: NodeId) -> u64 {
        self.machines.get(&node).map_or(0, |m| m.memory_bytes)
    }

    /// Reference core-microseconds of an item: as measured, else the mean of its kind, else 1: all alike.
    pub(super) fn cost(&self, model: [u8; 32], work: Work) -> u64 {
        match self.costs.get(&(model, work)) {
            Some(cost) => cost.core_us,
            None => self.mean(model, work.kind).unwrap_or(1),
        }
    }

    /// Mean cost of a kind of work on a model, over its segments seen.
    pub(super) fn mean(&self, model: [u8; 32], kind: WorkKind) -> Option<u64> {
        let (count, sum) = self.sums.get(&(model, kind))?;
        u64::try_from(sum.checked_div(u128::from(*count))?).ok()
    }

    /// Memory an item needs: what this job's sizes say; where they say nothing, the least that was seen, which may have been of a smaller
    /// job; 0 when nothing is known.
    pub(super) fn needs(&self, job: JobId, model: [u8; 32], work: Work) -> u64 {
        let said = self.sizes.get(&job).and_then(|sizes| sizes.get(work.segment as usize)).copied().unwrap_or(0);
        let seen = self.costs.get(&(model, work)).map_or(0, |cost| cost.peak_bytes);
        if said == 0 { seen } else { said }
    }

    /// Third quartile of the reference milliseconds that this kind of work took; `None` while too little is known.
    pub(super) fn quartile(&self, model: [u8; 32], kind: WorkKind) -> Option<u64> {
        self.quartiles.get(&(model, kind)).copied()
    }

    /// Whether a node has the memory for an item, as far as both are known.
    pub(super) fn has_room(&self, job: JobId, model: [u8; 32], work: Work, node: NodeId) -> bool {
        let there = self.memory(node);
        there == 0 || self.needs(job, model, work) <= there
    }

    /// Nodes that were set aside until now.
    pub(super) fn no_longer_aside(&mut self, now_ms: u64) -> Vec<NodeId> {
        let mut back = Vec::new();
        while let Some((_, node)) = self.asides.first().copied().filter(|(until_ms, _)| *until_ms <= now_ms) {
            self.asides.pop_first();
            back.push(node);
        }
        back
    }

    /// Whether a node is set aside for now.
    pub(super) fn aside(&self, node: NodeId, now_ms: u64) -> bool {
        self.machines.get(&node).is_some_and(|m| m.aside_until_ms > now_ms)
    }

    fn fault(&mut self, node: NodeId, now_ms: u64) {
        let machine = self.machines.entry(node).or_default();
        machine.faults.push_back(now_ms);
        while machine.faults.front().is_some_and(|at| at + FAULT_WINDOW_MS < now_ms) {
            machine.faults.pop_front();
        }
        if machine.faults.len() > MAX_FAULTS {
            machine.faults.clear();
            machine.aside_ms = (machine.aside_ms * 2).clamp(ASIDE_FIRST_MS, ASIDE_MOST_MS);
            self.asides.remove(&(machine.aside_until_ms, node));
            machine.aside_until_ms = now_ms + machine.aside_ms;
            self.asides.insert((machine.aside_until_ms, node));
        }
    }

    fn learn(&mut self, sample: Sample, cores: u32) {
        let Sample { key, node, core_us, peak_bytes, wall_ms } = sample;
        let core_us = core_us.clamp(1, most_core_us(wall_ms, cores)).saturating_mul(self.core_speed(node)) / CORE;
        if self.costs.len() < MAX_COSTS || self.costs.contains_key(&key) {
            let known = self.costs.get(&key).copied().unwrap_or(Cost { core_us, peak_bytes });
            let core_us = (known.core_us.saturating_mul(3).saturating_add(core_us) / 4).max(1);
            self.set_cost(key, Cost { core_us, peak_bytes: least_known(known.peak_bytes, peak_bytes) });
            self.last.insert((key.0, key.1.segment), node);
        }
        let reference_ms = wall_ms.saturating_mul(self.speed(node, cores)) / CORE;
        let known = self.durations.entry((key.0, key.1.kind)).or_default();
        known.push_back(reference_ms);
        if known.len() > MAX_DURATIONS {
            known.pop_front();
        }
        if known.len() >= MIN_DURATIONS {
            let mut sorted: Vec<u64> = known.iter().copied().collect();
            sorted.sort_unstable();
            let third = sorted.get(sorted.len() * 3 / 4).copied().unwrap_or(0);
            self.quartiles.insert((key.0, key.1.kind), third);
        }
    }

    pub(super) fn set_cost(&mut self, key: CostKey, cost: Cost) {
        let (count, sum) = self.sums.entry((key.0, key.1.kind)).or_default();
        match self.costs.insert(key, cost) {
            Some(before) => *sum -= u128::from(before.core_us),
            None => *count += 1,
        }
        *sum += u128::from(cost.core_us);
    }
}

/// A node cannot have spent more than all its cores for the whole time, whatever it says.
pub(super) fn most_core_us(wall_ms: u64, cores: u32) -> u64 {
    wall_ms.max(1).saturating_mul(1000).saturating_mul(u64::from(cores.clamp(1, MAX_CORES)))
}

/// The lesser of two figures of which 0 says nothing.
fn least_known(a: u64, b: u64) -> u64 {
    if a == 0 || b == 0 { a.max(b) } else { a.min(b) }
}

impl State {
    /// Learns from an input before it is taken.
    pub(super) fn observe(&mut self, input: &Input) {
        let now = self.now_ms;
        match input {
            Input::WorkDone { node, epoch, core_us, peak_bytes, .. } => {
                let Some(lease) = self.leases.get(*epoch).filter(|lease| lease.node == *node) else { return };
                let (Some(job), Some(since)) = (self.jobs.get(&lease.job), (!lease.adopted).then_some(lease.since_ms)) else {
                    return;
                };
                let (key, wall_ms) = ((job.model, lease.work), now.saturating_sub(since));
                let sample = Sample { key, node: *node, core_us: *core_us, peak_bytes: *peak_bytes, wall_ms };
                self.fleet.reported.insert(*epoch, sample);
            }
            Input::CheckResult { epoch, verdict, .. } => {
                let Some(sample) = self.fleet.reported.remove(epoch) else { return };
                if *verdict == Verdict::Accept {
                    let cores = self.members.get(sample.node).map_or(1, |member| member.cores);
                    self.fleet.learn(sample, cores);
                    // What this item needs is known better now, for other jobs too.
                    let (model, work) = sample.key;
                    self.jobs.values_mut().filter(|job| job.model == model).for_each(|job| job.touch(work));
                }
            }
            Input::WorkFailed { node, epoch, disagrees: false, .. }
                if *node != NodeId::REFEREE && self.leases.belongs(*epoch, *node) =>
            {
                self.fleet.fault(*node, now);
                self.members.touch(*node);
            }
            _ => {}
        }
    }

    /// Forgets what no lease or job needs any more; now and then, so that it costs nothing per input.
    pub(super) fn tidy_fleet(&mut self) {
        let slack = 64 + 2 * self.leases.len();
        if self.fleet.reported.len() > slack {
            let oldest = self.fleet.reported.len() - slack;
            let old: Vec<u64> = self.fleet.reported.keys().take(oldest).copied().collect();
            for epoch in old {
                self.fleet.reported.remove(&epoch);
            }
        }
        if self.fleet.sizes.len() > 2 * self.jobs.len() + 1 {
            let announced = self.fleet.announced;
            self.fleet.sizes.retain(|job, _| self.jobs.contains_key(job) || Some(*job) == announced);
        }
        if self.fleet.last.len() > MAX_COSTS {
            self.fleet.last.clear();
        }
    }

    /// How fast a node is, [`CORE`] for one core of the reference.
    pub(super) fn speed(&self, node: NodeId) -> u64 {
        self.fleet.speed(node, self.members.get(node).map_or(1, |member| member.cores))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: [u8; 32] = [7; 32];

    fn sample(work: Work, node: u32, core_us: u64, wall_ms: u64) -> Sample {
        Sample { key: (MODEL, work), node: NodeId(node), core_us, peak_bytes: 100 * u64::from(node), wall_ms }
    }

    #[test]
    fn costs_are_those_of_the_reference_and_bounded_by_the_time_spent() {
        let mut fleet = Fleet::default();
        // Node 1 is as the reference, node 2 has cores four times as slow.
        fleet.measured(NodeId(1), Some([REFERENCE_US / 4; 4]), 1 << 30);
        fleet.measured(NodeId(2), Some([REFERENCE_US; 4]), 0);
        assert_eq!((fleet.speed(NodeId(1), 2), fleet.speed(NodeId(2), 2)), (2 * CORE, CORE / 2));
        assert_eq!(fleet.speed(NodeId(3), 1), CORE, "not calibrated");
        let work = Work::new(WorkKind::Prove, 3);
        assert_eq!(fleet.cost(MODEL, work), 1);
        fleet.learn(sample(work, 1, 8000, 10), 1);
        fleet.learn(sample(work, 2, 32_000, 40), 1);
        assert_eq!(fleet.cost(MODEL, work), 8000, "four times the time on a core of a quarter of the speed");
        assert_eq!(fleet.cost(MODEL, Work::new(WorkKind::Prove, 9)), 8000, "the mean of its kind");
        let other = Work::new(WorkKind::Open, 0);
        fleet.learn(sample(other, 1, u64::MAX, 5), 1);
        assert_eq!(fleet.cost(MODEL, other), 5000);
        assert_eq!(fleet.needs(JobId([1; 32]), MODEL, work), 100, "the least that was enough, where nothing is said");
        fleet.sized(JobId([1; 32]), vec![0, 0, 0, 70_000]);
        assert_eq!(fleet.needs(JobId([1; 32]), MODEL, work), 70_000, "what was enough for a small job is not for this one");
        assert_eq!(fleet.speed(NodeId(3), u32::MAX), CORE * 4096, "nobody has more cores");
    }

    #[test]
    fn a_node_that_keeps_failing_is_set_aside_for_longer_and_longer() {
        let mut fleet = Fleet::default();
        let node = NodeId(1);
        for i in 0..MAX_FAULTS as u64 {
            fleet.fault(node, i);
        }
        assert!(!fleet.aside(node, 10));
        fleet.fault(node, 10);
        assert!(fleet.aside(node, 10) && fleet.aside(node, 10 + ASIDE_FIRST_MS - 1) && !fleet.aside(node, 10 + ASIDE_FIRST_MS));
        let later = 10 + ASIDE_FIRST_MS;
        (0..=MAX_FAULTS).for_each(|_| fleet.fault(node, later));
        assert!(fleet.aside(node, later + 2 * ASIDE_FIRST_MS - 1) && !fleet.aside(node, later + 2 * ASIDE_FIRST_MS));
        let mut rare = Fleet::default();
        (0..100).for_each(|i| rare.fault(node, i * FAULT_WINDOW_MS / 3));
        assert!(!rare.aside(node, 100 * FAULT_WINDOW_MS / 3));
    }
}
