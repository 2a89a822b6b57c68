//! One connection to the coordinator, from hello to goodbye or loss.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use obelysk_protocol::wire::{
    Assign, BlobRef, Done, Drain, Failed, GiveBack, Goodbye, Message, NodeHello, Progress, Refused, Welcome, WorkKind,
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;

use super::cache::Cache;
use super::device::{DeviceEvent, Task};
use super::trial::attempt;
use super::{Agent, Complaint, ExitReason, Leaving, Outcome, Run, Stop, clip};
use crate::address::CoordinatorAddress;
use crate::engine::WorkRequest;
use crate::error::{NodeError, TransportError};
use crate::identity::{Credential, Identity, enrol, renew, unix_now};
use crate::machine::memory;
use crate::models::fetch_missing;
use crate::transport::{CLOSE_DONE, InMemory, Parts, connect, ended, fetch_part, offer, read_message, write_message};

/// Messages read and not yet handled: more than one lease can cause.
const MAX_INBOX: usize = 64;
/// How long to wait for the answers to hello and goodbye.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the coordinator may leave a node that said hello, or answered a trial, without a word: it may be calibrating a whole fleet.
const GREETING: Duration = Duration::from_secs(60);
/// Pause after a renewal that failed, at least: the coordinator is busy or away, not slow to think.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// Pause between looks for models to fetch.
const FETCH_AGAIN: Duration = Duration::from_secs(60);

/// How a session ended.
pub(super) enum SessionEnd {
    Exit(ExitReason),
    Fatal(NodeError),
    Lost {
        error: TransportError,
        welcomed: bool,
    },
    /// The node has more to offer than it said.
    Again,
}

impl SessionEnd {
    fn lost(error: TransportError, welcomed: bool) -> Self {
        if error.is_permanent() { Self::Fatal(error.into()) } else { Self::Lost { error, welcomed } }
    }
}

/// Things the session's own tasks report.
enum Internal {
    Prepared { epoch: u64, task: Result<Task, TransportError> },
    Uploaded { epoch: u64, result: Result<(), TransportError> },
    Renewed(Box<Result<Credential, NodeError>>),
    Fetched,
}

struct Session<'a> {
    agent: &'a mut Agent,
    connection: Connection,
    control: SendStream,
    internal: mpsc::Sender<Internal>,
    /// Leases from before this connection of which it is not known yet whether they are wanted.
    asked: BTreeSet<u64>,
    /// Assignments whose inputs are being fetched; lost with the connection and then leased anew.
    preparing: BTreeSet<u64>,
    /// There are models that the hello did not name.
    again: bool,
}

/// Dials once and serves until the end.
pub(super) async fn serve(agent: &mut Agent, address: &CoordinatorAddress, stop: &mut Stop<'_>) -> SessionEnd {
    let leaving = agent.leaving.is_some();
    let dial = open(agent, address);
    let opened = if leaving {
        dial.await
    } else {
        tokio::select! {
            opened = dial => opened,
            leave = &mut *stop => {
                agent.leaving = Some(Leaving::new(leave));
                return SessionEnd::Lost { error: TransportError::Lost("stopped while dialling".to_owned()), welcomed: false };
            }
        }
    };
    // The endpoint lives as long as the session: dropping it earlier would end the connection's driver.
    let (endpoint, connection, control, incoming, welcome) = match opened {
        Ok(parts) => parts,
        Err(NodeError::Transport(error)) => return SessionEnd::lost(error, false),
        Err(error) => return SessionEnd::Fatal(error),
    };
    tracing::info!(node = welcome.node, coordinator = %address, "joined");
    let (internal, mut reports) = mpsc::channel(MAX_INBOX);
    let counted = agent.metrics.traffic.count(&connection);
    let metrics = agent.metrics.clone();
    metrics.joined();
    let (asked, preparing) = (BTreeSet::new(), BTreeSet::new());
    let mut session = Session { agent, connection: connection.clone(), control, internal, asked, preparing, again: false };
    let end = session.run(incoming, &mut reports, stop).await.unwrap_or_else(|e| SessionEnd::lost(e, true));
    metrics.parted();
    connection.close(CLOSE_DONE, b"session over");
    // Gives the close a chance to reach the peer; without it the peer waits for its idle timeout.
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    drop(counted);
    end
}

