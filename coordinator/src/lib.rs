//! The cluster's brain and its server: membership, leases, checks, stitching.
//!
//! [`core`] decides and is pure; [`server`] moves bytes and keeps time. Neither knows what a proof is; [`checker`] does.
#![forbid(unsafe_code)]

pub mod checker;
pub mod core;
pub mod server;

pub use checker::ProofChecker;
pub use server::{
    Coordinator, CoordinatorConfig, CoordinatorError, Handle, JobHandle, JobResult, LocalConfig, Phase, Progress, submit_remote,
};
