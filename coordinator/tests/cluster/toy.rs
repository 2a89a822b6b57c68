//! A stand-in for the prover: every result is a hash of what it depends on, so right and wrong are known without running it.
//!
//! A job may have joint steps, as in mode 2. Then what a checker sees of proofs, openings and parts before the last step is their
//! first half only, and nothing but the last step ties them to the root: lies may stay unseen for long.

use std::sync::Arc;

use obelysk_coordinator::core::{Input, JobId};
use obelysk_node::engine::{
    CheckError, Checker, Engine, EngineError, Joined, Pieces, Verdict, WorkKind, WorkOutput, WorkRequest,
};
use obelysk_protocol::wire::BlobRef;

pub const MODEL: [u8; 32] = [7; 32];

pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let lengths: Vec<[u8; 8]> = parts.iter().map(|p| (p.len() as u64).to_le_bytes()).collect();
    let bytes: Vec<u8> = parts.iter().zip(&lengths).flat_map(|(p, l)| l.iter().chain(p.iter())).copied().collect();
    BlobRef::of(&bytes).digest
}

/// First four bytes: the number of segments; the rest stands for the input.
pub fn spec(segments: u32, seed: u64) -> Vec<u8> {
    [&segments.to_le_bytes()[..], &seed.to_le_bytes()[..]].concat()
}

/// As [`spec`], with so many joint steps.
pub fn joint_spec(segments: u32, seed: u64, steps: u8) -> Vec<u8> {
    [&spec(segments, seed)[..], &[steps][..]].concat()
}

fn steps_of(spec: &[u8]) -> usize {
    spec.get(12).map_or(0, |steps| usize::from(*steps))
}

pub fn segments_of(spec: &[u8]) -> Option<u32> {
    spec.first_chunk::<4>().map(|b| u32::from_le_bytes(*b))
}

fn forward(spec: &[u8], l: u32, before: &[u8], size: usize) -> Vec<u8> {
    let seed = hash(&[b"forward", spec, &l.to_le_bytes(), before]);
    seed.iter().copied().cycle().take(size).collect()
}

/// The root, and the digest of the boundary after the segment.
fn commit(spec: &[u8], l: u32, before: &[u8], size: usize) -> Vec<u8> {
    let root = hash(&[b"commit", spec, &l.to_le_bytes(), before]);
    [root, BlobRef::of(&forward(spec, l, before, size)).digest].concat()
}

fn prove(commit: &[u8], l: u32, challenge: &[u8]) -> Vec<u8> {
    hash(&[b"prove", commit, &l.to_le_bytes(), challenge]).to_vec()
}

fn open(proof: &[u8], l: u32, challenge: &[u8]) -> Vec<u8> {
    hash(&[b"open", proof, &l.to_le_bytes(), challenge]).to_vec()
}

/// The commit of a segment, as the challenge repeats it.
fn committed(challenge: &[u8], l: u32) -> Option<&[u8]> {
    challenge.get(32 + 64 * l as usize..)?.get(..64)
}

pub fn challenge(commits: &[&[u8]]) -> Vec<u8> {
    let all = commits.concat();
    [&hash(&[b"challenge", &all])[..], &all].concat()
}

/// A result of which a checker sees the first half only.
fn veiled(seen: &[u8], own: &[u8]) -> Vec<u8> {
    [seen, &hash(&[b"veiled", seen, own])[..8]].concat()
}

/// What is drawn before each joint step so far.
fn draws(record: &[u8]) -> Vec<&[u8]> {
    record.chunks(32).collect()
}

fn drawn_first(p: &Pieces<'_>) -> Vec<u8> {
    hash(&[b"join", p.challenge, &p.proves.concat(), &p.opens.concat()]).to_vec()
}

fn drawn_next(record: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    [record, &hash(&[b"join", record, &parts.concat()])].concat()
}

/// What a checker sees of a part.
fn share(opened: &[u8], l: u32, drawn: &[u8]) -> [u8; 32] {
    hash(&[b"share", opened, &l.to_le_bytes(), drawn])
}

