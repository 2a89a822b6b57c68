//! The bytes of a one-member log: batches, each with a checksum over itself and all before it, and snapshots. Knows no facts, no threads.
//!
//! A batch is what one sync makes durable. The next is written only after that, so a bad batch with a good one behind it was once
//! whole: that is damage and refused. A bad batch at the end was never agreed: it is cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use obelysk_node::identity::{read_private, write_private};

use super::SoloError;
use crate::consensus::MAX_ENTRY_BYTES;

/// First bytes of a log file, with its version.
const LOG: [u8; 8] = *b"OBLKLOG1";
/// First bytes of a snapshot file, with its version.
const SNAPSHOT: [u8; 8] = *b"OBLKSNP1";
/// First bytes of each batch.
const BATCH: [u8; 4] = *b"BTCH";
/// Magic, first index, entries, bytes, checksum of the batch before.
const HEAD: usize = 4 + 8 + 4 + 8 + 32;
/// The head and its own checksum.
const HEADER: usize = HEAD + 32;
/// Magic, the last index of the snapshot before it, checksum.
const LOG_HEADER: usize = 8 + 8 + 32;
/// Largest batch read: more than are ever joined in one.
pub(super) const MAX_BATCH_BYTES: usize = 2 * MAX_ENTRY_BYTES;
/// Largest snapshot read: all facts at their bounds fit many times.
const MAX_SNAPSHOT_BYTES: u64 = 1 << 30;

fn failed(path: &Path, e: &io::Error) -> SoloError {
    SoloError::Disk { path: path.display().to_string(), cause: e.to_string() }
}

fn damaged(path: &Path, cause: &'static str) -> SoloError {
    SoloError::Damaged { path: path.display().to_string(), cause }
}

/// What is on disk at a start.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) snapshot: Option<(u64, Vec<u8>)>,
    /// Entries after the snapshot, with their indices.
    pub(super) entries: Vec<(u64, Vec<u8>)>,
    pub(super) log: Log,
}

/// The open log file.
#[derive(Debug)]
pub(super) struct Log {
    folder: PathBuf,
    file: File,
    /// Checksum of the last batch, or of the header.
    chain: [u8; 32],
    pub(super) next_index: u64,
    pub(super) bytes: u64,
}

impl Log {
    /// Reads a folder, cutting off a batch that was never agreed; begins an empty one.
    pub(super) fn open(folder: &Path) -> Result<Found, SoloError> {
        let snapshot = read_snapshot(&folder.join("snapshot"))?;
        let after = snapshot.as_ref().map_or(0, |(index, _)| *index);
        let path = folder.join("log");
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound && snapshot.is_none() => {
                let log = Self::fresh(folder, 0)?;
                return Ok(Found { snapshot, entries: Vec::new(), log });
            }
            Err(e) => return Err(failed(&path, &e)),
        }
        let (base, mut chain) = read_header(&bytes).ok_or_else(|| damaged(&path, "its first bytes are no log's"))?;
        if base > after {
            return Err(damaged(&path, "it continues a snapshot that is not there"));
        }
        let (mut at, mut next_index, mut entries) = (LOG_HEADER, base + 1, Vec::new());
        while let Some(batch) = read_batch(bytes.get(at..).unwrap_or_default(), next_index, &chain) {
            at += batch.bytes;
            chain = batch.check;
            entries.extend((next_index..).zip(batch.entries));
            next_index = base + 1 + entries.len() as u64;
        }
        let rest = bytes.get(at..).unwrap_or_default();
        if !rest.is_empty() {
            if holds_a_batch(rest) {
                return Err(damaged(&path, "a part in its middle does not match its checksum"));
            }
            tracing::warn!(path = %path.display(), bytes = rest.len(), "the log ends in a write that was never agreed; cut off");
        }
        let open = || {
            let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
            file.set_len(at as u64)?;
            file.sync_all()?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(|e| failed(&path, &e))?;
        entries.retain(|(index, _)| *index > after);
        if next_index <= after {
            return Err(damaged(&path, "it ends before the snapshot does"));
        }
        let log = Self { folder: folder.to_owned(), file, chain, next_index, bytes: at as u64 };
        Ok(Found { snapshot, entries, log })
    }

