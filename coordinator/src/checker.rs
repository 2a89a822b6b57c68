//! The [`Checker`] of proofs: shapes at once, hidden states against commits, claims and openings by the verifier itself.
//!
//! It needs registrations, no weights. Whatever it accepts is verified again as a whole before it is published.

mod joint;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::slice;
use std::sync::Arc;

use obelysk_model::recent::{Key, Recent};
use obelysk_model::validate::{DEFAULT_RATE, Needs, SegmentNeeds};
use obelysk_node::calibration;
use obelysk_node::engine::{CheckError, Checker, Joined, Pieces, Trial, Verdict, WorkKind};
use obelysk_node::job_bytes::{Boundaries, Challenge, CommitBlob, JobSpec, OpenJob, claims_from_bytes, hidden_from_bytes};
use obelysk_protocol::circuit::descriptor::Descriptor;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::{PublicInput, segment_count};
use obelysk_protocol::field::QM31;
use obelysk_protocol::transcript::{Digest, HashSuite, Transcript};
use obelysk_protocol::verifier::aggregate::{
    Closed, Outline, Stated as _, boundary_point, neighbours, segment_fork, segment_view, verify_bytes, verify_claims,
    verify_opened,
};
use obelysk_protocol::verifier::bytes::Reader;
use obelysk_protocol::verifier::opening::{CombinedProof, OpeningProof};
use obelysk_protocol::verifier::proof::{MODE_AGGREGATED, MODE_FORKED, Proof, SegmentProof, opening_shape};
use obelysk_protocol::verifier::registered::Registered;
use obelysk_protocol::verifier::segment::OpeningClaims;
use obelysk_protocol::verifier::soundness;
use obelysk_shard::hidden::{self, boundary_values};
use obelysk_shard::job::Backend;
use obelysk_shard::local::draw_seed;

/// Segments whose needs are told: more than any model has.
const MAX_SEGMENTS: usize = 1024;
/// Statements kept: one per running job of a busy coordinator.
const STATEMENTS: usize = 8;
/// Memory of verified claims that wait for their opening: a thousand of a large model.
const CLAIMED_BYTES: usize = 1 << 28;
/// Memory of verified segments that wait for the opening of all: a thousand of a large model.
const CLOSED_BYTES: usize = 1 << 28;

/// Checks jobs for a set of registered models.
pub struct ProofChecker<S: HashSuite, B: Backend> {
    backend: B,
    models: BTreeMap<Digest, Arc<Registered>>,
    /// The model of calibration: for trials only.
    trial: Option<Digest>,
    statements: Recent<OpenJob>,
    claimed: Recent<Claimed<S>>,
    closed: Recent<Closed>,
}

/// A segment whose claims were verified: where its transcript stands, and what is left to open.
struct Claimed<S: HashSuite> {
    transcript: Transcript<S>,
    left: OpeningClaims,
}

/// A specification with its model.
struct Job {
    spec: JobSpec,
    model: Arc<Registered>,
}

impl Job {
    fn segments(&self) -> usize {
        segment_count(&self.model.descriptor)
    }

    /// Values of a hidden state; none after the head.
    fn hidden_len(&self, segment: usize) -> usize {
        if segment + 1 == self.segments() { 0 } else { hidden::hidden_len(&self.model.descriptor, &self.spec.input()) }
    }

    /// The hidden state after a segment.
    fn hidden(&self, segment: usize, blob: Option<&&[u8]>) -> Result<Vec<i32>, Verdict> {
        hidden_from_bytes(&self.model.descriptor, blob.copied().unwrap_or_default(), self.hidden_len(segment)).map_err(reject)
    }

    /// Output channels in a segment's commit: only an encoder's head has any.
    fn channels(&self, segment: usize) -> usize {
        match &self.model.descriptor {
            Descriptor::Encoder(d) if segment + 1 == self.segments() => d.width as usize,
            _ => 0,
        }
    }
}

fn refuse<T>(error: impl Display) -> Result<T, CheckError> {
    Err(CheckError::Spec(error.to_string()))
}

fn pieces(error: impl Display) -> CheckError {
    CheckError::Pieces(error.to_string())
}

impl<S: HashSuite, B: Backend> ProofChecker<S, B> {
    /// A checker for these models.
    #[must_use]
    pub fn new(backend: B, models: impl IntoIterator<Item = Registered>) -> Self {
        let models = models.into_iter().map(|m| (m.model_id::<S>(), Arc::new(m))).collect();
        let (statements, claimed, closed) = (Recent::new(STATEMENTS), Recent::new(CLAIMED_BYTES), Recent::new(CLOSED_BYTES));
        Self { backend, models, trial: None, statements, claimed, closed }
    }

