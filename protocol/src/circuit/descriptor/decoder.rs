//! Pre-norm decoders (Llama, Qwen3, Mistral, Phi-3, Gemma 2). Integer semantics of each field: `docs/quantisation.md`.
//!
//! Channel order of attention ("proof order"). A head of dimension `D = delta 2^a`, delta odd, is cut into *parts* so that
//! every part of a head is a power of two: values into delta parts of `2^a` channels; queries and keys into the two halves
//! that rotate into each other, each of delta parts of `2^(a-1)` channels (parts `0..delta` are the first half). There are
//! `kappa 2^b` key heads, kappa odd. Query head `h = kv g + r` of group size g is sorted by r first, and the low bits of the
//! key head are fastest, so that what belongs to a (token, head) pair is a prefix of what belongs to its channels. Channel
//! `c` of a part, key head `kv = kv_lo + 2^b kv_hi`, group member `r` lies inside the part at
//!
//! ```text
//! r (kv_heads 2^a) + kv_hi 2^(a+b) + c 2^b + kv_lo     (2^(a-1) for queries and keys; r = 0 for keys and values)
//! ```

use super::{NormSpec, Requant, Stop};

/// A registered decoder, without weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoder {
    /// Human name, absorbed as bytes.
    pub name: String,
    /// Real vocabulary size V (ids are `< V`).
    pub vocab: u32,
    /// Longest sequence the rotary angles were registered for.
    pub positions: u32,
    /// Hidden width d.
    pub width: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Channels per head: even.
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
    pub embed: TokenEmbed,
    /// Angle per position of each rotated pair, in turns times 2^64: `head_dim / 2` entries.
    pub frequencies: Vec<u64>,
    /// One entry per transformer layer.
    pub layers: Vec<DecoderLayer>,
    /// Final norm and logits.
    pub head: Head,
}

impl Decoder {
    /// g: query heads per key head.
    #[must_use]
    pub const fn group(&self) -> usize {
        match self.heads.checked_div(self.kv_heads) {
            Some(group) => group as usize,
            None => 0,
        }
    }

    /// a: log2 of the channels in a part of values, `head_dim = delta 2^a`.
    #[must_use]
    pub const fn part_log(&self) -> usize {
        if self.head_dim == 0 { 0 } else { self.head_dim.trailing_zeros() as usize }
    }

    /// `a - 1`: log2 of the channels in a part of queries or keys.
    #[must_use]
    pub const fn pair_log(&self) -> usize {
        self.part_log().saturating_sub(1)
    }

    /// delta: odd factor of `head_dim`; the parts of values. Queries and keys have twice as many.
    #[must_use]
    pub const fn delta(&self) -> usize {
        self.head_dim as usize >> self.part_log()
    }

    /// K of the embedding: the vocabulary, padded with zero rows to whole tiles.
    #[must_use]
    pub fn embed_inputs(&self) -> usize {
        (self.vocab as usize).next_multiple_of(1 << self.tile_k_log.min(31))
    }

    /// N of the head: the vocabulary, padded with zero rows to whole tiles and to at most 16 equal powers of two.
    #[must_use]
    pub fn head_outputs(&self) -> usize {
        let vocab = self.vocab as usize;
        let block = vocab.next_power_of_two().trailing_zeros().saturating_sub(4);
        vocab.next_multiple_of(1 << block.max(u32::from(self.tile_n_log.min(31))))
    }

    /// b: log2 of the power of two in `kv_heads = kappa 2^b`.
    #[must_use]
    pub const fn kv_low_log(&self) -> usize {
        if self.kv_heads == 0 { 0 } else { self.kv_heads.trailing_zeros() as usize }
    }

    /// kappa: odd factor of the key heads.
    #[must_use]
    pub const fn kv_odd(&self) -> usize {
        self.kv_heads as usize >> self.kv_low_log()
    }

