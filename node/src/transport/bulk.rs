//! Blobs on streams of their own: one request frame, chunks of at most 1 MiB, digest checked at the end, application-level ack.
//!
//! A node or client always opens the stream, so that the coordinator never has to reach behind a NAT. A damaged or cut blob leaves nothing behind.

use std::time::Duration;

use obelysk_protocol::wire::{BlobGet, BlobPut, BlobRef, BlobSent, FrameHeader, MAX_CHUNK_BYTES, Message, MessageId, WireError};
use quinn::Connection;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::frames::{read_frame, read_message, write_message};
use super::lost;
use crate::error::TransportError;
use crate::traffic::frame_sent;

/// A transfer that moves no frame for this long is given up: three keep-alives, as for the connection.
const STALL: Duration = Duration::from_secs(30);

/// Gets a blob from the coordinator.
///
/// # Errors
/// [`TransportError`]: too large for `limit`, refused, damaged, stalled or lost.
pub async fn fetch(connection: &Connection, blob: BlobRef, limit: u64) -> Result<Vec<u8>, TransportError> {
    within_limit(blob, limit)?;
    if blob.length == 0 {
        return if blob == BlobRef::of(&[]) { Ok(Vec::new()) } else { Err(TransportError::BlobDamaged) };
    }
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| lost(&e))?;
    write_message(&mut send, &Message::BlobGet(BlobGet { blob })).await?;
    match bounded(read_message(&mut recv)).await? {
        Some(Message::BlobSent(sent)) if sent.blob == blob => receive_blob(&mut recv, blob, limit).await,
        other => Err(not_expected("the blob asked for", other)),
    }
}

/// Puts a blob to the coordinator and waits until it confirms having all of it.
///
/// # Errors
/// [`TransportError`]: refused, stalled or lost.
pub async fn store(connection: &Connection, epoch: u64, blob: BlobRef, bytes: &[u8]) -> Result<(), TransportError> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| lost(&e))?;
    write_message(&mut send, &Message::BlobPut(BlobPut { epoch, blob })).await?;
    // A refusal stops our sending with an error; the reason is in the answer, so that is read in either case.
    let sent = send_chunks(&mut send, bytes).await;
    match bounded(read_message(&mut recv)).await {
        Ok(Some(Message::BlobStored(stored))) if stored.blob == blob => sent,
        Ok(answer) => Err(not_expected("a confirmation of the blob", answer)),
        Err(error) => Err(sent.err().unwrap_or(error)),
    }
}

/// Answers a [`BlobGet`] with the blob's bytes.
///
/// # Errors
/// [`TransportError`]: stalled or lost.
pub async fn answer_blob<W>(stream: &mut W, blob: BlobRef, bytes: &[u8]) -> Result<(), TransportError>
where
    W: AsyncWrite + Unpin,
{
    write_message(stream, &Message::BlobSent(BlobSent { blob })).await?;
    send_chunks(stream, bytes).await
}

/// Writes the chunks of a blob.
///
/// # Errors
/// [`TransportError`]: stalled or lost.
pub async fn send_chunks<W>(stream: &mut W, bytes: &[u8]) -> Result<(), TransportError>
where
    W: AsyncWrite + Unpin,
{
    for chunk in bytes.chunks(MAX_CHUNK_BYTES as usize) {
        let length = u32::try_from(chunk.len()).unwrap_or(MAX_CHUNK_BYTES);
        let header = FrameHeader { message: MessageId::Chunk, length }.encode();
        bounded(async {
            stream.write_all(&header).await.map_err(|e| TransportError::Lost(e.to_string()))?;
            stream.write_all(chunk).await.map_err(|e| TransportError::Lost(e.to_string()))
        })
        .await?;
        frame_sent(MessageId::Chunk, header.len() + chunk.len());
    }
    Ok(())
}

/// Reads the chunks of a blob and checks length and digest. Memory grows with what arrived, not with what was announced.
///
/// # Errors
/// [`TransportError`]: too large for `limit`, damaged, truncated, stalled, lost, or something else than chunks.
pub async fn receive_blob<R>(stream: &mut R, blob: BlobRef, limit: u64) -> Result<Vec<u8>, TransportError>
where
    R: AsyncRead + Unpin,
{
    within_limit(blob, limit)?;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < blob.length {
        let (header, chunk) =
            bounded(read_frame(stream, u32::MAX)).await?.ok_or(TransportError::Truncated("before the last chunk"))?;
        if header.message != MessageId::Chunk {
            return Err(TransportError::Unexpected { expected: "a chunk", got: header.message });
        }
        if chunk.is_empty() || bytes.len() as u64 + chunk.len() as u64 > blob.length {
            let cause = "a chunk that is empty or exceeds the announced blob";
            return Err(WireError::Meaning { message: MessageId::Chunk, cause }.into());
        }
        bytes.extend_from_slice(&chunk);
    }
    if BlobRef::of(&bytes) == blob { Ok(bytes) } else { Err(TransportError::BlobDamaged) }
}

pub(super) const fn within_limit(blob: BlobRef, limit: u64) -> Result<(), TransportError> {
    if blob.length > limit { Err(TransportError::BlobTooLarge { length: blob.length, limit }) } else { Ok(()) }
}

pub(super) fn not_expected(expected: &'static str, answer: Option<Message>) -> TransportError {
    match answer {
        None => TransportError::Truncated("before an answer"),
        Some(Message::Refused(no)) => TransportError::Refused { reason: no.reason, retry: no.retry },
        Some(other) => TransportError::Unexpected { expected, got: other.id() },
    }
}

pub(super) async fn bounded<T>(step: impl Future<Output = Result<T, TransportError>>) -> Result<T, TransportError> {
    tokio::time::timeout(STALL, step).await.unwrap_or(Err(TransportError::Timeout(STALL.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn chunks(bytes: &[u8]) -> Vec<u8> {
        let mut stream = Vec::new();
        send_chunks(&mut stream, bytes).await.expect("memory");
        stream
    }

    #[tokio::test]
    async fn blobs_of_every_awkward_size_arrive() {
        for size in [0, 1, MAX_CHUNK_BYTES as usize, MAX_CHUNK_BYTES as usize + 1, 3_000_000] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let stream = chunks(&bytes).await;
            let got = receive_blob(&mut stream.as_slice(), BlobRef::of(&bytes), size as u64).await.expect("arrives");
            assert!(got == bytes, "{size}");
        }
    }

    #[tokio::test]
    async fn damage_cuts_and_excess_are_typed_errors() {
        let bytes = vec![7; 3000];
        let blob = BlobRef::of(&bytes);
        let stream = chunks(&bytes).await;
        let receive = async |stream: &[u8], limit| receive_blob(&mut &*stream, blob, limit).await.expect_err("must fail");

        assert!(matches!(receive(&stream, 2999).await, TransportError::BlobTooLarge { length: 3000, limit: 2999 }));
        let mut damaged = stream.clone();
        *damaged.last_mut().expect("bytes") ^= 1;
        assert!(matches!(receive(&damaged, 3000).await, TransportError::BlobDamaged));
        assert!(matches!(receive(&stream[..2000], 3000).await, TransportError::Truncated(_)));
        assert!(matches!(receive(&[], 3000).await, TransportError::Truncated(_)));
        let longer = chunks(&[7; 3001]).await;
        assert!(matches!(receive(&longer, 3000).await, TransportError::Wire(WireError::Meaning { .. })));
        let other = Message::BlobGet(BlobGet { blob }).encode().expect("encodes");
        assert!(matches!(receive(&other, 3000).await, TransportError::Unexpected { got: MessageId::BlobGet, .. }));
    }
}
