//! A whole proof in one process: what the cluster does, without the cluster, and modes that it does not do. The bytes are
//! the same.

use crate::hidden;
use crate::job::{self, Backend, Committed, JobError, LoadedModel, Reduction};
use crate::prover::aggregate::{Segment, open_all};
use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::{PublicInput, segment_count};
use obelysk_protocol::field::QM31;
use obelysk_protocol::transcript::{Digest, HashSuite, Seed, Transcript};
use obelysk_protocol::verifier::aggregate::{Outline, Stated, absorb_closing, absorb_roots, chained, main_transcript};
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::opening::CombinedProof;
use obelysk_protocol::verifier::proof::{Header, Proof, SegmentProof};
use obelysk_protocol::verifier::registered::Registered;
use std::time::{Duration, Instant};

/// Wall time by phase.
#[derive(Clone, Debug, Default)]
pub struct Phases(pub Vec<(&'static str, Duration)>);

impl Phases {
    fn time<T>(&mut self, name: &'static str, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let out = f();
        self.add(name, start.elapsed());
        out
    }

    fn add(&mut self, name: &'static str, spent: Duration) {
        match self.0.iter_mut().find(|p| p.0 == name) {
            Some(p) => p.1 += spent,
            None => self.0.push((name, spent)),
        }
    }
}

/// Committed values kept until they are needed no more; what does not fit is computed again from the boundary, so that memory
/// grows with a segment and not with the model.
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

    /// Takes a segment's values out, computed again if they were not kept.
    fn take<S: HashSuite>(
        &mut self,
        k: &B,
        model: &LoadedModel<S, B>,
        input: &PublicInput,
        l: usize,
        phases: &mut Phases,
    ) -> Result<Committed<B>, JobError> {
        match self.kept[l].take() {
            Some(c) => Ok(c),
            None => phases.time("commit again", || job::commit(k, model, input, l, &self.hidden[l])),
        }
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
    progress: &Progress<'_>,
) -> Result<(Proof, Phases), JobError> {
    prove_in(k, model, (input, Mode::Forked), progress)
}

/// Told the phase and how many of its segments are done, of how many.
pub type Progress<'a> = dyn Fn(&'static str, usize, usize) + 'a;

/// As [`prove_with`], in any weight-binding mode.
///
/// # Errors
/// [`JobError`].
pub fn prove_in<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    (input, mode): (&PublicInput, Mode),
    progress: &Progress<'_>,
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
    let s = phases.time("statement", || Outline::new::<S>(&model.registered, input.clone(), mode as u8))?;
    let (main, seed, seed_nonce) = main_to_seed::<S, B>(k, &model.registered, &s, &roots);
    let mut run = Run { k, model, s: &s, seed, segments, progress, phases };
    let (proofs, boundaries, opening) = match mode {
        Mode::Aggregated => run.aggregated(main, &mut states)?,
        Mode::Sequential | Mode::Forked => run.each(mode, &mut states)?,
    };
    let header = Header {
        version: PROTOCOL_VERSION,
        suite: S::ID,
        mode: mode as u8,
        model_id: model.id,
        ids: s.input.ids.clone(),
        sequences: s.input.sequences.clone(),
        output: s.input.output.clone(),
        roots,
        seed_nonce,
        boundaries,
    };
    Ok((Proof { header, segments: proofs, opening }, run.phases))
}

/// Segments' proofs, boundary values, and in mode 2 the opening of all.
type Proved = (Vec<SegmentProof>, Vec<QM31>, Option<CombinedProof>);

/// A proof after its seed.
struct Run<'a, S: HashSuite, B: Backend> {
    k: &'a B,
    model: &'a LoadedModel<S, B>,
    s: &'a Outline,
    seed: Seed,
    segments: usize,
    progress: &'a Progress<'a>,
    phases: Phases,
}

impl<S: HashSuite, B: Backend> Run<'_, S, B> {
    /// Modes 0 and 1: every segment opens alone.
    fn each(&mut self, mode: Mode, states: &mut States<B>) -> Result<Proved, JobError> {
        let (k, model, s, seed) = (self.k, self.model, self.s, &self.seed);
        let (mut proofs, mut boundaries, mut start) = (Vec::new(), Vec::new(), *seed);
        for l in 0..self.segments {
            let c = states.take(k, model, &s.input, l, &mut self.phases)?;
            let claims = self.phases.time("prove", || job::prove_from(k, model, s, (seed, &start), l, &c))?;
            let opened = self.phases.time("open", || job::open_from(k, model, s, (seed, &start), l, (&c, &claims)));
            let (opening, closing) = opened?;
            start = chained(mode, start, closing);
            (self.progress)("prove", l + 1, self.segments);
            boundaries.extend(claims.boundaries.1);
            proofs.push(SegmentProof { claims: claims.proof, opening });
        }
        Ok((proofs, boundaries, None))
    }

    /// Mode 2: every segment reduces its claims, then all are opened at once.
    fn aggregated(&mut self, mut main: Transcript<S>, states: &mut States<B>) -> Result<Proved, JobError> {
        let (k, model, s, seed) = (self.k, self.model, self.s, &self.seed);
        let (mut proofs, mut boundaries) = (Vec::new(), Vec::new());
        let (mut joined, mut words): (Vec<Segment<B>>, Vec<_>) = (Vec::new(), Vec::new());
        for l in 0..self.segments {
            let kept = states.kept[l].is_some();
            let c = states.take(k, model, &s.input, l, &mut self.phases)?;
            let claims = self.phases.time("prove", || job::prove(k, model, s, seed, l, &c))?;
            let reduced = self.phases.time("open", || job::reduce(k, model, s, seed, l, (&c, &claims)))?;
            let Reduction { rows: opening, closing, segment, words: own } = reduced;
            states.kept[l] = kept.then_some(c);
            (self.progress)("prove", l + 1, self.segments);
            absorb_closing(&mut main, &closing);
            joined.push(segment);
            words.push(own);
            boundaries.extend(claims.boundaries.1);
            proofs.push(SegmentProof { claims: claims.proof, opening });
        }
        let (params, phases, started) = (model.registered.opening(), &mut self.phases, Instant::now());
        let mut again = Phases::default();
        let opening = open_all(k, main, &params, joined, |l, positions| {
            let c = states.take(k, model, &s.input, l, &mut again)?;
            job::answer(k, model, l, (&c, words[l].as_ref()), positions)
        })?;
        let recomputed = again.0.iter().map(|(_, t)| *t).sum();
        phases.add("open all", started.elapsed().saturating_sub(recomputed));
        again.0.into_iter().for_each(|(name, t)| phases.add(name, t));
        Ok((proofs, boundaries, Some(opening)))
    }
}

/// The seed after all roots and its grinding.
pub fn draw_seed<S: HashSuite, B: Backend>(k: &B, model: &Registered, s: &impl Stated, roots: &[Digest]) -> (Seed, u64) {
    let (_, seed, nonce) = main_to_seed::<S, B>(k, model, s, roots);
    (seed, nonce)
}

/// The main transcript up to the seed, the seed, and its nonce.
fn main_to_seed<S: HashSuite, B: Backend>(
    k: &B,
    model: &Registered,
    s: &impl Stated,
    roots: &[Digest],
) -> (Transcript<S>, Seed, u64) {
    let mut t = main_transcript::<S>(model, s);
    absorb_roots(&mut t, roots);
    let bits = u32::from(model.security.g_seed);
    let nonce = k.grind::<S>(&t.pow_prefix(bits), bits);
    t.accept_pow(bits, nonce);
    let seed = Seed(t.digest());
    (t, seed, nonce)
}