    /// Index inside a part of `2^part_log` channels per head: channel `c` of group member `r` at key head `kv`.
    #[must_use]
    pub const fn channel(&self, part_log: usize, r: usize, kv: usize, c: usize) -> usize {
        let b = self.kv_low_log();
        let (hi, lo) = (kv >> b, kv & ((1 << b) - 1));
        (((r * self.kv_odd() + hi) << part_log | c) << b) | lo
    }
}

/// `a = sum_i 255^i row_i[id]` on int8 rows, then `2^w x + rho = scale_c a + 2^(w-1)`: the residual stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenEmbed {
    /// int8 matrices that hold one entry, most significant last: 1 or 2.
    pub limbs: u8,
    /// S_c, one per channel, positive.
    pub scale: Vec<i32>,
    /// w: bits dropped after scaling, at least 1.
    pub shift: u8,
}

/// RMSNorm over the channels of a head of q or k, before rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadNorm {
    /// The norm; `eps` is in squared units of the projection's output times `head_dim`.
    pub norm: NormSpec,
}

/// Rotation of query and key pairs by position: with `(C, S) = (gain_c cos, gain_c sin)` rounded to integers,
/// `a' = floor((C_a a - S_b b + 2^(s-1)) / 2^s)`, `b' = floor((S_a a + C_b b + 2^(s-1)) / 2^s)`.
///
/// The gain is that of a head norm, or `2^14` everywhere; indices follow one head's channels in natural order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotary {
    /// Gain per channel of a head: `head_dim` entries in `[-2^15, 2^15]`.
    pub gain: Vec<i32>,
    /// s: bits dropped, in 1..=16.
    pub shift: u8,
}

/// A projection to queries or keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The projection; vectors in proof order.
    pub linear: Requant,
    /// Norm per head, if the family has one.
    pub norm: Option<HeadNorm>,
    /// Rotation.
    pub rotary: Rotary,
    /// Bound on every rotated value, proved from window (or norm), gain and shift.
    pub limit: i32,
}

/// `cap tanh(s / cap)` on scores: `t = floor((s + 2^(e-1)) / 2^e)` clipped to 16 bits, then a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreCap {
    /// e.
    pub e: u8,
    /// `table[t + 2^15]`, 65,536 entries below 2^20 in magnitude; scores have 12 fractional bits after it.
    pub table: Vec<i32>,
}

/// A branch's way back into the residual stream: `2^w (x' - x) + rho = mult_c v + 2^(w-1)` with v the branch's `t^`, or the
/// normalised branch `u` if there is a norm: then `2^w_y y + rho_y = mult_y t^ + 2^(w_y-1)`, `u = norm(y)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Norm of the branch (Gemma 2).
    pub norm: Option<BranchNorm>,
    /// w.
    pub shift: u8,
    /// M_c per channel: residual units times `2^w` per unit of v.
    pub mult: Vec<i32>,
}

/// The norm between a branch and the residual stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchNorm {
    /// w_y.
    pub shift: u8,
    /// Per channel.
    pub mult: Vec<i32>,
    /// The norm of y.
    pub norm: NormSpec,
}

/// A matrix on 16-bit inputs that stops at `t^ = clip16(floor((acc + 2^(e-1)) / 2^e))`.
///
/// One limb: one accumulator, and registration bounds it by the weights. Two limbs: the inputs are split as `v_0 + 2^8 v_1`,
/// `v_0` in `[0, 2^8)`, each with an accumulator of its own, which no row of up to 2^15 weights can overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accumulated {
    /// e: in 1..=13 with one limb, in 9..=16 with two.
    pub e: u8,
    /// Limbs of the input: 1 or 2.
    pub limbs: u8,
}

