//! Struct to frame and back. One macro lists every message once, so that an id cannot be encoded and not decoded.

use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;

use super::{FrameHeader, HEADER_BYTES, Message, MessageId, WireError};

/// Alignment of the buffer an archive is checked in; the largest any field here needs is 8.
const ALIGNMENT: usize = 16;

macro_rules! messages {
    ($($name:ident),+ $(,)?) => {
        impl Message {
            /// The id of this message.
            #[must_use]
            pub const fn id(&self) -> MessageId {
                match self { $(Self::$name(_) => MessageId::$name,)+ }
            }

            pub(super) fn archive(&self) -> Result<AlignedVec, WireError> {
                let failed = |e: RkyvError| WireError::Encode { message: self.id(), cause: e.to_string() };
                match self { $(Self::$name(body) => rkyv::to_bytes::<RkyvError>(body).map_err(failed),)+ }
            }

            fn unarchive(message: MessageId, aligned: &[u8]) -> Result<Self, WireError> {
                let failed = |e: RkyvError| WireError::Archive { message, cause: e.to_string() };
                match message {
                    $(MessageId::$name => {
                        let archived = rkyv::access::<rkyv::Archived<super::$name>, RkyvError>(aligned).map_err(failed)?;
                        Ok(Self::$name(rkyv::deserialize::<super::$name, RkyvError>(archived).map_err(failed)?))
                    })+
                    MessageId::Chunk => Err(WireError::Meaning { message, cause: "raw bytes stand where a message is due" }),
                }
            }
        }
    };
}

messages!(
    Hello,
    Welcome,
    Refused,
    Assign,
    Progress,
    Done,
    Failed,
    ResultAck,
    Cancel,
    Drain,
    Goodbye,
    Holding,
    Resume,
    BlobGet,
    BlobPut,
    BlobSent,
    BlobStored,
    ClientHello,
    Submit,
    JobAccepted,
    Event,
    JobDone,
    JobFailed,
    SubmitOnce,
    Enrol,
    Enrolled,
    Renew,
    Probe,
    Probed,
    TokenNew,
    TokenMade,
    TokensAfter,
    Tokens,
    TokenRevoke,
    NodesAfter,
    Nodes,
    NodeDrain,
    NodeEvict,
    AdminDone,
    NodeHello,
    Trial,
    TrialDone,
    TrialFailed,
    GiveBack,
    BlobFetch,
    BlobPart,
    BlobOffer,
    BlobHave,
    ModelPublish,
    ModelWithdraw,
    ModelsAfter,
    Models,
    StatusGet,
    Status,
    WorkersAfter,
    Workers,
    JobsAfter,
    Jobs,
    JobItemsGet,
    JobItems,
    JobCancel,
    JobLogAfter,
    JobLog,
    PeerHello,
    PeerMessage,
    PeerBulk,
    Coordinators,
    CoordinatorsGet,
    PeersGet,
    Peers,
    PeerAdd,
    PeerAdded,
    PeerRemove,
    PeerLead,
    KeptGet,
    Kept,
);

impl Message {
    /// The whole frame, header included.
    ///
    /// # Errors
    /// [`WireError::Meaning`] or [`WireError::Encode`] when a peer would refuse the message: it is never sent.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        self.validate()?;
        let message = self.id();
        let payload = self.archive()?;
        let too_long =
            || WireError::Encode { message, cause: format!("{} bytes where {} are allowed", payload.len(), message.limit()) };
        let length = u32::try_from(payload.len()).ok().filter(|l| *l <= message.limit()).ok_or_else(too_long)?;
        let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
        frame.extend_from_slice(&FrameHeader { message, length }.encode());
        frame.extend_from_slice(&payload);
        Ok(frame)
    }

    /// Reads the payload that follows `header`. Total on any bytes.
    ///
    /// # Errors
    /// [`WireError`]: another length than announced, not a valid archive, or a message without sense.
    pub fn decode(header: FrameHeader, payload: &[u8]) -> Result<Self, WireError> {
        let message = header.message;
        if payload.len() as u64 != u64::from(header.length) || header.length > message.limit() {
            return Err(WireError::LengthMismatch { message, announced: header.length, got: payload.len() });
        }
        let mut aligned = AlignedVec::<ALIGNMENT>::with_capacity(payload.len());
        aligned.extend_from_slice(payload);
        let decoded = Self::unarchive(message, &aligned)?;
        decoded.validate()?;
        Ok(decoded)
    }
}
