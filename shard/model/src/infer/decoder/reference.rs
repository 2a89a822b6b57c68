//! The definition of decoders: every step in i64, element by element, in the order of the text that describes it.
//!
//! Shapes, errors and axis order are those of the parent module. Nothing here is fast, on purpose.

use super::super::reference::{accumulate, half, least_normaliser, linear, norm_row, stop, t_hat};
use super::super::{InferError, LinearTrace, StopTrace, padded_length};
use super::trace::{
    AccumulatedTrace, BranchNormTrace, BranchTrace, DecoderLayerTrace, HeadTrace, RmsTrace, RotatedTrace, TokenEmbedTrace,
};
use super::{key_of, positions_of, shape, visible};
use crate::tables;
use crate::weights::{DecoderSlots, Matrix, SegmentWeights};
use obelysk_protocol::circuit::descriptor::{Accumulated, Branch, Decoder, DecoderLayer, NormSpec, Requant, Rotated};
use obelysk_protocol::circuit::input::TokenRow;
use obelysk_protocol::circuit::rotary::{coefficients, cos_sin};

/// Embedding segment: `rows`, padded to `t_pad`.
///
/// # Errors
/// See [`InferError`].
pub fn embed(d: &Decoder, w: &SegmentWeights, rows: &[TokenRow], t_pad: usize) -> Result<TokenEmbedTrace, InferError> {
    shape::rows(d, rows, t_pad)?;
    shape::embed(d, w)?;
    let cells = d.width as usize * t_pad;
    let mut out = TokenEmbedTrace { a: vec![vec![0; cells]; w.matrices.len()], rho: vec![0; cells], x: vec![0; cells] };
    for c in 0..d.width as usize {
        for t in 0..t_pad {
            let mut a = 0i64;
            for (i, matrix) in w.matrices.iter().enumerate() {
                let limb = rows.get(t).map_or(0, |row| i64::from(matrix.row(c)[row.id as usize]));
                out.a[i][c * t_pad + t] = limb as i32;
                a += 255i64.pow(i as u32) * limb;
            }
            (out.x[c * t_pad + t], out.rho[c * t_pad + t]) = scaled(d.embed.scale[c], a, d.embed.shift);
        }
    }
    Ok(out)
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
    let at = DecoderSlots::new(d);
    let m = &w.matrices;
    let positions = positions_of(rows, t_pad);
    let attn_norm = rms(&spec.attn_norm, x, t_pad);
    let q = rotated(d, &m[at.q], &spec.q, d.heads as usize, &attn_norm.u, &positions);
    let k = rotated(d, &m[at.k], &spec.k, d.kv_heads as usize, &attn_norm.u, &positions);
    let v = projected(&m[at.v], &spec.v, &attn_norm.u, t_pad);
    let scores = scores(d, &q.rot, &k.rot, t_pad);
    let lambda = normalisers(d, spec, &scores, rows, t_pad);
    let mix_acc = mix(d, spec, &scores, &lambda, &v.y, rows, t_pad);
    let mix: Vec<i16> = mix_acc.iter().map(|&acc| ((i64::from(acc) + (1 << 13)) >> 14) as i16).collect();
    let o = accumulated(&m[at.o], spec.o, &mix, t_pad);
    let attn = branch(&spec.attn_branch, x, &o.t_hat, t_pad);
    let ffn_norm = rms(&spec.ffn_norm, &attn.x, t_pad);
    let gate = linear(&m[at.gate], &spec.gate, &ffn_norm.u, t_pad);
    let act: Vec<i16> =
        gate.y.iter().map(|&y| spec.activation[(i64::from(y).clamp(-32_768, 32_767) + 32_768) as usize]).collect();
    let up = stop(&m[at.up], spec.up.e, &ffn_norm.u, t_pad);
    let product = product(spec.product.e, &act, &up.t_hat);
    let down = accumulated(&m[at.down..=at.down], spec.down, &product.t_hat, t_pad);
    let ffn = branch(&spec.ffn_branch, &attn.x, &down.t_hat, t_pad);
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
    let (width, padded) = (d.width as usize, padded_length(checked.len()));
    let mut selected = vec![0i32; width * padded];
    for c in 0..width {
        for (k, &row) in checked.iter().enumerate() {
            selected[c * padded + k] = x[c * t_pad + row as usize];
        }
    }
    let norm = rms(&d.head.norm, &selected, padded);
    let linear = stop(&w.matrices[0], d.head.linear.e, &norm.u, padded);
    let logit = |k: usize, j: usize| i64::from(d.head.mult[j]) * i64::from(linear.t_hat[j * padded + k]);
    let tokens = (0..checked.len())
        .map(|k| {
            let mut best = 0;
            for j in 1..d.vocab as usize {
                if logit(k, j) > logit(k, best) {
                    best = j;
                }
            }
            best as u32
        })
        .collect();
    Ok(HeadTrace { x: selected, norm, linear, tokens })
}

