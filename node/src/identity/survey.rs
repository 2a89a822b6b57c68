//! What a path to a coordinator is like: who answers, how fast, and how large a packet may be.

use std::time::Duration;

use obelysk_protocol::wire::{ALPN_JOIN, Message, Probe, Probed};

use super::{ask, unix_now};
use crate::address::CoordinatorAddress;
use crate::error::TransportError;
use crate::transport::{CLOSE_DONE, connect_alpn};

/// Packets that QUIC always needs; anything smaller does not connect at all.
pub const LEAST_MTU: u16 = 1200;
/// How long the search for the largest packet may take: a handful of probes, each lost one costs a retransmission time.
const SEARCH: Duration = Duration::from_secs(4);
/// The search is over when nothing grew for this long.
const SETTLED: Duration = Duration::from_millis(600);
const LOOK: Duration = Duration::from_millis(50);

/// A path as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// What the coordinator said of itself.
    pub probed: Probed,
    /// Smallest round trip.
    pub rtt: Duration,
    /// Largest UDP payload that arrived.
    pub mtu: u16,
    /// Larger packets that were tried and lost.
    pub lost_probes: u64,
}

/// Asks a coordinator for its clock, cluster and release, and then finds out what the path carries. Shows nothing of this machine.
///
/// # Errors
/// [`TransportError`] as for any connection.
pub async fn survey(address: &CoordinatorAddress) -> Result<Survey, TransportError> {
    let (endpoint, connection) = connect_alpn(address, None, &[ALPN_JOIN]).await?;
    let answer = ask(&connection, &Message::Probe(Probe { unix_s: unix_now() })).await;
    if answer.is_ok() {
        let (started, mut grew, mut largest) = (tokio::time::Instant::now(), tokio::time::Instant::now(), 0);
        while started.elapsed() < SEARCH && grew.elapsed() < SETTLED && connection.close_reason().is_none() {
            let now = connection.stats().path.current_mtu;
            if now > largest {
                (largest, grew) = (now, tokio::time::Instant::now());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    let path = connection.stats().path;
    connection.close(CLOSE_DONE, b"done");
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    match answer? {
        Message::Probed(probed) => {
            Ok(Survey { probed, rtt: path.min_rtt, mtu: path.current_mtu, lost_probes: path.lost_plpmtud_probes })
        }
        other => Err(TransportError::Unexpected { expected: "an answer to a probe", got: other.id() }),
    }
}
