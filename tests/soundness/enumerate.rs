//! Exactly one witness: for sampled inputs every row of every table is tried and the equations are solved mod p.
//!
//! The equations are written down here again, from the integer semantics; a window that is too wide shows as a second witness.

use obelysk_model::toy::Prng;
use obelysk_protocol::circuit::exp_tables;
use obelysk_protocol::circuit::linear::{R1_LOG, r1_bound};
use obelysk_protocol::circuit::norm::{INDEX_BEGIN, INDEX_END, NormShape, reciprocal_table, shift_powers, sigma_table};
use obelysk_protocol::circuit::table::TableColumn;

const P: i64 = (1 << 31) - 1;

/// The representative in `(-p/2, p/2]`.
pub fn centred(v: i128) -> i64 {
    let v = v.rem_euclid(i128::from(P)) as i64;
    if v > P / 2 { v - P } else { v }
}

/// `2^-k` mod p.
pub fn inverse_power(k: u32) -> i128 {
    1i128 << ((31 - k % 31) % 31)
}

pub fn samples(rng: &mut Prng, bound: i64, n: usize) -> Vec<i64> {
    let mut out = vec![0, 1, -1, bound, -bound, bound - 1, 1 - bound];
    out.extend((0..n).map(|_| (rng.next_u64() % (2 * bound as u64 + 1)) as i64 - bound));
    out
}

/// Witnesses (row, tau, y) of the requantisation of `acc`.
fn r1_witnesses(acc: i64, e: u8, (m, b, k): (i64, i64, u32), window: (i64, i64)) -> Vec<(usize, i64, i64)> {
    let mut found = Vec::new();
    for row in 0..1usize << R1_LOG {
        let at = |c: TableColumn| c.value(row, R1_LOG);
        let (v, s, c) = (at(TableColumn::R1Value { e }), at(TableColumn::R1Saturated { e }), at(TableColumn::R1Clip { e }));
        let tau = centred(i128::from(acc + (1 << (e - 1)) - v) * inverse_power(e.into()));
        if !(-(1 << 15)..1 << 15).contains(&tau) {
            continue;
        }
        let scaled = ((1 - s) * tau + c) * m + b;
        // rem = scaled - 2^k y mod p in [0, 2^k): try every remainder and solve for y.
        for rem in 0..1i64 << k {
            let y = centred(i128::from(scaled - rem) * inverse_power(k));
            if (window.0..=window.1).contains(&y) {
                found.push((row, tau, y));
            }
        }
    }
    found
}

#[test]
fn requantisation_has_exactly_one_witness() {
    let mut rng = Prng::new(1);
    for (e, k) in [(4u8, 1u32), (6, 8), (8, 12), (12, 12), (12, 15)] {
        // m 2^15 + |b| stays inside the window's 2^(15 + k).
        let m = 255.min((1i64 << k) - 1).max(1);
        let b = ((1i64 << (15 + k)) - 1 - (m << 15)).min(1 << 20);
        for acc in samples(&mut rng, r1_bound(e), 6) {
            let found = r1_witnesses(acc, e, (m, b, k), (-(1 << 15), (1 << 15) - 1));
            let t_hat = ((acc + (1 << (e - 1))) >> e).clamp(-(1 << 15), (1 << 15) - 1);
            let expected = (t_hat * m + b) >> k;
            assert_eq!(found.len(), 1, "e {e} k {k} acc {acc}: {found:?}");
            assert_eq!(found[0].2, expected);
        }
    }
}

#[test]
fn a_requantisation_beyond_its_bound_has_a_false_witness() {
    // Why rows of weights are bounded at registration: a little above the bound an accumulator wraps and clips to the other end.
    let e = 8;
    let y = |acc: i64| r1_witnesses(acc, e, (1, 0, 1), (-(1 << 15), (1 << 15) - 1)).pop().map(|w| w.2);
    let clipped = Some(((1 << 15) - 1) >> 1);
    assert_eq!(y(r1_bound(e)), clipped);
    assert!((1..64).any(|i| y(r1_bound(e) + i * (1 << 18)) == Some(-(1 << 14))));
}

#[test]
fn the_mix_has_exactly_one_witness() {
    let mut rng = Prng::new(2);
    for acc in samples(&mut rng, 1 << 29, 200) {
        let y = |r: i64| centred(i128::from(acc + (1 << 13) - r) * inverse_power(14));
        let found: Vec<i64> = (0..1 << 14).map(y).filter(|y| (-(1 << 15)..1 << 15).contains(y)).collect();
        // At the very top of the bound the mix of a full row would be 2^15; v's window is half open, so it is not reached.
        let expected = (acc + (1 << 13)) >> 14;
        assert_eq!(found, if expected < 1 << 15 { vec![expected] } else { vec![] }, "acc {acc}");
    }
}

