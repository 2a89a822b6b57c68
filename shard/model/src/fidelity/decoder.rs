//! How far an integer decoder is from its float model: next-token agreement, perplexity, cosine per layer, saturation.
//!
//! Both run on the same text, every position predicting the next token. The integer logits are proven values times one power
//! of two; a family's cap on logits changes probabilities but no order, and is applied here.

use super::{Cosine, FidelityError, cosine, summary};
use crate::graph::decoder::DecoderGraph;
use crate::graph::decoder_float::{Stage, forward};
use crate::infer::decoder::{DecoderTrace, run};
use crate::infer::{InferError, padded_length};
use crate::weights::IntegerModel;
use obelysk_protocol::circuit::{PublicInput, Sequence};
use serde::Serialize;
use std::collections::BTreeMap;

/// Distance of an integer decoder from its float model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecoderFidelity {
    /// Positions compared.
    pub tokens: usize,
    /// Share of positions at which both models predict the same next token.
    pub top1_agreement: f64,
    /// Perplexity of the float model.
    pub float_perplexity: f64,
    /// Perplexity of the integer model.
    pub integer_perplexity: f64,
    /// Mean Kullback-Leibler divergence of the integer from the float distribution, nats.
    pub divergence: f64,
    /// Cosine of all logits, by text.
    pub logits: Cosine,
    /// Cosine of the residual stream behind each layer, by text.
    pub layers: Vec<Cosine>,
    /// Share of values at their clip, by tensor; tensors without any are left out.
    pub saturation: BTreeMap<String, f64>,
}

/// Sums over texts.
#[derive(Default)]
struct Tally {
    tokens: usize,
    agreed: usize,
    float_loss: f64,
    integer_loss: f64,
    divergence: f64,
    logits: Vec<f64>,
    layers: Vec<Vec<f64>>,
    saturated: BTreeMap<String, (u64, u64)>,
}

/// Measures on token sequences of at least two tokens; `logit_fraction` as the quantiser reports it.
///
/// # Errors
/// See [`FidelityError`].
pub fn measure_decoder(
    graph: &DecoderGraph,
    model: &IntegerModel,
    logit_fraction: i32,
    sequences: &[Vec<u32>],
) -> Result<DecoderFidelity, FidelityError> {
    let mut tally = Tally::default();
    for ids in sequences.iter().filter(|ids| ids.len() > 1) {
        tally.text(graph, model, logit_fraction, ids)?;
    }
    if tally.tokens == 0 {
        return Err(FidelityError::Empty);
    }
    let mean = |sum: f64| sum / tally.tokens as f64;
    let share = |(hit, all): (u64, u64)| hit as f64 / all.max(1) as f64;
    Ok(DecoderFidelity {
        tokens: tally.tokens,
        top1_agreement: tally.agreed as f64 / tally.tokens as f64,
        float_perplexity: mean(tally.float_loss).exp(),
        integer_perplexity: mean(tally.integer_loss).exp(),
        divergence: mean(tally.divergence),
        logits: summary(&tally.logits),
        layers: tally.layers.iter().map(|c| summary(c)).collect(),
        saturation: tally.saturated.into_iter().filter(|(_, c)| c.0 > 0).map(|(name, c)| (name, share(c))).collect(),
    })
}

