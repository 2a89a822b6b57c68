//! A whole proof in one process: what the cluster does, without the cluster. The bytes are the same.

use crate::job::{self, Backend, Committed, JobError, LoadedModel};
use obelysk_model::infer;
use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::{PublicInput, segment_count};
use obelysk_protocol::transcript::{HashSuite, Seed};
use obelysk_protocol::verifier::aggregate::{Statement, absorb_roots, main_transcript};
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

/// Proves `ids`; segments one after the other.
///
/// # Errors
/// [`JobError`].
pub fn prove<S: HashSuite, B: Backend>(k: &B, model: &LoadedModel<S, B>, ids: &[u32]) -> Result<(Proof, Phases), JobError> {
    prove_with(k, model, ids, &|_, _, _| ())
}

/// As [`prove`]; `progress` is told the phase and how many of its segments are done, of how many.
///
/// # Errors
/// [`JobError`].
pub fn prove_with<S: HashSuite, B: Backend>(
    k: &B,
    model: &LoadedModel<S, B>,
    ids: &[u32],
    progress: &dyn Fn(&'static str, usize, usize),
) -> Result<(Proof, Phases), JobError> {
    let mut phases = Phases::default();
    let segments = segment_count(&model.registered.descriptor);
    let mut committed: Vec<Committed<B>> = Vec::new();
    for l in 0..segments {
        let received = committed.last().and_then(Committed::hidden).unwrap_or(&[]).to_vec();
        committed.push(phases.time("commit", || job::commit(k, model, ids, l, &received))?);
        progress("commit", l + 1, segments);
    }
    let hidden = committed.get(segments - 2).and_then(Committed::hidden).unwrap_or(&[]);
    let output = infer::pool(hidden, ids.len(), infer::padded_length(ids.len()));
    let input = PublicInput { ids: ids.to_vec(), output };
    let s = phases.time("statement", || Statement::new::<S>(&model.registered, input, MODE_FORKED))?;
    let roots: Vec<_> = committed.iter().map(Committed::root).collect();
    let (seed, seed_nonce) = draw_seed::<S, B>(k, &model.registered, &s, &roots);
    let mut claims = Vec::new();
    for (l, c) in committed.iter().enumerate() {
        claims.push(phases.time("prove", || job::prove(k, model, &s, &seed, l, c))?);
        progress("prove", l + 1, segments);
    }
    let mut proofs = Vec::new();
    for (l, c) in committed.iter().enumerate() {
        let opening = phases.time("open", || job::open(k, model, &s, &seed, l, (c, &claims[l])))?;
        proofs.push(SegmentProof { claims: claims[l].proof.clone(), opening });
        progress("open", l + 1, segments);
    }
    let boundaries = claims[..segments - 1].iter().map(|c| c.boundaries.1).collect();
    let header = Header {
        version: PROTOCOL_VERSION,
        suite: S::ID,
        mode: MODE_FORKED,
        model_id: model.id,
        ids: s.input.ids.clone(),
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
    s: &Statement,
    roots: &[obelysk_protocol::transcript::Digest],
) -> (Seed, u64) {
    let mut t = main_transcript::<S>(model, s);
    absorb_roots(&mut t, roots);
    let bits = u32::from(model.security.g_seed);
    let nonce = k.grind::<S>(&t.pow_prefix(bits), bits);
    t.accept_pow(bits, nonce);
    (Seed(t.digest()), nonce)
}