#[test]
fn a_residual_has_exactly_one_witness() {
    let mut rng = Prng::new(3);
    for w in 1..=6u32 {
        for rhs in samples(&mut rng, (254 << (w + 15)) - (1 << w) - 1, 60) {
            // x = z + mu: every value both windows admit together.
            let (lo, hi) = (-255 * (1 << 16) - (1 << 23), 254 * (1 << 16) + 65_535 + (1 << 23) - 1);
            let x = |rho: i64| centred(i128::from(rhs - rho) * inverse_power(w));
            let found: Vec<i64> = (0..1 << w).map(x).filter(|x| (lo..=hi).contains(x)).collect();
            assert_eq!(found, [rhs >> w], "w {w} rhs {rhs}");
        }
    }
}

#[test]
fn limbs_of_z_and_mu_have_exactly_one_witness() {
    let mut rng = Prng::new(4);
    for z in samples(&mut rng, 254 << 16, 12) {
        let mut found = 0;
        for z0 in 0..256i64 {
            for z1 in 0..256i64 {
                let top = centred(i128::from(z - z0 - (z1 << 8)) * inverse_power(16));
                found += usize::from((-255..255).contains(&top));
            }
        }
        assert_eq!(found, 1, "z {z}");
    }
    for mu in samples(&mut rng, (1 << 23) - 1, 30) {
        let top = |low: i64| centred(i128::from(mu - low) * inverse_power(16));
        assert_eq!((0..1 << 16).filter(|&l| (-128..128).contains(&top(l))).count(), 1, "mu {mu}");
    }
}

#[test]
fn a_norm_element_has_exactly_one_witness() {
    let (index, recip) = reciprocal_table();
    let mut rng = Prng::new(5);
    let shape = NormShape::new(384, 1 << 14);
    let (sigmas, rhos, _) = sigma_table(shape.sigma_max);
    for _ in 0..24 {
        let sigma = rng.range(0, shape.sigma_max as i32);
        let (p1, p2, half) = shift_powers(sigma as usize);
        // |z| < sqrt(65280) 2^sigma, as the sum of squares of its row says.
        let reach = ((255i64 << sigma) - 1).min(254 << 16);
        let z = (rng.next_u64() % (2 * reach as u64 - 1)) as i64 - reach + 1;
        // i is at least z^2 >> 2 sigma: S contains z^2.
        let least = ((z * z) >> (2 * sigma)).max(INDEX_BEGIN);
        let row = rng.range((least - INDEX_BEGIN) as i32, (INDEX_END - INDEX_BEGIN - 1) as i32) as usize;
        let r = i64::from(recip[row]);
        assert_eq!(i64::from(index[row]), INDEX_BEGIN + row as i64);
        let mut found: Vec<(i64, i64)> = Vec::new();
        for (_, &rho) in sigmas.iter().zip(&rhos).filter(|(s, _)| **s == sigma) {
            let xp = centred(i128::from(z * p2 + half - i64::from(rho)) * inverse_power(p1.trailing_zeros()));
            if !(-(1 << 15)..1 << 15).contains(&xp) {
                continue;
            }
            for rem in 0..1i64 << 14 {
                let u = centred(i128::from(xp * r + (1 << 13) - rem) * inverse_power(14));
                if (-(1 << 15)..1 << 15).contains(&u) && !found.contains(&(xp, u)) {
                    found.push((xp, u));
                }
            }
        }
        let xp = (z * p2 + half).div_euclid(p1);
        assert_eq!(found, [(xp, (xp * r + (1 << 13)) >> 14)], "sigma {sigma} z {z}");
    }
}

#[test]
fn a_mean_has_exactly_one_witness() {
    // For limb sums of a row, over every mu near the true one and every (val, k0, k1) of their windows.
    let mut rng = Prng::new(6);
    for d in [12i64, 40, 384] {
        let carry = 1i64 << ((d as u64).next_power_of_two().trailing_zeros() + 1);
        for _ in 0..6 {
            let x: Vec<i64> = (0..d).map(|_| i64::from(rng.range(-(127 << 16), 127 << 16))).collect();
            let mut found = Vec::new();
            let true_mu = (x.iter().sum::<i64>() + d / 2).div_euclid(d);
            for mu in true_mu - 40..=true_mu + 40 {
                let sum = |f: fn(i64) -> i64| x.iter().map(|v| f(v - mu)).sum::<i64>();
                let (s0, s1, s2) = (sum(|z| z & 255), sum(|z| z >> 8 & 255), sum(|z| z >> 16));
                for k1 in -carry..carry {
                    let k0 = centred(i128::from(s1) - (i128::from(k1) << 8));
                    let val = centred(i128::from(s0 + d / 2) + (i128::from(k0) << 8));
                    if centred(i128::from(s2 + k1)) == 0 && (-carry..carry).contains(&k0) && (0..d).contains(&val) {
                        found.push(mu);
                    }
                }
            }
            assert_eq!(found, [true_mu], "d {d}");
        }
    }
}

