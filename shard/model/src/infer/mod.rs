//! The integer function that is proven: traces, input checks, and the formula applied to its result.
//!
//! `reference` defines the semantics, obviously and slowly; `forward` equals it bit for bit and is what everything else
//! calls. Token is the fast axis of every array: the value of channel `c` at token `t` lies at `c * t_pad + t`, a score of
//! query `i` and key `j` in head `h` at `(h * t_pad + j) * t_pad + i`.
//!
//! Both executors expect a model that passed [`crate::check::check`]; they refuse wrong shapes themselves, but only the
//! check bounds the arithmetic.

pub mod decoder;
mod forward;
mod kernel;
pub mod reference;

use crate::tables;
use crate::weights::{EmbedAxis, IntegerModel, Matrix, SegmentWeights, layer_shapes};
use obelysk_protocol::circuit::descriptor::{Encoder, LayerSpec, MAX_TOKENS, OutputSpec};
use thiserror::Error;

pub use forward::{embed, layer, pool};

/// Why an input cannot be run through the model.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InferError {
    /// Zero tokens.
    #[error("the input has no tokens: pass at least one token id")]
    Empty,
    /// More tokens than the model or a proof can hold.
    #[error("{tokens} tokens, but at most {max} fit this model: shorten the text")]
    TooLong {
        /// Tokens given.
        tokens: usize,
        /// Largest count.
        max: usize,
    },
    /// The padded length is not a power of two or too short.
    #[error("padded length {t_pad} must be a power of two of at least {tokens}: use `padded_length`")]
    Padding {
        /// Padded length given.
        t_pad: usize,
        /// Tokens given.
        tokens: usize,
    },
    /// An id outside the vocabulary.
    #[error("token id {id} at position {position} is outside the vocabulary of {vocab}: use the model's own tokenizer")]
    Vocabulary {
        /// The id.
        id: u32,
        /// Where it stands.
        position: usize,
        /// V.
        vocab: u32,
    },
    /// An array, matrix or parameter vector of unexpected size.
    #[error("`{what}` has {found} entries where {expected} are needed: weights and descriptor are not of one model")]
    Shape {
        /// What has the wrong size.
        what: &'static str,
        /// Entries found.
        found: usize,
        /// Entries needed.
        expected: usize,
    },
    /// A shift the arithmetic cannot use.
    #[error("shift `{what}` is {value}, outside 1..=16: the model has not passed the registration check")]
    Shift {
        /// Which shift.
        what: &'static str,
        /// Its value.
        value: u8,
    },
    /// The model is of another kind.
    #[error("`{0}` is not {1}: use the command for its kind")]
    Kind(String, &'static str),
    /// A row whose sequence starts after it.
    #[error("row {row} belongs to a sequence that starts at row {start}: derive rows from the sequences of the input")]
    Start {
        /// The row.
        row: usize,
        /// Where its sequence starts.
        start: u32,
    },
    /// A sequence that the session does not have.
    #[error("sequence {0} does not exist: open the session with as many sequences as are fed")]
    Sequence(usize),
    /// Weights that could not be had.
    #[error("weights of a segment cannot be read: {0}")]
    Weights(String),
    /// The layer number does not exist.
    #[error("the model has no segment {0}: weights and descriptor are not of one model")]
    Segment(usize),
}

/// A linear layer: accumulators and requantised outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearTrace {
    /// `sum_k q[n][k] x(t, k)`.
    pub acc: Vec<i32>,
    /// Output after requantisation.
    pub y: Vec<i32>,
}

/// A linear layer that stops at `t^`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopTrace {
    /// `sum_k q[n][k] x(t, k)`.
    pub acc: Vec<i32>,
    /// `clip16(floor((acc + 2^(e-1)) / 2^e))`.
    pub t_hat: Vec<i16>,
}

/// A norm; per-token vectors have `t_pad` entries, the others `width * t_pad`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormTrace {
    /// Input.
    pub x: Vec<i32>,
    /// Integer mean: `0 <= sum(x - mu) + floor(d/2) < d`.
    pub mu: Vec<i32>,
    /// `S = sum (x - mu)^2 + eps`.
    pub s: Vec<u64>,
    /// Least sigma with `S >> 2 sigma < 65280`.
    pub sigma: Vec<u8>,
    /// `S >> 2 sigma`.
    pub index: Vec<u32>,
    /// `R = floor(32000 * 2^7 / sqrt(index))`.
    pub recip: Vec<i32>,
    /// `x' = floor(((x - mu) 2^7 + half) / 2^sigma)`.
    pub x_scaled: Vec<i32>,
    /// `floor((x' R + 2^13) / 2^14)`.
    pub u: Vec<i16>,
}

