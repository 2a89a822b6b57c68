//! The bytes that travel for a proof job: specification, boundaries, commits, challenge, claims. Little-endian, bounded, canonical.
//!
//! | Kind | Blob |
//! |---|---|
//! | forward | the hidden state after the segment, 2 bytes per value of an encoder, 3 of a decoder; empty for the head |
//! | commit | value root, BLAKE3 of the forward blob, and for an encoder's head the pooled output as `i64` |
//! | prove | boundary values before and after, as many as limbs, then the claims as in `proof.obk` |
//! | open | the opening as in `proof.obk`; in mode 2 its rows |
//! | joint | see [`crate::joint_bytes`] |

use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::descriptor::{Descriptor, MAX_TOKENS};
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::{PublicInput, Sequence, segment_count};
use obelysk_protocol::field::QM31;
use obelysk_protocol::transcript::{Digest, HashSuite, Seed};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::{Outline, open_statement};
use obelysk_protocol::verifier::bytes::{BytesError, Reader, put_felts};
use obelysk_protocol::verifier::proof::{Header, MODE_AGGREGATED, MODE_FORKED, read_claims, write_claims};
use obelysk_protocol::verifier::registered::Registered;
use obelysk_protocol::verifier::segment::ClaimsProof;

const MAGIC: [u8; 4] = *b"OBKJ";
/// Most output channels or segments in a challenge: as in a proof's header.
const MAX_COUNT: usize = 1 << 16;
/// Most token ids, as in a proof's header: every row reads one, and every sequence, of at least one row, predicts one more.
const MAX_IDS: usize = 2 * MAX_TOKENS;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobBytesError {
    /// Truncated, oversized or not canonical.
    #[error("{what}: {source}")]
    Bytes {
        /// Which blob.
        what: &'static str,
        /// What is wrong.
        source: BytesError,
    },
    /// Something else.
    #[error("{what}: {cause}")]
    Content {
        /// Which blob.
        what: &'static str,
        /// What is wrong.
        cause: String,
    },
}

pub(crate) fn bytes(what: &'static str) -> impl Fn(BytesError) -> JobBytesError {
    move |source| JobBytesError::Bytes { what, source }
}

pub(crate) fn end(what: &'static str, r: &Reader<'_>) -> Result<(), JobBytesError> {
    match r.remaining() {
        0 => Ok(()),
        n => Err(JobBytesError::Content { what, cause: format!("{n} bytes too many") }),
    }
}

/// What is to be proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// Model id.
    pub model: Digest,
    /// Weight-binding mode.
    pub mode: u8,
    /// Token ids: a decoder's prompts with their completions.
    pub ids: Vec<u32>,
    /// Decoder: how the ids are cut. Encoder: empty.
    pub sequences: Vec<Sequence>,
}

impl JobSpec {
    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        out.push(self.mode);
        out.extend_from_slice(&self.model);
        out.extend_from_slice(&(self.ids.len() as u32).to_le_bytes());
        self.ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        out.extend_from_slice(&(self.sequences.len() as u32).to_le_bytes());
        for s in &self.sequences {
            out.extend_from_slice(&s.prompt.to_le_bytes());
            out.extend_from_slice(&s.completion.to_le_bytes());
        }
        out
    }

    /// The public input so far: without the output, which no circuit depends on.
    #[must_use]
    pub fn input(&self) -> PublicInput {
        PublicInput { ids: self.ids.clone(), sequences: self.sequences.clone(), output: Vec::new() }
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`JobBytesError`]; also for a specification of another protocol version, or of a mode that a cluster does not prove.
    pub fn decode(data: &[u8]) -> Result<Self, JobBytesError> {
        let what = "specification";
        let (err, mut r) = (bytes(what), Reader::new(data));
        if r.take(4).map_err(&err)? != MAGIC {
            return Err(JobBytesError::Content { what, cause: "it does not start with the magic bytes".into() });
        }
        let version = r.u32().map_err(&err)?;
        if version != PROTOCOL_VERSION {
            let cause = format!("protocol version {version}, this release speaks {PROTOCOL_VERSION}");
            return Err(JobBytesError::Content { what, cause });
        }
        let (mode, model) = (r.u8().map_err(&err)?, r.digest().map_err(&err)?);
        if ![MODE_FORKED, MODE_AGGREGATED].contains(&mode) {
            let cause = format!(
                "weight-binding mode {mode}; a cluster proves in modes {MODE_FORKED} and {MODE_AGGREGATED}, other modes need one process"
            );
            return Err(JobBytesError::Content { what, cause });
        }
        let n = r.count(MAX_IDS).map_err(&err)?;
        let ids = r.many(n, Reader::u32).map_err(&err)?;
        let n = r.count(MAX_TOKENS).map_err(&err)?;
        let sequence = |r: &mut Reader<'_>| Ok(Sequence { prompt: r.u32()?, completion: r.u32()? });
        let sequences = r.many(n, sequence).map_err(&err)?;
        end(what, &r)?;
        Ok(Self { model, mode, ids, sequences })
    }
}

