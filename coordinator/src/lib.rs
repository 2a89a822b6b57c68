//! The cluster's brain and its server: membership, leases, checks, stitching.
//!
//! [`core`] decides and is pure; [`blobs`] keeps bytes by digest; [`consensus`] keeps what must survive; [`identity`] says who takes part; [`server`] moves bytes and keeps
//! time. [`line`] is a bad network for tests and benchmarks. None of them knows what a proof is; [`checker`] does.
#![forbid(unsafe_code)]

pub mod blobs;
pub mod checker;
pub mod consensus;
pub mod core;
pub mod evidence;
pub mod identity;
pub mod ledger;
pub mod line;
pub mod replica;
pub mod server;

pub use blobs::{BlobError, Blobs};
pub use checker::ProofChecker;
pub use identity::Admissions;
pub use replica::{Replica, ReplicaError};
pub use server::{
    Coordinator, CoordinatorConfig, CoordinatorError, Facts, Handle, JobHandle, JobResult, LocalConfig, Phase, Progress,
    submit_remote, submit_remote_at,
};
