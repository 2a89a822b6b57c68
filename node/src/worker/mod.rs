//! The node's life: dial, serve a session, lose it, dial again, drain, leave.
//!
//! Work and unacknowledged results outlive connections: a reconnect is resumption, not a restart.

mod cache;
mod device;
mod session;
mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use obelysk_protocol::wire::{Assign, BlobRef, Holding, MAX_TEXT_BYTES};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::address::CoordinatorAddress;
use crate::config::NodeConfig;
use crate::engine::{Engine, EngineError, WorkOutput};
use crate::error::{NodeError, TransportError};
use crate::identity::{Identity, IdentityError, IdentityStore, Token, merged};
use crate::metrics::NodeMetrics;
use crate::models::Shelf;
use crate::preempt;
use crate::scrape;
use crate::transport::Parts;
use cache::Cache;
use device::Device;
use session::SessionEnd;

/// First pause before dialling again.
const BACK_OFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause: a coordinator that returns is found within this.
const BACK_OFF_MOST: Duration = Duration::from_secs(10);
/// Coordinators that one dial may be sent on to before it pauses: one knows the leader, and it may change once on the way.
const MAX_HOPS: u32 = 3;
/// Results kept for re-sending: the coordinator leases one item at a time, so more than a few means it does not want them.
const MAX_UNACKED: usize = 8;

/// Blobs of the largest size that may wait on disk for a connection to come back: inputs of the item before and of the next.
const MAX_PARTS: u64 = 4;

/// How a node is asked to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Finish what runs, however long it takes.
    Drain,
    /// The machine will be gone after this: finish what fits, give the rest back at once.
    Preempted(Duration),
}

/// Why a node ended in good order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// It was asked to stop, finished what it ran and said goodbye.
    Drained,
    /// Its machine is about to be taken away; what did not fit was given back.
    Preempted,
    /// There was nothing to do for as long as it was to wait.
    Idle,
    /// The coordinator ended the session for this reason.
    Dismissed(String),
    /// What it computes on is gone, and comes back, if at all, with a new process; see [`Engine::lost`].
    Lost(String),
}

