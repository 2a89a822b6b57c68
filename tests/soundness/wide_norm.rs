//! Exactly one witness of a norm whose sums of products are split: both parts of every sum, then digits and carries. The
//! equations are written down again from the integer semantics and solved mod p.

use crate::enumerate::{centred, inverse_power, samples};
use obelysk_model::toy::Prng;
use obelysk_protocol::circuit::norm::squares::WORD_CARRY_LOG;
use obelysk_protocol::circuit::norm::{INDEX_END, NormShape, SUM_TOP, shift_powers};

const WORD: i64 = 1 << 16;
/// From the narrowest norm that is split to the widest that registration admits.
const WIDTHS: [usize; 5] = [5483, 6144, 8192, 12_288, 16_384];

fn shape(d: usize, eps: u64) -> NormShape {
    NormShape::of(1 << 23, d, 3, eps)
}

/// All `(low, high)` with `low + 2^16 high = sum` mod p, the high part in its window.
fn parts(sum: i64, window: std::ops::Range<i64>) -> Vec<(i64, i64)> {
    let high = |low: i64| (low, centred(i128::from(sum - low) * inverse_power(16)));
    (0..WORD).map(high).filter(|(_, high)| window.contains(high)).collect()
}

#[test]
fn a_sum_of_products_has_exactly_one_pair_of_parts() {
    let mut rng = Prng::new(41);
    for d in WIDTHS {
        let top = 1i64 << shape(d, 1 << 14).part_bits.unwrap();
        for sum in samples(&mut rng, d as i64 * 255 * 255, 12) {
            let expected = (sum & (WORD - 1), sum >> 16);
            assert_eq!(parts(sum, -top..top), [expected], "{d} channels, {sum}");
            // A square has the half of the window that it can reach.
            assert_eq!(parts(sum, 0..top), if sum < 0 { vec![] } else { vec![expected] }, "{d} channels, {sum}");
        }
    }
}

/// All values of the digits, for given limbs: every pair of carries is tried.
fn digits(z: &[i64], eps: u64, shape: &NormShape) -> Vec<i128> {
    let limbs: Vec<[i64; 3]> = z.iter().map(|v| [v & 255, v >> 8 & 255, v >> 16]).collect();
    let top = 1i64 << shape.part_bits.unwrap();
    let sum = |x: usize, y: usize| -> (i64, i64) {
        let sum: i64 = limbs.iter().map(|l| l[x] * l[y]).sum();
        let (low, high) = (sum & (WORD - 1), sum >> 16);
        assert!(if x == y { 0..top } else { -top..top }.contains(&high), "no witness for z{x} z{y} of sum {sum}");
        (low, high)
    };
    let [s00, s01, s02, s11, s12, s22] = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)].map(|(x, y)| sum(x, y));
    let word = |k: u32| (eps >> (16 * k)) as i64 & if k == 2 { i64::MAX } else { WORD - 1 };
    let odd = |part: i64| (2 * part) << 8;
    let first = s00.0 + odd(s01.0) + word(0);
    let second = 2 * s02.0 + s11.0 + odd(s12.0) + s00.1 + odd(s01.1) + word(1);
    let third = s22.0 + (s22.1 << 16) + 2 * s02.1 + s11.1 + odd(s12.1) + word(2);
    let last = 1i64 << (2 * (shape.digits - 16));
    let window = -(1i64 << WORD_CARRY_LOG)..1 << WORD_CARRY_LOG;
    let reduced = |v: i64| centred(v.into());
    let mut found = Vec::new();
    for c0 in window.clone().filter(|c| (0..WORD).contains(&reduced(first - (c << 16)))) {
        for c1 in window.clone().filter(|c| (0..WORD).contains(&reduced(second + c0 - (c << 16)))) {
            let high = reduced(third + c1);
            if (0..last).contains(&high) {
                let low = reduced(first - (c0 << 16)) + (reduced(second + c0 - (c1 << 16)) << 16);
                found.push(i128::from(low) + (i128::from(high) << 32));
            }
        }
    }
    found
}

#[test]
fn the_squares_of_a_wide_norm_have_exactly_one_witness() {
    let mut rng = Prng::new(42);
    for (d, eps) in WIDTHS.into_iter().zip([1 << 14, 1 << 56, (1 << 40) + 12_345, 1 << 14, (1 << 20) + 65_535]) {
        let shape = shape(d, eps);
        for k in 0..12 {
            let value = |rng: &mut Prng| match k {
                0 => -(1i64 << 23),
                1 => (1 << 23) - 1,
                2 => 0,
                // All limbs at an end, the top one negative: the most negative sums of products.
                3 => -(1 << 23) + 65_535,
                4 => -1,
                _ => i64::from(rng.range(-(1 << 23), (1 << 23) - 1)) >> (4 * (k - 5)),
            };
            let z: Vec<i64> = (0..d).map(|_| value(&mut rng)).collect();
            let s = z.iter().map(|&v| i128::from(v * v)).sum::<i128>() + i128::from(eps);
            // Beyond the digits there is no witness rather than a false one; within them but beyond sigma, no index of the table.
            let held = s >> (2 * shape.digits) == 0;
            assert_eq!(digits(&z, eps, &shape), if held { vec![s] } else { vec![] }, "{d} channels, case {k}");
            let indexed = (0..=shape.sigma_max).any(|sigma| s >> (2 * sigma) < i128::from(INDEX_END));
            assert_eq!(indexed, s <= i128::from(SUM_TOP), "{d} channels, case {k}");
            assert!(held && indexed || d > 15_000, "{d} channels, case {k}");
        }
    }
}

#[test]
fn the_largest_sigma_stays_below_p() {
    for d in WIDTHS.into_iter().chain([1 << 20]) {
        let sigma = shape(d, 1 << 56).sigma_max;
        // x' 2^(sigma - 7) beside z, half and the remainder.
        assert!((shift_powers(sigma).0 << 15) + (1 << 24) < (1 << 31) - 1, "{d} channels");
        let most = ((d as u128) << 46) + (1 << 56);
        assert!(most.min(SUM_TOP.into()) >> (2 * sigma) < 65_280, "{d} channels");
    }
}
