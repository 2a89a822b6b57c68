//! What of a job could be done now, kept up to date item by item. Knows neither nodes nor leases: it is told how an item stands and
//! whose it is, and answers which items to look at again.
//!
//! An item is looked at when it is *hot*: it came to be ready, or something changed that could find it a node. One that found nobody is
//! cold until then, so that what waits costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use obelysk_node::engine::WorkKind;

use super::crew::NOTHING;
use super::types::{NodeId, Work};

/// How an item stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// What it needs is not there.
    #[default]
    Blocked,
    /// Nobody does it.
    Ready,
    /// As ready, from this time on.
    Paused(u64),
    /// Somebody does it, the latest since this time, and may turn out to be a straggler.
    Runs(u64),
    /// Somebody does or checks it.
    Busy,
    Done,
}

impl Phase {
    const fn at_work(self) -> bool {
        matches!(self, Self::Runs(_) | Self::Busy)
    }
}

/// What is known of an item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) phase: Phase,
    /// Whose its segment is.
    pub(super) home: Option<NodeId>,
    /// Its home may not be who does it: there is none, it failed there, has no room, or it is in dispute.
    pub(super) loose: bool,
    pub(super) disputed: bool,
}

/// Items by how they stand.
#[derive(Debug, Clone, Default)]
pub(super) struct Agenda {
    entries: BTreeMap<Work, Entry>,
    ready: BTreeSet<Work>,
    loose: BTreeSet<Work>,
    disputed: BTreeSet<Work>,
    paused: BTreeSet<(u64, Work)>,
    at_work: usize,
    /// Running items by kind, longest first.
    runs: BTreeSet<(WorkKind, u64, Work)>,
    /// Items not done, by home.
    own: BTreeMap<NodeId, BTreeSet<Work>>,
    /// Ready items by home.
    queued: BTreeMap<NodeId, BTreeSet<Work>>,
    hot: BTreeSet<Work>,
    /// Idle nodes for which there may be something.
    woken: BTreeSet<NodeId>,
    /// Homes with more to wait for, so that slower nodes may take of it.
    hastened: BTreeSet<NodeId>,
}

impl Agenda {
    /// Enters an item as it stands. Gives the home that has another first item of its own now.
    pub(super) fn enter(&mut self, work: Work, entry: Entry) -> [Option<NodeId>; 2] {
        let before = self.entries.get(&work).copied().unwrap_or_default();
        if entry.phase == Phase::Ready {
            self.hot.insert(work);
        }
        if before == entry && self.entries.contains_key(&work) {
            return [None; 2];
        }
        let left = self.leave(work, before);
        self.entries.insert(work, entry);
        match entry.phase {
            Phase::Ready => {
                self.ready.insert(work);
                if entry.loose {
                    self.loose.insert(work);
                }
                if let Some(home) = entry.home {
                    self.queued.entry(home).or_default().insert(work);
                    self.hastened.insert(home);
                }
            }
            Phase::Paused(until_ms) => {
                self.paused.insert((until_ms, work));
            }
            Phase::Runs(since_ms) => {
                self.runs.insert((work.kind, since_ms, work));
            }
            Phase::Blocked | Phase::Busy | Phase::Done => {}
        }
        self.at_work += usize::from(entry.phase.at_work());
        if entry.disputed {
            self.disputed.insert(work);
        }
        let owner = entry.home.filter(|_| entry.phase != Phase::Done);
        if let Some(home) = owner {
            self.own.entry(home).or_default().insert(work);
        }
        [left, owner]
    }

    fn leave(&mut self, work: Work, entry: Entry) -> Option<NodeId> {
        self.ready.remove(&work);
        self.loose.remove(&work);
        self.disputed.remove(&work);
        match entry.phase {
            Phase::Paused(until_ms) => {
                self.paused.remove(&(until_ms, work));
            }
            Phase::Runs(since_ms) => {
                self.runs.remove(&(work.kind, since_ms, work));
            }
            _ => {}
        }
        self.at_work -= usize::from(entry.phase.at_work());
        let home = entry.home?;
        if entry.phase == Phase::Ready {
            take(&mut self.queued, home, work);
        }
        take(&mut self.own, home, work);
        Some(home)
    }

    /// Rank of the first item not done whose home this is.
    pub(super) fn rank(&self, home: NodeId) -> u8 {
        self.own.get(&home).and_then(BTreeSet::first).map_or(NOTHING, |work| work.kind.code())
    }

    pub(super) fn ranks(&self) -> BTreeMap<NodeId, u8> {
        self.own.keys().map(|home| (*home, self.rank(*home))).collect()
    }

    /// Whether items are left for this home.
    pub(super) fn waits_for(&self, home: NodeId) -> bool {
        self.own.contains_key(&home)
    }

