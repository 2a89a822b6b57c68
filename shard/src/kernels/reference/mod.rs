//! The obvious implementation of every kernel: one thread, one element at a time. It defines what the others return.

pub(crate) mod code;
mod commit;
mod proof;

/// The reference backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

pub use commit::BaseWords;
