//! Endpoints among coordinators: both sides show certificates of the cluster's authority, and each direction has its own connection,
//! opened by whoever speaks.

use std::net::SocketAddr;
use std::sync::Arc;

use obelysk_protocol::wire::ALPN_PEER;
use quinn::{Endpoint, TransportConfig, VarInt};

use super::tls::{self, ClientIdentity, Fingerprint, ServerTls};
use crate::address::CoordinatorAddress;
use crate::error::{NodeError, TransportError};

/// A silent coordinator is gone after this; sooner than for nodes, because an election waits for it.
const PEER_IDLE_MS: u32 = 6_000;
/// Streams to a coordinator: one for what fits a frame, one for what does not, one of that kind about to end.
const PEER_STREAMS: u32 = 3;
/// Questions of one coordinator to another that are being answered at once.
const PEER_QUESTIONS: u32 = 8;

/// Opens an endpoint that takes connections of coordinators, and dials them.
///
/// # Errors
/// [`TransportError::Setup`]: the certificates cannot be used or the address cannot be bound.
pub fn listen_peers(address: SocketAddr, tls: &ServerTls) -> Result<Endpoint, TransportError> {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls::server_config(tls, tls::Audience::Coordinators)?));
    config.transport_config(Arc::new(peer_transport()));
    Endpoint::server(config, address).map_err(|e| TransportError::Setup(e.to_string()))
}

/// Connects to the coordinator at `host:port` and checks that the pinned authority certified it.
///
/// # Errors
/// [`TransportError`]: no such host, another authority, or nobody there.
pub async fn connect_peer(
    endpoint: &Endpoint,
    place: &str,
    pin: Fingerprint,
    identity: &ClientIdentity,
) -> Result<quinn::Connection, TransportError> {
    let failed = |e: NodeError| TransportError::Resolve { host: place.to_owned(), cause: e.to_string() };
    let remote = super::resolve(&CoordinatorAddress::at(place, pin).map_err(failed)?).await?;
    let crypto = tls::client_config(pin, &[ALPN_PEER], Some(identity))?;
    super::dial_with(endpoint, remote, crypto, peer_transport()).await
}

fn peer_transport() -> TransportConfig {
    let mut config = super::transport_config(PEER_IDLE_MS);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(PEER_QUESTIONS))
        .max_concurrent_uni_streams(VarInt::from_u32(PEER_STREAMS));
    config
}
