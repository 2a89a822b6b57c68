//! A whole toy proof in one process: registered, proved, written, read, verified.

use obelysk_model::{StoredModel, toy};
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::transcript::{Blake2s, HashSuite, Poseidon252};
use obelysk_protocol::verifier::aggregate::verify_reduced;
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::job::{Backend, LoadedModel};
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::local::{prove, prove_in};
use obelysk_shard::registration::{Codewords, register, register_with};

const TOY_SECURITY: SecurityParams = SecurityParams { queries: 12, g_seed: 3, g_fold: 2, g_query: 4 };

fn whole<S: HashSuite, B: Backend>(k: &B, ids: &[u32]) -> Vec<u8> {
    whole_in::<S, B>(k, ids, Mode::Forked)
}

fn whole_in<S: HashSuite, B: Backend>(k: &B, ids: &[u32], mode: Mode) -> Vec<u8> {
    let model = toy::model(5);
    let dir = tempfile::tempdir().unwrap();
    let registered = register::<S, B>(k, &model, TOY_SECURITY, [7; 32], dir.path(), &|_| ()).unwrap();
    let loaded = LoadedModel::<S, B>::new(registered.clone(), model, dir.path().to_path_buf());
    let (proof, _) = prove_in(k, &loaded, (&PublicInput::text(ids.to_vec()), mode), &|_, _, _| ()).unwrap();
    let bytes = proof.write();
    let accepted = verify_reduced::<S>(&registered, &bytes).unwrap();
    assert_eq!((accepted.ids.as_slice(), accepted.mode), (ids, mode));
    bytes
}

#[test]
fn weights_read_from_a_folder_and_words_recomputed_give_the_same_proof() {
    let (k, ids) = (Simd::default(), &[3, 1, 4, 1, 5]);
    let expected = whole::<Blake2s, _>(&k, ids);
    let (source, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    toy::model(5).save(source.path(), None).unwrap();
    // A bound of nothing: every segment is read anew whenever it is needed.
    let stored = StoredModel::open(source.path(), 0).unwrap();
    let place = (dir.path(), Codewords::Recomputed);
    let registered = register_with::<Blake2s, _>(&k, &stored, TOY_SECURITY, [7; 32], place, &|_| ()).unwrap();
    let loaded = LoadedModel::<Blake2s, _>::within(registered, stored, dir.path().to_path_buf(), 0);
    let (proof, _) = prove(&k, &loaded, &PublicInput::text(ids.to_vec())).unwrap();
    assert!(proof.write() == expected);
    // An opening of all segments reads words again: kept in a file, recomputed, and with a segment's weights forgotten.
    let input = PublicInput::text(ids.to_vec());
    let (proof, _) = prove_in(&k, &loaded, (&input, Mode::Aggregated), &|_, _, _| ()).unwrap();
    assert!(proof.write() == whole_in::<Blake2s, _>(&k, ids, Mode::Aggregated));
}

#[test]
fn every_mode_proves_and_all_differ() {
    let ids = &[1, 2, 3, 4, 5];
    let proofs =
        [Mode::Sequential, Mode::Forked, Mode::Aggregated].map(|mode| whole_in::<Blake2s, _>(&Simd::default(), ids, mode));
    assert!(proofs[0] != proofs[1] && proofs[1] != proofs[2] && proofs[2] != proofs[0]);
}

#[test]
fn one_opening_of_all_has_the_same_bytes_on_any_backend_and_threads() {
    let ids = &[5, 6, 7];
    let reference = whole_in::<Blake2s, _>(&Reference, ids, Mode::Aggregated);
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| whole_in::<Blake2s, _>(&Simd::default(), ids, Mode::Aggregated)) == reference, "{threads}");
    }
    whole_in::<Poseidon252, _>(&Reference, &[1, 2, 3], Mode::Aggregated);
}

#[test]
fn a_toy_proof_verifies() {
    for ids in [&[1u32, 2, 3, 4][..], &[5, 6, 7], &[8]] {
        whole::<Blake2s, _>(&Reference, ids);
    }
}

#[test]
fn a_toy_proof_verifies_under_poseidon() {
    whole::<Poseidon252, _>(&Reference, &[1, 2, 3]);
}

#[test]
fn both_backends_write_the_same_proof() {
    for ids in [&[1u32, 2, 3, 4][..], &[5, 6, 7], &[8], &[1, 2, 3, 4, 5, 6, 7, 8]] {
        assert!(whole::<Blake2s, _>(&Reference, ids) == whole::<Blake2s, _>(&Simd::default(), ids), "{} tokens", ids.len());
    }
}

#[test]
fn proofs_keep_their_bytes() {
    // A change here is a new protocol version.
    let bytes = whole::<Blake2s, _>(&Simd::default(), &[1, 2, 3, 4]);
    let hex: String = Blake2s::hash(0, &bytes).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "32e02c8767709fa2056fe753b7fe6c569c5b4394e63901cf15f13cc4bcd90b4b");
}
