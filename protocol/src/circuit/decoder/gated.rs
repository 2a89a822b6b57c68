//! The gated feed-forward block: `h = clip16((activation(gate) up) / 2^e)`, then the down projection.

use super::super::builder::Builder;
use super::super::descriptor::{Decoder, DecoderLayer};
use super::super::expr::Expr;
use super::super::linear::{Output, Rounded, input_claim, r1_columns, requantised, rounded, stopped, weight_product};
use super::super::segment::Factor;
use super::super::shape::{Blocks, Logical};
use std::sync::Arc;

pub(super) fn build(b: &mut Builder, d: &Decoder, l: &DecoderLayer, u: &Factor) -> Rounded {
    let (width, ffn) = (d.width as usize, d.ffn as usize);
    let (blocks, wide) = (Blocks::of(width), Blocks::of(ffn));
    let table = Arc::new(l.activation.iter().map(|&v| i32::from(v)).collect::<Vec<_>>());
    let acc = weight_product(b, "gate", u, width, ffn);
    let gate = requantised(b, "gate", wide, &l.gate, acc, &Output::Activation(table));
    let acc = weight_product(b, "up", u, width, ffn);
    let up = rounded(b, "up", wide, l.up.e, acc);
    let h = product(b, wide, l.product.e, &gate, &up);
    let claim = input_claim(b, "h", &h);
    let acc = weight_product(b, "down", &claim, ffn, width);
    stopped(b, "down", blocks, &l.down, acc)
}

/// R1 of the product of two columns: the accumulator is `g t^` itself, an equation of every row.
fn product(b: &mut Builder, wide: Blocks, e: u8, gate: &Logical, up: &Rounded) -> Logical {
    let n = b.circuit().token_log + wide.log;
    if !(1..=13).contains(&e) {
        b.fail_shape(format!("product: e = {e} is outside 1..=13"));
        return Logical { blocks: Vec::new(), lo: n, hi: wide.hi() };
    }
    let columns = r1_columns(b, "product", wide, n, e);
    let mut out = Vec::new();
    for i in 0..wide.count {
        let acc = Expr::col(columns.v[i]) + Expr::col(columns.tau[i]).scale(1 << e) - Expr::constant(1 << (e - 1));
        let value = Expr::col(gate.blocks[i]) * up.t_hat[i].clone();
        b.constrain(&format!("product.{i}.acc"), acc - value, n, &up.cases[i]);
        let h = b.column(&format!("product.{i}.h"), n);
        // t^ is tau or a clip value: 16 bits, by the R1 table.
        b.assume_window(h, (-(1 << 15), (1 << 15) - 1));
        let t_hat = columns.rounded.t_hat[i].clone();
        b.constrain(&format!("product.{i}.h"), Expr::col(h) - t_hat, n, &columns.rounded.cases[i]);
        out.push(h);
    }
    Logical { blocks: out, lo: n, hi: wide.hi() }
}
