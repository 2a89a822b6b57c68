//! Any bytes as a stream of frames: never a panic, and what is accepted survives being sent again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obelysk_protocol::wire::{FrameHeader, HEADER_BYTES, Message};

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Ok(header) = FrameHeader::decode(rest) {
        let body = rest.get(HEADER_BYTES..).unwrap_or_default();
        let (payload, next) = body.split_at(body.len().min(header.length as usize));
        if let Ok(message) = Message::decode(header, payload) {
            let frame = message.encode().expect("what a peer may send, we may send");
            let again = FrameHeader::decode(&frame).and_then(|h| Message::decode(h, &frame[HEADER_BYTES..]));
            assert_eq!(again, Ok(message));
        }
        rest = next;
    }
});
