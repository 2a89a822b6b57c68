//! Several coordinators as one: raft over QUIC and a file.
//!
//! [`core`] decides and is pure; [`wire`] is its bytes; [`storage`] keeps its log.

mod admissible;
pub mod core;
pub mod log;
mod logger;
pub mod member;
pub mod storage;
pub mod wire;

pub use admissible::Refusal;
