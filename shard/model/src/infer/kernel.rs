//! Inner loops of the fast executor: i32 along the contiguous token axis, so that they vectorise, rows over threads.
//!
//! A checked model keeps every value within i32. Additions wrap instead of trapping, so that an unchecked model gives
//! wrong numbers and never a panic.

use crate::weights::Matrix;
use rayon::prelude::*;

/// Below so many columns a row of weights is read once per column; from there on columns share its values.
const NARROW: usize = 16;
/// Columns whose sums are held in registers, and rows that share their values.
const LANES: usize = 32;
const ROWS: usize = 4;
/// Outputs of a narrow product per task.
const NARROW_TASK: usize = 32;

/// `out[n][t] = sum_k q[n][k] x[k][t]`.
pub fn accumulate(m: &Matrix, x: &[i16], t_pad: usize) -> Vec<i32> {
    if t_pad < NARROW {
        return accumulate_narrow(m, x, t_pad);
    }
    let mut out = vec![0i32; m.outputs * t_pad];
    out.par_chunks_mut(ROWS * t_pad).enumerate().for_each(|(task, rows)| {
        let first = task * ROWS;
        // Rows past the last one repeat it and are dropped.
        let weights = std::array::from_fn(|r| m.row((first + r).min(m.outputs - 1)));
        if t_pad < LANES {
            accumulate_block::<NARROW>(weights, x, rows, t_pad);
        } else {
            accumulate_block::<LANES>(weights, x, rows, t_pad);
        }
    });
    out
}

/// Rows of weights against all columns, at least `N`, that many at a time; their sums stay in registers.
fn accumulate_block<const N: usize>(weights: [&[i8]; ROWS], x: &[i16], out: &mut [i32], t_pad: usize) {
    // The last columns once more rather than fewer of them.
    for at in (0..t_pad).step_by(N).map(|at| at.min(t_pad - N)) {
        let mut sums = [[0i32; N]; ROWS];
        for (k, line) in x.chunks_exact(t_pad).enumerate().take(weights[0].len()) {
            let Some(line) = line[at..].first_chunk::<N>() else { continue };
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let w = i32::from(weights[k]);
                for (sum, &x) in sums.iter_mut().zip(line) {
                    *sum = sum.wrapping_add(w * i32::from(x));
                }
            }
        }
        for (row, sums) in out.chunks_exact_mut(t_pad).zip(&sums) {
            row[at..at + N].copy_from_slice(sums);
        }
    }
}

/// Few columns: one dot product of contiguous values each.
fn accumulate_narrow(m: &Matrix, x: &[i16], t_pad: usize) -> Vec<i32> {
    let mut columns = vec![0i16; x.len()];
    for (t, column) in columns.chunks_exact_mut(m.inputs.max(1)).enumerate() {
        for (v, x) in column.iter_mut().zip(x.chunks_exact(t_pad)) {
            *v = x[t];
        }
    }
    let mut out = vec![0i32; m.outputs * t_pad];
    out.par_chunks_mut(NARROW_TASK * t_pad).enumerate().for_each(|(task, rows)| {
        for (n, row) in rows.chunks_exact_mut(t_pad).enumerate() {
            let weights = m.row(task * NARROW_TASK + n);
            for (o, column) in row.iter_mut().zip(columns.chunks_exact(m.inputs.max(1))) {
                *o = dot_weights(weights, column);
            }
        }
    });
    out
}

fn dot_weights(q: &[i8], x: &[i16]) -> i32 {
    q.iter().zip(x).fold(0, |sum: i32, (&q, &x)| sum.wrapping_add(i32::from(q) * i32::from(x)))
}

/// `sum a b`.
pub fn dot(a: &[i16], b: &[i16]) -> i32 {
    a.iter().zip(b).fold(0, |sum: i32, (&a, &b)| sum.wrapping_add(i32::from(a) * i32::from(b)))
}

/// `out[t] += w * x[t]`.
pub fn add_scaled(out: &mut [i32], w: i32, x: &[i32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = o.wrapping_add(w.wrapping_mul(x));
    }
}

/// `clip16(floor((acc + 2^(e-1)) / 2^e))` over a row.
pub fn clip(acc: &[i32], e: u8) -> impl Iterator<Item = i32> {
    let half = 1i32 << (e - 1);
    acc.iter().map(move |&a| (a.wrapping_add(half) >> e).clamp(-32_768, 32_767))
}
