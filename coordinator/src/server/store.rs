//! Blobs of running jobs, in memory, bounded in bytes, and the leases under which nodes may add to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use obelysk_protocol::wire::BlobRef;

use crate::core::{JobId, NodeId};

/// Shared between the brain, the sessions and the checks.
#[derive(Debug, Clone)]
pub(super) struct Store(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    limit: u64,
    held: u64,
    blobs: BTreeMap<BlobRef, (Arc<Vec<u8>>, BTreeSet<JobId>)>,
    leases: BTreeMap<u64, Grant>,
}

/// What a node may deliver, and how often it still may.
#[derive(Debug)]
struct Grant {
    node: NodeId,
    job: JobId,
    deliveries: u32,
}

/// Deliveries under one lease: one, and one more for each reconnect in between; without a bound one node could fill the store.
const MAX_DELIVERIES: u32 = 8;

/// The store has no room; nothing was added.
#[derive(Debug, thiserror::Error)]
#[error("blob store is full ({limit} bytes); raise `max_store_bytes`")]
pub(super) struct Full {
    pub(super) limit: u64,
}

impl Store {
    pub(super) fn new(limit: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner { limit, held: 0, blobs: BTreeMap::new(), leases: BTreeMap::new() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps bytes for a job.
    pub(super) fn put(&self, job: JobId, blob: BlobRef, bytes: Vec<u8>) -> Result<(), Full> {
        let mut inner = self.inner();
        if let Some((_, owners)) = inner.blobs.get_mut(&blob) {
            owners.insert(job);
            return Ok(());
        }
        if inner.held.saturating_add(blob.length) > inner.limit {
            return Err(Full { limit: inner.limit });
        }
        inner.held += blob.length;
        inner.blobs.insert(blob, (Arc::new(bytes), BTreeSet::from([job])));
        Ok(())
    }

    pub(super) fn get(&self, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
        if blob.length == 0 {
            return Some(Arc::new(Vec::new()));
        }
        self.inner().blobs.get(&blob).map(|(bytes, _)| bytes.clone())
    }

    /// Whether some job owns it.
    pub(super) fn has(&self, blob: BlobRef) -> bool {
        blob.length == 0 || self.inner().blobs.contains_key(&blob)
    }

    /// Forgets everything that only this job needed, its leases included.
    pub(super) fn release(&self, job: JobId) {
        let mut inner = self.inner();
        let mut freed = 0;
        inner.blobs.retain(|blob, (_, owners)| {
            owners.remove(&job);
            if owners.is_empty() {
                freed += blob.length;
            }
            !owners.is_empty()
        });
        inner.held -= freed;
        inner.leases.retain(|_, grant| grant.job != job);
    }

    pub(super) fn lease(&self, epoch: u64, node: NodeId, job: JobId) {
        self.inner().leases.insert(epoch, Grant { node, job, deliveries: MAX_DELIVERIES });
    }

    pub(super) fn end_lease(&self, epoch: u64) {
        self.inner().leases.remove(&epoch);
    }

    /// The job of this node's lease, without counting.
    pub(super) fn job_of(&self, epoch: u64, node: NodeId) -> Option<JobId> {
        self.inner().leases.get(&epoch).filter(|grant| grant.node == node).map(|grant| grant.job)
    }

    /// The job for which this node may deliver under this lease; counts as one delivery.
    pub(super) fn deliver(&self, epoch: u64, node: NodeId) -> Option<JobId> {
        let mut inner = self.inner();
        let grant = inner.leases.get_mut(&epoch).filter(|grant| grant.node == node)?;
        grant.deliveries = grant.deliveries.checked_sub(1)?;
        Some(grant.job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_its_bound_and_frees_with_the_last_owner() {
        let store = Store::new(8);
        let (a, b) = (JobId([1; 32]), JobId([2; 32]));
        let blob = BlobRef::of(&[7; 8]);
        store.put(a, blob, vec![7; 8]).expect("fits");
        store.put(b, blob, vec![7; 8]).expect("is there");
        assert!(store.put(a, BlobRef::of(&[1]), vec![1]).is_err());
        store.release(a);
        assert!(store.get(blob).is_some());
        store.release(b);
        assert!(store.get(blob).is_none());
        store.put(a, BlobRef::of(&[1]), vec![1]).expect("room again");
    }

    #[test]
    fn a_lease_is_for_its_node_and_for_few_deliveries() {
        let (store, job) = (Store::new(8), JobId([1; 32]));
        store.lease(5, NodeId(1), job);
        assert_eq!((store.deliver(5, NodeId(2)), store.deliver(4, NodeId(1))), (None, None));
        let taken = (0..100).filter(|_| store.deliver(5, NodeId(1)) == Some(job)).count();
        assert_eq!(taken, MAX_DELIVERIES as usize);
        store.lease(6, NodeId(1), job);
        store.release(job);
        assert_eq!(store.deliver(6, NodeId(1)), None);
    }
}
