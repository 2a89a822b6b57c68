//! What the fuzz targets do with their bytes, one function per target: never a panic, and whatever is taken is written again as it was read.
//!
//! Each returns whether the bytes were taken. `coordinator/tests/fuzz.rs` includes this file, replays the committed seeds with it in
//! every test run, and writes them; the targets in `fuzz_targets` explore from there.

mod jobs;
mod joining;
mod joint;
mod proofs;
mod wire;

pub use jobs::{DECODER, ENCODER, Site, jobs, results};
pub use joining::{certificates, state, tokens};
pub use joint::{JOINT, joint};
pub use proofs::{MODES, honest_header, proof, registered};
pub use wire::{frames, messages};

/// A target and its name, which is that of its folder of seeds.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// Every target.
pub const TARGETS: [Target; 10] = [
    ("tokens", tokens),
    ("certificates", certificates),
    ("state", state),
    ("frames", frames),
    ("messages", messages),
    ("jobs", jobs),
    ("results", results),
    ("joint", joint),
    ("registered", registered),
    ("proof", proof),
];
