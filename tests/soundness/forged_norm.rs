//! Forged norms: mean, shift, reciprocal, digits, carries, limbs, one-hot sigma. Done in the last norm of the last layer, so
//! that the head and the output are the only readers.

use crate::harness::{EQUATIONS, Forger, Honest, IDS, honest, inside, refused, toy, verdict};
use crate::tail::{From, norm, redo};
use obelysk_model::infer::{self, ModelTrace, NormTrace};
use obelysk_model::toy::encoder;
use obelysk_protocol::circuit::norm::{INDEX_END, NormShape, shift_powers};
use obelysk_protocol::field::{M31, P, signed};
use obelysk_protocol::verifier::VerifyError;
use obelysk_shard::witness::centred;

/// Segment of the last layer.
const S: usize = 2;
const WIDTH: usize = 12;
const TP: usize = 4;
/// The token that is attacked.
const T: usize = 1;

fn trace() -> ModelTrace {
    infer::run(&toy().model, &IDS).unwrap()
}

fn eps() -> i64 {
    encoder(&toy().model).layers[1].ffn_residual.norm.eps as i64
}

/// The witness whose last norm is `change`d, with head and output to match.
fn with_norm(change: impl Fn(&mut NormTrace)) -> Forger {
    let mut t = trace();
    change(&mut t.layers[1].ffn.norm);
    redo(&mut t, 1, From::Output);
    Forger::of_trace(&toy().model, &t, &IDS, &IDS)
}

fn renormed(n: &NormTrace, eps: i64, nudge: (i64, i64)) -> NormTrace {
    let x: Vec<i64> = n.x.iter().map(|&v| v.into()).collect();
    norm(&x, WIDTH, eps, &|t| if t == T { nudge } else { (0, 0) })
}

/// u of token T from its x' and R.
fn rescale(n: &mut NormTrace) {
    for c in 0..WIDTH {
        let i = c * TP + T;
        n.u[i] = ((i64::from(n.x_scaled[i]) * i64::from(n.recip[T]) + (1 << 13)) >> 14) as i16;
    }
}

#[test]
fn the_norm_of_an_all_zero_row_is_provable() {
    // The padding token's embedding is the zero row; the honest proof contains its norm.
    let n = trace().embed.norm;
    assert!((0..WIDTH).all(|c| n.x[c * TP + 3] == 0 && n.u[c * TP + 3] == 0));
    assert_eq!((n.s[3], n.sigma[3], n.index[3]), (1 << 14, 0, 1 << 14));
    assert_eq!(verdict(crate::harness::honest_proof()), Ok(()));
}

#[test]
fn forging_the_mean_by_one_is_refused() {
    for delta in [1, -1] {
        let f = with_norm(|n| *n = renormed(n, eps(), (delta, 0)));
        refused(&f, &["2 in r4"], S, VerifyError::Lookups);
    }
}

#[test]
fn forging_the_mean_with_a_carry_is_refused() {
    // val back inside its window by a carry that the middle line does not know of.
    let f = &mut with_norm(|n| *n = renormed(n, eps(), (1, 0)));
    f.add(S, "norm2.row.val", T, WIDTH as i64);
    f.recount(S);
    refused(f, &["2 norm2.mean0"], S, EQUATIONS);
}

#[test]
fn forging_sigma_by_one_is_refused() {
    let f = with_norm(|n| *n = renormed(n, eps(), (0, 1)));
    refused(&f, &["2 in reciprocal", "2 in r2"], S, VerifyError::Lookups);
    // One too small: u keeps its meaning, i is beyond the table.
    let f = with_norm(|n| *n = renormed(n, eps(), (0, -1)));
    let forged = f.prove_with(S, &|_| &Honest);
    assert!(forged.broken.contains(&"2 in reciprocal".to_owned()), "{:?}", forged.broken);
    assert_eq!(verdict(&forged.proof), inside(S, VerifyError::Lookups));
}

