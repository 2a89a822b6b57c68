//! One durable fact and its bytes: version, kind, fields, all little-endian. Decoding is total, bounded and takes nothing but what
//! encoding gives. Ids of kinds are never reused; a changed fact gets a new one.

use std::fmt;

use obelysk_node::engine::WorkKind;
use obelysk_node::identity::{Id, NodeKeyId};
use obelysk_protocol::wire::{BlobRef, MAX_INPUTS, MAX_PHASES, MAX_PRIORITY, MAX_TEXT_BYTES};
use zeroize::Zeroizing;

use super::bytes::{Reader, Writer};
use crate::consensus::MAX_ENTRY_BYTES;
use crate::core::{JobId, Learned, Needs, Work};
use crate::identity::Document;

/// Version of these bytes.
const VERSION: u8 = 1;
/// Most segments of a job: as many as a proof can have.
pub const MAX_SEGMENTS: u32 = 1 << 12;
/// Most nodes named as having a part in one proof: as many as are served at once.
pub const MAX_TOOK_NODES: usize = 2048;

/// An accepted result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Who made it.
    pub node: NodeKeyId,
    /// What it was computed from and checked against.
    pub needs: Needs,
    /// The result.
    pub output: BlobRef,
    /// Core-microseconds spent, as reported.
    pub core_us: u64,
    /// Peak memory, as reported.
    pub peak_bytes: u64,
}

/// What a proof took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Took {
    /// Kind of work, wall-clock milliseconds, core-microseconds.
    pub phases: Vec<(WorkKind, u64, u64)>,
    /// Largest peak memory of any item.
    pub peak_bytes: u64,
    /// Nodes whose results are in the proof, rising.
    pub nodes: Vec<NodeKeyId>,
}

/// Bytes that are not for logs: wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Sealed(pub Zeroizing<Vec<u8>>);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// One durable fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A job was taken on.
    JobOpened {
        /// The job.
        job: JobId,
        /// Its place in the order of arrival.
        number: u64,
        /// The model.
        model: [u8; 32],
        /// The specification.
        spec: BlobRef,
        /// Its segments.
        segments: u32,
        /// When, by the proposer's clock.
        unix_s: u64,
    },
    /// A result was accepted.
    Accepted {
        /// The job.
        job: JobId,
        /// The item.
        work: Work,
        /// The result.
        piece: Piece,
    },
    /// An accepted result was taken back.
    Retracted {
        /// The job.
        job: JobId,
        /// The item.
        work: Work,
    },
    /// The challenge was drawn.
    Challenged {
        /// The job.
        job: JobId,
        /// All commits, by segment.
        commits: Vec<BlobRef>,
        /// The challenge.
        extra: BlobRef,
    },
    /// A job ended with a proof.
    Published {
        /// The job.
        job: JobId,
        /// The proof.
        proof: BlobRef,
        /// What it took.
        took: Took,
        /// When, by the proposer's clock.
        unix_s: u64,
    },
    /// A job ended without one.
    Failed {
        /// The job.
        job: JobId,
        /// Cause and remedy.
        reason: String,
        /// When, by the proposer's clock.
        unix_s: u64,
    },
    /// A node is out.
    Quarantined {
        /// The node.
        node: NodeKeyId,
        /// Evidence for people.
        reason: String,
    },
    /// The end of a job is kept no longer.
    Forgotten {
        /// The job.
        job: JobId,
    },
    /// How much a job counts beside others, and what it needs.
    Sized {
        /// The job.
        job: JobId,
        /// 0 to 9.
        priority: u8,
        /// Memory that each segment needs, in bytes.
        peak_bytes: Vec<u64>,
    },
    /// How fast a machine was at calibration.
    Measured {
        /// The machine.
        node: NodeKeyId,
        /// Core-microseconds of the job of calibration.
        trial_us: u64,
        /// Its memory in bytes; 0 when that is not known.
        memory_bytes: u64,
    },
    /// What work on a model takes.
    Learned {
        /// The model.
        model: [u8; 32],
        /// What was learned.
        learned: Learned,
    },
    /// A document of the authority, replaced whole.
    Document {
        /// Which.
        which: Document,
        /// Its bytes.
        bytes: Sealed,
    },
}

