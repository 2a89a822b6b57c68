//! The whole proof: statement, seed, one fork per segment, closing digests (`docs/soundness.md` §6).
//!
//! Every root is absorbed before the seed; boundary points come from the seed alone; each boundary value is one field of
//! the proof that both neighbours absorb. Segments share nothing else.

use super::bytes::Reader;
use super::error::VerifyError;
use super::final_sumcheck::{RowShape, value_rows};
use super::opening::{self, Claim, OracleClaim};
use super::proof::{Header, MODE_FORKED, Proof, SegmentProof};
use super::registered::Registered;
use super::segment::{self, Boundary, ClaimsProof, OpeningClaims, SegmentInput, registered_rows};
use super::soundness;
use crate::PROTOCOL_VERSION;
use crate::circuit::attention::ExpTables;
use crate::circuit::segment::{Circuit, log2_ceil};
use crate::circuit::{self, PublicInput, exp_tables, segment_count};
use crate::transcript::{Digest, ForkKind, HashSuite, Seed, Transcript, fork};

/// Fiat–Shamir bits below which no proof is accepted, whatever parameters a model was registered with.
pub const MINIMUM_SECURITY_BITS: f64 = 96.0;

/// The statement of one proof with everything derived from it.
#[derive(Debug)]
pub struct Statement {
    /// Public input and claimed output.
    pub input: PublicInput,
    /// One circuit per segment.
    pub circuits: Vec<Circuit>,
    /// Weight-binding mode.
    pub mode: u8,
    /// Model id.
    pub model_id: Digest,
}

/// What an accepted proof means.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// Fiat–Shamir security in bits: the minimum over all challenges.
    pub security_bits: f64,
    /// Token ids of the statement.
    pub ids: Vec<u32>,
    /// Proven pooled sums.
    pub output: Vec<i64>,
    /// Main transcript's final digest: names this proof.
    pub digest: Digest,
}

impl Statement {
    /// Checks the public input against the model and builds the circuits.
    ///
    /// # Errors
    /// [`VerifyError::Input`], [`VerifyError::Statement`] for an unknown mode, [`VerifyError::Circuit`].
    pub fn new<S: HashSuite>(model: &Registered, input: PublicInput, mode: u8) -> Result<Self, VerifyError> {
        Self::with_tables::<S>(model, &exp_tables(), input, mode)
    }

    fn with_tables<S: HashSuite>(model: &Registered, exp: &ExpTables, input: PublicInput, mode: u8) -> Result<Self, VerifyError> {
        let d = &model.descriptor;
        if mode != MODE_FORKED {
            let (found, expected) = (mode.to_string(), MODE_FORKED.to_string());
            return Err(VerifyError::Statement { field: "weight-binding mode", found, expected });
        }
        let limit = circuit::descriptor::MAX_TOKENS.min(d.positions() as usize);
        if input.ids.is_empty() || input.ids.len() > limit {
            return Err(VerifyError::Input(format!("{} tokens; this model takes 1 to {limit}", input.ids.len())));
        }
        if let Some(id) = input.ids.iter().find(|&&id| id >= d.vocab()) {
            return Err(VerifyError::Input(format!("token id {id} is outside the vocabulary of {}", d.vocab())));
        }
        if input.output.len() != d.width() as usize {
            return Err(VerifyError::Input(format!("{} output channels; the model has {}", input.output.len(), d.width())));
        }
        // |sum_t u| <= T 2^15 < p / 2, so equality mod p is equality.
        let bound = (input.ids.len() as u64) << 15;
        // unsigned_abs: |i64::MIN| does not fit i64, and 2^63 = 2 mod p would pass for a small value.
        if input.output.iter().any(|v| v.unsigned_abs() > bound) {
            return Err(VerifyError::Input(format!("an output value exceeds {bound}")));
        }
        let circuits = (0..segment_count(d)).map(|s| circuit::build(d, exp, &input, s)).collect::<Result<_, _>>()?;
        Ok(Self { input, circuits, mode, model_id: model.model_id::<S>() })
    }

