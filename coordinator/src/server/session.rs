//! One connection: the handshake tells nodes from clients; a node's frames become commands, its bulk streams store reads and writes.

use std::sync::Arc;
use std::time::Duration;

use obelysk_node::error::TransportError;
use obelysk_node::transport::quinn::{Connection, Incoming, RecvStream, SendStream};
use obelysk_node::transport::{CLOSE_DONE, CLOSE_PROTOCOL, answer_blob, lost, read_message, receive_blob, write_message};
use obelysk_protocol::wire::{BlobPut, BlobStored, Goodbye, Hello, MAX_TEXT_BYTES, Message, Refused, Welcome, WireError};
use tokio::sync::{mpsc, oneshot};

use super::brain::{Command, Join, Outbox};
use super::{Shared, client};
use crate::core::{Input, NodeId};

/// Time for a peer to say who it is, and to close after a goodbye.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Messages waiting for one node: a few per lease, and it has one lease.
const MAX_OUTBOX: usize = 64;

/// Serves one connection to its end. Nothing a peer sends reaches beyond an error here.
pub(super) async fn serve(shared: Arc<Shared>, incoming: Incoming, session: u64) {
    let remote = incoming.remote_address();
    let connection =
        match tokio::time::timeout(HANDSHAKE, async { incoming.accept().map_err(|e| lost(&e))?.await.map_err(|e| lost(&e)) })
            .await
        {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::warn!(%remote, %error, "handshake failed"),
            Err(_) => return tracing::warn!(%remote, "handshake took too long"),
        };
    match greet(&shared, &connection, session).await {
        Ok(()) => {
            // The peer closes when it has read everything; waiting for that is what makes the last frames arrive.
            let _ = tokio::time::timeout(HANDSHAKE, connection.closed()).await;
            connection.close(CLOSE_DONE, b"session over");
        }
        Err(error) => {
            tracing::warn!(%remote, %error, "session ended");
            let mut reason = error.to_string();
            reason.truncate(reason.floor_char_boundary(MAX_CLOSE_BYTES));
            connection.close(CLOSE_PROTOCOL, reason.as_bytes());
        }
    }
}

/// Longest reason in a QUIC close: it must fit one packet.
const MAX_CLOSE_BYTES: usize = 900;

async fn greet(shared: &Arc<Shared>, connection: &Connection, session: u64) -> Result<(), TransportError> {
    let first = async {
        let (send, mut recv) = connection.accept_bi().await.map_err(|e| lost(&e))?;
        let message = read_message(&mut recv).await;
        Ok((send, recv, message))
    };
    let (mut send, recv, message) =
        tokio::time::timeout(HANDSHAKE, first).await.unwrap_or(Err(TransportError::Timeout(HANDSHAKE.as_secs())))?;
    match message {
        Ok(Some(Message::Hello(hello))) => node(shared, connection, session, (send, recv), hello).await,
        Ok(Some(Message::ClientHello(hello))) => client::serve(shared, connection, (send, recv), &hello).await,
        Ok(Some(other)) => Err(TransportError::Unexpected { expected: "a hello", got: other.id() }),
        Ok(None) => Err(TransportError::Truncated("before a hello")),
        Err(TransportError::Wire(error @ WireError::Version { .. })) => {
            refuse(&mut send, false, &error.to_string()).await?;
            Err(error.into())
        }
        Err(error) => Err(error),
    }
}

/// Says no, and why, and that nothing follows.
pub(super) async fn refuse(send: &mut SendStream, retry: bool, reason: &str) -> Result<(), TransportError> {
    let mut reason = reason.to_owned();
    reason.truncate(reason.floor_char_boundary(MAX_TEXT_BYTES));
    write_message(send, &Message::Refused(Refused { retry, reason })).await?;
    let _ = send.finish();
    Ok(())
}

