//! Forged attention of decoders: keys that a row must not see, positions, rotations, groups, caps, norms of heads.

use crate::decoder_forger::{Case, ROWS, Stage, cell, forger, full, normed, place, plain, redo, redo_seeing, refused, scores};
use crate::harness::{EQUATIONS, Forger};
use obelysk_model::infer::decoder::{self, DecoderTrace, RmsTrace, key_of};
use obelysk_model::tables::exp_ref;
use obelysk_protocol::circuit::descriptor::Rotated;
use obelysk_protocol::circuit::input::TokenRow;
use obelysk_protocol::circuit::rotary::{coefficients, cos_sin};
use obelysk_protocol::verifier::VerifyError;

/// Column and row of a pair: `{score}.{r}.{kv_hi}.{what}` at (query, kv_lo, key).
fn pair(case: &Case, (hh, i, j): (usize, usize, usize), what: &str) -> (String, usize) {
    let (d, keys) = (case.d(), case.d().kv_heads as usize);
    let (r, kv, b) = (hh / keys, hh % keys, d.kv_low_log());
    let (hi, lo) = (kv >> b, kv & ((1 << b) - 1));
    (format!("score.{r}.{hi}.{what}"), i + ROWS * (lo + (j << b)))
}

/// A run of layer `l` in which query `i` of head `hh` also sees key `j`, with the pair's probabilities committed.
fn sees_more(case: &'static Case, l: usize, at: (usize, usize, usize)) -> Forger {
    let mut t = case.honest.clone();
    redo_seeing(case, &mut t, l, Stage::Scores, &|hh, i, j| case.visible(l, i, j) || (hh, i, j) == at);
    let mut f = forger(case, &t);
    let (hh, i, j) = at;
    let x = &t.layers[l];
    let index = x.lambda[hh * ROWS + i] - key_of(case.layer(l), x.scores[(hh * ROWS + j) * ROWS + i]);
    let tables = exp_ref();
    let [p, before] = [&tables.0, &tables.1].map(|t| i64::from(t.get(index as usize).copied().unwrap_or(0)));
    assert!(p > 0, "the pair has no mass: choose another");
    for (what, value, limb) in [("p", p, "d"), ("p_before", before, "e")] {
        let (name, row) = pair(case, at, what);
        f.add(l + 1, &name, row, value);
        // The row's sum has what the column has.
        let (score, b) = (name.split('.').collect::<Vec<_>>(), case.d().kv_low_log());
        let soft = format!("softmax.{}.{}.{limb}", score[1], score[2]);
        let row = row & ((ROWS << b) - 1);
        let [low, high] = [0, 1].map(|k| f.get(l + 1, &format!("{soft}{k}"), row));
        let total = low + (high << 16) + if what == "p" { -value } else { value };
        f.add(l + 1, &format!("{soft}0"), row, (total & 0xffff) - low);
        f.add(l + 1, &format!("{soft}1"), row, (total >> 16) - high);
    }
    f.recount(l + 1);
    f
}

/// A key that some head of row `i` would give mass to.
fn attractive(case: &'static Case, l: usize, i: usize, j: usize) -> (usize, usize, usize) {
    let spec = case.layer(l);
    let t = &case.honest.layers[l];
    let key = |hh: usize, j: usize| key_of(spec, t.scores[(hh * ROWS + j) * ROWS + i]);
    let most = (0..case.d().heads as usize).max_by_key(|&hh| key(hh, j) - key(hh, i)).unwrap();
    (most, i, j)
}

