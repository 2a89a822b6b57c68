//! QUIC endpoints, pinned keys, framed streams, bulk transfers. Shared by node, coordinator and client; takes no decisions.

mod bulk;
mod frames;
mod link;
mod parts;
mod peer;
mod resume;
mod tls;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use bulk::{answer_blob, fetch, receive_blob, send_chunks, store};
pub use frames::{read_message, read_message_within, write_message};
pub use link::Windows;
pub use parts::{Parts, Whole, WholeFile};
pub use peer::{connect_peer, listen_peers};
pub use quinn;
pub use resume::{BlobSource, InFile, InMemory, Later, accept_offer, answer_fetch, fetch_part, offer, outline_of_file};
pub use rustls;
pub use tls::{ClientIdentity, Fingerprint, SERVER_NAME, ServerTls, public_key};

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
/// Bytes that a peer which is not known yet may have under way to a server: its first message. [`open_up`] lifts it.
const UNKNOWN_WINDOW: u32 = 64 << 10;
/// Bytes that a client may have under way: twice the largest specification.
const CLIENT_WINDOW: u32 = 2 << 20;
/// Streams a client may hold open: its job, and a transfer at a time that begins before the last has ended.
const CLIENT_STREAMS: u32 = 4;
/// QUIC close code of an orderly end.
pub const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// QUIC close code after a protocol violation.
pub const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(1);
/// TLS alert `no_application_protocol`, with which QUIC ends a handshake without common ALPN name.
const ALERT_NO_ALPN: u8 = 120;
/// TLS alerts about a client's certificate, and what they say.
const ALERTS_CERTIFICATE: [(u8, &str); 7] = [
    (42, "it is malformed"),
    (43, "it is of an unknown kind"),
    (44, "it was revoked"),
    (45, "it has expired"),
    (46, "it is not acceptable"),
    (48, "another cluster issued it"),
    (51, "its signature is wrong"),
];

/// Opens the coordinator's endpoint.
///
/// # Errors
/// [`TransportError::Setup`]: the certificates cannot be used or the address cannot be bound.
pub fn listen(address: SocketAddr, tls: &ServerTls, idle_timeout_ms: u32) -> Result<Endpoint, TransportError> {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls::server_config(tls, tls::Audience::Anyone)?));
    let mut transport = transport_config(idle_timeout_ms);
    link::enlarge(&mut transport);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(1)).receive_window(VarInt::from_u32(UNKNOWN_WINDOW));
    config.transport_config(Arc::new(transport));
    link::endpoint(address, Some(config))
}

/// Gives a member the streams it works with, and windows for the line it is on; before, it has one stream of 64 KiB. What is above the
/// least windows is shared by all members: keep what this returns as long as the connection.
pub fn open_up(connection: &quinn::Connection) -> Windows {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_STREAMS));
    link::adapt_within(connection)
}

/// Gives a client its streams, and room for its specification. Nobody vouches for it, and it could feign any round trip.
pub fn open_for_client(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(CLIENT_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(CLIENT_STREAMS));
}

/// Connects to a coordinator and checks that the pinned authority answers for it, showing a member's certificate or none. The endpoint
/// must be kept as long as the connection.
///
/// A server that refuses the certificate says so only after this has succeeded: see [`ended`].
///
/// # Errors
/// [`TransportError`]: no such host, another authority, no common version, or nobody there.
pub async fn connect(
    address: &CoordinatorAddress,
    identity: Option<&ClientIdentity>,
) -> Result<(Endpoint, quinn::Connection), TransportError> {
    connect_alpn(address, identity, &[obelysk_protocol::wire::ALPN]).await
}

/// As [`connect`], offering other ALPN names: that of joining, or none that is known.
///
/// # Errors
/// As [`connect`].
pub async fn connect_alpn(
    address: &CoordinatorAddress,
    identity: Option<&ClientIdentity>,
    alpn: &[&[u8]],
) -> Result<(Endpoint, quinn::Connection), TransportError> {
    let crypto = tls::client_config(address.fingerprint, alpn, identity)?;
    let remote = resolve(address).await?;
    let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED.octets(), 0).into() };
    let endpoint = link::endpoint(local, None)?;
    let mut transport = transport_config(IDLE_TIMEOUT_MS);
    if !alpn.contains(&obelysk_protocol::wire::ALPN_JOIN) {
        link::enlarge(&mut transport);
    }
    let connection = dial_with(&endpoint, remote, crypto, transport).await?;
    Ok((endpoint, connection))
}

/// As [`connect_alpn`] without a certificate, over an endpoint that exists: for many connections from one socket.
///
/// # Errors
/// As [`connect`].
pub async fn connect_over(
    endpoint: &Endpoint,
    address: &CoordinatorAddress,
    alpn: &[&[u8]],
) -> Result<quinn::Connection, TransportError> {
    let crypto = tls::client_config(address.fingerprint, alpn, None)?;
    dial_with(endpoint, resolve(address).await?, crypto, transport_config(IDLE_TIMEOUT_MS)).await
}

async fn dial_with(
    endpoint: &Endpoint,
    remote: SocketAddr,
    (crypto, verdict): (quinn::crypto::rustls::QuicClientConfig, tls::Verdict),
    transport: TransportConfig,
) -> Result<quinn::Connection, TransportError> {
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    let connecting = endpoint.connect_with(config, remote, tls::SERVER_NAME).map_err(|e| TransportError::Setup(e.to_string()))?;
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Err(_) => Err(TransportError::Timeout(CONNECT_TIMEOUT.as_secs())),
        Ok(Ok(connection)) => {
            link::adapt(&connection);
            Ok(connection)
        }
        Ok(Err(error)) => Err(verdict.error().unwrap_or_else(|| lost(&error))),
    }
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
        ConnectionError::ConnectionClosed(e) if certificate_alert(e.error_code).is_some() => {
            TransportError::CertificateRefused(certificate_alert(e.error_code).unwrap_or_default())
        }
        ConnectionError::ApplicationClosed(close) => TransportError::Lost(String::from_utf8_lossy(&close.reason).into_owned()),
        other => TransportError::Lost(other.to_string()),
    }
}

fn certificate_alert(code: quinn::TransportErrorCode) -> Option<&'static str> {
    let says = |(alert, _): &&(u8, &str)| code == quinn::TransportErrorCode::crypto(*alert);
    ALERTS_CERTIFICATE.iter().find(says).map(|(_, cause)| *cause)
}

/// The reason a connection ended for, which says more than the error of the stream that noticed it.
#[must_use]
pub fn ended(connection: &quinn::Connection, error: TransportError) -> TransportError {
    match (&error, connection.close_reason()) {
        (TransportError::Lost(_) | TransportError::Truncated(_), Some(reason)) => lost(&reason),
        _ => error,
    }
}

fn transport_config(idle_timeout_ms: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    link::tune(&mut config);
    config
        .keep_alive_interval(Some(KEEP_ALIVE.min(Duration::from_millis(u64::from(idle_timeout_ms) / 3))))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_timeout_ms))))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    config
}
