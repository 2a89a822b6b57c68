//! Everything that can end a node process or a connection, each with what to do about it.

use crate::identity::IdentityError;
use obelysk_protocol::wire::{MessageId, WIRE_VERSION, WireError};

/// Why a connection failed. Only some of these are worth another attempt: see [`TransportError::is_permanent`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// Bytes from the peer were not a message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peers share no wire version.
    #[error(
        "the other side does not speak wire version {WIRE_VERSION}; install the same release on coordinator, nodes and clients"
    )]
    NoCommonVersion,
    /// Another authority than the pinned one answers.
    #[error(
        "the cluster there has key {got}, but the address pins {expected}; use an address or token of this very cluster, and if it is \
         one, somebody else answers in its place"
    )]
    WrongKey {
        /// Pinned fingerprint.
        expected: String,
        /// Fingerprint of the authority shown, or of the certificate when none was.
        got: String,
    },
    /// The pinned authority answers, and its certificate for this server does not hold.
    #[error("the coordinator's certificate does not hold: {0}; restart the coordinator")]
    ServerCertificate(String),
    /// By this machine's clock the coordinator's certificate is not valid now.
    #[error("by this machine's clock the coordinator's certificate is not valid now ({0}); set the clock, for example by NTP")]
    Clock(String),
    /// The coordinator does not accept this machine's certificate.
    #[error(
        "the coordinator does not accept this machine's certificate: {0}; make a token with `obelysk token create` and join again"
    )]
    CertificateRefused(&'static str),
    /// The host name does not resolve.
    #[error("cannot resolve `{host}`: {cause}; check the address")]
    Resolve {
        /// Host of the address.
        host: String,
        /// What the resolver said.
        cause: String,
    },
    /// Connecting failed or the connection broke.
    #[error("connection lost: {0}; check that the coordinator runs and that UDP reaches it")]
    Lost(String),
    /// The stream ended inside a frame or before an expected one.
    #[error("stream ended {0}; the peer went away: reconnect")]
    Truncated(&'static str),
    /// A message arrived where another was due.
    #[error("expected {expected}, got {got:?}; install the same release on both machines")]
    Unexpected {
        /// What was due.
        expected: &'static str,
        /// What came.
        got: MessageId,
    },
    /// The peer said no.
    #[error("refused: {reason}")]
    Refused {
        /// Cause and remedy, in the peer's words.
        reason: String,
        /// Whether trying again can help.
        retry: bool,
    },
    /// A coordinator answers that does not lead.
    #[error("the coordinator there does not lead; {} does", if leader.is_empty() { "another one, not known yet," } else { leader })]
    Elsewhere {
        /// Where the one that does is, `host:port`, when it is known.
        leader: String,
        /// Where all of them are.
        all: Vec<String>,
    },
    /// A blob is larger than this side takes.
    #[error("blob of {length} bytes exceeds the limit of {limit}; raise `max_blob_bytes` on this machine")]
    BlobTooLarge {
        /// Its length.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// A blob's bytes do not have its digest.
    #[error("blob arrived damaged (digest differs); it is fetched again, check the network if this repeats")]
    BlobDamaged,
    /// Arriving bytes cannot be kept.
    #[error("cannot keep arriving bytes in {}: {cause}; free space there, or choose another disk", path.display())]
    Disk {
        /// File or folder.
        path: std::path::PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Files that arrived whole are not the model they were said to be.
    #[error("what was fetched is not model {model}: {cause}; have it pushed again (`obelysk model push`)")]
    Model {
        /// The model wanted.
        model: String,
        /// What is wrong.
        cause: String,
    },
    /// The peer was silent too long.
    #[error("no answer within {0} s; check the network and the peer's load")]
    Timeout(u64),
    /// A local socket or TLS set-up failed.
    #[error("cannot set up the endpoint: {0}; check the address and that the port is free")]
    Setup(String),
}

impl TransportError {
    /// Whether another attempt must fail the same way.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::NoCommonVersion
                | Self::WrongKey { .. }
                | Self::ServerCertificate(_)
                | Self::Clock(_)
                | Self::CertificateRefused(_)
                | Self::Setup(_)
                | Self::Refused { retry: false, .. }
                | Self::Wire(WireError::Version { .. })
        )
    }
}

/// Why a node process ended without being asked to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NodeError {
    /// The coordinator's address cannot be read.
    #[error("coordinator address `{address}`: {cause}; copy the `host:port#fingerprint` line the coordinator prints")]
    Address {
        /// As configured.
        address: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A setting is out of range.
    #[error("setting `{field}` {cause}; correct the node's configuration")]
    Config {
        /// Name of the setting.
        field: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// This machine's identity or token cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The coordinator cannot be used, and trying again will not help.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The coordinator stayed away.
    #[error("no coordinator for {seconds} s, last error: {last}; start it, or raise `give_up_after_s`")]
    GaveUp {
        /// How long it was tried.
        seconds: u64,
        /// Last failure.
        last: TransportError,
    },
    /// The worker thread could not be started or died.
    #[error("worker thread: {0}; check the process limits of this machine")]
    Worker(String),
    /// The address for metrics cannot be bound.
    #[error("metrics cannot be served at {listen}: {cause}; set `metrics_listen` to a free address, or to nothing")]
    Metrics {
        /// The address.
        listen: std::net::SocketAddr,
        /// What the system says.
        cause: String,
    },
}
