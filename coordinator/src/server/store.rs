//! Blobs of jobs, bounded in memory, behind them what keeps them when the process ends; and the leases under which nodes may add to them.

mod folder;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use obelysk_protocol::wire::BlobRef;

use crate::core::{JobId, NodeId};
pub use folder::Folder;

/// Whoever may have a blob cannot be asked now: it is not lost for that.
pub const UNREACHED: io::ErrorKind = io::ErrorKind::NotConnected;

/// Keeps blobs when the process ends. Calls wait for the disk.
///
/// Deliberately this narrow: a store of objects elsewhere takes the place of a folder.
pub trait Backing: Debug + Send + Sync {
    /// Keeps the bytes; when it returns they survive a loss of power.
    ///
    /// # Errors
    /// What the system says; nothing was kept.
    fn put(&self, blob: BlobRef, bytes: &[u8]) -> io::Result<()>;

    /// The bytes, if they are there and undamaged.
    ///
    /// # Errors
    /// What the system says.
    fn get(&self, blob: BlobRef) -> io::Result<Option<Vec<u8>>>;

    /// Whether it seems to be there, without reading it.
    fn has(&self, blob: BlobRef) -> bool;

    /// As [`Backing::has`], wherever it may be. An error of the kind [`UNREACHED`]: not known now.
    ///
    /// # Errors
    /// What the system says.
    fn find(&self, blob: BlobRef) -> io::Result<bool> {
        Ok(self.has(blob))
    }

    /// Forgets one.
    fn remove(&self, blob: BlobRef);

    /// Forgets all but these.
    ///
    /// # Errors
    /// What the system says.
    fn collect(&self, live: &BTreeSet<BlobRef>) -> io::Result<()>;
}

/// Shared between the brain, the sessions and the checks.
#[derive(Debug, Clone)]
pub(super) struct Store {
    inner: Arc<Mutex<Inner>>,
    backing: Option<Arc<dyn Backing>>,
}

#[derive(Debug)]
struct Inner {
    limit: u64,
    /// Bytes in memory.
    held: u64,
    blobs: BTreeMap<BlobRef, Slot>,
    /// Being written by the backing, once for each writer.
    writing: Vec<BlobRef>,
    leases: BTreeMap<u64, Grant>,
    /// Blobs whose bytes are gone although somebody needs them.
    lost: BTreeSet<BlobRef>,
}

#[derive(Debug, Default)]
struct Slot {
    /// In memory; otherwise only with the backing.
    bytes: Option<Arc<Vec<u8>>>,
    owners: BTreeSet<JobId>,
    /// The backing has it.
    safe: bool,
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
    /// The disk refused.
    #[error("blob store cannot write: {0}; check the coordinator's folder and the free space there")]
    Disk(String),
}

