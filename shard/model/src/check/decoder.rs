//! Registration facts of a decoder: shapes, windows, and the theorem that its residual stream never leaves 24 bits.
//!
//! A value's reach is followed through the model channel by channel: what a row of weights can sum to decides what `t^` can
//! be, that decides values, mix and gated products, and those decide the rows that read them.

use super::{CheckError, Checked, exponent, length, matrix, norm, parameter, requant};
use crate::bounds::{self, P};
use crate::tables::{CAP_MAX, GATE_MAX, NORM_L2};
use crate::weights::{DecoderSlots, Matrix, SegmentWeights, decoder_segment_shapes};
use obelysk_protocol::circuit::descriptor::{Accumulated, Branch, Decoder, DecoderLayer, NormSpec, Requant, Rotated};
use obelysk_protocol::circuit::encode::{ACTIVATION_ROWS, MAX_CHANNELS, MAX_LAYERS, MAX_NAME, MAX_VOCAB};
use obelysk_protocol::circuit::linear::r1_bound;
use obelysk_protocol::circuit::norm::SUM_TOP;
use obelysk_protocol::circuit::rotary;
use obelysk_protocol::circuit::wide;
use rayon::prelude::*;
use std::ops::RangeInclusive;

/// Largest magnitude of the residual stream and of a branch before its norm.
const STREAM_TOP: i64 = (1 << 23) - 1;
/// Longest sequence, and widest head, that the circuits take.
const POSITIONS_MAX: u32 = 1 << 20;
const HEAD_DIM_MAX: u32 = 1 << 12;
/// Largest odd factor of a head's dimension: with it a layer has 57 matrices, and a stored segment holds 64.
const DELTA_MAX: usize = 9;
/// Allowed right shifts of residual sums.
const SHIFTS: RangeInclusive<u8> = 1..=7;
/// Allowed shifts of one accumulator per output.
const NARROW_E: RangeInclusive<u8> = 1..=13;
/// 16 bits.
const WORD: (i64, i64) = (-32_768, 32_767);
/// 12 bits: the mix needs no clip.
const VALUE: (i64, i64) = (-2048, 2047);

/// Smallest and largest value.
type Span = (i64, i64);

/// Facts that need no weights.
pub(super) fn start(d: &Decoder) -> Checked {
    dimensions(d)?;
    length("frequencies", d.frequencies.len(), d.head_dim as usize / 2)
}

/// Facts of segment `index`; `stream` is the reach of the residual stream before it, and after.
pub(super) fn segment(d: &Decoder, index: usize, w: &SegmentWeights, stream: &mut Vec<i64>) -> Checked {
    if index == 0 {
        *stream = embedding(d, w)?;
        return Ok(());
    }
    match d.layers.get(index - 1) {
        Some(spec) => layer(d, spec, w, index - 1, stream),
        None => head(d, w, stream),
    }
}

fn dimensions(d: &Decoder) -> Checked {
    let refuse = |text: String| Err(CheckError::Dimensions(text));
    if d.name.len() > MAX_NAME || d.layers.len() > MAX_LAYERS {
        return refuse(format!("a name longer than {MAX_NAME} bytes or more than {MAX_LAYERS} layers"));
    }
    let dims = [d.vocab, d.positions, d.width, d.heads, d.kv_heads, d.head_dim, d.ffn];
    if dims.contains(&0) || d.width > bounds::DECODER_WIDTH_MAX || d.ffn as usize > MAX_CHANNELS {
        return refuse(format!("every one must be positive, width at most {}: {dims:?}", bounds::DECODER_WIDTH_MAX));
    }
    if d.vocab as usize > MAX_VOCAB || d.positions > POSITIONS_MAX {
        return refuse(format!("vocabulary {} or {} positions exceed 2^20", d.vocab, d.positions));
    }
    if !d.heads.is_multiple_of(d.kv_heads) || u64::from(d.heads) * u64::from(d.head_dim) > MAX_CHANNELS as u64 {
        return refuse(format!("{} heads of {} do not share {} key heads", d.heads, d.head_dim, d.kv_heads));
    }
    if !d.head_dim.is_multiple_of(2) || d.head_dim > HEAD_DIM_MAX || d.delta() > DELTA_MAX {
        return refuse(format!("head dimension {} is odd, above {HEAD_DIM_MAX} or has a large odd factor", d.head_dim));
    }
    let tile = u16::from(d.tile_k_log) + u16::from(d.tile_n_log);
    if !(2..=24).contains(&d.row_log) || tile > u16::from(d.row_log) || !(1..=4).contains(&d.blowup_log) {
        return refuse(format!("tiles of 2^{tile} need rows of at least that and at most 2^24, rate 1/2 to 1/16"));
    }
    if !(1..=2).contains(&d.embed.limbs) {
        return refuse(format!("an embedding of {} limbs, 1 or 2 are provable", d.embed.limbs));
    }
    let shapes = [0, 1, d.layers.len() + 1].into_iter().flat_map(|i| decoder_segment_shapes(d, i));
    for (name, k, n) in shapes {
        if !k.is_multiple_of(1 << d.tile_k_log) || !n.is_multiple_of(1 << d.tile_n_log) {
            return refuse(format!("`{name}` ({k} x {n}) is not whole tiles of 2^{} x 2^{}", d.tile_k_log, d.tile_n_log));
        }
    }
    Ok(())
}

