//! Forged linear layers: second witnesses of the requantisation, other parameters, other tables, other weights.

use crate::harness::{EQUATIONS, Forger, IDS, honest, inside, refused, toy, verdict};
use obelysk_model::IntegerModel;
use obelysk_model::toy::{encoder, encoder_mut};
use obelysk_protocol::circuit::expr::Source;
use obelysk_protocol::field::{M31, signed};
use obelysk_protocol::verifier::VerifyError;

/// Segment of the first layer.
const S: usize = 1;

/// Rows of `name.*` blocks for which `ok` holds, as (block, row).
fn find(f: &Forger, name: &str, ok: impl Fn(&Forger, &str, usize) -> bool) -> (String, usize) {
    for block in 0..5 {
        let p = format!("{name}.{block}");
        for row in 0..16 {
            if ok(f, &p, row) {
                return (p, row);
            }
        }
    }
    panic!("no row of {name} serves");
}

/// The witness of a model that differs from the registered one by `change`, offered as the registered one's.
fn other(change: impl Fn(&mut IntegerModel)) -> Forger {
    let mut model = toy().model.clone();
    change(&mut model);
    Forger::of(&model, &IDS, &IDS)
}

/// `t^ m + b - 2^k y` of the requantised layer `name` in block `p`, channel by the row.
fn remainder(f: &Forger, p: &str, row: usize) -> (i64, i64, i64) {
    let spec = &encoder(&toy().model).layers[0];
    let (name, block) = p.split_once('.').unwrap();
    let r = match name {
        "q" => &spec.q,
        "k" => &spec.k,
        "v" => &spec.v,
        _ => &spec.up,
    };
    let c = block.parse::<usize>().unwrap() * 4 + row / 4;
    let get = |x: &str| f.get(S, &format!("{p}.{x}"), row);
    let t_hat = (1 - get("s")) * get("tau") + get("c");
    (t_hat * i64::from(r.m[c]) + i64::from(r.b[c]) - (get("y") << r.k), i64::from(r.m[c]), r.k.into())
}

#[test]
fn forging_tau_by_a_whole_turn_is_refused() {
    // A saturated row stays saturated, so t^ and all that follows are untouched: only tau's window is left to object.
    for turn in [1i64, -1] {
        let mut f = honest().clone();
        let (e, p, row) = ["q", "k", "v", "up"]
            .iter()
            .find_map(|name| {
                let spec = &encoder(&toy().model).layers[0];
                let e = if *name == "up" { spec.up.e } else { spec.q.e };
                let far = |f: &Forger, p: &str, r: usize| f.get(S, &format!("{p}.c"), r) * turn > 0;
                (0..if *name == "up" { 5 } else { 3 }).find_map(|b| {
                    let p = format!("{name}.{b}");
                    (0..16).find(|&r| far(&f, &p, r)).map(|r| (e, p.clone(), r))
                })
            })
            .expect("the toy saturates somewhere");
        f.add(S, &format!("{p}.v"), row, turn << (16 + e));
        f.add(S, &format!("{p}.tau"), row, -turn << 16);
        f.recount(S);
        refused(&f, &["1 in r16"], S, VerifyError::Lookups);
    }
}

#[test]
fn forging_a_shift_of_v_by_p_is_no_forgery_and_by_one_step_is_refused() {
    // v + 2^e, tau - 1 gives the same accumulator; pick a row whose y survives the change of t^.
    let mut f = honest().clone();
    let e = i64::from(encoder(&toy().model).layers[0].up.e);
    let (p, row) = find(&f, "up", |f, p, r| {
        let (rem, m, _) = remainder(f, p, r);
        f.get(S, &format!("{p}.s"), r) == 0 && rem >= m
    });
    f.add(S, &format!("{p}.v"), row, 1 << e);
    f.add(S, &format!("{p}.tau"), row, -1);
    f.recount(S);
    refused(&f, &["1 in r1.6"], S, VerifyError::Lookups);
    let mut same = honest().clone();
    same.add(S, &format!("{p}.v"), row, (1 << 31) - 1);
    assert_eq!(same.columns, honest().columns);
}

#[test]
fn forging_y_by_one_where_the_activation_is_flat_is_refused() {
    for delta in [1, -1] {
        let mut f = honest().clone();
        let table = &encoder(&toy().model).layers[0].activation;
        let at = |y: i64| table[(y + (1 << 15)) as usize];
        let (p, row) = find(&f, "up", |f, p, r| {
            let y = f.get(S, &format!("{p}.y"), r);
            (-32_000..32_000).contains(&y) && at(y) == at(y + delta)
        });
        f.add(S, &format!("{p}.y"), row, delta);
        f.recount(S);
        let bits = encoder(&toy().model).layers[0].up.k;
        refused(&f, &[&format!("1 in r{bits}")], S, VerifyError::Lookups);
    }
}

#[test]
fn forging_the_output_of_a_projection_is_refused() {
    // b + 2^k is y + 1 at every token of the channel, and everything after it is honest for that y.
    let f = other(|m| encoder_mut(m).layers[0].v.b[3] += 1 << encoder_mut(m).layers[0].v.k);
    let bits = encoder(&toy().model).layers[0].v.k;
    refused(&f, &[&format!("1 in r{bits}")], S, VerifyError::Lookups);
}

