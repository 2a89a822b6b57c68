//! Homes of segments: contiguous runs by measured speed and memory, where the weights are if that costs little.

use obelysk_node::engine::WorkKind;

use super::State;
use super::partition::{Load, Machine, holds, partition};
use super::types::{JobId, NodeId, Work};

impl State {
    /// Gives every segment without a usable home one. Segments that have one keep it; a new job is placed as the last one of its model
    /// was, where the weights are, unless that costs a quarter of its time.
    pub(super) fn plan(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.unplaced) else { return };
        job.unplaced = false;
        let usable = job.crew.usable();
        let placed = |segment: &u32| job.home(*segment).is_some_and(|node| usable.contains(&node));
        let orphans: Vec<u32> = (0..job.segments).filter(|segment| !placed(segment)).collect();
        let nodes: Vec<NodeId> = usable.iter().copied().collect();
        job.homeless = !orphans.is_empty();
        if orphans.is_empty() || nodes.is_empty() {
            return;
        }
        let homes = self.homes(id, &orphans, &nodes);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.homeless = homes.iter().any(Option::is_none);
        for (segment, home) in orphans.into_iter().zip(homes) {
            if let Some(node) = home.and_then(|i| nodes.get(i)) {
                job.set_home(segment, *node);
            }
        }
    }

    fn homes(&self, id: JobId, orphans: &[u32], nodes: &[NodeId]) -> Vec<Option<usize>> {
        let Some(job) = self.jobs.get(&id) else { return Vec::new() };
        let machine = |node: &NodeId| Machine { speed: self.speed(*node), memory: self.fleet.memory(*node) };
        let machines: Vec<Machine> = nodes.iter().map(machine).collect();
        let load = |segment: &u32| {
            let works = WorkKind::ALL.map(|kind| Work::new(kind, *segment));
            let cost = works.iter().map(|work| self.fleet.cost(job.model, *work)).fold(0, u64::saturating_add);
            Load { cost, memory: works.iter().map(|work| self.fleet.needs(id, job.model, *work)).max().unwrap_or(0) }
        };
        let loads: Vec<Load> = orphans.iter().map(load).collect();
        let homes = partition(&loads, &machines);
        let before = |segment: &u32| nodes.binary_search(self.fleet.last.get(&(job.model, *segment))?).ok();
        let kept: Vec<Option<usize>> = orphans.iter().map(before).collect();
        let whole = kept.iter().zip(&loads).all(|(home, load)| home.is_some_and(|i| holds(machines[i], *load)));
        let keep = whole && slowest(&loads, &machines, &kept) <= slowest(&loads, &machines, &homes).saturating_mul(5) / 4;
        if keep { kept } else { homes }
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
