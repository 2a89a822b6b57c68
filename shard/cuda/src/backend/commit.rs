//! [`CommitKernels`] on a device.

use super::CudaBackend;
use super::encode::{BASE, EXTENSION, INT8};
use super::fold::{Entries, Matrix};
use super::run::{Buffer, Column, EXT, Ext, threads_for};
use super::tree::{Tree, on_device};
use crate::device::{Arg, Device};
use bytemuck::cast_slice;
use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::transcript::{Digest, HashSuite, pow_ok};
use obelysk_protocol::verifier::code::{CodeDomain, double_x};
use obelysk_shard::kernels::{CodeShape, CommitKernels};
use rayon::prelude::*;

/// Rows encoded before they are hashed, a multiple of a hash's block.
const BATCH: usize = 64;
/// Positions whose symbols are computed together.
const POSITIONS: usize = 32;
/// Nonces tried in one launch: a first one for short searches, then longer ones.
const NONCES: [u64; 2] = [1 << 12, 1 << 22];

impl<D: Device> CudaBackend<D> {
    /// Words of rows of bytes, `BATCH` at a time: each batch is encoded, hashed into `states`, and shown to `seen`.
    fn each_batch(
        &self,
        rows: &Column<D>,
        code: CodeShape,
        states: Option<&Buffer<D>>,
        mut seen: impl FnMut(usize, &Buffer<D>, usize),
    ) {
        let (n, count) = (1usize << code.log_n(), rows.len >> code.h);
        let words = self.buffer(4 * BATCH.min(count) * n);
        for first in (0..count).step_by(BATCH) {
            let batch = BATCH.min(count - first);
            self.encode(INT8, rows.data.arg_at(first << code.h), batch, code, &words);
            if let Some(states) = states {
                self.absorb(&words, (first, batch, count), n, states);
            }
            seen(first, &words, batch);
        }
    }

    /// Hashes `batch` rows of words into the states, after `first` of `count`.
    fn absorb(&self, words: &Buffer<D>, (first, batch, count): (usize, usize, usize), n: usize, states: &Buffer<D>) {
        let last = Arg::U32(u32::from(first + batch == count));
        let args = [words.arg(), Arg::U32(batch as u32), Arg::U64(n as u64), Arg::U64(first as u64), last, states.arg()];
        self.each("absorb_rows", n as u64, &args);
    }

    /// The values that index bits multiply at a position: y, x, and x doubled again and again.
    fn factors(domain: &CodeDomain, h: u32, position: usize) -> Vec<M31> {
        let (x, y) = domain.point(position);
        let doubled = std::iter::successors(Some(x), |&x| Some(double_x(x)));
        std::iter::once(y).chain(doubled).take(h as usize).collect()
    }
}

/// Copies a batch of words, row after row, to its place among position-major leaves of `count` symbols.
fn scatter(words: &[u32], first: usize, count: usize, leaves: &mut [u8]) {
    let n = leaves.len() / (4 * count);
    leaves.par_chunks_exact_mut(4 * count).enumerate().for_each(|(position, leaf)| {
        for (out, word) in leaf[4 * first..].chunks_exact_mut(4).zip(words.chunks_exact(n)) {
            out.copy_from_slice(&word[position].to_le_bytes());
        }
    });
}

impl<D: Device> CommitKernels for CudaBackend<D> {
    type Base = Column<D>;
    type Int8 = Column<D>;
    type Words = Column<D>;
    type Ext = Ext<D>;
    type ExtWord = Ext<D>;
    type Tree = Tree<D>;

    fn base(&self, values: Vec<M31>) -> Column<D> {
        Column { data: self.upload_base(&values), len: values.len() }
    }

    fn int8(&self, values: Vec<i8>) -> Column<D> {
        Column { data: self.upload(cast_slice(&values)), len: values.len() }
    }

    fn ext(&self, values: Vec<QM31>) -> Ext<D> {
        self.vector_of(&values)
    }

    fn ext_len(&self, values: &Ext<D>) -> usize {
        values.len
    }

    fn to_host(&self, values: &Ext<D>) -> Vec<QM31> {
        values.to_host()
    }

    fn encode_base(&self, rows: &Column<D>, code: CodeShape) -> Column<D> {
        let count = rows.len >> code.h;
        let len = count << code.log_n();
        let data = self.buffer(4 * len);
        self.encode(BASE, rows.data.arg(), count, code, &data);
        Column { data, len }
    }

