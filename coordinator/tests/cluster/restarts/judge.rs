//! What a leader does beside leading in these lives: checks, the challenge, the whole, and the client's answer.

use super::{Event, JOB, Life, SIZE};
use crate::toy::{Toy, challenge, joined};
use obelysk_coordinator::core::{Effect, Input};
use obelysk_coordinator::ledger::End;
use obelysk_node::engine::Checker;
use obelysk_protocol::wire::BlobRef;

impl Life {
    /// The client reads how the job ended, if it has.
    pub(super) fn tell_client(&mut self) {
        self.told = self.ledger.ended(JOB).map(|ended| match &ended.end {
            End::Proved { proof, .. } => Ok(self.blobs[proof].clone()),
            End::Failed { reason } => Err(reason.clone()),
        });
    }

    /// Bytes, or which are gone: then the brain is told so and the judgement comes to nothing, as in the server.
    fn load(&mut self, term: u64, wanted: &[BlobRef]) -> Option<Vec<Vec<u8>>> {
        let gone = wanted.iter().find(|blob| blob.length > 0 && !self.blobs.contains_key(blob));
        if let Some(blob) = gone.copied() {
            self.later(1, Event::Own(term, Input::BlobLost { blob }));
            return None;
        }
        Some(wanted.iter().map(|blob| self.blobs.get(blob).cloned().unwrap_or_default()).collect())
    }

    pub(super) fn keep(&mut self, bytes: Vec<u8>) -> BlobRef {
        let blob = BlobRef::of(&bytes);
        self.blobs.insert(blob, bytes);
        blob
    }

    pub(super) fn judge(&mut self, term: u64, effect: Effect) {
        let delay = 1 + self.random.below(20);
        match effect {
            Effect::Check { job, work, epoch, spec, needs, output, .. } => {
                let before: Vec<BlobRef> = needs.inputs.iter().chain(&needs.against).copied().collect();
                let Some(inputs) = self.load(term, &before) else { return };
                let Some(rest) = self.load(term, &[spec, needs.extra, output]) else { return };
                let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
                let verdict = Toy { size: SIZE }.check(&rest[0], work.kind, work.segment, &inputs, &rest[1], &rest[2]);
                self.later(delay, Event::Own(term, Input::CheckResult { job, work, epoch, verdict }));
            }
            Effect::DeriveChallenge { job, commits, .. } => {
                let Some(parts) = self.load(term, &commits) else { return };
                let extra = self.keep(challenge(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()));
                self.later(delay, Event::Own(term, Input::ChallengeDerived { job, commits, result: Ok(extra) }));
            }
            Effect::Finish { job, spec, commits, challenge, proves, opens, joint } => {
                let [Some(c), Some(p), Some(o)] = [&commits, &proves, &opens].map(|list| self.load(term, list)) else { return };
                let Some(rest) = self.load(term, &[spec, challenge]) else { return };
                let joint = match joint {
                    None => None,
                    Some((step, parts)) => {
                        let (Some(mut bytes), Some(parts)) = (self.load(term, &[step]), self.load(term, &parts)) else { return };
                        Some((step, bytes.remove(0), parts))
                    }
                };
                let input = joined(job, &rest[0], ([c, p, o], &rest[1]), joint, |bytes| self.keep(bytes));
                self.later(delay, Event::Own(term, input));
            }
            _ => {}
        }
    }
}
