//! Mode 2: the opening of all segments. Each part is judged alone against its own segment's claim, values and trees; when the parts of
//! a step are in, they are summed, the transcript goes on, and the next step is said. No state is kept between steps but what the record
//! says, so a step can be made again from its record by anybody.

use std::sync::Arc;

use obelysk_node::engine::{CheckError, Joined, Pieces, Verdict};
use obelysk_node::job_bytes::Challenge;
use obelysk_node::joint_bytes::{JointRecord, JointStep, Payload, read_part};
use obelysk_protocol::field::QM31;
use obelysk_protocol::transcript::{HashSuite, Transcript};
use obelysk_protocol::verifier::aggregate::{Closed, absorb_closing, open_statement};
use obelysk_protocol::verifier::bytes::Reader;
use obelysk_protocol::verifier::opening::{CombinedProof, OpeningParams};
use obelysk_shard::job::Backend;
use obelysk_shard::prover::aggregate::checks::{continues, share_agrees, share_at, weighted_symbols, weighted_values};
use obelysk_shard::prover::aggregate::join::{AggregateError, JointFold, JointRounds};

use super::{Job, ProofChecker, key_of, pieces, reject};

fn judge(holds: bool, what: &str) -> Result<(), Verdict> {
    if holds { Ok(()) } else { Err(reject(what)) }
}

/// Rows of every oracle of a segment.
fn rows(closed: &Closed) -> Vec<usize> {
    closed.reduced.iter().map(|o| o.residual.coefficients.len()).collect()
}

fn felts(payload: Payload) -> Option<Vec<QM31>> {
    if let Payload::Felts(values) = payload { Some(values) } else { None }
}

impl<S: HashSuite, B: Backend> ProofChecker<S, B> {
    /// A segment up to the opening of all, verified in its fork; remembered, as every step needs it.
    pub(super) fn closed(
        &self,
        job: &Job,
        extra: &[u8],
        segment: usize,
        (claims, opened): (&[u8], &[u8]),
    ) -> Result<Arc<Closed>, String> {
        self.closed.get_or(key_of(job, &[extra, &(segment as u64).to_le_bytes(), claims, opened]), || {
            let closed = self.close(job, extra, segment, (claims, opened))?;
            let felts: usize = closed.reduced.iter().map(|o| o.residual.coefficients.len() + o.residual.slots.len()).sum();
            Ok((closed, size_of::<QM31>() * felts))
        })
    }

    /// Inputs: hidden state before (but for segment 0), results of prove and open, the challenge, the segment's part before.
    pub(super) fn check_joint(
        &self,
        job: &Job,
        segment: usize,
        inputs: &[&[u8]],
        (extra, output): (&[u8], &[u8]),
    ) -> Result<(), Verdict> {
        let [.., claims, opened, challenge, previous] = inputs else { return Err(reject("too few inputs")) };
        let (params, record) = (job.model.opening(), JointRecord::decode(extra).map_err(reject)?);
        let closed = self.closed(job, challenge, segment, (claims, opened)).map_err(reject)?;
        let (own, rows) = (&*closed.reduced, rows(&closed));
        let (delta, theta) = (record.own(&record.delta, segment), record.own(&record.theta, segment));
        if !record.fits(job.segments(), &params) || delta.len() != own.len() {
            return Err(reject("this job has no such joint step"));
        }
        let step = record.step(params.h as usize);
        let (digest, payload) = read_part(output, (step, &params), &rows).map_err(reject)?;
        if &digest != blake3::hash(previous).as_bytes() {
            return Err(Verdict::Dispute("the segment's part in the step before is another".to_owned()));
        }
        let claim = record.claims[segment];
        match payload {
            Payload::Round(share) => judge(continues(&share, claim), "the share of the round contradicts the segment's claim"),
            Payload::Felts(values) if step == JointStep::Values => {
                let holds = weighted_values(own, delta, &record.zeta, &values) == claim;
                judge(holds, "the values at the joint point contradict the segment's claim")
            }
            Payload::Felts(share) => {
                let (k, values) = (&self.backend, record.own(&record.values, segment));
                let holds = share_agrees(k, &record.zeta, (theta, values), &k.ext(share));
                judge(holds, "the share of the combined row contradicts the segment's values")
            }
            Payload::Trees(trees) => {
                let symbols = weighted_symbols::<S>(&params, (own, theta), &record.positions, &trees);
                let symbols = symbols.map_err(|(oracle, e)| reject(format!("oracle {oracle}: {e}")))?;
                let before = read_part(previous, (JointStep::Fold, &params), &rows).map_err(reject)?.1;
                let share = self.backend.ext(felts(before).unwrap_or_default());
                let sent = share_at(&self.backend, &params, &share, &record.positions);
                judge(sent == symbols, "the share of the combined row was of other data than the segment's trees")
            }
        }
    }