#[test]
fn sigma_and_index_have_exactly_one_witness() {
    let shape = NormShape::new(384, 1 << 14);
    let mut rng = Prng::new(7);
    let top = 384u64 << 48;
    let edges = [1 << 14, 65_279, 65_280, 65_280 << 2, (65_280 << 2) - 1, (65_280 << 20) - 1, top];
    for s in edges.into_iter().chain((0..300).map(|k| (rng.next_u64() % top) >> (k % 40)).map(|s| s.max(1 << 14))) {
        let admitted = |sigma: usize| {
            // Eight base-4 digits from sigma on, nothing above, in the table; and the least such sigma by a 18-bit excess.
            let window = (s >> (2 * sigma)) & 0xffff;
            let above = s >> (2 * sigma) >> 16;
            let excess = if sigma == 0 { 0 } else { (s >> (2 * sigma - 2)) as i64 - INDEX_END };
            above == 0 && (INDEX_BEGIN..INDEX_END).contains(&(window as i64)) && (0..1 << 18).contains(&excess)
        };
        assert_eq!((0..=shape.sigma_max).filter(|&k| admitted(k)).count(), 1, "S {s}");
    }
}

#[test]
fn a_score_has_exactly_one_witness() {
    // (w, z) over its whole table, idx from the equation mod p, for a given Lambda.
    let g = 7u32;
    let mut rng = Prng::new(8);
    let bound = (P - 1 - (3 << (16 + g))) / 4;
    for score in samples(&mut rng, bound, 30) {
        let floor = score >> g;
        for lambda in [floor, floor + 1, floor + 65_535, floor + 65_536, floor + 500_000, floor + (127 << 16)] {
            let mut found = Vec::new();
            for (hi, r) in (0..1i64 << 7).flat_map(|hi| (0..1i64 << g).map(move |r| (hi, r))) {
                let w = (hi << (16 + g)) - r;
                let idx = centred(i128::from((lambda << g) - w - score) * inverse_power(g));
                if (0..1 << 16).contains(&idx) {
                    found.push((idx, hi));
                }
            }
            let index = lambda - floor;
            assert_eq!(found, [(index & 0xffff, index >> 16)], "score {score} lambda {lambda}");
        }
        // Below a visible score there is no witness at all: no key may be left out by a small Lambda.
        let none = (0..1i64 << 7).flat_map(|hi| (0..1i64 << g).map(move |r| (hi << (16 + g)) - r)).any(|w| {
            let idx = centred(i128::from(((floor - 1) << g) - w - score) * inverse_power(g));
            (0..1 << 16).contains(&idx)
        });
        assert!(!none);
    }
}

#[test]
fn lambda_has_exactly_one_witness() {
    let e = exp_tables();
    let at = |i: i64| if (0..1 << 16).contains(&i) { i64::from(e.at[i as usize]) } else { 0 };
    let before = |i: i64| if (0..1 << 16).contains(&i) { i64::from(e.before[i as usize]) } else { 0 };
    let mut rng = Prng::new(9);
    for n in [1usize, 2, 3, 17, 512] {
        let spread = [0, 50, 20_000, 300_000][n % 4];
        let keys: Vec<i64> = (0..n).map(|_| i64::from(rng.range(-spread, spread))).collect();
        let max = keys.iter().copied().max().unwrap_or(0);
        let sums = |l: i64| keys.iter().fold((0, 0), |a, k| (a.0 + at(l - k), a.1 + before(l - k)));
        // Limb windows of 2^18 - P and P' - 2^18 - 1, as residues mod p.
        let fits = |v: i64, bits: u32| (0..1 << bits).contains(&v.rem_euclid(P));
        let admitted = |l: i64| {
            let (p, p1) = sums(l);
            fits((1 << 18) - p, 19) && fits(p1 - (1 << 18) - 1, 20)
        };
        let found: Vec<i64> = (max..max + 70_000).filter(|&l| admitted(l)).collect();
        assert_eq!(found.len(), 1, "{n} keys");
        assert!(sums(found[0]).0 <= 1 << 18 && sums(found[0]).1 > 1 << 18);
    }
}

#[test]
fn the_excess_before_lambda_always_fits_its_window() {
    // Totality: P' at the least Lambda is at most the mass one step earlier, far below 2^18 + 2^20 for 512 keys.
    let e = exp_tables();
    let n = 512i64;
    // All keys equal: the largest jump between neighbouring sums.
    let least = (0..1 << 16).find(|&i: &usize| n * i64::from(e.at[i]) <= 1 << 18).unwrap();
    let excess = n * i64::from(e.before[least]) - (1 << 18) - 1;
    assert!((0..1 << 20).contains(&excess), "{excess}");
}
