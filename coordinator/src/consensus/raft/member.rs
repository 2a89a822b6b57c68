//! Who the coordinators are: an id that follows from the key, and where to reach each of them.

use std::collections::{BTreeMap, BTreeSet};

/// Most coordinators of one cluster: consensus beyond seven is slow, not safer.
pub const MAX_MEMBERS: usize = 7;
/// Most members that a cluster remembers having removed: one a week for twenty years.
pub const MAX_GONE: usize = 1024;
/// Longest `host:port` of a member: a DNS name has up to 253 bytes.
pub const MAX_PLACE_BYTES: usize = obelysk_protocol::wire::MAX_ADDRESS_BYTES;

/// Every member that the configuration names, by id; those that only learn included.
pub type Members = BTreeMap<u64, Member>;

/// Ids of those that were removed. None of them returns: its log may hold votes that it was removed for having forgotten, and reads of
/// its own removal.
pub type Gone = BTreeSet<u64>;

/// One coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// BLAKE3 of the public key in its certificate.
    pub key: [u8; 32],
    /// Where the other coordinators reach it, `host:port`.
    pub peer: String,
    /// Where nodes and clients reach it, `host:port`.
    pub service: String,
}

impl Member {
    /// Its id: the first eight bytes of its key's digest. A wiped disk makes another key, and so another member; an id never returns
    /// with a log that forgot what it voted.
    #[must_use]
    pub const fn id(&self) -> u64 {
        id_of(&self.key)
    }

    /// Whether its parts can be a member's.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self) -> Result<(), &'static str> {
        let place = |text: &str| !text.is_empty() && text.len() <= MAX_PLACE_BYTES && text.bytes().all(|b| b.is_ascii_graphic());
        if !place(&self.peer) || !place(&self.service) {
            return Err("an address of a member that is none");
        }
        if self.id() == 0 { Err("a member without an id") } else { Ok(()) }
    }
}

/// The id of the member with this key.
#[must_use]
pub const fn id_of(key: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *key;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// A change of the configuration, one member at a time: only so do any two majorities before and after share a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Takes a member in that receives the log and has no vote yet.
    Learn(Member),
    /// Gives a member that learned everything its vote.
    Promote(u64),
    /// Takes a member out.
    Remove(u64),
}

/// Why a change was not begun. Nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Only the leader changes the configuration.
    #[error("this coordinator does not lead; ask {}", leader.as_deref().unwrap_or("the others"))]
    NotLeader {
        /// Who does, when known.
        leader: Option<String>,
    },
    /// The one before is not finished.
    #[error("another change of the coordinators is under way; try again in a moment")]
    Busy,
    /// There are as many as may be.
    #[error("there are {MAX_MEMBERS} coordinators, the most there may be; remove one first")]
    Full,
    /// Not in the configuration.
    #[error("no coordinator has the id {0:016x}; look at the list of members")]
    Unknown(u64),
    /// Already in it, with other addresses or another key.
    #[error("coordinator {0:016x} is a member already; remove it first")]
    Known(u64),
    /// It was removed once.
    #[error("coordinator {0:016x} was removed, and a key does not return; delete its folder, and join anew")]
    Gone(u64),
    /// What is to be added cannot be a member.
    #[error("the new coordinator is not acceptable: {0}; correct its settings")]
    Unfit(&'static str),
    /// A learner that lacks entries would hold the cluster up with its vote.
    #[error("coordinator {id:016x} has not caught up ({behind} entries behind, or not heard of lately); wait, and try again")]
    Behind {
        /// The learner.
        id: u64,
        /// Entries it lacks, as far as known.
        behind: u64,
    },
    /// After it, those alive would be no majority.
    #[error(
        "of the {voters} coordinators there would be then, {live} are alive, and {needed} are needed; bring the others back, or add new \
         ones first"
    )]
    NoMajority {
        /// Voters after the change.
        voters: usize,
        /// Those of them heard of lately.
        live: usize,
        /// A majority.
        needed: usize,
    },
    /// A leader that removes itself would leave while its last entries are under way.
    #[error("the leader does not remove itself; move leadership to another, then ask that one")]
    Itself,
}
