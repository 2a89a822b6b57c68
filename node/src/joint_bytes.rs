//! The bytes of the opening of all segments (mode 2): the record of what was drawn so far, which is the public input of a step, and the part
//! of one segment in one step. Little-endian, bounded, canonical.
//!
//! A part begins with the BLAKE3 digest of the segment's part in the step before (in the first step, of its `open`). So whoever
//! delivers a part answers for all of the segment's parts before it, and a contradiction has two parties and no more.
//!
//! | Step | Part, after the digest |
//! |---|---|
//! | a round of the joint sumcheck | the share of its polynomial: values at 0, 1 and 2 |
//! | values | one per oracle, weights first |
//! | fold | the share of the combined row: `2^h` elements |
//! | answers | the opened trees, as in `proof.obk` |

use crate::job_bytes::{JobBytesError, bytes, end};
use obelysk_protocol::field::{M31, QM31, RoundPoly};
use obelysk_protocol::transcript::Digest;
use obelysk_protocol::verifier::bytes::{Reader, put_count, put_felts};
use obelysk_protocol::verifier::opening::{MAX_ORACLES, OpeningParams, TreeOpening};
use obelysk_shard::prover::aggregate::part::RoundPart;

const MAGIC: [u8; 4] = *b"OBKO";
/// Most rounds and queries of an opening: rows have far fewer than 2^64 elements, and queries are counted in hundreds.
const MAX_ROUNDS: usize = 64;
const MAX_QUERIES: usize = 1 << 16;
/// Most bytes of an opening without its oracles' trees: a hundred times that of any model so far.
const MAX_OPENING_BYTES: usize = 1 << 26;

/// What a segment is to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum JointStep {
    /// This round of the joint sumcheck.
    Round(usize),
    /// The values of its folded rows at the joint point.
    Values,
    /// Its share of the combined row.
    Fold,
    /// Its trees at the queried positions.
    Answers,
}

/// Everything drawn so far, and what the coordinator needs to go on. Vectors of later steps are empty before those.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JointRecord {
    /// Oracles of each segment.
    pub counts: Vec<u32>,
    /// Weight of each oracle in the joint sumcheck, all segments in one line.
    pub delta: Vec<QM31>,
    /// Round polynomials so far.
    pub polys: Vec<RoundPoly<2>>,
    /// Challenges of those rounds.
    pub zeta: Vec<QM31>,
    /// Running claim of each segment.
    pub claims: Vec<QM31>,
    /// Value of each oracle's folded row at the joint point.
    pub values: Vec<QM31>,
    /// What grinding for `theta` found.
    pub theta_nonces: Vec<u64>,
    /// Weight of each oracle in the combined row.
    pub theta: Vec<QM31>,
    /// Queried positions, sorted and distinct.
    pub positions: Vec<usize>,
    /// The opening as far as it is known without the oracles' trees and values.
    pub opening: Vec<u8>,
}

impl JointRecord {
    /// What is to be done now, with rows of `2^h` elements.
    #[must_use]
    pub fn step(&self, h: usize) -> JointStep {
        match self.polys.len() {
            round if round < h => JointStep::Round(round),
            _ if self.theta.is_empty() => JointStep::Values,
            _ if self.positions.is_empty() => JointStep::Fold,
            _ => JointStep::Answers,
        }
    }

