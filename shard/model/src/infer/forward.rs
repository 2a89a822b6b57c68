//! The fast executor: same results as `reference`, bit for bit, on whole rows of tokens.
//!
//! Token is the fast axis of every array; see the parent module for shapes.

use super::kernel::{accumulate, add_scaled, clip};
use super::{EmbedTrace, InferError, LayerTrace, LinearTrace, NormTrace, ResidualTrace, StopTrace, check_embed, check_layer};
use crate::tables;
use crate::weights::{Matrix, SegmentWeights, slot};
use obelysk_protocol::circuit::descriptor::{Encoder, LayerSpec, NormSpec, Requant, Residual};
use rayon::prelude::*;

/// Embedding segment: `ids.len()` tokens, padded to `t_pad` with zero embeddings.
///
/// # Errors
/// See [`InferError`].
pub fn embed(d: &Encoder, w: &SegmentWeights, ids: &[u32], t_pad: usize) -> Result<EmbedTrace, InferError> {
    let (matrix, axis) = check_embed(d, w, ids, t_pad)?;
    let width = d.width as usize;
    let mut a = vec![0i32; width * t_pad];
    for (c, out) in a.chunks_exact_mut(t_pad).enumerate() {
        let row = matrix.row(c);
        for ((t, &id), out) in ids.iter().enumerate().zip(out) {
            *out = i32::from(row[id as usize]) + i32::from(row[axis.positions + t]) + i32::from(row[axis.types]);
        }
    }
    let (shift, half, mask) = (d.embed.shift, 1i32 << (d.embed.shift - 1), (1i32 << d.embed.shift) - 1);
    let (mut x, mut rho) = (Vec::with_capacity(a.len()), Vec::with_capacity(a.len()));
    for (row, &scale) in a.chunks_exact(t_pad).zip(&d.embed.scale) {
        for &a in row {
            let total = scale.wrapping_mul(a).wrapping_add(half);
            x.push(total >> shift);
            rho.push(total & mask);
        }
    }
    Ok(EmbedTrace { a, rho, norm: norm(&d.embed.norm, x, width, t_pad) })
}

/// One layer on boundary values `u` (`width * t_pad`), of which `tokens` columns are real.
///
/// # Errors
/// See [`InferError`].
pub fn layer(
    d: &Encoder,
    spec: &LayerSpec,
    w: &SegmentWeights,
    u: &[i16],
    tokens: usize,
    t_pad: usize,
) -> Result<LayerTrace, InferError> {
    check_layer(d, spec, w, u, tokens, t_pad)?;
    let m = |s: usize| &w.matrices[s];
    let q = linear(m(slot::Q), &spec.q, u, t_pad);
    let k = linear(m(slot::K), &spec.k, u, t_pad);
    let v = linear(m(slot::V), &spec.v, u, t_pad);
    let (scores, lambda, mix_acc) = attention(d, spec.score_shift, [&q.y, &k.y, &v.y], tokens, t_pad);
    let mix: Vec<i16> = mix_acc.iter().map(|acc| (acc.wrapping_add(1 << 13) >> 14) as i16).collect();
    let o = stop(m(slot::O), spec.o.e, &mix, t_pad);
    let attn = residual(&spec.attn_residual, u, &o.t_hat, t_pad);
    let up = linear(m(slot::UP), &spec.up, &attn.norm.u, t_pad);
    let act: Vec<i16> = up.y.iter().map(|&y| spec.activation[(y.clamp(-32_768, 32_767) + 32_768) as usize]).collect();
    let down = stop(m(slot::DOWN), spec.down.e, &act, t_pad);
    let ffn = residual(&spec.ffn_residual, &attn.norm.u, &down.t_hat, t_pad);
    Ok(LayerTrace { q, k, v, scores, lambda, mix_acc, mix, o, attn, up, act, down, ffn })
}

/// `sum_{t < tokens} u(t, c)` per channel: the proven output.
#[must_use]
pub fn pool(u: &[i16], tokens: usize, t_pad: usize) -> Vec<i64> {
    u.chunks_exact(t_pad.max(1)).map(|row| row.iter().take(tokens).map(|&v| i64::from(v)).sum()).collect()
}

