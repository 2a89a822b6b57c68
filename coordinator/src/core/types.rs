//! What goes into the brain and what comes out of it. Plain data, no bytes of blobs.

use std::collections::BTreeSet;
use std::fmt;

use obelysk_node::engine::{Verdict, WorkKind};
use obelysk_protocol::wire::BlobRef;

use super::fact::Fact;
use super::outcome::{JobEvent, JobFailure, Report};

/// A node, numbered by the server; 0 is the coordinator's own referee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The coordinator's own engine, which settles disputes and does nothing else.
    pub const REFEREE: Self = Self(0);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::REFEREE { f.write_str("the referee") } else { write!(f, "node {}", self.0) }
    }
}

/// A job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub [u8; 32]);

impl fmt::Display for JobId {
    /// The first eight hexadecimal digits: enough for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({self})")
    }
}

/// A work item of a job. Ordered by kind, then segment: the order in which ready items are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    /// What to do.
    pub kind: WorkKind,
    /// On which segment.
    pub segment: u32,
}

impl Work {
    /// No item comes before this one.
    pub(super) const FIRST: Self = Self { kind: WorkKind::Forward, segment: 0 };
    /// Nor after this one.
    pub(super) const LAST: Self = Self { kind: WorkKind::Joint, segment: u32::MAX };

    /// The item of this kind and segment.
    #[must_use]
    pub const fn new(kind: WorkKind, segment: u32) -> Self {
        Self { kind, segment }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.name(), self.segment)
    }
}

/// What a work item is computed from and checked against. Equal needs give equal results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The engine's inputs.
    pub inputs: Vec<BlobRef>,
    /// What the checker compares with: for commit and prove the boundary after the segment, for joint the segment's part before.
    pub against: Option<BlobRef>,
    /// Public bytes.
    pub extra: BlobRef,
}