/// `2^w x + rho`, and the norm of x.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidualTrace {
    /// Bits dropped, in `[0, 2^w)`.
    pub rho: Vec<i32>,
    /// Norm of x.
    pub norm: NormTrace,
}

/// The embedding segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedTrace {
    /// `word + position + type`, in `[-381, 381]`; zero for padding tokens.
    pub a: Vec<i32>,
    /// Bits dropped by the scale.
    pub rho: Vec<i32>,
    /// Norm of x.
    pub norm: NormTrace,
}

/// One transformer layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerTrace {
    /// Query projection.
    pub q: LinearTrace,
    /// Key projection.
    pub k: LinearTrace,
    /// Value projection.
    pub v: LinearTrace,
    /// `sum_d q k` for every pair, masked or not: `[h][j][i]`, i fastest.
    pub scores: Vec<i32>,
    /// Least Lambda with `sum_j E(Lambda - floor(s / 2^g)) <= 2^18`: `[h][i]`.
    pub lambda: Vec<i32>,
    /// `sum_j p v`.
    pub mix_acc: Vec<i32>,
    /// `floor((mix_acc + 2^13) / 2^14)`.
    pub mix: Vec<i16>,
    /// Attention output projection.
    pub o: StopTrace,
    /// Residual and norm after attention.
    pub attn: ResidualTrace,
    /// First feed-forward projection.
    pub up: LinearTrace,
    /// Activation of `up`.
    pub act: Vec<i16>,
    /// Second feed-forward projection.
    pub down: StopTrace,
    /// Residual and norm after the feed-forward block; its `u` enters the next layer.
    pub ffn: ResidualTrace,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTrace {
    /// Real tokens.
    pub tokens: usize,
    /// Padded tokens.
    pub t_pad: usize,
    /// Segment 0.
    pub embed: EmbedTrace,
    /// Segments 1..=L.
    pub layers: Vec<LayerTrace>,
    /// Proven output: `sum_{t < tokens} u(t, c)`.
    pub pooled: Vec<i64>,
}

/// Smallest power of two that holds `tokens`, at least 1.
#[must_use]
pub fn padded_length(tokens: usize) -> usize {
    tokens.max(1).next_power_of_two()
}

/// Whether key `j` is visible to query `i`. Padding rows see only themselves, so that each has a key.
#[must_use]
pub fn visible(i: usize, j: usize, tokens: usize) -> bool {
    if i < tokens { j < tokens } else { i == j }
}

/// Softmax weight of a visible pair: `E(lambda - floor(score / 2^g))`, at most `2^18`.
#[must_use]
pub fn softmax_weight(lambda: i32, score: i32, g: u8) -> i32 {
    tables::exp_at(i64::from(lambda) - i64::from(score >> g.min(31))) as i32
}

/// Runs all segments and keeps every trace.
///
/// # Errors
/// See [`InferError`].
pub fn run(model: &IntegerModel, ids: &[u32]) -> Result<ModelTrace, InferError> {
    let (tokens, t_pad) = (ids.len(), padded_length(ids.len()));
    let d = model.descriptor.encoder().ok_or_else(|| InferError::Kind(model.descriptor.name().to_owned(), "an encoder"))?;
    let segment = |i: usize| model.weights.segments.get(i).ok_or(InferError::Segment(i));
    let embed = embed(d, segment(0)?, ids, t_pad)?;
    let mut layers: Vec<LayerTrace> = Vec::with_capacity(d.layers.len());
    for (l, spec) in d.layers.iter().enumerate() {
        let u = layers.last().map_or(&embed.norm.u, |t| &t.ffn.norm.u);
        layers.push(layer(d, spec, segment(l + 1)?, u, tokens, t_pad)?);
    }
    let u = layers.last().map_or(&embed.norm.u, |t| &t.ffn.norm.u);
    let pooled = pool(u, tokens, t_pad);
    Ok(ModelTrace { tokens, t_pad, embed, layers, pooled })
}

