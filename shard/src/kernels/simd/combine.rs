//! Row combinations and per-slot inner products of base rows.

use super::SimdExt;
use obelysk_protocol::field::{M31, QM31, ZERO, eq_vector};
use rayon::prelude::*;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

/// Columns one task handles: their sums stay in the first-level cache.
const COLUMNS: usize = 512;

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

/// `<slot, eq(point)>` of every slot of base rows, slots a multiple of 16 long.
pub(super) fn partials(rows: &[M31], point: &[QM31]) -> Vec<QM31> {
    let e = SimdExt::from_host(&eq_vector(point));
    let slot = |values: &[M31]| {
        let zero = PackedQM31::broadcast(ZERO);
        let products = values.chunks_exact(N_LANES).zip(&e.packs);
        products.fold(zero, |acc, (v, &e)| acc + e * load(v)).pointwise_sum()
    };
    rows.par_chunks_exact(1 << point.len()).map(slot).collect()
}
