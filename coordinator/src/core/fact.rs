//! What outlives a leader: each change of one of these facts is recorded, in order, before anybody can see what follows from it.

use obelysk_node::engine::WorkKind;
use obelysk_protocol::wire::BlobRef;

use super::outcome::Report;
use super::types::{JobId, Needs, NodeId, Work};

/// What work on a model takes, as learned from accepted results.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    /// Reference core-microseconds by item in rising order. The second figure is 0; earlier releases kept the least peak memory there.
    pub costs: Vec<(Work, u64, u64)>,
    /// Third quartile of the reference milliseconds that a kind takes, in rising order.
    pub quartiles: Vec<(WorkKind, u64)>,
}

/// A durable fact about the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A job was taken on.
    JobOpened {
        /// The job.
        job: JobId,
        /// Its place in the order of arrival.
        number: u64,
        /// The model.
        model: [u8; 32],
        /// The specification.
        spec: BlobRef,
        /// Its segments.
        segments: u32,
    },
    /// A result was accepted.
    Accepted {
        /// The job.
        job: JobId,
        /// The item.
        work: Work,
        /// Who made it.
        node: NodeId,
        /// What it was computed from and checked against.
        needs: Needs,
        /// The result.
        output: BlobRef,
        /// Core-microseconds spent.
        core_us: u64,
        /// Peak memory.
        peak_bytes: u64,
    },
    /// An accepted result was taken back.
    Retracted {
        /// The job.
        job: JobId,
        /// The item.
        work: Work,
    },
    /// The challenge was drawn.
    Challenged {
        /// The job.
        job: JobId,
        /// All commits, by segment.
        commits: Vec<BlobRef>,
        /// The challenge.
        extra: BlobRef,
    },
    /// A job ended with a proof.
    Published {
        /// The job.
        job: JobId,
        /// The proof.
        proof: BlobRef,
        /// What it took.
        report: Report,
    },
    /// A job ended without one.
    Failed {
        /// The job.
        job: JobId,
        /// Cause and remedy.
        reason: String,
    },
    /// A node is out.
    Quarantined {
        /// The node.
        node: NodeId,
        /// Evidence for people.
        reason: String,
    },
    /// The end of a job is kept no longer.
    Forgotten {
        /// The job.
        job: JobId,
    },
    /// How much a job counts beside others, and what it needs. It steers who does what, and never what is right.
    Sized {
        /// The job.
        job: JobId,
        /// 0 to 9.
        priority: u8,
        /// Memory that each segment needs, in bytes.
        peak_bytes: Vec<u64>,
    },
    /// How fast a machine was at calibration. It steers who does what, and never what is right.
    Measured {
        /// The machine.
        node: NodeId,
        /// Core-microseconds of the job of calibration.
        trial_us: u64,
        /// Its memory in bytes; 0 when that is not known.
        memory_bytes: u64,
    },
    /// What work on a model takes; recorded now and then. It steers who does what, and never what is right.
    Learned {
        /// The model.
        model: [u8; 32],
        /// What was learned so far.
        learned: Learned,
    },
}
