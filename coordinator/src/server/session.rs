//! One connection: the handshake tells nodes from clients; a node's frames become commands, its bulk streams store reads and writes.

use std::sync::Arc;
use std::time::Duration;

use obelysk_node::error::TransportError;
use obelysk_node::identity::{Id, NodeKeyId, unix_now};
use obelysk_node::transport::quinn::crypto::rustls::HandshakeData;
use obelysk_node::transport::quinn::{Connection, Incoming, RecvStream, SendStream};
use obelysk_node::transport::rustls::pki_types::CertificateDer;
use obelysk_node::transport::{
    CLOSE_DONE, CLOSE_PROTOCOL, answer_blob, lost, open_for_client, open_up, public_key, read_message, read_message_within,
    receive_blob, write_message,
};
use obelysk_protocol::wire::{
    ALPN_JOIN, BlobPut, BlobRef, BlobStored, Coordinators, Goodbye, Hello, MAX_TEXT_BYTES, Message, Models, NodeHello, Refused,
    Welcome, WireError, WorkKind,
};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::brain::{Command, Join, Outbox};
use super::bulk;
use super::guard::Arrival;
use super::store::Store;
use super::{Shared, admin, client, clip, council, door, trial};
use crate::core::{Input, JobId, NodeId, Work};
use crate::identity::{AdmissionError, Member};

/// Time for a peer to say who it is, and to close after a goodbye.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for a node that was put out to read why.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long a blob that is sent whole may take, and how much longer for so many bytes: a line slower than this is none.
const STALL_S: u64 = 30;
const SLOWEST_BYTES_PER_S: u64 = 1 << 20;
/// Messages waiting for one node: a few per lease, and it has one lease.
const MAX_OUTBOX: usize = 64;

/// Who a connection is, as its certificate says.
enum Peer {
    Nobody,
    Node(NodeKeyId),
    Admin,
}

/// Serves one connection to its end. Nothing a peer sends reaches beyond an error here.
pub(super) async fn serve(shared: Arc<Shared>, incoming: Incoming, session: u64, arrival: Arrival) {
    let remote = incoming.remote_address();
    let shake = async { incoming.accept().map_err(|e| lost(&e))?.await.map_err(|e| lost(&e)) };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE, shake) => shaken,
        () = arrival.pushed_out() => return tracing::debug!(%remote, "made room for a newer connection"),
    };
    let connection = match shaken {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::warn!(%remote, %error, "handshake failed"),
        Err(_) => return tracing::debug!(%remote, "handshake took too long"),
    };
    let _counted = shared.observer.traffic.count(&connection);
    let outcome = if is_at_the_door(&connection) {
        door::serve(&shared, &connection, arrival).await
    } else {
        greet(&shared, &connection, session, arrival).await
    };
    match outcome {
        Ok(()) => {
            // The peer closes when it has read everything; waiting for that is what makes the last frames arrive.
            let _ = tokio::time::timeout(HANDSHAKE, connection.closed()).await;
            connection.close(CLOSE_DONE, b"session over");
        }
        Err(error) => {
            tracing::warn!(%remote, %error, "session ended");
            connection.close(CLOSE_PROTOCOL, clip(error.to_string(), MAX_CLOSE_BYTES).as_bytes());
        }
    }
}

/// Longest reason in a QUIC close: it must fit one packet.
const MAX_CLOSE_BYTES: usize = 900;
/// Longest first message: a hello with all the models and epochs it may name.
const MAX_FIRST_BYTES: u32 = 64 << 10;

fn is_at_the_door(connection: &Connection) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|name| name == ALPN_JOIN)
}

fn peer(shared: &Shared, connection: &Connection) -> Result<Peer, TransportError> {
    let shown = connection.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(leaf) = shown.as_ref().and_then(|chain| chain.first()) else { return Ok(Peer::Nobody) };
    let key: NodeKeyId = Id(*blake3::hash(&public_key(leaf)?).as_bytes());
    // Whoever leads may have made one since; who leads knows all.
    if shared.members.is_some() && !shared.coordinators().leads && !shared.admissions.is_admin(key) {
        let _ = shared.admissions.reload();
    }
    Ok(if shared.admissions.is_admin(key) { Peer::Admin } else { Peer::Node(key) })
}

