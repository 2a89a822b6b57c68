//! Bytes by digest: put once, safe from a loss of power when `put` returns, checked whenever they are read.
//!
//! In a folder of this process; in a bucket, which several share; or in memory, for clusters that end with their process. Whole or not
//! there: nothing half-written is ever visible. Decides nothing: who owns a blob is known above; [`Blobs::collect`] asks. One process at a
//! time may collect: in a bucket the one that took over last.

mod bucket;
mod bucket_place;
mod cache;
mod collect;
mod damage;
mod error;
mod folder;
mod memory;
mod objects;
mod others;
mod place;
mod refusal;
mod serve;
mod upload;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use obelysk_protocol::wire::{BlobRef, CHUNK_BYTES, Outline};

use cache::Cache;
pub use collect::Collected;
pub use error::BlobError;
use memory::Memory;
use objects::{Fault, Objects};
pub use others::{Asked, Others, OthersLater};
pub use place::StoreSettings;
use place::{key_of, parse_key};
pub use serve::Stored;

/// What an object store is asked for at once of a large blob: a few chunks, so that its answer time counts once for all of them.
const READ_BYTES: u64 = 8 * CHUNK_BYTES;
/// Outlines kept: 32 bytes for each MiB of the models and results under way.
const OUTLINES: u64 = 64 << 20;
/// What was put within this is not written again: far less than anybody keeps what nothing refers to.
const PUT_AGAIN: Duration = Duration::from_secs(300);

/// A store of blobs. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Blobs(Arc<Inner>);

#[derive(Debug)]
enum Inner {
    Memory(Memory),
    Objects(Box<Kept>),
}

#[derive(Debug)]
struct Kept {
    store: Arc<dyn Objects>,
    /// For people.
    place: String,
    cache: Mutex<Cache<Vec<u8>>>,
    outlines: Mutex<Cache<Outline>>,
    /// Puts by this process. Whoever begins one holds `door` for reading, whoever deletes for writing.
    fresh: Mutex<BTreeMap<BlobRef, Fresh>>,
    door: tokio::sync::RwLock<()>,
    /// Puts under way, of each blob. Begun as those in `fresh`.
    writing: Mutex<BTreeMap<BlobRef, usize>>,
    /// What was found damaged, and was not put since: it counts as missing where it cannot be moved away.
    damaged: Mutex<BTreeSet<BlobRef>>,
    /// Until then, whoever deleted here before this process may still do so.
    settles: Mutex<Option<Instant>>,
    /// The term in which this process took over.
    term: Mutex<Option<u64>>,
    /// The other coordinators' stores, where each has one of its own.
    others: OnceLock<Arc<dyn Others>>,
}

/// The last put of a blob.
#[derive(Debug, Clone, Copy)]
struct Fresh {
    at: Instant,
    /// It is in its place, and with the others, since then.
    done: Option<Instant>,
    /// Somebody other than a job put it, or is about to refer to it.
    spared: bool,
}

