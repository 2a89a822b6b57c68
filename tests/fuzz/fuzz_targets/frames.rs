//! Any bytes as a stream of frames: never a panic, and what is accepted survives being sent again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::frames(data);
});
