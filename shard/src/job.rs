//! The work of one segment in one job: forward, commit, prove, open. Each step is idempotent and depends only on public
//! data and the segment's received hidden state, so any machine can redo it and gets the same bytes.

use crate::kernels::CommitKernels;
use crate::kernels::proof::ProofKernels;
use crate::prover::commitment::{CommittedValues, Oracle, RegisteredOracle};
use crate::prover::final_sumcheck::Grinder;
use crate::prover::opening::{self, OpeningInput};
use crate::prover::segment;
use crate::registration::{RegisterError, code_shape, open_oracle};
use crate::witness::{self, Trace, WitnessError};
use obelysk_model::IntegerModel;
use obelysk_model::infer::{self, EmbedTrace, InferError, LayerTrace};
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::{self, BuildError, PublicInput, exp_tables, segment_count};
use obelysk_protocol::field::{M31, QM31, eq_vector, signed};
use obelysk_protocol::transcript::{Digest, HashSuite, Seed, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::{
    Statement, boundary_point, oracle_claims, segment_fork, segment_input, verify_claims,
};
use obelysk_protocol::verifier::final_sumcheck::value_rows;
use obelysk_protocol::verifier::opening::{Claim, OpeningProof};
use obelysk_protocol::verifier::registered::Registered;
use obelysk_protocol::verifier::segment::ClaimsProof;
use rayon::prelude::*;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

/// All kernels a prover needs.
pub trait Backend: CommitKernels + ProofKernels {}
impl<T: CommitKernels + ProofKernels> Backend for T {}

/// Why work on a segment failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The input is not one the model takes.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The trace gives no witness.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// The circuit cannot be built.
    #[error(transparent)]
    Circuit(#[from] BuildError),
    /// Registered weights are missing or wrong.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The claims to open are not this statement's.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The opening does not fit the claims.
    #[error("opening: {0}")]
    Opening(String),
    /// A hidden state of the wrong length.
    #[error("the received hidden state has {found} values, this job needs {expected}: it belongs to another job")]
    Hidden {
        /// Received.
        found: usize,
        /// Needed.
        expected: usize,
    },
}

/// A model ready to prove with: weights in memory, codewords memory-mapped on first use.
pub struct LoadedModel<S: HashSuite, B: Backend> {
    /// What the verifier knows.
    pub registered: Registered,
    /// Its id.
    pub id: Digest,
    /// Weights.
    pub model: IntegerModel,
    dir: PathBuf,
    oracles: Vec<OnceLock<Option<RegisteredOracle<B>>>>,
    opening: Mutex<()>,
    suite: std::marker::PhantomData<S>,
}

impl<S: HashSuite, B: Backend> LoadedModel<S, B> {
    /// Takes a registered model whose codewords lie in `dir`.
    #[must_use]
    pub fn new(registered: Registered, model: IntegerModel, dir: PathBuf) -> Self {
        let oracles = (0..segment_count(&registered.descriptor)).map(|_| OnceLock::new()).collect();
        let id = registered.model_id::<S>();
        Self { registered, id, model, dir, oracles, opening: Mutex::new(()), suite: std::marker::PhantomData }
    }

    fn oracle(&self, k: &B, segment: usize) -> Result<Option<&RegisteredOracle<B>>, JobError> {
        let slot = &self.oracles[segment];
        if slot.get().is_none() {
            // One opener at a time; the lock is only for the first use.
            let _guard = self.opening.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if slot.get().is_none() {
                let _ = slot.set(open_oracle::<S, B>(k, &self.model, &self.registered, &self.dir, segment)?);
            }
        }
        Ok(slot.get().and_then(Option::as_ref))
    }

    fn matrices(&self, segment: usize) -> Vec<&[i8]> {
        self.model.weights.segments[segment].matrices.iter().map(|m| m.data.as_slice()).collect()
    }
}

/// What a segment computed, owned.
pub enum SegmentTrace {
    /// Segment 0.
    Embed(Box<EmbedTrace>),
    /// A layer.
    Layer(Box<LayerTrace>),
    /// The head computes nothing.
    Head,
}

impl SegmentTrace {
    /// The hidden state handed to the next segment; `None` for the head.
    #[must_use]
    pub fn hidden(&self) -> Option<&[i16]> {
        match self {
            Self::Embed(t) => Some(&t.norm.u),
            Self::Layer(t) => Some(&t.ffn.norm.u),
            Self::Head => None,
        }
    }
}

/// Runs one segment of the integer model. `received` is the previous segment's hidden state (empty for segment 0).
///
/// # Errors
/// [`JobError::Infer`], [`JobError::Hidden`].
pub fn forward(model: &IntegerModel, ids: &[u32], segment: usize, received: &[i16]) -> Result<SegmentTrace, JobError> {
    let d = model.descriptor.encoder().ok_or_else(|| InferError::Kind(model.descriptor.name().to_owned(), "an encoder"))?;
    let t_pad = infer::padded_length(ids.len());
    let w = &model.weights.segments[segment];
    if segment == 0 {
        return Ok(SegmentTrace::Embed(Box::new(infer::embed(d, w, ids, t_pad)?)));
    }
    let expected = d.width as usize * t_pad;
    if received.len() != expected {
        return Err(JobError::Hidden { found: received.len(), expected });
    }
    match d.layers.get(segment - 1) {
        Some(spec) => Ok(SegmentTrace::Layer(Box::new(infer::layer(d, spec, w, received, ids.len(), t_pad)?))),
        None => Ok(SegmentTrace::Head),
    }
}

/// A segment whose values are committed.
pub struct Committed<B: Backend> {
    columns: Vec<<B as ProofKernels>::Base>,
    values: CommittedValues<B>,
    received: Vec<i16>,
    trace: SegmentTrace,
    bytes: usize,
}

impl<B: Backend> Committed<B> {
    /// Memory it holds, about: columns twice, words, tree.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Root of the value oracle.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.values.root()
    }

    /// The hidden state this segment hands on.
    #[must_use]
    pub fn hidden(&self) -> Option<&[i16]> {
        self.trace.hidden()
    }
}

