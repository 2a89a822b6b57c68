//! The verifier, one protocol step per file. It is the specification: total on any bytes, no threads, no hidden state.

pub mod aggregate;
pub mod bytes;
pub mod code;
pub mod error;
pub mod final_sumcheck;
pub mod logup;
pub mod merkle;
pub mod mode;
pub mod opening;
pub mod plan;
pub mod points;
pub mod product;
pub mod proof;
pub mod registered;
pub mod segment;
pub mod soundness;
pub mod statement;
pub mod sumcheck;

pub use error::VerifyError;
