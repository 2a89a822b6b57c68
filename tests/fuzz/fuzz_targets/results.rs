//! Any bytes as the results of nodes, before the coordinator's checker.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::results(data);
});
