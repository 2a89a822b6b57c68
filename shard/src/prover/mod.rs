//! Prover steps over any backend, twins of the verifier's files: same names, same order of steps.

pub mod aggregate;
pub mod commitment;
pub mod final_sumcheck;
pub mod logup;
pub mod opening;
pub mod product;
pub mod segment;

#[cfg(test)]
pub(crate) mod tests;
