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
