//! The authority of a cluster: who may join, who is a member, who was put out.
//!
//! [`Authority`] issues certificates, [`Registry`] decides and is pure, [`Admissions`] keeps both on a [`Storage`] and is what the server
//! asks. Nothing here moves bytes over a network.

mod admissions;
mod authority;
mod registry;
mod storage;

pub use admissions::{Admissions, TokenOrder};
pub use authority::Authority;
pub(crate) use authority::SERVER_LIFE_S;
pub use registry::{AdmissionError, MAX_SKEW_S, Member, Registry, TokenRecord};
pub use storage::{Document, FileStorage, MemoryStorage, Storage, StorageError};

#[cfg(test)]
mod tests;