    /// Items not done whose home this is.
    pub(super) fn own(&self, home: NodeId) -> impl Iterator<Item = Work> {
        self.own.get(&home).into_iter().flatten().copied()
    }

    /// How many ready items wait for this home.
    pub(super) fn queue(&self, home: NodeId) -> u64 {
        self.queued.get(&home).map_or(0, |works| works.len() as u64)
    }

    pub(super) fn queue_of(&self, home: NodeId) -> impl Iterator<Item = Work> {
        self.queued.get(&home).into_iter().flatten().copied()
    }

    pub(super) fn loose(&self) -> impl Iterator<Item = Work> {
        self.loose.iter().copied()
    }

    /// Ready items of these kinds, in order.
    pub(super) fn ready_of(&self, from: WorkKind, below: u8) -> impl Iterator<Item = Work> {
        self.ready.range(Work::new(from, 0)..).copied().take_while(move |work| work.kind.code() < below)
    }

    pub(super) fn ready(&self) -> impl Iterator<Item = Work> {
        self.ready.iter().copied()
    }

    /// Items of a kind that run, the one that started first first.
    pub(super) fn running(&self, kind: WorkKind) -> impl Iterator<Item = (u64, Work)> {
        let range = (kind, 0, Work::FIRST)..=(kind, u64::MAX, Work::new(WorkKind::Joint, u32::MAX));
        self.runs.range(range).map(|(_, since_ms, work)| (*since_ms, *work))
    }

    /// Whether something is leased, checked, or waits for its time.
    pub(super) fn is_busy(&self) -> bool {
        self.at_work > 0 || !self.paused.is_empty()
    }

    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        self.paused.first().is_some_and(|(until_ms, _)| *until_ms <= now_ms)
    }

    /// Paused items whose time has come.
    pub(super) fn due(&self, now_ms: u64) -> Vec<Work> {
        self.paused.range(..=(now_ms, Work::LAST)).map(|(_, work)| *work).collect()
    }

    pub(super) fn heat(&mut self, work: Work) {
        if self.ready.contains(&work) {
            self.hot.insert(work);
        }
    }

    pub(super) fn heat_all(&mut self) {
        self.hot.clone_from(&self.ready);
    }

    pub(super) fn heat_loose(&mut self) {
        self.hot.extend(self.loose.iter().copied());
    }

    pub(super) fn heat_disputes(&mut self) {
        let ready = self.disputed.intersection(&self.ready).copied();
        self.hot.extend(ready);
    }

    pub(super) fn wake(&mut self, node: NodeId) {
        self.woken.insert(node);
    }

    /// More is to be done by this home, or it is slower than it was.
    pub(super) fn hasten(&mut self, home: NodeId) {
        self.hastened.insert(home);
    }

    pub(super) fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    pub(super) fn take_woken(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.woken)
    }

    /// Looks again at what waits for hastened homes, where somebody has the leisure to take of it.
    pub(super) fn heat_hastened(&mut self, leisure: bool) {
        for home in std::mem::take(&mut self.hastened).into_iter().filter(|_| leisure) {
            self.hot.extend(self.queued.get(&home).into_iter().flatten());
        }
    }

    pub(super) fn is_hot(&self) -> bool {
        !self.hot.is_empty()
    }

    /// The first hot item that is still ready.
    pub(super) fn pop_hot(&mut self) -> Option<Work> {
        while let Some(work) = self.hot.pop_first() {
            if self.ready.contains(&work) {
                return Some(work);
            }
        }
        None
    }

    /// What is wrong with the orders beside the entries, where these entries are right.
    pub(super) fn audit(&self, right: &BTreeMap<Work, Entry>) -> Result<(), String> {
        if let Some((work, entry)) = right.iter().find(|(work, entry)| self.entries.get(work) != Some(entry)) {
            return Err(format!("{work} is {:?} and should be {entry:?}", self.entries.get(work)));
        }
        let mut fresh = Self::default();
        for (work, entry) in right {
            fresh.enter(*work, *entry);
        }
        let sets = |agenda: &Self| (agenda.ready.clone(), agenda.loose.clone(), agenda.disputed.clone(), agenda.paused.clone());
        let more = |agenda: &Self| (agenda.at_work, agenda.runs.clone(), agenda.own.clone(), agenda.queued.clone());
        if sets(self) != sets(&fresh) || more(self) != more(&fresh) {
            return Err(format!("the agenda is {self:?} and should be {fresh:?}"));
        }
        if self.is_hot() || !self.woken.is_empty() { Err("something was left to look at".to_owned()) } else { Ok(()) }
    }
}

/// Removes an item from a list of a map, and the list when it was the last.
fn take(map: &mut BTreeMap<NodeId, BTreeSet<Work>>, home: NodeId, work: Work) {
    if let Some(works) = map.get_mut(&home) {
        works.remove(&work);
        if works.is_empty() {
            map.remove(&home);
        }
    }
}