/// Names, shapes and weights of a segment.
fn matrices(at: &str, d: &Decoder, w: &SegmentWeights, index: usize) -> Checked {
    let shapes = decoder_segment_shapes(d, index);
    length(&format!("{at} matrices"), w.matrices.len(), shapes.len())?;
    for (m, (name, k, n)) in w.matrices.iter().zip(shapes) {
        matrix(&format!("{at} {name}"), m, &name, k, n)?;
    }
    Ok(())
}

/// The reach of the residual stream after the embedding, per channel.
fn embedding(d: &Decoder, w: &SegmentWeights) -> Result<Vec<i64>, CheckError> {
    let at = "embedding";
    matrices(at, d, w, 0)?;
    for m in &w.matrices {
        for channel in 0..m.outputs {
            if let Some(row) = m.row(channel)[d.vocab as usize..].iter().position(|&q| q != 0) {
                return Err(CheckError::Padding { at: at.into(), row: d.vocab as usize + row, channel });
            }
        }
    }
    length("embedding scale", d.embed.scale.len(), d.width as usize)?;
    let shift = d.embed.shift;
    shifted(at, shift)?;
    let weight = |i: usize| 255i64.pow(i as u32);
    // The circuit knows of an entry only that it has 8 bits.
    let entry: i64 = (0..w.matrices.len()).map(|i| 128 * weight(i)).sum();
    let mut stream = Vec::new();
    for (channel, &scale) in d.embed.scale.iter().enumerate() {
        if scale <= 0 {
            return Err(parameter(at, "scale", i64::from(scale)));
        }
        wraps(at, channel, (1 << (shift + 23)) + (2 << shift) + i64::from(scale) * entry)?;
        let value = |id: usize| w.matrices.iter().enumerate().map(|(i, m)| weight(i) * i64::from(m.row(channel)[id])).sum();
        let top = (0..d.vocab as usize).map(|id| i64::abs(value(id))).max().unwrap_or(0);
        let reach = rounded(i64::from(scale) * top, shift);
        within(at, channel, reach, STREAM_TOP)?;
        stream.push(reach);
    }
    Ok(stream)
}

fn layer(d: &Decoder, spec: &DecoderLayer, w: &SegmentWeights, l: usize, stream: &mut [i64]) -> Checked {
    let at = |name: &str| format!("layer {l} {name}");
    matrices(&format!("layer {l}"), d, w, 1)?;
    let (slots, m) = (DecoderSlots::new(d), &w.matrices);
    normed(&at("attention norm"), &spec.attn_norm, stream)?;
    rotated(&at("q"), d, &spec.q, &m[slots.q.clone()])?;
    rotated(&at("k"), d, &spec.k, &m[slots.k.clone()])?;
    let values = projection(&at("v"), &spec.v, &m[slots.v.clone()], VALUE)?;
    scores(&at("scores"), spec)?;
    let t_hat = accumulated(&at("o"), spec.o, &m[slots.o.clone()], &mixes(d, &values))?;
    branch(&at("attention residual"), &spec.attn_branch, &t_hat, stream)?;
    normed(&at("feed-forward norm"), &spec.ffn_norm, stream)?;
    projection(&at("gate"), &spec.gate, &m[slots.gate..=slots.gate], WORD)?;
    if (i64::from(spec.gate.lo), i64::from(spec.gate.hi)) != WORD {
        return Err(parameter(&at("gate"), "window", i64::from(spec.gate.hi)));
    }
    exponent(&at("up"), spec.up.e)?;
    let up = readers_of_norm(&at("up"), &m[slots.up..=slots.up], spec.up.e)?;
    let products = products(&at("product"), spec, &up)?;
    let t_hat = accumulated(&at("down"), spec.down, &m[slots.down..=slots.down], &products)?;
    branch(&at("feed-forward residual"), &spec.ffn_branch, &t_hat, stream)
}

