//! Commitment kernels, SIMD tier: which path each size takes, and the Merkle trees.

use super::encode::{aligned, encode_row, is_small, packs};
use super::hash::{self, BLOCK, Lane, State};
use super::{Simd, SimdExt, combine, ext, int8};
use crate::kernels::reference::{Reference, code};
use crate::kernels::{CodeShape, CommitKernels, HostTree};
use bytemuck::{cast_slice, cast_slice_mut};
use obelysk_protocol::field::{M31, QM31, signed};
use obelysk_protocol::transcript::{Blake2s, Digest, HashSuite, pow_ok};
use rayon::prelude::*;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};

/// Groups of 16 positions one hashing task handles: long enough reads of every word, states still in the first-level cache.
const GROUPS: usize = 16;
/// Rows encoded before they are written position-major: one Blake2s block of every leaf.
const BATCH: usize = BLOCK;

/// Words of all rows, row after row, aligned for 16 lanes.
#[derive(Clone, Debug)]
pub struct AlignedWords {
    packs: Vec<PackedM31>,
    len: usize,
}

impl AlignedWords {
    /// All symbols, canonical.
    #[must_use]
    pub fn symbols(&self) -> &[M31] {
        &cast_slice(&self.packs)[..self.len]
    }
}

fn is_blake<S: HashSuite>() -> bool {
    S::ID == Blake2s::ID
}

/// Builds a tree with 16-lane levels as long as they are wide enough.
fn tree<S: HashSuite>(leaves: Vec<Digest>) -> HostTree {
    HostTree::build(leaves, |below, up| {
        if is_blake::<S>() && below.len() >= 32 {
            *up = hash::level(below);
        } else {
            up.extend(below.par_chunks_exact(2).map(|p| S::node(&p[0], &p[1])).collect::<Vec<_>>());
        }
    })
}

/// Leaf digests of 16-lane words: every word is `packs_per_word` packs, one after the other.
fn leaf_digests(words: &[PackedM31], packs_per_word: usize) -> Vec<Digest> {
    let rows = words.len() / packs_per_word;
    let mut out = vec![[0u8; 32]; packs_per_word * N_LANES];
    out.par_chunks_mut(GROUPS * N_LANES).enumerate().for_each(|(task, out)| {
        let groups = out.len() / N_LANES;
        let mut states = [hash::leaf_state(); GROUPS];
        for first in (0..rows).step_by(BLOCK) {
            let count = BLOCK.min(rows - first);
            for (g, state) in states.iter_mut().enumerate().take(groups) {
                let mut block = [hash::ZERO; BLOCK];
                for (i, lane) in block.iter_mut().enumerate().take(count) {
                    *lane = lane_of(words[(first + i) * packs_per_word + task * GROUPS + g]);
                }
                hash::compress(state, &block, 4 * (first + count), first + count == rows);
            }
        }
        for (out, state) in out.chunks_exact_mut(N_LANES).zip(states) {
            out.copy_from_slice(&hash::digests(state));
        }
    });
    out
}

fn lane_of(pack: PackedM31) -> Lane {
    Lane(bytemuck::cast(pack))
}

/// Hashes one batch of encoded rows into the states.
fn absorb_batch(scratch: &[PackedM31], per_word: usize, first: usize, rows: usize, states: &mut [State]) {
    let end = first + scratch.len() / per_word;
    states.par_iter_mut().with_min_len(GROUPS).enumerate().for_each(|(group, state)| {
        hash::compress(state, &block_of(scratch, per_word, group), 4 * end, end == rows);
    });
}

/// A block's words at 16 positions.
fn block_of(scratch: &[PackedM31], per_word: usize, group: usize) -> [Lane; BLOCK] {
    let mut block = [hash::ZERO; BLOCK];
    for (lane, word) in block.iter_mut().zip(scratch.chunks_exact(per_word)) {
        *lane = lane_of(word[group]);
    }
    block
}

/// As [`absorb_batch`], and writes the batch position-major.
fn keep_batch(scratch: &[PackedM31], per_word: usize, first: usize, rows: usize, states: &mut [State], leaves: &mut [u8]) {
    let count = scratch.len() / per_word;
    let last = first + count == rows;
    let leaf = 4 * rows;
    states.par_iter_mut().zip(leaves.par_chunks_mut(N_LANES * leaf)).with_min_len(GROUPS).enumerate().for_each(
        |(group, (state, leaves))| {
            let block = block_of(scratch, per_word, group);
            hash::compress(state, &block, 4 * (first + count), last);
            for (symbols, out) in hash::transpose(block).iter().zip(leaves.chunks_exact_mut(leaf)) {
                out[4 * first..4 * (first + count)].copy_from_slice(&cast_slice::<u32, u8>(&symbols.0)[..4 * count]);
            }
        },
    );
}

