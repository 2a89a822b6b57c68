//! Any bytes as records and parts of the opening of all segments, before the coordinator's checker.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::joint(data);
});
