//! One job: its items, its challenge, its homes, what it took. Knows no node's state.

use std::collections::{BTreeMap, BTreeSet};

use obelysk_node::engine::WorkKind;
use obelysk_protocol::wire::BlobRef;

use super::agenda::Agenda;
use super::crew::Crew;
use super::joint::{Asked, Joint};
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
    /// A second live lease, given because the first takes long.
    pub(super) second: Option<u64>,
    /// Second leases that were given so far.
    pub(super) races: u32,
    /// Nodes that vanished or fell silent while they ran this item.
    pub(super) dead: BTreeSet<NodeId>,
    /// Nodes that gave it back, or came back without it: others go first.
    pub(super) missed: BTreeSet<NodeId>,
    /// How often a process that ran it was started anew.
    pub(super) restarts: usize,
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

    /// Whether a node has had it in vain.
    pub(super) fn tried(&self, node: NodeId) -> bool {
        self.dead.contains(&node) || self.missed.contains(&node) || self.failures.iter().any(|(who, _)| *who == node)
    }

    /// Whether any has.
    pub(super) fn was_tried(&self) -> bool {
        !(self.dead.is_empty() && self.missed.is_empty() && self.failures.is_empty())
    }

    /// A lease is over.
    pub(super) fn release(&mut self, epoch: u64) {
        self.lease.take_if(|lease| *lease == epoch);
        self.second.take_if(|lease| *lease == epoch);
    }

    /// Becomes another item under the same name: nothing of the one before counts. What still runs or is checked was leased for
    /// other needs, and is late by them.
    pub(super) fn renew(&mut self) {
        let Self { checking, lease, second, .. } = std::mem::take(self);
        *self = Self { checking, lease, second, ..Self::default() };
    }
}

#[derive(Debug, Clone)]
pub(super) struct Challenge {
    pub(super) commits: Vec<BlobRef>,
    pub(super) extra: BlobRef,
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
    /// Changed through [`Job::item_mut`] and what enters results alone, so that all that follows is seen.
    pub(super) items: BTreeMap<Work, Item>,
    challenge: Option<Challenge>,
    /// Segments whose accepted commit is the one that the challenge was drawn from.
    committed: u32,
    /// Accepted items by kind.
    done: [u32; WorkKind::EVERY.len()],
    /// Counts what could change what an opening of all segments opens.
    pub(super) turns: u64,
    /// Commits of a challenge being derived.
    pub(super) deriving: Option<Vec<BlobRef>>,
    /// What the checker joins at this moment.
    pub(super) asked: Option<Asked>,
    pub(super) joint: Option<Joint>,
    /// Preferred node of each segment.
    home: BTreeMap<u32, NodeId>,
    /// Nodes set aside for this job after a contradiction nobody could settle.
    pub(super) benched: BTreeSet<NodeId>,
    pub(super) ties: u32,
    pub(super) waiting_since_ms: Option<u64>,
    pub(super) agenda: Agenda,
    pub(super) crew: Crew,
    /// Homes are to be given again.
    pub(super) unplaced: bool,
    /// Segments were left without a home.
    pub(super) homeless: bool,
    /// Something changed since it was last looked at what needs no node.
    pub(super) stirred: bool,
    /// Whether something waits for somebody who is only busy, and whether that is known.
    pub(super) awaits: bool,
    pub(super) weighed: bool,
    touched: BTreeSet<Work>,
    /// The challenge when the agenda was last brought up to date.
    entered_under: Option<BlobRef>,
    /// No bytes.
    pub(super) nothing: BlobRef,
    phases: BTreeMap<WorkKind, Phase>,
    peak_bytes: u64,
}

impl Job {
    pub(super) fn new(model: [u8; 32], spec: BlobRef, segments: u32) -> Self {
        let works = || WorkKind::ALL.into_iter().flat_map(move |kind| (0..segments).map(move |segment| Work::new(kind, segment)));
        Self {
            model,
            spec,
            segments,
            items: works().map(|work| (work, Item::default())).collect(),
            challenge: None,
            committed: 0,
            done: [0; WorkKind::EVERY.len()],
            turns: 0,
            deriving: None,
            asked: None,
            joint: None,
            home: BTreeMap::new(),
            benched: BTreeSet::new(),
            ties: 0,
            waiting_since_ms: None,
            agenda: Agenda::default(),
            crew: Crew::default(),
            unplaced: true,
            homeless: true,
            stirred: true,
            awaits: false,
            weighed: false,
            touched: works().collect(),
            entered_under: None,
            nothing: BlobRef::of(&[]),
            phases: BTreeMap::new(),
            peak_bytes: 0,
        }
    }

    /// An item, to change anything but its result.
    pub(super) fn item_mut(&mut self, work: Work) -> Option<&mut Item> {
        let item = self.items.get_mut(&work)?;
        self.touched.insert(work);
        self.stirred = true;
        Some(item)
    }

    /// As [`Job::item_mut`], of a kind that not every job has.
    pub(super) fn item_entry(&mut self, work: Work) -> &mut Item {
        self.touched.insert(work);
        self.stirred = true;
        self.items.entry(work).or_default()
    }

    /// This item is to be looked at again.
    pub(super) fn touch(&mut self, work: Work) {
        if self.items.contains_key(&work) {
            self.touched.insert(work);
        }
    }

    pub(super) fn touch_all(&mut self) {
        self.touched = self.items.keys().copied().collect();
    }