/// The printed formula outside the proof: `normalise((o_c / T * sqrt(d) / 32000) * gain_c + bias_c)`, in f64, in channel
/// order, rounded to f32 at the end.
#[must_use]
pub fn embedding(output: &OutputSpec, pooled: &[i64], tokens: usize) -> Vec<f32> {
    let unit = (pooled.len() as f64).sqrt() / tables::NORM_UNIT / tokens.max(1) as f64;
    let affine = output.gain_bits.iter().zip(&output.bias_bits);
    let raw: Vec<f64> = pooled
        .iter()
        .zip(affine)
        .map(|(&o, (&g, &b))| o as f64 * unit * f64::from(f32::from_bits(g)) + f64::from(f32::from_bits(b)))
        .collect();
    let norm = raw.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
    raw.iter().map(|v| (v / norm) as f32).collect()
}

fn size(what: &'static str, found: usize, expected: usize) -> Result<(), InferError> {
    if found == expected { Ok(()) } else { Err(InferError::Shape { what, found, expected }) }
}

fn shift(what: &'static str, value: u8) -> Result<(), InferError> {
    if (1..=16).contains(&value) { Ok(()) } else { Err(InferError::Shift { what, value }) }
}

fn check_matrix(m: &Matrix, what: &'static str, k: usize, n: usize) -> Result<(), InferError> {
    size(what, m.inputs, k)?;
    size(what, m.outputs, n)?;
    size(what, m.data.len(), k.saturating_mul(n))
}

fn check_tokens(d: &Encoder, tokens: usize, t_pad: usize) -> Result<(), InferError> {
    let max = MAX_TOKENS.min(d.positions as usize);
    match tokens {
        0 => Err(InferError::Empty),
        _ if tokens > max => Err(InferError::TooLong { tokens, max }),
        _ if !t_pad.is_power_of_two() || t_pad < tokens || t_pad > MAX_TOKENS => Err(InferError::Padding { t_pad, tokens }),
        _ => Ok(()),
    }
}

fn check_embed<'w>(d: &Encoder, w: &'w SegmentWeights, ids: &[u32], t_pad: usize) -> Result<(&'w Matrix, EmbedAxis), InferError> {
    check_tokens(d, ids.len(), t_pad)?;
    if let Some((position, &id)) = ids.iter().enumerate().find(|&(_, &id)| id >= d.vocab) {
        return Err(InferError::Vocabulary { id, position, vocab: d.vocab });
    }
    size("embedding matrices", w.matrices.len(), 1)?;
    size("embedding scale", d.embed.scale.len(), d.width as usize)?;
    shift("embed.shift", d.embed.shift)?;
    let axis = EmbedAxis::new(d);
    check_matrix(&w.matrices[0], "embedding matrix", axis.rows, d.width as usize)?;
    Ok((&w.matrices[0], axis))
}

fn check_layer(
    d: &Encoder,
    spec: &LayerSpec,
    w: &SegmentWeights,
    u: &[i16],
    tokens: usize,
    t_pad: usize,
) -> Result<(), InferError> {
    check_tokens(d, tokens, t_pad)?;
    let (width, ffn) = (d.width as usize, d.ffn as usize);
    size("heads * head_dim", (d.heads as usize).saturating_mul(d.head_dim as usize), width)?;
    size("layer input", u.len(), width.saturating_mul(t_pad))?;
    size("layer matrices", w.matrices.len(), 6)?;
    for (m, (name, k, n)) in w.matrices.iter().zip(layer_shapes(d)) {
        check_matrix(m, name, k, n)?;
    }
    for (what, r, n) in [("q", &spec.q, width), ("k", &spec.k, width), ("v", &spec.v, width), ("up", &spec.up, ffn)] {
        size(what, r.m.len(), n)?;
        size(what, r.b.len(), n)?;
        shift(what, r.e)?;
        shift(what, r.k)?;
    }
    for (what, r) in [("attn_residual", &spec.attn_residual), ("ffn_residual", &spec.ffn_residual)] {
        size(what, r.gain.len(), width)?;
        size(what, r.bias.len(), width)?;
        size(what, r.mult.len(), width)?;
        shift(what, r.shift)?;
    }
    shift("o.e", spec.o.e)?;
    shift("down.e", spec.down.e)?;
    shift("score_shift", spec.score_shift)?;
    size("activation", spec.activation.len(), 1 << 16)
}

#[cfg(test)]
mod tests;
