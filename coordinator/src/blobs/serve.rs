//! Blobs of the store on their way to a peer: checked before they leave, so that damage here is never blamed on the network or on them.

use std::sync::Arc;

use obelysk_node::error::TransportError;
use obelysk_node::transport::{BlobSource, InMemory, Later};
use obelysk_protocol::wire::{BlobRef, CHUNK_BYTES, Outline};

use super::{BlobError, Blobs, Inner, READ_BYTES, locked};

/// Blobs up to this size are read whole, checked once and cached; larger ones chunk by chunk.
const WHOLE_BYTES: u64 = 64 << 20;

/// A blob that is served.
#[derive(Debug)]
pub struct Stored {
    blobs: Blobs,
    outline: Arc<Outline>,
    /// Chunks read ahead: the first one's number, and the bytes.
    ahead: tokio::sync::Mutex<(u64, Vec<u8>)>,
}

impl Blobs {
    /// As [`Blobs::source`], from here and nowhere else.
    ///
    /// # Errors
    /// As [`Blobs::get`].
    pub async fn source_here(&self, blob: BlobRef) -> Result<Box<dyn BlobSource>, BlobError> {
        let at_hand = match &*self.0 {
            Inner::Memory(_) => true,
            Inner::Objects(objects) => blob.length <= WHOLE_BYTES || locked(&objects.cache).get(blob).is_some(),
        };
        if at_hand {
            return Ok(Box::new(InMemory { blob, bytes: self.get_here(blob).await? }));
        }
        let outline = self.outline(blob).await?;
        Ok(Box::new(Stored { blobs: self.clone(), outline, ahead: tokio::sync::Mutex::default() }))
    }
}

impl BlobSource for Stored {
    fn blob(&self) -> BlobRef {
        self.outline.blob()
    }

    fn outline(&self) -> Later<'_, Arc<Outline>> {
        Box::pin(std::future::ready(Ok(self.outline.clone())))
    }

    fn chunk(&self, index: u64) -> Later<'_, Vec<u8>> {
        Box::pin(
            async move { self.read(index).await.map_err(|e| TransportError::Refused { reason: e.to_string(), retry: true }) },
        )
    }
}

impl Stored {
    async fn read(&self, index: u64) -> Result<Vec<u8>, BlobError> {
        let blob = self.outline.blob();
        let chunk = |(first, bytes): &(u64, Vec<u8>)| {
            let from = usize::try_from(index.checked_sub(*first)? * CHUNK_BYTES).ok()?;
            let length = usize::try_from(blob.chunk_length(index)).ok()?;
            bytes.get(from..from + length).map(<[u8]>::to_vec)
        };
        let mut ahead = self.ahead.lock().await;
        let found = match chunk(&ahead) {
            Some(found) => found,
            None => {
                let from = index * CHUNK_BYTES;
                let read = self.blobs.get_range(blob, from..(from + READ_BYTES).min(blob.length)).await;
                // What is missing here was there when the outline was made.
                *ahead = (index, if matches!(read, Err(BlobError::Missing { .. })) { Vec::new() } else { read? });
                chunk(&ahead).unwrap_or_default()
            }
        };
        if self.outline.holds(index, &found) {
            return Ok(found);
        }
        match &*self.blobs.0 {
            // Read once more, all of it: one chunk may have come damaged. Where nobody else writes that is done anyhow.
            Inner::Objects(objects) if objects.store.is_shared() && !matches!(objects.read_pieces(blob).await, Ok(None)) => {
                Err(BlobError::Unreached {
                    place: objects.place.clone(),
                    cause: "a chunk was read damaged, and the blob was not found so".to_owned(),
                })
            }
            Inner::Objects(objects) => Err(objects.set_aside(blob).await),
            Inner::Memory(_) => Err(BlobError::missing(blob, "memory")),
        }
    }
}