    fn words_tree<S: HashSuite>(&self, words: &Column<D>, code: CodeShape) -> Tree<D> {
        let (n, count) = (1usize << code.log_n(), words.len >> code.log_n());
        if !on_device::<S>() {
            let positions: Vec<usize> = (0..n).collect();
            return Self::host_tree::<S>(&self.words_at(words, code, &positions), count);
        }
        let nodes = self.tree_room(code.log_n());
        self.absorb(&words.data, (0, count, count), n, &nodes);
        self.grow(nodes, code.log_n())
    }

    fn words_at(&self, words: &Column<D>, code: CodeShape, positions: &[usize]) -> Vec<M31> {
        let (n, rows) = (1u64 << code.log_n(), words.len >> code.log_n());
        let total = rows * positions.len();
        let (at, out) = (self.upload_positions(positions.iter().copied()), self.buffer(4 * total));
        let args = [words.data.arg(), Arg::U64(n), Arg::U64(rows as u64), at.arg(), Arg::U64(total as u64), out.arg()];
        self.each("gather_leaves", total as u64, &args);
        out.words(0, total).into_iter().map(M31::from_u32_unchecked).collect()
    }

    fn encode_int8<S: HashSuite>(&self, rows: &Column<D>, code: CodeShape, mut leaves: Option<&mut [u8]>) -> Tree<D> {
        let (n, count) = (1usize << code.log_n(), rows.len >> code.h);
        let show =
            |first: usize, words: &Buffer<D>, batch: usize, to: &mut [u8]| scatter(&words.words(0, batch * n), first, count, to);
        if !on_device::<S>() {
            let mut own = vec![0u8; 4 * n * count];
            self.each_batch(rows, code, None, |first, words, batch| show(first, words, batch, &mut own));
            if let Some(leaves) = leaves {
                leaves.copy_from_slice(&own);
            }
            let word = |b: &[u8]| M31::from_u32_unchecked(u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            return Self::host_tree::<S>(&own.chunks_exact(4).map(word).collect::<Vec<_>>(), count);
        }
        let nodes = self.tree_room(code.log_n());
        self.each_batch(rows, code, Some(&nodes), |first, words, batch| {
            if let Some(leaves) = &mut leaves {
                show(first, words, batch, leaves);
            }
        });
        self.grow(nodes, code.log_n())
    }

    fn symbols_int8(&self, rows: &Column<D>, code: CodeShape, positions: &[usize]) -> Vec<M31> {
        let (domain, count) = (CodeDomain::new(code.log_n()), rows.len >> code.h);
        let out = self.buffer(4 * count * positions.len());
        let threads = threads_for(1 << code.h);
        for (batch, at) in positions.chunks(POSITIONS).enumerate() {
            let factors: Vec<M31> = at.iter().flat_map(|&p| Self::factors(&domain, code.h, p)).collect();
            let (factors, n) = (self.upload_base(&factors), (at.len() as u64) << code.h);
            let basis = self.buffer(4 * n as usize);
            self.each("basis_at", n, &[factors.arg(), Arg::U32(code.h), Arg::U64(n), basis.arg()]);
            let to = out.arg_at(4 * count * batch * POSITIONS);
            let args = [rows.data.arg(), Arg::U32(code.h), Arg::U64(count as u64), basis.arg(), to];
            self.blocks("symbols_int8", (count * at.len()) as u64, threads, (threads as usize + 1) * EXT, &args);
        }
        out.words(0, count * positions.len()).into_iter().map(M31::from_u32_unchecked).collect()
    }

    fn nodes(&self, tree: &Tree<D>, wanted: &[(u32, usize)]) -> Vec<Digest> {
        self.nodes_of(tree, wanted)
    }

    fn all_nodes(&self, tree: &Tree<D>) -> Vec<Digest> {
        self.all_nodes_of(tree)
    }

    fn root(&self, tree: &Tree<D>) -> Digest {
        self.root_of(tree)
    }

    fn combine_base(&self, rows: &Column<D>, h: u32, coefficients: &[QM31]) -> Ext<D> {
        let count = (rows.len >> h).min(coefficients.len()) as u64;
        let m = Matrix { entries: Entries::Base, data: rows.data.arg(), rows: count, columns: 1 << h };
        self.combined(m, coefficients, 1 << h)
    }

    fn combine_int8(&self, rows: &Column<D>, h: u32, coefficients: &[QM31]) -> Ext<D> {
        let count = (rows.len >> h).min(coefficients.len()) as u64;
        let m = Matrix { entries: Entries::Int8, data: rows.data.arg(), rows: count, columns: 1 << h };
        self.combined(m, coefficients, 1 << h)
    }

    fn partials_base(&self, rows: &Column<D>, point: &[QM31]) -> Vec<QM31> {
        self.dots("dots_base", &rows.data, rows.len, &self.eq_of(point))
    }

    fn partials_int8(&self, rows: &Column<D>, point: &[QM31]) -> Vec<QM31> {
        self.dots("dots_int8", &rows.data, rows.len, &self.eq_of(point))
    }

    fn outer(&self, low: &[QM31], high: &[QM31]) -> Ext<D> {
        self.outer_of(low, high)
    }

    fn weighted_sum(&self, terms: &[(&Ext<D>, QM31)]) -> Ext<D> {
        let out = self.empty_ext(terms.first().map_or(0, |(v, _)| v.len));
        let vectors = self.upload_u64(&terms.iter().map(|(v, _)| v.data.address()).collect::<Vec<_>>());
        let weights = self.upload_ext(&terms.iter().map(|t| t.1).collect::<Vec<_>>());
        let (count, n) = (Arg::U32(terms.len() as u32), out.len as u64);
        self.each("weighted_ext", n, &[vectors.arg(), weights.arg(), count, Arg::U64(n), out.data.arg()]);
        out
    }

    fn product_round(&self, f: &Ext<D>, k: &Ext<D>) -> [QM31; 2] {
        let [s0, _, s2] = self.product_round_full(f, k);
        [s0, s2]
    }

    fn product_round_full(&self, f: &Ext<D>, k: &Ext<D>) -> [QM31; 3] {
        let n = (f.len / 2) as u64;
        self.sums("pair_round", n, &[f.data.arg(), k.data.arg(), Arg::U64(n)])
    }

    fn bind(&self, v: &Ext<D>, r: QM31) -> Ext<D> {
        self.bind_of(v, r)
    }

    fn encode_ext(&self, message: &Ext<D>, code: CodeShape) -> Ext<D> {
        let word = self.empty_ext(1 << code.log_n());
        self.encode(EXTENSION, message.data.arg(), 1, code, &word.data);
        word
    }

    fn fold_word(&self, word: &Ext<D>, code: CodeShape, round: u32, alpha: QM31) -> Ext<D> {
        self.fold_of(word, code, round, alpha)
    }

    fn blocks_tree<S: HashSuite>(&self, word: &Ext<D>, step: u32) -> Tree<D> {
        let (leaves, per_leaf) = (word.len >> step, 4usize << step);
        if !on_device::<S>() {
            let symbols: Vec<M31> = word.data.words(0, 4 * word.len).into_iter().map(M31::from_u32_unchecked).collect();
            return Self::host_tree::<S>(&symbols, per_leaf);
        }
        let depth = leaves.trailing_zeros();
        let nodes = self.tree_room(depth);
        let args = [word.data.arg(), Arg::U32(per_leaf as u32), Arg::U64(leaves as u64), nodes.arg()];
        self.each("hash_blocks", leaves as u64, &args);
        self.grow(nodes, depth)
    }

    fn blocks_at(&self, word: &Ext<D>, step: u32, blocks: &[usize]) -> Vec<QM31> {
        let (width, total) = (4u64 << step, blocks.len() << (step + 2));
        let (at, out) = (self.upload_positions(blocks.iter().copied()), self.empty_ext(total / 4));
        let args = [word.data.arg(), Arg::U64(width), at.arg(), Arg::U64(total as u64), out.data.arg()];
        self.each("gather_blocks", total as u64, &args);
        out.to_host()
    }

    fn grind<S: HashSuite>(&self, prefix: &Digest, bits: u32) -> u64 {
        if !on_device::<S>() {
            return (0..u64::MAX).into_par_iter().find_first(|&nonce| pow_ok::<S>(prefix, bits, nonce)).unwrap_or(u64::MAX);
        }
        let (prefix, mut from) = (self.upload(prefix), 0u64);
        while from < u64::MAX / 2 {
            let count = NONCES[usize::from(from > 0)];
            let found = self.upload_u64(&[u64::MAX]);
            self.each("grind", count, &[prefix.arg(), Arg::U32(bits), Arg::U64(from), Arg::U64(count), found.arg()]);
            let words = found.words(0, 2);
            let nonce = u64::from(words[0]) | u64::from(words[1]) << 32;
            if nonce < u64::MAX {
                return nonce;
            }
            from += count;
        }
        u64::MAX
    }
}
