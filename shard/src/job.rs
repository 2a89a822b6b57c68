//! The work of one segment in one job: forward, commit, prove, open. Each step is idempotent and depends only on public
//! data and the segment's received hidden state, so any machine can redo it and gets the same bytes.

mod opening;

pub use opening::{Reduction, answer, open, open_from, reduce};

use crate::hidden::{boundary_values, hidden_len};
use crate::kernels::CommitKernels;
use crate::kernels::proof::ProofKernels;
use crate::prover::aggregate::join::AggregateError;
use crate::prover::commitment::{CommittedValues, Oracle as _, RegisteredOracle};
use crate::prover::final_sumcheck::Grinder;
use crate::prover::segment;
use crate::registration::{RegisterError, code_shape, open_oracle};
use crate::witness::{WitnessError, decoder, encoder};
use obelysk_model::infer::decoder::{self as decode, DecoderLayerTrace, HeadTrace, TokenEmbedTrace};
use obelysk_model::infer::{self, EmbedTrace, InferError, LayerTrace};
use obelysk_model::recent::Recent;
use obelysk_model::source::WEIGHT_BYTES;
use obelysk_model::store::StoreError;
use obelysk_model::{SegmentWeights, WeightSource};
use obelysk_protocol::circuit::descriptor::{Decoder, Descriptor, Encoder};
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::{self, BuildError, PublicInput, exp_tables};
use obelysk_protocol::field::{M31, QM31, ZERO, signed};
use obelysk_protocol::transcript::{Digest, HashSuite, Seed, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::{Stated, boundary_point, segment_fork, segment_view};
use obelysk_protocol::verifier::final_sumcheck::value_rows;
use obelysk_protocol::verifier::opening::Claim;
use obelysk_protocol::verifier::registered::Registered;
use obelysk_protocol::verifier::segment::ClaimsProof;
use rayon::prelude::*;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

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
    /// The segment's weights cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The claims to open are not this statement's.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The opening does not fit the claims.
    #[error("opening: {0}")]
    Opening(String),
    /// The opening of all segments cannot go on.
    #[error("opening of all segments: {0}")]
    Aggregate(#[from] AggregateError),
    /// A hidden state of the wrong length.
    #[error("the received hidden state has {found} values, this job needs {expected}: it belongs to another job")]
    Hidden {
        /// Received.
        found: usize,
        /// Needed.
        expected: usize,
    },
    /// A hidden state with a value that no segment of this model hands on.
    #[error("the received hidden state has the value {0}, which this model cannot produce: it belongs to another job")]
    HiddenValue(i32),
    /// The model continues with another token.
    #[error("the completion is not the model's: after token {row} comes {found}, the claim is {claimed}")]
    Completion {
        /// Row of the token axis.
        row: u32,
        /// What the model says.
        found: u32,
        /// What the public input says.
        claimed: u32,
    },
}

/// A model ready to prove with. Weights, and the same in tiles beside their codewords, are read when a segment needs them and
/// kept within a bound.
pub struct LoadedModel<S: HashSuite, B: Backend> {
    /// What the verifier knows.
    pub registered: Registered,
    /// Its id.
    pub id: Digest,
    /// Weights.
    pub model: Box<dyn WeightSource>,
    dir: PathBuf,
    oracles: Recent<Option<RegisteredOracle<B>>, usize>,
    opening: Mutex<()>,
    suite: std::marker::PhantomData<S>,
}

impl<S: HashSuite, B: Backend> LoadedModel<S, B> {
    /// Takes a registered model whose codewords lie in `dir`, and keeps [`WEIGHT_BYTES`] of tiles.
    #[must_use]
    pub fn new(registered: Registered, model: impl WeightSource + 'static, dir: PathBuf) -> Self {
        Self::within(registered, model, dir, WEIGHT_BYTES)
    }

    /// As [`Self::new`]; `bytes` bounds the tiles kept, those of the segment used last always stay.
    #[must_use]
    pub fn within(registered: Registered, model: impl WeightSource + 'static, dir: PathBuf, bytes: usize) -> Self {
        let id = registered.model_id::<S>();
        let (model, oracles, suite) = (Box::new(model), Recent::new(bytes), std::marker::PhantomData);
        Self { registered, id, model, dir, oracles, opening: Mutex::new(()), suite }
    }

    /// Drops the tiles that are kept: they are read again when a segment needs them.
    pub fn forget_tiles(&self) {
        self.oracles.clear();
    }

    fn oracle(&self, k: &B, segment: usize) -> Result<Arc<Option<RegisteredOracle<B>>>, JobError> {
        // One opener at a time: a second one would read the same weights once more.
        let _guard = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        self.oracles.get_or(segment, || {
            let oracle = open_oracle::<S, B>(k, &*self.model, &self.registered, &self.dir, segment)?;
            let bytes = oracle.as_ref().map_or(0, |o| o.rows() << self.registered.descriptor.row_log());
            Ok((oracle, bytes))
        })
    }
}

/// What a segment computed, owned.
pub enum SegmentTrace {
    /// Segment 0 of an encoder.
    Embed(Box<EmbedTrace>),
    /// A layer of an encoder.
    Layer(Box<LayerTrace>),
    /// The head of an encoder computes nothing.
    Pool,
    /// Segment 0 of a decoder.
    TokenEmbed(Box<TokenEmbedTrace>),
    /// A layer of a decoder.
    DecoderLayer(Box<DecoderLayerTrace>),
    /// The head of a decoder, with the claimed token of every checked row.
    Head(Box<HeadTrace>, Vec<u32>),
}

impl SegmentTrace {
    /// The hidden state handed to the next segment; `None` for the head.
    #[must_use]
    pub fn hidden(&self) -> Option<Vec<i32>> {
        let u = match self {
            Self::Embed(t) => &t.norm.u,
            Self::Layer(t) => &t.ffn.norm.u,
            Self::TokenEmbed(t) => return Some(t.x.clone()),
            Self::DecoderLayer(t) => return Some(t.ffn.x.clone()),
            Self::Pool | Self::Head(..) => return None,
        };
        Some(u.iter().map(|&v| i32::from(v)).collect())
    }
}

/// Runs one segment of the integer model. `received` is the previous segment's hidden state (empty for segment 0).
///
/// # Errors
/// [`JobError::Infer`], [`JobError::Hidden`], [`JobError::HiddenValue`], [`JobError::Completion`].
pub fn forward(
    model: &dyn WeightSource,
    input: &PublicInput,
    segment: usize,
    received: &[i32],
) -> Result<SegmentTrace, JobError> {
    let expected = if segment == 0 { 0 } else { hidden_len(model.descriptor(), input) };
    if received.len() != expected {
        return Err(JobError::Hidden { found: received.len(), expected });
    }
    let w = &*model.segment(segment)?;
    match model.descriptor() {
        Descriptor::Encoder(d) => encode(w, d, input, segment, received),
        Descriptor::Decoder(d) => decode(w, d, input, segment, received),
    }
}

/// One segment of an encoder.
fn encode(
    w: &SegmentWeights,
    d: &Encoder,
    input: &PublicInput,
    segment: usize,
    received: &[i32],
) -> Result<SegmentTrace, JobError> {
    let (ids, t_pad) = (&input.ids, infer::padded_length(input.tokens()));
    if segment == 0 {
        return Ok(SegmentTrace::Embed(Box::new(infer::embed(d, w, ids, t_pad)?)));
    }
    match d.layers.get(segment - 1) {
        Some(spec) => {
            let u = narrow(received)?;
            Ok(SegmentTrace::Layer(Box::new(infer::layer(d, spec, w, &u, ids.len(), t_pad)?)))
        }
        None => Ok(SegmentTrace::Pool),
    }
}

/// One segment of a decoder.
fn decode(
    w: &SegmentWeights,
    d: &Decoder,
    input: &PublicInput,
    segment: usize,
    received: &[i32],
) -> Result<SegmentTrace, JobError> {
    let (rows, t_pad) = (input.rows(), infer::padded_length(input.tokens()));
    if segment == 0 {
        return Ok(SegmentTrace::TokenEmbed(Box::new(decode::embed(d, w, &rows, t_pad)?)));
    }
    if let Some(spec) = d.layers.get(segment - 1) {
        return Ok(SegmentTrace::DecoderLayer(Box::new(decode::layer(d, spec, w, received, &rows, t_pad)?)));
    }
    let checked = input.checked();
    let at: Vec<u32> = checked.iter().map(|c| c.row).collect();
    let head = decode::head(d, w, received, &at, t_pad)?;
    if let Some((c, &found)) = checked.iter().zip(&head.tokens).find(|(c, found)| c.target != **found) {
        return Err(JobError::Completion { row: c.row, found, claimed: c.target });
    }
    Ok(SegmentTrace::Head(Box::new(head), checked.iter().map(|c| c.target).collect()))
}

/// An encoder's hidden state.
fn narrow(hidden: &[i32]) -> Result<Vec<i16>, JobError> {
    hidden.iter().map(|&v| i16::try_from(v).map_err(|_| JobError::HiddenValue(v))).collect()
}

/// A segment whose values are committed.
pub struct Committed<B: Backend> {
    columns: Vec<<B as ProofKernels>::Base>,
    values: CommittedValues<B>,
    received: Vec<i32>,
    handed: Option<Vec<i32>>,
    bytes: usize,
    /// Where the weight tiles will be opened, and their values there, once the segment is proved.
    partials: Mutex<Option<(Vec<QM31>, Vec<QM31>)>>,
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
    pub fn hidden(&self) -> Option<Vec<i32>> {
        self.handed.clone()
    }
}

impl<B: Backend> Committed<B> {
    /// What proving left of the weight tiles, if it was for this claim; whole rows, the last one filled with zeros.
    fn partials_at(&self, claim: &Claim, rows: usize, row_log: u8) -> Option<Vec<QM31>> {
        let Claim::Tiles { point, .. } = claim else { return None };
        let held = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, values) = held.as_ref().filter(|(at, _)| at == point)?;
        let mut out = values.clone();
        out.resize(rows << (usize::from(row_log) - point.len()), ZERO);
        Some(out)
    }
}

