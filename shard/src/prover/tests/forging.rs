//! Forging provers: each cheats in exactly one place, is consistent everywhere else, and is rejected at the step named.

use super::crooked::{Cheat, Combination, Crooked, CrookedOracle};
use super::{Case, Kind, Rng, params, true_claim};
use crate::kernels::reference::{BaseWords, Reference};
use crate::kernels::{CodeShape, CommitKernels};
use crate::prover::commitment::{CommittedValues, Oracle};
use crate::prover::opening::{
    OpeningInput, fold_phase, grind, ground_draw, joint_phase, open_layers, open_oracle, prove, row_phase,
};
use obelysk_protocol::field::{M31, ONE, QM31, ZERO, eq_vector, inner, mle_eval_base};
use obelysk_protocol::transcript::{Blake2s, Transcript};
use obelysk_protocol::verifier::bytes::Reader;
use obelysk_protocol::verifier::merkle::MerkleError;
use obelysk_protocol::verifier::opening::{
    Claim, CombinedProof, OpeningError, OpeningParams, OpeningProof, OpeningShape, OracleClaim, Residual, absorb_statement,
    label, verify,
};

const H: u32 = 6;

fn code(p: &OpeningParams) -> CodeShape {
    CodeShape { h: p.h, blowup_log: p.blowup_log }
}

/// Proves with a crooked backend and one Point oracle unless told otherwise.
fn cheat(cheat: Cheat, p: OpeningParams, spec: &[(usize, Kind)]) -> Result<(), OpeningError> {
    let backend = Crooked::new(cheat);
    let mut case = Case::new::<Blake2s>(&backend, 11, p, spec);
    let wrong = [Cheat::WrongValue, Cheat::WrongValueAndEvaluation, Cheat::WrongValueEvaluationAndMessage];
    if wrong.contains(&cheat)
        && let Some(Claim::Point { value, .. }) = case.claims.first_mut()
    {
        *value += ONE;
    }
    let proof = case.prove::<Blake2s>(&backend);
    case.verify::<Blake2s>(&proof)
}

#[test]
fn forging_a_value_is_rejected_however_far_it_is_carried() {
    let one = [(3, Kind::Point)];
    assert_eq!(cheat(Cheat::WrongValue, params(H, 2), &one), Err(OpeningError::Joint));
    assert_eq!(cheat(Cheat::WrongValueAndEvaluation, params(H, 2), &one), Err(OpeningError::Fold));
    let carried = cheat(Cheat::WrongValueEvaluationAndMessage, params(H, 2), &one);
    assert_eq!(carried, Err(OpeningError::Inconsistent { layer: 1 }));
}

#[test]
fn forging_without_folds_is_rejected_too() {
    let (p, one) = (params(3, 2), [(3, Kind::Point)]);
    assert_eq!(cheat(Cheat::WrongValueAndEvaluation, p, &one), Err(OpeningError::Fold));
    assert_eq!(cheat(Cheat::WrongValueEvaluationAndMessage, p, &one), Err(OpeningError::Inconsistent { layer: 0 }));
}

#[test]
fn forging_a_fold_is_rejected() {
    let one = [(3, Kind::Point)];
    for round in 0..=2 {
        // h = 9 has two committed words; the first three folds lead from one to the other.
        let verdict = cheat(Cheat::FoldWord(round), params(9, 1), &one);
        assert_eq!(verdict, Err(OpeningError::Inconsistent { layer: 1 }), "round {round}");
    }
    assert_eq!(cheat(Cheat::FoldBoth, params(H, 2), &one), Err(OpeningError::Fold));
}

#[test]
fn forging_the_clear_message_is_rejected() {
    let one = [(2, Kind::Tiles(1))];
    assert_eq!(cheat(Cheat::Message, params(H, 2), &one), Err(OpeningError::Fold));
    assert_eq!(cheat(Cheat::MessageSameValue, params(H, 2), &one), Err(OpeningError::Inconsistent { layer: 1 }));
}

#[test]
fn forging_by_skipped_grinding_is_rejected_at_every_step() {
    let p = |g_fold, g_query| OpeningParams { g_fold, g_query, ..params(H, 2) };
    let pow = |step| Err(OpeningError::Pow { step });
    let two = [(2, Kind::Point), (1, Kind::Point)];
    assert_eq!(cheat(Cheat::NoGrinding(5), p(5, 1), &[(2, Kind::Tiles(0))]), pow(label::ROW));
    assert_eq!(cheat(Cheat::NoGrinding(5), p(5, 1), &two), pow(label::THETA));
    assert_eq!(cheat(Cheat::NoGrinding(5), p(5, 1), &two[..1]), pow(label::ALPHA));
    assert_eq!(cheat(Cheat::NoGrinding(5), p(1, 5), &two), pow(label::QUERY));
}

