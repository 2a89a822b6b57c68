//! How many nodes the work that waits would keep busy: a pure function of a view, of what earlier items took, and of settings.
//!
//! Who buys machines is somebody else; this gives the one number an autoscaler follows.

use std::collections::BTreeMap;

use obelysk_node::engine::WorkKind;

use super::view::{ItemState, ItemView, JobView, Standing, View};

/// Models and kinds remembered; a coordinator serves far fewer models than a quarter of this.
const MAX_MEASURED: usize = 1024;

/// What items of one kind and model took so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Accepted items.
    pub items: u64,
    /// Core-microseconds of all of them.
    pub core_us: u64,
    /// Milliseconds from lease to result of all of them.
    pub wall_ms: u64,
}

/// What items took, by model and kind.
#[derive(Debug, Clone, Default)]
pub struct Costs(BTreeMap<([u8; 32], WorkKind), Cost>);

impl Costs {
    /// Counts one accepted item.
    pub fn add(&mut self, model: [u8; 32], kind: WorkKind, core_us: u64, wall_ms: u64) {
        let cost = self.0.entry((model, kind)).or_default();
        cost.items += 1;
        cost.core_us = cost.core_us.saturating_add(core_us);
        cost.wall_ms = cost.wall_ms.saturating_add(wall_ms);
        if self.0.len() > MAX_MEASURED {
            self.0.pop_first();
        }
    }

    fn mean(&self, model: [u8; 32], kind: WorkKind, of: impl Fn(&Cost) -> u64) -> Option<u64> {
        self.0.get(&(model, kind)).filter(|cost| cost.items > 0).map(|cost| of(cost) / cost.items)
    }

    /// Milliseconds a job still takes on `nodes` nodes at the pace of earlier items, the one it is at and those running counted whole.
    /// `None` before every kind it still needs was measured on its model.
    #[must_use]
    pub fn time_left_ms(&self, job: &JobView, nodes: usize) -> Option<u64> {
        let mut left = 0_u64;
        for kind in WorkKind::ALL {
            let items = u64::from(job.segments.saturating_sub(job.accepted(kind)));
            if items == 0 {
                continue;
            }
            // The forward pass is a chain; everything else goes on side by side.
            let lanes = if kind == WorkKind::Forward { 1 } else { (nodes as u64).clamp(1, u64::from(job.segments.max(1))) };
            let wall = self.mean(job.model, kind, |cost| cost.wall_ms)?;
            left = left.saturating_add(items.div_ceil(lanes).saturating_mul(wall));
        }
        Some(left)
    }
}

/// Settings of the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScalePolicy {
    /// All that waits should be done within this.
    pub drain_target_ms: u64,
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// The number falls only after this long below, and to the highest of that time.
    pub settle_ms: u64,
}

/// Work that waits or runs, as far as it can be foreseen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Core-microseconds of all items not yet accepted whose kind and model were measured.
    pub queued_core_us: u64,
    /// Jobs with items of a kind that was never measured on their model.
    pub unmeasured_jobs: u32,
    /// Most items that could ever run side by side.
    pub parallel: u32,
}

impl Demand {
    /// What a view asks for.
    #[must_use]
    pub fn of(view: &View, costs: &Costs) -> Self {
        let mut demand = Self::default();
        for job in &view.jobs {
            let mut unmeasured = false;
            let waits = |item: &&ItemView| !matches!(item.state, ItemState::Accepted { .. } | ItemState::Checking { .. });
            let mut open = false;
            for item in job.items.iter().filter(waits) {
                open = true;
                match costs.mean(job.model, item.work.kind, |cost| cost.core_us) {
                    Some(mean) => demand.queued_core_us = demand.queued_core_us.saturating_add(mean),
                    None => unmeasured = true,
                }
            }
            demand.unmeasured_jobs += u32::from(unmeasured);
            demand.parallel = demand.parallel.saturating_add(if open { job.segments } else { 0 });
        }
        demand
    }

    /// Nodes of `cores` cores that this would keep busy for the drain target. Before any measurement, one for each waiting job.
    #[must_use]
    pub fn nodes(&self, cores: u32, policy: &ScalePolicy) -> u32 {
        let each_us = policy.drain_target_ms.max(1).saturating_mul(1000).saturating_mul(u64::from(cores.max(1)));
        let measured = u32::try_from(self.queued_core_us.div_ceil(each_us)).unwrap_or(u32::MAX);
        let wanted = measured.max(self.unmeasured_jobs).min(self.parallel);
        wanted.min(policy.max).max(policy.min)
    }
}

/// Cores of a node: the mean of those that work now; without any, 1.
#[must_use]
pub fn typical_cores(view: &View) -> u32 {
    let here = view.nodes.iter().filter(|n| n.standing == Standing::Here && n.node != super::NodeId::REFEREE);
    let (nodes, cores) = here.fold((0_u32, 0_u32), |(n, sum), node| (n + 1, sum.saturating_add(node.cores)));
    cores.checked_div(nodes).unwrap_or(1).max(1)
}

/// The number over time: it rises at once and falls late, so that machines are not given back between two jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scaler {
    now: u32,
    /// Since when less was wanted, and the most of that time.
    below: Option<(u64, u32)>,
}