/// A put under way.
struct Writing<'a> {
    kept: &'a Kept,
    blob: BlobRef,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut writing = locked(&self.kept.writing);
        if let Some(puts) = writing.get_mut(&self.blob) {
            *puts -= 1;
            if *puts == 0 {
                writing.remove(&self.blob);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blobs {
    /// At most `limit` bytes in memory, gone with the process.
    #[must_use]
    pub fn in_memory(limit: u64) -> Self {
        Self(Arc::new(Inner::Memory(Memory::new(limit))))
    }

    fn over(store: Arc<dyn Objects>, place: String, cache_bytes: u64) -> Self {
        Self(Arc::new(Inner::Objects(Box::new(Kept {
            store,
            place,
            cache: Mutex::new(Cache::new(cache_bytes)),
            outlines: Mutex::new(Cache::new(OUTLINES)),
            fresh: Mutex::default(),
            door: tokio::sync::RwLock::new(()),
            writing: Mutex::default(),
            damaged: Mutex::default(),
            settles: Mutex::default(),
            term: Mutex::default(),
            others: OnceLock::new(),
        }))))
    }

    /// Whether blobs outlive the process.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        matches!(*self.0, Inner::Objects(_))
    }

    /// Keeps bytes under their digest.
    ///
    /// # Errors
    /// [`BlobError`]: no room, or the store fails. Nothing of the blob is there then.
    pub async fn put(&self, bytes: Vec<u8>) -> Result<BlobRef, BlobError> {
        let blob = BlobRef::of(&bytes);
        self.put_as(blob, Arc::new(bytes)).await.map(|()| blob)
    }

    /// Makes the place this cluster's and no other's, where clusters might meet. Who joins a cluster, or goes on in one of several, does
    /// not found it: its place is there already.
    ///
    /// # Errors
    /// [`BlobError::Refused`]: it is another's, or nobody's and this coordinator founds nothing. [`BlobError::Unreached`],
    /// [`BlobError::Store`].
    pub async fn claim(&self, cluster: &str, founds: bool) -> Result<(), BlobError> {
        match &*self.0 {
            Inner::Memory(_) => Ok(()),
            Inner::Objects(objects) => objects.store.claim(cluster.to_owned(), founds).await.map_err(|e| objects.failed(e, 0)),
        }
    }

    /// From now on this process alone removes blobs, until another says so in a later term: for whoever begins to lead. For a few seconds
    /// after another's time a put takes until it is sure that nothing removes it.
    ///
    /// # Errors
    /// [`BlobError::Refused`]: another did so in this term or a later one. [`BlobError`]: the store does not serve.
    pub async fn take_over(&self, term: u64) -> Result<(), BlobError> {
        let Inner::Objects(objects) = &*self.0 else { return Ok(()) };
        let settles = objects.store.take_over(term).await.map_err(|e| objects.failed(e, 0))?;
        *locked(&objects.settles) = Some(Instant::now() + settles);
        *locked(&objects.term) = Some(term);
        Ok(())
    }

    /// The term of the last [`Blobs::take_over`].
    #[must_use]
    pub fn taken_in(&self) -> Option<u64> {
        if let Inner::Objects(objects) = &*self.0 { *locked(&objects.term) } else { None }
    }

    /// As [`Blobs::put`], for bytes whose digest was checked before. What is there already is written again: that mends it if it was
    /// damaged, and makes it young.
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn put_as(&self, blob: BlobRef, bytes: Arc<Vec<u8>>) -> Result<(), BlobError> {
        let objects = match &*self.0 {
            Inner::Memory(memory) => return memory.put(blob, bytes),
            Inner::Objects(objects) => objects,
        };
        if blob.length == 0 {
            return Ok(());
        }
        let (_writing, before) = objects.begin_put(blob).await;
        // In the cache is only what was written, or read and found right, since this process began.
        if before.is_some_and(|done| done.elapsed() < PUT_AGAIN)
            && locked(&objects.cache).get(blob).is_some()
            && objects.has(blob).await?
        {
            objects.done(blob);
            return Ok(());
        }
        loop {
            objects.store.put(key_of(blob), bytes.clone()).await.map_err(|e| objects.failed(e, blob.length))?;
            locked(&objects.damaged).remove(&blob);
            if objects.is_settled(blob).await? {
                break;
            }
        }
        objects.spread(blob, &bytes).await?;
        objects.done(blob);
        locked(&objects.cache).put(blob, bytes, blob.length);
        Ok(())
    }

    /// As [`Blobs::put_here`], from a file of any size, never all of it in memory. The digest is checked while the file is read.
    ///
    /// # Errors
    /// [`BlobError::File`] when the file cannot be read or is not that blob; else as [`Blobs::put`].
    pub async fn put_file(&self, blob: BlobRef, path: &Path) -> Result<(), BlobError> {
        let objects = match &*self.0 {
            Inner::Memory(memory) => {
                let bytes = std::fs::read(path).map_err(|e| BlobError::file(path, &e))?;
                if BlobRef::of(&bytes) != blob {
                    return Err(BlobError::file(path, &"it is not the blob announced"));
                }
                return memory.put(blob, Arc::new(bytes));
            }
            Inner::Objects(objects) => objects,
        };
        let (_writing, _) = objects.begin_put(blob).await;
        objects.spare(blob);
        objects.put_file_here(blob, path).await
    }

    /// Whether the blob is here. Its bytes are not looked at.
    ///
    /// # Errors
    /// [`BlobError::Store`].
    pub async fn has(&self, blob: BlobRef) -> Result<bool, BlobError> {
        match &*self.0 {
            _ if blob.length == 0 => Ok(true),
            Inner::Memory(memory) => Ok(memory.get(blob).is_some()),
            Inner::Objects(objects) => objects.has(blob).await,
        }
    }

    /// The bytes, found to be right; of the others if they are not here.
    ///
    /// # Errors
    /// [`BlobError::Missing`]; [`BlobError::Damaged`], after which the blob is missing and what was there lies aside;
    /// [`BlobError::Unreached`]: whoever may have it is away; [`BlobError::Store`].
    pub async fn get(&self, blob: BlobRef) -> Result<Arc<Vec<u8>>, BlobError> {
        match self.get_here(blob).await {
            Err(error @ (BlobError::Missing { .. } | BlobError::Damaged { .. })) => {
                if self.ask(blob).await? {
                    self.get_here(blob).await
                } else {
                    Err(error)
                }
            }
            found => found,
        }
    }

    /// The bytes if they are in memory.
    #[must_use]
    pub fn cached(&self, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
        match &*self.0 {
            Inner::Memory(memory) => memory.get(blob),
            Inner::Objects(objects) => locked(&objects.cache).get(blob),
        }
    }

    /// Bytes of what is kept in memory to be at hand.
    #[must_use]
    pub fn cached_bytes(&self) -> u64 {
        match &*self.0 {
            Inner::Memory(_) => 0,
            Inner::Objects(objects) => locked(&objects.cache).held(),
        }
    }

    /// From now on keeps at most so many bytes at hand, and never more than when it was opened.
    pub fn shrink_cache(&self, bytes: u64) {
        if let Inner::Objects(objects) = &*self.0 {
            locked(&objects.cache).shrink_to(bytes);
        }
    }

    /// Whether several coordinators have this store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(&*self.0, Inner::Objects(objects) if objects.store.is_shared())
    }

    /// As [`Blobs::get`], from here and nowhere else.
    ///
    /// # Errors
    /// As [`Blobs::get`].
    pub async fn get_here(&self, blob: BlobRef) -> Result<Arc<Vec<u8>>, BlobError> {
        let objects = match &*self.0 {
            _ if blob.length == 0 => return Ok(Arc::default()),
            Inner::Memory(memory) => return memory.get(blob).ok_or_else(|| BlobError::missing(blob, "memory")),
            Inner::Objects(objects) => objects,
        };
        if let Some(bytes) = locked(&objects.cache).get(blob) {
            return Ok(bytes);
        }
        let Some(bytes) = objects.read_right(blob).await? else { return Err(objects.set_aside(blob).await) };
        locked(&objects.damaged).remove(&blob);
        locked(&objects.cache).put(blob, bytes.clone(), blob.length);
        Ok(bytes)
    }

    /// Some of the bytes, as they are in the store: check them by [`Blobs::outline`].
    ///
    /// # Errors
    /// [`BlobError::Missing`], also for what lies beyond the end; [`BlobError::Store`].
    pub async fn get_range(&self, blob: BlobRef, range: std::ops::Range<u64>) -> Result<Vec<u8>, BlobError> {
        let cut = |bytes: &[u8]| {
            let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
            bytes.get(range).map(<[u8]>::to_vec)
        };
        let missing = || BlobError::missing(blob, self.place());
        match &*self.0 {
            Inner::Memory(memory) => memory.get(blob).and_then(|bytes| cut(&bytes)).ok_or_else(missing),
            Inner::Objects(objects) => {
                if let Some(bytes) = locked(&objects.cache).get(blob) {
                    return cut(&bytes).ok_or_else(missing);
                }
                if range.start > range.end || range.end > blob.length {
                    return Err(missing());
                }
                objects.store.get_range(key_of(blob), range).await.map_err(|e| objects.lost(e, blob))
            }
        }
    }

    /// The digests of the blob's chunks. The first time, all of the blob is read and checked.
    ///
    /// # Errors
    /// As [`Blobs::get`].
    pub async fn outline(&self, blob: BlobRef) -> Result<Arc<Outline>, BlobError> {
        let objects = match &*self.0 {
            Inner::Memory(memory) => {
                let bytes = memory.get(blob).ok_or_else(|| BlobError::missing(blob, "memory"))?;
                return Ok(Arc::new(Outline::of(&bytes)));
            }
            Inner::Objects(objects) => objects,
        };
        if let Some(outline) = locked(&objects.outlines).get(blob) {
            return Ok(outline);
        }
        let Some(outline) = objects.read_outline(blob).await? else { return Err(objects.set_aside(blob).await) };
        locked(&objects.outlines).put(blob, outline.clone(), blob.outline_bytes().max(1));
        Ok(outline)
    }

    /// Makes a blob that is here young, for somebody who is about to refer to it. If it is here afterwards, nothing removes it before it
    /// is old again.
    pub async fn touch(&self, blob: BlobRef) {
        if let Inner::Objects(objects) = &*self.0 {
            objects.begin(blob).await;
            objects.spare(blob);
            objects.settled().await;
        }
    }

    /// The folder they lie in, when it is one.
    #[must_use]
    pub fn folder(&self) -> Option<std::path::PathBuf> {
        match &*self.0 {
            Inner::Memory(_) => None,
            Inner::Objects(objects) => objects.store.folder(),
        }
    }

    /// For people: where this is.
    #[must_use]
    pub fn place(&self) -> &str {
        match &*self.0 {
            Inner::Memory(_) => "memory",
            Inner::Objects(objects) => &objects.place,
        }
    }
}