    /// The next step from all pieces and the parts of this one, or the proof.
    pub(super) fn step(&self, job: &Job, p: Pieces<'_>, step: &[u8], parts: &[&[u8]]) -> Result<Joined, CheckError> {
        let n = job.segments();
        if p.proves.len() != n || p.opens.len() != n {
            return Err(pieces("a segment is missing"));
        }
        let of = |l: usize| self.closed(job, p.challenge, l, (p.proves[l], p.opens[l])).map_err(pieces);
        let closed = (0..n).map(of).collect::<Result<Vec<_>, _>>()?;
        let params = job.model.opening();
        let start = |made: &JointRecord| self.resume(job, p.challenge, &closed, made).map_err(pieces);
        if step.is_empty() {
            let counts = closed.iter().map(|c| c.reduced.len() as u32).collect();
            let empty = JointRecord { counts, ..JointRecord::default() };
            let joint = start(&empty)?;
            let delta = joint.deltas().iter().take(empty.counts.iter().map(|n| *n as usize).sum()).copied().collect();
            return Ok(Joined::Step(JointRecord { delta, claims: joint.claims().to_vec(), ..empty }.encode()));
        }
        let record = JointRecord::decode(step).map_err(pieces)?;
        if parts.len() != n || !record.fits(n, &params) {
            return Err(pieces("the parts are not of this joint step"));
        }
        let at = record.step(params.h as usize);
        let payload = |(l, part): (usize, &&[u8])| read_part(part, (at, &params), &rows(&closed[l])).map(|(_, payload)| payload);
        let parts = parts.iter().enumerate().map(payload).collect::<Result<Vec<_>, _>>().map_err(pieces)?;
        match at {
            JointStep::Round(_) => {
                let mut joint = start(&record)?;
                let shares: Vec<_> =
                    parts.into_iter().filter_map(|p| if let Payload::Round(share) = p { Some(share) } else { None }).collect();
                joint.round(&shares).map_err(pieces)?;
                let (polys, zeta, claims) = (joint.polys().to_vec(), joint.zeta().to_vec(), joint.claims().to_vec());
                Ok(Joined::Step(JointRecord { polys, zeta, claims, ..record }.encode()))
            }
            JointStep::Values => {
                let values: Vec<Vec<QM31>> = parts.into_iter().filter_map(felts).collect();
                let fold = start(&record)?.values(&self.backend, &values).map_err(pieces)?;
                let (values, nonces) = (values.concat(), fold.theta_nonces().to_vec());
                let theta = fold.thetas().iter().take(values.len()).copied().collect();
                Ok(Joined::Step(JointRecord { values, theta_nonces: nonces, theta, ..record }.encode()))
            }
            JointStep::Fold => {
                let fold = self.fold(start(&record)?, &record, &closed).map_err(pieces)?;
                self.queries(fold, record, parts).map_err(pieces)
            }
            JointStep::Answers => {
                let opening = opening(&params, record, parts)?;
                self.stitch(job, p, Some(opening)).map(Joined::Proof)
            }
        }
    }

    /// The rounds so far, from the record.
    fn resume(
        &self,
        job: &Job,
        challenge: &[u8],
        closed: &[Arc<Closed>],
        record: &JointRecord,
    ) -> Result<JointRounds<S>, String> {
        let challenge = Challenge::decode(challenge).map_err(|e| e.to_string())?;
        // The transcript up to the seed does not depend on boundary values; zeros stand for them.
        let zeros = vec![QM31::default(); (job.segments() - 1) * job.model.descriptor.boundary_limbs()];
        let header = challenge.header::<S>(&job.spec, zeros);
        let (_, mut t, _): (_, Transcript<S>, _) = open_statement::<S>(&job.model, &header).map_err(|e| e.to_string())?;
        closed.iter().for_each(|c| absorb_closing(&mut t, &c.digest));
        let (params, reduced) = (job.model.opening(), closed.iter().map(|c| c.reduced.clone()).collect());
        let joint = if record.claims.is_empty() {
            JointRounds::new(t, params, reduced)
        } else {
            JointRounds::resume(t, params, reduced, (&record.polys, record.claims.clone()))
        };
        joint.map_err(|e| e.to_string())
    }

    fn fold(
        &self,
        joint: JointRounds<S>,
        record: &JointRecord,
        closed: &[Arc<Closed>],
    ) -> Result<JointFold<S, B>, AggregateError> {
        let values: Vec<Vec<QM31>> = (0..closed.len()).map(|l| record.own(&record.values, l).to_vec()).collect();
        joint.values_ground(&self.backend, &values, Some(&record.theta_nonces))
    }

    fn queries(&self, mut fold: JointFold<S, B>, record: JointRecord, parts: Vec<Payload>) -> Result<Joined, AggregateError> {
        for (l, share) in parts.into_iter().filter_map(felts).enumerate() {
            fold.share(&self.backend, l, &self.backend.ext(share))?;
        }
        let queries = fold.fold(&self.backend)?;
        let known = queries.without_trees(&self.backend);
        let mut opening = Vec::new();
        CombinedProof { values: Vec::new(), theta_nonces: Vec::new(), ..known }.write(&mut opening);
        Ok(Joined::Step(JointRecord { positions: queries.positions().to_vec(), opening, ..record }.encode()))
    }
}

/// The opening of all: what the record has, and the trees.
fn opening(params: &OpeningParams, record: JointRecord, parts: Vec<Payload>) -> Result<CombinedProof, CheckError> {
    let known = CombinedProof::read(&mut Reader::new(&record.opening), params, &[]).map_err(pieces)?;
    let trees = parts.into_iter().filter_map(|p| if let Payload::Trees(trees) = p { Some(trees) } else { None });
    let JointRecord { values, theta_nonces, .. } = record;
    Ok(CombinedProof { values, theta_nonces, oracles: trees.flatten().collect(), ..known })
}
