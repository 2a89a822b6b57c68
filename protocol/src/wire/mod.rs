//! What coordinator, nodes and clients say to each other, byte for byte.
//!
//! A frame is a 16-byte [`FrameHeader`] and a payload: an rkyv archive of one flat struct, or raw bytes for [`MessageId::Chunk`].
//! Bytes from a peer are copied into aligned memory, validated by rkyv, then checked for meaning ([`Message::decode`]); every
//! failure is a [`WireError`] and no input can panic. This module moves no bytes and knows no socket. A changed struct gets
//! a new message id; ids are never reused.

mod admission;
mod bulk;
mod codec;
mod fleet;
mod header;
mod message;
mod observation;
mod outline;
mod peer;
mod validate;

#[cfg(test)]
mod tests;

pub use admission::{
    AdminDone, Enrol, Enrolled, NodeDrain, NodeEntry, NodeEvict, NodeState, Nodes, NodesAfter, Probe, Probed, Renew, TokenEntry,
    TokenMade, TokenNew, TokenRevoke, Tokens, TokensAfter,
};
pub use bulk::{BlobFetch, BlobHave, BlobOffer, BlobPart, ModelEntry, ModelPublish, ModelWithdraw, Models, ModelsAfter};
pub use fleet::{GiveBack, NodeHello, Trial, TrialDone, TrialFailed};
pub use header::{FrameHeader, MessageId};
pub use message::{
    Assign, BlobGet, BlobPut, BlobRef, BlobSent, BlobStored, Cancel, ClientHello, Done, Drain, Event, Failed, Goodbye, Hello,
    Holding, JobAccepted, JobDone, JobFailed, Message, PhaseTime, Progress, Refused, ResultAck, Resume, Submit, SubmitOnce,
    Welcome, WorkKind,
};
pub use observation::{
    ItemEntry, ItemPhase, JobCancel, JobEntry, JobItems, JobItemsGet, JobLog, JobLogAfter, JobState, Jobs, JobsAfter, LogEntry,
    Status, StatusGet, WorkerEntry, Workers, WorkersAfter,
};
pub use outline::{CHUNK_BYTES, CHUNK_DIGEST_BYTES, MAX_CHUNKS, NotItsOutline, Outline, OutlineBuilder};

pub use peer::{
    Coordinators, CoordinatorsGet, Kept, KeptGet, PeerAdd, PeerAdded, PeerBulk, PeerEntry, PeerHello, PeerLead, PeerMessage,
    PeerRemove, PeerState, Peers, PeersGet,
};

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 16;
/// First bytes of every frame, so that a stray peer or a lost frame boundary is noticed at once.
pub const MAGIC: [u8; 4] = *b"OBLK";
/// Version of the wire format. Raised when two versions cannot talk; the ALPN name carries it too.
pub const WIRE_VERSION: u16 = 1;
/// ALPN protocol name offered by both sides. QUIC refuses the connection when they share none.
pub const ALPN: &[u8] = b"obelysk/1";
/// ALPN protocol name of machines without a certificate: they may ask to be let in, and nothing else.
pub const ALPN_JOIN: &[u8] = b"obelysk-join/1";
/// ALPN protocol name among coordinators, who show each other certificates.
pub const ALPN_PEER: &[u8] = b"obelysk-peer/1";
/// Largest request of a peer nobody knows yet: a certificate request of an elliptic key has under 1 KiB.
pub const MAX_ENROL_BYTES: u32 = 4096;
/// Longest certificate or certificate request: ours have under 1 KiB.
pub const MAX_CERTIFICATE_BYTES: usize = 3072;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Most coordinators of one cluster: consensus beyond seven is slow, not safer.
pub const MAX_ADDRESSES: usize = 8;
/// Most coordinators in a greeting: members, and those that left or are to come, as others know them.
pub const MAX_PEERS: usize = 16;
/// Longest `host:port`: a DNS name has up to 253 bytes.
pub const MAX_ADDRESS_BYTES: usize = 260;
/// Entries of one page of a list, so that it fits [`MAX_CONTROL_BYTES`] with texts of any length.
pub const MAX_PAGE: usize = 128;
/// Largest control payload: the largest real one (an assignment) is under 1 KiB; 1 MiB leaves room and bounds a hostile peer.
pub const MAX_CONTROL_BYTES: u32 = 1 << 20;
/// Largest bulk chunk: big enough to fill a 1 Gbit/s link, small enough that a slow peer holds little memory.
pub const MAX_CHUNK_BYTES: u32 = 1 << 20;
/// Longest text in any message: one readable paragraph.
pub const MAX_TEXT_BYTES: usize = 4096;
/// Longest node name: fits a DNS label and a terminal column.
pub const MAX_NAME_BYTES: usize = 63;
/// Most models one node may offer; a machine's disk holds far fewer.
pub const MAX_MODELS: usize = 1024;
/// Most cores one node may offer: four times what any machine has. They weigh its share of the work.
pub const MAX_CORES: u32 = 4096;
/// Most input blobs of one work item: opening takes two, aggregation will take one per neighbour.
pub const MAX_INPUTS: usize = 64;
/// Most epochs a node may claim to hold on rejoin: one running and a few unacknowledged results.
pub const MAX_HELD_EPOCHS: usize = 64;
/// Most phases in a job report.
pub const MAX_PHASES: usize = 64;
/// Most items in one answer: all kinds of one page of segments.
pub const MAX_ITEMS: usize = MAX_PAGE * WorkKind::EVERY.len();
/// Highest priority of a job.
pub const MAX_PRIORITY: u8 = 9;
/// Longest version of a program: semantic versions with a build name have under 64 bytes.
pub const MAX_RELEASE_BYTES: usize = 64;
/// A permille is at most this.
pub const PERMILLE: u32 = 1000;

