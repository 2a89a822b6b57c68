//! The final sumcheck of a segment: every claim on a committed column ends at one point r (`docs/soundness.md` §4.3).
//!
//! Heights are low-aligned: a function of n variables is multiplied by `prod_{j >= n} (1 - x_j)`. A column of n variables is
//! claimed at `r[..n]` and its value is absorbed before `r[n]` is drawn, so the whole value stack is the single claim P(r).

use super::error::VerifyError;
use super::plan::{Plan, source_eval};
use super::points::{Points, low_corner};
use crate::circuit::segment::{Circuit, log2_ceil};
use crate::field::{QM31, RoundPoly, ZERO, eq_at_index, eq_eval};
use crate::transcript::{HashSuite, Transcript};
use std::collections::BTreeMap;

/// Rounds, column values and grinding of the final sumcheck.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FinalProof {
    /// As many rounds as the largest column has variables.
    pub rounds: Vec<RoundPoly<4>>,
    /// Value of each column at its prefix of r.
    pub columns: Vec<QM31>,
    /// One nonce per coordinate of r at or beyond the row length.
    pub nonces: Vec<u64>,
}

/// Sizes the step needs besides the circuit.
#[derive(Clone, Copy, Debug)]
pub struct RowShape {
    /// h: log2 of the row length.
    pub h: usize,
    /// Grinding before each coordinate that becomes a row coefficient.
    pub g_fold: u32,
}

/// Rows of the value oracle.
#[must_use]
pub fn value_rows(c: &Circuit, h: usize) -> usize {
    c.stack().1.div_ceil(1 << h).max(1)
}

/// Coordinates of r: the row length and the row index.
#[must_use]
pub fn point_len(c: &Circuit, h: usize) -> usize {
    (h + log2_ceil(value_rows(c, h))).max(c.max_log())
}

/// Verifies the rounds; returns r and the value of the stack at r.
///
/// # Errors
/// [`VerifyError::FinalClaim`] and [`VerifyError::Grinding`].
///
/// # Soundness
/// `4 / q` per round. The returned claim must be opened on the value oracle.
pub fn verify<S: HashSuite>(
    t: &mut Transcript<S>,
    c: &Circuit,
    points: &Points,
    plan: &Plan,
    shape: RowShape,
    proof: &FinalProof,
) -> Result<(Vec<QM31>, QM31), VerifyError> {
    let mut claim = plan.claim;
    let mut r = Vec::new();
    let mut nonces = proof.nonces.iter();
    for j in 0..point_len(c, shape.h) {
        let poly = proof.rounds.get(j);
        absorb_round(t, c, j, poly, &proof.columns);
        if j >= shape.h {
            let nonce = nonces.next().copied().unwrap_or(0);
            if !t.accept_pow(shape.g_fold, nonce) {
                return Err(VerifyError::Grinding("a coordinate of r"));
            }
        }
        let x = t.draw("final.r");
        claim = poly.map_or(claim, |p| p.eval(claim, x));
        r.push(x);
    }
    if claim != expected(c, points, plan, &r, &proof.columns) {
        return Err(VerifyError::FinalClaim("constraints, lookups and relations"));
    }
    let value = stack_value(c, &r, &proof.columns);
    Ok((r, value))
}

/// Absorbs round j's polynomial and the columns that ended before it; shared with the prover.
///
/// Columns of the largest size are absorbed in the first round after the last polynomial. There always is one: see
/// [`closing_columns`] for the case where r has no further coordinate.
pub fn absorb_round<S: HashSuite>(t: &mut Transcript<S>, c: &Circuit, j: usize, poly: Option<&RoundPoly<4>>, columns: &[QM31]) {
    if let Some(p) = poly {
        t.absorb_felts("final.round", &p.0);
    }
    t.absorb_felts("final.columns", &ended(c, j, columns));
}

/// Absorbs columns with as many variables as r has coordinates; both sides call it after the last coordinate.
pub fn closing_columns<S: HashSuite>(t: &mut Transcript<S>, c: &Circuit, r_len: usize, columns: &[QM31]) {
    t.absorb_felts("final.columns", &ended(c, r_len, columns));
}

fn ended(c: &Circuit, j: usize, columns: &[QM31]) -> Vec<QM31> {
    c.columns.iter().zip(columns).filter(|(col, _)| col.log_size == j).map(|(_, &v)| v).collect()
}

/// The summand at r from the columns' claimed values.
fn expected(c: &Circuit, points: &Points, plan: &Plan, r: &[QM31], columns: &[QM31]) -> QM31 {
    let rounds = c.max_log();
    let corner = |n: usize| low_corner(r.get(n..rounds).unwrap_or(&[]));
    let mut total = ZERO;
    for g in &plan.linear {
        let n = g.point.len();
        let sum = g.terms.iter().fold(ZERO, |a, (col, w)| a + *w * columns.get(*col as usize).copied().unwrap_or(ZERO));
        total += corner(n) * eq_eval(&g.point, r.get(..n).unwrap_or(&[])) * sum;
    }
    let mut cache = BTreeMap::new();
    for g in &plan.chips {
        let n = g.log_size;
        let mut sum = ZERO;
        for (w, factors) in &g.terms {
            sum += factors.iter().fold(*w, |a, &s| a * *cache.entry(s).or_insert_with(|| source_eval(c, r, s, columns)));
        }
        total += corner(n) * eq_eval(points.rho_range(0, n), r.get(..n).unwrap_or(&[])) * sum;
    }
    total
}

/// `P(r) = sum_i eq(offset_i >> n_i, r[n_i..]) v_i`.
#[must_use]
pub fn stack_value(c: &Circuit, r: &[QM31], columns: &[QM31]) -> QM31 {
    let (offsets, _) = c.stack();
    c.columns.iter().zip(offsets).zip(columns).fold(ZERO, |acc, ((col, offset), &v)| {
        let n = col.log_size;
        acc + v * eq_at_index(offset >> n, r.get(n..).unwrap_or(&[]))
    })
}
