//! [`ProofKernels`] on packed lanes. Vectors shorter than two packs take the reference path.

use super::chip::Chip;
use super::fractions::Fractions;
use super::gkr::{Layer, drop_low, eq};
use super::leaves;
use super::{Simd, SimdExt, ext, int8};
use crate::kernels::proof::{Evals, ProofKernels};
use crate::kernels::rows::place_bits;
use obelysk_protocol::circuit::expr::Source;
use obelysk_protocol::circuit::segment::{Circuit, Coord, Eval, MatrixShape};
use obelysk_protocol::field::{M31, ONE, QM31, ZERO, eq_vector, fold, signed};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::points::Points;
use rayon::prelude::*;
use std::sync::Arc;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

/// Packs one task handles.
const TASK: usize = 256;

/// A column; lanes past `len` are zero.
#[derive(Clone)]
pub struct Column {
    pub(super) packs: Arc<Vec<PackedM31>>,
    pub(super) len: usize,
}

impl Column {
    pub(super) fn new(values: &[M31]) -> Self {
        let pack = |chunk: &[M31]| {
            let mut lanes = [signed(0); N_LANES];
            lanes[..chunk.len()].copy_from_slice(chunk);
            PackedM31::from_array(lanes)
        };
        Self { packs: Arc::new(values.chunks(N_LANES).map(pack).collect()), len: values.len() }
    }
}

fn zero() -> PackedQM31 {
    PackedQM31::broadcast(ZERO)
}

fn lines(f: &SimdExt, i: usize) -> [PackedQM31; 4] {
    let (a, b) = f.packs[2 * i].deinterleave(f.packs[2 * i + 1]);
    let d = b - a;
    let c = b + d;
    [a, b, c, c + d]
}

impl ProofKernels for Simd {
    type Base = Column;
    type Ext = SimdExt;
    type Fractions = Fractions;
    type Layer = Layer;
    type Chip = Chip;

    fn column(&self, values: &[M31]) -> Column {
        Column::new(values)
    }

    fn vector(&self, values: &[QM31]) -> SimdExt {
        SimdExt::from_host(values)
    }

    fn len(&self, v: &SimdExt) -> usize {
        v.len
    }

    fn first(&self, v: &SimdExt) -> QM31 {
        v.at(0)
    }

    fn eq(&self, point: &[QM31]) -> SimdExt {
        eq(point)
    }

    fn drop_low(&self, v: &SimdExt) -> SimdExt {
        drop_low(v)
    }

    fn fold(&self, v: &SimdExt, r: QM31) -> SimdExt {
        if v.is_small() { SimdExt::from_host(&fold(&v.to_host(), r)) } else { ext::bind(v, r) }
    }

    fn evaluate(&self, column: &Column, eq: &SimdExt) -> QM31 {
        let task = |(c, e): (&[PackedM31], &[PackedQM31])| c.iter().zip(e).fold(zero(), |acc, (&c, &e)| acc + e * c);
        let chunks = column.packs.par_chunks(TASK).zip(eq.packs.par_chunks(TASK));
        chunks.map(task).reduce(zero, |a, b| a + b).pointwise_sum()
    }

    fn combine(&self, n: usize, terms: &[(&Column, QM31)]) -> SimdExt {
        let mut out = SimdExt::zeros(1 << n);
        // Columns are added chunk by chunk so that the chunk stays in cache.
        out.packs.par_chunks_mut(TASK / 4).enumerate().for_each(|(chunk, out)| {
            for (col, w) in terms {
                let w = PackedQM31::broadcast(*w);
                for (o, &v) in out.iter_mut().zip(&col.packs[chunk * TASK / 4..]) {
                    *o += w * v;
                }
            }
        });
        out
    }

    fn linear_round(&self, rest: &SimdExt, l: &SimdExt) -> [QM31; 2] {
        if l.is_small() {
            let (l, rest) = (l.to_host(), rest.to_host());
            return [0, 1].map(|x| l.chunks(2).zip(&rest).fold(ZERO, |acc, (p, &e)| acc + e * p[x]));
        }
        let task = |(e, l): (&[PackedQM31], &[PackedQM31])| {
            e.iter().zip(l.chunks_exact(2)).fold([zero(); 2], |[a, b], (&e, l)| {
                let (even, odd) = l[0].deinterleave(l[1]);
                [a + e * even, b + e * odd]
            })
        };
        let add = |a: [PackedQM31; 2], b: [PackedQM31; 2]| [a[0] + b[0], a[1] + b[1]];
        let chunks = rest.packs.par_chunks(TASK).zip(l.packs.par_chunks(2 * TASK));
        chunks.map(task).reduce(|| [zero(); 2], add).map(|s| s.pointwise_sum())
    }

    fn product_round(&self, factors: &[&SimdExt]) -> Evals {
        let Some(first) = factors.first() else { return [ZERO; 4] };
        if first.is_small() {
            let host: Vec<Vec<QM31>> = factors.iter().map(|f| f.to_host()).collect();
            let value = |f: &[QM31], i: usize, x: u32| (0..x).fold(f[2 * i], |v, _| v + (f[2 * i + 1] - f[2 * i]));
            return [0, 1, 2, 3]
                .map(|x| (0..first.len / 2).fold(ZERO, |acc, i| acc + host.iter().fold(ONE, |p, f| p * value(f, i, x))));
        }
        let row = |i: usize| {
            factors[1..].iter().fold(lines(first, i), |acc, f| {
                let v = lines(f, i);
                std::array::from_fn(|x| acc[x] * v[x])
            })
        };
        let add = |a: [PackedQM31; 4], b: [PackedQM31; 4]| std::array::from_fn(|x| a[x] + b[x]);
        let rows = (0..first.packs.len() / 2).into_par_iter().with_min_len(TASK);
        rows.map(row).reduce(|| [zero(); 4], add).map(|s| s.pointwise_sum())
    }

