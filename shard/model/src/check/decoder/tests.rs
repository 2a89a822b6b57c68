//! Every fact of the check of decoders, each broken once in an otherwise good model.

use super::super::check as register;
use super::*;
use crate::toy::{self, DecoderToy, decoder_mut as of};
use crate::weights::IntegerModel;
use obelysk_protocol::circuit::{self, PublicInput, Sequence};

/// Options that bring every optional part into the model.
const FULL: DecoderToy = DecoderToy {
    seed: 8,
    group: 3,
    kv_heads: 2,
    head_dim: 12,
    head_norm: true,
    cap: true,
    window: 3,
    branch_norm: true,
    limbs: 2,
    accumulators: 2,
    layers: 2,
    width: 16,
    ffn: 24,
    vocab: 21,
    positions: 64,
};

type Change = fn(&mut IntegerModel);

fn refused_of(toy: &DecoderToy, change: Change) -> CheckError {
    let mut model = toy::decoder(toy);
    change(&mut model);
    register(&model.descriptor, &model.weights).expect_err("the change must be refused")
}

fn plain(change: Change) -> CheckError {
    refused_of(&DecoderToy::default(), change)
}

fn full(change: Change) -> CheckError {
    refused_of(&FULL, change)
}

fn layer_of(m: &mut IntegerModel) -> &mut DecoderLayer {
    &mut of(m).layers[0]
}

/// Every combination of the options.
fn toys() -> impl Iterator<Item = DecoderToy> {
    let switches = (0..64u32).map(|bits| {
        let on = |i: u32| bits >> i & 1 == 1;
        let (head_norm, cap, branch_norm) = (on(0), on(1), on(2));
        let (limbs, accumulators) = (1 + u8::from(on(3)), 1 + u8::from(on(4)));
        let window = if on(5) { 2 } else { 0 };
        DecoderToy { seed: u64::from(bits), head_norm, cap, branch_norm, limbs, accumulators, window, ..DecoderToy::default() }
    });
    let shapes = [(1, 1, 8), (2, 3, 12), (3, 2, 24), (5, 1, 6), (7, 4, 10), (4, 6, 8)];
    let shaped = shapes.into_iter().map(|(group, kv_heads, head_dim)| DecoderToy { group, kv_heads, head_dim, ..FULL });
    switches.chain(shaped).chain([DecoderToy { layers: 6, ..FULL }, DecoderToy { layers: 6, ..DecoderToy::default() }])
}

#[test]
fn toys_pass_and_their_circuits_can_be_built() {
    let exp = circuit::exp_tables();
    for (i, toy) in toys().enumerate() {
        let model = toy::decoder(&toy);
        assert_eq!(register(&model.descriptor, &model.weights), Ok(()), "{toy:?}");
        if i % 8 != 0 && i < 64 {
            continue;
        }
        let sequences = vec![Sequence { prompt: 3, completion: 2 }, Sequence { prompt: 1, completion: 1 }];
        let input = PublicInput { ids: vec![1, 2, 3, 4, 5, 6, 7], sequences, output: Vec::new() };
        for segment in 0..toy.layers + 2 {
            let built = circuit::build(&model.descriptor, &exp, &input, segment);
            assert!(built.is_ok(), "{toy:?} segment {segment}: {:?}", built.err());
        }
    }
}

#[test]
fn dimensions_are_checked() {
    for change in [
        (|m| of(m).vocab = 0) as Change,
        |m| of(m).kv_heads = 0,
        |m| (of(m).heads, of(m).kv_heads) = (3, 2),
        |m| of(m).head_dim = 7,
        |m| of(m).head_dim = 1 << 13,
        |m| of(m).head_dim = 22,
        |m| of(m).width = 16_392,
        |m| of(m).positions = 1 << 21,
        |m| of(m).tile_k_log = 4,
        |m| of(m).tile_n_log = 3,
        |m| of(m).tile_n_log = 200,
        |m| of(m).row_log = 4,
        |m| of(m).row_log = 25,
        |m| of(m).blowup_log = 0,
        |m| of(m).embed.limbs = 3,
        |m| of(m).name = "x".repeat(300),
    ] {
        let error = plain(change);
        assert!(matches!(error, CheckError::Dimensions(_)), "{error}");
    }
}

#[test]
fn sums_of_squares_that_no_sigma_takes_are_refused() {
    let at = |width: usize, reach: i64, eps: u64| normed("norm", &NormSpec { eps }, &vec![reach; width]);
    // What bounds the residual stream is enough, whatever eps is, up to 15,000 channels; a wider model has to show more.
    assert_eq!(at(15_000, STREAM_TOP, bounds::NORM_EPS_MAX), Ok(()));
    assert_eq!(at(16_384, STREAM_TOP - (STREAM_TOP >> 8), bounds::NORM_EPS_MIN), Ok(()));
    let refused = at(16_384, STREAM_TOP, bounds::NORM_EPS_MIN).expect_err("more than sigma = 22 takes");
    assert!(matches!(refused, CheckError::Parameter { .. }), "{refused}");
    assert!(at(100, 100, bounds::NORM_EPS_MIN - 1).is_err() && at(100, 100, bounds::NORM_EPS_MAX + 1).is_err());
}