/// `(q, rho)` with `2^w q + rho = m v + 2^(w-1)`, `rho` in `[0, 2^w)`.
fn scaled(m: i32, v: i64, w: u8) -> (i32, i32) {
    let total = i64::from(m) * v + half(w);
    let quotient = total >> w;
    (quotient as i32, (total - (quotient << w)) as i32)
}

/// RMSNorm over channels, one token at a time.
pub(in super::super) fn rms(spec: &NormSpec, x: &[i32], t_pad: usize) -> RmsTrace {
    let channels: Vec<usize> = (0..x.len() / t_pad).collect();
    rms_rows(spec, x, &[channels], t_pad)
}

/// RMSNorm over each of several sets of channels, which together are all channels; rows are `t + t_pad * set`.
fn rms_rows(spec: &NormSpec, x: &[i32], sets: &[Vec<usize>], t_pad: usize) -> RmsTrace {
    let mut out = RmsTrace { x_scaled: vec![0; x.len()], u: vec![0; x.len()], ..RmsTrace::default() };
    for set in sets {
        for t in 0..t_pad {
            let z: Vec<i64> = set.iter().map(|c| i64::from(x[c * t_pad + t])).collect();
            let row = norm_row(&z, spec.eps);
            for (c, (&scaled, &u)) in set.iter().zip(row.x_scaled.iter().zip(&row.u)) {
                out.x_scaled[c * t_pad + t] = scaled;
                out.u[c * t_pad + t] = u;
            }
            out.s.push(row.s);
            out.sigma.push(row.sigma);
            out.index.push(row.index);
            out.recip.push(row.recip);
        }
    }
    out
}

/// A projection whose outputs are cut into parts.
fn projected(parts: &[Matrix], r: &Requant, x: &[i16], t_pad: usize) -> LinearTrace {
    let acc: Vec<i32> = parts.iter().flat_map(|m| accumulate(m, x, t_pad)).collect();
    let y = |(i, &a): (usize, &i32)| {
        let n = i / t_pad;
        ((i64::from(t_hat(a, r.e)) * i64::from(r.m[n]) + i64::from(r.b[n])) >> r.k) as i32
    };
    let y = acc.iter().enumerate().map(y).collect();
    LinearTrace { acc, y }
}

/// Index in proof order of channel `c` (natural, within a head) of head `hh`, for parts of `2^part_log` channels.
fn place(d: &Decoder, heads: usize, part_log: usize, hh: usize, c: usize) -> usize {
    let (keys, part) = (d.kv_heads as usize, 1usize << part_log);
    (c / part) * heads * part + d.channel(part_log, hh / keys, hh % keys, c % part)
}

/// [`place`] for queries or keys of `heads` heads.
fn turned(d: &Decoder, heads: usize, hh: usize, c: usize) -> usize {
    place(d, heads, d.pair_log(), hh, c)
}

/// [`place`] for values or the mix.
fn plain(d: &Decoder, heads: usize, hh: usize, c: usize) -> usize {
    place(d, heads, d.part_log(), hh, c)
}

fn rotated(d: &Decoder, parts: &[Matrix], r: &Rotated, heads: usize, u: &[i16], positions: &[u32]) -> RotatedTrace {
    let (t_pad, dim) = (positions.len(), d.head_dim as usize);
    let LinearTrace { acc, y } = projected(parts, &r.linear, u, t_pad);
    let norm = r.norm.as_ref().map(|n| {
        let sets: Vec<Vec<usize>> = (0..heads).map(|hh| (0..dim).map(|c| turned(d, heads, hh, c)).collect()).collect();
        rms_rows(&n.norm, &y, &sets, t_pad)
    });
    let value = |i: usize| norm.as_ref().map_or_else(|| i64::from(y[i]), |n| i64::from(n.u[i]));
    let mut rot = vec![0i32; y.len()];
    for hh in 0..heads {
        for j in 0..dim / 2 {
            for (t, &position) in positions.iter().enumerate() {
                let (cos, sin) = cos_sin(u64::from(position).wrapping_mul(d.frequencies[j]));
                let (first, second) = (r.rotary.gain[j], r.rotary.gain[j + dim / 2]);
                let at = [j, j + dim / 2].map(|c| turned(d, heads, hh, c) * t_pad + t);
                let (a, b) = (value(at[0]), value(at[1]));
                let times = |gain: i32, turn: i64, v: i64| i64::from(coefficients(gain, turn)) * v;
                let turn = |total: i64| ((total + half(r.rotary.shift)) >> r.rotary.shift) as i32;
                rot[at[0]] = turn(times(first, cos, a) - times(second, sin, b));
                rot[at[1]] = turn(times(first, sin, a) + times(second, cos, b));
            }
        }
    }
    RotatedTrace { acc, y, norm, rot }
}

