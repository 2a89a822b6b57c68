//! Random decoders of any shape, made segment by segment: what `obelysk bench layer` measures on.
//!
//! The wiring is Llama's. Weights are uniform; scales are those that keep such weights from saturating, so that values are
//! spread as in a trained model. Shapes that no circuit takes give a model that the check refuses.

use crate::preset::Preset;
use crate::quantise::QuantiseOptions;
use crate::quantise::decoder::{lay_out, turns};
use crate::source::{Segment, WeightSource};
use crate::store::StoreError;
use crate::tables::{gate_table, silu};
use crate::toy::Prng;
use crate::weights::{Matrix, SegmentWeights, decoder_segment_shapes};
use obelysk_protocol::circuit::descriptor::{
    Accumulated, Branch, Decoder, DecoderLayer, Descriptor, Head, NormSpec, Requant, Rotary, Rotated, Stop, TokenEmbed,
};
use obelysk_protocol::circuit::linear::r1_bound;
use obelysk_protocol::circuit::{rotary, wide};
use std::str::FromStr;
use std::sync::Arc;
use thiserror::Error;

/// Standard deviation of a uniform weight in [-127, 127].
const WEIGHT: f64 = 73.3;
/// L2 norm of a norm's output.
const NORM: f64 = 32_000.0;
/// Wanted standard deviation of `t^`: one in 10^15 leaves 16 bits.
const SPREAD: f64 = 4096.0;
/// Standard deviations of the mix and of the gated product that follow from the scales below.
const MIX: f64 = 2_700.0;
const PRODUCT: f64 = 1_350.0;
/// What the residual stream may sum to: 24 bits less the embedding.
const STREAM: i32 = 8_000_000;
/// Largest sum of a row's weights over its length, with room: 63.5 on average.
const MEAN_WEIGHT: f64 = 80.0;

/// Shape of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels of the residual stream.
    pub width: u32,
    /// Query heads.
    pub heads: u32,
    /// Key heads.
    pub kv_heads: u32,
    /// Channels per head.
    pub head_dim: u32,
    /// Inner width.
    pub ffn: u32,
    /// Layers.
    pub layers: u32,
    /// Vocabulary.
    pub vocab: u32,
}

/// A text that is no shape.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no shape: give a preset's name, or width,heads,kv_heads,head_dim,ffn such as 512,8,4,64,1536")]
pub struct ShapeError(String);

impl FromStr for Shape {
    type Err = ShapeError;

    /// Five numbers: one layer, 1,024 tokens of vocabulary.
    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let wrong = || ShapeError(text.to_owned());
        let parse = |part: &str| part.trim().parse::<u32>().map_err(|_| wrong());
        let numbers = text.split(',').map(parse).collect::<Result<Vec<u32>, _>>()?;
        let [width, heads, kv_heads, head_dim, ffn] = numbers[..] else { return Err(wrong()) };
        let zero = numbers.contains(&0);
        let divides = !zero && heads.is_multiple_of(kv_heads) && width.is_multiple_of(2) && head_dim.is_multiple_of(2);
        if !divides || numbers.iter().any(|&n| n > 1 << 17) {
            return Err(wrong());
        }
        Ok(Self { width, heads, kv_heads, head_dim, ffn, layers: 1, vocab: 1024 })
    }
}

impl From<&Preset> for Shape {
    fn from(p: &Preset) -> Self {
        let [width, heads, kv_heads] = [p.width, p.heads, p.kv_heads].map(|v| v as u32);
        let [head_dim, ffn, layers, vocab] = [p.head_dim, p.ffn, p.layers, p.vocab].map(|v| v as u32);
        Self { width, heads, kv_heads, head_dim, ffn, layers, vocab }
    }
}

/// A random model of a shape; its segments are made when they are asked for.
#[derive(Clone, Debug)]
pub struct Shaped {
    descriptor: Descriptor,
    seed: u64,
}

impl Shaped {
    /// The model of a shape and a seed.
    #[must_use]
    pub fn new(shape: &Shape, seed: u64) -> Self {
        Self { descriptor: Descriptor::Decoder(decoder(shape, &mut Prng::new(seed))), seed }
    }

    fn decoder(&self) -> &Decoder {
        self.descriptor.decoder().expect("made as a decoder")
    }

