//! Requantisation R1 of a matrix product: `t = floor((acc + 2^(e-1)) / 2^e)`, `t^ = clip16(t)`, `y = floor((t^ m + b) / 2^k)`.
//!
//! The accumulator is not committed: `acc = v + 2^e tau - 2^(e-1)` where (v, s, c) is a row of the R1 table of e, so v carries
//! the remainder and the bits beyond 16, s says whether `t` leaves 16 bits and c is the clip value. `t^ = (1 - s) tau + c`.

use super::builder::{Builder, Case};
use super::descriptor::{Requant, Stop};
use super::expr::{Expr, Source};
use super::segment::{Eval, Factor, Relation, Value};
use super::shape::{Blocks, Logical, kappa};
use super::table::{RowIndex, TableColumn};
use std::sync::Arc;

const TAG_R1: u32 = 64;
const TAG_ACTIVATION: u32 = 162;
/// The R1 table has 2^15 rows for every e.
pub const R1_LOG: usize = 15;

/// Largest |acc| that R1 represents without wrapping, for `1 <= e <= 13`; exactly one witness exists below it.
#[must_use]
pub fn r1_bound(e: u8) -> i64 {
    let half_rows = 1i64 << (14 - e);
    let reach = (1i64 << (16 + e)) * half_rows + (1i64 << (15 + e)) + (1i64 << e);
    let wrap = i64::from(crate::field::P) - 1 - reach;
    let table = (1i64 << (16 + e)) * half_rows - (1i64 << (15 + e)) - (1i64 << (e - 1));
    wrap.min(table)
}

/// `t^` of every block, as expressions.
pub struct Rounded {
    /// One expression per block.
    pub t_hat: Vec<Expr>,
    /// Per block: the saturation flag and the clip value take fixed values together.
    pub cases: Vec<Vec<Case>>,
}

/// Columns v, s, c, tau of every block and the relation that ties them to accumulator `acc`.
pub fn rounded(b: &mut Builder, name: &str, blocks: Blocks, e: u8, acc: usize) -> Rounded {
    rounded_sum(b, name, blocks, e, &[acc])
}

/// As [`rounded`], of the sum of several accumulators. The caller vouches that the sum stays within [`r1_bound`].
pub fn rounded_sum(b: &mut Builder, name: &str, blocks: Blocks, e: u8, accs: &[usize]) -> Rounded {
    let n = b.circuit().token_log + blocks.log;
    if !(1..=13).contains(&e) {
        b.fail_shape(format!("{name}: e = {e} is outside 1..=13"));
        return Rounded { t_hat: vec![Expr::default(); blocks.count], cases: vec![Vec::new(); blocks.count] };
    }
    let columns = r1_columns(b, name, blocks, n, e);
    let at = |cols: Vec<u32>| Logical { blocks: cols, lo: n, hi: blocks.hi() }.at_rho();
    let v_eval = at(columns.v);
    let constant = Some((-(1i64 << (e - 1)), blocks.count, v_eval.hi.clone()));
    let terms = vec![(1, v_eval), (1 << e, at(columns.tau))];
    let values = accs.iter().map(|&a| (1, Value::Accumulator(a))).collect();
    b.relate(Relation { name: format!("{name}.acc"), terms, constant, values }, r1_bound(e));
    columns.rounded
}

/// Columns of R1 with their lookups; what the accumulator is remains to be said.
pub struct R1Columns {
    /// v per block.
    pub v: Vec<u32>,
    /// tau per block.
    pub tau: Vec<u32>,
    /// `t^`.
    pub rounded: Rounded,
}

/// Columns v, s, c, tau of every block, `2^n` rows each.
pub fn r1_columns(b: &mut Builder, name: &str, blocks: Blocks, n: usize, e: u8) -> R1Columns {
    let columns = || vec![TableColumn::R1Value { e }, TableColumn::R1Saturated { e }, TableColumn::R1Clip { e }];
    let table = b.table(&format!("r1.{e}"), TAG_R1 + u32::from(e), R1_LOG, RowIndex::R1 { e }, columns);
    let (mut v, mut tau) = (Vec::new(), Vec::new());
    let mut rounded = Rounded { t_hat: Vec::new(), cases: Vec::new() };
    for i in 0..blocks.count {
        let p = format!("{name}.{i}");
        let [cv, s, c] = ["v", "s", "c"].map(|x| b.column(&format!("{p}.{x}"), n));
        let ct = b.bound_column(&format!("{p}.tau"), n, (-(1 << 15), (1 << 15) - 1));
        b.lookup(table, vec![Expr::col(cv), Expr::col(s), Expr::col(c)], n, false);
        rounded.t_hat.push((Expr::constant(1) - Expr::col(s)) * Expr::col(ct) + Expr::col(c));
        let case = |flag, clip| vec![(Source::Col(s), flag), (Source::Col(c), clip)];
        rounded.cases.push(vec![case(0, 0), case(1, i64::from(i16::MAX)), case(1, i64::from(i16::MIN))]);
        v.push(cv);
        tau.push(ct);
    }
    R1Columns { v, tau, rounded }
}

/// Where the proof of a requantised output's window comes from.
pub enum Output {
    /// Range lookups for `[lo, hi]`.
    Range,
    /// The activation table indexed by y (65,536 entries); the layer's output is the table's value.
    Activation(Arc<Vec<i32>>),
}