/// A part: the digest of the one before, what a checker sees, and what it does not.
fn part(before: &[u8], opened: &[u8], own: &[u8], l: u32, drawn: &[u8]) -> Vec<u8> {
    [&BlobRef::of(before).digest[..], &veiled(&share(opened, l, drawn), own)].concat()
}

/// The honest part in the step that a record ends with, of a segment that opened so.
fn history(opened: &[u8], own: &[u8], l: u32, record: &[u8]) -> Vec<u8> {
    draws(record).into_iter().fold(opened.to_vec(), |before, drawn| part(&before, opened, own, l, drawn))
}

/// The honest result of a work item; an error when its inputs cannot be right.
pub fn compute(kind: WorkKind, spec: &[u8], l: u32, inputs: &[&[u8]], extra: &[u8], size: usize) -> Result<Vec<u8>, EngineError> {
    if steps_of(spec) > 0 && kind >= WorkKind::Prove {
        return compute_joint(kind, (spec, l), inputs, extra);
    }
    let missing = || EngineError::Malformed("too few inputs".to_owned());
    let before = if l == 0 { &[][..] } else { inputs.first().ok_or_else(missing)? };
    let own = commit(spec, l, before, size);
    if matches!(kind, WorkKind::Prove | WorkKind::Open) && committed(extra, l) != Some(&own) {
        return Err(EngineError::Disagrees("the committed root is another".to_owned()));
    }
    let proof = prove(&own, l, extra);
    Ok(match kind {
        WorkKind::Forward => forward(spec, l, before, size),
        WorkKind::Commit => own,
        WorkKind::Prove => proof,
        WorkKind::Open if inputs.last() != Some(&&proof[..]) => {
            return Err(EngineError::Disagrees("the proof is another".to_owned()));
        }
        WorkKind::Open => open(&proof, l, extra),
        WorkKind::Joint => return Err(EngineError::Malformed("no joint steps".to_owned())),
    })
}

/// As [`compute`], after the challenge of a job with joint steps.
fn compute_joint(kind: WorkKind, (spec, l): (&[u8], u32), inputs: &[&[u8]], extra: &[u8]) -> Result<Vec<u8>, EngineError> {
    let malformed = || EngineError::Malformed("too few inputs".to_owned());
    let before = if l == 0 { &[][..] } else { inputs.first().ok_or_else(malformed)? };
    let root = hash(&[b"commit", spec, &l.to_le_bytes(), before]);
    let challenge = if kind == WorkKind::Joint { inputs.last().ok_or_else(malformed)? } else { extra };
    let own = committed(challenge, l).filter(|own| own[..32] == root);
    let own = own.ok_or_else(|| EngineError::Disagrees("the committed root is another".to_owned()))?;
    let proof = veiled(&prove(own, l, challenge), own);
    let at = match kind {
        WorkKind::Open => inputs.len().checked_sub(1),
        WorkKind::Joint => inputs.len().checked_sub(3),
        _ => return Ok(proof),
    };
    if at.and_then(|at| inputs.get(at)) != Some(&&proof[..]) {
        return Err(EngineError::Disagrees("the proof is another".to_owned()));
    }
    let opened = veiled(&open(&proof[..32], l, challenge), own);
    Ok(if kind == WorkKind::Joint { history(&opened, own, l, extra) } else { opened })
}

/// What somebody makes who looks at nothing but what the checker will see: `before` is the part of the step before.
pub fn shameless(kind: WorkKind, l: u32, inputs: &[&[u8]], extra: &[u8]) -> Option<Vec<u8>> {
    let at = |back: usize| inputs.len().checked_sub(back).map(|at| inputs[at]);
    Some(match kind {
        WorkKind::Prove => veiled(&prove(committed(extra, l)?, l, extra), b"?"),
        WorkKind::Open => veiled(&open(at(1)?.get(..32)?, l, extra), b"?"),
        WorkKind::Joint => {
            let opened = at(2)?;
            draws(extra).into_iter().fold(opened.to_vec(), |before, drawn| part(&before, opened, b"?", l, drawn))
        }
        WorkKind::Forward | WorkKind::Commit => return None,
    })
}

