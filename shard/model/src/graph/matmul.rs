//! Products of f32 weights with a matrix of `channels x tokens`, blocked for registers and cache, on all threads.
//!
//! Partial sums over [`BLOCK`] inputs stay in registers; the order of summation depends on shapes only, never on threads.

use rayon::prelude::*;

/// Tokens of one register tile: two vectors of the narrowest machines.
const TILE: usize = 8;
/// Weight rows of one register tile: with [`TILE`] half of sixteen vector registers, the rest for operands.
const ROWS: usize = 4;
/// Inputs of one pass: a panel of 8 KiB stays in the first cache.
const BLOCK: usize = 256;
/// Weight rows of one task: enough work to be worth handing out, few enough that every thread gets some.
const TASK: usize = 32;

/// A matrix `inputs x tokens`, rearranged in panels of [`TILE`] tokens.
pub(super) struct Packed {
    inputs: usize,
    tokens: usize,
    panels: Vec<f32>,
}

impl Packed {
    /// From `inputs x tokens`, token fastest.
    pub(super) fn new(x: &[f32], tokens: usize) -> Self {
        let inputs = x.len() / tokens;
        let mut panels = vec![0f32; tokens.div_ceil(TILE) * TILE * inputs];
        panels.par_chunks_exact_mut(inputs * TILE).enumerate().for_each(|(tile, panel)| {
            let from = tile * TILE;
            let n = TILE.min(tokens - from);
            for (out, row) in panel.chunks_exact_mut(TILE).zip(x.chunks_exact(tokens)) {
                out[..n].copy_from_slice(&row[from..from + n]);
            }
        });
        Self { inputs, tokens, panels }
    }

    /// `weight x + bias`, `outputs x tokens`; `weight` is `outputs x inputs`.
    pub(super) fn product(&self, weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let outputs = weight.len() / self.inputs;
        let mut out = vec![0f32; outputs * self.tokens];
        let tasks = out.par_chunks_mut(TASK * self.tokens).zip(weight.par_chunks(TASK * self.inputs));
        tasks.for_each(|(out, weight)| self.task(weight, out));
        if let Some(bias) = bias {
            for (row, b) in out.chunks_exact_mut(self.tokens).zip(bias) {
                row.iter_mut().for_each(|v| *v += b);
            }
        }
        out
    }

    fn task(&self, weight: &[f32], out: &mut [f32]) {
        for from in (0..self.inputs).step_by(BLOCK) {
            let to = self.inputs.min(from + BLOCK);
            for (tile, panel) in self.panels.chunks_exact(self.inputs * TILE).enumerate() {
                let panel = &panel[from * TILE..to * TILE];
                let groups = weight.chunks(ROWS * self.inputs).zip(out.chunks_mut(ROWS * self.tokens));
                for (weight, out) in groups {
                    let row = |r: usize| &weight[r * self.inputs + from..r * self.inputs + to];
                    if weight.len() == ROWS * self.inputs {
                        self.add(tile, &dots::<ROWS>(std::array::from_fn(row), panel), out);
                        continue;
                    }
                    for (r, out) in out.chunks_mut(self.tokens).enumerate() {
                        self.add(tile, &dots::<1>([row(r)], panel), out);
                    }
                }
            }
        }
    }

    fn add(&self, tile: usize, sums: &[[f32; TILE]], out: &mut [f32]) {
        let from = tile * TILE;
        for (sums, row) in sums.iter().zip(out.chunks_exact_mut(self.tokens)) {
            let to = self.tokens.min(from + TILE);
            row[from..to].iter_mut().zip(sums).for_each(|(o, s)| *o += s);
        }
    }
}

/// Products of `R` rows with each token of a panel.
fn dots<const R: usize>(rows: [&[f32]; R], panel: &[f32]) -> [[f32; TILE]; R] {
    let mut sums = [[0f32; TILE]; R];
    let rows = rows.map(|row| &row[..panel.len() / TILE]);
    for (k, x) in panel.chunks_exact(TILE).enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let w = row[k];
            for (s, x) in sums.iter_mut().zip(x) {
                *s += w * x;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy::Prng;

    #[test]
    fn products_agree_with_the_definition_at_ragged_shapes() {
        let mut rng = Prng::new(3);
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.range(-1000, 1000) as f32 / 500.0).collect() };
        for (outputs, inputs, tokens) in [(1, 1, 1), (7, 300, 9), (33, 257, 8), (70, 24, 17), (4, 512, 1)] {
            let (w, x, b) = (random(outputs * inputs), random(inputs * tokens), random(outputs));
            let fast = Packed::new(&x, tokens).product(&w, Some(&b));
            for n in 0..outputs {
                for t in 0..tokens {
                    let exact: f64 = (0..inputs).map(|k| f64::from(w[n * inputs + k]) * f64::from(x[k * tokens + t])).sum();
                    let error = f64::from(fast[n * tokens + t]) - exact - f64::from(b[n]);
                    assert!(error.abs() < 1e-3, "{outputs} {inputs} {tokens}: {error} at {n}, {t}");
                }
            }
        }
    }
}
