//! Rotary positions in integers: cosine and sine of an angle in turns, coefficient tables, and how far a rotation can reach.
//!
//! Total on any descriptor: a missing frequency or gain counts as zero. It judges nothing; registration does.

use super::descriptor::{Decoder, Rotated};

/// Fraction bits of [`cos_sin`].
pub const UNIT_LOG: u32 = 30;
/// A norm's output is at most this in L2.
pub const NORM_L2: i64 = 32_320;

/// Fraction bits inside the series.
const INNER: u32 = 62;
/// `pi / 2` in units of 2^-62, rounded to nearest.
const HALF_PI: i64 = 7_244_019_458_077_122_842;
/// Terms after the first: the next one is below 2^-80 on an eighth of a turn.
const TERMS: i64 = 10;

/// Cosine and sine of `turns / 2^64` of a full turn, in units of 2^-30.
///
/// Reduction to an eighth of a turn is exact; the series is evaluated with 62 fraction bits and rounded once, so each result
/// is within `1/2 + 2^-27` units of the real value, and multiples of a quarter turn are exact.
#[must_use]
pub fn cos_sin(turns: u64) -> (i64, i64) {
    let quarter = turns.wrapping_add(1 << 61) >> 62;
    let rest = turns.wrapping_sub(quarter << 62).cast_signed();
    let x = times(rest, HALF_PI);
    let square = times(x, x);
    let one = 1i64 << INNER;
    let (mut cos, mut sin) = (one, one);
    for k in (1..=TERMS).rev() {
        cos = one - times(square, cos) / ((2 * k - 1) * 2 * k);
        sin = one - times(square, sin) / (2 * k * (2 * k + 1));
    }
    let round = |v: i64| (v + (1 << (INNER - UNIT_LOG - 1))) >> (INNER - UNIT_LOG);
    let (cos, sin) = (round(cos), round(times(x, sin)));
    match quarter {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    }
}

fn times(a: i64, b: i64) -> i64 {
    ((i128::from(a) * i128::from(b)) >> INNER) as i64
}

/// `floor((gain value + 2^29) / 2^30)`: a gain times a cosine or sine from [`cos_sin`], to the nearest integer.
#[must_use]
pub fn coefficients(gain: i32, value: i64) -> i32 {
    ((i64::from(gain) * value + (1 << (UNIT_LOG - 1))) >> UNIT_LOG) as i32
}

/// The coefficients `[C_a, S_b, S_a, C_b]` of pair part `pair_part` in `0..delta`: channel c of the part and row t at
/// `t + c * positions.len()`, for c in `0..2^(a-1)`.
///
/// Row t turns by `positions[t] * frequencies[j]`, wrapping, with j the channel's index in its half; `a` is channel j of a
/// head and `b` channel `j + head_dim / 2`. `gain` is in the natural order of a head's channels.
#[must_use]
pub fn tables(d: &Decoder, gain: &[i32], positions: &[u32], pair_part: usize) -> [Vec<i32>; 4] {
    let (channels, half) = (1usize << d.pair_log(), d.head_dim as usize / 2);
    let mut out = [(); 4].map(|()| Vec::with_capacity(channels * positions.len()));
    for j in pair_part * channels..(pair_part + 1) * channels {
        let frequency = d.frequencies.get(j).copied().unwrap_or(0);
        let [first, second] = [j, j + half].map(|c| gain.get(c).copied().unwrap_or(0));
        for &position in positions {
            let (cos, sin) = cos_sin(u64::from(position).wrapping_mul(frequency));
            let row = [(first, cos), (second, sin), (first, sin), (second, cos)];
            for (column, (gain, value)) in out.iter_mut().zip(row) {
                column.push(coefficients(gain, value));
            }
        }
    }
    out
}

/// Bounds on rotated values that hold for every input and every angle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Largest `|C_a a - S_b b|` or `|S_a a + C_b b|`, before the shift.
    pub product: i64,
    /// Largest magnitude of both channels of each pair: `head_dim / 2` entries.
    pub pairs: Vec<i64>,
    /// Largest L2 norm of one head.
    pub l2: i64,
}