impl Simd {
    fn small_tree<S: HashSuite>(words: &[M31], n: usize) -> HostTree {
        let leaf = |i| S::leaf(&words.chunks_exact(n).map(|w| w[i]).collect::<Vec<_>>());
        tree::<S>((0..n).into_par_iter().map(leaf).collect())
    }
}

impl CommitKernels for Simd {
    type Base = Vec<M31>;
    type Int8 = Vec<i8>;
    type Words = AlignedWords;
    type Ext = SimdExt;
    type ExtWord = SimdExt;
    type Tree = HostTree;

    fn base(&self, values: Vec<M31>) -> Vec<M31> {
        values
    }

    fn int8(&self, values: Vec<i8>) -> Vec<i8> {
        values
    }

    fn ext(&self, values: Vec<QM31>) -> SimdExt {
        SimdExt::from_host(&values)
    }

    fn ext_len(&self, values: &SimdExt) -> usize {
        values.len
    }

    fn to_host(&self, values: &SimdExt) -> Vec<QM31> {
        values.to_host()
    }

    fn encode_base(&self, rows: &Vec<M31>, shape: CodeShape) -> AlignedWords {
        let tables = self.tables(shape.log_n());
        let n = 1usize << shape.log_n();
        let len = (rows.len() >> shape.h) * n;
        let mut out = aligned(len);
        if n < N_LANES {
            let words = rows.chunks_exact(1 << shape.h).flat_map(|row| code::encode(row, &tables.domain));
            for (o, v) in cast_slice_mut::<_, M31>(&mut out).iter_mut().zip(words) {
                *o = v;
            }
        } else {
            out.par_chunks_exact_mut(packs(n)).zip(rows.par_chunks_exact(1 << shape.h)).for_each_init(
                || aligned(1 << shape.h),
                |src, (dst, row)| {
                    cast_slice_mut::<_, M31>(src)[..row.len()].copy_from_slice(row);
                    encode_row(&tables, shape, src, dst);
                },
            );
        }
        AlignedWords { packs: out, len }
    }

    fn words_tree<S: HashSuite>(&self, words: &AlignedWords, shape: CodeShape) -> HostTree {
        let n = 1usize << shape.log_n();
        if !is_blake::<S>() || n < N_LANES {
            return Self::small_tree::<S>(words.symbols(), n);
        }
        tree::<S>(leaf_digests(&words.packs, packs(n)))
    }

    fn words_at(&self, words: &AlignedWords, shape: CodeShape, positions: &[usize]) -> Vec<M31> {
        let word = |i: usize| words.symbols().chunks_exact(1 << shape.log_n()).map(move |w| w[i]);
        positions.iter().flat_map(|&i| word(i)).collect()
    }

    fn encode_int8<S: HashSuite>(&self, rows: &Vec<i8>, shape: CodeShape, mut leaves: Option<&mut [u8]>) -> HostTree {
        if !is_blake::<S>() || is_small(shape) {
            return Reference.encode_int8::<S>(rows, shape, leaves);
        }
        let tables = self.tables(shape.log_n());
        let per_word = packs(1 << shape.log_n());
        let count = rows.len() >> shape.h;
        let mut states = vec![hash::leaf_state(); per_word];
        let mut scratch = aligned(BATCH << shape.log_n());
        for (batch, rows) in rows.chunks(BATCH << shape.h).enumerate() {
            let scratch = &mut scratch[..(rows.len() >> shape.h) * per_word];
            scratch.par_chunks_exact_mut(per_word).zip(rows.par_chunks_exact(1 << shape.h)).for_each_init(
                || aligned(1 << shape.h),
                |src, (dst, row)| {
                    for (s, &v) in cast_slice_mut::<_, M31>(src).iter_mut().zip(row) {
                        *s = signed(i64::from(v));
                    }
                    encode_row(&tables, shape, src, dst);
                },
            );
            match &mut leaves {
                Some(leaves) => keep_batch(scratch, per_word, batch * BATCH, count, &mut states, leaves),
                None => absorb_batch(scratch, per_word, batch * BATCH, count, &mut states),
            }
        }
        tree::<S>(states.into_iter().flat_map(hash::digests).collect())
    }

    fn symbols_int8(&self, rows: &Vec<i8>, shape: CodeShape, positions: &[usize]) -> Vec<M31> {
        int8::symbols(int8::Path::best(), rows, shape, positions)
    }

    fn nodes(&self, tree: &HostTree, wanted: &[(u32, usize)]) -> Vec<Digest> {
        Reference.nodes(tree, wanted)
    }

    fn all_nodes(&self, tree: &HostTree) -> Vec<Digest> {
        Reference.all_nodes(tree)
    }