fn head(d: &Decoder, w: &SegmentWeights, stream: &[i64]) -> Checked {
    let at = "head";
    matrices(at, d, w, d.layers.len() + 1)?;
    normed(at, &d.head.norm, stream)?;
    exponent(at, d.head.linear.e)?;
    let m = &w.matrices[0];
    for channel in d.vocab as usize..m.outputs {
        if let Some(row) = m.row(channel).iter().position(|&q| q != 0) {
            return Err(CheckError::Padding { at: at.into(), row, channel });
        }
    }
    readers_of_norm(at, &w.matrices, d.head.linear.e)?;
    length("head mult", d.head.mult.len(), d.vocab as usize)?;
    match d.head.mult.iter().find(|m| !bounds::M_RANGE.contains(m)) {
        Some(&m) => Err(parameter(at, "mult", i64::from(m))),
        None => Ok(()),
    }
}

/// A norm of values of known reach: every sum of squares that it can meet has a witness. True by itself up to 15,000 channels.
fn normed(at: &str, n: &NormSpec, reach: &[i64]) -> Checked {
    norm(at, n)?;
    let squares = reach.iter().map(|r| r.saturating_mul(*r)).fold(n.eps as i64, i64::saturating_add);
    if squares <= SUM_TOP as i64 { Ok(()) } else { Err(parameter(at, "largest sum of squares", squares)) }
}

/// Reach of `t^` per output of matrices that read a norm: by Cauchy-Schwarz, then the clip.
fn readers_of_norm(at: &str, parts: &[Matrix], e: u8) -> Result<Vec<Span>, CheckError> {
    let row = |m: &Matrix, n: usize| bounds::norm_reader_bound(m.row(n));
    let reach: Vec<i64> = parts.par_iter().flat_map(|m| (0..m.outputs).into_par_iter().map(move |n| row(m, n))).collect();
    let limit = r1_bound(e);
    reach.iter().enumerate().map(|(channel, &bound)| within(at, channel, bound, limit).map(|()| clipped(bound, e))).collect()
}

/// Reach of the outputs of a requantised projection of a norm, all inside its window and that inside `widest`.
fn projection(at: &str, r: &Requant, parts: &[Matrix], widest: Span) -> Result<Vec<Span>, CheckError> {
    requant(at, r, parts.iter().map(|m| m.outputs).sum())?;
    let (lo, hi) = (i64::from(r.lo), i64::from(r.hi));
    if lo > hi || lo < widest.0 || hi > widest.1 {
        return Err(parameter(at, "window", if lo < widest.0 { lo } else { hi }));
    }
    let mut out = readers_of_norm(at, parts, r.e)?;
    for (channel, (span, (&m, &b))) in out.iter_mut().zip(r.m.iter().zip(&r.b)).enumerate() {
        let (m, b) = (i64::from(m), i64::from(b));
        wraps(at, channel, (m << 15) + b.abs() + (lo.abs().max(hi.abs()) << r.k) + (1 << r.k))?;
        // Whatever t^ is, not only what it can be: the circuit proves the window for 16 bits.
        let y = |t: i64| (t * m + b) >> r.k;
        if y(WORD.0) < lo {
            return Err(CheckError::Bound { at: at.into(), channel, bound: y(WORD.0), limit: lo });
        }
        within(at, channel, y(WORD.1), hi)?;
        *span = (y(span.0), y(span.1));
    }
    Ok(out)
}

