//! Messages between coordinators over QUIC: mutual TLS under the cluster's authority, and nobody in whom the configuration does not name.
//!
//! Each direction has its own connection, dialled by who speaks. Queues are bounded and may drop: raft says again what matters. What does
//! not fit one frame, a snapshot above all, goes on a stream of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use obelysk_node::error::TransportError;
use obelysk_node::identity::{ClusterId, NodeKey};
use obelysk_node::transport::quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use obelysk_node::transport::rustls::pki_types::CertificateDer;
use obelysk_node::transport::rustls::server::{ClientHello, ResolvesServerCert};
use obelysk_node::transport::rustls::sign::CertifiedKey;
use obelysk_node::transport::{
    CLOSE_PROTOCOL, ClientIdentity, Fingerprint, ServerTls, connect_peer, lost, public_key, read_message, receive_blob,
    send_chunks, write_message,
};
use obelysk_protocol::wire::{BlobRef, MAX_CONTROL_BYTES, Message as Frame, PeerBulk, PeerEntry, PeerHello, PeerMessage};
use raft::eraftpb::{Message, MessageType};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::driver::Event;
use super::member::{MAX_MEMBERS, Member, Members, id_of};
use super::wire::{MAX_MESSAGE_BYTES, decode_message, encode_message};

/// Messages waiting for one member: what a leader has under way to it, twice.
const MAX_QUEUED: usize = 128;
/// Messages of all members waiting to be handled here, of one frame each.
const MAX_UNHANDLED: usize = 128;
/// Connections from coordinators: each member's, and those it gave up and has not closed.
const MAX_CONNECTIONS: usize = 4 * MAX_MEMBERS;
/// A handshake, or a frame that does not move, is given up after this.
const PATIENCE: Duration = Duration::from_secs(5);
/// First pause before a member that is not there is dialled again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// And is at most this: an election must not wait for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Room for what surrounds a message in its frame.
const FRAME_SLACK: usize = 64;

/// What a coordinator shows the others.
pub struct PeerIdentity {
    cluster: ClusterId,
    authority: CertificateDer<'static>,
    pin: Fingerprint,
    key: NodeKey,
    current: Mutex<(CertificateDer<'static>, Arc<CertifiedKey>)>,
}

impl PeerIdentity {
    /// From a key and the certificate that the authority gave it.
    ///
    /// # Errors
    /// [`TransportError::Setup`]: they do not belong together.
    pub fn new(
        cluster: ClusterId,
        authority: CertificateDer<'static>,
        key: NodeKey,
        certificate: CertificateDer<'static>,
    ) -> Result<Arc<Self>, TransportError> {
        let pin = Fingerprint::of_certificate(&authority)?;
        let shown = ServerTls::certified(vec![certificate.clone(), authority.clone()], &key.to_pkcs8())?;
        Ok(Arc::new(Self { cluster, authority, pin, key, current: Mutex::new((certificate, shown)) }))
    }

    /// Shows another certificate of the same key from now on.
    ///
    /// # Errors
    /// [`TransportError::Setup`]: it is not this key's.
    pub fn renew(&self, certificate: CertificateDer<'static>) -> Result<(), TransportError> {
        let shown = ServerTls::certified(vec![certificate.clone(), self.authority.clone()], &self.key.to_pkcs8())?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = (certificate, shown);
        Ok(())
    }

    /// The key's digest, from which the member's id follows.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        self.key.id().0
    }

    fn client(&self) -> ClientIdentity {
        let certificate = self.current.lock().unwrap_or_else(PoisonError::into_inner).0.to_vec();
        ClientIdentity { certificate, key: self.key.to_pkcs8() }
    }

    pub(super) fn tls(self: &Arc<Self>) -> ServerTls {
        ServerTls { certificates: self.clone(), authority: self.authority.clone() }
    }
}

impl ResolvesServerCert for PeerIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.lock().unwrap_or_else(PoisonError::into_inner).1.clone())
    }
}

impl fmt::Debug for PeerIdentity {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerIdentity({:016x})", id_of(&self.key()))
    }
}

