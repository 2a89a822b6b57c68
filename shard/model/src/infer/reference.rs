//! The definition: every step in i64, element by element, in the order of the text that describes it.
//!
//! Shapes, errors and axis order are those of the parent module. Nothing here is fast, on purpose.

use super::{
    EmbedTrace, InferError, LayerTrace, LinearTrace, NormTrace, ResidualTrace, StopTrace, check_embed, check_layer, visible,
};
use crate::tables;
use crate::weights::{Matrix, SegmentWeights, slot};
use obelysk_protocol::circuit::descriptor::{Encoder, LayerSpec, NormSpec, Requant, Residual};

/// Embedding segment: `ids.len()` tokens, padded to `t_pad`.
///
/// # Errors
/// See [`InferError`].
pub fn embed(d: &Encoder, w: &SegmentWeights, ids: &[u32], t_pad: usize) -> Result<EmbedTrace, InferError> {
    let (matrix, axis) = check_embed(d, w, ids, t_pad)?;
    let width = d.width as usize;
    let (mut a, mut rho, mut x) = (vec![0i32; width * t_pad], vec![0i32; width * t_pad], vec![0i32; width * t_pad]);
    for c in 0..width {
        let row = matrix.row(c);
        for t in 0..t_pad {
            let sum = ids
                .get(t)
                .map_or(0, |&id| i64::from(row[id as usize]) + i64::from(row[axis.positions + t]) + i64::from(row[axis.types]));
            let total = i64::from(d.embed.scale[c]) * sum + half(d.embed.shift);
            a[c * t_pad + t] = sum as i32;
            x[c * t_pad + t] = (total >> d.embed.shift) as i32;
            rho[c * t_pad + t] = (total - ((total >> d.embed.shift) << d.embed.shift)) as i32;
        }
    }
    Ok(EmbedTrace { a, rho, norm: norm(&d.embed.norm, x, width, t_pad) })
}

/// One layer on boundary values `u` (`width * t_pad`).
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
    let scores = scores(d, &q.y, &k.y, t_pad);
    let lambda = normalisers(d, &scores, spec.score_shift, tokens, t_pad);
    let mix_acc = mix(d, spec.score_shift, &scores, &lambda, &v.y, tokens, t_pad);
    let mix: Vec<i16> = mix_acc.iter().map(|&acc| ((i64::from(acc) + (1 << 13)) >> 14) as i16).collect();
    let o = stop(m(slot::O), spec.o.e, &mix, t_pad);
    let attn = residual(&spec.attn_residual, u, &o.t_hat, t_pad);
    let up = linear(m(slot::UP), &spec.up, &attn.norm.u, t_pad);
    let act: Vec<i16> = up.y.iter().map(|&y| spec.activation[(i64::from(y) + (1 << 15)).clamp(0, 65_535) as usize]).collect();
    let down = stop(m(slot::DOWN), spec.down.e, &act, t_pad);
    let ffn = residual(&spec.ffn_residual, &attn.norm.u, &down.t_hat, t_pad);
    Ok(LayerTrace { q, k, v, scores, lambda, mix_acc, mix, o, attn, up, act, down, ffn })
}

/// `sum_{t < tokens} u(t, c)` per channel.
#[must_use]
pub fn pool(u: &[i16], tokens: usize, t_pad: usize) -> Vec<i64> {
    u.chunks_exact(t_pad.max(1)).map(|row| row.iter().take(tokens).map(|&v| i64::from(v)).sum()).collect()
}

pub(super) fn half(shift: u8) -> i64 {
    1i64 << (shift - 1)
}

pub(super) fn accumulate(m: &Matrix, x: &[i16], t_pad: usize) -> Vec<i32> {
    let mut out = vec![0i32; m.outputs * t_pad];
    for n in 0..m.outputs {
        for t in 0..t_pad {
            let sum: i64 = m.row(n).iter().enumerate().map(|(k, &q)| i64::from(q) * i64::from(x[k * t_pad + t])).sum();
            out[n * t_pad + t] = sum as i32;
        }
    }
    out
}

/// `clip16(floor((acc + 2^(e-1)) / 2^e))`.
pub(super) fn t_hat(acc: i32, e: u8) -> i16 {
    ((i64::from(acc) + half(e)) >> e).clamp(-32_768, 32_767) as i16
}

pub(super) fn linear(m: &Matrix, r: &Requant, x: &[i16], t_pad: usize) -> LinearTrace {
    let acc = accumulate(m, x, t_pad);
    let y = acc
        .iter()
        .enumerate()
        .map(|(i, &a)| {
            let n = i / t_pad;
            ((i64::from(t_hat(a, r.e)) * i64::from(r.m[n]) + i64::from(r.b[n])) >> r.k) as i32
        })
        .collect();
    LinearTrace { acc, y }
}

pub(super) fn stop(m: &Matrix, e: u8, x: &[i16], t_pad: usize) -> StopTrace {
    let acc = accumulate(m, x, t_pad);
    let t_hat = acc.iter().map(|&a| t_hat(a, e)).collect();
    StopTrace { acc, t_hat }
}

fn scores(d: &Encoder, q: &[i32], k: &[i32], t_pad: usize) -> Vec<i32> {
    let (heads, dim) = (d.heads as usize, d.head_dim as usize);
    let mut out = vec![0i32; heads * t_pad * t_pad];
    for h in 0..heads {
        for j in 0..t_pad {
            for i in 0..t_pad {
                let at = |x: &[i32], c: usize, t: usize| i64::from(x[(h * dim + c) * t_pad + t]);
                let s: i64 = (0..dim).map(|c| at(q, c, i) * at(k, c, j)).sum();
                out[(h * t_pad + j) * t_pad + i] = s as i32;
            }
        }
    }
    out
}

