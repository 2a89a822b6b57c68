//! A member's log on its disk: one file, replaced page by page and switched over by one synced write, so that a step is all there or not
//! at all. One process per file. Whatever is damaged is told, not guessed around.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use raft::eraftpb::{HardState, Snapshot};
use redb::{
    Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::log::{Log, Writes};
use super::wire::{decode_entry, decode_hard, decode_snapshot, encode_entry, encode_hard, encode_snapshot};

/// Entries by index.
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
/// Everything there is one of.
const SINGLES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("singles");
const HARD: &str = "hard";
const SNAPSHOT: &str = "snapshot";
const COMPACTED: &str = "compacted";
const MEMBER: &str = "member";
const VERSION: &str = "version";
/// Version of what is in the rows.
const FORMAT: &[u8] = b"1";
/// Bytes of a row's checksum: the file's own covers pages when it is opened, not what a disk returns later.
const CHECK_BYTES: usize = 16;
/// Memory for pages: the log is in memory anyway, and is read once.
const CACHE_BYTES: usize = 16 << 20;
/// The file in a coordinator's folder.
pub const LOG_FILE: &str = "log.redb";

/// Why a log cannot be opened or written. Either ends this member's part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{0} is in use by another coordinator; stop that one, or use another folder")]
    InUse(PathBuf),
    /// It is another member's.
    #[error("{0} is the log of another member; a log belongs to the key beside it, and neither may be copied alone")]
    Foreign(PathBuf),
    /// It is damaged.
    #[error("{path} is damaged ({cause}); remove this coordinator's folder, and add it to the cluster anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was noticed.
        cause: String,
    },
    /// The disk does not do what it is asked.
    #[error("{path}: {cause}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
}

/// The file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: Database,
}