#[test]
fn forging_sigma_within_every_table_is_refused() {
    // sigma + 1 with an index and an excess from their tables: then the digits contradict.
    let mut f = with_norm(|n| {
        *n = renormed(n, eps(), (0, 1));
        n.index[T] = 20_000;
        n.recip[T] = ((32_000f64 * 128.0) / 20_000f64.sqrt()) as i32;
        rescale(n);
    });
    let excess = f.get(S, "norm2.row.q0", T) + (f.get(S, "norm2.row.q1", T) << 16);
    assert!(excess < 0);
    f.add(S, "norm2.row.q1", T, 1);
    f.recount(S);
    refused(&f, &["2 norm2.index", "2 norm2.least_sigma"], S, EQUATIONS);
}

#[test]
fn forging_the_reciprocal_is_refused() {
    let f = with_norm(|n| {
        n.recip[T] += 1;
        rescale(n);
    });
    refused(&f, &["2 in reciprocal"], S, VerifyError::Lookups);
}

#[test]
fn forging_the_scaled_value_is_refused() {
    let f = with_norm(|n| {
        n.x_scaled[2 * TP + T] += 1;
        rescale(n);
    });
    refused(&f, &["2 in sigma.18"], S, VerifyError::Lookups);
}

#[test]
fn forging_the_normalised_value_is_refused() {
    for delta in [1, -1] {
        let f = with_norm(|n| n.u[2 * TP + T] += delta);
        refused(&f, &["2 in r14"], S, VerifyError::Lookups);
    }
}

/// Sums of limb products of token T, as the five lines of the carry chain.
fn lines(f: &Forger) -> [i64; 5] {
    let sum = |a: usize, b: usize| -> i64 {
        let cell = |l: usize, c: usize| f.get(S, &format!("norm2.{}.z{l}", c / 4), c % 4 * TP + T);
        (0..WIDTH).map(|c| cell(a, c) * cell(b, c)).sum()
    };
    [sum(0, 0), 2 * sum(0, 1), 2 * sum(0, 2) + sum(1, 1), 2 * sum(1, 2), sum(2, 2)]
}

/// Rewrites the carries of token T so that every line but perhaps the last holds mod p for the digits as they are.
fn recarry(f: &mut Forger) {
    let lines = lines(f);
    let mut carry = signed(0);
    for (k, line) in lines.iter().take(4).enumerate() {
        let byte: i64 = (0..4).map(|j| f.get(S, &format!("norm2.row.g{}", 4 * k + j), T) << (2 * j)).sum();
        carry = (signed(line + (eps() >> (8 * k) & 255) - byte) + carry) * signed(256).inverse();
        let v = centred(carry);
        f.column(S, &format!("norm2.row.c{k}l"))[T] = signed(v & 0xffff);
        f.column(S, &format!("norm2.row.c{k}h"))[T] = signed(v >> 16);
    }
}

#[test]
fn forging_the_sum_of_squares_by_p_is_refused() {
    // S - p solves every line mod p; the carries that do it leave their windows, and nothing else does.
    assert!(trace().layers[1].ffn.norm.s[T] > 2 * u64::from(P));
    let mut f = with_norm(|n| {
        let other = renormed(n, eps() - i64::from(P), (0, 0));
        let honest = n.clone();
        *n = other;
        for t in (0..TP).filter(|&t| t != T) {
            (n.s[t], n.sigma[t], n.index[t], n.recip[t]) = (honest.s[t], honest.sigma[t], honest.index[t], honest.recip[t]);
            for c in 0..WIDTH {
                (n.x_scaled[c * TP + t], n.u[c * TP + t]) = (honest.x_scaled[c * TP + t], honest.u[c * TP + t]);
            }
        }
    });
    recarry(&mut f);
    f.recount(S);
    refused(&f, &["2 in r1"], S, VerifyError::Lookups);
}

#[test]
fn forging_a_digit_is_refused() {
    let f0 = honest();
    let sigma = f0.get(S, "norm2.row.sigma", T) as usize;
    let g = |k: usize| f0.get(S, &format!("norm2.row.g{k}"), T);
    // Both digits in one byte and inside i's window, so no equation can tell.
    let k = (sigma..sigma + 7).find(|&k| k % 4 != 3 && g(k + 1) > 0).unwrap();
    let mut f = f0.clone();
    f.add(S, &format!("norm2.row.g{k}"), T, 4);
    f.add(S, &format!("norm2.row.g{}", k + 1), T, -1);
    f.recount(S);
    refused(&f, &["2 in r2"], S, VerifyError::Lookups);
}

