//! Steps 2 to 5 of an opening, for oracles whose rows are combined: those of one segment, or of all.

use super::proof::{CombinedProof, TreeOpening};
use super::shape::{MAX_ORACLES, OpeningParams, Reduced, Residual, STEP, label, row_vars};
use super::{OpeningError, ground_draw};
use crate::field::{M31, QM31, ZERO, eq_eval, eq_vector, inner};
use crate::transcript::{Digest, HashSuite, Transcript};
use crate::verifier::code::CodeDomain;
use crate::verifier::merkle::{self, MerkleError};

/// Verifies what is left of all claims: joint sumcheck, combination, folds, and the same queries to every oracle.
///
/// # Errors
/// [`OpeningError`] with the first check that fails.
///
/// # Soundness
/// As `verify`; `reduced` must be fixed by what the transcript has absorbed, every oracle and its claim included.
pub fn verify_combined<S: HashSuite>(
    t: &mut Transcript<S>,
    params: &OpeningParams,
    reduced: &[Reduced],
    proof: &CombinedProof,
) -> Result<(), OpeningError> {
    params.validate()?;
    if reduced.is_empty() || reduced.len() > MAX_ORACLES {
        return Err(OpeningError::Params);
    }
    if let Some(oracle) = reduced.iter().position(|o| !o.residual.fits(params)) {
        return Err(OpeningError::Claim { oracle });
    }
    proof.check_shape(params, reduced.len())?;

    // Step 2: joint sumcheck of sum_o eq(δ, o) <F_o, K_o>, ending at ζ.
    let zeta = joint_phase(t, reduced, proof)?;

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
    for (oracle, ((o, &weight), opening)) in reduced.iter().zip(&theta).zip(&proof.oracles).enumerate() {
        add_oracle::<S>(params, o, weight, &positions, opening, &mut combined)
            .map_err(|source| OpeningError::Oracle { oracle, source })?;
    }
    check_folds::<S>(params, positions.into_iter().zip(combined).collect(), &alphas, proof)
}

/// Step 2. Returns ζ.
fn joint_phase<S: HashSuite>(
    t: &mut Transcript<S>,
    reduced: &[Reduced],
    proof: &CombinedProof,
) -> Result<Vec<QM31>, OpeningError> {
    let delta = eq_vector(&t.draw_many(label::DELTA, row_vars(reduced.len()) as usize));
    let mut claim = reduced.iter().zip(&delta).fold(ZERO, |acc, (o, &d)| acc + d * o.residual.value);
    let mut zeta = Vec::with_capacity(proof.joint.len());
    for poly in &proof.joint {
        t.absorb_felts(label::JOINT_POLY, &poly.0);
        let z = t.draw(label::ZETA);
        claim = poly.eval(claim, z);
        zeta.push(z);
    }
    t.absorb_felts(label::VALUES, &proof.values);
    let end = reduced.iter().zip(&delta).zip(&proof.values);
    if end.fold(ZERO, |acc, ((o, &d), &f)| acc + d * o.residual.kernel_at(&zeta) * f) != claim {
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
    proof: &CombinedProof,
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
    o: &Reduced,
    weight: QM31,
    positions: &[usize],
    opening: &TreeOpening<M31>,
    combined: &mut [QM31],
) -> Result<(), MerkleError> {
    let Residual { coefficients, .. } = &o.residual;
    let rows = coefficients.len();
    if rows == 0 || opening.symbols.len() != positions.len().saturating_mul(rows) {
        return Err(MerkleError::Indices);
    }
    let symbols: Vec<&[M31]> = opening.symbols.chunks(rows).collect();
    let leaves: Vec<(usize, Digest)> = positions.iter().copied().zip(S::leaves(&symbols)).collect();
    for (leaf, sum) in symbols.into_iter().zip(combined) {
        *sum += weight * leaf.iter().zip(coefficients).fold(ZERO, |acc, (&x, &c)| acc + c * x);
    }
    merkle::verify::<S>(&o.root, params.log_n(), &leaves, &opening.nodes)
}

/// Follows every combined symbol through the committed words down to the clear message.
fn check_folds<S: HashSuite>(
    params: &OpeningParams,
    mut symbols: Vec<(usize, QM31)>,
    alphas: &[QM31],
    proof: &CombinedProof,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{ONE, RoundPoly};
    use crate::transcript::Blake2s;

    const PARAMS: OpeningParams = OpeningParams { h: 3, blowup_log: 1, queries: 2, g_fold: 0, g_query: 0 };

    /// Of the right lengths for [`PARAMS`] and one oracle, and of nothing that was committed.
    fn verdict(params: OpeningParams, change: impl Fn(&mut Residual)) -> Result<(), OpeningError> {
        let proof = CombinedProof {
            joint: vec![RoundPoly([ZERO; 2]); 3],
            values: vec![ZERO],
            theta_nonces: Vec::new(),
            roots: Vec::new(),
            folds: Vec::new(),
            message: vec![ZERO; 8],
            query_nonce: 0,
            oracles: vec![TreeOpening::default()],
            layers: Vec::new(),
        };
        let mut residual = Residual { coefficients: vec![ONE], slots: vec![ONE; 2], point: vec![ONE; 2], value: ZERO };
        change(&mut residual);
        let reduced = [Reduced { root: [1; 32], residual }];
        verify_combined(&mut Transcript::<Blake2s>::new("t"), &params, &reduced, &proof)
    }

    #[test]
    fn parameters_that_no_model_may_have_are_refused() {
        assert!(matches!(verdict(PARAMS, |_| ()), Err(OpeningError::Oracle { oracle: 0, .. })));
        // Without a query nothing would be asked of any tree; without redundancy there would be no distance.
        let weak = [
            OpeningParams { queries: 0, ..PARAMS },
            OpeningParams { blowup_log: 0, ..PARAMS },
            OpeningParams { h: 0, ..PARAMS },
            OpeningParams { g_query: 200, ..PARAMS },
        ];
        for params in weak {
            assert_eq!(verdict(params, |_| ()), Err(OpeningError::Params), "{params:?}");
        }
    }

    #[test]
    fn a_reduced_claim_about_other_rows_is_refused() {
        type Change = fn(&mut Residual);
        let changes: [Change; 4] =
            [|r| r.point.push(ONE), |r| r.slots.truncate(1), |r| r.coefficients.clear(), |r| r.point = vec![ONE; 4]];
        for change in changes {
            assert_eq!(verdict(PARAMS, change), Err(OpeningError::Claim { oracle: 0 }));
        }
    }
}
