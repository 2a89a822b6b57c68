//! Float execution of a graph: f32 products, f64 for sums over channels and keys. The reference that fidelity is measured
//! against.

use super::{Activation, Graph, Op};
use crate::import::FloatTensor;
use crate::tables::gelu;
use rayon::prelude::*;
use thiserror::Error;

/// Inputs taken per block of a product: partial sums of this length stay in f32.
const BLOCK: usize = 64;

/// Why an input cannot be evaluated.
#[derive(Clone, Debug, Error)]
pub enum FloatError {
    /// No tokens.
    #[error("the input has no tokens: pass at least one token id")]
    Empty,
    /// More tokens than positions.
    #[error("{tokens} tokens, but the model has {positions} positions: shorten the text")]
    TooLong {
        /// Tokens given.
        tokens: usize,
        /// Rows of the position table.
        positions: usize,
    },
    /// An id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}: use the model's own tokenizer")]
    Vocabulary {
        /// The id.
        id: u32,
        /// Rows of the word table.
        vocab: usize,
    },
    /// Weights that are read when needed could not be read.
    #[error(transparent)]
    Weights(std::sync::Arc<crate::import::ImportError>),
}

/// Values of all nodes for one input.
#[derive(Clone, Debug)]
pub struct Values {
    /// Number of tokens.
    pub tokens: usize,
    /// Per node: `channels * tokens` values, token fastest; the pooled output has one value per channel.
    pub nodes: Vec<Vec<f32>>,
}

impl Values {
    /// The value of the last node.
    #[must_use]
    pub fn output(&self) -> &[f32] {
        self.nodes.last().map_or(&[], Vec::as_slice)
    }
}

/// Evaluates every node for the token ids `ids`.
///
/// # Errors
/// See [`FloatError`].
pub fn evaluate(graph: &Graph, ids: &[u32]) -> Result<Values, FloatError> {
    let tokens = ids.len();
    if tokens == 0 {
        return Err(FloatError::Empty);
    }
    let mut nodes: Vec<Vec<f32>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let value = match &node.op {
            Op::Embed { word, position, kind } => embed(word, position, kind, ids)?,
            Op::Norm { input, gain, bias, eps } => norm(&nodes[*input], gain, bias, *eps, tokens),
            Op::Linear { input, weight, bias } => linear(&nodes[*input], weight, bias, tokens),
            Op::Attention { q, k, v, heads } => attention([&nodes[*q], &nodes[*k], &nodes[*v]], *heads, tokens),
            Op::Activation { input, kind: Activation::Gelu } => {
                nodes[*input].par_iter().map(|&x| gelu(f64::from(x)) as f32).collect()
            }
            Op::Add { skip, branch } => nodes[*skip].iter().zip(&nodes[*branch]).map(|(a, b)| a + b).collect(),
            Op::Pool { input } => pool(&nodes[*input], tokens),
        };
        nodes.push(value);
    }
    Ok(Values { tokens, nodes })
}

fn embed(word: &FloatTensor, position: &FloatTensor, kind: &FloatTensor, ids: &[u32]) -> Result<Vec<f32>, FloatError> {
    let (vocab, width, positions) = (word.shape[0], word.shape[1], position.shape[0]);
    if ids.len() > positions {
        return Err(FloatError::TooLong { tokens: ids.len(), positions });
    }
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(FloatError::Vocabulary { id, vocab });
    }
    let mut out = Vec::with_capacity(width * ids.len());
    for c in 0..width {
        for (t, &id) in ids.iter().enumerate() {
            out.push(word.data[id as usize * width + c] + position.data[t * width + c] + kind.data[c]);
        }
    }
    Ok(out)
}

fn norm(x: &[f32], gain: &FloatTensor, bias: &FloatTensor, eps: f64, tokens: usize) -> Vec<f32> {
    let width = gain.data.len();
    let mut out = vec![0f32; x.len()];
    for t in 0..tokens {
        let column = || x[t..].iter().step_by(tokens).map(|&v| f64::from(v));
        let mean = column().sum::<f64>() / width as f64;
        let variance = column().map(|v| (v - mean) * (v - mean)).sum::<f64>() / width as f64;
        let scale = 1.0 / (variance + eps).sqrt();
        for (c, v) in column().enumerate() {
            out[c * tokens + t] = ((v - mean) * scale * f64::from(gain.data[c]) + f64::from(bias.data[c])) as f32;
        }
    }
    out
}

fn linear(x: &[f32], weight: &FloatTensor, bias: &FloatTensor, tokens: usize) -> Vec<f32> {
    let inputs = weight.shape[1];
    let mut out = vec![0f32; weight.shape[0] * tokens];
    out.par_chunks_mut(tokens).zip(weight.data.par_chunks(inputs)).zip(bias.data.par_iter()).for_each(|((out, row), &bias)| {
        let mut partial = vec![0f32; tokens];
        out.fill(bias);
        for (row, x) in row.chunks(BLOCK).zip(x.chunks(BLOCK * tokens)) {
            partial.fill(0.0);
            for (&w, x) in row.iter().zip(x.chunks_exact(tokens)) {
                for (p, &x) in partial.iter_mut().zip(x) {
                    *p += w * x;
                }
            }
            for (o, p) in out.iter_mut().zip(&partial) {
                *o += p;
            }
        }
    });
    out
}

fn attention(qkv: [&Vec<f32>; 3], heads: usize, tokens: usize) -> Vec<f32> {
    let per_head = qkv[0].len() / heads;
    let mut out = vec![0f32; qkv[0].len()];
    let scale = 1.0 / ((per_head / tokens) as f64).sqrt();
    out.par_chunks_mut(per_head).enumerate().for_each(|(h, out)| {
        let [q, k, v] = qkv.map(|x| &x[h * per_head..(h + 1) * per_head]);
        let mut weights = vec![0f64; tokens];
        for i in 0..tokens {
            for (j, w) in weights.iter_mut().enumerate() {
                let dot: f64 = q[i..]
                    .iter()
                    .step_by(tokens)
                    .zip(k[j..].iter().step_by(tokens))
                    .map(|(&a, &b)| f64::from(a) * f64::from(b))
                    .sum();
                *w = dot * scale;
            }
            let max = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            weights.iter_mut().for_each(|w| *w = (*w - max).exp());
            let total: f64 = weights.iter().sum();
            for (out, v) in out.chunks_exact_mut(tokens).zip(v.chunks_exact(tokens)) {
                out[i] = (weights.iter().zip(v).map(|(w, &v)| w * f64::from(v)).sum::<f64>() / total) as f32;
            }
        }
    });
    out
}

fn pool(x: &[f32], tokens: usize) -> Vec<f32> {
    let mean: Vec<f64> =
        x.chunks_exact(tokens).map(|row| row.iter().map(|&v| f64::from(v)).sum::<f64>() / tokens as f64).collect();
    let length = mean.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
    mean.iter().map(|v| (v / length) as f32).collect()
}
