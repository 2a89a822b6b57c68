//! The prover: twins of the verifier's steps, over any backend.

pub mod final_sumcheck;
pub mod logup;
pub mod product;
pub mod segment;