    /// Calibrates new nodes by this model, see [`obelysk_node::calibration`].
    #[must_use]
    pub fn with_trial(mut self, model: Registered) -> Self {
        let id = model.model_id::<S>();
        self.models.insert(id, Arc::new(model));
        self.trial = Some(id);
        self
    }

    fn job(&self, spec: &[u8]) -> Result<Job, CheckError> {
        let spec = JobSpec::decode(spec).or_else(refuse)?;
        let hex = || spec.model.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self.models.get(&spec.model) {
            Some(model) => Ok(Job { model: model.clone(), spec }),
            None => refuse(format!("model {} is not registered at this coordinator; register it on every coordinator", hex())),
        }
    }

    /// Statement and seed behind a challenge that this checker derived.
    fn open(&self, job: &Job, extra: &[u8]) -> Result<Arc<OpenJob>, String> {
        let key = blake3::Hasher::new().update(&job.spec.encode()).update(extra).finalize();
        self.statements.get_or(key.into(), || {
            let challenge = Challenge::decode(extra).map_err(|e| e.to_string())?;
            Ok((challenge.open::<S>(&job.model, &job.spec).map_err(|e| e.to_string())?, 1))
        })
    }

    fn check_commit(job: &Job, segment: usize, inputs: &[&[u8]], output: &[u8]) -> Result<(), Verdict> {
        let commit = CommitBlob::decode(output, job.channels(segment)).map_err(reject)?;
        if job.channels(segment) > 0 {
            let before = job.hidden(segment - 1, inputs.first())?;
            if commit.output != hidden::output(&job.model.descriptor, &job.spec.input(), &before) {
                return Err(reject("the pooled output is not that of the hidden state"));
            }
        }
        let after = inputs.last().copied().unwrap_or_default();
        if blake3::hash(after).as_bytes() == &commit.after {
            Ok(())
        } else {
            Err(Verdict::Dispute("the hidden state after the segment is another".to_owned()))
        }
    }

    /// The claims of a segment, verified in its fork; remembered, as their opening goes on from them.
    fn claimed(&self, job: &Job, extra: &[u8], segment: usize, blob: &[u8]) -> Result<Arc<Claimed<S>>, String> {
        self.claimed.get_or(key_of(job, &[extra, &(segment as u64).to_le_bytes(), blob]), || {
            let open = self.open(job, extra)?;
            let s = &open.statement;
            let circuit = s.circuit(&job.model, segment).map_err(|e| e.to_string())?;
            let (around, proof) = claims_from_bytes(blob, &job.model, (segment, &circuit)).map_err(|e| e.to_string())?;
            let input = segment_view::<S>(&job.model, s, &open.seed, (segment, &circuit), (&around.0, &around.1));
            let mut transcript = segment_fork::<S>(&open.seed, s, segment);
            let left = verify_claims(&mut transcript, &input, &proof).map_err(|e| e.to_string())?;
            let felts = left.values.0.len() + left.weights.as_ref().map_or(0, |w| w.weights.len() + w.point.len());
            Ok((Claimed { transcript, left }, size_of::<Claimed<S>>() + size_of::<QM31>() * felts))
        })
    }

    /// Inputs: hidden state before (but for segment 0), hidden state after.
    fn check_prove(&self, job: &Job, segment: usize, inputs: &[&[u8]], (extra, output): (&[u8], &[u8])) -> Result<(), Verdict> {
        let open = self.open(job, extra).map_err(reject)?;
        let s = &open.statement;
        let circuit = s.circuit(&job.model, segment).map_err(reject)?;
        let (claimed, _) = claims_from_bytes(output, &job.model, (segment, &circuit)).map_err(reject)?;
        let limbs = job.model.descriptor.boundary_limbs();
        let values = |l: Option<usize>, blob: Option<&&[u8]>| -> Result<Vec<QM31>, Verdict> {
            let Some(l) = l.filter(|l| l + 1 < job.segments()) else { return Ok(Vec::new()) };
            let point = boundary_point::<S>(&open.seed, s, &job.model, l);
            Ok(boundary_values(limbs, &job.hidden(l, blob)?, &point))
        };
        let before = values(segment.checked_sub(1), inputs.first())?;
        let after = values(Some(segment), inputs.last())?;
        if claimed != (before, after) {
            return Err(reject("the boundary values are not those of the hidden states"));
        }
        self.claimed(job, extra, segment, output).map(|_| ()).map_err(reject)
    }

    /// Inputs: hidden state before (but for segment 0), result of prove.
    fn check_open(&self, job: &Job, segment: usize, inputs: &[&[u8]], (extra, output): (&[u8], &[u8])) -> Result<(), Verdict> {
        let claims = inputs.last().copied().unwrap_or_default();
        let judged = match job.spec.mode {
            MODE_AGGREGATED => self.closed(job, extra, segment, (claims, output)).map(|_| ()),
            _ => self.close(job, extra, segment, (claims, output)).map(|_| ()),
        };
        judged.map_err(reject)
    }

