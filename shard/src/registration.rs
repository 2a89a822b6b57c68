//! Registration: checks every fact about the weights, lays them out in tiles, encodes and commits each segment once.
//!
//! Layout (`docs/soundness.md`, "Tiles"): tiles of 2^a inputs by 2^b outputs, input fastest, tiles of a matrix ordered by
//! output tile then input tile, matrices in segment order, `2^(h-a-b)` tiles to a row, zero tiles at the end of the last row.

use crate::kernels::{CodeShape, CommitKernels};
use crate::prover::commitment::{Oracle as _, RegisteredOracle, RegistrationError};
use obelysk_model::check::{CheckError, check};
use obelysk_model::{IntegerModel, Matrix};
use obelysk_protocol::circuit::descriptor::{Descriptor, MAX_TOKENS};
use obelysk_protocol::circuit::{self, BuildError, PublicInput, exp_tables, segment_count};
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
    /// Weights on disk are not those that were registered.
    #[error("segment {segment}: the weights here do not give the registered root: fetch or register the model again")]
    Weights {
        /// Which segment.
        segment: usize,
    },
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
    let mut out = Vec::new();
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
    let row = 1usize << d.row_log();
    out.resize(out.len().next_multiple_of(row), 0);
    out
}

fn oracle_path(dir: &Path, segment: usize) -> PathBuf {
    dir.join(format!("oracle-{segment:03}.obw"))
}

/// Builds every circuit at the smallest and at an awkward large token count, so that a registered model is a provable one.
fn check_provable(d: &Descriptor) -> Result<(), RegisterError> {
    let exp = exp_tables();
    let limit = MAX_TOKENS.min(d.positions() as usize);
    for tokens in [1, limit.saturating_sub(1).max(1), limit] {
        let input = PublicInput { ids: vec![0; tokens], sequences: Vec::new(), output: Vec::new() };
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
/// # Errors
/// [`RegisterError`].
pub fn register<S: HashSuite, B: CommitKernels>(
    backend: &B,
    model: &IntegerModel,
    security: SecurityParams,
    manifest: Digest,
    dir: &Path,
    progress: &dyn Fn(usize),
) -> Result<Registered, RegisterError> {
    check(&model.descriptor, &model.weights)?;
    check_provable(&model.descriptor)?;
    let mut roots = Vec::new();
    for (segment, w) in model.weights.segments.iter().enumerate() {
        let stack = weight_stack(&model.descriptor, &w.matrices);
        roots.push(if stack.is_empty() {
            None
        } else {
            let path = oracle_path(dir, segment);
            let oracle = RegisteredOracle::<B>::register::<S>(backend, code_shape(&model.descriptor), stack, &path)
                .map_err(|source| RegisterError::Oracle { segment, source })?;
            Some(oracle.root())
        });
        progress(segment + 1);
    }
    Ok(Registered { descriptor: model.descriptor.clone(), roots, security, manifest })
}

/// Opens a segment's committed weights.
///
/// # Errors
/// [`RegisterError::Oracle`] when the file is missing or is another's.
pub fn open_oracle<S: HashSuite, B: CommitKernels>(
    backend: &B,
    model: &IntegerModel,
    registered: &Registered,
    dir: &Path,
    segment: usize,
) -> Result<Option<RegisteredOracle<B>>, RegisterError> {
    let (Some(root), Some(w)) = (registered.roots.get(segment).copied().flatten(), model.weights.segments.get(segment)) else {
        return Ok(None);
    };
    let stack = weight_stack(&model.descriptor, &w.matrices);
    let path = oracle_path(dir, segment);
    RegisteredOracle::open::<S>(backend, code_shape(&model.descriptor), stack, &path, &root)
        .map(Some)
        .map_err(|source| RegisterError::Oracle { segment, source })
}
