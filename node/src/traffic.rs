//! Bytes that passed over connections, those that ended included: what went over the wire, headers and repeats too; and, of this process as a
//! whole, the bytes of frames by class: chunks of blobs, and everything else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use obelysk_protocol::wire::MessageId;
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
    /// Both directions.
    #[must_use]
    pub const fn both(self) -> u64 {
        self.received.saturating_add(self.sent)
    }

    const fn since(self, then: Self) -> Self {
        Self { received: self.received.saturating_sub(then.received), sent: self.sent.saturating_sub(then.sent) }
    }

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

/// Bytes of frames, headers included, without what packets and their repetition cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frames {
    /// Messages: what a cluster says beside the data it moves.
    pub control: Bytes,
    /// Chunks of blobs and lists of their digests.
    pub bulk: Bytes,
}

/// Sent control, received control, sent bulk, received bulk. Of the process and not of a connection: frames are written to any stream.
static FRAMES: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// All frames of this process so far.
#[must_use]
pub fn frames() -> Frames {
    let [sent, received, bulk_sent, bulk_received] = FRAMES.each_ref().map(|count| count.load(Ordering::Relaxed));
    Frames { control: Bytes { received, sent }, bulk: Bytes { received: bulk_received, sent: bulk_sent } }
}

pub(crate) fn frame_sent(message: MessageId, bytes: usize) {
    count(message, 0, bytes);
}

pub(crate) fn frame_received(message: MessageId, bytes: usize) {
    count(message, 1, bytes);
}

fn count(message: MessageId, direction: usize, bytes: usize) {
    let class = if message == MessageId::Chunk { 2 } else { 0 };
    FRAMES[class + direction].fetch_add(bytes as u64, Ordering::Relaxed);
}

impl Frames {
    /// What passed since then.
    #[must_use]
    pub const fn since(self, then: Self) -> Self {
        Self { control: self.control.since(then.control), bulk: self.bulk.since(then.bulk) }
    }

    /// Class, direction and count of each, as metrics label them.
    #[must_use]
    pub const fn labelled(self) -> [(&'static str, &'static str, u64); 4] {
        let (control, bulk) = (self.control, self.bulk);
        [
            ("control", "received", control.received),
            ("control", "sent", control.sent),
            ("bulk", "received", bulk.received),
            ("bulk", "sent", bulk.sent),
        ]
    }
}
