//! Tiny random models that pass the registration check: for tests of the protocol, where real weights are only ballast.
//!
//! Deterministic in the seed on every machine: integers only, apart from the activation table.

mod decoder;

pub use decoder::{DecoderToy, decoder, decoder_mut, decoder_of};

use crate::bounds;
use crate::tables::gelu_table;
use crate::weights::{EmbedAxis, IntegerModel, Matrix, SegmentWeights, Weights, layer_shapes};
use obelysk_protocol::circuit::descriptor::{
    Descriptor, EmbedSpec, Encoder, LayerSpec, NormSpec, OutputSpec, Requant, Residual, Stop,
};

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Prng(u64);

impl Prng {
    /// A generator that repeats for a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A value in `lo..=hi`; the bias of the reduction does not matter here.
    pub fn range(&mut self, lo: i32, hi: i32) -> i32 {
        let span = u64::from(hi.abs_diff(lo)) + 1;
        lo.wrapping_add((self.next_u64() % span) as i32)
    }

    pub(crate) fn vector(&mut self, n: usize, lo: i32, hi: i32) -> Vec<i32> {
        (0..n).map(|_| self.range(lo, hi)).collect()
    }
}

/// Shape of a toy model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Real vocabulary.
    pub vocab: u32,
    /// Position rows.
    pub positions: u32,
    /// Heads of `head_dim` channels.
    pub heads: u32,
    /// Channels per head.
    pub head_dim: u32,
    /// Inner width.
    pub ffn: u32,
    /// Layers.
    pub layers: usize,
    /// log2 of the tile sides along input and output.
    pub tile_logs: (u8, u8),
    /// log2 of the row length of every oracle.
    pub row_log: u8,
}

/// Twelve channels in three heads, inner width 20: every axis has a part that is no power of two.
pub const SMALL: Shape =
    Shape { vocab: 10, positions: 8, heads: 3, head_dim: 4, ffn: 20, layers: 2, tile_logs: (2, 2), row_log: 6 };

/// The small model: width 12, 3 heads, inner width 20, 2 layers, vocabulary 10, 8 positions.
#[must_use]
pub fn model(seed: u64) -> IntegerModel {
    model_of(seed, SMALL)
}

/// A random model of a given shape. Shapes whose channels are not whole tiles give a model that the check refuses.
#[must_use]
pub fn model_of(seed: u64, shape: Shape) -> IntegerModel {
    let mut rng = Prng::new(seed);
    let width = (shape.heads * shape.head_dim) as usize;
    let norm = NormSpec { eps: 1 << 14 };
    let embed = EmbedSpec { scale: rng.vector(width, 200, 2000), shift: 5, norm: norm.clone() };
    let layers = (0..shape.layers).map(|_| layer_spec(&mut rng, shape, &norm)).collect();
    let gain = (0..width).map(|_| (rng.range(-64, 192) as f32 / 128.0).to_bits()).collect();
    let bias = (0..width).map(|_| (rng.range(-64, 64) as f32 / 256.0).to_bits()).collect();
    let encoder = Encoder {
        name: format!("toy-{seed}"),
        vocab: shape.vocab,
        positions: shape.positions,
        types: 1,
        width: width as u32,
        heads: shape.heads,
        head_dim: shape.head_dim,
        ffn: shape.ffn,
        tile_k_log: shape.tile_logs.0,
        tile_n_log: shape.tile_logs.1,
        row_log: shape.row_log,
        blowup_log: 2,
        embed,
        layers,
        output: OutputSpec { gain_bits: gain, bias_bits: bias },
    };
    let weights = weights(&mut rng, &encoder);
    let descriptor = Descriptor::Encoder(encoder);
    IntegerModel { descriptor, weights }
}

fn layer_spec(rng: &mut Prng, shape: Shape, norm: &NormSpec) -> LayerSpec {
    let width = (shape.heads * shape.head_dim) as usize;
    let q = bounds::score_window(shape.head_dim, 7);
    let mut requant = |n: usize, e: u8, k: u8, lo: i32, hi: i32, b: i32| Requant {
        e,
        k,
        m: rng.vector(n, 60, 240),
        b: rng.vector(n, -b, b).iter().map(|v| v + (1 << (k - 1))).collect(),
        lo,
        hi,
    };
    // e = 6 lets large rows saturate now and then, so that tests meet both branches.
    let (query, key) = (requant(width, 6, 12, -q, q, 1 << 20), requant(width, 6, 12, -q, q, 1 << 20));
    let value = requant(width, 6, 12, -2048, 2047, 1 << 18);
    let up = requant(shape.ffn as usize, 6, 8, -32_768, 32_767, 1 << 18);
    let mut residual = || Residual {
        shift: 5,
        gain: rng.vector(width, -1500, 1500),
        bias: rng.vector(width, -(1 << 20), 1 << 20),
        mult: rng.vector(width, 0, 600),
        norm: norm.clone(),
    };
    LayerSpec {
        q: query,
        k: key,
        v: value,
        score_shift: 7,
        o: Stop { e: 5 },
        attn_residual: residual(),
        up,
        activation: gelu_table(12, 11),
        down: Stop { e: 6 },
        ffn_residual: residual(),
    }
}

/// The description of a toy encoder.
///
/// # Panics
/// If the model is none.
#[must_use]
pub fn encoder(model: &IntegerModel) -> &Encoder {
    model.descriptor.encoder().expect("a toy encoder")
}

/// The description of a toy encoder, to change it.
///
/// # Panics
/// If the model is none.
pub fn encoder_mut(model: &mut IntegerModel) -> &mut Encoder {
    model.descriptor.encoder_mut().expect("a toy encoder")
}

fn weights(rng: &mut Prng, d: &Encoder) -> Weights {
    let axis = EmbedAxis::new(d);
    let width = d.width as usize;
    let used =
        [0..d.vocab as usize, axis.positions..axis.positions + d.positions as usize, axis.types..axis.types + d.types as usize];
    let mut matrix = |name: &str, inputs: usize, outputs: usize, real: &dyn Fn(usize) -> bool| Matrix {
        name: name.into(),
        inputs,
        outputs,
        data: (0..inputs * outputs).map(|i| if real(i % inputs) { rng.range(-127, 127) as i8 } else { 0 }).collect(),
    };
    let embed = matrix("embed", axis.rows, width, &|k| used.iter().any(|r| r.contains(&k)));
    let mut segments = vec![SegmentWeights { matrices: vec![embed] }];
    for _ in &d.layers {
        let matrices = layer_shapes(d).map(|(name, k, n)| matrix(name, k, n, &|_| true)).into();
        segments.push(SegmentWeights { matrices });
    }
    segments.push(SegmentWeights::default());
    Weights { segments }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::check;

    #[test]
    fn toy_models_pass_the_check() {
        for seed in 0..20 {
            let m = model(seed);
            assert_eq!(check(&m.descriptor, &m.weights), Ok(()), "seed {seed}");
        }
    }

    #[test]
    fn toy_models_repeat_and_differ() {
        assert_eq!(model(7), model(7));
        assert_ne!(model(7).weights, model(8).weights);
    }
}
