//! Forged next tokens: other completions, forged gaps, other rows, the vocabulary's padding.

use crate::decoder_forger::{Case, ROWS, forger, full, offered, plain, refused, verdict};
use crate::harness::{EQUATIONS, Forger, Honest, inside};
use obelysk_model::infer::decoder::{self, DecoderTrace};
use obelysk_model::toy::{self, DecoderToy, decoder_mut};
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::field::signed;
use obelysk_protocol::verifier::VerifyError;
use std::sync::OnceLock;

/// Rows of the head: three checked, one padding.
const CHECKED: usize = 4;

fn head(case: &Case) -> usize {
    case.d().layers.len() + 1
}

/// A logit of checked row s, absent ones too.
fn logit(case: &Case, s: usize, j: usize) -> i64 {
    let t = i64::from(case.honest.head.linear.t_hat[j * CHECKED + s]);
    case.d().head.mult.get(j).map_or(-(1 << 24), |&m| i64::from(m) * t)
}

/// The statement with another last token of the second sequence, whose checked row is the last.
fn claiming(case: &Case, token: u32) -> PublicInput {
    let mut input = case.input.clone();
    *input.ids.last_mut().unwrap() = token;
    input
}

/// Sets the largest logit of a row and, with it, all its gaps as integers split in two limbs.
fn set_best(case: &Case, f: &mut Forger, s: usize, best: i64, target: usize, limbs: impl Fn(i64) -> (i64, i64)) {
    let l = head(case);
    let (low, high) = (best & 8191, best >> 13);
    f.column(l, "best.0")[s] = signed(low);
    f.column(l, "best.1")[s] = signed(high);
    let block = f.column(l, "gap.0.0").len() / CHECKED;
    for j in 0..case.d().head_outputs() {
        let gap = limbs(best - logit(case, s, j) - i64::from(j < target));
        let row = (j % block) * CHECKED + s;
        f.column(l, &format!("gap.{}.0", j / block))[row] = signed(gap.0);
        f.column(l, &format!("gap.{}.1", j / block))[row] = signed(gap.1);
    }
    f.recount(l);
}

fn split(v: i64) -> (i64, i64) {
    (v & 8191, v >> 13)
}

const LAST: usize = 2;

#[test]
fn forging_the_next_token_is_refused() {
    for (case, tokens) in [(plain(), &[0, 20][..]), (full(), &[7])] {
        let best = *case.input.ids.last().unwrap() as usize;
        let value = logit(case, LAST, best);
        for &token in tokens.iter().filter(|&&t| t != best) {
            let claimed = claiming(case, token as u32);
            // With the true largest logit the claimed token's gap is not zero; a smaller index also has an order.
            let mut f = offered(case, &case.honest, &claimed);
            set_best(case, &mut f, LAST, value, token, split);
            let forged = f.prove_with(head(case), &|_| &Honest);
            let own = format!("{} gap.own", head(case));
            assert!(forged.broken.contains(&own), "{:?}", forged.broken);
            let order = format!("{} in r13", head(case));
            assert!(forged.broken.iter().all(|b| *b == own || *b == order), "{:?}", forged.broken);
            assert!(verdict(case, &forged.proof).is_err());
            // With its own logit as the largest, the true largest is above it: a negative gap has no limbs.
            let mut f = offered(case, &case.honest, &claimed);
            set_best(case, &mut f, LAST, logit(case, LAST, token), token, split);
            refused(case, &f, &[&order], head(case), VerifyError::Lookups);
            // As a residue mod p the gap is beyond both limbs.
            let residue = |v: i64| split(v.rem_euclid((1 << 31) - 1));
            set_best(case, &mut f, LAST, logit(case, LAST, token), token, residue);
            refused(case, &f, &[&order], head(case), VerifyError::Lookups);
            // The gap said to be zero: the equation of that logit breaks.
            set_best(case, &mut f, LAST, logit(case, LAST, token), token, |v| split(v.max(0)));
            let forged = f.prove_with(head(case), &|_| &Honest);
            assert!(!forged.broken.is_empty() && forged.broken.iter().all(|b| b.contains(" gap.")), "{:?}", forged.broken);
            assert_eq!(verdict(case, &forged.proof), inside(head(case), EQUATIONS));
        }
    }
}

#[test]
fn forging_the_gap_at_the_token_is_refused() {
    // A largest logit larger than any: every gap is non-negative, the token's own is not zero. Padding rows likewise.
    for (s, more) in [(LAST, 1), (LAST, 8192), (0, 5), (3, 1)] {
        let case = plain();
        let mut f = forger(case, &case.honest);
        let target = case.input.checked().get(s).map_or(0, |c| c.target as usize);
        let value = if s == 3 { 0 } else { logit(case, s, target) };
        set_best(case, &mut f, s, value + more, target, split);
        refused(case, &f, &[&format!("{} gap.own", head(case))], head(case), EQUATIONS);
    }
}

