//! The fast executor of decoders: same results as `reference`, bit for bit, on whole rows of tokens.
//!
//! A checked model keeps every value within i32. Arithmetic wraps instead of trapping, so that an unchecked model gives wrong
//! numbers and never a panic. Nothing but the public functions needs a power of two of rows.

use super::super::forward::{Scales, linear, scale, scales, stop};
use super::super::kernel::{accumulate, clip};
use super::super::{InferError, LinearTrace, StopTrace, padded_length};
use super::attention::{Heads, attention};
use super::trace::{
    AccumulatedTrace, BranchNormTrace, BranchTrace, DecoderLayerTrace, HeadTrace, RmsTrace, RotatedTrace, TokenEmbedTrace,
};
use super::{positions_of, shape};
use crate::weights::{DecoderSlots, Matrix, SegmentWeights};
use obelysk_protocol::circuit::descriptor::{Accumulated, Branch, Decoder, DecoderLayer, NormSpec, Requant, Rotated};
use obelysk_protocol::circuit::input::TokenRow;
use obelysk_protocol::circuit::rotary;

/// Embedding segment: `rows`, padded to `t_pad`.
///
/// # Errors
/// See [`InferError`].
pub fn embed(d: &Decoder, w: &SegmentWeights, rows: &[TokenRow], t_pad: usize) -> Result<TokenEmbedTrace, InferError> {
    shape::rows(d, rows, t_pad)?;
    shape::embed(d, w)?;
    let ids: Vec<u32> = rows.iter().map(|row| row.id).collect();
    Ok(embedded(d, w, &ids, t_pad))
}

/// One layer on the residual stream `x` (`width * t_pad`).
///
/// # Errors
/// See [`InferError`].
pub fn layer(
    d: &Decoder,
    spec: &DecoderLayer,
    w: &SegmentWeights,
    x: &[i32],
    rows: &[TokenRow],
    t_pad: usize,
) -> Result<DecoderLayerTrace, InferError> {
    shape::rows(d, rows, t_pad)?;
    shape::layer(d, spec, w, x, t_pad)?;
    let Projected { attn_norm, q, k, v } = projected(d, spec, w, x, &positions_of(rows, t_pad));
    let (scores, lambda, mix_acc) = attention(d, spec, [&q.rot, &k.rot, &v.y], rows, t_pad);
    let mix: Vec<i16> = mix_acc.iter().map(|acc| (acc.wrapping_add(1 << 13) >> 14) as i16).collect();
    let Block { o, attn, ffn_norm, gate, act, up, product, down, ffn } = block(d, spec, w, x, &mix, t_pad);
    Ok(DecoderLayerTrace {
        attn_norm,
        q,
        k,
        v,
        scores,
        lambda,
        mix_acc,
        mix,
        o,
        attn,
        ffn_norm,
        gate,
        act,
        up,
        product,
        down,
        ffn,
    })
}

/// Logits and next tokens at rows `checked` of the residual stream `x` (`width * t_pad`).
///
/// # Errors
/// See [`InferError`].
pub fn head(d: &Decoder, w: &SegmentWeights, x: &[i32], checked: &[u32], t_pad: usize) -> Result<HeadTrace, InferError> {
    shape::head(d, w, x, checked, t_pad)?;
    let padded = padded_length(checked.len());
    let mut selected = vec![0i32; d.width as usize * padded];
    for (out, x) in selected.chunks_exact_mut(padded).zip(x.chunks_exact(t_pad)) {
        for (out, &row) in out.iter_mut().zip(checked) {
            *out = x[row as usize];
        }
    }
    let norm = rms(&d.head.norm, &selected, padded);
    let linear = stop(&w.matrices[0], d.head.linear.e, &norm.u, padded);
    let mut best = vec![(i32::MIN, 0u32); checked.len()];
    for ((j, &mult), t_hat) in (0..d.vocab).zip(&d.head.mult).zip(linear.t_hat.chunks_exact(padded)) {
        for (best, &t_hat) in best.iter_mut().zip(t_hat) {
            let logit = mult.wrapping_mul(i32::from(t_hat));
            if logit > best.0 {
                *best = (logit, j);
            }
        }
    }
    let tokens = best.into_iter().map(|(_, j)| j).collect();
    Ok(HeadTrace { x: selected, norm, linear, tokens })
}

/// The embedding of `ids`, then zero embeddings up to `t` rows.
pub(super) fn embedded(d: &Decoder, w: &SegmentWeights, ids: &[u32], t: usize) -> TokenEmbedTrace {
    let cells = d.width as usize * t;
    let mut a = vec![vec![0i32; cells]; w.matrices.len()];
    let mut sum = vec![0i32; cells];
    let mut weight = 1i32;
    for (a, matrix) in a.iter_mut().zip(&w.matrices) {
        for (c, (a, sum)) in a.chunks_exact_mut(t).zip(sum.chunks_exact_mut(t)).enumerate() {
            let row = matrix.row(c);
            for ((a, sum), &id) in a.iter_mut().zip(sum).zip(ids) {
                *a = i32::from(row[id as usize]);
                *sum = sum.wrapping_add(weight.wrapping_mul(*a));
            }
        }
        weight = weight.wrapping_mul(255);
    }
    let (x, rho) = scaled(&d.embed.scale, &sum, d.embed.shift, t);
    TokenEmbedTrace { a, rho, x }
}