#[test]
fn lengths_are_checked() {
    for change in [
        (|m| of(m).frequencies.truncate(3)) as Change,
        |m| of(m).embed.scale.truncate(3),
        |m| of(m).head.mult.push(1),
        |m| layer_of(m).q.linear.m.truncate(3),
        |m| layer_of(m).k.rotary.gain.push(3),
        |m| layer_of(m).v.b.push(1),
        |m| layer_of(m).activation.truncate(10),
        |m| layer_of(m).attn_branch.mult.truncate(1),
        |m| layer_of(m).ffn_branch.norm.as_mut().unwrap().mult.truncate(1),
        |m| layer_of(m).score_cap.as_mut().unwrap().table.truncate(9),
        |m| m.weights.segments.truncate(2),
        |m| m.weights.segments[0].matrices.truncate(1),
        |m| m.weights.segments[1].matrices.truncate(5),
        |m| m.weights.segments[2].matrices[4].data.truncate(5),
        |m| m.weights.segments[3].matrices[0].outputs += 4,
    ] {
        let error = full(change);
        assert!(matches!(error, CheckError::Length { .. }), "{error}");
    }
}

#[test]
fn parameters_are_checked() {
    for change in [
        (|m| layer_of(m).q.linear.e = 13) as Change,
        |m| layer_of(m).k.linear.k = 0,
        |m| layer_of(m).v.m[3] = 256,
        |m| layer_of(m).gate.m[3] = 0,
        |m| layer_of(m).v.hi = 2048,
        |m| layer_of(m).v.lo = -2049,
        |m| layer_of(m).gate.hi = 32_766,
        |m| layer_of(m).q.linear.lo = -40_000,
        |m| layer_of(m).up.e = 3,
        |m| layer_of(m).product.e = 0,
        |m| layer_of(m).o.e = 8,
        |m| layer_of(m).down.e = 17,
        |m| layer_of(m).down.limbs = 3,
        |m| layer_of(m).o.limbs = 0,
        |m| layer_of(m).score_shift = 1,
        |m| layer_of(m).score_cap.as_mut().unwrap().e = 14,
        |m| layer_of(m).score_cap.as_mut().unwrap().table[7] = 1 << 20,
        |m| layer_of(m).q.rotary.shift = 16,
        |m| layer_of(m).q.rotary.gain[2] = (1 << 15) + 1,
        |m| layer_of(m).q.limit = 32_768,
        |m| layer_of(m).attn_branch.shift = 0,
        |m| layer_of(m).attn_branch.norm.as_mut().unwrap().shift = 8,
        |m| layer_of(m).activation[5] = 32_001,
        |m| layer_of(m).attn_norm.eps = 100,
        |m| layer_of(m).ffn_norm.eps = u64::MAX,
        |m| layer_of(m).ffn_branch.norm.as_mut().unwrap().norm.eps = 1,
        |m| layer_of(m).k.norm.as_mut().unwrap().norm.eps = 1,
        |m| of(m).head.norm.eps = 1,
        |m| of(m).head.linear.e = 13,
        |m| of(m).head.mult[20] = 0,
        |m| of(m).embed.scale[0] = 0,
        |m| of(m).embed.shift = 8,
    ] {
        let error = full(change);
        assert!(matches!(error, CheckError::Parameter { .. }), "{error}");
    }
    for change in [
        (|m| layer_of(m).score_shift = 0) as Change,
        |m| layer_of(m).score_shift = 8,
        |m| layer_of(m).o.e = 14,
        |m| layer_of(m).down.e = 0,
    ] {
        let error = plain(change);
        assert!(matches!(error, CheckError::Parameter { .. }), "{error}");
    }
}

#[test]
fn windows_are_checked() {
    for change in [
        (|m| layer_of(m).q.linear.b[2] = 1 << 23) as Change,
        |m| layer_of(m).k.linear.b[2] = -(1 << 23),
        |m| layer_of(m).q.linear.hi = 400,
        |m| layer_of(m).v.b[2] = 1 << 23,
        |m| layer_of(m).v.b[2] = i32::MIN,
        |m| (layer_of(m).gate.m[2], layer_of(m).gate.b[2]) = (255, 1 << 20),
    ] {
        let error = plain(change);
        assert!(matches!(error, CheckError::Bound { .. }), "{error}");
    }
}

