//! LogUp by GKR (Haböck 2022; Papini–Haböck 2023): one fraction tree for all lookups and tables of a segment.
//!
//! Leaf fractions are `selector / (beta - fingerprint)` for lookups and `-multiplicity / (beta - fingerprint)` for table
//! rows. Tags make fingerprints of different tables distinct poles, so one tree whose root is 0 balances every table by
//! itself (`docs/soundness.md`, "One tree"). Node i of a layer is the sum of nodes 2i and 2i + 1 of the layer below.

use super::error::VerifyError;
use super::sumcheck;
use crate::field::{ONE, QM31, RoundPoly, ZERO, eq_eval};
use crate::transcript::{HashSuite, Transcript};

/// One layer's reduction: a degree-3 sumcheck over the layer's variables and the four child values at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GkrLayer {
    /// As many rounds as the layer has variables.
    pub rounds: Vec<RoundPoly<3>>,
    /// Numerators of the even and odd child, denominators of the even and odd child.
    pub mask: [QM31; 4],
}

/// What the tree leaves to be proved about its leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafClaim {
    /// rho: a point over the leaf index, low bit first.
    pub point: Vec<QM31>,
    /// Numerators' extension at rho.
    pub numerator: QM31,
    /// Denominators' extension at rho.
    pub denominator: QM31,
}

/// Verifies the tree from its root (0 over non-zero) to a claim about its leaves.
///
/// # Errors
/// [`VerifyError::Lookups`] when the root is not 0 over non-zero, or a layer's final equation fails.
///
/// # Soundness
/// `(4 + 1) / q` per round; the caller must prove the leaf claim against committed columns. Fewer than p leaves per tag.
pub fn verify<S: HashSuite>(t: &mut Transcript<S>, layers: &[GkrLayer]) -> Result<LeafClaim, VerifyError> {
    let mut claim = LeafClaim { point: Vec::new(), numerator: ZERO, denominator: ONE };
    for (depth, layer) in layers.iter().enumerate() {
        let [n0, n1, d0, d1] = layer.mask;
        if depth == 0 {
            // The root itself: no sumcheck, the fraction must be 0 over something that is not 0.
            if n0 * d1 + n1 * d0 != ZERO || d0 * d1 == ZERO {
                return Err(VerifyError::Lookups);
            }
            claim.point.clear();
        } else {
            let mu = t.draw("logup.mu");
            let (x, end) = sumcheck::verify(t, "logup.round", claim.numerator + mu * claim.denominator, &layer.rounds);
            if end != eq_eval(&claim.point, &x) * (n0 * d1 + n1 * d0 + mu * d0 * d1) {
                return Err(VerifyError::Lookups);
            }
            claim.point = x;
        }
        let y = absorb_mask(t, &layer.mask);
        claim.point.insert(0, y);
        claim.numerator = n0 + y * (n1 - n0);
        claim.denominator = d0 + y * (d1 - d0);
    }
    Ok(claim)
}

/// Absorbs the child values and draws the coordinate that merges them; shared with the prover.
pub fn absorb_mask<S: HashSuite>(t: &mut Transcript<S>, mask: &[QM31; 4]) -> QM31 {
    t.absorb_felts("logup.mask", mask);
    t.draw("logup.merge")
}
