//! What a run of a decoder leaves behind, segment by segment. Axis orders are those of the parent module.

use super::super::{LinearTrace, StopTrace};

/// RMSNorm; row vectors have one entry per norm row, the others one per input.
///
/// Of a layer or the head: rows are tokens. Of a projection to queries or keys: rows are `t + t_pad * head`, heads in proof
/// order, and elements keep the projection's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RmsTrace {
    /// `S = sum x^2 + eps`.
    pub s: Vec<u64>,
    /// Least sigma with `S >> 2 sigma < 65280`.
    pub sigma: Vec<u8>,
    /// `S >> 2 sigma`.
    pub index: Vec<u32>,
    /// `R = floor(32000 * 2^7 / sqrt(index))`.
    pub recip: Vec<i32>,
    /// `x' = floor((x 2^7 + half) / 2^sigma)`.
    pub x_scaled: Vec<i32>,
    /// `floor((x' R + 2^13) / 2^14)`.
    pub u: Vec<i16>,
}

/// Segment 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenEmbedTrace {
    /// `a_i = row_i[id]` per limb, least significant first: `width * t_pad` each, zero for padding rows.
    pub a: Vec<Vec<i32>>,
    /// Bits dropped by the scale, in `[0, 2^w)`.
    pub rho: Vec<i32>,
    /// The residual stream.
    pub x: Vec<i32>,
}

/// A projection to queries or keys, in proof order throughout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotatedTrace {
    /// `sum_k q[n][k] u(t, k)`.
    pub acc: Vec<i32>,
    /// Output after requantisation.
    pub y: Vec<i32>,
    /// Norm per token and head; its `u` is what turns instead of `y`.
    pub norm: Option<RmsTrace>,
    /// After rotation.
    pub rot: Vec<i32>,
}

/// A branch's own norm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchNormTrace {
    /// Bits dropped by the scale, in `[0, 2^w_y)`.
    pub rho: Vec<i32>,
    /// `floor((mult_y t^ + 2^(w_y-1)) / 2^w_y)`.
    pub y: Vec<i32>,
    /// Norm of y; its `u` enters the residual stream.
    pub norm: RmsTrace,
}

/// A branch's way back into the residual stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchTrace {
    /// Norm of the branch, if it has one.
    pub norm: Option<BranchNormTrace>,
    /// Bits dropped, in `[0, 2^w)`.
    pub rho: Vec<i32>,
    /// The residual stream after the branch.
    pub x: Vec<i32>,
}

/// A matrix on 16-bit inputs in one or two limbs, which stops at `t^`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccumulatedTrace {
    /// `sum q v_i` per limb of the input: of `v` itself, or of `v & 255` and `v >> 8`. Sums over the parts of `o`.
    pub acc: Vec<Vec<i32>>,
    /// `clip16(floor((sum_i 2^(8i) acc_i + 2^(e-1)) / 2^e))`.
    pub t_hat: Vec<i16>,
}

/// Segments 1..=L.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderLayerTrace {
    /// Norm before attention.
    pub attn_norm: RmsTrace,
    /// Queries.
    pub q: RotatedTrace,
    /// Keys.
    pub k: RotatedTrace,
    /// Values, in proof order.
    pub v: LinearTrace,
    /// `sum_d q k` for every pair, visible or not, before any cap: `[hh][j][i]`, i fastest.
    pub scores: Vec<i32>,
    /// Least Lambda with `sum_j E(Lambda - key) <= 2^18` over visible keys: `[hh][i]`.
    pub lambda: Vec<i32>,
    /// `sum_j p v`, in the values' proof order over all query heads.
    pub mix_acc: Vec<i32>,
    /// `floor((mix_acc + 2^13) / 2^14)`.
    pub mix: Vec<i16>,
    /// Attention output projection.
    pub o: AccumulatedTrace,
    /// Residual stream after attention.
    pub attn: BranchTrace,
    /// Norm before the feed-forward block.
    pub ffn_norm: RmsTrace,
    /// Gate projection.
    pub gate: LinearTrace,
    /// Activation of the gate.
    pub act: Vec<i16>,
    /// Up projection.
    pub up: StopTrace,
    /// `acc = act * up`, `t^` is the input of `down`.
    pub product: StopTrace,
    /// Down projection.
    pub down: AccumulatedTrace,
    /// Residual stream after the feed-forward block; it enters the next layer.
    pub ffn: BranchTrace,
}

/// Segment L + 1, over the checked rows padded with zero rows to a power of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadTrace {
    /// Residual stream at the checked rows: `c * rows + k`.
    pub x: Vec<i32>,
    /// Final norm.
    pub norm: RmsTrace,
    /// Logit projection over the padded vocabulary.
    pub linear: StopTrace,
    /// Smallest index of the largest `mult_j t^_j` over real tokens, per checked row without padding.
    pub tokens: Vec<u32>,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderTrace {
    /// Padded rows of the token axis.
    pub t_pad: usize,
    /// Segment 0.
    pub embed: TokenEmbedTrace,
    /// Segments 1..=L.
    pub layers: Vec<DecoderLayerTrace>,
    /// Segment L + 1.
    pub head: HeadTrace,
}

impl DecoderTrace {
    /// The residual stream that enters segment `index`, counted from 1.
    #[must_use]
    pub fn entering(&self, index: usize) -> &[i32] {
        index.checked_sub(2).and_then(|l| self.layers.get(l)).map_or(&self.embed.x, |l| &l.ffn.x)
    }
}
