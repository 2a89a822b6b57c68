//! All matrix products and sums of a segment in one sumcheck (Thaler 2013), low bits first, degree 3.
//!
//! `sum_m lambda^m acc_m = sum_y sum_m lambda^m prod factors_m(y) prod_{j >= vars_m} (1 - y_j)`.

use super::error::VerifyError;
use super::points::{Points, coordinates, low_corner, public_factor};
use super::sumcheck;
use crate::circuit::segment::{Circuit, Factor};
use crate::field::{ONE, QM31, RoundPoly, ZERO};
use crate::transcript::{HashSuite, Transcript};

/// Values and rounds of the product step.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ProductProof {
    /// Value of each product at rho.
    pub accumulators: Vec<QM31>,
    /// As many rounds as the widest product has variables.
    pub rounds: Vec<RoundPoly<3>>,
    /// Value of each input claim at its point.
    pub claims: Vec<QM31>,
    /// Value of each matrix at (kappa, rho).
    pub weights: Vec<QM31>,
}

/// Verifies the products; fills `points.kappa`. `points.rho` must be complete.
///
/// # Errors
/// [`VerifyError::FinalClaim`] when the factors' claimed values do not give the reduced claim; [`VerifyError::Count`] for other
/// numbers of values than the circuit's; [`VerifyError::Point`] and [`VerifyError::Dangling`] when it names what is not there.
///
/// # Soundness
/// `3 / q` per round and `products / q` for lambda. Claims and weights are absorbed; the caller must prove them.
pub fn verify<S: HashSuite>(
    t: &mut Transcript<S>,
    c: &Circuit,
    points: &mut Points,
    proof: &ProductProof,
) -> Result<(), VerifyError> {
    let (found, expected) = (proof.accumulators.len(), c.products.len());
    if found != expected {
        return Err(VerifyError::Count { step: "accumulators", found, expected });
    }
    let lambda = absorb_accumulators(t, &proof.accumulators);
    let powers = powers(lambda, proof.accumulators.len());
    let claim = powers.iter().zip(&proof.accumulators).fold(ZERO, |acc, (&l, &a)| acc + l * a);
    let (kappa, end) = sumcheck::verify(t, "product.round", claim, &proof.rounds);
    points.kappa = kappa;
    let mut expected = ZERO;
    for (p, &l) in c.products.iter().zip(&powers) {
        let beyond = coordinates("kappa", &points.kappa, p.vars, points.kappa.len().saturating_sub(p.vars))?;
        let mut value = l * low_corner(beyond);
        for f in &p.factors {
            let (committed, what, index) = match f {
                Factor::Claim(i) => (proof.claims.get(*i).copied(), "an input claim", *i),
                Factor::Weight(i) => (proof.weights.get(*i).copied(), "a matrix", *i),
                _ => (public_factor(c, points, f)?, "a public factor", 0),
            };
            value *= committed.ok_or(VerifyError::Dangling { what, index })?;
        }
        expected += value;
    }
    if end != expected {
        return Err(VerifyError::FinalClaim("products"));
    }
    absorb_claims(t, proof);
    Ok(())
}

/// Absorbs the accumulators and draws lambda; shared with the prover.
pub fn absorb_accumulators<S: HashSuite>(t: &mut Transcript<S>, accumulators: &[QM31]) -> QM31 {
    t.absorb_felts("product.accumulators", accumulators);
    t.draw("product.lambda")
}

/// Absorbs the values at kappa; shared with the prover.
pub fn absorb_claims<S: HashSuite>(t: &mut Transcript<S>, proof: &ProductProof) {
    t.absorb_felts("product.claims", &proof.claims);
    t.absorb_felts("product.weights", &proof.weights);
}

/// `1, x, x^2, ..` (`n` of them).
#[must_use]
pub fn powers(x: QM31, n: usize) -> Vec<QM31> {
    std::iter::successors(Some(ONE), |&p| Some(p * x)).take(n).collect()
}
