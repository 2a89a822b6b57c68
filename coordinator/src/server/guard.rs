//! Bounds on what peers may cost before they are known: how many at once, how often from one address, and that the newest is served.
//!
//! A peer is *half-open* from its first packet until it is known: by certificate, by a token's signature, or as a client. When there are
//! too many, the oldest goes, because an honest peer is known within a few round trips and one that only holds a place is not.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// Half-open peers: each may make us hold one stream of 64 KiB and the state of a handshake, together some 30 MB.
const MAX_HALF_OPEN: usize = 256;
/// Beyond this many, an address must be proved to be the sender's before it costs us any state.
const CROWDED: usize = MAX_HALF_OPEN / 2;
/// Peers from one address that may be unknown or fail in quick succession: a rack behind one NAT that returns at once.
const BURST: f64 = 128.0;
/// Such peers per second in the long run; those that become known are not counted.
const PER_SECOND: f64 = 16.0;
/// Addresses remembered: 100 bytes each.
const MAX_ADDRESSES: usize = 8192;

/// Shared by all arrivals.
#[derive(Debug, Default)]
pub(super) struct Guard(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    half_open: BTreeMap<u64, Arc<Notify>>,
    buckets: BTreeMap<IpAddr, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    seen: Instant,
}

/// A peer that is not known yet. Dropping it gives its place free; what it cost its address stays counted.
#[derive(Debug)]
pub(super) struct Arrival {
    table: Arc<Mutex<Table>>,
    number: u64,
    from: IpAddr,
    pushed_out: Arc<Notify>,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whoever has one IPv6 address has its /64.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

impl Guard {
    /// Whether unproved addresses are to be asked to prove themselves.
    pub(super) fn is_crowded(&self) -> bool {
        lock(&self.0).half_open.len() >= CROWDED
    }

    /// Gives a peer a place; `None` when its address has used up what it may.
    pub(super) fn arrive(&self, address: IpAddr, now: Instant) -> Option<Arrival> {
        let from = origin(address);
        let mut table = lock(&self.0);
        if !table.charge(from, now) {
            return None;
        }
        if table.half_open.len() >= MAX_HALF_OPEN
            && let Some((_, oldest)) = table.half_open.pop_first()
        {
            oldest.notify_one();
        }
        table.next += 1;
        let (number, pushed_out) = (table.next, Arc::new(Notify::new()));
        table.half_open.insert(number, pushed_out.clone());
        Some(Arrival { table: self.0.clone(), number, from, pushed_out })
    }
}

impl Table {
    fn charge(&mut self, from: IpAddr, now: Instant) -> bool {
        if self.buckets.len() >= MAX_ADDRESSES && !self.buckets.contains_key(&from) {
            let recovered = |b: &Bucket| b.at(now) >= BURST;
            self.buckets.retain(|_, b| !recovered(b));
            if self.buckets.len() >= MAX_ADDRESSES {
                // So many addresses at once are one attacker's; forgetting the one seen longest ago favours those still coming.
                let oldest = self.buckets.iter().min_by_key(|(_, b)| b.seen).map(|(address, _)| *address);
                oldest.map(|address| self.buckets.remove(&address));
            }
        }
        let bucket = self.buckets.entry(from).or_insert(Bucket { left: BURST, seen: now });
        let left = bucket.at(now);
        *bucket = Bucket { left: if left >= 1.0 { left - 1.0 } else { left }, seen: now };
        left >= 1.0
    }
}

impl Bucket {
    fn at(&self, now: Instant) -> f64 {
        (self.left + now.saturating_duration_since(self.seen).as_secs_f64() * PER_SECOND).min(BURST)
    }
}

impl Arrival {
    /// Completes when this peer must make room for a newer one.
    pub(super) async fn pushed_out(&self) {
        self.pushed_out.notified().await;
    }

    /// The peer is known: it holds no place here any more and has cost its address nothing.
    pub(super) fn known(self) {
        let mut table = lock(&self.table);
        if let Some(bucket) = table.buckets.get_mut(&self.from) {
            bucket.left = (bucket.left + 1.0).min(BURST);
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        lock(&self.table).half_open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    #[tokio::test]
    async fn the_oldest_makes_room_for_the_newest() {
        let (guard, now) = (Guard::default(), Instant::now());
        let arrivals: Vec<Arrival> = (0..1000).map(|n| guard.arrive(address(n), now).expect("its first")).collect();
        assert_eq!(lock(&guard.0).half_open.len(), MAX_HALF_OPEN);
        assert!(guard.is_crowded());
        for (n, arrival) in arrivals.iter().enumerate() {
            let pushed = tokio::time::timeout(Duration::from_millis(1), arrival.pushed_out()).await.is_ok();
            assert_eq!(pushed, n < 1000 - MAX_HALF_OPEN, "{n}");
        }
        drop(arrivals);
        assert!(lock(&guard.0).half_open.is_empty() && !guard.is_crowded());
    }

    #[test]
    fn one_address_may_fail_so_often_and_no_oftener() {
        let (guard, start) = (Guard::default(), Instant::now());
        let tries = |at: Instant| (0..1000).filter(|_| guard.arrive(address(1), at).is_some()).count();
        assert_eq!(tries(start), BURST as usize);
        assert_eq!(tries(start), 0);
        assert_eq!(tries(start + Duration::from_secs(2)), 2 * PER_SECOND as usize);
        assert!(guard.arrive(address(2), start).is_some(), "others are not concerned");
        for _ in 0..1000 {
            guard.arrive(address(3), start).expect("those that become known cost nothing").known();
        }
        let v6 = |low: u128| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) + low));
        let same = (0..1000).filter(|n| guard.arrive(v6(*n), start).is_some()).count();
        assert_eq!(same, BURST as usize, "a /64 is one peer");
    }

    #[test]
    fn the_table_of_addresses_is_bounded() {
        let (guard, now) = (Guard::default(), Instant::now());
        for n in 0..2 * MAX_ADDRESSES as u32 {
            drop(guard.arrive(address(n), now));
        }
        assert_eq!(lock(&guard.0).buckets.len(), MAX_ADDRESSES);
    }
}
