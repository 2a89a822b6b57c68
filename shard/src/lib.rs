//! Proving segments on one machine: kernels, witness, prover steps.
