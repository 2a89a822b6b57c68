//! Everything needed to prove segments on one machine: kernels, witness, prover steps.

pub mod kernels;
pub mod prover;
pub mod witness;
