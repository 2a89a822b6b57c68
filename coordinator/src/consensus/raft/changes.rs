//! Changes of who is a member, and of who leads: one at a time, and none after which those alive would be no majority.

use raft::eraftpb::{Entry, EntryType};

use super::core::{Core, MAX_INFLIGHT};
use super::member::{Change, ChangeError, MAX_MEMBERS};
use super::wire::encode_change;
use crate::consensus::Role;

/// Of this many intervals between heartbeats, one must have been answered for a member to count as alive.
const LIVE_HEARTBEATS: u64 = 10;

impl Core {
    /// Begins a change of the configuration; it holds when the entry at the index returned is applied.
    ///
    /// # Errors
    /// [`ChangeError`]: nothing happened.
    pub fn change(&mut self, change: &Change) -> Result<u64, ChangeError> {
        if !matches!(self.role(), Role::Leader { .. }) {
            return Err(ChangeError::NotLeader { leader: self.leader() });
        }
        if self.node.raft.has_pending_conf() {
            return Err(ChangeError::Busy);
        }
        self.judge(change)?;
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChange);
        entry.context = encode_change(change).map_err(|_| ChangeError::Unfit("it cannot be written down"))?.into();
        self.append(vec![entry]).map_err(|()| ChangeError::Busy)
    }

    fn judge(&self, change: &Change) -> Result<(), ChangeError> {
        let (voters, learners) = self.configuration();
        match change {
            Change::Learn(member) => {
                member.check().map_err(ChangeError::Unfit)?;
                match self.members.get(&member.id()) {
                    Some(_) => Err(ChangeError::Known(member.id())),
                    None if self.gone.contains(&member.id()) => Err(ChangeError::Gone(member.id())),
                    None if self.members.len() >= MAX_MEMBERS => Err(ChangeError::Full),
                    None => Ok(()),
                }
            }
            Change::Promote(id) => {
                if !learners.contains(id) {
                    return Err(if voters.contains(id) { ChangeError::Known(*id) } else { ChangeError::Unknown(*id) });
                }
                let matched = self.node.raft.prs().get(*id).map_or(0, |p| p.matched);
                let behind = self.node.raft.raft_log.last_index().saturating_sub(matched);
                if behind > self.pace.keep_entries.min(MAX_INFLIGHT as u64) || !self.is_live(*id) {
                    return Err(ChangeError::Behind { id: *id, behind });
                }
                self.majority_lives(voters.iter().copied().chain([*id]).collect())
            }
            Change::Remove(id) if *id == self.node.raft.id => Err(ChangeError::Itself),
            Change::Remove(id) if !self.members.contains_key(id) => Err(ChangeError::Unknown(*id)),
            Change::Remove(id) => self.majority_lives(voters.into_iter().filter(|v| v != id).collect()),
        }
    }

    fn majority_lives(&self, voters: Vec<u64>) -> Result<(), ChangeError> {
        let (live, needed) = (voters.iter().filter(|v| self.is_live(**v)).count(), voters.len() / 2 + 1);
        if live >= needed { Ok(()) } else { Err(ChangeError::NoMajority { voters: voters.len(), live, needed }) }
    }

    /// Whether a member was heard of lately, as far as this one knows.
    #[must_use]
    pub fn is_live(&self, id: u64) -> bool {
        let patience = LIVE_HEARTBEATS * self.pace.heartbeat_ticks as u64;
        id == self.node.raft.id || self.heard.get(&id).is_some_and(|at| self.ticks - at <= patience)
    }

    /// Follows from now on, if it leads in this term.
    pub fn step_down(&mut self, term: u64) {
        if self.leads_in(term) {
            self.node.raft.become_follower(term, 0);
        }
    }

    /// Whether a member was taken out, and so does not return.
    #[must_use]
    pub fn was_removed(&self, id: u64) -> bool {
        self.gone.contains(&id)
    }

    /// Begins to move leadership to another voter; shows in [`Core::role`], or does not come to pass within an election's time.
    ///
    /// # Errors
    /// [`ChangeError`]: nothing happened.
    pub fn transfer(&mut self, to: u64) -> Result<(), ChangeError> {
        if !matches!(self.role(), Role::Leader { .. }) {
            return Err(ChangeError::NotLeader { leader: self.leader() });
        }
        if !self.configuration().0.contains(&to) {
            return Err(ChangeError::Unknown(to));
        }
        if !self.is_live(to) {
            return Err(ChangeError::Behind { id: to, behind: 0 });
        }
        self.node.transfer_leader(to);
        Ok(())
    }
}
