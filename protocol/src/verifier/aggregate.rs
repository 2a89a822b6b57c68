//! The whole proof: statement, seed, one fork per segment, closing digests, and in mode 2 one opening of all
//! (`docs/soundness.md` §6).
//!
//! Every root is absorbed before the seed; boundary points come from the seed alone; each boundary value is one field of
//! the proof that both neighbours absorb. Segments share nothing else, but in mode 0 the order of their transcripts.

use super::bytes::Reader;
use super::error::VerifyError;
use super::final_sumcheck::{RowShape, value_rows};
use super::mode::Mode;
use super::opening::{self, Claim, CombinedProof, OpeningError, OpeningProof, OracleClaim, Reduced, absorb_all, verify_combined};
use super::proof::{Header, Proof, SegmentProof, read_segment};
use super::registered::Registered;
use super::segment::{self, Boundary, ClaimsProof, OpeningClaims, SegmentInput, registered_rows};
use super::soundness;
pub use super::statement::{Outline, Stated, Statement, check_input};
use crate::PROTOCOL_VERSION;
use crate::circuit::segment::Circuit;
use crate::circuit::{PublicInput, Sequence, segment_count};
use crate::field::QM31;
use crate::transcript::{Digest, ForkKind, HashSuite, Seed, Transcript, fork};
use std::borrow::Cow;

/// Fiat–Shamir bits below which no proof is accepted, whatever parameters a model was registered with.
pub const MINIMUM_SECURITY_BITS: f64 = 96.0;

/// What an accepted proof means.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// Fiat–Shamir security in bits: the minimum over all challenges.
    pub security_bits: f64,
    /// Weight-binding mode.
    pub mode: Mode,
    /// Token ids of the statement.
    pub ids: Vec<u32>,
    /// Decoder: how the ids are cut into prompts and proven completions.
    pub sequences: Vec<Sequence>,
    /// Encoder: proven pooled sums.
    pub output: Vec<i64>,
    /// Main transcript's final digest: names this proof.
    pub digest: Digest,
}

/// The main transcript with the statement absorbed.
#[must_use]
pub fn main_transcript<S: HashSuite>(model: &Registered, s: &impl Stated) -> Transcript<S> {
    transcript_of(&model.write(), s)
}

/// As [`main_transcript`], given the model's canonical bytes.
fn transcript_of<S: HashSuite>(registration: &[u8], s: &impl Stated) -> Transcript<S> {
    let input = s.input();
    let mut t = Transcript::<S>::new("obelysk");
    t.absorb_u64("version", u64::from(PROTOCOL_VERSION));
    t.absorb_bytes("suite", &[S::ID]);
    t.absorb_bytes("mode", &[s.mode()]);
    t.absorb_digest("model", s.model_id());
    // Descriptor, registered roots and security parameters, in full: the model id is a name, not the statement.
    t.absorb_bytes("registration", registration);
    let ids: Vec<u8> = input.ids.iter().flat_map(|v| v.to_le_bytes()).collect();
    t.absorb_bytes("ids", &ids);
    let cuts: Vec<u8> =
        input.sequences.iter().flat_map(|q| [q.prompt.to_le_bytes(), q.completion.to_le_bytes()].concat()).collect();
    t.absorb_bytes("sequences", &cuts);
    let output: Vec<u8> = input.output.iter().flat_map(|v| v.to_le_bytes()).collect();
    t.absorb_bytes("output", &output);
    t
}

/// Absorbs all value roots. The seed's grinding follows.
pub fn absorb_roots<S: HashSuite>(t: &mut Transcript<S>, roots: &[Digest]) {
    for (l, root) in roots.iter().enumerate() {
        t.absorb_u64("segment", l as u64);
        t.absorb_digest("root", root);
    }
}

