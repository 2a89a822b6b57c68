//! The task that owns the [`State`]: feeds it inputs one at a time, carries out its effects. It waits for nobody.

mod membership;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use obelysk_node::engine::{Checker, Engine, Pieces, Verdict, WorkKind, WorkRequest};
use obelysk_node::identity::NodeKeyId;
use obelysk_protocol::wire::{Assign, BlobRef, Cancel, Goodbye, Message, NodeState, ResultAck};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::progress::{JobEnd, Watcher};
use super::store::Store;
use crate::core::{Effect, Input, JobId, Needs, NodeId, State, Work};
use membership::{Known, name_of};

/// Commands waiting for the brain: beyond, sessions wait, which is back-pressure on their peers.
pub(super) const MAX_COMMANDS: usize = 1024;
/// How often time is looked at: well below any sensible lease.
const TICK: Duration = Duration::from_millis(50);

/// How to reach a node's session.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    pub(super) session: u64,
    pub(super) messages: mpsc::Sender<Message>,
}

/// A node's first words.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) key: NodeKeyId,
    pub(super) hello: obelysk_protocol::wire::NodeHello,
    pub(super) calibration: Option<super::trial::Calibration>,
    pub(super) outbox: Outbox,
    pub(super) answer: oneshot::Sender<Result<NodeId, String>>,
}

/// What sessions, checks and handles ask of the brain.
#[derive(Debug)]
pub(super) enum Command {
    Core(Input),
    Join(Box<Join>),
    /// A session ended; `clean` after a goodbye.
    Gone {
        node: NodeId,
        session: u64,
        clean: bool,
    },
    Submit {
        job: JobId,
        model: [u8; 32],
        spec: BlobRef,
        segments: u32,
        watcher: Watcher,
    },
    /// This node shall finish and leave; the answer is whether it is connected.
    Drain {
        key: NodeKeyId,
        answer: oneshot::Sender<bool>,
    },
    /// This node is out.
    Evict {
        key: NodeKeyId,
        reason: String,
    },
    /// How all nodes stand.
    Census {
        answer: oneshot::Sender<BTreeMap<NodeKeyId, (NodeState, String)>>,
    },
    Stop,
}

pub(super) struct Brain {
    state: State,
    started: Instant,
    store: Store,
    checker: Arc<dyn Checker>,
    referee: Option<Arc<dyn Engine>>,
    permits: Arc<Semaphore>,
    commands: mpsc::Sender<Command>,
    identities: BTreeMap<NodeKeyId, NodeId>,
    nodes: BTreeMap<NodeId, Known>,
    watchers: BTreeMap<JobId, Watcher>,
    count: watch::Sender<usize>,
}

