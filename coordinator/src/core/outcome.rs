//! What people are told about a job: events on the way, what it took, why it failed.

use std::collections::BTreeSet;

use super::types::{NodeId, Work};

/// Something worth showing about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// An item was accepted.
    Accepted {
        /// The item.
        work: Work,
        /// Who did it.
        node: NodeId,
        /// Accepted items of this kind.
        done: u32,
        /// All items of this kind.
        total: u32,
    },
    /// An accepted item is taken back and done again.
    Redo {
        /// The item.
        work: Work,
        /// Why.
        reason: String,
    },
    /// All commits are in and the challenge is drawn.
    Challenged,
    /// All pieces are in; the whole is being verified.
    Finishing,
    /// A step that all segments do together begins; steps before it are done.
    Joining {
        /// How many those are.
        number: u32,
    },
    /// A result contradicts an earlier one; a third party decides.
    Disputed {
        /// The item.
        work: Work,
        /// Who says so.
        node: NodeId,
        /// What contradicts.
        reason: String,
    },
    /// A node is gone or overdue; its item goes to another.
    Lost {
        /// The item.
        work: Work,
        /// The node.
        node: NodeId,
        /// What happened.
        reason: String,
    },
    /// A node reported a failure.
    Failed {
        /// The item.
        work: Work,
        /// The node.
        node: NodeId,
        /// Cause.
        reason: String,
    },
    /// A node lied and is out.
    Quarantined {
        /// The node.
        node: NodeId,
        /// Evidence.
        reason: String,
    },
    /// No node can work on this job.
    Waiting {
        /// Milliseconds until the job fails.
        left_ms: u64,
    },
}

/// What a job took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Name, first lease to last acceptance in milliseconds, core-microseconds; by kind, in order.
    pub phases: Vec<(&'static str, u64, u64)>,
    /// Largest peak memory of any item.
    pub peak_bytes: u64,
    /// Nodes whose results are in the proof.
    pub nodes: BTreeSet<NodeId>,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobFailure {
    /// One item took several nodes down.
    #[error(
        "{work} took down {nodes} nodes ({who}); run it alone on a machine with more memory, or raise `lease_ms` if it is only slow"
    )]
    Lethal {
        /// The item.
        work: Work,
        /// How many.
        nodes: usize,
        /// Which.
        who: String,
    },
    /// One item failed too often.
    #[error("{work} failed {times} times, last on {node}: {reason}")]
    Failing {
        /// The item.
        work: Work,
        /// How often.
        times: usize,
        /// Where last.
        node: NodeId,
        /// Why last.
        reason: String,
    },
    /// Nobody was there.
    #[error("no node could work on this job for {waited_ms} ms; join a node that has the model, then submit again")]
    NoNodes {
        /// How long.
        waited_ms: u64,
    },
    /// Nodes kept contradicting each other with nobody to decide.
    #[error("nodes contradict each other at {work} and no third party can decide; add a node, or give the coordinator the model")]
    Undecidable {
        /// The item.
        work: Work,
    },
    /// Accepted pieces do not fit together.
    #[error("{0}")]
    Pieces(String),
    /// Asked for.
    #[error("cancelled; submit again if that was a mistake")]
    Cancelled,
    /// Too much work is waiting.
    #[error(
        "{queued} jobs are in progress and the fleet has more than a day of work; submit again in {wait_s} s, or join more nodes"
    )]
    Busy {
        /// Seconds until there is room again.
        wait_s: u64,
        /// Jobs in progress.
        queued: usize,
    },
    /// Too many jobs.
    #[error("{0} jobs are in progress, which is the limit; submit again when one is done")]
    TooMany(usize),
}
