//! Batched opening of circle-code commitments: every oracle's claim is reduced to one point, then one BaseFold.
//!
//! Steps, the same numbers in the prover: 1 rows, 2 joint sumcheck, 3 combination, 4 folds, 5 queries. Oracles share one
//! code length. It refuses proofs whose lengths do not follow from the registered shape before any arithmetic.

mod bits;
mod proof;
mod shape;

pub use bits::opening_bits;
pub use proof::{GroundRound, OpeningProof, TreeOpening};
pub use shape::{
    CLEAR_LOG, Claim, Form, MAX_ORACLES, MAX_POW, MAX_QUERIES, MAX_ROWS, OpeningParams, OpeningShape, OracleClaim, OracleShape,
    Residual, STEP, absorb_statement, label, row_vars,
};

use super::code::CodeDomain;
use super::merkle::{self, MerkleError};
use crate::field::{M31, QM31, ZERO, eq_eval, eq_vector, inner};
use crate::transcript::{Digest, HashSuite, Transcript};

/// A field of the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Row sumchecks.
    Rows,
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
    let shape = OpeningShape::of(params, oracles)?;
    proof.check_shape(&shape)?;
    absorb_statement(t, params, oracles);

    // Step 1: rows. Every claim becomes <F_o, K_o> = value with F_o a combination of the oracle's rows.
    let mut residuals = Vec::with_capacity(oracles.len());
    for (o, rounds) in oracles.iter().zip(&proof.rows) {
        residuals.push(row_phase(t, params, o, rounds)?);
    }

    // Step 2: joint sumcheck of sum_o eq(δ, o) <F_o, K_o>, ending at ζ.
    let zeta = joint_phase(t, shape.oracle_vars(), &residuals, proof)?;

    // Step 3: combination G = sum_o eq(θ, o) F_o.
    let mut theta = Vec::new();
    for nonce in &proof.theta_nonces {
        theta.push(ground_draw(t, params.g_fold, *nonce, label::THETA)?);
    }
    let theta = eq_vector(&theta);

    // Step 4: folds of G at ζ.
    let alphas = fold_phase(t, params, &zeta, inner(&theta, &proof.values), proof)?;

    // Step 5: queries.
    if !t.accept_pow(params.g_query, proof.query_nonce) {
        return Err(OpeningError::Pow { step: label::QUERY });
    }
    let mut positions = t.draw_positions(label::QUERY, params.log_n(), params.queries);
    positions.sort_unstable();
    positions.dedup();
    let mut combined = vec![ZERO; positions.len()];
    for (oracle, (((o, residual), &weight), opening)) in
        oracles.iter().zip(&residuals).zip(&theta).zip(&proof.oracles).enumerate()
    {
        add_oracle::<S>(params, o, residual, weight, &positions, opening, &mut combined)
            .map_err(|source| OpeningError::Oracle { oracle, source })?;
    }
    check_folds::<S>(params, positions.into_iter().zip(combined).collect(), &alphas, proof)
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

/// Step 2. Returns ζ.
fn joint_phase<S: HashSuite>(
    t: &mut Transcript<S>,
    oracle_vars: u32,
    residuals: &[Residual],
    proof: &OpeningProof,
) -> Result<Vec<QM31>, OpeningError> {
    let delta = eq_vector(&t.draw_many(label::DELTA, oracle_vars as usize));
    let mut claim = residuals.iter().zip(&delta).fold(ZERO, |acc, (r, &d)| acc + d * r.value);
    let mut zeta = Vec::with_capacity(proof.joint.len());
    for poly in &proof.joint {
        t.absorb_felts(label::JOINT_POLY, &poly.0);
        let z = t.draw(label::ZETA);
        claim = poly.eval(claim, z);
        zeta.push(z);
    }
    t.absorb_felts(label::VALUES, &proof.values);
    let end = residuals.iter().zip(&delta).zip(&proof.values);
    if end.fold(ZERO, |acc, ((r, &d), &f)| acc + d * r.kernel_at(&zeta) * f) != claim {
        return Err(OpeningError::Joint);
    }
    Ok(zeta)
}