async fn greet(shared: &Arc<Shared>, connection: &Connection, session: u64, arrival: Arrival) -> Result<(), TransportError> {
    let (mut send, recv, message) = tokio::select! {
        first = tokio::time::timeout(HANDSHAKE, first_words(shared, connection)) => {
            first.unwrap_or(Err(TransportError::Timeout(HANDSHAKE.as_secs())))?
        }
        () = arrival.pushed_out() => return Err(TransportError::Lost("too many unknown connections; try again".to_owned())),
    };
    let message = match message {
        Ok(Some(message)) => message,
        Ok(None) => return Err(TransportError::Truncated("before a hello")),
        Err(TransportError::Wire(error @ WireError::Version { .. })) => {
            refuse(&mut send, false, &error.to_string()).await?;
            return Err(error.into());
        }
        Err(error) => return Err(error),
    };
    let message = match message {
        // What nodes of the release before say: nothing is known of their memory, and they cannot be calibrated.
        Message::Hello(hello) => Message::NodeHello(unmeasured(hello)),
        other => other,
    };
    if !council::is_for_all(&message)
        && let Some(known) = shared.elsewhere().await
    {
        return point(&mut send, known).await;
    }
    let (pool, kind) = match message {
        Message::NodeHello(_) => (&shared.nodes, "nodes"),
        Message::ClientHello(_) => (&shared.clients, "clients"),
        ref order if admin::is_order(order) => (&shared.clients, "clients"),
        other => return Err(TransportError::Unexpected { expected: "a hello", got: other.id() }),
    };
    let Ok(_permit) = pool.clone().try_acquire_owned() else {
        return refuse(&mut send, true, &format!("as many {kind} are connected as this coordinator serves; try later")).await;
    };
    match (message, peer(shared, connection)?) {
        (Message::NodeHello(hello), Peer::Node(key)) => {
            let evicted = shared.evictions.subscribe();
            let member = match shared.admissions.member(key) {
                Ok(member) => member,
                Err(error) => return refuse(&mut send, false, &error.to_string()).await,
            };
            arrival.known();
            let _windows = open_up(connection);
            node(shared, connection, session, (send, recv), (hello, member), evicted).await
        }
        (Message::NodeHello(_), _) => refuse(&mut send, false, &AdmissionError::NoCertificate.to_string()).await,
        (Message::ClientHello(hello), _) => {
            arrival.known();
            open_for_client(connection);
            client::serve(shared, connection, (send, recv), &hello).await
        }
        (order, Peer::Admin) => {
            arrival.known();
            let _windows = open_up(connection);
            write_message(&mut send, &admin::answer(shared, order).await).await?;
            let _ = send.finish();
            admin::serve_rest(shared, connection).await
        }
        (_, Peer::Nobody | Peer::Node(_)) => refuse(&mut send, false, &AdmissionError::NotAdmin.to_string()).await,
    }
}

/// Questions of who leads that one connection may ask before it comes to the point.
const MAX_WHO_LEADS: usize = 4;

/// The first message that is not a question of who leads, which everybody may ask.
async fn first_words(
    shared: &Shared,
    connection: &Connection,
) -> Result<(SendStream, RecvStream, Result<Option<Message>, TransportError>), TransportError> {
    for _ in 0..MAX_WHO_LEADS {
        let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| lost(&e))?;
        let message = read_message_within(&mut recv, MAX_FIRST_BYTES).await;
        if !matches!(message, Ok(Some(Message::CoordinatorsGet(_)))) {
            return Ok((send, recv, message));
        }
        let known = match shared.elsewhere().await {
            Some(known) => known,
            None => shared.coordinators(),
        };
        point(&mut send, known).await?;
    }
    Err(TransportError::Lost("it only asks who leads".to_owned()))
}

/// Says where the coordinators are, and that nothing follows.
pub(super) async fn point(send: &mut SendStream, known: Coordinators) -> Result<(), TransportError> {
    write_message(send, &Message::Coordinators(known)).await?;
    let _ = send.finish();
    Ok(())
}

fn unmeasured(hello: Hello) -> NodeHello {
    let Hello { name, identity, cores, models, held } = hello;
    NodeHello { name, identity, cores, memory_bytes: 0, free_bytes: 0, release: String::new(), models, held }
}

/// Says no, and why, and that nothing follows.
pub(super) async fn refuse(send: &mut SendStream, retry: bool, reason: &str) -> Result<(), TransportError> {
    let reason = clip(reason.to_owned(), MAX_TEXT_BYTES);
    write_message(send, &Message::Refused(Refused { retry, reason })).await?;
    let _ = send.finish();
    Ok(())
}

