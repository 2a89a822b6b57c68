//! Questions of administrators about a running cluster, and the answers: sums, nodes at work, jobs, items, events.
//!
//! Nothing here moves work or opens a door; the one order, [`JobCancel`], gives a job up.

use rkyv::{Archive, Deserialize, Serialize};

use super::BlobRef;

/// Administrator: how does the cluster stand?
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct StatusGet {
    /// The sender's clock, seconds since 1970.
    pub unix_s: u64,
}

/// Answer to [`StatusGet`]. Counts are since this coordinator started.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The coordinator's release.
    pub release: String,
    /// The coordinator's clock, seconds since 1970.
    pub unix_s: u64,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Nodes by [`NodeState`](super::NodeState) code.
    pub nodes: [u32; 5],
    /// Cores of the nodes that are here.
    pub cores: u32,
    /// Jobs by [`JobState`] code; of those that ended, as many as are remembered.
    pub jobs: [u32; 5],
    /// Work items by [`ItemPhase`] code, of jobs in progress.
    pub items: [u32; 5],
    /// Results accepted, taken back, refused; contradictions; failures that nodes reported; nodes lost at work; quarantines.
    pub events: [u64; 7],
    /// Core-microseconds of accepted results, by [`WorkKind`](super::WorkKind).
    pub core_us: [u64; 4],
    /// Core-microseconds of items not yet accepted, as far as items of their kind and model were measured.
    pub queued_core_us: u64,
    /// Nodes that would finish what waits within the drain target.
    pub desired_nodes: u32,
    /// Bytes received from peers.
    pub received_bytes: u64,
    /// Bytes sent to peers.
    pub sent_bytes: u64,
    /// Bytes of blobs held, and their bound.
    pub store_bytes: [u64; 2],
}

/// Administrator: nodes that this coordinator has met since it started, with a number above this one.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct WorkersAfter {
    /// Where the last page ended; 0 for the first.
    pub node: u32,
}

/// One page of nodes by number; an empty one is the end.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// The page.
    pub workers: Vec<WorkerEntry>,
}

/// A node at work.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct WorkerEntry {
    /// Its number, above 0.
    pub node: u32,
    /// Its id.
    pub id: [u8; 32],
    /// Name for people.
    pub name: String,
    /// A [`NodeState`](super::NodeState) code.
    pub state: u8,
    /// Cores it offers; 0 when it is away for good.
    pub cores: u32,
    /// Results accepted from it.
    pub accepted: u64,
    /// Core-microseconds of these.
    pub core_us: u64,
    /// Whether it runs something; the fields below say what.
    pub busy: bool,
    /// The lease.
    pub epoch: u64,
    /// The job.
    pub job: [u8; 32],
    /// A [`WorkKind`](super::WorkKind) code.
    pub kind: u8,
    /// The segment.
    pub segment: u32,
    /// How far, 0 to 1000.
    pub permille: u32,
}

/// Administrator: jobs with an id above this one, in progress or remembered.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobsAfter {
    /// Where the last page ended; zeros for the first.
    pub job: [u8; 32],
}

/// One page of jobs in order of their ids; an empty one is the end.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Jobs {
    /// The page.
    pub jobs: Vec<JobEntry>,
}

/// A job.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobEntry {
    /// Its id.
    pub job: [u8; 32],
    /// Its model.
    pub model: [u8; 32],
    /// Its segments.
    pub segments: u32,
    /// A [`JobState`] code.
    pub state: u8,
    /// When it was submitted, seconds since 1970.
    pub submitted_unix_s: u64,
    /// When it ended; 0 before.
    pub ended_unix_s: u64,
    /// Items accepted, by [`WorkKind`](super::WorkKind); at most `segments` each.
    pub accepted: [u32; 4],
    /// Core-microseconds of accepted results, by kind.
    pub core_us: [u64; 4],
    /// Estimated milliseconds left; `u64::MAX` when nothing was measured yet.
    pub left_ms: u64,
    /// Its proof; of length 0 before there is one.
    pub proof: BlobRef,
    /// Why it failed; else empty.
    pub reason: String,
}

/// Administrator: the items of this job from this segment on.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobItemsGet {
    /// The job.
    pub job: [u8; 32],
    /// First segment.
    pub segment: u32,
}

/// Answer to [`JobItemsGet`]: whole segments, all kinds of each; none when the job is not in progress or has no more.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobItems {
    /// By segment, then kind.
    pub items: Vec<ItemEntry>,
}

/// A work item.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemEntry {
    /// A [`WorkKind`](super::WorkKind) code.
    pub kind: u8,
    /// The segment.
    pub segment: u32,
    /// An [`ItemPhase`] code.
    pub phase: u8,
    /// Whose lease or result; 0 for nobody's, or the coordinator's own.
    pub node: u32,
    /// How far a lease is, 0 to 1000.
    pub permille: u32,
    /// Somebody says that the result before it is wrong.
    pub disputed: bool,
    /// Failures reported of it and nodes lost at it.
    pub tries: u32,
}

/// Administrator: nobody wants this job any more.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobCancel {
    /// The job.
    pub job: [u8; 32],
}

/// Administrator: what happened to this job after the event of this number.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobLogAfter {
    /// The job.
    pub job: [u8; 32],
    /// Number of the last event known; 0 for none.
    pub number: u64,
}

/// Answer to [`JobLogAfter`]: the next events, oldest first. None and `ended`: there will be no more.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobLog {
    /// The events, numbers rising.
    pub events: Vec<LogEntry>,
    /// The job has ended.
    pub ended: bool,
}

/// Something that happened to a job.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// From 1 on; a gap is events that were dropped or rotated away.
    pub number: u64,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// What: a word such as `accepted`.
    pub event: String,
    /// The work item, `kind/segment`; empty when it is about none.
    pub work: String,
    /// The lease; 0 when it is about none.
    pub epoch: u64,
    /// Name and number of the node; empty when it is about none.
    pub node: String,
    /// Its id, zeros when not known.
    pub id: [u8; 32],
    /// The result; of length 0 when it is about none.
    pub digest: BlobRef,
    /// The rest, for people.
    pub text: String,
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum JobState {
    /// Nodes work on it, or are about to.
    Running = 0,
    /// No node can work on it now.
    Waiting = 1,
    /// All pieces are in; the whole is being verified.
    Finishing = 2,
    /// Proved.
    Done = 3,
    /// Failed, or cancelled.
    Failed = 4,
}

impl JobState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Running, Self::Waiting, Self::Finishing, Self::Done, Self::Failed];

    /// The state with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == code)
    }

    /// Name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Finishing => "finishing",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// How a work item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ItemPhase {
    /// What it needs is not there yet.
    Blocked = 0,
    /// Waits for a node.
    Ready = 1,
    /// A node runs it.
    Leased = 2,
    /// Its result is being checked.
    Checking = 3,
    /// Done.
    Accepted = 4,
}

impl ItemPhase {
    /// All phases.
    pub const ALL: [Self; 5] = [Self::Blocked, Self::Ready, Self::Leased, Self::Checking, Self::Accepted];

    /// The phase with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| *phase as u8 == code)
    }

    /// Name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Checking => "checking",
            Self::Accepted => "accepted",
        }
    }
}