    /// A segment's own part of one entry per oracle; nothing for a segment that does not exist.
    #[must_use]
    pub fn own<'a>(&self, entries: &'a [QM31], segment: usize) -> &'a [QM31] {
        let start: usize = self.counts.iter().take(segment).map(|n| *n as usize).sum();
        let own = self.counts.get(segment).map_or(0, |n| *n as usize);
        entries.get(start..start + own).unwrap_or(&[])
    }

    fn oracles(&self) -> usize {
        self.counts.iter().map(|n| *n as usize).sum()
    }

    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_count(&mut out, self.counts.len());
        self.counts.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        put_felts(&mut out, self.delta.iter().chain(&self.claims));
        put_count(&mut out, self.polys.len());
        put_felts(&mut out, self.polys.iter().flat_map(|p| &p.0).chain(&self.zeta));
        put_count(&mut out, self.theta.len());
        put_felts(&mut out, self.values.iter().chain(&self.theta));
        put_count(&mut out, self.theta_nonces.len());
        self.theta_nonces.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        put_count(&mut out, self.positions.len());
        self.positions.iter().for_each(|p| out.extend_from_slice(&(*p as u64).to_le_bytes()));
        put_count(&mut out, self.opening.len());
        out.extend_from_slice(&self.opening);
        out
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`JobBytesError`].
    pub fn decode(data: &[u8]) -> Result<Self, JobBytesError> {
        let what = "joint record";
        let (err, mut r) = (bytes(what), Reader::new(data));
        let content = |cause: &str| JobBytesError::Content { what, cause: cause.to_owned() };
        if r.take(4).map_err(&err)? != MAGIC {
            return Err(content("it does not start with the magic bytes"));
        }
        let segments = r.count(MAX_ORACLES).map_err(&err)?;
        let counts = r.many(segments, Reader::u32).map_err(&err)?;
        let oracles = counts.iter().fold(0_u64, |sum, n| sum + u64::from(*n));
        let oracles = usize::try_from(oracles).ok().filter(|n| (1..=MAX_ORACLES).contains(n));
        let oracles = oracles.ok_or_else(|| content("it has no oracle, or more than an opening takes"))?;
        let (delta, claims) = (r.many(oracles, Reader::felt).map_err(&err)?, r.many(segments, Reader::felt).map_err(&err)?);
        let rounds = r.count(MAX_ROUNDS).map_err(&err)?;
        let polys = r.many(rounds, |r| Ok(RoundPoly([r.felt()?, r.felt()?]))).map_err(&err)?;
        let zeta = r.many(rounds, Reader::felt).map_err(&err)?;
        let drawn = r.count(oracles).map_err(&err)?;
        if drawn != 0 && drawn != oracles {
            return Err(content("its weights are not one per oracle"));
        }
        let (values, theta) = (r.many(drawn, Reader::felt).map_err(&err)?, r.many(drawn, Reader::felt).map_err(&err)?);
        let n = r.count(MAX_ROUNDS).map_err(&err)?;
        let theta_nonces = r.many(n, Reader::u64).map_err(&err)?;
        let n = r.count(MAX_QUERIES).map_err(&err)?;
        let positions = r.many(n, Reader::u64).map_err(&err)?;
        let positions: Option<Vec<usize>> = positions.into_iter().map(|p| usize::try_from(p).ok()).collect();
        let positions = positions.filter(|all| all.is_sorted_by(|a, b| a < b));
        let positions = positions.ok_or_else(|| content("its positions are not sorted"))?;
        let n = r.count(MAX_OPENING_BYTES).map_err(&err)?;
        let opening = r.take(n).map_err(&err)?.to_vec();
        end(what, &r)?;
        Ok(Self { counts, delta, polys, zeta, claims, values, theta_nonces, theta, positions, opening })
    }

    /// Whether every list has the length of its step, for rows of `2^h` elements and words of `2^log_n`; positions are no more than
    /// are drawn.
    #[must_use]
    pub fn fits(&self, segments: usize, params: &OpeningParams) -> bool {
        let (rounds, done) = (self.polys.len(), params.h as usize);
        self.counts.len() == segments
            && self.delta.len() == self.oracles()
            && rounds <= done
            && (rounds == done || self.theta.is_empty())
            && (!self.theta.is_empty() || self.positions.is_empty())
            && self.positions.len() <= params.queries
            && self.positions.last().is_none_or(|last| last >> params.log_n() == 0)
    }
}

/// A part: the digest of the one before, and what was computed.
#[must_use]
pub fn part(previous: &[u8], payload: &Payload) -> Vec<u8> {
    let mut out = blake3::hash(previous).as_bytes().to_vec();
    match payload {
        Payload::Round(share) => put_felts(&mut out, share),
        Payload::Felts(values) => put_felts(&mut out, values),
        Payload::Trees(trees) => trees.iter().for_each(|tree| tree.write(&mut out)),
    }
    out
}