/// A node process.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Serves its cluster until told to stop by SIGTERM or SIGINT: then the current work is finished and delivered first; or by the hook
    /// of its configuration: then what does not fit is given back. The identity in the store says which cluster; without one that
    /// serves, the token lets this machine in.
    ///
    /// # Errors
    /// [`NodeError`]: bad configuration, no usable identity or token, a coordinator that cannot be used (another cluster, another version,
    /// refusal), or none for too long.
    pub async fn run(
        config: NodeConfig,
        membership: (IdentityStore, Option<Token>),
        engine: Arc<dyn Engine>,
    ) -> Result<ExitReason, NodeError> {
        let stop = told(&config);
        Self::run_leaving(config, membership, engine, stop).await
    }

    /// As [`Node::run`], fetching models that the coordinator offers and `shelf` has room for.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub async fn run_fetching(
        config: NodeConfig,
        membership: (IdentityStore, Option<Token>),
        engine: Arc<dyn Engine>,
        shelf: Arc<dyn Shelf>,
    ) -> Result<ExitReason, NodeError> {
        let stop = told(&config);
        Self::serve(config, membership, (engine, Some(shelf)), stop).await
    }

    /// As [`Node::run`], stopping when `stop` completes instead of on a signal.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub async fn run_until(
        config: NodeConfig,
        membership: (IdentityStore, Option<Token>),
        engine: Arc<dyn Engine>,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<ExitReason, NodeError> {
        let stop = async {
            stop.await;
            Leave::Drain
        };
        Self::run_leaving(config, membership, engine, stop).await
    }

    /// As [`Node::run_until`], where `stop` also says how.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub async fn run_leaving(
        config: NodeConfig,
        membership: (IdentityStore, Option<Token>),
        engine: Arc<dyn Engine>,
        stop: impl Future<Output = Leave> + Send,
    ) -> Result<ExitReason, NodeError> {
        Self::serve(config, membership, (engine, None), stop).await
    }

    /// As [`Node::run_leaving`], fetching models if there is a shelf for them.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub async fn serve(
        config: NodeConfig,
        membership: (IdentityStore, Option<Token>),
        engine: (Arc<dyn Engine>, Option<Arc<dyn Shelf>>),
        stop: impl Future<Output = Leave> + Send,
    ) -> Result<ExitReason, NodeError> {
        config.validate()?;
        let metrics = NodeMetrics::new();
        if let Some(listen) = config.metrics_listen()? {
            let source = metrics.clone();
            let bound = scrape::serve(listen, Arc::new(move || source.text())).await?;
            tracing::info!(address = %bound, "metrics");
        }
        let mut agent = Agent::new(config, membership, engine, metrics)?;
        let mut attempt = 0;
        let mut stop: Stop<'_> = Box::pin(stop);
        let mut pause = BACK_OFF_FIRST;
        let mut since = Instant::now();
        let (mut hint, mut hops) = (None, 0);
        loop {
            let started = Instant::now();
            let places = agent.places()?;
            let address = match hint.take() {
                Some(leader) => leader,
                None => places.get(attempt % places.len().max(1)).cloned().ok_or_else(|| {
                    let cause = "the identity names no coordinator; join again with a token".to_owned();
                    NodeError::Config { field: "state", cause }
                })?,
            };
            let last = match session::serve(&mut agent, &address, &mut stop).await {
                SessionEnd::Exit(reason) => return Ok(reason),
                SessionEnd::Fatal(error) => return Err(error),
                // With what it has now; what it runs goes on.
                SessionEnd::Again => continue,
                SessionEnd::Lost { error: TransportError::Elsewhere { leader, all }, .. } => {
                    agent.learn(&all);
                    hint = CoordinatorAddress::at(&leader, address.fingerprint).ok().filter(|_| hops < MAX_HOPS);
                    if hint.is_some() {
                        hops += 1;
                        tracing::info!(coordinator = %address, leader, "another coordinator leads; going there");
                        continue;
                    }
                    attempt += 1;
                    TransportError::Elsewhere { leader, all }
                }
                SessionEnd::Lost { error, welcomed } => {
                    if welcomed {
                        (pause, since) = (BACK_OFF_FIRST, Instant::now());
                        if agent.learned.len() > 1 {
                            // Any of several knows who leads now; the one that is lost may be gone for good.
                            attempt = agent.places()?.iter().position(|place| *place == address).map_or(attempt, |at| at + 1);
                        }
                    } else {
                        attempt += 1;
                    }
                    error
                }
            };
            hops = 0;
            // Such as one that lost its card before it was let in.
            if let Some(reason) = agent.engine.lost().filter(|_| agent.idle()) {
                return Ok(ExitReason::Lost(reason));
            }
            let patience = Duration::from_secs(agent.config.give_up_after_s);
            if !patience.is_zero() && since.elapsed() >= patience {
                return Err(NodeError::GaveUp { seconds: since.elapsed().as_secs(), last });
            }
            tracing::warn!(error = %last, after_ms = started.elapsed().as_millis() as u64, "no coordinator; dialling again");
            if agent.pause(pause, attempt, &mut stop).await {
                return Ok(agent.leaving.as_ref().map_or(ExitReason::Drained, Leaving::exit));
            }
            pause = (pause * 2).min(BACK_OFF_MOST);
        }
    }
}

/// Completes when this process is told to stop by SIGTERM or SIGINT, or the hook of this configuration says that its machine is about to
/// be taken away.
pub fn told(config: &NodeConfig) -> impl Future<Output = Leave> + Send + use<> {
    let (hook, grace) = (config.preempt_hook.clone(), Duration::from_secs(config.preempt_grace_s));
    let taken = async move { if hook.is_empty() { std::future::pending().await } else { preempt::notice(&hook).await } };
    async move {
        tokio::select! {
            () = stop_signal() => Leave::Drain,
            () = taken => Leave::Preempted(grace),
        }
    }
}

type Stop<'a> = Pin<Box<dyn Future<Output = Leave> + Send + 'a>>;

/// A node that takes no more work.
#[derive(Debug, Clone)]
struct Leaving {
    reason: ExitReason,
    /// When this machine is gone, if it will be.
    deadline: Option<Instant>,
}

impl Leaving {
    fn new(leave: Leave) -> Self {
        match leave {
            Leave::Drain => Self { reason: ExitReason::Drained, deadline: None },
            Leave::Preempted(grace) => Self { reason: ExitReason::Preempted, deadline: Some(Instant::now() + grace) },
        }
    }

    fn exit(&self) -> ExitReason {
        self.reason.clone()
    }

    /// Said to the coordinator.
    const fn why(&self) -> &'static str {
        match self.reason {
            ExitReason::Preempted => "this machine is about to be taken away",
            ExitReason::Idle => "there was nothing to do",
            ExitReason::Lost(_) => "its card was lost",
            ExitReason::Drained | ExitReason::Dismissed(_) => "asked to stop",
        }
    }
}

/// A work item on the device.
#[derive(Debug, Clone, Copy)]
struct Run {
    since: Instant,
    permille: u32,
}