impl Brain {
    pub(super) fn new(
        config: &super::CoordinatorConfig,
        store: Store,
        engines: (Arc<dyn Checker>, Option<Arc<dyn Engine>>),
        commands: mpsc::Sender<Command>,
        count: watch::Sender<usize>,
    ) -> Self {
        let (checker, referee) = engines;
        Self {
            state: State::new(config.policy()),
            started: Instant::now(),
            store,
            checker,
            referee,
            permits: Arc::new(Semaphore::new(config.check_threads())),
            commands,
            identities: BTreeMap::new(),
            nodes: BTreeMap::new(),
            watchers: BTreeMap::new(),
            count,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        if let Some(referee) = self.referee.clone() {
            let models = referee.models().into_iter().collect();
            self.feed(Input::NodeJoined { node: NodeId::REFEREE, models, cores: 1, held: std::collections::BTreeSet::new() });
        }
        loop {
            tokio::select! {
                _ = tick.tick() => self.feed(Input::Tick),
                command = inbox.recv() => match command {
                    None | Some(Command::Stop) => break,
                    Some(command) => self.command(command),
                },
            }
        }
        let reason = "the coordinator stops".to_owned();
        for node in self.nodes.values().filter_map(|known| known.outbox.as_ref()) {
            let _ = node.messages.try_send(Message::Goodbye(Goodbye { reason: reason.clone() }));
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Core(input) => {
                if let Input::NodeDraining { node } = &input
                    && let Some(known) = self.nodes.get_mut(node)
                {
                    known.draining = true;
                }
                self.feed(input);
            }
            Command::Drain { key, answer } => {
                let _ = answer.send(self.drain(key));
            }
            Command::Evict { key, reason } => self.evict(key, &reason),
            Command::Census { answer } => {
                let _ = answer.send(self.census());
            }
            Command::Join(join) => self.join(*join),
            Command::Gone { node, session, clean } => {
                let Some(known) = self.nodes.get_mut(&node) else { return };
                // A newer session of the same node may already stand: then this end means nothing.
                if known.outbox.take_if(|outbox| outbox.session == session).is_some() {
                    self.feed(if clean { Input::NodeLeft { node } } else { Input::NodeAway { node } });
                }
            }
            Command::Submit { job, model, spec, segments, watcher } => {
                self.watchers.insert(job, watcher);
                self.feed(Input::JobSubmitted { job, model, spec, segments });
            }
            Command::Stop => {}
        }
        let here = self.nodes.values().filter(|known| known.outbox.is_some()).count();
        self.count.send_if_modified(|count| std::mem::replace(count, here) != here);
    }

    fn feed(&mut self, input: Input) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        for effect in self.state.apply(now_ms, input) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Assign { node, epoch, job, model, work, spec, needs } => {
                self.store.lease(epoch, node, job);
                let assignment = Assignment { epoch, job, model, work, spec, needs };
                if node == NodeId::REFEREE { self.ask_referee(assignment) } else { self.send(node, assignment.message()) }
            }
            Effect::Ack { node, epoch } => {
                self.store.end_lease(epoch);
                self.send(node, Message::ResultAck(ResultAck { epoch }));
            }
            Effect::Revoke { node, epoch } => {
                self.store.end_lease(epoch);
                self.send(node, Message::Cancel(Cancel { epoch }));
            }
            Effect::Check { job, work, epoch, spec, needs, output } => self.check(job, work, epoch, (spec, needs, output)),
            Effect::DeriveChallenge { job, spec, commits } => self.derive(job, spec, commits),
            Effect::Finish { job, spec, commits, challenge, proves, opens } => {
                self.finish(job, spec, (commits, challenge, proves, opens));
            }
            Effect::Quarantine { node, reason } => self.quarantine(node, &reason),
            Effect::Notify { job, event } => {
                tracing::info!(%job, ?event, "job");
                if let Some(watcher) = self.watchers.get_mut(&job) {
                    let names = |node: NodeId| name_of(&self.nodes, node);
                    watcher.notify(&event, &names);
                }
            }
            Effect::Publish { job, proof, report } => {
                let nodes = report.nodes.iter().map(|node| name_of(&self.nodes, *node)).collect();
                let bytes = self.store.get(proof);
                self.end(
                    job,
                    bytes.map(|proof| JobEnd { proof, report, nodes }).ok_or("the proof was lost from the store".into()),
                );
            }
            Effect::FailJob { job, failure } => self.end(job, Err(failure.to_string())),
        }
    }

    fn end(&mut self, job: JobId, outcome: Result<JobEnd, String>) {
        self.store.release(job);
        if let Some(watcher) = self.watchers.remove(&job) {
            watcher.end(job, outcome);
        }
    }

    /// A session that does not keep up is dropped; its node comes back and resumes.
    fn send(&mut self, node: NodeId, message: Message) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        if let Some(outbox) = &known.outbox
            && outbox.messages.try_send(message).is_err()
        {
            let session = outbox.session;
            known.outbox = None;
            tracing::warn!(%node, session, "session does not keep up; dropped");
            let commands = self.commands.clone();
            tokio::spawn(async move { commands.send(Command::Core(Input::NodeAway { node })).await });
        }
    }

    /// Runs a judgement on a blocking thread, a bounded number at a time. A panic there fails the job and nothing else.
    fn judge(&self, job: JobId, work: impl FnOnce(&Store, &dyn Checker) -> Result<Input, String> + Send + 'static) {
        let (store, checker, permits) = (self.store.clone(), self.checker.clone(), self.permits.clone());
        let commands = self.commands.clone();
        tokio::spawn(async move {
            let Ok(_permit) = permits.acquire_owned().await else { return };
            let guarded = move || catch_unwind(AssertUnwindSafe(|| work(&store, checker.as_ref())));
            let panicked = || "the coordinator's checker panicked; report this with its log".to_owned();
            let outcome = match tokio::task::spawn_blocking(guarded).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => Err(panicked()),
            };
            let input = outcome.unwrap_or_else(|reason| Input::CheckerFailed { job, reason });
            let _ = commands.send(Command::Core(input)).await;
        });
    }

    fn check(&self, job: JobId, work: Work, epoch: u64, about: (BlobRef, Needs, BlobRef)) {
        let (spec, needs, output) = about;
        self.judge(job, move |store, checker| {
            let blobs = load(store, needs.inputs.iter().chain(&needs.against))?;
            let inputs: Vec<&[u8]> = blobs.iter().map(|b| b.as_slice()).collect();
            let [spec, extra, output] = [spec, needs.extra, output].map(|blob| load_one(store, blob));
            let (spec, extra, output) = (spec?, extra?, output?);
            let verdict = checker.check(&spec, work.kind, work.segment, &inputs, &extra, &output);
            if verdict != Verdict::Accept {
                tracing::warn!(%job, %work, ?verdict, "result not accepted");
            }
            Ok(Input::CheckResult { job, work, epoch, verdict })
        });
    }

    fn derive(&self, job: JobId, spec: BlobRef, commits: Vec<BlobRef>) {
        self.judge(job, move |store, checker| {
            let blobs = load(store, commits.iter())?;
            let pieces: Vec<&[u8]> = blobs.iter().map(|b| b.as_slice()).collect();
            let result = checker.challenge(&load_one(store, spec)?, &pieces).map_err(|e| e.to_string());
            let result = result.and_then(|bytes| keep(store, job, bytes));
            Ok(Input::ChallengeDerived { job, commits, result })
        });
    }

    fn finish(&self, job: JobId, spec: BlobRef, pieces: (Vec<BlobRef>, BlobRef, Vec<BlobRef>, Vec<BlobRef>)) {
        self.judge(job, move |store, checker| {
            let (commits, challenge, proves, opens) = pieces;
            let blobs = [load(store, commits.iter())?, load(store, proves.iter())?, load(store, opens.iter())?];
            let [commits, proves, opens] = blobs.each_ref().map(|list| list.iter().map(|b| b.as_slice()).collect::<Vec<_>>());
            let challenge = load_one(store, challenge)?;
            let pieces = Pieces { commits: &commits, challenge: &challenge, proves: &proves, opens: &opens };
            let result = checker.finish(&load_one(store, spec)?, pieces).map_err(|e| e.to_string());
            Ok(Input::Finished { job, result: result.and_then(|bytes| keep(store, job, bytes)) })
        });
    }

    /// Runs the coordinator's own engine; it settles disputes, so it need not be fast.
    fn ask_referee(&self, assignment: Assignment) {
        let Some(engine) = self.referee.clone() else { return };
        let (store, commands) = (self.store.clone(), self.commands.clone());
        let node = NodeId::REFEREE;
        tokio::task::spawn_blocking(move || {
            let Assignment { epoch, job, model, work, spec, needs } = assignment;
            let failed = |disagrees, reason| Input::WorkFailed { node, epoch, disagrees, reason };
            let progress = |permille| {
                let _ = commands.try_send(Command::Core(Input::Progress { node, epoch, permille }));
            };
            let attempt = || -> Result<Input, String> {
                let inputs: Vec<Vec<u8>> = load(&store, needs.inputs.iter())?.iter().map(|b| b.to_vec()).collect();
                let (spec, extra) = (load_one(&store, spec)?.to_vec(), load_one(&store, needs.extra)?.to_vec());
                let request = WorkRequest { job: job.0, model, kind: work.kind, segment: work.segment, spec, extra };
                Ok(match engine.run(&request, &inputs, &progress) {
                    Ok(done) => {
                        let output = keep(&store, job, done.blob)?;
                        Input::WorkDone { node, epoch, output, core_us: done.core_us, peak_bytes: done.peak_bytes }
                    }
                    Err(e) => failed(matches!(e, obelysk_node::EngineError::Disagrees(_)), e.to_string()),
                })
            };
            let outcome = catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|_| Err("the referee panicked".to_owned()));
            let _ = commands.blocking_send(Command::Core(outcome.unwrap_or_else(|reason| failed(false, reason))));
        });
    }
}