/// What prove and open need from all commits; statement and seed follow from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Pooled output.
    pub output: Vec<i64>,
    /// Value root of each segment.
    pub roots: Vec<Digest>,
    /// Grinding before the seed.
    pub seed_nonce: u64,
}

/// A statement and its seed.
#[derive(Debug)]
pub struct OpenJob {
    /// What is proved.
    pub statement: Outline,
    /// Where all forks start.
    pub seed: Seed,
}

impl Challenge {
    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = (self.output.len() as u32).to_le_bytes().to_vec();
        self.output.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        out.extend_from_slice(&(self.roots.len() as u32).to_le_bytes());
        self.roots.iter().for_each(|v| out.extend_from_slice(v));
        out.extend_from_slice(&self.seed_nonce.to_le_bytes());
        out
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`JobBytesError`].
    pub fn decode(data: &[u8]) -> Result<Self, JobBytesError> {
        let what = "challenge";
        let (err, mut r) = (bytes(what), Reader::new(data));
        let n = r.count(MAX_COUNT).map_err(&err)?;
        let output = r.many(n, |r| r.u64().map(u64::cast_signed)).map_err(&err)?;
        let n = r.count(MAX_COUNT).map_err(&err)?;
        let roots = r.many(n, Reader::digest).map_err(&err)?;
        let seed_nonce = r.u64().map_err(&err)?;
        end(what, &r)?;
        Ok(Self { output, roots, seed_nonce })
    }

    /// The header of the proof, with these boundary values.
    #[must_use]
    pub fn header<S: HashSuite>(&self, spec: &JobSpec, boundaries: Vec<QM31>) -> Header {
        Header {
            version: PROTOCOL_VERSION,
            suite: S::ID,
            mode: spec.mode,
            model_id: spec.model,
            ids: spec.ids.clone(),
            sequences: spec.sequences.clone(),
            output: self.output.clone(),
            roots: self.roots.clone(),
            seed_nonce: self.seed_nonce,
            boundaries,
        }
    }

    /// Recomputes statement and seed.
    ///
    /// # Errors
    /// [`VerifyError`] when specification and challenge are not of this model or of each other.
    pub fn open<S: HashSuite>(&self, model: &Registered, spec: &JobSpec) -> Result<OpenJob, VerifyError> {
        // The seed does not depend on boundary values; zeros stand for those still to come.
        let zeros = vec![QM31::default(); self.roots.len().saturating_sub(1) * model.descriptor.boundary_limbs()];
        let (statement, _, seed) = open_statement::<S>(model, &self.header::<S>(spec, zeros))?;
        Ok(OpenJob { statement, seed })
    }
}

/// Bytes of one value of a hidden state: two's complement of 16 bits for an encoder, of 24 for a decoder.
const fn value_bytes(d: &Descriptor) -> usize {
    match d {
        Descriptor::Encoder(_) => 2,
        Descriptor::Decoder(_) => 3,
    }
}

/// Bytes of a hidden state, whose values a segment of this model handed on.
#[must_use]
pub fn hidden_to_bytes(d: &Descriptor, hidden: &[i32]) -> Vec<u8> {
    hidden.iter().flat_map(|v| v.to_le_bytes().into_iter().take(value_bytes(d))).collect()
}

/// The hidden state in `data`, which must have `len` values.
///
/// # Errors
/// [`JobBytesError::Content`].
pub fn hidden_from_bytes(d: &Descriptor, data: &[u8], len: usize) -> Result<Vec<i32>, JobBytesError> {
    let size = value_bytes(d);
    if data.len() != len * size {
        let cause = format!("{} bytes where this job has {}", data.len(), len * size);
        return Err(JobBytesError::Content { what: "hidden state", cause });
    }
    // The last byte carries the sign.
    let value = |b: &[u8]| b.iter().rev().skip(1).fold(i32::from(b[size - 1].cast_signed()), |v, &b| v << 8 | i32::from(b));
    Ok(data.chunks_exact(size).map(value).collect())
}

/// What a commit delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitBlob {
    /// Root of the segment's values.
    pub root: Digest,
    /// BLAKE3 of the forward blob this segment recomputed.
    pub after: Digest,
    /// Pooled output; empty but for the head.
    pub output: Vec<i64>,
}

