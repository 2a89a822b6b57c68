//! The node's life: dial, serve a session, lose it, dial again, drain, leave.
//!
//! Work and unacknowledged results outlive connections: a reconnect is resumption, not a restart.

mod cache;
mod device;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use obelysk_protocol::wire::{Assign, BlobRef, Holding, MAX_TEXT_BYTES};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::address::CoordinatorAddress;
use crate::config::NodeConfig;
use crate::engine::{Engine, EngineError, WorkOutput};
use crate::error::NodeError;
use crate::identity::{Identity, IdentityError, IdentityStore, Token};
use crate::metrics::NodeMetrics;
use crate::models::Shelf;
use crate::scrape;
use crate::transport::Parts;
use cache::Cache;
use device::Device;
use session::SessionEnd;

/// First pause before dialling again.
const BACK_OFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause: a coordinator that returns is found within this.
const BACK_OFF_MOST: Duration = Duration::from_secs(10);
/// Results kept for re-sending: the coordinator leases one item at a time, so more than a few means it does not want them.
const MAX_UNACKED: usize = 8;

/// Blobs of the largest size that may wait on disk for a connection to come back: inputs of the item before and of the next.
const MAX_PARTS: u64 = 4;

/// Why a node ended in good order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// It was asked to stop, finished what it ran and said goodbye.
    Drained,
    /// The coordinator ended the session for this reason.
    Dismissed(String),
}

/// A node process.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Serves its cluster until told to stop by SIGTERM or SIGINT: then the current work is finished and delivered first. The identity in
    /// the store says which cluster; without one that serves, the token lets this machine in.
    ///
    /// # Errors
    /// [`NodeError`]: bad configuration, no usable identity or token, a coordinator that cannot be used (another cluster, another version,
    /// refusal), or none for too long.
    pub async fn run(
        config: NodeConfig,
        membership: (IdentityStore, Option<Token>),
        engine: Arc<dyn Engine>,
    ) -> Result<ExitReason, NodeError> {
        Self::run_until(config, membership, engine, stop_signal()).await
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
        Self::serve(config, membership, (engine, Some(shelf)), stop_signal()).await
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
        Self::serve(config, membership, (engine, None), stop).await
    }

    /// As [`Node::run_until`], fetching models if there is a shelf for them.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub async fn serve(
        config: NodeConfig,
        membership: (IdentityStore, Option<Token>),
        engine: (Arc<dyn Engine>, Option<Arc<dyn Shelf>>),
        stop: impl Future<Output = ()> + Send,
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
        loop {
            let started = Instant::now();
            let places = agent.places()?;
            let address = places.get(attempt % places.len().max(1)).ok_or_else(|| {
                let cause = "the identity names no coordinator; join again with a token".to_owned();
                NodeError::Config { field: "state", cause }
            })?;
            let last = match session::serve(&mut agent, address, &mut stop).await {
                SessionEnd::Exit(reason) => return Ok(reason),
                SessionEnd::Fatal(error) => return Err(error),
                // With what it has now; what it runs goes on.
                SessionEnd::Again => continue,
                SessionEnd::Lost { error, welcomed } => {
                    if welcomed {
                        (pause, since) = (BACK_OFF_FIRST, Instant::now());
                    } else {
                        attempt += 1;
                    }
                    error
                }
            };
            let patience = Duration::from_secs(agent.config.give_up_after_s);
            if !patience.is_zero() && since.elapsed() >= patience {
                return Err(NodeError::GaveUp { seconds: since.elapsed().as_secs(), last });
            }
            tracing::warn!(error = %last, after_ms = started.elapsed().as_millis() as u64, "no coordinator; dialling again");
            if agent.pause(pause, &mut stop).await {
                return Ok(ExitReason::Drained);
            }
            pause = (pause * 2).min(BACK_OFF_MOST);
        }
    }
}

type Stop<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

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
    running: BTreeSet<u64>,
    unacked: BTreeMap<u64, Outcome>,
    /// What each assignment was about, for a coordinator that does not know its epoch.
    about: BTreeMap<u64, Holding>,
    draining: bool,
    metrics: Arc<NodeMetrics>,
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
        let (running, unacked) = (BTreeSet::new(), BTreeMap::new());
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
            draining: false,
            metrics,
        })
    }

    /// Models to name in the next hello.
    fn models(&self) -> Vec<[u8; 32]> {
        self.engine.models().into_iter().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Epochs to name in the next hello.
    fn held(&self) -> Vec<u64> {
        self.running.iter().chain(self.unacked.keys()).copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Remembers what an assignment is about.
    fn note(&mut self, assign: &Assign) {
        let Assign { epoch, job, kind, segment, extra, .. } = *assign;
        // Nothing but what is held, and this one, which is not held yet while its inputs are fetched.
        self.about.retain(|known, _| self.running.contains(known) || self.unacked.contains_key(known));
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
        Ok(match &self.identity {
            Identity::Member(credential) => credential.places()?,
            Identity::New { token, .. } => token.places().map_err(IdentityError::from)?,
        })
    }

    /// Waits before the next dial; `true` when the node should leave now. Spread by identity so that a fleet does not return at once.
    async fn pause(&mut self, pause: Duration, stop: &mut Stop<'_>) -> bool {
        let spread = pause.mul_f64(f64::from(self.instance[0]) / 512.0);
        let sleep = tokio::time::sleep(pause + spread);
        if self.draining {
            sleep.await;
        } else {
            tokio::select! {
                () = sleep => {}
                () = stop => self.draining = true,
            }
        }
        self.draining && self.idle()
    }
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
