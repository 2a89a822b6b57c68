//! Forged layers of decoders: norms, the gated product, two limbs, branches, the embedding, boundaries.

use crate::decoder_forger::{Case, ROWS, Stage, branch, cell, forger, full, plain, redo, refused, rms, verdict};
use crate::harness::{EQUATIONS, Forger, Honest, inside};
use obelysk_model::infer::decoder::{self, DecoderLayerTrace, DecoderTrace};
use obelysk_model::toy::decoder_of;
use obelysk_model::weights::DecoderSlots;
use obelysk_protocol::circuit::input::TokenRow;
use obelysk_protocol::field::signed;
use obelysk_protocol::verifier::VerifyError;

/// A run with its first layer changed at a stage, and everything after that honest for it.
fn changed(case: &Case, stage: Stage, change: impl Fn(&mut DecoderLayerTrace)) -> DecoderTrace {
    let mut t = case.honest.clone();
    change(&mut t.layers[0]);
    redo(case, &mut t, 0, stage);
    t
}

#[test]
fn forging_sigma_is_refused() {
    for (case, nudge) in [(plain(), 1), (plain(), -1), (full(), 1), (full(), -1)] {
        let eps = case.layer(0).ffn_norm.eps;
        let t = changed(case, Stage::Gate, |x| x.ffn_norm = rms(&x.attn.x, eps, nudge));
        let forged = forger(case, &t).prove_with(1, &|_| &Honest);
        assert!(forged.broken.contains(&"1 in reciprocal".to_owned()), "{:?}", forged.broken);
        let inside_norm = |b: &String| b.starts_with("1 in ") || b.starts_with("1 ffn_norm.");
        assert!(forged.broken.iter().all(inside_norm), "{:?}", forged.broken);
        assert_eq!(verdict(case, &forged.proof), inside(1, VerifyError::Lookups));
    }
}

#[test]
fn forging_a_sum_of_squares_is_refused() {
    // Without its epsilon, and with a larger one.
    for (case, eps) in [(plain(), 0), (plain(), 1 << 20), (full(), 0), (full(), 1 << 40)] {
        let t = changed(case, Stage::Gate, |x| x.ffn_norm = rms(&x.attn.x, eps, 0));
        let forged = forger(case, &t).prove_with(1, &|_| &Honest);
        assert!(!forged.broken.is_empty());
        assert!(forged.broken.iter().all(|b| b.starts_with("1 ffn_norm.square")), "{:?}", forged.broken);
        assert_eq!(verdict(case, &forged.proof), inside(1, EQUATIONS));
    }
}

#[test]
fn forging_a_gated_product_is_refused() {
    for case in [plain(), full()] {
        let (spec, ffn) = (case.layer(0), case.d().ffn as usize);
        let h = &case.honest.layers[0];
        let block = |k: usize| k / (ROWS << ffn.trailing_zeros());
        // A gate without the clip of up: the product of the value before it.
        let unclipped = |k: usize| (i64::from(h.up.acc[k]) + (1 << (spec.up.e - 1))) >> spec.up.e;
        if let Some(k) = (0..h.act.len()).find(|&k| h.act[k] != 0 && unclipped(k) != i64::from(h.up.t_hat[k])) {
            let t = changed(case, Stage::Product, |x| x.product.acc[k] = (i64::from(x.act[k]) * unclipped(k)) as i32);
            refused(case, &forger(case, &t), &[&format!("1 product.{}.acc", block(k))], 1, EQUATIONS);
        }
        // The product's own value one more than its rounding.
        let k = (0..h.act.len()).find(|&k| h.act[k] != 0 && h.product.t_hat[k].abs() < 30_000).unwrap();
        let t = changed(case, Stage::Hidden, |x| x.product.t_hat[k] += 1);
        refused(case, &forger(case, &t), &[&format!("1 product.{}.h", block(k))], 1, EQUATIONS);
        // Another row of the activation.
        let y = (h.gate.y[k] + (1 << 15)) as usize;
        let other = (0..1 << 16).map(|d| spec.activation[(y + d) % (1 << 16)]).find(|&g| g != h.act[k]).unwrap();
        let t = changed(case, Stage::Act, |x| x.act[k] = other);
        refused(case, &forger(case, &t), &["1 in activation"], 1, VerifyError::Lookups);
    }
}

