//! Committed data as the opening prover sees it: values made in this proof, kept in memory, and registered data, encoded once
//! and memory-mapped. It refuses files whose shape or root is not the expected one.

use crate::kernels::{CodeShape, CommitKernels};
use memmap2::{Mmap, MmapMut};
use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::transcript::{Digest, HashSuite};
use obelysk_protocol::verifier::merkle::flat_index;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What an opening needs from a committed stack of rows.
pub trait Oracle<B: CommitKernels>: Sync {
    /// Rows `R`.
    fn rows(&self) -> usize;
    /// Root of the tree over its words.
    fn root(&self) -> Digest;
    /// `A[row·2^s + slot]`, see [`CommitKernels::partials_base`].
    fn partials(&self, backend: &B, point: &[QM31]) -> Vec<QM31>;
    /// `F = sum_row coefficients[row]·row`.
    fn combine(&self, backend: &B, coefficients: &[QM31]) -> B::Ext;
    /// Symbols at `positions`, leaf after leaf.
    fn leaves(&self, backend: &B, positions: &[usize]) -> Vec<M31>;
    /// Tree nodes by `(level, index)`.
    fn nodes(&self, backend: &B, wanted: &[(u32, usize)]) -> Vec<Digest>;
}

/// Fresh values: rows, words and tree in the backend's memory.
pub struct CommittedValues<B: CommitKernels> {
    code: CodeShape,
    rows: usize,
    values: B::Base,
    words: B::Words,
    tree: B::Tree,
    root: Digest,
}

impl<B: CommitKernels> CommittedValues<B> {
    /// Commits to `values.len() / 2^h` stacked rows.
    ///
    /// # Panics
    /// If `values` is empty or no multiple of `2^h`: rows are laid out by the caller, never by foreign bytes.
    pub fn commit<S: HashSuite>(backend: &B, code: CodeShape, values: Vec<M31>) -> Self {
        let rows = values.len() >> code.h;
        assert!(rows > 0 && values.len() == rows << code.h, "stacked values are not whole rows");
        let values = backend.base(values);
        let words = backend.encode_base(&values, code);
        let tree = backend.words_tree::<S>(&words, code);
        let root = backend.root(&tree);
        Self { code, rows, values, words, tree, root }
    }

    /// The stacked rows.
    pub fn values(&self) -> &B::Base {
        &self.values
    }

    /// Root of the tree.
    pub fn root(&self) -> Digest {
        self.root
    }
}

impl<B: CommitKernels> Oracle<B> for CommittedValues<B> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn root(&self) -> Digest {
        self.root
    }

    fn partials(&self, backend: &B, point: &[QM31]) -> Vec<QM31> {
        backend.partials_base(&self.values, point)
    }

    fn combine(&self, backend: &B, coefficients: &[QM31]) -> B::Ext {
        backend.combine_base(&self.values, self.code.h, coefficients)
    }

    fn leaves(&self, backend: &B, positions: &[usize]) -> Vec<M31> {
        backend.words_at(&self.words, self.code, positions)
    }

    fn nodes(&self, backend: &B, wanted: &[(u32, usize)]) -> Vec<Digest> {
        backend.nodes(&self.tree, wanted)
    }
}

/// Why a registered oracle's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The file system refused.
    #[error("registered oracle file: {0}; check path, permissions and free space")]
    Io(#[from] io::Error),
    /// Another shape, suite or version, or a truncated file.
    #[error("registered oracle file does not have the expected shape: register the model again")]
    Shape,
    /// The file's root is not the registered one.
    #[error("registered oracle file has another root than the registered model: register the model again")]
    Root,
}

/// First bytes of a registered oracle's file.
const MAGIC: [u8; 8] = *b"obkorcl1";
/// Bytes before the leaves; a multiple of 64 so that leaves stay aligned.
const HEADER: usize = 64;

