//! Large tiles: what proving leaves of the weights opens as the weights themselves do, on any backend.

use crate::place::TOY_SECURITY;
use obelysk_model::WeightSource;
use obelysk_model::infer::decoder::generate;
use obelysk_model::shaped::{Shape, Shaped};
use obelysk_protocol::circuit::segment::MatrixShape;
use obelysk_protocol::circuit::{PublicInput, Sequence};
use obelysk_protocol::field::{QM31, eq_vector};
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::aggregate::{Statement, verify_reduced};
use obelysk_protocol::verifier::proof::MODE_FORKED;
use obelysk_shard::job::{self, LoadedModel};
use obelysk_shard::kernels::CommitKernels;
use obelysk_shard::kernels::proof::ProofKernels;
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::local;
use obelysk_shard::registration::{Codewords, register_with};
use std::str::FromStr as _;

/// Tiles of 2^7 by 2^8 and more than one of them along every axis.
fn model() -> Shaped {
    let model = Shaped::new(&Shape { vocab: 300, ..Shape::from_str("256,4,4,128,768").unwrap() }, 11);
    let d = model.descriptor().decoder().unwrap();
    assert!(d.tile_k_log >= 7 && d.tile_n_log >= 7, "tiles of 2^{} x 2^{} are not large", d.tile_k_log, d.tile_n_log);
    model
}

fn input(model: &Shaped) -> PublicInput {
    let mut ids = vec![3, 200, 17];
    let next = generate(model.descriptor().decoder().unwrap(), model as &dyn WeightSource, &ids, 2, &[]).unwrap();
    ids.extend(&next);
    PublicInput { ids, sequences: vec![Sequence { prompt: 3, completion: 2 }], output: Vec::new() }
}

#[test]
fn an_opening_is_the_same_with_and_without_what_proving_left() {
    let (k, model) = (Simd::default(), model());
    let input = input(&model);
    let dir = tempfile::tempdir().unwrap();
    let registered =
        register_with::<Blake2s, _>(&k, &model, TOY_SECURITY, [7; 32], (dir.path(), Codewords::Recomputed), &|_| ()).unwrap();
    let loaded = LoadedModel::<Blake2s, Simd>::within(registered.clone(), model, dir.path().to_path_buf(), 0);
    let (proof, _) = local::prove(&k, &loaded, &input).unwrap();
    verify_reduced::<Blake2s>(&registered, &proof.write()).unwrap();
    let s = Statement::new::<Blake2s>(&registered, input, MODE_FORKED).unwrap();
    let (seed, _) = local::draw_seed::<Blake2s, Simd>(&k, &registered, &s, &proof.header.roots);
    let embedded = job::commit(&k, &loaded, &s.input, 0, &[]).unwrap();
    let received = embedded.hidden().unwrap();
    let [proving, other] = [0, 1].map(|_| job::commit(&k, &loaded, &s.input, 1, &received).unwrap());
    let claims = job::prove(&k, &loaded, &s, &seed, 1, &proving).unwrap();
    let [same, fresh] = [proving, other].map(|c| job::open(&k, &loaded, &s, &seed, 1, (&c, &claims)).unwrap());
    assert!(same == fresh && same == proof.segments[1].opening);
}

#[test]
fn folding_by_tiles_is_folding() {
    let (inputs, outputs, a, b) = (384, 256, 7, 6);
    let shape = MatrixShape { inputs, outputs };
    let data: Vec<i8> = (0..inputs * outputs).map(|i| ((i * 7919) % 255) as i32 - 127).map(|v| v as i8).collect();
    let point: Vec<QM31> = (0..15).map(|i| QM31::from_u32_unchecked(i + 2, 5 * i, 9, 1 << i)).collect();
    let (low, high, all) = (eq_vector(&point[..b]), eq_vector(&point[b..8]), eq_vector(&point[..8]));
    let (r, k) = (Reference, Simd::default());
    let (slow, fast) = (r.fold_tiles(shape, &data, &low), k.fold_tiles(shape, &data, &low));
    let whole = r.fold_matrix(shape, &data, &all, 9);
    assert_eq!(r.sum_tiles(shape, &slow, &high, 9), whole);
    let sum = k.sum_tiles(shape, &fast, &high, 9);
    assert_eq!(CommitKernels::to_host(&k, &sum), whole);
    let values = r.tile_values(&slow, &point[8..8 + a]);
    assert_eq!(k.tile_values(&fast, &point[8..8 + a]), values);
    // A tile's value from its definition.
    let (nt, kt) = (3, 2);
    let mut expected = QM31::default();
    for (n, &x) in low.iter().enumerate() {
        for (i, &y) in eq_vector(&point[8..8 + a]).iter().enumerate() {
            let w = data[((nt << b) + n) * inputs + (kt << a) + i];
            expected += x * y * QM31::from(obelysk_protocol::field::signed(i64::from(w)));
        }
    }
    assert_eq!(values[nt * (inputs >> a) + kt], expected);
}