#[test]
fn forging_the_window_of_q_is_refused() {
    // y = Q + 1 with a remainder to match it: three lookups know better, the window's and the remainder's.
    let hi = i64::from(encoder(&toy().model).layers[0].q.hi);
    let mut f = honest().clone();
    let y = f.get(S, "q.0.y", 0);
    f.add(S, "q.0.y", 0, hi + 1 - y);
    f.recount(S);
    let forged = f.prove();
    assert!(
        forged.broken.contains(&"1 in r15".to_owned()) || forged.broken.contains(&"1 in r16".to_owned()),
        "{:?}",
        forged.broken
    );
    assert_eq!(verdict(&forged.proof), inside(S, VerifyError::Lookups));
}

#[test]
fn forging_a_row_of_the_activation_is_refused() {
    let honest_y = honest().get(S, "up.0.y", 0);
    let f = other(|m| encoder_mut(m).layers[0].activation[(honest_y + (1 << 15)) as usize] += 9);
    refused(&f, &["1 in activation"], S, VerifyError::Lookups);
}

#[test]
fn forging_the_residual_is_refused() {
    // x + 1 in one channel, and a remainder that leaves its range to hide it.
    let shift = encoder(&toy().model).layers[0].attn_residual.shift;
    let f = other(|m| encoder_mut(m).layers[0].attn_residual.bias[5] += 1 << shift);
    refused(&f, &["1 norm1.1.input"], S, EQUATIONS);
    let mut hidden = f;
    for t in 0..4 {
        hidden.add(S, "norm1.1.rho_w", 4 + t, -(1 << shift));
    }
    hidden.recount(S);
    refused(&hidden, &["1 in r5"], S, VerifyError::Lookups);
}

#[test]
fn forging_the_embedding_s_remainder_is_refused() {
    let shift = encoder(&toy().model).embed.shift;
    let f = other(|m| encoder_mut(m).embed.scale[0] += 1);
    refused(&f, &["0 norm.0.input"], 0, EQUATIONS);
    // Scaled to nothing: the remainder alone takes the difference.
    let mut f = honest().clone();
    f.add(0, "norm.0.rho_w", 0, 1 << shift);
    f.recount(0);
    refused(&f, &["0 in r5", "0 norm.0.input"], 0, VerifyError::Lookups);
}

#[test]
fn forging_the_rounding_shift_is_refused() {
    let f = other(|m| encoder_mut(m).layers[0].down.e = 5);
    let forged = f.prove();
    assert!(forged.broken.iter().any(|b| b == "1 in r1.6") && forged.broken.iter().any(|b| b == "1 down.acc"));
    assert_eq!(verdict(&forged.proof), inside(S, VerifyError::Lookups));
}

#[test]
fn forging_a_weight_is_refused() {
    // The witness is honest for a matrix that differs in one entry; the registered one gives another accumulator.
    for (m, name) in ["q", "k", "v", "o", "up", "down"].iter().enumerate() {
        let f = other(|x| {
            let w = &mut x.weights.segments[1].matrices[m].data[7];
            *w = if *w > 0 { *w - 1 } else { *w + 1 };
        });
        refused(&f, &[&format!("1 {name}.acc")], S, EQUATIONS);
    }
}

#[test]
fn forging_by_swapped_tiles_is_refused() {
    let f = other(|x| {
        let m = &mut x.weights.segments[1].matrices[0];
        for n in 0..4 {
            for k in 0..4 {
                m.data.swap(n * m.inputs + k, n * m.inputs + k + 4);
            }
        }
    });
    refused(&f, &["1 q.acc"], S, EQUATIONS);
}

#[test]
fn forging_an_unused_input_of_a_lookup_is_refused() {
    // s = 0 and c != 0, or s = 1 and c = 0, chosen so that t^ stays: (1 - s) tau + c with s' = 1, c' = tau.
    let mut f = honest().clone();
    let (p, row) = find(&f, "v", |f, p, r| f.get(S, &format!("{p}.s"), r) == 0 && f.get(S, &format!("{p}.tau"), r) != 0);
    let tau = f.get(S, &format!("{p}.tau"), row);
    f.column(S, &format!("{p}.s"))[row] = signed(1);
    f.column(S, &format!("{p}.c"))[row] = signed(tau);
    f.recount(S);
    refused(&f, &["1 in r1.6"], S, VerifyError::Lookups);
}

#[test]
fn every_committed_column_matters() {
    // No column is unconstrained: one cell of each, changed alone, breaks some equation or is a multiplicity.
    for s in 0..honest().circuits.len() {
        let c = &honest().circuits[s];
        for (i, col) in c.columns.iter().enumerate() {
            let id = i as u32;
            let uses = |e: &obelysk_protocol::circuit::expr::Expr| e.sources().contains(&Source::Col(id));
            let bound = c.lookups.iter().any(|l| l.inputs.iter().any(uses));
            let tied = c.constraints.iter().any(|e| uses(&e.expr));
            let claimed = c.relations.iter().any(|r| r.terms.iter().any(|t| t.1.blocks.contains(&id)));
            let counted = c.tables.iter().any(|t| t.multiplicity == id);
            assert!(bound || tied || claimed || counted, "{} is free", col.name);
            let changed: Vec<M31> = honest().columns[s][i].iter().map(|&v| v + signed(1)).collect();
            assert_ne!(changed, honest().columns[s][i]);
        }
    }
}