/// Answers what coordinators ask each other beside the consensus.
pub trait Questions: fmt::Debug + Send + Sync {
    /// Answers one question on its stream. Only members get this far.
    fn answer(&self, send: SendStream, recv: RecvStream) -> Pin<Box<dyn Future<Output = Result<(), TransportError>> + Send>>;
}

/// How a member reaches another with a question of its own.
#[derive(Debug, Clone)]
pub struct Dialler {
    identity: Arc<PeerIdentity>,
    endpoint: Endpoint,
}

impl Dialler {
    /// Connects to this very member.
    ///
    /// # Errors
    /// [`TransportError`]: nobody there, or another.
    pub async fn dial(&self, member: &Member) -> Result<Connection, TransportError> {
        dial(&self.endpoint, &self.identity, member).await
    }
}

async fn dial(endpoint: &Endpoint, identity: &PeerIdentity, member: &Member) -> Result<Connection, TransportError> {
    let client = identity.client();
    let dialled = tokio::time::timeout(PATIENCE, connect_peer(endpoint, &member.peer, identity.pin, &client)).await;
    match dialled {
        Ok(Ok(connection)) if key_of(&connection) == Some(member.key) => Ok(connection),
        Ok(Ok(_)) => Err(TransportError::Lost("another coordinator answers there".to_owned())),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(TransportError::Timeout(PATIENCE.as_secs())),
    }
}

/// What all connections share.
#[derive(Debug, Clone)]
struct Shared {
    identity: Arc<PeerIdentity>,
    questions: Option<Arc<dyn Questions>>,
    events: SyncSender<Event>,
    /// Who may speak, and where each is.
    directory: Arc<RwLock<Members>>,
    space: Arc<Semaphore>,
}

impl Shared {
    fn id(&self) -> u64 {
        id_of(&self.identity.key())
    }

    fn is_member(&self, key: &[u8; 32]) -> bool {
        let directory = self.directory.read().unwrap_or_else(PoisonError::into_inner);
        directory.get(&id_of(key)).is_some_and(|m| m.key == *key)
    }

    /// A full queue means that this member is busy; what is lost comes again.
    fn tell(&self, event: Event) {
        let _ = self.events.try_send(event);
    }
}

/// The connections of one member.
#[derive(Debug)]
pub(super) struct Links {
    shared: Shared,
    endpoint: Endpoint,
    runtime: tokio::runtime::Handle,
    links: BTreeMap<u64, Link>,
    greeting: watch::Sender<Vec<PeerEntry>>,
}

#[derive(Debug)]
struct Link {
    member: Member,
    queue: mpsc::Sender<Message>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Links {
    /// Must be called within a tokio runtime.
    pub(super) fn new(
        identity: Arc<PeerIdentity>,
        endpoint: Endpoint,
        events: SyncSender<Event>,
        questions: Option<Arc<dyn Questions>>,
    ) -> Self {
        let space = Arc::new(Semaphore::new(MAX_UNHANDLED));
        let shared = Shared { identity, questions, events, directory: Arc::default(), space };
        let runtime = tokio::runtime::Handle::current();
        runtime.spawn(accept(shared.clone(), endpoint.clone()));
        Self { shared, endpoint, runtime, links: BTreeMap::new(), greeting: watch::Sender::new(Vec::new()) }
    }

    /// For questions to other members.
    pub(super) fn dialler(&self) -> Dialler {
        Dialler { identity: self.shared.identity.clone(), endpoint: self.endpoint.clone() }
    }

    /// From now on these are the members: others are cut off, new ones dialled.
    pub(super) fn know(&mut self, members: &Members) {
        members.clone_into(&mut self.shared.directory.write().unwrap_or_else(PoisonError::into_inner));
        let entry = |m: &Member| PeerEntry { key: m.key, peer: m.peer.clone(), service: m.service.clone() };
        self.greeting.send_replace(members.values().map(entry).collect());
        self.links.retain(|id, link| members.get(id) == Some(&link.member));
        for (id, member) in members.iter().filter(|(id, _)| **id != self.shared.id()) {
            if !self.links.contains_key(id) {
                let (queue, messages) = mpsc::channel(MAX_QUEUED);
                let talk = talk(self.shared.clone(), self.endpoint.clone(), member.clone(), messages, self.greeting.subscribe());
                let task = self.runtime.spawn(talk);
                self.links.insert(*id, Link { member: member.clone(), queue, task });
            }
        }
    }

    /// Queues a message; `false`: it is not sent.
    pub(super) fn send(&self, message: Message) -> bool {
        self.links.get(&message.to).is_some_and(|link| link.queue.try_send(message).is_ok())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.endpoint.close(0_u32.into(), b"coordinator stopped");
    }
}

/// Dials a member again and again and says what is queued for it.
async fn talk(
    shared: Shared,
    endpoint: Endpoint,
    member: Member,
    mut queue: mpsc::Receiver<Message>,
    mut greeting: watch::Receiver<Vec<PeerEntry>>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = match dial(&endpoint, &shared.identity, &member).await {
            Ok(connection) => {
                let begun = Instant::now();
                let error = say(&shared, &connection, &member, &mut queue, &mut greeting).await;
                // Who hangs up at once is not dialled any sooner for having answered.
                if begun.elapsed() > LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
                error
            }
            Err(error) => error,
        };
        tracing::debug!(peer = member.peer, error = %ended, "not connected to a coordinator");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        // What waited that long is out of date.
        while let Ok(message) = queue.try_recv() {
            not_sent(&shared, &message);
        }
        shared.tell(Event::NotSent(member.id()));
    }
}