#[test]
fn forging_what_a_row_sees_is_refused() {
    // Rows 0..4 are one sequence, 4..6 the next, 6..8 padding; the second layer's window is 2.
    let pairs = [
        ("a later key", 0, 1, 2),
        ("a later key in the window", 1, 2, 3),
        ("a key before the window", 1, 3, 0),
        ("another sequence's key", 0, 4, 1),
        ("another sequence's key, next to it", 1, 4, 3),
        ("a padding key", 0, 5, 6),
        ("a padding row's own sight", 0, 6, 0),
        ("a padding row's neighbour", 1, 7, 6),
    ];
    for (about, l, i, j) in pairs {
        let case = plain();
        assert!(!case.visible(l, i, j), "{about}");
        let at = attractive(case, l, i, j);
        let f = sees_more(case, l, at);
        let (name, _) = pair(case, at, "masked_p");
        let broken = [format!("{} {name}", l + 1), format!("{} {name}_before", l + 1)];
        refused(case, &f, &[&broken[0], &broken[1]], l + 1, EQUATIONS);
    }
}

#[test]
fn forging_away_a_visible_key_is_refused() {
    // The row's own first key is left out; its index is then wherever the prover likes, but the lookup is on.
    let (case, l) = (plain(), 0);
    let mut t = case.honest.clone();
    redo_seeing(case, &mut t, l, Stage::Scores, &|hh, i, j| case.visible(l, i, j) && (hh, i, j) != (1, 2, 0));
    let mut f = forger(case, &t);
    for (what, limb, sign) in [("p", "d", 1), ("p_before", "e", -1)] {
        let (name, row) = pair(case, (1, 2, 0), what);
        let value = f.get(1, &name, row);
        f.add(1, &name, row, -value);
        let soft = format!("softmax.{}.{limb}", &name["score.".len()..name.len() - what.len() - 1]);
        let at = row & ((ROWS << case.d().kv_low_log()) - 1);
        let [low, high] = [0, 1].map(|k| f.get(1, &format!("{soft}{k}"), at));
        let total = low + (high << 16) + sign * value;
        f.add(1, &format!("{soft}0"), at, (total & 0xffff) - low);
        f.add(1, &format!("{soft}1"), at, (total >> 16) - high);
    }
    f.recount(1);
    refused(case, &f, &["1 in exp"], 1, VerifyError::Lookups);
}

/// A run whose first layer turns by the positions of `rows`.
fn turned_by(case: &'static Case, change: impl Fn(usize, &mut TokenRow)) -> DecoderTrace {
    let mut rows = case.input.rows();
    rows.iter_mut().enumerate().for_each(|(i, row)| change(i, row));
    let mut t = case.honest.clone();
    let w = &case.toy.model.weights.segments[1];
    t.layers[0] = decoder::layer(case.d(), case.layer(0), w, t.entering(1), &rows, ROWS).unwrap();
    redo(case, &mut t, 0, Stage::Out);
    t
}

#[test]
fn forging_positions_is_refused() {
    for case in [plain(), full()] {
        let table = format!("1 in r{}", case.layer(0).q.rotary.shift);
        let honest = turned_by(case, |_, _| ());
        assert!(honest == case.honest);
        let shifted = turned_by(case, |_, row| row.position += 1);
        let not_restarting = turned_by(case, |i, row| row.position = i as u32);
        let swapped = turned_by(case, |i, row| row.position = if i < 2 { 1 - row.position } else { row.position });
        for t in [shifted, not_restarting, swapped] {
            refused(case, &forger(case, &t), &[&table], 1, VerifyError::Lookups);
        }
    }
}

#[test]
fn forging_a_rotated_value_is_refused() {
    for case in [plain(), full()] {
        let table = format!("1 in r{}", case.layer(0).q.rotary.shift);
        for (queries, delta) in [(true, 1), (true, -1), (false, 1), (false, -1)] {
            let mut t = case.honest.clone();
            let x = &mut t.layers[0];
            let rot = if queries { &mut x.q.rot } else { &mut x.k.rot };
            rot[3 * ROWS + 2] += delta;
            redo(case, &mut t, 0, Stage::Turned);
            refused(case, &forger(case, &t), &[&table], 1, VerifyError::Lookups);
        }
    }
}

