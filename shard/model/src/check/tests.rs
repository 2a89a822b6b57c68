//! Every fact of the check, each broken once in an otherwise good model.

use super::*;
use crate::toy;
use crate::weights::IntegerModel;

/// Whether the check refuses the toy model after one change.
fn refused(change: impl FnOnce(&mut IntegerModel)) -> CheckError {
    let mut model = toy::model(4);
    change(&mut model);
    check(&model.descriptor, &model.weights).expect_err("the change must be refused")
}

#[test]
fn dimensions_are_checked() {
    for change in [
        (|m| toy::encoder_mut(m).vocab = 0) as fn(&mut IntegerModel),
        |m| toy::encoder_mut(m).heads = 4,
        |m| toy::encoder_mut(m).tile_k_log = 3,
        |m| toy::encoder_mut(m).row_log = 3,
        |m| toy::encoder_mut(m).blowup_log = 0,
        |m| toy::encoder_mut(m).name = "x".repeat(300),
        |m| toy::encoder_mut(m).tile_n_log = 200,
    ] {
        assert!(matches!(refused(change), CheckError::Dimensions(_)));
    }
}

#[test]
fn lengths_are_checked() {
    for change in [
        (|m| toy::encoder_mut(m).embed.scale.truncate(3)) as fn(&mut IntegerModel),
        |m| toy::encoder_mut(m).layers[0].q.m.truncate(3),
        |m| toy::encoder_mut(m).layers[0].v.b.push(1),
        |m| toy::encoder_mut(m).layers[1].activation.truncate(10),
        |m| toy::encoder_mut(m).layers[1].ffn_residual.gain.truncate(1),
        |m| toy::encoder_mut(m).output.bias_bits.truncate(1),
        |m| m.weights.segments.truncate(2),
        |m| m.weights.segments[1].matrices.truncate(5),
        |m| m.weights.segments[2].matrices[4].data.truncate(5),
        |m| m.weights.segments[0].matrices[0].inputs += 4,
        |m| toy::encoder_mut(m).vocab = 13,
    ] {
        assert!(matches!(refused(change), CheckError::Length { .. }));
    }
}

#[test]
fn parameters_are_checked() {
    for change in [
        (|m| toy::encoder_mut(m).layers[0].q.e = 13) as fn(&mut IntegerModel),
        |m| toy::encoder_mut(m).layers[0].k.k = 0,
        |m| toy::encoder_mut(m).layers[0].v.m[3] = 256,
        |m| toy::encoder_mut(m).layers[0].up.m[3] = 0,
        |m| toy::encoder_mut(m).layers[0].o.e = 0,
        |m| toy::encoder_mut(m).layers[0].score_shift = 0,
        |m| toy::encoder_mut(m).layers[0].q.hi -= 1,
        |m| toy::encoder_mut(m).layers[0].attn_residual.mult[0] = -1,
        |m| toy::encoder_mut(m).layers[0].attn_residual.shift = 8,
        |m| toy::encoder_mut(m).layers[0].attn_residual.norm.eps = 100,
        |m| toy::encoder_mut(m).embed.norm.eps = u64::MAX,
        |m| toy::encoder_mut(m).embed.scale[0] = 0,
        |m| toy::encoder_mut(m).output.gain_bits[0] = f32::NAN.to_bits(),
    ] {
        assert!(matches!(refused(change), CheckError::Parameter { .. }));
    }
}

#[test]
fn bounds_are_checked() {
    for change in [
        (|m| toy::encoder_mut(m).layers[0].q.b[2] = 1 << 28) as fn(&mut IntegerModel),
        |m| toy::encoder_mut(m).layers[0].v.b[2] = -(1 << 23),
        |m| toy::encoder_mut(m).layers[0].v.b[2] = i32::MIN,
        |m| (toy::encoder_mut(m).layers[0].up.m[2], toy::encoder_mut(m).layers[0].up.b[2]) = (255, 1 << 20),
        |m| toy::encoder_mut(m).layers[0].attn_residual.gain[0] = 9000,
        |m| toy::encoder_mut(m).layers[0].ffn_residual.bias[0] = i32::MIN,
        |m| toy::encoder_mut(m).embed.scale[0] = 1 << 20,
    ] {
        let error = refused(change);
        assert!(matches!(error, CheckError::Bound { .. }), "{error}");
    }
}

#[test]
fn weights_and_padding_are_checked() {
    assert!(matches!(refused(|m| m.weights.segments[1].matrices[2].data[5] = -128), CheckError::Weight { index: 5, .. }));
    assert!(matches!(refused(|m| m.weights.segments[1].matrices.swap(0, 1)), CheckError::Order { .. }));
    for row in [10, 11, 21, 23] {
        let error = refused(|m| m.weights.segments[0].matrices[0].data[row] = 1);
        assert!(matches!(error, CheckError::Padding { row: found, channel: 0, .. } if found == row));
    }
}

#[test]
fn long_rows_are_checked_against_the_accumulator() {
    // 127 * 32768 * 256 > 2^30: a row that long can leave the window of the output projection.
    let long = vec![127i8; 256];
    assert!(bounds::window_bound(&long, -32_768, 32_767) > bounds::accumulator_limit(8));
}
