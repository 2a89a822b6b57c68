//! The message structs: flat, owned, without maps, shared pointers or recursion, so that validating one needs bounded stack.
//!
//! Adding or changing a field means a new struct and a new [`MessageId`](super::MessageId).

use rkyv::{Archive, Deserialize, Serialize};

use super::{
    AdminDone, BlobFetch, BlobHave, BlobOffer, BlobPart, Coordinators, CoordinatorsGet, Enrol, Enrolled, GiveBack, JobCancel,
    JobItems, JobItemsGet, JobLog, JobLogAfter, Jobs, JobsAfter, Kept, KeptGet, ModelPublish, ModelWithdraw, Models, ModelsAfter,
    NodeDrain, NodeEvict, NodeHello, Nodes, NodesAfter, PeerAdd, PeerAdded, PeerBulk, PeerHello, PeerLead, PeerMessage,
    PeerRemove, Peers, PeersGet, Probe, Probed, Renew, Status, StatusGet, TokenMade, TokenNew, TokenRevoke, Tokens, TokensAfter,
    Trial, TrialDone, TrialFailed, Workers, WorkersAfter,
};

/// A blob by content: the BLAKE3 digest of its bytes and their number.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobRef {
    /// BLAKE3 of the bytes.
    pub digest: [u8; 32],
    /// Number of bytes.
    pub length: u64,
}

impl BlobRef {
    /// The reference to `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { digest: *blake3::hash(bytes).as_bytes(), length: bytes.len() as u64 }
    }
}

/// The kinds of work on a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum WorkKind {
    /// Run the network over the segment: boundary activations.
    Forward = 0,
    /// Commit to all values of the segment: a root.
    Commit = 1,
    /// Prove the segment under the challenge: proof and sub-claims.
    Prove = 2,
    /// Open the remaining sub-claims; in mode 2 only reduce them to one row per oracle.
    Open = 3,
    /// Mode 2: one step of the opening of all segments, the same item once for each step.
    Joint = 4,
}

impl WorkKind {
    /// The kinds that every job goes through, in this order.
    pub const ALL: [Self; 4] = [Self::Forward, Self::Commit, Self::Prove, Self::Open];
    /// Those and the ones that only some modes need.
    pub const EVERY: [Self; 5] = [Self::Forward, Self::Commit, Self::Prove, Self::Open, Self::Joint];

    /// The kind as sent.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The kind with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::EVERY.into_iter().find(|kind| kind.code() == code)
    }

    /// Name for people and for work ids (`job/kind/segment`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Commit => "commit",
            Self::Prove => "prove",
            Self::Open => "open",
            Self::Joint => "joint",
        }
    }
}

/// First message of a node: who it is, what it can run, what it still holds from before a reconnect.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Name for people; need not be unique.
    pub name: String,
    /// Drawn by each process anew: tells a reconnect from a second machine with the same certificate.
    pub identity: [u8; 32],
    /// CPU threads offered.
    pub cores: u32,
    /// Models this node can run.
    pub models: Vec<[u8; 32]>,
    /// Epochs of assignments still running or finished without an acknowledgement.
    pub held: Vec<u64>,
}

/// Answer to [`Hello`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Number of this node in the cluster, stable over reconnects.
    pub node: u32,
    /// A lease lasts this long after the last progress.
    pub lease_ms: u64,
    /// Largest blob the coordinator takes.
    pub max_blob_bytes: u64,
}

/// The coordinator will not serve this peer; the connection ends.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whether trying again later can help.
    pub retry: bool,
    /// Cause and remedy.
    pub reason: String,
}

/// One leased work item. The bytes travel as blobs.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Assign {
    /// Fencing number of this lease.
    pub epoch: u64,
    /// The job.
    pub job: [u8; 32],
    /// The model.
    pub model: [u8; 32],
    /// A [`WorkKind`] code.
    pub kind: u8,
    /// The segment.
    pub segment: u32,
    /// The job's opaque specification.
    pub spec: BlobRef,
    /// Public bytes of this kind: empty before the challenge, the challenge after it.
    pub extra: BlobRef,
    /// Inputs in the order the engine takes them.
    pub inputs: Vec<BlobRef>,
}

/// Work goes on; a higher permille renews the lease.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The lease.
    pub epoch: u64,
    /// 0 to 1000.
    pub permille: u32,
}

/// Work finished; its blob was stored before.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The lease.
    pub epoch: u64,
    /// The result.
    pub blob: BlobRef,
    /// Core-microseconds spent.
    pub core_us: u64,
    /// Peak memory of the run.
    pub peak_bytes: u64,
}

/// Work failed on this node.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The lease.
    pub epoch: u64,
    /// The inputs contradict what this node computes: somebody else's earlier result may be wrong.
    pub disagrees: bool,
    /// Cause and remedy.
    pub reason: String,
}

/// A [`Done`] or [`Failed`] was taken; the node may forget it.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ResultAck {
    /// The lease.
    pub epoch: u64,
}

/// The result of this lease is no longer wanted.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Cancel {
    /// The lease.
    pub epoch: u64,
}

/// A node asks for no more work; what it runs it finishes.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Why, for people.
    pub reason: String,
}

/// Last message of either side; the other may close at once.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Goodbye {
    /// Why, for people.
    pub reason: String,
}

/// What an epoch of [`Hello::held`] is about. Follows [`Welcome`], one message each; the answer is [`Resume`] or [`Cancel`]. Another
/// coordinator than the one that gave the lease needs this to tell whether the result is still wanted.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The lease.
    pub epoch: u64,
    /// The job.
    pub job: [u8; 32],
    /// A [`WorkKind`] code.
    pub kind: u8,
    /// The segment.
    pub segment: u32,
    /// Public bytes it works from.
    pub extra: BlobRef,
    /// Inputs it works from.
    pub inputs: Vec<BlobRef>,
}