type Opened = (quinn::Endpoint, Connection, SendStream, RecvStream, Welcome);

/// Lets this machine in if need be, then opens a session as a member.
async fn open(agent: &mut Agent, address: &CoordinatorAddress) -> Result<Opened, NodeError> {
    if let Identity::New { token, key } = &agent.identity {
        let credential = enrol(address, token, key, &agent.config.name).await?;
        agent.store.save(&credential)?;
        tracing::info!(node = %credential.id(), coordinator = %address, "let in");
        agent.identity = Identity::Member(credential);
    }
    let client = match &agent.identity {
        Identity::Member(credential) => credential.client(),
        Identity::New { .. } => return Err(TransportError::Lost("not let in".to_owned()).into()),
    };
    let (endpoint, connection) = connect(address, Some(&client)).await?;
    let greeted = greet(agent, &connection).await.map_err(|e| ended(&connection, e))?;
    let (send, recv, welcome) = greeted;
    Ok((endpoint, connection, send, recv, welcome))
}

async fn greet(agent: &mut Agent, connection: &Connection) -> Result<(SendStream, RecvStream, Welcome), TransportError> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| crate::transport::lost(&e))?;
    let memory = memory();
    let hello = NodeHello {
        name: agent.config.name.clone(),
        identity: agent.instance,
        cores: agent.config.cores(),
        memory_bytes: memory.total,
        free_bytes: memory.free,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        models: agent.models(),
        held: agent.held(),
    };
    write_message(&mut send, &Message::NodeHello(hello)).await?;
    loop {
        let answer = tokio::time::timeout(GREETING, read_message(&mut recv));
        match answer.await.map_err(|_| TransportError::Timeout(GREETING.as_secs()))?? {
            Some(Message::Welcome(welcome)) => return Ok((send, recv, welcome)),
            Some(Message::Trial(trial)) => {
                let answer = attempt(agent, trial).await;
                write_message(&mut send, &answer).await?;
            }
            Some(Message::Refused(no)) => return Err(TransportError::Refused { reason: no.reason, retry: no.retry }),
            Some(Message::Coordinators(known)) => {
                return Err(TransportError::Elsewhere { leader: known.leader, all: known.all });
            }
            Some(other) => return Err(TransportError::Unexpected { expected: "a welcome", got: other.id() }),
            None => return Err(TransportError::Truncated("before a welcome")),
        }
    }
}

