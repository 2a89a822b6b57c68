//! Bytes by digest: put once, safe from a loss of power when `put` returns, checked whenever they are read.
//!
//! In a folder; or in memory, for clusters that end with their process. Whole or not there:
//! nothing half-written is ever visible. Decides nothing: who owns a blob is known above; [`Blobs::collect`] asks. One process at a time
//! may collect.

mod cache;
mod collect;
mod error;
mod folder;
mod memory;
mod objects;
mod place;
mod serve;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use obelysk_protocol::wire::{BlobRef, CHUNK_BYTES, Outline, OutlineBuilder};

use cache::Cache;
pub use collect::Collected;
pub use error::BlobError;
use memory::Memory;
use objects::{Fault, Objects, Reading};
pub(crate) use place::MODELS;
use place::{DAMAGED, key_of, parse_key};
pub use serve::Stored;

/// What an object store is asked for at once of a large blob: a few chunks, so that its answer time counts once for all of them.
const READ_BYTES: u64 = 8 * CHUNK_BYTES;
/// Outlines kept: 32 bytes for each MiB of the models and results under way.
const OUTLINES: u64 = 64 << 20;
/// Largest document beside the blobs: one line per published model.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;

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
    /// When a blob was last put by this process. Whoever puts holds `door` for reading, whoever deletes for writing.
    fresh: Mutex<BTreeMap<BlobRef, Instant>>,
    door: tokio::sync::RwLock<()>,
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

    /// As [`Blobs::put`], for bytes whose digest was checked before. What is there already is written again: that mends it if it was damaged.
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
        let _here = objects.door.read().await;
        locked(&objects.fresh).insert(blob, Instant::now());
        // In the cache is only what was written, or read and found right, since this process began.
        if locked(&objects.cache).get(blob).is_some() && objects.has(blob).await? {
            return Ok(());
        }
        objects.store.put(key_of(blob), bytes.clone()).await.map_err(|e| objects.failed(e, blob.length))?;
        locked(&objects.cache).put(blob, bytes, blob.length);
        Ok(())
    }

    /// As [`Blobs::put_as`], from a file of any size, never all of it in memory. The digest is checked while the file is read.
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
        let _here = objects.door.read().await;
        locked(&objects.fresh).insert(blob, Instant::now());
        let failed = |fault| match fault {
            Fault::Source(cause) => BlobError::file(path, &cause),
            other => objects.failed(other, blob.length),
        };
        let source = Reading::open(blob, path).map_err(failed)?;
        let outline = objects.store.put_file(key_of(blob), source).await.map_err(failed)?;
        locked(&objects.outlines).put(blob, outline, blob.outline_bytes().max(1));
        Ok(())
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

    /// The bytes, found to be right.
    ///
    /// # Errors
    /// [`BlobError::Missing`]; [`BlobError::Damaged`], after which the blob is missing and what was there lies aside; [`BlobError::Store`].
    pub async fn get(&self, blob: BlobRef) -> Result<Arc<Vec<u8>>, BlobError> {
        let objects = match &*self.0 {
            _ if blob.length == 0 => return Ok(Arc::default()),
            Inner::Memory(memory) => return memory.get(blob).ok_or_else(|| BlobError::missing(blob, "memory")),
            Inner::Objects(objects) => objects,
        };
        if let Some(bytes) = locked(&objects.cache).get(blob) {
            return Ok(bytes);
        }
        let bytes = Arc::new(objects.store.get(key_of(blob)).await.map_err(|e| objects.lost(e, blob))?);
        let read = bytes.clone();
        let right = tokio::task::spawn_blocking(move || BlobRef::of(&read) == blob).await;
        if !right.unwrap_or(false) {
            return Err(objects.set_aside(blob).await);
        }
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
        let mut builder = OutlineBuilder::new(blob.length);
        let mut at = 0;
        while at < blob.length {
            let end = (at + READ_BYTES).min(blob.length);
            let piece = match self.get_range(blob, at..end).await {
                // It is there, and shorter.
                Err(BlobError::Missing { .. }) if objects.is_there(blob).await? => return Err(objects.set_aside(blob).await),
                piece => piece?,
            };
            piece.chunks(CHUNK_BYTES as usize).for_each(|chunk| builder.push(chunk));
            at = end;
        }
        let outline = Arc::new(builder.finish());
        if outline.blob() != blob {
            return Err(objects.set_aside(blob).await);
        }
        locked(&objects.outlines).put(blob, outline.clone(), blob.outline_bytes().max(1));
        Ok(outline)
    }

    /// Makes a blob that is here young, for somebody who is about to refer to it.
    pub fn touch(&self, blob: BlobRef) {
        if let Inner::Objects(objects) = &*self.0 {
            locked(&objects.fresh).insert(blob, Instant::now());
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

    /// Keeps a small named document beside the blobs, replacing an earlier one whole.
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn put_document(&self, name: &str, bytes: Vec<u8>) -> Result<(), BlobError> {
        match &*self.0 {
            Inner::Memory(memory) => memory.put_document(name, bytes),
            Inner::Objects(objects) => {
                let length = bytes.len() as u64;
                objects.store.put(name.to_owned(), Arc::new(bytes)).await.map_err(|e| objects.failed(e, length))
            }
        }
    }

    /// Removes a document; none is as good.
    ///
    /// # Errors
    /// [`BlobError::Store`].
    pub async fn remove_document(&self, name: &str) -> Result<(), BlobError> {
        match &*self.0 {
            Inner::Memory(memory) => memory.remove_document(name),
            Inner::Objects(objects) => objects.store.delete(name.to_owned()).await.map_err(|e| objects.failed(e, 0)),
        }
    }

    /// The documents whose names begin with this folder.
    ///
    /// # Errors
    /// [`BlobError::Store`]; also for one larger than a document may be.
    pub async fn documents(&self, folder: &str) -> Result<BTreeMap<String, Vec<u8>>, BlobError> {
        let objects = match &*self.0 {
            Inner::Memory(memory) => return Ok(memory.documents(folder)),
            Inner::Objects(objects) => objects,
        };
        let mut out = BTreeMap::new();
        for listed in objects.store.list(folder.to_owned()).await.map_err(|e| objects.failed(e, 0))? {
            if listed.length > MAX_DOCUMENT_BYTES {
                return Err(objects.broken(format!("{} has {} bytes, which no document has", listed.key, listed.length)));
            }
            let bytes = objects.store.get(listed.key.clone()).await.map_err(|e| objects.failed(e, 0))?;
            out.insert(listed.key, bytes);
        }
        Ok(out)
    }
}

impl Kept {
    async fn has(&self, blob: BlobRef) -> Result<bool, BlobError> {
        match self.store.length(key_of(blob)).await {
            Ok(length) => Ok(length == blob.length),
            Err(Fault::Missing) => Ok(false),
            Err(fault) => Err(self.failed(fault, 0)),
        }
    }

    /// Whether there is anything in the blob's place.
    async fn is_there(&self, blob: BlobRef) -> Result<bool, BlobError> {
        match self.store.length(key_of(blob)).await {
            Ok(_) => Ok(true),
            Err(Fault::Missing) => Ok(false),
            Err(fault) => Err(self.failed(fault, 0)),
        }
    }

    /// Moves what is not the blob it should be out of its place, as evidence.
    async fn set_aside(&self, blob: BlobRef) -> BlobError {
        locked(&self.cache).remove(blob);
        locked(&self.outlines).remove(blob);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let key = key_of(blob);
        let aside = format!("{DAMAGED}/{}-{now}", key.rsplit('/').next().unwrap_or("blob"));
        let aside = match self.store.rename(key.clone(), aside.clone()).await {
            Ok(()) => format!("lies in {aside}"),
            Err(fault) => format!("cannot be moved aside ({})", self.failed(fault, 0)),
        };
        tracing::error!(key, place = self.place, aside, "a blob is damaged");
        BlobError::Damaged { key, place: self.place.clone(), aside }
    }

    fn lost(&self, fault: Fault, blob: BlobRef) -> BlobError {
        match fault {
            Fault::Missing => BlobError::missing(blob, &self.place),
            other => self.failed(other, blob.length),
        }
    }

    fn failed(&self, fault: Fault, bytes: u64) -> BlobError {
        match fault {
            Fault::Full => BlobError::NoRoom { bytes, place: self.place.clone(), free: self.store.free().unwrap_or(0) },
            Fault::Missing => self.broken("an object went away".to_owned()),
            Fault::Source(cause) | Fault::Failed(cause) => self.broken(cause),
        }
    }

    fn broken(&self, cause: String) -> BlobError {
        BlobError::Store { place: self.place.clone(), cause }
    }
}