/// The point at which segments `l` and `l + 1` open their copies of the hidden state.
#[must_use]
pub fn boundary_point<S: HashSuite>(seed: &Seed, s: &impl Stated, model: &Registered, l: usize) -> Vec<QM31> {
    let mut t = fork::<S>(seed, PROTOCOL_VERSION, s.mode(), ForkKind::Boundary, l as u32);
    t.draw_many("boundary.point", s.boundary_vars(model))
}

/// A segment's view of a statement that has all circuits: circuit and boundaries.
#[must_use]
pub fn segment_input<'a, S: HashSuite>(
    model: &Registered,
    s: &'a Statement,
    seed: &Seed,
    index: usize,
    values: (&[QM31], &[QM31]),
) -> SegmentInput<'a> {
    segment_view::<S>(model, s, seed, (index, &s.circuits[index]), values)
}

/// A segment's view of the statement, given its circuit.
#[must_use]
pub fn segment_view<'a, S: HashSuite>(
    model: &Registered,
    s: &'a impl Stated,
    seed: &Seed,
    (index, circuit): (usize, &'a Circuit),
    (values_in, values_out): (&[QM31], &[QM31]),
) -> SegmentInput<'a> {
    let boundary =
        |l: usize, values: &[QM31]| Boundary { point: boundary_point::<S>(seed, s, model, l), values: values.to_vec() };
    let last = segment_count(&model.descriptor) - 1;
    SegmentInput {
        circuit,
        boundary_in: if index == 0 { Boundary::default() } else { boundary(index - 1, values_in) },
        boundary_out: if index == last { Boundary::default() } else { boundary(index, values_out) },
        output: &s.input().output,
        shape: RowShape { h: usize::from(model.descriptor.row_log()), g_fold: u32::from(model.security.g_fold) },
    }
}

/// The fresh fork of a segment. `start` is the seed; in mode 0, after the first segment, [`chained`].
#[must_use]
pub fn segment_fork<S: HashSuite>(start: &Seed, s: &impl Stated, index: usize) -> Transcript<S> {
    fork::<S>(start, PROTOCOL_VERSION, s.mode(), ForkKind::Segment, index as u32)
}

/// What the fork after the one with this closing digest starts from: in mode 0 the digest, else what it started from too.
#[must_use]
pub fn chained(mode: Mode, start: Seed, closing: Digest) -> Seed {
    if mode == Mode::Sequential { Seed(closing) } else { start }
}

/// Absorbs a fork's closing digest into the main transcript. Called in order of segments, for all of them.
pub fn absorb_closing<S: HashSuite>(t: &mut Transcript<S>, closing: &Digest) {
    t.absorb_digest("closing", closing);
}

/// The oracles of a segment's opening with their claims: weights, then values.
#[must_use]
pub fn oracle_claims(model: &Registered, c: &Circuit, index: usize, root: Digest, claims: OpeningClaims) -> Vec<OracleClaim> {
    let h = usize::from(model.descriptor.row_log());
    let weights = match (model.roots.get(index).copied().flatten(), claims.weights, registered_rows(c, h)) {
        (Some(root), Some(w), Some(rows)) => {
            Some(OracleClaim { root, rows, claim: Claim::Tiles { weights: w.weights, point: w.point, value: w.value } })
        }
        _ => None,
    };
    let (r, value) = claims.values;
    let values = OracleClaim { root, rows: value_rows(c, h), claim: Claim::Point { r, value } };
    weights.into_iter().chain([values]).collect()
}

/// Verifies a segment up to its openings, on its own.
///
/// # Errors
/// [`VerifyError`].
pub fn verify_claims<S: HashSuite>(
    t: &mut Transcript<S>,
    input: &SegmentInput<'_>,
    proof: &ClaimsProof,
) -> Result<OpeningClaims, VerifyError> {
    segment::verify(t, input, proof)
}

/// A verified fork.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Commits to all of the fork.
    pub digest: Digest,
    /// Mode 2: the segment's oracles, weights first, whose reduced claims are still to be opened.
    pub reduced: Vec<Reduced>,
}