fn header<S: HashSuite>(code: CodeShape, rows: usize, keep: bool) -> [u8; HEADER] {
    let mut out = [0u8; HEADER];
    out[..8].copy_from_slice(&MAGIC);
    out[8] = S::ID;
    out[LEAVES_AT] = u8::from(!keep);
    out[12..16].copy_from_slice(&code.h.to_le_bytes());
    out[16..20].copy_from_slice(&code.blowup_log.to_le_bytes());
    out[24..32].copy_from_slice(&(rows as u64).to_le_bytes());
    out
}

/// Where a header says whether the leaves follow it.
const LEAVES_AT: usize = 9;

/// Registered int8 rows: the rows in memory, the tree and, if they are kept, the words in a memory-mapped file.
///
/// File: header, then `2^(h+b)` leaves of `R` little-endian `u32` unless they are to be recomputed, then all tree nodes level
/// by level from the leaves. Words are `4·2^b` times as large as their rows; recomputing the leaves of an opening is one pass
/// over the rows for every four of them.
pub struct RegisteredOracle<B: CommitKernels> {
    values: B::Int8,
    words: RegisteredWords,
    root: Digest,
}

/// The file of a registered oracle: its tree and, if they are kept, its words. Cheap to hold on to without the rows.
#[derive(Clone)]
pub struct RegisteredWords {
    code: CodeShape,
    rows: usize,
    /// Bytes of the leaves in the file; zero when they are recomputed.
    kept: usize,
    file: Arc<Mmap>,
}

impl RegisteredWords {
    /// Symbols at `positions`, leaf after leaf; `None` when they are recomputed from the rows.
    #[must_use]
    pub fn leaves(&self, positions: &[usize]) -> Option<Vec<M31>> {
        let symbol = |b: &[u8]| M31::from_u32_unchecked(u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let leaf = |&i: &usize| self.file[HEADER + i * self.rows * 4..][..self.rows * 4].chunks_exact(4).map(symbol);
        (self.kept > 0).then(|| positions.iter().flat_map(leaf).collect())
    }

    /// Tree nodes by `(level, index)`.
    #[must_use]
    pub fn nodes(&self, wanted: &[(u32, usize)]) -> Vec<Digest> {
        let start = HEADER + self.kept;
        let node = |&(level, index): &(u32, usize)| {
            let mut out = [0u8; 32];
            out.copy_from_slice(&self.file[start + 32 * flat_index(self.code.log_n(), level, index)..][..32]);
            out
        };
        wanted.iter().map(node).collect()
    }
}

impl<B: CommitKernels> RegisteredOracle<B> {
    /// Bytes of the leaves of `rows` rows.
    #[must_use]
    pub fn leaf_bytes(code: CodeShape, rows: usize) -> usize {
        (rows * 4) << code.log_n()
    }

    /// Encodes int8 rows into a new file, with their words if they are to be kept, and returns the oracle.
    ///
    /// # Errors
    /// [`RegistrationError::Io`] if the file cannot be written.
    ///
    /// # Panics
    /// If `values` is empty or no multiple of `2^h`.
    pub fn register<S: HashSuite>(
        backend: &B,
        code: CodeShape,
        values: Vec<i8>,
        path: &Path,
        keep: bool,
    ) -> Result<Self, RegistrationError> {
        let rows = values.len() >> code.h;
        assert!(rows > 0 && values.len() == rows << code.h, "stacked weights are not whole rows");
        let kept = if keep { Self::leaf_bytes(code, rows) } else { 0 };
        let values = backend.int8(values);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        if let Err(error) = reserve(&file, (HEADER + kept + 32 * ((2 << code.log_n()) - 1)) as u64) {
            // Whatever part of it was given is needed by others now.
            let _ = file.set_len(0);
            return Err(error.into());
        }
        let mut map = map_mut(&file)?;
        let (head, body) = map.split_at_mut(HEADER);
        let (leaves, nodes) = body.split_at_mut(kept);
        let tree = backend.encode_int8::<S>(&values, code, keep.then_some(leaves));
        for (out, node) in nodes.chunks_exact_mut(32).zip(backend.all_nodes(&tree)) {
            out.copy_from_slice(&node);
        }
        // The header goes last: a file cut short by a crash is not taken for a finished one.
        head.copy_from_slice(&header::<S>(code, rows, keep));
        map.flush()?;
        let words = RegisteredWords { code, rows, kept, file: Arc::new(map.make_read_only()?) };
        Ok(Self { values, words, root: backend.root(&tree) })
    }

