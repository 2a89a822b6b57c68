//! The [`Engine`] that proves: segment jobs of `obelysk-shard` behind opaque bytes (see [`crate::job_bytes`]).
//!
//! Every item is complete in itself; committed values are kept so that the node that committed a segment proves it without
//! doing so again. What was dropped, or committed elsewhere, is computed again and gives the same bytes.

use crate::engine::{Engine, EngineError, WorkKind, WorkOutput, WorkRequest};
use crate::job_bytes::{
    Challenge, CommitBlob, JobBytesError, JobSpec, OpenJob, claims_from_bytes, claims_to_bytes, hidden_from_bytes,
    hidden_to_bytes,
};
use crate::joint::{Joining, Joinings};
use crate::joint_bytes::JointRecord;
use crate::model_folder::ModelFolder;
use crate::usage;
use obelysk_model::recent::{Key, Recent};
use obelysk_model::source::WEIGHT_BYTES;
use obelysk_protocol::circuit::{PublicInput, segment_count};
use obelysk_protocol::transcript::{Digest, HashSuite};
use obelysk_protocol::verifier::aggregate::{Stated as _, check_input};
use obelysk_protocol::verifier::proof::MODE_AGGREGATED;
use obelysk_shard::hidden;
use obelysk_shard::job::{self, Backend, Committed, JobError, LoadedModel, SegmentClaims};
use obelysk_shard::prover::commitment::RegisteredWords;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Memory of committed values kept: a short text through a small model, or one long segment.
const COMMITTED_BYTES: usize = 1 << 30;
/// Memory of segments kept between joint steps: a large model's share of a small fleet.
const JOINING_BYTES: usize = 1 << 30;
/// Models in memory at once: a node serves one, and one more while a cluster changes over.
const MODELS: usize = 2;
/// Statements kept: one per running job.
const STATEMENTS: usize = 4;

/// Proves segments of registered models.
pub struct ProverEngine<S: HashSuite, B: Backend> {
    backend: B,
    folders: RwLock<BTreeMap<Digest, ModelFolder>>,
    weight_bytes: usize,
    tile_bytes: usize,
    loaded: Recent<LoadedModel<S, B>>,
    committed: Recent<Committed<B>>,
    statements: Recent<OpenJob>,
    joinings: Joinings<B>,
}

impl<S: HashSuite, B: Backend> ProverEngine<S, B> {
    /// An engine for these models; weights are read when first needed.
    #[must_use]
    pub fn new(backend: B, folders: impl IntoIterator<Item = ModelFolder>) -> Self {
        let folders = folders.into_iter().map(|folder| (folder.id, folder)).collect();
        let (loaded, statements) = (Recent::new(MODELS), Recent::new(STATEMENTS));
        let committed = Recent::new(COMMITTED_BYTES);
        let (folders, joinings) = (RwLock::new(folders), Joinings::new(JOINING_BYTES));
        Self { backend, folders, weight_bytes: WEIGHT_BYTES, tile_bytes: usize::MAX, loaded, committed, statements, joinings }
    }

    /// Keeps at most `bytes` of a model's weights in memory, see [`ModelFolder::load_parted`].
    #[must_use]
    pub fn with_weight_bytes(mut self, bytes: usize) -> Self {
        self.weight_bytes = bytes;
        self
    }

    /// Shares out `bytes` of memory of its own where the backend has its values: an eighth each for committed values and for segments
    /// between joint steps, a quarter for tiles of weights; the rest is for the work itself. Never more than without this.
    #[must_use]
    pub fn with_own_memory(mut self, bytes: usize) -> Self {
        self.committed = Recent::new(COMMITTED_BYTES.min(bytes / 8));
        self.joinings = Joinings::new(JOINING_BYTES.min(bytes / 8));
        self.tile_bytes = bytes / 4;
        self
    }

    /// Drops what is kept for later items and lies where the backend has its values; it is computed again when it is needed.
    pub fn forget_values(&self) {
        self.committed.clear();
        self.joinings.clear();
        self.loaded.all().iter().for_each(|model| model.forget_tiles());
    }

    /// Drops all that is kept, models included.
    pub fn forget_all(&self) {
        self.forget_values();
        self.loaded.clear();
    }

    /// Where the values of this engine lie.
    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    fn folders(&self) -> RwLockReadGuard<'_, BTreeMap<Digest, ModelFolder>> {
        self.folders.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one more model; its weights are read and checked when first needed.
    pub fn adopt(&self, folder: ModelFolder) {
        self.folders.write().unwrap_or_else(PoisonError::into_inner).insert(folder.id, folder);
    }

    fn model(&self, id: &Digest) -> Result<Arc<LoadedModel<S, B>>, EngineError> {
        let hex = || id.iter().map(|b| format!("{b:02x}")).collect();
        let folder = self.folders().get(id).cloned().ok_or_else(|| EngineError::UnknownModel(hex()))?;
        self.loaded.get_or(*id, || {
            let half = self.weight_bytes / 2;
            let loaded = folder.load_parted(half, half.min(self.tile_bytes));
            loaded.map(|model| (model, 1)).map_err(|e| EngineError::Model(e.to_string()))
        })
    }
}

