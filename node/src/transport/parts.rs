//! Blobs on their way: whole chunks that arrived and were found right, kept while connections come and go.
//!
//! Small ones grow in memory, larger ones in a file beside the list of their chunks' digests, so that even a process that ended goes on where
//! it was. Nothing here is a blob yet: it becomes one when its last chunk is right. Keeps few, not many bytes, and none for long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use obelysk_protocol::wire::{BlobRef, CHUNK_BYTES, Outline};

use crate::error::TransportError;

/// Blobs up to this size grow in memory: activations of a short text; a file for each would cost more than it saves.
const MEMORY_BYTES: u64 = 32 << 20;
/// Memory of parts that wait for their connection to come back.
const PARKED_BYTES: u64 = 256 << 20;
/// Parts that wait: a few per peer that flaps.
const MAX_PARKED: usize = 64;
/// A part nobody went on with for this long is dropped: a machine that was away over night goes on.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Endings of a part's two files.
const ENDINGS: [&str; 2] = ["part", "outline"];

/// How names of files begin that nobody will go on with.
const SPARE: &str = "spare-";

/// The parts of one process.
#[derive(Debug)]
pub struct Parts {
    folder: Option<PathBuf>,
    file_bytes: u64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    parked: BTreeMap<BlobRef, (Instant, Part)>,
    /// Blobs whose file somebody writes now.
    busy: BTreeSet<BlobRef>,
    /// For names of files that nobody goes on with.
    spare: u64,
}

/// The beginning of a blob.
#[derive(Debug)]
pub struct Part {
    blob: BlobRef,
    outline: Option<Outline>,
    have: u64,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Memory(Vec<u8>),
    File(PartFile),
}

/// A file that goes when this is dropped, unless it is to be gone on with.
#[derive(Debug)]
struct PartFile {
    file: File,
    path: PathBuf,
    keep: bool,
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.path);
        }
    }
}

/// A blob that arrived whole, every chunk of it right.
#[derive(Debug)]
pub enum Whole {
    /// A small one.
    Memory(Vec<u8>),
    /// A large one.
    File(WholeFile),
}

/// A file with a whole blob; it goes when this is dropped.
#[derive(Debug)]
pub struct WholeFile(PartFile);

impl WholeFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Makes it the file `to` of the same file system, durably: synced, renamed, folder synced.
    ///
    /// # Errors
    /// [`TransportError::Disk`]; nothing is at `to` then.
    pub fn persist(mut self, to: &Path) -> Result<(), TransportError> {
        let failed = |e: &std::io::Error| disk(to, e);
        self.0.file.sync_all().map_err(|e| failed(&e))?;
        std::fs::rename(&self.0.path, to).map_err(|e| failed(&e))?;
        self.0.keep = true;
        let folder = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed(&e))
    }
}

impl Whole {
    /// The bytes, all in memory.
    ///
    /// # Errors
    /// [`TransportError::Disk`].
    pub fn into_bytes(self) -> Result<Vec<u8>, TransportError> {
        match self {
            Self::Memory(bytes) => Ok(bytes),
            Self::File(file) => std::fs::read(file.path()).map_err(|e| disk(file.path(), &e)),
        }
    }
}

