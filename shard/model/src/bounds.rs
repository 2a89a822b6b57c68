//! Integer bounds that make a model provable: written once, used by the quantiser to choose and by the check to refuse.
//!
//! All are statements about integers; p = 2^31 - 1 is the modulus of the proof.

use crate::tables::NORM_L2;
use std::ops::RangeInclusive;

/// The proof's modulus.
pub const P: i64 = (1 << 31) - 1;
/// Allowed right shifts of an accumulator.
pub const E_RANGE: RangeInclusive<u8> = 4..=12;
/// Allowed values of m.
pub const M_RANGE: RangeInclusive<i32> = 1..=255;
/// Largest weight magnitude.
pub const WEIGHT_MAX: i64 = 127;
/// Largest embedding sum: word, position and type at full scale.
pub const EMBED_SUM_MAX: i64 = 3 * WEIGHT_MAX;
/// Least eps of a norm: an all-zero row must still have an inverse root.
pub const NORM_EPS_MIN: u64 = 1 << 14;
/// Largest eps of a norm. That it stays within the circuit's `SUM_TOP` together with the squares is checked of every wide norm;
/// two limbs admit less, which the circuit refuses at registration.
pub const NORM_EPS_MAX: u64 = 1 << 56;
/// Largest width of an encoder.
pub const ENCODER_WIDTH_MAX: u32 = 8192;
/// Largest width of a decoder: up to 16,512 a sum of products of limbs and its two parts stay below p together.
pub const DECODER_WIDTH_MAX: u32 = 16_384;
/// Largest residual shift. The scaled sum stays below `2^30`; whether the norm behind it has room is the circuit's to say, at
/// registration: an encoder's takes up to 6.
pub const RESIDUAL_SHIFT_MAX: u8 = 7;

/// Largest accumulator magnitude for which the requantisation by `2^e` has exactly one witness mod p.
#[must_use]
pub fn accumulator_limit(e: u8) -> i64 {
    let tau = 1i64 << (15 + e);
    let top = 1i64 << 30;
    let no_wrap = P - 1 - (top + tau + (1 << e));
    let covered = top - tau - (1 << (e - 1));
    no_wrap.min(covered)
}

/// Largest Q with `4 d_h Q^2 + 3 * 2^(16+g) < p`: queries and keys clipped to it give scores that cannot wrap.
#[must_use]
pub fn score_window(head_dim: u32, g: u8) -> i32 {
    let room = P - 1 - (3i64 << (16 + g.min(12)));
    let q = (room / (4 * i64::from(head_dim.max(1)))).max(0) as u64;
    q.isqrt().min(32_767) as i32
}

/// Whether `2^w x + rho`, given the largest magnitude of its right-hand side, keeps `|x| < 127 * 2^16`.
#[must_use]
pub fn residual_fits(magnitude: i64, w: u8) -> bool {
    magnitude + (1 << w) < 254i64 << (w + 15)
}

/// Cauchy-Schwarz bound of one row against a norm's output: `ceil(||q||_2) * 32320`.
#[must_use]
pub fn norm_reader_bound(row: &[i8]) -> i64 {
    let square: u64 = row.iter().map(|&q| u64::from(q.unsigned_abs()).pow(2)).sum();
    let root = square.isqrt();
    let ceil = if root * root == square { root } else { root + 1 };
    ceil as i64 * NORM_L2
}

/// Largest `|sum q_k x_k|` over inputs `x_k` in `[lo, hi]`.
#[must_use]
pub fn window_bound(row: &[i8], lo: i64, hi: i64) -> i64 {
    let (down, up) = row_span(row, &vec![(lo, hi); row.len()]);
    up.abs().max(down.abs())
}

/// Smallest and largest `sum q_k x_k` over inputs `x_k` each in its own window.
#[must_use]
pub fn row_span(row: &[i8], windows: &[(i64, i64)]) -> (i64, i64) {
    let (mut up, mut down) = (0i64, 0i64);
    for (&q, &(lo, hi)) in row.iter().zip(windows) {
        let (a, b) = (i64::from(q) * lo, i64::from(q) * hi);
        up += a.max(b);
        down += a.min(b);
    }
    (down, up)
}

/// `[min, max]` of an activation table.
#[must_use]
pub fn activation_window(table: &[i16]) -> (i64, i64) {
    let lo = table.iter().copied().min().unwrap_or(0);
    let hi = table.iter().copied().max().unwrap_or(0);
    (i64::from(lo), i64::from(hi))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_windows_are_the_documented_ones() {
        assert_eq!([32, 64, 128].map(|d| score_window(d, 7)), [4071, 2879, 2035]);
    }

    #[test]
    fn accumulator_limits_hold_both_conditions_and_are_tight() {
        for e in E_RANGE {
            let h = 1i64 << (14 - e);
            let l = (1i64 << (16 + e)) * h + (1 << (15 + e)) + (1 << e);
            let ok = |b: i64| l + b < P && b + (1 << (e - 1)) <= (1i64 << (16 + e)) * h - (1 << (15 + e));
            assert!(ok(accumulator_limit(e)) && !ok(accumulator_limit(e) + 1), "e = {e}");
        }
    }

    #[test]
    fn row_bounds() {
        assert_eq!(norm_reader_bound(&[3, -4]), 5 * NORM_L2);
        assert_eq!(norm_reader_bound(&[1, 1]), 2 * NORM_L2);
        assert_eq!(window_bound(&[2, -3], -1, 10), 32);
    }
}
