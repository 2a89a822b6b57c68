//! Tiny random decoders that pass the registration check, with every option of the format to switch.
//!
//! Deterministic in the seed on every machine, apart from the registered tables' float generators.

use super::Prng;
use crate::tables::{gate_table, gelu_tanh, score_cap_table, silu};
use crate::weights::{IntegerModel, Matrix, SegmentWeights, Weights, decoder_segment_shapes};
use obelysk_protocol::circuit::descriptor::{
    Accumulated, Branch, BranchNorm, Decoder, DecoderLayer, Descriptor, Head, HeadNorm, NormSpec, Requant, Rotary, Rotated,
    ScoreCap, Stop, TokenEmbed,
};
use obelysk_protocol::circuit::rotary::reach;

/// log2 of the largest tile side of a toy.
const TILE_LOG: u32 = 3;

/// What a toy decoder is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderToy {
    /// Seed of every random number.
    pub seed: u64,
    /// Query heads per key head.
    pub group: u32,
    /// Key heads.
    pub kv_heads: u32,
    /// Channels per head, even.
    pub head_dim: u32,
    /// Whether queries and keys are normalised per head.
    pub head_norm: bool,
    /// Whether scores are capped.
    pub cap: bool,
    /// Window of the odd layers; the even ones see everything. 0 for none.
    pub window: u32,
    /// Whether branches have their own norm.
    pub branch_norm: bool,
    /// int8 matrices of the embedding: 1 or 2.
    pub limbs: u8,
    /// Limbs of the inputs of the output and down projections: 1 or 2.
    pub accumulators: u8,
    /// Layers, at most 6: more could overflow the residual stream.
    pub layers: usize,
    /// Width.
    pub width: u32,
    /// Inner width.
    pub ffn: u32,
    /// Vocabulary.
    pub vocab: u32,
    /// Longest sequence.
    pub positions: u32,
}

impl Default for DecoderToy {
    fn default() -> Self {
        Self {
            seed: 0,
            group: 2,
            kv_heads: 1,
            head_dim: 8,
            head_norm: false,
            cap: false,
            window: 0,
            branch_norm: false,
            limbs: 1,
            accumulators: 1,
            layers: 2,
            width: 16,
            ffn: 24,
            vocab: 21,
            positions: 64,
        }
    }
}

/// A random decoder. Options that no model can have give one that the check refuses.
#[must_use]
pub fn decoder(toy: &DecoderToy) -> IntegerModel {
    let mut rng = Prng::new(toy.seed);
    let part = 1u32 << toy.head_dim.trailing_zeros().min(31);
    let heads = toy.group * toy.kv_heads;
    let log = |axes: &[u32]| axes.iter().map(|n| n.trailing_zeros()).min().unwrap_or(0).min(TILE_LOG) as u8;
    let mut d = Decoder {
        name: format!("toy-decoder-{}", toy.seed),
        vocab: toy.vocab,
        positions: toy.positions,
        width: toy.width,
        heads,
        kv_heads: toy.kv_heads,
        head_dim: toy.head_dim,
        ffn: toy.ffn,
        tile_k_log: log(&[toy.width, toy.ffn, heads * part]),
        tile_n_log: log(&[toy.width, toy.ffn, toy.kv_heads * part / 2]),
        row_log: 6,
        blowup_log: 2,
        embed: TokenEmbed { limbs: toy.limbs, scale: rng.vector(toy.width as usize, 200, 2000), shift: 5 },
        frequencies: (0..toy.head_dim / 2).map(|j| (u64::MAX / 6) >> j.min(40)).collect(),
        layers: Vec::new(),
        head: Head { norm: norm(), linear: Stop { e: 7 }, mult: rng.vector(toy.vocab as usize, 60, 255) },
    };
    d.layers = (0..toy.layers).map(|l| layer(&mut rng, toy, l)).collect();
    let weights = weights(&mut rng, &d);
    IntegerModel { descriptor: Descriptor::Decoder(d), weights }
}

/// The description of a toy decoder.
///
/// # Panics
/// If the model is none.
#[must_use]
pub fn decoder_of(model: &IntegerModel) -> &Decoder {
    model.descriptor.decoder().expect("a toy decoder")
}

