//! The coordinator's side of a client connection. A client that comes back with the same key finds its job.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use obelysk_node::error::TransportError;
use obelysk_node::transport::quinn::{Connection, ConnectionError, RecvStream, SendStream};
use obelysk_node::transport::{answer_blob, lost, read_message, receive_blob, write_message};
use obelysk_protocol::wire::{
    BlobRef, BlobStored, ClientHello, Event, JobAccepted, JobDone, JobFailed, MAX_TEXT_BYTES, Message, PhaseTime,
};

use super::progress::JobResult;
use super::session::refuse;
use super::{CoordinatorError, Shared, clip, council, fresh_key};
use crate::core::DEFAULT_PRIORITY;

/// Blobs one client may hold here: its specification and its proof.
const MAX_CLIENT_BLOBS: usize = 2;
/// Largest specification: with as many tokens as a proof takes it has 20 KiB. Clients are strangers, and this memory is outside the store.
const MAX_SPEC_BYTES: u64 = 1 << 20;

/// Time for a client to say what it wants: its specification travels before, over a line of 20 KiB/s or more.
const ASKING: Duration = Duration::from_secs(60);
/// Time to fetch a proof when it is there: 10 MiB over a slow line, several times.
const FETCHING: Duration = Duration::from_secs(1800);

/// Blobs of one client connection; they go with it.
type Blobs = Arc<Mutex<BTreeMap<BlobRef, Arc<Vec<u8>>>>>;

fn find(blobs: &Blobs, blob: BlobRef) -> Option<Arc<Vec<u8>>> {
    blobs.lock().unwrap_or_else(PoisonError::into_inner).get(&blob).cloned()
}

fn keep(blobs: &Blobs, blob: BlobRef, bytes: Vec<u8>) -> bool {
    let mut blobs = blobs.lock().unwrap_or_else(PoisonError::into_inner);
    let room = blobs.len() < MAX_CLIENT_BLOBS;
    if room {
        blobs.insert(blob, Arc::new(bytes));
    }
    room
}

/// Serves a client: one job per connection. When the client hangs up early, its job is cancelled; when it is cut off, the job goes on.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    connection: &Connection,
    (mut send, mut recv): (SendStream, RecvStream),
    hello: &ClientHello,
) -> Result<(), TransportError> {
    tracing::info!(name = hello.name, remote = %connection.remote_address(), "client");
    let blobs: Blobs = Arc::default();
    let bulk = tokio::spawn(serve_bulk(shared.clone(), connection.clone(), blobs.clone()));
    let outcome = one_job(shared, connection, &mut send, &mut recv, &blobs).await;
    if outcome.is_ok() {
        let _ = send.finish();
        // The client still fetches its proof; it says goodbye, or goes.
        let _ = tokio::time::timeout(FETCHING, read_message(&mut recv)).await;
    }
    bulk.abort();
    outcome
}

