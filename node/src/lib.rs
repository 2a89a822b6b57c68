//! A node process: owns a device, dials the coordinator over QUIC, runs leased work.
//!
//! Takes no cluster decisions. The worker knows no proofs: work is done by an [`Engine`](engine::Engine), bytes are opaque;
//! [`ProverEngine`] is the one that proves.
#![forbid(unsafe_code)]

pub mod address;
pub mod calibration;
pub mod config;
pub mod device;
pub mod engine;
pub mod error;
pub mod identity;
pub mod job_bytes;
mod joint;
pub mod joint_bytes;
pub mod machine;
pub mod metrics;
pub mod model_folder;
pub mod models;
pub mod preempt;
pub mod prover_engine;
pub mod scrape;
pub mod trace;
pub mod traffic;
pub mod transport;
pub mod usage;
pub mod worker;

pub use address::CoordinatorAddress;
pub use config::NodeConfig;
pub use device::{DeviceChoice, DeviceEngine};
pub use engine::{CheckError, Checker, Engine, EngineError, Joined, Pieces, Trial, Verdict, WorkKind, WorkOutput, WorkRequest};
pub use error::NodeError;
pub use identity::{IdentityStore, Token};

pub use model_folder::{ModelFolder, ModelFolderError};
pub use prover_engine::ProverEngine;
pub use worker::{ExitReason, Leave, Node};

/// The kernels that nodes of this release compute with.
pub type NodeBackend = obelysk_shard::kernels::simd::Simd;
/// The hash suite of this release's proofs.
pub type NodeSuite = obelysk_protocol::transcript::Blake2s;
