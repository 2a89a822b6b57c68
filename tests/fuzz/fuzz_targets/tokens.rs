//! Any text as a token or an address, and any payload under a right checksum.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::tokens(data);
});