fn not_sent(shared: &Shared, message: &Message) {
    if message.get_msg_type() == MessageType::MsgSnapshot {
        shared.tell(Event::SnapshotSent(message.to, false));
    }
}

fn key_of(connection: &Connection) -> Option<[u8; 32]> {
    let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Some(*blake3::hash(&public_key(shown.first()?).ok()?).as_bytes())
}

/// Says everything that is queued, until the connection ends.
async fn say(
    shared: &Shared,
    connection: &Connection,
    member: &Member,
    queue: &mut mpsc::Receiver<Message>,
    greeting: &mut watch::Receiver<Vec<PeerEntry>>,
) -> TransportError {
    let mut stream = match connection.open_uni().await {
        Ok(stream) => stream,
        Err(error) => return lost(&error),
    };
    let bulk = Arc::new(Semaphore::new(1));
    greeting.mark_changed();
    loop {
        let message = tokio::select! {
            reason = connection.closed() => return lost(&reason),
            // The other end of both is dropped only with this task.
            _ = greeting.changed() => None,
            message = queue.recv() => message,
        };
        let frame = match message {
            None => {
                let members = greeting.borrow_and_update().clone();
                let (cluster, from, to) = (shared.identity.cluster.0, shared.id(), member.id());
                Frame::PeerHello(PeerHello { cluster, from, to, members })
            }
            Some(message) => {
                let Ok(bytes) = encode_message(&message) else { continue };
                if bytes.len() + FRAME_SLACK > MAX_CONTROL_BYTES as usize {
                    match bulk.clone().try_acquire_owned() {
                        Ok(place) => {
                            let (shared, connection) = (shared.clone(), connection.clone());
                            tokio::spawn(async move {
                                let arrived = say_at_length(&connection, &bytes).await.is_ok();
                                if message.get_msg_type() == MessageType::MsgSnapshot {
                                    shared.tell(Event::SnapshotSent(message.to, arrived));
                                }
                                drop(place);
                            });
                        }
                        Err(_) => not_sent(shared, &message),
                    }
                    continue;
                }
                if message.get_msg_type() == MessageType::MsgSnapshot {
                    shared.tell(Event::SnapshotSent(message.to, true));
                }
                Frame::PeerMessage(PeerMessage { bytes })
            }
        };
        match tokio::time::timeout(PATIENCE, write_message(&mut stream, &frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return TransportError::Timeout(PATIENCE.as_secs()),
        }
    }
}

async fn say_at_length(connection: &Connection, bytes: &[u8]) -> Result<(), TransportError> {
    let mut stream = connection.open_uni().await.map_err(|e| lost(&e))?;
    write_message(&mut stream, &Frame::PeerBulk(PeerBulk { blob: BlobRef::of(bytes) })).await?;
    send_chunks(&mut stream, bytes).await?;
    let _ = stream.finish();
    match stream.stopped().await {
        Ok(None) => Ok(()),
        _ => Err(TransportError::Truncated("before a message was taken")),
    }
}

async fn accept(shared: Shared, endpoint: Endpoint) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some(incoming) = endpoint.accept().await {
        // Whoever has no place here can at least not pretend to be elsewhere.
        if !incoming.remote_address_validated() {
            let _ = incoming.retry();
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            if let Err(error) = listen_to(&shared, incoming).await {
                tracing::debug!(%remote, %error, "a coordinator's connection ended");
            }
            drop(place);
        });
    }
}

