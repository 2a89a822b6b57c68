//! Forged attention: normaliser, scores, exponentials, masks, the mix. Everything after the cheat is honest for it.

use crate::harness::{EQUATIONS, Forger, IDS, refused, toy};
use crate::tail::{From, redo};
use obelysk_model::infer::{self, ModelTrace};
use obelysk_model::toy::encoder;
use obelysk_protocol::circuit::exp_tables;
use obelysk_protocol::verifier::VerifyError;

/// Segment of the first layer.
const S: usize = 1;
/// Tokens with padding.
const TP: usize = 4;
/// Channels per head; one head is one block.
const DIM: usize = 4;

fn trace() -> ModelTrace {
    infer::run(&toy().model, &IDS).unwrap()
}

/// `p(head, i, j)` of a trace with one deviation.
type Weights<'a> = &'a dyn Fn(usize, usize, usize, i64) -> i64;

/// Recomputes the mix from the trace's scores and normalisers, with `change` applied to every weight, and what follows.
fn remix(t: &mut ModelTrace, change: Weights<'_>) {
    let g = encoder(&toy().model).layers[0].score_shift;
    let l = &mut t.layers[0];
    for c in 0..l.mix_acc.len() / TP {
        let head = c / DIM;
        for i in 0..TP {
            let p = |j: usize| {
                let visible = infer::visible(i, j, IDS.len());
                let score = l.scores[(head * TP + j) * TP + i];
                let p = if visible { infer::softmax_weight(l.lambda[head * TP + i], score, g) } else { 0 };
                change(head, i, j, p.into())
            };
            let acc: i64 = (0..TP).map(|j| p(j) * i64::from(l.v.y[c * TP + j])).sum();
            l.mix_acc[c * TP + i] = acc as i32;
            l.mix[c * TP + i] = ((acc + (1 << 13)) >> 14) as i16;
        }
    }
    redo(t, 0, From::Mix);
}

fn forger(t: &ModelTrace) -> Forger {
    Forger::of_trace(&toy().model, t, &IDS, &IDS)
}

/// Adds to a two-limb column and lets the limbs fall where they do.
fn add_limbs(f: &mut Forger, name: &str, row: usize, delta: i64) {
    let v = f.get(S, &format!("{name}0"), row) + (f.get(S, &format!("{name}1"), row) << 16) + delta;
    let old = (f.get(S, &format!("{name}0"), row), f.get(S, &format!("{name}1"), row));
    f.add(S, &format!("{name}0"), row, (v & 0xffff) - old.0);
    f.add(S, &format!("{name}1"), row, (v >> 16) - old.1);
}

#[test]
fn recomputing_the_honest_mix_changes_nothing() {
    let mut t = trace();
    remix(&mut t, &|_, _, _, p| p);
    assert!(t == trace());
}

#[test]
fn forging_lambda_by_one_is_refused() {
    // One too large: P' <= 2^18, so its excess is negative. One too small: P > 2^18, so its slack is negative.
    for (delta, table) in [(1, "1 in r4"), (-1, "1 in r3")] {
        let mut t = trace();
        t.layers[0].lambda[1] += delta;
        remix(&mut t, &|_, _, _, p| p);
        refused(&forger(&t), &[table], S, VerifyError::Lookups);
    }
}

#[test]
fn forging_a_row_sum_is_refused() {
    // The same cheats with limbs inside their windows: then the sums themselves are wrong.
    for (delta, name, equation) in [(1, "e", "1 softmax.0.above"), (-1, "d", "1 softmax.0.below")] {
        let mut t = trace();
        t.layers[0].lambda[1] += delta;
        remix(&mut t, &|_, _, _, p| p);
        let mut f = forger(&t);
        let v = f.get(S, &format!("softmax.0.{name}0"), 1) + (f.get(S, &format!("softmax.0.{name}1"), 1) << 16);
        add_limbs(&mut f, &format!("softmax.0.{name}"), 1, -v);
        f.recount(S);
        refused(&f, &[equation], S, EQUATIONS);
    }
}

#[test]
fn forging_an_index_is_refused() {
    // A key moved down by one step: idx + 1 and w - 2^g keep the score; (w, z) is then no row.
    let g = encoder(&toy().model).layers[0].score_shift;
    let (i, j) = (2usize, 0usize);
    let mut f0 = forger(&trace());
    let idx = f0.get(S, "score.1.idx", i + TP * j);
    let e = exp_tables();
    let (p, before) = (f0.get(S, "score.1.p", i + TP * j), f0.get(S, "score.1.p_before", i + TP * j));
    let (dp, db) = (i64::from(e.at[idx as usize + 1]) - p, i64::from(e.before[idx as usize + 1]) - before);
    let mut t = trace();
    remix(&mut t, &|h, a, b, p| if (h, a, b) == (1, i, j) { p + dp } else { p });
    f0 = forger(&t);
    f0.add(S, "score.1.idx", i + TP * j, 1);
    f0.add(S, "score.1.w", i + TP * j, -(1 << g));
    f0.add(S, "score.1.p", i + TP * j, dp);
    f0.add(S, "score.1.p_before", i + TP * j, db);
    add_limbs(&mut f0, "softmax.1.d", i, -dp);
    add_limbs(&mut f0, "softmax.1.e", i, db);
    f0.recount(S);
    let forged = f0.prove_with(S, &|_| &crate::harness::Honest);
    assert_eq!(forged.broken.first().map(String::as_str), Some("1 in over.7"));
    assert!(forged.broken.iter().all(|b| b.starts_with("1 in ")), "{:?}", forged.broken);
    assert_eq!(crate::harness::verdict(&forged.proof), crate::harness::inside(S, VerifyError::Lookups));
}

