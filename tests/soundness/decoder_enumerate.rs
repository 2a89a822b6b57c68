//! Exactly one witness of each chip that decoders add: every row of every table, every remainder and every limb is tried and
//! the equations are solved mod p.
//!
//! As in `enumerate`, the equations are written down again from the integer semantics.

use crate::enumerate::{centred, inverse_power, samples};
use obelysk_model::toy::Prng;
use obelysk_protocol::circuit::linear::{R1_LOG, r1_bound};
use obelysk_protocol::circuit::norm::{NormShape, reciprocal_table, shift_powers};
use obelysk_protocol::circuit::table::TableColumn;
use obelysk_protocol::circuit::wide::{r2_bounds, saturation_log};

const P: i64 = (1 << 31) - 1;
const WORD: std::ops::Range<i64> = -(1 << 15)..1 << 15;

fn clip16(v: i64) -> i64 {
    v.clamp(WORD.start, WORD.end - 1)
}

/// `x / 2^k` mod p, centred.
fn halved(x: i64, k: u32) -> i64 {
    centred(i128::from(x) * inverse_power(k))
}

/// `(row, tau, t^)` of R1 for an accumulator: all rows of its table.
fn r1(acc: i64, e: u8) -> Vec<(usize, i64, i64)> {
    let row = |row: usize| {
        let at = |c: TableColumn| c.value(row, R1_LOG);
        let (v, s, c) = (at(TableColumn::R1Value { e }), at(TableColumn::R1Saturated { e }), at(TableColumn::R1Clip { e }));
        let tau = halved(acc + (1 << (e - 1)) - v, e.into());
        WORD.contains(&tau).then_some((row, tau, (1 - s) * tau + c))
    };
    (0..1usize << R1_LOG).filter_map(row).collect()
}

/// Low and high limbs, 8 bits and 8 bits signed, of a value mod p.
fn two_limbs(value: i64) -> Vec<(i64, i64)> {
    let high = |low: i64| (low, halved(value - low, 8));
    (0..256).map(high).filter(|(_, high)| (-128..128).contains(high)).collect()
}

/// Limbs of 8, 8 and 8 bits signed of a value mod p.
fn three_limbs(value: i64) -> Vec<[i64; 3]> {
    let lows = (0..256).flat_map(|a| (0..256).map(move |b| (a, b)));
    lows.map(|(a, b)| [a, b, halved(value - a - (b << 8), 16)]).filter(|l| (-128..128).contains(&l[2])).collect()
}

/// `(rho, limbs)` with `2^w (x - from) + rho = right`.
fn stream_witnesses(right: i64, w: u32, from: i64) -> Vec<(i64, [i64; 3])> {
    let of = |rho: i64| three_limbs(centred(i128::from(from + halved(right - rho, w)))).into_iter().map(move |l| (rho, l));
    (0..1i64 << w).flat_map(of).collect()
}

fn joined(limbs: &[i64]) -> i64 {
    limbs.iter().rev().fold(0, |sum, l| (sum << 8) + l)
}

#[test]
fn a_rotated_value_has_exactly_one_witness() {
    let mut rng = Prng::new(21);
    for s in [1u32, 4, 10, 14, 15] {
        // What the interval check leaves for |C_a a - S_b b|.
        let bound = (P - 1 - (1i64 << (s + 15)) - (1 << (s - 1)) - (1 << s)).min((1 << 30) - 1);
        for value in samples(&mut rng, bound, 40) {
            let turned = |r: i64| halved(value + (1 << (s - 1)) - r, s);
            let found: Vec<i64> = (0..1i64 << s).map(turned).filter(|a| WORD.contains(a)).collect();
            let expected = (value + (1 << (s - 1))) >> s;
            // Beyond 16 bits there is no witness rather than a false one; `reach` keeps registered models below.
            assert_eq!(found, if WORD.contains(&expected) { vec![expected] } else { vec![] }, "s {s} value {value}");
        }
    }
}

