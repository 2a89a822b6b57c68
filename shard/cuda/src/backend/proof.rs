//! [`ProofKernels`] on a device.

use super::chip::Chip;
use super::fold::{Entries, Matrix};
use super::gkr::{Fractions, Layer};
use super::run::{Column, Ext};
use super::{CudaBackend, run};
use crate::device::{Arg, Device};
use bytemuck::cast_slice;
use obelysk_protocol::circuit::expr::Source;
use obelysk_protocol::circuit::segment::{Circuit, Eval, MatrixShape};
use obelysk_protocol::field::{M31, QM31, ZERO};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::points::Points;
use obelysk_shard::kernels::proof::{Evals, ProofKernels};

/// Most factors of a product.
const FACTORS: usize = 4;

impl<D: Device> ProofKernels for CudaBackend<D> {
    type Base = Column<D>;
    type Ext = Ext<D>;
    type Fractions = Fractions<D>;
    type Layer = Layer<D>;
    type Chip = Chip<D>;

    fn column(&self, values: &[M31]) -> Column<D> {
        Column { data: self.upload_base(values), len: values.len() }
    }

    fn vector(&self, values: &[QM31]) -> Ext<D> {
        self.vector_of(values)
    }

    fn len(&self, v: &Ext<D>) -> usize {
        v.len
    }

    fn first(&self, v: &Ext<D>) -> QM31 {
        run::elements(&v.data.words(0, 4))[0]
    }

    fn eq(&self, point: &[QM31]) -> Ext<D> {
        self.eq_of(point)
    }

    fn drop_low(&self, v: &Ext<D>) -> Ext<D> {
        self.drop_low_of(v)
    }

    fn fold(&self, v: &Ext<D>, r: QM31) -> Ext<D> {
        self.bind_of(v, r)
    }

    fn evaluate(&self, column: &Column<D>, eq: &Ext<D>) -> QM31 {
        let n = column.len.min(eq.len) as u64;
        let [sum] = self.sums("dot_base", n, &[column.data.arg(), eq.data.arg(), Arg::U64(n)]);
        sum
    }

    fn combine(&self, n: usize, terms: &[(&Column<D>, QM31)]) -> Ext<D> {
        let out = self.empty_ext(1 << n);
        let columns = self.upload_u64(&terms.iter().map(|(c, _)| c.data.address()).collect::<Vec<_>>());
        let weights = self.upload_ext(&terms.iter().map(|t| t.1).collect::<Vec<_>>());
        let (count, n) = (Arg::U32(terms.len() as u32), out.len as u64);
        self.each("weighted_base", n, &[columns.arg(), weights.arg(), count, Arg::U64(n), out.data.arg()]);
        out
    }

    fn linear_round(&self, rest: &Ext<D>, l: &Ext<D>) -> [QM31; 2] {
        let n = (l.len / 2) as u64;
        self.sums("linear_round", n, &[rest.data.arg(), l.data.arg(), Arg::U64(n)])
    }

    fn product_round(&self, factors: &[&Ext<D>]) -> Evals {
        let Some(first) = factors.first() else { return [ZERO; 4] };
        let n = (first.len / 2) as u64;
        let at = |k: usize| factors.get(k).unwrap_or(first).data.arg();
        let count = Arg::U32(factors.len().min(FACTORS) as u32);
        self.sums("product_round", n, &[at(0), at(1), at(2), at(3), count, Arg::U64(n)])
    }

    fn leaves(&self, c: &Circuit, columns: &[Column<D>], alpha: QM31, beta: QM31) -> Fractions<D> {
        self.leaves_of(c, columns, alpha, beta)
    }

    fn next_layer(&self, f: &Fractions<D>) -> Fractions<D> {
        self.parents(f)
    }

    fn children(&self, f: &Fractions<D>) -> [QM31; 4] {
        Self::children_of(f)
    }

    fn gkr_start(&self, f: Fractions<D>, point: &[QM31], mu: QM31) -> Layer<D> {
        self.layer(f, point, mu)
    }

    fn gkr_round(&self, layer: &mut Layer<D>, bind: Option<QM31>) -> [QM31; 2] {
        self.layer_round(layer, bind)
    }

    fn gkr_end(&self, layer: Layer<D>, bind: QM31) -> [QM31; 4] {
        Self::layer_end(&layer, bind)
    }

    fn claim_vector(&self, eval: &Eval, columns: &[Column<D>], points: &Points, vars: usize) -> Result<Ext<D>, VerifyError> {
        self.claim_of(eval, columns, points, vars)
    }

    fn fold_matrix(&self, shape: MatrixShape, data: &[i8], weight: &[QM31], vars: usize) -> Ext<D> {
        let rows = (data.len() / shape.inputs).min(weight.len());
        let data = self.upload(cast_slice(&data[..rows * shape.inputs]));
        let m = Matrix { entries: Entries::Int8, data: data.arg(), rows: rows as u64, columns: shape.inputs as u64 };
        self.combined(m, weight, 1 << vars)
    }

    fn fold_tiles(&self, shape: MatrixShape, data: &[i8], low: &[QM31]) -> Ext<D> {
        let rows = data.len() / (low.len() * shape.inputs) * low.len();
        let data = self.upload(cast_slice(&data[..rows * shape.inputs]));
        let m = Matrix { entries: Entries::Int8, data: data.arg(), rows: rows as u64, columns: shape.inputs as u64 };
        self.slabs(m, low, low.len() as u64, true)
    }

    fn sum_tiles(&self, shape: MatrixShape, tiles: &Ext<D>, high: &[QM31], vars: usize) -> Ext<D> {
        let rows = (tiles.len / shape.inputs).min(high.len()) as u64;
        let m = Matrix { entries: Entries::Ext, data: tiles.data.arg(), rows, columns: shape.inputs as u64 };
        self.combined(m, high, 1 << vars)
    }

    fn tile_values(&self, tiles: &Ext<D>, low: &[QM31]) -> Vec<QM31> {
        self.dots("dots_ext", &tiles.data, tiles.len, &self.eq_of(low))
    }

    fn chip(&self, c: &Circuit, _log_size: usize, terms: &[(QM31, Vec<Source>)], columns: &[Column<D>]) -> Chip<D> {
        self.chip_of(c, terms, columns)
    }

    fn chip_round(&self, chip: &Chip<D>, rest: &Ext<D>) -> Evals {
        self.chip_sums(chip, rest)
    }

    fn chip_fold(&self, chip: &mut Chip<D>, r: QM31) {
        self.bind_chip(chip, r);
    }

    fn chip_value(&self, chip: &Chip<D>) -> QM31 {
        self.chip_end(chip)
    }
}