#[test]
fn forging_by_leaving_an_oracle_out_is_rejected() {
    let two = [(2, Kind::Point), (3, Kind::Tiles(1))];
    assert_eq!(cheat(Cheat::LeaveOut, params(H, 2), &two), Err(OpeningError::Fold));
    // The same, but the oracle is ignored consistently: combined to nothing, evaluated to zero.
    let p = params(H, 2);
    let values = Rng(1).rows(2, H);
    let words = Reference.encode_base(&values, code(&p));
    let ignored = CrookedOracle::new::<Blake2s>(code(&p), values.clone(), words, Combination::Zero);
    let honest = CommittedValues::commit::<Blake2s>(&Reference, code(&p), values.clone());
    let mut rng = Rng(2);
    let claims =
        [&honest as &dyn Oracle<Reference>, &ignored].map(|o| true_claim(&Reference, &mut rng, o, &values, H, Kind::Point));
    assert_eq!(open(&p, &[&honest, &ignored], &claims, None), Err(OpeningError::Joint));
}

/// Honest prover over arbitrary oracles.
fn open(
    p: &OpeningParams,
    oracles: &[&dyn Oracle<Reference>],
    claims: &[Claim],
    partials: Option<Vec<QM31>>,
) -> Result<(), OpeningError> {
    let inputs: Vec<OpeningInput<'_, Reference>> = oracles
        .iter()
        .zip(claims)
        .map(|(&oracle, claim)| OpeningInput { oracle, claim: claim.clone(), partials: partials.clone() })
        .collect();
    let proof = prove(&Reference, &mut Transcript::<Blake2s>::new("test"), p, &inputs)?;
    verify(&mut Transcript::<Blake2s>::new("test"), p, &statement(oracles, claims), &proof)
}

fn statement(oracles: &[&dyn Oracle<Reference>], claims: &[Claim]) -> Vec<OracleClaim> {
    let pairs = oracles.iter().zip(claims);
    pairs.map(|(o, c)| OracleClaim { root: o.root(), rows: o.rows(), claim: c.clone() }).collect()
}

#[test]
fn forging_with_a_word_far_from_the_code_is_rejected() {
    let p = params(H, 2);
    let values = Rng(4).rows(3, H);
    let BaseWords(mut words) = Reference.encode_base(&values, code(&p));
    for (i, symbol) in words.iter_mut().enumerate().filter(|(i, _)| i % 3 == 0) {
        *symbol += M31::from_u32_unchecked(1 + i as u32);
    }
    let oracle = CrookedOracle::new::<Blake2s>(code(&p), values.clone(), BaseWords(words), Combination::Honest);
    for kind in [Kind::Point, Kind::Tiles(1)] {
        let claim = true_claim(&Reference, &mut Rng(5), &oracle, &values, H, kind);
        assert_eq!(open(&p, &[&oracle], &[claim], None), Err(OpeningError::Inconsistent { layer: 0 }));
    }
}

#[test]
fn forging_with_rows_combined_by_powers_is_rejected() {
    let p = params(H, 2);
    let values = Rng(6).rows(4, H);
    let words = Reference.encode_base(&values, code(&p));
    let oracle = CrookedOracle::new::<Blake2s>(code(&p), values.clone(), words, Combination::Powers);
    // The claimed value is the power combination's, so both sumchecks close; only the queries see the rows.
    let r = Rng(7).felts(8);
    let powers = CrookedOracle::powers(4, eq_vector(&r[6..])[1]);
    let rows: Vec<QM31> = values.chunks_exact(1 << H).map(|row| mle_eval_base(row, &r[..6])).collect();
    let claim = Claim::Point { r, value: inner(&powers, &rows) };
    assert_eq!(open(&p, &[&oracle], &[claim], None), Err(OpeningError::Inconsistent { layer: 0 }));
}

#[test]
fn forging_with_a_support_only_vector_is_rejected() {
    let p = params(H, 2);
    let values = Rng(8).rows(5, H);
    let oracle = CommittedValues::commit::<Blake2s>(&Reference, code(&p), values.clone());
    let mut rng = Rng(9);
    let (mut weights, point) = (rng.felts(10), rng.felts(5));
    for slot in [0, 3, 4, 5, 8] {
        weights[slot] = ZERO;
    }
    let full = Oracle::<Reference>::partials(&oracle, &Reference, &point);
    let support: Vec<QM31> = full.iter().zip(&weights).map(|(&a, &w)| if w == ZERO { ZERO } else { a }).collect();
    let value = inner(&weights, &full);
    assert_eq!(value, inner(&weights, &support));
    let claim = [Claim::Tiles { weights, point, value }];
    assert_eq!(open(&p, &[&oracle], &claim, Some(full)), Ok(()));
    assert_eq!(open(&p, &[&oracle], &claim, Some(support)), Err(OpeningError::Joint));
}

