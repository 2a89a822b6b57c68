//! A node process: owns a device, dials the coordinator over QUIC, runs leased work.
//!
//! Takes no cluster decisions and knows no proofs: work is done by an [`Engine`](engine::Engine), bytes are opaque.
#![forbid(unsafe_code)]

pub mod address;
pub mod config;
pub mod engine;
pub mod error;
pub mod transport;
pub mod worker;

pub use address::CoordinatorAddress;
pub use config::NodeConfig;
pub use engine::{CheckError, Checker, Engine, EngineError, Pieces, Verdict, WorkKind, WorkOutput, WorkRequest};
pub use error::NodeError;

pub use worker::{ExitReason, Node};
