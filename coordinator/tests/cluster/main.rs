//! The cluster as a whole, with a toy engine in place of the prover: in virtual time against the brain, and over real sockets.

mod fleet;
mod joining;
mod loopback;
mod members;
mod process;
mod proxy;
mod simulator;
mod simulator_fleet;
mod toy;