impl Scaler {
    /// Takes what is wanted at this moment; gives the number.
    pub fn update(&mut self, now_ms: u64, wanted: u32, policy: &ScalePolicy) -> u32 {
        if wanted >= self.now {
            *self = Self { now: wanted, below: None };
            return self.now;
        }
        let (since, most) = self.below.map_or((now_ms, wanted), |(since, most)| (since, most.max(wanted)));
        self.below = Some((since, most));
        if now_ms.saturating_sub(since) >= policy.settle_ms {
            *self = Self { now: most, below: None };
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::view::NodeView;
    use crate::core::{JobId, NodeId, Work};

    const POLICY: ScalePolicy = ScalePolicy { drain_target_ms: 10_000, min: 0, max: 100, settle_ms: 1000 };

    fn job(model: u8, segments: u32, done: usize) -> JobView {
        let works = WorkKind::ALL.into_iter().flat_map(|kind| (0..segments).map(move |l| Work::new(kind, l)));
        let state = |i| if i < done { ItemState::Accepted { node: NodeId(1) } } else { ItemState::Blocked };
        let items = works.enumerate().map(|(i, work)| ItemView { work, state: state(i), disputed: false, tries: 0 });
        JobView {
            job: JobId([model; 32]),
            model: [model; 32],
            segments,
            items: items.collect(),
            challenged: false,
            finishing: false,
            waiting_since_ms: None,
            core_us: [0; 4],
        }
    }

    fn view(jobs: Vec<JobView>) -> View {
        View { now_ms: 0, nodes: Vec::new(), jobs }
    }

    fn measured(model: u8, core_us: u64) -> Costs {
        let mut costs = Costs::default();
        for kind in WorkKind::ALL {
            costs.add([model; 32], kind, core_us - 1000, 500);
            costs.add([model; 32], kind, core_us + 1000, 500);
        }
        costs
    }

    #[test]
    fn before_any_measurement_it_is_one_node_for_each_job() {
        let demand = Demand::of(&view(vec![job(1, 6, 0), job(2, 6, 3)]), &Costs::default());
        assert_eq!(demand, Demand { queued_core_us: 0, unmeasured_jobs: 2, parallel: 12 });
        assert_eq!(demand.nodes(8, &POLICY), 2);
        assert_eq!(Demand::of(&view(vec![]), &Costs::default()).nodes(8, &POLICY), 0);
    }

    #[test]
    fn core_seconds_are_shared_out_over_the_target() {
        // 24 items of 10 core-seconds each: 240 core-seconds in 10 s is 24 cores.
        let demand = Demand::of(&view(vec![job(1, 6, 0)]), &measured(1, 10_000_000));
        assert_eq!(demand, Demand { queued_core_us: 240_000_000, unmeasured_jobs: 0, parallel: 6 });
        assert_eq!([demand.nodes(24, &POLICY), demand.nodes(8, &POLICY), demand.nodes(7, &POLICY)], [1, 3, 4]);
        // More nodes than segments would stand idle, whatever the sum.
        assert_eq!(demand.nodes(1, &POLICY), 6);
        // What is accepted is not asked for again; another model's measurements say nothing.
        let demand = Demand::of(&view(vec![job(1, 6, 12), job(2, 6, 0)]), &measured(1, 10_000_000));
        assert_eq!((demand.queued_core_us, demand.unmeasured_jobs), (120_000_000, 1));
    }

    #[test]
    fn bounds_hold() {
        let demand = Demand { queued_core_us: u64::MAX, unmeasured_jobs: 0, parallel: u32::MAX };
        assert_eq!(demand.nodes(1, &POLICY), 100);
        assert_eq!(demand.nodes(0, &ScalePolicy { max: 7, drain_target_ms: 0, ..POLICY }), 7);
        assert_eq!(Demand::default().nodes(1, &ScalePolicy { min: 2, ..POLICY }), 2);
    }

    #[test]
    fn it_rises_at_once_and_falls_late_to_the_most_of_the_time() {
        let mut scaler = Scaler::default();
        assert_eq!(scaler.update(0, 5, &POLICY), 5);
        assert_eq!(scaler.update(10, 1, &POLICY), 5);
        assert_eq!(scaler.update(500, 3, &POLICY), 5);
        assert_eq!(scaler.update(1009, 0, &POLICY), 5);
        assert_eq!(scaler.update(1010, 0, &POLICY), 3, "the most that was wanted below 5");
        assert_eq!(scaler.update(1500, 0, &POLICY), 3);
        assert_eq!(scaler.update(1600, 4, &POLICY), 4, "at once, and the fall is forgotten");
        assert_eq!(scaler.update(1700, 0, &POLICY), 4);
        assert_eq!(scaler.update(2700, 0, &POLICY), 0);
    }

    #[test]
    fn time_left_counts_the_chain_and_the_lanes() {
        let costs = measured(1, 10_000_000);
        // 6 forwards in a row; 6 commits, proves and opens on 4 nodes take two rounds each; 500 ms an item.
        assert_eq!(costs.time_left_ms(&job(1, 6, 0), 4), Some(6 * 500 + 3 * 2 * 500));
        assert_eq!(costs.time_left_ms(&job(1, 6, 24), 4), Some(0));
        assert_eq!(costs.time_left_ms(&job(2, 6, 0), 4), None);
    }

    #[test]
    fn a_typical_node_is_the_mean_of_those_here() {
        let node = |n, cores, standing| NodeView { node: NodeId(n), cores, standing, running: None };
        let nodes = vec![
            node(0, 1, Standing::Here),
            node(1, 8, Standing::Here),
            node(2, 4, Standing::Here),
            node(3, 64, Standing::Quarantined),
        ];
        assert_eq!(typical_cores(&View { nodes, ..View::default() }), 6);
        assert_eq!(typical_cores(&View::default()), 1);
    }
}
