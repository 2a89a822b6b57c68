//! Memory for results on their way into the store of blobs, and for those kept briefly: taken before the bytes are there, given back when
//! they go. What is taken the cache of the store of blobs does without, so that both together keep one bound.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use obelysk_protocol::wire::BlobRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blobs::Blobs;

/// What is counted: a blob takes so many bytes at least.
const UNIT_BYTES: u64 = 1 << 10;
/// How long a result waits for room. Shorter than a node waits for an answer: it hears why.
const PATIENCE: Duration = Duration::from_secs(20);

/// All the room.
#[derive(Debug, Clone)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    units: u32,
    blobs: Blobs,
    /// Whoever tells the cache does so alone, so that the last word is right.
    telling: Arc<Mutex<()>>,
}

/// Room for one blob; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    room: Room,
}

impl Room {
    /// So many bytes, of which the cache of these blobs has what nobody else takes.
    pub(super) fn new(bytes: u64, blobs: Blobs) -> Self {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(units as usize)), units, blobs, telling: Arc::default() }
    }

    /// What a blob takes; one larger than all of it takes all.
    fn units(&self, blob: BlobRef) -> u32 {
        u32::try_from(blob.length.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.units)
    }

    /// Waits a while for room; `None`: there was none.
    pub(super) async fn take(&self, blob: BlobRef) -> Option<Place> {
        let permit = tokio::time::timeout(PATIENCE, self.free.clone().acquire_many_owned(self.units(blob))).await;
        Some(self.taken(permit.ok()?.ok()?))
    }

    /// Room if there is some now.
    pub(super) fn take_now(&self, blob: BlobRef) -> Option<Place> {
        Some(self.taken(self.free.clone().try_acquire_many_owned(self.units(blob)).ok()?))
    }

    fn taken(&self, permit: OwnedSemaphorePermit) -> Place {
        self.tell();
        Place { permit: Some(permit), room: self.clone() }
    }

    fn tell(&self) {
        let _alone = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.blobs.shrink_cache(self.free.available_permits() as u64 * UNIT_BYTES);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.room.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_on_its_way_and_what_is_cached_keep_one_bound() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = Blobs::local(folder.path(), 8 << 10).expect("opens");
        let room = Room::new(8 << 10, blobs.clone());
        for salt in 0..8 {
            blobs.put(vec![salt; 1 << 10]).await.expect("put");
        }
        assert_eq!(blobs.cached_bytes(), 8 << 10);
        let blob = |length| BlobRef { digest: [0; 32], length };
        let first = room.take(blob(5 << 10)).await.expect("room");
        assert_eq!(blobs.cached_bytes(), 3 << 10);
        let soon = Duration::from_millis(50);
        let waits = tokio::time::timeout(soon, room.take(blob(4 << 10))).await.is_err();
        assert!(room.take_now(blob(4 << 10)).is_none() && waits, "full");
        drop(first);
        let all = room.take(blob(u64::MAX)).await.expect("all of it");
        assert_eq!(blobs.cached_bytes(), 0);
        drop(all);
        blobs.put(vec![9; 1 << 10]).await.expect("put");
        assert_eq!(blobs.cached_bytes(), 1 << 10);
    }
}