/// Verifies one segment in its fork, which starts from `start`; boundary points come from `seed`.
///
/// # Errors
/// [`VerifyError`].
///
/// # Soundness
/// In mode 2 the segment holds only if [`verify_joint`] accepts what is returned here.
pub fn verify_fork<S: HashSuite>(
    model: &Registered,
    s: &impl Stated,
    (seed, start): (&Seed, &Seed),
    (index, circuit): (usize, &Circuit),
    (root, boundaries): (Digest, (&[QM31], &[QM31])),
    proof: &SegmentProof,
) -> Result<Closed, VerifyError> {
    let input = segment_view::<S>(model, s, seed, (index, circuit), boundaries);
    let mut t = segment_fork::<S>(start, s, index);
    let claims = verify_claims(&mut t, &input, &proof.claims)?;
    verify_opened(model, s, t, (index, circuit), (root, claims), &proof.opening)
}

/// Verifies the opening of a segment from where [`verify_claims`] left its fork: `t` and what it returned.
///
/// # Errors
/// [`VerifyError`].
///
/// # Soundness
/// As [`verify_fork`], and only for a transcript and claims that [`verify_claims`] has just accepted for the same statement, seed and segment.
pub fn verify_opened<S: HashSuite>(
    model: &Registered,
    s: &impl Stated,
    mut t: Transcript<S>,
    (index, circuit): (usize, &Circuit),
    (root, claims): (Digest, OpeningClaims),
    proof: &OpeningProof,
) -> Result<Closed, VerifyError> {
    if circuit.matrices.is_empty() != model.roots.get(index).copied().flatten().is_none() {
        return Err(VerifyError::Input("the registered roots do not match the model's segments".to_owned()));
    }
    let oracles = oracle_claims(model, circuit, index, root, claims);
    let (params, failed) = (model.opening(), |e: OpeningError| VerifyError::Opening(e.to_string()));
    let unknown = || VerifyError::Input(format!("there is no mode {}", s.mode()));
    let each = Mode::of(s.mode()).ok_or_else(unknown)?.opens_each();
    let mut reduced = Vec::new();
    if each {
        opening::verify(&mut t, &params, &oracles, proof).map_err(failed)?;
    } else {
        reduced = opening::verify_rows(&mut t, &params, &oracles, proof, false).map_err(failed)?;
    }
    Ok(Closed { digest: t.digest(), reduced })
}

/// Mode 2: opens the reduced claims of all segments in the main transcript, which has absorbed every closing digest.
///
/// # Errors
/// [`VerifyError::Opening`].
pub fn verify_joint<S: HashSuite>(
    t: &mut Transcript<S>,
    model: &Registered,
    reduced: &[Reduced],
    proof: &CombinedProof,
) -> Result<(), VerifyError> {
    let params = model.opening();
    absorb_all(t, &params, reduced.len());
    verify_combined(t, &params, reduced, proof).map_err(|e| VerifyError::Opening(e.to_string()))
}

/// Values of the boundaries before and after a segment, `limbs` each; empty where there is none.
#[must_use]
pub fn neighbours(boundaries: &[QM31], limbs: usize, index: usize) -> (&[QM31], &[QM31]) {
    let at = |i: Option<usize>| i.and_then(|i| boundaries.get(i * limbs..(i + 1) * limbs)).unwrap_or(&[]);
    (at(index.checked_sub(1)), at(Some(index)))
}