/// A model with two equal rows in its head, the larger of which is largest.
fn twins() -> &'static (Case, usize, usize) {
    static CASE: OnceLock<(Case, usize, usize)> = OnceLock::new();
    CASE.get_or_init(|| {
        let toy = DecoderToy { seed: 5, group: 3, kv_heads: 2, head_dim: 12, window: 2, layers: 2, ..DecoderToy::default() };
        let best = *plain().input.ids.last().unwrap() as usize;
        let twin = if best == 20 { 19 } else { best + 1 };
        let mut model = toy::decoder(&toy);
        let m = &mut model.weights.segments.last_mut().unwrap().matrices[0];
        let row = m.data[best * m.inputs..(best + 1) * m.inputs].to_vec();
        m.data[twin * m.inputs..(twin + 1) * m.inputs].copy_from_slice(&row);
        let mult = &mut decoder_mut(&mut model).head.mult;
        mult[twin] = mult[best];
        (Case::new(model), best.min(twin), best.max(twin))
    })
}

#[test]
fn forging_the_larger_of_two_equal_tokens_is_refused() {
    let (case, first, second) = twins();
    let s = case.input.checked().iter().rposition(|c| c.target == *first as u32).expect("a completion with a tie");
    let at = case.input.checked()[s];
    assert_eq!(logit(case, s, *first), logit(case, s, *second));
    let mut claimed = case.input.clone();
    if s != LAST {
        // The tie is read again: only the last token of a sequence can change without the rows after it.
        let end = case.input.sequences[0];
        assert_eq!(at.row, end.prompt + end.completion - 2);
        claimed.ids[(end.prompt + end.completion - 1) as usize] = *second as u32;
    } else {
        *claimed.ids.last_mut().unwrap() = *second as u32;
    }
    let mut f = offered(case, &case.honest, &claimed);
    set_best(case, &mut f, s, logit(case, s, *second), *second, split);
    refused(case, &f, &[&format!("{} in r13", head(case))], head(case), VerifyError::Lookups);
}

#[test]
fn a_token_that_does_not_exist_is_refused() {
    let case = plain();
    for token in [21, 23, 24, u32::MAX] {
        let mut proof = forger(case, &case.honest).prove_with(0, &|_| &Honest).proof;
        *proof.header.ids.last_mut().unwrap() = token;
        assert!(matches!(verdict(case, &proof), Err(VerifyError::Input(_))), "{token}");
    }
    // Its logit said to be zero instead of absent, which would be the largest of a row of negative ones.
    let mut f = forger(case, &case.honest);
    let l = head(case);
    let block = f.column(l, "gap.0.0").len() / CHECKED;
    let (j, value) = (case.d().vocab as usize, logit(case, LAST, *case.input.ids.last().unwrap() as usize));
    let gap = split(value);
    for (k, v) in [(0, gap.0), (1, gap.1)] {
        f.column(l, &format!("gap.{}.{k}", j / block))[(j % block) * CHECKED + LAST] = signed(v);
    }
    f.recount(l);
    refused(case, &f, &[&format!("{l} gap.{}", j / block)], l, EQUATIONS);
}

/// The head's run on other rows of the residual stream.
fn of_rows(case: &Case, rows: &[u32], change: impl Fn(&mut Vec<i32>)) -> DecoderTrace {
    let mut t = case.honest.clone();
    let mut x = t.entering(head(case)).to_vec();
    change(&mut x);
    t.head = decoder::head(case.d(), &case.toy.model.weights.segments[head(case)], &x, rows, ROWS).unwrap();
    t
}

#[test]
fn forging_the_rows_of_the_head_is_refused() {
    let case = plain();
    let l = head(case);
    let rows: Vec<u32> = case.input.checked().iter().map(|c| c.row).collect();
    assert_eq!(rows, [2, 3, 5]);
    let zero = |x: &mut Vec<i32>| (0..16).for_each(|c| x[c * ROWS + 5] = 0);
    let attempts = [
        // Another row, two rows exchanged, a padding row of the layers, a real row where padding must be, zeros.
        of_rows(case, &[1, 3, 5], |_| ()),
        of_rows(case, &[3, 2, 5], |_| ()),
        of_rows(case, &[2, 3, 6], |_| ()),
        of_rows(case, &[2, 3, 5, 4], |_| ()),
        of_rows(case, &[2, 3, 5], zero),
    ];
    for t in attempts {
        // These rows may give another token than the one claimed: then the head's other equations break too.
        let f = forger(case, &t);
        let forged = f.prove_with(l, &|_| &Honest);
        let select = [0, 1, 2].map(|k| format!("{l} select.{k}"));
        assert!(select.iter().all(|s| forged.broken.contains(s)), "{:?}", forged.broken);
        let follows = |b: &String| select.contains(b) || *b == format!("{l} gap.own") || *b == format!("{l} in r13");
        assert!(forged.broken.iter().all(follows), "{:?}", forged.broken);
        assert!(verdict(case, &forged.proof).is_err());
    }
}

#[test]
fn forging_what_the_head_receives_is_refused() {
    // One bit of one channel of the last checked row.
    let case = plain();
    let l = head(case);
    let t = of_rows(case, &[2, 3, 5], |x| x[4 * ROWS + 5] ^= 1);
    let mut f = forger(case, &t);
    let value = f.get(l, "input.0.0", 4 * ROWS + 5);
    f.column(l, "input.0.0")[4 * ROWS + 5] = signed(value ^ 1);
    f.recount(l);
    let forged = f.prove_with(l, &|_| &Honest);
    let first = format!("{l} boundary_in.0");
    assert!(forged.broken.contains(&first), "{:?}", forged.broken);
    assert!(!forged.broken.iter().any(|b| b.contains("select")), "{:?}", forged.broken);
    assert!(verdict(case, &forged.proof).is_err());
}