impl Session<'_> {
    async fn run(
        &mut self,
        incoming: RecvStream,
        reports: &mut mpsc::Receiver<Internal>,
        stop: &mut Stop<'_>,
    ) -> Result<SessionEnd, TransportError> {
        let mut messages = inbox(incoming);
        // What they are about, before anything is delivered: the answers say which of them are still wanted.
        for epoch in self.agent.held() {
            if let Some(holding) = self.agent.about.get(&epoch).cloned() {
                self.asked.insert(epoch);
                write_message(&mut self.control, &Message::Holding(holding)).await?;
            } else {
                self.deliver(epoch).await?;
            }
        }
        if self.agent.leaving.is_some() {
            self.say_drain().await?;
        }
        self.fetch_models();
        let renewal = tokio::time::sleep(self.until_renewal());
        tokio::pin!(renewal);
        loop {
            if self.again && self.preparing.is_empty() && self.agent.leaving.is_none() {
                return Ok(SessionEnd::Again);
            }
            if let Some(reason) = self.agent.engine.lost().filter(|_| self.agent.leaving.is_none()) {
                self.agent.leaving = Some(Leaving { reason: ExitReason::Lost(reason), deadline: None });
                self.say_drain().await?;
            }
            if self.agent.leaving.is_some() && self.idle() {
                return self.leave(&mut messages).await;
            }
            if !self.idle() {
                self.agent.busy = Instant::now();
            }
            let due = self.due().map(tokio::time::Instant::from_std);
            tokio::select! {
                message = messages.recv() => match message {
                    Some(Ok(Some(message))) => {
                        match &message {
                            Message::Resume(resume) => self.answered(resume.epoch, true).await?,
                            Message::Cancel(cancel) => self.answered(cancel.epoch, false).await?,
                            _ => {}
                        }
                        let asked = matches!(message, Message::Drain(_));
                        if let Some(end) = self.handle(message)? {
                            return Ok(end);
                        }
                        if asked {
                            self.say_drain().await?;
                        }
                    }
                    Some(Err(error)) => return Err(error),
                    Some(Ok(None)) | None => return Err(TransportError::Truncated("without a goodbye")),
                },
                Some(report) = reports.recv() => match report {
                    Internal::Renewed(result) => {
                        let pause = self.renewed(*result)?;
                        renewal.as_mut().reset(tokio::time::Instant::now() + pause);
                    }
                    Internal::Fetched => self.again = true,
                    Internal::Prepared { epoch, task } => self.prepared(epoch, task).await?,
                    Internal::Uploaded { epoch, result } => self.uploaded(epoch, result).await?,
                },
                Some(event) = self.agent.device.events.recv() => self.device(event).await?,
                () = &mut renewal => {
                    self.renew();
                    // Until the answer is here, which sets the next time.
                    renewal.as_mut().reset(tokio::time::Instant::now() + self.until_expiry().max(ANSWER));
                }
                leave = &mut *stop, if self.agent.leaving.is_none() => {
                    self.agent.leaving = Some(Leaving::new(leave));
                    self.say_drain().await?;
                    self.give_back(false).await?;
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                    if self.overdue().await? {
                        return self.leave(&mut messages).await;
                    }
                }
            }
        }
    }

    /// What is due now: `true` when it is to leave at once, with nothing running any more.
    async fn overdue(&mut self) -> Result<bool, TransportError> {
        if self.agent.leaving.is_some() {
            self.give_back(true).await?;
            return Ok(true);
        }
        self.agent.leaving = Some(Leaving { reason: ExitReason::Idle, deadline: None });
        self.say_drain().await?;
        Ok(false)
    }

    fn idle(&self) -> bool {
        self.agent.idle() && self.preparing.is_empty()
    }

    /// When something is to happen that no message brings about: this machine is taken away, or was idle for long enough.
    fn due(&self) -> Option<Instant> {
        match &self.agent.leaving {
            Some(leaving) => leaving.deadline,
            None => {
                let most = Duration::from_secs(self.agent.config.exit_when_idle_s);
                (!most.is_zero() && self.idle()).then(|| self.agent.busy + most)
            }
        }
    }

    /// Gives back what will not be done in time: nothing without a deadline, and everything at it.
    async fn give_back(&mut self, everything: bool) -> Result<(), TransportError> {
        let Some(end) = self.agent.leaving.as_ref().and_then(|leaving| leaving.deadline) else { return Ok(()) };
        let now = Instant::now();
        let left = end.saturating_duration_since(now);
        let late = |run: &Run| everything || !run.fits(now, left);
        let running = self.agent.running.iter().filter(|(_, run)| late(run)).map(|(epoch, _)| *epoch);
        let given: Vec<u64> = running.chain(std::mem::take(&mut self.preparing)).collect();
        for epoch in given {
            self.agent.running.remove(&epoch);
            self.asked.remove(&epoch);
            let reason = "this machine is about to be taken away".to_owned();
            write_message(&mut self.control, &Message::GiveBack(GiveBack { epoch, reason })).await?;
        }
        Ok(())
    }

    fn handle(&mut self, message: Message) -> Result<Option<SessionEnd>, TransportError> {
        match message {
            Message::Assign(assign) => self.prepare(assign),
            Message::ResultAck(ack) => {
                self.agent.unacked.remove(&ack.epoch);
            }
            Message::Resume(resume) => tracing::debug!(epoch = resume.epoch, "still wanted"),
            // A running engine cannot be stopped from outside. Its result is offered, refused by epoch and so accounted for.
            Message::Cancel(cancel) => tracing::debug!(epoch = cancel.epoch, "result no longer wanted"),
            Message::Drain(drain) => {
                tracing::info!(reason = drain.reason, "asked to leave");
                self.agent.leaving.get_or_insert(Leaving { reason: ExitReason::Drained, deadline: None });
            }
            Message::Coordinators(known) => self.agent.learn(&known.all),
            Message::Refused(Refused { retry, reason }) => return Err(TransportError::Refused { reason, retry }),
            Message::Goodbye(bye) => return Ok(Some(SessionEnd::Exit(ExitReason::Dismissed(bye.reason)))),
            other => return Err(TransportError::Unexpected { expected: "an assignment or an answer", got: other.id() }),
        }
        Ok(None)
    }

    /// The coordinator says of a lease whether its result is wanted.
    async fn answered(&mut self, epoch: u64, wanted: bool) -> Result<(), TransportError> {
        let asked = self.asked.remove(&epoch);
        if !wanted && !self.agent.drop_result(epoch) {
            return Ok(());
        }
        if asked || !wanted { self.deliver(epoch).await } else { Ok(()) }
    }

    /// Fetches the blobs of an assignment beside the session, which goes on renewing leases meanwhile.
    fn prepare(&mut self, assign: Assign) {
        self.preparing.insert(assign.epoch);
        self.agent.note(&assign);
        let connection = self.connection.clone();
        let (cache, parts, limit) = (self.agent.cache.clone(), self.agent.parts.clone(), self.agent.config.max_blob_bytes);
        let internal = self.internal.clone();
        tokio::spawn(async move {
            let epoch = assign.epoch;
            let task = gather(&connection, (&cache, &parts), limit, assign).await;
            let _ = internal.send(Internal::Prepared { epoch, task }).await;
        });
    }

    async fn prepared(&mut self, epoch: u64, task: Result<Task, TransportError>) -> Result<(), TransportError> {
        // Given back meanwhile.
        if !self.preparing.remove(&epoch) {
            return Ok(());
        }
        let complaint = match task {
            Ok(task) => {
                if self.agent.device.submit(task) {
                    self.agent.running.insert(epoch, Run { since: Instant::now(), permille: 0 });
                    return Ok(());
                }
                "the device already has work".to_owned()
            }
            // The fault of this work item; any other error is the connection's, and the work is leased anew after it.
            Err(
                error @ (TransportError::Refused { .. }
                | TransportError::BlobTooLarge { .. }
                | TransportError::BlobDamaged
                | TransportError::Disk { .. }),
            ) => error.to_string(),
            Err(error) => return Err(error),
        };
        self.agent.finish(Outcome { epoch, result: Err(Complaint { disagrees: false, reason: clip(&complaint) }) });
        self.deliver(epoch).await
    }

    /// Looks, beside the session, for models that the coordinator offers and this node has not, now and from time to time.
    fn fetch_models(&self) {
        let Some(shelf) = self.agent.shelf.clone() else { return };
        let (connection, internal, engine) = (self.connection.clone(), self.internal.clone(), self.agent.engine.clone());
        tokio::spawn(async move {
            while connection.close_reason().is_none() {
                match fetch_missing(&connection, &*shelf, &engine.models()).await {
                    Ok(0) => {}
                    Ok(_) => {
                        let _ = internal.send(Internal::Fetched).await;
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "a model was not fetched; what arrived of it is kept"),
                }
                tokio::time::sleep(FETCH_AGAIN).await;
            }
        });
    }

    /// Time left of the certificate.
    fn until_expiry(&self) -> Duration {
        match &self.agent.identity {
            Identity::Member(c) => Duration::from_secs(c.expires_unix_s.saturating_sub(unix_now())),
            Identity::New { .. } => Duration::ZERO,
        }
    }

    /// Time until half of the certificate's life is over, a little less for some nodes than for others, so that a fleet that joined at
    /// once does not renew at once.
    fn until_renewal(&self) -> Duration {
        let Identity::Member(c) = &self.agent.identity else { return Duration::ZERO };
        self.agent.metrics.certified_until(c.expires_unix_s);
        let life = Duration::from_secs(c.expires_unix_s.saturating_sub(c.issued_unix_s));
        let spread = f64::from(self.agent.instance[1]) / 255.0 / 10.0;
        self.until_expiry().saturating_sub(life.mul_f64(0.5 + spread))
    }

    /// Asks for a new certificate beside the session.
    fn renew(&self) {
        let Identity::Member(credential) = &self.agent.identity else { return };
        let (connection, internal) = (self.connection.clone(), self.internal.clone());
        let old = credential.duplicate();
        tokio::spawn(async move {
            let result = match old {
                Ok(old) => renew(&connection, &old).await,
                Err(error) => Err(error.into()),
            };
            let _ = internal.send(Internal::Renewed(Box::new(result))).await;
        });
    }

    /// Keeps a new certificate; returns the time until the next is due.
    fn renewed(&mut self, result: Result<Credential, NodeError>) -> Result<Duration, TransportError> {
        match result {
            Ok(credential) => {
                if let Err(error) = self.agent.store.save(&credential) {
                    tracing::error!(%error, "the renewed certificate cannot be kept; after a restart the old one must serve");
                }
                tracing::info!(expires_unix_s = credential.expires_unix_s, "certificate renewed");
                self.agent.identity = Identity::Member(credential);
                Ok(self.until_renewal())
            }
            Err(NodeError::Transport(error @ TransportError::Refused { retry: false, .. })) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "certificate not renewed; trying again");
                Ok((self.until_expiry() / 8).max(RENEW_AGAIN))
            }
        }
    }

    async fn uploaded(&mut self, epoch: u64, result: Result<(), TransportError>) -> Result<(), TransportError> {
        let Some(outcome) = self.agent.unacked.get(&epoch) else { return Ok(()) };
        let message = match (result, &outcome.result) {
            (Ok(()), Ok(d)) => Message::Done(Done { epoch, blob: d.blob, core_us: d.core_us, peak_bytes: d.peak_bytes }),
            (Err(TransportError::Refused { reason, .. }), _) => {
                Message::Failed(Failed { epoch, disagrees: false, reason: clip(&format!("result not taken: {reason}")) })
            }
            (Err(error), _) => return Err(error),
            (Ok(()), Err(_)) => return Ok(()),
        };
        write_message(&mut self.control, &message).await
    }

    async fn device(&mut self, event: DeviceEvent) -> Result<(), TransportError> {
        match event {
            DeviceEvent::Progress { epoch, permille } => {
                // A trial that outlived its connection, or work that was given back.
                let Some(run) = self.agent.running.get_mut(&epoch) else { return Ok(()) };
                run.permille = permille;
                write_message(&mut self.control, &Message::Progress(Progress { epoch, permille })).await
            }
            DeviceEvent::Finished { epoch, .. } if !self.agent.running.contains_key(&epoch) => Ok(()),
            DeviceEvent::Finished { epoch, outcome } => {
                self.agent.finish(Outcome::new(epoch, outcome));
                // Of an earlier connection: delivered when the coordinator has said that it knows the lease.
                if self.asked.contains(&epoch) { Ok(()) } else { self.deliver(epoch).await }
            }
        }
    }

    /// Sends a failure at once; uploads a result first, and its message follows when the coordinator confirmed the bytes.
    async fn deliver(&mut self, epoch: u64) -> Result<(), TransportError> {
        let Some(outcome) = self.agent.unacked.get(&epoch) else { return Ok(()) };
        let delivery = match &outcome.result {
            Ok(delivery) => delivery.clone(),
            Err(Complaint { disagrees, reason }) => {
                let failed = Failed { epoch, disagrees: *disagrees, reason: reason.clone() };
                return write_message(&mut self.control, &Message::Failed(failed)).await;
            }
        };
        let (connection, internal) = (self.connection.clone(), self.internal.clone());
        tokio::spawn(async move {
            let source = InMemory { blob: delivery.blob, bytes: delivery.bytes };
            let result = offer(&connection, epoch, &source).await;
            let _ = internal.send(Internal::Uploaded { epoch, result }).await;
        });
        Ok(())
    }

    async fn say_drain(&mut self) -> Result<(), TransportError> {
        let reason = self.agent.leaving.as_ref().map_or("asked to stop", Leaving::why).to_owned();
        write_message(&mut self.control, &Message::Drain(Drain { reason })).await
    }

    /// Says goodbye and waits for the answer, so that nothing sent before is lost with the connection.
    async fn leave(
        &mut self,
        messages: &mut mpsc::Receiver<Result<Option<Message>, TransportError>>,
    ) -> Result<SessionEnd, TransportError> {
        let reason = "drained".to_owned();
        write_message(&mut self.control, &Message::Goodbye(Goodbye { reason })).await?;
        let answered = async {
            while let Some(Ok(Some(message))) = messages.recv().await {
                if matches!(message, Message::Goodbye(_)) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(ANSWER, answered).await;
        Ok(SessionEnd::Exit(self.agent.leaving.as_ref().map_or(ExitReason::Drained, Leaving::exit)))
    }
}

/// Reads messages on a task of its own: reading a frame is not cancel-safe.
fn inbox(mut incoming: RecvStream) -> mpsc::Receiver<Result<Option<Message>, TransportError>> {
    let (inbox, messages) = mpsc::channel(MAX_INBOX);
    tokio::spawn(async move {
        loop {
            let message = read_message(&mut incoming).await;
            let last = !matches!(message, Ok(Some(_)));
            if inbox.send(message).await.is_err() || last {
                return;
            }
        }
    });
    messages
}

/// Blobs that are here, and beginnings of some.
type Kept<'a> = (&'a Arc<Mutex<Cache>>, &'a Arc<Parts>);

async fn gather(connection: &Connection, kept: Kept<'_>, limit: u64, assign: Assign) -> Result<Task, TransportError> {
    let mut inputs = Vec::with_capacity(assign.inputs.len());
    for blob in assign.inputs {
        inputs.push(cached(connection, kept, limit, blob).await?.to_vec());
    }
    let unknown = TransportError::Unexpected { expected: "a known kind of work", got: obelysk_protocol::wire::MessageId::Assign };
    let request = WorkRequest {
        job: assign.job,
        model: assign.model,
        kind: WorkKind::from_code(assign.kind).ok_or(unknown)?,
        segment: assign.segment,
        spec: cached(connection, kept, limit, assign.spec).await?.to_vec(),
        extra: cached(connection, kept, limit, assign.extra).await?.to_vec(),
    };
    Ok(Task { epoch: assign.epoch, request, inputs })
}

async fn cached(
    connection: &Connection,
    (cache, parts): Kept<'_>,
    limit: u64,
    blob: BlobRef,
) -> Result<Arc<Vec<u8>>, TransportError> {
    let found = cache.lock().unwrap_or_else(PoisonError::into_inner).get(blob);
    if let Some(bytes) = found {
        return Ok(bytes);
    }
    let bytes = Arc::new(fetch_part(connection, parts, blob, limit).await?.into_bytes()?);
    cache.lock().unwrap_or_else(PoisonError::into_inner).put(blob, bytes.clone());
    Ok(bytes)
}
