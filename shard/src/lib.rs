//! Everything needed to prove segments on one machine: kernels, witness, prover steps, registration.
#![deny(unsafe_code)]

pub mod ceilings;
pub mod hidden;
pub mod job;
pub mod kernels;
pub mod local;
pub mod prover;
pub mod registration;
pub mod witness;