#[test]
fn a_gated_product_has_exactly_one_witness() {
    let mut rng = Prng::new(22);
    for e in [1u8, 7, 10, 11, 12] {
        let largest = r1_bound(e) >> 15;
        let gates = [0, 1, -1, 16_384, -16_384, 32_000, -32_000].map(|g: i64| g.clamp(-largest, largest));
        let mut pairs: Vec<(i64, i64)> = gates.iter().flat_map(|&g| [(g, 32_767), (g, -32_768), (g, 1)]).collect();
        pairs.extend((0..10).map(|_| (i64::from(rng.range(-16_000, 16_000)), i64::from(rng.range(-32_768, 32_767)))));
        let mut saturated = 0;
        for (g, t) in pairs {
            let found: Vec<_> =
                r1(g * t, e).into_iter().flat_map(|(row, tau, h)| two_limbs(h).into_iter().map(move |l| (row, tau, l))).collect();
            let rounded = (g * t + (1 << (e - 1))) >> e;
            assert_eq!(found.len(), 1, "e {e}, {g} {t}: {found:?}");
            assert_eq!(joined(&[found[0].2.0, found[0].2.1]), clip16(rounded), "e {e}, {g} {t}");
            saturated += usize::from(clip16(rounded) != rounded);
        }
        assert!(saturated > 1, "e {e}");
    }
}

/// All `(r, d, h, H, tau, t^)` of R2, h over its whole window.
fn r2(a0: i64, a1: i64, e: u32) -> Vec<(i64, i64, i64, i64, i64, i64)> {
    let (reach, log) = (1i64 << (30 - e), saturation_log(e as u8));
    let mut found = Vec::new();
    for d in 0..1i64 << (e - 8) {
        for h in -reach..reach {
            let r = (a0 + (1 << (e - 1)) - (d << 8) - (h << e)).rem_euclid(P);
            if r >= 1 << e {
                continue;
            }
            let t = halved(a1 + d, e - 8) + h;
            for top in -(1i64 << (log - 1))..1 << (log - 1) {
                let tau = centred(i128::from(t) - (i128::from(top) << 16));
                if WORD.contains(&tau) {
                    let clip = if top > 0 { WORD.end - 1 } else { WORD.start };
                    found.push((r, d, h, top, tau, if top == 0 { tau } else { clip }));
                }
            }
        }
    }
    found
}

#[test]
fn two_limbs_of_an_accumulator_have_exactly_one_witness() {
    let mut rng = Prng::new(23);
    for e in [9u32, 12, 16] {
        let (first, second) = r2_bounds(e as u8);
        let mut pairs = vec![(0, 0), (-1, 1), (first, second), (-first, -second), (first, -second), (1 << (e - 1), -1)];
        pairs.extend((0..3).map(|_| (i64::from(rng.range(-(1 << 28), 1 << 28)), i64::from(rng.range(-(1 << 20), 1 << 20)))));
        for (a0, a1) in pairs {
            let found = r2(a0, a1, e);
            assert_eq!(found.len(), 1, "e {e}, {a0} {a1}: {found:?}");
            assert_eq!(found[0].5, clip16((a0 + (a1 << 8) + (1 << (e - 1))) >> e), "e {e}, {a0} {a1}");
        }
    }
}

#[test]
fn a_branch_has_exactly_one_witness() {
    let mut rng = Prng::new(24);
    for w in [1u32, 3, 5, 6] {
        // `2^w (x' - x)` of 24-bit values and a product that leaves the rest below p.
        let room = (P - (1 << (w + 24)) - (2 << w)) >> 15;
        for _ in 0..8 {
            let x = i64::from(rng.range(-(1 << 22), 1 << 22));
            let value = i64::from(rng.range(-32_768, 32_767));
            let most = room.min((1 << (22 + w)) / value.abs().max(1));
            let mult = i64::from(rng.range(-most as i32, most as i32));
            let right = mult * value + (1 << (w - 1));
            let found = stream_witnesses(right, w, x);
            assert_eq!(found.len(), 1, "w {w}: {x} {mult} {value}");
            assert_eq!(joined(&found[0].1), x + (right >> w), "w {w}: {x} {mult} {value}");
        }
        // Out of 24 bits there is no witness: registration excludes it, the chip does not wrap.
        let top = (1 << 23) - 1;
        assert!(stream_witnesses((1 << w) + (1 << (w - 1)), w, top).is_empty());
        assert!(stream_witnesses(-(3 << w), w, -(1 << 23)).is_empty());
    }
}