async fn node(
    shared: &Arc<Shared>,
    connection: &Connection,
    session: u64,
    (mut send, mut recv): (SendStream, RecvStream),
    (hello, member): (NodeHello, Member),
    evicted: broadcast::Receiver<NodeKeyId>,
) -> Result<(), TransportError> {
    let calibration = match trial::calibrate(shared, (member.id, &hello), (&mut send, &mut recv)).await? {
        Ok(calibration) => calibration,
        Err(failed) => {
            tracing::warn!(id = %member.id, name = hello.name, reason = failed.reason, "not calibrated, refused");
            return refuse(&mut send, failed.retry, &failed.reason).await;
        }
    };
    let (messages, mut outgoing) = mpsc::channel(MAX_OUTBOX);
    // Only the brain holds the outbox: when it lets go, the writer ends, and the session with it.
    let weak = messages.downgrade();
    let outbox = Outbox { session, messages };
    let (answer, answered) = oneshot::channel();
    let stopped = || TransportError::Lost("the coordinator stops".to_owned());
    let name = hello.name.clone();
    // This brain or none: numbers of nodes and leases mean nothing to another.
    let commands = match shared.lead().await {
        Ok(commands) => commands,
        Err(reason) => return refuse(&mut send, true, &reason).await,
    };
    let join = Command::Join(Box::new(Join { key: member.id, hello, calibration, outbox, answer }));
    commands.send(join).await.map_err(|_| stopped())?;
    let node = match answered.await.map_err(|_| stopped())? {
        Ok(node) => node,
        Err(reason) => return refuse(&mut send, false, &reason).await,
    };
    tracing::info!(%node, id = %member.id, name, remote = %connection.remote_address(), "joined");
    let (lease_ms, max_blob_bytes) = (shared.config.lease_ms, shared.config.max_blob_bytes);
    let bulk = tokio::spawn(serve_bulk(shared.clone(), connection.clone(), (node, member.id)));
    let (mut changes, others) = (shared.changes(), shared.clone());
    let mut writer = tokio::spawn(async move {
        write_message(&mut send, &Message::Welcome(Welcome { node: node.0, lease_ms, max_blob_bytes })).await?;
        loop {
            // Where to go when this coordinator is gone, as soon as it is known.
            let message = tokio::select! {
                message = outgoing.recv() => message,
                () = council::changed(&mut changes) => Some(Message::Coordinators(others.coordinators())),
            };
            let Some(message) = message else { break };
            write_message(&mut send, &message).await?;
        }
        let _ = send.finish();
        Ok::<_, TransportError>(())
    });
    let reader = read_node((&shared.store, &commands), node, recv, &weak);
    tokio::pin!(reader);
    let served = async {
        tokio::select! {
            outcome = &mut reader => outcome,
            // Dismissed: whatever the node still says within a handshake's time is heard, so that it can close in order.
            _ = &mut writer => tokio::time::timeout(HANDSHAKE, &mut reader).await.unwrap_or(Ok(false)),
        }
    };
    let outcome = tokio::select! {
        outcome = served => outcome,
        reason = no_longer(shared, member, evicted) => Err(TransportError::Lost(reason)),
    };
    let clean = matches!(outcome, Ok(true));
    let _ = commands.send(Command::Gone { node, session, clean }).await;
    if !writer.is_finished() {
        let _ = tokio::time::timeout(HANDSHAKE, writer).await;
    }
    bulk.abort();
    tracing::info!(%node, clean, "gone");
    outcome.map(|_| ())
}

