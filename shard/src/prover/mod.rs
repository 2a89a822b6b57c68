//! Prover steps, twins of the verifier's files: same names, same step numbers.

pub mod commitment;
pub mod opening;

#[cfg(test)]
pub(crate) mod tests;
