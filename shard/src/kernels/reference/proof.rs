//! The obvious implementation of [`ProofKernels`]: one thread, one element at a time. What it computes is the definition.

use super::Reference;
use crate::kernels::proof::{Evals, ProofKernels};
use crate::kernels::rows::{mask_column, param_column, place_bits, public_column};
use obelysk_protocol::circuit::expr::{Expr, Source};
use obelysk_protocol::circuit::segment::{Circuit, Coord, Eval, LeafKind, MatrixShape};
use obelysk_protocol::field::{M31, ONE, QM31, ZERO, eq_vector, fold, inner, signed, signed_ext};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::points::Points;
use obelysk_protocol::verifier::product::powers;

/// Monomials over full-length extension vectors.
pub struct Chip {
    sources: Vec<Vec<QM31>>,
    terms: Vec<(QM31, Vec<usize>)>,
}

/// A layer in its sumcheck.
pub struct Layer {
    parts: [Vec<QM31>; 4],
    rest: Vec<QM31>,
    mu: QM31,
}

fn source_rows(c: &Circuit, s: Source, n: usize, columns: &[Vec<M31>]) -> Vec<M31> {
    match s {
        Source::Col(id) => {
            let col = &columns[id as usize];
            (0..1usize << n).map(|i| col[i % col.len()]).collect()
        }
        Source::Param(id) => param_column(c, id, n),
        Source::Public(id) => public_column(c, id, n),
        Source::Mask => mask_column(c),
    }
}

fn expr_rows(c: &Circuit, e: &Expr, n: usize, columns: &[Vec<M31>]) -> Vec<M31> {
    let mut out = vec![signed(0); 1 << n];
    for t in e.terms() {
        let rows: Vec<Vec<M31>> = t.factors.iter().map(|&s| source_rows(c, s, n, columns)).collect();
        let k = signed(t.coef);
        for (i, o) in out.iter_mut().enumerate() {
            *o += rows.iter().fold(k, |acc, r| acc * r[i]);
        }
    }
    out
}

fn at(pair: &[QM31], x: i64) -> QM31 {
    pair[0] + (pair[1] - pair[0]) * signed_ext(x)
}

impl ProofKernels for Reference {
    type Base = Vec<M31>;
    type Ext = Vec<QM31>;
    type Fractions = (Vec<QM31>, Vec<QM31>);
    type Layer = Layer;
    type Chip = Chip;

    fn column(&self, values: &[M31]) -> Vec<M31> {
        values.to_vec()
    }

    fn vector(&self, values: &[QM31]) -> Vec<QM31> {
        values.to_vec()
    }

    fn len(&self, v: &Vec<QM31>) -> usize {
        v.len()
    }

    fn first(&self, v: &Vec<QM31>) -> QM31 {
        v[0]
    }

    fn eq(&self, point: &[QM31]) -> Vec<QM31> {
        eq_vector(point)
    }

    fn drop_low(&self, v: &Vec<QM31>) -> Vec<QM31> {
        v.chunks_exact(2).map(|p| p[0] + p[1]).collect()
    }

    fn fold(&self, v: &Vec<QM31>, r: QM31) -> Vec<QM31> {
        fold(v, r)
    }

    fn evaluate(&self, column: &Vec<M31>, eq: &Vec<QM31>) -> QM31 {
        column.iter().zip(eq).fold(ZERO, |acc, (&c, &e)| acc + e * c)
    }

    fn combine(&self, n: usize, terms: &[(&Vec<M31>, QM31)]) -> Vec<QM31> {
        (0..1usize << n).map(|i| terms.iter().fold(ZERO, |acc, (col, w)| acc + *w * col[i])).collect()
    }

    fn linear_round(&self, rest: &Vec<QM31>, l: &Vec<QM31>) -> [QM31; 2] {
        [0, 1].map(|x| l.chunks_exact(2).zip(rest).fold(ZERO, |acc, (p, &e)| acc + e * p[x]))
    }

    fn product_round(&self, factors: &[&Vec<QM31>]) -> Evals {
        let half = factors.first().map_or(0, |f| f.len() / 2);
        [0, 1, 2, 3]
            .map(|x| (0..half).fold(ZERO, |acc, i| acc + factors.iter().fold(ONE, |p, f| p * at(&f[2 * i..2 * i + 2], x))))
    }

    fn leaves(&self, c: &Circuit, columns: &[Vec<M31>], alpha: QM31, beta: QM31) -> Self::Fractions {
        let size = 1usize << c.tree_log();
        let (mut num, mut den) = (vec![ZERO; size], vec![ONE; size]);
        let alphas = powers(alpha, 1 + c.tuple_len());
        for leaf in c.leaves() {
            let n = leaf.log_size;
            let (tag, rows, numerators) = match leaf.kind {
                LeafKind::Lookup(i) => {
                    let l = &c.lookups[i];
                    let rows: Vec<Vec<M31>> = l.inputs.iter().map(|e| expr_rows(c, e, n, columns)).collect();
                    let ones = if l.masked { mask_column(c) } else { vec![signed(1); 1 << n] };
                    (c.tables[l.table].tag, rows, ones)
                }
                LeafKind::Table(i) => {
                    let t = &c.tables[i];
                    let minus = columns[t.multiplicity as usize].iter().map(|&m| -m).collect();
                    (t.tag, t.materialise(), minus)
                }
            };
            for i in 0..1usize << n {
                let tuple = rows.iter().zip(&alphas[1..]).fold(signed_ext(i64::from(tag)), |acc, (r, &a)| acc + a * r[i]);
                num[leaf.offset + i] = QM31::from(numerators[i]);
                den[leaf.offset + i] = beta - tuple;
            }
        }
        (num, den)
    }