/// Computes a segment's values and commits to them.
///
/// # Errors
/// [`JobError`].
pub fn commit<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    ids: &[u32],
    segment: usize,
    received: &[i16],
) -> Result<Committed<B>, JobError> {
    let trace = tracing::info_span!("forward").in_scope(|| forward(&model.model, ids, segment, received))?;
    let input = PublicInput { ids: ids.to_vec(), sequences: Vec::new(), output: Vec::new() };
    let c = circuit::build(&model.model.descriptor, &exp_tables(), &input, segment)?;
    let columns = tracing::info_span!("witness").in_scope(|| columns(model, &c, segment, received, &trace))?;
    let _span = tracing::info_span!("encode").entered();
    let (code, stacked) = (code_shape(&model.model.descriptor), stack(&c, model, &columns));
    let bytes = 4 * stacked.len() * (2 + (1 << code.blowup_log)) + (64 << code.log_n());
    let values = CommittedValues::commit::<S>(k, code, stacked);
    let columns = columns.par_iter().map(|v| ProofKernels::column(k, v)).collect();
    Ok(Committed { columns, values, received: received.to_vec(), trace, bytes })
}

/// The circuit's columns from a trace.
fn columns<S: HashSuite, B: Backend>(
    model: &LoadedModel<S, B>,
    c: &Circuit,
    segment: usize,
    received: &[i16],
    trace: &SegmentTrace,
) -> Result<Vec<Vec<M31>>, JobError> {
    let model = &model.model;
    let d = model.descriptor.encoder().ok_or_else(|| InferError::Kind(model.descriptor.name().to_owned(), "an encoder"))?;
    let t = match trace {
        SegmentTrace::Embed(t) => Trace::Embed(t),
        SegmentTrace::Layer(t) => Trace::Layer { spec: &d.layers[segment - 1], input: received, trace: t },
        SegmentTrace::Head => Trace::Head { input: received },
    };
    Ok(witness::columns(d, c, t)?)
}