    /// Variables of a boundary point.
    #[must_use]
    pub fn boundary_vars(&self, model: &Registered) -> usize {
        self.input.token_log() + log2_ceil(model.descriptor.width() as usize)
    }
}

/// The main transcript with the statement absorbed.
#[must_use]
pub fn main_transcript<S: HashSuite>(model: &Registered, s: &Statement) -> Transcript<S> {
    let mut t = Transcript::<S>::new("obelysk");
    t.absorb_u64("version", u64::from(PROTOCOL_VERSION));
    t.absorb_bytes("suite", &[S::ID]);
    t.absorb_bytes("mode", &[s.mode]);
    t.absorb_digest("model", &s.model_id);
    // Descriptor, registered roots and security parameters, in full: the model id is a name, not the statement.
    t.absorb_bytes("registration", &model.write());
    let ids: Vec<u8> = s.input.ids.iter().flat_map(|v| v.to_le_bytes()).collect();
    t.absorb_bytes("ids", &ids);
    let output: Vec<u8> = s.input.output.iter().flat_map(|v| v.to_le_bytes()).collect();
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
pub fn boundary_point<S: HashSuite>(seed: &Seed, s: &Statement, model: &Registered, l: usize) -> Vec<crate::field::QM31> {
    let mut t = fork::<S>(seed, PROTOCOL_VERSION, s.mode, ForkKind::Boundary, l as u32);
    t.draw_many("boundary.point", s.boundary_vars(model))
}

/// A segment's view of the statement: circuit and boundaries.
#[must_use]
pub fn segment_input<'a, S: HashSuite>(
    model: &Registered,
    s: &'a Statement,
    seed: &Seed,
    index: usize,
    (value_in, value_out): (crate::field::QM31, crate::field::QM31),
) -> SegmentInput<'a> {
    let boundary = |l: usize, value| Boundary { point: boundary_point::<S>(seed, s, model, l), value };
    let last = s.circuits.len() - 1;
    SegmentInput {
        circuit: &s.circuits[index],
        boundary_in: if index == 0 { Boundary::default() } else { boundary(index - 1, value_in) },
        boundary_out: if index == last { Boundary::default() } else { boundary(index, value_out) },
        output: &s.input.output,
        shape: RowShape { h: usize::from(model.descriptor.row_log()), g_fold: u32::from(model.security.g_fold) },
    }
}