/// What a projection to queries or keys can become under rotation.
///
/// Each coefficient is within `1/2 + 2^-15` of gain times the real cosine or sine, so a product is within `|a| + |b|` of
/// the exactly turned pair `(G_a a, G_b b)`. Without a norm `|a|, |b| <= Y`, the window; that pair is no longer than
/// `Y sqrt(G_a^2 + G_b^2)`. With a norm the whole head, hence `(a, b)`, is no longer than 32320; the pair is no longer than
/// `32320 max(|G_a|, |G_b|)`, and `(1/2 + 2^-15)(|a| + |b|) <= 32320`. For the whole head the coefficients' rounding adds at
/// most `(1 + 2^-14) 32320` in L2, that of the shift half a unit per channel.
#[must_use]
pub fn reach(r: &Rotated) -> Reach {
    let window = i64::from(r.linear.lo).abs().max(i64::from(r.linear.hi).abs());
    let (first, second) = r.rotary.gain.split_at(r.rotary.gain.len() / 2);
    let shift = r.rotary.shift.clamp(1, 31);
    let magnitude = |g: i32| i64::from(g).abs();
    let mut product = 0;
    let pairs: Vec<i64> = first
        .iter()
        .zip(second)
        .map(|(&a, &b)| {
            let bound = if r.norm.is_some() {
                NORM_L2 * (magnitude(a).max(magnitude(b)) + 1)
            } else {
                let gains = i128::from(a).pow(2) + i128::from(b).pow(2);
                root_above(gains * i128::from(window).pow(2)) + 2 * window
            };
            product = product.max(bound);
            (bound + (1 << (shift - 1))) >> shift
        })
        .collect();
    let mut l2 = root_above(pairs.iter().map(|&p| 2 * i128::from(p).pow(2)).sum());
    if r.norm.is_some() {
        let gain = r.rotary.gain.iter().copied().map(magnitude).max().unwrap_or(0);
        let halves = root_above(r.rotary.gain.len() as i128) / 2 + 1;
        l2 = l2.min(((NORM_L2 * (gain + 2)) >> shift) + 1 + halves);
    }
    Reach { product, pairs, l2 }
}

/// Largest `|sum q' k'|` over a head: by the registered limits, or by Cauchy-Schwarz where that is less.
#[must_use]
pub fn score_bound(q: &Rotated, k: &Rotated) -> i64 {
    let by_limit = i64::from(q.limit).saturating_mul(i64::from(k.limit)).saturating_mul(q.rotary.gain.len() as i64);
    by_limit.min(reach(q).l2.saturating_mul(reach(k).l2))
}

