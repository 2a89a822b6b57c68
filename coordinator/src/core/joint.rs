//! The opening of all segments of a job, step by step. No fact: a new leader begins it anew, from results that are.

use obelysk_node::engine::WorkKind;
use obelysk_protocol::wire::BlobRef;

use super::job::{Job, Record};
use super::outcome::JobEvent;
use super::types::Work;

/// What an opening of all segments opens: the challenge, and all proofs and openings by segment.
pub(super) type Basis = (BlobRef, Vec<BlobRef>, Vec<BlobRef>);

/// The opening of all segments, at one of its steps.
#[derive(Debug, Clone)]
pub(super) struct Joint {
    pub(super) basis: Basis,
    /// Count of the job's turns when the basis was last seen to be this.
    pub(super) turns: u64,
    /// Public bytes of this step.
    pub(super) step: BlobRef,
    /// How many steps came before.
    pub(super) number: u32,
    /// Each segment's part in the step before; before the first, its opening.
    pub(super) before: Vec<Record>,
}

/// All pieces, as they went to the checker to be joined: with the step that they are parts of, if they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) basis: Basis,
    pub(super) joint: Option<(BlobRef, Vec<BlobRef>)>,
}

impl Job {
    /// What an opening of all segments would open now.
    pub(super) fn basis(&self) -> Option<Basis> {
        Some((self.current_challenge()?, self.outputs(WorkKind::Prove)?, self.outputs(WorkKind::Open)?))
    }

    /// What can go to the checker to be joined now.
    pub(super) fn joinable(&self) -> Option<Asked> {
        let basis = self.basis()?;
        let joint = match &self.joint {
            None => None,
            Some(joint) => Some((joint.step, self.outputs(WorkKind::Joint)?)),
        };
        Some(Asked { basis, joint })
    }

    /// Goes on to the step with these public bytes; what was asked must still be so. Gives its number.
    pub(super) fn join(&mut self, step: BlobRef) -> Option<u32> {
        let asked = self.asked.take()?;
        if self.joinable().as_ref() != Some(&asked) {
            return None;
        }
        let kind = if self.joint.is_some() { WorkKind::Joint } else { WorkKind::Open };
        let before: Option<Vec<Record>> = (0..self.segments).map(|l| self.accepted(kind, l).cloned()).collect();
        let number = self.joint.as_ref().map_or(0, |joint| joint.number + 1);
        self.joint = Some(Joint { basis: asked.basis, turns: self.turns, step, number, before: before? });
        for l in 0..self.segments {
            self.renew(Work::new(WorkKind::Joint, l));
        }
        Some(number)
    }

    /// Gives the opening of all up; it begins again when all pieces are in.
    pub(super) fn unjoin(&mut self, reason: &str) -> Vec<JobEvent> {
        if self.joint.take().is_none() {
            return Vec::new();
        }
        let works = (0..self.segments).map(|l| Work::new(WorkKind::Joint, l));
        works
            .filter_map(|work| {
                if let Some(item) = self.item_mut(work) {
                    item.doubt = None;
                }
                self.retract(work, reason)
            })
            .collect()
    }

    /// Whether the opening of all stands on this blob.
    pub(super) fn joins_with(&self, blob: BlobRef) -> bool {
        self.joint.as_ref().is_some_and(|joint| joint.step == blob || joint.before.iter().any(|record| record.output == blob))
    }
}
