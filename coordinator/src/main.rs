//! `obelysk`: prove, verify, and run clusters from the command line.
#![deny(unsafe_code)]

mod cli;

// Proving allocates and frees buffers of hundreds of megabytes; the system allocator returns each to the kernel and pays
// the page faults again, and its peak memory was higher (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h: milliseconds before freed memory goes back to the kernel; 10 by default.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Longer than any phase works without a buffer of the one before: a busy process faults its memory in once, an idle one
/// gives it back.
const PURGE_MILLISECONDS: core::ffi::c_long = 3000;

fn main() -> std::process::ExitCode {
    keep_memory_between_phases();
    cli::main()
}

#[expect(unsafe_code, reason = "the allocator's options have no safe interface")]
fn keep_memory_between_phases() {
    // SAFETY: the call stores one integer in the allocator's table of options; the index is that of an option in both
    // versions of mimalloc that the crate builds, and no other thread exists yet.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, PURGE_MILLISECONDS) }
}
