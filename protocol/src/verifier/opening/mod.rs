//! Batched opening of circle-code commitments: every oracle's claim is reduced to one point, then one BaseFold.
//!
//! Steps, the same numbers in the prover: 1 rows, 2 joint sumcheck, 3 combination, 4 folds, 5 queries. Step 1 belongs to a
//! segment's fork; the others follow there for its own oracles, or in the main transcript for those of all segments. Oracles
//! share one code length. It refuses proofs whose lengths do not follow from the registered shape before any arithmetic.

mod bits;
mod combined;
mod proof;
mod shape;

pub use bits::{combined_bits, opening_bits, row_bits};
pub use combined::verify_combined;
pub use proof::{CombinedProof, GroundRound, OpeningProof, TreeOpening};
pub use shape::{
    CLEAR_LOG, Claim, Form, MAX_ORACLES, MAX_POW, MAX_QUERIES, MAX_ROWS, OpeningParams, OpeningShape, OracleClaim, OracleShape,
    Reduced, Residual, STEP, absorb_all, absorb_statement, label, row_vars,
};

use super::merkle::MerkleError;
use crate::field::QM31;
use crate::transcript::{HashSuite, Transcript};

/// A field of the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Row sumchecks.
    Rows,
    /// Everything after the rows: there where it belongs elsewhere, or missing.
    Combined,
    /// Joint sumcheck.
    Joint,
    /// Values at ζ.
    Values,
    /// Nonces of θ.
    ThetaNonces,
    /// Roots of committed words.
    Roots,
    /// Fold rounds.
    Folds,
    /// Clear message.
    Message,
    /// Openings of oracles.
    Oracles,
    /// Openings of committed words.
    Layers,
}

/// Why an opening is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    /// Parameters or number of oracles outside the supported ranges.
    #[error("opening parameters outside the supported ranges: check the registered descriptor")]
    Params,
    /// A claim whose lengths do not fit its oracle.
    #[error("claim {oracle} does not fit its oracle: check how the caller derived it")]
    Claim {
        /// Index of the oracle.
        oracle: usize,
    },
    /// A proof field of the wrong length.
    #[error("proof field {field:?} has the wrong length: it was made for another shape")]
    ProofShape {
        /// The field.
        field: Field,
    },
    /// A nonce without the required zero bits.
    #[error("grinding before {step} is missing: the prover must search a nonce for this transcript")]
    Pow {
        /// Label of the challenge.
        step: &'static str,
    },
    /// The joint sumcheck does not end at the sent values.
    #[error("values at the joint point contradict the claims: some claimed opening is false")]
    Joint,
    /// The fold sumcheck does not end at the clear message.
    #[error("clear message contradicts the combined value: the prover's folds are not of the committed data")]
    Fold,
    /// An oracle does not open at the queried positions.
    #[error("oracle {oracle}: {source}")]
    Oracle {
        /// Index of the oracle.
        oracle: usize,
        /// What failed.
        source: MerkleError,
    },
    /// A committed word does not open at the queried positions.
    #[error("committed word {layer}: {source}")]
    Layer {
        /// Index of the word.
        layer: usize,
        /// What failed.
        source: MerkleError,
    },
    /// A word differs from the fold of what came before it.
    #[error("word {layer} is not the fold of the one before it: data or fold was altered")]
    Inconsistent {
        /// Index of the word; `layers` stands for the clear message.
        layer: usize,
    },
}

/// Verifies that every oracle's claim holds.
///
/// Checks lengths, all grinding, both sumchecks, all Merkle proofs and every fold at every queried position.
///
/// # Errors
/// [`OpeningError`] with the first check that fails.
///
/// # Soundness
/// Unique-decoding regime, errors as in [`opening_bits`]. The caller must have absorbed all roots before any coordinate of
/// a claim was drawn, must take roots and row counts from registration or statement (never from the proof), must have
/// ground before the row coordinates of Point claims, and must check that no proof bytes are left over.
pub fn verify<S: HashSuite>(
    t: &mut Transcript<S>,
    params: &OpeningParams,
    oracles: &[OracleClaim],
    proof: &OpeningProof,
) -> Result<(), OpeningError> {
    let reduced = verify_rows(t, params, oracles, proof, true)?;
    match &proof.combined {
        Some(combined) => verify_combined(t, params, &reduced, combined),
        None => Err(OpeningError::ProofShape { field: Field::Combined }),
    }
}

/// Step 1 for the oracles of one segment: every claim becomes <F_o, K_o> = value with F_o a combination of the oracle's rows.
///
/// `each` says whether the steps after it belong to this proof.
///
/// # Errors
/// [`OpeningError`] with the first check that fails; also for a proof whose other steps have the wrong lengths.
///
/// # Soundness
/// As [`verify`]. The reduced claims hold only if [`verify_combined`] accepts them in a transcript that is bound to this
/// one: the same, or one that has absorbed its digest.
pub fn verify_rows<S: HashSuite>(
    t: &mut Transcript<S>,
    params: &OpeningParams,
    oracles: &[OracleClaim],
    proof: &OpeningProof,
    each: bool,
) -> Result<Vec<Reduced>, OpeningError> {
    let shape = OpeningShape::of(params, oracles)?;
    proof.check_shape(&shape, each)?;
    absorb_statement(t, params, oracles);

    // Step 1: rows.
    let mut reduced = Vec::with_capacity(oracles.len());
    for (o, rounds) in oracles.iter().zip(&proof.rows) {
        reduced.push(Reduced { root: o.root, residual: row_phase(t, params, o, rounds)? });
    }
    Ok(reduced)
}

/// Accepts a nonce and draws the challenge it protects.
fn ground_draw<S: HashSuite>(t: &mut Transcript<S>, bits: u32, nonce: u64, step: &'static str) -> Result<QM31, OpeningError> {
    if !t.accept_pow(bits, nonce) {
        return Err(OpeningError::Pow { step });
    }
    Ok(t.draw(step))
}

/// Step 1 for one oracle. A Point claim needs no rounds; a Tiles claim has a sumcheck over its row variables.
fn row_phase<S: HashSuite>(
    t: &mut Transcript<S>,
    params: &OpeningParams,
    o: &OracleClaim,
    rounds: &[GroundRound],
) -> Result<Residual, OpeningError> {
    match &o.claim {
        Claim::Point { r, value } => Ok(Residual::of_point(params.h, o.rows, r, *value)),
        Claim::Tiles { weights, point, value } => {
            let mut claim = *value;
            let mut beta = Vec::with_capacity(rounds.len());
            for round in rounds {
                t.absorb_felts(label::ROW_POLY, &round.poly.0);
                let b = ground_draw(t, params.g_fold, round.nonce, label::ROW)?;
                claim = round.poly.eval(claim, b);
                beta.push(b);
            }
            let s = params.h.saturating_sub(point.len() as u32);
            let slots = Residual::slot_weights(weights, s, &beta);
            Ok(Residual::after_rows(o.rows, &beta, slots, point.clone(), claim))
        }
    }
}
