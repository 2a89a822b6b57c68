//! Submitting jobs over the network: the coordinator's side of a client connection, and [`submit_remote`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use obelysk_node::CoordinatorAddress;
use obelysk_node::error::TransportError;
use obelysk_node::transport::quinn::{Connection, RecvStream, SendStream};
use obelysk_node::transport::{CLOSE_DONE, answer_blob, connect, fetch, lost, read_message, receive_blob, store, write_message};
use obelysk_protocol::wire::{
    BlobRef, BlobStored, ClientHello, Event, Goodbye, JobAccepted, JobDone, JobFailed, MAX_NAME_BYTES, MAX_TEXT_BYTES, Message,
    PhaseTime, SubmitAt,
};

use super::progress::{JobResult, Phase};
use super::session::refuse;
use super::{CoordinatorError, Shared, clip};
use crate::core::DEFAULT_PRIORITY;

/// Blobs one client may hold here: its specification and its proof.
const MAX_CLIENT_BLOBS: usize = 2;

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

/// Serves a client: one job per connection. When the client leaves early, its job is cancelled.
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
        let _ = read_message(&mut recv).await;
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
    let submit = match read_message(recv).await? {
        Some(Message::Submit(submit)) => SubmitAt { spec: submit.spec, model: submit.model, priority: DEFAULT_PRIORITY },
        Some(Message::SubmitAt(submit)) => submit,
        Some(other) => return Err(TransportError::Unexpected { expected: "a job", got: other.id() }),
        None => return Ok(()),
    };
    let Some(spec) = find(blobs, submit.spec) else {
        return refuse(send, false, "the specification was not put before the job; send it first").await;
    };
    let mut handle = match shared.submit(spec.to_vec(), submit.model, submit.priority).await {
        Ok(handle) => handle,
        Err(error) => return refuse(send, false, &error.to_string()).await,
    };
    let job = handle.id();
    write_message(send, &Message::JobAccepted(JobAccepted { job, segments: handle.segments() })).await?;
    loop {
        tokio::select! {
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
                handle.cancel().await;
                return Err(lost(&error));
            }
        }
    }
    let last = match handle.result().await {
        Ok(result) => done(result, blobs),
        Err(error) => Message::JobFailed(JobFailed { job, reason: clip(error.to_string(), MAX_TEXT_BYTES) }),
    };
    write_message(send, &last).await
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
    match read_message(&mut recv).await? {
        Some(Message::BlobGet(get)) => match find(blobs, get.blob) {
            Some(bytes) => answer_blob(&mut send, get.blob, &bytes).await?,
            None => return refuse(&mut send, false, "no such blob on this connection").await,
        },
        Some(Message::BlobPut(put)) => {
            let bytes = match receive_blob(&mut recv, put.blob, shared.config.max_blob_bytes).await {
                Ok(bytes) => bytes,
                Err(error @ TransportError::BlobTooLarge { .. }) => return refuse(&mut send, false, &error.to_string()).await,
                Err(error) => return Err(error),
            };
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

/// Submits a job to a coordinator elsewhere and waits for its proof. `on_event` gets every progress message.
///
/// # Errors
/// As [`submit_remote_at`].
pub async fn submit_remote(
    address: &CoordinatorAddress,
    name: &str,
    spec: &[u8],
    model: [u8; 32],
    on_event: impl FnMut(&Event),
) -> Result<JobResult, CoordinatorError> {
    submit_remote_at(address, name, spec, (model, DEFAULT_PRIORITY), on_event).await
}

/// As [`submit_remote`], with a priority from 0 to 9.
///
/// # Errors
/// [`CoordinatorError::Transport`] when the coordinator cannot be reached or refuses, [`CoordinatorError::Job`] when the job fails.
pub async fn submit_remote_at(
    address: &CoordinatorAddress,
    name: &str,
    spec: &[u8],
    (model, priority): ([u8; 32], u8),
    mut on_event: impl FnMut(&Event),
) -> Result<JobResult, CoordinatorError> {
    // Held to the end: the endpoint drives the connection.
    let (endpoint, connection) = connect(address, None).await?;
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| lost(&e))?;
    let name = name.chars().filter(|c| !c.is_control()).take(MAX_NAME_BYTES / 4).collect();
    write_message(&mut send, &Message::ClientHello(ClientHello { name })).await?;
    let blob = BlobRef::of(spec);
    store(&connection, 0, blob, spec).await?;
    write_message(&mut send, &Message::SubmitAt(SubmitAt { spec: blob, model, priority })).await?;
    let done = loop {
        match read_message(&mut recv).await? {
            Some(Message::JobAccepted(_)) => {}
            Some(Message::Event(event)) => on_event(&event),
            Some(Message::JobDone(done)) => break done,
            Some(Message::JobFailed(failed)) => return Err(CoordinatorError::Job(failed.reason)),
            Some(Message::Refused(no)) => {
                return Err(TransportError::Refused { reason: no.reason, retry: no.retry }.into());
            }
            Some(other) => return Err(TransportError::Unexpected { expected: "job news", got: other.id() }.into()),
            None => return Err(TransportError::Truncated("before the job ended").into()),
        }
    };
    let proof = fetch(&connection, done.proof, u64::MAX).await?;
    write_message(&mut send, &Message::Goodbye(Goodbye { reason: "thank you".to_owned() })).await?;
    let _ = send.finish();
    connection.close(CLOSE_DONE, b"done");
    endpoint.wait_idle().await;
    let phase = |p: PhaseTime| Phase { name: p.name, wall_s: p.wall_us as f64 / 1e6, core_s: p.core_us as f64 / 1e6 };
    Ok(JobResult {
        job: done.job,
        proof,
        phases: done.phases.into_iter().map(phase).collect(),
        peak_memory_bytes: done.peak_bytes,
        nodes: (0..done.nodes).map(|_| String::new()).collect(),
    })
}
