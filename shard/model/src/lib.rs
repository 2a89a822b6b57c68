//! From a Hugging Face folder to the integer model that is proven.
//!
//! `import` reads weights and tokenizer, `graph` is the float model, `calibrate` and `quantise` turn it into a descriptor
//! with int8 weights, `check` is what registration relies on, `infer` defines the integer function, `fidelity` says how far
//! it is from the float model. No network beyond `fetch`, no proof.
#![forbid(unsafe_code)]

pub mod bounds;
pub mod calibrate;
pub mod chat;
pub mod check;
pub mod fetch;
pub mod fidelity;
pub mod graph;
pub mod import;
pub mod infer;
pub mod preset;
pub mod quantise;
pub mod recent;
pub mod shaped;
pub mod source;
pub mod store;
pub mod tables;
pub mod tiny;
pub mod toy;
pub mod validate;
pub mod weights;

pub use source::{StoredModel, WeightSource};
pub use weights::{IntegerModel, Matrix, SegmentWeights, Weights};