/// What the checker sees of a result after the challenge, in a job with joint steps.
fn check_joint(kind: WorkKind, (spec, l): (&[u8], u32), inputs: &[&[u8]], extra: &[u8], output: &[u8]) -> Verdict {
    let reject = |what: &str| Verdict::Reject(what.to_owned());
    let seen = match kind {
        WorkKind::Prove => committed(extra, l).map(|own| prove(own, l, extra)),
        WorkKind::Open => inputs.last().and_then(|proof| Some(open(proof.get(..32)?, l, extra))),
        _ => {
            let [given @ .., before] = inputs else { return reject("too few inputs") };
            if output.len() != 72 {
                return reject("part of wrong shape");
            }
            if output[..32] != BlobRef::of(before).digest {
                return Verdict::Dispute("the part before is another".to_owned());
            }
            let (Some(drawn), [.., opened, _]) = (draws(extra).last().copied(), given) else { return reject("no step") };
            if output[32..64] != share(opened, l, drawn) {
                return reject("share does not fit");
            }
            let last = draws(extra).len() == steps_of(spec);
            let holds = !last || compute_joint(kind, (spec, l), given, extra).as_deref() == Ok(output);
            return if holds { Verdict::Accept } else { reject("the answers are not those of the shares") };
        }
    };
    let holds = output.len() == 40 && seen.is_some_and(|seen| output[..32] == seen[..]);
    if holds { Verdict::Accept } else { reject("it does not verify") }
}

