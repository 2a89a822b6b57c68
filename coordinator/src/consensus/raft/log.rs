//! The log as the raft crate reads it: in memory, the shadow of what is on disk.
//!
//! Reads cannot fail, which matters because the crate answers a failed read with a panic. Bounded by compaction (`core.rs`).

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

/// What one step of a member has to put on its disk, whole or not at all, before anything it says may leave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Writes {
    /// Term, vote, and how far is agreed.
    pub hard: Option<HardState>,
    /// A state of the machine that takes the place of the one before.
    pub snapshot: Option<Snapshot>,
    /// The snapshot came from the leader and takes the place of the entries too, whatever they were.
    pub replaced: bool,
    /// Entries up to this (index, term) are no longer kept.
    pub compacted: Option<(u64, u64)>,
    /// Entries that take the place of all from the first one's index on.
    pub entries: Vec<Entry>,
}

impl Writes {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hard.is_none() && self.snapshot.is_none() && self.compacted.is_none() && self.entries.is_empty()
    }
}

/// The log of one member: what it begins with, and what it has after each step.
#[derive(Debug, Clone, Default)]
pub struct Log {
    hard: HardState,
    snapshot: Snapshot,
    compacted: (u64, u64),
    entries: VecDeque<Entry>,
    entry_bytes: usize,
    /// A peer needs a snapshot that names it: set while the crate reads, taken by the driver.
    wanted: Cell<bool>,
}

/// Why parts read from a disk are not a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoLog(pub &'static str);

impl Log {
    /// Puts together what a disk kept.
    ///
    /// # Errors
    /// [`NoLog`]: parts that do not belong together.
    pub fn assemble(hard: HardState, snapshot: Snapshot, compacted: (u64, u64), entries: Vec<Entry>) -> Result<Self, NoLog> {
        let at = snapshot.get_metadata().index;
        let mut previous = compacted;
        for entry in &entries {
            if entry.index != previous.0 + 1 || entry.term < previous.1 {
                return Err(NoLog("its entries have gaps or falling terms"));
            }
            previous = (entry.index, entry.term);
        }
        if at == 0 && (compacted.0 > 0 || !entries.is_empty() || hard.commit > 0) {
            return Err(NoLog("it has entries and no snapshot to apply them to"));
        }
        if compacted.0 > at || previous.0 < at || hard.commit < at || hard.commit > previous.0 || hard.term < previous.1 {
            return Err(NoLog("its snapshot, entries and hard state contradict each other"));
        }
        let entry_bytes = entries.iter().map(weight).sum();
        Ok(Self { hard, snapshot, compacted, entries: entries.into(), entry_bytes, wanted: Cell::new(false) })
    }

    /// The same as they go to a disk.
    #[must_use]
    pub fn parts(&self) -> Writes {
        let entries = self.entries.iter().cloned().collect();
        let snapshot = (self.snapshot.get_metadata().index > 0).then(|| self.snapshot.clone());
        Writes { hard: Some(self.hard.clone()), snapshot, replaced: true, compacted: Some(self.compacted), entries }
    }

    /// Takes over what is on disk now.
    pub fn apply(&mut self, writes: &Writes) {
        if let Some(hard) = &writes.hard {
            self.hard = hard.clone();
        }
        if let Some(snapshot) = &writes.snapshot {
            self.snapshot = snapshot.clone();
        }
        if let Some(compacted) = writes.compacted {
            self.compacted = compacted;
            while self.entries.front().is_some_and(|e| e.index <= compacted.0) {
                self.entry_bytes -= self.entries.pop_front().map_or(0, |e| weight(&e));
            }
            // A tail behind the snapshot may be of a history that never was agreed.
            if writes.replaced {
                self.entries.clear();
                self.entry_bytes = 0;
            }
        }
        if let Some(first) = writes.entries.first() {
            while self.entries.back().is_some_and(|e| e.index >= first.index) {
                self.entry_bytes -= self.entries.pop_back().map_or(0, |e| weight(&e));
            }
            self.entry_bytes += writes.entries.iter().map(weight).sum::<usize>();
            self.entries.extend(writes.entries.iter().cloned());
        }
    }

    /// The snapshot; its index is 0 for a member that has none yet.
    #[must_use]
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The hard state.
    #[must_use]
    pub const fn hard(&self) -> &HardState {
        &self.hard
    }

    /// Entries kept, and their bytes.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.entry_bytes)
    }

    /// Last entry that is not kept any more: index and term.
    #[must_use]
    pub const fn compacted(&self) -> (u64, u64) {
        self.compacted
    }

    /// Index of the last entry.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.entries.back().map_or(self.compacted.0, |e| e.index)
    }

    /// Term of the last entry.
    #[must_use]
    pub fn last_term(&self) -> u64 {
        self.entries.back().map_or(self.compacted.1, |e| e.term)
    }

    /// An entry, by index.
    #[must_use]
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.compacted.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// Whether a peer waits for a newer snapshot; asking answers it.
    pub fn take_wanted(&self) -> bool {
        self.wanted.take()
    }
}

/// Memory of an entry, roughly.
pub(super) fn weight(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + size_of::<Entry>()
}

/// A snapshot's metadata.
pub(super) fn metadata(index: u64, term: u64, conf: ConfState) -> SnapshotMetadata {
    let mut meta = SnapshotMetadata::default();
    (meta.index, meta.term) = (index, term);
    meta.set_conf_state(conf);
    meta
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.snapshot.get_metadata().get_conf_state().clone()))
    }

    fn entries(&self, low: u64, high: u64, max: impl Into<Option<u64>>, _: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        if low <= self.compacted.0 {
            return Err(StorageError::Compacted.into());
        }
        let budget = max.into().unwrap_or(u64::MAX);
        let (mut taken, mut used) = (Vec::new(), 0_u64);
        for entry in (low..high).map_while(|index| self.entry(index)) {
            used = used.saturating_add(weight(entry) as u64);
            // Never none, or a large entry would stop the log.
            if used > budget && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.compacted.0 {
            return Ok(self.compacted.1);
        }
        if index < self.compacted.0 {
            return Err(StorageError::Compacted.into());
        }
        self.entry(index).map(|e| e.term).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let conf = self.snapshot.get_metadata().get_conf_state();
        // Whoever is not named in a snapshot ignores it.
        if conf.voters.contains(&to) || conf.learners.contains(&to) {
            return Ok(self.snapshot.clone());
        }
        self.wanted.set(true);
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}
