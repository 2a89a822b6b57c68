//! Blobs in memory, bounded, gone with the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use obelysk_protocol::wire::BlobRef;

use super::{BlobError, locked};

#[derive(Debug)]
pub(super) struct Memory {
    limit: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    blobs: BTreeMap<BlobRef, Arc<Vec<u8>>>,
}

impl Memory {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, held: Mutex::default() }
    }

    pub(super) fn put(&self, blob: BlobRef, bytes: Arc<Vec<u8>>) -> Result<(), BlobError> {
        let mut held = locked(&self.held);
        if blob.length == 0 || held.blobs.contains_key(&blob) {
            return Ok(());
        }
        if held.bytes.saturating_add(blob.length) > self.limit {
            return Err(BlobError::Full { limit: self.limit });
        }
        held.bytes += blob.length;
        held.blobs.insert(blob, bytes);
        Ok(())
    }

    pub(super) fn get(&self, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
        locked(&self.held).blobs.get(&blob).cloned()
    }

    pub(super) fn remove(&self, blob: BlobRef) {
        let mut held = locked(&self.held);
        if held.blobs.remove(&blob).is_some() {
            held.bytes -= blob.length;
        }
    }

    /// Removes all but those that are to stay; says how many went, and their bytes.
    pub(super) fn retain(&self, live: impl Fn(&BlobRef) -> bool) -> (u64, u64) {
        let gone: Vec<BlobRef> = locked(&self.held).blobs.keys().filter(|blob| !live(blob)).copied().collect();
        gone.iter().for_each(|blob| self.remove(*blob));
        (gone.len() as u64, gone.iter().map(|blob| blob.length).sum())
    }
}
