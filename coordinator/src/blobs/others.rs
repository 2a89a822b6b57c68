//! Blobs where each coordinator has a store of its own: what a majority has before anybody relies on it, and what is asked for where it is
//! missing. How the others are reached is theirs to know who implement [`Others`].

use std::fmt::Debug;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use obelysk_node::transport::{BlobSource, Whole};
use obelysk_protocol::wire::BlobRef;

use super::objects::{Fault, Reading};
use super::{BlobError, Blobs, Inner, Kept, key_of, locked};

/// An answer on its way.
pub type OthersLater<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The other coordinators' stores.
pub trait Others: Debug + Send + Sync {
    /// Returns when so many of them have the blob that it is not lost, whoever is.
    fn spread(&self, blob: BlobRef, bytes: Arc<Vec<u8>>) -> OthersLater<'_, Result<(), String>>;

    /// Asks for a blob.
    fn ask(&self, blob: BlobRef) -> OthersLater<'_, Asked>;
}

/// What the others said of a blob.
#[derive(Debug)]
pub enum Asked {
    /// One of them gave it; it is right.
    Here(Whole),
    /// Every one of them answered that it has none.
    Nowhere,
    /// Not all could be asked.
    Unknown,
}

impl Blobs {
    /// From now on blobs are spread among these, and asked for there. Once in a store's life; none in a store that all share.
    pub fn among(&self, others: Arc<dyn Others>) {
        if let Inner::Objects(objects) = &*self.0
            && !objects.store.is_shared()
        {
            let _ = objects.others.set(others);
        }
    }

    /// Keeps bytes whose digest was checked before, here and nowhere else.
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn put_here(&self, blob: BlobRef, bytes: Arc<Vec<u8>>) -> Result<(), BlobError> {
        let objects = match &*self.0 {
            Inner::Memory(memory) => return memory.put(blob, bytes),
            Inner::Objects(objects) => objects,
        };
        if blob.length == 0 {
            return Ok(());
        }
        let (_writing, _) = objects.begin_put(blob).await;
        loop {
            objects.store.put(key_of(blob), bytes.clone()).await.map_err(|e| objects.failed(e, blob.length))?;
            locked(&objects.damaged).remove(&blob);
            if objects.is_settled(blob).await? {
                return Ok(());
            }
        }
    }

    /// Whether the blob is here, or anywhere among the others: then it is here afterwards. In a store that all share nothing is asked: what
    /// is missing there is found when it is read.
    ///
    /// # Errors
    /// [`BlobError::Unreached`]: who may have it is away. [`BlobError`]: the store fails.
    pub async fn find(&self, blob: BlobRef) -> Result<bool, BlobError> {
        if let Inner::Objects(objects) = &*self.0
            && objects.store.is_shared()
        {
            return Ok(true);
        }
        Ok(self.has(blob).await? || self.ask(blob).await?)
    }

    /// Asks the others for a blob, and keeps it; whether one of them had it.
    pub(super) async fn ask(&self, blob: BlobRef) -> Result<bool, BlobError> {
        let Inner::Objects(objects) = &*self.0 else { return Ok(false) };
        let Some(others) = objects.others.get() else { return Ok(false) };
        match others.ask(blob).await {
            Asked::Here(Whole::Memory(bytes)) => self.put_here(blob, Arc::new(bytes)).await.map(|()| true),
            Asked::Here(Whole::File(file)) => self.put_file(blob, file.path()).await.map(|()| true),
            Asked::Nowhere => Ok(false),
            Asked::Unknown => Err(BlobError::Unreached {
                place: objects.place.clone(),
                cause: "it is not here, and a coordinator that may have it is away; bring the others back".to_owned(),
            }),
        }
    }

    /// The blob, ready to be sent; of the others if it is not here.
    ///
    /// # Errors
    /// As [`Blobs::get`].
    pub async fn source(&self, blob: BlobRef) -> Result<Box<dyn BlobSource>, BlobError> {
        match self.source_here(blob).await {
            Err(error @ (BlobError::Missing { .. } | BlobError::Damaged { .. })) => {
                if self.ask(blob).await? {
                    self.source_here(blob).await
                } else {
                    Err(error)
                }
            }
            source => source,
        }
    }

    /// Removes blobs now that nobody needs any more, unless somebody put them in between for another reason. Where several write, or
    /// nothing is kept, it is left to [`Blobs::collect`].
    ///
    /// # Errors
    /// [`BlobError::Store`]; what was removed until then is removed.
    pub async fn discard(&self, over: &[BlobRef], needed: impl Fn(&BlobRef) -> bool) -> Result<(), BlobError> {
        let Inner::Objects(objects) = &*self.0 else { return Ok(()) };
        if objects.store.is_shared() {
            return Ok(());
        }
        for blob in over {
            let _alone = objects.door.write().await;
            if needed(blob) || locked(&objects.fresh).get(blob).is_some_and(|fresh| fresh.spared) {
                continue;
            }
            objects.delete(*blob).await?;
        }
        Ok(())
    }
}

impl Kept {
    pub(super) async fn delete(&self, blob: BlobRef) -> Result<(), BlobError> {
        locked(&self.cache).remove(blob);
        locked(&self.outlines).remove(blob);
        locked(&self.fresh).remove(&blob);
        self.store.delete(key_of(blob)).await.map_err(|e| self.failed(e, 0))
    }

    /// Has the others keep it too, if there are any.
    pub(super) async fn spread(&self, blob: BlobRef, bytes: &Arc<Vec<u8>>) -> Result<(), BlobError> {
        let Some(others) = self.others.get() else { return Ok(()) };
        let spread = others.spread(blob, bytes.clone()).await;
        spread.map_err(|cause| BlobError::Unreached { place: self.place.clone(), cause })
    }

    /// Puts a file here; nothing appears unless it is the blob announced.
    pub(super) async fn put_file_here(&self, blob: BlobRef, path: &Path) -> Result<(), BlobError> {
        let failed = |fault| match fault {
            Fault::Source(cause) => BlobError::file(path, &cause),
            other => self.failed(other, blob.length),
        };
        let outline = loop {
            let source = Reading::open(blob, path).map_err(failed)?;
            let outline = self.store.put_file(key_of(blob), source).await.map_err(failed)?;
            locked(&self.damaged).remove(&blob);
            if self.is_settled(blob).await? {
                break outline;
            }
        };
        locked(&self.outlines).put(blob, outline, blob.outline_bytes().max(1));
        Ok(())
    }
}
