//! The gated feed-forward block: `h = clip16((activation(gate) up) / 2^e)`, then the down projection.

use super::super::builder::Builder;
use super::super::descriptor::{Accumulated, Decoder, DecoderLayer};
use super::super::expr::Expr;
use super::super::linear::{
    Output, Rounded, input_claim, r1_columns, requantised, rounded, rounded_sum, weight_product, weight_products,
};
use super::super::norm::limb_sum;
use super::super::segment::Factor;
use super::super::shape::{Blocks, Logical};
use super::super::wide::rounded_wide;
use std::sync::Arc;

pub(super) fn build(b: &mut Builder, d: &Decoder, l: &DecoderLayer, u: &Factor) -> Rounded {
    let (width, ffn) = (d.width as usize, d.ffn as usize);
    let (blocks, wide) = (Blocks::of(width), Blocks::of(ffn));
    let table = Arc::new(l.activation.iter().map(|&v| i32::from(v)).collect::<Vec<_>>());
    let acc = weight_product(b, "gate", u, width, ffn);
    let gate = requantised(b, "gate", wide, &l.gate, acc, &Output::Activation(table));
    let acc = weight_product(b, "up", u, width, ffn);
    let up = rounded(b, "up", wide, l.up.e, acc);
    let h = product(b, wide, (l.product.e, l.down.limbs), &gate, &up);
    let claims: Vec<Factor> = h.iter().enumerate().map(|(k, h)| input_claim(b, &format!("h{k}"), h)).collect();
    let accs = weight_products(b, "down", &claims, ffn, width);
    stopped(b, "down", blocks, l.down, &accs.iter().map(|&a| vec![a]).collect::<Vec<_>>())
}

/// `t^` of the sums of accumulators, one list per input limb.
pub(super) fn stopped(b: &mut Builder, name: &str, blocks: Blocks, spec: Accumulated, accs: &[Vec<usize>]) -> Rounded {
    match accs {
        [one] => rounded_sum(b, name, blocks, spec.e, one),
        [low, high] => rounded_wide(b, name, blocks, spec.e, (low, high)),
        _ => {
            b.fail_shape(format!("{name}: {} input limbs, 1 or 2 are provable", accs.len()));
            Rounded { t_hat: vec![Expr::default(); blocks.count], cases: vec![Vec::new(); blocks.count] }
        }
    }
}

/// Columns of a 16-bit value: itself, or two limbs in their windows.
pub(super) fn limb_columns(b: &mut Builder, name: &str, n: usize, limbs: u8) -> Vec<u32> {
    match limbs {
        1 => {
            let c = b.column(name, n);
            b.assume_window(c, (-(1 << 15), (1 << 15) - 1));
            vec![c]
        }
        _ => vec![b.bound_column(&format!("{name}0"), n, (0, 255)), b.bound_column(&format!("{name}1"), n, (-128, 127))],
    }
}

/// R1 of the product of two columns: the accumulator is `g t^` itself, an equation of every row.
fn product(b: &mut Builder, wide: Blocks, (e, limbs): (u8, u8), gate: &Logical, up: &Rounded) -> Vec<Logical> {
    let n = b.circuit().token_log + wide.log;
    if !(1..=13).contains(&e) {
        b.fail_shape(format!("product: e = {e} is outside 1..=13"));
        return Vec::new();
    }
    let columns = r1_columns(b, "product", wide, n, e);
    let mut out = vec![Logical { blocks: Vec::new(), lo: n, hi: wide.hi() }; usize::from(limbs)];
    for i in 0..wide.count {
        let acc = Expr::col(columns.v[i]) + Expr::col(columns.tau[i]).scale(1 << e) - Expr::constant(1 << (e - 1));
        let value = Expr::col(gate.blocks[i]) * up.t_hat[i].clone();
        b.constrain(&format!("product.{i}.acc"), acc - value, n, &up.cases[i]);
        // Without limbs: t^ is tau or a clip value, hence 16 bits, by the R1 table.
        let h = limb_columns(b, &format!("product.{i}.h"), n, limbs);
        let t_hat = columns.rounded.t_hat[i].clone();
        b.constrain(&format!("product.{i}.h"), limb_sum(&h) - t_hat, n, &columns.rounded.cases[i]);
        for (limb, c) in out.iter_mut().zip(h) {
            limb.blocks.push(c);
        }
    }
    out
}