fn rotated(at: &str, d: &Decoder, r: &Rotated, parts: &[Matrix]) -> Checked {
    projection(at, &r.linear, parts, WORD)?;
    if let Some(n) = &r.norm {
        norm(at, &n.norm)?;
    }
    length(&format!("{at} gain"), r.rotary.gain.len(), d.head_dim as usize)?;
    if let Some(&gain) = r.rotary.gain.iter().find(|g| g.unsigned_abs() > 1 << 15) {
        return Err(parameter(at, "gain", i64::from(gain)));
    }
    let shift = r.rotary.shift;
    if !(1..=15).contains(&shift) {
        return Err(parameter(at, "rotary shift", i64::from(shift)));
    }
    let widest = if r.norm.is_some() { 1 << 15 } else { i64::from(r.linear.lo).abs().max(i64::from(r.linear.hi)) };
    let (first, second) = r.rotary.gain.split_at(d.head_dim as usize / 2);
    for (channel, (&a, &b)) in first.iter().zip(second).enumerate() {
        let gains = i64::from(a).abs() + i64::from(b).abs();
        wraps(at, channel, gains * widest + (1 << (shift + 15)) + (2 << shift))?;
    }
    if i64::from(r.limit) > WORD.1 {
        return Err(parameter(at, "limit", i64::from(r.limit)));
    }
    let reach = rotary::reach(r);
    let limit = (1 << 30) - 1;
    within(at, 0, reach.product, limit)?;
    reach.pairs.iter().enumerate().try_for_each(|(channel, &pair)| within(at, channel, pair, i64::from(r.limit)))
}

/// No score of any pair wraps, and keys fit what the index of the exponential is proven for.
fn scores(at: &str, spec: &DecoderLayer) -> Checked {
    let bound = rotary::score_bound(&spec.q, &spec.k);
    let shift = spec.score_shift;
    if let Some(cap) = &spec.score_cap {
        if shift != 0 || !NARROW_E.contains(&cap.e) {
            return Err(parameter(at, "shift beside a cap, or the cap's e", i64::from(shift.max(cap.e))));
        }
        length(&format!("{at} cap"), cap.table.len(), 1 << 16)?;
        if let Some(&v) = cap.table.iter().find(|v| v.unsigned_abs() > CAP_MAX.unsigned_abs()) {
            return Err(parameter(at, "capped score", i64::from(v)));
        }
        return within(at, 0, bound, r1_bound(cap.e));
    }
    if !(1..=7).contains(&shift) {
        return Err(parameter(at, "shift", i64::from(shift)));
    }
    let room = (P - 1 - (3 << (16 + shift))) / 4;
    within(at, 0, bound, room.min(1 << 29))
}

/// Reach of the mix in proof order: weights are not negative and sum to at most `2^18`.
fn mixes(d: &Decoder, values: &[Span]) -> Vec<Span> {
    let part = values.len() / d.delta().max(1);
    let member = |values: &[Span]| values.iter().map(|&(lo, hi)| (lo.min(0) * 16, hi.max(0) * 16)).collect::<Vec<_>>();
    values.chunks(part.max(1)).flat_map(|values| member(values).repeat(d.group())).collect()
}

/// Reach of the gated products.
fn products(at: &str, spec: &DecoderLayer, up: &[Span]) -> Result<Vec<Span>, CheckError> {
    exponent(at, spec.product.e)?;
    length(&format!("{at} activation"), spec.activation.len(), ACTIVATION_ROWS)?;
    let gate = spec.activation.iter().map(|v| i64::from(*v).abs()).max().unwrap_or(0);
    if gate > i64::from(GATE_MAX) {
        return Err(parameter(at, "activation", gate));
    }
    let limit = r1_bound(spec.product.e);
    within(at, 0, gate << 15, limit)?;
    Ok(up.iter().map(|(lo, hi)| clipped(gate * lo.abs().max(hi.abs()), spec.product.e)).collect())
}