const JOB_OPENED: u8 = 1;
const ACCEPTED: u8 = 2;
const RETRACTED: u8 = 3;
const CHALLENGED: u8 = 4;
const PUBLISHED: u8 = 5;
const FAILED: u8 = 6;
const QUARANTINED: u8 = 7;
const FORGOTTEN: u8 = 8;
const DOCUMENT: u8 = 9;
const SIZED: u8 = 10;
const MEASURED: u8 = 11;
const LEARNED: u8 = 12;
/// Most items of a model: each segment in each kind of work.
const MAX_ITEMS: usize = MAX_SEGMENTS as usize * WorkKind::EVERY.len();

impl Entry {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION);
        match self {
            Self::JobOpened { job, number, model, spec, segments, unix_s } => {
                w.u8(JOB_OPENED);
                w.raw(&job.0);
                w.u64(*number);
                w.raw(model);
                w.blob(*spec);
                w.u32(*segments);
                w.u64(*unix_s);
            }
            Self::Accepted { job, work, piece } => {
                w.u8(ACCEPTED);
                w.raw(&job.0);
                write_work(&mut w, *work);
                write_piece(&mut w, piece);
            }
            Self::Retracted { job, work } => {
                w.u8(RETRACTED);
                w.raw(&job.0);
                write_work(&mut w, *work);
            }
            Self::Challenged { job, commits, extra } => {
                w.u8(CHALLENGED);
                w.raw(&job.0);
                w.blobs(commits);
                w.blob(*extra);
            }
            Self::Published { job, proof, took, unix_s } => {
                w.u8(PUBLISHED);
                w.raw(&job.0);
                w.blob(*proof);
                write_took(&mut w, took);
                w.u64(*unix_s);
            }
            Self::Failed { job, reason, unix_s } => {
                w.u8(FAILED);
                w.raw(&job.0);
                w.bytes(reason.as_bytes());
                w.u64(*unix_s);
            }
            Self::Quarantined { node, reason } => {
                w.u8(QUARANTINED);
                w.raw(&node.0);
                w.bytes(reason.as_bytes());
            }
            Self::Forgotten { job } => {
                w.u8(FORGOTTEN);
                w.raw(&job.0);
            }
            Self::Sized { job, priority, peak_bytes } => {
                w.u8(SIZED);
                w.raw(&job.0);
                w.u8(*priority);
                w.count(peak_bytes.len());
                peak_bytes.iter().for_each(|bytes| w.u64(*bytes));
            }
            Self::Measured { node, trial_us, memory_bytes } => {
                w.u8(MEASURED);
                w.raw(&node.0);
                w.u64(*trial_us);
                w.u64(*memory_bytes);
            }
            Self::Learned { model, learned } => {
                w.u8(LEARNED);
                w.raw(model);
                write_learned(&mut w, learned);
            }
            Self::Document { which, bytes } => {
                w.u8(DOCUMENT);
                w.u8(document_code(*which));
                w.bytes(&bytes.0);
            }
        }
        w.0
    }

    /// The fact in these bytes; `None` for any that [`Entry::encode`] does not give.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        (r.u8()? == VERSION).then_some(())?;
        let entry = match r.u8()? {
            JOB_OPENED => {
                let (job, number, model, spec) = (JobId(r.array()?), r.u64()?, r.array()?, r.blob()?);
                let segments = r.u32().filter(|n| (1..=MAX_SEGMENTS).contains(n))?;
                Self::JobOpened { job, number, model, spec, segments, unix_s: r.u64()? }
            }
            ACCEPTED => Self::Accepted { job: JobId(r.array()?), work: read_work(&mut r)?, piece: read_piece(&mut r)? },
            RETRACTED => Self::Retracted { job: JobId(r.array()?), work: read_work(&mut r)? },
            CHALLENGED => {
                let (job, commits) = (JobId(r.array()?), r.blobs(MAX_SEGMENTS as usize)?);
                Self::Challenged { job, commits, extra: r.blob()? }
            }
            PUBLISHED => {
                let (job, proof, took) = (JobId(r.array()?), r.blob()?, read_took(&mut r)?);
                Self::Published { job, proof, took, unix_s: r.u64()? }
            }
            FAILED => Self::Failed { job: JobId(r.array()?), reason: r.text(MAX_TEXT_BYTES)?, unix_s: r.u64()? },
            QUARANTINED => Self::Quarantined { node: Id(r.array()?), reason: r.text(MAX_TEXT_BYTES)? },
            FORGOTTEN => Self::Forgotten { job: JobId(r.array()?) },
            SIZED => {
                let (job, priority) = (JobId(r.array()?), r.u8().filter(|priority| *priority <= MAX_PRIORITY)?);
                Self::Sized { job, priority, peak_bytes: r.list(MAX_SEGMENTS as usize, Reader::u64)? }
            }
            MEASURED => Self::Measured { node: Id(r.array()?), trial_us: r.u64()?, memory_bytes: r.u64()? },
            LEARNED => Self::Learned { model: r.array()?, learned: read_learned(&mut r)? },
            DOCUMENT => {
                let which = document_of(r.u8()?)?;
                let bytes = Sealed(Zeroizing::new(r.bytes(MAX_ENTRY_BYTES)?.to_vec()));
                Self::Document { which, bytes }
            }
            _ => return None,
        };
        r.0.is_empty().then_some(entry)
    }
}

