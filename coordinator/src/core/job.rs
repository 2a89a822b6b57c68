//! One job: its items, what each needs, what became stale, what it took. Knows no node's state.

use std::collections::{BTreeMap, BTreeSet};

use obelysk_node::engine::WorkKind;
use obelysk_protocol::wire::BlobRef;

use super::outcome::{JobEvent, Report};
use super::types::{Needs, NodeId, Work};

/// An accepted result and what it was computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) node: NodeId,
    pub(super) needs: Needs,
    pub(super) output: BlobRef,
}

impl Record {
    /// Whether the result, or what it is judged against, is this blob.
    pub(super) fn uses(&self, blob: BlobRef) -> bool {
        self.output == blob || self.needs.extra == blob || self.needs.inputs.iter().chain(&self.needs.against).any(|b| *b == blob)
    }
}

/// A result at the checker.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) epoch: u64,
    pub(super) record: Record,
    pub(super) core_us: u64,
    pub(super) peak_bytes: u64,
}

/// One work item.
#[derive(Debug, Clone, Default)]
pub(super) struct Item {
    pub(super) accepted: Option<Record>,
    pub(super) checking: Option<Candidate>,
    /// The live lease; an expired one is only in the lease table.
    pub(super) lease: Option<u64>,
    /// Nodes that vanished or fell silent while they ran this item.
    pub(super) dead: BTreeSet<NodeId>,
    pub(super) failures: Vec<(NodeId, String)>,
    pub(super) not_before_ms: u64,
    pub(super) doubt: Option<Doubt>,
}

/// Somebody's word that the result before an item is wrong. Void as soon as the item needs something else.
#[derive(Debug, Clone)]
pub(super) struct Doubt {
    pub(super) reporter: NodeId,
    pub(super) reason: String,
    pub(super) needs: Needs,
}

impl Item {
    /// Whether it waits for a lease.
    pub(super) const fn open(&self) -> bool {
        self.accepted.is_none() && self.checking.is_none() && self.lease.is_none()
    }

    /// Becomes another item under the same name: nothing of the one before counts. What still runs or is checked was leased for
    /// other needs, and is late by them.
    fn renew(&mut self) {
        let Self { checking, lease, .. } = std::mem::take(self);
        *self = Self { checking, lease, ..Self::default() };
    }
}

#[derive(Debug, Clone)]
pub(super) struct Challenge {
    pub(super) commits: Vec<BlobRef>,
    pub(super) extra: BlobRef,
}

/// What an opening of all segments opens: the challenge, and all proofs and openings by segment.
pub(super) type Basis = (BlobRef, Vec<BlobRef>, Vec<BlobRef>);

/// The opening of all segments, at one of its steps. No fact: a new leader begins it anew, from results that are.
#[derive(Debug, Clone)]
pub(super) struct Joint {
    pub(super) basis: Basis,
    /// Public bytes of this step.
    pub(super) step: BlobRef,
    /// How many steps came before.
    pub(super) number: u32,
    /// Each segment's part in the step before; before the first, its opening.
    before: Vec<Record>,
}

/// All pieces, as they went to the checker to be joined: with the step that they are parts of, if they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) basis: Basis,
    pub(super) joint: Option<(BlobRef, Vec<BlobRef>)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Phase {
    first_ms: Option<u64>,
    last_ms: u64,
    core_us: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) model: [u8; 32],
    pub(super) spec: BlobRef,
    pub(super) segments: u32,
    pub(super) items: BTreeMap<Work, Item>,
    pub(super) challenge: Option<Challenge>,
    /// Commits of a challenge being derived.
    pub(super) deriving: Option<Vec<BlobRef>>,
    /// What the checker joins at this moment.
    pub(super) asked: Option<Asked>,
    pub(super) joint: Option<Joint>,
    /// Preferred node of each segment.
    pub(super) home: BTreeMap<u32, NodeId>,
    /// Nodes set aside for this job after a contradiction nobody could settle.
    pub(super) benched: BTreeSet<NodeId>,
    pub(super) ties: u32,
    pub(super) waiting_since_ms: Option<u64>,
    phases: BTreeMap<WorkKind, Phase>,
    peak_bytes: u64,
}

impl Job {
    pub(super) fn new(model: [u8; 32], spec: BlobRef, segments: u32) -> Self {
        let all = WorkKind::ALL.into_iter().flat_map(|kind| (0..segments).map(move |segment| Work::new(kind, segment)));
        Self {
            model,
            spec,
            segments,
            items: all.map(|work| (work, Item::default())).collect(),
            challenge: None,
            deriving: None,
            asked: None,
            joint: None,
            home: BTreeMap::new(),
            benched: BTreeSet::new(),
            ties: 0,
            waiting_since_ms: None,
            phases: BTreeMap::new(),
            peak_bytes: 0,
        }
    }