impl Tally {
    fn text(&mut self, graph: &DecoderGraph, model: &IntegerModel, fraction: i32, ids: &[u32]) -> Result<(), FidelityError> {
        let wrong = || InferError::Kind(model.descriptor.name().to_owned(), "a decoder");
        let mult = &model.descriptor.decoder().ok_or_else(wrong)?.head.mult;
        // Every row is checked: each predicts the token after it.
        let sequences = vec![Sequence { prompt: 1, completion: ids.len() as u32 - 1 }];
        let trace = run(model, &PublicInput { ids: ids.to_vec(), sequences, output: Vec::new() })?;
        let mut outs: Vec<Vec<f32>> = Vec::new();
        let inputs = &ids[..ids.len() - 1];
        let float = forward(graph, inputs, &mut |_, stage, values, _| {
            if stage == Stage::Out {
                outs.push(values.to_vec());
            }
        })?;
        let (tokens, padded) = (inputs.len(), padded_length(inputs.len()));
        let unit = 2f64.powi(-fraction);
        let mut cosines = Vec::new();
        for (t, row) in float.chunks_exact(graph.config.vocab).enumerate() {
            let integer: Vec<f64> = (0..row.len())
                .map(|j| {
                    let y = f64::from(mult[j]) * f64::from(trace.head.linear.t_hat[j * padded + t]) * unit;
                    graph.config.logit_cap.map_or(y, |c| c * (y / c).tanh())
                })
                .collect();
            self.position(row, &integer, ids[t + 1]);
            cosines.push(cosine(row.iter().copied().zip(integer.iter().map(|&v| v as f32))));
        }
        self.logits.push(cosines.iter().sum::<f64>() / cosines.len().max(1) as f64);
        self.streams(&outs, &trace, tokens);
        self.saturation(model, &trace, tokens);
        Ok(())
    }

    fn position(&mut self, float: &[f32], integer: &[f64], next: u32) {
        let float: Vec<f64> = float.iter().map(|&v| f64::from(v)).collect();
        let (p, q) = (log_softmax(&float), log_softmax(integer));
        self.tokens += 1;
        self.agreed += usize::from(largest(&float) == largest(integer));
        self.float_loss -= p[next as usize];
        self.integer_loss -= q[next as usize];
        self.divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    }

    fn streams(&mut self, outs: &[Vec<f32>], trace: &DecoderTrace, tokens: usize) {
        self.layers.resize(outs.len(), Vec::new());
        for ((float, layer), cosines) in outs.iter().zip(&trace.layers).zip(&mut self.layers) {
            let rows = layer.ffn.x.chunks_exact(trace.t_pad).flat_map(|row| &row[..tokens]);
            cosines.push(cosine(rows.map(|&x| x as f32).zip(float.iter().copied())));
        }
    }

    fn saturation(&mut self, model: &IntegerModel, trace: &DecoderTrace, tokens: usize) {
        let Some(d) = model.descriptor.decoder() else { return };
        for (l, (spec, t)) in d.layers.iter().zip(&trace.layers).enumerate() {
            let clipped = |acc: i32, e: u8| !(-32_768..32_768).contains(&((i64::from(acc) + (1 << (e - 1))) >> e));
            let linears = [
                ("q", &t.q.acc, spec.q.linear.e),
                ("k", &t.k.acc, spec.k.linear.e),
                ("v", &t.v.acc, spec.v.e),
                ("gate", &t.gate.acc, spec.gate.e),
                ("up", &t.up.acc, spec.up.e),
                ("product", &t.product.acc, spec.product.e),
            ];
            for (name, acc, e) in linears {
                self.count(format!("layer.{l}.{name}"), acc, (trace.t_pad, tokens), |a| clipped(a, e));
            }
            for (name, t_hat) in [("o", &t.o.t_hat), ("down", &t.down.t_hat)] {
                let end = |v: i16| v == i16::MAX || v == i16::MIN;
                self.count(format!("layer.{l}.{name}"), t_hat, (trace.t_pad, tokens), end);
            }
        }
    }

    fn count<T: Copy>(&mut self, name: String, values: &[T], (padded, tokens): (usize, usize), clipped: impl Fn(T) -> bool) {
        let (hit, all) = self.saturated.entry(name).or_default();
        for &v in values.chunks_exact(padded).flat_map(|row| &row[..tokens]) {
            *hit += u64::from(clipped(v));
            *all += 1;
        }
    }
}

/// Smallest index of the maximum, as the proof defines it.
fn largest(values: &[f64]) -> usize {
    values.iter().enumerate().fold(0, |best, (i, v)| if *v > values[best] { i } else { best })
}

fn log_softmax(values: &[f64]) -> Vec<f64> {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = values.iter().map(|v| (v - max).exp()).sum::<f64>().ln() + max;
    values.iter().map(|v| v - total).collect()
}
