//! Agreement on one log: what is proposed is either on disks enough to survive, in one order for all, or refused.
//!
//! The seam between the cluster's facts and the way they are kept. The facts ([`Machine`]) are a pure function of the log; a [`Consensus`]
//! knows nothing of jobs or nodes. Entries are opaque bytes.

mod memory;
pub mod raft;
mod solo;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use tokio::sync::watch;

pub use memory::Memory;
pub use solo::{Solo, SoloError};

/// Largest entry: the documents of [`identity`](crate::identity) at their bounds fit; blobs never go through the log.
pub const MAX_ENTRY_BYTES: usize = 16 << 20;

/// A deterministic state machine. Every member applies the same entries in the same order and so has the same state.
///
/// Nothing here may fail, wait, or look at a clock: an entry was judged before it was proposed.
pub trait Machine: Send + 'static {
    /// Takes the entry at `index`, which rises by at least one from call to call. Bytes that do not decode are ignored, by all alike.
    fn apply(&mut self, index: u64, entry: &[u8]);

    /// The whole state; equal states give equal bytes.
    fn snapshot(&self) -> Vec<u8>;

    /// Replaces the whole state.
    ///
    /// # Errors
    /// The cause, for people; the old state still holds.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String>;
}

/// What this member is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Alone entitled to propose, and has applied everything that was agreed before its term. Terms never repeat and only rise:
    /// they fence what an earlier leader handed out.
    Leader {
        /// The term.
        term: u64,
    },
    /// Somebody else leads, or nobody yet.
    Follower {
        /// Where nodes and clients reach the leader, `host:port`, when it is known.
        leader: Option<String>,
    },
    /// Takes part no more.
    Stopped {
        /// Why, for people.
        reason: String,
    },
}

/// Why entries are not known to be agreed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead in that term: nothing was proposed.
    #[error("this coordinator does not lead (any more); ask {}", leader.as_deref().unwrap_or("the others"))]
    NotLeader {
        /// Who does, when known.
        leader: Option<String>,
    },
    /// Leadership was lost on the way. Unknown is not failed: the entries may still be agreed.
    #[error("leadership was lost while waiting for the others; whether this was kept shows at the next leader")]
    Unknown,
    /// Larger than [`MAX_ENTRY_BYTES`].
    #[error("an entry of {bytes} bytes is more than the log takes ({MAX_ENTRY_BYTES})")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The disk or the process gave up: this member takes no part any more.
    #[error("the coordinator's log failed: {0}; free or replace the disk, then start again")]
    Failed(String),
}

/// A proposal on its way.
pub type Proposal = Pin<Box<dyn Future<Output = Result<(), ProposeError>> + Send>>;

/// Keeps a log with the others.
pub trait Consensus: Debug + Send + Sync {
    /// Proposes entries in this order, all in this term. Completes when they are on the disks of a majority and applied here.
    /// Proposals complete in the order of the calls.
    fn propose(&self, term: u64, entries: Vec<Vec<u8>>) -> Proposal;

    /// Gives leadership of this term up, if it has it: its brain ended, and a term has one. Nothing where nobody else could lead. May wait.
    fn step_down(&self, _term: u64) {}

    /// What this member is, now and from now on.
    fn role(&self) -> watch::Receiver<Role>;
}