#[test]
fn forging_by_swapped_tiles_is_rejected() {
    let p = params(H, 2);
    let values = Rng(10).rows(4, H);
    let words = Reference.encode_base(&values, code(&p));
    let swap_rows = |v: &[M31]| [&v[64..128], &v[..64], &v[128..]].concat();
    let swap_slots = |v: &[M31]| [&v[32..64], &v[..32], &v[64..]].concat();
    for swapped in [swap_rows(&values), swap_slots(&values)] {
        // Everything is computed, and claimed, about the swapped tiles; only the committed words are the registered ones.
        let oracle = CrookedOracle::new::<Blake2s>(code(&p), swapped.clone(), words.clone(), Combination::Honest);
        let claim = true_claim(&Reference, &mut Rng(12), &oracle, &swapped, H, Kind::Tiles(1));
        assert_eq!(open(&p, &[&oracle], &[claim], None), Err(OpeningError::Inconsistent { layer: 0 }));
    }
}

/// The steps of `prove`, with the positions and the sent values in the forger's hands.
fn steps(
    case: &Case<Reference>,
    positions_of: impl Fn(Vec<usize>) -> Vec<usize>,
    values_of: impl Fn(&[QM31], &[QM31], &[QM31]) -> Vec<QM31>,
) -> OpeningProof {
    let (b, p, inputs) = (&Reference, &case.params, case.inputs());
    let t = &mut Transcript::<Blake2s>::new("test");
    let shape = OpeningShape::of(p, &case.statement()).unwrap();
    absorb_statement(t, p, &case.statement());
    let (rows, residuals): (Vec<_>, Vec<Residual>) = inputs.iter().map(|i| row_phase(b, t, p, i)).unzip();
    let folded: Vec<Vec<QM31>> = inputs.iter().zip(&residuals).map(|(i, r)| i.oracle.combine(b, &r.coefficients)).collect();
    let delta = eq_vector(&t.clone().draw_many(label::DELTA, shape.oracle_vars() as usize));
    let joint = joint_phase(b, t, p, shape.oracle_vars(), &residuals, &folded);
    let (theta_nonces, theta): (Vec<u64>, Vec<QM31>) =
        (0..shape.oracle_vars()).map(|_| ground_draw(b, t, p.g_fold, label::THETA)).unzip();
    let theta = eq_vector(&theta);
    let terms: Vec<(&Vec<QM31>, QM31)> = folded.iter().zip(theta.iter().copied()).collect();
    let folds = fold_phase(b, t, p, &joint.zeta, b.weighted_sum(&terms));
    let query_nonce = grind(b, t, p.g_query);
    let mut positions = t.draw_positions(label::QUERY, p.log_n(), p.queries);
    positions.sort_unstable();
    positions.dedup();
    let positions = positions_of(positions);
    let kernels: Vec<QM31> = residuals.iter().zip(&delta).map(|(r, &d)| d * r.kernel_at(&joint.zeta)).collect();
    let combined = CombinedProof {
        joint: joint.polys,
        values: values_of(&joint.values, &theta, &kernels),
        theta_nonces,
        roots: folds.roots,
        folds: folds.rounds,
        message: folds.message,
        query_nonce,
        oracles: inputs.iter().map(|i| open_oracle(b, p, i.oracle, &positions)).collect(),
        layers: open_layers(b, p, &folds.words, &positions),
    };
    OpeningProof { rows, combined: Some(combined) }
}

#[test]
fn forging_the_query_positions_is_rejected() {
    let p = OpeningParams { queries: 12, ..params(H, 2) };
    let case = Case::new::<Blake2s>(&Reference, 13, p, &[(3, Kind::Tiles(1)), (2, Kind::Point)]);
    let keep = |v: &[QM31], _: &[QM31], _: &[QM31]| v.to_vec();
    assert_eq!(case.verify::<Blake2s>(&steps(&case, |q| q, keep)), Ok(()));
    let chosen = |q: Vec<usize>| (0..q.len()).collect();
    let bad = |source| Err(OpeningError::Oracle { oracle: 0, source });
    let verdict = case.verify::<Blake2s>(&steps(&case, chosen, keep));
    assert!(verdict == bad(MerkleError::Root) || verdict == bad(MerkleError::NodeCount), "{verdict:?}");
    // Fewer queries: some of the right positions, correctly opened.
    let fewer = |mut q: Vec<usize>| {
        q.truncate(q.len() - 1);
        q
    };
    assert_eq!(case.verify::<Blake2s>(&steps(&case, fewer, keep)), bad(MerkleError::Indices));
}

