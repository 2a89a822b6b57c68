//! The cluster's facts, as a pure function of the log: jobs, accepted results, ends, who is out, the authority's documents.
//!
//! Leases, progress and disputes are not here: they end with the leader who knew them. Nothing is judged here either: an entry was
//! judged before it was proposed, and one that makes no sense any more (a result for a job that has ended) is ignored by
//! all alike. Bounded: what the bounds do not admit is ignored or displaces the oldest.

mod bytes;
mod entry;
mod fact;
mod roster;
mod storage;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use obelysk_node::identity::NodeKeyId;
use obelysk_protocol::wire::BlobRef;
use zeroize::Zeroizing;

use crate::consensus::Machine;
use crate::core::{JobId, Learned, MAX_JOBS, Work};
use crate::identity::Document;
use bytes::{Reader, Writer};
pub use entry::{Entry, MAX_SEGMENTS, MAX_TOOK_NODES, Piece, Sealed, Took};
pub use roster::{MAX_KNOWN, Roster};
pub use storage::LedgerStorage;

/// Ends of jobs kept whatever is proposed; the proposer forgets far earlier, so this only bounds a faulty one.
pub const MAX_ENDED: usize = 1024;
/// Nodes remembered as out; beyond, the one that has been out longest is forgotten.
pub const MAX_QUARANTINED: usize = 4096;
/// Machines whose speed is kept; beyond, the one that has been known longest is forgotten. As many as can be out.
pub const MAX_MACHINES: usize = 4096;
/// Models of which is kept what work on them takes: a fleet works on few at a time, and one can have half a megabyte of it.
pub const MAX_LEARNED: usize = 16;
/// First bytes of a snapshot.
const SNAPSHOT: [u8; 8] = *b"OBLKFCT1";

/// A job that is being worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenJob {
    /// Its place in the order of arrival.
    pub number: u64,
    /// The model.
    pub model: [u8; 32],
    /// The specification.
    pub spec: BlobRef,
    /// Its segments.
    pub segments: u32,
    /// When it was opened, by the clock of whoever led.
    pub opened_unix_s: u64,
    /// Its priority and the memory that its segments need, if that was said.
    pub sized: Option<(u8, Vec<u64>)>,
    /// Results that stand.
    pub accepted: BTreeMap<Work, Piece>,
    /// All commits and the challenge drawn from them, the last one drawn.
    pub challenge: Option<(Vec<BlobRef>, BlobRef)>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With a proof.
    Proved {
        /// The proof.
        proof: BlobRef,
        /// What it took.
        took: Took,
    },
    /// Without.
    Failed {
        /// Cause and remedy.
        reason: String,
    },
}

/// A job that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedJob {
    /// Its place in the order of arrival.
    pub number: u64,
    /// The model.
    pub model: [u8; 32],
    /// The specification; its bytes are not kept.
    pub spec: BlobRef,
    /// Its segments.
    pub segments: u32,
    /// When it was opened, by the clock of whoever led.
    pub opened_unix_s: u64,
    /// When it ended, likewise.
    pub ended_unix_s: u64,
    /// How.
    pub end: End,
}

/// All facts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    open: BTreeMap<JobId, OpenJob>,
    ended: BTreeMap<JobId, EndedJob>,
    /// In the order in which they were put out.
    quarantined: Vec<(NodeKeyId, String)>,
    documents: BTreeMap<Document, Sealed>,
    /// Speed and memory, in the order in which they were last recorded.
    machines: Vec<(NodeKeyId, u64, u64)>,
    /// By model, in the same order.
    learned: Vec<([u8; 32], Learned)>,
}

impl Ledger {
    /// Jobs being worked on.
    pub fn open_jobs(&self) -> impl Iterator<Item = (JobId, &OpenJob)> {
        self.open.iter().map(|(id, job)| (*id, job))
    }

    /// Jobs that ended and are not forgotten.
    pub fn ended_jobs(&self) -> impl Iterator<Item = (JobId, &EndedJob)> {
        self.ended.iter().map(|(id, job)| (*id, job))
    }

    /// How a job ended.
    #[must_use]
    pub fn ended(&self, job: JobId) -> Option<&EndedJob> {
        self.ended.get(&job)
    }

