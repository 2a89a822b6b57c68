//! What outlives a leader: each change of one of these facts is recorded, in order, before anybody can see what follows from it.

use obelysk_protocol::wire::BlobRef;

use super::outcome::Report;
use super::types::{JobId, Needs, NodeId, Work};

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
}