    /// Whether something is to be brought up to date.
    pub(super) fn is_restless(&self, now_ms: u64) -> bool {
        self.unplaced || !self.touched.is_empty() || self.agenda.is_due(now_ms) || self.current_challenge() != self.entered_under
    }

    /// Items whose standing may be another than the agenda says.
    pub(super) fn take_touched(&mut self, now_ms: u64) -> BTreeSet<Work> {
        let due = self.agenda.due(now_ms);
        self.touched.extend(due);
        let challenge = self.current_challenge();
        if challenge != self.entered_under {
            self.entered_under = challenge;
            let later = self.items.range(Work::new(WorkKind::Prove, 0)..).map(|(work, _)| *work);
            self.touched.extend(later);
        }
        std::mem::take(&mut self.touched)
    }

    /// The accepted result of an item.
    pub(super) fn accepted(&self, kind: WorkKind, segment: u32) -> Option<&Record> {
        self.items.get(&Work::new(kind, segment))?.accepted.as_ref()
    }

    pub(super) fn output(&self, kind: WorkKind, segment: u32) -> Option<BlobRef> {
        self.accepted(kind, segment).map(|record| record.output)
    }

    /// All accepted results of a kind, by segment; `None` while one is missing.
    pub(super) fn outputs(&self, kind: WorkKind) -> Option<Vec<BlobRef>> {
        if self.count(kind) < self.segments {
            return None;
        }
        (0..self.segments).map(|segment| self.output(kind, segment)).collect()
    }

    /// Accepted items of a kind.
    pub(super) const fn count(&self, kind: WorkKind) -> u32 {
        self.done[kind.code() as usize]
    }

    /// Enters a result of an item that has none.
    pub(super) fn enter_result(&mut self, work: Work, record: Record) {
        self.retract(work, "it is replaced");
        let output = record.output;
        self.item_entry(work).accepted = Some(record);
        self.count_result(work, output, true);
    }

    /// Takes back an accepted result. What was built on it stays as it is until the new result shows whether it differs.
    pub(super) fn retract(&mut self, work: Work, reason: &str) -> Option<JobEvent> {
        let record = self.items.get_mut(&work)?.accepted.take()?;
        self.count_result(work, record.output, false);
        Some(JobEvent::Redo { work, reason: reason.to_owned() })
    }

    fn count_result(&mut self, work: Work, output: BlobRef, there: bool) {
        let turn = |count: &mut u32| *count = if there { *count + 1 } else { *count - 1 };
        turn(&mut self.done[work.kind.code() as usize]);
        let drawn_from = |challenge: &Challenge| challenge.commits.get(work.segment as usize) == Some(&output);
        if work.kind == WorkKind::Commit && self.challenge.as_ref().is_some_and(drawn_from) {
            turn(&mut self.committed);
        }
        if work.kind != WorkKind::Joint {
            self.turns += 1;
        }
        self.stirred = true;
        self.touched.insert(work);
        let below = self.dependents(work);
        self.touched.extend(below);
    }

    /// Takes results from the checker that are judged by this blob, or are it.
    pub(super) fn drop_candidates_with(&mut self, blob: BlobRef) -> Vec<Candidate> {
        let with = |item: &Item| item.checking.as_ref().is_some_and(|candidate| candidate.record.uses(blob));
        let works: Vec<Work> = self.items.iter().filter(|(_, item)| with(item)).map(|(work, _)| *work).collect();
        works.into_iter().filter_map(|work| self.item_mut(work)?.checking.take()).collect()
    }

    /// Takes a joint item's result away with all else that belongs to the step before.
    pub(super) fn renew(&mut self, work: Work) {
        self.retract(work, "a new step");
        self.item_entry(work).renew();
    }

    pub(super) const fn challenge(&self) -> Option<&Challenge> {
        self.challenge.as_ref()
    }

    pub(super) fn set_challenge(&mut self, challenge: Option<Challenge>) {
        self.challenge = challenge;
        self.turns += 1;
        self.stirred = true;
        let commits = self.challenge.as_ref().map_or(&[][..], |challenge| &challenge.commits);
        let same = (0..self.segments).zip(commits).filter(|(l, commit)| self.output(WorkKind::Commit, *l) == Some(**commit));
        self.committed = u32::try_from(same.count()).unwrap_or(u32::MAX);
    }

    /// The challenge, while it belongs to the commits accepted now.
    pub(super) fn current_challenge(&self) -> Option<BlobRef> {
        let settled = self.count(WorkKind::Forward) == self.segments && self.committed == self.segments;
        self.challenge.as_ref().filter(|_| settled).map(|challenge| challenge.extra)
    }

    /// All commits, once none of them can become stale any more: while a forward is being redone, a commit built on the old one
    /// still stands here and must not reach a challenge.
    pub(super) fn settled_commits(&self) -> Option<Vec<BlobRef>> {
        if self.count(WorkKind::Forward) < self.segments {
            return None;
        }
        self.outputs(WorkKind::Commit)
    }

    pub(super) fn home(&self, segment: u32) -> Option<NodeId> {
        self.home.get(&segment).copied()
    }

    /// Gives a segment a home.
    pub(super) fn set_home(&mut self, segment: u32, node: NodeId) {
        if self.home.insert(segment, node) != Some(node) {
            WorkKind::EVERY.into_iter().for_each(|kind| self.touch(Work::new(kind, segment)));
        }
    }

    /// Ranks of nodes by what is left of their own.
    pub(super) fn own_ranks(&self) -> BTreeMap<NodeId, u8> {
        self.agenda.ranks()
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
