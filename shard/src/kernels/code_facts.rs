//! Facts the soundness argument leans on, checked on small codes: the direct evaluation, linearity, S-two's fold formulas,
//! and the minimum distance `n - N`, which is one less than Reed–Solomon's.

use super::reference::{Reference, code};
use super::{CodeShape, CommitKernels};
use crate::prover::tests::Rng;
use obelysk_protocol::field::{FieldExpOps, M31, ONE, QM31, ZERO};
use obelysk_protocol::verifier::code::{CodeDomain, double_x};
use stwo::core::fri::{fold_circle_into_line, fold_line};
use stwo::core::poly::circle::CanonicCoset;
use stwo::core::poly::line::LineDomain;

const ZERO_BASE: M31 = M31::from_u32_unchecked(0);
const ONE_BASE: M31 = M31::from_u32_unchecked(1);

/// All basis functions at a stored position, from the definition.
fn basis(domain: &CodeDomain, h: u32, position: usize) -> Vec<M31> {
    let (x, y) = domain.point(position);
    let mut factors = vec![y];
    let mut t = x;
    for _ in 1..h {
        factors.push(t);
        t = double_x(t);
    }
    let product = |i: usize| (0..h as usize).filter(|k| i >> k & 1 == 1).fold(ONE_BASE, |acc, k| acc * factors[k]);
    (0..1 << h).map(product).collect()
}

#[test]
fn the_word_is_the_sum_of_basis_functions() {
    for (h, b) in [(2, 1), (3, 2), (4, 1), (5, 2)] {
        let domain = CodeDomain::new(h + b);
        let m = Rng(u64::from(h)).rows(1, h);
        let direct: Vec<M31> = (0..1 << (h + b))
            .map(|i| basis(&domain, h, i).into_iter().zip(&m).fold(ZERO_BASE, |acc, (f, &v)| acc + f * v))
            .collect();
        assert_eq!(code::encode(&m, &domain), direct);
    }
}

#[test]
fn every_fold_of_the_word_encodes_the_fold_of_the_message_down_to_a_constant() {
    for (h, b) in [(2, 1), (3, 1), (4, 2), (6, 3), (9, 1)] {
        let shape = CodeShape { h, blowup_log: b };
        let domain = CodeDomain::new(h + b);
        let mut rng = Rng(40 + u64::from(h));
        let mut m = rng.felts(1 << h);
        let mut word = Reference.encode_ext(&m, shape);
        for round in 0..h {
            let alpha = rng.felt();
            word = Reference.fold_word(&word, shape, round, alpha);
            m = Reference.bind(&m, alpha);
            for (i, v) in word.iter().enumerate().step_by(5) {
                assert_eq!(*v, domain.encode_at(round + 1, i, &m), "h {h} round {round}");
            }
        }
        assert!(word.len() == 1 << b && word.iter().all(|v| *v == m[0]));
    }
}

#[test]
fn folds_are_s_twos_up_to_the_public_factor() {
    // S-two folds to 2 f_e + a · 2 f_o; ours is (1 - α) f_e + α f_o, so a = α / (1 - α) and the factor is (1 - α) / 2.
    let (h, log_n) = (5, 7);
    let shape = CodeShape { h, blowup_log: log_n - h };
    let mut rng = Rng(50);
    let word = Reference.encode_ext(&rng.felts(1 << h), shape);
    let alpha = rng.felt();
    let ratio = alpha * (ONE - alpha).inverse();
    let factor = (ONE - alpha) * QM31::from(M31::from_u32_unchecked(2)).inverse();
    let circle = CanonicCoset::new(log_n).circle_domain();
    let scaled = |v: Vec<QM31>| v.into_iter().map(|x| x * factor).collect::<Vec<_>>();
    let mut line = scaled(fold_circle_into_line(&word, circle, ratio));
    let mut ours = Reference.fold_word(&word, shape, 0, alpha);
    let mut domain = LineDomain::new(circle.half_coset);
    for round in 1..h {
        assert_eq!(line, ours, "round {round}");
        let (next, folded) = fold_line(&line, domain, ratio);
        (domain, line) = (next, scaled(folded));
        ours = Reference.fold_word(&ours, shape, round, alpha);
    }
    assert_eq!(line, ours);
}

#[test]
fn combining_rows_commutes_with_encoding() {
    let shape = CodeShape { h: 4, blowup_log: 2 };
    let mut rng = Rng(60);
    let (rows, c) = (rng.rows(5, 4), rng.felts(5));
    let words = Reference.encode_base(&rows, shape);
    let combined = Reference.encode_ext(&Reference.combine_base(&rows, 4, &c), shape);
    for (i, v) in combined.iter().enumerate() {
        let leaf = Reference.words_at(&words, shape, &[i]);
        assert_eq!(*v, leaf.iter().zip(&c).fold(ZERO, |acc, (&x, &c)| acc + c * x));
    }
}

/// A non-zero vector that every row is orthogonal to, if the square matrix is singular.
fn kernel(mut rows: Vec<Vec<M31>>) -> Option<Vec<M31>> {
    let n = rows.len();
    let mut pivots = Vec::new();
    for col in 0..n {
        let rank = pivots.len();
        let Some(found) = (rank..n).find(|&r| rows[r][col] != ZERO_BASE) else {
            let mut out = vec![ZERO_BASE; n];
            out[col] = ONE_BASE;
            for (r, &p) in pivots.iter().enumerate() {
                out[p] = -rows[r][col];
            }
            return Some(out);
        };
        rows.swap(rank, found);
        let inv = rows[rank][col].inverse();
        rows[rank].iter_mut().for_each(|v| *v *= inv);
        let pivot = rows[rank].clone();
        for row in rows.iter_mut().enumerate().filter(|(r, _)| *r != rank).map(|(_, row)| row) {
            let f = row[col];
            row.iter_mut().zip(&pivot).for_each(|(v, &p)| *v -= f * p);
        }
        pivots.push(col);
    }
    None
}

#[test]
fn minimum_distance_is_n_minus_the_message_length() {
    for (h, b) in [(2u32, 1u32), (2, 2)] {
        let (len, n) = (1usize << h, 1usize << (h + b));
        let domain = CodeDomain::new(h + b);
        let rows: Vec<Vec<M31>> = (0..n).map(|i| basis(&domain, h, i)).collect();
        let mut most_zeros = 0;
        // Every set of N positions: a word that vanishes there, if there is one, must vanish nowhere else.
        for set in (0u32..1 << n).filter(|s| s.count_ones() as usize == len) {
            let chosen = (0..n).filter(|i| set >> i & 1 == 1).map(|i| rows[i].clone()).collect();
            if let Some(m) = kernel(chosen) {
                let zeros = code::encode(&m, &domain).iter().filter(|v| **v == ZERO_BASE).count();
                most_zeros = most_zeros.max(zeros);
            }
        }
        assert_eq!(most_zeros, len, "h {h} b {b}");
    }
}
