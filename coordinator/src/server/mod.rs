//! The coordinator process: QUIC endpoint, sessions, checks on blocking threads, around the pure [`core`](crate::core).

mod admin;
mod brain;
mod bulk;
mod certificate;
mod client;
mod config;
mod council;
mod door;
mod facts;
mod guard;
mod lead;
mod models;
mod observer;
mod progress;
mod questions;
mod room;
mod session;
mod store;
mod submit;
mod trial;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use obelysk_node::engine::{Checker, Engine};
use obelysk_node::error::TransportError;
use obelysk_node::identity::{Id as ModelId, NodeKeyId, Token};
use obelysk_node::scrape;
use obelysk_node::transport::quinn::Endpoint;
use obelysk_node::transport::{CLOSE_DONE, Parts, ServerTls, listen};
use obelysk_protocol::wire::BlobRef;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

use crate::blobs::Blobs;
use crate::consensus::Role;
use crate::consensus::raft::RaftConsensus;
use crate::core::{DEFAULT_PRIORITY, Input, JobId};
use crate::identity::Admissions;
use crate::ledger::{MAX_SEGMENTS, SharedLedger};
use brain::Command;
pub use config::{CoordinatorConfig, CoordinatorError, LocalConfig};
pub use facts::Facts;
use guard::Guard;
use lead::Gate;
use models::Published;
pub(crate) use models::named;
use observer::Observer;
pub use observer::{DONE, Entry, FAILED, Id, JobFacts, Replay, replay};
use progress::Watcher;
pub use progress::{JobResult, Phase, Progress};
use store::Store;
pub use store::StoreError;
pub use submit::{submit_remote, submit_remote_at};

/// Nodes served at once: twice the largest fleet planned.
const MAX_NODES: usize = 2048;
/// Clients and administrators served at once: they need no certificate of a node, so they must not crowd nodes out.
const MAX_CLIENTS: usize = 128;
/// Evictions a session may be behind: they are orders of people.
const MAX_EVICTIONS: usize = 256;
/// How long a peer waits for a brain that is being restored.
const LEAD_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of blobs that began to arrive and wait for the rest: several of the largest files of models.
const MAX_PARTS_BYTES: u64 = 1 << 40;
/// How often blobs that nobody needs are looked for, and how old they must be: older than any reference can be under way.
const COLLECT_EVERY: Duration = Duration::from_secs(600);
const COLLECT_GRACE: Duration = Duration::from_secs(3600);
/// How long a stop waits for goodbyes to be read.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// A coordinator.
#[derive(Debug)]
pub struct Coordinator;

/// What sessions and handles share.
pub(crate) struct Shared {
    config: CoordinatorConfig,
    store: Store,
    blobs: Blobs,
    /// What began to arrive.
    parts: Arc<Parts>,
    /// Models that nodes may have.
    models: Published,
    checker: Arc<dyn Checker>,
    gate: watch::Receiver<Gate>,
    ledger: SharedLedger,
    admissions: Arc<Admissions>,
    /// This coordinator as nodes may dial it, `host:port`.
    addresses: Vec<String>,
    /// This coordinator among several.
    members: Option<Arc<RaftConsensus>>,
    role: watch::Receiver<Role>,
    evictions: broadcast::Sender<NodeKeyId>,
    nodes: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    observer: Arc<Observer>,
    trials: trial::Trials,
}

/// Cuts a text at a character boundary.
fn clip(mut text: String, bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes));
    text
}

/// A key that no other submission has.
fn fresh_key() -> Result<[u8; 16], CoordinatorError> {
    let mut key = [0; 16];
    let no_random = |_| CoordinatorError::Job("the system gives no random bytes".to_owned());
    SystemRandom::new().fill(&mut key).map_err(no_random)?;
    Ok(key)
}

impl Coordinator {
    /// Opens the endpoint under a certificate of the cluster's authority and starts serving; must be called within a tokio runtime.
    /// With a `referee`, disputes between nodes are settled by this process's own engine.
    ///
    /// # Errors
    /// [`CoordinatorError`]: bad configuration, no key, or the address cannot be bound.
    pub async fn start(
        config: CoordinatorConfig,
        admissions: Arc<Admissions>,
        checker: Arc<dyn Checker>,
        referee: Option<Arc<dyn Engine>>,
    ) -> Result<Handle, CoordinatorError> {
        Self::start_with(config, admissions, checker, referee, Facts::in_memory()).await
    }