const fn document_code(which: Document) -> u8 {
    match which {
        Document::Authority => 1,
        Document::Registry => 2,
        Document::Models => 3,
    }
}

fn document_of(code: u8) -> Option<Document> {
    [Document::Authority, Document::Registry, Document::Models].into_iter().find(|which| document_code(*which) == code)
}

fn write_work(w: &mut Writer, work: Work) {
    w.u8(work.kind.code());
    w.u32(work.segment);
}

fn read_work(r: &mut Reader<'_>) -> Option<Work> {
    let kind = WorkKind::from_code(r.u8()?)?;
    Some(Work::new(kind, r.u32().filter(|segment| *segment < MAX_SEGMENTS)?))
}

fn write_piece(w: &mut Writer, piece: &Piece) {
    let Piece { node, needs, output, core_us, peak_bytes } = piece;
    w.raw(&node.0);
    w.blobs(&needs.inputs);
    let against: Vec<BlobRef> = needs.against.into_iter().collect();
    w.blobs(&against);
    w.blob(needs.extra);
    w.blob(*output);
    w.u64(*core_us);
    w.u64(*peak_bytes);
}

fn read_piece(r: &mut Reader<'_>) -> Option<Piece> {
    let (node, inputs) = (Id(r.array()?), r.blobs(MAX_INPUTS)?);
    let against = r.blobs(1)?.pop();
    let needs = Needs { inputs, against, extra: r.blob()? };
    Some(Piece { node, needs, output: r.blob()?, core_us: r.u64()?, peak_bytes: r.u64()? })
}

fn write_learned(w: &mut Writer, learned: &Learned) {
    w.count(learned.costs.len());
    for (work, core_us, peak_bytes) in &learned.costs {
        write_work(w, *work);
        w.u64(*core_us);
        w.u64(*peak_bytes);
    }
    w.count(learned.quartiles.len());
    for (kind, ms) in &learned.quartiles {
        w.u8(kind.code());
        w.u64(*ms);
    }
}

fn read_learned(r: &mut Reader<'_>) -> Option<Learned> {
    let costs = r.list(MAX_ITEMS, |r| Some((read_work(r)?, r.u64()?, r.u64()?)))?;
    let quartiles = r.list(WorkKind::EVERY.len(), |r| Some((WorkKind::from_code(r.u8()?)?, r.u64()?)))?;
    Some(Learned { costs, quartiles })
}

fn write_took(w: &mut Writer, took: &Took) {
    w.count(took.phases.len());
    for (kind, wall_ms, core_us) in &took.phases {
        w.u8(kind.code());
        w.u64(*wall_ms);
        w.u64(*core_us);
    }
    w.u64(took.peak_bytes);
    w.count(took.nodes.len());
    took.nodes.iter().for_each(|node| w.raw(&node.0));
}

fn read_took(r: &mut Reader<'_>) -> Option<Took> {
    let phases = r.list(MAX_PHASES, |r| Some((WorkKind::from_code(r.u8()?)?, r.u64()?, r.u64()?)))?;
    let peak_bytes = r.u64()?;
    Some(Took { phases, peak_bytes, nodes: r.list(MAX_TOOK_NODES, |r| r.array().map(Id))? })
}
