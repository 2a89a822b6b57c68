//! How far the integer model is from the float model, measured on text that calibration has not seen.

mod decoder;

pub use decoder::{DecoderFidelity, measure_decoder};

use crate::graph::{FloatError, Graph, Op, Values, evaluate};

use crate::import::{ImportError, TextTokenizer};
use crate::infer::{self, InferError, ModelTrace};
use crate::tables::NORM_UNIT;
use crate::weights::IntegerModel;
use obelysk_protocol::circuit::descriptor::Encoder;
use serde::Serialize;
use std::collections::BTreeMap;
use thiserror::Error;

/// Built-in test text: at least 200 sentences, 1 to 256 tokens, disjoint from calibration.
const SENTENCES: &str = include_str!("../../data/sentences.txt");

/// Why fidelity could not be measured.
#[derive(Debug, Error)]
pub enum FidelityError {
    /// The tokenizer refused a sentence.
    #[error(transparent)]
    Tokenizer(#[from] ImportError),
    /// The float model refused a sentence.
    #[error(transparent)]
    Float(#[from] FloatError),
    /// The integer model refused a sentence.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The graph has other layers than the integer model.
    #[error("the float graph has no node `{0}`; graph and integer model are not of one model")]
    Node(String),
    /// No sentence.
    #[error("no sentence to measure on: pass at least one")]
    Empty,
}

/// Mean and worst of a cosine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cosine {
    /// Mean over sentences.
    pub mean: f64,
    /// Smallest.
    pub worst: f64,
}

/// The report printed after quantising.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fidelity {
    /// Sentences measured.
    pub sentences: usize,
    /// Tokens measured.
    pub tokens: usize,
    /// Final sentence embeddings.
    pub embedding: Cosine,
    /// Text of the worst sentence.
    pub worst_sentence: String,
    /// Token vectors after the embedding norm (first) and after each layer.
    pub layers: Vec<Cosine>,
    /// Share of saturated values per tensor, by name; zero for most.
    pub saturation: BTreeMap<String, f64>,
}

/// Sums over sentences.
#[derive(Default)]
struct Tally {
    cosines: Vec<Vec<f64>>,
    saturated: BTreeMap<String, (u64, u64)>,
}

/// The built-in test sentences.
pub fn builtin_sentences() -> impl Iterator<Item = &'static str> {
    SENTENCES.lines().filter(|l| !l.is_empty())
}

/// Measures on `sentences`.
///
/// # Errors
/// See [`FidelityError`].
pub fn measure<'s>(
    graph: &Graph,
    tokenizer: &TextTokenizer,
    model: &IntegerModel,
    sentences: impl IntoIterator<Item = &'s str>,
) -> Result<Fidelity, FidelityError> {
    let encoder = model.descriptor.encoder().ok_or_else(|| InferError::Kind(model.descriptor.name().to_owned(), "an encoder"))?;
    let mut tally = Tally::default();
    let (mut embedding, mut tokens) = (Vec::new(), 0);
    let mut worst = (f64::INFINITY, String::new());
    for sentence in sentences {
        let ids = tokenizer.encode(sentence)?;
        let (values, trace) = (evaluate(graph, &ids)?, infer::run(model, &ids)?);
        let got = infer::embedding(&encoder.output, &trace.pooled, trace.tokens);
        let cos = cosine(got.iter().copied().zip(values.output().iter().copied()));
        if cos < worst.0 {
            worst = (cos, sentence.to_owned());
        }
        embedding.push(cos);
        tally.layers(graph, &values, &trace)?;
        tally.saturation(encoder, &trace);
        tokens += ids.len();
    }
    if embedding.is_empty() {
        return Err(FidelityError::Empty);
    }
    let share = |(hit, all): (u64, u64)| hit as f64 / all.max(1) as f64;
    Ok(Fidelity {
        sentences: embedding.len(),
        tokens,
        embedding: summary(&embedding),
        worst_sentence: worst.1,
        layers: tally.cosines.iter().map(|c| summary(c)).collect(),
        saturation: tally.saturated.into_iter().map(|(name, counts)| (name, share(counts))).collect(),
    })
}

impl Tally {
    fn layers(&mut self, graph: &Graph, values: &Values, trace: &ModelTrace) -> Result<(), FidelityError> {
        let outputs = std::iter::once(&trace.embed.norm.u).chain(trace.layers.iter().map(|l| &l.ffn.norm.u));
        for (i, u) in outputs.enumerate() {
            let name = if i == 0 { "embed.norm".to_owned() } else { format!("layer.{}.norm2", i - 1) };
            let node = graph.find(&name).ok_or_else(|| FidelityError::Node(name.clone()))?;
            let Op::Norm { gain, bias, .. } = &graph.nodes[node].op else {
                return Err(FidelityError::Node(name));
            };
            let unit = ((gain.data.len() as f64).sqrt() / NORM_UNIT) as f32;
            let rows = u.chunks_exact(trace.t_pad).zip(gain.data.iter().zip(bias.data.iter()));
            let real = rows.flat_map(|(row, (g, b))| row[..trace.tokens].iter().map(move |&u| f32::from(u) * unit * g + b));
            if self.cosines.len() <= i {
                self.cosines.push(Vec::new());
            }
            self.cosines[i].push(cosine(real.zip(values.nodes[node].iter().copied())));
        }
        Ok(())
    }

    fn saturation(&mut self, encoder: &Encoder, trace: &ModelTrace) {
        for (l, (spec, t)) in encoder.layers.iter().zip(&trace.layers).enumerate() {
            let linears = [
                ("q", &t.q.acc, spec.q.e),
                ("k", &t.k.acc, spec.k.e),
                ("v", &t.v.acc, spec.v.e),
                ("o", &t.o.acc, spec.o.e),
                ("up", &t.up.acc, spec.up.e),
                ("down", &t.down.acc, spec.down.e),
            ];
            for (name, acc, e) in linears {
                let clipped = |a: i32| !(-32_768..32_768).contains(&((i64::from(a) + (1 << (e - 1))) >> e));
                self.count(format!("layer.{l}.{name}"), acc, trace, clipped);
            }
            self.count(format!("layer.{l}.act"), &t.act, trace, |a: i16| a == i16::MAX || a == i16::MIN);
        }
    }

    fn count<T: Copy>(&mut self, name: String, values: &[T], trace: &ModelTrace, clipped: impl Fn(T) -> bool) {
        let real = values.chunks_exact(trace.t_pad).flat_map(|row| &row[..trace.tokens]);
        let (hit, all) = self.saturated.entry(name).or_default();
        for &v in real {
            *hit += u64::from(clipped(v));
            *all += 1;
        }
    }
}

/// Cosine of two vectors given pairwise; 1 if both are zero.
fn cosine(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
    let (mut ab, mut aa, mut bb) = (0f64, 0f64, 0f64);
    for (a, b) in pairs {
        let (a, b) = (f64::from(a), f64::from(b));
        (ab, aa, bb) = (ab + a * b, aa + a * a, bb + b * b);
    }
    if aa == 0.0 && bb == 0.0 { 1.0 } else { ab / (aa.sqrt() * bb.sqrt()).max(1e-300) }
}

fn summary(cosines: &[f64]) -> Cosine {
    Cosine {
        mean: cosines.iter().sum::<f64>() / cosines.len().max(1) as f64,
        worst: cosines.iter().copied().fold(f64::INFINITY, f64::min),
    }
}
