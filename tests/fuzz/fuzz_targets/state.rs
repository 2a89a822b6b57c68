//! Any bytes as the files of an authority, a registry, a node or an administrator.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::state(data);
});