/// Least integer not below the square root.
fn root_above(square: i128) -> i64 {
    let square = square.unsigned_abs();
    let root = square.isqrt();
    i64::try_from(root + u128::from(root * root < square)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::descriptor::{HeadNorm, NormSpec, Requant, Rotary};
    use super::*;

    const UNIT: f64 = (1u64 << UNIT_LOG) as f64;

    fn angles() -> impl Iterator<Item = u64> {
        let near = (0..64u64).flat_map(|k| (0..5u64).map(move |d| (k << 58).wrapping_add(d).wrapping_sub(2)));
        near.chain((0..200_000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    #[test]
    fn cosine_and_sine_are_within_half_a_unit() {
        for turns in angles() {
            let (cos, sin) = cos_sin(turns);
            // The signed fraction of a turn keeps the float's own angle error below 2^-52.
            let x = turns.cast_signed() as f64 / 2f64.powi(64) * std::f64::consts::TAU;
            let error = (cos as f64 - x.cos() * UNIT).abs().max((sin as f64 - x.sin() * UNIT).abs());
            assert!(error < 0.5 + 2e-6, "{turns}: {error}");
        }
    }

    #[test]
    fn quarters_are_exact_and_turns_symmetric() {
        let one = 1 << UNIT_LOG;
        assert_eq!([0u64, 1, 2, 3].map(|q| cos_sin(q << 62)), [(one, 0), (0, one), (-one, 0), (0, -one)]);
        for turns in angles() {
            let (cos, sin) = cos_sin(turns);
            assert_eq!(cos_sin(turns.wrapping_add(1 << 62)), (-sin, cos), "{turns}");
        }
    }

    #[test]
    fn coefficients_round_to_nearest() {
        assert_eq!(coefficients(1 << 14, 1 << 30), 1 << 14);
        assert_eq!(coefficients(-3, 1 << 29), -1);
        assert_eq!(coefficients(3, 1 << 29), 2);
        assert_eq!(coefficients(-(1 << 15), -(1 << 30)), 1 << 15);
    }

    fn rotated(norm: bool, window: i32, gain: Vec<i32>, shift: u8) -> Rotated {
        let linear = Requant { e: 8, k: 8, m: Vec::new(), b: Vec::new(), lo: -window, hi: window };
        let norm = norm.then_some(HeadNorm { norm: NormSpec { eps: 1 << 14 } });
        Rotated { linear, norm, rotary: Rotary { gain, shift }, limit: 0 }
    }

    /// Worst value over angles of a pair at the corners of its window, in the rounding the semantics prescribe.
    fn worst(gains: [i32; 2], pairs: &[(i64, i64)], shift: u8) -> i64 {
        let mut worst = 0;
        for turns in (0..4096u64).map(|i| i.wrapping_mul(0x0123_4567_89ab_cdef)) {
            let (cos, sin) = cos_sin(turns);
            let at = |g: usize, v: i64| i64::from(coefficients(gains[g], v));
            for &(a, b) in pairs {
                let half = 1i64 << (shift - 1);
                let first = (at(0, cos) * a - at(1, sin) * b + half) >> shift;
                let second = (at(0, sin) * a + at(1, cos) * b + half) >> shift;
                worst = worst.max(first.abs()).max(second.abs());
            }
        }
        worst
    }

    #[test]
    fn no_rotation_leaves_its_reach_and_the_reach_is_tight() {
        for (gains, shift) in [([16_384, 16_384], 14), ([32_768, -20_000], 17), ([3, 1], 1), ([-32_768, 0], 16)] {
            let window = reach(&rotated(false, 2000, gains.to_vec(), shift)).pairs[0];
            let corners = [(2000, 2000), (-2000, 2000), (2000, -2000), (-2000, -2000), (2000, 0), (0, -2000)];
            let found = worst(gains, &corners, shift);
            assert!(found <= window, "{gains:?}: {found} > {window}");
            assert!(found * 100 >= window * 98 || shift == 1, "{gains:?}: {found} of {window}");
            let normed = reach(&rotated(true, 32_767, gains.to_vec(), shift)).pairs[0];
            let on_circle = [(32_320, 0), (0, 32_320), (22_853, 22_853), (-22_853, 22_853)];
            let found = worst(gains, &on_circle, shift);
            assert!(found <= normed && found * 100 >= normed * 70, "{gains:?}: {found} of {normed}");
        }
    }

    #[test]
    fn a_norm_bounds_whole_heads() {
        let long = vec![16_384; 128];
        let (with, without) = (reach(&rotated(true, 32_767, long.clone(), 14)), reach(&rotated(false, 32_320, long, 14)));
        assert!(with.l2 < 32_340 && with.pairs[0] < 32_340);
        assert!(without.l2 > 300_000);
        let mut normed = rotated(true, 32_767, vec![16_384; 128], 14);
        normed.limit = 32_339;
        assert_eq!(score_bound(&normed, &normed), with.l2 * with.l2);
        normed.limit = 100;
        assert_eq!(score_bound(&normed, &normed), 128 * 100 * 100);
    }
}