/// Step 4. Returns the fold challenges.
fn fold_phase<S: HashSuite>(
    t: &mut Transcript<S>,
    params: &OpeningParams,
    zeta: &[QM31],
    mut claim: QM31,
    proof: &OpeningProof,
) -> Result<Vec<QM31>, OpeningError> {
    let mut roots = proof.roots.iter();
    let mut alphas = Vec::with_capacity(proof.folds.len());
    for (k, round) in proof.folds.iter().enumerate() {
        if k % STEP as usize == 0
            && let Some(root) = roots.next()
        {
            t.absorb_digest(label::ROOT, root);
        }
        t.absorb_felts(label::FOLD_POLY, &round.poly.0);
        let a = ground_draw(t, params.g_fold, round.nonce, label::ALPHA)?;
        claim = round.poly.eval(claim, a);
        alphas.push(a);
    }
    t.absorb_felts(label::MESSAGE, &proof.message);
    let (bound, free) = zeta.split_at(alphas.len().min(zeta.len()));
    if inner(&proof.message, &eq_vector(free)) * eq_eval(bound, &alphas) != claim {
        return Err(OpeningError::Fold);
    }
    Ok(alphas)
}

/// Opens one oracle and adds `weight · sum_row coefficient·symbol` to every position's combined symbol.
fn add_oracle<S: HashSuite>(
    params: &OpeningParams,
    o: &OracleClaim,
    residual: &Residual,
    weight: QM31,
    positions: &[usize],
    opening: &TreeOpening<M31>,
    combined: &mut [QM31],
) -> Result<(), MerkleError> {
    if opening.symbols.len() != positions.len().saturating_mul(o.rows) {
        return Err(MerkleError::Indices);
    }
    let symbols: Vec<&[M31]> = opening.symbols.chunks(o.rows).collect();
    let leaves: Vec<(usize, Digest)> = positions.iter().copied().zip(S::leaves(&symbols)).collect();
    for (leaf, sum) in symbols.into_iter().zip(combined) {
        *sum += weight * leaf.iter().zip(&residual.coefficients).fold(ZERO, |acc, (&x, &c)| acc + c * x);
    }
    merkle::verify::<S>(&o.root, params.log_n(), &leaves, &opening.nodes)
}

/// Follows every combined symbol through the committed words down to the clear message.
fn check_folds<S: HashSuite>(
    params: &OpeningParams,
    mut symbols: Vec<(usize, QM31)>,
    alphas: &[QM31],
    proof: &OpeningProof,
) -> Result<(), OpeningError> {
    let domain = CodeDomain::new(params.log_n());
    let steps = alphas.chunks(STEP as usize).zip(&proof.layers).zip(&proof.roots).enumerate();
    for (layer, ((alphas, opening), root)) in steps {
        let bad = |source| OpeningError::Layer { layer, source };
        let mut blocks: Vec<usize> = symbols.iter().map(|(p, _)| p >> STEP).collect();
        blocks.dedup();
        if opening.symbols.len() != blocks.len() << STEP {
            return Err(bad(MerkleError::Indices));
        }
        let round = layer as u32 * STEP;
        let mut expected = symbols.iter().peekable();
        let flat: Vec<M31> = opening.symbols.iter().flat_map(|v| v.to_m31_array()).collect();
        let mut next = Vec::with_capacity(blocks.len());
        for (&block, values) in blocks.iter().zip(opening.symbols.chunks(1 << STEP)) {
            while let Some((position, value)) = expected.next_if(|(p, _)| p >> STEP == block) {
                if values.get(position & ((1 << STEP) - 1)) != Some(value) {
                    return Err(OpeningError::Inconsistent { layer });
                }
            }
            next.push((block, domain.fold_block(round, block, values, alphas)));
        }
        let digests = S::leaves(&flat.chunks(4 << STEP).collect::<Vec<_>>());
        let leaves: Vec<(usize, Digest)> = blocks.into_iter().zip(digests).collect();
        merkle::verify::<S>(root, params.layer_depth(layer as u32), &leaves, &opening.nodes).map_err(bad)?;
        symbols = next;
    }
    let honest = symbols.iter().all(|(p, v)| domain.encode_at(params.folds(), *p, &proof.message) == *v);
    if honest { Ok(()) } else { Err(OpeningError::Inconsistent { layer: proof.layers.len() }) }
}