/// What this lease is about is still wanted: go on, or deliver.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The lease.
    pub epoch: u64,
}

/// First frame of a bulk stream: send me this blob.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct BlobGet {
    /// The blob.
    pub blob: BlobRef,
}

/// First frame of a bulk stream: here comes this blob, in chunks.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct BlobPut {
    /// The lease it belongs to; 0 for a client's specification.
    pub epoch: u64,
    /// The blob.
    pub blob: BlobRef,
}

/// Answer to [`BlobGet`]: chunks follow.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct BlobSent {
    /// The blob.
    pub blob: BlobRef,
}

/// Answer to [`BlobPut`] after the last chunk: all bytes are here and match the digest.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct BlobStored {
    /// The blob.
    pub blob: BlobRef,
}

/// First message of a client.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// Name for people.
    pub name: String,
}

/// Prove this; the specification was put before.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Submit {
    /// The specification.
    pub spec: BlobRef,
    /// The model.
    pub model: [u8; 32],
}

/// As [`Submit`], and however often it is said, on whatever connection, it is one job: the one of this key, specification and model.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct SubmitOnce {
    /// Drawn by the client for this job.
    pub key: [u8; 16],
    /// The specification.
    pub spec: BlobRef,
    /// The model.
    pub model: [u8; 32],
    /// 0 to 9; 9 is served most. No part of what makes it the same job: what was said last holds.
    pub priority: u8,
}

/// Answer to [`Submit`] and [`SubmitOnce`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobAccepted {
    /// The job.
    pub job: [u8; 32],
    /// Segments it has.
    pub segments: u32,
}

/// Something a person watching the job wants to know.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The job.
    pub job: [u8; 32],
    /// Phase the job is in.
    pub phase: String,
    /// Work items finished in this phase.
    pub done: u32,
    /// Work items of this phase.
    pub total: u32,
    /// Node it is about; 0 for none.
    pub node: u32,
    /// Text; empty for a plain count.
    pub text: String,
}

/// How long a phase took.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct PhaseTime {
    /// Name of the phase.
    pub name: String,
    /// Wall-clock microseconds.
    pub wall_us: u64,
    /// Core-microseconds over all nodes.
    pub core_us: u64,
}

/// The job is proved; the proof can be fetched with [`BlobGet`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobDone {
    /// The job.
    pub job: [u8; 32],
    /// The proof.
    pub proof: BlobRef,
    /// Time per phase.
    pub phases: Vec<PhaseTime>,
    /// Largest memory any one work item took.
    pub peak_bytes: u64,
    /// Nodes that contributed.
    pub nodes: u32,
}

/// The job failed.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct JobFailed {
    /// The job.
    pub job: [u8; 32],
    /// Cause and remedy.
    pub reason: String,
}

/// Any control message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant holds the struct of the same name, documented there")]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Refused(Refused),
    Assign(Assign),
    Progress(Progress),
    Done(Done),
    Failed(Failed),
    ResultAck(ResultAck),
    Cancel(Cancel),
    Drain(Drain),
    Goodbye(Goodbye),
    Holding(Holding),
    Resume(Resume),
    BlobGet(BlobGet),
    BlobPut(BlobPut),
    BlobSent(BlobSent),
    BlobStored(BlobStored),
    ClientHello(ClientHello),
    Submit(Submit),
    JobAccepted(JobAccepted),
    Event(Event),
    JobDone(JobDone),
    JobFailed(JobFailed),
    SubmitOnce(SubmitOnce),
    Enrol(Enrol),
    Enrolled(Enrolled),
    Renew(Renew),
    Probe(Probe),
    Probed(Probed),
    TokenNew(TokenNew),
    TokenMade(TokenMade),
    TokensAfter(TokensAfter),
    Tokens(Tokens),
    TokenRevoke(TokenRevoke),
    NodesAfter(NodesAfter),
    Nodes(Nodes),
    NodeDrain(NodeDrain),
    NodeEvict(NodeEvict),
    AdminDone(AdminDone),
    NodeHello(NodeHello),
    Trial(Trial),
    TrialDone(TrialDone),
    TrialFailed(TrialFailed),
    GiveBack(GiveBack),
    BlobFetch(BlobFetch),
    BlobPart(BlobPart),
    BlobOffer(BlobOffer),
    BlobHave(BlobHave),
    ModelPublish(ModelPublish),
    ModelWithdraw(ModelWithdraw),
    ModelsAfter(ModelsAfter),
    Models(Models),
    StatusGet(StatusGet),
    Status(Status),
    WorkersAfter(WorkersAfter),
    Workers(Workers),
    JobsAfter(JobsAfter),
    Jobs(Jobs),
    JobItemsGet(JobItemsGet),
    JobItems(JobItems),
    JobCancel(JobCancel),
    JobLogAfter(JobLogAfter),
    JobLog(JobLog),
    PeerHello(PeerHello),
    PeerMessage(PeerMessage),
    PeerBulk(PeerBulk),
    Coordinators(Coordinators),
    CoordinatorsGet(CoordinatorsGet),
    PeersGet(PeersGet),
    Peers(Peers),
    PeerAdd(PeerAdd),
    PeerAdded(PeerAdded),
    PeerRemove(PeerRemove),
    PeerLead(PeerLead),
    KeptGet(KeptGet),
    Kept(Kept),
}