    /// Nodes that are out and why.
    pub fn quarantined(&self) -> impl Iterator<Item = (NodeKeyId, &str)> {
        self.quarantined.iter().map(|(node, reason)| (*node, reason.as_str()))
    }

    /// Core-microseconds of calibration and memory of machines.
    pub fn machines(&self) -> impl Iterator<Item = (NodeKeyId, u64, u64)> {
        self.machines.iter().copied()
    }

    /// What work on models takes.
    pub fn learned(&self) -> impl Iterator<Item = ([u8; 32], &Learned)> {
        self.learned.iter().map(|(model, learned)| (*model, learned))
    }

    /// A document of the authority.
    #[must_use]
    pub fn document(&self, which: Document) -> Option<Zeroizing<Vec<u8>>> {
        self.documents.get(&which).map(|sealed| sealed.0.clone())
    }

    /// The number of the next job.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        let all = self.open.values().map(|job| job.number).chain(self.ended.values().map(|job| job.number));
        all.max().map_or(1, |last| last.saturating_add(1))
    }

    /// Blobs that a job needs: of an open one all, of an ended one the proof.
    #[must_use]
    pub fn blobs_of(&self, id: JobId) -> BTreeSet<BlobRef> {
        let proof = self.ended.get(&id).and_then(|job| match &job.end {
            End::Proved { proof, .. } => Some(*proof),
            End::Failed { .. } => None,
        });
        let open = self.open.get(&id).into_iter().flat_map(|job| {
            let outputs = job.accepted.values().map(|piece| piece.output);
            outputs.chain([job.spec]).chain(job.challenge.iter().map(|(_, extra)| *extra))
        });
        open.chain(proof).filter(|blob| blob.length > 0).collect()
    }

    /// Blobs that any job needs, job by job.
    #[must_use]
    pub fn blobs(&self) -> BTreeMap<JobId, BTreeSet<BlobRef>> {
        self.open.keys().chain(self.ended.keys()).map(|id| (*id, self.blobs_of(*id))).collect()
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::JobOpened { job, number, model, spec, segments, unix_s } => {
                let known = self.open.contains_key(&job) || self.ended.contains_key(&job);
                if !known && self.open.len() < MAX_JOBS {
                    let (sized, accepted, challenge) = (None, BTreeMap::new(), None);
                    let opened = OpenJob { number, model, spec, segments, opened_unix_s: unix_s, sized, accepted, challenge };
                    self.open.insert(job, opened);
                }
            }
            Entry::Accepted { job, work, piece } => {
                if let Some(job) = self.open.get_mut(&job).filter(|job| work.segment < job.segments) {
                    // The first stands until it is expressly taken back.
                    job.accepted.entry(work).or_insert(piece);
                }
            }
            Entry::Retracted { job, work } => {
                if let Some(job) = self.open.get_mut(&job) {
                    job.accepted.remove(&work);
                }
            }
            Entry::Challenged { job, commits, extra } => {
                if let Some(job) = self.open.get_mut(&job).filter(|job| commits.len() == job.segments as usize) {
                    job.challenge = Some((commits, extra));
                }
            }
            Entry::Published { job, proof, took, unix_s } => self.end(job, unix_s, End::Proved { proof, took }),
            Entry::Failed { job, reason, unix_s } => self.end(job, unix_s, End::Failed { reason }),
            Entry::Quarantined { node, reason } => {
                if self.quarantined.iter().all(|(known, _)| *known != node) {
                    self.quarantined.push((node, reason));
                    let above = self.quarantined.len().saturating_sub(MAX_QUARANTINED);
                    self.quarantined.drain(..above);
                }
            }
            Entry::Forgotten { job } => {
                self.ended.remove(&job);
            }
            Entry::Sized { job, priority, peak_bytes } => {
                if let Some(job) = self.open.get_mut(&job).filter(|job| peak_bytes.len() <= job.segments as usize) {
                    job.sized = Some((priority, peak_bytes));
                }
            }
            Entry::Measured { node, trial_us, memory_bytes } => {
                // Latest last: who was not heard of for longest is forgotten first.
                self.machines.retain(|(known, ..)| *known != node);
                self.machines.push((node, trial_us, memory_bytes));
                let above = self.machines.len().saturating_sub(MAX_MACHINES);
                self.machines.drain(..above);
            }
            Entry::Learned { model, learned } => {
                self.learned.retain(|(known, _)| *known != model);
                self.learned.push((model, learned));
                let above = self.learned.len().saturating_sub(MAX_LEARNED);
                self.learned.drain(..above);
            }
            Entry::Document { which, bytes } => {
                self.documents.insert(which, bytes);
            }
        }
    }

    fn end(&mut self, id: JobId, ended_unix_s: u64, end: End) {
        let Some(OpenJob { number, model, spec, segments, opened_unix_s, .. }) = self.open.remove(&id) else { return };
        self.ended.insert(id, EndedJob { number, model, spec, segments, opened_unix_s, ended_unix_s, end });
        if self.ended.len() > MAX_ENDED
            && let Some(oldest) = self.ended.iter().min_by_key(|(id, job)| (job.number, **id)).map(|(id, _)| *id)
        {
            self.ended.remove(&oldest);
        }
    }

    /// Entries that lead from nothing to this state, in the one order that depends on the state alone.
    fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (job, ended) in &self.ended {
            let &EndedJob { number, model, spec, segments, opened_unix_s: unix_s, .. } = ended;
            entries.push(Entry::JobOpened { job: *job, number, model, spec, segments, unix_s });
            let unix_s = ended.ended_unix_s;
            entries.push(match ended.end.clone() {
                End::Proved { proof, took } => Entry::Published { job: *job, proof, took, unix_s },
                End::Failed { reason } => Entry::Failed { job: *job, reason, unix_s },
            });
        }
        for (id, open) in &self.open {
            let (job, &OpenJob { number, model, spec, segments, opened_unix_s: unix_s, .. }) = (*id, open);
            entries.push(Entry::JobOpened { job, number, model, spec, segments, unix_s });
            let sized = open.sized.clone();
            entries.extend(sized.map(|(priority, peak_bytes)| Entry::Sized { job, priority, peak_bytes }));
            entries.extend(open.accepted.iter().map(|(work, piece)| Entry::Accepted { job, work: *work, piece: piece.clone() }));
            entries.extend(open.challenge.clone().map(|(commits, extra)| Entry::Challenged { job, commits, extra }));
        }
        let out = self.quarantined.iter().cloned();
        entries.extend(out.map(|(node, reason)| Entry::Quarantined { node, reason }));
        let machine = |(node, trial_us, memory_bytes)| Entry::Measured { node, trial_us, memory_bytes };
        entries.extend(self.machines().map(machine));
        entries.extend(self.learned().map(|(model, learned)| Entry::Learned { model, learned: learned.clone() }));
        entries.extend(self.documents.iter().map(|(which, bytes)| Entry::Document { which: *which, bytes: bytes.clone() }));
        entries
    }
}