/// The fresh fork of a segment.
#[must_use]
pub fn segment_fork<S: HashSuite>(seed: &Seed, s: &Statement, index: usize) -> Transcript<S> {
    fork::<S>(seed, PROTOCOL_VERSION, s.mode, ForkKind::Segment, index as u32)
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

/// Verifies one segment in its fork; returns its closing digest.
///
/// # Errors
/// [`VerifyError`].
pub fn verify_segment<S: HashSuite>(
    model: &Registered,
    s: &Statement,
    seed: &Seed,
    index: usize,
    (root, boundaries): (Digest, (crate::field::QM31, crate::field::QM31)),
    proof: &SegmentProof,
) -> Result<Digest, VerifyError> {
    let input = segment_input::<S>(model, s, seed, index, boundaries);
    if input.circuit.matrices.is_empty() != model.roots.get(index).copied().flatten().is_none() {
        return Err(VerifyError::Input("the registered roots do not match the model's segments".to_owned()));
    }
    let mut t = segment_fork::<S>(seed, s, index);
    let claims = verify_claims(&mut t, &input, &proof.claims)?;
    let oracles = oracle_claims(model, input.circuit, index, root, claims);
    opening::verify(&mut t, &model.opening(), &oracles, &proof.opening).map_err(|e| VerifyError::Opening(e.to_string()))?;
    Ok(t.digest())
}

/// Values of the boundaries around a segment.
#[must_use]
pub fn neighbours(boundaries: &[crate::field::QM31], index: usize) -> (crate::field::QM31, crate::field::QM31) {
    let at = |i: Option<usize>| i.and_then(|i| boundaries.get(i)).copied().unwrap_or_default();
    (at(index.checked_sub(1)), at(Some(index)))
}

/// Checks a header against the registered model and derives statement and seed.
///
/// # Errors
/// [`VerifyError`].
pub fn open_statement<S: HashSuite>(
    model: &Registered,
    header: &Header,
) -> Result<(Statement, Transcript<S>, Seed), VerifyError> {
    let expect = |field: &'static str, found: String, expected: String| {
        if found == expected { Ok(()) } else { Err(VerifyError::Statement { field, found, expected }) }
    };
    expect("protocol version", header.version.to_string(), PROTOCOL_VERSION.to_string())?;
    expect("hash suite", header.suite.to_string(), S::ID.to_string())?;
    let hex = |d: &Digest| d.iter().map(|b| format!("{b:02x}")).collect::<String>();
    expect("model id", hex(&header.model_id), hex(&model.model_id::<S>()))?;
    let segments = segment_count(&model.descriptor);
    let count = |step: &'static str, found: usize, expected: usize| {
        if found == expected { Ok(()) } else { Err(VerifyError::Count { step, found, expected }) }
    };
    count("roots", header.roots.len(), segments)?;
    count("boundaries", header.boundaries.len(), segments - 1)?;
    let input = PublicInput { ids: header.ids.clone(), sequences: Vec::new(), output: header.output.clone() };
    let s = Statement::new::<S>(model, input, header.mode)?;
    let mut t = main_transcript::<S>(model, &s);
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
    let (s, t, seed) = open_statement::<S>(model, &proof.header)?;
    verify_with::<S>(model, proof, &s, t, &seed)
}

fn verify_with<S: HashSuite>(
    model: &Registered,
    proof: &Proof,
    s: &Statement,
    mut t: Transcript<S>,
    seed: &Seed,
) -> Result<Accepted, VerifyError> {
    let (found, expected) = (proof.segments.len(), s.circuits.len());
    if found != expected {
        return Err(VerifyError::Count { step: "segments", found, expected });
    }
    for (index, (segment, root)) in proof.segments.iter().zip(&proof.header.roots).enumerate() {
        let around = neighbours(&proof.header.boundaries, index);
        let closing = verify_segment::<S>(model, s, seed, index, (*root, around), segment)
            .map_err(|e| VerifyError::Segment { index, source: Box::new(e) })?;
        t.absorb_digest("closing", &closing);
    }
    let security_bits = soundness::minimum(&soundness::budget(model, &s.circuits));
    Ok(Accepted { security_bits, ids: s.input.ids.clone(), output: s.input.output.clone(), digest: t.digest() })
}

/// Parses and verifies the bytes of a proof; total on any bytes.
///
/// # Errors
/// [`VerifyError::Malformed`] for bytes that are no canonical proof, [`VerifyError::Security`] for a model registered with
/// parameters below [`MINIMUM_SECURITY_BITS`], else as [`verify`].
pub fn verify_bytes<S: HashSuite>(model: &Registered, bytes: &[u8]) -> Result<Accepted, VerifyError> {
    let accepted = verify_reduced::<S>(model, bytes)?;
    if accepted.security_bits < MINIMUM_SECURITY_BITS {
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
    let malformed = |e: &dyn std::fmt::Display| VerifyError::Malformed(e.to_string());
    let header = Header::read(&mut r).map_err(|e| malformed(&e))?;
    let (s, t, seed) = open_statement::<S>(model, &header)?;
    let segments = Proof::read_segments(&mut r, &s.circuits, &model.opening()).map_err(|e| malformed(&e))?;
    if r.remaining() != 0 {
        return Err(VerifyError::Malformed(format!("{} bytes follow the last segment", r.remaining())));
    }
    verify_with::<S>(model, &Proof { header, segments }, &s, t, &seed)
}
