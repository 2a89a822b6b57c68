//! Twins: every SIMD kernel returns the reference's bytes, for all sizes around the lane count and for any thread count.

use super::reference::Reference;
use super::simd::Simd;
use super::{CodeShape, CommitKernels};
use crate::prover::tests::Rng;
use obelysk_protocol::field::M31;
use obelysk_protocol::transcript::{Blake2s, Digest, HashSuite, Poseidon252};
use stwo::core::poly::circle::CanonicCoset;
use stwo::prover::backend::CpuBackend;
use stwo::prover::poly::circle::{CircleCoefficients, PolyOps};

fn shapes() -> impl Iterator<Item = (CodeShape, usize)> {
    let code = |h, blowup_log| CodeShape { h, blowup_log };
    let small = (2..=7).flat_map(move |h| (1..=3).map(move |b| code(h, b)));
    small.flat_map(|c| [1, 2, 5, 16, 17, 33].map(|rows| (c, rows))).chain([(code(10, 2), 35), (code(17, 1), 2), (code(18, 1), 1)])
}

fn threads<T: Send>(n: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
}

#[test]
fn encoding_equals_s_twos_own() {
    let mut rng = Rng(3);
    for (h, b) in [(2, 1), (4, 1), (5, 2), (8, 3), (11, 1)] {
        let code = CodeShape { h, blowup_log: b };
        let row = rng.rows(1, h);
        let domain = CanonicCoset::new(h + b).circle_domain();
        let twiddles = CpuBackend::precompute_twiddles(domain.half_coset);
        let stwo = CircleCoefficients::<CpuBackend>::new(row.clone()).evaluate_with_twiddles(domain, &twiddles);
        assert_eq!(Reference.encode_base(&row, code).0, stwo.values);
        let simd = Simd::default();
        assert_eq!(simd.encode_base(&simd.base(row), code).symbols(), stwo.values);
    }
}

fn words_and_trees<S: HashSuite>(code: CodeShape, rows: usize) {
    let simd = Simd::default();
    let values = Rng(u64::from(code.h) << 8 | rows as u64).rows(rows, code.h);
    let reference = Reference.encode_base(&values, code);
    let fast = simd.encode_base(&simd.base(values), code);
    assert!(fast.symbols() == reference.0, "{code:?} {rows}");
    let positions: Vec<usize> = (0..1 << code.log_n()).step_by(3).collect();
    assert_eq!(simd.words_at(&fast, code, &positions), Reference.words_at(&reference, code, &positions));
    let tree = Reference.words_tree::<S>(&reference, code);
    assert!(simd.words_tree::<S>(&fast, code) == tree, "{code:?} {rows}");
    assert_eq!(Some(&Reference.root(&tree)), simd.all_nodes(&tree).last());
}

#[test]
fn words_and_trees_are_equal() {
    for (code, rows) in shapes() {
        words_and_trees::<Blake2s>(code, rows);
    }
    words_and_trees::<Poseidon252>(CodeShape { h: 4, blowup_log: 1 }, 3);
}

#[test]
fn int8_words_are_equal_position_major() {
    let simd = Simd::default();
    for (code, rows) in shapes().filter(|(c, _)| c.h < 17) {
        let mut rng = Rng(77 + rows as u64);
        let values: Vec<i8> = (0..rows << code.h).map(|_| rng.next() as i8).collect();
        let mut leaves = vec![vec![0u8; (4 * rows) << code.log_n()]; 2];
        let reference = Reference.encode_int8::<Blake2s>(&values, code, Some(&mut leaves[0]));
        let fast = threads(2, || simd.encode_int8::<Blake2s>(&values, code, Some(&mut leaves[1])));
        assert!(leaves[0] == leaves[1] && fast == reference, "{code:?} {rows}");
        assert!(simd.encode_int8::<Blake2s>(&values, code, None) == reference, "{code:?} {rows}");
        assert!(Reference.encode_int8::<Blake2s>(&values, code, None) == reference, "{code:?} {rows}");
    }
}