    /// A segment verified in its fork.
    fn close(&self, job: &Job, extra: &[u8], segment: usize, (claims, opened): (&[u8], &[u8])) -> Result<Closed, String> {
        // Elsewhere a fork does not start from the seed.
        if !matches!(job.spec.mode, MODE_FORKED | MODE_AGGREGATED) {
            return Err(format!("segments of mode {} cannot be judged alone", job.spec.mode));
        }
        let open = self.open(job, extra)?;
        let circuit = &*open.statement.circuit(&job.model, segment).map_err(|e| e.to_string())?;
        let proof = opening_proof(job, circuit, opened)?;
        let root = Challenge::decode(extra).map_err(|e| e.to_string())?.roots[segment];
        let claimed = self.claimed(job, extra, segment, claims)?;
        let (t, left) = (claimed.transcript.clone(), claimed.left.clone());
        verify_opened(&job.model, &open.statement, t, (segment, circuit), (root, left), &proof).map_err(|e| e.to_string())
    }

    /// The whole proof, verified.
    fn stitch(&self, job: &Job, p: Pieces<'_>, opening: Option<CombinedProof>) -> Result<Vec<u8>, CheckError> {
        let challenge = Challenge::decode(p.challenge).map_err(pieces)?;
        let open = self.open(job, p.challenge).map_err(pieces)?;
        let n = job.segments();
        if p.proves.len() != n || p.opens.len() != n {
            return Err(pieces("a segment is missing"));
        }
        let (mut around, mut segments) = (Vec::new(), Vec::new());
        for (l, (claims, opening)) in p.proves.iter().zip(p.opens).enumerate() {
            let circuit = open.statement.circuit(&job.model, l).map_err(pieces)?;
            let (boundaries, proof) = segment_proof(job, (l, &circuit), claims, opening).map_err(pieces)?;
            around.push(boundaries);
            segments.push(proof);
        }
        let boundaries: Vec<QM31> = around.iter().take(n - 1).flat_map(|b| b.1.iter().copied()).collect();
        let limbs = job.model.descriptor.boundary_limbs();
        if let Some(l) = (0..n).find(|&l| (&*around[l].0, &*around[l].1) != neighbours(&boundaries, limbs, l)) {
            return Err(pieces(format!("segment {l} does not continue from the one before it")));
        }
        let bytes = Proof { header: challenge.header::<S>(&job.spec, boundaries), segments, opening }.write();
        verify_bytes::<S>(&job.model, &bytes).map_err(pieces)?;
        Ok(bytes)
    }
}

/// Refuses before any work what no verifier would accept: ids, mode, or a model registered with weak parameters.
///
/// # Errors
/// [`CheckError::Spec`].
pub fn admit<S: HashSuite>(model: &Registered, spec: &JobSpec) -> Result<(), CheckError> {
    // Neither circuits nor security depend on the output, which is not known yet.
    let output = match &model.descriptor {
        Descriptor::Encoder(d) => vec![0; d.width as usize],
        Descriptor::Decoder(_) => Vec::new(),
    };
    let input = PublicInput { output, ..spec.input() };
    let statement = Outline::new::<S>(model, input, spec.mode).or_else(refuse)?;
    let mut bits = f64::INFINITY;
    for segment in 0..segment_count(&model.descriptor) {
        let circuit = &*statement.circuit(model, segment).or_else(refuse)?;
        let budget = soundness::budget(model, statement.mode, slice::from_ref(circuit));
        bits = soundness::weaker(bits, soundness::minimum(&budget));
    }
    if !statement.mode.opens_each() {
        bits = soundness::weaker(bits, soundness::minimum(&soundness::joint_budget(model)));
    }
    if !soundness::enough(bits) {
        return refuse(format!("the model was registered for {bits:.0} bits of security only: register it again"));
    }
    Ok(())
}

fn reject(error: impl Display) -> Verdict {
    Verdict::Reject(error.to_string())
}

fn segment_proof(
    job: &Job,
    (segment, circuit): (usize, &Circuit),
    claims: &[u8],
    opening: &[u8],
) -> Result<(Boundaries, SegmentProof), String> {
    let (boundaries, claims) = claims_from_bytes(claims, &job.model, (segment, circuit)).map_err(|e| e.to_string())?;
    Ok((boundaries, SegmentProof { claims, opening: opening_proof(job, circuit, opening)? }))
}

fn opening_proof(job: &Job, circuit: &Circuit, bytes: &[u8]) -> Result<OpeningProof, String> {
    let mut r = Reader::new(bytes);
    let shape = opening_shape(circuit, &job.model.opening());
    let rows = job.spec.mode == MODE_AGGREGATED;
    let opening = if rows { OpeningProof::read_rows(&mut r, &shape) } else { OpeningProof::read(&mut r, &shape) };
    let opening = opening.map_err(|e| e.to_string())?;
    match r.remaining() {
        0 => Ok(opening),
        n => Err(format!("opening: {n} bytes too many")),
    }
}

