//! Calibration of a new node: a whole small job, each piece checked, before it is let to work. Who fails it is refused with the reason.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use obelysk_node::engine::{Trial, Verdict, WorkKind};
use obelysk_node::error::TransportError;
use obelysk_node::identity::NodeKeyId;
use obelysk_node::transport::quinn::{RecvStream, SendStream};
use obelysk_node::transport::{read_message, write_message};
use obelysk_protocol::wire::{Message, NodeHello, Trial as TrialMessage};
use tokio::sync::Semaphore;

use super::Shared;

/// Longest wait for one piece: a machine that needs this for what others do in milliseconds holds jobs up rather than helping.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nodes calibrated at the same time: their pieces are checked here, beside the work of those that are here already.
const AT_ONCE: usize = 4;
/// Calibrations remembered: as many as machines are.
const MAX_KNOWN: usize = 10_000;

/// What a node took for the job of calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Calibration {
    /// Core-microseconds by kind of work, over all segments.
    pub(super) core_us: [u64; 4],
    /// Largest peak memory of any piece.
    pub(super) peak_bytes: u64,
}

/// Calibrations of this coordinator's life, and who may be under way.
#[derive(Debug)]
pub(super) struct Trials {
    known: Mutex<BTreeMap<NodeKeyId, (u32, Calibration)>>,
    permits: Arc<Semaphore>,
}