/// One item with everything read.
struct Item<'a, S: HashSuite, B: Backend> {
    model: &'a LoadedModel<S, B>,
    spec: JobSpec,
    input: PublicInput,
    segment: usize,
    before: Vec<i32>,
    /// Names specification, segment and hidden state.
    key: Key,
}

impl<S: HashSuite, B: Backend + 'static> Engine for ProverEngine<S, B> {
    fn models(&self) -> Vec<[u8; 32]> {
        self.folders().keys().copied().collect()
    }

    fn run(&self, request: &WorkRequest, inputs: &[Vec<u8>], progress: &dyn Fn(u32)) -> Result<WorkOutput, EngineError> {
        let started = usage::cpu_time();
        let model = self.model(&request.model)?;
        progress(100);
        let item = Item::read(&model, request, inputs)?;
        let blob = match request.kind {
            WorkKind::Forward => {
                let trace = job::forward(&*model.model, &item.input, item.segment, &item.before).map_err(job_error)?;
                hidden_to_bytes(&model.registered.descriptor, &trace.hidden().unwrap_or_default())
            }
            WorkKind::Commit => commit_blob(&item, &*self.committed(&item)?).encode(),
            WorkKind::Prove => {
                let (job, committed) = self.challenged(&item, &request.extra)?;
                progress(500);
                let (s, seed) = (&job.statement, &job.seed);
                let claims = job::prove(&self.backend, &model, s, seed, item.segment, &committed).map_err(job_error)?;
                claims_to_bytes(&claims.boundaries, &claims.proof)
            }
            WorkKind::Open => {
                let blob = inputs.last().map_or(&[][..], Vec::as_slice);
                if item.spec.mode == MODE_AGGREGATED {
                    let (joining, opened) = self.reduce(&item, &request.extra, blob, progress)?;
                    self.joinings.keep(item.joint_key(&request.extra, blob), joining);
                    opened
                } else {
                    self.open(&item, &request.extra, blob, progress)?
                }
            }
            WorkKind::Joint => self.joint(&item, &request.extra, inputs, progress)?,
        };
        let core_us = usage::cpu_time().saturating_sub(started).as_micros();
        let core_us = u64::try_from(core_us).unwrap_or(u64::MAX);
        Ok(WorkOutput { blob, core_us, peak_bytes: usage::peak_memory_bytes() })
    }
}

impl<'a, S: HashSuite, B: Backend> Item<'a, S, B> {
    fn segments(&self) -> usize {
        segment_count(&self.model.registered.descriptor)
    }

    /// Names all that a segment's part in the opening of all depends on.
    fn joint_key(&self, challenge: &[u8], claims: &[u8]) -> Key {
        let lengths = [challenge.len(), claims.len()].map(|n| (n as u64).to_le_bytes()).concat();
        blake3::Hasher::new().update(&self.key).update(&lengths).update(challenge).update(claims).finalize().into()
    }

    fn claims(&self, job: &OpenJob, blob: &[u8]) -> Result<SegmentClaims, EngineError> {
        let model = &self.model.registered;
        let circuit = job.statement.circuit(model, self.segment).map_err(|e| EngineError::Malformed(e.to_string()))?;
        let (boundaries, proof) = claims_from_bytes(blob, model, (self.segment, &*circuit)).map_err(malformed)?;
        Ok(SegmentClaims { boundaries, proof })
    }

    fn read(model: &'a LoadedModel<S, B>, request: &WorkRequest, inputs: &[Vec<u8>]) -> Result<Self, EngineError> {
        let spec = JobSpec::decode(&request.spec).map_err(malformed)?;
        let d = &model.registered.descriptor;
        let segment = request.segment as usize;
        if spec.model != request.model || segment >= segment_count(d) {
            return Err(EngineError::Malformed(format!("segment {segment} of a job for another model")));
        }
        let missing = || EngineError::Malformed("the hidden state before the segment is missing".to_owned());
        let input = spec.input();
        check_input(d, &input).map_err(|e| EngineError::Malformed(e.to_string()))?;
        let (before, bytes) = match segment {
            0 => (Vec::new(), &[][..]),
            _ => {
                let bytes = inputs.first().ok_or_else(missing)?;
                (hidden_from_bytes(d, bytes, hidden::hidden_len(d, &input)).map_err(malformed)?, bytes.as_slice())
            }
        };
        let key = blake3::Hasher::new().update(&request.spec).update(&request.segment.to_le_bytes()).update(bytes).finalize();
        Ok(Self { model, spec, input, segment, before, key: key.into() })
    }
}

impl<S: HashSuite, B: Backend> ProverEngine<S, B> {
    /// Mode 1: the segment's opening.
    fn open(&self, item: &Item<'_, S, B>, challenge: &[u8], blob: &[u8], progress: &dyn Fn(u32)) -> Result<Vec<u8>, EngineError> {
        let (job, committed) = self.challenged(item, challenge)?;
        progress(500);
        let claims = item.claims(&job, blob)?;
        let about = (&*committed, &claims);
        let opening = job::open(&self.backend, item.model, &job.statement, &job.seed, item.segment, about).map_err(job_error)?;
        let mut out = Vec::new();
        opening.write(&mut out);
        Ok(out)
    }