/// Why bytes from a peer were not a message. Every variant ends the connection: a peer that breaks framing cannot be resynchronised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Fewer than [`HEADER_BYTES`] bytes of header.
    #[error("frame header cut off after {got} of {HEADER_BYTES} bytes; the peer closed early: reconnect")]
    HeaderTruncated {
        /// Bytes that were there.
        got: usize,
    },
    /// The first four bytes are not [`MAGIC`].
    #[error("frame starts with {got:02x?}, not {MAGIC:02x?}; the peer does not speak obelysk: check the address")]
    Magic {
        /// Bytes found.
        got: [u8; 4],
    },
    /// The peer speaks another wire version.
    #[error("peer speaks wire version {theirs}, this program speaks {WIRE_VERSION}; install the same release on both machines")]
    Version {
        /// Version in the frame.
        theirs: u16,
    },
    /// Unknown message id.
    #[error("unknown message id {id}; the peer is newer or broken: install the same release on both machines")]
    UnknownMessage {
        /// Id in the frame.
        id: u16,
    },
    /// A flag bit this version does not define.
    #[error("reserved frame flags {flags:#010x} are set; install the same release on both machines")]
    Flags {
        /// Flags in the frame.
        flags: u32,
    },
    /// The payload is longer than this message may be.
    #[error("{message:?} frame announces {length} bytes, at most {limit} are allowed; the peer is broken: restart it")]
    TooLong {
        /// The message.
        message: MessageId,
        /// Announced length.
        length: u32,
        /// Allowed length.
        limit: u32,
    },
    /// The payload has another length than the header announced.
    #[error("{message:?} payload has {got} bytes where the header announced {announced}; the stream was cut: reconnect")]
    LengthMismatch {
        /// The message.
        message: MessageId,
        /// Announced length.
        announced: u32,
        /// Length found.
        got: usize,
    },
    /// The payload is not a valid archive of its struct.
    #[error("{message:?} payload is malformed ({cause}); the peer is broken: install the same release on both machines")]
    Archive {
        /// The message.
        message: MessageId,
        /// What the validator said.
        cause: String,
    },
    /// A well-formed payload says something impossible.
    #[error("{message:?} is not acceptable: {cause}; the peer is broken: install the same release on both machines")]
    Meaning {
        /// The message.
        message: MessageId,
        /// Which rule it breaks.
        cause: &'static str,
    },
    /// A message of ours is too big or too odd to send.
    #[error("cannot encode {message:?}: {cause}; shorten the value named")]
    Encode {
        /// The message.
        message: MessageId,
        /// Why.
        cause: String,
    },
}
