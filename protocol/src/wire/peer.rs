//! Messages among coordinators: who speaks, and what their consensus says, which is opaque here.

use rkyv::{Archive, Deserialize, Serialize};

use super::BlobRef;

/// First message of a coordinator's stream to another, and again whenever it knows of other members.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeerHello {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The sender's id.
    pub from: u64,
    /// The receiver's id, as the sender takes it to be.
    pub to: u64,
    /// The members the sender knows: one that slept through a change learns so whom to listen to.
    pub members: Vec<PeerEntry>,
}

/// A coordinator, as others know it.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeerEntry {
    /// BLAKE3 of the public key in its certificate.
    pub key: [u8; 32],
    /// Where coordinators reach it, `host:port`.
    pub peer: String,
    /// Where nodes and clients reach it, `host:port`.
    pub service: String,
}

/// A message of the consensus.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeerMessage {
    /// Its bytes, read by the consensus alone.
    pub bytes: Vec<u8>,
}

/// First on a stream of its own: a message of the consensus follows in chunks, because it is too large for one frame.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeerBulk {
    /// Digest and length of its bytes.
    pub blob: BlobRef,
}

/// Where the coordinators are, and which of them leads: said by one that does not instead of an answer, and by the one that does to
/// whoever stays.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Coordinators {
    /// Whether the sender leads.
    pub leads: bool,
    /// Where nodes and clients reach the leader, `host:port`; empty when the sender knows of none.
    pub leader: String,
    /// Where they reach each of them, the leader included.
    pub all: Vec<String>,
}

/// Who leads? Anybody may ask, and every coordinator answers.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorsGet {
    /// The sender's clock, seconds since 1970.
    pub unix_s: u64,
}

/// Administrator: which coordinators are there? Every coordinator answers as far as it knows.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeersGet {
    /// The sender's clock, seconds since 1970.
    pub unix_s: u64,
}

/// Answer to [`PeersGet`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Peers {
    /// Id of the one that answers.
    pub own: u64,
    /// Id of the leader; 0 when none is known.
    pub leader: u64,
    /// Last entry of the log that it applied.
    pub applied: u64,
    /// All of them.
    pub members: Vec<PeerState>,
}

/// One coordinator.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    /// Its id.
    pub id: u64,
    /// Its key and where it is.
    pub entry: PeerEntry,
    /// Whether it has a vote; otherwise it is catching up.
    pub votes: bool,
    /// Whether it was heard of lately: the leader alone hears of all.
    pub live: bool,
}

/// Administrator: take this machine in as a coordinator.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeerAdd {
    /// PKCS #10 request for its key.
    pub csr: Vec<u8>,
    /// Where coordinators will reach it, `host:port`.
    pub peer: String,
    /// Where nodes and clients will reach it, `host:port`.
    pub service: String,
}

/// Answer to [`PeerAdd`]: from now on it is waited for. Asking again with the same key is answered again.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeerAdded {
    /// Its certificate.
    pub certificate: Vec<u8>,
    /// The authority's certificate.
    pub authority: Vec<u8>,
    /// The members it will hear from.
    pub members: Vec<PeerEntry>,
}

/// Administrator: take a coordinator out, for good.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeerRemove {
    /// Its id.
    pub id: u64,
}

/// Coordinator: how much of what the facts name lies with you? Administrator: ... with that coordinator, which the leader asks?
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct KeptGet {
    /// Its id.
    pub id: u64,
}

/// Answer to [`KeptGet`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Blobs that the facts name, as far as it knows them.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that it does not have.
    pub lacking: u64,
    /// Their bytes.
    pub lacking_bytes: u64,
}

/// Administrator: let this coordinator lead.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PeerLead {
    /// Its id.
    pub id: u64,
}