#[test]
fn rotations_and_scores_are_checked() {
    for change in
        [(|m| layer_of(m).q.limit -= 1) as Change, |m| layer_of(m).k.rotary.gain[1] += 4000, |m| layer_of(m).q.rotary.shift -= 1]
    {
        for error in [plain(change), full(change)] {
            assert!(matches!(error, CheckError::Bound { .. }), "{error}");
        }
    }
    // Queries and keys alone fit their windows, their product does not.
    let error = plain(|m| {
        for r in [0, 1] {
            let l = layer_of(m);
            let r = if r == 0 { &mut l.q } else { &mut l.k };
            (r.linear.lo, r.linear.hi, r.linear.k) = (-16_384, 16_383, 9);
            r.linear.b.fill(1 << 8);
            (r.rotary.shift, r.limit) = (14, 23_300);
        }
    });
    assert!(matches!(&error, CheckError::Bound { at, .. } if at == "layer 0 scores"), "{error}");
    // What a cap's rounding represents is less than what an exponential's index does.
    let error = full(|m| {
        let l = layer_of(m);
        for r in [&mut l.q, &mut l.k] {
            r.rotary.gain.fill(16_600);
            (r.rotary.shift, r.limit) = (14, 32_767);
        }
    });
    assert!(matches!(&error, CheckError::Bound { at, .. } if at == "layer 0 scores"), "{error}");
    // Products that reach p although every rotated value is small.
    let error = full(|m| {
        let l = layer_of(m);
        l.q.rotary.gain.fill(30_000);
        (l.q.rotary.shift, l.q.limit) = (15, 30_000);
    });
    assert!(matches!(&error, CheckError::Bound { at, .. } if at == "layer 0 q"), "{error}");
}

#[test]
fn accumulators_are_checked() {
    // 127 on every weight and 16-bit inputs: 24 of them fit one accumulator, 600 do not, and fit two.
    let wide = DecoderToy { ffn: 600, ..DecoderToy::default() };
    let saturate: Change = |m| m.weights.segments[1].matrices.last_mut().unwrap().data.fill(127);
    let error = refused_of(&wide, saturate);
    assert!(matches!(&error, CheckError::Bound { at, .. } if at == "layer 0 down"), "{error}");
    for toy in [DecoderToy { accumulators: 2, ..wide }, DecoderToy::default()] {
        let mut model = toy::decoder(&toy);
        saturate(&mut model);
        assert_eq!(register(&model.descriptor, &model.weights), Ok(()));
    }
    let parts = |n: usize| vec![Matrix { name: String::new(), inputs: n, outputs: 1, data: vec![127; n] }; 2];
    let one = |e, n: usize| accumulated("o", Accumulated { e, limbs: 1 }, &parts(n), &vec![WORD; 2 * n]);
    let two = |e, n: usize| accumulated("o", Accumulated { e, limbs: 2 }, &parts(n), &vec![WORD; 2 * n]);
    assert!(one(8, 100).is_ok() && one(8, 130).is_err() && two(12, 130).is_ok());
    assert!(two(12, 1 << 14).is_ok() && two(12, 1 << 16).is_err());
    assert_eq!(accumulated("o", Accumulated { e: 4, limbs: 1 }, &parts(2), &[(-1, 3); 4]).unwrap(), [95]);
    let long = [Matrix { name: String::new(), inputs: 1 << 17, outputs: 1, data: vec![127; 1 << 17] }];
    assert!(readers_of_norm("q", &long, 8).is_err() && readers_of_norm("q", &parts(8192), 8).is_ok());
}

#[test]
fn gated_products_are_checked() {
    let error = plain(|m| {
        layer_of(m).activation[9] = 32_000;
        layer_of(m).product.e = 12;
    });
    assert!(matches!(&error, CheckError::Bound { at, .. } if at == "layer 0 product"), "{error}");
}

#[test]
fn the_residual_stream_never_leaves_its_window() {
    for change in [
        (|m| of(m).embed.scale[0] = 10_000) as Change,
        |m| of(m).embed.scale[0] = 100_000,
        |m| layer_of(m).attn_branch.mult[3] = 9000,
        |m| layer_of(m).attn_branch.mult[3] = i32::MIN,
        |m| layer_of(m).ffn_branch.mult[3] = -9000,
        |m| layer_of(m).ffn_branch.shift = 7,
        |m| layer_of(m).ffn_branch.norm.as_mut().unwrap().mult[0] = 1 << 13,
        |m| of(m).layers.iter_mut().for_each(|l| (l.attn_branch.mult[1], l.ffn_branch.mult[1]) = (2100, 2100)),
    ] {
        let error = full(change);
        assert!(matches!(error, CheckError::Bound { .. }), "{error}");
    }
    let mut model = toy::decoder(&FULL);
    of(&mut model).layers.iter_mut().for_each(|l| (l.attn_branch.mult[1], l.ffn_branch.mult[1]) = (1400, 1400));
    assert_eq!(register(&model.descriptor, &model.weights), Ok(()));
}

#[test]
fn weights_and_padding_are_checked() {
    assert!(matches!(plain(|m| m.weights.segments[1].matrices[2].data[5] = -128), CheckError::Weight { index: 5, .. }));
    assert!(matches!(plain(|m| m.weights.segments[1].matrices.swap(0, 1)), CheckError::Order { .. }));
    assert!(matches!(full(|m| m.weights.segments[0].matrices.swap(0, 1)), CheckError::Order { .. }));
    let error = full(|m| m.weights.segments[0].matrices[1].data[22] = 1);
    assert!(matches!(error, CheckError::Padding { row: 22, channel: 0, .. }), "{error}");
    let error = plain(|m| m.weights.segments[3].matrices[0].data[21 * 16 + 3] = 1);
    assert!(matches!(error, CheckError::Padding { row: 3, channel: 21, .. }), "{error}");
}
