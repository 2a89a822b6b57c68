//! Kernels of the commitment.

use crate::chance::Rng;
use obelysk_cuda::{CudaBackend, Device};
use obelysk_protocol::field::QM31;
use obelysk_protocol::transcript::{Blake2s, Digest, HashSuite, Poseidon252};
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::kernels::{CodeShape, CommitKernels, HostTree};

const fn code(h: u32, blowup_log: u32) -> CodeShape {
    CodeShape { h, blowup_log }
}

/// Codes with numbers of rows: every pass of an encoding, batches of hashes that end anywhere.
const SHAPES: [(CodeShape, usize); 8] = [
    (code(2, 1), 1),
    (code(3, 1), 17),
    (code(5, 3), 2),
    (code(7, 1), 67),
    (code(10, 2), 16),
    (code(11, 1), 3),
    (code(12, 1), 2),
    (code(15, 1), 1),
];

fn nodes(tree: &HostTree) -> Vec<Digest> {
    tree.flat().to_vec()
}

fn words_of<S: HashSuite, D: Device>(k: &CudaBackend<D>, shape: CodeShape, rows: usize) {
    let values = Rng(u64::from(shape.h) << 8 | rows as u64).bases(rows << shape.h);
    let reference = Reference.encode_base(&values, shape);
    let words = k.encode_base(&k.base(values), shape);
    let all: Vec<usize> = (0..1 << shape.log_n()).collect();
    assert!(k.words_at(&words, shape, &all) == Reference.words_at(&reference, shape, &all), "{shape:?} {rows}");
    assert!(k.words_at(&words, shape, &[]).is_empty());
    let expected = Reference.words_tree::<S>(&reference, shape);
    let tree = k.words_tree::<S>(&words, shape);
    assert!(k.all_nodes(&tree) == nodes(&expected), "{shape:?} {rows}");
    assert_eq!(k.root(&tree), Reference.root(&expected));
    let wanted = [(0, 1), (shape.log_n(), 0), (1, 0), (shape.log_n() - 1, 1), (0, 0)];
    assert_eq!(k.nodes(&tree, &wanted), Reference.nodes(&expected, &wanted));
}

pub fn words_and_trees<D: Device>(k: &CudaBackend<D>) {
    for (shape, rows) in SHAPES {
        words_of::<Blake2s, D>(k, shape, rows);
    }
}

pub fn other_suites<D: Device>(k: &CudaBackend<D>) {
    words_of::<Poseidon252, D>(k, code(3, 1), 2);
    int8_of::<Poseidon252, D>(k, code(2, 1), 3);
    let f = Rng(4).felts(8);
    let expected = Reference.blocks_tree::<Poseidon252>(&f, 1);
    assert_eq!(k.all_nodes(&k.blocks_tree::<Poseidon252>(&CommitKernels::ext(k, f), 1)), nodes(&expected));
}

fn int8_of<S: HashSuite, D: Device>(k: &CudaBackend<D>, shape: CodeShape, rows: usize) {
    let values = Rng(77 + rows as u64).bytes(rows << shape.h);
    let mut leaves = vec![vec![0u8; (4 * rows) << shape.log_n()]; 2];
    let expected = nodes(&Reference.encode_int8::<S>(&values, shape, Some(&mut leaves[0])));
    let on_device = k.int8(values.clone());
    let tree = k.encode_int8::<S>(&on_device, shape, Some(&mut leaves[1]));
    assert!(leaves[0] == leaves[1] && k.all_nodes(&tree) == expected, "{shape:?} {rows}");
    assert!(k.all_nodes(&k.encode_int8::<S>(&on_device, shape, None)) == expected);
    let positions: Vec<usize> = (0..40).map(|i| (i * 7 + 1) % (1 << shape.log_n())).collect();
    assert_eq!(k.symbols_int8(&on_device, shape, &positions), Reference.symbols_int8(&values, shape, &positions));
}

pub fn int8_words<D: Device>(k: &CudaBackend<D>) {
    for (shape, rows) in SHAPES.into_iter().filter(|(c, _)| c.h <= 12) {
        int8_of::<Blake2s, D>(k, shape, rows);
    }
}