impl Parts {
    /// Parts in memory only: for processes that keep nothing.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { folder: None, file_bytes: 0, table: Mutex::default() }
    }

    /// Large parts in `folder` (created if absent), which belongs to one process, waiting ones of at most `file_bytes` together. Files of an
    /// earlier process are gone on with, those that are too old removed.
    ///
    /// # Errors
    /// [`TransportError::Disk`].
    pub fn open(folder: &Path, file_bytes: u64) -> Result<Self, TransportError> {
        std::fs::create_dir_all(folder).map_err(|e| disk(folder, &e))?;
        let parts = Self { folder: Some(folder.to_owned()), file_bytes, table: Mutex::default() };
        // Those that nobody goes on with are of a process that ended while it wrote them.
        parts.sweep(folder, |stem| stem.starts_with(SPARE));
        Ok(parts)
    }

    /// Whether there is no folder.
    #[must_use]
    pub const fn is_in_memory(&self) -> bool {
        self.folder.is_none()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is here of a blob, to be gone on with; nothing of it as a beginning. Blocking when there are files.
    ///
    /// # Errors
    /// [`TransportError::Disk`].
    pub fn take(&self, blob: BlobRef) -> Result<Part, TransportError> {
        let mut table = self.table();
        if let Some((_, part)) = table.parked.remove(&blob) {
            table.busy.insert(blob);
            return Ok(part);
        }
        let outline = Outline::read(blob, &[]).ok();
        let Some(folder) = self.folder.as_deref().filter(|_| blob.length > MEMORY_BYTES) else {
            return Ok(Part { blob, outline, have: 0, body: Body::Memory(Vec::new()) });
        };
        // Two at once of the same blob: the second goes for itself, and its file with it.
        let keep = table.busy.insert(blob);
        table.spare += 1;
        let name = if keep { name_of(blob) } else { format!("{SPARE}{}", table.spare) };
        drop(table);
        let path = folder.join(name).with_extension(ENDINGS[0]);
        let part = Part::reopen(blob, path, keep);
        if part.is_err() && keep {
            self.table().busy.remove(&blob);
        }
        part
    }

    /// Keeps a part for when its connection is back, dropping the oldest to stay within bounds.
    pub fn park(&self, part: Part) {
        let mut dropped = Vec::new();
        let mut table = self.table();
        if part.is_first() {
            table.busy.remove(&part.blob);
        }
        let worth = part.have > 0 && part.is_first();
        if worth {
            let better = |held: &Part| held.have >= part.have;
            if !table.parked.get(&part.blob).is_some_and(|(_, held)| better(held)) {
                dropped.extend(table.parked.insert(part.blob, (Instant::now(), part)));
            } else {
                dropped.push((Instant::now(), part));
            }
        } else {
            dropped.push((Instant::now(), part.forgotten()));
        }
        let bytes = |table: &Table, files: bool| -> u64 {
            let of_kind = |part: &&Part| matches!(part.body, Body::File(_)) == files;
            table.parked.values().map(|(_, part)| part).filter(of_kind).map(|part| part.have).sum()
        };
        loop {
            let oldest = table.parked.iter().min_by_key(|(_, (since, _))| *since).map(|(blob, (since, _))| (*blob, *since));
            let Some((blob, since)) = oldest else { break };
            let full = bytes(&table, false) > PARKED_BYTES || bytes(&table, true) > self.file_bytes;
            if table.parked.len() <= MAX_PARKED && !full && since.elapsed() < MAX_AGE {
                break;
            }
            dropped.extend(table.parked.remove(&blob).map(|(since, part)| (since, part.forgotten())));
        }
        // Files go outside of the lock.
        drop(table);
        drop(dropped);
        if let Some(folder) = &self.folder {
            self.sweep(folder, |_| false);
        }
    }

    /// The blob, when its last chunk is here.
    ///
    /// # Errors
    /// [`TransportError::Truncated`] before that; the part is kept.
    pub fn finish(&self, part: Part) -> Result<Whole, TransportError> {
        if part.have < part.blob.length {
            self.park(part);
            return Err(TransportError::Truncated("before the last chunk"));
        }
        if part.is_first() {
            self.table().busy.remove(&part.blob);
        }
        Ok(match part.body {
            Body::Memory(bytes) => Whole::Memory(bytes),
            Body::File(mut file) => {
                // From here on it is a blob, which goes when nobody takes it.
                file.keep = false;
                let _ = std::fs::remove_file(file.path.with_extension(ENDINGS[1]));
                Whole::File(WholeFile(file))
            }
        })
    }

    /// Removes files that are unwanted, old, or too many bytes together, the oldest first. Those in use stay.
    fn sweep(&self, folder: &Path, unwanted: impl Fn(&str) -> bool) {
        let held: BTreeSet<String> = {
            let table = self.table();
            table.parked.keys().chain(&table.busy).map(|blob| name_of(*blob)).collect()
        };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut found: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in entries {
            let path = entry.path();
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            let ours = path.extension().and_then(|e| e.to_str()).is_some_and(|e| ENDINGS.contains(&e));
            let Ok(about) = entry.metadata() else { continue };
            if ours && unwanted(&stem) {
                remove(&path);
            } else if ours && !stem.starts_with(SPARE) && !held.contains(&stem) {
                found.push((about.modified().unwrap_or(SystemTime::UNIX_EPOCH), about.len(), path));
            }
        }
        found.sort();
        let mut bytes: u64 = found.iter().map(|(_, length, _)| length).sum();
        for (modified, length, path) in found {
            let old = modified.elapsed().is_ok_and(|age| age > MAX_AGE);
            if old || bytes > self.file_bytes {
                bytes -= length;
                remove(&path);
            }
        }
    }
}