impl Default for Trials {
    fn default() -> Self {
        Self { known: Mutex::default(), permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// Why a node is refused, and whether it may come again.
pub(super) struct Failed {
    pub(super) reason: String,
    pub(super) retry: bool,
}

/// A conversation: what failed on the way, or what the node is to be told.
type Outcome<T> = Result<Result<T, Failed>, TransportError>;

/// Calibrates a node that can be, and was not with as many cores, and holds no work. `None`: nothing is known of it.
pub(super) async fn calibrate(
    shared: &Arc<Shared>,
    (key, hello): (NodeKeyId, &NodeHello),
    (send, recv): (&mut SendStream, &mut RecvStream),
) -> Outcome<Option<Calibration>> {
    if let Some((_, known)) = shared.trials.known().get(&key).filter(|(cores, _)| *cores == hello.cores) {
        return Ok(Ok(Some(*known)));
    }
    let number = u64::from_le_bytes(std::array::from_fn(|i| hello.identity[i] ^ key.0[i])) ^ obelysk_node::identity::unix_now();
    let Some(trial) = shared.checker.trial(number).filter(|trial| hello.models.contains(&trial.model)) else {
        return Ok(Ok(None));
    };
    if !hello.held.is_empty() {
        return Ok(Ok(None));
    }
    let Ok(_permit) = shared.trials.permits.acquire().await else { return Ok(Ok(None)) };
    let mut course = Course { shared, trial, send, recv, number: 0, core_us: [0; 4], peak_bytes: 0 };
    let calibration = match course.run().await? {
        Ok(()) => Calibration { core_us: course.core_us, peak_bytes: course.peak_bytes },
        Err(failed) => return Ok(Err(failed)),
    };
    let mut known = shared.trials.known();
    if known.len() < MAX_KNOWN || known.contains_key(&key) {
        known.insert(key, (hello.cores, calibration));
    }
    Ok(Ok(Some(calibration)))
}

impl Trials {
    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeKeyId, (u32, Calibration)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Course<'a> {
    shared: &'a Arc<Shared>,
    trial: Trial,
    send: &'a mut SendStream,
    recv: &'a mut RecvStream,
    number: u32,
    core_us: [u64; 4],
    peak_bytes: u64,
}

/// One piece: what to do, from what, and what else the checker compares with.
struct Piece {
    kind: WorkKind,
    segment: u32,
    inputs: Vec<Vec<u8>>,
    against: Option<Vec<u8>>,
    extra: Vec<u8>,
}

/// Hands a refusal on.
macro_rules! piece {
    ($outcome:expr) => {
        match $outcome.await? {
            Ok(output) => output,
            Err(failed) => return Ok(Err(failed)),
        }
    };
}

impl Course<'_> {
    async fn run(&mut self) -> Outcome<()> {
        let (mut hidden, mut commits): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
        let before = |hidden: &[Vec<u8>], l: u32| -> Vec<Vec<u8>> {
            l.checked_sub(1).and_then(|l| hidden.get(l as usize)).cloned().into_iter().collect()
        };
        for segment in 0..self.trial.segments {
            let inputs = before(&hidden, segment);
            let forward = Piece { kind: WorkKind::Forward, segment, inputs: inputs.clone(), against: None, extra: Vec::new() };
            let after = piece!(self.piece(forward));
            let commit = Piece { kind: WorkKind::Commit, segment, inputs, against: Some(after.clone()), extra: Vec::new() };
            commits.push(piece!(self.piece(commit)));
            hidden.push(after);
        }
        let extra = match self.challenge(commits).await {
            Ok(extra) => extra,
            Err(reason) => return Ok(Err(Failed { reason, retry: false })),
        };
        for segment in 0..self.trial.segments {
            let mut inputs = before(&hidden, segment);
            let against = hidden.get(segment as usize).cloned();
            let prove = Piece { kind: WorkKind::Prove, segment, inputs: inputs.clone(), against, extra: extra.clone() };
            inputs.push(piece!(self.piece(prove)));
            let open = Piece { kind: WorkKind::Open, segment, inputs, against: None, extra: extra.clone() };
            piece!(self.piece(open));
        }
        Ok(Ok(()))
    }

    /// Has one piece done, and judges it.
    async fn piece(&mut self, piece: Piece) -> Outcome<Vec<u8>> {
        self.number += 1;
        let Piece { kind, segment, inputs, against, extra } = piece;
        let (number, model, spec) = (self.number, self.trial.model, self.trial.spec.clone());
        let message = TrialMessage {
            number,
            model,
            kind: kind.code(),
            segment,
            spec: spec.clone(),
            extra: extra.clone(),
            inputs: inputs.clone(),
        };
        write_message(self.send, &Message::Trial(message)).await?;
        let what = format!("calibration, {} of segment {segment}", kind.name());
        let Ok(answer) = tokio::time::timeout(PATIENCE, read_message(self.recv)).await else {
            let reason = format!("{what}: no answer within {} s; this machine is too slow or overloaded", PATIENCE.as_secs());
            return Ok(Err(Failed { reason, retry: true }));
        };
        let done = match answer? {
            Some(Message::TrialDone(done)) if done.number == number => done,
            Some(Message::TrialFailed(no)) if no.number == number => {
                return Ok(Err(Failed { reason: format!("{what} failed: {}", no.reason), retry: true }));
            }
            Some(other) => return Err(TransportError::Unexpected { expected: "the answer to a trial", got: other.id() }),
            None => return Err(TransportError::Truncated("during calibration")),
        };
        let checker = self.shared.checker.clone();
        let check = move || {
            let inputs: Vec<&[u8]> = inputs.iter().chain(&against).map(Vec::as_slice).collect();
            (checker.check(&spec, kind, segment, &inputs, &extra, &done.output), done.output)
        };
        let panicked = |_| (Verdict::Reject("the checker panicked".to_owned()), Vec::new());
        let (verdict, output) = tokio::task::spawn_blocking(check).await.unwrap_or_else(panicked);
        if let Verdict::Reject(cause) | Verdict::Dispute(cause) = verdict {
            let reason = format!(
                "{what} is wrong: {cause}; this machine computes wrongly or runs another program: check its memory, install this \
                 coordinator's release"
            );
            return Ok(Err(Failed { reason, retry: false }));
        }
        let spent = &mut self.core_us[kind as usize];
        *spent = spent.saturating_add(done.core_us);
        self.peak_bytes = self.peak_bytes.max(done.peak_bytes);
        Ok(Ok(output))
    }

    async fn challenge(&self, commits: Vec<Vec<u8>>) -> Result<Vec<u8>, String> {
        let (checker, spec) = (self.shared.checker.clone(), self.trial.spec.clone());
        let work = move || {
            let commits: Vec<&[u8]> = commits.iter().map(Vec::as_slice).collect();
            checker.challenge(&spec, &commits).map_err(|e| format!("calibration: {e}"))
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("calibration: the checker panicked".to_owned()))
    }
}
