//! What blobs lie in: named objects that appear whole or not at all and are safe when a write returns. Knows no digests but that of a file
//! on its way.

use std::fmt::Debug;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use obelysk_protocol::wire::{BlobRef, CHUNK_BYTES, Outline, OutlineBuilder};

/// Pieces in which a file is read: few calls, little memory.
const PIECE_BYTES: u64 = 8 * CHUNK_BYTES;

/// Why an object is not written or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not there, or shorter than asked.
    Missing,
    /// The disk is full.
    Full,
    /// The file to be put cannot be read, or is not the blob announced.
    Source(String),
    /// It does not answer now; whether it has what was asked for is not known.
    Unreached(String),
    /// It cannot be used as it is set up: cause and remedy.
    Refused(String),
    /// Anything else.
    Failed(String),
}

/// An answer on its way.
pub(super) type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + Send + 'a>>;

/// An object as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: String,
    pub(super) length: u64,
    pub(super) modified: SystemTime,
}

/// Named objects.
pub(super) trait Objects: Debug + Send + Sync {
    /// Writes an object whole, over any earlier one.
    fn put(&self, key: String, bytes: Arc<Vec<u8>>) -> Later<'_, ()>;

    /// As `put`, from a file; nothing appears unless the file is the blob announced.
    fn put_file(&self, key: String, source: Reading) -> Later<'_, Arc<Outline>>;

    /// All of an object.
    fn get(&self, key: String) -> Later<'_, Vec<u8>>;

    /// Some of it.
    fn get_range(&self, key: String, range: std::ops::Range<u64>) -> Later<'_, Vec<u8>>;

    /// Its length.
    fn length(&self, key: String) -> Later<'_, u64>;

    /// Objects whose key begins with this folder.
    fn list(&self, folder: String) -> Later<'_, Vec<Listed>>;

    /// Removes one; none is as good.
    fn delete(&self, key: String) -> Later<'_, ()>;

    /// Keeps what lies at `from` as evidence at `to`. It leaves its place only where nobody else could have written there meanwhile.
    fn set_aside(&self, from: String, to: String) -> Later<'_, ()>;

    /// Removes what writes that never ended left behind, if nobody touched it since `before`. Says how many.
    fn sweep(&self, before: SystemTime) -> Later<'_, u64>;

    /// Makes this the place of this cluster and no other; only who founds the cluster takes a place that is nobody's.
    fn claim(&self, _cluster: String, _founds: bool) -> Later<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Has this process alone delete from now on, as the leader of this term. For so long, what is written may still be deleted by the
    /// one that did before. Refused when somebody did so in this term or a later one.
    fn take_over(&self, _term: u64) -> Later<'_, Duration> {
        Box::pin(std::future::ready(Ok(Duration::ZERO)))
    }

    /// Says that this process is about to remove; whether it may.
    fn begin_removing(&self) -> Later<'_, bool> {
        Box::pin(std::future::ready(Ok(true)))
    }

    /// Says that it removes no more.
    fn end_removing(&self) -> Later<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether this process may still remove, a moment before it does.
    fn holds(&self) -> Later<'_, bool> {
        Box::pin(std::future::ready(Ok(true)))
    }

    /// Whether several processes write here.
    fn is_shared(&self) -> bool {
        false
    }

    /// The folder, when it is one.
    fn folder(&self) -> Option<std::path::PathBuf>;

    /// Free bytes, where that means something.
    fn free(&self) -> Option<u64>;
}

/// A file that is read once, from front to end, to be put and checked at the same time.
#[derive(Debug)]
pub(super) struct Reading {
    blob: BlobRef,
    file: File,
    at: u64,
    builder: OutlineBuilder,
}

impl Reading {
    pub(super) fn open(blob: BlobRef, path: &Path) -> Result<Self, Fault> {
        let file = File::open(path).map_err(|e| Fault::Source(e.to_string()))?;
        Ok(Self { blob, file, at: 0, builder: OutlineBuilder::new(blob.length) })
    }

    /// Bytes of the blob announced.
    pub(super) const fn length(&self) -> u64 {
        self.blob.length
    }

    /// The next piece, or `None` at the end. Blocking.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let length = (self.blob.length - self.at).min(PIECE_BYTES);
        if length == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.read_exact_at(&mut piece, self.at).map_err(|e| Fault::Source(e.to_string()))?;
        piece.chunks(CHUNK_BYTES as usize).for_each(|chunk| self.builder.push(chunk));
        self.at += length;
        Ok(Some(piece))
    }

    /// The outline of what was read, if that was the blob announced.
    pub(super) fn outline(self) -> Result<Arc<Outline>, Fault> {
        let outline = self.builder.finish();
        if outline.blob() == self.blob && self.at == self.blob.length {
            Ok(Arc::new(outline))
        } else {
            Err(Fault::Source("it is not the blob announced".to_owned()))
        }
    }
}
