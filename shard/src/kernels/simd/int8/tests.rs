//! Every kernel equals the reference tier, at edge sizes, at extremes and past the bounds of its sums.

use super::{Path, ROWS, centred, combine, partials, reduced, symbols};
use crate::kernels::reference::Reference;
use crate::kernels::{CodeShape, CommitKernels};
use crate::prover::tests::Rng;
use obelysk_protocol::field::{M31, P, QM31, signed};

fn bytes(rng: &mut Rng, n: usize) -> Vec<i8> {
    (0..n).map(|_| rng.next() as i8).collect()
}

fn ext(c: u32) -> QM31 {
    QM31::from_m31_array([M31::from_u32_unchecked(c); 4])
}

/// Sums of each coordinate of `coefficients` with column `col`, by wide integers.
fn column(rows: &[i8], n: usize, col: usize, c: &[QM31]) -> QM31 {
    let sum = |k: usize| rows.chunks_exact(n).zip(c).map(|(r, c)| i64::from(r[col]) * i64::from(c.to_m31_array()[k].0)).sum();
    QM31::from_m31_array([0, 1, 2, 3].map(sum).map(signed))
}

#[test]
fn combinations_equal_the_reference() {
    let mut rng = Rng(11);
    for path in Path::all() {
        for h in [0, 2, 3, 4, 5, 6, 7, 10, 11] {
            for rows in [0, 1, 2, 3, 4, 5, 63, 64, 65, 130] {
                let (weights, c) = (bytes(&mut rng, rows << h), rng.felts(rows));
                let expected = Reference.combine_int8(&weights, h, &c);
                assert_eq!(combine(path, &weights, 1 << h, &c).to_host(), expected, "{path:?} {h} {rows}");
            }
        }
    }
}

#[test]
fn widths_need_not_be_powers_of_two() {
    let mut rng = Rng(12);
    for path in Path::all() {
        for n in [1, 15, 17, 48, 63, 65, 384, 1000, 1025, 3072] {
            let (weights, c) = (bytes(&mut rng, 70 * n), rng.felts(70));
            let expected: Vec<QM31> = (0..n).map(|col| column(&weights, n, col, &c)).collect();
            assert_eq!(combine(path, &weights, n, &c).to_host(), expected, "{path:?} {n}");
            // Coefficients for fewer rows leave the rest out.
            let expected: Vec<QM31> = (0..n).map(|col| column(&weights, n, col, &c[..33])).collect();
            assert_eq!(combine(path, &weights, n, &c[..33]).to_host(), expected, "{path:?} {n}");
        }
    }
}

#[test]
fn partials_equal_the_reference() {
    let mut rng = Rng(13);
    for path in Path::all() {
        for vars in [0, 1, 3, 4, 5, 6, 7, 9, 12] {
            for slots in [0, 1, 2, 3, 4, 5, 17, 40] {
                let (weights, point) = (bytes(&mut rng, slots << vars), rng.felts(vars));
                let expected = Reference.partials_int8(&weights, &point);
                assert_eq!(partials(path, &weights, &point), expected, "{path:?} {vars} {slots}");
            }
        }
    }
}

#[test]
fn symbols_equal_those_of_encoded_rows() {
    let mut rng = Rng(15);
    for path in Path::all() {
        for (h, blowup_log, rows) in [(2, 1, 3), (3, 2, 1), (4, 1, 5), (5, 2, 17), (9, 3, 2), (11, 2, 20), (16, 1, 2), (17, 2, 3)]
        {
            let code = CodeShape { h, blowup_log };
            let weights = bytes(&mut rng, rows << h);
            let last = (1 << code.log_n()) - 1;
            for positions in [vec![], vec![0], vec![0, 1, last], vec![last, 2, 3, 5], vec![0, 1, 2, 4, 6, 7]] {
                let expected = Reference.symbols_int8(&weights, code, &positions);
                assert_eq!(symbols(path, &weights, code, &positions), expected, "{path:?} {code:?} {positions:?}");
            }
        }
    }
}

/// Coordinates at both ends and around the middle of the field, where centred digits are largest.
const EXTREMES: [u32; 7] = [0, 1, P - 1, P / 2, P / 2 + 1, 0x7f7f_7f7f, 0x0080_8080];

#[test]
fn extremes_beyond_every_bound_of_the_sums() {
    // More rows than one task, than 32 bits hold byte products of, and than AVX2 sums at a time.
    let (rows, n) = ((1 << 17) + 5, 2);
    assert!(rows > ROWS.max((1 << 31) / (255 * 127)));
    for path in Path::all() {
        for w in [-128, -127, 127] {
            let weights = vec![w; rows * n];
            for c in EXTREMES {
                let sum = signed(i64::from(w) * i64::from(c) * rows as i64 % i64::from(P));
                let expected = vec![QM31::from_m31_array([sum; 4]); n];
                assert_eq!(combine(path, &weights, n, &vec![ext(c); rows]).to_host(), expected, "{path:?} {w} {c}");
            }
        }
    }
}

#[test]
fn long_slots_beyond_every_bound_of_the_sums() {
    let mut rng = Rng(14);
    for path in Path::all() {
        for point in [rng.felts(17), vec![ext(P - 1); 17], vec![ext(0); 17], vec![ext(1); 17]] {
            let mut weights = vec![-128; 3 << 17];
            weights[1 << 17..2 << 17].fill(127);
            for (i, w) in weights[2 << 17..].iter_mut().enumerate() {
                *w = if i % 3 == 0 { -128 } else { 127 };
            }
            assert_eq!(partials(path, &weights, &point), Reference.partials_int8(&weights, &point), "{path:?}");
        }
    }
}

#[test]
fn extreme_positions() {
    // Not values of eq: the kernels are asked directly, at the most terms they are given.
    for path in Path::all() {
        for (w, c) in [-128i8, 127].into_iter().flat_map(|w| EXTREMES.map(|c| (w, c))) {
            let weights = vec![w; 2 * super::POSITIONS];
            let e = super::SimdExt::from_host(&vec![ext(c); super::POSITIONS]);
            let sum = signed(i64::from(w) * i64::from(c) * super::POSITIONS as i64);
            assert_eq!(super::products(path, &weights, &e), [QM31::from_m31_array([sum; 4]); 2], "{path:?} {w} {c}");
        }
    }
}

#[test]
fn reduction_is_canonical_at_its_bounds() {
    let limit = 1i64 << 50;
    for v in [0, 1, -1, i64::from(P), -i64::from(P), i64::from(P) - 1, limit, -limit, limit - 1, 1 - limit] {
        assert_eq!(reduced(v), signed(v).0, "{v}");
    }
    assert_eq!([0, P / 2, P / 2 + 1, P - 1, P].map(centred), [0, 0x3fff_ffff, -0x3fff_ffff, -1, 0]);
}

#[test]
fn every_processor_has_a_path() {
    let names: Vec<&str> = Path::all().into_iter().map(Path::name).collect();
    println!("{names:?}");
    assert_eq!(names.last(), Some(&"portable"));
}