impl Store {
    /// Opens the log of `member` in `folder`, with what it holds; one that was never begun is empty. Checks all of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(folder: &Path, member: u64) -> Result<(Self, Log), StoreError> {
        let path = folder.join(LOG_FILE);
        // The library checks its own invariants with panics in some builds; a damaged file must be an error in all.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let store = Self::open_file(path.clone())?;
            let log = store.load(member)?;
            Ok((store, log))
        }));
        opened.unwrap_or_else(|_| Err(StoreError::Damaged { path, cause: "its pages contradict each other".to_owned() }))
    }

    fn open_file(path: PathBuf) -> Result<Self, StoreError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // It holds the authority's key.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(|e| StoreError::Disk { path: path.clone(), cause: e.to_string() })?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        let backend = redb::backends::FileBackend::new(file);
        match backend.and_then(|backend| builder.create_with_backend(backend)) {
            Ok(file) => Ok(Self { path, file }),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse(path)),
            Err(DatabaseError::Storage(redb::StorageError::Io(e))) if e.kind() != std::io::ErrorKind::InvalidData => {
                Err(StoreError::Disk { path, cause: e.to_string() })
            }
            Err(other) => Err(StoreError::Damaged { path, cause: other.to_string() }),
        }
    }

    fn disk(&self, error: impl Display) -> StoreError {
        StoreError::Disk { path: self.path.clone(), cause: error.to_string() }
    }

    fn damaged(&self, cause: impl Display) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), cause: cause.to_string() }
    }

    fn load(&self, member: u64) -> Result<Log, StoreError> {
        let mut begin = self.file.begin_write().map_err(|e| self.disk(e))?;
        begin.set_durability(Durability::Immediate).map_err(|e| self.disk(e))?;
        let known = self.begin(&begin, member)?;
        if known {
            begin.abort().map_err(|e| self.disk(e))?
        } else {
            begin.commit().map_err(|e| self.disk(e))?
        }
        let read = self.file.begin_read().map_err(|e| self.disk(e))?;
        if self.single(&read, MEMBER)?.as_deref() != Some(&member.to_le_bytes()[..]) {
            return Err(StoreError::Foreign(self.path.clone()));
        }
        if self.single(&read, VERSION)?.as_deref() != Some(FORMAT) {
            return Err(self.damaged("another release wrote it"));
        }
        let hard = self.single(&read, HARD)?.map(|bytes| decode_hard(&bytes)).transpose().map_err(|e| self.damaged(e))?;
        let snapshot = self.single(&read, SNAPSHOT)?.map(|bytes| decode_snapshot(&bytes));
        let snapshot = snapshot.transpose().map_err(|e| self.damaged(e))?;
        let compacted = self.single(&read, COMPACTED)?.map_or(Ok((0, 0)), |bytes| pair(&bytes).map_err(|e| self.damaged(e)))?;
        let mut entries = Vec::new();
        for row in read.open_table(ENTRIES).and_then(|t| Ok(t.range(0..)?)).map_err(|e| self.damaged(e))? {
            let (index, bytes) = row.map_err(|e| self.damaged(e))?;
            let entry = decode_entry(self.checked(bytes.value())?).map_err(|e| self.damaged(e))?;
            if entry.index != index.value() {
                return Err(self.damaged("an entry is not where it belongs"));
            }
            entries.push(entry);
        }
        Log::assemble(hard.unwrap_or_else(HardState::default), snapshot.unwrap_or_else(Snapshot::default), compacted, entries)
            .map_err(|e| self.damaged(e))
    }

    /// Makes the tables of a new file; says whether they were there.
    fn begin(&self, transaction: &WriteTransaction, member: u64) -> Result<bool, StoreError> {
        transaction.open_table(ENTRIES).map_err(|e| self.damaged(e))?;
        let mut singles = transaction.open_table(SINGLES).map_err(|e| self.damaged(e))?;
        if singles.get(VERSION).map_err(|e| self.damaged(e))?.is_some() {
            return Ok(true);
        }
        singles.insert(VERSION, sealed(FORMAT).as_slice()).map_err(|e| self.disk(e))?;
        singles.insert(MEMBER, sealed(&member.to_le_bytes()).as_slice()).map_err(|e| self.disk(e))?;
        Ok(false)
    }

    fn single(&self, read: &ReadTransaction, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let table = read.open_table(SINGLES).map_err(|e| self.damaged(e))?;
        let row = table.get(name).map_err(|e| self.damaged(e))?;
        row.map(|bytes| self.checked(bytes.value()).map(<[u8]>::to_vec)).transpose()
    }

    fn checked<'a>(&self, row: &'a [u8]) -> Result<&'a [u8], StoreError> {
        match row.split_first_chunk::<CHECK_BYTES>() {
            Some((check, bytes)) if *check == checksum(bytes) => Ok(bytes),
            _ => Err(self.damaged("a row's checksum is wrong")),
        }
    }

    /// Writes a step; when it returns, the step is on the disk.
    ///
    /// # Errors
    /// [`StoreError`]: what is on the disk is not known; this member must stop, and look anew when it starts again.
    pub fn write(&self, writes: &Writes) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut transaction = self.file.begin_write().map_err(|e| self.disk(e))?;
        transaction.set_durability(Durability::Immediate).map_err(|e| self.disk(e))?;
        self.put(&transaction, writes)?;
        transaction.commit().map_err(|e| self.disk(e))
    }

    fn put(&self, transaction: &WriteTransaction, writes: &Writes) -> Result<(), StoreError> {
        let mut singles = transaction.open_table(SINGLES).map_err(|e| self.disk(e))?;
        let mut entries = transaction.open_table(ENTRIES).map_err(|e| self.disk(e))?;
        if let Some(hard) = &writes.hard {
            let bytes = encode_hard(hard).map_err(|e| self.disk(e))?;
            singles.insert(HARD, sealed(&bytes).as_slice()).map_err(|e| self.disk(e))?;
        }
        if let Some(snapshot) = &writes.snapshot {
            let bytes = encode_snapshot(snapshot).map_err(|e| self.disk(e))?;
            singles.insert(SNAPSHOT, sealed(&bytes).as_slice()).map_err(|e| self.disk(e))?;
        }
        if let Some((index, term)) = writes.compacted {
            let bytes = [index.to_le_bytes(), term.to_le_bytes()].concat();
            singles.insert(COMPACTED, sealed(&bytes).as_slice()).map_err(|e| self.disk(e))?;
            let until = if writes.replaced { u64::MAX } else { index };
            entries.retain_in(..=until, |_, _| false).map_err(|e| self.disk(e))?;
        }
        if let Some(first) = writes.entries.first() {
            entries.retain_in(first.index.., |_, _| false).map_err(|e| self.disk(e))?;
        }
        for entry in &writes.entries {
            let bytes = encode_entry(entry).map_err(|e| self.disk(e))?;
            entries.insert(entry.index, sealed(&bytes).as_slice()).map_err(|e| self.disk(e))?;
        }
        Ok(())
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECK_BYTES]);
    check
}