pub(super) fn linear(m: &Matrix, r: &Requant, x: &[i16], t_pad: usize) -> LinearTrace {
    let acc = accumulate(m, x, t_pad);
    let mut y = Vec::with_capacity(acc.len());
    for (row, (&scale, &b)) in acc.chunks_exact(t_pad).zip(r.m.iter().zip(&r.b)) {
        y.extend(clip(row, r.e).map(|t| t.wrapping_mul(scale).wrapping_add(b) >> r.k));
    }
    LinearTrace { acc, y }
}

pub(super) fn stop(m: &Matrix, e: u8, x: &[i16], t_pad: usize) -> StopTrace {
    let acc = accumulate(m, x, t_pad);
    let t_hat = clip(&acc, e).map(|t| t as i16).collect();
    StopTrace { acc, t_hat }
}

/// `(scores, lambda, mix_acc)`, heads in parallel.
fn attention(d: &Encoder, g: u8, qkv: [&[i32]; 3], tokens: usize, t_pad: usize) -> (Vec<i32>, Vec<i32>, Vec<i32>) {
    let (heads, dim) = (d.heads as usize, d.head_dim as usize);
    let mut scores = vec![0i32; heads * t_pad * t_pad];
    let mut lambda = vec![0i32; heads * t_pad];
    let mut mix = vec![0i32; heads * dim * t_pad];
    let per_head = qkv.map(|x| x.par_chunks_exact(dim * t_pad));
    let [q, k, v] = per_head;
    scores
        .par_chunks_exact_mut(t_pad * t_pad)
        .zip(lambda.par_chunks_exact_mut(t_pad))
        .zip(mix.par_chunks_exact_mut(dim * t_pad))
        .zip(q.zip(k).zip(v))
        .for_each(|(((scores, lambda), mix), ((q, k), v))| {
            head_scores(q, k, scores, t_pad);
            let weights = head_softmax(scores, lambda, g, tokens, t_pad);
            for (row, v) in mix.chunks_exact_mut(t_pad).zip(v.chunks_exact(t_pad)) {
                for (weights, &v) in weights.chunks_exact(t_pad).zip(v) {
                    add_scaled(row, v, weights);
                }
            }
        });
    (scores, lambda, mix)
}

fn head_scores(q: &[i32], k: &[i32], scores: &mut [i32], t_pad: usize) {
    for (q, k) in q.chunks_exact(t_pad).zip(k.chunks_exact(t_pad)) {
        for (row, &k) in scores.chunks_exact_mut(t_pad).zip(k) {
            add_scaled(row, k, q);
        }
    }
}

/// Fills `lambda` and returns the weights `p[j][i]`, zero where masked.
fn head_softmax(scores: &[i32], lambda: &mut [i32], g: u8, tokens: usize, t_pad: usize) -> Vec<i32> {
    let exp = &tables::exp_ref().0;
    let mut weights = vec![0i32; t_pad * t_pad];
    let mut keys = vec![0i32; tokens];
    for (i, lambda) in lambda.iter_mut().enumerate() {
        if i >= tokens {
            *lambda = scores[i * t_pad + i] >> g;
            weights[i * t_pad + i] = tables::EXP_ONE;
            continue;
        }
        for (j, key) in keys.iter_mut().enumerate() {
            *key = scores[j * t_pad + i] >> g;
        }
        *lambda = normaliser(&keys, exp);
        for (j, &key) in keys.iter().enumerate() {
            weights[j * t_pad + i] = weight(exp, i64::from(*lambda) - i64::from(key));
        }
    }
    weights
}

pub(super) fn weight(exp: &[i32], index: i64) -> i32 {
    exp.get(index as usize).copied().unwrap_or(0)
}

/// Least Lambda, from a floating-point guess corrected by exact sums: the guess decides how long it takes, never the result.
pub(super) fn normaliser(keys: &[i32], exp: &[i32]) -> i32 {
    let max = i64::from(keys.iter().copied().max().unwrap_or(0));
    let sum = |lambda: i64| -> i64 {
        if lambda < max {
            return i64::MAX;
        }
        keys.iter().map(|&s| i64::from(weight(exp, lambda - i64::from(s)))).sum()
    };
    let one = i64::from(tables::EXP_ONE);
    let mut lambda = max + ((sum(max) as f64 / one as f64).ln() * 4096.0) as i64;
    while sum(lambda) > one {
        lambda += 1;
    }
    while sum(lambda - 1) <= one {
        lambda -= 1;
    }
    lambda as i32
}

