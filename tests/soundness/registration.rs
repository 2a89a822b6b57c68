//! Facts that no opening proves are refused where a model is registered; a descriptor that nobody checked is refused by the
//! verifier without a panic.

use crate::harness::{SECURITY, honest_proof, toy};
use obelysk_model::check::{CheckError, check};
use obelysk_model::toy::encoder_mut;
use obelysk_model::{IntegerModel, bounds};
use obelysk_protocol::circuit::descriptor::Encoder;
use obelysk_protocol::circuit::segment::log2_ceil;
use obelysk_protocol::field::P;
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::aggregate::verify;
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::soundness;
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::registration::{RegisterError, register};

/// Registration refuses the changed model, and this is what the check of its facts says.
fn refusal(change: impl Fn(&mut IntegerModel)) -> CheckError {
    let mut model = toy().model.clone();
    change(&mut model);
    let dir = tempfile::tempdir().unwrap();
    let found = check(&model.descriptor, &model.weights).unwrap_err();
    match register::<Blake2s, _>(&Reference, &model, SECURITY, [0; 32], dir.path(), &|_| ()) {
        Err(RegisterError::Check(e)) => assert_eq!(e, found),
        // Circuits are built before weights are read, and may refuse for the same fact.
        Err(RegisterError::Circuit(_)) => {}
        other => panic!("{:?}", other.map(|r| r.roots)),
    }
    found
}

#[test]
fn forging_weights_outside_their_range_is_refused() {
    assert!(matches!(refusal(|m| m.weights.segments[1].matrices[2].data[3] = -128), CheckError::Weight { index: 3, .. }));
    assert!(matches!(refusal(|m| m.weights.segments[0].matrices[0].data[1] = -128), CheckError::Weight { .. }));
    // 2^23, which is 1/256 mod p, has no encoding: weights are bytes from the file to the oracle.
    assert_eq!(size_of_val(&toy().model.weights.segments[1].matrices[0].data[0]), 1);
}

#[test]
fn forging_padding_of_the_vocabulary_is_refused() {
    let v = toy().model.descriptor.vocab() as usize;
    assert!(matches!(refusal(|m| m.weights.segments[0].matrices[0].data[v] = 1), CheckError::Padding { channel: 0, .. }));
}

#[test]
fn forging_a_row_bound_is_refused() {
    // All weights of a row at the limit and the smallest e: the accumulator could leave the requantisation's range.
    let heavy =
        |m: &mut IntegerModel, matrix: usize| m.weights.segments[1].matrices[matrix].data.iter_mut().for_each(|w| *w = 127);
    let limit = bounds::accumulator_limit(4);
    assert!(bounds::window_bound(&[127; 20], -32_768, 32_767) < limit, "the toy is too small to break a bound by weights alone");
    let wide = refusal(|m| {
        heavy(m, 5);
        m.descriptor.encoder_mut().expect("an encoder").layers[0].ffn_residual.mult[0] = i32::MAX;
    });
    assert!(matches!(wide, CheckError::Bound { channel: 0, .. }));
    assert!(matches!(refusal(|m| encoder_mut(m).layers[0].q.b[2] = i32::MAX), CheckError::Bound { channel: 2, .. }));
    assert!(matches!(refusal(|m| encoder_mut(m).layers[0].q.hi += 1), CheckError::Parameter { what: "window", .. }));
    assert!(matches!(refusal(|m| encoder_mut(m).embed.norm.eps = 1), CheckError::Parameter { what: "norm eps", .. }));
    assert!(matches!(refusal(|m| m.weights.segments[1].matrices.swap(0, 1)), CheckError::Order { .. }));
}

/// A row's L1 norm matters at widths where it can exceed the bound: checked on the bound itself.
#[test]
fn forging_a_row_of_large_l1_is_refused_by_the_bound() {
    for e in bounds::E_RANGE {
        let limit = bounds::accumulator_limit(e);
        let k = (limit / (127 * 32_768) + 1) as usize;
        assert!(bounds::window_bound(&vec![127; k], -32_768, 32_767) > limit);
        assert_eq!(bounds::window_bound(&vec![127; k], -32_768, 32_767), k as i64 * 127 * 32_768);
    }
}

#[test]
fn the_toy_s_security_is_what_its_parameters_say() {
    let accepted = verify::<Blake2s>(&toy().registered, honest_proof()).unwrap();
    assert!(accepted.security_bits < 32.0, "sixteen queries cannot give more: {}", accepted.security_bits);
    let mut standard = toy().registered.clone();
    standard.security = obelysk_protocol::verifier::registered::SecurityParams::standard(2);
    assert!(soundness::minimum(&soundness::budget(&standard, Mode::Forked, &crate::harness::honest().circuits)) >= 100.0);
}

#[test]
fn the_budget_counts_the_variables_of_the_boundary_point_itself() {
    let (model, circuits) = (&toy().registered, &crate::harness::honest().circuits);
    let vars = circuits[0].token_log + log2_ceil(model.descriptor.width() as usize);
    assert!(circuits.iter().all(|c| c.boundaries().iter().all(|side| [(0, 0), (vars, 1)].contains(side))));
    let bits = 4.0 * f64::from(P).log2() - (vars as f64).log2();
    let budget = soundness::budget(model, Mode::Forked, circuits);
    let boundary: Vec<f64> = budget.iter().filter(|e| e.challenge.starts_with("boundary point")).map(|e| e.bits).collect();
    assert_eq!(boundary, vec![bits; circuits.len()]);
}

