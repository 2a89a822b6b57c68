//! The full, canonical description of a registered integer model: every dimension, window, scale, table and op.
//!
//! It holds no weights (their roots are registered beside it) but all per-channel parameters and function tables, which the
//! verifier evaluates itself. Axis order of vectors: one entry per output channel.

mod decoder;
mod encoder;

pub use decoder::{
    Accumulated, Branch, BranchNorm, Decoder, DecoderLayer, Head, HeadNorm, Rotary, Rotated, ScoreCap, TokenEmbed,
};
pub use encoder::{EmbedSpec, Encoder, LayerSpec, OutputSpec, Residual};

/// Largest supported token count per proof (a power of two).
pub const MAX_TOKENS: usize = 1024;

/// A registered model, without weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Pooled sentence vectors.
    Encoder(Encoder),
    /// Greedy generation.
    Decoder(Decoder),
}

macro_rules! both {
    ($(#[$doc:meta])* $name:ident: $type:ty) => {
        $(#[$doc])*
        #[must_use]
        pub const fn $name(&self) -> $type {
            match self {
                Self::Encoder(m) => m.$name,
                Self::Decoder(m) => m.$name,
            }
        }
    };
}

impl Descriptor {
    both!(
        /// Real vocabulary size V: ids are `< V`.
        vocab: u32
    );
    both!(
        /// Longest sequence.
        positions: u32
    );
    both!(
        /// Hidden width d.
        width: u32
    );
    both!(
        /// Query heads.
        heads: u32
    );
    both!(
        /// Channels per head.
        head_dim: u32
    );
    both!(
        /// Inner width of the feed-forward block.
        ffn: u32
    );
    both!(
        /// log2 of a weight tile's side along the input axis (k).
        tile_k_log: u8
    );
    both!(
        /// log2 of a weight tile's side along the output axis (n).
        tile_n_log: u8
    );
    both!(
        /// h: log2 of the message length of every oracle.
        row_log: u8
    );
    both!(
        /// log2 of the inverse code rate.
        blowup_log: u8
    );

    /// Human name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Encoder(m) => &m.name,
            Self::Decoder(m) => &m.name,
        }
    }

    /// Transformer layers.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        match self {
            Self::Encoder(m) => m.layers.len(),
            Self::Decoder(m) => m.layers.len(),
        }
    }

    /// Columns in which a hidden state crosses a boundary: an encoder's normalised state is one, a residual stream has limbs.
    #[must_use]
    pub const fn boundary_limbs(&self) -> usize {
        match self {
            Self::Encoder(_) => 1,
            Self::Decoder(_) => 3,
        }
    }

    /// The encoder, if it is one.
    #[must_use]
    pub const fn encoder(&self) -> Option<&Encoder> {
        if let Self::Encoder(m) = self { Some(m) } else { None }
    }

    /// The encoder, if it is one.
    #[must_use]
    pub const fn encoder_mut(&mut self) -> Option<&mut Encoder> {
        if let Self::Encoder(m) = self { Some(m) } else { None }
    }

    /// The decoder, if it is one.
    #[must_use]
    pub const fn decoder_mut(&mut self) -> Option<&mut Decoder> {
        if let Self::Decoder(m) = self { Some(m) } else { None }
    }

    /// The decoder, if it is one.
    #[must_use]
    pub const fn decoder(&self) -> Option<&Decoder> {
        if let Self::Decoder(m) = self { Some(m) } else { None }
    }
}

/// LayerNorm on integers: `u = norm(x)`, no gain or bias (absorbed by the readers), `||u||_2 <= 32320`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormSpec {
    /// epsilon in squared input units times d: `max(round(eps * d * 2^(2F)), 2^14)`.
    pub eps: u64,
}

/// `t = floor((acc + 2^(e-1)) / 2^e)`, `t^ = clip16(t)`, `y = floor((t^ m + b) / 2^k)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requant {
    /// e, in 1..=12.
    pub e: u8,
    /// k, in 1..=15.
    pub k: u8,
    /// m per output channel, in [1, 255].
    pub m: Vec<i32>,
    /// b per output channel; includes the rounding constant 2^(k-1).
    pub b: Vec<i32>,
    /// Inclusive window the output is proven to lie in. Registration checks that no `t^` can leave it.
    pub lo: i32,
    /// Upper end, inclusive.
    pub hi: i32,
}

/// A linear layer that stops at `t^`: the consumer multiplies by `m_c` inside the residual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// e, in 1..=12.
    pub e: u8,
}