pub fn combinations<D: Device>(k: &CudaBackend<D>) {
    for (shape, rows) in SHAPES.into_iter().chain([(code(4, 1), 1), (code(3, 1), 600), (code(4, 1), 0)]) {
        let mut rng = Rng(5 + rows as u64);
        let (values, bytes, c) = (rng.bases(rows << shape.h), rng.bytes(rows << shape.h), rng.felts(rows));
        let (base, int8) = (k.base(values.clone()), k.int8(bytes.clone()));
        assert_eq!(k.to_host(&k.combine_base(&base, shape.h, &c)), Reference.combine_base(&values, shape.h, &c));
        assert_eq!(k.to_host(&k.combine_int8(&int8, shape.h, &c)), Reference.combine_int8(&bytes, shape.h, &c));
        for s in 0..=2 {
            let point = rng.felts((shape.h - s) as usize);
            assert_eq!(k.partials_base(&base, &point), Reference.partials_base(&values, &point));
            assert_eq!(k.partials_int8(&int8, &point), Reference.partials_int8(&bytes, &point));
        }
    }
}

fn terms<'a, E>(f: &'a E, k: &'a E, r: QM31, s: QM31) -> [(&'a E, QM31); 3] {
    [(f, r), (k, s), (f, s)]
}

pub fn extension_vectors<D: Device>(k: &CudaBackend<D>) {
    for (h, b) in [(1, 1), (2, 1), (3, 2), (5, 1), (6, 3), (9, 2), (10, 1), (13, 1)] {
        let shape = code(h, b);
        let mut rng = Rng(u64::from(h));
        let (f, g, r) = (rng.felts(1 << h), rng.felts(1 << h), rng.felt());
        let (ff, gg) = (CommitKernels::ext(k, f.clone()), CommitKernels::ext(k, g.clone()));
        assert_eq!((k.ext_len(&ff), k.to_host(&ff)), (f.len(), f.clone()));
        assert_eq!(CommitKernels::product_round(k, &ff, &gg), CommitKernels::product_round(&Reference, &f, &g));
        assert_eq!(k.product_round_full(&ff, &gg), Reference.product_round_full(&f, &g));
        assert_eq!(k.to_host(&k.bind(&ff, r)), Reference.bind(&f, r));
        for cut in [1, 3.min(f.len() - 1), f.len() / 2] {
            let (low, high) = f.split_at(cut);
            assert_eq!(k.to_host(&k.outer(low, high)), Reference.outer(low, high));
        }
        let sums = (k.weighted_sum(&terms(&ff, &gg, r, g[0])), Reference.weighted_sum(&terms(&f, &g, r, g[0])));
        assert_eq!(k.to_host(&sums.0), sums.1);
        let (mut word, mut fast) = (Reference.encode_ext(&f, shape), k.encode_ext(&ff, shape));
        for round in 0..h {
            assert!(k.to_host(&fast) == word, "h {h} round {round}");
            for step in 0..=3.min(h + b - round) {
                let expected = Reference.blocks_tree::<Blake2s>(&word, step);
                assert!(k.all_nodes(&k.blocks_tree::<Blake2s>(&fast, step)) == nodes(&expected));
                let blocks = [word.len() / (1 << step) - 1, 0];
                assert_eq!(k.blocks_at(&fast, step, &blocks), Reference.blocks_at(&word, step, &blocks));
            }
            word = Reference.fold_word(&word, shape, round, r);
            fast = k.fold_word(&fast, shape, round, r);
        }
    }
}

pub fn nonces<D: Device>(k: &CudaBackend<D>) {
    for (seed, bits) in [(1u8, 0), (2, 3), (3, 9), (4, 13), (9, 14)] {
        let prefix: Digest = [seed; 32];
        assert_eq!(k.grind::<Blake2s>(&prefix, bits), Reference.grind::<Blake2s>(&prefix, bits), "{bits} bits");
    }
    assert_eq!(k.grind::<Poseidon252>(&[3; 32], 3), Reference.grind::<Poseidon252>(&[3; 32], 3));
}
