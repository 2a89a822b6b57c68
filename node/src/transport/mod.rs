//! QUIC endpoints, pinned keys, framed streams, bulk transfers. Shared by node, coordinator and client; takes no decisions.

mod bulk;
mod frames;
mod tls;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use bulk::{answer_blob, fetch, receive_blob, send_chunks, store};
pub use frames::{read_message, write_message};
pub use quinn;
pub use tls::{Fingerprint, ServerIdentity};

use crate::address::CoordinatorAddress;
use crate::error::TransportError;
use quinn::{ConnectionError, Endpoint, IdleTimeout, TransportConfig, VarInt};

/// Below the 30 s at which common NATs forget a UDP flow, with room for two lost packets.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Three keep-alives without an answer: the peer is gone.
pub const IDLE_TIMEOUT_MS: u32 = 30_000;
/// Connecting, including the handshake: several round trips around the world.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams a peer may hold open: a control stream and a few transfers.
pub const MAX_STREAMS: u32 = 32;
/// QUIC close code of an orderly end.
pub const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// QUIC close code after a protocol violation.
pub const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(1);
/// TLS alert `no_application_protocol`, with which QUIC ends a handshake without common ALPN name.
const ALERT_NO_ALPN: u8 = 120;

/// Opens the coordinator's endpoint.
///
/// # Errors
/// [`TransportError::Setup`]: the identity cannot be used or the address cannot be bound.
pub fn listen(address: SocketAddr, identity: &ServerIdentity, idle_timeout_ms: u32) -> Result<Endpoint, TransportError> {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls::server_config(identity)?));
    config.transport_config(Arc::new(transport_config(idle_timeout_ms)));
    Endpoint::server(config, address).map_err(|e| TransportError::Setup(format!("{address}: {e}")))
}

/// Connects to a coordinator and checks its pinned key. The endpoint must be kept as long as the connection.
///
/// # Errors
/// [`TransportError`]: no such host, wrong key, no common version, or nobody there.
pub async fn connect(address: &CoordinatorAddress) -> Result<(Endpoint, quinn::Connection), TransportError> {
    let (crypto, seen) = tls::client_config(address.fingerprint, &[obelysk_protocol::wire::ALPN])?;
    connect_with(address, crypto, &seen).await
}

/// As [`connect`], offering other ALPN names: for tests of version skew.
///
/// # Errors
/// As [`connect`].
pub async fn connect_alpn(address: &CoordinatorAddress, alpn: &[&[u8]]) -> Result<(Endpoint, quinn::Connection), TransportError> {
    let (crypto, seen) = tls::client_config(address.fingerprint, alpn)?;
    connect_with(address, crypto, &seen).await
}

async fn connect_with(
    address: &CoordinatorAddress,
    crypto: quinn::crypto::rustls::QuicClientConfig,
    seen: &tls::SeenKey,
) -> Result<(Endpoint, quinn::Connection), TransportError> {
    let remote = resolve(address).await?;
    let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED.octets(), 0).into() };
    let endpoint = Endpoint::client(local).map_err(|e| TransportError::Setup(e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(IDLE_TIMEOUT_MS)));
    let connecting = endpoint.connect_with(config, remote, tls::SERVER_NAME).map_err(|e| TransportError::Setup(e.to_string()))?;
    let connection = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Err(_) => return Err(TransportError::Timeout(CONNECT_TIMEOUT.as_secs())),
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(seen.mismatch(address.fingerprint).unwrap_or_else(|| lost(&error))),
    };
    Ok((endpoint, connection))
}

async fn resolve(address: &CoordinatorAddress) -> Result<SocketAddr, TransportError> {
    let failed = |cause: String| TransportError::Resolve { host: address.host.clone(), cause };
    let place = format!("{}:{}", address.host, address.port);
    let mut found = tokio::net::lookup_host(place).await.map_err(|e| failed(e.to_string()))?;
    found.next().ok_or_else(|| failed("no address".to_owned()))
}

/// What a QUIC error means to us.
#[must_use]
pub fn lost(error: &ConnectionError) -> TransportError {
    let no_alpn = quinn::TransportErrorCode::crypto(ALERT_NO_ALPN);
    match error {
        ConnectionError::VersionMismatch => TransportError::NoCommonVersion,
        ConnectionError::TransportError(e) if e.code == no_alpn => TransportError::NoCommonVersion,
        ConnectionError::ConnectionClosed(e) if e.error_code == no_alpn => TransportError::NoCommonVersion,
        ConnectionError::ApplicationClosed(close) => TransportError::Lost(String::from_utf8_lossy(&close.reason).into_owned()),
        other => TransportError::Lost(other.to_string()),
    }
}

fn transport_config(idle_timeout_ms: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(KEEP_ALIVE.min(Duration::from_millis(u64::from(idle_timeout_ms) / 3))))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_timeout_ms))))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    config
}
