//! The coordinator process: QUIC endpoint, sessions, checks on blocking threads, around the pure [`core`](crate::core).

mod admin;
mod brain;
mod certificate;
mod client;
mod config;
mod door;
mod guard;
mod progress;
mod session;
mod store;
mod trial;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use obelysk_node::engine::{Checker, Engine};
use obelysk_node::error::TransportError;
use obelysk_node::identity::{NodeKeyId, Token};
use obelysk_node::transport::quinn::Endpoint;
use obelysk_node::transport::{CLOSE_DONE, ServerTls, listen};
use obelysk_protocol::wire::BlobRef;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

use crate::core::{DEFAULT_PRIORITY, Input, JobId};
use crate::identity::Admissions;
use brain::{Brain, Command, MAX_COMMANDS};
pub use client::{submit_remote, submit_remote_at};
pub use config::{CoordinatorConfig, CoordinatorError, LocalConfig};
use guard::Guard;
use progress::Watcher;
pub use progress::{JobResult, Phase, Progress};
use store::Store;

/// Nodes served at once: twice the largest fleet planned.
const MAX_NODES: usize = 2048;
/// Clients and administrators served at once: they need no certificate of a node, so they must not crowd nodes out.
const MAX_CLIENTS: usize = 128;
/// Evictions a session may be behind: they are orders of people.
const MAX_EVICTIONS: usize = 256;
/// How long a stop waits for goodbyes to be read.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// A coordinator.
#[derive(Debug)]
pub struct Coordinator;

/// What sessions and handles share.
pub(crate) struct Shared {
    config: CoordinatorConfig,
    store: Store,
    checker: Arc<dyn Checker>,
    commands: mpsc::Sender<Command>,
    submissions: AtomicU64,
    admissions: Arc<Admissions>,
    /// This coordinator as nodes may dial it, `host:port`.
    addresses: Vec<String>,
    evictions: broadcast::Sender<NodeKeyId>,
    nodes: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    trials: trial::Trials,
}

/// Cuts a text at a character boundary.
fn clip(mut text: String, bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes));
    text
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
        config.validate()?;
        let certificates = Arc::new(certificate::OwnCertificate::new(admissions.clone())?);
        let tls = ServerTls { certificates, authority: admissions.authority().certificate().clone() };
        let endpoint = listen(config.listen, &tls, config.idle_timeout_ms)?;
        let local = endpoint.local_addr().map_err(|e| TransportError::Setup(e.to_string()))?;
        let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
        let (count, nodes) = watch::channel(0);
        let store = Store::new(config.max_store_bytes);
        let brain = Brain::new(&config, store.clone(), (checker.clone(), referee), commands.clone(), count);
        let brain = tokio::spawn(brain.run(inbox));
        let place =
            if config.advertise.is_empty() { local.to_string() } else { format!("{}:{}", config.advertise, local.port()) };
        let address = format!("{place}#{}", admissions.pin());
        let shared = Arc::new(Shared {
            config,
            store,
            checker,
            commands,
            submissions: AtomicU64::new(0),
            admissions,
            addresses: vec![place],
            evictions: broadcast::channel(MAX_EVICTIONS).0,
            nodes: Arc::new(Semaphore::new(MAX_NODES)),
            clients: Arc::new(Semaphore::new(MAX_CLIENTS)),
            trials: trial::Trials::default(),
        });
        tokio::spawn(accept(shared.clone(), endpoint.clone()));
        tracing::info!(address, "listening");
        Ok(Handle { shared, endpoint, local, address, nodes, brain })
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
    async fn command(&self, command: Command) -> Result<(), ()> {
        self.commands.send(command).await.map_err(|_| ())
    }

    async fn submit(self: &Arc<Self>, spec: Vec<u8>, model: [u8; 32], priority: u8) -> Result<JobHandle, CoordinatorError> {
        let segments = self.checker.segments(&spec)?;
        let peak_bytes = self.checker.peak_bytes(&spec);
        if segments == 0 {
            return Err(obelysk_node::CheckError::Spec("it has no segments".to_owned()).into());
        }
        let blob = BlobRef::of(&spec);
        let number = self.submissions.fetch_add(1, Ordering::Relaxed);
        let name = [&blob.digest[..], &model[..], &number.to_le_bytes()[..]].concat();
        let job = JobId(BlobRef::of(&name).digest);
        self.store.put(job, blob, spec).map_err(|full| CoordinatorError::StoreFull { limit: full.limit })?;
        let (watcher, (events, result)) = Watcher::new();
        let sized = Command::Core(Input::JobSized { job, priority, peak_bytes });
        self.command(sized).await.map_err(|()| CoordinatorError::Stopped)?;
        let command = Command::Submit { job, model, spec: blob, segments, watcher };
        self.command(command).await.map_err(|()| CoordinatorError::Stopped)?;
        Ok(JobHandle { shared: self.clone(), job, segments, events, result })
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
        self.shared.submit(spec, model, priority).await
    }

    /// Says goodbye to all nodes and stops. Jobs in progress end with [`CoordinatorError::Stopped`].
    pub async fn shutdown(self) {
        let _ = self.shared.command(Command::Stop).await;
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