impl Part {
    /// The blob this is the beginning of.
    #[must_use]
    pub const fn blob(&self) -> BlobRef {
        self.blob
    }

    /// Bytes that are here: whole chunks, or all.
    #[must_use]
    pub const fn have(&self) -> u64 {
        self.have
    }

    /// Whether chunks cannot be checked yet.
    #[must_use]
    pub const fn needs_outline(&self) -> bool {
        self.outline.is_none()
    }

    /// Opens, or makes, the file of a part, and finds out how much of it is right. Only the outline is believed, because it joins to the digest.
    fn reopen(blob: BlobRef, path: PathBuf, keep: bool) -> Result<Self, TransportError> {
        let failed = |e: &std::io::Error| disk(&path, e);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(|e| failed(&e))?;
        let list = std::fs::read(path.with_extension(ENDINGS[1])).unwrap_or_default();
        let outline = Outline::read(blob, &list).ok();
        let mut have = 0;
        if let Some(outline) = &outline {
            let mut chunk = vec![0; usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX)];
            while have < blob.length {
                let index = have / CHUNK_BYTES;
                chunk.truncate(usize::try_from(blob.chunk_length(index)).unwrap_or(0));
                if file.read_exact_at(&mut chunk, have).is_err() || !outline.holds(index, &chunk) {
                    break;
                }
                have += chunk.len() as u64;
            }
        }
        file.set_len(have).map_err(|e| failed(&e))?;
        Ok(Self { blob, outline, have, body: Body::File(PartFile { file, path, keep }) })
    }

    /// Takes the list by which chunks are checked.
    ///
    /// # Errors
    /// [`TransportError::BlobDamaged`] when it is another blob's, [`TransportError::Disk`].
    pub fn set_outline(&mut self, list: &[u8]) -> Result<(), TransportError> {
        self.outline = Some(Outline::read(self.blob, list).map_err(|_| TransportError::BlobDamaged)?);
        if let Body::File(file) = &self.body
            && file.keep
        {
            // Not synced: a list that a crash tore is none, and asked for again.
            std::fs::write(file.path.with_extension(ENDINGS[1]), list).map_err(|e| disk(&file.path, &e))?;
        }
        Ok(())
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// [`TransportError::BlobDamaged`] when it is not the one that belongs here, [`TransportError::Disk`]. What was here stays.
    pub fn append(&mut self, chunk: &[u8]) -> Result<(), TransportError> {
        let index = self.have / CHUNK_BYTES;
        if !self.outline.as_ref().is_some_and(|outline| outline.holds(index, chunk)) {
            return Err(TransportError::BlobDamaged);
        }
        match &mut self.body {
            Body::Memory(bytes) => {
                // Growing by doubling would copy everything again and again. Whoever has a right chunk has the blob, whose length is within a
                // limit; and room that nothing was written to takes no memory yet. Where it is refused all the same, it grows by doubling.
                if bytes.capacity() == 0 {
                    let _ = bytes.try_reserve_exact(usize::try_from(self.blob.length).unwrap_or(0));
                }
                bytes.extend_from_slice(chunk);
            }
            Body::File(file) => file.file.write_all_at(chunk, self.have).map_err(|e| disk(&file.path, &e))?,
        }
        self.have += chunk.len() as u64;
        Ok(())
    }

    /// Whether this is the one to go on with, not a second of the same blob.
    const fn is_first(&self) -> bool {
        !matches!(&self.body, Body::File(file) if !file.keep)
    }

    /// Not to be gone on with: its file goes with it.
    fn forgotten(mut self) -> Self {
        if let Body::File(file) = &mut self.body {
            file.keep = false;
        }
        self
    }
}

fn name_of(blob: BlobRef) -> String {
    let digest: String = blob.digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("{digest}-{}", blob.length)
}

fn remove(path: &Path) {
    for ending in ENDINGS {
        let _ = std::fs::remove_file(path.with_extension(ending));
    }
}

