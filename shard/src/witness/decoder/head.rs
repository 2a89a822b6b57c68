//! Columns of the head: the selected rows, their norm, the logits and how far each is below the best.

use super::super::Filler;
use super::super::rounding::rounded;
use super::{rms, stream};
use obelysk_model::infer::decoder::HeadTrace;
use obelysk_protocol::circuit::decoder::{ABSENT, GAP_LOG};
use obelysk_protocol::circuit::descriptor::Decoder;
use rayon::prelude::*;

pub(super) fn fill(f: &mut Filler<'_>, d: &Decoder, t: &HeadTrace, targets: &[u32]) {
    stream(f, "x", &t.x);
    rms(f, "norm", &t.x, &t.norm, d.head.norm.eps);
    rounded(f, "head", d.head.linear.e, &t.linear.acc);
    let rows = 1usize << f.c.token_log;
    let logit = |j: usize, s: usize| match d.head.mult.get(j) {
        Some(&m) => i64::from(m) * i64::from(t.linear.t_hat[j * rows + s]),
        None => ABSENT.into(),
    };
    let best: Vec<i64> =
        (0..rows).into_par_iter().map(|s| (0..d.head.mult.len()).map(|j| logit(j, s)).max().unwrap_or(0)).collect();
    let low = |v: i64| v & ((1 << GAP_LOG) - 1);
    f.set("best.0", best.iter().map(|&v| low(v)));
    f.set("best.1", best.iter().map(|&v| v >> GAP_LOG));
    let gap = |k: usize| {
        let (j, s) = (k / rows, k % rows);
        best[s] - logit(j, s) - i64::from(j < targets.get(s).map_or(0, |&t| t as usize))
    };
    f.fill("gap", ".0", t.linear.acc.len(), |k| low(gap(k)));
    f.fill("gap", ".1", t.linear.acc.len(), |k| gap(k) >> GAP_LOG);
}