#[test]
fn combinations_and_partials_are_equal() {
    let simd = Simd::default();
    for (code, rows) in shapes().filter(|(c, _)| c.blowup_log == 1) {
        let mut rng = Rng(5 + rows as u64);
        let values = rng.rows(rows, code.h);
        let mut bytes: Vec<i8> = (0..rows << code.h).map(|_| rng.next() as i8).collect();
        bytes[..4].copy_from_slice(&[-128, 127, -127, 0]);
        let c = rng.felts(rows);
        assert_eq!(simd.combine_base(&values, code.h, &c).to_host(), Reference.combine_base(&values, code.h, &c));
        assert_eq!(simd.combine_int8(&bytes, code.h, &c).to_host(), Reference.combine_int8(&bytes, code.h, &c));
        for s in 0..=2 {
            let point = rng.felts((code.h - s) as usize);
            assert_eq!(simd.partials_base(&values, &point), Reference.partials_base(&values, &point));
            assert_eq!(simd.partials_int8(&bytes, &point), Reference.partials_int8(&bytes, &point));
        }
    }
}

#[test]
fn extension_kernels_are_equal() {
    let simd = Simd::default();
    for (h, b) in [(2, 1), (3, 2), (4, 1), (5, 1), (6, 3), (9, 2), (13, 1)] {
        let code = CodeShape { h, blowup_log: b };
        let mut rng = Rng(u64::from(h));
        let (f, k, r) = (rng.felts(1 << h), rng.felts(1 << h), rng.felt());
        let (ff, kk) = (simd.ext(f.clone()), simd.ext(k.clone()));
        assert_eq!(simd.product_round(&ff, &kk), Reference.product_round(&f, &k));
        assert_eq!(simd.product_round_full(&ff, &kk), Reference.product_round_full(&f, &k));
        assert_eq!(simd.bind(&ff, r).to_host(), Reference.bind(&f, r));
        let (low, high) = f.split_at(1 << (h / 2));
        assert_eq!(simd.outer(low, high).to_host(), Reference.outer(low, high));
        assert_eq!(simd.weighted_sum(&[(&ff, r), (&kk, f[0])]).to_host(), Reference.weighted_sum(&[(&f, r), (&k, f[0])]));
        let (mut word, mut fast) = (Reference.encode_ext(&f, code), simd.encode_ext(&ff, code));
        for round in 0..h {
            assert_eq!(fast.to_host(), word, "h {h} round {round}");
            for step in 0..=3.min(h + b - round) {
                let tree = Reference.blocks_tree::<Blake2s>(&word, step);
                assert_eq!(simd.blocks_tree::<Blake2s>(&fast, step), tree);
                let blocks = [0, word.len() / (1 << step) - 1];
                assert_eq!(simd.blocks_at(&fast, step, &blocks), Reference.blocks_at(&word, step, &blocks));
            }
            word = Reference.fold_word(&word, code, round, r);
            fast = simd.fold_word(&fast, code, round, r);
        }
    }
}

#[test]
fn nonces_are_equal_for_both_suites() {
    let prefix: Digest = [3; 32];
    let simd = Simd::default();
    assert_eq!(simd.grind::<Blake2s>(&prefix, 13), Reference.grind::<Blake2s>(&prefix, 13));
    assert_eq!(simd.grind::<Poseidon252>(&prefix, 3), Reference.grind::<Poseidon252>(&prefix, 3));
}

#[test]
fn thread_count_does_not_show() {
    let code = CodeShape { h: 12, blowup_log: 2 };
    let run = |n| {
        threads(n, || {
            let simd = Simd::default();
            let mut rng = Rng(1);
            let values: Vec<M31> = rng.rows(19, 12);
            let c = rng.felts(19);
            let combined = simd.combine_base(&values, 12, &c);
            let word = simd.encode_ext(&combined, code);
            let trees =
                [simd.words_tree::<Blake2s>(&simd.encode_base(&values, code), code), simd.blocks_tree::<Blake2s>(&word, 3)];
            (trees, simd.product_round(&combined, &combined), simd.grind::<Blake2s>(&[9; 32], 16))
        })
    };
    assert_eq!(run(1), run(2));
}
