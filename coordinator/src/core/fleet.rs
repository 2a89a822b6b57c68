//! What is known of how fast the machines are and how much memory they have, and of what work costs.

use std::collections::BTreeMap;

use super::types::NodeId;

/// Machines remembered.
const MAX_MACHINES: usize = 10_000;

/// Speeds, memory, costs.
#[derive(Debug, Clone)]
pub(super) struct Fleet {
    machines: BTreeMap<NodeId, Machine>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Machine {
    /// Core-microseconds for the job of calibration, all kinds together; 0: not calibrated.
    trial_us: u64,
    memory_bytes: u64,
}

impl Fleet {
    pub(super) const fn new() -> Self {
        Self { machines: BTreeMap::new() }
    }

    pub(super) fn measured(&mut self, node: NodeId, core_us: Option<[u64; 4]>, memory_bytes: u64) {
        if self.machines.len() >= MAX_MACHINES && !self.machines.contains_key(&node) {
            return;
        }
        let trial_us = core_us.map_or(0, |spent| spent.into_iter().fold(0, u64::saturating_add).max(1));
        self.machines.insert(node, Machine { trial_us, memory_bytes });
    }
}