impl CommitBlob {
    /// Canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let output = self.output.iter().flat_map(|v| v.to_le_bytes());
        self.root.into_iter().chain(self.after).chain(output).collect()
    }

    /// Reads canonical bytes with `channels` output values.
    ///
    /// # Errors
    /// [`JobBytesError`].
    pub fn decode(data: &[u8], channels: usize) -> Result<Self, JobBytesError> {
        let what = "commit";
        let (err, mut r) = (bytes(what), Reader::new(data));
        let (root, after) = (r.digest().map_err(&err)?, r.digest().map_err(&err)?);
        let output = r.many(channels, |r| r.u64().map(u64::cast_signed)).map_err(&err)?;
        end(what, &r)?;
        Ok(Self { root, after, output })
    }
}

/// Values of the boundaries before and after a segment.
pub type Boundaries = (Vec<QM31>, Vec<QM31>);

/// Bytes of a segment's claims with the boundary values around it.
#[must_use]
pub fn claims_to_bytes((before, after): &Boundaries, proof: &ClaimsProof) -> Vec<u8> {
    let mut out = Vec::new();
    put_felts(&mut out, before.iter().chain(after));
    write_claims(proof, &mut out);
    out
}

/// Reads the claims of a segment with the boundary values around it: as many as limbs, but none outside the model.
///
/// # Errors
/// [`JobBytesError`].
pub fn claims_from_bytes(
    data: &[u8],
    model: &Registered,
    (segment, circuit): (usize, &Circuit),
) -> Result<(Boundaries, ClaimsProof), JobBytesError> {
    let what = "claims";
    let (err, mut r) = (bytes(what), Reader::new(data));
    let d = &model.descriptor;
    let limbs = |exists: bool| if exists { d.boundary_limbs() } else { 0 };
    let before = r.many(limbs(segment > 0), Reader::felt).map_err(&err)?;
    let after = r.many(limbs(segment + 1 < segment_count(d)), Reader::felt).map_err(&err)?;
    let proof = read_claims(&mut r, circuit, usize::from(d.row_log())).map_err(&err)?;
    end(what, &r)?;
    Ok(((before, after), proof))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blob_has_one_encoding() {
        let sequences = vec![Sequence { prompt: 1, completion: 2 }, Sequence { prompt: 1, completion: 1 }];
        let spec = JobSpec { model: [3; 32], mode: 1, ids: vec![1, 2, 3, 4, 5], sequences };
        let challenge = Challenge { output: vec![-5, 7], roots: vec![[1; 32], [2; 32]], seed_nonce: 9 };
        let commit = CommitBlob { root: [4; 32], after: [5; 32], output: vec![i64::MIN, 1] };
        let all = [spec.encode(), challenge.encode(), commit.encode()];
        assert_eq!(JobSpec::decode(&all[0]).as_ref(), Ok(&spec));
        for mode in [0, 3] {
            let refused = JobSpec::decode(&JobSpec { mode, ..spec.clone() }.encode());
            assert!(matches!(refused, Err(JobBytesError::Content { cause, .. }) if cause.contains("mode")));
        }
        let aggregated = JobSpec { mode: 2, ..spec.clone() };
        assert_eq!(JobSpec::decode(&aggregated.encode()).as_ref(), Ok(&aggregated));
        assert_eq!(Challenge::decode(&all[1]).as_ref(), Ok(&challenge));
        assert_eq!(CommitBlob::decode(&all[2], 2).as_ref(), Ok(&commit));
        let decoders: [fn(&[u8]) -> bool; 3] = [
            |data| JobSpec::decode(data).is_ok(),
            |data| Challenge::decode(data).is_ok(),
            |data| CommitBlob::decode(data, 2).is_ok(),
        ];
        for (blob, decodes) in all.iter().zip(decoders) {
            let longer = [&blob[..], &[0]].concat();
            assert!((0..blob.len()).all(|n| !decodes(&blob[..n])) && !decodes(&longer));
        }
    }

    #[test]
    fn hidden_states_have_one_length_and_one_encoding() {
        let encoder = obelysk_model::toy::model(1).descriptor;
        let decoder = obelysk_model::toy::decoder(&obelysk_model::toy::DecoderToy::default()).descriptor;
        let short = [i32::from(i16::MIN), -1, 0, i32::from(i16::MAX)];
        let long = [-(1 << 23), -1, 0x01_0203, (1 << 23) - 1];
        let bytes = hidden_to_bytes(&encoder, &short);
        assert_eq!(bytes, [0, 128, 255, 255, 0, 0, 255, 127]);
        assert_eq!(hidden_to_bytes(&decoder, &long), [0, 0, 128, 255, 255, 255, 3, 2, 1, 255, 255, 127]);
        for (d, hidden) in [(&encoder, short), (&decoder, long)] {
            let bytes = hidden_to_bytes(d, &hidden);
            assert_eq!(hidden_from_bytes(d, &bytes, 4).as_deref(), Ok(&hidden[..]));
            for (data, len) in [(&bytes[..], 3), (&bytes[1..], 4), (&bytes[..], 5)] {
                assert!(hidden_from_bytes(d, data, len).is_err());
            }
        }
    }
}
