//! The 16-byte frame header: magic, wire version, message id, payload length, flags; all little-endian.
//!
//! Checks everything a header can be wrong in before a byte of payload is read or a buffer is allocated.

use super::{HEADER_BYTES, MAGIC, MAX_CHUNK_BYTES, MAX_CONTROL_BYTES, MAX_ENROL_BYTES, WIRE_VERSION, WireError};

/// Identifier of a message's schema. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
#[expect(missing_docs, reason = "each variant is the struct of the same name, documented there")]
pub enum MessageId {
    Hello = 1,
    Welcome = 2,
    Refused = 3,
    Assign = 4,
    Progress = 5,
    Done = 6,
    Failed = 7,
    ResultAck = 8,
    Cancel = 9,
    Drain = 10,
    Goodbye = 11,
    Holding = 12,
    Resume = 13,
    BlobGet = 16,
    BlobPut = 17,
    BlobSent = 18,
    BlobStored = 19,
    Chunk = 20,
    BlobFetch = 21,
    BlobPart = 22,
    BlobOffer = 23,
    BlobHave = 24,
    ModelPublish = 25,
    ModelWithdraw = 26,
    ModelsAfter = 27,
    Models = 28,
    ClientHello = 32,
    Submit = 33,
    JobAccepted = 34,
    Event = 35,
    JobDone = 36,
    JobFailed = 37,
    NodeHello = 38,
    Trial = 39,
    TrialDone = 40,
    TrialFailed = 41,
    GiveBack = 42,
    SubmitOnce = 43,
    Enrol = 48,
    Enrolled = 49,
    Renew = 50,
    Probe = 51,
    Probed = 52,
    TokenNew = 64,
    TokenMade = 65,
    TokensAfter = 66,
    Tokens = 67,
    TokenRevoke = 68,
    NodesAfter = 69,
    Nodes = 70,
    NodeDrain = 71,
    NodeEvict = 72,
    AdminDone = 73,
    StatusGet = 74,
    Status = 75,
    WorkersAfter = 76,
    Workers = 77,
    JobsAfter = 78,
    Jobs = 79,
    JobItemsGet = 80,
    JobItems = 81,
    JobCancel = 82,
    JobLogAfter = 83,
    JobLog = 84,
    PeerHello = 96,
    PeerMessage = 97,
    PeerBulk = 98,
    Coordinators = 99,
    CoordinatorsGet = 100,
    PeersGet = 101,
    Peers = 102,
    PeerAdd = 103,
    PeerAdded = 104,
    PeerRemove = 105,
    PeerLead = 106,
    KeptGet = 110,
    Kept = 111,
}

impl MessageId {
    /// Every id, in order.
    pub const ALL: [Self; 77] = [
        Self::Hello,
        Self::Welcome,
        Self::Refused,
        Self::Assign,
        Self::Progress,
        Self::Done,
        Self::Failed,
        Self::ResultAck,
        Self::Cancel,
        Self::Drain,
        Self::Goodbye,
        Self::Holding,
        Self::Resume,
        Self::BlobGet,
        Self::BlobPut,
        Self::BlobSent,
        Self::BlobStored,
        Self::Chunk,
        Self::BlobFetch,
        Self::BlobPart,
        Self::BlobOffer,
        Self::BlobHave,
        Self::ModelPublish,
        Self::ModelWithdraw,
        Self::ModelsAfter,
        Self::Models,
        Self::ClientHello,
        Self::Submit,
        Self::JobAccepted,
        Self::Event,
        Self::JobDone,
        Self::JobFailed,
        Self::NodeHello,
        Self::Trial,
        Self::TrialDone,
        Self::TrialFailed,
        Self::GiveBack,
        Self::SubmitOnce,
        Self::Enrol,
        Self::Enrolled,
        Self::Renew,
        Self::Probe,
        Self::Probed,
        Self::TokenNew,
        Self::TokenMade,
        Self::TokensAfter,
        Self::Tokens,
        Self::TokenRevoke,
        Self::NodesAfter,
        Self::Nodes,
        Self::NodeDrain,
        Self::NodeEvict,
        Self::AdminDone,
        Self::StatusGet,
        Self::Status,
        Self::WorkersAfter,
        Self::Workers,
        Self::JobsAfter,
        Self::Jobs,
        Self::JobItemsGet,
        Self::JobItems,
        Self::JobCancel,
        Self::JobLogAfter,
        Self::JobLog,
        Self::PeerHello,
        Self::PeerMessage,
        Self::PeerBulk,
        Self::Coordinators,
        Self::CoordinatorsGet,
        Self::PeersGet,
        Self::Peers,
        Self::PeerAdd,
        Self::PeerAdded,
        Self::PeerRemove,
        Self::PeerLead,
        Self::KeptGet,
        Self::Kept,
    ];

    /// The id as sent.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The id with this code.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|id| id.code() == code)
    }

    /// Largest payload this message may have.
    #[must_use]
    pub const fn limit(self) -> u32 {
        match self {
            Self::Chunk => MAX_CHUNK_BYTES,
            Self::Enrol | Self::Renew | Self::Probe => MAX_ENROL_BYTES,
            _ => MAX_CONTROL_BYTES,
        }
    }
}

/// The fields of a header that carry information; magic, version and flags are constants of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Which message follows.
    pub message: MessageId,
    /// Bytes of payload that follow, at most [`MessageId::limit`].
    pub length: u32,
}

impl FrameHeader {
    /// The header as sent.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&WIRE_VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.message.code().to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// Reads a header; bytes after the first [`HEADER_BYTES`] are not looked at.
    ///
    /// # Errors
    /// [`WireError`]: truncated, wrong magic, another version, unknown id, reserved flags, or too long a payload. The version is
    /// judged before the id and the flags, so that a newer peer is told about its version and not about details.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let Some([m0, m1, m2, m3, v0, v1, i0, i1, l0, l1, l2, l3, f0, f1, f2, f3]) = bytes.first_chunk::<HEADER_BYTES>().copied()
        else {
            return Err(WireError::HeaderTruncated { got: bytes.len() });
        };
        let got = [m0, m1, m2, m3];
        if got != MAGIC {
            return Err(WireError::Magic { got });
        }
        let theirs = u16::from_le_bytes([v0, v1]);
        if theirs != WIRE_VERSION {
            return Err(WireError::Version { theirs });
        }
        let id = u16::from_le_bytes([i0, i1]);
        let message = MessageId::from_code(id).ok_or(WireError::UnknownMessage { id })?;
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags != 0 {
            return Err(WireError::Flags { flags });
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length > message.limit() {
            return Err(WireError::TooLong { message, length, limit: message.limit() });
        }
        Ok(Self { message, length })
    }
}