/// Checks a header against the registered model and derives statement and seed.
///
/// # Errors
/// [`VerifyError`].
pub fn open_statement<S: HashSuite>(model: &Registered, header: &Header) -> Result<(Outline, Transcript<S>, Seed), VerifyError> {
    let expect = |field: &'static str, found: String, expected: String| {
        if found == expected { Ok(()) } else { Err(VerifyError::Statement { field, found, expected }) }
    };
    expect("protocol version", header.version.to_string(), PROTOCOL_VERSION.to_string())?;
    expect("hash suite", header.suite.to_string(), S::ID.to_string())?;
    let registration = model.write();
    let model_id = Registered::id_of::<S>(&registration);
    let hex = |d: &Digest| d.iter().map(|b| format!("{b:02x}")).collect::<String>();
    expect("model id", hex(&header.model_id), hex(&model_id))?;
    let segments = segment_count(&model.descriptor);
    let count = |step: &'static str, found: usize, expected: usize| {
        if found == expected { Ok(()) } else { Err(VerifyError::Count { step, found, expected }) }
    };
    count("roots", header.roots.len(), segments)?;
    let limbs = model.descriptor.boundary_limbs();
    count("boundaries", header.boundaries.len(), (segments - 1) * limbs)?;
    let input = PublicInput { ids: header.ids.clone(), sequences: header.sequences.clone(), output: header.output.clone() };
    let s = Outline::named(model, input, header.mode, model_id)?;
    let mut t = transcript_of::<S>(&registration, &s);
    absorb_roots(&mut t, &header.roots);
    if !t.accept_pow(u32::from(model.security.g_seed), header.seed_nonce) {
        return Err(VerifyError::Grinding("the seed"));
    }
    let seed = Seed(t.digest());
    Ok((s, t, seed))
}

/// Verifies a parsed proof.
///
/// # Errors
/// [`VerifyError`]; a segment's error names the segment.
///
/// # Soundness
/// The minimum of [`soundness::budget`], reported and not judged here: [`verify_bytes`] is the entry that refuses a model
/// registered below [`MINIMUM_SECURITY_BITS`]. The statement is about the model whose registration the caller trusts.
pub fn verify<S: HashSuite>(model: &Registered, proof: &Proof) -> Result<Accepted, VerifyError> {
    let opened = open_statement::<S>(model, &proof.header)?;
    let (found, expected) = (proof.segments.len(), segment_count(&model.descriptor));
    if found != expected {
        return Err(VerifyError::Count { step: "segments", found, expected });
    }
    verify_with::<S>(model, &proof.header, opened, InMemory { proof, next: 0 })
}

/// Where the parts of a proof come from. No more than one segment is in memory here.
trait Parts<'a> {
    /// The next segment, for its circuit.
    fn segment(&mut self, circuit: &Circuit, mode: Mode) -> Result<Cow<'a, SegmentProof>, VerifyError>;
    /// What follows the last segment, in mode 2 for oracles with these rows.
    fn joint(&mut self, rows: &[usize], mode: Mode) -> Result<Option<Cow<'a, CombinedProof>>, VerifyError>;
}

/// A proof whose number of segments is right.
struct InMemory<'a> {
    proof: &'a Proof,
    next: usize,
}

impl<'a> Parts<'a> for InMemory<'a> {
    fn segment(&mut self, _: &Circuit, _: Mode) -> Result<Cow<'a, SegmentProof>, VerifyError> {
        let (found, expected) = (self.next, self.next + 1);
        self.next += 1;
        let segment = self.proof.segments.get(found).map(Cow::Borrowed);
        segment.ok_or(VerifyError::Count { step: "segments", found, expected })
    }

    fn joint(&mut self, _: &[usize], _: Mode) -> Result<Option<Cow<'a, CombinedProof>>, VerifyError> {
        Ok(self.proof.opening.as_ref().map(Cow::Borrowed))
    }
}

/// Canonical bytes.
struct Parsed<'a, 'b> {
    reader: &'b mut Reader<'a>,
    params: opening::OpeningParams,
}

impl<'a> Parts<'a> for Parsed<'_, '_> {
    fn segment(&mut self, circuit: &Circuit, mode: Mode) -> Result<Cow<'a, SegmentProof>, VerifyError> {
        read_segment(self.reader, circuit, &self.params, mode).map(Cow::Owned).map_err(malformed)
    }

    fn joint(&mut self, rows: &[usize], mode: Mode) -> Result<Option<Cow<'a, CombinedProof>>, VerifyError> {
        let read = (!mode.opens_each()).then(|| CombinedProof::read(self.reader, &self.params, rows));
        Ok(read.transpose().map_err(malformed)?.map(Cow::Owned))
    }
}

