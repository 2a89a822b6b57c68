//! A few recently computed values by key: what is dropped is computed again, so a small bound costs time and nothing else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The usual key: a digest of everything the value depends on.
pub type Key = [u8; 32];

/// Values in order of use, bounded by the sum of their weights; the newest always stays.
#[derive(Debug)]
pub struct Recent<V, K = Key> {
    limit: usize,
    entries: Mutex<VecDeque<Entry<V, K>>>,
}

#[derive(Debug)]
struct Entry<V, K> {
    key: K,
    weight: usize,
    value: Arc<V>,
}

impl<V, K: PartialEq> Recent<V, K> {
    /// Keeps values of at most `limit` in all.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { limit, entries: Mutex::new(VecDeque::new()) }
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<Entry<V, K>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, key: &K) -> Option<Arc<V>> {
        let mut entries = self.entries();
        let at = entries.iter().position(|e| &e.key == key)?;
        let entry = entries.remove(at)?;
        let value = entry.value.clone();
        entries.push_back(entry);
        Some(value)
    }

    /// All values, the one used last at the end.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<V>> {
        self.entries().iter().map(|e| e.value.clone()).collect()
    }

    /// Keeps nothing of what is here now.
    pub fn clear(&self) {
        // Dropped outside the lock: values may be large.
        let dropped = std::mem::take(&mut *self.entries());
        drop(dropped);
    }

    /// The value under `key`, made with its weight if it is not here. Made outside the lock: two callers may both make it.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get_or<E>(&self, key: K, make: impl FnOnce() -> Result<(V, usize), E>) -> Result<Arc<V>, E> {
        if let Some(value) = self.take(&key) {
            return Ok(value);
        }
        let (value, weight) = make()?;
        let value = Arc::new(value);
        let mut entries = self.entries();
        entries.retain(|e| e.key != key);
        entries.push_back(Entry { key, weight, value: value.clone() });
        let mut total: usize = entries.iter().map(|e| e.weight).sum();
        while total > self.limit && entries.len() > 1 {
            total -= entries.pop_front().map_or(0, |e| e.weight);
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_used_last_within_its_bound() {
        let recent = Recent::<u8>::new(10);
        let get = |key: u8, weight: usize| *recent.get_or([key; 32], || Ok::<_, ()>((key, weight))).unwrap();
        let here = |key: u8| recent.take(&[key; 32]).is_some();
        assert_eq!((get(1, 4), get(2, 4), get(1, 4), get(3, 4)), (1, 2, 1, 3));
        assert!(!here(2) && here(1) && here(3));
        get(4, 100);
        assert!(here(4) && !here(1) && !here(3));
        assert_eq!(recent.get_or([5; 32], || Err("no")).unwrap_err(), "no");
        assert!(here(4));
        assert_eq!(recent.all().len(), 1);
        recent.clear();
        assert!(!here(4) && recent.all().is_empty());
    }
}