#[test]
fn forging_values_after_theta_is_rejected() {
    let case = Case::new::<Blake2s>(&Reference, 14, params(H, 2), &[(3, Kind::Tiles(1)), (2, Kind::Point), (1, Kind::Point)]);
    let proof = steps(
        &case,
        |q| q,
        |values, theta, kernels| {
            // The cross product is orthogonal to both equations the values have to satisfy.
            let cross = |i: usize, j: usize| theta[i] * kernels[j] - theta[j] * kernels[i];
            let shift = [cross(1, 2), cross(2, 0), cross(0, 1)];
            assert!(inner(&shift, theta) == ZERO && inner(&shift, kernels) == ZERO && shift[0] != ZERO);
            values.iter().zip(shift).map(|(&v, s)| v + s).collect()
        },
    );
    assert!(case.verify::<Blake2s>(&proof).is_err());
}

#[test]
fn forging_any_byte_of_a_proof_is_rejected() {
    let p = OpeningParams { queries: 5, ..params(H, 1) };
    let case = Case::new::<Blake2s>(&Reference, 15, p, &[(3, Kind::Tiles(1)), (2, Kind::Point)]);
    let shape = OpeningShape::of(&p, &case.statement()).unwrap();
    let mut bytes = Vec::new();
    case.prove::<Blake2s>(&Reference).write(&mut bytes);
    let accepts = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        match OpeningProof::read(&mut reader, &shape) {
            Ok(proof) => reader.remaining() == 0 && case.verify::<Blake2s>(&proof).is_ok(),
            Err(_) => false,
        }
    };
    assert!(accepts(&bytes) && bytes.len() > shape.fixed_bytes());
    for i in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[i] ^= 1 << (i % 8);
        assert!(!accepts(&bad), "byte {i}");
        if i % 5 == 0 {
            assert!(!accepts(&bytes[..i]), "cut at {i}");
        }
    }
    bytes.push(0);
    assert!(!accepts(&bytes));
}

#[test]
fn forging_the_shape_of_a_proof_is_rejected_without_a_panic() {
    let p = OpeningParams { queries: 5, ..params(H, 1) };
    let case = Case::new::<Blake2s>(&Reference, 16, p, &[(3, Kind::Tiles(1)), (2, Kind::Point)]);
    let proof = case.prove::<Blake2s>(&Reference);
    let rows: [fn(&mut OpeningProof); 3] = [|p| p.rows[0].truncate(1), |p| p.rows.truncate(1), |p| p.combined = None];
    for (i, edit) in rows.iter().enumerate() {
        let mut bad = proof.clone();
        edit(&mut bad);
        assert!(case.verify::<Blake2s>(&bad).is_err(), "rows {i}");
    }
    let edits: [fn(&mut CombinedProof); 12] = [
        |p| p.joint.truncate(1),
        |p| p.values.truncate(1),
        |p| p.theta_nonces.clear(),
        |p| p.roots.clear(),
        |p| p.folds.truncate(2),
        |p| p.message.clear(),
        |p| p.oracles.truncate(1),
        |p| p.layers.clear(),
        |p| p.oracles[0].symbols.clear(),
        |p| p.layers[0].symbols.truncate(7),
        |p| p.oracles[1].nodes.clear(),
        |p| p.oracles.swap(0, 1),
    ];
    for (i, edit) in edits.iter().enumerate() {
        let mut bad = proof.clone();
        bad.combined.iter_mut().for_each(edit);
        assert!(case.verify::<Blake2s>(&bad).is_err(), "edit {i}");
    }
}

#[test]
fn forging_the_statement_is_rejected() {
    let case = Case::new::<Blake2s>(&Reference, 17, params(H, 2), &[(3, Kind::Tiles(1)), (2, Kind::Point)]);
    let proof = case.prove::<Blake2s>(&Reference);
    let edits: [fn(&mut Vec<OracleClaim>); 5] =
        [|s| s[0].root[0] ^= 1, |s| s[1].rows = 1, |s| s.swap(0, 1), |s| s.truncate(1), |s| s.clear()];
    for (i, edit) in edits.iter().enumerate() {
        let mut bad = case.statement();
        edit(&mut bad);
        assert!(verify(&mut Transcript::<Blake2s>::new("test"), &case.params, &bad, &proof).is_err(), "edit {i}");
    }
    let other = OpeningParams { queries: case.params.queries - 1, ..case.params };
    assert!(verify(&mut Transcript::<Blake2s>::new("test"), &other, &case.statement(), &proof).is_err());
    assert!(verify(&mut Transcript::<Blake2s>::new("another"), &case.params, &case.statement(), &proof).is_err());
}