/// The description of a toy decoder, to change it.
///
/// # Panics
/// If the model is none.
pub fn decoder_mut(model: &mut IntegerModel) -> &mut Decoder {
    model.descriptor.decoder_mut().expect("a toy decoder")
}

fn norm() -> NormSpec {
    NormSpec { eps: 1 << 14 }
}

fn requant(rng: &mut Prng, n: usize, k: u8, window: i32, b: i32) -> Requant {
    let bias = rng.vector(n, -b, b).iter().map(|v| v + (1 << (k - 1))).collect();
    // e = 7 lets large rows saturate now and then, so that tests meet both branches.
    Requant { e: 7, k, m: rng.vector(n, 60, 240), b: bias, lo: -window - 1, hi: window }
}

fn rotated(rng: &mut Prng, toy: &DecoderToy, heads: u32) -> Rotated {
    let (outputs, dim) = ((heads * toy.head_dim) as usize, toy.head_dim as usize);
    let (linear, norm, rotary) = if toy.head_norm {
        let rotary = Rotary { gain: rng.vector(dim, -(1 << 9), 1 << 9), shift: 14 };
        (requant(rng, outputs, 8, 32_767, 1 << 17), Some(HeadNorm { norm: norm() }), rotary)
    } else {
        (requant(rng, outputs, 13, 1023, 1 << 18), None, Rotary { gain: vec![1 << 14; dim], shift: 14 })
    };
    let mut out = Rotated { linear, norm, rotary, limit: 0 };
    out.limit = reach(&out).pairs.iter().copied().max().unwrap_or(0) as i32;
    out
}

fn layer(rng: &mut Prng, toy: &DecoderToy, l: usize) -> DecoderLayer {
    let q = rotated(rng, toy, toy.group * toy.kv_heads);
    let k = rotated(rng, toy, toy.kv_heads);
    // Two limbs start at e = 9.
    let accumulated = |e: u8| Accumulated { e: e + 2 * (toy.accumulators.max(1) - 1), limbs: toy.accumulators };
    let cap = ScoreCap { e: 8, table: score_cap_table(5.0, 1.0 / 512.0) };
    DecoderLayer {
        attn_norm: norm(),
        q,
        k,
        v: requant(rng, (toy.kv_heads * toy.head_dim) as usize, 12, 2047, 1 << 18),
        score_shift: if toy.cap { 0 } else { 5 },
        score_cap: toy.cap.then_some(cap),
        window: if l % 2 == 1 { toy.window } else { 0 },
        o: accumulated(8),
        attn_branch: branch(rng, toy),
        ffn_norm: norm(),
        gate: requant(rng, toy.ffn as usize, 8, 32_767, 1 << 18),
        activation: if toy.branch_norm { gate_table(gelu_tanh, 12, 11) } else { gate_table(silu, 12, 11) },
        up: Stop { e: 7 },
        product: Stop { e: 11 },
        down: accumulated(7),
        ffn_branch: branch(rng, toy),
    }
}

fn branch(rng: &mut Prng, toy: &DecoderToy) -> Branch {
    let width = toy.width as usize;
    let norm = toy.branch_norm.then(|| BranchNorm { shift: 4, mult: rng.vector(width, -2000, 2000), norm: norm() });
    Branch { norm, shift: 5, mult: rng.vector(width, -400, 400) }
}

fn weights(rng: &mut Prng, d: &Decoder) -> Weights {
    let last = d.layers.len() + 1;
    let mut matrix = |index: usize, (name, inputs, outputs): (String, usize, usize)| {
        let real = |i: usize| match index {
            0 => i % inputs < d.vocab as usize,
            _ => index != last || i / inputs < d.vocab as usize,
        };
        let data = (0..inputs * outputs).map(|i| if real(i) { rng.range(-127, 127) as i8 } else { 0 }).collect();
        Matrix { name, inputs, outputs, data }
    };
    let mut segment = |index: usize| {
        let matrices = decoder_segment_shapes(d, index).into_iter().map(|shape| matrix(index, shape)).collect();
        SegmentWeights { matrices }
    };
    Weights { segments: (0..=last).map(&mut segment).collect() }
}