/// One transformer layer. Norms have no gain: the next weights absorb it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderLayer {
    /// RMSNorm before attention.
    pub attn_norm: NormSpec,
    /// Query projection (the attention scale folded in).
    pub q: Rotated,
    /// Key projection.
    pub k: Rotated,
    /// Value projection, 12 bit, vectors in proof order.
    pub v: Requant,
    /// g: score bits dropped before the exponential; scores have 12 fractional bits after it. 0 with a cap.
    pub score_shift: u8,
    /// Soft cap of the scores.
    pub score_cap: Option<ScoreCap>,
    /// Keys visible to a query, itself included; 0 for all earlier ones.
    pub window: u32,
    /// Attention output projection; its inputs are in the values' proof order.
    pub o: Accumulated,
    /// Back into the residual stream.
    pub attn_branch: Branch,
    /// RMSNorm before the feed-forward block.
    pub ffn_norm: NormSpec,
    /// Gate projection; its output indexes `activation`.
    pub gate: Requant,
    /// `activation[y + 2^15]` for y in [-2^15, 2^15): 65,536 entries in `[-32000, 32000]`.
    pub activation: Vec<i16>,
    /// Up projection.
    pub up: Stop,
    /// `h = clip16(floor((g t^ + 2^(e-1)) / 2^e))`: the gated product, input of `down`.
    pub product: Stop,
    /// Down projection.
    pub down: Accumulated,
    /// Back into the residual stream.
    pub ffn_branch: Branch,
}

/// Final norm and logits `y_j = mult_j t^_j` at checked positions; the next token is the smallest index of the maximum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// RMSNorm of the residual stream.
    pub norm: NormSpec,
    /// Logit projection.
    pub linear: Stop,
    /// m_j in [1, 255], one per real token.
    pub mult: Vec<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(heads: u32, kv_heads: u32, head_dim: u32, vocab: u32, tile_logs: (u8, u8)) -> Decoder {
        Decoder {
            name: String::new(),
            vocab,
            positions: 1,
            width: 8,
            heads,
            kv_heads,
            head_dim,
            ffn: 8,
            tile_k_log: tile_logs.0,
            tile_n_log: tile_logs.1,
            row_log: 14,
            blowup_log: 2,
            embed: TokenEmbed { limbs: 1, scale: Vec::new(), shift: 1 },
            frequencies: Vec::new(),
            layers: Vec::new(),
            head: Head { norm: NormSpec { eps: 1 << 14 }, linear: Stop { e: 8 }, mult: Vec::new() },
        }
    }

    #[test]
    fn channels_of_a_part_are_a_permutation_with_low_key_heads_fastest() {
        let d = decoder(36, 12, 24, 10, (0, 0));
        assert_eq!((d.group(), d.kv_low_log(), d.kv_odd(), d.delta(), d.part_log(), d.pair_log()), (3, 2, 3, 3, 3, 2));
        for part_log in [d.part_log(), d.pair_log()] {
            let all = (0..3).flat_map(|r| (0..12).flat_map(move |kv| (0..1 << part_log).map(move |c| (r, kv, c))));
            let mut seen: Vec<usize> = all.map(|(r, kv, c)| d.channel(part_log, r, kv, c)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..36usize << part_log).collect::<Vec<_>>());
            assert_eq!([(0, 1, 0), (0, 0, 1), (1, 0, 0)].map(|(r, kv, c)| d.channel(part_log, r, kv, c)), [1, 4, 12 << part_log]);
            assert_eq!(d.channel(part_log, 0, 4, 0), 4 << part_log);
        }
    }

    #[test]
    fn vocabularies_are_padded_to_tiles_and_few_blocks() {
        let padded = |vocab, logs| {
            let d = decoder(1, 1, 2, vocab, logs);
            (d.embed_inputs(), d.head_outputs())
        };
        assert_eq!(padded(21, (3, 2)), (24, 24));
        assert_eq!(padded(128_256, (7, 7)), (128_256, 131_072));
        assert_eq!(padded(151_936, (6, 6)), (151_936, 163_840));
        assert_eq!(padded(1, (0, 0)), (1, 1));
    }
}