/// Reach of `t^` of a matrix on inputs of known reach, in one or two limbs.
fn accumulated(at: &str, spec: Accumulated, parts: &[Matrix], inputs: &[Span]) -> Result<Vec<i64>, CheckError> {
    let (allowed, limits) = match spec.limbs {
        1 => (NARROW_E, vec![]),
        2 => (wide::E_RANGE, vec![(0, wide::r2_bounds(spec.e).0), (1, wide::r2_bounds(spec.e).1)]),
        other => return Err(parameter(at, "limbs", i64::from(other))),
    };
    if !allowed.contains(&spec.e) {
        return Err(parameter(at, "e", i64::from(spec.e)));
    }
    length(&format!("{at} inputs"), parts.iter().map(|m| m.inputs).sum(), inputs.len())?;
    let limb = |which: usize| -> Vec<Span> {
        inputs.iter().map(|&(lo, hi)| if which == 0 { (0, 255) } else { (lo >> 8, hi >> 8) }).collect()
    };
    for (which, limit) in limits {
        let reach = sums(parts, &limb(which));
        reach.iter().enumerate().try_for_each(|(channel, &bound)| within(at, channel, bound, limit))?;
    }
    let reach = sums(parts, inputs);
    if spec.limbs == 1 {
        let limit = r1_bound(spec.e);
        reach.iter().enumerate().try_for_each(|(channel, &bound)| within(at, channel, bound, limit))?;
    }
    Ok(reach.into_iter().map(|bound| rounded(bound, spec.e).min(-WORD.0)).collect())
}

/// Largest magnitude of each output of a matrix cut along its inputs.
fn sums(parts: &[Matrix], inputs: &[Span]) -> Vec<i64> {
    let outputs = parts.first().map_or(0, |m| m.outputs);
    let row = |n: usize| {
        let (mut low, mut high, mut rest) = (0i64, 0i64, inputs);
        for m in parts {
            let (part, tail) = rest.split_at(m.inputs);
            rest = tail;
            let (l, h) = bounds::row_span(m.row(n), part);
            (low, high) = (low + l, high + h);
        }
        low.abs().max(high.abs())
    };
    (0..outputs).into_par_iter().map(row).collect()
}

/// The branch fits mod p, and no input lets it carry the residual stream out of 24 bits.
fn branch(at: &str, b: &Branch, t_hat: &[i64], stream: &mut [i64]) -> Checked {
    shifted(at, b.shift)?;
    length(&format!("{at} mult"), b.mult.len(), stream.len())?;
    if let Some(n) = &b.norm {
        shifted(at, n.shift)?;
        length(&format!("{at} norm mult"), n.mult.len(), stream.len())?;
        let mut reach = Vec::with_capacity(t_hat.len());
        for (channel, (&mult, &t)) in n.mult.iter().zip(t_hat).enumerate() {
            let mult = i64::from(mult).abs();
            wraps(at, channel, (1 << (n.shift + 23)) + (mult << 15) + (2 << n.shift))?;
            reach.push(rounded(mult * t, n.shift));
            within(at, channel, rounded(mult * t, n.shift), STREAM_TOP)?;
        }
        normed(at, &n.norm, &reach)?;
    }
    for (channel, ((&mult, &t), stream)) in b.mult.iter().zip(t_hat).zip(stream).enumerate() {
        let mult = i64::from(mult).abs();
        wraps(at, channel, (1 << (b.shift + 24)) + (mult << 15) + (2 << b.shift))?;
        *stream += rounded(mult * if b.norm.is_some() { NORM_L2 } else { t }, b.shift);
        within(at, channel, *stream, STREAM_TOP)?;
    }
    Ok(())
}

/// Largest `|floor((v + 2^(w-1)) / 2^w)|` for `|v| <= bound`.
fn rounded(bound: i64, w: u8) -> i64 {
    (bound + (1 << (w - 1))) >> w
}

/// Reach of `t^` for an accumulator of at most `bound`.
fn clipped(bound: i64, e: u8) -> Span {
    let t = rounded(bound, e);
    (-t.min(-WORD.0), t.min(WORD.1))
}

fn shifted(at: &str, shift: u8) -> Checked {
    if SHIFTS.contains(&shift) { Ok(()) } else { Err(parameter(at, "shift", i64::from(shift))) }
}

/// Refuses an equation whose terms can reach p.
fn wraps(at: &str, channel: usize, bound: i64) -> Checked {
    within(at, channel, bound, P - 1)
}

fn within(at: &str, channel: usize, bound: i64, limit: i64) -> Checked {
    if bound <= limit { Ok(()) } else { Err(CheckError::Bound { at: at.into(), channel, bound, limit }) }
}

#[cfg(test)]
mod tests;
