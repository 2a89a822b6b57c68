//! Blobs in pieces, between the store and a peer: what is asked for from a place on, and what is offered.

use std::sync::Arc;

use obelysk_node::error::TransportError;
use obelysk_node::transport::quinn::{RecvStream, SendStream};
use obelysk_node::transport::{BlobSource, InMemory, Whole, accept_offer, answer_fetch, write_message};
use obelysk_protocol::wire::{BlobFetch, BlobOffer, BlobRef, BlobStored, Message};

use super::Shared;
use super::session::refuse;
use crate::blobs::BlobError;
use crate::core::{JobId, NodeId};

/// Answers a request for a blob, or for the rest of one.
pub(super) async fn fetched(shared: &Shared, fetch: &BlobFetch, send: &mut SendStream) -> Result<(), TransportError> {
    let source = match source(shared, fetch.blob).await? {
        Ok(source) => source,
        Err(reason) => return refuse(send, false, &reason).await,
    };
    answer_fetch(send, &*source, fetch).await?;
    let _ = send.finish();
    Ok(())
}

/// A job's blob, or one that lies in the store for nodes to have.
async fn source(shared: &Shared, blob: BlobRef) -> Result<Result<Box<dyn BlobSource>, String>, TransportError> {
    Ok(match shared.store.fetch(blob).await.map_err(away)? {
        Some(bytes) => Ok(Box::new(InMemory { blob, bytes })),
        None if shared.models.holds(blob).await => shared.blobs.source(blob).await.map_err(|e| e.to_string()),
        None => Err("no such blob: its job has ended".to_owned()),
    })
}

/// A blob that cannot be had now. A refusal would count as the work item's failure: so the stream ends without an answer, and the node comes
/// back and asks again.
pub(super) fn away(error: BlobError) -> TransportError {
    TransportError::Lost(error.to_string())
}

/// Takes a node's result, going on with what is here of it.
pub(super) async fn offered(
    shared: &Arc<Shared>,
    node: NodeId,
    BlobOffer { epoch, blob }: BlobOffer,
    (mut send, mut recv): (SendStream, RecvStream),
) -> Result<(), TransportError> {
    let limit = shared.config.max_blob_bytes;
    if blob.length > limit {
        return refuse(&mut send, false, &TransportError::BlobTooLarge { length: blob.length, limit }.to_string()).await;
    }
    let mut job = None;
    let store = shared.store.clone();
    let may = |from: u64| {
        // What goes on was counted when it began: it is the same blob.
        job = if from > 0 { store.job_of(epoch, node) } else { store.deliver(epoch, node) };
        let reason = || "this lease is over: the result is no longer needed".to_owned();
        job.map(|_| ()).ok_or_else(|| TransportError::Refused { reason: reason(), retry: false })
    };
    let outcome = accept_offer((&mut send, &mut recv), &shared.parts, blob, may).await;
    let (whole, job) = match (outcome, job) {
        (Ok(whole), Some(job)) => (whole, job),
        (Err(TransportError::Refused { reason, retry }), _) => return refuse(&mut send, retry, &reason).await,
        (Err(error @ TransportError::Disk { .. }), _) => {
            tracing::error!(%error, "a result cannot be taken");
            return refuse(&mut send, true, &error.to_string()).await;
        }
        (Err(error), _) => return Err(error),
        (Ok(_), None) => return Err(TransportError::Truncated("before a lease")),
    };
    match keep(shared, (job, epoch), blob, whole).await {
        Ok(()) => stored(&mut send, blob).await,
        Err(reason) => refuse(&mut send, true, &reason).await,
    }
}

/// Puts a result where the job finds it.
async fn keep(shared: &Arc<Shared>, (job, epoch): (JobId, u64), blob: BlobRef, whole: Whole) -> Result<(), String> {
    let store = &shared.store;
    let brief = store.is_brief(epoch);
    // Before the bytes of a file are there. What is kept briefly takes its own.
    let room = if brief { None } else { store.room(blob).await.map_err(|e| e.to_string())? };
    let read = move || {
        let bytes = whole.into_bytes().map_err(|e| e.to_string())?;
        // Its chunks were right when they arrived; in a file they may have changed since.
        if BlobRef::of(&bytes) == blob {
            Ok(bytes)
        } else {
            Err("it was damaged in the coordinator's folder; send it again".to_owned())
        }
    };
    let read = tokio::task::spawn_blocking(read).await;
    let bytes = read.unwrap_or_else(|_| Err("the coordinator failed; see its log".to_owned()))?;
    let put = if brief { store.put_briefly(job, blob, bytes) } else { store.keep(job, blob, bytes, room).await };
    put.map_err(|e| e.to_string())
}

/// Confirms that all of a blob is safe here.
pub(super) async fn stored(send: &mut SendStream, blob: BlobRef) -> Result<(), TransportError> {
    write_message(send, &Message::BlobStored(BlobStored { blob })).await?;
    let _ = send.finish();
    Ok(())
}

/// Takes a file of a model that an administrator puts. It is nobody's until the model is published.
pub(super) async fn pushed(
    shared: &Arc<Shared>,
    blob: BlobRef,
    (mut send, mut recv): (SendStream, RecvStream),
) -> Result<(), TransportError> {
    let limit = shared.config.max_blob_bytes;
    // Where it arrives in memory.
    if (!shared.blobs.is_durable() || shared.parts.is_in_memory()) && blob.length > limit {
        return refuse(&mut send, false, &TransportError::BlobTooLarge { length: blob.length, limit }.to_string()).await;
    }
    // Young before it is looked for: what is published next must not be collected before.
    shared.blobs.touch(blob).await;
    match shared.blobs.has(blob).await {
        Ok(true) => return stored(&mut send, blob).await,
        Ok(false) => {}
        Err(error) => return refuse(&mut send, true, &error.to_string()).await,
    }
    let whole = match accept_offer((&mut send, &mut recv), &shared.parts, blob, |_| Ok(())).await {
        Ok(whole) => whole,
        Err(error @ TransportError::Disk { .. }) => return refuse(&mut send, true, &error.to_string()).await,
        Err(error) => return Err(error),
    };
    let put = match whole {
        // Others fetch it when they hear that it is a model's.
        Whole::Memory(bytes) => shared.blobs.put_here(blob, Arc::new(bytes)).await,
        Whole::File(file) => shared.blobs.put_file(blob, file.path()).await,
    };
    match put {
        Ok(()) => {
            shared.blobs.touch(blob).await;
            stored(&mut send, blob).await
        }
        Err(error) => refuse(&mut send, true, &error.to_string()).await,
    }
}