/// Times the brain decides by, all in milliseconds of the caller's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A lease without progress ends after this.
    pub lease_ms: u64,
    /// A disconnected node may return within this.
    pub away_grace_ms: u64,
    /// A job without any node that could work on it fails after this.
    pub wait_deadline_ms: u64,
    /// Pause before a failed item is tried again, times the number of failures.
    pub retry_pause_ms: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time passed.
    Tick,
    /// A node said hello, for the first time or again.
    NodeJoined {
        /// The node.
        node: NodeId,
        /// Models it can run.
        models: BTreeSet<[u8; 32]>,
        /// Cores it offers; weighs its share.
        cores: u32,
        /// Epochs it still holds.
        held: BTreeSet<u64>,
    },
    /// What a node can do, said before it joins.
    NodeMeasured {
        /// The node.
        node: NodeId,
        /// Core-microseconds it took for the job of calibration, by kind of work; `None`: it was not calibrated.
        core_us: Option<[u64; 4]>,
        /// Memory of the machine in bytes; 0 when that is not known.
        memory_bytes: u64,
    },
    /// Another process speaks for it than before, said before it joins: what that one held is gone.
    NodeRestarted {
        /// The node.
        node: NodeId,
    },
    /// Its connection broke.
    NodeAway {
        /// The node.
        node: NodeId,
    },
    /// It wants no more work.
    NodeDraining {
        /// The node.
        node: NodeId,
    },
    /// It said goodbye.
    NodeLeft {
        /// The node.
        node: NodeId,
    },
    /// Work goes on.
    Progress {
        /// Who says so.
        node: NodeId,
        /// The lease.
        epoch: u64,
        /// How far.
        permille: u32,
    },
    /// A result arrived whole.
    WorkDone {
        /// Who says so.
        node: NodeId,
        /// The lease.
        epoch: u64,
        /// The result.
        output: BlobRef,
        /// Core-microseconds spent.
        core_us: u64,
        /// Peak memory.
        peak_bytes: u64,
    },
    /// The node could not do it.
    WorkFailed {
        /// Who says so.
        node: NodeId,
        /// The lease.
        epoch: u64,
        /// It blames an earlier result.
        disagrees: bool,
        /// Cause.
        reason: String,
    },
    /// The node leaves and will not do it; nobody is to blame.
    WorkReturned {
        /// Who says so.
        node: NodeId,
        /// The lease.
        epoch: u64,
    },
    /// Answer to [`Effect::Check`].
    CheckResult {
        /// The job.
        job: JobId,
        /// The item.
        work: Work,
        /// The lease the result came from.
        epoch: u64,
        /// The checker's opinion.
        verdict: Verdict,
    },
    /// The checker itself broke down; no node is to blame.
    CheckerFailed {
        /// The job.
        job: JobId,
        /// Cause.
        reason: String,
    },
    /// Answer to [`Effect::DeriveChallenge`].
    ChallengeDerived {
        /// The job.
        job: JobId,
        /// The commits it was derived from.
        commits: Vec<BlobRef>,
        /// The challenge, or why there is none.
        result: Result<BlobRef, String>,
    },
    /// Answer to [`Effect::Finish`].
    Finished {
        /// The job.
        job: JobId,
        /// The proof, or why there is none.
        result: Result<BlobRef, String>,
    },
    /// Answer to [`Effect::Finish`]: all segments have a step to do together.
    Joined {
        /// The job.
        job: JobId,
        /// The step that was done, if one was.
        after: Option<BlobRef>,
        /// Public bytes of the step to do.
        step: BlobRef,
    },
    /// A job to do, or one submitted before: a job is opened once.
    JobSubmitted {
        /// The job.
        job: JobId,
        /// The model.
        model: [u8; 32],
        /// The specification.
        spec: BlobRef,
        /// Its number of segments, at least 1.
        segments: u32,
    },
    /// A node says what a lease is about that it holds from before it connected.
    NodeHolds {
        /// Who says so.
        node: NodeId,
        /// The lease.
        epoch: u64,
        /// The job.
        job: JobId,
        /// The item.
        work: Work,
        /// The engine's inputs it works from.
        inputs: Vec<BlobRef>,
        /// Public bytes it works from.
        extra: BlobRef,
    },
    /// The bytes of a blob are gone from the store.
    BlobLost {
        /// The blob.
        blob: BlobRef,
    },
    /// The end of this job need not be kept any longer.
    Forget {
        /// The job; one that has ended.
        job: JobId,
    },
    /// About a job that is submitted next.
    JobSized {
        /// The job.
        job: JobId,
        /// 0 to 9; 9 is served most.
        priority: u8,
        /// Memory that each segment needs, in bytes; 0, or an end of the list, where it is not known.
        peak_bytes: Vec<u64>,
    },
    /// Nobody wants this job any more.
    Cancel {
        /// The job.
        job: JobId,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Give this lease to this node.
    Assign {
        /// The node.
        node: NodeId,
        /// Fencing number, never used twice.
        epoch: u64,
        /// The job.
        job: JobId,
        /// The model.
        model: [u8; 32],
        /// The item.
        work: Work,
        /// The specification.
        spec: BlobRef,
        /// Inputs and public bytes.
        needs: Needs,
    },
    /// Tell the node that its result was judged or is not wanted: it may forget it.
    Ack {
        /// The node.
        node: NodeId,
        /// The lease.
        epoch: u64,
    },
    /// This must be agreed before anything after it is done.
    Record(Fact),
    /// Tell whoever submitted it that the job stands, whether it is in progress or has ended.
    Opened {
        /// The job.
        job: JobId,
    },
    /// Tell the node that what it holds under this lease is still wanted.
    Resume {
        /// The node.
        node: NodeId,
        /// The lease.
        epoch: u64,
        /// The job.
        job: JobId,
    },
    /// The end of this job is kept no longer.
    Forgotten {
        /// The job.
        job: JobId,
    },
    /// Tell the node that this lease is over.
    Revoke {
        /// The node.
        node: NodeId,
        /// The lease.
        epoch: u64,
    },
    /// Judge a result.
    Check {
        /// Who delivered it.
        node: NodeId,
        /// The job.
        job: JobId,
        /// The item.
        work: Work,
        /// The lease it came from.
        epoch: u64,
        /// The specification.
        spec: BlobRef,
        /// Inputs, what to compare with, public bytes.
        needs: Needs,
        /// The result.
        output: BlobRef,
    },
    /// Derive the challenge from all commits.
    DeriveChallenge {
        /// The job.
        job: JobId,
        /// The specification.
        spec: BlobRef,
        /// All commits, by segment.
        commits: Vec<BlobRef>,
    },
    /// Join all pieces: to the whole, verified, or to a step that all segments do together.
    Finish {
        /// The job.
        job: JobId,
        /// The specification.
        spec: BlobRef,
        /// All commits, by segment.
        commits: Vec<BlobRef>,
        /// The challenge.
        challenge: BlobRef,
        /// All proofs, by segment.
        proves: Vec<BlobRef>,
        /// All openings, by segment.
        opens: Vec<BlobRef>,
        /// A step that all segments did together, and their parts in it.
        joint: Option<(BlobRef, Vec<BlobRef>)>,
    },
    /// Send this node away for good.
    Quarantine {
        /// The node.
        node: NodeId,
        /// Evidence for people.
        reason: String,
    },
    /// The job is done.
    Publish {
        /// The job.
        job: JobId,
        /// The proof.
        proof: BlobRef,
        /// What it took.
        report: Report,
    },
    /// The job failed.
    FailJob {
        /// The job.
        job: JobId,
        /// Why.
        failure: JobFailure,
    },
    /// Something worth showing.
    Notify {
        /// The job.
        job: JobId,
        /// What.
        event: JobEvent,
    },
}