impl Kept {
    /// A put begins; when the last one was done. From here on nothing removes the blob, and what was about to has done so.
    async fn begin(&self, blob: BlobRef) -> Option<Instant> {
        let _here = self.door.read().await;
        let mut fresh = locked(&self.fresh);
        let before = fresh.get(&blob).copied();
        let spared = before.is_some_and(|before| before.spared);
        fresh.insert(blob, Fresh { at: Instant::now(), done: None, spared });
        before.and_then(|before| before.done)
    }

    /// As `begin`, for whoever writes the blob as long as it has what this returns.
    async fn begin_put(&self, blob: BlobRef) -> (Writing<'_>, Option<Instant>) {
        // Before the door: whoever is behind it and does not see this is done before the put begins.
        *locked(&self.writing).entry(blob).or_default() += 1;
        let writing = Writing { kept: self, blob };
        (writing, self.begin(blob).await)
    }

    fn done(&self, blob: BlobRef) {
        if let Some(fresh) = locked(&self.fresh).get_mut(&blob) {
            (fresh.at, fresh.done) = (Instant::now(), Some(Instant::now()));
        }
    }

    fn spare(&self, blob: BlobRef) {
        if let Some(fresh) = locked(&self.fresh).get_mut(&blob) {
            fresh.spared = true;
        }
    }

