//! What was used last, bounded in bytes, shared with those who still hold it.

use std::collections::BTreeMap;
use std::sync::Arc;

use obelysk_protocol::wire::BlobRef;

/// The cache.
#[derive(Debug)]
pub(super) struct Cache<T> {
    /// What it may hold at most, and now.
    most: u64,
    limit: u64,
    held: u64,
    uses: u64,
    values: BTreeMap<BlobRef, (u64, u64, Arc<T>)>,
    /// Oldest use first.
    order: BTreeMap<u64, BlobRef>,
}

impl<T> Cache<T> {
    pub(super) const fn new(limit: u64) -> Self {
        Self { most: limit, limit, held: 0, uses: 0, values: BTreeMap::new(), order: BTreeMap::new() }
    }

    /// Bytes of the values.
    pub(super) const fn held(&self) -> u64 {
        self.held
    }

    /// From now on holds so many bytes, and never more than it was made for.
    pub(super) fn shrink_to(&mut self, limit: u64) {
        self.limit = limit.min(self.most);
        while self.held > self.limit {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.remove(oldest);
        }
    }

    /// The value, when it is here.
    pub(super) fn get(&mut self, blob: BlobRef) -> Option<Arc<T>> {
        let (used, _, value) = self.values.get_mut(&blob)?;
        self.uses += 1;
        self.order.remove(used);
        self.order.insert(self.uses, blob);
        *used = self.uses;
        Some(value.clone())
    }

    /// Keeps a value of so many bytes, dropping others to make room; one larger than the whole cache is not kept.
    pub(super) fn put(&mut self, blob: BlobRef, value: Arc<T>, bytes: u64) {
        self.remove(blob);
        if bytes > self.limit {
            return;
        }
        while self.held + bytes > self.limit {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.remove(oldest);
        }
        self.uses += 1;
        self.held += bytes;
        self.order.insert(self.uses, blob);
        self.values.insert(blob, (self.uses, bytes, value));
    }

    pub(super) fn remove(&mut self, blob: BlobRef) {
        if let Some((used, bytes, _)) = self.values.remove(&blob) {
            self.order.remove(&used);
            self.held -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_least_recently_used_and_keeps_its_bound() {
        let mut cache = Cache::new(10);
        let blobs: Vec<_> = (0_u8..5).map(|i| BlobRef::of(&[i])).collect();
        for blob in &blobs[..2] {
            cache.put(*blob, Arc::new(*blob), 4);
        }
        assert!(cache.get(blobs[0]).is_some());
        cache.put(blobs[2], Arc::new(blobs[2]), 4);
        assert!(cache.get(blobs[1]).is_none() && cache.get(blobs[0]).is_some() && cache.get(blobs[2]).is_some());
        cache.put(blobs[3], Arc::new(blobs[3]), 11);
        assert!(cache.get(blobs[3]).is_none() && cache.held == 8);
        cache.put(blobs[0], Arc::new(blobs[4]), 2);
        assert_eq!((cache.held, cache.get(blobs[0]).as_deref()), (6, Some(&blobs[4])));
        cache.shrink_to(3);
        assert_eq!((cache.held, cache.get(blobs[0]).is_some()), (2, true), "the one used last");
        cache.shrink_to(100);
        cache.put(blobs[3], Arc::new(blobs[3]), 11);
        assert!(cache.get(blobs[3]).is_none(), "never more than it was made for");
        cache.remove(blobs[0]);
        cache.remove(blobs[2]);
        assert!(cache.held == 0 && cache.order.is_empty());
    }
}
