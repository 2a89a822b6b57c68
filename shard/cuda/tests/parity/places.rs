//! Where kernels run in tests. It refuses to be skipped where tests must run.

use obelysk_cuda::DeviceError;
use obelysk_cuda::card::Card;
use obelysk_cuda::host::Host;
use std::path::Path;

/// Orders of threads: theirs, and two others, forwards and backwards over blocks.
const ORDERS: [u64; 3] = [0, 3, 6];

fn required(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|v| v == "1")
}

/// A place, or why there is none.
fn place<D>(found: Result<D, DeviceError>, variable: &str) -> Option<D> {
    found.map_or_else(
        |error| {
            assert!(!required(variable), "{variable}=1, and {error}");
            println!("SKIPPED, no kernel was run: {error}");
            None
        },
        Some,
    )
}

/// Where compiled kernels are kept.
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The processor with threads in their order.
pub fn host() -> Option<Host> {
    place(Host::new(folder(), 0), "REQUIRE_KERNELS")
}

/// The processor, once per order of threads.
pub fn hosts() -> Vec<Host> {
    host().map_or_else(Vec::new, |host| ORDERS.map(|order| host.in_order(order)).into())
}

/// The first card.
pub fn card() -> Option<Card> {
    place(Card::open(0, folder(), None), "REQUIRE_GPU")
}