/// Names what was verified: all of the job and these bytes.
fn key_of(job: &Job, parts: &[&[u8]]) -> Key {
    let mut key = blake3::Hasher::new();
    for part in std::iter::once(&*job.spec.encode()).chain(parts.iter().copied()) {
        key.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    key.finalize().into()
}

impl<S: HashSuite, B: Backend + 'static> Checker for ProofChecker<S, B> {
    fn segments(&self, spec: &[u8]) -> Result<u32, CheckError> {
        let job = self.job(spec)?;
        if self.trial == Some(job.spec.model) {
            return refuse("the model of calibration takes no jobs");
        }
        admit::<S>(&job.model, &job.spec)?;
        u32::try_from(job.segments()).or_else(refuse)
    }

    fn knows(&self, spec: &[u8]) -> Result<(), CheckError> {
        self.job(spec).map(|_| ())
    }

    fn check(&self, spec: &[u8], kind: WorkKind, segment: u32, inputs: &[&[u8]], extra: &[u8], output: &[u8]) -> Verdict {
        let segment = segment as usize;
        let job = match self.job(spec) {
            Ok(job) if segment < job.segments() => job,
            Ok(_) => return reject("no such segment"),
            Err(e) => return reject(e),
        };
        let outcome = match kind {
            WorkKind::Forward => job.hidden(segment, Some(&output)).map(|_| ()),
            WorkKind::Commit => Self::check_commit(&job, segment, inputs, output),
            WorkKind::Prove => self.check_prove(&job, segment, inputs, (extra, output)),
            WorkKind::Open => self.check_open(&job, segment, inputs, (extra, output)),
            WorkKind::Joint if job.spec.mode != MODE_AGGREGATED => Err(reject("this job has no joint steps")),
            WorkKind::Joint => self.check_joint(&job, segment, inputs, (extra, output)),
        };
        outcome.err().unwrap_or(Verdict::Accept)
    }

    fn challenge(&self, spec: &[u8], commits: &[&[u8]]) -> Result<Vec<u8>, CheckError> {
        let job = self.job(spec)?;
        if commits.len() != job.segments() {
            return Err(pieces(format!("{} commits of {} segments", commits.len(), job.segments())));
        }
        let commits = commits.iter().enumerate().map(|(l, blob)| CommitBlob::decode(blob, job.channels(l)));
        let mut commits = commits.collect::<Result<Vec<_>, _>>().map_err(pieces)?;
        let roots: Vec<Digest> = commits.iter().map(|c| c.root).collect();
        let output = commits.pop().map(|head| head.output).unwrap_or_default();
        let input = PublicInput { output: output.clone(), ..job.spec.input() };
        let s = Outline::new::<S>(&job.model, input, job.spec.mode).map_err(pieces)?;
        let (_, seed_nonce) = draw_seed::<S, B>(&self.backend, &job.model, &s, &roots);
        Ok(Challenge { output, roots, seed_nonce }.encode())
    }

    fn finish(&self, spec: &[u8], p: Pieces<'_>) -> Result<Vec<u8>, CheckError> {
        let job = self.job(spec)?;
        if job.spec.mode == MODE_AGGREGATED {
            return Err(pieces("the segments are not opened yet"));
        }
        self.stitch(&job, p, None)
    }

    fn join(&self, spec: &[u8], p: Pieces<'_>, step: &[u8], parts: &[&[u8]]) -> Result<Joined, CheckError> {
        let job = self.job(spec)?;
        if job.spec.mode == MODE_AGGREGATED { self.step(&job, p, step, parts) } else { self.finish(spec, p).map(Joined::Proof) }
    }

    fn peak_bytes(&self, spec: &[u8]) -> Vec<u64> {
        let Ok(job) = self.job(spec) else { return Vec::new() };
        let d = &job.model.descriptor;
        let needs = Needs::estimate(d, d.layer_count() as u64, job.spec.ids.len(), DEFAULT_RATE);
        let Ok(needs) = needs else { return Vec::new() };
        let of = |s: &SegmentNeeds| std::iter::repeat_n(s.memory_bytes, usize::try_from(s.count).unwrap_or(0).min(MAX_SEGMENTS));
        needs.segments.iter().flat_map(of).take(MAX_SEGMENTS).collect()
    }

    fn trial(&self, number: u64) -> Option<Trial> {
        let model = self.trial?;
        let segments = segment_count(&self.models.get(&model)?.descriptor);
        let spec = calibration::spec(model, number).encode();
        Some(Trial { model, spec, segments: u32::try_from(segments).ok()? })
    }
}