/// Computes a segment's values and commits to them.
///
/// # Errors
/// [`JobError`].
pub fn commit<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    input: &PublicInput,
    segment: usize,
    received: &[i32],
) -> Result<Committed<B>, JobError> {
    let trace = tracing::info_span!("forward").in_scope(|| forward(&*model.model, input, segment, received))?;
    let c = circuit::build(&model.registered.descriptor, &exp_tables(), input, segment)?;
    let columns = tracing::info_span!("witness").in_scope(|| columns(model, &c, segment, received, &trace))?;
    let _span = tracing::info_span!("encode").entered();
    let (code, stacked) = (code_shape(&model.registered.descriptor), stack(&c, model, &columns));
    let bytes = 4 * stacked.len() * (2 + (1 << code.blowup_log)) + (64 << code.log_n());
    let values = CommittedValues::commit::<S>(k, code, stacked);
    let columns = columns.par_iter().map(|v| ProofKernels::column(k, v)).collect();
    Ok(Committed { columns, values, received: received.to_vec(), handed: trace.hidden(), bytes, partials: Mutex::default() })
}

/// The circuit's columns from a trace.
fn columns<S: HashSuite, B: Backend>(
    model: &LoadedModel<S, B>,
    c: &Circuit,
    segment: usize,
    received: &[i32],
    trace: &SegmentTrace,
) -> Result<Vec<Vec<M31>>, JobError> {
    let kind = |expected| JobError::from(InferError::Kind(model.registered.descriptor.name().to_owned(), expected));
    match &model.registered.descriptor {
        Descriptor::Encoder(d) => {
            let input = &narrow(received)?;
            let t = match trace {
                SegmentTrace::Embed(t) => encoder::Trace::Embed(t),
                SegmentTrace::Layer(t) => encoder::Trace::Layer { spec: &d.layers[segment - 1], input, trace: t },
                SegmentTrace::Pool => encoder::Trace::Head { input },
                _ => return Err(kind("a decoder")),
            };
            Ok(encoder::columns(d, c, t)?)
        }
        Descriptor::Decoder(d) => {
            let input = received;
            let t = match trace {
                SegmentTrace::TokenEmbed(t) => decoder::Trace::Embed(t),
                SegmentTrace::DecoderLayer(t) => decoder::Trace::Layer { spec: &d.layers[segment - 1], input, trace: t },
                SegmentTrace::Head(t, targets) => decoder::Trace::Head { input, trace: t, targets },
                _ => return Err(kind("an encoder")),
            };
            Ok(decoder::columns(d, c, t)?)
        }
    }
}

