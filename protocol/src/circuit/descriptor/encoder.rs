//! Post-norm encoders (BERT family). Integer semantics of each field: `docs/quantisation.md`.

use super::{NormSpec, Requant, Stop};

/// A registered encoder, without weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoder {
    /// Human name, absorbed as bytes.
    pub name: String,
    /// Real vocabulary size V (ids are `< V`); the embedding matrix is padded to the tile side.
    pub vocab: u32,
    /// Rows of the position table.
    pub positions: u32,
    /// Rows of the token-type table (only type 0 is used).
    pub types: u32,
    /// Hidden width d.
    pub width: u32,
    /// Attention heads.
    pub heads: u32,
    /// Channels per head; `heads * head_dim = width`.
    pub head_dim: u32,
    /// Inner width of the feed-forward block.
    pub ffn: u32,
    /// log2 of a weight tile's side along the input axis (k).
    pub tile_k_log: u8,
    /// log2 of a weight tile's side along the output axis (n).
    pub tile_n_log: u8,
    /// h: log2 of the message length of every oracle.
    pub row_log: u8,
    /// log2 of the inverse code rate.
    pub blowup_log: u8,
    /// Embedding segment.
    pub embed: EmbedSpec,
    /// One entry per transformer layer.
    pub layers: Vec<LayerSpec>,
    /// Public formula applied to the proven pooled sum, outside the proof.
    pub output: OutputSpec,
}

/// `a = word[id] + position[t] + type[0]` on int8 rows, then `2^w x + rho = scale_c a + 2^(w-1)`, then a norm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedSpec {
    /// S_c, one per channel, positive.
    pub scale: Vec<i32>,
    /// w: bits dropped after scaling, at least 1.
    pub shift: u8,
    /// The norm that follows.
    pub norm: NormSpec,
}

/// Post-norm residual: `2^w x + rho = gain_c u + bias_c + mult_c t^ + 2^(w-1)`, `rho` in `[0, 2^w)`, then a norm of `x`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residual {
    /// w: bits dropped.
    pub shift: u8,
    /// G_c: gain of the norm that produced u, in residual units.
    pub gain: Vec<i32>,
    /// B_c: bias of that norm plus bias of the linear layer, in residual units.
    pub bias: Vec<i32>,
    /// M_c: residual units per unit of `t^`.
    pub mult: Vec<i32>,
    /// The norm that follows.
    pub norm: NormSpec,
}

/// One post-norm transformer layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// Query projection (1/sqrt(d_h) folded in), clipped to ±Q.
    pub q: Requant,
    /// Key projection, clipped to ±Q.
    pub k: Requant,
    /// Value projection, 12 bit.
    pub v: Requant,
    /// g: score bits dropped before the exponential; scores have 12 fractional bits after it.
    pub score_shift: u8,
    /// Attention output projection.
    pub o: Stop,
    /// Residual and norm after attention.
    pub attn_residual: Residual,
    /// First feed-forward projection; its output indexes `activation`.
    pub up: Requant,
    /// `activation[y + 2^15]` for y in [-2^15, 2^15): 65,536 entries.
    pub activation: Vec<i16>,
    /// Second feed-forward projection.
    pub down: Stop,
    /// Residual and norm after the feed-forward block.
    pub ffn_residual: Residual,
}

/// The proven output is `o_c = sum_{t<T} u(t, c)`. The embedding is `normalise((o_c/T * sqrt(d)/32000) * gain_c + bias_c)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// Final norm's gain, IEEE-754 bits of f32.
    pub gain_bits: Vec<u32>,
    /// Final norm's bias, IEEE-754 bits of f32.
    pub bias_bits: Vec<u32>,
}