fn malformed(e: impl std::fmt::Display) -> VerifyError {
    VerifyError::Malformed(e.to_string())
}

/// Verifies segment after segment, then what opens them all.
fn verify_with<'a, S: HashSuite>(
    model: &Registered,
    header: &Header,
    (s, mut t, seed): (Outline, Transcript<S>, Seed),
    mut parts: impl Parts<'a>,
) -> Result<Accepted, VerifyError> {
    let mode = s.mode;
    let (mut start, mut reduced, mut security_bits) = (seed, Vec::new(), f64::INFINITY);
    for (index, root) in header.roots.iter().enumerate() {
        let circuit = s.circuit(model, index)?;
        let segment = parts.segment(&circuit, mode)?;
        let around = neighbours(&header.boundaries, model.descriptor.boundary_limbs(), index);
        let closed = verify_fork::<S>(model, &s, (&seed, &start), (index, &circuit), (*root, around), &segment)
            .map_err(|e| VerifyError::Segment { index, source: Box::new(e) })?;
        absorb_closing(&mut t, &closed.digest);
        start = chained(mode, start, closed.digest);
        reduced.extend(closed.reduced);
        let budget = soundness::budget(model, mode, std::slice::from_ref(&*circuit));
        security_bits = soundness::weaker(security_bits, soundness::minimum(&budget));
    }
    let rows: Vec<usize> = reduced.iter().map(|o| o.residual.coefficients.len()).collect();
    match parts.joint(&rows, mode)? {
        Some(opening) if mode == Mode::Aggregated => {
            verify_joint(&mut t, model, &reduced, &opening)?;
            security_bits = soundness::weaker(security_bits, soundness::minimum(&soundness::joint_budget(model)));
        }
        None if mode.opens_each() => {}
        found => {
            let expected = usize::from(!mode.opens_each());
            return Err(VerifyError::Count { step: "openings of all segments", found: usize::from(found.is_some()), expected });
        }
    }
    let PublicInput { ids, sequences, output } = s.input;
    Ok(Accepted { security_bits, mode, ids, sequences, output, digest: t.digest() })
}

/// Parses and verifies the bytes of a proof; total on any bytes.
///
/// # Errors
/// [`VerifyError::Malformed`] for bytes that are no canonical proof, [`VerifyError::Security`] for a model registered with
/// parameters below [`MINIMUM_SECURITY_BITS`], else as [`verify`].
pub fn verify_bytes<S: HashSuite>(model: &Registered, bytes: &[u8]) -> Result<Accepted, VerifyError> {
    let accepted = verify_reduced::<S>(model, bytes)?;
    if !soundness::enough(accepted.security_bits) {
        return Err(VerifyError::Security { found: accepted.security_bits.floor() as i32 });
    }
    Ok(accepted)
}

/// [`verify_bytes`] without the floor on security, for tests on toy models whose parameters make forgeries cheap to try.
///
/// # Errors
/// As [`verify_bytes`].
#[doc(hidden)]
pub fn verify_reduced<S: HashSuite>(model: &Registered, bytes: &[u8]) -> Result<Accepted, VerifyError> {
    let mut r = Reader::new(bytes);
    let header = Header::read(&mut r).map_err(malformed)?;
    let opened = open_statement::<S>(model, &header)?;
    let parts = Parsed { reader: &mut r, params: model.opening() };
    let accepted = verify_with::<S>(model, &header, opened, parts)?;
    match r.remaining() {
        0 => Ok(accepted),
        n => Err(VerifyError::Malformed(format!("{n} bytes follow the proof"))),
    }
}
