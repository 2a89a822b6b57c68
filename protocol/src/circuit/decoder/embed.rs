//! Embedding: int8 rows selected by the public ids, scaled into the residual stream.

use super::super::builder::Builder;
use super::super::descriptor::Decoder;
use super::super::expr::Expr;
use super::super::input::PublicInput;
use super::super::segment::{Factor, Relation, Value, log2_ceil};
use super::super::shape::{Blocks, Logical};
use super::branch::stream_columns;
use super::handed_on;

/// One int8 entry.
const ENTRY: (i64, i64) = (-128, 127);

/// `2^w x + rho = scale_c sum_i 255^i a_i + 2^(w-1)` with `a_i` the row of limb matrix i that the token selects.
pub(super) fn build(b: &mut Builder, d: &Decoder, input: &PublicInput) {
    let blocks = Blocks::of(d.width as usize);
    let n = b.circuit().token_log + blocks.log;
    let rows = d.embed_inputs();
    let selection = b.selection(log2_ceil(rows), input.rows().iter().zip(0..).map(|(row, t)| (t, row.id)).collect());
    let mut sum: Vec<Expr> = vec![Expr::default(); blocks.count];
    for limb in 0..d.embed.limbs {
        let m = b.matrix(rows, d.width as usize);
        let acc = b.product(&format!("embed.{limb}"), log2_ceil(rows), vec![selection.clone(), Factor::Weight(m)]);
        let a: Vec<u32> = (0..blocks.count).map(|i| b.bound_column(&format!("embed.{i}.a{limb}"), n, ENTRY)).collect();
        for (sum, &c) in sum.iter_mut().zip(&a) {
            *sum = sum.clone() + Expr::col(c).scale(255i64.pow(limb.into()));
        }
        let terms = vec![(1, Logical { blocks: a, lo: n, hi: blocks.hi() }.at_rho())];
        let values = vec![(1, Value::Accumulator(acc))];
        // One selected row of int8 entries, or none.
        b.relate(Relation { name: format!("embed.{limb}.acc"), terms, constant: None, values }, 127);
    }
    let shift = usize::from(d.embed.shift);
    let x = stream_columns(b, "x", blocks);
    for (i, sum) in sum.into_iter().enumerate() {
        let rho = b.bound_column(&format!("x.{i}.rho"), n, (0, (1 << shift) - 1));
        let scale = b.param(blocks.slice(i, &d.embed.scale));
        let scaled = Expr::param(scale) * sum + Expr::constant(1 << (shift - 1));
        let left = super::super::norm::limb_sum(&x.block(i)).scale(1 << shift) + Expr::col(rho);
        b.constrain(&format!("x.{i}.scale"), left - scaled, n, &[]);
    }
    handed_on(b, &x);
}
