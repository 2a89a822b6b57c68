//! Ranges of every float tensor over sample sentences: what the quantiser chooses scales from.
//!
//! The built-in sentences are disjoint from the ones fidelity is measured on.

use crate::graph::{FloatError, Graph, NodeId, Op, evaluate};
use crate::import::{ImportError, TextTokenizer};
use rayon::prelude::*;
use thiserror::Error;

/// Built-in calibration text: several languages, code, numbers, one to about two hundred tokens a line.
const SENTENCES: &str = include_str!("../data/calibration.txt");

/// Why calibration failed.
#[derive(Debug, Error)]
pub enum CalibrateError {
    /// The tokenizer refused a sentence.
    #[error(transparent)]
    Tokenizer(#[from] ImportError),
    /// The float model refused a sentence.
    #[error(transparent)]
    Float(#[from] FloatError),
    /// No sentence.
    #[error("no calibration sentence: pass at least one")]
    Empty,
}

/// Smallest and largest value of each channel of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranges {
    /// Smallest value per channel.
    pub lo: Vec<f32>,
    /// Largest value per channel.
    pub hi: Vec<f32>,
}

/// First and second moments of what a linear layer reads. Behind a norm that is the normalised value, before gain and bias.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    count: usize,
    sum: Vec<f64>,
    /// Sum of products, row-major.
    product: Vec<f64>,
}

/// Ranges of all nodes of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    nodes: Vec<Ranges>,
    /// Empty for nodes that no linear layer reads.
    moments: Vec<Moments>,
    /// Tokens seen.
    pub tokens: usize,
}

impl Ranges {
    /// Widens the ranges by values `channels x tokens`.
    pub fn extend(&mut self, values: &[f32], tokens: usize) {
        let rows = values.chunks_exact(tokens);
        if self.lo.is_empty() {
            self.lo = vec![f32::INFINITY; rows.len()];
            self.hi = vec![f32::NEG_INFINITY; rows.len()];
        }
        for ((lo, hi), row) in self.lo.iter_mut().zip(&mut self.hi).zip(rows) {
            *lo = row.iter().copied().fold(*lo, f32::min);
            *hi = row.iter().copied().fold(*hi, f32::max);
        }
    }

    /// Largest magnitude over all channels.
    #[must_use]
    pub fn max_abs(&self) -> f64 {
        self.lo.iter().chain(&self.hi).map(|v| f64::from(v.abs())).fold(0.0, f64::max)
    }
}

impl Moments {
    /// Adds values `channels x tokens`.
    pub fn extend(&mut self, values: &[f32], tokens: usize) {
        let channels = values.len() / tokens;
        if self.sum.is_empty() {
            self.sum = vec![0.0; channels];
            self.product = vec![0.0; channels * channels];
        }
        self.count += tokens;
        let rows = self.product.par_chunks_exact_mut(channels).zip(&mut self.sum);
        rows.zip(values.par_chunks_exact(tokens)).for_each(|((product, sum), a)| {
            *sum += a.iter().map(|&v| f64::from(v)).sum::<f64>();
            for (p, b) in product.iter_mut().zip(values.chunks_exact(tokens)) {
                *p += f64::from(dot(a, b));
            }
        });
    }

    /// Mean per channel.
    #[must_use]
    pub fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.count.max(1) as f64).collect()
    }

    /// Covariance between channels, row-major.
    #[must_use]
    pub fn covariance(&self) -> Vec<f64> {
        let (mean, n) = (self.mean(), self.count.max(1) as f64);
        let channels = mean.len();
        self.product.iter().enumerate().map(|(i, p)| p / n - mean[i / channels] * mean[i % channels]).collect()
    }
}

/// Eight partial sums, so that the loop vectorises without reordering a single one.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        for (s, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *s += a * b;
        }
    }
    sums.iter().sum::<f32>() + tail
}

impl Calibration {
    fn new(graph: &Graph) -> Self {
        let nodes = graph.nodes.len();
        Self { nodes: vec![Ranges::default(); nodes], moments: vec![Moments::default(); nodes], tokens: 0 }
    }

    /// Moments of a node that a linear layer reads; empty for others.
    #[must_use]
    pub fn moments(&self, id: NodeId) -> &Moments {
        &self.moments[id]
    }

    /// Ranges of one node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Ranges {
        &self.nodes[id]
    }
}

/// The built-in sentences.
pub fn builtin_sentences() -> impl Iterator<Item = &'static str> {
    SENTENCES.lines().filter(|l| !l.is_empty())
}

/// Runs the float model over `sentences` and records ranges. Sentences above the position table are cut to it.
///
/// # Errors
/// See [`CalibrateError`].
pub fn calibrate<'s>(
    graph: &Graph,
    tokenizer: &TextTokenizer,
    positions: usize,
    sentences: impl IntoIterator<Item = &'s str>,
) -> Result<Calibration, CalibrateError> {
    let mut out = Calibration::new(graph);
    for sentence in sentences {
        let mut ids = tokenizer.encode(sentence)?;
        ids.truncate(positions);
        out.record(graph, &ids)?;
    }
    if out.tokens == 0 { Err(CalibrateError::Empty) } else { Ok(out) }
}

/// The same on token ids.
///
/// # Errors
/// See [`CalibrateError`].
pub fn calibrate_ids<'s>(graph: &Graph, inputs: impl IntoIterator<Item = &'s [u32]>) -> Result<Calibration, CalibrateError> {
    let mut out = Calibration::new(graph);
    for ids in inputs {
        out.record(graph, ids)?;
    }
    if out.tokens == 0 { Err(CalibrateError::Empty) } else { Ok(out) }
}

impl Calibration {
    fn record(&mut self, graph: &Graph, ids: &[u32]) -> Result<(), CalibrateError> {
        let values = evaluate(graph, ids)?;
        let last = graph.nodes.len() - 1;
        for (id, (ranges, value)) in self.nodes.iter_mut().zip(&values.nodes).enumerate() {
            // The pooled output has no token axis.
            ranges.extend(value, if id == last { 1 } else { values.tokens });
        }
        let mut read: Vec<NodeId> = graph.nodes.iter().filter_map(|n| linear_input(&n.op)).collect();
        read.dedup();
        for id in read {
            let (moments, value) = (&mut self.moments[id], &values.nodes[id]);
            match &graph.nodes[id].op {
                Op::Norm { gain, bias, .. } => {
                    let affine = gain.data.iter().zip(bias.data.iter());
                    let rows = value.chunks_exact(values.tokens).zip(affine);
                    // A channel without gain says nothing about the value before it; zero is the mean over channels.
                    let before = |v: f32, g: f32, b: f32| if g.abs() < 1e-6 { 0.0 } else { (v - b) / g };
                    let plain: Vec<f32> = rows.flat_map(|(row, (&g, &b))| row.iter().map(move |&v| before(v, g, b))).collect();
                    moments.extend(&plain, values.tokens);
                }
                _ => moments.extend(value, values.tokens),
            }
        }
        self.tokens += ids.len();
        Ok(())
    }
}

fn linear_input(op: &Op) -> Option<NodeId> {
    match op {
        Op::Linear { input, .. } => Some(*input),
        _ => None,
    }
}