#[test]
fn a_toy_s_up_projection_saturates_somewhere() {
    // What `forging_a_gated_product_is_refused` needs to meet the clip at all.
    let clipped = |case: &Case| case.honest.layers[0].up.t_hat.iter().filter(|t| **t == i16::MAX || **t == i16::MIN).count();
    assert!(clipped(plain()) + clipped(full()) > 0);
}

#[test]
fn forging_limbs_of_a_product_is_refused() {
    // The same value in other limbs, the accumulators of both limbs and their witnesses honest for them.
    let case = full();
    let down = &case.toy.model.weights.segments[1].matrices[DecoderSlots::new(case.d()).down];
    let k = 5 * ROWS + 1;
    let t = changed(case, Stage::Down, |x| {
        for n in 0..down.outputs {
            let w = i32::from(down.row(n)[k / ROWS]);
            x.down.acc[0][n * ROWS + k % ROWS] += 256 * w;
            x.down.acc[1][n * ROWS + k % ROWS] -= w;
        }
    });
    let mut f = forger(case, &t);
    for (limb, delta) in [(0, 256), (1, -1)] {
        let (name, row) = cell(&f, 1, &|b| format!("product.{b}.h{limb}"), k);
        f.add(1, &name, row, delta);
    }
    f.recount(1);
    refused(case, &f, &["1 in r8"], 1, VerifyError::Lookups);
}

/// A cell of `o` in two limbs for which a test holds: r, d, h.
fn wide_cell(f: &Forger, fits: impl Fn(i64, i64, i64) -> bool) -> (usize, [String; 4]) {
    let names = ["r", "d", "h", "tau"].map(|c| format!("o.0.{c}"));
    let value = |c: usize, row: usize| f.get(1, &names[c], row);
    let row = (0..16 * ROWS).find(|&row| fits(value(0, row), value(1, row), value(2, row))).unwrap();
    (row, names)
}

#[test]
fn forging_a_second_witness_of_two_limbs_is_refused() {
    let case = full();
    let e = case.layer(0).o.e;
    let unit = 1i64 << (e - 8);
    let honest = forger(case, &case.honest);
    let attempt = |changes: [i64; 4], fits: &dyn Fn(i64, i64, i64) -> bool, broken: &[&str], reason: VerifyError| {
        let mut f = honest.clone();
        let (row, names) = wide_cell(&f, fits);
        for (name, delta) in names.iter().zip(changes) {
            f.add(1, name, row, delta);
        }
        f.recount(1);
        let forged = f.prove_with(1, &|_| &Honest);
        // What follows from t^ is not redone here: these attempts leave t^ alone unless they say so.
        assert_eq!(forged.broken, broken, "{changes:?}");
        assert_eq!(verdict(case, &forged.proof), inside(1, reason));
    };
    // d + 1 with the remainder adjusted: the second equation sees d.
    attempt([-256, 1, 0, 0], &|r, d, _| r >= 256 && d + 1 < unit, &["1 o.high"], EQUATIONS);
    // A whole unit of d against one of h: both equations hold, d leaves its window.
    attempt([0, unit, -1, 0], &|_, _, _| true, &[&format!("1 in r{}", e - 8)], VerifyError::Lookups);
    // h one more: the remainder leaves its window and the second equation fails.
    attempt([-(1 << e), 0, 1, 0], &|_, _, _| true, &[&format!("1 in r{e}"), "1 o.high"], VerifyError::Lookups);
    attempt([0, 0, 1, 0], &|_, _, _| true, &["1 o.low", "1 o.high"], EQUATIONS);
}

#[test]
fn forging_t_hat_of_two_limbs_is_refused() {
    // t^ of the down projection one more, and the residual stream honest for it.
    let case = full();
    let e = case.layer(0).down.e;
    let k = (0..case.honest.layers[0].down.t_hat.len()).find(|&k| case.honest.layers[0].down.t_hat[k].abs() < 30_000).unwrap();
    let t = changed(case, Stage::Down, |x| x.down.t_hat[k] += 1);
    let mut f = forger(case, &t);
    let at = |f: &Forger, c: &str| cell(f, 1, &|b| format!("down.{b}.{c}"), k);
    let (tau, row) = at(&f, "tau");
    f.add(1, &tau, row, 1);
    f.recount(1);
    refused(case, &f, &["1 down.high"], 1, EQUATIONS);
    // With h and the remainder following, only the remainder's window says no.
    for (c, delta) in [("h", 1), ("r", -(1i64 << e))] {
        let (name, row) = at(&f, c);
        f.add(1, &name, row, delta);
    }
    f.recount(1);
    refused(case, &f, &[&format!("1 in r{e}")], 1, VerifyError::Lookups);
}

