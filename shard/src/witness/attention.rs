//! Score, probability and row columns of one block of heads: rows are (query, head, key).

use super::Filler;
use obelysk_protocol::circuit::attention::ExpTables;
use obelysk_protocol::field::{M31, signed};
use rayon::prelude::*;

/// One block of heads.
pub(super) struct Scores<'a> {
    /// What the exponential's index is taken from, `[key][head][query]`.
    pub(super) values: &'a [i32],
    /// Lambda, `[head][query]`.
    pub(super) lambda: &'a [i32],
    /// g.
    pub(super) shift: u32,
}

/// `[head][key][query]` of each block of `heads` as `[key][head][query]`: the order of score rows.
pub(super) fn by_key(values: &[i32], heads: usize, rows: usize) -> Vec<i32> {
    let block = |values: &[i32]| {
        let line = |k: usize| (k % heads * rows + k / heads) * rows;
        (0..heads * rows).flat_map(|k| values[line(k)..line(k) + rows].to_vec()).collect::<Vec<_>>()
    };
    values.par_chunks(heads * rows * rows).flat_map_iter(block).collect()
}

impl Scores<'_> {
    /// Fills `{score}.*` and `{softmax}.*`. What is visible is the circuit's own list.
    pub(super) fn fill(&self, f: &mut Filler<'_>, score: &str, softmax: &str, tables: &ExpTables) {
        let rows = 1usize << f.c.token_log;
        let heads = self.lambda.len() / rows;
        let mut columns: [Vec<M31>; 5] = std::array::from_fn(|_| Vec::with_capacity(self.values.len()));
        let mut sums = vec![(0i64, 0i64); self.lambda.len()];
        for j in 0..rows {
            for h in 0..heads {
                for (i, &(first, end)) in f.c.visible.iter().enumerate() {
                    let value = i64::from(self.values[(j * heads + h) * rows + i]);
                    let lambda = i64::from(self.lambda[h * rows + i]);
                    let cell = if (first as usize..end as usize).contains(&j) {
                        cell(lambda, value, self.shift, tables)
                    } else {
                        // Masked: only the score equation binds idx and w, so the index is 0 and w takes the rest.
                        [0, 0, 0, (lambda << self.shift) - value, 0]
                    };
                    for (column, v) in columns.iter_mut().zip(cell) {
                        column.push(signed(v));
                    }
                    let sum = &mut sums[h * rows + i];
                    sum.0 += cell[1];
                    sum.1 += cell[2];
                }
            }
        }
        for (name, column) in ["idx", "p", "p_before", "w", "z"].iter().zip(columns) {
            f.put(&format!("{score}.{name}"), column);
        }
        f.set(&format!("{score}.lambda0"), self.lambda.iter().map(|&l| i64::from(l) & 0xffff));
        f.set(&format!("{score}.lambda1"), self.lambda.iter().map(|&l| i64::from(l) >> 16));
        for (name, value) in [("d", (|s| (1 << 18) - s.0) as fn(&(i64, i64)) -> i64), ("e", |s| s.1 - (1 << 18) - 1)] {
            f.set(&format!("{softmax}.{name}0"), sums.iter().map(|s| value(s) & 0xffff));
            f.set(&format!("{softmax}.{name}1"), sums.iter().map(|s| value(s) >> 16));
        }
    }
}

/// idx, p, p', w, z of one visible pair.
fn cell(lambda: i64, value: i64, g: u32, tables: &ExpTables) -> [i64; 5] {
    let (quotient, remainder) = (value >> g, value & ((1 << g) - 1));
    let index = lambda - quotient;
    let (idx, over) = (index & 0xffff, index >> 16);
    let w = (over << (16 + g)) - remainder;
    let at = |table: &[i32]| i64::from(table[idx as usize]);
    if over == 0 { [idx, at(&tables.at), at(&tables.before), w, 0] } else { [idx, 0, 0, w, 1] }
}
