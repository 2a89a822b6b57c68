//! `proof.obk`: the canonical, versioned, bounded encoding of a proof.
//!
//! A header that names what is proved, then per segment the claims and the opening, or its rows and one opening of all
//! segments at the end. Lengths follow from the registered
//! model and the header, so almost nothing is length-prefixed and there is one encoding of every proof.

use super::bytes::{BytesError, Reader, put_felts};
use super::final_sumcheck::{FinalProof, point_len, value_rows};
use super::logup::GkrLayer;
use super::mode::Mode;
pub use super::mode::{MODE_AGGREGATED, MODE_FORKED, MODE_SEQUENTIAL};
use super::opening::{CombinedProof, Form, OpeningParams, OpeningProof, OpeningShape, OracleShape};
use super::product::ProductProof;
use super::segment::{ClaimsProof, registered_rows};
use crate::PROTOCOL_VERSION;
use crate::circuit::Sequence;
use crate::circuit::descriptor::MAX_TOKENS;
use crate::circuit::segment::Circuit;
use crate::field::{QM31, RoundPoly};
use crate::transcript::Digest;

const MAGIC: [u8; 4] = *b"OBKP";
/// Most channels of an output.
const MAX_WIDTH: usize = 1 << 16;
/// Most token ids: every row reads one, and every sequence, of at least one row, predicts one more.
const MAX_IDS: usize = 2 * MAX_TOKENS;
/// Most columns of a boundary.
const MAX_LIMBS: usize = 3;
/// Most segments of a model.
const MAX_SEGMENTS: usize = 1 << 12;

/// What a proof says it proves, and the commitments its seed comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Protocol version.
    pub version: u32,
    /// Hash suite id.
    pub suite: u8,
    /// Weight-binding mode.
    pub mode: u8,
    /// Model id.
    pub model_id: Digest,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Decoder: how the ids are cut into prompts and completions.
    pub sequences: Vec<Sequence>,
    /// Encoder: claimed pooled sums.
    pub output: Vec<i64>,
    /// Root of each segment's value oracle.
    pub roots: Vec<Digest>,
    /// Grinding before the seed.
    pub seed_nonce: u64,
    /// Values of each boundary at its point, limb after limb; one boundary fewer than segments.
    pub boundaries: Vec<QM31>,
}

/// One segment's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentProof {
    /// Lookups, products, final sumcheck.
    pub claims: ClaimsProof,
    /// Opening of weights and values; of their rows alone in mode 2.
    pub opening: OpeningProof,
}

/// A whole proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Statement and commitments.
    pub header: Header,
    /// Segments in order.
    pub segments: Vec<SegmentProof>,
    /// Mode 2: what opens the rows of all segments, whose oracles come in order of segments.
    pub opening: Option<CombinedProof>,
}

impl Header {
    /// Appends the canonical bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[self.suite, self.mode]);
        out.extend_from_slice(&self.model_id);
        let count = |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&(n as u32).to_le_bytes());
        count(out, self.ids.len());
        self.ids.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        count(out, self.sequences.len());
        for s in &self.sequences {
            out.extend_from_slice(&s.prompt.to_le_bytes());
            out.extend_from_slice(&s.completion.to_le_bytes());
        }
        count(out, self.output.len());
        self.output.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        count(out, self.roots.len());
        self.roots.iter().for_each(|v| out.extend_from_slice(v));
        out.extend_from_slice(&self.seed_nonce.to_le_bytes());
        count(out, self.boundaries.len());
        put_felts(out, &self.boundaries);
    }

    /// Reads a header; the rest of the reader holds the segments.
    ///
    /// # Errors
    /// [`BytesError`]; also for a wrong magic or version, reported as the count that is off.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, HeaderError> {
        if r.take(4)? != MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = r.u32()?;
        if version != PROTOCOL_VERSION {
            return Err(HeaderError::Version(version));
        }
        let (suite, mode, model_id) = (r.u8()?, r.u8()?, r.digest()?);
        let n = r.count(MAX_IDS)?;
        let ids = r.many(n, Reader::u32)?;
        let n = r.count(MAX_TOKENS)?;
        let sequences = r.many(n, |r| Ok(Sequence { prompt: r.u32()?, completion: r.u32()? }))?;
        let n = r.count(MAX_WIDTH)?;
        let output = r.many(n, |r| r.u64().map(|v| v as i64))?;
        let n = r.count(MAX_SEGMENTS)?;
        let roots = r.many(n, Reader::digest)?;
        let seed_nonce = r.u64()?;
        let n = r.count(MAX_SEGMENTS * MAX_LIMBS)?;
        let boundaries = r.many(n, Reader::felt)?;
        Ok(Self { version, suite, mode, model_id, ids, sequences, output, roots, seed_nonce, boundaries })
    }
}

