//! Whole proofs: equal bytes to the processor's backend, whatever the device, in every mode.

use crate::circuits::{decoders, text};
use crate::places::{card, host};
use obelysk_cuda::{CudaBackend, Device, DeviceError, attempt};
use obelysk_model::{IntegerModel, toy};
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::transcript::{Blake2s, HashSuite, Poseidon252};
use obelysk_protocol::verifier::aggregate::verify_reduced;
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::job::{Backend, LoadedModel};
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::local::prove_in;
use obelysk_shard::registration::{Codewords, register_with};

const TOY_SECURITY: SecurityParams = SecurityParams { queries: 12, g_seed: 3, g_fold: 2, g_query: 4 };

/// Registers, proves, verifies.
pub fn whole_at<S: HashSuite, B: Backend>(
    k: &B,
    model: &IntegerModel,
    input: &PublicInput,
    security: SecurityParams,
    (mode, words): (Mode, Codewords),
) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let registered = register_with::<S, B>(k, model, security, [7; 32], (dir.path(), words), &|_| ()).unwrap();
    let loaded = LoadedModel::<S, B>::new(registered.clone(), model.clone(), dir.path().to_path_buf());
    let (proof, _) = prove_in(k, &loaded, (input, mode), &|_, _, _| ()).unwrap();
    let bytes = proof.write();
    verify_reduced::<S>(&registered, &bytes).unwrap();
    bytes
}

fn whole<S: HashSuite, B: Backend>(k: &B, model: &IntegerModel, input: &PublicInput, mode: Mode, words: Codewords) -> Vec<u8> {
    whole_at::<S, B>(k, model, input, TOY_SECURITY, (mode, words))
}

fn equal<D: Device>(k: &CudaBackend<D>) {
    let encoder = toy::model(5);
    let ids = PublicInput::text(vec![1, 2, 3]);
    for mode in [Mode::Sequential, Mode::Forked, Mode::Aggregated] {
        let expected = whole::<Blake2s, _>(&Simd::default(), &encoder, &ids, mode, Codewords::Kept);
        assert!(whole::<Blake2s, _>(k, &encoder, &ids, mode, Codewords::Kept) == expected, "{mode:?}");
    }
    for d in decoders() {
        let model = toy::decoder(&d);
        let input = text(&model);
        let expected = whole::<Blake2s, _>(&Simd::default(), &model, &input, Mode::Forked, Codewords::Recomputed);
        assert!(whole::<Blake2s, _>(k, &model, &input, Mode::Forked, Codewords::Recomputed) == expected, "{d:?}");
    }
}

#[test]
fn proofs_of_toys_on_the_host_are_equal() {
    if let Some(host) = host() {
        equal(&CudaBackend::new(host.in_order(3)));
    }
}

#[test]
fn proofs_of_toys_on_a_card_are_equal() {
    if let Some(card) = card() {
        equal(&CudaBackend::new(card));
    }
}

#[test]
fn a_proof_under_another_suite_is_equal() {
    let Some(host) = host() else { return };
    let (model, ids) = (toy::model(5), PublicInput::text(vec![1, 2]));
    let expected = whole::<Poseidon252, _>(&Simd::default(), &model, &ids, Mode::Forked, Codewords::Kept);
    assert!(whole::<Poseidon252, _>(&CudaBackend::new(host), &model, &ids, Mode::Forked, Codewords::Kept) == expected);
}

#[test]
fn a_card_too_small_for_a_step_ends_it_with_an_error() {
    let Some(host) = host() else { return };
    let (model, ids) = (toy::model(5), PublicInput::text(vec![1, 2]));
    let small = CudaBackend::new(host.within(1 << 16));
    let lost = attempt(|| whole::<Blake2s, _>(&small, &model, &ids, Mode::Forked, Codewords::Kept));
    assert!(matches!(lost, Err(DeviceError::Full { .. })));
}
