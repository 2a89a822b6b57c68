//! Float execution of a decoder: f32 products, f64 for norms, scores and softmax. The reference that calibration and fidelity
//! are measured against.
//!
//! A layer's weights are read, used and dropped, so memory holds one layer. Callers that run many inputs read a layer once and
//! pass each input through [`layer`]. Refuses empty input, ids outside the vocabulary and more tokens than positions.

use super::decoder::{DecoderGraph, DecoderLayer};
use super::float::FloatError;
use super::matmul::Packed;
use crate::import::{DecoderConfig, HiddenAct, ImportError};
use crate::tables::gelu;
use rayon::prelude::*;
use std::f64::consts::FRAC_2_PI;

/// Layer number reported with what lies behind the last layer.
pub const FINAL: usize = usize::MAX;
/// Values of the head held at once: 64 MiB, whatever the vocabulary.
const HEAD_VALUES: usize = 1 << 24;

/// What an observer is shown. `d` is the width; values are `channels x tokens`, token fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Embedding rows, scaled; `d`, reported for layer 0.
    Embedded,
    /// Input of attention; `d`.
    AttnNorm,
    /// Queries as projected; `heads * head_dim`.
    QPre,
    /// Keys as projected; `kv_heads * head_dim`.
    KPre,
    /// Values; `kv_heads * head_dim`.
    V,
    /// Queries after norm and rotation.
    Q,
    /// Keys after norm and rotation.
    K,
    /// Weighted values; `heads * head_dim`.
    Mix,
    /// Output projection of attention; `d`.
    AttnOut,
    /// The same after its norm, in families that have one; `d`.
    PostAttnNorm,
    /// Residual stream after attention; `d`.
    Mid,
    /// Input of the feed-forward block; `d`.
    FfnNorm,
    /// Gate before its activation; `ffn`.
    GatePre,
    /// Gate after its activation; `ffn`.
    Gate,
    /// `ffn`.
    Up,
    /// Gate times up; `ffn`.
    Product,
    /// Output of the feed-forward block; `d`.
    Down,
    /// The same after its norm, in families that have one; `d`.
    PostFfnNorm,
    /// Residual stream after the layer; `d`.
    Out,
    /// After the last norm; `d`, layer [`FINAL`].
    FinalNorm,
    /// After the last cap; `vocab`, layer [`FINAL`].
    Logits,
}

/// Called with layer, stage, values and number of tokens.
pub type Observer<'a> = dyn FnMut(usize, Stage, &[f32], usize) + 'a;

/// Logits `[tokens][vocab]` of a sequence.
///
/// # Errors
/// See [`FloatError`].
pub fn forward(graph: &DecoderGraph, ids: &[u32], observer: &mut Observer) -> Result<Vec<f32>, FloatError> {
    let x = embed(graph, ids)?;
    observer(0, Stage::Embedded, &x, ids.len());
    forward_from(graph, 0, x, ids.len(), observer)
}

/// Logits `[tokens][vocab]` from the residual stream `d x tokens` before layer `first`.
///
/// # Errors
/// See [`FloatError`].
pub fn forward_from(
    graph: &DecoderGraph,
    first: usize,
    mut x: Vec<f32>,
    tokens: usize,
    observer: &mut Observer,
) -> Result<Vec<f32>, FloatError> {
    fits(&graph.config, tokens)?;
    for l in first..graph.config.layers {
        x = layer(&graph.config, l, &graph.layer(l)?, &x, tokens, observer);
    }
    logits(graph, &x, tokens, observer)
}

/// Embedding rows of a sequence, scaled: `d x tokens`.
///
/// # Errors
/// See [`FloatError`].
pub fn embed(graph: &DecoderGraph, ids: &[u32]) -> Result<Vec<f32>, FloatError> {
    let (vocab, d, tokens) = (graph.config.vocab, graph.config.width, ids.len());
    fits(&graph.config, tokens)?;
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(FloatError::Vocabulary { id, vocab });
    }
    let scale = graph.config.embed_scale as f32;
    let mut x = vec![0f32; d * tokens];
    for (t, &id) in ids.iter().enumerate() {
        let row = graph.embedding_rows(id as usize..id as usize + 1)?;
        row.iter().enumerate().for_each(|(c, v)| x[c * tokens + t] = v * scale);
    }
    Ok(x)
}

/// Layer `l` of a model with settings `config`: the residual stream `d x tokens` behind it from the one before it.
pub fn layer(
    config: &DecoderConfig,
    l: usize,
    weights: &DecoderLayer,
    x: &[f32],
    tokens: usize,
    observer: &mut Observer,
) -> Vec<f32> {
    let mut see = |stage: Stage, values: &[f32]| observer(l, stage, values, tokens);
    let branch = attend(config, l, weights, x, tokens, &mut see);
    let mid: Vec<f32> = x.iter().zip(&branch).map(|(a, b)| a + b).collect();
    see(Stage::Mid, &mid);
    let branch = feed(config, weights, &mid, tokens, &mut see);
    let out: Vec<f32> = mid.iter().zip(&branch).map(|(a, b)| a + b).collect();
    see(Stage::Out, &out);
    out
}

