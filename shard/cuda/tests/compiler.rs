//! Every kernel compiles for every generation of cards; the run-time compiler needs no card.
//!
//! `REQUIRE_KERNELS=1` makes a machine without the compiler a failure instead of a skip.

use obelysk_cuda::card::compile::{compile, target, version};
use obelysk_cuda::{DeviceError, source};

#[test]
fn every_kernel_compiles_for_every_generation() {
    if let Err(error) = version() {
        assert!(std::env::var("REQUIRE_KERNELS").as_deref() != Ok("1"), "REQUIRE_KERNELS=1, and {error}");
        println!("SKIPPED, no kernel was compiled: {error}");
        return;
    }
    for architecture in [80, 90, 120] {
        let target = target(architecture).unwrap();
        let image = compile(source::text(), &target).unwrap();
        println!("{target}: {} bytes", image.bytes.len());
        for kernel in source::kernels().keys() {
            assert!(image.bytes.windows(kernel.len()).any(|w| w == kernel.as_bytes()), "{target} lacks {kernel}");
        }
    }
    // A card newer than the compiler gets text for its driver; nonsense gets the compiler's log.
    let newer = target(999).unwrap();
    assert!(newer.starts_with("compute_") && compile(source::text(), &newer).unwrap().bytes.starts_with(b"//"));
    let log = compile("extern \"C\" __global__ void broken(", "sm_90").unwrap_err();
    assert!(matches!(&log, DeviceError::Compile { log, .. } if log.contains("obelysk.cu")), "{log}");
}