#[test]
fn forging_a_branch_is_refused() {
    for case in [plain(), full()] {
        let spec = &case.layer(0).attn_branch;
        let input = case.honest.entering(1).to_vec();
        // The multiplier of another channel.
        let mut swapped = spec.clone();
        swapped.mult.swap(0, 1);
        let t = changed(case, Stage::Mid, |x| x.attn = branch(&swapped, &input, &x.o.t_hat));
        refused(case, &forger(case, &t), &["1 attn.x.0.sum"], 1, EQUATIONS);
        // The residual stream left behind.
        let t = changed(case, Stage::Mid, |x| x.attn = branch(spec, &vec![0; input.len()], &x.o.t_hat));
        refused(case, &forger(case, &t), &["1 attn.x.0.sum"], 1, EQUATIONS);
        // One more, taken from the dropped bits.
        let t = changed(case, Stage::Mid, |x| {
            x.attn.x[9] += 1;
            x.attn.rho[9] -= 1 << spec.shift;
        });
        refused(case, &forger(case, &t), &[&format!("1 in r{}", spec.shift)], 1, VerifyError::Lookups);
    }
}

#[test]
fn forging_the_norm_of_a_branch_is_refused() {
    let case = full();
    let spec = &case.layer(0).attn_branch;
    let input = case.honest.entering(1).to_vec();
    let without = |x: &mut DecoderLayerTrace, keep: bool| {
        let mut bare = spec.clone();
        bare.norm = None;
        let out = branch(&bare, &input, &x.o.t_hat);
        let norm = if keep { x.attn.norm.clone() } else { None };
        x.attn = decoder::BranchTrace { norm, ..out };
    };
    let t = changed(case, Stage::Mid, |x| without(x, true));
    refused(case, &forger(case, &t), &["1 attn.x.0.sum"], 1, EQUATIONS);
    // Another multiplier before the norm.
    let mut swapped = spec.clone();
    swapped.norm.as_mut().unwrap().mult.swap(2, 3);
    let t = changed(case, Stage::Mid, |x| x.attn = branch(&swapped, &input, &x.o.t_hat));
    refused(case, &forger(case, &t), &["1 attn.y.0.scale"], 1, EQUATIONS);
    // y one more, taken from the dropped bits.
    let shift = spec.norm.as_ref().unwrap().shift;
    let t = changed(case, Stage::Mid, |x| {
        let n = x.attn.norm.as_mut().unwrap();
        n.y[4] += 1;
        n.rho[4] -= 1 << shift;
        n.norm = rms(&n.y, spec.norm.as_ref().unwrap().norm.eps, 0);
        let mut bare = spec.clone();
        bare.norm = None;
        let out = branch(&bare, &input, &n.norm.u);
        x.attn = decoder::BranchTrace { norm: x.attn.norm.clone(), ..out };
    });
    refused(case, &forger(case, &t), &[&format!("1 in r{shift}")], 1, VerifyError::Lookups);
}

/// A run of other token rows.
fn of_rows(case: &Case, rows: &[TokenRow]) -> DecoderTrace {
    let mut t = case.honest.clone();
    t.embed = decoder::embed(case.d(), &case.toy.model.weights.segments[0], rows, ROWS).unwrap();
    t
}

#[test]
fn forging_the_embedding_is_refused() {
    for (case, broken) in [(plain(), &["0 embed.0.acc"][..]), (full(), &["0 embed.0.acc", "0 embed.1.acc"])] {
        let honest = case.input.rows();
        let mut other = honest.clone();
        other[1].id = (other[1].id + 1) % decoder_of(&case.toy.model).vocab;
        let mut swapped = honest.clone();
        let j = (1..honest.len()).find(|&j| honest[j].id != honest[0].id).unwrap();
        (swapped[0].id, swapped[j].id) = (honest[j].id, honest[0].id);
        // A padding row with mass.
        let mut longer = honest.clone();
        longer.push(TokenRow { id: 3, position: 2, start: 4 });
        for rows in [other, swapped, longer] {
            refused(case, &forger(case, &of_rows(case, &rows)), broken, 0, EQUATIONS);
        }
        let mut t = case.honest.clone();
        t.embed.x[11] += 1;
        t.embed.rho[11] -= 1 << case.d().embed.shift;
        refused(case, &forger(case, &t), &[&format!("0 in r{}", case.d().embed.shift)], 0, VerifyError::Lookups);
    }
    // The same entry in other limbs: each limb is its own matrix's.
    let case = full();
    let mut t = case.honest.clone();
    let k = (0..t.embed.a[0].len()).find(|&k| t.embed.a[0][k] < -127 + 1 && t.embed.a[1][k] > -128).unwrap_or(0);
    t.embed.a[0][k] += 255;
    t.embed.a[1][k] -= 1;
    let forged = forger(case, &t).prove_with(0, &|_| &Honest);
    assert!(["0 embed.0.acc", "0 embed.1.acc"].iter().all(|b| forged.broken.contains(&(*b).to_owned())), "{:?}", forged.broken);
    assert!(!forged.broken.contains(&"0 x.0.scale".to_owned()));
    assert!(verdict(case, &forged.proof).is_err());
}

