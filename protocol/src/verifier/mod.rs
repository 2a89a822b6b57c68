//! The verifier: the specification of the protocol, one step per file. Total on any proof bytes; no prover code.

pub mod error;
pub mod final_sumcheck;
pub mod logup;
pub mod plan;
pub mod points;
pub mod product;
pub mod segment;
pub mod sumcheck;

pub use error::VerifyError;
