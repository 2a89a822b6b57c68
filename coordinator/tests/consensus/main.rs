//! Several coordinators as one: lives of the pure member in virtual time, real members over loopback, and peers that mean harm.

mod board;
mod hostile;
mod loopback;
mod seat;
mod simulator;
