//! How much may be under way: windows by a connection's measured round trip, packets as large as the path takes, socket buffers for bursts.
//!
//! Knows no setting: a line's rate is taken for the fastest that is worth it, its round trip is measured, and memory is bounded.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::udp::UdpSocketState;
use quinn::{
    AckFrequencyConfig, Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt, default_runtime,
};

use crate::error::TransportError;

/// The rate that windows are made for: 10 Gbit/s.
const BYTES_PER_S: u64 = 1_250_000_000;
/// Least window of a connection: on a local network, what arrives while a chunk is checked and written.
const LEAST_WINDOW: u64 = 8 << 20;
/// Most: 10 Gbit/s around the world would be more than a process should keep for one peer.
const MOST_WINDOW: u64 = 256 << 20;
/// What all peers of a server together may have beyond the least windows, both directions counted: eight lines around the world, or eighty
/// across a continent. A round trip can be feigned, so no sum of windows may grow with the number of peers.
const WIDE_BYTES: u64 = 4 << 30;
/// Largest UDP payload that is tried. Ten such packets are what goes to the kernel at once, which takes 65,507 bytes; with larger ones
/// nothing would leave in batches any more.
const MOST_PAYLOAD: u16 = 6500;
/// Bytes that may leave before anything is known of the path. They are spread over a round trip, and three doublings of 50 ms are saved.
const FIRST_WINDOW: u64 = 128 << 10;
/// Packets that one acknowledgement is for; by default two, of which a fast sender gets more than it can read.
const PACKETS_PER_ACK: u32 = 10;
/// Asked of the kernel, which gives what `net.core.rmem_max` and `wmem_max` allow: the packets of a few milliseconds.
const SOCKET_BYTES: usize = 8 << 20;

/// What every connection begins with. A stream may fill its connection's window, which [`adapt`] sets.
pub(super) fn tune(config: &mut TransportConfig) {
    let mut congestion = CubicConfig::default();
    congestion.initial_window(FIRST_WINDOW);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(PACKETS_PER_ACK));
    config
        .stream_receive_window(window(MOST_WINDOW))
        .receive_window(window(LEAST_WINDOW))
        .send_window(LEAST_WINDOW)
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(congestion));
}

/// Tries packets as large as they may get. On an ordinary path a dozen of them vanish before the search comes down to what it carries, so
/// this is for connections that move blobs.
pub(super) fn enlarge(config: &mut TransportConfig) {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MOST_PAYLOAD);
    config.mtu_discovery_config(Some(mtu));
}

/// Sets a connection's windows by its round trip so far.
pub(super) fn adapt(connection: &Connection) {
    let bytes = bytes_under_way(connection.rtt());
    connection.set_receive_window(window(bytes));
    connection.set_send_window(bytes);
}

/// As [`adapt`], out of what all connections share: where that is spent, the least windows remain.
pub(super) fn adapt_within(connection: &Connection) -> Windows {
    static WIDE: AtomicU64 = AtomicU64::new(WIDE_BYTES);
    let windows = Windows::lend(&WIDE, bytes_under_way(connection.rtt()));
    connection.set_receive_window(window(windows.bytes()));
    connection.set_send_window(windows.bytes());
    windows
}

/// What a connection's windows take of what all share, until this is dropped.
#[derive(Debug)]
#[must_use = "dropped, the memory counts as free while the connection still uses it"]
pub struct Windows {
    left: &'static AtomicU64,
    lent: u64,
}

impl Windows {
    fn lend(left: &'static AtomicU64, wanted: u64) -> Self {
        let mut lent = 0;
        let more = 2 * wanted.saturating_sub(LEAST_WINDOW);
        let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            lent = more.min(left);
            Some(left - lent)
        });
        Self { left, lent }
    }

    /// Of each direction.
    const fn bytes(&self) -> u64 {
        LEAST_WINDOW + self.lent / 2
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.left.fetch_add(self.lent, Ordering::Relaxed);
    }
}

/// Twice what is on the line, so that neither side waits for the other's word that it may go on.
fn bytes_under_way(round_trip: Duration) -> u64 {
    let on_the_line = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX).saturating_mul(BYTES_PER_S / 1_000_000);
    on_the_line.saturating_mul(2).clamp(LEAST_WINDOW, MOST_WINDOW)
}

fn window(bytes: u64) -> VarInt {
    VarInt::from_u64(bytes).unwrap_or(VarInt::MAX)
}

/// An endpoint on a socket of its own with buffers for bursts.
pub(super) fn endpoint(local: SocketAddr, server: Option<quinn::ServerConfig>) -> Result<Endpoint, TransportError> {
    let failed = |e: std::io::Error| TransportError::Setup(format!("{local}: {e}"));
    let socket = UdpSocket::bind(local).map_err(failed)?;
    let state = UdpSocketState::new((&socket).into()).map_err(failed)?;
    // A kernel that gives less costs speed, not function.
    let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BYTES);
    let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BYTES);
    let mut config = EndpointConfig::default();
    // Otherwise peers are told that nothing larger than an Ethernet frame is wanted.
    let failed_size = |e: quinn::ConfigError| TransportError::Setup(e.to_string());
    config.max_udp_payload_size(MOST_PAYLOAD).map_err(failed_size)?;
    let runtime = default_runtime().ok_or_else(|| TransportError::Setup("no tokio runtime runs".to_owned()))?;
    Endpoint::new(config, server, socket, runtime).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_the_round_trip_within_bounds() {
        let at = |ms| bytes_under_way(Duration::from_millis(ms));
        assert_eq!(
            [at(0), at(1), at(50), at(100), at(5000)],
            [LEAST_WINDOW, LEAST_WINDOW, 125_000_000, 250_000_000, MOST_WINDOW]
        );
    }
    #[test]
    fn all_windows_together_are_bounded_whatever_round_trips_are_feigned() {
        static LEFT: AtomicU64 = AtomicU64::new(WIDE_BYTES);
        let far: Vec<Windows> = (0..128).map(|_| Windows::lend(&LEFT, MOST_WINDOW)).collect();
        let beyond: u64 = far.iter().map(|windows| 2 * (windows.bytes() - LEAST_WINDOW)).sum();
        assert_eq!(beyond, WIDE_BYTES);
        assert_eq!((far[0].bytes(), far[127].bytes()), (MOST_WINDOW, LEAST_WINDOW));
        drop(far);
        assert_eq!(Windows::lend(&LEFT, MOST_WINDOW).bytes(), MOST_WINDOW);
        assert_eq!(Windows::lend(&LEFT, LEAST_WINDOW).bytes(), LEAST_WINDOW);
    }
}
