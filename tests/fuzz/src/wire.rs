//! Frames and messages: what any peer may send on any stream.

use obelysk_protocol::wire::{FrameHeader, HEADER_BYTES, Message, MessageId};

/// A message that was taken survives being sent again.
fn again(message: &Message) {
    let frame = message.encode().expect("what a peer may send, we may send");
    let read = FrameHeader::decode(&frame).and_then(|header| Message::decode(header, &frame[HEADER_BYTES..]));
    assert_eq!(read.as_ref(), Ok(message));
}

/// The bytes as a stream of frames. Taken when at least one message was.
pub fn frames(data: &[u8]) -> bool {
    let (mut rest, mut taken) = (data, false);
    while let Ok(header) = FrameHeader::decode(rest) {
        let body = rest.get(HEADER_BYTES..).unwrap_or_default();
        let (payload, next) = body.split_at(body.len().min(header.length as usize));
        if let Ok(message) = Message::decode(header, payload) {
            again(&message);
            taken = true;
        }
        rest = next;
    }
    taken
}

/// The first byte is a message's id, the rest its payload: no byte of the input is spent on a right header.
pub fn messages(data: &[u8]) -> bool {
    let Some((code, payload)) = data.split_first() else { return false };
    let Some(message) = MessageId::from_code(u16::from(*code)) else { return false };
    let Ok(length) = u32::try_from(payload.len()) else { return false };
    match Message::decode(FrameHeader { message, length }, payload) {
        Ok(message) => {
            again(&message);
            true
        }
        Err(_) => false,
    }
}