    fn root(&self, tree: &HostTree) -> Digest {
        Reference.root(tree)
    }

    fn combine_base(&self, rows: &Vec<M31>, h: u32, coefficients: &[QM31]) -> SimdExt {
        if 1 << h < N_LANES {
            return SimdExt::from_host(&Reference.combine_base(rows, h, coefficients));
        }
        combine::base(rows, h, coefficients)
    }

    fn combine_int8(&self, rows: &Vec<i8>, h: u32, coefficients: &[QM31]) -> SimdExt {
        int8::combine(int8::Path::best(), rows, 1 << h, coefficients)
    }

    fn partials_base(&self, rows: &Vec<M31>, point: &[QM31]) -> Vec<QM31> {
        if 1 << point.len() < N_LANES {
            return Reference.partials_base(rows, point);
        }
        combine::partials(rows, point)
    }

    fn partials_int8(&self, rows: &Vec<i8>, point: &[QM31]) -> Vec<QM31> {
        int8::partials(int8::Path::best(), rows, point)
    }

    fn outer(&self, low: &[QM31], high: &[QM31]) -> SimdExt {
        if !low.len().is_multiple_of(N_LANES) {
            return SimdExt::from_host(&Reference.outer(low, high));
        }
        ext::outer(low, high)
    }

    fn weighted_sum(&self, terms: &[(&SimdExt, QM31)]) -> SimdExt {
        ext::weighted_sum(terms)
    }

    fn product_round(&self, f: &SimdExt, k: &SimdExt) -> [QM31; 2] {
        if f.is_small() {
            return Reference.product_round(&f.to_host(), &k.to_host());
        }
        ext::product_round(f, k)
    }

    fn product_round_full(&self, f: &SimdExt, k: &SimdExt) -> [QM31; 3] {
        if f.is_small() {
            return Reference.product_round_full(&f.to_host(), &k.to_host());
        }
        ext::product_round_full(f, k)
    }

    fn bind(&self, v: &SimdExt, r: QM31) -> SimdExt {
        if v.is_small() {
            return SimdExt::from_host(&Reference.bind(&v.to_host(), r));
        }
        ext::bind(v, r)
    }

    fn encode_ext(&self, message: &SimdExt, shape: CodeShape) -> SimdExt {
        if is_small(shape) {
            return SimdExt::from_host(&Reference.encode_ext(&message.to_host(), shape));
        }
        ext::encode(&self.tables(shape.log_n()), shape, message)
    }

    fn fold_word(&self, word: &SimdExt, shape: CodeShape, round: u32, alpha: QM31) -> SimdExt {
        if word.is_small() {
            return SimdExt::from_host(&Reference.fold_word(&word.to_host(), shape, round, alpha));
        }
        ext::fold_word(&self.tables(shape.log_n()), word, round, alpha)
    }

    fn blocks_tree<S: HashSuite>(&self, word: &SimdExt, step: u32) -> HostTree {
        let symbols: Vec<M31> =
            word.packs.par_iter().flat_map_iter(|p| p.to_array().map(|v| v.to_m31_array())).flatten_iter().collect();
        let symbols = &symbols[..4 * word.len];
        let per_leaf = 4usize << step;
        let leaves = word.len >> step;
        if !is_blake::<S>() || leaves < N_LANES {
            return tree::<S>(symbols.par_chunks_exact(per_leaf).map(S::leaf).collect());
        }
        let group = |leaves: &[M31]| {
            let mut state = hash::leaf_state();
            let bytes: &[u8] = cast_slice(leaves);
            for first in (0..per_leaf).step_by(BLOCK) {
                let end = per_leaf.min(first + BLOCK);
                let block = std::array::from_fn(|i| hash::message(&bytes[4 * (i * per_leaf + first)..4 * (i * per_leaf + end)]));
                hash::compress(&mut state, &hash::transpose(block), 4 * end, end == per_leaf);
            }
            hash::digests(state)
        };
        tree::<S>(symbols.par_chunks_exact(per_leaf * N_LANES).flat_map_iter(group).collect())
    }

    fn blocks_at(&self, word: &SimdExt, step: u32, blocks: &[usize]) -> Vec<QM31> {
        blocks.iter().flat_map(|&b| (b << step..(b + 1) << step).map(|i| word.at(i))).collect()
    }

    fn grind<S: HashSuite>(&self, prefix: &Digest, bits: u32) -> u64 {
        if is_blake::<S>() {
            return hash::grind(prefix, bits);
        }
        (0..u64::MAX).into_par_iter().find_first(|&nonce| pow_ok::<S>(prefix, bits, nonce)).unwrap_or(u64::MAX)
    }
}