impl Store {
    pub(super) fn new(limit: u64, backing: Option<Arc<dyn Backing>>) -> Self {
        let inner =
            Inner { limit, held: 0, blobs: BTreeMap::new(), writing: Vec::new(), leases: BTreeMap::new(), lost: BTreeSet::new() };
        Self { inner: Arc::new(Mutex::new(inner)), backing }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held.
    pub(super) fn held(&self) -> u64 {
        self.inner().held
    }

    /// Keeps bytes for a job; when it returns they are as safe as the backing makes them. Waits for the disk.
    pub(super) fn put(&self, job: JobId, blob: BlobRef, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.put_in(job, blob, bytes, self.backing.as_ref())
    }

    /// Keeps bytes for a job until it or the process ends, in memory: for what a new leader makes again.
    pub(super) fn put_briefly(&self, job: JobId, blob: BlobRef, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.put_in(job, blob, bytes, None)
    }

    fn put_in(&self, job: JobId, blob: BlobRef, bytes: Vec<u8>, backing: Option<&Arc<dyn Backing>>) -> Result<(), StoreError> {
        {
            let mut inner = self.inner();
            if let Some(slot) = inner.blobs.get_mut(&blob).filter(|slot| slot.safe || backing.is_none()) {
                slot.owners.insert(job);
                return Ok(());
            }
            if inner.held.saturating_add(blob.length) > inner.limit {
                return Err(StoreError::Full { limit: inner.limit });
            }
            inner.held += blob.length;
            inner.writing.push(blob);
        }
        let written = backing.map_or(Ok(()), |backing| backing.put(blob, &bytes));
        let mut inner = self.inner();
        if let Some(at) = inner.writing.iter().position(|other| *other == blob) {
            inner.writing.swap_remove(at);
        }
        let fresh = inner.blobs.get(&blob).is_none_or(|slot| slot.bytes.is_none());
        if written.is_err() || !fresh {
            inner.held -= blob.length;
        }
        written.map_err(|e| StoreError::Disk(e.to_string()))?;
        let slot = inner.blobs.entry(blob).or_default();
        slot.owners.insert(job);
        slot.safe |= backing.is_some();
        if fresh {
            slot.bytes = Some(Arc::new(bytes));
        }
        Ok(())
    }

    /// Whether some job owns it.
    pub(super) fn has(&self, blob: BlobRef) -> bool {
        blob.length == 0 || self.inner().blobs.contains_key(&blob)
    }

    /// The bytes if they are in memory.
    pub(super) fn get_held(&self, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
        self.inner().blobs.get(&blob)?.bytes.clone()
    }

    /// The bytes of a blob that some job owns. May wait for the disk. What is missing is remembered for [`Store::take_lost`].
    pub(super) fn get(&self, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
        if blob.length == 0 {
            return Some(Arc::new(Vec::new()));
        }
        if let Some(bytes) = self.inner().blobs.get(&blob)?.bytes.clone() {
            return Some(bytes);
        }
        let begun = Instant::now();
        let read = loop {
            match self.backing.as_ref().map_or(Ok(None), |backing| backing.get(blob)) {
                Err(error) if error.kind() == UNREACHED && begun.elapsed() < UNREACHED_PATIENCE => {
                    tracing::debug!(%error, "a blob cannot be had now");
                    std::thread::sleep(UNREACHED_PAUSE);
                }
                read => break read,
            }
        };
        let mut inner = self.inner();
        match read {
            Ok(Some(bytes)) => {
                let bytes = Arc::new(bytes);
                let room = inner.held.saturating_add(blob.length) <= inner.limit;
                if let Some(slot) = inner.blobs.get_mut(&blob).filter(|slot| room && slot.bytes.is_none()) {
                    slot.bytes = Some(bytes.clone());
                    inner.held += blob.length;
                }
                Some(bytes)
            }
            outcome => {
                tracing::error!(digest = %obelysk_node::identity::Id(blob.digest), ?outcome, "a blob is gone or damaged");
                inner.blobs.remove(&blob);
                inner.lost.insert(blob);
                None
            }
        }
    }

    /// Takes a blob over for a job, of a process that has ended; says whether it is there.
    pub(super) fn adopt(&self, job: JobId, blob: BlobRef) -> bool {
        // Not under the lock: it may have to be asked for.
        let found = self.backing.as_ref().map_or(Ok(false), |backing| backing.find(blob));
        let mut inner = self.inner();
        // What cannot be asked for now is asked for when it is needed.
        let unknown = found.as_ref().is_err_and(|e| e.kind() == UNREACHED);
        let here = inner.blobs.contains_key(&blob) || found.unwrap_or(false) || unknown;
        if here {
            let slot = inner.blobs.entry(blob).or_default();
            slot.owners.insert(job);
            slot.safe |= slot.bytes.is_none();
        } else {
            inner.lost.insert(blob);
        }
        here
    }

    /// Keeps nothing but what was adopted or put.
    pub(super) fn collect(&self) {
        // Under the lock to the end: what is being written meanwhile counts as kept.
        let inner = self.inner();
        let live: BTreeSet<BlobRef> = inner.blobs.keys().chain(&inner.writing).copied().collect();
        if let Some(Err(error)) = self.backing.as_ref().map(|backing| backing.collect(&live)) {
            tracing::warn!(%error, "old blobs were not removed; they only take space");
        }
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
        let mut inner = self.inner();
        let mut freed = 0;
        inner.blobs.retain(|blob, slot| {
            let kept = keep == Some(*blob);
            if !kept {
                slot.owners.remove(&job);
            }
            let over = slot.owners.is_empty();
            if let Some(backing) = self.backing.as_ref().filter(|_| over) {
                // Under the lock: another job may be about to put the same bytes.
                backing.remove(*blob);
            }
            if (over || (kept && self.backing.is_some())) && slot.bytes.take().is_some() {
                freed += blob.length;
            }
            !over
        });
        inner.held -= freed;
        inner.leases.retain(|_, grant| grant.job != job);
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
            let held: u64 = inner.blobs.iter().filter(|(_, slot)| slot.bytes.is_some()).map(|(blob, _)| blob.length).sum();
            inner.held -= held;
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
    fn what_is_kept_elsewhere_leaves_memory_and_comes_back() {
        let place = tempfile::tempdir().expect("folder");
        let open = || Store::new(8, Some(Arc::new(Folder::open(place.path()).expect("opens"))));
        let (job, blob, piece) = (JobId([1; 32]), BlobRef::of(&[7; 8]), BlobRef::of(&[1]));
        let store = open();
        store.put(job, blob, vec![7; 8]).expect("fits");
        store.release(job, Some(blob));
        assert_eq!(store.inner().held, 0);
        store.put(job, piece, vec![1]).expect("room");
        drop(store);

        let store = open();
        assert_eq!(store.get(blob), None, "nobody owns it yet");
        assert!(store.adopt(job, blob) && !store.adopt(job, BlobRef::of(&[9])));
        // A term of another leader lies in between: nothing is anybody's until it is adopted again.
        assert!(store.get(blob).is_some() && store.inner().held == 8);
        store.begin_term();
        assert!(!store.has(blob) && store.inner().held == 0 && store.take_lost().is_empty());
        assert!(store.adopt(job, blob));
        store.collect();
        assert_eq!(store.get(blob).expect("there").as_slice(), [7; 8]);
        assert!(!store.adopt(job, piece), "collected");
        assert_eq!(store.take_lost(), BTreeSet::from([piece]), "of this term");
        assert!(store.take_lost().is_empty());
    }

    /// What another member says, or that it cannot be asked, for a while.
    #[derive(Debug, Default)]
    struct Elsewhere {
        away: std::sync::atomic::AtomicU32,
        bytes: Option<Vec<u8>>,
    }

    impl Backing for Elsewhere {
        fn put(&self, _: BlobRef, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn get(&self, _: BlobRef) -> io::Result<Option<Vec<u8>>> {
            let away = self
                .away
                .fetch_update(std::sync::atomic::Ordering::Relaxed, std::sync::atomic::Ordering::Relaxed, |n| n.checked_sub(1));
            if away.is_ok() { Err(io::Error::new(UNREACHED, "away")) } else { Ok(self.bytes.clone()) }
        }

        fn has(&self, _: BlobRef) -> bool {
            false
        }

        fn find(&self, blob: BlobRef) -> io::Result<bool> {
            Ok(self.get(blob)?.is_some())
        }

        fn remove(&self, _: BlobRef) {}

        fn collect(&self, _: &BTreeSet<BlobRef>) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_asked_for_now_is_not_lost() {
        let (job, blob) = (JobId([1; 32]), BlobRef::of(&[7; 4]));
        let there = Elsewhere { away: 3.into(), bytes: Some(vec![7; 4]) };
        let store = Store::new(8, Some(Arc::new(there)));
        assert!(store.adopt(job, blob), "nobody said that it is gone");
        assert_eq!(store.get(blob).expect("they are back").as_slice(), [7; 4]);
        assert!(store.take_lost().is_empty());
        let nowhere = Store::new(8, Some(Arc::new(Elsewhere::default())));
        assert!(!nowhere.adopt(job, blob), "everybody said so");
        assert_eq!(nowhere.take_lost(), BTreeSet::from([blob]));
    }

    #[test]
    fn what_was_kept_briefly_is_written_when_it_must_last() {
        let place = tempfile::tempdir().expect("folder");
        let store = Store::new(8, Some(Arc::new(Folder::open(place.path()).expect("opens"))));
        let (job, blob) = (JobId([1; 32]), BlobRef::of(&[7; 4]));
        store.put_briefly(job, blob, vec![7; 4]).expect("fits");
        store.put(job, blob, vec![7; 4]).expect("fits");
        assert_eq!((std::fs::read_dir(place.path()).expect("lists").count(), store.inner().held), (1, 4));
        store.release(job, Some(blob));
        assert_eq!(store.get(blob).expect("on disk").as_slice(), [7; 4]);
    }

    #[test]
    fn what_is_kept_briefly_costs_no_file() {
        let place = tempfile::tempdir().expect("folder");
        let store = Store::new(8, Some(Arc::new(Folder::open(place.path()).expect("opens"))));
        let (job, part, piece) = (JobId([1; 32]), BlobRef::of(&[7; 4]), BlobRef::of(&[1]));
        store.put_briefly(job, part, vec![7; 4]).expect("fits");
        store.put(job, piece, vec![1]).expect("fits");
        let files = || std::fs::read_dir(place.path()).expect("lists").count();
        assert_eq!((store.get(part).expect("here").as_slice(), files()), (&[7; 4][..], 1));
        store.release(job, None);
        assert_eq!((store.get(part), store.inner().held, files()), (None, 0, 0));
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
