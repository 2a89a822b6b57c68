//! Sumcheck rounds: absorb the polynomial, draw the challenge, reduce the claim. Low variable first.

use crate::field::{QM31, RoundPoly};
use crate::transcript::{HashSuite, Transcript};

/// Runs the rounds and returns the point and the reduced claim.
///
/// # Soundness
/// The caller must still compare the reduced claim with the summand at the point. `D / q` per round.
pub fn verify<S: HashSuite, const D: usize>(
    t: &mut Transcript<S>,
    label: &str,
    mut claim: QM31,
    rounds: &[RoundPoly<D>],
) -> (Vec<QM31>, QM31) {
    let mut point = Vec::with_capacity(rounds.len());
    for poly in rounds {
        let r = round(t, label, poly);
        claim = poly.eval(claim, r);
        point.push(r);
    }
    (point, claim)
}

/// One round's transcript part, shared with the prover.
pub fn round<S: HashSuite, const D: usize>(t: &mut Transcript<S>, label: &str, poly: &RoundPoly<D>) -> QM31 {
    t.absorb_felts(label, &poly.0);
    t.draw(label)
}
