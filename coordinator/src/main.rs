//! `obelysk`: prove, verify, and run clusters from the command line.
#![forbid(unsafe_code)]

mod cli;

// Proving allocates and frees buffers of hundreds of megabytes; the system allocator returns each to the kernel and pays
// the page faults again, and its peak memory was higher (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