#[test]
fn forging_swapped_halves_is_refused() {
    // Both of queries and keys, so that no score changes.
    for case in [plain(), full()] {
        let table = format!("1 in r{}", case.layer(0).q.rotary.shift);
        let mut t = case.honest.clone();
        let x = &mut t.layers[0];
        for rot in [&mut x.q.rot, &mut x.k.rot] {
            let half = rot.len() / 2;
            rot.rotate_left(half);
        }
        redo(case, &mut t, 0, Stage::Turned);
        assert!(t.layers[0].scores == case.honest.layers[0].scores);
        refused(case, &forger(case, &t), &[&table], 1, VerifyError::Lookups);
    }
}

#[test]
fn forging_the_key_head_of_a_group_is_refused() {
    // Member 1 of each group scores against the other key head.
    for (case, broken) in [(plain(), "1 score.1.acc"), (full(), "1 score.1.acc")] {
        let keys = case.d().kv_heads as usize;
        let mut t = case.honest.clone();
        let x = &t.layers[0];
        let other = |hh: usize| if hh / keys == 1 { (hh + 1) % keys } else { hh % keys };
        let wrong = scores(case.d(), (&x.q.rot, &x.k.rot), &other);
        assert!(wrong != x.scores);
        t.layers[0].scores = wrong;
        redo(case, &mut t, 0, Stage::Scores);
        refused(case, &forger(case, &t), &[broken], 1, EQUATIONS);
    }
}

#[test]
fn forging_the_value_of_another_key_head_is_refused() {
    let case = plain();
    let (d, keys) = (case.d(), case.d().kv_heads as usize);
    let mut t = case.honest.clone();
    let x = &mut t.layers[0];
    // What head 0 mixes is exchanged with what head 1 of the same member mixes: members 0 of all parts.
    for c in 0..d.head_dim as usize {
        let [a, b] = [0, 1].map(|hh| place(d, d.heads as usize, d.part_log(), hh, c) * ROWS);
        (0..ROWS).for_each(|i| (x.mix_acc.swap(a + i, b + i), x.mix.swap(a + i, b + i)).0);
    }
    assert_eq!(keys, 2);
    redo(case, &mut t, 0, Stage::Mix);
    refused(case, &forger(case, &t), &["1 mix.0.0.acc", "1 mix.1.0.acc", "1 mix.2.0.acc"], 1, EQUATIONS);
}

#[test]
fn forging_a_capped_score_is_refused() {
    // The table's value one lower, the index one higher: softmax and all that follows is honest for it.
    let (case, at) = (full(), (1, 2, 1));
    let mut f = forger(case, &case.honest);
    let (cap, row) = pair(case, at, "cap");
    f.add(1, &cap, row, -1);
    f.add(1, &pair(case, at, "idx").0, row, 1);
    f.recount(1);
    let forged = f.prove_with(1, &|_| &crate::harness::Honest);
    assert!(forged.broken.contains(&"1 in cap".to_owned()), "{:?}", forged.broken);
    let index = cap.replace("cap", "index");
    assert!(!forged.broken.contains(&format!("1 {index}")), "{:?}", forged.broken);
    assert_eq!(crate::decoder_forger::verdict(case, &forged.proof), crate::harness::inside(1, VerifyError::Lookups));
    // Or the index as it was: then the equation between them is what breaks.
    let mut f = forger(case, &case.honest);
    f.add(1, &pair(case, at, "idx").0, row, 1);
    f.recount(1);
    let forged = f.prove_with(1, &|_| &crate::harness::Honest);
    assert!(forged.broken.contains(&format!("1 {index}")), "{:?}", forged.broken);
    assert!(crate::decoder_forger::verdict(case, &forged.proof).is_err());
}