    /// As [`Coordinator::start`], going on where these facts end: with jobs that were open, and with who was put out.
    ///
    /// # Errors
    /// As [`Coordinator::start`].
    pub async fn start_with(
        config: CoordinatorConfig,
        admissions: Arc<Admissions>,
        checker: Arc<dyn Checker>,
        referee: Option<Arc<dyn Engine>>,
        facts: Facts,
    ) -> Result<Handle, CoordinatorError> {
        config.validate()?;
        let (durable, blobs) = match facts.blobs.clone() {
            Some(blobs) => (Some(blobs.clone()), blobs),
            None => (None, config.open_store().await?),
        };
        let parts = config.open_parts(&blobs)?;
        let models = Published::new(facts.storage(), facts.ledger.clone(), blobs.clone());
        let certificates = Arc::new(certificate::OwnCertificate::new(admissions.clone())?);
        let own = certificates.clone();
        let tls = ServerTls { certificates, authority: admissions.authority().certificate().clone() };
        let endpoint = listen(config.listen, &tls, config.idle_timeout_ms)?;
        let local = endpoint.local_addr().map_err(|e| TransportError::Setup(e.to_string()))?;
        let (count, nodes) = watch::channel(0);
        let (gate_end, gate) = watch::channel(Gate::Closed("the coordinator is starting".to_owned()));
        let (stop, stopped) = watch::channel(false);
        let store = Store::new(config.max_store_bytes, durable, facts.ledger.clone());
        let (ledger, role, members) = (facts.ledger.clone(), facts.consensus.role(), facts.members.clone());
        let observer = Arc::new(Observer::new(&config.job_logs));
        let lead = lead::Parts::new(
            &config,
            store.clone(),
            (checker.clone(), referee),
            (facts, admissions.clone()),
            count,
            observer.clone(),
        );
        let brain = tokio::spawn(lead::run(lead, gate_end, stopped));
        let place =
            if config.advertise.is_empty() { local.to_string() } else { format!("{}:{}", config.advertise, local.port()) };
        let address = format!("{place}#{}", admissions.pin());
        let shared = Arc::new(Shared {
            config,
            store,
            blobs,
            parts,
            models,
            checker,
            gate,
            ledger,
            admissions,
            addresses: vec![place],
            members,
            role: role.clone(),
            evictions: broadcast::channel(MAX_EVICTIONS).0,
            nodes: Arc::new(Semaphore::new(MAX_NODES)),
            clients: Arc::new(Semaphore::new(MAX_CLIENTS)),
            observer,
            trials: trial::Trials::default(),
        });
        questions::sample(&shared, move || own.expires_unix_s());
        tokio::spawn(accept(shared.clone(), endpoint.clone()));
        tokio::spawn(collect(Arc::downgrade(&shared)));
        tokio::spawn(council::promote(Arc::downgrade(&shared)));
        tracing::info!(address, "listening");
        Ok(Handle { shared, endpoint, local, address, nodes, brain, stop, role })
    }
}

/// Removes, now and then, blobs that neither a job nor a published model needs, as long as there is a coordinator.
async fn collect(shared: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(COLLECT_EVERY).await;
        let Some(shared) = shared.upgrade().filter(|shared| shared.blobs.is_durable()) else { return };
        // Where all share a store, what is needed is known to who leads.
        let leads = || shared.leads_in().is_some_and(|term| shared.blobs.taken_in() == Some(term));
        let may = || !shared.blobs.is_shared() || leads();
        if !may() {
            continue;
        }
        // What becomes live while this looks is young, or the store's.
        let named = models::named(&shared.ledger, &shared.blobs).await;
        let live = |blob: &BlobRef| named.blobs.contains(blob) || shared.store.needs(*blob) || !may();
        if !named.unread.is_empty() {
            let models: Vec<String> = named.unread.iter().map(|model| ModelId(*model).to_string()).collect();
            let text = "no blobs are removed: the lists of these published models cannot be read, so their files are not known; push \
                        these models again, or withdraw them";
            tracing::warn!(models = models.join(" "), place = shared.blobs.place(), text);
            continue;
        }
        match shared.blobs.collect(live, COLLECT_GRACE).await {
            Ok(done) => tracing::debug!(?done, "old blobs removed"),
            Err(error) => tracing::warn!(%error, "old blobs were not removed; they only take space"),
        }
    }
}