impl Machine for Ledger {
    fn apply(&mut self, _index: u64, entry: &[u8]) {
        match Entry::decode(entry) {
            Some(entry) => self.take(entry),
            None => {
                tracing::warn!(bytes = entry.len(), "an entry of the log does not decode; is another release in this cluster?")
            }
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.raw(&SNAPSHOT);
        self.entries().iter().for_each(|entry| w.bytes(&entry.encode()));
        w.0
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let cut = || "the snapshot of the cluster's facts does not read: it is damaged, or of another release".to_owned();
        let mut r = Reader(snapshot);
        if r.array() != Some(SNAPSHOT) {
            return Err(cut());
        }
        let mut next = Self::default();
        while !r.0.is_empty() {
            // A little more than the largest entry: the limit is on its content.
            let entry = r.bytes(crate::consensus::MAX_ENTRY_BYTES + 64).and_then(Entry::decode);
            next.take(entry.ok_or_else(cut)?);
        }
        *self = next;
        Ok(())
    }
}

/// The ledger between the log that writes it and everybody who reads.
#[derive(Debug, Clone, Default)]
pub struct SharedLedger(Arc<Mutex<Ledger>>);

impl SharedLedger {
    /// Reads. Whoever holds this holds up the log.
    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine for SharedLedger {
    fn apply(&mut self, index: u64, entry: &[u8]) {
        self.lock().apply(index, entry);
    }

    fn snapshot(&self) -> Vec<u8> {
        self.lock().snapshot()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.lock().restore(snapshot)
    }
}
