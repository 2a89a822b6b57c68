//! From a model's descriptor to segments, chips and wiring, and the interval check that refuses any that could wrap mod p.
//!
//! The cut into segments belongs to the model: `embed`, one per layer, `head`.

pub mod attention;
pub mod builder;
pub mod decoder;
pub mod descriptor;
pub mod encode;
pub mod encoder;
mod exp;
pub mod expr;
pub mod input;
pub mod linear;
pub mod norm;
pub mod rotary;
mod rotations;
pub mod segment;
pub mod shape;
pub mod table;
pub mod wide;
mod wiring;

pub use builder::BuildError;
pub use encoder::embed_rows;
pub use exp::exp_tables;
pub use input::{PublicInput, Sequence};
pub use segment::Circuit;

use attention::ExpTables;
use descriptor::Descriptor;

/// Number of segments of a model.
#[must_use]
pub fn segment_count(d: &Descriptor) -> usize {
    d.layer_count() + 2
}

/// Builds segment `index` for a public input. Circuits built with the same `exp` share their public tables.
///
/// # Errors
/// A descriptor whose numbers do not fit together or whose equations could wrap mod p.
pub fn build(d: &Descriptor, exp: &ExpTables, input: &PublicInput, index: usize) -> Result<Circuit, BuildError> {
    match d {
        Descriptor::Encoder(e) => encoder::build(e, exp, input, index),
        Descriptor::Decoder(d) => decoder::build(d, exp, input, index),
    }
}
