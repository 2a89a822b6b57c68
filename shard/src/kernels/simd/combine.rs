//! Row combinations and per-slot inner products, for base rows and for int8 rows.
//!
//! Int8 rows never become field elements: coordinates of the challenge vector are centred to `|c| < 2^30`, products with a
//! byte stay below `2^37`, and 64-bit sums are reduced once at the end. `2^26` terms fit.

use super::SimdExt;
use obelysk_protocol::field::{M31, P, QM31, ZERO, eq_vector, signed};
use rayon::prelude::*;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

/// Columns one task handles: four 64-bit accumulators per column stay in the first-level cache.
const COLUMNS: usize = 512;
/// Rows added in one sweep over the accumulators.
const ROWS: usize = 4;

fn load(v: &[M31]) -> PackedM31 {
    let mut lanes = [M31::from_u32_unchecked(0); N_LANES];
    lanes.copy_from_slice(v);
    PackedM31::from_array(lanes)
}

/// `sum_row c[row]·rows[row]`, `2^h` a multiple of 16.
pub(super) fn base(rows: &[M31], h: u32, coefficients: &[QM31]) -> SimdExt {
    let n = 1usize << h;
    let width = COLUMNS.min(n);
    let mut out = SimdExt::zeros(n);
    out.packs.par_chunks_mut(width / N_LANES).enumerate().for_each(|(chunk, acc)| {
        for (row, &c) in rows.chunks_exact(n).zip(coefficients) {
            let c = PackedQM31::broadcast(c);
            let columns = &row[chunk * width..(chunk + 1) * width];
            for (a, v) in acc.iter_mut().zip(columns.chunks_exact(N_LANES)) {
                *a += c * load(v);
            }
        }
    });
    out
}

/// Coordinates as integers in `(-2^30, 2^30]`.
fn centred(v: QM31) -> [i64; 4] {
    v.to_m31_array().map(|c| {
        let v = i64::from(c.0);
        if v > i64::from(P / 2) { v - i64::from(P) } else { v }
    })
}

fn reduced(sums: [i64; 4]) -> QM31 {
    QM31::from_m31_array(sums.map(signed))
}

/// `acc[k][col] += sum_i c[i][k]·rows[i][col]` for [`ROWS`] rows.
fn add_rows(acc: &mut [[i64; COLUMNS]; 4], rows: [&[i8]; ROWS], c: [[i64; 4]; ROWS]) {
    for (k, acc) in acc.iter_mut().enumerate() {
        let c = c.map(|c| c[k]);
        let columns = rows[0].iter().zip(rows[1]).zip(rows[2]).zip(rows[3]);
        for (a, (((&w0, &w1), &w2), &w3)) in acc.iter_mut().zip(columns) {
            let low = i64::from(w0) * c[0] + i64::from(w1) * c[1];
            *a += low + i64::from(w2) * c[2] + i64::from(w3) * c[3];
        }
    }
}

/// `sum_row c[row]·rows[row]` for int8 rows of `n` columns.
pub(super) fn int8(rows: &[i8], n: usize, coefficients: &[QM31]) -> Vec<QM31> {
    let width = COLUMNS.min(n);
    let centred: Vec<[i64; 4]> = coefficients.iter().map(|&c| centred(c)).collect();
    let stacked: Vec<&[i8]> = rows.chunks_exact(n).take(coefficients.len()).collect();
    let mut out = vec![ZERO; n];
    out.par_chunks_mut(width).enumerate().for_each(|(chunk, out)| {
        let mut acc = [[0i64; COLUMNS]; 4];
        let nothing = [0i8; COLUMNS];
        for (group, c) in stacked.chunks(ROWS).zip(centred.chunks(ROWS)) {
            let columns = chunk * width..chunk * width + out.len();
            let rows = std::array::from_fn(|i| group.get(i).map_or(&nothing[..out.len()], |r| &r[columns.clone()]));
            add_rows(&mut acc, rows, std::array::from_fn(|i| c.get(i).copied().unwrap_or_default()));
        }
        for (i, v) in out.iter_mut().enumerate() {
            *v = reduced([acc[0][i], acc[1][i], acc[2][i], acc[3][i]]);
        }
    });
    out
}

/// `<slot, eq(point)>` of every slot of int8 rows.
pub(super) fn partials_int8(rows: &[i8], point: &[QM31]) -> Vec<QM31> {
    let mut e: [Vec<i32>; 4] = Default::default();
    for v in eq_vector(point) {
        for (coordinate, c) in e.iter_mut().zip(centred(v)) {
            coordinate.push(c as i32);
        }
    }
    let slot = |values: &[i8]| {
        let mut sums = [0i64; 4];
        for (first, values) in values.chunks(COLUMNS).enumerate().map(|(i, v)| (i * COLUMNS, v)) {
            for (sum, e) in sums.iter_mut().zip(&e) {
                *sum += values.iter().zip(&e[first..]).map(|(&w, &e)| i64::from(w) * i64::from(e)).sum::<i64>();
            }
        }
        reduced(sums)
    };
    rows.par_chunks_exact(1 << point.len()).map(slot).collect()
}

/// `<slot, eq(point)>` of every slot of base rows, slots a multiple of 16 long.
pub(super) fn partials_base(rows: &[M31], point: &[QM31]) -> Vec<QM31> {
    let e = SimdExt::from_host(&eq_vector(point));
    let slot = |values: &[M31]| {
        let zero = PackedQM31::broadcast(ZERO);
        let products = values.chunks_exact(N_LANES).zip(&e.packs);
        products.fold(zero, |acc, (v, &e)| acc + e * load(v)).pointwise_sum()
    };
    rows.par_chunks_exact(1 << point.len()).map(slot).collect()
}