#[test]
fn an_embedding_has_exactly_one_witness() {
    let mut rng = Prng::new(25);
    for (limbs, w) in [(1usize, 1u32), (1, 6), (2, 5), (2, 7)] {
        for k in 0..8 {
            let entry = |rng: &mut Prng| if k == 0 { -128 } else { i64::from(rng.range(-128, 127)) };
            let a = (0..limbs).map(|i| 255i64.pow(i as u32) * entry(&mut rng)).sum::<i64>();
            let scale =
                i64::from(rng.range(1, (((1i64 << (w + 22)) / 128 / 255i64.pow(limbs as u32 - 1)) - 1).min(60_000) as i32));
            let right = scale * a + (1 << (w - 1));
            let found = stream_witnesses(right, w, 0);
            assert_eq!(found.len(), 1, "{scale} {a}");
            assert_eq!(joined(&found[0].1), right >> w, "{scale} {a}");
        }
    }
}

#[test]
fn limbs_have_exactly_one_witness_each() {
    for value in WORD {
        assert_eq!(two_limbs(value), [(value & 255, value >> 8)], "{value}");
    }
    assert!(two_limbs(WORD.end).is_empty() && two_limbs(WORD.start - 1).is_empty());
    let mut rng = Prng::new(26);
    for value in samples(&mut rng, (1 << 23) - 1, 10) {
        assert_eq!(three_limbs(value), [[value & 255, value >> 8 & 255, value >> 16]], "{value}");
    }
    assert!(three_limbs(1 << 23).is_empty() && three_limbs(-(1 << 23) - 1).is_empty());
}

#[test]
fn the_squares_of_a_head_have_exactly_one_witness() {
    // Digits of S and carries of the chain over two limbs: every pair of low digit groups is tried.
    let mut rng = Prng::new(27);
    for (dim, eps) in [(2usize, 1u64 << 14), (8, 1 << 14), (96, (1 << 14) + 12_345), (256, 1 << 20)] {
        let shape = NormShape::of(1 << 15, dim, 2, eps);
        let window = 1i64 << (15 + shape.carry_bits);
        for k in 0..6 {
            let value = |rng: &mut Prng| match k {
                0 => WORD.start,
                1 => WORD.end - 1,
                2 => 0,
                _ => i64::from(rng.range(-32_768, 32_767)) >> (2 * (k - 3)),
            };
            let z: Vec<i64> = (0..dim).map(|_| value(&mut rng)).collect();
            let sum = |f: fn(i64, i64) -> i64| z.iter().map(|v| f(v & 255, v >> 8)).sum::<i64>();
            let lines = [sum(|a, _| a * a), sum(|a, b| 2 * a * b), sum(|_, b| b * b)];
            let part = |line: usize| (eps >> (8 * line)) as i64;
            let last = 1i64 << (2 * (shape.digits - 8));
            let mut found = Vec::new();
            for (d0, d1) in (0..256i64).flat_map(|a| (0..256i64).map(move |b| (a, b))) {
                let c0 = halved(lines[0] + (part(0) & 255) - d0, 8);
                let c1 = halved(lines[1] + c0 + (part(1) & 255) - d1, 8);
                let d2 = centred(i128::from(lines[2] + c1 + part(2)));
                if (-window..window).contains(&c0) && (-window..window).contains(&c1) && (0..last).contains(&d2) {
                    found.push(d0 + (d1 << 8) + (d2 << 16));
                }
            }
            let s = z.iter().map(|v| v * v).sum::<i64>() + eps as i64;
            assert_eq!(found, [s], "{dim} channels, case {k}");
        }
    }
}