    fn next_layer(&self, (n, d): &Self::Fractions) -> Self::Fractions {
        let add = |i: usize| (n[2 * i] * d[2 * i + 1] + n[2 * i + 1] * d[2 * i], d[2 * i] * d[2 * i + 1]);
        (0..n.len() / 2).map(add).unzip()
    }

    fn children(&self, (n, d): &Self::Fractions) -> [QM31; 4] {
        [n[0], n[1], d[0], d[1]]
    }

    fn gkr_start(&self, (n, d): Self::Fractions, point: &[QM31], mu: QM31) -> Layer {
        let part = |v: &[QM31], odd: usize| v.iter().skip(odd).step_by(2).copied().collect::<Vec<_>>();
        Layer { parts: [part(&n, 0), part(&n, 1), part(&d, 0), part(&d, 1)], rest: eq_vector(point), mu }
    }

    fn gkr_round(&self, layer: &mut Layer, bind: Option<QM31>) -> [QM31; 2] {
        if let Some(r) = bind {
            layer.parts.iter_mut().for_each(|p| *p = fold(p, r));
        }
        layer.rest = self.drop_low(&layer.rest);
        [0, 2].map(|x| {
            layer.rest.iter().enumerate().fold(ZERO, |acc, (i, &e)| {
                let [n0, n1, d0, d1] = [0, 1, 2, 3].map(|k: usize| at(&layer.parts[k][2 * i..2 * i + 2], x));
                acc + e * (n0 * d1 + n1 * d0 + layer.mu * d0 * d1)
            })
        })
    }

    fn gkr_end(&self, layer: Layer, bind: QM31) -> [QM31; 4] {
        layer.parts.map(|p| fold(&p, bind)[0])
    }

    fn claim_vector(&self, eval: &Eval, columns: &[Vec<M31>], points: &Points, vars: usize) -> Result<Vec<QM31>, VerifyError> {
        let mut out = vec![ZERO; 1 << vars];
        let fixed: Vec<Coord> = eval.lo.iter().filter(|c| !matches!(c, Coord::Kappa(_))).copied().collect();
        let weights = eq_vector(&points.resolve(&fixed)?);
        let hi_free = eval.hi.iter().all(|c| matches!(c, Coord::Kappa(_)));
        for (b, &col) in eval.blocks.iter().enumerate() {
            let scale = if hi_free { ONE } else { points.block_weight(eval, b)? };
            let base = if hi_free { place_bits(b, &eval.hi).0 } else { 0 };
            for (i, &v) in columns[col as usize].iter().enumerate() {
                let (free, rest) = place_bits(i, &eval.lo);
                out[base | free] += weights[rest] * v * scale;
            }
        }
        Ok(out)
    }

    fn fold_matrix(&self, shape: MatrixShape, data: &[i8], weight: &[QM31], vars: usize) -> Vec<QM31> {
        let mut out = vec![ZERO; 1 << vars];
        for (row, &w) in data.chunks_exact(shape.inputs).zip(weight) {
            for (o, &v) in out.iter_mut().zip(row) {
                *o += w * signed(i64::from(v));
            }
        }
        out
    }

    fn fold_tiles(&self, shape: MatrixShape, data: &[i8], low: &[QM31]) -> Vec<QM31> {
        let vars = shape.inputs.next_power_of_two().trailing_zeros() as usize;
        let tile = |slab: &[i8]| self.fold_matrix(shape, slab, low, vars).into_iter().take(shape.inputs);
        data.chunks_exact(low.len() * shape.inputs).flat_map(|slab| tile(slab).collect::<Vec<_>>()).collect()
    }

    fn sum_tiles(&self, shape: MatrixShape, tiles: &Vec<QM31>, high: &[QM31], vars: usize) -> Vec<QM31> {
        let mut out = vec![ZERO; 1 << vars];
        for (tile, &w) in tiles.chunks_exact(shape.inputs).zip(high) {
            out.iter_mut().zip(tile).for_each(|(o, &v)| *o += w * v);
        }
        out
    }

    fn tile_values(&self, tiles: &Vec<QM31>, low: &[QM31]) -> Vec<QM31> {
        let eq = eq_vector(low);
        tiles.chunks_exact(eq.len()).map(|tile| inner(tile, &eq)).collect()
    }

    fn chip(&self, c: &Circuit, n: usize, terms: &[(QM31, Vec<Source>)], columns: &[Vec<M31>]) -> Chip {
        let mut all: Vec<Source> = terms.iter().flat_map(|t| t.1.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        let sources = all.iter().map(|&s| source_rows(c, s, n, columns).into_iter().map(QM31::from).collect()).collect();
        let index = |s: &Source| all.iter().position(|x| x == s).unwrap_or(0);
        let terms = terms.iter().map(|(w, f)| (*w, f.iter().map(index).collect())).collect();
        Chip { sources, terms }
    }

    fn chip_round(&self, chip: &Chip, rest: &Vec<QM31>) -> Evals {
        [0, 1, 2, 3].map(|x| {
            rest.iter().enumerate().fold(ZERO, |acc, (i, &e)| {
                let values: Vec<QM31> = chip.sources.iter().map(|s| at(&s[2 * i..2 * i + 2], x)).collect();
                let sum = chip.terms.iter().fold(ZERO, |a, (w, f)| a + f.iter().fold(*w, |p, &k| p * values[k]));
                acc + e * sum
            })
        })
    }

    fn chip_fold(&self, chip: &mut Chip, r: QM31) {
        for s in &mut chip.sources {
            *s = fold(s, r);
        }
    }

    fn chip_value(&self, chip: &Chip) -> QM31 {
        chip.terms.iter().fold(ZERO, |a, (w, f)| a + f.iter().fold(*w, |p, &k| p * chip.sources[k][0]))
    }
}
