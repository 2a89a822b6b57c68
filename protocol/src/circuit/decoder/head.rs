//! Logits at the checked rows: the claimed token is the smallest index of the largest logit.
//!
//! The token axis of this segment is the checked rows; the residual stream arrives on its own, longer axis and is selected
//! from it by a public one-hot product per limb.

use super::super::builder::Builder;
use super::super::descriptor::Decoder;
use super::super::expr::Expr;
use super::super::input::PublicInput;
use super::super::linear::{rounded, weight_product};
use super::super::segment::{PublicColumn, Relation, Value, log2_ceil};
use super::super::shape::{Blocks, Logical, join, kappa, rho};
use super::{LIMBS, Stream, normed, received};
use std::sync::Arc;

/// A logit of a token that does not exist: below every real one.
pub const ABSENT: i32 = -(1 << 24);
/// `best - logit - [j < token]` lies in `[0, 2^26)`: `|best|, |logit| < 2^23` or the logit is absent.
pub const GAP_LOG: usize = 13;

/// Real rows of the head's token axis, and log2 of the padded count.
pub(super) fn rows(input: &PublicInput) -> (usize, usize) {
    let rows = input.checked().len();
    (rows, log2_ceil(rows.max(1)))
}

pub(super) fn build(b: &mut Builder, d: &Decoder, input: &PublicInput) {
    let blocks = Blocks::of(d.width as usize);
    let x = received(b, blocks, input.token_log());
    let x = selected(b, blocks, input, &x);
    let Some(u) = normed(b, "norm", &x, d.head.norm.eps) else { return };
    let outputs = d.head_outputs();
    let logits = Blocks { count: outputs >> logit_log(d), log: logit_log(d) };
    let acc = weight_product(b, "head", &u, d.width as usize, outputs);
    let t = rounded(b, "head", logits, d.head.linear.e, acc);
    largest(b, d, input, logits, &t);
}

/// log2 of the logits in a block: at most 16 equal blocks hold the padded vocabulary.
fn logit_log(d: &Decoder) -> usize {
    let spread = log2_ceil(d.vocab as usize).saturating_sub(4);
    spread.max(usize::from(d.tile_n_log))
}

/// `x^(s, c) = x(row_s, c)` per limb; a row of zeros beyond the last checked one.
fn selected(b: &mut Builder, blocks: Blocks, input: &PublicInput, x: &Stream) -> Stream {
    let ns = b.circuit().token_log;
    let nt = input.token_log();
    let n = ns + blocks.log;
    let rows = input.checked().iter().zip(0..).map(|(c, s)| (s, c.row)).collect();
    let selection = b.selection(nt, rows);
    let point = join(&[kappa(0, nt), rho(ns, blocks.log + blocks.hi())]);
    let limbs = x
        .limbs
        .iter()
        .zip(LIMBS)
        .enumerate()
        .map(|(l, (limb, window))| {
            let claim = b.claim(&format!("x.{l}"), limb.at(&point));
            let acc = b.product(&format!("select.{l}"), nt, vec![selection.clone(), claim]);
            let cols: Vec<u32> = (0..blocks.count)
                .map(|i| {
                    let c = b.column(&format!("x.{i}.{l}"), n);
                    // Equal to a received limb or zero, as the relation below says.
                    b.assume_window(c, window);
                    c
                })
                .collect();
            let out = Logical { blocks: cols, lo: n, hi: blocks.hi() };
            let (terms, values) = (vec![(1, out.at_rho())], vec![(1, Value::Accumulator(acc))]);
            b.relate(Relation { name: format!("select.{l}"), terms, constant: None, values }, 255);
            out
        })
        .collect();
    Stream { limbs }
}

/// `best_s - y_j - [j < token_s] = gap` in `[0, 2^26)` for every j, and the gap at the token itself is 0.
fn largest(b: &mut Builder, d: &Decoder, input: &PublicInput, logits: Blocks, t: &super::super::linear::Rounded) {
    let ns = b.circuit().token_log;
    let n = ns + logits.log;
    let limit = 1i64 << 11;
    let low = b.bound_column("best.0", ns, (0, (1 << GAP_LOG) - 1));
    let high = b.bound_column("best.1", ns, (-limit, limit - 1));
    let best = Expr::col(low) + Expr::col(high).scale(1 << GAP_LOG);
    let mut mult = d.head.mult.clone();
    mult.resize(logits.count << logits.log, 0);
    let mut absent = vec![0; d.vocab as usize];
    absent.resize(logits.count << logits.log, ABSENT);
    // Rows beyond the last checked one have equal logits 0: token 0 is the smallest index.
    let mut targets: Vec<u32> = input.checked().iter().map(|c| c.target).collect();
    targets.resize(1 << ns, 0);
    let mut gaps = [Vec::new(), Vec::new()];
    for i in 0..logits.count {
        let name = format!("gap.{i}");
        let columns = [0, 1].map(|k| b.bound_column(&format!("{name}.{k}"), n, (0, (1 << GAP_LOG) - 1)));
        let [m, off] = [&mult, &absent].map(|v| Expr::param(b.param(logits.slice(i, v))));
        let thresholds = targets.iter().map(|&t| t.saturating_sub((i << logits.log) as u32).min(1 << logits.log)).collect();
        let before = b.public(PublicColumn::Below { thresholds: Arc::new(thresholds), log_channels: logits.log });
        let logit = m * t.t_hat[i].clone() + off;
        let gap = Expr::col(columns[0]) + Expr::col(columns[1]).scale(1 << GAP_LOG);
        b.constrain(&name, best.clone() - logit - Expr::public(before) - gap, n, &t.cases[i]);
        gaps[0].push(columns[0]);
        gaps[1].push(columns[1]);
    }
    // Summed over (s, j): a sum over j alone would multiply two functions of the same row.
    let vars = n + logits.hi();
    let own = b.selection(vars, targets.iter().zip(0u32..).map(|(&t, s)| (s, s | t << ns)).collect());
    let values = gaps
        .into_iter()
        .enumerate()
        .map(|(k, cols)| {
            let gap = Logical { blocks: cols, lo: n, hi: logits.hi() };
            let claim = b.claim(&format!("gap.{k}"), gap.at(&kappa(0, vars)));
            let acc = b.product(&format!("gap.{k}"), vars, vec![own.clone(), claim]);
            (1i64 << (k * GAP_LOG), Value::Accumulator(acc))
        })
        .collect();
    b.relate(Relation { name: "gap.own".into(), terms: Vec::new(), constant: None, values }, 1 << (2 * GAP_LOG));
}
