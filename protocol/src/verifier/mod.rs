//! The verifier, one protocol step per file. It is the specification: total on any bytes, no threads, no hidden state.

pub mod bytes;
pub mod code;
pub mod merkle;
pub mod opening;
