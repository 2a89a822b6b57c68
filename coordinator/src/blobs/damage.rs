//! What is read and is not the blob it should be: read again before it counts as damaged, kept as evidence, missing from then on. Moves
//! nothing away that somebody may have mended meanwhile.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use obelysk_protocol::wire::{BlobRef, CHUNK_BYTES, Outline, OutlineBuilder};

use super::place::{DAMAGED, key_of};
use super::{BlobError, Kept, READ_BYTES, locked};

/// Damage may be of the way here: it is damage when it was read so often.
const READS: usize = 2;
/// Blobs known to be damaged, and not put since: a disk with more has other worries.
const MAX_DAMAGED: usize = 4096;

impl Kept {
    /// The bytes if they are right. Read twice before they count as damaged: what comes over a network may arrive so.
    pub(super) async fn read_right(&self, blob: BlobRef) -> Result<Option<Arc<Vec<u8>>>, BlobError> {
        for _ in 0..READS {
            let bytes = Arc::new(self.store.get(key_of(blob)).await.map_err(|e| self.lost(e, blob))?);
            let read = bytes.clone();
            let right = tokio::task::spawn_blocking(move || BlobRef::of(&read) == blob).await;
            if right.unwrap_or(false) {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The outline if what lies there is the blob, read twice before it is not; never all of it in memory.
    pub(super) async fn read_outline(&self, blob: BlobRef) -> Result<Option<Arc<Outline>>, BlobError> {
        for _ in 0..READS {
            if let Some(outline) = self.read_pieces(blob).await? {
                return Ok(Some(outline));
            }
        }
        Ok(None)
    }

    pub(super) async fn read_pieces(&self, blob: BlobRef) -> Result<Option<Arc<Outline>>, BlobError> {
        let lost = |fault| self.lost(fault, blob);
        // What is longer begins like the blob.
        if self.store.length(key_of(blob)).await.map_err(lost)? != blob.length {
            return Ok(None);
        }
        let mut builder = OutlineBuilder::new(blob.length);
        let mut at = 0;
        while at < blob.length {
            let end = (at + READ_BYTES).min(blob.length);
            let piece = self.store.get_range(key_of(blob), at..end).await.map_err(lost)?;
            piece.chunks(CHUNK_BYTES as usize).for_each(|chunk| builder.push(chunk));
            at = end;
        }
        let outline = Arc::new(builder.finish());
        Ok((outline.blob() == blob).then_some(outline))
    }

    /// Keeps what is not the blob it should be as evidence, and has it count as missing. Where only this process writes it leaves its
    /// place, unless somebody mends it just now; where several do, it stays until somebody writes over it: what lies there a moment later may
    /// be another's, and right.
    pub(super) async fn set_aside(&self, blob: BlobRef) -> BlobError {
        locked(&self.cache).remove(blob);
        locked(&self.outlines).remove(blob);
        let _alone = self.door.write().await;
        if !self.store.is_shared() {
            let written = locked(&self.writing).contains_key(&blob);
            if written || !matches!(self.read_pieces(blob).await, Ok(None)) {
                let cause = "what was read was damaged, and is put anew or cannot be read again".to_owned();
                return BlobError::Unreached { place: self.place.clone(), cause };
            }
        }
        self.note_damaged(blob);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let key = key_of(blob);
        let aside = format!("{DAMAGED}/{}-{now}", key.rsplit('/').next().unwrap_or("blob"));
        let aside = match self.store.set_aside(key.clone(), aside.clone()).await {
            Ok(()) => format!("lies in {aside}"),
            Err(fault) => format!("cannot be kept aside ({})", self.failed(fault, 0)),
        };
        tracing::error!(key, place = self.place, aside, "a blob is damaged");
        BlobError::Damaged { key, place: self.place.clone(), aside }
    }

    fn note_damaged(&self, blob: BlobRef) {
        let mut damaged = locked(&self.damaged);
        if damaged.len() >= MAX_DAMAGED {
            damaged.pop_first();
        }
        damaged.insert(blob);
    }
}