#[test]
fn forging_a_row_of_the_exponential_is_refused() {
    let (h, i, j) = (2usize, 1usize, 2usize);
    let mut t = trace();
    let lighter = |a, b, c, p: i64| if (a, b, c) == (h, i, j) { p - 1 } else { p };
    remix(&mut t, &lighter);
    let mut f = forger(&t);
    f.add(S, "score.2.p", i + TP * j, -1);
    add_limbs(&mut f, "softmax.2.d", i, 1);
    f.recount(S);
    refused(&f, &["1 in exp"], S, VerifyError::Lookups);
}

#[test]
fn forging_mass_on_a_masked_key_is_refused() {
    // Weight for the padding key 3, taken from the slack of the row sum.
    let f = forger(&trace());
    let slack = |h: usize, i: usize| f.get(S, &format!("softmax.{h}.d0"), i);
    let (h, i) = (0..3).flat_map(|h| (0..3).map(move |i| (h, i))).find(|&(h, i)| slack(h, i) > 0).unwrap();
    let mass = slack(h, i);
    let mut t = trace();
    remix(&mut t, &|a, b, c, p| if (a, b, c) == (h, i, 3) { p + mass } else { p });
    let mut f = forger(&t);
    f.add(S, &format!("score.{h}.p"), i + TP * 3, mass);
    add_limbs(&mut f, &format!("softmax.{h}.d"), i, -mass);
    f.recount(S);
    refused(&f, &[&format!("1 score.{h}.masked_p")], S, EQUATIONS);
}

#[test]
fn forging_lambda_with_mass_before_a_masked_key_is_refused() {
    // A larger Lambda passes if P' gets the missing mass where no lookup is active.
    let mut t = trace();
    t.layers[0].lambda[1] += 1;
    remix(&mut t, &|_, _, _, p| p);
    let mut f = forger(&t);
    let missing = -(f.get(S, "softmax.0.e0", 1) + (f.get(S, "softmax.0.e1", 1) << 16));
    assert!(missing > 0);
    f.add(S, "score.0.p_before", 1 + TP * 3, missing);
    add_limbs(&mut f, "softmax.0.e", 1, missing);
    f.recount(S);
    refused(&f, &["1 score.0.masked_p_before"], S, EQUATIONS);
}

#[test]
fn forging_the_attention_of_a_padding_query_is_refused() {
    // Query 3 is padding and sees itself alone: it must not look at token 0, nor look away from itself.
    let mut t = trace();
    let moved = |a, b, c, p: i64| match (a, b, c) {
        (0, 3, 0) => 1 << 17,
        (0, 3, 3) => p - (1 << 17),
        _ => p,
    };
    remix(&mut t, &moved);
    let mut f = forger(&t);
    f.add(S, "score.0.p", 3, 1 << 17);
    f.add(S, "score.0.p", 3 + TP * 3, -(1 << 17));
    f.recount(S);
    refused(&f, &["1 in exp", "1 score.0.masked_p"], S, VerifyError::Lookups);
}

#[test]
fn forging_the_mix_s_remainder_is_refused() {
    for delta in [1i64, -1] {
        let mut t = trace();
        t.layers[0].mix[6] += delta as i16;
        redo(&mut t, 0, From::Mix);
        let mut f = forger(&t);
        f.add(S, "mix.0.r", 6, -delta << 14);
        f.recount(S);
        refused(&f, &["1 in r14"], S, VerifyError::Lookups);
        let mut plain = forger(&t);
        plain.recount(S);
        refused(&plain, &["1 mix.acc"], S, EQUATIONS);
    }
}

#[test]
fn forging_a_score_is_refused() {
    // Another score for a visible pair, and softmax and all that follows honest for it.
    let g = encoder(&toy().model).layers[0].score_shift;
    let mut t = trace();
    t.layers[0].scores[TP + 2] -= 1 << g;
    let (lambda, keys): (i32, Vec<i32>) = {
        let l = &t.layers[0];
        let keys: Vec<i32> = (0..3).map(|j| l.scores[j * TP + 2]).collect();
        let mass = |lambda: i32| keys.iter().map(|&s| i64::from(infer::softmax_weight(lambda, s, g))).sum::<i64>();
        let start = keys.iter().map(|s| s >> g).max().unwrap();
        ((start..).find(|&x| mass(x) <= 1 << 18).unwrap(), keys.clone())
    };
    assert_eq!(keys.len(), 3);
    t.layers[0].lambda[2] = lambda;
    remix(&mut t, &|_, _, _, p| p);
    refused(&forger(&t), &["1 score.acc"], S, EQUATIONS);
}
