//! The fault matrix with real processes on real network interfaces: every machine is a network namespace with a cable of its own.
//! In every scenario the proof has the bytes of an undisturbed run. One file per scenario; `lab.rs` and `fleet.rs` are the stage.
//!
//! Needs root and iproute2; without them each scenario says that it was skipped.

mod cable_pulled;
mod coordinators;
mod council;
mod flapping;
mod fleet;
mod lab;
mod node_killed;
mod node_stopped;
mod one_way;
mod slow_line;
