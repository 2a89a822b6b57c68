//! Any payload under the header of each message.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::messages(data);
});