/// A lease as the brain hands it out.
struct Assignment {
    epoch: u64,
    job: JobId,
    model: [u8; 32],
    work: Work,
    spec: BlobRef,
    needs: Needs,
}

impl Assignment {
    fn message(self) -> Message {
        let Self { epoch, job, model, work: Work { kind, segment }, spec, needs } = self;
        let Needs { inputs, extra, .. } = needs;
        Message::Assign(Assign { epoch, job: job.0, model, kind: WorkKind::code(kind), segment, spec, extra, inputs })
    }
}

fn load_one(store: &Store, blob: BlobRef) -> Result<Arc<Vec<u8>>, String> {
    store.get(blob).ok_or_else(|| "a blob of this job was lost from the store; submit again".to_owned())
}

fn load<'a>(store: &Store, blobs: impl Iterator<Item = &'a BlobRef>) -> Result<Vec<Arc<Vec<u8>>>, String> {
    blobs.map(|blob| load_one(store, *blob)).collect()
}

fn keep(store: &Store, job: JobId, bytes: Vec<u8>) -> Result<BlobRef, String> {
    let blob = BlobRef::of(&bytes);
    let full = |full: super::store::Full| format!("blob store is full ({} bytes); raise `max_store_bytes`", full.limit);
    store.put(job, blob, bytes).map(|()| blob).map_err(full)
}