async fn accept(shared: Arc<Shared>, endpoint: Endpoint) {
    let (guard, mut session) = (Guard::default(), 0);
    while let Some(incoming) = endpoint.accept().await {
        let remote = incoming.remote_address();
        if guard.is_crowded() && incoming.may_retry() {
            // Costs no state; whoever answers is where it says it is.
            let _ = incoming.retry();
            continue;
        }
        let Some(arrival) = guard.arrive(remote.ip(), Instant::now()) else {
            tracing::debug!(%remote, "refused: too many unknown connections from this address");
            incoming.refuse();
            continue;
        };
        session += 1;
        tokio::spawn(session::serve(shared.clone(), incoming, session, arrival));
    }
}

impl Shared {
    /// Where commands go now; why they go nowhere otherwise. Waits for a start or a change of leader that is under way.
    async fn lead(&self) -> Result<mpsc::Sender<Command>, String> {
        let mut gate = self.gate.clone();
        let open = gate.wait_for(|gate| matches!(gate, Gate::Open(_)));
        if let Ok(Ok(open)) = tokio::time::timeout(LEAD_PATIENCE, open).await
            && let Gate::Open(commands) = &*open
        {
            return Ok(commands.clone());
        }
        Err(match &*self.gate.borrow() {
            Gate::Open(_) => "the coordinator is busy".to_owned(),
            Gate::Closed(reason) => reason.clone(),
        })
    }

    /// The term in which this coordinator leads, as far as it knows.
    fn leads_in(&self) -> Option<u64> {
        if let Role::Leader { term } = *self.role.borrow() { Some(term) } else { None }
    }

    /// Commands that wait for the brain, if there is one here.
    fn waiting_commands(&self) -> usize {
        match &*self.gate.borrow() {
            Gate::Open(commands) => commands.max_capacity() - commands.capacity(),
            Gate::Closed(_) => 0,
        }
    }

    async fn command(&self, command: Command) -> Result<(), ()> {
        self.lead().await.map_err(|_| ())?.send(command).await.map_err(|_| ())
    }

    /// Opens a job, or finds the one that was opened by this key; returns when it is sure to survive.
    async fn submit(
        self: &Arc<Self>,
        spec: Vec<u8>,
        (model, priority): ([u8; 32], u8),
        key: [u8; 16],
    ) -> Result<JobHandle, CoordinatorError> {
        let segments = self.checker.segments(&spec)?;
        if segments == 0 || segments > MAX_SEGMENTS {
            let text = format!("it has {segments} segments; 1 to {MAX_SEGMENTS} can be proved");
            return Err(obelysk_node::CheckError::Spec(text).into());
        }
        let peak_bytes = self.checker.peak_bytes(&spec);
        let blob = BlobRef::of(&spec);
        let name = [&blob.digest[..], &model[..], &key[..]].concat();
        let job = JobId(BlobRef::of(&name).digest);
        let commands = self.lead().await.map_err(CoordinatorError::NotLeading)?;
        if self.ledger.lock().ended(job).is_none() {
            let room = self.store.room(blob).await?;
            self.store.keep(job, blob, spec, room).await?;
        }
        let (watcher, (events, result)) = Watcher::new();
        let (opened, sure) = oneshot::channel();
        let sized = (priority, peak_bytes);
        let command = Command::Submit { job, model, spec: blob, segments, sized, watcher, opened };
        commands.send(command).await.map_err(|_| CoordinatorError::Stopped)?;
        let handle = JobHandle { shared: self.clone(), job, segments, events, result };
        match sure.await {
            Ok(()) => Ok(handle),
            // Not taken on: its end says why.
            Err(_) => Err(handle.result().await.err().unwrap_or(CoordinatorError::Stopped)),
        }
    }
}

/// A running coordinator. Dropping it does not stop it: call [`Handle::shutdown`].
pub struct Handle {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    local: SocketAddr,
    address: String,
    nodes: watch::Receiver<usize>,
    brain: tokio::task::JoinHandle<()>,
    stop: watch::Sender<bool>,
    role: watch::Receiver<Role>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Handle {
    /// `host:port#fingerprint`, for nodes and clients.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// This coordinator as nodes may dial it, `host:port`.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.shared.addresses
    }

    /// Who may join and who is a member.
    #[must_use]
    pub fn admissions(&self) -> &Arc<Admissions> {
        &self.shared.admissions
    }

    /// A token for nodes that this process starts itself. Waits for the disk.
    ///
    /// # Errors
    /// [`CoordinatorError::Admission`].
    pub fn invite(&self, ttl: Duration, uses: u32) -> Result<Token, CoordinatorError> {
        Ok(self.shared.admissions.invite(ttl.as_secs(), uses, self.shared.addresses.clone())?)
    }

