//! Openings of a segment: whole, in its fork; or its rows there, and its part in the opening of all segments.

use super::{Backend, Committed, JobError, LoadedModel, SegmentClaims};
use crate::prover::aggregate::Segment;
use crate::prover::aggregate::part::{JointPart, answer as answer_trees};
use crate::prover::commitment::{Oracle, RegisteredWords};
use crate::prover::opening::{self, OpeningInput};
use obelysk_protocol::field::M31;
use obelysk_protocol::transcript::{Digest, HashSuite, Seed, Transcript};
use obelysk_protocol::verifier::aggregate::{Stated, oracle_claims, segment_fork, segment_view, verify_claims};
use obelysk_protocol::verifier::merkle::proof_nodes;
use obelysk_protocol::verifier::opening::{Claim, OpeningError, OpeningProof, Reduced, TreeOpening};

/// Opens the claims of a segment, replaying its fork from `claims` so that any machine holding the values can do it.
///
/// # Errors
/// [`JobError::Verify`] when the claims are not valid for this statement.
pub fn open<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    s: &impl Stated,
    seed: &Seed,
    segment: usize,
    about: (&Committed<B>, &SegmentClaims),
) -> Result<OpeningProof, JobError> {
    open_from(k, model, s, (seed, seed), segment, about).map(|(proof, _)| proof)
}

/// As [`open`], of a fork that starts from `start`; gives the closing digest too.
///
/// # Errors
/// As [`open`].
pub fn open_from<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    s: &impl Stated,
    forks: (&Seed, &Seed),
    segment: usize,
    about: (&Committed<B>, &SegmentClaims),
) -> Result<(OpeningProof, Digest), JobError> {
    let _span = tracing::info_span!("open").entered();
    with_inputs(k, model, s, forks, segment, about, |t, inputs| {
        let proof = opening::prove(k, t, &model.registered.opening(), inputs).map_err(failed)?;
        Ok((proof, t.digest()))
    })
}

/// What mode 2 leaves of a segment before the forks are joined.
pub struct Reduction<B: Backend> {
    /// The rows' sumchecks.
    pub rows: OpeningProof,
    /// The fork's closing digest.
    pub closing: Digest,
    /// Reduced claims and folded rows.
    pub segment: Segment<B>,
    /// What opens the registered weights again without reading them, if their words are kept.
    pub words: Option<RegisteredWords>,
}

/// Mode 2: reduces the claims of a segment to one row per oracle, replaying its fork as [`open`] does.
///
/// # Errors
/// As [`open`].
pub fn reduce<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    s: &impl Stated,
    seed: &Seed,
    segment: usize,
    about: (&Committed<B>, &SegmentClaims),
) -> Result<Reduction<B>, JobError> {
    let _span = tracing::info_span!("open").entered();
    let words = model.oracle(k, segment)?.as_ref().as_ref().map(|o| o.words().clone());
    with_inputs(k, model, s, (seed, seed), segment, about, |t, inputs| {
        let (rows, residuals) = opening::prove_rows(k, t, &model.registered.opening(), inputs).map_err(failed)?;
        let claims = inputs.iter().zip(&residuals);
        let reduced = claims.map(|(i, r)| Reduced { root: i.oracle.root(), residual: r.clone() }).collect();
        let part = JointPart::new(k, inputs, residuals);
        let rows = OpeningProof { rows, combined: None };
        Ok(Reduction { rows, closing: t.digest(), segment: Segment { reduced, part }, words })
    })
}

/// Mode 2: opens the trees of a segment at the queried positions, weights first.
///
/// # Errors
/// [`JobError::Register`] when the weights are needed and cannot be read.
pub fn answer<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    segment: usize,
    (committed, words): (&Committed<B>, Option<&RegisteredWords>),
    positions: &[usize],
) -> Result<Vec<TreeOpening<M31>>, JobError> {
    let _span = tracing::info_span!("open").entered();
    let params = model.registered.opening();
    let values = answer_trees(k, &params, &[&committed.values as &dyn Oracle<B>], positions);
    let weights = match words.and_then(|w| w.leaves(positions).map(|symbols| (symbols, w))) {
        Some((symbols, words)) => {
            vec![TreeOpening { symbols, nodes: words.nodes(&proof_nodes(params.log_n(), positions)) }]
        }
        None => match model.oracle(k, segment)?.as_ref() {
            Some(oracle) => answer_trees(k, &params, &[oracle as &dyn Oracle<B>], positions),
            None => Vec::new(),
        },
    };
    Ok(weights.into_iter().chain(values).collect())
}

fn failed(e: OpeningError) -> JobError {
    JobError::Opening(e.to_string())
}

/// Runs `step` in the segment's fork, right after its claims, on the oracles and their claims.
fn with_inputs<S: HashSuite, B: Backend, T>(
    k: &B,
    model: &LoadedModel<S, B>,
    s: &impl Stated,
    (seed, start): (&Seed, &Seed),
    segment: usize,
    (committed, claims): (&Committed<B>, &SegmentClaims),
    step: impl FnOnce(&mut Transcript<S>, &[OpeningInput<'_, B>]) -> Result<T, JobError>,
) -> Result<T, JobError> {
    let circuit = s.circuit(&model.registered, segment)?;
    let around = (&claims.boundaries.0[..], &claims.boundaries.1[..]);
    let input = segment_view::<S>(&model.registered, s, seed, (segment, &circuit), around);
    let mut t = segment_fork::<S>(start, s, segment);
    let open = verify_claims(&mut t, &input, &claims.proof)?;
    let oracles = oracle_claims(&model.registered, input.circuit, segment, committed.root(), open);
    let weights = model.oracle(k, segment)?;
    let inputs: Vec<OpeningInput<'_, B>> = oracles
        .into_iter()
        .filter_map(|o| {
            let oracle: &dyn Oracle<B> = match &o.claim {
                Claim::Tiles { .. } => weights.as_ref().as_ref()?,
                Claim::Point { .. } => &committed.values,
            };
            let partials = committed.partials_at(&o.claim, oracle.rows(), model.registered.descriptor.row_log());
            Some(OpeningInput { oracle, claim: o.claim, partials })
        })
        .collect();
    step(&mut t, &inputs)
}
