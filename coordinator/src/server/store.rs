//! Blobs of jobs: whose they are, and the leases under which nodes may add to them. The bytes lie in the cluster's store of blobs, or in
//! memory, bounded, where nothing outlives the process or where nothing has to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use obelysk_protocol::wire::BlobRef;
use tokio::runtime::Handle;

use crate::blobs::{BlobError, Blobs};
use crate::core::{JobId, NodeId};

/// Shared between the brain, the sessions and the checks.
#[derive(Debug, Clone)]
pub(super) struct Store {
    inner: Arc<Mutex<Inner>>,
    backing: Option<Backing>,
}

/// What keeps blobs when the process ends. Calls wait for it, on threads that may.
#[derive(Debug, Clone)]
struct Backing {
    blobs: Blobs,
    runtime: Handle,
}

impl Backing {
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

#[derive(Debug)]
struct Inner {
    limit: u64,
    /// Bytes in memory.
    held: u64,
    blobs: BTreeMap<BlobRef, Slot>,
    /// Being written, once for each writer.
    writing: Vec<BlobRef>,
    leases: BTreeMap<u64, Grant>,
    /// Blobs whose bytes are gone although somebody needs them.
    lost: BTreeSet<BlobRef>,
}

#[derive(Debug, Default)]
struct Slot {
    /// In memory; otherwise in the store of blobs.
    bytes: Option<Arc<Vec<u8>>>,
    owners: BTreeSet<JobId>,
}

/// What a node may deliver, and how often it still may.
#[derive(Debug)]
struct Grant {
    node: NodeId,
    job: JobId,
    deliveries: u32,
    /// What is delivered is kept in memory only.
    brief: bool,
}

/// Deliveries under one lease: one, and one more for each reconnect in between; without a bound one node could fill the store.
const MAX_DELIVERIES: u32 = 8;

/// How long a blob is waited for that another coordinator may have, which comes back within seconds if it comes back.
const UNREACHED_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two attempts.
const UNREACHED_PAUSE: Duration = Duration::from_millis(500);

/// Why a blob was not kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No room.
    #[error("blob store is full ({limit} bytes); raise `max_store_bytes`, or submit when another job is done")]
    Full {
        /// Its size.
        limit: u64,
    },
    /// The store of blobs refused.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

impl Store {
    /// Keeps blobs in the store of blobs, or, without one that outlives the process, so many bytes in memory. Within a runtime.
    pub(super) fn new(limit: u64, blobs: Option<Blobs>) -> Self {
        let inner =
            Inner { limit, held: 0, blobs: BTreeMap::new(), writing: Vec::new(), leases: BTreeMap::new(), lost: BTreeSet::new() };
        let backing = blobs.filter(Blobs::is_durable).map(|blobs| Backing { blobs, runtime: Handle::current() });
        Self { inner: Arc::new(Mutex::new(inner)), backing }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held in memory.
    pub(super) fn held(&self) -> u64 {
        let cached = self.backing.as_ref().map_or(0, |backing| backing.blobs.cached_bytes());
        self.inner().held + cached
    }

    /// Keeps bytes for a job; when it returns they are as safe as the store of blobs makes them.
    pub(super) async fn keep(&self, job: JobId, blob: BlobRef, bytes: Vec<u8>) -> Result<(), StoreError> {
        let Some(backing) = self.backing.as_ref().filter(|_| blob.length > 0) else {
            return self.put_briefly(job, blob, bytes);
        };
        self.inner().writing.push(blob);
        let written = backing.blobs.put_as(blob, Arc::new(bytes)).await;
        let mut inner = self.inner();
        if let Some(at) = inner.writing.iter().position(|other| *other == blob) {
            inner.writing.swap_remove(at);
        }
        written?;
        let slot = inner.blobs.entry(blob).or_default();
        slot.owners.insert(job);
        if slot.bytes.take().is_some() {
            inner.held -= blob.length;
        }
        Ok(())
    }

    /// As [`Store::keep`], for checks, of which there are few: it waits on its own thread.
    pub(super) fn put(&self, job: JobId, blob: BlobRef, bytes: Vec<u8>) -> Result<(), StoreError> {
        match &self.backing {
            Some(backing) => backing.wait(self.keep(job, blob, bytes)),
            None => self.put_briefly(job, blob, bytes),
        }
    }

    /// Keeps bytes for a job until it or the process ends, in memory: for what a new leader makes again.
    pub(super) fn put_briefly(&self, job: JobId, blob: BlobRef, bytes: Vec<u8>) -> Result<(), StoreError> {
        let mut inner = self.inner();
        if let Some(slot) = inner.blobs.get_mut(&blob) {
            slot.owners.insert(job);
            return Ok(());
        }
        if inner.held.saturating_add(blob.length) > inner.limit {
            return Err(StoreError::Full { limit: inner.limit });
        }
        inner.held += blob.length;
        inner.blobs.insert(blob, Slot { bytes: Some(Arc::new(bytes)), owners: BTreeSet::from([job]) });
        Ok(())
    }

    /// Whether some job owns it.
    pub(super) fn has(&self, blob: BlobRef) -> bool {
        blob.length == 0 || self.inner().blobs.contains_key(&blob)
    }

    /// Whether some job owns it, or is about to.
    pub(super) fn needs(&self, blob: BlobRef) -> bool {
        let inner = self.inner();
        inner.blobs.contains_key(&blob) || inner.writing.contains(&blob)
    }

    /// The bytes if they are in memory.
    pub(super) fn get_held(&self, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
        let here = self.inner().blobs.get(&blob)?.bytes.clone();
        here.or_else(|| self.backing.as_ref()?.blobs.cached(blob))
    }

    /// The bytes of a blob that some job owns. What is missing is remembered for [`Store::take_lost`].
    pub(super) async fn fetch(&self, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
        let Some(backing) = &self.backing else { return self.in_memory(blob).unwrap_or_else(|| self.gone(blob, None)) };
        if let Some(known) = self.in_memory(blob) {
            return known;
        }
        let begun = Instant::now();
        let error = loop {
            match backing.blobs.get(blob).await {
                Ok(bytes) => return Some(bytes),
                Err(error @ BlobError::Unreached { .. }) if begun.elapsed() < UNREACHED_PATIENCE => {
                    tracing::debug!(%error, "a blob cannot be had now");
                    tokio::time::sleep(UNREACHED_PAUSE).await;
                }
                Err(error) => break error,
            }
        };
        self.gone(blob, Some(&error))
    }

    /// As [`Store::fetch`], for checks, of which there are few: it waits on its own thread.
    pub(super) fn get(&self, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
        match &self.backing {
            Some(backing) => backing.wait(self.fetch(blob)),
            None => self.in_memory(blob).unwrap_or_else(|| self.gone(blob, None)),
        }
    }

    /// What can be said without the store of blobs: bytes, or that nobody owns it.
    fn in_memory(&self, blob: BlobRef) -> Option<Option<Arc<Vec<u8>>>> {
        if blob.length == 0 {
            return Some(Some(Arc::default()));
        }
        match self.inner().blobs.get(&blob) {
            None => Some(None),
            Some(slot) => slot.bytes.clone().map(Some),
        }
    }

    fn gone(&self, blob: BlobRef, error: Option<&BlobError>) -> Option<Arc<Vec<u8>>> {
        let error = error.map(ToString::to_string);
        tracing::error!(digest = %obelysk_node::identity::Id(blob.digest), error, "a blob is gone or damaged");
        let mut inner = self.inner();
        inner.blobs.remove(&blob);
        inner.lost.insert(blob);
        None
    }

    /// Takes a blob over for a job, of a process that has ended; says whether it is there.
    pub(super) fn adopt(&self, job: JobId, blob: BlobRef) -> bool {
        // Not under the lock: it may have to be asked for.
        let found = self.backing.as_ref().map_or(Ok(false), |backing| backing.wait(backing.blobs.find(blob)));
        let mut inner = self.inner();
        // What cannot be asked for now is asked for when it is needed.
        let unknown = matches!(found, Err(BlobError::Unreached { .. }));
        let here = inner.blobs.contains_key(&blob) || found.unwrap_or(false) || unknown;
        if here {
            inner.blobs.entry(blob).or_default().owners.insert(job);
        } else {
            inner.lost.insert(blob);
        }
        here
    }

    /// Blobs found missing since the last call.
    pub(super) fn take_lost(&self) -> BTreeSet<BlobRef> {
        std::mem::take(&mut self.inner().lost)
    }

    /// Says that a blob is missing.
    pub(super) fn note_lost(&self, blob: BlobRef) {
        self.inner().lost.insert(blob);
    }

    /// Forgets everything that only this job needed, its leases included, except for `keep`, which leaves memory if it is kept elsewhere.
    pub(super) fn release(&self, job: JobId, keep: Option<BlobRef>) {
        let (mut over, mut freed) = (Vec::new(), 0);
        let mut inner = self.inner();
        inner.blobs.retain(|blob, slot| {
            if keep == Some(*blob) {
                return true;
            }
            slot.owners.remove(&job);
            if !slot.owners.is_empty() {
                return true;
            }
            if slot.bytes.is_some() {
                freed += blob.length;
            } else {
                over.push(*blob);
            }
            false
        });
        inner.held -= freed;
        inner.leases.retain(|_, grant| grant.job != job);
        drop(inner);
        if let Some(backing) = self.backing.as_ref().filter(|_| !over.is_empty()) {
            let (store, blobs) = (self.clone(), backing.blobs.clone());
            backing.runtime.spawn(async move {
                if let Err(error) = blobs.discard(&over, |blob| store.needs(*blob)).await {
                    tracing::debug!(%error, "blobs of a job that has ended stay until the next collection");
                }
            });
        }
    }

    pub(super) fn lease(&self, epoch: u64, node: NodeId, job: JobId) {
        self.inner().leases.insert(epoch, Grant { node, job, deliveries: MAX_DELIVERIES, brief: false });
    }

    /// What is delivered under this lease outlives no leader: [`Store::put_briefly`] is enough for it.
    pub(super) fn lease_is_brief(&self, epoch: u64) {
        if let Some(grant) = self.inner().leases.get_mut(&epoch) {
            grant.brief = true;
        }
    }

    /// Whether that was said of this lease.
    pub(super) fn is_brief(&self, epoch: u64) -> bool {
        self.inner().leases.get(&epoch).is_some_and(|grant| grant.brief)
    }

    pub(super) fn end_lease(&self, epoch: u64) {
        self.inner().leases.remove(&epoch);
    }

    /// Ends all leases, as their leader has, and forgets whose the blobs are, where something else keeps them: another leader may have
    /// ended those jobs.
    pub(super) fn begin_term(&self) {
        let mut inner = self.inner();
        inner.leases.clear();
        if self.backing.is_some() {
            inner.held = 0;
            inner.blobs.clear();
            inner.lost.clear();
        }
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

    /// Calls wait for the runtime, so they are made outside of it.
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
    }

    fn files(place: &std::path::Path) -> usize {
        let folders = std::fs::read_dir(place.join("blobs")).expect("lists").map(|folder| folder.expect("entry").path());
        folders.map(|folder| std::fs::read_dir(folder).expect("lists").count()).sum()
    }

    #[track_caller]
    fn until(what: &str, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(10), "not in time: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn keeps_its_bound_and_frees_with_the_last_owner() {
        let store = Store::new(8, None);
        let (a, b) = (JobId([1; 32]), JobId([2; 32]));
        let blob = BlobRef::of(&[7; 8]);
        store.put(a, blob, vec![7; 8]).expect("fits");
        store.put(b, blob, vec![7; 8]).expect("is there");
        assert!(store.put(a, BlobRef::of(&[1]), vec![1]).is_err());
        store.release(a, None);
        assert!(store.get(blob).is_some());
        store.release(b, None);
        assert!(store.get(blob).is_none());
        store.put(a, BlobRef::of(&[1]), vec![1]).expect("room again");
    }

    #[test]
    fn what_is_kept_elsewhere_is_nobodys_until_it_is_adopted() {
        let (place, runtime) = (tempfile::tempdir().expect("folder"), runtime());
        let _within = runtime.enter();
        let open = || Store::new(8, Some(Blobs::local(place.path(), 0).expect("opens")));
        let (job, blob, piece) = (JobId([1; 32]), BlobRef::of(&[7; 8]), BlobRef::of(&[1]));
        let store = open();
        store.put(job, blob, vec![7; 8]).expect("kept");
        store.put(job, piece, vec![1]).expect("kept");
        assert_eq!((store.held(), files(place.path())), (0, 2));
        store.release(job, Some(blob));
        until("what is over goes", || files(place.path()) == 1);
        drop(store);

        let store = open();
        assert_eq!(store.get(blob), None, "nobody owns it yet");
        assert!(store.adopt(job, blob) && !store.adopt(job, piece));
        assert_eq!(store.take_lost(), BTreeSet::from([piece]));
        // A term of another leader lies in between: nothing is anybody's until it is adopted again.
        store.begin_term();
        assert!(!store.has(blob) && store.take_lost().is_empty() && store.adopt(job, blob));
        assert_eq!(store.get(blob).expect("there").as_slice(), [7; 8]);
        std::fs::remove_dir_all(place.path().join("blobs")).expect("there");
        assert_eq!((store.get(blob), store.take_lost()), (None, BTreeSet::from([blob])));
    }

    #[test]
    fn what_was_kept_briefly_is_written_when_it_must_last() {
        let (place, runtime) = (tempfile::tempdir().expect("folder"), runtime());
        let _within = runtime.enter();
        let store = Store::new(8, Some(Blobs::local(place.path(), 0).expect("opens")));
        let (job, blob) = (JobId([1; 32]), BlobRef::of(&[7; 4]));
        store.put_briefly(job, blob, vec![7; 4]).expect("fits");
        assert_eq!((files(place.path()), store.held()), (0, 4));
        store.put(job, blob, vec![7; 4]).expect("fits");
        assert_eq!((files(place.path()), store.held()), (1, 0));
        assert_eq!(store.get(blob).expect("on disk").as_slice(), [7; 4]);
    }

    #[test]
    fn what_is_kept_briefly_costs_no_file() {
        let (place, runtime) = (tempfile::tempdir().expect("folder"), runtime());
        let _within = runtime.enter();
        let store = Store::new(8, Some(Blobs::local(place.path(), 0).expect("opens")));
        let (job, part, piece) = (JobId([1; 32]), BlobRef::of(&[7; 4]), BlobRef::of(&[1]));
        store.put_briefly(job, part, vec![7; 4]).expect("fits");
        store.put(job, piece, vec![1]).expect("fits");
        assert_eq!((store.get(part).expect("here").as_slice(), files(place.path())), (&[7; 4][..], 1));
        store.release(job, None);
        until("both are gone", || (store.get(part), store.held(), files(place.path())) == (None, 0, 0));
        store.lease(5, NodeId(1), job);
        assert!(!store.is_brief(5));
        store.lease_is_brief(5);
        assert!(store.is_brief(5) && !store.is_brief(6));
    }

    #[test]
    fn a_lease_is_for_its_node_and_for_few_deliveries() {
        let (store, job) = (Store::new(8, None), JobId([1; 32]));
        store.lease(5, NodeId(1), job);
        assert_eq!((store.deliver(5, NodeId(2)), store.deliver(4, NodeId(1))), (None, None));
        let taken = (0..100).filter(|_| store.deliver(5, NodeId(1)) == Some(job)).count();
        assert_eq!(taken, MAX_DELIVERIES as usize);
        store.lease(6, NodeId(1), job);
        store.release(job, None);
        assert_eq!(store.deliver(6, NodeId(1)), None);
    }
}
