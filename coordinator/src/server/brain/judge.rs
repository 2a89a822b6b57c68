//! Judgements and the referee, on blocking threads: they read blobs, call checker or engine, and come back as inputs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use obelysk_node::engine::{Checker, Joined, Pieces, Verdict, WorkKind, WorkRequest};
use obelysk_node::identity::{Id, unix_now};
use obelysk_protocol::wire::{Assign, BlobRef, Message};

use super::{Brain, Command};
use crate::core::{Input, JobId, Needs, NodeId, Work};
use crate::evidence::{Charge, Evidence, Exhibits};
use crate::server::observer::Who;
use crate::server::store::{NotHad, Store};

/// Why a judgement came to nothing.
enum Trouble {
    /// A blob is gone; the store remembers, and the brain has what stood on it made again.
    Lost,
    /// The term ended meanwhile: nobody waits for this any more.
    Over,
    /// Anything else: the job cannot go on.
    Failed(String),
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

impl Brain {
    /// Runs a judgement on a blocking thread, a bounded number at a time. A panic there fails the job and nothing else.
    fn judge(
        &self,
        job: JobId,
        step: &'static str,
        work: impl FnOnce(&Store, &dyn Checker) -> Result<Input, Trouble> + Send + 'static,
    ) {
        let (store, checker, permits) = (self.store.clone(), self.checker.clone(), self.permits.clone());
        let (commands, observer) = (self.commands.clone(), self.observer.clone());
        tokio::spawn(async move {
            let Ok(_permit) = permits.acquire_owned().await else { return };
            let judge = move || observer.time(step, || work(&store, checker.as_ref()));
            let guarded = move || catch_unwind(AssertUnwindSafe(judge));
            let panicked = || Trouble::Failed("the coordinator's checker panicked; report this with its log".to_owned());
            let outcome = match tokio::task::spawn_blocking(guarded).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => Err(panicked()),
            };
            let input = match outcome {
                Ok(input) => input,
                Err(Trouble::Lost | Trouble::Over) => return,
                Err(Trouble::Failed(reason)) => Input::CheckerFailed { job, reason },
            };
            let _ = commands.send(Command::Core(input)).await;
        });
    }

    pub(super) fn check(&self, (who, job, work, epoch): (Who, JobId, Work, u64), about: (BlobRef, Needs, BlobRef)) {
        let ((spec, needs, output), evidence) = (about, self.evidence.clone());
        self.judge(job, work.kind.name(), move |store, checker| {
            let blobs = load(store, needs.inputs.iter().chain(&needs.against))?;
            let inputs: Vec<&[u8]> = blobs.iter().map(|b| b.as_slice()).collect();
            let [spec, extra, output] = [spec, needs.extra, output].map(|blob| load_one(store, blob));
            let (spec, extra, output) = (spec?, extra?, output?);
            // A job of a leader before, of a model that only that one had.
            checker.knows(&spec).map_err(|e| e.to_string())?;
            let verdict = checker.check(&spec, work.kind, work.segment, &inputs, &extra, &output);
            if verdict != Verdict::Accept {
                tracing::warn!(%job, %work, ?verdict, "result not accepted");
                let inputs = inputs.iter().map(|blob| blob.to_vec()).collect();
                let [spec, extra, output] = [&spec, &extra, &output].map(|blob| blob.to_vec());
                keep_evidence(evidence, charge((who, job, work, epoch), &verdict), Exhibits { spec, extra, inputs, output });
            }
            Ok(Input::CheckResult { job, work, epoch, verdict })
        });
    }

    pub(super) fn derive(&self, job: JobId, spec: BlobRef, commits: Vec<BlobRef>) {
        self.judge(job, "challenge", move |store, checker| {
            let blobs = load(store, commits.iter())?;
            let pieces: Vec<&[u8]> = blobs.iter().map(|b| b.as_slice()).collect();
            let result = checker.challenge(&load_one(store, spec)?, &pieces).map_err(|e| e.to_string());
            let result = result.and_then(|bytes| keep(store, job, bytes));
            Ok(Input::ChallengeDerived { job, commits, result })
        });
    }

    pub(super) fn finish(
        &self,
        job: JobId,
        spec: BlobRef,
        pieces: (Vec<BlobRef>, BlobRef, Vec<BlobRef>, Vec<BlobRef>),
        joint: Option<(BlobRef, Vec<BlobRef>)>,
    ) {
        self.judge(job, if joint.is_some() { "join" } else { "finish" }, move |store, checker| {
            let (commits, challenge, proves, opens) = pieces;
            let blobs = [load(store, commits.iter())?, load(store, proves.iter())?, load(store, opens.iter())?];
            let [commits, proves, opens] = blobs.each_ref().map(|list| list.iter().map(|b| b.as_slice()).collect::<Vec<_>>());
            let challenge = load_one(store, challenge)?;
            let pieces = Pieces { commits: &commits, challenge: &challenge, proves: &proves, opens: &opens };
            let after = joint.as_ref().map(|(step, _)| *step);
            let (step, parts) = joint.map_or((BlobRef::of(&[]), Vec::new()), |joint| joint);
            let (step, parts) = (load_one(store, step)?, load(store, parts.iter())?);
            let parts: Vec<&[u8]> = parts.iter().map(|b| b.as_slice()).collect();
            Ok(match checker.join(&load_one(store, spec)?, pieces, &step, &parts) {
                Ok(Joined::Proof(bytes)) => Input::Finished { job, result: keep(store, job, bytes) },
                Ok(Joined::Step(bytes)) => Input::Joined { job, after, step: keep_briefly(store, job, bytes)? },
                Err(e) => Input::Finished { job, result: Err(e.to_string()) },
            })
        });
    }

