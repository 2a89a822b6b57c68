//! Any bytes as a registration or a descriptor: what is read is what would be written, everything else is an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obelysk_protocol::circuit::encode::{decode, encode};
use obelysk_protocol::verifier::registered::Registered;

fuzz_target!(|data: &[u8]| {
    if let Ok(registered) = Registered::read(data) {
        assert_eq!(registered.write(), data);
    }
    if let Ok(descriptor) = decode(data) {
        assert_eq!(encode(&descriptor), data);
    }
});