    /// The accepted result of an item.
    pub(super) fn accepted(&self, kind: WorkKind, segment: u32) -> Option<&Record> {
        self.items.get(&Work::new(kind, segment))?.accepted.as_ref()
    }

    fn output(&self, kind: WorkKind, segment: u32) -> Option<BlobRef> {
        self.accepted(kind, segment).map(|record| record.output)
    }

    /// All accepted results of a kind, by segment; `None` while one is missing.
    pub(super) fn outputs(&self, kind: WorkKind) -> Option<Vec<BlobRef>> {
        (0..self.segments).map(|segment| self.output(kind, segment)).collect()
    }

    /// The challenge, while it belongs to the commits accepted now.
    pub(super) fn current_challenge(&self) -> Option<BlobRef> {
        let challenge = self.challenge.as_ref()?;
        (self.settled_commits()? == challenge.commits).then_some(challenge.extra)
    }

    /// All commits, once none of them can become stale any more: while a forward is being redone, a commit built on the old one
    /// still stands here and must not reach a challenge.
    pub(super) fn settled_commits(&self) -> Option<Vec<BlobRef>> {
        self.outputs(WorkKind::Forward)?;
        self.outputs(WorkKind::Commit)
    }

    /// What an item needs; `None` while that is not there yet.
    pub(super) fn needs(&self, work: Work) -> Option<Needs> {
        self.needs_under(work, if challenged(work) { self.current_challenge() } else { None })
    }

    /// As [`Job::needs`], under the challenge that holds now: for many items at once.
    pub(super) fn needs_under(&self, work: Work, challenge: Option<BlobRef>) -> Option<Needs> {
        let before = work.segment.checked_sub(1).map(|l| self.output(WorkKind::Forward, l).ok_or(()));
        let mut inputs: Vec<BlobRef> = before.transpose().ok()?.into_iter().collect();
        let (mut against, mut extra) = (None, BlobRef::of(&[]));
        match work.kind {
            WorkKind::Forward => {}
            WorkKind::Commit => against = Some(self.output(WorkKind::Forward, work.segment)?),
            WorkKind::Prove => {
                against = Some(self.output(WorkKind::Forward, work.segment)?);
                extra = challenge?;
            }
            WorkKind::Open => {
                extra = challenge?;
                inputs.push(self.output(WorkKind::Prove, work.segment)?);
            }
            WorkKind::Joint => {
                let joint = self.joint.as_ref()?;
                let [proof, opening] = [WorkKind::Prove, WorkKind::Open].map(|kind| self.output(kind, work.segment));
                inputs.extend([proof?, opening?, challenge?]);
                against = Some(joint.before.get(work.segment as usize)?.output);
                extra = joint.step;
            }
        }
        Some(Needs { inputs, against, extra })
    }

    /// The earlier result of the same segment that could be the true cause when an item is rejected, and who made it. Whoever does a
    /// joint step answers for all steps of the segment before it.
    pub(super) fn cause(&self, work: Work) -> Option<(Work, NodeId)> {
        let of = |kind| Work::new(kind, work.segment);
        let parent = match work.kind {
            WorkKind::Forward => return None,
            WorkKind::Commit => of(WorkKind::Forward),
            WorkKind::Prove => of(WorkKind::Commit),
            WorkKind::Open => of(WorkKind::Prove),
            WorkKind::Joint => {
                let joint = self.joint.as_ref()?;
                let author = joint.before.get(work.segment as usize)?.node;
                return Some((if joint.number == 0 { of(WorkKind::Open) } else { work }, author));
            }
        };
        Some((parent, self.accepted(parent.kind, parent.segment)?.node))
    }

