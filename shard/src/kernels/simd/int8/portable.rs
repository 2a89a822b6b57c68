//! Plain Rust: centred coordinates below 2^30 times bytes stay below 2^37, summed in 64 bits.

use super::{Kernel, Lanes, Pack, centred, reduced};
use stwo::prover::backend::simd::m31::N_LANES;

/// Columns whose sums stay in the first-level cache.
const COLUMNS: usize = 512;
/// Rows added in one sweep over the sums.
const ROWS: usize = 4;

/// No special instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

/// `acc[k][col] += sum_i c[i][k]·rows[i][col]`.
fn add_rows(acc: &mut [[i64; COLUMNS]; 4], rows: [&[i8]; ROWS], c: [[i32; 4]; ROWS]) {
    for (k, acc) in acc.iter_mut().enumerate() {
        let c = c.map(|c| i64::from(c[k]));
        let columns = rows[0].iter().zip(rows[1]).zip(rows[2]).zip(rows[3]);
        for (a, (((&w0, &w1), &w2), &w3)) in acc.iter_mut().zip(columns) {
            let low = i64::from(w0) * c[0] + i64::from(w1) * c[1];
            *a += low + i64::from(w2) * c[2] + i64::from(w3) * c[3];
        }
    }
}

impl Kernel for Portable {
    type Rows = [i32; 4];
    type Positions = [[i32; N_LANES]; 4];
    type Scratch = ();

    fn rows(self, coefficients: &[[u32; 4]]) -> Vec<Self::Rows> {
        coefficients.iter().map(|c| c.map(centred)).collect()
    }

    fn combine(self, (): &mut (), rows: &[&[i8]], digits: &[Self::Rows], out: &mut [Pack]) {
        let columns = rows.first().map_or(0, |r| r.len());
        for (first, out) in (0..columns).step_by(COLUMNS).zip(out.chunks_mut(COLUMNS / N_LANES)) {
            let columns = first..columns.min(first + COLUMNS);
            let mut acc = [[0i64; COLUMNS]; 4];
            let nothing = [0i8; COLUMNS];
            for (group, c) in rows.chunks(ROWS).zip(digits.chunks(ROWS)) {
                let rows = std::array::from_fn(|i| group.get(i).map_or(&nothing[..], |r| &r[columns.clone()]));
                add_rows(&mut acc, rows, std::array::from_fn(|i| c.get(i).copied().unwrap_or_default()));
            }
            for (i, out) in out.iter_mut().enumerate() {
                for (out, acc) in out.iter_mut().zip(&acc) {
                    *out = std::array::from_fn(|lane| reduced(acc[i * N_LANES + lane]));
                }
            }
        }
    }

    fn positions(self, e: &[Pack]) -> Vec<Self::Positions> {
        e.iter().map(|pack| pack.map(|lanes: Lanes| lanes.map(centred))).collect()
    }

    fn partials(self, slots: &[&[i8]], digits: &[Self::Positions], out: &mut [[i64; 4]]) {
        for (slot, out) in slots.iter().zip(out) {
            let mut sums = [[0i64; N_LANES]; 4];
            for (values, e) in slot.chunks(N_LANES).zip(digits) {
                for (sums, e) in sums.iter_mut().zip(e) {
                    for ((s, &w), &e) in sums.iter_mut().zip(values).zip(e) {
                        *s += i64::from(w) * i64::from(e);
                    }
                }
            }
            for (out, sums) in out.iter_mut().zip(sums) {
                *out += sums.iter().sum::<i64>();
            }
        }
    }
}