    fn matrix(&self, index: usize, at: usize, (name, inputs, outputs): (String, usize, usize)) -> Matrix {
        let d = self.decoder();
        let mut data = vec![0u8; inputs * outputs];
        let key = blake3::hash(&[self.seed.to_le_bytes(), (index as u64).to_le_bytes(), (at as u64).to_le_bytes()].concat());
        blake3::Hasher::new_keyed(key.as_bytes()).finalize_xof().fill(&mut data);
        let mut data: Vec<i8> = data.into_iter().map(|b| b.cast_signed().max(-127)).collect();
        let vocab = d.vocab as usize;
        // Rows past the vocabulary are padding.
        if index == 0 {
            data.chunks_exact_mut(inputs).for_each(|channel| channel[vocab..].fill(0));
        } else if index == d.layers.len() + 1 {
            data[vocab * inputs..].fill(0);
        }
        Matrix { name, inputs, outputs, data }
    }
}

impl WeightSource for Shaped {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn segments(&self) -> usize {
        self.descriptor.layer_count() + 2
    }

    fn segment(&self, index: usize) -> Result<Segment<'_>, StoreError> {
        if index >= self.segments() {
            return Err(StoreError::Index { index, segments: self.segments() });
        }
        let shapes = decoder_segment_shapes(self.decoder(), index).into_iter().enumerate();
        let matrices = shapes.map(|(at, shape)| self.matrix(index, at, shape)).collect();
        Ok(Segment::Shared(Arc::new(SegmentWeights { matrices })))
    }
}

fn decoder(s: &Shape, rng: &mut Prng) -> Decoder {
    let dim = f64::from(s.head_dim);
    // Llama 3's base; its scaling of long wavelengths changes frequencies only.
    let frequency = |j: u32| turns(libm::pow(500_000.0, -2.0 * f64::from(j) / dim));
    let mut d = Decoder {
        name: format!("random-{}x{}", s.width, s.ffn),
        vocab: s.vocab,
        positions: 8192,
        width: s.width,
        heads: s.heads,
        kv_heads: s.kv_heads,
        head_dim: s.head_dim,
        ffn: s.ffn,
        tile_k_log: 0,
        tile_n_log: 0,
        row_log: 0,
        blowup_log: 0,
        embed: TokenEmbed { limbs: 1, scale: rng.vector(s.width as usize, 200, 2000), shift: 5 },
        frequencies: (0..s.head_dim / 2).map(frequency).collect(),
        layers: Vec::new(),
        head: Head { norm: norm(), linear: Stop { e: exponent(WEIGHT * NORM) }, mult: rng.vector(s.vocab as usize, 60, 255) },
    };
    let options = QuantiseOptions::default();
    d.blowup_log = options.blowup_log;
    lay_out(&mut d, &options);
    d.layers = (0..s.layers).map(|_| layer(s, rng)).collect();
    d
}

fn norm() -> NormSpec {
    NormSpec { eps: 1 << 14 }
}

/// Bits to drop from sums of standard deviation `spread`.
fn exponent(spread: f64) -> u8 {
    libm::ceil(libm::log2(spread / SPREAD)).clamp(4.0, 12.0) as u8
}

fn layer(s: &Shape, rng: &mut Prng) -> DecoderLayer {
    let e = exponent(WEIGHT * NORM);
    // The rotated pair of two windows of 2^(22 - k) stays within what scores of this many channels admit.
    let k = if s.head_dim > 128 { 14 } else { 13 };
    let mut rotated = |heads: u32| {
        let linear = requant(rng, heads * s.head_dim, (e, k), 1 << (23 - k));
        let gain = vec![1 << 14; s.head_dim as usize];
        let mut out = Rotated { linear, norm: None, rotary: Rotary { gain, shift: 14 }, limit: 0 };
        out.limit = rotary::reach(&out).pairs.iter().copied().max().unwrap_or(0) as i32;
        out
    };
    let (q, key) = (rotated(s.heads), rotated(s.kv_heads));
    let most = (STREAM / (2 * s.layers.max(1) as i32) / 1024).clamp(1, 400);
    let mut branch = || Branch { norm: None, shift: 5, mult: rng.vector(s.width as usize, -most, most) };
    let (attn_branch, ffn_branch) = (branch(), branch());
    DecoderLayer {
        attn_norm: norm(),
        q,
        k: key,
        v: requant(rng, s.kv_heads * s.head_dim, (e, 12), 2048),
        score_shift: 5,
        score_cap: None,
        window: 0,
        o: accumulated(s.heads * s.head_dim, MIX, 30_720.0),
        attn_branch,
        ffn_norm: norm(),
        gate: requant(rng, s.ffn, (e, 8), 32_768),
        activation: gate_table(silu, 12, 11),
        up: Stop { e },
        product: Stop { e: 11 },
        down: accumulated(s.ffn, PRODUCT, 32_768.0),
        ffn_branch,
    }
}

