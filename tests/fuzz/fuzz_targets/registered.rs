//! Any bytes as a registration or a descriptor: what is read is what would be written, everything else is an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    obelysk_fuzz::registered(data);
});
