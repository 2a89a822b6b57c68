//! Forging provers: each cheats in exactly one place and is consistent with its cheat everywhere else; the verifier must
//! name the step at which it is caught. Also: witnesses are unique, and no byte of a proof may change.
//!
//! `harness` makes whole proofs of false witnesses; `equations` says, independently of the verifier, what a witness breaks.

mod aggregated;
mod aggregated_forger;
mod aggregated_order;
mod bytes;
mod carried;
mod decoder_circuits;
mod decoder_enumerate;
mod decoder_forged_attention;
mod decoder_forged_head;
mod decoder_forged_layer;
mod decoder_forged_statement;
mod decoder_forger;
mod decoder_wild;
mod enumerate;
mod equations;
mod forged_attention;
mod forged_linear;
mod forged_lookups;
mod forged_norm;
mod forged_statement;
mod forged_wiring;
mod harness;
mod manifest;
mod registration;
mod tail;
mod wide_norm;
