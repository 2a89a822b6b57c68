//! A whole proof in one process: what the cluster does, without the cluster. The bytes are the same.

use crate::hidden;
use crate::job::{self, Backend, Committed, JobError, LoadedModel};
use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::{PublicInput, segment_count};
use obelysk_protocol::transcript::{HashSuite, Seed};
use obelysk_protocol::verifier::aggregate::{Outline, Stated, absorb_roots, main_transcript};
use obelysk_protocol::verifier::proof::{Header, MODE_FORKED, Proof, SegmentProof};
use obelysk_protocol::verifier::registered::Registered;
use std::time::{Duration, Instant};

/// Wall time by phase.
#[derive(Clone, Debug, Default)]
pub struct Phases(pub Vec<(&'static str, Duration)>);

impl Phases {
    fn time<T>(&mut self, name: &'static str, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let out = f();
        let spent = start.elapsed();
        match self.0.iter_mut().find(|p| p.0 == name) {
            Some(p) => p.1 += spent,
            None => self.0.push((name, spent)),
        }
        out
    }
}

/// Committed values kept until their segment is proved; what does not fit is computed again from the boundary,
/// so that memory grows with a segment and not with the model.
const KEPT_BYTES: usize = 2 << 30;

/// Boundary states of all segments, and the committed values that fit in memory.
struct States<B: Backend> {
    hidden: Vec<Vec<i32>>,
    kept: Vec<Option<Committed<B>>>,
    bytes: usize,
}

impl<B: Backend> States<B> {
    fn keep(&mut self, c: Committed<B>) {
        self.hidden.push(c.hidden().unwrap_or_default());
        let fits = self.bytes + c.bytes() <= KEPT_BYTES;
        self.bytes += if fits { c.bytes() } else { 0 };
        self.kept.push(fits.then_some(c));
    }
}

/// Proves a public input, whose output is ignored; segments one after the other.
///
/// # Errors
/// [`JobError`].
pub fn prove<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    input: &PublicInput,
) -> Result<(Proof, Phases), JobError> {
    prove_with(k, model, input, &|_, _, _| ())
}

/// As [`prove`]; `progress` is told the phase and how many of its segments are done, of how many.
///
/// # Errors
/// [`JobError`].
pub fn prove_with<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    input: &PublicInput,
    progress: &dyn Fn(&'static str, usize, usize),
) -> Result<(Proof, Phases), JobError> {
    let mut phases = Phases::default();
    let segments = segment_count(&model.registered.descriptor);
    let mut states = States { hidden: vec![Vec::new()], kept: Vec::new(), bytes: 0 };
    let mut roots = Vec::new();
    for l in 0..segments {
        let c = phases.time("commit", || job::commit(k, model, input, l, &states.hidden[l]))?;
        roots.push(c.root());
        states.keep(c);
        progress("commit", l + 1, segments);
    }
    let output = hidden::output(&model.registered.descriptor, input, &states.hidden[segments - 1]);
    let input = &PublicInput { output, ..input.clone() };
    let s = phases.time("statement", || Outline::new::<S>(&model.registered, input.clone(), MODE_FORKED))?;
    let (seed, seed_nonce) = draw_seed::<S, B>(k, &model.registered, &s, &roots);
    let (mut proofs, mut boundaries) = (Vec::new(), Vec::new());
    for l in 0..segments {
        let c = match states.kept[l].take() {
            Some(c) => c,
            None => phases.time("commit again", || job::commit(k, model, input, l, &states.hidden[l]))?,
        };
        let claims = phases.time("prove", || job::prove(k, model, &s, &seed, l, &c))?;
        let opening = phases.time("open", || job::open(k, model, &s, &seed, l, (&c, &claims)))?;
        progress("prove", l + 1, segments);
        boundaries.extend(claims.boundaries.1);
        proofs.push(SegmentProof { claims: claims.proof, opening });
    }
    let header = Header {
        version: PROTOCOL_VERSION,
        suite: S::ID,
        mode: MODE_FORKED,
        model_id: model.id,
        ids: s.input.ids.clone(),
        sequences: s.input.sequences.clone(),
        output: s.input.output.clone(),
        roots,
        seed_nonce,
        boundaries,
    };
    Ok((Proof { header, segments: proofs }, phases))
}

/// The seed after all roots and its grinding.
pub fn draw_seed<S: HashSuite, B: Backend>(
    k: &B,
    model: &Registered,
    s: &impl Stated,
    roots: &[obelysk_protocol::transcript::Digest],
) -> (Seed, u64) {
    let mut t = main_transcript::<S>(model, s);
    absorb_roots(&mut t, roots);
    let bits = u32::from(model.security.g_seed);
    let nonce = k.grind::<S>(&t.pow_prefix(bits), bits);
    t.accept_pow(bits, nonce);
    (Seed(t.digest()), nonce)
}