    /// Takes back what [`Job::cause`] names.
    pub(super) fn retract_cause(&mut self, cause: Work, reason: &str) -> Vec<JobEvent> {
        let mut events = match cause.kind {
            WorkKind::Joint | WorkKind::Open => self.unjoin(reason),
            _ => Vec::new(),
        };
        events.extend(self.retract(cause, reason));
        events
    }

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
        self.joint = Some(Joint { basis: asked.basis, step, number, before: before? });
        for l in 0..self.segments {
            self.items.entry(Work::new(WorkKind::Joint, l)).or_default().renew();
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
                if let Some(item) = self.items.get_mut(&work) {
                    item.doubt = None;
                }
                self.retract(work, reason)
            })
            .collect()
    }

    /// Drops the doubt of an item that needs something else by now.
    pub(super) fn drop_void_doubt(&mut self, work: Work) {
        if self.items.get(&work).is_none_or(|item| item.doubt.is_none()) {
            return;
        }
        let Some(needs) = self.needs(work) else { return };
        if let Some(item) = self.items.get_mut(&work) {
            item.doubt.take_if(|doubt| doubt.needs != needs);
        }
    }

    /// Whether the opening of all stands on this blob.
    pub(super) fn joins_with(&self, blob: BlobRef) -> bool {
        self.joint.as_ref().is_some_and(|joint| joint.step == blob || joint.before.iter().any(|record| record.output == blob))
    }

    /// Whether a later result confirms this accepted one although its author lied elsewhere.
    fn vouched(&self, work: Work, author: NodeId) -> bool {
        let l = work.segment;
        match work.kind {
            // A commit recomputes the boundary, so another node's commit confirms it; the author's own does not.
            WorkKind::Forward => self.accepted(WorkKind::Commit, l).is_some_and(|r| r.node != author),
            WorkKind::Commit => self.accepted(WorkKind::Prove, l).is_some(),
            WorkKind::Prove => self.accepted(WorkKind::Open, l).is_some(),
            // In mode 2 it may still prove false: then whoever does the first joint step says so, and its author is known.
            WorkKind::Open => true,
            WorkKind::Joint => false,
        }
    }

    /// Takes back what `author` delivered and nothing confirms.
    pub(super) fn distrust(&mut self, author: NodeId) -> Vec<JobEvent> {
        let mine = |item: &Item| item.accepted.as_ref().is_some_and(|r| r.node == author);
        let suspects: Vec<Work> =
            self.items.iter().filter(|(work, item)| mine(item) && !self.vouched(**work, author)).map(|(work, _)| *work).collect();
        suspects.into_iter().filter_map(|work| self.retract(work, "its author was quarantined")).collect()
    }

    /// Takes back an accepted result. What was built on it stays as it is until the new result shows whether it differs.
    pub(super) fn retract(&mut self, work: Work, reason: &str) -> Option<JobEvent> {
        self.items.get_mut(&work)?.accepted.take()?;
        Some(JobEvent::Redo { work, reason: reason.to_owned() })
    }

    /// Takes back every accepted result, and drops every doubt, whose inputs are now known to be others. In order of dependency, so one pass is enough.
    pub(super) fn drop_stale(&mut self) -> Vec<JobEvent> {
        let works: Vec<Work> = self.items.keys().copied().collect();
        let mut events = Vec::new();
        // Known when the first item that needs it is reached: nothing taken back from there on changes it.
        let mut challenge = None;
        for work in works {
            let now = if challenged(work) { *challenge.get_or_insert_with(|| self.current_challenge()) } else { None };
            let Some(needs) = self.needs_under(work, now) else { continue };
            let stale = self.items.get(&work).and_then(|i| i.accepted.as_ref()).is_some_and(|r| r.needs != needs);
            if let Some(item) = self.items.get_mut(&work) {
                item.doubt.take_if(|doubt| doubt.needs != needs);
            }
            if stale {
                events.extend(self.retract(work, "its inputs changed"));
            }
        }
        events
    }

    pub(super) fn count(&self, kind: WorkKind) -> u32 {
        (0..self.segments).map(|l| u32::from(self.accepted(kind, l).is_some())).sum()
    }

    pub(super) fn started(&mut self, kind: WorkKind, now_ms: u64) {
        self.phases.entry(kind).or_default().first_ms.get_or_insert(now_ms);
    }

    pub(super) fn spent(&mut self, kind: WorkKind, now_ms: u64, candidate: &Candidate) {
        let phase = self.phases.entry(kind).or_default();
        phase.last_ms = now_ms;
        phase.core_us = phase.core_us.saturating_add(candidate.core_us);
        self.peak_bytes = self.peak_bytes.max(candidate.peak_bytes);
    }

    /// As [`Job::spent`], under an earlier leader; its clock is not ours, so no time passes.
    pub(super) fn spent_before(&mut self, kind: WorkKind, core_us: u64, peak_bytes: u64) {
        let phase = self.phases.entry(kind).or_default();
        phase.core_us = phase.core_us.saturating_add(core_us);
        self.peak_bytes = self.peak_bytes.max(peak_bytes);
    }

    /// Core-microseconds of results of this kind so far.
    pub(super) fn core_us(&self, kind: WorkKind) -> u64 {
        self.phases.get(&kind).map_or(0, |phase| phase.core_us)
    }

    pub(super) fn report(&self) -> Report {
        let phase =
            |(kind, p): (&WorkKind, &Phase)| (kind.name(), p.last_ms.saturating_sub(p.first_ms.unwrap_or(p.last_ms)), p.core_us);
        Report {
            phases: self.phases.iter().map(phase).collect(),
            peak_bytes: self.peak_bytes,
            nodes: self.items.values().filter_map(|i| i.accepted.as_ref()).map(|r| r.node).collect(),
        }
    }
}

/// Whether an item needs the challenge.
const fn challenged(work: Work) -> bool {
    matches!(work.kind, WorkKind::Prove | WorkKind::Open | WorkKind::Joint)
}
