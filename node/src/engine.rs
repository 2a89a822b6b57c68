//! The seam between cluster and proof: an [`Engine`] does work on a node, a [`Checker`] judges it on the coordinator.
//!
//! Both are deterministic: equal arguments give equal bytes on every machine. The cluster relies on that when it re-runs work
//! after a failure and when it settles who of two nodes was wrong.

pub use obelysk_protocol::wire::WorkKind;

/// One work item, complete in itself: a node that never saw the job can run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkRequest {
    /// The job.
    pub job: [u8; 32],
    /// The model, one of [`Engine::models`].
    pub model: [u8; 32],
    /// What to do.
    pub kind: WorkKind,
    /// On which segment.
    pub segment: u32,
    /// The job's specification, opaque to the cluster.
    pub spec: Vec<u8>,
    /// Public bytes: empty for forward and commit, [`Checker::challenge`]'s answer for prove and open, that of [`Checker::join`] for joint.
    pub extra: Vec<u8>,
}

/// What a work item produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkOutput {
    /// The result.
    pub blob: Vec<u8>,
    /// Core-microseconds spent.
    pub core_us: u64,
    /// Peak memory of the run.
    pub peak_bytes: u64,
}

/// Why an engine could not do a work item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The model is not on this node.
    #[error("model {0} is not on this node; import it there, or list only the models present")]
    UnknownModel(String),
    /// The model is on this node but cannot be used.
    #[error("this node's copy of the model is not usable: {0}")]
    Model(String),
    /// The machine ran out of something.
    #[error("this machine ran out of {0}; free some, or give the node smaller segments")]
    Resources(String),
    /// The inputs contradict what this engine computes, for example a root in the challenge that is not the one recomputed.
    #[error("inputs disagree with this node's own result: {0}; the cluster finds out who is wrong")]
    Disagrees(String),
    /// Specification or inputs are not what this kind of work takes.
    #[error("work item is malformed: {0}; check that all machines run the same release")]
    Malformed(String),
    /// The engine panicked or broke an invariant.
    #[error("engine failed: {0}; report this with the node's log")]
    Internal(String),
}

/// Does the work on a node.
pub trait Engine: Send + Sync + 'static {
    /// Models this engine can run.
    fn models(&self) -> Vec<[u8; 32]>;

    /// Why this engine can do no work any more before its process is started again; `None` as long as it can.
    fn lost(&self) -> Option<String> {
        None
    }

    /// Runs one work item; blocking, called on a thread of its own, one call at a time.
    ///
    /// Inputs: forward takes the boundary before the segment (none for segment 0), commit and prove the same, open that boundary
    /// (none for segment 0) and then the result of prove; joint takes what open does, the result of open, and the challenge. `progress` takes a permille; a **rising** value renews the lease,
    /// so call it more often than the lease is long.
    ///
    /// # Errors
    /// [`EngineError`]; a panic is caught and reported as [`EngineError::Internal`].
    fn run(&self, request: &WorkRequest, inputs: &[Vec<u8>], progress: &dyn Fn(u32)) -> Result<WorkOutput, EngineError>;
}

/// What the coordinator thinks of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Correct as far as this kind can be checked.
    Accept,
    /// Wrong, and here is what is wrong.
    Reject(String),
    /// Contradicts an earlier accepted result of the same segment; one of the two is wrong.
    Dispute(String),
}

/// Why a job cannot be planned, challenged or finished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The specification makes no sense.
    #[error("job specification refused: {0}; correct it and submit again")]
    Spec(String),
    /// Accepted pieces do not fit together.
    #[error("pieces do not make one proof: {0}; submit again, and report the evidence if it repeats")]
    Pieces(String),
}

/// All accepted pieces of a job, each list in segment order.
#[derive(Debug, Clone, Copy)]
pub struct Pieces<'a> {
    /// Results of commit.
    pub commits: &'a [&'a [u8]],
    /// [`Checker::challenge`]'s answer.
    pub challenge: &'a [u8],
    /// Results of prove.
    pub proves: &'a [&'a [u8]],
    /// Results of open.
    pub opens: &'a [&'a [u8]],
}

/// What becomes of all pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// The proof, verified as a whole.
    Proof(Vec<u8>),
    /// All segments have a step to do together: the public bytes of their joint items.
    Step(Vec<u8>),
}

/// A small job that shows whether and how fast a machine computes, see [`Checker::trial`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// The model of calibration.
    pub model: [u8; 32],
    /// Its specification.
    pub spec: Vec<u8>,
    /// Its number of segments, at least 1.
    pub segments: u32,
}

/// Judges results on the coordinator: synchronous, pure, called on blocking threads.
pub trait Checker: Send + Sync + 'static {
    /// Number of segments of a job.
    ///
    /// # Errors
    /// [`CheckError::Spec`] when the specification is not a job.
    fn segments(&self, spec: &[u8]) -> Result<u32, CheckError>;

    /// Judges one result. `inputs` and `extra` are what the engine was given; for commit and prove the accepted boundary *after* the
    /// segment follows as the last input; a commit that differs from it is a [`Verdict::Dispute`]. For joint the segment's part in the step
    /// before follows, in the first step the result of open; a part that is not of that history is a [`Verdict::Dispute`], any other fault
    /// that of whoever delivers it. `output` comes from a peer: any bytes.
    fn check(&self, spec: &[u8], kind: WorkKind, segment: u32, inputs: &[&[u8]], extra: &[u8], output: &[u8]) -> Verdict;

    /// Whether results of this job can be judged here at all. Where they cannot, that is no fault of any node.
    ///
    /// # Errors
    /// [`CheckError::Spec`].
    fn knows(&self, spec: &[u8]) -> Result<(), CheckError> {
        let _ = spec;
        Ok(())
    }

    /// The public bytes for prove and open, from all commits in segment order.
    ///
    /// # Errors
    /// [`CheckError`] when the accepted commits do not fit the specification.
    fn challenge(&self, spec: &[u8], commits: &[&[u8]]) -> Result<Vec<u8>, CheckError>;

    /// Stitches the final proof and verifies it as a whole.
    ///
    /// # Errors
    /// [`CheckError::Pieces`] when the whole does not verify; such a proof is never published.
    fn finish(&self, spec: &[u8], pieces: Pieces<'_>) -> Result<Vec<u8>, CheckError>;

    /// Goes on from all pieces: at once to the proof, as [`Checker::finish`], or in steps that all segments do together. `step` is the
    /// answer before (empty at first) and `parts` what the segments made of it, accepted, in order.
    ///
    /// # Errors
    /// As [`Checker::finish`].
    fn join(&self, spec: &[u8], pieces: Pieces<'_>, step: &[u8], parts: &[&[u8]]) -> Result<Joined, CheckError> {
        let _ = (step, parts);
        self.finish(spec, pieces).map(Joined::Proof)
    }

    /// About how much memory each segment needs, in bytes, in order; empty when that is not known. A node with less is given none of it.
    fn peak_bytes(&self, spec: &[u8]) -> Vec<u64> {
        let _ = spec;
        Vec::new()
    }

    /// The job by which new nodes are calibrated, another one for each number. [`Checker::check`] and [`Checker::challenge`] take its
    /// specification; [`Checker::segments`] refuses it, so that nobody can submit it. `None`: nodes are not calibrated.
    fn trial(&self, number: u64) -> Option<Trial> {
        let _ = number;
        None
    }
}