fn residual(r: &Residual, u: &[i16], t_hat: &[i16], t_pad: usize) -> ResidualTrace {
    let (half, mask) = (1i32 << (r.shift - 1), (1i32 << r.shift) - 1);
    let (mut rho, mut x) = (Vec::with_capacity(u.len()), Vec::with_capacity(u.len()));
    let rows = u.chunks_exact(t_pad).zip(t_hat.chunks_exact(t_pad));
    for ((u, t_hat), ((&gain, &mult), &bias)) in rows.zip(r.gain.iter().zip(&r.mult).zip(&r.bias)) {
        let constant = bias.wrapping_add(half);
        for (&u, &t_hat) in u.iter().zip(t_hat) {
            let total = gain.wrapping_mul(i32::from(u)).wrapping_add(mult.wrapping_mul(i32::from(t_hat))).wrapping_add(constant);
            x.push(total >> r.shift);
            rho.push(total & mask);
        }
    }
    ResidualTrace { rho, norm: norm(&r.norm, x, r.gain.len(), t_pad) }
}

/// LayerNorm without gain and bias, row sums first, then one pass per channel.
pub(super) fn norm(spec: &NormSpec, x: Vec<i32>, width: usize, t_pad: usize) -> NormTrace {
    let (mut sums, mut s) = (vec![0i64; t_pad], vec![spec.eps; t_pad]);
    for row in x.chunks_exact(t_pad) {
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += i64::from(x);
        }
    }
    let mu: Vec<i32> = sums.iter().map(|sum| (sum + width as i64 / 2).div_euclid(width.max(1) as i64) as i32).collect();
    for row in x.chunks_exact(t_pad) {
        for ((s, &mu), &x) in s.iter_mut().zip(&mu).zip(row) {
            let z = i64::from(x) - i64::from(mu);
            *s = s.wrapping_add((z * z) as u64);
        }
    }
    let Scales { sigma, index, recip } = scales(&s);
    let (mut x_scaled, mut u) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    for row in x.chunks_exact(t_pad) {
        for ((&x, &mu), (&sigma, &recip)) in row.iter().zip(&mu).zip(sigma.iter().zip(&recip)) {
            let (scaled, out) = scale(i64::from(x) - i64::from(mu), sigma, recip);
            x_scaled.push(scaled);
            u.push(out);
        }
    }
    NormTrace { x, mu, s, sigma, index, recip, x_scaled, u }
}

/// What the sums of squares of rows decide, one entry per row.
pub(super) struct Scales {
    pub sigma: Vec<u8>,
    pub index: Vec<u32>,
    pub recip: Vec<i32>,
}

pub(super) fn scales(s: &[u64]) -> Scales {
    let sigma: Vec<u8> = s.iter().map(|&s| sigma(s)).collect();
    let index: Vec<u32> = s.iter().zip(&sigma).map(|(&s, &sigma)| (s >> (2 * sigma)) as u32).collect();
    let table = tables::rsqrt_ref();
    let recip = index.iter().map(|&i| table.get(i.wrapping_sub(tables::RSQRT_LO) as usize).copied().unwrap_or(0)).collect();
    Scales { sigma, index, recip }
}

/// `(x', u)` of one element.
pub(super) fn scale(z: i64, sigma: u8, recip: i32) -> (i32, i16) {
    // One formula for both signs of sigma - 7: half is zero unless bits are dropped.
    let half = (1i64 << sigma) >> 1;
    let scaled = ((z * 128 + if sigma > 7 { half } else { 0 }) >> sigma) as i32;
    (scaled, (scaled.wrapping_mul(recip).wrapping_add(1 << 13) >> 14) as i16)
}

/// Least sigma with `s >> 2 sigma < 65280`.
fn sigma(s: u64) -> u8 {
    // Two bits at a time from the bit length; one step more where the leading digits are 65280 or above.
    let bits = 64 - s.leading_zeros() as u8;
    let guess = bits.saturating_sub(16).div_ceil(2);
    if s >> (2 * guess) < u64::from(tables::RSQRT_HI) { guess } else { guess + 1 }
}