fn scores(d: &Decoder, q: &[i32], k: &[i32], t_pad: usize) -> Vec<i32> {
    let (heads, keys, dim) = (d.heads as usize, d.kv_heads as usize, d.head_dim as usize);
    let mut out = vec![0i32; heads * t_pad * t_pad];
    for hh in 0..heads {
        for j in 0..t_pad {
            for i in 0..t_pad {
                let product = |c: usize| {
                    let q = q[turned(d, heads, hh, c) * t_pad + i];
                    i64::from(q) * i64::from(k[turned(d, keys, hh % keys, c) * t_pad + j])
                };
                out[(hh * t_pad + j) * t_pad + i] = (0..dim).map(product).sum::<i64>() as i32;
            }
        }
    }
    out
}

fn normalisers(d: &Decoder, spec: &DecoderLayer, scores: &[i32], rows: &[TokenRow], t_pad: usize) -> Vec<i32> {
    let mut out = Vec::new();
    for hh in 0..d.heads as usize {
        for i in 0..t_pad {
            let seen = (0..t_pad).filter(|&j| visible(rows, spec.window, i, j));
            let keys: Vec<i64> = seen.map(|j| i64::from(key_of(spec, scores[(hh * t_pad + j) * t_pad + i]))).collect();
            out.push(least_normaliser(&keys) as i32);
        }
    }
    out
}

fn mix(d: &Decoder, spec: &DecoderLayer, scores: &[i32], lambda: &[i32], v: &[i32], rows: &[TokenRow], t_pad: usize) -> Vec<i32> {
    let (heads, keys, dim) = (d.heads as usize, d.kv_heads as usize, d.head_dim as usize);
    let mut out = vec![0i32; heads * dim * t_pad];
    for hh in 0..heads {
        for c in 0..dim {
            for i in 0..t_pad {
                let weighted = |j: usize| {
                    let key = i64::from(key_of(spec, scores[(hh * t_pad + j) * t_pad + i]));
                    let p = tables::exp_at(i64::from(lambda[hh * t_pad + i]) - key);
                    p * i64::from(v[plain(d, keys, hh % keys, c) * t_pad + j])
                };
                let sum: i64 = (0..t_pad).filter(|&j| visible(rows, spec.window, i, j)).map(weighted).sum();
                out[plain(d, heads, hh, c) * t_pad + i] = sum as i32;
            }
        }
    }
    out
}

/// A matrix cut into parts along its inputs, and those into limbs.
fn accumulated(parts: &[Matrix], spec: Accumulated, x: &[i16], t_pad: usize) -> AccumulatedTrace {
    let limb = |i: u8, v: i16| match (spec.limbs, i) {
        (1, _) => v,
        (_, 0) => v & 255,
        _ => v >> 8,
    };
    let acc: Vec<Vec<i32>> = (0..spec.limbs)
        .map(|i| {
            let limbs: Vec<i16> = x.iter().map(|&v| limb(i, v)).collect();
            joined(parts, &limbs, t_pad)
        })
        .collect();
    let total = |at: usize| acc.iter().rev().fold(0i64, |sum, acc| (sum << 8) + i64::from(acc[at]));
    let clip = |total: i64| ((total + half(spec.e)) >> spec.e).clamp(-32_768, 32_767) as i16;
    let t_hat = (0..acc[0].len()).map(|at| clip(total(at))).collect();
    AccumulatedTrace { acc, t_hat }
}

/// Sum over the parts of a matrix cut along its inputs.
fn joined(parts: &[Matrix], x: &[i16], t_pad: usize) -> Vec<i32> {
    let mut total: Vec<i64> = Vec::new();
    let mut rest = x;
    for m in parts {
        let (part, tail) = rest.split_at(m.inputs * t_pad);
        rest = tail;
        total.resize(m.outputs * t_pad, 0);
        for (total, acc) in total.iter_mut().zip(accumulate(m, part, t_pad)) {
            *total += i64::from(acc);
        }
    }
    total.iter().map(|&v| v as i32).collect()
}

fn product(e: u8, act: &[i16], up: &[i16]) -> StopTrace {
    let acc: Vec<i32> = act.iter().zip(up).map(|(&g, &t)| i32::from(g) * i32::from(t)).collect();
    let t_hat = acc.iter().map(|&a| t_hat(a, e)).collect();
    StopTrace { acc, t_hat }
}

fn branch(b: &Branch, x: &[i32], t_hat: &[i16], t_pad: usize) -> BranchTrace {
    let norm = b.norm.as_ref().map(|n| {
        let scaled = t_hat.iter().enumerate().map(|(i, &t)| scaled(n.mult[i / t_pad], i64::from(t), n.shift));
        let (y, rho): (Vec<i32>, Vec<i32>) = scaled.unzip();
        let norm = rms(&n.norm, &y, t_pad);
        BranchNormTrace { rho, y, norm }
    });
    let values = norm.as_ref().map_or(t_hat, |n| &n.norm.u);
    let change = values.iter().enumerate().map(|(i, &v)| scaled(b.mult[i / t_pad], i64::from(v), b.shift));
    let (change, rho): (Vec<i32>, Vec<i32>) = change.unzip();
    let x = x.iter().zip(change).map(|(&x, change)| (i64::from(x) + i64::from(change)) as i32).collect();
    BranchTrace { norm, rho, x }
}