/// `(q, rho)` with `2^w q + rho = m_c v + 2^(w-1)`.
fn scaled<T: Copy + Into<i32>>(mult: &[i32], values: &[T], w: u8, t: usize) -> (Vec<i32>, Vec<i32>) {
    let (half, mask) = (1i32 << (w - 1), (1i32 << w) - 1);
    let (mut quotient, mut rho) = (Vec::with_capacity(values.len()), Vec::with_capacity(values.len()));
    for (row, &m) in values.chunks_exact(t).zip(mult) {
        for &v in row {
            let total = m.wrapping_mul(v.into()).wrapping_add(half);
            quotient.push(total >> w);
            rho.push(total & mask);
        }
    }
    (quotient, rho)
}

/// What attention reads.
pub(super) struct Projected {
    pub attn_norm: RmsTrace,
    pub q: RotatedTrace,
    pub k: RotatedTrace,
    pub v: LinearTrace,
}

/// Norm and projections of rows at the given positions.
pub(super) fn projected(d: &Decoder, spec: &DecoderLayer, w: &SegmentWeights, x: &[i32], positions: &[u32]) -> Projected {
    let (at, t) = (DecoderSlots::new(d), positions.len());
    let attn_norm = rms(&spec.attn_norm, x, t);
    let q = rotated(d, &w.matrices[at.q], &spec.q, d.heads as usize, &attn_norm.u, positions);
    let k = rotated(d, &w.matrices[at.k], &spec.k, d.kv_heads as usize, &attn_norm.u, positions);
    let v = requantised(&w.matrices[at.v], &spec.v, &attn_norm.u, t);
    Projected { attn_norm, q, k, v }
}

/// What follows attention.
pub(super) struct Block {
    pub o: AccumulatedTrace,
    pub attn: BranchTrace,
    pub ffn_norm: RmsTrace,
    pub gate: LinearTrace,
    pub act: Vec<i16>,
    pub up: StopTrace,
    pub product: StopTrace,
    pub down: AccumulatedTrace,
    pub ffn: BranchTrace,
}

/// From the mix to the next layer's residual stream.
pub(super) fn block(d: &Decoder, spec: &DecoderLayer, w: &SegmentWeights, x: &[i32], mix: &[i16], t: usize) -> Block {
    let (at, m) = (DecoderSlots::new(d), &w.matrices);
    let o = accumulated(&m[at.o], spec.o, mix, t);
    let attn = branch(&spec.attn_branch, x, &o.t_hat, t);
    let ffn_norm = rms(&spec.ffn_norm, &attn.x, t);
    let gate = linear(&m[at.gate], &spec.gate, &ffn_norm.u, t);
    let act: Vec<i16> = gate.y.iter().map(|&y| spec.activation[(y.clamp(-32_768, 32_767) + 32_768) as usize]).collect();
    let up = stop(&m[at.up], spec.up.e, &ffn_norm.u, t);
    let acc: Vec<i32> = act.iter().zip(&up.t_hat).map(|(&g, &t)| i32::from(g) * i32::from(t)).collect();
    let t_hat = clip(&acc, spec.product.e).map(|t| t as i16).collect();
    let product = StopTrace { acc, t_hat };
    let down = accumulated(&m[at.down..=at.down], spec.down, &product.t_hat, t);
    let ffn = branch(&spec.ffn_branch, &attn.x, &down.t_hat, t);
    Block { o, attn, ffn_norm, gate, act, up, product, down, ffn }
}

/// RMSNorm over all channels.
fn rms(spec: &NormSpec, x: &[i32], t: usize) -> RmsTrace {
    rms_sets(spec, x, 1, |_| 0, t)
}

/// RMSNorm over sets of channels, `set_of` giving the set of each; rows are `t * set + row`.
fn rms_sets(spec: &NormSpec, x: &[i32], sets: usize, set_of: impl Fn(usize) -> usize, t: usize) -> RmsTrace {
    let mut s = vec![spec.eps; sets * t];
    for (c, row) in x.chunks_exact(t).enumerate() {
        for (s, &x) in s[set_of(c) * t..].iter_mut().zip(row) {
            *s = s.wrapping_add(u64::from(x.unsigned_abs()).pow(2));
        }
    }
    let Scales { sigma, index, recip } = scales(&s);
    let (mut x_scaled, mut u) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    for (c, row) in x.chunks_exact(t).enumerate() {
        let first = set_of(c) * t;
        for (&x, (&sigma, &recip)) in row.iter().zip(sigma[first..].iter().zip(&recip[first..])) {
            let (scaled, out) = scale(i64::from(x), sigma, recip);
            x_scaled.push(scaled);
            u.push(out);
        }
    }
    RmsTrace { s, sigma, index, recip, x_scaled, u }
}

