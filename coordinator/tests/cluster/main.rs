//! The cluster as a whole, with a toy engine in place of the prover: in virtual time against the brain, and over real sockets.

mod aggregated;
#[path = "../support/bucket_server.rs"]
mod bucket_server;
mod fleet;
mod joining;
mod leading;
mod loopback;
mod members;
mod observed;
mod outlive;
mod process;
mod restarts;
mod simulator;
mod simulator_faults;
mod simulator_fleet;
mod toy;
mod transfer;
