//! The table of leases, found by epoch, node, item and end. Whoever's lease changed is remembered until asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::types::{JobId, Needs, NodeId, Work};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) job: JobId,
    pub(super) work: Work,
    pub(super) node: NodeId,
    pub(super) needs: Needs,
    /// When it was given, or taken over.
    pub(super) since_ms: u64,
    /// An earlier leader gave it: how long it has run is not known.
    pub(super) adopted: bool,
    pub(super) deadline_ms: u64,
    pub(super) permille: u32,
    pub(super) expired: bool,
    /// It runs far beyond what its node should need: what waits for that node waits no longer.
    pub(super) late: bool,
}

/// All leases, live and expired.
#[derive(Debug, Clone, Default)]
pub(super) struct Leases {
    all: BTreeMap<u64, Lease>,
    by_node: BTreeSet<(NodeId, u64)>,
    by_item: BTreeSet<(JobId, Work, u64)>,
    /// Live ones by when they end.
    ends: BTreeSet<(u64, u64)>,
    touched: BTreeSet<NodeId>,
}

impl Leases {
    pub(super) fn get(&self, epoch: u64) -> Option<&Lease> {
        self.all.get(&epoch)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether this lease is in force.
    pub(super) fn live(&self, epoch: u64) -> bool {
        self.all.get(&epoch).is_some_and(|lease| !lease.expired)
    }

    /// Whether this is a lease of this node.
    pub(super) fn belongs(&self, epoch: u64, node: NodeId) -> bool {
        self.all.get(&epoch).is_some_and(|lease| lease.node == node)
    }

    pub(super) fn insert(&mut self, epoch: u64, lease: Lease) {
        self.remove(epoch);
        self.by_node.insert((lease.node, epoch));
        self.by_item.insert((lease.job, lease.work, epoch));
        if !lease.expired {
            self.ends.insert((lease.deadline_ms, epoch));
        }
        self.touched.insert(lease.node);
        self.all.insert(epoch, lease);
    }

    pub(super) fn remove(&mut self, epoch: u64) -> Option<Lease> {
        let lease = self.all.remove(&epoch)?;
        self.by_node.remove(&(lease.node, epoch));
        self.by_item.remove(&(lease.job, lease.work, epoch));
        self.ends.remove(&(lease.deadline_ms, epoch));
        self.touched.insert(lease.node);
        Some(lease)
    }

    /// Only rising values renew, so an engine that goes in circles cannot hold a lease for ever.
    pub(super) fn renew(&mut self, epoch: u64, permille: u32, deadline_ms: u64) {
        let Some(lease) = self.all.get_mut(&epoch).filter(|lease| permille > lease.permille) else { return };
        self.ends.remove(&(lease.deadline_ms, epoch));
        (lease.permille, lease.deadline_ms) = (permille, deadline_ms);
        if !lease.expired {
            self.ends.insert((deadline_ms, epoch));
        }
    }

    /// Ends a lease without forgetting it: a result that still comes is welcome when nobody else was faster.
    pub(super) fn expire(&mut self, epoch: u64) {
        let Some(lease) = self.all.get_mut(&epoch) else { return };
        lease.expired = true;
        self.ends.remove(&(lease.deadline_ms, epoch));
        self.touched.insert(lease.node);
    }

    /// Live leases whose time is over, in the order in which they were given.
    pub(super) fn overdue(&self, now_ms: u64) -> Vec<u64> {
        let mut epochs: Vec<u64> = self.ends.range(..(now_ms, 0)).map(|(_, epoch)| *epoch).collect();
        epochs.sort_unstable();
        epochs
    }

    /// Live leases that are not known to be late.
    pub(super) fn in_time(&self) -> impl Iterator<Item = (u64, &Lease)> {
        self.all.iter().filter(|(_, lease)| !lease.expired && !lease.late).map(|(epoch, lease)| (*epoch, lease))
    }

    /// From now on it is late.
    pub(super) fn mark_late(&mut self, epoch: u64) {
        if let Some(lease) = self.all.get_mut(&epoch) {
            lease.late = true;
            self.touched.insert(lease.node);
        }
    }

    /// Leases of a node, by epoch.
    pub(super) fn of_node(&self, node: NodeId) -> Vec<u64> {
        self.by_node.range((node, 0)..=(node, u64::MAX)).map(|(_, epoch)| *epoch).collect()
    }

    /// Leases of an item, by epoch.
    pub(super) fn of_item(&self, job: JobId, work: Work) -> Vec<u64> {
        self.by_item.range((job, work, 0)..=(job, work, u64::MAX)).map(|(.., epoch)| *epoch).collect()
    }

    /// Leases of a job, by epoch.
    pub(super) fn of_job(&self, id: JobId) -> Vec<u64> {
        let mut epochs: Vec<u64> =
            self.by_item.range((id, Work::FIRST, 0)..).take_while(|(job, ..)| *job == id).map(|(.., epoch)| *epoch).collect();
        epochs.sort_unstable();
        epochs
    }

    /// Nodes whose leases were given, ended or removed since this was last asked.
    pub(super) fn take_touched(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.touched)
    }

    /// What is wrong with the orders beside the table, if anything.
    pub(super) fn audit(&self) -> Result<(), String> {
        let by_node = self.all.iter().map(|(epoch, lease)| (lease.node, *epoch)).collect();
        let by_item = self.all.iter().map(|(epoch, lease)| (lease.job, lease.work, *epoch)).collect();
        let live = self.all.iter().filter(|(_, lease)| !lease.expired);
        let ends = live.map(|(epoch, lease)| (lease.deadline_ms, *epoch)).collect();
        if (&self.by_node, &self.by_item, &self.ends) == (&by_node, &by_item, &ends) {
            Ok(())
        } else {
            Err("leases are not found by node, item or end".to_owned())
        }
    }
}
