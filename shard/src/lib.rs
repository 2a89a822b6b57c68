//! Everything needed to prove segments on one machine: kernels, witness, prover steps.
#![deny(unsafe_code)]

pub mod kernels;
pub mod prover;
pub mod witness;