/// Columns stacked into whole rows of `2^h`.
fn stack<S: HashSuite, B: Backend>(c: &Circuit, model: &LoadedModel<S, B>, columns: &[Vec<M31>]) -> Vec<M31> {
    let h = usize::from(model.registered.descriptor.row_log());
    let (offsets, _) = c.stack();
    let mut out = vec![signed(0); value_rows(c, h) << h];
    for (col, at) in columns.iter().zip(offsets) {
        out[at..at + col.len()].copy_from_slice(col);
    }
    out
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
    /// Values of the boundaries before and after, one per limb; none before the first segment and after the last.
    pub boundaries: (Vec<QM31>, Vec<QM31>),
    /// The claims.
    pub proof: ClaimsProof,
}

/// Proves a committed segment up to its opening, in a mode whose forks start from the seed.
///
/// # Errors
/// [`JobError`].
pub fn prove<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    s: &impl Stated,
    seed: &Seed,
    segment: usize,
    committed: &Committed<B>,
) -> Result<SegmentClaims, JobError> {
    prove_from(k, model, s, (seed, seed), segment, committed)
}

/// As [`prove`], of a fork that starts from `start`; boundary points come from `seed`.
///
/// # Errors
/// [`JobError`].
pub fn prove_from<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    s: &impl Stated,
    (seed, start): (&Seed, &Seed),
    segment: usize,
    committed: &Committed<B>,
) -> Result<SegmentClaims, JobError> {
    let boundaries = boundaries(model, s, seed, segment, committed);
    let circuit = s.circuit(&model.registered, segment)?;
    let input = segment_view::<S>(&model.registered, s, seed, (segment, &circuit), (&boundaries.0, &boundaries.1));
    let mut t = segment_fork::<S>(start, s, segment);
    let weights = model.model.segment(segment)?;
    let matrices: Vec<&[i8]> = weights.matrices.iter().map(|m| m.data.as_slice()).collect();
    let (proof, proved) = segment::prove(&mut t, k, &input, &committed.columns, &matrices, &BackendGrinder(k))?;
    let at = proved.claims.weights.map(|w| w.point);
    *committed.partials.lock().unwrap_or_else(PoisonError::into_inner) = at.zip(proved.partials);
    Ok(SegmentClaims { boundaries, proof })
}

fn boundaries<S: HashSuite, B: Backend>(
    model: &LoadedModel<S, B>,
    s: &impl Stated,
    seed: &Seed,
    segment: usize,
    committed: &Committed<B>,
) -> (Vec<QM31>, Vec<QM31>) {
    let limbs = model.registered.descriptor.boundary_limbs();
    let values = |l: usize, x: &[i32]| boundary_values(limbs, x, &boundary_point::<S>(seed, s, &model.registered, l));
    let before = segment.checked_sub(1).map_or_else(Vec::new, |l| values(l, &committed.received));
    let after = committed.hidden().map_or_else(Vec::new, |x| values(segment, &x));
    (before, after)
}