impl Run {
    /// Whether it will be done within `left`, by its pace so far. One that has shown no progress yet is given the benefit while as much
    /// time is left as it has taken.
    fn fits(&self, now: Instant, left: Duration) -> bool {
        let spent = now.saturating_duration_since(self.since);
        match self.permille {
            0 => left >= spent,
            permille => spent * (obelysk_protocol::wire::PERMILLE - permille) / permille <= left,
        }
    }
}

/// A finished work item the coordinator has not acknowledged.
#[derive(Debug, Clone)]
struct Outcome {
    epoch: u64,
    result: Result<Delivery, Complaint>,
}

#[derive(Debug, Clone)]
struct Delivery {
    blob: BlobRef,
    bytes: Arc<Vec<u8>>,
    core_us: u64,
    peak_bytes: u64,
}

#[derive(Debug, Clone)]
struct Complaint {
    disagrees: bool,
    reason: String,
}

impl Outcome {
    fn new(epoch: u64, result: Result<WorkOutput, EngineError>) -> Self {
        let result = match result {
            Ok(WorkOutput { blob, core_us, peak_bytes }) => {
                Ok(Delivery { blob: BlobRef::of(&blob), bytes: Arc::new(blob), core_us, peak_bytes })
            }
            Err(e) => Err(Complaint { disagrees: matches!(e, EngineError::Disagrees(_)), reason: clip(&e.to_string()) }),
        };
        Self { epoch, result }
    }
}

/// What outlives a connection.
struct Agent {
    config: NodeConfig,
    identity: Identity,
    store: IdentityStore,
    /// Tells this process's reconnects from another process with a copy of its identity.
    instance: [u8; 32],
    engine: Arc<dyn Engine>,
    shelf: Option<Arc<dyn Shelf>>,
    parts: Arc<Parts>,
    device: Device,
    cache: Arc<Mutex<Cache>>,
    running: BTreeMap<u64, Run>,
    unacked: BTreeMap<u64, Outcome>,
    /// What each assignment was about, for a coordinator that does not know its epoch.
    about: BTreeMap<u64, Holding>,
    metrics: Arc<NodeMetrics>,
    leaving: Option<Leaving>,
    /// Where coordinators are, as the last one that said so knew.
    learned: Vec<String>,
    /// Pieces of calibration done, so that a late answer is not taken for another's.
    trials: u64,
    /// When there was last something to do.
    busy: Instant,
}

impl Agent {
    fn new(
        config: NodeConfig,
        (store, token): (IdentityStore, Option<Token>),
        (engine, shelf): (Arc<dyn Engine>, Option<Arc<dyn Shelf>>),
        metrics: Arc<NodeMetrics>,
    ) -> Result<Self, NodeError> {
        let identity = Identity::start(&store, token)?;
        let mut instance = [0; 32];
        let no_random = |_| NodeError::Worker("the system gives no random bytes".to_owned());
        SystemRandom::new().fill(&mut instance).map_err(no_random)?;
        let cache = Arc::new(Mutex::new(Cache::new(config.cache_bytes)));
        let parts = match store.beside("parts") {
            Some(folder) => Parts::open(&folder, config.max_blob_bytes.saturating_mul(MAX_PARTS))?,
            None => Parts::in_memory(),
        };
        let parts = Arc::new(parts);
        let device = Device::start(engine.clone(), metrics.clone(), config.name.clone())?;
        let (running, unacked, leaving) = (BTreeMap::new(), BTreeMap::new(), None);
        Ok(Self {
            config,
            identity,
            store,
            instance,
            engine,
            shelf,
            parts,
            device,
            cache,
            running,
            unacked,
            about: BTreeMap::new(),
            metrics,
            leaving,
            learned: Vec::new(),
            trials: 0,
            busy: Instant::now(),
        })
    }