fn sealed(bytes: &[u8]) -> Vec<u8> {
    [&checksum(bytes)[..], bytes].concat()
}

fn pair(bytes: &[u8]) -> Result<(u64, u64), &'static str> {
    let [index, term] = bytes.as_chunks::<8>().0 else { return Err("a row of another length") };
    Ok((u64::from_le_bytes(*index), u64::from_le_bytes(*term)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::raft::core::genesis;
    use crate::consensus::raft::member::Member;
    use raft::eraftpb::Entry;

    struct Nothing;

    impl crate::consensus::Machine for Nothing {
        fn apply(&mut self, _: u64, _: &[u8]) {}
        fn snapshot(&self) -> Vec<u8> {
            vec![3; 9]
        }
        fn restore(&mut self, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
    }

    fn first() -> Writes {
        let place = || "c:1".to_owned();
        genesis(&[Member { key: [1; 32], peer: place(), service: place() }], 0, &Nothing).expect("acceptable").parts()
    }

    fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
        let one = |index| {
            let mut e = Entry::default();
            (e.index, e.term, e.data) = (index, term, vec![index as u8; 100].into());
            e
        };
        range.map(one).collect()
    }

    fn hard(term: u64, commit: u64) -> Option<HardState> {
        let mut h = HardState::default();
        (h.term, h.vote, h.commit) = (term, 7, commit);
        Some(h)
    }

    /// What memory makes of each step, the disk gives back.
    #[test]
    fn a_log_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("folder");
        let (_, mut shadow) = Store::open(folder.path(), 5).expect("new");
        assert_eq!(shadow.parts(), Log::default().parts());
        let snapshot = first().snapshot;
        let mut at_seven = snapshot.clone();
        at_seven.iter_mut().for_each(|s| s.mut_metadata().index = 7);
        let mut later = snapshot.clone();
        later.iter_mut().for_each(|s| s.mut_metadata().index = 40);
        let steps = [
            first(),
            Writes { hard: hard(2, 1), entries: entries(2..10, 2), ..Writes::default() },
            Writes { hard: hard(3, 7), entries: entries(8..12, 3), ..Writes::default() },
            Writes { snapshot: at_seven, compacted: Some((5, 2)), ..Writes::default() },
            Writes { hard: hard(4, 40), snapshot: later, replaced: true, compacted: Some((40, 1)), ..Writes::default() },
            Writes { entries: entries(41..43, 4), ..Writes::default() },
        ];
        for step in steps {
            let (store, _) = Store::open(folder.path(), 5).expect("opens");
            assert!(matches!(Store::open(folder.path(), 5), Err(StoreError::InUse(_))), "one process");
            store.write(&step).expect("written");
            shadow.apply(&step);
            drop(store);
            let (_, back) = Store::open(folder.path(), 5).expect("opens");
            assert_eq!(back.parts(), shadow.parts());
        }
        assert!(matches!(Store::open(folder.path(), 6), Err(StoreError::Foreign(_))));
    }

    #[test]
    fn a_damaged_file_is_an_error_that_says_so() {
        let folder = tempfile::tempdir().expect("folder");
        let (store, _) = Store::open(folder.path(), 5).expect("new");
        store.write(&first()).expect("written");
        store.write(&Writes { hard: hard(2, 1), entries: entries(2..60, 2), ..Writes::default() }).expect("written");
        drop(store);
        let path = folder.path().join(LOG_FILE);
        let good = std::fs::read(&path).expect("reads");
        // An entry's bytes, wherever they lie.
        let at = good.windows(50).position(|w| w == [50; 50]).expect("there");
        let mut cases = vec![good[..good.len() / 3].to_vec(), b"not a log at all".to_vec(), vec![0; good.len()]];
        for place in [0, at, 70, 4100] {
            let mut bad = good.clone();
            bad[place] ^= 0x10;
            cases.push(bad);
        }
        let mut refused = 0;
        for bad in cases {
            std::fs::write(&path, bad).expect("writes");
            match Store::open(folder.path(), 5) {
                Err(StoreError::Damaged { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
                // Damage where nothing lies.
                Ok((_, log)) => assert_eq!(log.last(), 59),
            }
        }
        assert!(refused >= 5, "{refused}");
        std::fs::write(&path, good).expect("writes");
        assert_eq!(Store::open(folder.path(), 5).expect("whole again").1.last(), 59);
    }
}
