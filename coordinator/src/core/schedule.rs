//! Who does what next: homes in contiguous runs, critical path first, stealing only by nodes with nothing of their own.

use std::collections::BTreeSet;

use obelysk_node::engine::WorkKind;

use super::job::Job;
use super::outcome::{JobEvent, JobFailure};
use super::types::{Effect, JobId, NodeId, Work};
use super::{Lease, Member, Presence, State};

/// Who may take an item now.
enum Choice {
    /// This node, now.
    Node(NodeId),
    /// Somebody who is busy.
    Later,
    /// Nobody here.
    Nobody,
    /// Nobody uninvolved is here to settle a dispute.
    Tie,
}

impl State {
    pub(super) fn schedule(&mut self, out: &mut Vec<Effect>) {
        for id in self.queue.clone() {
            self.plan(id);
            let Some(job) = self.jobs.get(&id) else { continue };
            let mut busy = job.deriving.is_some() || job.finishing;
            busy |= job.items.values().any(|item| item.checking.is_some() || item.lease.is_some());
            let open: Vec<Work> = job.items.iter().filter(|(_, item)| item.open()).map(|(work, _)| *work).collect();
            for work in open {
                let Some(job) = self.jobs.get(&id) else { break };
                if job.needs(work).is_none() {
                    continue;
                }
                if job.items.get(&work).is_some_and(|item| item.not_before_ms > self.now_ms) {
                    busy = true;
                    continue;
                }
                match self.choose(job, work) {
                    Choice::Node(node) => {
                        self.assign(id, work, node, out);
                        busy = true;
                    }
                    Choice::Later => busy = true,
                    Choice::Nobody => {}
                    Choice::Tie => {
                        self.tie(id, work, out);
                        busy = true;
                    }
                }
            }
            self.wait(id, busy, out);
        }
    }

    /// Gives every segment without a usable home one, in contiguous runs weighed by cores. Segments that have one keep it.
    fn plan(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let usable = self.usable(job);
        let orphans: Vec<u32> = (0..job.segments).filter(|l| job.home.get(l).is_none_or(|node| !usable.contains(node))).collect();
        let total: u64 = usable.iter().filter_map(|node| self.members.get(node)).map(|m| u64::from(m.cores)).sum();
        let count = orphans.len() as u64;
        let (mut before, mut homes) = (0, Vec::new());
        for node in &usable {
            let cores = self.members.get(node).map_or(0, |m| u64::from(m.cores));
            let (from, to) = (count * before / total, count * (before + cores) / total);
            let run = orphans.iter().skip(from as usize).take((to - from) as usize);
            homes.extend(run.map(|segment| (*segment, *node)));
            before += cores;
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            job.home.extend(homes);
        }
    }

    /// Nodes that may work on this job, busy or not. A node whose lease expired is not: it may never come back.
    pub(super) fn usable(&self, job: &Job) -> BTreeSet<NodeId> {
        let stuck = |m: &Member| m.running.is_some_and(|epoch| self.leases.get(&epoch).is_none_or(|lease| lease.expired));
        let fit = |node: &NodeId, m: &Member| {
            *node != NodeId::REFEREE && m.presence == Presence::Here && m.models.contains(&job.model) && !stuck(m)
        };
        let all: BTreeSet<NodeId> = self.members.iter().filter(|(node, m)| fit(node, m)).map(|(node, _)| *node).collect();
        let trusted: BTreeSet<NodeId> = all.difference(&job.benched).copied().collect();
        if trusted.is_empty() { all } else { trusted }
    }

    /// The referee, when there is one for this job's model.
    pub(super) fn referee(&self, job: &Job) -> Option<&Member> {
        self.members.get(&NodeId::REFEREE).filter(|m| m.models.contains(&job.model))
    }

    fn idle(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|m| m.running.is_none())
    }

    fn choose(&self, job: &Job, work: Work) -> Choice {
        let Some(item) = job.items.get(&work) else { return Choice::Nobody };
        let mut able = self.usable(job);
        if let Some(doubt) = &item.doubt {
            if let Some(referee) = self.referee(job) {
                return if referee.running.is_none() { Choice::Node(NodeId::REFEREE) } else { Choice::Later };
            }
            able.remove(&doubt.reporter);
            if let Some(record) = Job::parent(work).and_then(|p| job.accepted(p.kind, p.segment)) {
                able.remove(&record.node);
            }
            if able.is_empty() {
                return Choice::Tie;
            }
        }
        let fresh: BTreeSet<NodeId> =
            able.iter().filter(|node| item.failures.iter().all(|(failed, _)| failed != *node)).copied().collect();
        let able = if fresh.is_empty() { able } else { fresh };
        if able.is_empty() {
            return Choice::Nobody;
        }
        if let Some(home) = job.home.get(&work.segment).filter(|home| able.contains(home)) {
            if self.idle(*home) {
                return Choice::Node(*home);
            }
            // The forward pass is a chain: its next link gains nothing from a second node.
            if work.kind == WorkKind::Forward {
                return Choice::Later;
            }
        }
        let homeless = job.home.get(&work.segment).is_none_or(|home| !able.contains(home));
        let thief = able.iter().find(|node| self.idle(**node) && (homeless || !has_own_work(job, **node, work.kind)));
        thief.map_or(Choice::Later, |node| Choice::Node(*node))
    }

    fn assign(&mut self, id: JobId, work: Work, node: NodeId, out: &mut Vec<Effect>) {
        let (now, epoch) = (self.now_ms, self.next_epoch);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (Some(needs), Some(member)) = (job.needs(work), self.members.get_mut(&node)) else { return };
        let Some(item) = job.items.get_mut(&work) else { return };
        item.lease = Some(epoch);
        if node != NodeId::REFEREE && item.doubt.is_none() {
            // What comes next for this segment finds its values where this item left them.
            job.home.insert(work.segment, node);
        }
        job.started(work.kind, now);
        job.waiting_since_ms = None;
        member.running = Some(epoch);
        self.next_epoch += 1;
        let deadline_ms = now + self.policy.lease_ms;
        let lease = Lease { job: id, work, node, needs: needs.clone(), deadline_ms, permille: 0, expired: false };
        self.leases.insert(epoch, lease);
        let (model, spec) = (job.model, job.spec);
        out.push(Effect::Assign { node, epoch, job: id, model, work, spec, needs });
    }

    /// Keeps account of how long a job has had nobody, and ends it when that was too long.
    fn wait(&mut self, id: JobId, busy: bool, out: &mut Vec<Effect>) {
        let (now, deadline) = (self.now_ms, self.policy.wait_deadline_ms);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if busy {
            job.waiting_since_ms = None;
            return;
        }
        match job.waiting_since_ms {
            None => {
                job.waiting_since_ms = Some(now);
                out.push(Effect::Notify { job: id, event: JobEvent::Waiting { left_ms: deadline } });
            }
            Some(since) if now - since > deadline => self.fail(id, JobFailure::NoNodes { waited_ms: now - since }, out),
            Some(_) => {}
        }
    }
}

/// Whether a node still has something of this or an earlier kind to do on its own segments.
fn has_own_work(job: &Job, node: NodeId, kind: WorkKind) -> bool {
    job.home
        .iter()
        .filter(|(_, home)| **home == node)
        .any(|(segment, _)| WorkKind::ALL.into_iter().take_while(|k| *k <= kind).any(|k| job.accepted(k, *segment).is_none()))
}