async fn one_job(
    shared: &Arc<Shared>,
    connection: &Connection,
    send: &mut SendStream,
    recv: &mut RecvStream,
    blobs: &Blobs,
) -> Result<(), TransportError> {
    let (wanted, model, key, priority) = match in_time(read_message(recv)).await? {
        Some(Message::SubmitOnce(submit)) => (submit.spec, submit.model, Some(submit.key), submit.priority),
        Some(Message::Submit(submit)) => (submit.spec, submit.model, None, DEFAULT_PRIORITY),
        Some(other) => return Err(TransportError::Unexpected { expected: "a job", got: other.id() }),
        None => return Ok(()),
    };
    let Some(spec) = find(blobs, wanted) else {
        return refuse(send, false, "the specification was not put before the job; send it first").await;
    };
    let fresh = key.map_or_else(fresh_key, Ok);
    let submitted = async { shared.submit(spec.to_vec(), (model, priority), fresh?).await };
    let mut handle = match submitted.await {
        Ok(handle) => handle,
        Err(error) => {
            let passes = matches!(error, CoordinatorError::NotLeading(_) | CoordinatorError::Stopped);
            return refuse(send, passes, &error.to_string()).await;
        }
    };
    let job = handle.id();
    write_message(send, &Message::JobAccepted(JobAccepted { job, segments: handle.segments() })).await?;
    let mut changes = shared.changes();
    loop {
        tokio::select! {
            () = council::changed(&mut changes) => {
                write_message(send, &Message::Coordinators(shared.coordinators())).await?;
            }
            event = handle.next() => match event {
                Some(p) => {
                    let text = clip(match &p.node {
                        Some(node) if !p.text.is_empty() => format!("{node}: {}", p.text),
                        _ => p.text,
                    }, MAX_TEXT_BYTES);
                    let event = Event { job, phase: p.phase.to_owned(), done: p.done, total: p.total, node: 0, text };
                    write_message(send, &Message::Event(event)).await?;
                }
                None => break,
            },
            error = connection.closed() => {
                // Who hangs up wants it no more. Who was cut off comes back with the key, if there is one to come back with.
                if key.is_none() || matches!(error, ConnectionError::ApplicationClosed(_)) {
                    handle.cancel().await;
                }
                return Err(lost(&error));
            }
        }
    }
    let last = match handle.result().await {
        Ok(result) => done(result, blobs),
        Err(CoordinatorError::Stopped) => return refuse(send, true, &CoordinatorError::Stopped.to_string()).await,
        Err(error) => Message::JobFailed(JobFailed { job, reason: clip(error.to_string(), MAX_TEXT_BYTES) }),
    };
    write_message(send, &last).await
}

/// What a client sends, sent in time: a stranger that leaves a byte out must not keep its place, nor what came after that byte.
async fn in_time<T>(reading: impl Future<Output = Result<T, TransportError>>) -> Result<T, TransportError> {
    tokio::time::timeout(ASKING, reading).await.unwrap_or(Err(TransportError::Timeout(ASKING.as_secs())))
}

fn done(result: JobResult, blobs: &Blobs) -> Message {
    let proof = BlobRef::of(&result.proof);
    let phases = result.phases.iter().map(|phase| PhaseTime {
        name: phase.name.clone(),
        wall_us: (phase.wall_s * 1e6) as u64,
        core_us: (phase.core_s * 1e6) as u64,
    });
    let phases = phases.collect();
    keep(blobs, proof, result.proof);
    let nodes = u32::try_from(result.nodes.len()).unwrap_or(u32::MAX);
    Message::JobDone(JobDone { job: result.job, proof, phases, peak_bytes: result.peak_memory_bytes, nodes })
}

async fn serve_bulk(shared: Arc<Shared>, connection: Connection, blobs: Blobs) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        // One at a time: a client has nothing to gain from more.
        if let Err(error) = transfer(&shared, &blobs, send, recv).await {
            tracing::warn!(%error, "client transfer failed");
        }
    }
}

async fn transfer(shared: &Shared, blobs: &Blobs, mut send: SendStream, mut recv: RecvStream) -> Result<(), TransportError> {
    match in_time(read_message(&mut recv)).await? {
        Some(Message::BlobGet(get)) => match find(blobs, get.blob) {
            Some(bytes) => answer_blob(&mut send, get.blob, &bytes).await?,
            None => return refuse(&mut send, false, "no such blob on this connection").await,
        },
        Some(Message::BlobPut(put)) => {
            if put.blob.length > MAX_SPEC_BYTES.min(shared.config.max_blob_bytes) {
                let reason = format!("{} bytes are no specification, which has {MAX_SPEC_BYTES} at most", put.blob.length);
                return refuse(&mut send, false, &reason).await;
            }
            let bytes = in_time(receive_blob(&mut recv, put.blob, MAX_SPEC_BYTES)).await?;
            if !keep(blobs, put.blob, bytes) {
                return refuse(&mut send, false, "a client may put one specification per connection").await;
            }
            write_message(&mut send, &Message::BlobStored(BlobStored { blob: put.blob })).await?;
        }
        Some(other) => return Err(TransportError::Unexpected { expected: "a blob request", got: other.id() }),
        None => {}
    }
    let _ = send.finish();
    Ok(())
}
