//! Removing blobs that nobody needs: never one that is live, nor one younger than the grace.
//!
//! A blob is put first and referred to afterwards; in between, and while a reference is on its way to the log, only its age protects it.
//! Ended anywhere, a collection leaves nothing half-done: it deletes whole objects, each for itself.

use std::time::{Duration, SystemTime};

use obelysk_protocol::wire::BlobRef;

use super::objects::Listed;
use super::place::{BLOBS, DAMAGED};
use super::{BlobError, Blobs, Inner, Kept, key_of, locked, parse_key};

/// Damaged blobs are evidence for this long.
const EVIDENCE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Blobs that stay because somebody needs them.
    pub live: u64,
    /// Blobs that stay because they are young.
    pub young: u64,
    /// Blobs removed.
    pub removed: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Files of writes that never ended, removed.
    pub torn: u64,
}

impl Blobs {
    /// Removes every blob that is not `live` and was put longer than `grace` ago.
    ///
    /// # Errors
    /// [`BlobError::Store`]; what was removed until then is removed.
    pub async fn collect(&self, live: impl Fn(&BlobRef) -> bool, grace: Duration) -> Result<Collected, BlobError> {
        let objects = match &*self.0 {
            Inner::Memory(memory) => {
                let (removed, bytes) = if grace.is_zero() { memory.retain(live) } else { (0, 0) };
                return Ok(Collected { removed, bytes, ..Collected::default() });
            }
            Inner::Objects(objects) => objects,
        };
        let mut done = Collected::default();
        for listed in objects.store.list(BLOBS.to_owned()).await.map_err(|e| objects.failed(e, 0))? {
            let Some(blob) = parse_key(&listed.key, listed.length) else { continue };
            if live(&blob) {
                done.live += 1;
            } else if !is_older(&listed, grace) || !objects.remove(blob, &live, grace).await? {
                done.young += 1;
            } else {
                done.removed += 1;
                done.bytes += blob.length;
            }
        }
        objects.forget_evidence().await?;
        if let Some(before) = SystemTime::now().checked_sub(grace) {
            done.torn = objects.store.sweep(before).await.map_err(|e| objects.failed(e, 0))?;
        }
        Ok(done)
    }
}

impl Kept {
    /// Deletes one blob, unless it was put again or became live since it was listed: nobody puts while this looks.
    async fn remove(&self, blob: BlobRef, live: &impl Fn(&BlobRef) -> bool, grace: Duration) -> Result<bool, BlobError> {
        let _alone = self.door.write().await;
        let fresh = {
            let mut fresh = locked(&self.fresh);
            fresh.retain(|_, put| put.elapsed() < grace);
            fresh.contains_key(&blob)
        };
        if fresh || live(&blob) {
            return Ok(false);
        }
        locked(&self.cache).remove(blob);
        locked(&self.outlines).remove(blob);
        self.store.delete(key_of(blob)).await.map_err(|e| self.failed(e, 0)).map(|()| true)
    }

    async fn forget_evidence(&self) -> Result<(), BlobError> {
        let listed = self.store.list(DAMAGED.to_owned()).await.map_err(|e| self.failed(e, 0))?;
        for old in listed.iter().filter(|listed| is_older(listed, EVIDENCE)) {
            self.store.delete(old.key.clone()).await.map_err(|e| self.failed(e, 0))?;
        }
        Ok(())
    }
}

/// A clock that went back makes everything young, which is safe.
fn is_older(listed: &Listed, age: Duration) -> bool {
    listed.modified.elapsed().is_ok_and(|since| since >= age)
}