#[test]
fn forging_limbs_of_the_same_value_is_refused() {
    for (low, high) in [(0, 1), (1, 2)] {
        let mut f = honest().clone();
        let base = |f: &Forger, l: usize| f.get(S, &format!("norm2.0.z{l}"), T);
        assert!(base(&f, high) != 0 || high == 2);
        f.add(S, &format!("norm2.0.z{low}"), T, 256);
        f.add(S, &format!("norm2.0.z{high}"), T, -1);
        recarry(&mut f);
        remean(&mut f);
        f.recount(S);
        refused(&f, &["2 in r8"], S, VerifyError::Lookups);
    }
}

/// Rewrites the carries of the mean from the limbs of token T.
fn remean(f: &mut Forger) {
    let sum = |l: usize| -> i64 { (0..WIDTH).map(|c| f.get(S, &format!("norm2.{}.z{l}", c / 4), c % 4 * TP + T)).sum() };
    let (s1, s2) = (sum(1), sum(2));
    f.column(S, "norm2.row.k0")[T] = signed(s1 + (s2 << 8));
    f.column(S, "norm2.row.k1")[T] = signed(-s2);
}

/// A non-zero vector orthogonal to every row, by elimination over the field.
fn null_vector(mut rows: Vec<Vec<M31>>, n: usize) -> Vec<M31> {
    let (mut pivots, mut done) = (Vec::new(), 0);
    for col in 0..n {
        let Some(r) = (done..rows.len()).find(|&r| rows[r][col].0 != 0) else {
            let mut v = vec![signed(0); n];
            v[col] = signed(1);
            pivots.iter().enumerate().for_each(|(r, &p): (usize, &usize)| v[p] = -rows[r][col]);
            return v;
        };
        rows.swap(done, r);
        let inverse = rows[done][col].inverse();
        rows[done].iter_mut().for_each(|v| *v *= inverse);
        let pivot = rows[done].clone();
        for (i, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != done) {
            let k = row[col];
            assert!(i != done);
            row.iter_mut().zip(&pivot).for_each(|(v, &p)| *v -= k * p);
        }
        pivots.push(col);
        done += 1;
    }
    panic!("the equations pin the one-hot vector without its bits");
}

#[test]
fn forging_a_one_hot_vector_of_non_bits_is_refused() {
    // Every equation about the one-hot vector is linear, so a null vector of all of them can be added: only o^2 = o objects.
    let mut f = honest().clone();
    let shape = NormShape::new(WIDTH, eps() as u64);
    let g = |k: usize| if k < shape.digits { f.get(S, &format!("norm2.row.g{k}"), T) } else { 0 };
    let window = |from: usize, n: usize| (0..n).map(|j| g(from + j) << (2 * j)).sum::<i64>();
    let row = |v: &dyn Fn(usize) -> i64| (0..=shape.sigma_max).map(|s| signed(v(s))).collect::<Vec<_>>();
    let rows = vec![
        row(&|_| 1),
        row(&|s| s as i64),
        row(&|s| shift_powers(s).0),
        row(&|s| shift_powers(s).1),
        row(&|s| shift_powers(s).2),
        row(&|s| window(s, 8)),
        row(&|s| (s + 8..shape.digits).map(g).sum()),
        row(&|s| if s == 0 { 0 } else { window(s - 1, 9) - INDEX_END }),
    ];
    let v = null_vector(rows, shape.sigma_max + 1);
    for (s, v) in v.into_iter().enumerate() {
        f.column(S, &format!("norm2.row.o{s}"))[T] += v;
    }
    refused(&f, &["2 norm2.bit"], S, EQUATIONS);
}

#[test]
fn forging_the_powers_of_sigma_is_refused() {
    for name in ["p1", "p2", "half"] {
        let mut f = honest().clone();
        f.add(S, &format!("norm2.row.{name}"), T, 1);
        f.recount(S);
        let forged = f.prove_with(S, &|_| &Honest);
        assert!(forged.broken.contains(&format!("2 norm2.{name}")), "{:?}", forged.broken);
        assert_eq!(verdict(&forged.proof), inside(S, EQUATIONS));
    }
}
