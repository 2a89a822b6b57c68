//! A branch's way back into the residual stream, through a norm of its own if the family has one.

use super::super::builder::Builder;
use super::super::descriptor::{Branch, BranchNorm};
use super::super::expr::Expr;
use super::super::linear::Rounded;
use super::super::norm::{limb_sum, rms_norm};
use super::super::shape::{Blocks, Logical};
use super::{LIMBS, RESIDUAL_TOP, Stream};

/// Limb columns `{name}.{i}.{limb}`, each in its window.
pub(super) fn stream_columns(b: &mut Builder, name: &str, blocks: Blocks) -> Stream {
    let n = b.circuit().token_log + blocks.log;
    let limbs = LIMBS
        .iter()
        .enumerate()
        .map(|(l, &window)| {
            let cols = (0..blocks.count).map(|i| b.bound_column(&format!("{name}.{i}.{l}"), n, window)).collect();
            Logical { blocks: cols, lo: n, hi: blocks.hi() }
        })
        .collect();
    Stream { limbs }
}

/// `2^w (x' - x) + rho = mult_c v + 2^(w-1)`; no saturation: registration proves that no input leaves 24 bits.
pub(super) fn build(b: &mut Builder, name: &str, blocks: Blocks, spec: &Branch, x: &Stream, t: &Rounded) -> Stream {
    let n = b.circuit().token_log + blocks.log;
    let shift = usize::from(spec.shift);
    let normed = spec.norm.as_ref().map(|norm| own_norm(b, name, blocks, norm, t));
    let out = stream_columns(b, &format!("{name}.x"), blocks);
    for i in 0..blocks.count {
        let rho = b.bound_column(&format!("{name}.x.{i}.rho"), n, (0, (1 << shift) - 1));
        let mult = Expr::param(b.param(blocks.slice(i, &spec.mult)));
        let (value, cases) = match &normed {
            Some(u) => (u.blocks.get(i).map_or_else(Expr::default, |&c| Expr::col(c)), Vec::new()),
            None => (t.t_hat[i].clone(), t.cases[i].clone()),
        };
        let change = limb_sum(&out.block(i)) - limb_sum(&x.block(i));
        let e = change.scale(1 << shift) + Expr::col(rho) - mult * value - Expr::constant(1 << (shift - 1));
        b.constrain(&format!("{name}.x.{i}.sum"), e, n, &cases);
    }
    out
}

/// `2^w y + rho = mult_c t^ + 2^(w-1)`, `u = norm(y)`.
fn own_norm(b: &mut Builder, name: &str, blocks: Blocks, spec: &BranchNorm, t: &Rounded) -> Logical {
    let nt = b.circuit().token_log;
    let n = nt + blocks.log;
    let shift = usize::from(spec.shift);
    let y = stream_columns(b, &format!("{name}.y"), blocks);
    for i in 0..blocks.count {
        let rho = b.bound_column(&format!("{name}.y.{i}.rho"), n, (0, (1 << shift) - 1));
        let mult = Expr::param(b.param(blocks.slice(i, &spec.mult)));
        let e = limb_sum(&y.block(i)).scale(1 << shift) + Expr::col(rho)
            - mult * t.t_hat[i].clone()
            - Expr::constant(1 << (shift - 1));
        b.constrain(&format!("{name}.y.{i}.scale"), e, n, &t.cases[i]);
    }
    let norm = format!("{name}.norm");
    let u = rms_norm(b, &norm, nt, &[y.sheet(&norm)], RESIDUAL_TOP, spec.norm.eps).pop();
    u.unwrap_or(Logical { blocks: Vec::new(), lo: n, hi: blocks.hi() })
}
