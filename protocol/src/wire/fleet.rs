//! Messages of a fleet whose machines differ: what they have, what they can do, what they give back.

use rkyv::{Archive, Deserialize, Serialize};

/// First message of a node, in place of `Hello`: also says what the machine has.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct NodeHello {
    /// Name for people; need not be unique.
    pub name: String,
    /// Drawn by each process anew: tells a reconnect from a second machine with the same certificate.
    pub identity: [u8; 32],
    /// CPU threads offered.
    pub cores: u32,
    /// Memory of the machine in bytes; 0 where the system does not tell.
    pub memory_bytes: u64,
    /// Of that, what is free for this process now.
    pub free_bytes: u64,
    /// Version of the program.
    pub release: String,
    /// Models this node can run, that of calibration among them.
    pub models: Vec<[u8; 32]>,
    /// Epochs of assignments still running or finished without an acknowledgement.
    pub held: Vec<u64>,
}

/// A piece of work for calibration, before the welcome: small, so its bytes come with it.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Which one; the answer repeats it.
    pub number: u32,
    /// The model of calibration.
    pub model: [u8; 32],
    /// A `WorkKind` code.
    pub kind: u8,
    /// The segment.
    pub segment: u32,
    /// The specification.
    pub spec: Vec<u8>,
    /// Public bytes.
    pub extra: Vec<u8>,
    /// Inputs in the order the engine takes them.
    pub inputs: Vec<Vec<u8>>,
}

/// Answer to [`Trial`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TrialDone {
    /// Which one.
    pub number: u32,
    /// The result.
    pub output: Vec<u8>,
    /// Core-microseconds spent.
    pub core_us: u64,
    /// Peak memory of the run.
    pub peak_bytes: u64,
}

/// Answer to [`Trial`]: it could not be done.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TrialFailed {
    /// Which one.
    pub number: u32,
    /// Cause and remedy.
    pub reason: String,
}

/// The node will not finish this lease, for no fault of the work: it leaves. The item may go to another at once.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct GiveBack {
    /// The lease.
    pub epoch: u64,
    /// Why, for people.
    pub reason: String,
}