    /// Waits until nobody else removes any more; whether that took any time.
    async fn settled(&self) -> bool {
        let settles = *locked(&self.settles);
        let Some(until) = settles.filter(|until| *until > Instant::now()) else { return false };
        tokio::time::sleep_until(until.into()).await;
        true
    }

    /// Waits until nobody else removes any more, and says whether the blob just put is still there.
    async fn is_settled(&self, blob: BlobRef) -> Result<bool, BlobError> {
        if self.settled().await { self.has(blob).await } else { Ok(true) }
    }

    async fn has(&self, blob: BlobRef) -> Result<bool, BlobError> {
        if locked(&self.damaged).contains(&blob) {
            return Ok(false);
        }
        match self.store.length(key_of(blob)).await {
            Ok(length) => Ok(length == blob.length),
            Err(Fault::Missing) => Ok(false),
            Err(fault) => Err(self.failed(fault, 0)),
        }
    }

    fn lost(&self, fault: Fault, blob: BlobRef) -> BlobError {
        match fault {
            Fault::Missing => BlobError::missing(blob, &self.place),
            other => self.failed(other, blob.length),
        }
    }

    fn failed(&self, fault: Fault, bytes: u64) -> BlobError {
        let free = if fault == Fault::Full { self.store.free().unwrap_or(0) } else { 0 };
        fault.named(&self.place, bytes, free)
    }
}