/// Rotates `u` in proof order.
fn turn(case: &Case, spec: &Rotated, heads: usize, u: &[i16]) -> Vec<i32> {
    let (d, half) = (case.d(), case.d().head_dim as usize / 2);
    let rows = case.input.rows();
    let mut out = vec![0; u.len()];
    for (hh, j, t) in (0..heads).flat_map(|hh| (0..half).flat_map(move |j| (0..ROWS).map(move |t| (hh, j, t)))) {
        let position = u64::from(rows.get(t).map_or(0, |r| r.position));
        let (cos, sin) = cos_sin(position.wrapping_mul(d.frequencies[j]));
        let at = [j, j + half].map(|c| place(d, heads, d.pair_log(), hh, c) * ROWS + t);
        let gain = [j, j + half].map(|c| spec.rotary.gain[c]);
        let value = |half: usize, turn: i64| i64::from(coefficients(gain[half], turn)) * i64::from(u[at[half]]);
        let rounded = |total: i64| ((total + (1 << (spec.rotary.shift - 1))) >> spec.rotary.shift) as i32;
        out[at[0]] = rounded(value(0, cos) - value(1, sin));
        out[at[1]] = rounded(value(0, sin) + value(1, cos));
    }
    out
}

#[test]
fn forging_the_norm_of_another_head_is_refused() {
    // Every head is scaled by the row of the next one; with its own rows the recomputation gives the honest trace.
    let case = full();
    let (d, spec) = (case.d(), &case.layer(0).q);
    let heads = d.heads as usize;
    for shift in [0, 1] {
        let mut t = case.honest.clone();
        let x = &mut t.layers[0].q;
        let honest = x.norm.clone().unwrap();
        let mut norm = RmsTrace { x_scaled: vec![0; x.y.len()], u: vec![0; x.y.len()], ..RmsTrace::default() };
        for hh in 0..heads {
            for row in 0..ROWS {
                let cell = |c: usize| place(d, heads, d.pair_log(), hh, c) * ROWS + row;
                let cells: Vec<usize> = (0..d.head_dim as usize).map(cell).collect();
                let from = ((hh + shift) % heads) * ROWS + row;
                normed(&mut norm, &x.y, &cells, (honest.s[from], honest.sigma[from].into()));
            }
        }
        x.rot = turn(case, spec, heads, &norm.u);
        x.norm = Some(norm);
        redo(case, &mut t, 0, Stage::Turned);
        if shift == 0 {
            assert!(t == case.honest);
            continue;
        }
        let forged = forger(case, &t).prove_with(1, &|_| &crate::harness::Honest);
        assert!(!forged.broken.is_empty());
        // A row's sum of squares is not its own: only the lines of the sum say so, or an element leaves its 16 bits.
        let square = |b: &String| b.starts_with("1 q.norm.") && b.contains(".square");
        assert!(forged.broken.iter().any(square), "{:?}", forged.broken);
        assert!(
            forged.broken.iter().all(|b| square(b) || b.starts_with("1 in ") || b.ends_with(".shift")),
            "{:?}",
            forged.broken
        );
        assert!(crate::decoder_forger::verdict(case, &forged.proof).is_err());
    }
}

#[test]
fn forging_a_limb_of_a_head_norm_is_refused() {
    let case = full();
    let name = |b: usize| format!("q.norm.{b}.0.0");
    let f = forger(case, &case.honest);
    let (low, row) = cell(&f, 1, &name, 5);
    let high = format!("{}1", &low[..low.len() - 1]);
    // The carry moved between the limbs: the same value, a low limb beyond 8 bits.
    let mut moved = f.clone();
    moved.add(1, &low, row, 256);
    moved.add(1, &high, row, -1);
    moved.recount(1);
    let forged = moved.prove_with(1, &|_| &crate::harness::Honest);
    assert!(forged.broken.contains(&"1 in r8".to_owned()), "{:?}", forged.broken);
    assert!(!forged.broken.iter().any(|b| b.ends_with(".limbs")), "{:?}", forged.broken);
    assert!(crate::decoder_forger::verdict(case, &forged.proof).is_err());
    // Another value: the limbs are not the projection's.
    let mut other = f;
    let delta = if other.get(1, &low, row) == 255 { -1 } else { 1 };
    other.add(1, &low, row, delta);
    other.recount(1);
    let forged = other.prove_with(1, &|_| &crate::harness::Honest);
    assert!(forged.broken.iter().any(|b| b.ends_with(".limbs")), "{:?}", forged.broken);
    assert!(crate::decoder_forger::verdict(case, &forged.proof).is_err());
}
