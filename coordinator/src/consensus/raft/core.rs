//! One member of the consensus without clock, network or disk: (state, event) → (writes, messages, applied entries).
//!
//! Around the raft crate's state machine. The order is fixed: [`Core::ready`] gives what must be on disk; only when it is there,
//! [`Core::finish`] gives the messages that may leave and applies what is agreed. Randomness is seeded: the same events give the same
//! life. Pre-vote keeps a member on a bad line from disturbing; check-quorum makes a leader without majority stand back.

use std::collections::BTreeMap;

use raft::eraftpb::{ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot};
use raft::{Config, NO_LIMIT, RawNode, Ready, SnapshotStatus, StateRole};

use super::admissible::{Refusal, Standing};
use super::log::{Log, Writes, metadata};
use super::logger::bridge;
use super::member::{Change, Gone, MAX_GONE, MAX_MEMBERS, Member, Members};
use super::wire::{FormError, decode_change, decode_state, encode_state};
use crate::consensus::{MAX_ENTRY_BYTES, Machine, ProposeError, Role};

/// Bytes of entries in one message: it stays below one frame, and several are under way at once.
const MESSAGE_BYTES: u64 = 512 << 10;
/// Messages with entries under way to one member.
pub(super) const MAX_INFLIGHT: usize = 64;
/// Entries applied at once, so that a member that catches up still answers heartbeats.
const APPLY_BYTES: u64 = 4 << 20;

/// How a member keeps time and how much log it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader until an election, at least; at most twice as many, by chance.
    pub election_ticks: usize,
    /// Entries kept before the machine's state takes their place.
    pub compact_entries: usize,
    /// The same in bytes.
    pub compact_bytes: usize,
    /// Entries kept even then, for members a little behind: cheaper for them than the whole state.
    pub keep_entries: u64,
}

impl Default for Pace {
    fn default() -> Self {
        let (compact_entries, compact_bytes) = (16 << 10, 64 << 20);
        Self { heartbeat_ticks: 2, election_ticks: 10, compact_entries, compact_bytes, keep_entries: 1 << 10 }
    }
}

/// A member stops: its state and the log's have parted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// The log kept cannot be taken up.
    #[error("the log cannot be taken up: {0}; remove this coordinator's folder, and add it to the cluster anew")]
    Log(String),
    /// A snapshot does not restore.
    #[error("a snapshot of the cluster's state cannot be read: {0}; install the same release on all coordinators")]
    Snapshot(String),
    /// Taken out of the configuration.
    #[error("this coordinator was removed from the cluster; its folder may be deleted")]
    Removed,
}

/// What must be on disk before [`Core::finish`]. Nothing may be done with the core in between.
#[derive(Debug)]
pub struct Turn {
    /// To be written whole or not at all; may be empty.
    pub writes: Writes,
    ready: Option<Ready>,
}

/// What may happen now that the writes are safe.
#[derive(Debug, Default)]
pub struct Done {
    /// To be sent, each to its `to`; may be lost.
    pub messages: Vec<Message>,
    /// The configuration is another now.
    pub reconfigured: bool,
    /// Entries that were applied: index and term.
    pub applied: Vec<(u64, u64)>,
}

/// One member.
pub struct Core {
    pub(super) node: RawNode<Log>,
    machine: Box<dyn Machine>,
    pub(super) members: Members,
    pub(super) gone: Gone,
    pub(super) pace: Pace,
    random: u64,
    timeout: usize,
    seen: (u64, StateRole),
    applied: (u64, u64),
    pub(super) ticks: u64,
    pub(super) heard: BTreeMap<u64, u64>,
    halted: Option<Halt>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let raft = &self.node.raft;
        let mut out = f.debug_struct("Core");
        out.field("id", &raft.id).field("term", &raft.term).field("state", &raft.state).field("applied", &self.applied);
        out.finish_non_exhaustive()
    }
}

