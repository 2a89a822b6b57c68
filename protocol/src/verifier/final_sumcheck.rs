//! The final sumcheck of a segment: every claim on a committed column ends at one point r (`docs/soundness.md` §4.3).
//!
//! Heights are low-aligned: a function of n variables is multiplied by `prod_{j >= n} (1 - x_j)`. A column of n variables is
//! claimed at `r[..n]` and its value is absorbed before `r[n]` is drawn, so the whole value stack is the single claim P(r).

use super::error::VerifyError;
use super::plan::{Plan, source_eval};
use super::points::{coordinates, low_corner};
use crate::circuit::expr::Source;
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
/// [`VerifyError::FinalClaim`] and [`VerifyError::Grinding`]; [`VerifyError::Point`], [`VerifyError::Count`] and
/// [`VerifyError::Dangling`] when the proof is not as long as the circuit.
///
/// # Soundness
/// `4 / q` per round. The returned claim must be opened on the value oracle.
pub fn verify<S: HashSuite>(
    t: &mut Transcript<S>,
    c: &Circuit,
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
            let accepted = nonces.next().is_some_and(|&nonce| t.accept_pow(shape.g_fold, nonce));
            if !accepted {
                return Err(VerifyError::Grinding("a coordinate of r"));
            }
        }
        let x = t.draw("final.r");
        claim = poly.map_or(claim, |p| p.eval(claim, x));
        r.push(x);
    }
    if claim != expected(c, plan, &r, &proof.columns)? {
        return Err(VerifyError::FinalClaim("constraints, lookups and relations"));
    }
    let value = stack_value(c, &r, &proof.columns)?;
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
fn expected(c: &Circuit, plan: &Plan, r: &[QM31], columns: &[QM31]) -> Result<QM31, VerifyError> {
    let rounds = c.max_log();
    let at = |point: &[QM31]| -> Result<QM31, VerifyError> {
        let n = point.len();
        let beyond = coordinates("r", r, n, rounds.saturating_sub(n))?;
        Ok(low_corner(beyond) * eq_eval(point, coordinates("r", r, 0, n)?))
    };
    let mut total = ZERO;
    for g in &plan.linear {
        let mut sum = ZERO;
        for &(col, w) in &g.terms {
            sum += w * source_eval(c, r, Source::Col(col), columns)?;
        }
        total += at(&g.point)? * sum;
    }
    let mut known = BTreeMap::new();
    for g in &plan.chips {
        let mut sum = ZERO;
        for (w, factors) in &g.terms {
            let mut term = *w;
            for &s in factors {
                term *= match known.get(&s) {
                    Some(&value) => value,
                    None => *known.entry(s).or_insert(source_eval(c, r, s, columns)?),
                };
            }
            sum += term;
        }
        total += at(&g.point)? * sum;
    }
    Ok(total)
}

/// `P(r) = sum_i eq(offset_i >> n_i, r[n_i..]) v_i`.
///
/// # Errors
/// [`VerifyError::Count`] for other columns than the circuit's, [`VerifyError::Point`] for an r that is shorter than one.
pub fn stack_value(c: &Circuit, r: &[QM31], columns: &[QM31]) -> Result<QM31, VerifyError> {
    let (found, expected) = (columns.len(), c.columns.len());
    if found != expected {
        return Err(VerifyError::Count { step: "columns", found, expected });
    }
    let (offsets, _) = c.stack();
    let mut value = ZERO;
    for ((col, offset), &v) in c.columns.iter().zip(offsets).zip(columns) {
        let n = col.log_size;
        value += v * eq_at_index(offset >> n, coordinates("r", r, n, r.len().saturating_sub(n))?);
    }
    Ok(value)
}