/// A linear layer's requantisation down to y (or to the activation of y).
pub fn requantised(b: &mut Builder, name: &str, blocks: Blocks, spec: &Requant, acc: usize, output: &Output) -> Logical {
    let whole = Slice { spec, first: 0 };
    requantised_slice(b, name, blocks, whole, acc, output)
}

/// The channels of a requantisation that one matrix computes.
#[derive(Clone, Copy)]
pub struct Slice<'a> {
    /// Parameters of all channels.
    pub spec: &'a Requant,
    /// First channel of the slice.
    pub first: usize,
}

/// As [`requantised`], for the channels of a slice.
pub fn requantised_slice(
    b: &mut Builder,
    name: &str,
    blocks: Blocks,
    Slice { spec, first }: Slice<'_>,
    acc: usize,
    output: &Output,
) -> Logical {
    let n = b.circuit().token_log + blocks.log;
    let rounded = rounded(b, name, blocks, spec.e, acc);
    let (ms, bs) = (spec.m.get(first..).unwrap_or(&[]), spec.b.get(first..).unwrap_or(&[]));
    let mut out = Vec::new();
    for (i, t_hat) in rounded.t_hat.iter().enumerate() {
        let p = format!("{name}.{i}");
        let m = b.param(blocks.slice(i, ms));
        let bias = b.param(blocks.slice(i, bs));
        let y = match output {
            Output::Range => b.bound_column(&format!("{p}.y"), n, (i64::from(spec.lo), i64::from(spec.hi))),
            Output::Activation(_) => b.column(&format!("{p}.y"), n),
        };
        out.push(y);
        if let Output::Activation(f) = output {
            let g = b.column(&format!("{p}.g"), n);
            let f = f.clone();
            let t = b.table("activation", TAG_ACTIVATION, 16, RowIndex::First { offset: -(1 << 15) }, || {
                vec![TableColumn::Identity { offset: -(1 << 15) }, TableColumn::Function(f)]
            });
            b.lookup(t, vec![Expr::col(y), Expr::col(g)], n, false);
            out[i] = g;
        }
        let k = usize::from(spec.k);
        let rem = t_hat.clone() * Expr::param(m) + Expr::param(bias) - Expr::col(y).scale(1 << k);
        b.virtual_range(&format!("{p}.rem"), rem, k, n, &[]);
    }
    Logical { blocks: out, lo: n, hi: blocks.hi() }
}

/// A linear layer that stops at `t^`.
pub fn stopped(b: &mut Builder, name: &str, blocks: Blocks, spec: &Stop, acc: usize) -> Rounded {
    rounded(b, name, blocks, spec.e, acc)
}

/// The product `acc(rho_t, rho_n) = sum_k x(rho_t, k) W(k, rho_n)`; `input` is x's claim at `(rho_t, kappa)`.
pub fn weight_product(b: &mut Builder, name: &str, input: &Factor, inputs: usize, outputs: usize) -> usize {
    let m = b.matrix(inputs, outputs);
    let vars = super::segment::log2_ceil(inputs);
    b.product(name, vars, vec![input.clone(), Factor::Weight(m)])
}

/// Products of one matrix with several inputs of the same shape.
pub fn weight_products(b: &mut Builder, name: &str, limbs: &[Factor], inputs: usize, outputs: usize) -> Vec<usize> {
    let m = b.matrix(inputs, outputs);
    let vars = super::segment::log2_ceil(inputs);
    let product = |(l, x): (usize, &Factor)| b.product(&format!("{name}.{l}"), vars, vec![x.clone(), Factor::Weight(m)]);
    limbs.iter().enumerate().map(product).collect()
}

/// The claim of a logical column at `(rho_t, kappa[0..])`: the input of weight products.
pub fn input_claim(b: &mut Builder, name: &str, x: &Logical) -> Factor {
    let nt = b.circuit().token_log;
    let point = [super::shape::rho(0, nt), kappa(0, x.lo + x.hi - nt)].concat();
    b.claim(name, x.at(&point))
}

/// A logical column at a boundary point.
#[must_use]
pub fn boundary_eval(x: &Logical, coord: fn(usize) -> super::segment::Coord) -> Eval {
    let point: Vec<_> = (0..x.lo + x.hi).map(coord).collect();
    x.at(&point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_at_e_8_is_the_specified_one() {
        // The specification rounds down to a multiple of 2^20.
        assert_eq!(r1_bound(8) >> 20, 1_064_304_640 >> 20);
    }

    #[test]
    fn every_accumulator_has_exactly_one_witness() {
        let p = i64::from(crate::field::P);
        for e in [4u8, 8, 10, 12] {
            let bound = r1_bound(e);
            for acc in [0, 1, -1, bound, -bound, bound - 3, 77_777, -123_456_789 % bound] {
                let mut found = 0;
                for row in 0..1usize << R1_LOG {
                    let v = TableColumn::R1Value { e }.value(row, R1_LOG);
                    // acc = v + 2^e tau - 2^(e-1) mod p: solve for tau.
                    let rhs = (acc + (1 << (e - 1)) - v).rem_euclid(p);
                    let inv = (1i64 << (31 - e)).rem_euclid(p); // 2^-e = 2^(31-e) mod 2^31-1
                    let tau = ((i128::from(rhs) * i128::from(inv)).rem_euclid(i128::from(p))) as i64;
                    let tau = if tau > p / 2 { tau - p } else { tau };
                    found += usize::from((-(1 << 15)..1 << 15).contains(&tau));
                }
                assert_eq!(found, 1, "e {e} acc {acc}");
            }
        }
    }
}