async fn listen_to(shared: &Shared, incoming: Incoming) -> Result<(), TransportError> {
    let connecting = incoming.accept().map_err(|e| lost(&e))?;
    let connection = tokio::time::timeout(PATIENCE, connecting).await;
    let connection = connection.map_err(|_| TransportError::Timeout(PATIENCE.as_secs()))?.map_err(|e| lost(&e))?;
    let Some(key) = key_of(&connection).filter(|key| shared.is_member(key)) else {
        tracing::warn!(remote = %connection.remote_address(), "refused: not a coordinator of this cluster");
        connection.close(CLOSE_PROTOCOL, b"not a coordinator of this cluster; have its leader add it");
        return Ok(());
    };
    loop {
        let stream = tokio::select! {
            stream = connection.accept_uni() => stream.map_err(|e| lost(&e))?,
            question = connection.accept_bi() => {
                let (send, recv) = question.map_err(|e| lost(&e))?;
                // Whoever was removed meanwhile asks in vain.
                if let Some(questions) = shared.questions.clone().filter(|_| shared.is_member(&key)) {
                    tokio::spawn(async move {
                        if let Err(error) = questions.answer(send, recv).await {
                            tracing::debug!(%error, "a coordinator's question was not answered");
                        }
                    });
                }
                continue;
            }
        };
        let (shared, connection) = (shared.clone(), connection.clone());
        tokio::spawn(async move {
            if let Err(error) = hear(&shared, &connection, key, stream).await {
                tracing::warn!(remote = %connection.remote_address(), %error, "a coordinator's connection is closed");
                connection.close(CLOSE_PROTOCOL, error.to_string().as_bytes());
            }
        });
    }
}

fn bad(cause: impl fmt::Display) -> TransportError {
    TransportError::Lost(format!("the coordinator there says what cannot be: {cause}"))
}

/// Everything on one stream: greetings and messages, or one message at length.
async fn hear(shared: &Shared, connection: &Connection, key: [u8; 32], mut stream: RecvStream) -> Result<(), TransportError> {
    let from = id_of(&key);
    while let Some(frame) = read_message(&mut stream).await? {
        if !shared.is_member(&key) {
            return Err(TransportError::Lost("not a coordinator of this cluster any more".to_owned()));
        }
        match frame {
            Frame::PeerHello(hello) => {
                if hello.cluster != shared.identity.cluster.0 || hello.from != from || hello.to != shared.id() {
                    return Err(bad("a greeting for another"));
                }
                let told = hello.members.into_iter().map(|e| Member { key: e.key, peer: e.peer, service: e.service });
                shared.tell(Event::Told(from, told.collect()));
            }
            Frame::PeerMessage(PeerMessage { bytes }) => {
                let message = decode_message(&bytes).map_err(bad)?;
                let Ok(space) = shared.space.clone().try_acquire_owned() else { continue };
                shared.tell(Event::Message { from, message, connection: connection.clone(), space: Some(space), handled: None });
            }
            Frame::PeerBulk(PeerBulk { blob }) => {
                let bytes = receive_blob(&mut stream, blob, MAX_MESSAGE_BYTES as u64).await?;
                let message = decode_message(&bytes).map_err(bad)?;
                drop(bytes);
                let (handled, done) = oneshot::channel();
                let handled = Some(handled);
                shared.tell(Event::Message { from, message, connection: connection.clone(), space: None, handled });
                // The next one may come when this one's memory is free.
                let _ = done.await;
                return Ok(());
            }
            other => return Err(TransportError::Unexpected { expected: "a coordinator's message", got: other.id() }),
        }
    }
    Ok(())
}