#[test]
fn an_element_of_an_rms_norm_has_exactly_one_witness() {
    let (index, recip) = reciprocal_table();
    let mut rng = Prng::new(28);
    for (top, width, limbs) in [(1i64 << 23, 384usize, 3usize), (1 << 15, 64, 2)] {
        let shape = NormShape::of(top.unsigned_abs().into(), width, limbs, 1 << 14);
        for sigma in 0..=shape.sigma_max {
            let (p1, p2, half) = shift_powers(sigma);
            // |z| < sqrt(65280) 2^sigma, as the sum of squares of its row says.
            let reach = ((255i64 << sigma) - 1).min(top);
            let z = (rng.next_u64() % (2 * reach as u64 + 1)) as i64 - reach;
            let least = (((z * z) >> (2 * sigma)) - i64::from(index[0])).max(0);
            let r = i64::from(recip[rng.range(least as i32, 65_279 - index[0]) as usize]);
            let mut found: Vec<(i64, i64)> = Vec::new();
            for xp in (0..p1).map(|rho| halved(z * p2 + half - rho, p1.trailing_zeros())).filter(|xp| WORD.contains(xp)) {
                let u = (0..1i64 << 14).map(|rest| halved(xp * r + (1 << 13) - rest, 14)).filter(|u| WORD.contains(u));
                found.extend(u.map(|u| (xp, u)));
            }
            let xp = (z * p2 + half).div_euclid(p1);
            assert_eq!(found, [(xp, (xp * r + (1 << 13)) >> 14)], "sigma {sigma} z {z}");
        }
    }
}

/// Whether `value` mod p has limbs of 13 bits, and how many.
fn gap_limbs(value: i64) -> Vec<(i64, i64)> {
    (0..1i64 << 13).map(|low| (low, halved(value - low, 13))).filter(|g| (0..1 << 13).contains(&g.1)).collect()
}

#[test]
fn a_gap_has_exactly_one_witness_if_it_is_not_negative() {
    let mut rng = Prng::new(29);
    for value in samples(&mut rng, (1 << 26) - 1, 40) {
        let found = gap_limbs(value);
        assert_eq!(found, if value < 0 { vec![] } else { vec![(value & 8191, value >> 13)] }, "{value}");
    }
    // The largest gap there is: the largest logit over a token that does not exist.
    assert_eq!(gap_limbs((255 << 15) + (1 << 24)).len(), 1);
    assert!(gap_limbs(1 << 26).is_empty());
}

#[test]
fn exactly_one_token_is_the_next() {
    let mut rng = Prng::new(30);
    for (real, padded, spread) in [(1usize, 2usize, 5), (21, 24, 255 << 15), (21, 32, 2), (16, 16, 0), (7, 8, 1)] {
        for _ in 0..20 {
            let mut logits: Vec<i64> = (0..real).map(|_| i64::from(rng.range(-spread, spread))).collect();
            logits.resize(padded, -(1 << 24));
            // The gap at the token itself is zero, and that fixes `best` mod p inside its window.
            let admitted = |token: usize| {
                let best = logits[token];
                let gap = |j: usize| best - logits[j] - i64::from(j < token);
                (-(1i64 << 24)..1 << 24).contains(&best) && (0..padded).all(|j| (0..1 << 26).contains(&gap(j).rem_euclid(P)))
            };
            let found: Vec<usize> = (0..padded).filter(|&token| admitted(token)).collect();
            let max = logits.iter().max();
            assert_eq!(found, [logits.iter().position(|v| Some(v) == max).unwrap()], "{logits:?}");
            assert!(found[0] < real);
        }
    }
}

#[test]
fn a_capped_score_has_exactly_one_witness() {
    let mut rng = Prng::new(31);
    // Any table below 2^20 in magnitude: this one has both ends and is not monotonic.
    let cap = |t: i64| ((t * 40_503) % (1 << 20)).clamp(-(1 << 20) + 1, (1 << 20) - 1);
    for e in [1u8, 8, 13] {
        for score in samples(&mut rng, r1_bound(e), 5) {
            let key = cap(clip16((score + (1 << (e - 1))) >> e));
            for above in [0, 1, 65_535, 65_536, 2_000_000] {
                let lambda = key + above;
                let mut found = Vec::new();
                for (row, tau, t_hat) in r1(score, e) {
                    let rest = |hi: i64| (hi, centred(i128::from(lambda - cap(t_hat) - (hi << 16))));
                    let index = (0..1i64 << 14).map(rest).filter(|(_, i)| (0..1 << 16).contains(i));
                    found.extend(index.map(|(hi, i)| (row, tau, hi, i)));
                }
                assert_eq!(found.len(), 1, "e {e} score {score} above {above}: {found:?}");
                assert_eq!((found[0].2 << 16) + found[0].3, above, "e {e} score {score}");
            }
            // Below a key there is no index: none can be left out by a small Lambda.
            assert!((0..1i64 << 14).all(|hi| !(0..1 << 16).contains(&centred(i128::from(-1 - (hi << 16))))));
        }
    }
}
