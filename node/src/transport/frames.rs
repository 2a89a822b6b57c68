//! Messages on a byte stream. Reads nothing into memory before its header was judged.

use obelysk_protocol::wire::{FrameHeader, HEADER_BYTES, Message, WireError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::TransportError;
use crate::traffic::{frame_received, frame_sent};

/// Reads one frame: header and payload of at most `limit` bytes, or `None` at a clean end of the stream. **Not** cancel-safe: give it a task of its own.
///
/// # Errors
/// [`TransportError::Wire`] for a bad header, [`TransportError::Truncated`] for an end inside the frame.
pub(super) async fn read_frame<R>(stream: &mut R, limit: u32) -> Result<Option<(FrameHeader, Vec<u8>)>, TransportError>
where
    R: AsyncRead + Unpin,
{
    let mut header = [0; HEADER_BYTES];
    match fill(stream, &mut header).await? {
        0 => return Ok(None),
        HEADER_BYTES => {}
        got => return Err(WireError::HeaderTruncated { got }.into()),
    }
    let header = FrameHeader::decode(&header)?;
    if header.length > limit {
        return Err(WireError::TooLong { message: header.message, length: header.length, limit }.into());
    }
    let mut payload = vec![0; usize::try_from(header.length).map_err(|_| TransportError::Truncated("in a payload"))?];
    if fill(stream, &mut payload).await? != payload.len() {
        return Err(TransportError::Truncated("inside a payload"));
    }
    frame_received(header.message, HEADER_BYTES + payload.len());
    Ok(Some((header, payload)))
}

/// Reads one control message, or `None` at a clean end of the stream. **Not** cancel-safe: give it a task of its own.
///
/// # Errors
/// [`TransportError::Wire`] for bytes that are not a message, [`TransportError::Truncated`] for an end inside a frame,
/// [`TransportError::Lost`] when the connection broke.
pub async fn read_message<R>(stream: &mut R) -> Result<Option<Message>, TransportError>
where
    R: AsyncRead + Unpin,
{
    read_message_within(stream, u32::MAX).await
}

/// As [`read_message`], from a peer that is not known yet: nothing longer than `limit` is read.
///
/// # Errors
/// As [`read_message`].
pub async fn read_message_within<R>(stream: &mut R, limit: u32) -> Result<Option<Message>, TransportError>
where
    R: AsyncRead + Unpin,
{
    let Some((header, payload)) = read_frame(stream, limit).await? else { return Ok(None) };
    Ok(Some(Message::decode(header, &payload)?))
}

/// Writes one control message.
///
/// # Errors
/// [`TransportError::Wire`] when a peer would refuse it, [`TransportError::Lost`] when the connection broke.
pub async fn write_message<W>(stream: &mut W, message: &Message) -> Result<(), TransportError>
where
    W: AsyncWrite + Unpin,
{
    let frame = message.encode()?;
    stream.write_all(&frame).await.map_err(|e| TransportError::Lost(e.to_string()))?;
    frame_sent(message.id(), frame.len());
    Ok(())
}

async fn fill<R>(stream: &mut R, buffer: &mut [u8]) -> Result<usize, TransportError>
where
    R: AsyncRead + Unpin,
{
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest).await.map_err(|e| TransportError::Lost(e.to_string()))? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use obelysk_protocol::wire::{MAGIC, MAX_CONTROL_BYTES, MessageId, ResultAck};

    async fn read(bytes: &[u8]) -> Result<Option<Message>, TransportError> {
        let mut stream = bytes;
        read_message(&mut stream).await
    }

    #[tokio::test]
    async fn every_cut_of_a_frame_is_a_typed_error() {
        let frame = Message::ResultAck(ResultAck { epoch: 7 }).encode().expect("encodes");
        assert!(matches!(read(&[]).await, Ok(None)));
        for cut in 1..frame.len() {
            let error = read(&frame[..cut]).await.expect_err("cut");
            let named = matches!(error, TransportError::Truncated(_) | TransportError::Wire(WireError::HeaderTruncated { .. }));
            assert!(named, "{cut}: {error}");
        }
        assert_eq!(read(&frame).await.expect("whole"), Some(Message::ResultAck(ResultAck { epoch: 7 })));
    }

    #[tokio::test]
    async fn bad_headers_are_refused_before_their_payload() {
        let good = FrameHeader { message: MessageId::ResultAck, length: 8 }.encode();
        let with = |at: usize, bytes: &[u8]| {
            let mut header = good;
            header[at..at + bytes.len()].copy_from_slice(bytes);
            header
        };
        let wire = |e: TransportError| match e {
            TransportError::Wire(e) => e,
            other => panic!("not a wire error: {other}"),
        };
        assert!(matches!(wire(read(&with(0, b"HTTP")).await.expect_err("magic")), WireError::Magic { .. }));
        assert!(matches!(wire(read(&with(4, &[9])).await.expect_err("version")), WireError::Version { theirs: 9 }));
        assert!(matches!(wire(read(&with(6, &[0xff])).await.expect_err("id")), WireError::UnknownMessage { id: 255 }));
        assert!(matches!(wire(read(&with(12, &[1])).await.expect_err("flags")), WireError::Flags { flags: 1 }));
        let oversize = with(8, &(MAX_CONTROL_BYTES + 1).to_le_bytes());
        assert!(matches!(wire(read(&oversize).await.expect_err("length")), WireError::TooLong { .. }));
        assert_eq!(&good[..4], &MAGIC);
    }
}
