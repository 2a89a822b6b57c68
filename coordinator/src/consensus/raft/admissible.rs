//! Which messages a member takes in its present state. The raft crate trusts its peers and panics at what cannot be; here it is refused.
//!
//! This is no defence against members that lie: raft is for members that are right or silent. It keeps a broken, or older, or wrongly
//! restored member from taking the others down with it.

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::log::Log;
use super::wire::MAX_COUNT;

/// How far ahead of ours a term may be. A member alone on a bad line raises no terms (they are asked for first), so that a healthy
/// cluster sees a few a day.
const MAX_TERM_LEAP: u64 = 1 << 32;

/// Why a message was not taken; the connection it came by is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message that cannot be: {0}")]
pub struct Refusal(pub &'static str);

/// What is judged by.
#[derive(Debug)]
pub(super) struct Standing<'a> {
    pub id: u64,
    pub term: u64,
    pub role: StateRole,
    pub leader: u64,
    /// Of the log, what is not on disk yet included.
    pub last: u64,
    pub commit: u64,
    pub log: &'a Log,
}

impl Standing<'_> {
    /// Judges a message from the member `from`, which the transport vouches for.
    pub(super) fn admit(&self, from: u64, m: &Message) -> Result<(), Refusal> {
        let rule = |holds: bool, broken| if holds { Ok(()) } else { Err(Refusal(broken)) };
        rule(m.from == from, "it is sent in another's name")?;
        rule(m.to == self.id, "it is for another member")?;
        rule(m.term > 0 && m.term <= MAX_COUNT && m.term <= self.term + MAX_TERM_LEAP, "a term from nowhere")?;
        rule(m.request_snapshot == 0, "a request out of turn")?;
        // What is of a term that is over is answered or ignored before its content is looked at.
        if m.term < self.term {
            return Ok(());
        }
        let present = m.term == self.term;
        match m.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot => {
                rule(!present || self.role != StateRole::Leader, "two leaders of one term")?;
                rule(!present || self.leader == 0 || self.leader == from, "two leaders of one term")?;
                self.leaders(m)
            }
            MessageType::MsgTimeoutNow => rule(!present || self.leader == from, "an order of who does not lead"),
            MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => {
                let ours = present && self.role == StateRole::Leader;
                rule(!ours || (m.index <= self.last && m.commit <= self.last), "it has what was never sent")
            }
            MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse => Ok(()),
            _ => Err(Refusal("a kind that stays at home")),
        }
    }

    fn leaders(&self, m: &Message) -> Result<(), Refusal> {
        match m.get_msg_type() {
            MessageType::MsgHeartbeat if m.commit > self.last => Err(Refusal("more agreed on than this member ever confirmed")),
            MessageType::MsgSnapshot => {
                let meta = m.get_snapshot().get_metadata();
                let ours = self.log.entry(meta.index).map(|e| e.term);
                let agreed = meta.index <= self.commit;
                match ours {
                    Some(term) if agreed && term != meta.term => Err(Refusal("a snapshot of another history than was agreed on")),
                    _ => Ok(()),
                }
            }
            _ => self.entries_agree(m),
        }
    }

    /// What was agreed on is never replaced.
    fn entries_agree(&self, m: &Message) -> Result<(), Refusal> {
        let replaced = |(index, term): (u64, u64)| {
            let ours = self.log.entry(index).map(|e| e.term);
            index <= self.commit && ours.is_some_and(|ours| ours != term)
        };
        let conflict = m.entries.iter().map(|e| (e.index, e.term)).any(replaced);
        if conflict { Err(Refusal("other entries than were agreed on")) } else { Ok(()) }
    }
}