    /// An empty log after `base`, in place of whatever was there.
    fn fresh(folder: &Path, base: u64) -> Result<Self, SoloError> {
        let (path, aside) = (folder.join("log"), folder.join("log.new"));
        let mut header = [&LOG[..], &base.to_le_bytes()].concat();
        let chain = *blake3::hash(&header).as_bytes();
        header.extend_from_slice(&chain);
        let make = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            file.write_all(&header)?;
            file.sync_all()?;
            std::fs::rename(&aside, &path)?;
            File::open(folder)?.sync_all()?;
            Ok(file)
        };
        let file = make().map_err(|e| failed(&path, &e))?;
        Ok(Self { folder: folder.to_owned(), file, chain, next_index: base + 1, bytes: LOG_HEADER as u64 })
    }

    /// Writes entries as one batch and syncs. After an error the file may end in half a batch, which the next start cuts off.
    pub(super) fn append(&mut self, entries: &[Vec<u8>]) -> Result<(), SoloError> {
        let mut content = Vec::new();
        for entry in entries {
            content.extend_from_slice(&(entry.len() as u64).to_le_bytes());
            content.extend_from_slice(entry);
        }
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let mut head = [&BATCH[..], &self.next_index.to_le_bytes(), &count.to_le_bytes()].concat();
        head.extend_from_slice(&(content.len() as u64).to_le_bytes());
        head.extend_from_slice(&self.chain);
        let check = checksum(&head, &content);
        let batch = [&head[..], &check, &content].concat();
        let write = self.file.write_all(&batch).and_then(|()| self.file.sync_data());
        write.map_err(|e| failed(&self.folder.join("log"), &e))?;
        self.chain = check;
        self.next_index += u64::from(count);
        self.bytes += batch.len() as u64;
        Ok(())
    }

    /// Makes a state durable that holds every entry so far, and begins the log anew after it.
    pub(super) fn replace(&mut self, snapshot: &[u8]) -> Result<(), SoloError> {
        let last = self.next_index - 1;
        let head = [&SNAPSHOT[..], &last.to_le_bytes()].concat();
        let check = checksum(&head, snapshot);
        let path = self.folder.join("snapshot");
        let bytes = [&head[..], &check, snapshot].concat();
        let cause = |e: obelysk_node::identity::IdentityError| SoloError::Disk { path: path.display().to_string(), cause: e.to_string() };
        write_private(&path, &bytes).map_err(cause)?;
        *self = Self::fresh(&self.folder, last)?;
        Ok(())
    }
}

fn checksum(head: &[u8], content: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(content);
    *hasher.finalize().as_bytes()
}

fn read_header(bytes: &[u8]) -> Option<(u64, [u8; 32])> {
    let (head, check) = bytes.get(..LOG_HEADER)?.split_at_checked(16)?;
    let check: [u8; 32] = check.try_into().ok()?;
    let base = u64::from_le_bytes(head.strip_prefix(&LOG)?.try_into().ok()?);
    (*blake3::hash(head).as_bytes() == check).then_some((base, check))
}

struct Batch {
    entries: Vec<Vec<u8>>,
    check: [u8; 32],
    bytes: usize,
}

/// Head, checksum and content of a batch that is whole in itself.
fn split_batch(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    head.starts_with(&BATCH).then_some(())?;
    let (check, rest) = rest.split_at_checked(32)?;
    let length = u64::from_le_bytes(head.get(16..24)?.try_into().ok()?);
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_BATCH_BYTES)?;
    let content = rest.get(..length)?;
    (check == checksum(head, content)).then_some((head, check, content))
}

fn read_batch(bytes: &[u8], index: u64, chain: &[u8; 32]) -> Option<Batch> {
    let (head, check, mut content) = split_batch(bytes)?;
    (head.get(4..12)? == index.to_le_bytes() && head.get(24..)? == chain).then_some(())?;
    let count = u32::from_le_bytes(head.get(12..16)?.try_into().ok()?);
    let length = HEADER + content.len();
    let mut entries = Vec::new();
    for _ in 0..count {
        let (size, rest) = content.split_first_chunk::<8>()?;
        let (entry, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*size)).ok()?)?;
        entries.push(entry.to_vec());
        content = rest;
    }
    content.is_empty().then_some(Batch { entries, check: check.try_into().ok()?, bytes: length })
}

/// Whether, behind a bad batch, there is a good one: then the bad one had been synced.
fn holds_a_batch(bytes: &[u8]) -> bool {
    let starts = bytes.windows(BATCH.len()).enumerate().filter(|(_, w)| *w == BATCH).map(|(at, _)| at);
    starts.into_iter().any(|at| bytes.get(at..).and_then(split_batch).is_some())
}

fn read_snapshot(path: &Path) -> Result<Option<(u64, Vec<u8>)>, SoloError> {
    let cause = |e: obelysk_node::identity::IdentityError| SoloError::Disk { path: path.display().to_string(), cause: e.to_string() };
    let Some(bytes) = read_private(path, MAX_SNAPSHOT_BYTES).map_err(cause)? else { return Ok(None) };
    let read = || {
        let (head, rest) = bytes.split_at_checked(16)?;
        let (check, content) = rest.split_at_checked(32)?;
        let index = u64::from_le_bytes(head.strip_prefix(&SNAPSHOT)?.try_into().ok()?);
        (check == checksum(head, content)).then(|| (index, content.to_vec()))
    };
    read().map(Some).ok_or_else(|| damaged(path, "it does not match its checksum"))
}

#[cfg(test)]
impl Log {
    /// Writes elsewhere from now on.
    pub(super) fn redirect(&mut self, file: File) {
        self.file = file;
    }
}
