//! Any bytes as a certificate that a stranger shows, or as its request for one.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::certificates(data);
});
