//! The verifier, one protocol step per file. It is the specification: total on any bytes, no threads, no hidden state.

pub mod bytes;
pub mod code;
pub mod error;
pub mod final_sumcheck;
pub mod logup;
pub mod merkle;
pub mod opening;
pub mod plan;
pub mod points;
pub mod product;
pub mod segment;
pub mod sumcheck;

pub use error::VerifyError;
