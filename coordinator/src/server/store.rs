//! Blobs of jobs: whose they are, and the leases under which nodes may add to them. The bytes lie in the cluster's store of blobs, or in
//! memory, bounded, where nothing outlives the process or where nothing has to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use obelysk_protocol::wire::BlobRef;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::models::named;
use super::room::{Place, Room};
use crate::blobs::{BlobError, Blobs};
use crate::core::{JobId, NodeId};
use crate::ledger::SharedLedger;

/// Shared between the brain, the sessions and the checks.
#[derive(Debug, Clone)]
pub(super) struct Store {
    inner: Arc<Mutex<Inner>>,
    backing: Option<Backing>,
    /// Counts the terms begun and ended: whoever waits for a blob does so within one.
    terms: Arc<watch::Sender<u64>>,
    /// The one that this is a brain's of: what it asks for later is nobody's loss.
    term: Option<u64>,
}

/// What keeps blobs when the process ends. Calls wait for it, on threads that may.
#[derive(Debug, Clone)]
struct Backing {
    blobs: Blobs,
    runtime: Handle,
    /// Names what is not only jobs'.
    ledger: SharedLedger,
    room: Room,
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
    /// What they take of the room, where there is a store of blobs.
    place: Option<Place>,
    owners: BTreeSet<JobId>,
}

/// Why there are no bytes of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotHad {
    /// Nobody owns it, or they are gone: what can be is made again.
    Gone,
    /// The term ended first: whoever leads next does all this anew.
    Over,
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

