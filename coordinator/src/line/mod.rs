//! Lines with faults, for tests and benchmarks: what passes takes time, gets lost, arrives twice or out of order, or has a rate.
//!
//! A packet's fate follows from seed, direction and its number, so that a run can be had again as far as the kernel sends the same packets.
//! Holds a bounded number of bytes and drops what exceeds it, as a router does. Knows nothing of what it carries.

mod lane;
mod tcp;
mod udp;

use std::time::Duration;

pub use lane::Tally;
pub use tcp::TcpLine;
pub use udp::Line;

/// What a line does to what passes, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Chooses which packets are hit.
    pub seed: u64,
    /// Time that everything takes.
    pub delay: Duration,
    /// Up to so much more, by chance: packets overtake each other.
    pub jitter: Duration,
    /// Of ten thousand packets, those that never arrive.
    pub lost: u32,
    /// Of ten thousand packets, those that arrive twice.
    pub copied: u32,
    /// Bytes per second; 0: as fast as this machine carries them.
    pub rate: u64,
}

impl Faults {
    /// Nothing but time.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Whether packets of one batch have different fates.
    const fn by_packet(&self) -> bool {
        self.lost > 0 || self.copied > 0 || !self.jitter.is_zero()
    }
}