/// Why bytes are no proof header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a proof.
    #[error("this is no Obelysk proof (its first four bytes are not OBKP)")]
    Magic,
    /// Another version.
    #[error("the proof has protocol version {0}, this verifier speaks {PROTOCOL_VERSION}: use the matching release")]
    Version(u32),
    /// Truncated or not canonical.
    #[error(transparent)]
    Bytes(#[from] BytesError),
}

/// Shape of a segment's opening: weights first, then values.
#[must_use]
pub fn opening_shape(c: &Circuit, params: &OpeningParams) -> OpeningShape {
    let h = params.h as usize;
    let weights = registered_rows(c, h).map(|rows| OracleShape { rows, form: Form::Tiles });
    let values = OracleShape { rows: value_rows(c, h), form: Form::Point };
    OpeningShape { params: *params, oracles: weights.into_iter().chain([values]).collect() }
}

/// Appends a segment's claims.
pub fn write_claims(p: &ClaimsProof, out: &mut Vec<u8>) {
    for layer in &p.logup {
        layer.rounds.iter().for_each(|r| put_felts(out, &r.0));
        put_felts(out, &layer.mask);
    }
    put_felts(out, &p.product.accumulators);
    p.product.rounds.iter().for_each(|r| put_felts(out, &r.0));
    put_felts(out, &p.product.claims);
    put_felts(out, &p.product.weights);
    p.last.rounds.iter().for_each(|r| put_felts(out, &r.0));
    put_felts(out, &p.last.columns);
    p.last.nonces.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
}

/// Reads a segment's claims; every length follows from the circuit.
///
/// # Errors
/// [`BytesError`].
pub fn read_claims(r: &mut Reader<'_>, c: &Circuit, h: usize) -> Result<ClaimsProof, BytesError> {
    let mut logup = Vec::new();
    for depth in 0..c.tree_log() {
        let rounds = r.many(depth, poly::<3>)?;
        let mask = [r.felt()?, r.felt()?, r.felt()?, r.felt()?];
        logup.push(GkrLayer { rounds, mask });
    }
    let product = ProductProof {
        accumulators: r.many(c.products.len(), Reader::felt)?,
        rounds: r.many(c.product_vars(), poly::<3>)?,
        claims: r.many(c.claims.len(), Reader::felt)?,
        weights: r.many(c.matrices.len(), Reader::felt)?,
    };
    let last = FinalProof {
        rounds: r.many(c.max_log(), poly::<4>)?,
        columns: r.many(c.columns.len(), Reader::felt)?,
        nonces: r.many(point_len(c, h) - h, Reader::u64)?,
    };
    Ok(ClaimsProof { logup, product, last })
}

fn poly<const D: usize>(r: &mut Reader<'_>) -> Result<RoundPoly<D>, BytesError> {
    let mut out = RoundPoly([QM31::default(); D]);
    for v in &mut out.0 {
        *v = r.felt()?;
    }
    Ok(out)
}

impl Proof {
    /// Canonical bytes.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.header.write(&mut out);
        for s in &self.segments {
            write_claims(&s.claims, &mut out);
            s.opening.write(&mut out);
        }
        if let Some(opening) = &self.opening {
            opening.write(&mut out);
        }
        out
    }
}

/// Reads one segment, for the circuit built from the registered model and the header.
///
/// # Errors
/// [`BytesError`]; what follows the last segment is for the caller to read or to report ([`Reader::remaining`]).
pub fn read_segment(r: &mut Reader<'_>, c: &Circuit, params: &OpeningParams, mode: Mode) -> Result<SegmentProof, BytesError> {
    let claims = read_claims(r, c, params.h as usize)?;
    let shape = opening_shape(c, params);
    let opening = if mode.opens_each() { OpeningProof::read(r, &shape)? } else { OpeningProof::read_rows(r, &shape)? };
    Ok(SegmentProof { claims, opening })
}