pub(crate) fn disk(path: &Path, cause: &std::io::Error) -> TransportError {
    TransportError::Disk { path: path.to_owned(), cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: u64, salt: u8) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8 ^ salt).collect()
    }

    fn some(parts: &Parts, bytes: &[u8], chunks: usize) -> Part {
        let outline = Outline::of(bytes);
        let mut part = parts.take(outline.blob()).expect("taken");
        if part.needs_outline() {
            part.set_outline(outline.bytes()).expect("its own");
        }
        let from = (part.have() / CHUNK_BYTES) as usize;
        for chunk in bytes.chunks(CHUNK_BYTES as usize).skip(from).take(chunks) {
            part.append(chunk).expect("right");
        }
        part
    }

    /// The same in memory and in a file, where also a new process goes on, and damage since is noticed.
    #[test]
    fn a_part_goes_on_where_it_was() {
        let place = tempfile::tempdir().expect("folder");
        for (length, folder) in [(3 * CHUNK_BYTES + 7, None), (MEMORY_BYTES + 7, Some(place.path()))] {
            let open = || folder.map_or_else(Parts::in_memory, |f| Parts::open(f, 1 << 30).expect("opens"));
            let (parts, bytes) = (open(), bytes(length, 1));
            let blob = BlobRef::of(&bytes);
            let mut part = some(&parts, &bytes, 2);
            assert!(matches!(part.append(&bytes[..CHUNK_BYTES as usize]), Err(TransportError::BlobDamaged)));
            assert_eq!(part.have(), 2 * CHUNK_BYTES);
            parts.park(part);
            let part = parts.take(blob).expect("taken");
            assert_eq!((part.have(), part.needs_outline()), (2 * CHUNK_BYTES, false));
            assert!(parts.finish(part).is_err(), "not yet whole");
            let parts = if let Some(folder) = folder {
                // A process that was killed leaves files; this one finds two chunks, of which the second was damaged meanwhile.
                let file = folder.join(name_of(blob)).with_extension("part");
                std::mem::forget(parts);
                OpenOptions::new().write(true).open(&file).expect("there").write_all_at(b"x", CHUNK_BYTES + 9).expect("written");
                let parts = open();
                let part = parts.take(blob).expect("taken");
                assert_eq!((part.have(), part.needs_outline()), (CHUNK_BYTES, false));
                parts.park(part);
                parts
            } else {
                parts
            };
            let part = some(&parts, &bytes, usize::MAX);
            let whole = parts.finish(part).expect("whole");
            assert_eq!(matches!(whole, Whole::File(_)), folder.is_some());
            assert!(whole.into_bytes().expect("read") == bytes);
        }
        assert_eq!(std::fs::read_dir(place.path()).expect("there").count(), 0, "nothing stays");
    }

    #[test]
    fn two_at_once_do_not_meet_and_a_whole_file_moves() {
        let place = tempfile::tempdir().expect("folder");
        let parts = Parts::open(&place.path().join("p"), 1 << 30).expect("opens");
        let bytes = bytes(MEMORY_BYTES + 1, 2);
        let (first, second) = (some(&parts, &bytes, 3), some(&parts, &bytes, usize::MAX));
        assert_eq!((first.have(), second.have()), (3 * CHUNK_BYTES, bytes.len() as u64));
        let Whole::File(file) = parts.finish(second).expect("whole") else { panic!("a file") };
        let to = place.path().join("blob");
        file.persist(&to).expect("moved");
        assert!(std::fs::read(&to).expect("there") == bytes);
        drop(first);
    }

    #[test]
    fn waiting_parts_are_few_and_small() {
        let place = tempfile::tempdir().expect("folder");
        let parts = Parts::open(place.path(), 3 * CHUNK_BYTES).expect("opens");
        for salt in 0..3 {
            let part = some(&parts, &bytes(MEMORY_BYTES + 1, salt), 2);
            parts.park(part);
        }
        let there = |salt| parts.take(BlobRef::of(&bytes(MEMORY_BYTES + 1, salt))).expect("taken").have();
        assert_eq!([there(0), there(1), there(2)], [0, 0, 2 * CHUNK_BYTES]);
        let memory = Parts::in_memory();
        for salt in 0..=MAX_PARKED as u8 {
            let part = some(&memory, &bytes(CHUNK_BYTES + 1, salt), 1);
            memory.park(part);
        }
        assert_eq!(memory.table().parked.len(), MAX_PARKED);
    }
}
