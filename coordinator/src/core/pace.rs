//! How often the same thing is recorded: at most once a minute each, the latest wins. Knows nothing of what is recorded.

use std::collections::{BTreeMap, BTreeSet};

/// A peer that says another thing each second must not fill the log that all coordinators keep.
const EVERY_MS: u64 = 60_000;

/// When each thing was last recorded, and which of them have changed since. As many as were recorded within a minute.
#[derive(Debug, Clone)]
pub(super) struct Pace<K> {
    at: BTreeMap<K, u64>,
    waiting: BTreeSet<K>,
}

impl<K> Default for Pace<K> {
    fn default() -> Self {
        Self { at: BTreeMap::new(), waiting: BTreeSet::new() }
    }
}

impl<K: Copy + Ord> Pace<K> {
    /// Whether this may be recorded now; if not, it comes up in [`Pace::due`].
    pub(super) fn now(&mut self, key: K, now_ms: u64) -> bool {
        if self.at.get(&key).is_some_and(|at| now_ms < at + EVERY_MS) {
            self.waiting.insert(key);
            return false;
        }
        self.waiting.remove(&key);
        self.at.insert(key, now_ms);
        true
    }

    /// What waited long enough.
    pub(super) fn due(&mut self, now_ms: u64) -> BTreeSet<K> {
        self.at.retain(|_, at| now_ms < *at + EVERY_MS);
        let (later, due) = std::mem::take(&mut self.waiting).into_iter().partition(|key| self.at.contains_key(key));
        self.waiting = later;
        due
    }
}
