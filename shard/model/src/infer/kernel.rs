//! Inner loops of the fast executor: i32 along the contiguous token axis, so that they vectorise, rows over threads.
//!
//! A checked model keeps every value within i32. Additions wrap instead of trapping, so that an unchecked model gives
//! wrong numbers and never a panic.

use crate::weights::Matrix;
use rayon::prelude::*;

/// Below so many columns a row of weights is read once per column; from there on columns share its values.
const NARROW: usize = 16;
/// Outputs of a narrow product per task.
const NARROW_TASK: usize = 32;

/// `out[n][t] = sum_k q[n][k] x[k][t]`.
pub fn accumulate(m: &Matrix, x: &[i16], t_pad: usize) -> Vec<i32> {
    if t_pad < NARROW {
        return accumulate_narrow(m, x, t_pad);
    }
    let mut out = vec![0i32; m.outputs * t_pad];
    // Two rows a task: each loaded input value is used twice.
    out.par_chunks_mut(2 * t_pad).enumerate().for_each(|(pair, rows)| {
        let (first, second) = rows.split_at_mut(t_pad);
        if second.is_empty() {
            accumulate_row(m.row(2 * pair), x, first);
        } else {
            accumulate_pair(m.row(2 * pair), m.row(2 * pair + 1), x, first, second);
        }
    });
    out
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

fn accumulate_row(q: &[i8], x: &[i16], out: &mut [i32]) {
    for (column, &q) in x.chunks_exact(out.len()).zip(q) {
        for (o, &x) in out.iter_mut().zip(column) {
            *o = o.wrapping_add(i32::from(q) * i32::from(x));
        }
    }
}

fn accumulate_pair(qa: &[i8], qb: &[i8], x: &[i16], a: &mut [i32], b: &mut [i32]) {
    let t_pad = a.len();
    let columns = x.chunks_exact(4 * t_pad);
    let tail = columns.remainder();
    let split = qa.len() / 4 * 4;
    for ((columns, wa), wb) in columns.zip(qa.chunks_exact(4)).zip(qb.chunks_exact(4)) {
        let w = |w: &[i8]| [i32::from(w[0]), i32::from(w[1]), i32::from(w[2]), i32::from(w[3])];
        let (wa, wb) = (w(wa), w(wb));
        let (x01, x23) = columns.split_at(2 * t_pad);
        let ((x0, x1), (x2, x3)) = (x01.split_at(t_pad), x23.split_at(t_pad));
        let inputs = x0.iter().zip(x1).zip(x2.iter().zip(x3));
        for ((a, b), ((&x0, &x1), (&x2, &x3))) in a.iter_mut().zip(b.iter_mut()).zip(inputs) {
            let [x0, x1, x2, x3] = [i32::from(x0), i32::from(x1), i32::from(x2), i32::from(x3)];
            let sum = |w: [i32; 4]| (w[0] * x0).wrapping_add(w[1] * x1).wrapping_add(w[2] * x2).wrapping_add(w[3] * x3);
            *a = a.wrapping_add(sum(wa));
            *b = b.wrapping_add(sum(wb));
        }
    }
    accumulate_row(&qa[split..], tail, a);
    accumulate_row(&qb[split..], tail, b);
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
