//! Commitment kernels, reference tier.

use super::{Reference, code};
use crate::kernels::{CodeShape, CommitKernels, HostTree};
use obelysk_protocol::field::{self, M31, ONE, QM31, ZERO, signed};
use obelysk_protocol::transcript::{Digest, HashSuite, pow_ok};
use obelysk_protocol::verifier::code::CodeDomain;

/// Words of all rows, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseWords(pub Vec<M31>);

fn leaf_at(words: &[M31], n: usize, position: usize) -> Vec<M31> {
    words.chunks_exact(n).map(|word| word[position]).collect()
}

impl CommitKernels for Reference {
    type Base = Vec<M31>;
    type Int8 = Vec<i8>;
    type Words = BaseWords;
    type Ext = Vec<QM31>;
    type ExtWord = Vec<QM31>;
    type Tree = HostTree;

    fn base(&self, values: Vec<M31>) -> Vec<M31> {
        values
    }

    fn int8(&self, values: Vec<i8>) -> Vec<i8> {
        values
    }

    fn ext(&self, values: Vec<QM31>) -> Vec<QM31> {
        values
    }

    fn ext_len(&self, values: &Vec<QM31>) -> usize {
        values.len()
    }

    fn to_host(&self, values: &Vec<QM31>) -> Vec<QM31> {
        values.clone()
    }

    fn encode_base(&self, rows: &Vec<M31>, shape: CodeShape) -> BaseWords {
        let domain = CodeDomain::new(shape.log_n());
        BaseWords(rows.chunks_exact(1 << shape.h).flat_map(|row| code::encode(row, &domain)).collect())
    }

    fn words_tree<S: HashSuite>(&self, words: &BaseWords, shape: CodeShape) -> HostTree {
        let n = 1 << shape.log_n();
        HostTree::obvious::<S>((0..n).map(|i| S::leaf(&leaf_at(&words.0, n, i))).collect())
    }

    fn words_at(&self, words: &BaseWords, shape: CodeShape, positions: &[usize]) -> Vec<M31> {
        positions.iter().flat_map(|&i| leaf_at(&words.0, 1 << shape.log_n(), i)).collect()
    }

    fn encode_int8<S: HashSuite>(&self, rows: &Vec<i8>, shape: CodeShape, leaves: Option<&mut [u8]>) -> HostTree {
        let words = self.encode_base(&rows.iter().map(|&v| signed(i64::from(v))).collect(), shape);
        if let Some(leaves) = leaves {
            let positions: Vec<usize> = (0..1 << shape.log_n()).collect();
            let symbols = self.words_at(&words, shape, &positions);
            for (out, v) in leaves.chunks_exact_mut(4).zip(symbols) {
                out.copy_from_slice(&v.0.to_le_bytes());
            }
        }
        self.words_tree::<S>(&words, shape)
    }

    fn symbols_int8(&self, rows: &Vec<i8>, shape: CodeShape, positions: &[usize]) -> Vec<M31> {
        let words = self.encode_base(&rows.iter().map(|&v| signed(i64::from(v))).collect(), shape);
        self.words_at(&words, shape, positions)
    }

    fn nodes(&self, tree: &HostTree, wanted: &[(u32, usize)]) -> Vec<Digest> {
        wanted.iter().map(|&(level, index)| tree.node(level, index)).collect()
    }

    fn all_nodes(&self, tree: &HostTree) -> Vec<Digest> {
        tree.flat().to_vec()
    }

    fn root(&self, tree: &HostTree) -> Digest {
        tree.node(tree.depth(), 0)
    }

    fn combine_base(&self, rows: &Vec<M31>, h: u32, coefficients: &[QM31]) -> Vec<QM31> {
        let mut out = vec![ZERO; 1 << h];
        for (row, &c) in rows.chunks_exact(1 << h).zip(coefficients) {
            for (f, &v) in out.iter_mut().zip(row) {
                *f += c * v;
            }
        }
        out
    }

    fn combine_int8(&self, rows: &Vec<i8>, h: u32, coefficients: &[QM31]) -> Vec<QM31> {
        self.combine_base(&rows.iter().map(|&v| signed(i64::from(v))).collect(), h, coefficients)
    }

    fn partials_base(&self, rows: &Vec<M31>, point: &[QM31]) -> Vec<QM31> {
        rows.chunks_exact(1 << point.len()).map(|slot| field::mle_eval_base(slot, point)).collect()
    }

    fn partials_int8(&self, rows: &Vec<i8>, point: &[QM31]) -> Vec<QM31> {
        self.partials_base(&rows.iter().map(|&v| signed(i64::from(v))).collect(), point)
    }

    fn outer(&self, low: &[QM31], high: &[QM31]) -> Vec<QM31> {
        high.iter().flat_map(|&b| low.iter().map(move |&a| a * b)).collect()
    }

    fn weighted_sum(&self, terms: &[(&Vec<QM31>, QM31)]) -> Vec<QM31> {
        let len = terms.first().map_or(0, |(v, _)| v.len());
        (0..len).map(|i| terms.iter().fold(ZERO, |acc, (v, w)| acc + v[i] * *w)).collect()
    }

    fn product_round(&self, f: &Vec<QM31>, k: &Vec<QM31>) -> [QM31; 2] {
        let mut out = [ZERO; 2];
        for (a, b) in f.chunks_exact(2).zip(k.chunks_exact(2)) {
            out[0] += a[0] * b[0];
            out[1] += (a[1] + a[1] - a[0]) * (b[1] + b[1] - b[0]);
        }
        out
    }

    fn product_round_full(&self, f: &Vec<QM31>, k: &Vec<QM31>) -> [QM31; 3] {
        let mut out = [ZERO; 3];
        for (a, b) in f.chunks_exact(2).zip(k.chunks_exact(2)) {
            out[0] += a[0] * b[0];
            out[1] += a[1] * b[1];
            out[2] += (a[1] + a[1] - a[0]) * (b[1] + b[1] - b[0]);
        }
        out
    }

    fn bind(&self, v: &Vec<QM31>, r: QM31) -> Vec<QM31> {
        v.chunks_exact(2).map(|p| (ONE - r) * p[0] + r * p[1]).collect()
    }

    fn encode_ext(&self, message: &Vec<QM31>, shape: CodeShape) -> Vec<QM31> {
        code::encode(message, &CodeDomain::new(shape.log_n()))
    }

    fn fold_word(&self, word: &Vec<QM31>, shape: CodeShape, round: u32, alpha: QM31) -> Vec<QM31> {
        code::fold(word, &CodeDomain::new(shape.log_n()), round, alpha)
    }

    fn blocks_tree<S: HashSuite>(&self, word: &Vec<QM31>, step: u32) -> HostTree {
        let leaf = |block: &[QM31]| S::leaf(&block.iter().flat_map(|v| v.to_m31_array()).collect::<Vec<_>>());
        HostTree::obvious::<S>(word.chunks_exact(1 << step).map(leaf).collect())
    }

    fn blocks_at(&self, word: &Vec<QM31>, step: u32, blocks: &[usize]) -> Vec<QM31> {
        blocks.iter().flat_map(|&b| word[b << step..(b + 1) << step].iter().copied()).collect()
    }

    fn grind<S: HashSuite>(&self, prefix: &Digest, bits: u32) -> u64 {
        (0..u64::MAX).find(|&nonce| pow_ok::<S>(prefix, bits, nonce)).unwrap_or(u64::MAX)
    }
}