/// Moves a carry between the two low limbs of a column pair, and carries on in the norm that reads it.
fn carried(f: &mut Forger, segment: usize, prefix: &str, row: usize, norm: Option<(&str, u64)>) {
    f.add(segment, &format!("{prefix}.0.0"), row, 256);
    f.add(segment, &format!("{prefix}.0.1"), row, -1);
    if let Some((norm, eps)) = norm {
        for t in 0..ROWS {
            let cells = (t..16 * ROWS).step_by(ROWS);
            let limbs: Vec<[i64; 3]> = cells.map(|k| [0, 1, 2].map(|l| f.get(segment, &format!("{prefix}.0.{l}"), k))).collect();
            let mut carry = 0;
            for line in 0..4usize {
                let sum: i64 = limbs
                    .iter()
                    .map(|z| {
                        (0..3)
                            .flat_map(|a| (0..3).map(move |b| (a, b)))
                            .filter(|p| p.0 + p.1 == line)
                            .map(|(a, b)| z[a] * z[b])
                            .sum::<i64>()
                    })
                    .sum();
                let digit = |j: usize| f.get(segment, &format!("{norm}.row.g{}", 4 * line + j), t) << (2 * j);
                let left = sum + carry + (eps >> (8 * line) & 255) as i64 - (0..4).map(digit).sum::<i64>();
                assert_eq!(left % 256, 0);
                carry = left >> 8;
                f.column(segment, &format!("{norm}.row.c{line}l"))[t] = signed(carry & 0xffff);
                f.column(segment, &format!("{norm}.row.c{line}h"))[t] = signed(carry >> 16);
            }
        }
    }
    f.recount(segment);
}

#[test]
fn forging_limbs_between_two_segments_is_refused() {
    // Every value is the same on both sides; only its limbs differ.
    let case = plain();
    let eps = case.layer(0).attn_norm.eps;
    let mut f = forger(case, &case.honest);
    carried(&mut f, 1, "input", 21, Some(("attn_norm", eps)));
    refused(case, &f, &["1 boundary_in.0", "1 boundary_in.1"], 1, EQUATIONS);
    let mut of_receiver = f.clone();
    of_receiver.from_receiver = true;
    refused(case, &of_receiver, &["0 boundary_out.0", "0 boundary_out.1"], 0, EQUATIONS);
    // The sender in the same limbs as the receiver: then its own windows refuse them.
    carried(&mut f, 0, "x", 21, None);
    refused(case, &f, &["0 in r8"], 0, VerifyError::Lookups);
}

#[test]
fn forging_the_residual_stream_between_segments_is_refused() {
    // The receiver works on another state; its run is honest for it.
    let case = plain();
    for l in 0..case.d().layers.len() {
        let mut t = case.honest.clone();
        let rows = case.input.rows();
        let x = if l == 0 { &mut t.embed.x } else { &mut t.layers[l - 1].ffn.x };
        x[13] ^= 1;
        let x = x.clone();
        t.layers[l] = decoder::layer(case.d(), case.layer(l), &case.toy.model.weights.segments[l + 1], &x, &rows, ROWS).unwrap();
        redo(case, &mut t, l, Stage::Out);
        let mut f = forger(case, &t);
        f.columns[..=l].clone_from_slice(&forger(case, &case.honest).columns[..=l]);
        refused(case, &f, &[&format!("{} boundary_in.0", l + 1)], l + 1, EQUATIONS);
        f.from_receiver = true;
        refused(case, &f, &[&format!("{l} boundary_out.0")], l, EQUATIONS);
    }
}
