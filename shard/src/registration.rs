//! Registration: checks every fact about the weights, lays them out in tiles, encodes and commits each segment once.
//!
//! Layout (`docs/soundness.md`, "Tiles"): tiles of 2^a inputs by 2^b outputs, input fastest, tiles of a matrix ordered by
//! output tile then input tile, matrices in segment order, `2^(h-a-b)` tiles to a row, zero tiles at the end of the last row.

use crate::kernels::{CodeShape, CommitKernels};
use crate::prover::commitment::{Oracle as _, RegisteredOracle, RegistrationError};
use obelysk_model::check::{CheckError, Checker};
use obelysk_model::store::StoreError;
use obelysk_model::{Matrix, WeightSource};
use obelysk_protocol::circuit::descriptor::{Descriptor, MAX_TOKENS};
use obelysk_protocol::circuit::{self, BuildError, PublicInput, Sequence, exp_tables, segment_count};
use obelysk_protocol::transcript::{Digest, HashSuite};
use obelysk_protocol::verifier::opening::OpeningParams;
use obelysk_protocol::verifier::registered::{Registered, SecurityParams};
use std::path::{Path, PathBuf};

/// Why a model cannot be registered or loaded.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// A fact about the weights does not hold.
    #[error("the model breaks a bound the proof relies on: {0}")]
    Check(#[from] CheckError),
    /// The circuits refuse it.
    #[error("the model cannot be proved: {0}")]
    Circuit(#[from] BuildError),
    /// The code's size is not supported.
    #[error("rows of 2^{h} at rate 2^-{blowup_log} are not supported: choose row_log in 2..=24 and blowup_log in 1..=4")]
    Code {
        /// log2 of the row length.
        h: u32,
        /// log2 of the inverse rate.
        blowup_log: u32,
    },
    /// Files.
    #[error("segment {segment}: {source}")]
    Oracle {
        /// Which segment.
        segment: usize,
        /// What happened.
        source: RegistrationError,
    },
    /// The model's own files.
    #[error("the integer model: {0}")]
    Store(#[from] StoreError),
    /// Weights on disk are not those that were registered.
    #[error("segment {segment}: the weights here do not give the registered root: fetch or register the model again")]
    Weights {
        /// Which segment.
        segment: usize,
    },
}

/// Whether the words of a segment's weights are kept on disk, or only their tree. Proofs are the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codewords {
    /// Kept while a segment's take at most this many bytes.
    UpTo(u64),
    /// Always kept.
    Kept,
    /// Recomputed from the weights, at the positions a proof opens.
    Recomputed,
}

impl Default for Codewords {
    /// Two gibibytes: the words of 128 MiB of weights at rate 1/4.
    fn default() -> Self {
        Self::UpTo(2 << 30)
    }
}

impl Codewords {
    fn keeps(self, bytes: usize) -> bool {
        match self {
            Self::UpTo(most) => bytes as u64 <= most,
            Self::Kept => true,
            Self::Recomputed => false,
        }
    }
}

/// The code of a model's oracles.
#[must_use]
pub fn code_shape(d: &Descriptor) -> CodeShape {
    CodeShape { h: u32::from(d.row_log()), blowup_log: u32::from(d.blowup_log()) }
}

/// A segment's matrices as rows of `2^h` weights; empty without matrices.
#[must_use]
pub fn weight_stack(d: &Descriptor, matrices: &[Matrix]) -> Vec<i8> {
    let (a, b) = (usize::from(d.tile_k_log()), usize::from(d.tile_n_log()));
    let row = 1usize << d.row_log();
    let weights: usize = matrices.iter().map(|m| m.data.len()).sum();
    let mut out = Vec::with_capacity(weights.next_multiple_of(row));
    for m in matrices {
        for nt in 0..m.outputs >> b {
            for kt in 0..m.inputs >> a {
                for n in 0..1usize << b {
                    let row = m.row((nt << b) + n);
                    out.extend_from_slice(&row[kt << a..(kt + 1) << a]);
                }
            }
        }
    }
    out.resize(out.len().next_multiple_of(row), 0);
    out
}

fn oracle_path(dir: &Path, segment: usize) -> PathBuf {
    dir.join(format!("oracle-{segment:03}.obw"))
}

/// An input of `rows` rows, all zeros: circuits and security depend on its shape alone. A decoder's has as many checked rows as
/// there can be, in as few sequences as its positions allow.
#[must_use]
pub fn blank_input(d: &Descriptor, rows: usize) -> PublicInput {
    match d {
        Descriptor::Encoder(e) => PublicInput { ids: vec![0; rows], sequences: Vec::new(), output: vec![0; e.width as usize] },
        Descriptor::Decoder(m) => {
            let longest = m.positions.saturating_sub(1).max(1);
            let lengths = (0..rows as u32).step_by(longest as usize).map(|at| (rows as u32 - at).min(longest));
            let sequences: Vec<_> = lengths.map(|completion| Sequence { prompt: 1, completion }).collect();
            PublicInput { ids: vec![0; rows + sequences.len()], sequences, output: Vec::new() }
        }
    }
}

/// Builds every circuit at the smallest and at an awkward large token count, so that a registered model is a provable one.
fn check_provable(d: &Descriptor) -> Result<(), RegisterError> {
    let exp = exp_tables();
    let limit = match d {
        Descriptor::Encoder(e) => MAX_TOKENS.min(e.positions as usize),
        Descriptor::Decoder(_) => MAX_TOKENS,
    };
    for tokens in [1, limit.saturating_sub(1).max(1), limit] {
        let input = blank_input(d, tokens);
        for segment in 0..segment_count(d) {
            circuit::build(d, &exp, &input, segment)?;
        }
    }
    let code = code_shape(d);
    let params = OpeningParams { h: code.h, blowup_log: code.blowup_log, queries: 1, g_fold: 0, g_query: 0 };
    params.validate().map_err(|_| RegisterError::Code { h: code.h, blowup_log: code.blowup_log })
}

/// Commits all segments' weights into `dir`; `progress` is told how many segments are done.
///
/// Segments are read, checked and committed one after the other, so no more than one of them is in memory here.
///
/// # Errors
/// [`RegisterError`].
pub fn register<S: HashSuite, B: CommitKernels>(
    backend: &B,
    model: &dyn WeightSource,
    security: SecurityParams,
    manifest: Digest,
    dir: &Path,
    progress: &dyn Fn(usize),
) -> Result<Registered, RegisterError> {
    register_with::<S, B>(backend, model, security, manifest, (dir, Codewords::default()), progress)
}

/// As [`register`], choosing whether words are kept.
///
/// # Errors
/// [`RegisterError`].
pub fn register_with<S: HashSuite, B: CommitKernels>(
    backend: &B,
    model: &dyn WeightSource,
    security: SecurityParams,
    manifest: Digest,
    (dir, codewords): (&Path, Codewords),
    progress: &dyn Fn(usize),
) -> Result<Registered, RegisterError> {
    let d = model.descriptor();
    let mut checker = Checker::new(d)?;
    check_provable(d)?;
    let mut roots = Vec::new();
    for segment in 0..segment_count(d) {
        let stack = {
            let w = model.segment(segment)?;
            checker.segment(&w)?;
            weight_stack(d, &w.matrices)
        };
        roots.push(if stack.is_empty() {
            None
        } else {
            let path = oracle_path(dir, segment);
            let code = code_shape(d);
            let keep = codewords.keeps(RegisteredOracle::<B>::leaf_bytes(code, stack.len() >> code.h));
            let oracle = RegisteredOracle::<B>::register::<S>(backend, code, stack, &path, keep)
                .map_err(|source| RegisterError::Oracle { segment, source })?;
            Some(oracle.root())
        });
        progress(segment + 1);
    }
    Ok(Registered { descriptor: d.clone(), roots, security, manifest })
}

/// Opens a segment's committed weights.
///
/// # Errors
/// [`RegisterError::Oracle`] when the file is missing or is another's.
pub fn open_oracle<S: HashSuite, B: CommitKernels>(
    backend: &B,
    model: &dyn WeightSource,
    registered: &Registered,
    dir: &Path,
    segment: usize,
) -> Result<Option<RegisteredOracle<B>>, RegisterError> {
    let Some(root) = registered.roots.get(segment).copied().flatten() else { return Ok(None) };
    let stack = weight_stack(model.descriptor(), &model.segment(segment)?.matrices);
    let path = oracle_path(dir, segment);
    RegisteredOracle::open::<S>(backend, code_shape(model.descriptor()), stack, &path, &root)
        .map(Some)
        .map_err(|source| RegisterError::Oracle { segment, source })
}
