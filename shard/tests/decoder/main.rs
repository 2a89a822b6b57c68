//! Toy decoders through witness, prover and verifier: every equation on its own, whole proofs, false completions.

#[path = "../../../tests/soundness/equations.rs"]
mod equations;
mod forged;
mod forger;
mod place;
mod segments;
mod tiles;
mod toys;
mod whole;
mod wide;