    /// Opens a file written by [`Self::register`] for the same rows.
    ///
    /// # Errors
    /// [`RegistrationError`] if the file is missing, has another shape, or another root than `root`.
    pub fn open<S: HashSuite>(
        backend: &B,
        code: CodeShape,
        values: Vec<i8>,
        path: &Path,
        root: &Digest,
    ) -> Result<Self, RegistrationError> {
        let rows = values.len() >> code.h;
        let file = map(&File::open(path)?)?;
        let keep = file.get(LEAVES_AT) == Some(&0);
        let kept = if keep { Self::leaf_bytes(code, rows) } else { 0 };
        let expected = HEADER + kept + 32 * ((2 << code.log_n()) - 1);
        let whole_rows = rows > 0 && values.len() == rows << code.h;
        if !whole_rows || file.len() != expected || file[..HEADER] != header::<S>(code, rows, keep) {
            return Err(RegistrationError::Shape);
        }
        if &file[expected - 32..] != root.as_slice() {
            return Err(RegistrationError::Root);
        }
        let words = RegisteredWords { code, rows, kept, file: Arc::new(file) };
        Ok(Self { values: backend.int8(values), words, root: *root })
    }

    /// The int8 rows.
    pub fn values(&self) -> &B::Int8 {
        &self.values
    }

    /// Its file.
    pub fn words(&self) -> &RegisteredWords {
        &self.words
    }
}

/// Makes a file this long with its blocks: a full disk is an error here and not a fault in the middle of writing.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        // Not every file system can.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        done => return Ok(done?),
    }
    file.set_len(bytes)
}

#[expect(unsafe_code, reason = "memory-mapping a file is unsafe by nature")]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: registration files are written once, before they are opened here, and are owned by this process's user; a
    // foreign change could only yield wrong symbols, which the verifier rejects.
    unsafe { Mmap::map(file) }
}

#[expect(unsafe_code, reason = "memory-mapping a file is unsafe by nature")]
fn map_mut(file: &File) -> io::Result<MmapMut> {
    // SAFETY: the file was just created or truncated by this process and no other mapping of it exists.
    unsafe { MmapMut::map_mut(file) }
}

/// What reads all weights has a span of its own, a part of the opening's.
impl<B: CommitKernels> Oracle<B> for RegisteredOracle<B> {
    fn rows(&self) -> usize {
        self.words.rows
    }

    fn root(&self) -> Digest {
        self.root
    }

    fn partials(&self, backend: &B, point: &[QM31]) -> Vec<QM31> {
        let _span = tracing::info_span!("open.partials").entered();
        backend.partials_int8(&self.values, point)
    }

    fn combine(&self, backend: &B, coefficients: &[QM31]) -> B::Ext {
        let _span = tracing::info_span!("open.combine").entered();
        backend.combine_int8(&self.values, self.words.code.h, coefficients)
    }

    fn leaves(&self, backend: &B, positions: &[usize]) -> Vec<M31> {
        self.words.leaves(positions).unwrap_or_else(|| {
            let _span = tracing::info_span!("open.leaves").entered();
            backend.symbols_int8(&self.values, self.words.code, positions)
        })
    }

    fn nodes(&self, _backend: &B, wanted: &[(u32, usize)]) -> Vec<Digest> {
        self.words.nodes(wanted)
    }
}
