//! Refuses inputs and models whose sizes do not fit together, before anything is indexed.

use super::super::{InferError, check_matrix, shift, size};
use crate::weights::{SegmentWeights, decoder_segment_shapes};
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::circuit::descriptor::{Branch, Decoder, DecoderLayer, MAX_TOKENS, Requant, Rotated};
use obelysk_protocol::circuit::input::TokenRow;

type Fits = Result<(), InferError>;

/// Whether the sequences of an input cover its ids, each with a prompt and a completion, within the limits of a proof.
pub(super) fn input(d: &Decoder, input: &PublicInput) -> Fits {
    let sequences = &input.sequences;
    if sequences.is_empty() || sequences.iter().any(|s| s.prompt == 0 || s.completion == 0) {
        return Err(InferError::Empty);
    }
    let lengths = sequences.iter().map(|s| s.prompt as usize + s.completion as usize);
    size("ids of all sequences", input.ids.len(), lengths.sum())?;
    if input.tokens() > MAX_TOKENS {
        return Err(InferError::TooLong { tokens: input.tokens(), max: MAX_TOKENS });
    }
    vocabulary(d, input.ids.iter().copied())
}

/// Whether rows can be run: at least one, each starting no later than itself, with known positions and ids.
pub(super) fn rows(d: &Decoder, rows: &[TokenRow], t_pad: usize) -> Fits {
    if rows.is_empty() {
        return Err(InferError::Empty);
    }
    if !t_pad.is_power_of_two() || t_pad < rows.len() {
        return Err(InferError::Padding { t_pad, tokens: rows.len() });
    }
    if t_pad > MAX_TOKENS {
        return Err(InferError::TooLong { tokens: rows.len(), max: MAX_TOKENS });
    }
    for (i, row) in rows.iter().enumerate() {
        position(d, row.position)?;
        if row.start as usize > i {
            return Err(InferError::Start { row: i, start: row.start });
        }
    }
    vocabulary(d, rows.iter().map(|row| row.id))
}

/// Whether a position has registered angles.
pub(super) fn position(d: &Decoder, position: u32) -> Fits {
    if position < d.positions {
        Ok(())
    } else {
        Err(InferError::TooLong { tokens: position as usize + 1, max: d.positions as usize })
    }
}

/// Whether every id is in the vocabulary.
pub(super) fn vocabulary(d: &Decoder, ids: impl Iterator<Item = u32>) -> Fits {
    match ids.enumerate().find(|&(_, id)| id >= d.vocab) {
        Some((position, id)) => Err(InferError::Vocabulary { id, position, vocab: d.vocab }),
        None => Ok(()),
    }
}

/// Sizes of the embedding segment.
pub(super) fn embed(d: &Decoder, w: &SegmentWeights) -> Fits {
    size("embedding limbs", usize::from(d.embed.limbs.clamp(1, 2)), usize::from(d.embed.limbs))?;
    size("embedding scale", d.embed.scale.len(), d.width as usize)?;
    shift("embed.shift", d.embed.shift)?;
    matrices(d, w, 0)
}

/// Sizes of a layer; `x` has `t_pad` values per channel.
pub(super) fn layer(d: &Decoder, spec: &DecoderLayer, w: &SegmentWeights, x: &[i32], t_pad: usize) -> Fits {
    let [width, ffn, dim] = [d.width, d.ffn, d.head_dim].map(|n| n as usize);
    let [queries, keys] = [d.heads, d.kv_heads].map(|n| (n as usize).saturating_mul(dim));
    size("layer input", x.len(), width.saturating_mul(t_pad))?;
    size("group * kv_heads", d.group().saturating_mul(d.kv_heads as usize), d.heads as usize)?;
    size("2 * frequencies", d.frequencies.len().saturating_mul(2), dim)?;
    matrices(d, w, 1)?;
    for (what, r, n) in [("q", &spec.q, queries), ("k", &spec.k, keys)] {
        rotated(what, r, n, dim)?;
    }
    requant("v", &spec.v, keys)?;
    requant("gate", &spec.gate, ffn)?;
    let shifts = [("o.e", spec.o.e), ("up.e", spec.up.e), ("product.e", spec.product.e), ("down.e", spec.down.e)];
    for (what, value) in shifts {
        shift(what, value)?;
    }
    for (what, a) in [("limbs of o", &spec.o), ("limbs of down", &spec.down)] {
        size(what, usize::from(a.limbs), usize::from(a.limbs.clamp(1, 2)))?;
    }
    if let Some(cap) = &spec.score_cap {
        shift("score_cap.e", cap.e)?;
        size("score_cap.table", cap.table.len(), 1 << 16)?;
    }
    shift("score_shift + 1", spec.score_shift.saturating_add(1))?;
    branch("attn_branch", &spec.attn_branch, width)?;
    branch("ffn_branch", &spec.ffn_branch, width)?;
    size("activation", spec.activation.len(), 1 << 16)
}

/// Sizes of the head; every checked row is a row of `x`.
pub(super) fn head(d: &Decoder, w: &SegmentWeights, x: &[i32], checked: &[u32], t_pad: usize) -> Fits {
    size("head input", x.len(), (d.width as usize).saturating_mul(t_pad))?;
    size("head.mult", d.head.mult.len(), d.vocab as usize)?;
    shift("head.e", d.head.linear.e)?;
    if checked.is_empty() {
        return Err(InferError::Empty);
    }
    if let Some(&row) = checked.iter().find(|&&row| row as usize >= t_pad) {
        return Err(InferError::TooLong { tokens: row as usize + 1, max: t_pad });
    }
    matrices(d, w, d.layers.len() + 1)
}

fn matrices(d: &Decoder, w: &SegmentWeights, index: usize) -> Fits {
    let shapes = decoder_segment_shapes(d, index);
    size("segment matrices", w.matrices.len(), shapes.len())?;
    for (m, (_, k, n)) in w.matrices.iter().zip(shapes) {
        check_matrix(m, "matrix of a decoder segment", k, n)?;
    }
    Ok(())
}

fn rotated(what: &'static str, r: &Rotated, outputs: usize, dim: usize) -> Fits {
    requant(what, &r.linear, outputs)?;
    size("rotary.gain", r.rotary.gain.len(), dim)?;
    if (1..=16).contains(&r.rotary.shift) { Ok(()) } else { Err(InferError::Shift { what, value: r.rotary.shift }) }
}

fn requant(what: &'static str, r: &Requant, outputs: usize) -> Fits {
    size(what, r.m.len(), outputs)?;
    size(what, r.b.len(), outputs)?;
    shift(what, r.e)?;
    shift(what, r.k)
}

fn branch(what: &'static str, b: &Branch, width: usize) -> Fits {
    size(what, b.mult.len(), width)?;
    shift(what, b.shift)?;
    let Some(norm) = &b.norm else { return Ok(()) };
    size(what, norm.mult.len(), width)?;
    shift(what, norm.shift)
}
