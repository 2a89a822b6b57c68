//! From a model's descriptor to segments, chips and wiring, and the interval check that refuses any that could wrap mod p.

pub mod descriptor;
pub mod encode;