/// Last norm, head and cap: logits `[tokens][vocab]` from the residual stream `d x tokens`. The head is read in parts.
///
/// # Errors
/// See [`FloatError`].
pub fn logits(graph: &DecoderGraph, x: &[f32], tokens: usize, observer: &mut Observer) -> Result<Vec<f32>, FloatError> {
    let config = &graph.config;
    let normed = norm(x, &graph.final_norm()?, config.norm_eps, tokens);
    observer(FINAL, Stage::FinalNorm, &normed, tokens);
    let packed = Packed::new(&normed, tokens);
    let step = (HEAD_VALUES / config.width).max(1);
    let mut rows = Vec::with_capacity(config.vocab * tokens);
    for from in (0..config.vocab).step_by(step) {
        let part = graph.head_rows(from..config.vocab.min(from + step))?;
        rows.extend(packed.product(&part, None));
    }
    if let Some(c) = config.logit_cap {
        rows.par_iter_mut().for_each(|v| *v = (c * (f64::from(*v) / c).tanh()) as f32);
    }
    observer(FINAL, Stage::Logits, &rows, tokens);
    let mut out = vec![0f32; rows.len()];
    out.par_chunks_exact_mut(config.vocab).enumerate().for_each(|(t, out)| {
        out.iter_mut().zip(rows[t..].iter().step_by(tokens)).for_each(|(o, v)| *o = *v);
    });
    Ok(out)
}

fn fits(config: &DecoderConfig, tokens: usize) -> Result<(), FloatError> {
    let positions = config.positions;
    match tokens {
        0 => Err(FloatError::Empty),
        _ if tokens > positions => Err(FloatError::TooLong { tokens, positions }),
        _ => Ok(()),
    }
}

fn attend(
    config: &DecoderConfig,
    l: usize,
    w: &DecoderLayer,
    x: &[f32],
    tokens: usize,
    see: &mut dyn FnMut(Stage, &[f32]),
) -> Vec<f32> {
    let normed = norm(x, &w.attn_norm, config.norm_eps, tokens);
    see(Stage::AttnNorm, &normed);
    let packed = Packed::new(&normed, tokens);
    let mut q = packed.product(&w.q, w.q_bias.as_deref());
    see(Stage::QPre, &q);
    let mut k = packed.product(&w.k, w.k_bias.as_deref());
    see(Stage::KPre, &k);
    let v = packed.product(&w.v, w.v_bias.as_deref());
    see(Stage::V, &v);
    let turns = turns(config, tokens);
    position(config, &mut q, w.q_norm.as_deref(), &turns, tokens);
    see(Stage::Q, &q);
    position(config, &mut k, w.k_norm.as_deref(), &turns, tokens);
    see(Stage::K, &k);
    let mix = mix(config, config.windows[l], [&q, &k, &v], tokens);
    see(Stage::Mix, &mix);
    let mut out = Packed::new(&mix, tokens).product(&w.o, None);
    see(Stage::AttnOut, &out);
    if let Some(gain) = &w.post_attn_norm {
        out = norm(&out, gain, config.norm_eps, tokens);
        see(Stage::PostAttnNorm, &out);
    }
    out
}

fn feed(config: &DecoderConfig, w: &DecoderLayer, mid: &[f32], tokens: usize, see: &mut dyn FnMut(Stage, &[f32])) -> Vec<f32> {
    let normed = norm(mid, &w.ffn_norm, config.norm_eps, tokens);
    see(Stage::FfnNorm, &normed);
    let packed = Packed::new(&normed, tokens);
    let mut gate = packed.product(&w.gate, None);
    see(Stage::GatePre, &gate);
    gate.par_iter_mut().for_each(|v| *v = activate(config.activation, f64::from(*v)) as f32);
    see(Stage::Gate, &gate);
    let up = packed.product(&w.up, None);
    see(Stage::Up, &up);
    gate.iter_mut().zip(&up).for_each(|(g, u)| *g *= u);
    see(Stage::Product, &gate);
    let mut out = Packed::new(&gate, tokens).product(&w.down, None);
    see(Stage::Down, &out);
    if let Some(gain) = &w.post_ffn_norm {
        out = norm(&out, gain, config.norm_eps, tokens);
        see(Stage::PostFfnNorm, &out);
    }
    out
}