async fn node(
    shared: &Arc<Shared>,
    connection: &Connection,
    session: u64,
    (mut send, recv): (SendStream, RecvStream),
    hello: Hello,
) -> Result<(), TransportError> {
    let (messages, mut outgoing) = mpsc::channel(MAX_OUTBOX);
    // Only the brain holds the outbox: when it lets go, the writer ends, and the session with it.
    let weak = messages.downgrade();
    let outbox = Outbox { session, messages };
    let (answer, answered) = oneshot::channel();
    let stopped = || TransportError::Lost("the coordinator stops".to_owned());
    let name = hello.name.clone();
    shared.command(Command::Join(Box::new(Join { hello, outbox, answer }))).await.map_err(|()| stopped())?;
    let node = match answered.await.map_err(|_| stopped())? {
        Ok(node) => node,
        Err(reason) => return refuse(&mut send, false, &reason).await,
    };
    tracing::info!(%node, name, remote = %connection.remote_address(), "joined");
    let (lease_ms, max_blob_bytes) = (shared.config.lease_ms, shared.config.max_blob_bytes);
    let bulk = tokio::spawn(serve_bulk(shared.clone(), connection.clone(), node));
    let mut writer = tokio::spawn(async move {
        write_message(&mut send, &Message::Welcome(Welcome { node: node.0, lease_ms, max_blob_bytes })).await?;
        while let Some(message) = outgoing.recv().await {
            write_message(&mut send, &message).await?;
        }
        let _ = send.finish();
        Ok::<_, TransportError>(())
    });
    let reader = read_node(shared, node, recv, &weak);
    tokio::pin!(reader);
    let outcome = tokio::select! {
        outcome = &mut reader => outcome,
        // Dismissed: whatever the node still says within a handshake's time is heard, so that it can close in order.
        _ = &mut writer => tokio::time::timeout(HANDSHAKE, &mut reader).await.unwrap_or(Ok(false)),
    };
    let clean = matches!(outcome, Ok(true));
    let _ = shared.command(Command::Gone { node, session, clean }).await;
    if !writer.is_finished() {
        let _ = tokio::time::timeout(HANDSHAKE, writer).await;
    }
    bulk.abort();
    tracing::info!(%node, clean, "gone");
    outcome.map(|_| ())
}

/// Reads a node's frames until its goodbye (`true`) or the end of its stream (`false`).
async fn read_node(
    shared: &Shared,
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
                if shared.store.get(output).is_some() {
                    Input::WorkDone { node, epoch, output, core_us: m.core_us, peak_bytes: m.peak_bytes }
                } else {
                    let reason = "the result's bytes never arrived".to_owned();
                    Input::WorkFailed { node, epoch, disagrees: false, reason }
                }
            }
            Message::Failed(m) => Input::WorkFailed { node, epoch: m.epoch, disagrees: m.disagrees, reason: m.reason },
            Message::Drain(_) => Input::NodeDraining { node },
            Message::Goodbye(_) => {
                if let Some(outbox) = outbox.upgrade() {
                    let _ = outbox.try_send(Message::Goodbye(Goodbye { reason: "goodbye".to_owned() }));
                }
                return Ok(true);
            }
            other => return Err(TransportError::Unexpected { expected: "a node's message", got: other.id() }),
        };
        if shared.command(Command::Core(input)).await.is_err() {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Answers bulk streams until the connection ends. QUIC bounds how many are open at once.
async fn serve_bulk(shared: Arc<Shared>, connection: Connection, node: NodeId) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            if let Err(error) = transfer(&shared, node, send, recv).await {
                tracing::warn!(%node, %error, "transfer failed");
            }
        });
    }
}

async fn transfer(shared: &Shared, node: NodeId, mut send: SendStream, mut recv: RecvStream) -> Result<(), TransportError> {
    let first = tokio::time::timeout(HANDSHAKE, read_message(&mut recv)).await;
    match first.unwrap_or(Err(TransportError::Timeout(HANDSHAKE.as_secs())))? {
        Some(Message::BlobGet(get)) => match shared.store.get(get.blob) {
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
            match receive_blob(&mut recv, blob, shared.config.max_blob_bytes).await {
                Ok(bytes) => {
                    if let Err(full) = shared.store.put(job, blob, bytes) {
                        let reason = format!("blob store is full ({} bytes); raise `max_store_bytes`", full.limit);
                        return refuse(&mut send, true, &reason).await;
                    }
                }
                Err(error @ TransportError::BlobTooLarge { .. }) => return refuse(&mut send, false, &error.to_string()).await,
                Err(error) => return Err(error),
            }
            write_message(&mut send, &Message::BlobStored(BlobStored { blob })).await?;
            let _ = send.finish();
            Ok(())
        }
        Some(other) => Err(TransportError::Unexpected { expected: "a blob request", got: other.id() }),
        None => Ok(()),
    }
}
