//! One opening of the oracles of all segments (mode 2), twin of the verifier's `combined`, same steps: 2 joint sumcheck,
//! 3 combination, 4 folds, 5 queries.
//!
//! Segments compute ([`part`]); one place sums, checks each segment against its own claim and runs the transcript
//! ([`join`]). Sums are exact, so bytes depend neither on the order of parts nor on who computed them.

pub mod checks;
pub mod join;
pub mod part;

use crate::kernels::CommitKernels;
use join::{AggregateError, JointRounds};
use obelysk_protocol::field::M31;
use obelysk_protocol::transcript::{HashSuite, Transcript};
use obelysk_protocol::verifier::opening::{CombinedProof, OpeningParams, Reduced, TreeOpening};
use part::{JointPart, PartRounds};
use rayon::prelude::*;

/// One segment, ready for the joint opening.
pub struct Segment<B: CommitKernels> {
    /// Its reduced claims, weights first.
    pub reduced: Vec<Reduced>,
    /// Its folded rows.
    pub part: JointPart<B>,
}

/// Opens all segments in one process; `answers` opens the trees of a segment, and is called for the last one first: what was
/// read last may still be in memory.
///
/// `t` is the main transcript with every closing digest absorbed.
///
/// # Errors
/// [`AggregateError`] as an error of `E`, or what `answers` returns.
pub fn open_all<S: HashSuite, B: CommitKernels, E: From<AggregateError>>(
    backend: &B,
    t: Transcript<S>,
    params: &OpeningParams,
    segments: Vec<Segment<B>>,
    mut answers: impl FnMut(usize, &[usize]) -> Result<Vec<TreeOpening<M31>>, E>,
) -> Result<CombinedProof, E> {
    let (reduced, parts): (Vec<_>, Vec<_>) = segments.into_iter().map(|s| (s.reduced, s.part)).unzip();
    let mut joint = JointRounds::new(t, *params, reduced)?;
    let start = |(l, part): (usize, JointPart<B>)| part.start(backend, joint.delta(l));
    let mut parts: Vec<PartRounds<B>> = parts.into_iter().enumerate().map(start).collect();

    // Step 2: joint sumcheck of sum_{l, o} eq(δ, (l, o)) <F_{l,o}, K_{l,o}>, ending at ζ.
    let mut challenge = None;
    for _ in 0..params.h {
        let shares: Vec<_> = parts.par_iter_mut().map(|part| part.round(backend, challenge)).collect();
        challenge = Some(joint.round(&shares)?);
    }
    let last = challenge.unwrap_or_default();
    let (values, parts): (Vec<_>, Vec<_>) = parts.into_iter().map(|part| part.finish(backend, last)).unzip();

    // Step 3: combination G = sum_{l, o} eq(θ, (l, o)) F_{l,o}.
    let mut joint = joint.values(backend, &values)?;
    for (l, part) in parts.into_iter().enumerate() {
        let share = part.fold(backend, joint.theta(l));
        joint.share(backend, l, &share)?;
    }

    // Step 4: folds of G at ζ. Step 5: queries.
    let mut joint = joint.fold(backend)?;
    for l in (0..joint.segments()).rev() {
        let trees = answers(l, joint.positions())?;
        joint.answer::<S>(l, trees)?;
    }
    Ok(joint.finish(backend)?)
}