    /// The socket this coordinator is bound to.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Serves metrics where the settings say; returns the address, or `None` when they say nowhere.
    ///
    /// # Errors
    /// [`CoordinatorError::Metrics`] when the address cannot be bound.
    pub async fn serve_metrics(&self) -> Result<Option<SocketAddr>, CoordinatorError> {
        let Some(listen) = self.shared.config.metrics_listen()? else { return Ok(None) };
        let observer = self.shared.observer.clone();
        let served = scrape::serve(listen, Arc::new(move || observer.metrics.text())).await;
        served.map(Some).map_err(|e| CoordinatorError::Metrics(e.to_string()))
    }

    /// Completes, with the reason, when this coordinator can take no part any more: its log failed. Nothing agreed is lost.
    pub async fn failed(&self) -> String {
        let mut role = self.role.clone();
        let stopped = role.wait_for(|role| matches!(role, Role::Stopped { .. })).await.map(|role| role.clone());
        if let Ok(Role::Stopped { reason }) = stopped { reason } else { std::future::pending().await }
    }

    /// Nodes connected now.
    #[must_use]
    pub fn connected_nodes(&self) -> usize {
        *self.nodes.borrow()
    }

    /// Waits until `wanted` nodes are connected.
    ///
    /// # Errors
    /// [`CoordinatorError::TooFewNodes`] after `patience`.
    pub async fn wait_for_nodes(&self, wanted: usize, patience: Duration) -> Result<(), CoordinatorError> {
        let mut nodes = self.nodes.clone();
        let enough = nodes.wait_for(|joined| *joined >= wanted);
        match tokio::time::timeout(patience, enough).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(CoordinatorError::Stopped),
            Err(_) => Err(CoordinatorError::TooFewNodes { joined: self.connected_nodes(), wanted, seconds: patience.as_secs() }),
        }
    }

    /// Submits a job. It runs whether or not its handle is read; drop the handle and it still runs.
    ///
    /// # Errors
    /// [`CoordinatorError`]: the specification is not a job, the store is full, or the coordinator has stopped.
    pub async fn submit(&self, spec: Vec<u8>, model: [u8; 32]) -> Result<JobHandle, CoordinatorError> {
        self.submit_at(spec, model, DEFAULT_PRIORITY).await
    }

    /// As [`Handle::submit`], with a priority from 0 to 9.
    ///
    /// # Errors
    /// As [`Handle::submit`].
    pub async fn submit_at(&self, spec: Vec<u8>, model: [u8; 32], priority: u8) -> Result<JobHandle, CoordinatorError> {
        self.shared.submit(spec, (model, priority), fresh_key()?).await
    }

    /// Says goodbye to all nodes and stops. Jobs in progress end with [`CoordinatorError::Stopped`].
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(STOP_PATIENCE, self.brain).await;
        // Nodes close when they have read the goodbye; only then nothing is cut off.
        let _ = tokio::time::timeout(STOP_PATIENCE, self.endpoint.wait_idle()).await;
        self.endpoint.close(CLOSE_DONE, b"coordinator stopped");
        let _ = tokio::time::timeout(STOP_PATIENCE, self.endpoint.wait_idle()).await;
    }
}

/// A job in progress: events while it runs, then its result.
pub struct JobHandle {
    shared: Arc<Shared>,
    job: JobId,
    segments: u32,
    events: mpsc::Receiver<Progress>,
    result: oneshot::Receiver<Result<JobResult, String>>,
}

impl std::fmt::Debug for JobHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobHandle").field("job", &self.job).finish_non_exhaustive()
    }
}

impl JobHandle {
    /// The job's id.
    #[must_use]
    pub const fn id(&self) -> [u8; 32] {
        self.job.0
    }

    /// Segments of the job.
    #[must_use]
    pub const fn segments(&self) -> u32 {
        self.segments
    }

    /// The next event; `None` when the job has ended.
    pub async fn next(&mut self) -> Option<Progress> {
        self.events.recv().await
    }

    /// Gives the job up: [`JobHandle::result`] then says so.
    pub async fn cancel(&self) {
        let _ = self.shared.command(Command::Core(Input::Cancel { job: self.job })).await;
    }

    /// Waits for the end; events not read are discarded.
    ///
    /// # Errors
    /// [`CoordinatorError::Job`] with cause and remedy, or [`CoordinatorError::Stopped`].
    pub async fn result(self) -> Result<JobResult, CoordinatorError> {
        self.result.await.map_err(|_| CoordinatorError::Stopped)?.map_err(CoordinatorError::Job)
    }
}
