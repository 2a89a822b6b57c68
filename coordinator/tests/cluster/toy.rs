//! A stand-in for the prover: every result is a hash of what it depends on, so right and wrong are known without running it.

use std::sync::Arc;

use obelysk_node::engine::{CheckError, Checker, Engine, EngineError, Pieces, Verdict, WorkKind, WorkOutput, WorkRequest};
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

/// The honest result of a work item; an error when its inputs cannot be right.
pub fn compute(kind: WorkKind, spec: &[u8], l: u32, inputs: &[&[u8]], extra: &[u8], size: usize) -> Result<Vec<u8>, EngineError> {
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
    })
}

/// The proof an undisturbed run ends with.
pub fn expected_proof(spec: &[u8], size: usize) -> Vec<u8> {
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
    let proves: Vec<_> = (0..n).map(|l| prove(&commits[l as usize], l, &challenge)).collect();
    let opens: Vec<_> = (0..n).map(|l| open(&proves[l as usize], l, &challenge)).collect();
    [commits.concat(), challenge, proves.concat(), opens.concat()].concat()
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
            WorkKind::Open => Verdict::Reject("opening does not verify".to_owned()),
        }
    }

    fn challenge(&self, _spec: &[u8], commits: &[&[u8]]) -> Result<Vec<u8>, CheckError> {
        Ok(challenge(commits))
    }

    fn finish(&self, spec: &[u8], p: Pieces<'_>) -> Result<Vec<u8>, CheckError> {
        let proof = [p.commits.concat(), p.challenge.to_vec(), p.proves.concat(), p.opens.concat()].concat();
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
