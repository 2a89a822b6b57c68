//! Any bytes as a job's specification, challenge or commit.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::jobs(data);
});
