//! What needs no node: taking a job on, its challenge when all commits are in, stitching when all pieces are, its end.

use obelysk_protocol::wire::BlobRef;

use obelysk_node::engine::WorkKind;

use super::job::{Challenge, Job};
use super::joint::Asked;
use super::outcome::{JobEvent, JobFailure};
use super::types::{Effect, JobId};
use super::{Fact, MAX_JOBS, State, tell};

impl State {
    pub(super) fn submitted(&mut self, job: JobId, model: [u8; 32], spec: BlobRef, segments: u32, out: &mut Vec<Effect>) {
        if !self.jobs.contains_key(&job) && !self.ended.contains(&job) {
            if self.jobs.len() >= MAX_JOBS || segments == 0 {
                out.push(Effect::FailJob { job, failure: JobFailure::TooMany(MAX_JOBS) });
                return;
            }
            let number = self.next_number;
            self.next_number += 1;
            self.jobs.insert(job, Job::new(model, spec, segments));
            self.queue.push(job);
            self.man(job);
            out.push(Effect::Record(Fact::JobOpened { job, number, model, spec, segments }));
            self.record_size(job, out);
        }
        out.push(Effect::Opened { job });
    }

    pub(super) fn challenged(
        &mut self,
        id: JobId,
        commits: Vec<BlobRef>,
        result: Result<BlobRef, String>,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.deriving.as_ref() != Some(&commits) {
            return;
        }
        job.deriving = None;
        job.stirred = true;
        match result {
            Ok(extra) => {
                job.set_challenge(Some(Challenge { commits: commits.clone(), extra }));
                out.push(Effect::Record(Fact::Challenged { job: id, commits, extra }));
                tell(id, JobEvent::Challenged, out);
                job.drop_stale().into_iter().for_each(|event| tell(id, event, out));
            }
            Err(reason) => self.fail(id, JobFailure::Pieces(reason), out),
        }
    }

    pub(super) fn finished(&mut self, id: JobId, result: Result<BlobRef, String>, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&id).filter(|job| job.asked.is_some()) else { return };
        match result {
            Ok(proof) => {
                let (report, model) = (job.report(), job.model);
                out.push(Effect::Record(Fact::Published { job: id, proof, report: report.clone() }));
                self.record_learned(model, out);
                self.close(id, out);
                out.push(Effect::Publish { job: id, proof, report });
            }
            Err(reason) => self.fail(id, JobFailure::Pieces(reason), out),
        }
    }

    /// All segments have a step to do together, the one after `after`.
    pub(super) fn joined_up(&mut self, id: JobId, after: Option<BlobRef>, step: BlobRef, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.asked.as_ref().is_none_or(|asked| asked.joint.as_ref().map(|(step, _)| *step) != after) {
            return;
        }
        job.stirred = true;
        if let Some(number) = job.join(step) {
            tell(id, JobEvent::Joining { number }, out);
        }
    }

    pub(super) fn fail(&mut self, job: JobId, failure: JobFailure, out: &mut Vec<Effect>) {
        if self.jobs.contains_key(&job) {
            out.push(Effect::Record(Fact::Failed { job, reason: failure.to_string() }));
            self.close(job, out);
            out.push(Effect::FailJob { job, failure });
        }
    }

    pub(super) fn close(&mut self, id: JobId, out: &mut Vec<Effect>) {
        self.ended.insert(id);
        for candidate in self.jobs.remove(&id).into_iter().flat_map(|job| job.items.into_values()).filter_map(|i| i.checking) {
            // Its verdict comes too late to be heard.
            self.checking.remove(&candidate.epoch);
            out.push(Effect::Ack { node: candidate.record.node, epoch: candidate.epoch });
        }
        self.queue.retain(|job| *job != id);
        for epoch in self.leases.of_job(id) {
            if let Some(lease) = self.leases.remove(epoch) {
                out.push(Effect::Revoke { node: lease.node, epoch });
            }
        }
    }

    /// Starts what needs no node: the challenge when all commits are in, the stitching when all pieces are.
    pub(super) fn advance(&mut self, out: &mut Vec<Effect>) {
        for (id, job) in &mut self.jobs {
            if std::mem::take(&mut job.stirred) {
                advance(*id, job, out);
            }
        }
    }
}

fn advance(id: JobId, job: &mut Job, out: &mut Vec<Effect>) {
    let spec = job.spec;
    let Some(challenge) = job.current_challenge() else {
        let Some(commits) = job.settled_commits() else { return };
        if job.deriving.as_ref() != Some(&commits) {
            job.deriving = Some(commits.clone());
            out.push(Effect::DeriveChallenge { job: id, spec, commits });
        }
        return;
    };
    let waits = [WorkKind::Prove, WorkKind::Open].into_iter().any(|kind| job.count(kind) < job.segments);
    if waits || job.asked.is_some() {
        return;
    }
    if job.joint.as_ref().is_some_and(|joint| joint.turns != job.turns) {
        let (basis, turns) = (job.basis(), job.turns);
        match &mut job.joint {
            Some(joint) if Some(&joint.basis) == basis.as_ref() => joint.turns = turns,
            _ => job.unjoin("what it opens has changed").into_iter().for_each(|event| tell(id, event, out)),
        }
    }
    let (Some(asked), Some(commits)) = (job.joinable(), job.settled_commits()) else { return };
    let Asked { basis: (_, proves, opens), joint } = asked.clone();
    job.asked = Some(asked);
    if joint.is_none() {
        out.push(Effect::Notify { job: id, event: JobEvent::Finishing });
    }
    out.push(Effect::Finish { job: id, spec, commits, challenge, proves, opens, joint });
}
