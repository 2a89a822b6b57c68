//! Kernels on NVIDIA cards: [`CommitKernels`](obelysk_shard::kernels::CommitKernels) and
//! [`ProofKernels`](obelysk_shard::kernels::proof::ProofKernels) over a small trait for a device.
//!
//! [`card`] is a card, through the driver and its run-time compiler, both loaded when asked for: everything builds and starts
//! without them. [`host`] compiles the same kernels for the processor and runs them thread by thread; tests compare it, by equal
//! bytes, with the backends of `obelysk-shard`. The only crate that calls foreign code; no kernel sees a transcript.

#![deny(clippy::undocumented_unsafe_blocks)]

pub mod backend;
pub mod card;
pub mod device;
pub mod host;
pub mod source;

pub use backend::{CudaBackend, compared};
pub use device::{Device, DeviceError, answers, attempt};