    /// Runs the coordinator's own engine; it settles disputes, so it need not be fast.
    pub(super) fn ask_referee(&self, assignment: Assignment) {
        let Some(engine) = self.referee.clone() else { return };
        let (store, commands) = (self.store.clone(), self.commands.clone());
        let node = NodeId::REFEREE;
        tokio::task::spawn_blocking(move || {
            let Assignment { epoch, job, model, work, spec, needs } = assignment;
            let failed = |disagrees, reason| Input::WorkFailed { node, epoch, disagrees, reason };
            let progress = |permille| {
                let _ = commands.try_send(Command::Core(Input::Progress { node, epoch, permille }));
            };
            let attempt = || -> Result<Input, Trouble> {
                let inputs: Vec<Vec<u8>> = load(&store, needs.inputs.iter())?.iter().map(|b| b.to_vec()).collect();
                let (spec, extra) = (load_one(&store, spec)?.to_vec(), load_one(&store, needs.extra)?.to_vec());
                let request = WorkRequest { job: job.0, model, kind: work.kind, segment: work.segment, spec, extra };
                Ok(match engine.run(&request, &inputs, &progress) {
                    Ok(done) => {
                        let brief = work.kind == WorkKind::Joint;
                        let output = if brief { keep_briefly(&store, job, done.blob) } else { keep(&store, job, done.blob) }?;
                        Input::WorkDone { node, epoch, output, core_us: done.core_us, peak_bytes: done.peak_bytes }
                    }
                    Err(e) => failed(matches!(e, obelysk_node::EngineError::Disagrees(_)), e.to_string()),
                })
            };
            let panicked = |_| Err(Trouble::Failed("the referee panicked".to_owned()));
            let input =
                catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(panicked).unwrap_or_else(|trouble| match trouble {
                    Trouble::Lost => failed(false, "a blob of this job was lost from the store".to_owned()),
                    Trouble::Over => failed(false, "this coordinator does not lead any more".to_owned()),
                    Trouble::Failed(reason) => failed(false, reason),
                });
            let _ = commands.blocking_send(Command::Core(input));
        });
    }
}

fn charge((who, job, work, epoch): (Who, JobId, Work, u64), verdict: &Verdict) -> Charge {
    // As the brain judges: a rejected proof or opening may be the fault of what it was made from.
    let alone = matches!(work.kind, WorkKind::Forward | WorkKind::Commit | WorkKind::Joint);
    let (disputed, reason) = match verdict {
        Verdict::Dispute(reason) => (true, reason.clone()),
        Verdict::Reject(reason) => (!alone, reason.clone()),
        Verdict::Accept => (true, String::new()),
    };
    let (node, job) = (Id(who.id).to_string(), Id(job.0).to_string());
    let (kind, segment, unix_s) = (work.kind.name().to_owned(), work.segment, unix_now());
    Charge { node, name: who.name, job, kind, segment, epoch, unix_s, disputed, reason }
}

/// What cannot be kept changes no judgement.
fn keep_evidence(evidence: Option<Evidence>, charge: Charge, exhibits: Exhibits) {
    let Some(evidence) = evidence else { return };
    match evidence.keep(&charge, &exhibits) {
        Ok(Some(case)) => tracing::warn!(case = %case.display(), node = charge.name, "evidence kept"),
        Ok(None) => tracing::error!("the folder of evidence is full: this case is not kept; move the folder elsewhere"),
        Err(e) => tracing::error!("evidence is not kept: {e}; check the disk of the state folder"),
    }
}

/// A lease as the brain hands it out.
pub(super) struct Assignment {
    pub(super) epoch: u64,
    pub(super) job: JobId,
    pub(super) model: [u8; 32],
    pub(super) work: Work,
    pub(super) spec: BlobRef,
    pub(super) needs: Needs,
}

impl Assignment {
    pub(super) fn message(self) -> Message {
        let Self { epoch, job, model, work: Work { kind, segment }, spec, needs } = self;
        let Needs { inputs, extra, .. } = needs;
        Message::Assign(Assign { epoch, job: job.0, model, kind: WorkKind::code(kind), segment, spec, extra, inputs })
    }
}

fn load_one(store: &Store, blob: BlobRef) -> Result<Arc<Vec<u8>>, Trouble> {
    store.get(blob).map_err(|why| match why {
        NotHad::Gone => {
            store.note_lost(blob);
            Trouble::Lost
        }
        NotHad::Over => Trouble::Over,
    })
}

fn load<'a>(store: &Store, blobs: impl Iterator<Item = &'a BlobRef>) -> Result<Vec<Arc<Vec<u8>>>, Trouble> {
    blobs.map(|blob| load_one(store, *blob)).collect()
}

/// For bytes that a new leader makes again: no disk is waited for.
fn keep_briefly(store: &Store, job: JobId, bytes: Vec<u8>) -> Result<BlobRef, String> {
    let blob = BlobRef::of(&bytes);
    store.put_briefly(job, blob, bytes).map(|()| blob).map_err(|e| e.to_string())
}

fn keep(store: &Store, job: JobId, bytes: Vec<u8>) -> Result<BlobRef, String> {
    let blob = BlobRef::of(&bytes);
    store.put(job, blob, bytes).map(|()| blob).map_err(|e| e.to_string())
}
