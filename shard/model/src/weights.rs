//! Integer weights of a model: one segment per proof segment, raw int8 matrices in the order the segment uses them.
//!
//! Segment 0 is the embedding, 1..=L are the layers, L+1 is the head (no matrices for an encoder, one for a decoder). Nothing
//! here carries a scale: scales live in the descriptor.

use obelysk_protocol::circuit::descriptor::{Decoder, Descriptor, Encoder};
use std::ops::Range;

/// Position of each matrix in a layer's `SegmentWeights::matrices`.
pub mod slot {
    /// Query projection.
    pub const Q: usize = 0;
    /// Key projection.
    pub const K: usize = 1;
    /// Value projection.
    pub const V: usize = 2;
    /// Attention output projection.
    pub const O: usize = 3;
    /// First feed-forward projection.
    pub const UP: usize = 4;
    /// Second feed-forward projection.
    pub const DOWN: usize = 5;
    /// Names in slot order.
    pub const NAMES: [&str; 6] = ["q", "k", "v", "o", "up", "down"];
}

/// An int8 matrix, row-major `[N][K]` with k fastest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Name inside its segment: `embed`, `q`, `k`, `v`, `o`, `up`, `down`; of a decoder see [`decoder_shapes`].
    pub name: String,
    /// K: length of the input axis.
    pub inputs: usize,
    /// N: length of the output axis.
    pub outputs: usize,
    /// `outputs * inputs` values in `[-127, 127]`.
    pub data: Vec<i8>,
}

impl Matrix {
    /// Row `n`: the `inputs` weights of one output channel.
    ///
    /// # Panics
    /// If `n >= outputs` or the data is shorter than the dimensions say; `check` refuses such a model.
    #[must_use]
    pub fn row(&self, n: usize) -> &[i8] {
        &self.data[n * self.inputs..(n + 1) * self.inputs]
    }
}

/// The matrices of one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentWeights {
    /// Encoder: layer q, k, v, o, up, down; embedding one matrix; head none. Decoder: [`decoder_segment_shapes`].
    pub matrices: Vec<Matrix>,
}

/// All segments: embedding, layers, head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// `layers + 2` segments.
    pub segments: Vec<SegmentWeights>,
}

impl Weights {
    /// Total number of weights over all segments.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.segments.iter().flat_map(|s| &s.matrices).map(|m| m.data.len()).sum()
    }
}

/// A registered model: what is proven, and the weights it is proven for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntegerModel {
    /// Dimensions, scales, tables.
    pub descriptor: Descriptor,
    /// int8 weights.
    pub weights: Weights,
}

/// Where each table starts on the embedding matrix's K axis: words, then positions, then types, each padded with zero
/// rows to a multiple of the tile side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedAxis {
    /// First position row.
    pub positions: usize,
    /// First type row.
    pub types: usize,
    /// K: all rows, padding included.
    pub rows: usize,
}

impl EmbedAxis {
    /// Layout for a descriptor's vocabulary, positions, types and tile side.
    #[must_use]
    pub fn new(d: &Encoder) -> Self {
        let side = 1usize << d.tile_k_log.min(31);
        let positions = (d.vocab as usize).next_multiple_of(side);
        let types = positions + (d.positions as usize).next_multiple_of(side);
        Self { positions, types, rows: types + (d.types as usize).next_multiple_of(side) }
    }
}

/// Expected `(name, K, N)` of every matrix of a layer, in slot order.
#[must_use]
pub fn layer_shapes(d: &Encoder) -> [(&'static str, usize, usize); 6] {
    let (w, f) = (d.width as usize, d.ffn as usize);
    [("q", w, w), ("k", w, w), ("v", w, w), ("o", w, w), ("up", w, f), ("down", f, w)]
}

/// Where a decoder layer's matrices lie in `SegmentWeights::matrices`: parts of q, k, v and o in order, then the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderSlots {
    /// Parts of the query projection.
    pub q: Range<usize>,
    /// Parts of the key projection.
    pub k: Range<usize>,
    /// Parts of the value projection.
    pub v: Range<usize>,
    /// Parts of the output projection, along its inputs.
    pub o: Range<usize>,
    /// Gate projection.
    pub gate: usize,
    /// Up projection.
    pub up: usize,
    /// Down projection.
    pub down: usize,
}

impl DecoderSlots {
    /// Slots for a descriptor's head dimension.
    #[must_use]
    pub fn new(d: &Decoder) -> Self {
        let n = d.delta();
        let (k, v, o, gate) = (2 * n, 4 * n, 5 * n, 6 * n);
        Self { q: 0..k, k: k..v, v: v..o, o: o..gate, gate, up: gate + 1, down: gate + 2 }
    }
}

/// Expected `(name, K, N)` of every matrix of a decoder layer, in slot order.
#[must_use]
pub fn decoder_shapes(d: &Decoder) -> Vec<(String, usize, usize)> {
    let (width, ffn, delta) = (d.width as usize, d.ffn as usize, d.delta());
    let (heads, keys) = (d.heads as usize, d.kv_heads as usize);
    let (part, pair) = (1usize << d.part_log(), 1usize << d.pair_log());
    let parts = |name: &str, count: usize, inputs: usize, outputs: usize| -> Vec<(String, usize, usize)> {
        (0..count).map(|i| (format!("{name}.{i}"), inputs, outputs)).collect()
    };
    let mut out = parts("q", 2 * delta, width, heads * pair);
    out.extend(parts("k", 2 * delta, width, keys * pair));
    out.extend(parts("v", delta, width, keys * part));
    out.extend(parts("o", delta, heads * part, width));
    out.extend([("gate", width, ffn), ("up", width, ffn), ("down", ffn, width)].map(|(name, k, n)| (name.to_owned(), k, n)));
    out
}

/// Expected `(name, K, N)` of a decoder's embedding matrices, least significant limb first.
#[must_use]
pub fn decoder_embed_shapes(d: &Decoder) -> Vec<(String, usize, usize)> {
    let names = ["embed", "embed_high"].into_iter().take(usize::from(d.embed.limbs));
    names.map(|name| (name.to_owned(), d.embed_inputs(), d.width as usize)).collect()
}

/// Expected `(name, K, N)` of every matrix of segment `index` of a decoder.
#[must_use]
pub fn decoder_segment_shapes(d: &Decoder, index: usize) -> Vec<(String, usize, usize)> {
    match index {
        0 => decoder_embed_shapes(d),
        l if l <= d.layers.len() => decoder_shapes(d),
        _ => vec![("head".to_owned(), d.width as usize, d.head_outputs())],
    }
}