/// The log a cluster begins with: these members, and the machine as it is. All its terms are above `after`: what led before this log
/// was handed out in terms up to there.
///
/// # Errors
/// [`FormError`]: no members or too many, or a state larger than a snapshot may be.
pub fn genesis(members: &[Member], after: u64, machine: &dyn Machine) -> Result<Log, FormError> {
    let term = after.max(1);
    let map: Members = members.iter().map(|m| (m.id(), m.clone())).collect();
    if map.len() != members.len() || map.is_empty() || map.len() > MAX_MEMBERS {
        return Err(FormError::Meaning("no members, too many, or one twice"));
    }
    map.values().try_for_each(|m| m.check().map_err(FormError::Meaning))?;
    let conf = ConfState { voters: map.keys().copied().collect(), ..ConfState::default() };
    let mut snapshot = Snapshot::default();
    snapshot.set_metadata(metadata(1, term, conf));
    snapshot.data = encode_state(&map, &Gone::new(), machine.snapshot())?.into();
    let mut hard = HardState::default();
    (hard.term, hard.commit) = (term, 1);
    Log::assemble(hard, snapshot, (1, term), Vec::new()).map_err(|e| FormError::Meaning(e.0))
}

/// SplitMix64.
const fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Core {
    /// Takes up what a disk kept; an empty log is that of a member that waits to be added.
    ///
    /// # Errors
    /// [`Halt`]: it cannot be taken up.
    pub fn new(id: u64, seed: u64, pace: Pace, log: Log, mut machine: Box<dyn Machine>) -> Result<Self, Halt> {
        let at = log.snapshot().get_metadata().clone();
        let (members, gone) = if at.index > 0 { restore(machine.as_mut(), log.snapshot())? } else { Default::default() };
        let config = Config {
            election_tick: pace.election_ticks,
            heartbeat_tick: pace.heartbeat_ticks,
            applied: at.index,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: MAX_INFLIGHT,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: NO_LIMIT,
            max_committed_size_per_ready: APPLY_BYTES,
            ..Config::new(id)
        };
        config.validate().map_err(|e| Halt::Log(e.to_string()))?;
        let node = RawNode::new(&config, log, &bridge()).map_err(|e| Halt::Log(e.to_string()))?;
        let (seen, applied) = ((node.raft.term, node.raft.state), (at.index, at.term));
        let (random, heard) = (seed, BTreeMap::new());
        let mut core =
            Self { node, machine, members, gone, pace, random, timeout: 0, seen, applied, ticks: 0, heard, halted: None };
        core.draw();
        Ok(core)
    }

    fn draw(&mut self) {
        let span = self.pace.election_ticks as u64;
        self.timeout = self.pace.election_ticks + (mix(&mut self.random) % span) as usize;
    }

    /// The crate draws from the thread's own generator; ours, which is seeded, has the last word.
    fn settle(&mut self) {
        let now = (self.node.raft.term, self.node.raft.state);
        if now != self.seen {
            self.seen = now;
            self.draw();
        }
        let timeout = self.timeout;
        self.node.raft.set_randomized_election_timeout(timeout);
    }

    /// A tick of the clock.
    pub fn tick(&mut self) {
        self.ticks += 1;
        self.settle();
        self.node.tick();
    }

    /// A message from the member `from`; the transport vouches for the sender.
    ///
    /// # Errors
    /// [`Refusal`]: impossible. Nothing changed.
    pub fn receive(&mut self, from: u64, message: Message) -> Result<(), Refusal> {
        let raft = &self.node.raft;
        let log = &raft.raft_log;
        let standing = Standing {
            id: raft.id,
            term: raft.term,
            role: raft.state,
            leader: raft.leader_id,
            last: log.last_index(),
            commit: log.committed,
            log: log.store(),
        };
        standing.admit(from, &message)?;
        self.heard.insert(from, self.ticks);
        // An answer from a member that was removed meanwhile is not worth a word.
        let _ = self.node.step(message);
        Ok(())
    }

    /// A message to this member was not sent, or a snapshot was, or was not.
    pub fn not_sent(&mut self, to: u64) {
        self.node.report_unreachable(to);
    }

    /// How sending a snapshot ended.
    pub fn snapshot_sent(&mut self, to: u64, arrived: bool) {
        self.node.report_snapshot(to, if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// Puts entries on the log, in this order. Returns the index of the last: when it is applied and this member led in `term` all the
    /// while, all are agreed.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`], [`ProposeError::TooLarge`]: nothing happened.
    pub fn propose(&mut self, term: u64, entries: Vec<Vec<u8>>) -> Result<u64, ProposeError> {
        if let Some(entry) = entries.iter().find(|e| e.len() > MAX_ENTRY_BYTES) {
            return Err(ProposeError::TooLarge { bytes: entry.len() });
        }
        if self.role() != (Role::Leader { term }) {
            return Err(ProposeError::NotLeader { leader: self.leader() });
        }
        if entries.is_empty() {
            return Ok(self.applied.0);
        }
        let entries = entries.into_iter().map(|data| Entry { data: data.into(), ..Entry::default() });
        self.append(entries.collect()).map_err(|()| ProposeError::NotLeader { leader: None })
    }

    /// Refused while leadership is being moved.
    pub(super) fn append(&mut self, entries: Vec<Entry>) -> Result<u64, ()> {
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgPropose);
        m.from = self.node.raft.id;
        m.set_entries(entries.into());
        self.node.raft.step(m).map_err(|_| ())?;
        Ok(self.node.raft.raft_log.last_index())
    }

    /// Those that vote and those that learn, in order.
    #[must_use]
    pub fn configuration(&self) -> (Vec<u64>, Vec<u64>) {
        let conf = self.node.raft.prs().conf();
        let mut voters: Vec<u64> = conf.voters().ids().iter().collect();
        let mut learners: Vec<u64> = conf.learners().iter().copied().collect();
        voters.sort_unstable();
        learners.sort_unstable();
        (voters, learners)
    }

    /// The members that the configuration names.
    #[must_use]
    pub const fn members(&self) -> &Members {
        &self.members
    }

    /// What is agreed as far as this member knows, and applied: index and its term.
    #[must_use]
    pub const fn applied(&self) -> (u64, u64) {
        self.applied
    }

    /// This member's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.node.raft.id
    }

    /// The leader's id as far as this member knows; 0 for none.
    #[must_use]
    pub fn leader_id(&self) -> u64 {
        self.node.raft.leader_id
    }

    /// Whether it leads in this term, applied or not.
    #[must_use]
    pub fn leads_in(&self, term: u64) -> bool {
        self.node.raft.state == StateRole::Leader && self.node.raft.term == term
    }

    /// This member's term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &dyn Machine {
        self.machine.as_ref()
    }

    /// The log as it is on disk.
    #[must_use]
    pub fn log(&self) -> &Log {
        self.node.raft.store()
    }

    /// The leader's address for nodes and clients.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.members.get(&self.node.raft.leader_id).map(|m| m.service.clone())
    }

    /// What this member is.
    #[must_use]
    pub fn role(&self) -> Role {
        if let Some(halt) = &self.halted {
            return Role::Stopped { reason: halt.to_string() };
        }
        let raft = &self.node.raft;
        match raft.state {
            // Before that, entries of former terms may be agreed and not applied here.
            StateRole::Leader if self.applied.1 == raft.term => Role::Leader { term: raft.term },
            StateRole::Leader => Role::Follower { leader: None },
            _ => Role::Follower { leader: self.leader() },
        }
    }

    /// What must be on disk next, if anything. Call until `None` after every event.
    ///
    /// # Errors
    /// [`Halt`]: this member takes part no more.
    pub fn ready(&mut self) -> Result<Option<Turn>, Halt> {
        if let Some(halt) = &self.halted {
            return Err(halt.clone());
        }
        self.settle();
        if !self.node.has_ready() {
            return Ok(self.compaction().map(|writes| Turn { writes, ready: None }));
        }
        let mut ready = self.node.ready();
        let mut writes = Writes { hard: ready.hs().cloned(), entries: ready.take_entries(), ..Writes::default() };
        if ready.snapshot().get_metadata().index > 0 {
            let snapshot = ready.snapshot().clone();
            (self.members, self.gone) =
                restore(self.machine.as_mut(), &snapshot).inspect_err(|halt| self.halted = Some(halt.clone()))?;
            let at = (snapshot.get_metadata().index, snapshot.get_metadata().term);
            self.applied = at;
            // The crate's order: the hard state may still say less than the snapshot has.
            let hard = writes.hard.get_or_insert_with(|| self.node.raft.hard_state());
            hard.commit = hard.commit.max(at.0);
            (writes.replaced, writes.compacted, writes.snapshot) = (true, Some(at), Some(snapshot));
        }
        Ok(Some(Turn { writes, ready: Some(ready) }))
    }

    /// The writes of `turn` are safe.
    ///
    /// # Errors
    /// [`Halt`]: this member takes part no more.
    pub fn finish(&mut self, turn: Turn) -> Result<Done, Halt> {
        let mut done = Done { reconfigured: turn.writes.replaced, ..Done::default() };
        self.node.mut_store().apply(&turn.writes);
        let Some(mut ready) = turn.ready else { return Ok(done) };
        done.messages = ready.take_messages();
        done.messages.append(&mut ready.take_persisted_messages());
        let mut agreed = ready.take_committed_entries();
        let mut light = self.node.advance_append(ready);
        done.messages.append(&mut light.take_messages());
        agreed.append(&mut light.take_committed_entries());
        for entry in agreed {
            self.apply(&entry, &mut done);
        }
        self.node.advance_apply_to(self.applied.0);
        match &self.halted {
            Some(halt) if done.messages.is_empty() => Err(halt.clone()),
            _ => Ok(done),
        }
    }

    fn apply(&mut self, entry: &Entry, done: &mut Done) {
        self.applied = (entry.index, entry.term);
        done.applied.push(self.applied);
        if entry.get_entry_type() == EntryType::EntryNormal {
            // A new leader's first entry is empty, and nobody proposed it.
            if !entry.data.is_empty() {
                self.machine.apply(entry.index, &entry.data);
            }
            return;
        }
        // What does not decode is ignored by all members alike.
        let Ok(change) = decode_change(&entry.context) else { return };
        let (kind, id) = match &change {
            Change::Learn(member) => (ConfChangeType::AddLearnerNode, member.id()),
            Change::Promote(id) => (ConfChangeType::AddNode, *id),
            Change::Remove(id) => (ConfChangeType::RemoveNode, *id),
        };
        let mut step = ConfChange::default();
        step.set_change_type(kind);
        step.node_id = id;
        // The same configuration refuses the same change at every member.
        if self.node.apply_conf_change(&step).is_err() {
            return;
        }
        done.reconfigured = true;
        match change {
            Change::Learn(member) => drop(self.members.insert(id, member)),
            Change::Promote(_) => {}
            Change::Remove(_) => {
                self.members.remove(&id);
                if self.gone.len() >= MAX_GONE {
                    self.gone.pop_first();
                }
                self.gone.insert(id);
                self.heard.remove(&id);
                if id == self.node.raft.id {
                    self.halted = Some(Halt::Removed);
                }
            }
        }
    }

    /// When the log is long, or a member needs a state that names it: the machine's state takes the entries' place.
    fn compaction(&mut self) -> Option<Writes> {
        let (entries, bytes) = self.log().size();
        let behind = self.applied.0 - self.log().snapshot().get_metadata().index;
        let long = entries as u64 > self.pace.keep_entries + self.pace.compact_entries as u64 || bytes > self.pace.compact_bytes;
        if !(self.log().take_wanted() || long) || behind == 0 {
            return None;
        }
        let data = match encode_state(&self.members, &self.gone, self.machine.snapshot()) {
            Ok(data) => data,
            Err(error) => {
                tracing::error!(%error, "the log was not compacted");
                return None;
            }
        };
        let mut snapshot = Snapshot::default();
        let conf = self.node.raft.prs().conf().to_conf_state();
        snapshot.set_metadata(metadata(self.applied.0, self.applied.1, conf));
        snapshot.data = data.into();
        // Large entries are not kept for stragglers: the state is as good.
        let keep = if bytes > self.pace.compact_bytes { 0 } else { self.pace.keep_entries };
        let upto = self.applied.0.saturating_sub(keep).max(self.log().compacted().0);
        let term = self.log().entry(upto).map_or(self.log().compacted().1, |e| e.term);
        let hard = Some(self.node.raft.hard_state());
        Some(Writes { hard, snapshot: Some(snapshot), compacted: Some((upto, term)), ..Writes::default() })
    }
}

fn restore(machine: &mut dyn Machine, snapshot: &Snapshot) -> Result<(Members, Gone), Halt> {
    let (members, gone, state) = decode_state(&snapshot.data).map_err(|e| Halt::Snapshot(e.to_string()))?;
    machine.restore(&state).map_err(Halt::Snapshot)?;
    Ok((members, gone))
}