    fn leaves(&self, c: &Circuit, columns: &[Column], alpha: QM31, beta: QM31) -> Fractions {
        leaves::build(c, columns, alpha, beta)
    }

    fn next_layer(&self, f: &Fractions) -> Fractions {
        f.parents()
    }

    fn children(&self, f: &Fractions) -> [QM31; 4] {
        f.children()
    }

    fn gkr_start(&self, f: Fractions, point: &[QM31], mu: QM31) -> Layer {
        Layer::start(f, point, mu)
    }

    fn gkr_round(&self, layer: &mut Layer, bind: Option<QM31>) -> [QM31; 2] {
        layer.round(bind)
    }

    fn gkr_end(&self, layer: Layer, bind: QM31) -> [QM31; 4] {
        layer.end(bind)
    }

    fn claim_vector(&self, eval: &Eval, columns: &[Column], points: &Points, vars: usize) -> Result<SimdExt, VerifyError> {
        let fixed: Vec<Coord> = eval.lo.iter().filter(|c| !matches!(c, Coord::Kappa(_))).copied().collect();
        let weights = eq_vector(&points.resolve(&fixed)?);
        let fixed_low = eval.lo.iter().take(fixed.len()).all(|c| !matches!(c, Coord::Kappa(_)));
        let mut out = vec![ZERO; 1 << vars];
        for (b, &col) in eval.blocks.iter().enumerate() {
            // A fixed block index weighs the block; a summed one places it.
            let summed = eval.hi.iter().all(|c| matches!(c, Coord::Kappa(_)));
            let (base, scale) = if summed { (place_bits(b, &eval.hi).0, ONE) } else { (0, points.block_weight(eval, b)?) };
            let weights: Vec<QM31> = weights.iter().map(|&w| w * scale).collect();
            let column = &columns[col as usize];
            if fixed_low && weights.len() >= N_LANES {
                contract_low(column, &weights, &eval.lo, base, &mut out);
            } else {
                let values = column.packs.iter().flat_map(|p| p.to_array()).take(column.len);
                for (i, v) in values.enumerate() {
                    let (free, rest) = place_bits(i, &eval.lo);
                    out[base | free] += weights[rest] * v;
                }
            }
        }
        Ok(SimdExt::from_host(&out))
    }

    fn fold_matrix(&self, shape: MatrixShape, data: &[i8], weight: &[QM31], vars: usize) -> SimdExt {
        let rows = shape.outputs.min(weight.len());
        let mut out = int8::combine(int8::Path::best(), data, shape.inputs, &weight[..rows]);
        out.len = 1 << vars;
        out.packs.resize(out.len.div_ceil(N_LANES), zero());
        out
    }

    fn fold_tiles(&self, shape: MatrixShape, data: &[i8], low: &[QM31]) -> SimdExt {
        let slab = |slab: &[i8]| int8::combine(int8::Path::best(), slab, shape.inputs, low).packs;
        let packs: Vec<Vec<PackedQM31>> = data.par_chunks_exact(low.len() * shape.inputs).map(slab).collect();
        let packs = packs.concat();
        SimdExt { len: packs.len() * N_LANES, packs }
    }

    fn sum_tiles(&self, shape: MatrixShape, tiles: &SimdExt, high: &[QM31], vars: usize) -> SimdExt {
        let mut out = SimdExt::zeros(1 << vars);
        for (tile, &w) in tiles.packs.chunks_exact(shape.inputs / N_LANES).zip(high) {
            let w = PackedQM31::broadcast(w);
            out.packs.par_iter_mut().with_min_len(TASK / N_LANES).zip(tile).for_each(|(o, &v)| *o += w * v);
        }
        out
    }

    fn tile_values(&self, tiles: &SimdExt, low: &[QM31]) -> Vec<QM31> {
        let e = eq(low);
        let value = |tile: &[PackedQM31]| tile.iter().zip(&e.packs).fold(zero(), |acc, (&v, &e)| acc + v * e).pointwise_sum();
        tiles.packs.par_chunks_exact(e.packs.len()).with_min_len(TASK.div_ceil(e.len)).map(value).collect()
    }

    fn chip(&self, c: &Circuit, log_size: usize, terms: &[(QM31, Vec<Source>)], columns: &[Column]) -> Chip {
        Chip::new(c, log_size, terms, columns)
    }

    fn chip_round(&self, chip: &Chip, rest: &SimdExt) -> Evals {
        chip.round(rest)
    }

    fn chip_fold(&self, chip: &mut Chip, r: QM31) {
        chip.bind(r);
    }

    fn chip_value(&self, chip: &Chip) -> QM31 {
        chip.value()
    }
}

/// The low variables are fixed: every output is one inner product of consecutive packs.
fn contract_low(column: &Column, weights: &[QM31], lo: &[Coord], base: usize, out: &mut [QM31]) {
    let w = SimdExt::from_host(weights);
    let per = w.packs.len();
    let fixed = weights.len().trailing_zeros() as usize;
    let sums: Vec<QM31> = column
        .packs
        .par_chunks(per)
        .with_min_len(TASK.div_ceil(per))
        .map(|c| c.iter().zip(&w.packs).fold(zero(), |acc, (&c, &e)| acc + e * c).pointwise_sum())
        .collect();
    for (i, s) in sums.into_iter().enumerate() {
        out[base | place_bits(i << fixed, lo).0] += s;
    }
}