/// A projection whose outputs are cut into parts.
fn requantised(parts: &[Matrix], r: &Requant, x: &[i16], t: usize) -> LinearTrace {
    let acc: Vec<i32> = parts.iter().flat_map(|m| accumulate(m, x, t)).collect();
    let mut y = Vec::with_capacity(acc.len());
    for (row, (&m, &b)) in acc.chunks_exact(t).zip(r.m.iter().zip(&r.b)) {
        y.extend(clip(row, r.e).map(|v| v.wrapping_mul(m).wrapping_add(b) >> r.k));
    }
    LinearTrace { acc, y }
}

fn rotated(d: &Decoder, parts: &[Matrix], r: &Rotated, heads: usize, u: &[i16], positions: &[u32]) -> RotatedTrace {
    let t = positions.len();
    let LinearTrace { acc, y } = requantised(parts, &r.linear, u, t);
    let at = Heads::new(d, heads, d.pair_log());
    let norm = r.norm.as_ref().map(|n| rms_sets(&n.norm, &y, heads, |c| at.head_of(c), t));
    let mut rot = vec![0i32; y.len()];
    let (s, half) = (r.rotary.shift, 1i32 << (r.rotary.shift - 1));
    let pairs = d.head_dim as usize / 2;
    for part in 0..d.delta() {
        let [cos_a, sin_b, sin_a, cos_b] = rotary::tables(d, &r.rotary.gain, positions, part);
        for c in 0..1usize << d.pair_log() {
            let of = c * t..(c + 1) * t;
            let turn = [&cos_a[of.clone()], &sin_b[of.clone()], &sin_a[of.clone()], &cos_b[of]];
            for hh in 0..heads {
                let j = (part << d.pair_log()) + c;
                let (a, b) = (at.channel(hh, j) * t, at.channel(hh, j + pairs) * t);
                for i in 0..t {
                    let value = |at: usize| norm.as_ref().map_or_else(|| y[at], |n| i32::from(n.u[at]));
                    let (x, z) = (value(a + i), value(b + i));
                    let first = turn[0][i].wrapping_mul(x).wrapping_sub(turn[1][i].wrapping_mul(z));
                    let second = turn[2][i].wrapping_mul(x).wrapping_add(turn[3][i].wrapping_mul(z));
                    rot[a + i] = first.wrapping_add(half) >> s;
                    rot[b + i] = second.wrapping_add(half) >> s;
                }
            }
        }
    }
    RotatedTrace { acc, y, norm, rot }
}

/// A matrix cut into parts along its inputs, and those into limbs: limbs are further columns of one product.
fn accumulated(parts: &[Matrix], spec: Accumulated, x: &[i16], t: usize) -> AccumulatedTrace {
    let limbs = usize::from(spec.limbs);
    let columns = limbs * t;
    let split;
    let x = if limbs == 1 {
        x
    } else {
        let both = |row: &[i16]| row.iter().map(|v| v & 255).chain(row.iter().map(|v| v >> 8)).collect::<Vec<i16>>();
        split = x.chunks_exact(t).flat_map(both).collect::<Vec<i16>>();
        &split
    };
    let mut total: Vec<i32> = Vec::new();
    let mut rest = x;
    for m in parts {
        let (part, tail) = rest.split_at(m.inputs * columns);
        rest = tail;
        let acc = accumulate(m, part, columns);
        if total.is_empty() {
            total = acc;
        } else {
            total.iter_mut().zip(acc).for_each(|(total, acc)| *total = total.wrapping_add(acc));
        }
    }
    if limbs == 1 {
        let t_hat = clip(&total, spec.e).map(|v| v as i16).collect();
        return AccumulatedTrace { acc: vec![total], t_hat };
    }
    let mut acc = [(); 2].map(|()| Vec::with_capacity(total.len() / 2));
    let mut t_hat = Vec::with_capacity(total.len() / 2);
    let half = 1i64 << (spec.e - 1);
    for row in total.chunks_exact(columns) {
        let (low, high) = row.split_at(t);
        acc[0].extend_from_slice(low);
        acc[1].extend_from_slice(high);
        let sum = low.iter().zip(high).map(|(&low, &high)| i64::from(low) + (i64::from(high) << 8));
        t_hat.extend(sum.map(|sum| ((sum + half) >> spec.e).clamp(-32_768, 32_767) as i16));
    }
    AccumulatedTrace { acc: acc.into(), t_hat }
}

fn branch(b: &Branch, x: &[i32], t_hat: &[i16], t: usize) -> BranchTrace {
    let norm = b.norm.as_ref().map(|n| {
        let (y, rho) = scaled(&n.mult, t_hat, n.shift, t);
        let norm = rms(&n.norm, &y, t);
        BranchNormTrace { rho, y, norm }
    });
    let (mut out, rho) = scaled(&b.mult, norm.as_ref().map_or(t_hat, |n| &n.norm.u), b.shift, t);
    out.iter_mut().zip(x).for_each(|(change, &x)| *change = change.wrapping_add(x));
    BranchTrace { norm, rho, x: out }
}
