//! What all parties agree on, byte for byte: field, transcript, circuit, proof format, verifier.
//!
//! No I/O, clock, randomness, threads or `unsafe`. The verifier is the specification; provers are its twins in `obelysk-shard`.
#![forbid(unsafe_code)]

pub mod circuit;
pub mod field;
pub mod transcript;
pub mod verifier;
pub mod wire;

/// Version of the protocol: absorbed into every statement and fork, written into every proof.
pub const PROTOCOL_VERSION: u32 = 2;
