//! M31 and its degree-4 extension QM31 (S-two's tower), and the multilinear helpers shared by prover and verifier.
//!
//! Variable order, said once for the whole project: index bit `k` of a vector of length `2^n` is variable `x_k`, and
//! every sumcheck binds `x_0` (the lowest bit) first. A point `z` is a slice with `z[k]` for `x_k`.

mod mle;
mod poly;

pub use mle::{
    IntWeights, eq_at_index, eq_eval, eq_vector, fold, identity_mle, inner, lt_mle, mle_eval, mle_eval_base, mle_eval_ints,
};
pub use poly::RoundPoly;
pub use stwo::core::fields::FieldExpOps;
pub use stwo::core::fields::m31::{M31, P};
pub use stwo::core::fields::qm31::QM31;

/// The additive identity of QM31.
pub const ZERO: QM31 = QM31::from_u32_unchecked(0, 0, 0, 0);
/// The multiplicative identity of QM31.
pub const ONE: QM31 = QM31::from_u32_unchecked(1, 0, 0, 0);
/// Bytes of a serialised QM31: four little-endian canonical M31 coordinates.
pub const QM31_BYTES: usize = 16;

/// Embeds a signed integer, reducing it mod p.
#[must_use]
pub fn signed(v: i64) -> M31 {
    M31::from_u32_unchecked(v.rem_euclid(i64::from(P)) as u32)
}

/// Embeds a signed integer into the extension.
#[must_use]
pub fn signed_ext(v: i64) -> QM31 {
    QM31::from(signed(v))
}

/// Canonical little-endian bytes of an extension element.
#[must_use]
pub fn to_bytes(v: QM31) -> [u8; QM31_BYTES] {
    let mut out = [0u8; QM31_BYTES];
    for (chunk, c) in out.chunks_exact_mut(4).zip(v.to_m31_array()) {
        chunk.copy_from_slice(&c.0.to_le_bytes());
    }
    out
}

/// Parses canonical bytes; `None` if any coordinate is `>= p` (the encoding would not be unique).
#[must_use]
pub fn from_bytes(bytes: &[u8; QM31_BYTES]) -> Option<QM31> {
    let mut c = [M31::from_u32_unchecked(0); 4];
    for (v, b) in c.iter_mut().zip(bytes.chunks_exact(4)) {
        let raw = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        if raw >= P {
            return None;
        }
        *v = M31::from_u32_unchecked(raw);
    }
    Some(QM31::from_m31_array(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_canonical() {
        let v = QM31::from_u32_unchecked(1, 2, P - 1, 4);
        assert_eq!(from_bytes(&to_bytes(v)), Some(v));
        let mut bad = to_bytes(v);
        bad[8..12].copy_from_slice(&P.to_le_bytes());
        assert_eq!(from_bytes(&bad), None);
    }

    #[test]
    fn signed_wraps_like_integers() {
        assert_eq!(signed(-1).0, P - 1);
        assert_eq!(signed(-5) + signed(7), signed(2));
        assert_eq!(signed(i64::from(P)).0, 0);
    }
}
