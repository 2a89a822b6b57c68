//! What is asked of a device before it gets work, and that tests ask every kernel something.

use crate::places::{folder, host};
use crate::{commit, proof};
use obelysk_cuda::host::Host;
use obelysk_cuda::{CudaBackend, DeviceError, answers, compared, source};
use std::collections::BTreeSet;

/// Slips in kernels, and where they show.
const SLIPS: [(&str, &str, &str); 3] = [
    ("u32 low_mask, shift, high_mask", "u32 shift, low_mask, high_mask", "the layout of structs"),
    ("0xa54ff53au", "0xa54ff53bu", "a commitment"),
    ("rest = (rest - digit) >> 8;", "rest = rest >> 8;", "rounds of a sumcheck"),
];

#[test]
fn a_device_is_taken_if_it_computes_what_the_processor_does() {
    let Some(device) = host() else { return };
    let device = compared(device).map_err(|e| e.to_string()).unwrap();
    assert!(device.launched().contains("fold_packed"), "weights are folded by digits");
    for (right, wrong, shows) in SLIPS {
        assert!(source::text().contains(right), "{right}");
        let slipped = Host::of_text(folder(), &source::text().replace(right, wrong), 0).unwrap();
        assert!(matches!(compared(slipped), Err(DeviceError::Differs { what, .. }) if what == shows), "{right}");
    }
    assert!(matches!(compared(device.within(1 << 12)), Err(DeviceError::Full { .. })));
}

#[test]
fn a_device_answers_until_it_is_gone() {
    let Some(device) = host() else { return };
    assert!(answers(&device) && answers(&device.within(0)) && !answers(&device.gone()));
}

#[test]
fn every_kernel_is_launched_by_the_tests_of_its_twins() {
    let Some(device) = host() else { return };
    let k = CudaBackend::new(device);
    for check in [commit::words_and_trees, commit::int8_words, commit::combinations, commit::extension_vectors, commit::nonces] {
        check(&k);
    }
    for check in [proof::layouts, proof::vectors, proof::products, proof::matrices, proof::lookups, proof::chips, proof::claims] {
        check(&k);
    }
    let all: BTreeSet<&str> = source::kernels().keys().copied().collect();
    assert_eq!(k.device().launched(), all);
}
