//! Removing blobs that nobody needs: never one that is live, nor one younger than the grace.
//!
//! A blob is put first and referred to afterwards; in between, and while a reference is on its way to the log, only its age protects it.
//! Ended anywhere, a collection leaves nothing half-done: it deletes whole objects, each for itself.
//!
//! In a bucket that several coordinators share, the age alone is not enough: one could find a blob old, and delete it after another has
//! put it anew. So one of them deletes, the holder, and looks before each deletion that it still is. Who begins to lead becomes the holder
//! before it puts anything; if the one before says that it is removing, then for as long as a deletion of it can be under way, puts wait,
//! look again, and write again what is gone. What another put and refers to was put when that one led, so its age is right in every later list.

use std::time::{Duration, SystemTime};

use obelysk_protocol::wire::BlobRef;

use super::objects::Listed;
use super::place::{BLOBS, DAMAGED};
use super::{BlobError, Blobs, Inner, Kept, locked, parse_key};

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
        let done = match objects.store.begin_removing().await.map_err(|e| objects.failed(e, 0))? {
            true => objects.collect(&live, grace).await,
            false => Ok(Collected::default()),
        };
        objects.store.end_removing().await.map_err(|e| objects.failed(e, 0))?;
        done
    }
}

impl Kept {
    async fn collect(&self, live: &impl Fn(&BlobRef) -> bool, grace: Duration) -> Result<Collected, BlobError> {
        locked(&self.fresh).retain(|_, put| put.at.elapsed() < grace);
        let mut done = Collected::default();
        for listed in self.store.list(BLOBS.to_owned()).await.map_err(|e| self.failed(e, 0))? {
            let Some(blob) = parse_key(&listed.key, listed.length) else { continue };
            if live(&blob) {
                done.live += 1;
                continue;
            }
            let gone = if is_older(&listed, grace) { self.remove(blob, live, grace).await? } else { Some(false) };
            match gone {
                Some(true) => {
                    done.removed += 1;
                    done.bytes += blob.length;
                }
                Some(false) => done.young += 1,
                // Another removes from now on.
                None => return Ok(done),
            }
        }
        if !self.holds().await? {
            return Ok(done);
        }
        self.forget_evidence().await?;
        if let Some(before) = SystemTime::now().checked_sub(grace) {
            done.torn = self.store.sweep(before).await.map_err(|e| self.failed(e, 0))?;
        }
        Ok(done)
    }

    async fn holds(&self) -> Result<bool, BlobError> {
        self.store.holds().await.map_err(|e| self.failed(e, 0))
    }

    /// Deletes one blob, unless it was put again or became live since it was listed: nobody puts while this looks. `None`: another
    /// process removes now.
    async fn remove(&self, blob: BlobRef, live: &impl Fn(&BlobRef) -> bool, grace: Duration) -> Result<Option<bool>, BlobError> {
        let _alone = self.door.write().await;
        let fresh = locked(&self.fresh).get(&blob).is_some_and(|put| put.at.elapsed() < grace);
        if fresh || live(&blob) {
            return Ok(Some(false));
        }
        // Last of all: what follows is over before the next holder relies on what it puts.
        if !self.holds().await? {
            return Ok(None);
        }
        self.delete(blob).await.map(|()| Some(true))
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