/// What a segment computed in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Of a round.
    Round(RoundPart),
    /// Values, or a share of the combined row.
    Felts(Vec<QM31>),
    /// Answers.
    Trees(Vec<TreeOpening<M31>>),
}

/// Reads a part of this step: the digest and the payload of a segment with oracles of these rows.
///
/// # Errors
/// [`JobBytesError`].
pub fn read_part(
    data: &[u8],
    (step, params): (JointStep, &OpeningParams),
    rows: &[usize],
) -> Result<(Digest, Payload), JobBytesError> {
    let what = "joint part";
    let (err, mut r) = (bytes(what), Reader::new(data));
    let digest = r.digest().map_err(&err)?;
    let payload = match step {
        JointStep::Round(_) => Payload::Round([r.felt().map_err(&err)?, r.felt().map_err(&err)?, r.felt().map_err(&err)?]),
        JointStep::Values => Payload::Felts(r.many(rows.len(), Reader::felt).map_err(&err)?),
        JointStep::Fold => Payload::Felts(r.many(1 << params.h, Reader::felt).map_err(&err)?),
        JointStep::Answers => {
            let trees = rows.iter().map(|rows| TreeOpening::read(&mut r, params, *rows)).collect::<Result<_, _>>();
            Payload::Trees(trees.map_err(&err)?)
        }
    };
    end(what, &r)?;
    Ok((digest, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use obelysk_protocol::field::{ONE, ZERO};

    fn record() -> JointRecord {
        JointRecord {
            counts: vec![1, 2],
            delta: vec![ONE, ZERO, ONE],
            polys: vec![RoundPoly([ONE, ONE]); 2],
            zeta: vec![ONE, ZERO],
            claims: vec![ZERO, ONE],
            values: vec![ONE; 3],
            theta_nonces: vec![7, 8],
            theta: vec![ZERO, ONE, ONE],
            positions: vec![1, 5, 6],
            opening: vec![9, 9],
        }
    }

    #[test]
    fn a_record_has_one_encoding() {
        let blob = record().encode();
        assert_eq!(JointRecord::decode(&blob), Ok(record()));
        let longer = [&blob[..], &[0]].concat();
        assert!((0..blob.len()).all(|n| JointRecord::decode(&blob[..n]).is_err()) && JointRecord::decode(&longer).is_err());
        for bad in [
            JointRecord { positions: vec![5, 1], ..record() },
            JointRecord { counts: vec![0, 0], delta: vec![], ..record() },
            JointRecord { theta: vec![ONE], values: vec![ONE], ..record() },
        ] {
            assert!(JointRecord::decode(&bad.encode()).is_err(), "{bad:?}");
        }
        let huge = [&MAGIC[..], &2_u32.to_le_bytes(), &[255; 8]].concat();
        assert!(JointRecord::decode(&huge).is_err());
    }

    #[test]
    fn steps_follow_from_what_was_drawn() {
        let full = record();
        assert_eq!((full.step(2), full.step(3)), (JointStep::Answers, JointStep::Round(2)));
        let fold = JointRecord { positions: vec![], ..full.clone() };
        let values = JointRecord { theta: vec![], ..fold.clone() };
        assert_eq!((fold.step(2), values.step(2)), (JointStep::Fold, JointStep::Values));
        assert_eq!((full.own(&full.delta, 0), full.own(&full.delta, 1)), (&[ONE][..], &[ZERO, ONE][..]));
        assert!(full.own(&full.delta, 2).is_empty());
    }

    #[test]
    fn positions_are_no_more_than_queries_and_within_a_word() {
        let params = OpeningParams { h: 2, blowup_log: 1, queries: 3, g_fold: 0, g_query: 0 };
        assert!(record().fits(2, &params));
        assert!(!record().fits(2, &OpeningParams { queries: 2, ..params }));
        let [last, beyond] = [7, 8].map(|p| JointRecord { positions: vec![1, 5, p], ..record() });
        assert!(last.fits(2, &params) && !beyond.fits(2, &params));
    }
}