    /// Mode 2: the segment before the first joint step, and the sumchecks of its rows.
    fn reduce(
        &self,
        item: &Item<'_, S, B>,
        challenge: &[u8],
        blob: &[u8],
        progress: &dyn Fn(u32),
    ) -> Result<(Joining<B>, Vec<u8>), EngineError> {
        let (job, committed) = self.challenged(item, challenge)?;
        progress(500);
        let claims = item.claims(&job, blob)?;
        let about = (&*committed, &claims);
        let made = job::reduce(&self.backend, item.model, &job.statement, &job.seed, item.segment, about).map_err(job_error)?;
        // Nothing that was checked so far binds the claims to the values; whoever goes on from here answers for both.
        if !made.segment.part.holds(&self.backend) {
            return Err(EngineError::Disagrees("the claims are not those of the committed values".to_owned()));
        }
        let mut opened = Vec::new();
        made.rows.write(&mut opened);
        let h = item.model.registered.opening().h as usize;
        Ok((Joining::new(&self.backend, made, opened.clone(), h), opened))
    }

    /// Mode 2: the segment's part in a joint step. Inputs end with the results of prove and open, and the challenge.
    fn joint(
        &self,
        item: &Item<'_, S, B>,
        extra: &[u8],
        inputs: &[Vec<u8>],
        progress: &dyn Fn(u32),
    ) -> Result<Vec<u8>, EngineError> {
        let record = JointRecord::decode(extra).map_err(malformed)?;
        if item.spec.mode != MODE_AGGREGATED || !record.fits(item.segments(), &item.model.registered.opening()) {
            return Err(EngineError::Malformed("this job has no such joint step".to_owned()));
        }
        let Some(([.., blob, _], challenge)) = inputs.split_last().map(|(challenge, rest)| (rest, challenge)) else {
            return Err(EngineError::Malformed("a joint step takes claims, rows and challenge".to_owned()));
        };
        let key = item.joint_key(challenge, blob);
        let mut joining = match self.joinings.take(&key, &record, item.segment) {
            Some(joining) => joining,
            None => self.reduce(item, challenge, blob, progress)?.0,
        };
        progress(700);
        let answer = |words: Option<&RegisteredWords>, positions: &[usize]| {
            let (_, committed) = self.challenged(item, challenge)?;
            job::answer(&self.backend, item.model, item.segment, (&*committed, words), positions).map_err(job_error)
        };
        let part = joining.part(&self.backend, &record, item.segment, &answer)?;
        self.joinings.keep(key, joining);
        Ok(part)
    }

    fn committed(&self, item: &Item<'_, S, B>) -> Result<Arc<Committed<B>>, EngineError> {
        self.committed.get_or(item.key, || {
            let made = job::commit(&self.backend, item.model, &item.input, item.segment, &item.before).map_err(job_error)?;
            let bytes = made.bytes();
            Ok((made, bytes))
        })
    }

    /// Statement and committed values of an item that comes after the challenge.
    fn challenged(&self, item: &Item<'_, S, B>, extra: &[u8]) -> Result<(Arc<OpenJob>, Arc<Committed<B>>), EngineError> {
        let challenge = Challenge::decode(extra).map_err(malformed)?;
        let key = blake3::Hasher::new().update(&item.spec.encode()).update(extra).finalize();
        let job = self.statements.get_or(key.into(), || {
            let job = challenge.open::<S>(&item.model.registered, &item.spec);
            job.map(|job| (job, 1)).map_err(|e| EngineError::Malformed(format!("challenge: {e}")))
        })?;
        let committed = self.committed(item)?;
        if challenge.roots.get(item.segment) != Some(&committed.root()) {
            return Err(EngineError::Disagrees("the committed root is another".to_owned()));
        }
        Ok((job, committed))
    }
}

fn commit_blob<S: HashSuite, B: Backend>(item: &Item<'_, S, B>, committed: &Committed<B>) -> CommitBlob {
    let d = &item.model.registered.descriptor;
    let head = item.segment + 1 == segment_count(d);
    let output = if head { hidden::output(d, &item.input, &item.before) } else { Vec::new() };
    let after = hidden_to_bytes(d, &committed.hidden().unwrap_or_default());
    CommitBlob { root: committed.root(), after: blake3::hash(&after).into(), output }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn malformed(e: JobBytesError) -> EngineError {
    EngineError::Malformed(e.to_string())
}

fn job_error(e: JobError) -> EngineError {
    match e {
        JobError::Infer(_) | JobError::Hidden { .. } | JobError::HiddenValue(_) | JobError::Completion { .. } => {
            EngineError::Malformed(e.to_string())
        }
        JobError::Verify(_) => EngineError::Disagrees(e.to_string()),
        JobError::Register(_) | JobError::Store(_) => EngineError::Model(e.to_string()),
        JobError::Witness(_) | JobError::Circuit(_) | JobError::Opening(_) | JobError::Aggregate(_) => {
            EngineError::Internal(e.to_string())
        }
    }
}
