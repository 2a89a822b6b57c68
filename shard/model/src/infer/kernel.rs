//! Inner loops of the fast executor: i32 along the contiguous token axis, so that they vectorise, rows over threads.
//!
//! A checked model keeps every value within i32. Additions wrap instead of trapping, so that an unchecked model gives
//! wrong numbers and never a panic.

use crate::weights::Matrix;
use rayon::prelude::*;

/// Outputs per task: their weights are widened once and stay in the second-level cache.
const ROWS: usize = 16;
/// Columns that all rows of a task meet before the next ones: they stay in the first-level cache.
const COLUMNS: usize = 4;
/// Columns transposed per task: half a cache line of each input's values.
const TRANSPOSED: usize = 16;

/// `out[n][t] = sum_k q[n][k] x[k][t]`.
///
/// Dot products of contiguous 16-bit values: the processor multiplies two pairs of them and adds in one instruction.
pub fn accumulate(m: &Matrix, x: &[i16], t_pad: usize) -> Vec<i32> {
    let inputs = m.inputs.max(1);
    let columns = transposed(x, t_pad, inputs);
    let mut out = vec![0i32; m.outputs * t_pad];
    let tasks = out.par_chunks_mut(ROWS * t_pad).zip(m.data.par_chunks(ROWS * inputs));
    tasks.for_each_init(Vec::new, |wide, (rows, weights)| {
        wide.clear();
        wide.extend(weights.iter().map(|&q| i16::from(q)));
        for (block, columns) in columns.chunks(COLUMNS * inputs).enumerate() {
            for (row, weights) in rows.chunks_exact_mut(t_pad).zip(wide.chunks_exact(inputs)) {
                for (sum, column) in row[block * COLUMNS..].iter_mut().zip(columns.chunks_exact(inputs)) {
                    *sum = dot(weights, column);
                }
            }
        }
    });
    out
}

/// Columns of `x[k][t]`, one after the other.
fn transposed(x: &[i16], t_pad: usize, inputs: usize) -> Vec<i16> {
    let mut out = vec![0i16; x.len()];
    out.par_chunks_mut(TRANSPOSED * inputs).enumerate().for_each(|(task, columns)| {
        for (k, line) in x.chunks_exact(t_pad).enumerate() {
            for (column, &v) in columns.chunks_exact_mut(inputs).zip(&line[task * TRANSPOSED..]) {
                column[k] = v;
            }
        }
    });
    out
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