/// Completes, with the reason, when a connected node is no member any more: put out, or its certificate ended unrenewed.
async fn no_longer(shared: &Shared, mut member: Member, mut evicted: broadcast::Receiver<NodeKeyId>) -> String {
    loop {
        let left = Duration::from_secs((member.expires_unix_s + 1).saturating_sub(unix_now()));
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            who = evicted.recv() => match who {
                Ok(id) if id != member.id => continue,
                Ok(_) => tokio::time::sleep(LAST_WORDS).await,
                // So far behind that it may have been meant: the registry knows.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
        match shared.admissions.member(member.id) {
            Ok(now) if now.expires_unix_s > unix_now() => member = now,
            Ok(_) => return "the certificate ended and was not renewed; connect again".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}

/// Reads a node's frames until its goodbye (`true`) or the end of its stream (`false`).
async fn read_node(
    (store, commands): (&Store, &mpsc::Sender<Command>),
    node: NodeId,
    mut recv: RecvStream,
    outbox: &mpsc::WeakSender<Message>,
) -> Result<bool, TransportError> {
    while let Some(message) = read_message(&mut recv).await? {
        let input = match message {
            Message::Progress(m) => Input::Progress { node, epoch: m.epoch, permille: m.permille },
            Message::Done(m) => {
                // The blob was put before, under this lease; a node that claims otherwise has failed, not lied.
                let (epoch, output) = (m.epoch, m.blob);
                if store.has(output) {
                    Input::WorkDone { node, epoch, output, core_us: m.core_us, peak_bytes: m.peak_bytes }
                } else {
                    let reason = "the result's bytes never arrived".to_owned();
                    Input::WorkFailed { node, epoch, disagrees: false, reason }
                }
            }
            Message::Failed(m) => Input::WorkFailed { node, epoch: m.epoch, disagrees: m.disagrees, reason: m.reason },
            Message::Holding(m) => {
                // Known kinds only: the wire checked it.
                let Some(kind) = WorkKind::from_code(m.kind) else { continue };
                let (job, work) = (JobId(m.job), Work::new(kind, m.segment));
                Input::NodeHolds { node, epoch: m.epoch, job, work, inputs: m.inputs, extra: m.extra }
            }
            Message::Drain(_) => Input::NodeDraining { node },
            Message::GiveBack(m) => Input::WorkReturned { node, epoch: m.epoch },
            Message::Goodbye(_) => {
                if let Some(outbox) = outbox.upgrade() {
                    let _ = outbox.try_send(Message::Goodbye(Goodbye { reason: "goodbye".to_owned() }));
                }
                return Ok(true);
            }
            other => return Err(TransportError::Unexpected { expected: "a node's message", got: other.id() }),
        };
        if commands.send(Command::Core(input)).await.is_err() {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Answers bulk streams until the connection ends. QUIC bounds how many are open at once.
async fn serve_bulk(shared: Arc<Shared>, connection: Connection, (node, key): (NodeId, NodeKeyId)) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            if let Err(error) = transfer(&shared, (node, key), send, recv).await {
                tracing::warn!(%node, %error, "transfer failed");
            }
        });
    }
}

async fn transfer(
    shared: &Arc<Shared>,
    (node, key): (NodeId, NodeKeyId),
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), TransportError> {
    let first = tokio::time::timeout(HANDSHAKE, read_message(&mut recv)).await;
    match first.unwrap_or(Err(TransportError::Timeout(HANDSHAKE.as_secs())))? {
        Some(Message::BlobFetch(fetch)) => bulk::fetched(shared, &fetch, &mut send).await,
        Some(Message::BlobOffer(offer)) => bulk::offered(shared, node, offer, (send, recv)).await,
        Some(Message::ModelsAfter(page)) => {
            let models = shared.models.after(page.model).await;
            write_message(&mut send, &Message::Models(Models { models })).await?;
            let _ = send.finish();
            Ok(())
        }
        Some(Message::BlobGet(get)) => match stored(shared, get.blob).await? {
            Some(bytes) => {
                answer_blob(&mut send, get.blob, &bytes).await?;
                let _ = send.finish();
                Ok(())
            }
            None => refuse(&mut send, false, "no such blob: its job has ended").await,
        },
        Some(Message::BlobPut(BlobPut { epoch, blob })) => {
            let Some(job) = shared.store.deliver(epoch, node) else {
                return refuse(&mut send, false, "this lease is over: the result is no longer needed").await;
            };
            let room = match shared.store.room(blob).await {
                Ok(room) => room,
                Err(error) => return refuse(&mut send, true, &error.to_string()).await,
            };
            let whole = receive_blob(&mut recv, blob, shared.config.max_blob_bytes);
            // Nobody has room for ever.
            let slowest = Duration::from_secs(STALL_S + blob.length / SLOWEST_BYTES_PER_S);
            match tokio::time::timeout(slowest, whole).await.unwrap_or(Err(TransportError::Timeout(slowest.as_secs()))) {
                Ok(bytes) => {
                    // Confirmed only when it is on disk.
                    if let Err(error) = shared.store.keep(job, blob, bytes, room).await {
                        return refuse(&mut send, true, &error.to_string()).await;
                    }
                }
                Err(error @ TransportError::BlobTooLarge { .. }) => return refuse(&mut send, false, &error.to_string()).await,
                Err(error) => return Err(error),
            }
            write_message(&mut send, &Message::BlobStored(BlobStored { blob })).await?;
            let _ = send.finish();
            Ok(())
        }
        Some(Message::Renew(request)) => renew(shared, key, request.csr, &mut send).await,
        Some(other) => Err(TransportError::Unexpected { expected: "a blob request", got: other.id() }),
        None => Ok(()),
    }
}

/// A blob that may have to be read from disk.
async fn stored(shared: &Shared, blob: BlobRef) -> Result<Option<Arc<Vec<u8>>>, TransportError> {
    if let Some(bytes) = shared.store.get_held(blob) {
        return Ok(Some(bytes));
    }
    shared.store.fetch(blob).await.map_err(bulk::away)
}

async fn renew(shared: &Arc<Shared>, key: NodeKeyId, csr: Vec<u8>, send: &mut SendStream) -> Result<(), TransportError> {
    let admissions = shared.admissions.clone();
    // Waits for the disk.
    let made = tokio::task::spawn_blocking(move || admissions.renew(key, &csr)).await;
    match made.map_err(|_| TransportError::Lost("the coordinator failed; see its log".to_owned()))? {
        Ok(certificate) => {
            tracing::info!(id = %key, "certificate renewed");
            let answer = door::answer(shared, key.0, certificate.to_vec());
            write_message(send, &Message::Enrolled(answer)).await?;
            let _ = send.finish();
            Ok(())
        }
        Err(error) => refuse(send, error.may_pass(), &error.to_string()).await,
    }
}
