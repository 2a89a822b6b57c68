//! The reference backend: obvious, slow, the definition the others are compared with.

mod proof;

/// The reference backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;
