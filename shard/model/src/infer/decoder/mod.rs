//! The integer function of decoders: traces, input checks, whole runs and greedy generation.
//!
//! `reference` defines the semantics; the functions here equal it bit for bit, and so does [`decode`], which keeps keys and
//! values instead of computing them again. The value of channel `c` at row `t` lies at `c * t_pad + t`. Channels of
//! attention are in proof order (see [`Decoder`]); head `hh = r * kv_heads + kv` is query head `kv * group + r` of the
//! model, and a score of query `i` and key `j` lies at `(hh * t_pad + j) * t_pad + i`. Padding rows have a zero
//! embedding, position 0, and see only themselves.
//!
//! All expect a model that passed [`crate::check::check`]; they refuse wrong shapes themselves, but only the check bounds
//! the arithmetic.

mod attention;
pub mod decode;
mod forward;
pub mod reference;
mod shape;
mod trace;

use super::{InferError, padded_length};
use crate::weights::{IntegerModel, SegmentWeights};
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::circuit::descriptor::{Decoder, DecoderLayer};
use obelysk_protocol::circuit::input::TokenRow;

pub use decode::{Session, Source, generate, generate_batch};
pub use forward::{embed, head, layer};
pub use trace::{
    AccumulatedTrace, BranchNormTrace, BranchTrace, DecoderLayerTrace, DecoderTrace, HeadTrace, RmsTrace, RotatedTrace,
    TokenEmbedTrace,
};

/// Whether row `i` attends to row `j`, for a query window (0: no limit).
#[must_use]
pub fn visible(rows: &[TokenRow], window: u32, i: usize, j: usize) -> bool {
    keys_of(rows, window, i).contains(&j)
}

/// The rows that row `i` attends to: its own sequence up to itself, at most `window` of them; a padding row sees itself.
#[must_use]
pub fn keys_of(rows: &[TokenRow], window: u32, i: usize) -> std::ops::RangeInclusive<usize> {
    let start = rows.get(i).map_or(i, |row| row.start as usize);
    let oldest = if window == 0 { 0 } else { (i + 1).saturating_sub(window as usize) };
    start.max(oldest)..=i
}

/// Position of every row of the token axis, padding rows included.
#[must_use]
pub fn positions_of(rows: &[TokenRow], t_pad: usize) -> Vec<u32> {
    (0..t_pad).map(|t| rows.get(t).map_or(0, |row| row.position)).collect()
}

/// The key that a score becomes: soft-capped if the layer caps, then without its low bits.
#[must_use]
pub fn key_of(spec: &DecoderLayer, score: i32) -> i32 {
    match &spec.score_cap {
        None => score >> spec.score_shift.min(31),
        Some(cap) => {
            let t = (i64::from(score) + (1 << (cap.e.clamp(1, 16) - 1))) >> cap.e.clamp(1, 16);
            cap.table.get((t.clamp(-32_768, 32_767) + 32_768) as usize).copied().unwrap_or(0)
        }
    }
}

type EmbedFn = fn(&Decoder, &SegmentWeights, &[TokenRow], usize) -> Result<TokenEmbedTrace, InferError>;
type LayerFn = fn(&Decoder, &DecoderLayer, &SegmentWeights, &[i32], &[TokenRow], usize) -> Result<DecoderLayerTrace, InferError>;
type HeadFn = fn(&Decoder, &SegmentWeights, &[i32], &[u32], usize) -> Result<HeadTrace, InferError>;

/// One executor: the three functions of a decoder, segment by segment.
struct Executor {
    embed: EmbedFn,
    layer: LayerFn,
    head: HeadFn,
}

const FAST: Executor = Executor { embed: forward::embed, layer: forward::layer, head: forward::head };
const REFERENCE: Executor = Executor { embed: reference::embed, layer: reference::layer, head: reference::head };

/// Runs all segments and keeps every trace.
///
/// # Errors
/// See [`InferError`].
pub fn run(model: &IntegerModel, input: &PublicInput) -> Result<DecoderTrace, InferError> {
    run_with(&FAST, model, input)
}

/// Runs all segments of the defining executor and keeps every trace.
///
/// # Errors
/// See [`InferError`].
pub fn run_reference(model: &IntegerModel, input: &PublicInput) -> Result<DecoderTrace, InferError> {
    run_with(&REFERENCE, model, input)
}

fn run_with(executor: &Executor, model: &IntegerModel, input: &PublicInput) -> Result<DecoderTrace, InferError> {
    let d = model.descriptor.decoder().ok_or_else(|| InferError::Kind(model.descriptor.name().to_owned(), "a decoder"))?;
    shape::input(d, input)?;
    let (rows, t_pad) = (input.rows(), padded_length(input.tokens()));
    let segment = |i: usize| model.weights.segments.get(i).ok_or(InferError::Segment(i));
    let embed = (executor.embed)(d, segment(0)?, &rows, t_pad)?;
    let mut layers: Vec<DecoderLayerTrace> = Vec::with_capacity(d.layers.len());
    for (l, spec) in d.layers.iter().enumerate() {
        let x = layers.last().map_or(&embed.x, |t| &t.ffn.x);
        layers.push((executor.layer)(d, spec, segment(l + 1)?, x, &rows, t_pad)?);
    }
    let x = layers.last().map_or(&embed.x, |t| &t.ffn.x);
    let checked: Vec<u32> = input.checked().iter().map(|c| c.row).collect();
    let head = (executor.head)(d, segment(d.layers.len() + 1)?, x, &checked, t_pad)?;
    Ok(DecoderTrace { t_pad, embed, layers, head })
}

#[cfg(test)]
mod tests;