/// Columns stacked into whole rows of `2^h`.
fn stack<S: HashSuite, B: Backend>(c: &Circuit, model: &LoadedModel<S, B>, columns: &[Vec<M31>]) -> Vec<M31> {
    let h = usize::from(model.model.descriptor.row_log());
    let (offsets, _) = c.stack();
    let mut out = vec![signed(0); value_rows(c, h) << h];
    for (col, at) in columns.iter().zip(offsets) {
        out[at..at + col.len()].copy_from_slice(col);
    }
    out
}

/// The value of a hidden state's extension at a boundary point (token low, then channel).
#[must_use]
pub fn boundary_value(hidden: &[i16], point: &[QM31]) -> QM31 {
    let eq = eq_vector(point);
    hidden.iter().zip(eq).fold(QM31::default(), |acc, (&u, e)| acc + e * signed(i64::from(u)))
}

/// Grinding by the backend.
struct BackendGrinder<'a, B>(&'a B);

impl<S: HashSuite, B: Backend> Grinder<S> for BackendGrinder<'_, B> {
    fn grind(&self, t: &mut Transcript<S>, bits: u32) -> u64 {
        let nonce = tracing::info_span!("grind").in_scope(|| self.0.grind::<S>(&t.pow_prefix(bits), bits));
        t.accept_pow(bits, nonce);
        nonce
    }
}

/// What proving a segment gives before its opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentClaims {
    /// Values of the boundaries before and after.
    pub boundaries: (QM31, QM31),
    /// The claims.
    pub proof: ClaimsProof,
}

/// Proves a committed segment up to its opening.
///
/// # Errors
/// [`JobError`].
pub fn prove<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    s: &Statement,
    seed: &Seed,
    segment: usize,
    committed: &Committed<B>,
) -> Result<SegmentClaims, JobError> {
    let boundaries = boundaries(model, s, seed, segment, committed);
    let input = segment_input::<S>(&model.registered, s, seed, segment, boundaries);
    let mut t = segment_fork::<S>(seed, s, segment);
    let matrices = model.matrices(segment);
    let (proof, _) = segment::prove(&mut t, k, &input, &committed.columns, &matrices, &BackendGrinder(k))?;
    Ok(SegmentClaims { boundaries, proof })
}

fn boundaries<S: HashSuite, B: Backend>(
    model: &LoadedModel<S, B>,
    s: &Statement,
    seed: &Seed,
    segment: usize,
    committed: &Committed<B>,
) -> (QM31, QM31) {
    let value = |l: usize, u: &[i16]| boundary_value(u, &boundary_point::<S>(seed, s, &model.registered, l));
    let before = segment.checked_sub(1).map_or_else(QM31::default, |l| value(l, &committed.received));
    let after = committed.hidden().map_or_else(QM31::default, |u| value(segment, u));
    (before, after)
}

/// Opens the claims of a segment, replaying its fork from `claims` so that any machine holding the values can do it.
///
/// # Errors
/// [`JobError::Verify`] when the claims are not valid for this statement.
pub fn open<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    s: &Statement,
    seed: &Seed,
    segment: usize,
    (committed, claims): (&Committed<B>, &SegmentClaims),
) -> Result<OpeningProof, JobError> {
    let _span = tracing::info_span!("open").entered();
    let input = segment_input::<S>(&model.registered, s, seed, segment, claims.boundaries);
    let mut t = segment_fork::<S>(seed, s, segment);
    let open = verify_claims(&mut t, &input, &claims.proof)?;
    let oracles = oracle_claims(&model.registered, input.circuit, segment, committed.root(), open);
    let weights = model.oracle(k, segment)?;
    let inputs: Vec<OpeningInput<'_, B>> = oracles
        .into_iter()
        .filter_map(|o| {
            let oracle: &dyn Oracle<B> = match &o.claim {
                Claim::Tiles { .. } => weights?,
                Claim::Point { .. } => &committed.values,
            };
            Some(OpeningInput { oracle, claim: o.claim, partials: None })
        })
        .collect();
    opening::prove(k, &mut t, &model.registered.opening(), &inputs).map_err(|e| JobError::Opening(e.to_string()))
}