fn requant(rng: &mut Prng, n: u32, (e, k): (u8, u8), half: i32) -> Requant {
    // The largest `m t^` is 240 2^15, nearly 2^23; a bias of a few percent stays below.
    let (n, bias) = (n as usize, 1 << 17);
    let b = rng.vector(n, -bias, bias).iter().map(|v| v + (1 << (k - 1))).collect();
    Requant { e, k, m: rng.vector(n, 60, 240), b, lo: -half, hi: half - 1 }
}

/// e and limbs of sums over `inputs` values of this spread and reach.
fn accumulated(inputs: u32, spread: f64, reach: f64) -> Accumulated {
    let inputs = f64::from(inputs);
    let e = exponent(WEIGHT * spread * libm::sqrt(inputs));
    if inputs * MEAN_WEIGHT * reach < r1_bound(e) as f64 {
        return Accumulated { e, limbs: 1 };
    }
    Accumulated { e: e.clamp(*wide::E_RANGE.start(), *wide::E_RANGE.end()), limbs: 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Checker;
    use crate::infer::decoder::run;
    use crate::weights::IntegerModel;
    use obelysk_protocol::circuit::{PublicInput, Sequence};

    fn small() -> Shape {
        Shape { layers: 16, vocab: 300, ..Shape::from_str("128,4,2,32,320").unwrap() }
    }

    fn checked(model: &Shaped) {
        let mut checker = Checker::new(model.descriptor()).unwrap();
        (0..model.segments()).for_each(|i| checker.segment(&model.segment(i).unwrap()).unwrap());
    }

    #[test]
    fn any_number_of_layers_passes_the_check() {
        for layers in [1, 2, 16, 80] {
            checked(&Shaped::new(&Shape { layers, ..small() }, 1));
        }
        checked(&Shaped::new(&"128,3,1,256,192".parse().unwrap(), 2));
        checked(&Shaped::new(&"1024,8,8,96,2816".parse().unwrap(), 3));
    }

    #[test]
    fn values_are_spread_and_do_not_saturate() {
        let shape = Shape { layers: 2, ..small() };
        let source = Shaped::new(&shape, 7);
        let model = IntegerModel { descriptor: source.descriptor().clone(), weights: source.all().unwrap() };
        let ids: Vec<u32> = (0..32).map(|i| i * 7).collect();
        let trace = run(&model, &PublicInput { ids, sequences: vec![Sequence { prompt: 31, completion: 1 }], output: vec![] });
        let trace = trace.unwrap();
        for layer in &trace.layers {
            for (name, t) in [("o", &layer.o.t_hat), ("down", &layer.down.t_hat)] {
                let square = |v: &i16| f64::from(*v) * f64::from(*v);
                let spread = libm::sqrt(t.iter().map(square).sum::<f64>() / t.len() as f64);
                let clipped = t.iter().any(|v| [i16::MIN, i16::MAX].contains(v));
                assert!(spread > 200.0 && !clipped, "{name}: {spread}");
            }
        }
    }

    #[test]
    fn segments_are_the_same_each_time_and_differ_between_seeds() {
        let (a, b) = (Shaped::new(&small(), 1), Shaped::new(&small(), 2));
        assert_eq!(*a.segment(3).unwrap(), *a.segment(3).unwrap());
        assert_ne!(*a.segment(3).unwrap(), *a.segment(4).unwrap());
        assert_ne!(*a.segment(3).unwrap(), *b.segment(3).unwrap());
        assert!(matches!(a.segment(18), Err(StoreError::Index { .. })));
    }

    #[test]
    fn what_is_no_shape_is_refused() {
        for text in
            ["", "llama", "512", "512,8,3,64,1536", "512,8,4,63,1536", "0,8,4,64,1536", "512,8,4,64,1536,9", "999999999,8,4,64,2"]
        {
            assert!(Shape::from_str(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_preset_is_a_shape() {
        let shape = Shape::from(&crate::preset::named("llama3-70b").unwrap());
        assert_eq!((shape.width, shape.ffn, shape.layers, shape.vocab), (8192, 28_672, 80, 128_256));
    }
}