type Change = fn(&mut Encoder);

/// Changes of single descriptor fields to values that no registration would let through.
const WILD: &[(&str, Change)] = &[
    ("embed.shift 0", |d| d.embed.shift = 0),
    ("embed.shift 255", |d| d.embed.shift = 255),
    ("score_shift 0", |d| d.layers[0].score_shift = 0),
    ("score_shift 12", |d| d.layers[0].score_shift = 12),
    ("score_shift 255", |d| d.layers[0].score_shift = 255),
    ("q.e 0", |d| d.layers[0].q.e = 0),
    ("q.k 0", |d| d.layers[0].q.k = 0),
    ("q.k 255", |d| d.layers[0].q.k = 255),
    ("up.k 40", |d| d.layers[0].up.k = 40),
    ("q.lo", |d| d.layers[0].q.lo = i32::MIN),
    ("q.hi", |d| d.layers[0].q.hi = i32::MIN),
    ("v.hi < lo", |d| (d.layers[0].v.lo, d.layers[0].v.hi) = (5, -5)),
    ("residual shift 0", |d| d.layers[0].attn_residual.shift = 0),
    ("residual shift 64", |d| d.layers[0].attn_residual.shift = 64),
    ("residual gain", |d| d.layers[0].attn_residual.gain = vec![]),
    ("eps 0", |d| d.embed.norm.eps = 0),
    ("eps max", |d| d.embed.norm.eps = u64::MAX),
    ("activation", |d| d.layers[0].activation.truncate(5)),
    ("width 0", |d| d.width = 0),
    ("width max", |d| d.width = u32::MAX),
    ("heads 0", |d| d.heads = 0),
    ("head_dim 0", |d| d.head_dim = 0),
    ("ffn 0", |d| d.ffn = 0),
    ("ffn large", |d| d.ffn = 1 << 30),
    ("vocab max", |d| d.vocab = u32::MAX),
    ("tiles 200", |d| (d.tile_k_log, d.tile_n_log) = (200, 100)),
    ("tile 70", |d| d.tile_k_log = 70),
    ("row_log 0", |d| d.row_log = 0),
    ("row_log 200", |d| d.row_log = 200),
    ("blowup 0", |d| d.blowup_log = 0),
    ("blowup 200", |d| d.blowup_log = 200),
    ("no layers", |d| d.layers.clear()),
];

#[test]
fn a_wild_descriptor_is_refused_without_a_panic() {
    let mut panicked = Vec::new();
    for (name, change) in WILD {
        let mut model = toy().registered.clone();
        change(model.descriptor.encoder_mut().expect("an encoder"));
        model.roots.truncate(model.descriptor.encoder().expect("an encoder").layers.len() + 1);
        model.roots.push(None);
        let mut proof = honest_proof().clone();
        proof.header.model_id = model.model_id::<Blake2s>();
        proof.header.roots.truncate(model.roots.len());
        proof.header.boundaries.truncate(model.roots.len() - 1);
        match std::panic::catch_unwind(|| verify::<Blake2s>(&model, &proof).is_err()) {
            Ok(refused) => assert!(refused, "{name}"),
            Err(_) => panicked.push(*name),
        }
    }
    assert_eq!(panicked, [""; 0], "the verifier panics on these descriptors");
}

#[test]
fn a_model_that_no_circuit_takes_is_not_registered() {
    let register_with = |change: &dyn Fn(&mut Encoder)| {
        let mut model = toy().model.clone();
        change(model.descriptor.encoder_mut().expect("an encoder"));
        let dir = tempfile::tempdir().unwrap();
        register::<Blake2s, _>(&Reference, &model, SECURITY, [0; 32], dir.path(), &|_| ())
    };
    assert!(register_with(&|_| ()).is_ok());
    assert!(matches!(register_with(&|d| d.embed.shift = 7), Err(RegisterError::Circuit(_))));
    for g in 1..=12u8 {
        let outcome = register_with(&|d: &mut Encoder| {
            let q = bounds::score_window(d.head_dim, g);
            let l = &mut d.layers[0];
            l.score_shift = g;
            for r in [&mut l.q, &mut l.k] {
                (r.lo, r.hi) = (-q, q);
                r.b = r.b.iter().map(|b| b % 1024).collect();
                r.m = r.m.iter().map(|m| m % 60 + 1).collect();
                r.k = 15;
            }
        });
        assert_eq!(outcome.is_ok(), g <= 7, "score shift {g}: {:?}", outcome.err());
        // Lambda is at least the largest score and at most 4096 ln 512 above it; its window ends at 2^(29 - g).
        let q = i64::from(bounds::score_window(4, g));
        assert!(g > 7 || ((4 * q * q) >> g) + 25_600 < 1 << (29 - g), "a score leaves lambda's window at shift {g}");
    }
}
