//! Ranges of every float tensor over sample sentences: what the quantiser chooses scales from.
//!
//! The built-in sentences are disjoint from the ones fidelity is measured on.

use crate::graph::{FloatError, Graph, NodeId, evaluate};
use crate::import::{ImportError, TextTokenizer};
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

/// Ranges of all nodes of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    nodes: Vec<Ranges>,
    /// Tokens seen.
    pub tokens: usize,
}

impl Ranges {
    fn extend(&mut self, values: &[f32], tokens: usize) {
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

impl Calibration {
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
    let mut out = Calibration { nodes: vec![Ranges::default(); graph.nodes.len()], tokens: 0 };
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
    let mut out = Calibration { nodes: vec![Ranges::default(); graph.nodes.len()], tokens: 0 };
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
        self.tokens += ids.len();
        Ok(())
    }
}