/// How long a blob is waited for that a node asks for, when the store of blobs does not give it. What checks ask for is waited for as long
/// as this coordinator leads.
const AWAY_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two attempts, and how often it is said what they come to.
const AWAY_PAUSE: Duration = Duration::from_millis(500);
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// Of the room, the part that is left for results on their way, whatever is kept briefly: one in so many.
const NOT_BRIEF: u64 = 4;

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
    /// Keeps blobs in the store of blobs, or, without one that outlives the process, in memory. So many bytes are in memory at most, those
    /// on their way and the cache of the store of blobs included. Within a runtime.
    pub(super) fn new(limit: u64, blobs: Option<Blobs>, ledger: SharedLedger) -> Self {
        let inner =
            Inner { limit, held: 0, blobs: BTreeMap::new(), writing: Vec::new(), leases: BTreeMap::new(), lost: BTreeSet::new() };
        let backing = blobs.filter(Blobs::is_durable).map(|blobs| {
            let room = Room::new(limit, blobs.clone());
            Backing { blobs, runtime: Handle::current(), ledger, room }
        });
        Self { inner: Arc::new(Mutex::new(inner)), backing, terms: Arc::new(watch::Sender::new(0)), term: None }
    }

    /// The same, for whoever has to do with it in this term only.
    pub(super) fn in_this_term(&self) -> Self {
        let term = Some(*self.terms.borrow());
        Self { term, ..self.clone() }
    }

    fn is_over(&self) -> bool {
        self.term.is_some_and(|term| term != *self.terms.borrow())
    }

    /// Waits for memory for a result, before it is there: `None` where what is kept is counted instead.
    pub(super) async fn room(&self, blob: BlobRef) -> Result<Option<Place>, StoreError> {
        let Some(backing) = &self.backing else { return Ok(None) };
        let limit = self.inner().limit;
        backing.room.take(blob).await.map(Some).ok_or(StoreError::Full { limit })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes held in memory.
    pub(super) fn held(&self) -> u64 {
        let cached = self.backing.as_ref().map_or(0, |backing| backing.blobs.cached_bytes());
        self.inner().held + cached
    }

    /// Keeps bytes for a job; when it returns they are as safe as the store of blobs makes them. Until then they have this [`Store::room`].
    pub(super) async fn keep(&self, job: JobId, blob: BlobRef, bytes: Vec<u8>, _room: Option<Place>) -> Result<(), StoreError> {
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
        slot.place = None;
        if slot.bytes.take().is_some() {
            inner.held -= blob.length;
        }
        Ok(())
    }

    /// As [`Store::keep`], for checks, of which there are few: it waits on its own thread, and for no room, as the bytes are there.
    pub(super) fn put(&self, job: JobId, blob: BlobRef, bytes: Vec<u8>) -> Result<(), StoreError> {
        match &self.backing {
            Some(backing) => backing.wait(self.keep(job, blob, bytes, backing.room.take_now(blob))),
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
        let full = StoreError::Full { limit: inner.limit };
        let most = inner.limit - if self.backing.is_some() { inner.limit / NOT_BRIEF } else { 0 };
        if inner.held.saturating_add(blob.length) > most {
            return Err(full);
        }
        let place = match &self.backing {
            Some(backing) => Some(backing.room.take_now(blob).ok_or(full)?),
            None => None,
        };
        inner.held += blob.length;
        inner.blobs.insert(blob, Slot { bytes: Some(Arc::new(bytes)), place, owners: BTreeSet::from([job]) });
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

    /// The bytes of a blob that some job owns, for a node. What is missing is remembered for [`Store::take_lost`].
    ///
    /// # Errors
    /// [`BlobError`]: the store of blobs does not give it now, and nothing is known to be missing.
    pub(super) async fn fetch(&self, blob: BlobRef) -> Result<Option<Arc<Vec<u8>>>, BlobError> {
        match self.wait_for(blob, AWAY_PATIENCE).await? {
            Ok(bytes) => Ok(Some(bytes)),
            Err(NotHad::Gone | NotHad::Over) => Ok(None),
        }
    }

    /// As [`Store::fetch`], for checks, of which there are few: it waits on its own thread, until the term ends.
    pub(super) fn get(&self, blob: BlobRef) -> Result<Arc<Vec<u8>>, NotHad> {
        let had = match &self.backing {
            Some(backing) => backing.wait(self.wait_for(blob, Duration::MAX)).unwrap_or(Err(NotHad::Over)),
            None => self.in_memory(blob).unwrap_or_else(|| self.gone(blob, None)),
        };
        // Nobody owns anything between two terms.
        had.map_err(|why| if self.is_over() { NotHad::Over } else { why })
    }

    /// Asks the store of blobs until it has an answer: only one that says that the bytes are not there, or are damaged, is one.
    async fn wait_for(&self, blob: BlobRef, patience: Duration) -> Result<Result<Arc<Vec<u8>>, NotHad>, BlobError> {
        let (begun, mut said, mut terms) = (Instant::now(), None::<Instant>, self.terms.subscribe());
        loop {
            // Its job may have ended since.
            if let Some(known) = self.in_memory(blob) {
                return Ok(known);
            }
            let Some(backing) = &self.backing else { return Ok(self.gone(blob, None)) };
            let asked = tokio::select! {
                asked = backing.blobs.get(blob) => asked,
                _ = terms.changed() => return Ok(Err(NotHad::Over)),
            };
            let error = match asked {
                Ok(bytes) => return Ok(Ok(bytes)),
                Err(error @ (BlobError::Missing { .. } | BlobError::Damaged { .. })) => return Ok(self.gone(blob, Some(&error))),
                Err(error) => error,
            };
            if begun.elapsed() >= patience {
                return Err(error);
            }
            if said.is_none_or(|at| at.elapsed() > SAY_AGAIN) {
                said = Some(Instant::now());
                tracing::warn!(%error, "a blob cannot be had now; it is waited for");
            }
            tokio::select! {
                () = tokio::time::sleep(AWAY_PAUSE) => {}
                _ = terms.changed() => return Ok(Err(NotHad::Over)),
            }
        }
    }

    /// What can be said without the store of blobs: bytes, or that nobody owns it.
    fn in_memory(&self, blob: BlobRef) -> Option<Result<Arc<Vec<u8>>, NotHad>> {
        if blob.length == 0 {
            return Some(Ok(Arc::default()));
        }
        match self.inner().blobs.get(&blob) {
            None => Some(Err(NotHad::Gone)),
            Some(slot) => slot.bytes.clone().map(Ok),
        }
    }

    fn gone(&self, blob: BlobRef, error: Option<&BlobError>) -> Result<Arc<Vec<u8>>, NotHad> {
        let error = error.map(ToString::to_string);
        tracing::error!(digest = %obelysk_node::identity::Id(blob.digest), error, "a blob is gone or damaged");
        let mut inner = self.inner();
        inner.blobs.remove(&blob);
        inner.lost.insert(blob);
        Err(NotHad::Gone)
    }

    /// Takes a blob over for a job, of a process that has ended; says whether it is there.
    pub(super) fn adopt(&self, job: JobId, blob: BlobRef) -> bool {
        // Not under the lock: it may have to be asked for.
        let found = self.backing.as_ref().map_or(Ok(false), |backing| backing.wait(backing.blobs.find(blob)));
        let mut inner = self.inner();
        // What cannot be asked for now is asked for when it is needed.
        let here = inner.blobs.contains_key(&blob) || found.unwrap_or(true);
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
            let (store, blobs, ledger) = (self.clone(), backing.blobs.clone(), backing.ledger.clone());
            backing.runtime.spawn(async move {
                // What a node delivers may be anything, also the file of a model that was pushed long ago.
                let named = named(&ledger, &blobs).await;
                if !named.unread.is_empty() {
                    return;
                }
                over.retain(|blob| !named.blobs.contains(blob));
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
    /// ended those jobs. When a term begins, and when it is over: then nobody here waits for blobs, or needs them.
    pub(super) fn begin_term(&self) {
        self.terms.send_modify(|terms| *terms += 1);
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
        let store = Store::new(8, None, SharedLedger::default());
        let (a, b) = (JobId([1; 32]), JobId([2; 32]));
        let blob = BlobRef::of(&[7; 8]);
        store.put(a, blob, vec![7; 8]).expect("fits");
        store.put(b, blob, vec![7; 8]).expect("is there");
        assert!(store.put(a, BlobRef::of(&[1]), vec![1]).is_err());
        store.release(a, None);
        assert!(store.get(blob).is_ok());
        store.release(b, None);
        assert!(store.get(blob).is_err());
        store.put(a, BlobRef::of(&[1]), vec![1]).expect("room again");
    }

    #[test]
    fn what_is_kept_elsewhere_is_nobodys_until_it_is_adopted() {
        let (place, runtime) = (tempfile::tempdir().expect("folder"), runtime());
        let _within = runtime.enter();
        let open = || Store::new(8, Some(Blobs::local(place.path(), 0).expect("opens")), SharedLedger::default());
        let (job, blob, piece) = (JobId([1; 32]), BlobRef::of(&[7; 8]), BlobRef::of(&[1]));
        let store = open();
        store.put(job, blob, vec![7; 8]).expect("kept");
        store.put(job, piece, vec![1]).expect("kept");
        assert_eq!((store.held(), files(place.path())), (0, 2));
        store.release(job, Some(blob));
        until("what is over goes", || files(place.path()) == 1);
        drop(store);

        let store = open();
        assert_eq!(store.get(blob), Err(NotHad::Gone), "nobody owns it yet");
        assert!(store.adopt(job, blob) && !store.adopt(job, piece));
        assert_eq!(store.take_lost(), BTreeSet::from([piece]));
        // A term of another leader lies in between: nothing is anybody's until it is adopted again.
        store.begin_term();
        assert!(!store.has(blob) && store.take_lost().is_empty() && store.adopt(job, blob));
        assert_eq!(store.get(blob).expect("there").as_slice(), [7; 8]);
        std::fs::remove_dir_all(place.path().join("blobs")).expect("there");
        assert_eq!((store.get(blob), store.take_lost()), (Err(NotHad::Gone), BTreeSet::from([blob])));
    }

    #[test]
    fn what_was_kept_briefly_is_written_when_it_must_last() {
        let (place, runtime) = (tempfile::tempdir().expect("folder"), runtime());
        let _within = runtime.enter();
        let blobs = Blobs::local(place.path(), 0).expect("opens");
        let store = Store::new(1 << 20, Some(blobs), SharedLedger::default());
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
        let blobs = Blobs::local(place.path(), 0).expect("opens");
        let store = Store::new(1 << 20, Some(blobs), SharedLedger::default());
        let (job, part, piece) = (JobId([1; 32]), BlobRef::of(&[7; 4]), BlobRef::of(&[1]));
        store.put_briefly(job, part, vec![7; 4]).expect("fits");
        store.put(job, piece, vec![1]).expect("fits");
        assert_eq!((store.get(part).expect("here").as_slice(), files(place.path())), (&[7; 4][..], 1));
        store.release(job, None);
        until("both are gone", || (store.get(part), store.held(), files(place.path())) == (Err(NotHad::Gone), 0, 0));
        let most = BlobRef { digest: [3; 32], length: 800 << 10 };
        assert!(store.put_briefly(job, most, Vec::new()).is_err(), "some room is left for what is on its way");
        store.lease(5, NodeId(1), job);
        assert!(!store.is_brief(5));
        store.lease_is_brief(5);
        assert!(store.is_brief(5) && !store.is_brief(6));
    }

    /// Only an answer that the bytes are not there counts as a loss, which costs a job its results or its life.
    #[test]
    fn a_store_that_fails_is_waited_for_as_long_as_the_term() {
        let (place, runtime) = (tempfile::tempdir().expect("folder"), runtime());
        let _within = runtime.enter();
        let blobs = Blobs::local(place.path(), 0).expect("opens");
        let store = Store::new(1 << 20, Some(blobs), SharedLedger::default());
        let (job, blob) = (JobId([1; 32]), BlobRef::of(&[7; 8]));
        store.put(job, blob, vec![7; 8]).expect("kept");
        let store = store.in_this_term();
        let folders = std::fs::read_dir(place.path().join("blobs")).expect("lists").flatten();
        let file = folders.flat_map(|fan| std::fs::read_dir(fan.path()).expect("lists")).flatten().next().expect("one").path();
        // A folder in its place is no file, and not nothing.
        let fail = || {
            std::fs::remove_file(&file).expect("there");
            std::fs::create_dir(&file).expect("made");
        };
        let ask = || {
            std::thread::spawn({
                let store = store.clone();
                move || store.get(blob)
            })
        };
        fail();
        let asking = ask();
        std::thread::sleep(Duration::from_millis(200));
        assert!(!asking.is_finished() && store.take_lost().is_empty() && store.has(blob));
        std::fs::remove_dir(&file).expect("empty");
        std::fs::write(&file, [7_u8; 8]).expect("written");
        assert_eq!(asking.join().expect("no panic").expect("there again").as_slice(), [7; 8]);
        fail();
        let asking = ask();
        std::thread::sleep(Duration::from_millis(200));
        store.begin_term();
        assert_eq!((asking.join().expect("no panic"), store.take_lost()), (Err(NotHad::Over), BTreeSet::new()));
        assert_eq!((store.get(blob), store.in_this_term().get(blob)), (Err(NotHad::Over), Err(NotHad::Gone)));
    }

    #[test]
    fn a_lease_is_for_its_node_and_for_few_deliveries() {
        let (store, job) = (Store::new(8, None, SharedLedger::default()), JobId([1; 32]));
        store.lease(5, NodeId(1), job);
        assert_eq!((store.deliver(5, NodeId(2)), store.deliver(4, NodeId(1))), (None, None));
        let taken = (0..100).filter(|_| store.deliver(5, NodeId(1)) == Some(job)).count();
        assert_eq!(taken, MAX_DELIVERIES as usize);
        store.lease(6, NodeId(1), job);
        store.release(job, None);
        assert_eq!(store.deliver(6, NodeId(1)), None);
    }
}