fn activate(kind: HiddenAct, x: f64) -> f64 {
    match kind {
        HiddenAct::Gelu => gelu(x),
        HiddenAct::Silu => x / (1.0 + (-x).exp()),
        HiddenAct::GeluTanh => 0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044_715 * x * x * x)).tanh()),
    }
}

/// `x / rms(x) * gain` for each token.
fn norm(x: &[f32], gain: &[f32], eps: f64, tokens: usize) -> Vec<f32> {
    let mut out = x.to_vec();
    norm_in_place(&mut out, gain, eps, tokens);
    out
}

fn norm_in_place(x: &mut [f32], gain: &[f32], eps: f64, tokens: usize) {
    let mut scales = vec![0f64; tokens];
    for row in x.chunks_exact(tokens) {
        scales.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v) * f64::from(v));
    }
    scales.iter_mut().for_each(|s| *s = 1.0 / (*s / gain.len() as f64 + eps).sqrt());
    for (row, &g) in x.chunks_exact_mut(tokens).zip(gain) {
        row.iter_mut().zip(&scales).for_each(|(v, s)| *v = (f64::from(*v) * s * f64::from(g)) as f32);
    }
}

/// Cosine and sine, amplitude included, of each frequency (slow) and position.
fn turns(config: &DecoderConfig, tokens: usize) -> Vec<(f64, f64)> {
    let angles = config.rope.iter().flat_map(|f| (0..tokens).map(move |t| (t as f64 * f).sin_cos()));
    angles.map(|(sin, cos)| (cos * config.rope_amplitude, sin * config.rope_amplitude)).collect()
}

/// Norm of each head if the family has one, then rotation of channel `i` with channel `i + head_dim / 2`.
fn position(config: &DecoderConfig, x: &mut [f32], gain: Option<&[f32]>, turns: &[(f64, f64)], tokens: usize) {
    x.par_chunks_exact_mut(config.head_dim * tokens).for_each(|head| {
        if let Some(gain) = gain {
            norm_in_place(head, gain, config.norm_eps, tokens);
        }
        let (first, second) = head.split_at_mut(turns.len());
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
            let (x, y) = (f64::from(*a), f64::from(*b));
            *a = (x * cos - y * sin) as f32;
            *b = (y * cos + x * sin) as f32;
        }
    });
}

/// Causal attention of each query head over the keys of its group, at most `window` of them.
fn mix(config: &DecoderConfig, window: Option<usize>, [q, k, v]: [&[f32]; 3], tokens: usize) -> Vec<f32> {
    let per_head = config.head_dim * tokens;
    let mut out = vec![0f32; q.len()];
    out.par_chunks_exact_mut(per_head).enumerate().for_each(|(h, out)| {
        let g = h / config.group();
        let (q, k, v) = (&q[h * per_head..][..per_head], &k[g * per_head..][..per_head], &v[g * per_head..][..per_head]);
        let mut weights = vec![0f64; tokens];
        for i in 0..tokens {
            let from = window.map_or(0, |w| (i + 1).saturating_sub(w));
            let weights = &mut weights[from..=i];
            scores(config, weights, q[i..].iter().step_by(tokens), k.chunks_exact(tokens).map(|row| &row[from..=i]));
            let total: f64 = weights.iter().sum();
            for (out, v) in out.chunks_exact_mut(tokens).zip(v.chunks_exact(tokens)) {
                out[i] = (dot(weights, &v[from..=i]) / total) as f32;
            }
        }
    });
    out
}

/// `exp(score - largest score)` of one query with each key in view; `query` and `keys` run over channels.
fn scores<'a>(
    config: &DecoderConfig,
    weights: &mut [f64],
    query: impl Iterator<Item = &'a f32>,
    keys: impl Iterator<Item = &'a [f32]>,
) {
    weights.fill(0.0);
    for (&q, keys) in query.zip(keys) {
        let q = f64::from(q) * config.attention_scale;
        weights.iter_mut().zip(keys).for_each(|(w, &k)| *w += q * f64::from(k));
    }
    if let Some(c) = config.score_cap {
        weights.iter_mut().for_each(|w| *w = c * (*w / c).tanh());
    }
    let max = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    weights.iter_mut().for_each(|w| *w = (*w - max).exp());
}

/// Four partial sums, so that the loop vectorises without reordering a single one.
fn dot(a: &[f64], b: &[f32]) -> f64 {
    let mut sums = [0f64; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let tail: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(a, &b)| a * f64::from(b)).sum();
    for (a, b) in a4.zip(b4) {
        for (s, (a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *s += a * f64::from(b);
        }
    }
    sums.iter().sum::<f64>() + tail
}

impl From<ImportError> for FloatError {
    fn from(error: ImportError) -> Self {
        Self::Weights(std::sync::Arc::new(error))
    }
}