fn normalisers(d: &Encoder, scores: &[i32], g: u8, tokens: usize, t_pad: usize) -> Vec<i32> {
    let heads = d.heads as usize;
    let mut out = vec![0i32; heads * t_pad];
    for h in 0..heads {
        for i in 0..t_pad {
            let keys: Vec<i64> = (0..t_pad)
                .filter(|&j| visible(i, j, tokens))
                .map(|j| i64::from(scores[(h * t_pad + j) * t_pad + i] >> g))
                .collect();
            out[h * t_pad + i] = least_normaliser(&keys) as i32;
        }
    }
    out
}

/// The least Lambda whose weights sum to at most `2^18`. At the largest key minus one a single weight already exceeds
/// it; 65,536 above the largest key all weights are zero. The sum falls in between, so bisection finds it.
pub(super) fn least_normaliser(keys: &[i64]) -> i64 {
    let max = keys.iter().copied().max().unwrap_or(0);
    let (mut lo, mut hi) = (max, max + 65_536);
    while lo < hi {
        let mid = lo + (hi - lo) / 2;
        let sum: i64 = keys.iter().map(|&s| tables::exp_at(mid - s)).sum();
        if sum <= i64::from(tables::EXP_ONE) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    lo
}

fn mix(d: &Encoder, g: u8, scores: &[i32], lambda: &[i32], v: &[i32], tokens: usize, t_pad: usize) -> Vec<i32> {
    let (heads, dim) = (d.heads as usize, d.head_dim as usize);
    let mut out = vec![0i32; heads * dim * t_pad];
    for h in 0..heads {
        for c in h * dim..(h + 1) * dim {
            for i in 0..t_pad {
                let sum: i64 = (0..t_pad)
                    .filter(|&j| visible(i, j, tokens))
                    .map(|j| {
                        let key = i64::from(scores[(h * t_pad + j) * t_pad + i] >> g);
                        tables::exp_at(i64::from(lambda[h * t_pad + i]) - key) * i64::from(v[c * t_pad + j])
                    })
                    .sum();
                out[c * t_pad + i] = sum as i32;
            }
        }
    }
    out
}

fn residual(r: &Residual, u: &[i16], t_hat: &[i16], t_pad: usize) -> ResidualTrace {
    let (mut rho, mut x) = (vec![0i32; u.len()], vec![0i32; u.len()]);
    for i in 0..u.len() {
        let c = i / t_pad;
        let total = i64::from(r.gain[c]) * i64::from(u[i])
            + i64::from(r.bias[c])
            + i64::from(r.mult[c]) * i64::from(t_hat[i])
            + half(r.shift);
        x[i] = (total >> r.shift) as i32;
        rho[i] = (total - ((total >> r.shift) << r.shift)) as i32;
    }
    ResidualTrace { rho, norm: norm(&r.norm, x, r.gain.len(), t_pad) }
}

/// LayerNorm without gain and bias, one token at a time.
pub(super) fn norm(spec: &NormSpec, x: Vec<i32>, width: usize, t_pad: usize) -> NormTrace {
    let mut out = NormTrace {
        mu: vec![0; t_pad],
        s: vec![0; t_pad],
        sigma: vec![0; t_pad],
        index: vec![0; t_pad],
        recip: vec![0; t_pad],
        x_scaled: vec![0; x.len()],
        u: vec![0; x.len()],
        x,
    };
    for t in 0..t_pad {
        let sum: i64 = (0..width).map(|c| i64::from(out.x[c * t_pad + t])).sum();
        let mu = (sum + width as i64 / 2).div_euclid(width as i64);
        let z: Vec<i64> = (0..width).map(|c| i64::from(out.x[c * t_pad + t]) - mu).collect();
        let row = norm_row(&z, spec.eps);
        for (c, (&scaled, &u)) in row.x_scaled.iter().zip(&row.u).enumerate() {
            out.x_scaled[c * t_pad + t] = scaled;
            out.u[c * t_pad + t] = u;
        }
        (out.mu[t], out.s[t], out.sigma[t], out.index[t], out.recip[t]) = (mu as i32, row.s, row.sigma, row.index, row.recip);
    }
    out
}

/// One row of a norm: its scalars, then one entry per element.
pub(super) struct NormRow {
    pub s: u64,
    pub sigma: u8,
    pub index: u32,
    pub recip: i32,
    pub x_scaled: Vec<i32>,
    pub u: Vec<i16>,
}

/// The norm of one row whose mean, if the norm takes one off, is already gone.
pub(super) fn norm_row(z: &[i64], eps: u64) -> NormRow {
    let s = z.iter().map(|z| z.unsigned_abs() * z.unsigned_abs()).sum::<u64>() + eps;
    let sigma = (0..32u8).find(|&sigma| s >> (2 * sigma) < u64::from(tables::RSQRT_HI)).unwrap_or(31);
    let index = (s >> (2 * sigma)) as u32;
    let recip = tables::rsqrt_ref().get(index.wrapping_sub(tables::RSQRT_LO) as usize).copied().unwrap_or(0);
    let scale = |z: &i64| if sigma <= 7 { z << (7 - sigma) } else { (z + (1 << (sigma - 8))) >> (sigma - 7) };
    let x_scaled: Vec<i32> = z.iter().map(|z| scale(z) as i32).collect();
    let u = x_scaled.iter().map(|&x| ((i64::from(x) * i64::from(recip) + (1 << 13)) >> 14) as i16).collect();
    NormRow { s, sigma, index, recip, x_scaled, u }
}
