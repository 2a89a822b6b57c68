//! Bytes that passed over connections, those that ended included: what went over the wire, headers and repeats too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::Connection;

/// Sums over all connections of a process.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    live: BTreeMap<usize, Connection>,
    ended: Bytes,
}

/// Bytes by direction, as this process sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From peers.
    pub received: u64,
    /// To peers.
    pub sent: u64,
}

impl Bytes {
    fn add(&mut self, connection: &Connection) {
        let stats = connection.stats();
        self.received = self.received.saturating_add(stats.udp_rx.bytes);
        self.sent = self.sent.saturating_add(stats.udp_tx.bytes);
    }
}

/// Counts its connection until it is dropped.
#[derive(Debug)]
#[must_use = "the connection is counted as long as this is held"]
pub struct Counted(Traffic, usize);

impl Traffic {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection from now on.
    pub fn count(&self, connection: &Connection) -> Counted {
        let id = connection.stable_id();
        self.inner().live.insert(id, connection.clone());
        Counted(self.clone(), id)
    }

    /// All bytes so far.
    #[must_use]
    pub fn total(&self) -> Bytes {
        let inner = self.inner();
        let mut sum = inner.ended;
        inner.live.values().for_each(|connection| sum.add(connection));
        sum
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        if let Some(connection) = inner.live.remove(&self.1) {
            inner.ended.add(&connection);
        }
    }
}
