//! What each item of a job needs, whom a wrong one could blame, and what becomes stale when a result changes.

use obelysk_node::engine::WorkKind;
use obelysk_protocol::wire::BlobRef;

use super::job::{Item, Job};
use super::outcome::JobEvent;
use super::types::{Needs, NodeId, Work};

impl Job {
    /// What an item needs; `None` while that is not there yet.
    pub(super) fn needs(&self, work: Work) -> Option<Needs> {
        let mut inputs = Vec::with_capacity(4);
        if let Some(before) = work.segment.checked_sub(1) {
            inputs.push(self.output(WorkKind::Forward, before)?);
        }
        let (mut against, mut extra) = (None, self.nothing);
        match work.kind {
            WorkKind::Forward => {}
            WorkKind::Commit => against = Some(self.output(WorkKind::Forward, work.segment)?),
            WorkKind::Prove => {
                against = Some(self.output(WorkKind::Forward, work.segment)?);
                extra = self.current_challenge()?;
            }
            WorkKind::Open => {
                extra = self.current_challenge()?;
                inputs.push(self.output(WorkKind::Prove, work.segment)?);
            }
            WorkKind::Joint => {
                let joint = self.joint.as_ref()?;
                let [proof, opening] = [WorkKind::Prove, WorkKind::Open].map(|kind| self.output(kind, work.segment));
                inputs.extend([proof?, opening?, self.current_challenge()?]);
                against = Some(joint.before.get(work.segment as usize)?.output);
                extra = joint.step;
            }
        }
        Some(Needs { inputs, against, extra })
    }

    /// Whether [`Job::needs`] gives something.
    pub(super) fn has_needs(&self, work: Work) -> bool {
        let there = |kind| self.accepted(kind, work.segment).is_some();
        let before = work.segment.checked_sub(1).is_none_or(|l| self.accepted(WorkKind::Forward, l).is_some());
        before
            && match work.kind {
                WorkKind::Forward => true,
                WorkKind::Commit => there(WorkKind::Forward),
                WorkKind::Prove => there(WorkKind::Forward) && self.current_challenge().is_some(),
                WorkKind::Open => there(WorkKind::Prove) && self.current_challenge().is_some(),
                WorkKind::Joint => {
                    let known = |joint: &super::joint::Joint| joint.before.len() > work.segment as usize;
                    let pieces = there(WorkKind::Prove) && there(WorkKind::Open) && self.current_challenge().is_some();
                    pieces && self.joint.as_ref().is_some_and(known)
                }
            }
    }

    /// Items that are computed from the result of this one, or judged against it; the challenge apart.
    pub(super) fn dependents(&self, work: Work) -> Vec<Work> {
        use WorkKind::{Commit, Forward, Joint, Open, Prove};
        let (same, next): (&[WorkKind], &[WorkKind]) = match work.kind {
            Forward => (&[Commit, Prove], &[Forward, Commit, Prove, Open, Joint]),
            Prove => (&[Open, Joint], &[]),
            Open => (&[Joint], &[]),
            Commit | Joint => (&[], &[]),
        };
        let same = same.iter().map(|kind| Work::new(*kind, work.segment));
        let next = next.iter().map(|kind| Work::new(*kind, work.segment + 1));
        same.chain(next).filter(|work| self.items.contains_key(work)).collect()
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

    /// Drops the doubt of an item that needs something else by now.
    pub(super) fn drop_void_doubt(&mut self, work: Work) {
        if self.items.get(&work).is_none_or(|item| item.doubt.is_none()) {
            return;
        }
        let Some(needs) = self.needs(work) else { return };
        self.doubt_only(work, &needs);
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

    /// Takes back every accepted result, and drops every doubt, whose inputs are now known to be others. In order of dependency, so one
    /// pass is enough.
    pub(super) fn drop_stale(&mut self) -> Vec<JobEvent> {
        let works: Vec<Work> = self.items.keys().copied().collect();
        works.into_iter().filter_map(|work| self.drop_if_stale(work)).collect()
    }

    /// As [`Job::drop_stale`], after nothing but the result of `work` has come, when the challenge was this one.
    pub(super) fn drop_stale_after(&mut self, work: Work, before: Option<BlobRef>) -> Vec<JobEvent> {
        if self.current_challenge() != before {
            return self.drop_stale();
        }
        let mut works = self.dependents(work);
        works.sort_unstable();
        works.into_iter().filter_map(|work| self.drop_if_stale(work)).collect()
    }

    fn drop_if_stale(&mut self, work: Work) -> Option<JobEvent> {
        let item = self.items.get(&work).filter(|item| item.accepted.is_some() || item.doubt.is_some())?;
        let needs = self.needs(work)?;
        let stale = item.accepted.as_ref().is_some_and(|record| record.needs != needs);
        self.doubt_only(work, &needs);
        if stale { self.retract(work, "its inputs changed") } else { None }
    }

    /// Drops a doubt that is not about these needs.
    fn doubt_only(&mut self, work: Work, needs: &Needs) {
        let void = |item: &Item| item.doubt.as_ref().is_some_and(|doubt| doubt.needs != *needs);
        if self.items.get(&work).is_some_and(void)
            && let Some(item) = self.item_mut(work)
        {
            item.doubt = None;
        }
    }

    /// Drops what this node said against others.
    pub(super) fn drop_doubts_of(&mut self, node: NodeId) {
        let said = |item: &Item| item.doubt.as_ref().is_some_and(|doubt| doubt.reporter == node);
        let works: Vec<Work> = self.items.iter().filter(|(_, item)| said(item)).map(|(work, _)| *work).collect();
        for work in works {
            if let Some(item) = self.item_mut(work) {
                item.doubt = None;
            }
        }
    }

    /// Whether something accepted was computed from what is not accepted now.
    pub(super) fn is_stale(&self) -> bool {
        let other = |(work, item): (&Work, &Item)| {
            let record = item.accepted.as_ref().map(|record| &record.needs);
            record.is_some_and(|had| self.needs(*work).is_some_and(|needs| needs != *had))
        };
        self.items.iter().any(other)
    }
}
