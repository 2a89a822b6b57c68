//! One direction of a line: what came and is not due yet. No sockets, no clock of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Faults;

/// Bytes under way in one direction: 10 Gbit/s for 200 ms. What exceeds it is lost.
pub(super) const MAX_HELD_BYTES: usize = 256 << 20;
/// What waits longer than this for its turn at the line's rate is lost: buffers of routers are of that order.
pub(super) const MAX_QUEUE: Duration = Duration::from_millis(100);
/// Chances are out of this.
const OF: u64 = 10_000;

/// Packets of one length, the last one perhaps shorter, and where they go.
#[derive(Debug, Clone)]
pub(super) struct Packets<T> {
    pub bytes: Vec<u8>,
    pub stride: usize,
    pub to: T,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets that came.
    pub came: u64,
    /// Of those, lost by chance or because too many were waiting.
    pub lost: u64,
    /// Sent twice.
    pub copied: u64,
    /// Sent before one that had come earlier.
    pub overtook: u64,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Lane<T> {
    faults: Faults,
    /// Tells the two directions' chances apart.
    way: u64,
    /// When the last byte so far has left at the line's rate.
    free: Option<Instant>,
    waiting: BTreeMap<(Instant, u64), Packets<T>>,
    held: usize,
    order: u64,
    last_left: u64,
    pub tally: Tally,
}

impl<T: Clone> Lane<T> {
    pub(super) fn new(faults: Faults, way: u64) -> Self {
        Self { faults, way, free: None, waiting: BTreeMap::new(), held: 0, order: 0, last_left: 0, tally: Tally::default() }
    }

    /// Takes what came.
    pub(super) fn take(&mut self, now: Instant, packets: Packets<T>) {
        if !self.faults.by_packet() {
            self.tally.came += packets.bytes.len().div_ceil(packets.stride.max(1)) as u64;
            return self.hold(now, Duration::ZERO, packets);
        }
        for bytes in packets.bytes.chunks(packets.stride.max(1)) {
            self.tally.came += 1;
            let chance = |salt: u64| mixed(self.faults.seed ^ mixed(self.way ^ mixed(self.tally.came ^ (salt << 56))));
            if chance(1) % OF < u64::from(self.faults.lost) {
                self.tally.lost += 1;
                continue;
            }
            let more = |salt: u64| self.faults.jitter.mul_f64((chance(salt) % OF) as f64 / OF as f64);
            let (first, second) = (more(2), more(3));
            let copied = chance(4) % OF < u64::from(self.faults.copied);
            let packet = Packets { bytes: bytes.to_vec(), stride: bytes.len(), to: packets.to.clone() };
            if copied {
                self.tally.copied += 1;
                self.hold(now, second, packet.clone());
            }
            self.hold(now, first, packet);
        }
    }

    fn hold(&mut self, now: Instant, more: Duration, packets: Packets<T>) {
        let mut leaves = now;
        if self.faults.rate > 0 {
            let begins = self.free.map_or(now, |free| free.max(now));
            let takes = Duration::from_secs_f64(packets.bytes.len() as f64 / self.faults.rate as f64);
            if begins - now > MAX_QUEUE {
                self.tally.lost += packets.bytes.len().div_ceil(packets.stride.max(1)) as u64;
                return;
            }
            leaves = begins + takes;
            self.free = Some(leaves);
        }
        if self.held + packets.bytes.len() > MAX_HELD_BYTES {
            self.tally.lost += packets.bytes.len().div_ceil(packets.stride.max(1)) as u64;
            return;
        }
        self.held += packets.bytes.len();
        self.order += 1;
        self.waiting.insert((leaves + self.faults.delay + more, self.order), packets);
    }

    /// The next that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Packets<T>> {
        let first = self.waiting.first_entry().filter(|first| first.key().0 <= now)?;
        let ((_, order), packets) = first.remove_entry();
        self.held -= packets.bytes.len();
        self.tally.overtook += u64::from(order < self.last_left);
        self.last_left = self.last_left.max(order);
        Some(packets)
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }
}

/// A number that looks like chance: the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
const fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Order and number of what arrives of `n` packets that come one a microsecond.
    fn arrived(faults: Faults, n: u64) -> (Vec<u64>, Tally) {
        let (start, mut lane, mut out) = (Instant::now(), Lane::new(faults, 0), Vec::new());
        for i in 0..n {
            lane.take(start + Duration::from_micros(i), Packets { bytes: i.to_le_bytes().to_vec(), stride: 8, to: () });
        }
        while let Some(due) = lane.next() {
            let packet = lane.due(due).expect("due");
            out.push(u64::from_le_bytes(packet.bytes.try_into().expect("eight")));
        }
        assert_eq!(lane.held, 0);
        (out, lane.tally)
    }

    #[test]
    fn faults_come_as_often_as_asked_and_the_same_for_a_seed() {
        let faults = Faults { seed: 7, lost: 1000, copied: 500, jitter: Duration::from_micros(50), ..Faults::default() };
        let (first, tally) = arrived(faults, 20_000);
        assert_eq!(first, arrived(faults, 20_000).0);
        assert_ne!(first, arrived(Faults { seed: 8, ..faults }, 20_000).0);
        assert!(tally.lost.abs_diff(2000) < 200 && tally.copied.abs_diff(900) < 130 && tally.overtook > 5000, "{tally:?}");
        assert_eq!(first.len() as u64, 20_000 - tally.lost + tally.copied);
    }

    #[test]
    fn without_faults_all_arrive_in_order_and_late() {
        let (all, tally) = arrived(Faults::delayed(Duration::from_millis(50)), 1000);
        assert_eq!((all, tally), ((0..1000).collect(), Tally { came: 1000, ..Tally::default() }));
        let (start, mut lane) = (Instant::now(), Lane::new(Faults::delayed(Duration::from_millis(50)), 0));
        lane.take(start, Packets { bytes: vec![0; 9], stride: 4, to: () });
        assert!(lane.tally.came == 3 && lane.due(start + Duration::from_millis(49)).is_none());
        assert_eq!(lane.due(start + Duration::from_millis(50)).expect("due").bytes.len(), 9, "a batch stays one");
    }

    /// At a megabyte a second, with a buffer of a tenth of a second, a burst of a second loses all but the buffer.
    #[test]
    fn a_rate_spreads_and_drops() {
        let mut lane = Lane::new(Faults { rate: 1_000_000, ..Faults::default() }, 0);
        let start = Instant::now();
        for _ in 0..1000 {
            lane.take(start, Packets { bytes: vec![0; 1000], stride: 1000, to: () });
        }
        assert_eq!(lane.tally.lost, 899);
        let mut last = start;
        while let Some(due) = lane.next() {
            assert!(lane.due(due).is_some());
            last = due;
        }
        assert!((last - start).abs_diff(Duration::from_millis(101)) < Duration::from_micros(10));
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut lane = Lane::new(Faults::delayed(Duration::from_secs(1)), 0);
        let part = MAX_HELD_BYTES / 4;
        (0..6).for_each(|_| lane.take(Instant::now(), Packets { bytes: vec![0; part], stride: part, to: () }));
        assert_eq!((lane.held, lane.tally.lost), (MAX_HELD_BYTES, 2));
    }
}