    /// Models to name in the next hello.
    fn models(&self) -> Vec<[u8; 32]> {
        self.engine.models().into_iter().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Epochs to name in the next hello.
    fn held(&self) -> Vec<u64> {
        self.running.keys().chain(self.unacked.keys()).copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Remembers what an assignment is about.
    fn note(&mut self, assign: &Assign) {
        let Assign { epoch, job, kind, segment, extra, .. } = *assign;
        // Nothing but what is held, and this one, which is not held yet while its inputs are fetched.
        self.about.retain(|known, _| self.running.contains_key(known) || self.unacked.contains_key(known));
        self.about.insert(epoch, Holding { epoch, job, kind, segment, extra, inputs: assign.inputs.clone() });
    }

    /// The result of this lease is not wanted: instead of it, that is said.
    fn drop_result(&mut self, epoch: u64) -> bool {
        let complaint = Complaint { disagrees: false, reason: "no longer wanted".to_owned() };
        let known = self.unacked.get_mut(&epoch);
        known.map(|outcome| outcome.result = Err(complaint)).is_some()
    }

    fn idle(&self) -> bool {
        self.running.is_empty() && self.unacked.is_empty()
    }

    fn finish(&mut self, outcome: Outcome) {
        self.running.remove(&outcome.epoch);
        self.unacked.insert(outcome.epoch, outcome);
        while self.unacked.len() > MAX_UNACKED {
            self.unacked.pop_first();
        }
    }

    /// Coordinators to try, in turn.
    fn places(&self) -> Result<Vec<CoordinatorAddress>, NodeError> {
        let (mut places, pin) = match &self.identity {
            Identity::Member(credential) => (credential.places()?, credential.pin),
            Identity::New { token, .. } => (token.places().map_err(IdentityError::from)?, token.pin),
        };
        let learned = self.learned.iter().filter_map(|place| CoordinatorAddress::at(place, pin).ok());
        let new: Vec<CoordinatorAddress> = learned.filter(|place| !places.contains(place)).collect();
        places.extend(new);
        Ok(places)
    }

    /// Where all coordinators are, as one of them says. Kept, so that a process that starts when the one it knew is gone finds the others.
    fn learn(&mut self, all: &[String]) {
        self.learned = all.to_vec();
        let Identity::Member(credential) = &mut self.identity else { return };
        let usable = |place: &&String| CoordinatorAddress::at(place, credential.pin).is_ok();
        let usable: Vec<String> = all.iter().filter(usable).cloned().collect();
        // Those of now before those of former times.
        let addresses = merged(&usable, credential.addresses.clone());
        if addresses != credential.addresses {
            credential.addresses = addresses;
            if let Err(error) = self.store.save(credential) {
                tracing::warn!(%error, "the coordinators' addresses are not kept; known until this process ends");
            }
        }
    }

    /// Waits before the next dial; `true` when the node should leave now.
    async fn pause(&mut self, pause: Duration, attempt: usize, stop: &mut Stop<'_>) -> bool {
        let key = match &self.identity {
            Identity::Member(credential) => credential.id(),
            Identity::New { key, .. } => key.id(),
        };
        let sleep = tokio::time::sleep(spread(pause, &key.0, attempt));
        if self.leaving.is_some() {
            sleep.await;
        } else {
            tokio::select! {
                () = sleep => {}
                leave = stop => self.leaving = Some(Leaving::new(leave)),
            }
        }
        let late = |leaving: &Leaving| leaving.deadline.is_some_and(|end| Instant::now() >= end);
        self.leaving.as_ref().is_some_and(|leaving| self.idle() || late(leaving))
    }
}

/// A pause of one half to one and a half of what is given, by key and attempt, so that a fleet does not return at once and each of its
/// nodes at times of its own.
fn spread(pause: Duration, key: &[u8; 32], attempt: usize) -> Duration {
    let digest = blake3::Hasher::new_keyed(key).update(b"obelysk pause").update(&(attempt as u64).to_le_bytes()).finalize();
    let [low, high, ..] = *digest.as_bytes();
    pause / 2 + pause * u32::from(u16::from_le_bytes([low, high])) / (1 << 16)
}

/// Cuts a text to what a message may carry, at a character boundary.
fn clip(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Completes on SIGTERM or SIGINT.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = async |kind| match signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        Err(error) => {
            tracing::warn!(%error, "cannot listen for a stop signal; the process can only be killed");
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_by_key_and_repeat() {
        let pause = Duration::from_secs(10);
        let at = |key: u8, attempt| spread(pause, &[key; 32], attempt);
        assert_eq!(at(1, 1), at(1, 1));
        assert_ne!(at(1, 1), at(1, 2));
        let all: Vec<Duration> = (0..=255).map(|key| at(key, 0)).collect();
        assert!(all.iter().all(|p| *p >= pause / 2 && *p < pause * 3 / 2));
        let early = all.iter().filter(|p| **p < pause).count();
        assert!((64..192).contains(&early), "{early} of 256 in the first half");
    }

    #[test]
    fn work_fits_by_its_pace() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let run = |permille| Run { since: now.checked_sub(10 * second).expect("the clock is older"), permille };
        assert!(run(500).fits(now, 10 * second) && !run(500).fits(now, 9 * second));
        assert!(run(900).fits(now, 2 * second) && !run(100).fits(now, 60 * second));
        assert!(run(0).fits(now, 10 * second) && !run(0).fits(now, 9 * second));
    }
}
