//! Kernels behind traits: `reference` (obvious) and `simd` (fast), compared by equal bytes.

pub mod proof;
pub mod reference;
pub mod rows;
