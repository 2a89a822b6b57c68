//! Any bytes as a proof: never a panic, never accepted.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::proof(data);
});
