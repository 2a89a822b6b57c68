//! Input blobs kept between work items, bounded in bytes, oldest use dropped first. Holds no result of this node.

use std::collections::BTreeMap;
use std::sync::Arc;

use obelysk_protocol::wire::BlobRef;

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    limit: u64,
    held: u64,
    uses: u64,
    blobs: BTreeMap<BlobRef, (u64, Arc<Vec<u8>>)>,
}

impl Cache {
    /// An empty cache of at most `limit` bytes.
    pub(super) const fn new(limit: u64) -> Self {
        Self { limit, held: 0, uses: 0, blobs: BTreeMap::new() }
    }

    /// The blob, when it is here.
    pub(super) fn get(&mut self, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
        self.uses += 1;
        let (used, bytes) = self.blobs.get_mut(&blob)?;
        *used = self.uses;
        Some(bytes.clone())
    }

    /// Keeps a blob, dropping others to make room; one larger than the whole cache is not kept.
    pub(super) fn put(&mut self, blob: BlobRef, bytes: Arc<Vec<u8>>) {
        if blob.length > self.limit || self.blobs.contains_key(&blob) {
            return;
        }
        while self.held + blob.length > self.limit {
            let Some(oldest) = self.blobs.iter().min_by_key(|(_, (used, _))| *used).map(|(blob, _)| *blob) else { return };
            self.blobs.remove(&oldest);
            self.held -= oldest.length;
        }
        self.uses += 1;
        self.held += blob.length;
        self.blobs.insert(blob, (self.uses, bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_least_recently_used_and_keeps_its_bound() {
        let mut cache = Cache::new(10);
        let blobs: Vec<_> = (0_u8..4).map(|i| vec![i; 4]).collect();
        let refs: Vec<_> = blobs.iter().map(|b| BlobRef::of(b)).collect();
        for i in [0, 1] {
            cache.put(refs[i], Arc::new(blobs[i].clone()));
        }
        assert!(cache.get(refs[0]).is_some());
        cache.put(refs[2], Arc::new(blobs[2].clone()));
        assert!(cache.get(refs[1]).is_none());
        assert!(cache.get(refs[0]).is_some() && cache.get(refs[2]).is_some());
        let big = vec![9; 11];
        cache.put(BlobRef::of(&big), Arc::new(big.clone()));
        assert!(cache.get(BlobRef::of(&big)).is_none() && cache.held == 8);
    }
}