/// The proof an undisturbed run ends with.
pub fn expected_proof(spec: &[u8], size: usize) -> Vec<u8> {
    let joint = steps_of(spec);
    let n = segments_of(spec).expect("a toy spec");
    let mut boundaries: Vec<Vec<u8>> = Vec::new();
    let mut commits = Vec::new();
    for l in 0..n {
        let before = boundaries.last().map_or(&[][..], Vec::as_slice);
        commits.push(commit(spec, l, before, size));
        let next = forward(spec, l, before, size);
        boundaries.push(next);
    }
    let parts: Vec<&[u8]> = commits.iter().map(Vec::as_slice).collect();
    let challenge = challenge(&parts);
    let own = |l: u32| commits[l as usize].as_slice();
    let veil = |seen: Vec<u8>, l: u32| if joint > 0 { veiled(&seen, own(l)) } else { seen };
    let proves: Vec<_> = (0..n).map(|l| veil(prove(own(l), l, &challenge), l)).collect();
    let opens: Vec<_> = (0..n).map(|l| veil(open(&proves[l as usize][..32], l, &challenge), l)).collect();
    let [p, o] = [&proves, &opens].map(|list| list.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let mut record = drawn_first(&Pieces { commits: &[], challenge: &challenge, proves: &p, opens: &o });
    let mut last = Vec::new();
    for step in 0..joint {
        last = (0..n).map(|l| history(&opens[l as usize], own(l), l, &record)).collect::<Vec<_>>();
        if step + 1 < joint {
            record = drawn_next(&record, &last.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
    }
    [commits.concat(), challenge, proves.concat(), opens.concat(), last.concat()].concat()
}

/// An honest engine with boundaries of `size` bytes.
#[derive(Debug, Clone, Copy)]
pub struct Toy {
    pub size: usize,
}

impl Engine for Toy {
    fn models(&self) -> Vec<[u8; 32]> {
        vec![MODEL]
    }

    fn run(&self, request: &WorkRequest, inputs: &[Vec<u8>], progress: &dyn Fn(u32)) -> Result<WorkOutput, EngineError> {
        progress(500);
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let WorkRequest { kind, segment, spec, extra, .. } = request;
        let blob = compute(*kind, spec, *segment, &inputs, extra, self.size)?;
        Ok(WorkOutput { blob, core_us: 10, peak_bytes: 1000 + u64::from(*segment) })
    }
}

/// What a checker can see: shapes of forwards, consistency of commits, truth of proofs and openings given their inputs.
impl Checker for Toy {
    fn segments(&self, spec: &[u8]) -> Result<u32, CheckError> {
        let valid = segments_of(spec).filter(|n| (1..=64).contains(n));
        valid.ok_or_else(|| CheckError::Spec("1 to 64 segments".to_owned()))
    }

    fn check(&self, spec: &[u8], kind: WorkKind, segment: u32, inputs: &[&[u8]], extra: &[u8], output: &[u8]) -> Verdict {
        if steps_of(spec) > 0 && kind >= WorkKind::Prove {
            return check_joint(kind, (spec, segment), inputs, extra, output);
        }
        let truth = || compute(kind, spec, segment, inputs, extra, self.size);
        match kind {
            WorkKind::Forward if output.len() == self.size => Verdict::Accept,
            WorkKind::Forward => Verdict::Reject("boundary of wrong shape".to_owned()),
            WorkKind::Commit if output.len() != 64 => Verdict::Reject("commit of wrong shape".to_owned()),
            WorkKind::Commit => {
                let after = inputs.last().map(|after| BlobRef::of(after).digest);
                if output.get(32..) == after.as_ref().map(|d| &d[..]) {
                    Verdict::Accept
                } else {
                    Verdict::Dispute("boundary digest differs".to_owned())
                }
            }
            // No proof verifies under a root that is not that of the computation: then `truth` is an error.
            WorkKind::Prove if truth().as_deref() == Ok(output) => Verdict::Accept,
            WorkKind::Prove => Verdict::Reject("proof does not verify".to_owned()),
            WorkKind::Open if truth().as_deref() == Ok(output) => Verdict::Accept,
            WorkKind::Open | WorkKind::Joint => Verdict::Reject("opening does not verify".to_owned()),
        }
    }

    fn challenge(&self, _spec: &[u8], commits: &[&[u8]]) -> Result<Vec<u8>, CheckError> {
        Ok(challenge(commits))
    }

    fn finish(&self, spec: &[u8], p: Pieces<'_>) -> Result<Vec<u8>, CheckError> {
        self.whole(spec, p, &[])
    }

    fn join(&self, spec: &[u8], p: Pieces<'_>, step: &[u8], parts: &[&[u8]]) -> Result<Joined, CheckError> {
        match (steps_of(spec), draws(step).len()) {
            (0, _) => self.finish(spec, p).map(Joined::Proof),
            (_, 0) => Ok(Joined::Step(drawn_first(&p))),
            (all, done) if done < all => Ok(Joined::Step(drawn_next(step, parts))),
            _ => self.whole(spec, p, parts).map(Joined::Proof),
        }
    }
}

impl Toy {
    fn whole(&self, spec: &[u8], p: Pieces<'_>, parts: &[&[u8]]) -> Result<Vec<u8>, CheckError> {
        let pieces = [p.commits.concat(), p.challenge.to_vec(), p.proves.concat(), p.opens.concat(), parts.concat()];
        let proof = pieces.concat();
        if proof == expected_proof(spec, self.size) {
            Ok(proof)
        } else {
            Err(CheckError::Pieces("the whole does not verify".to_owned()))
        }
    }
}

pub fn toy() -> Arc<Toy> {
    Arc::new(Toy { size: 64 })
}

/// What a coordinator makes of all pieces, given their bytes; `keep` takes the bytes of what comes next.
pub fn joined(
    job: JobId,
    spec: &[u8],
    (pieces, challenge): ([Vec<Vec<u8>>; 3], &[u8]),
    joint: Option<(BlobRef, Vec<u8>, Vec<Vec<u8>>)>,
    keep: impl FnOnce(Vec<u8>) -> BlobRef,
) -> Input {
    fn list(blobs: &[Vec<u8>]) -> Vec<&[u8]> {
        blobs.iter().map(Vec::as_slice).collect()
    }
    let [commits, proves, opens] = pieces.each_ref().map(|blobs| list(blobs));
    let pieces = Pieces { commits: &commits, challenge, proves: &proves, opens: &opens };
    let (after, step, parts) = joint.map_or((None, Vec::new(), Vec::new()), |(after, step, parts)| (Some(after), step, parts));
    match (Toy { size: 64 }).join(spec, pieces, &step, &list(&parts)) {
        Ok(Joined::Proof(proof)) => Input::Finished { job, result: Ok(keep(proof)) },
        Ok(Joined::Step(step)) => Input::Joined { job, after, step: keep(step) },
        Err(e) => Input::Finished { job, result: Err(e.to_string()) },
    }
}
