//! Kernels: the field-heavy inner loops behind a trait, one implementation per kind of hardware.
//!
//! A kernel never sees a transcript and never decides anything. Field arithmetic is exact, so every implementation returns
//! the same bytes as [`reference`], whatever the number of threads. Vectors are low variable first.

pub mod proof;
pub mod reference;
pub mod rows;
pub mod simd;

mod tree;

#[cfg(test)]
mod code_facts;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;

pub use tree::HostTree;

use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::transcript::{Digest, HashSuite};

/// The code of a model: message rows of length `2^h`, words of length `2^(h + blowup_log)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeShape {
    /// Log message length.
    pub h: u32,
    /// Log inverse rate.
    pub blowup_log: u32,
}

impl CodeShape {
    /// Log word length.
    #[must_use]
    pub fn log_n(&self) -> u32 {
        self.h + self.blowup_log
    }
}

/// Kernels of the polynomial commitment.
///
/// Buffers are opaque so that they may live on a device. Lengths are the caller's duty; implementations may panic on
/// lengths that contradict `code`, which are never derived from foreign bytes.
pub trait CommitKernels: Send + Sync {
    /// `R` stacked rows of `2^h` base elements.
    type Base: Send + Sync;
    /// `R` stacked rows of `2^h` signed bytes.
    type Int8: Send + Sync;
    /// `R` words of `2^(h + b)` base elements.
    type Words: Send + Sync;
    /// A vector of extension elements, power-of-two length.
    type Ext: Send + Sync;
    /// One word of extension elements, stored bit-reversed.
    type ExtWord: Send + Sync;
    /// A Merkle tree with all levels.
    type Tree: Send + Sync;

    /// Moves stacked rows into a buffer.
    fn base(&self, values: Vec<M31>) -> Self::Base;
    /// Moves stacked int8 rows into a buffer.
    fn int8(&self, values: Vec<i8>) -> Self::Int8;
    /// Moves extension elements into a buffer.
    fn ext(&self, values: Vec<QM31>) -> Self::Ext;
    /// Elements in a buffer.
    fn ext_len(&self, values: &Self::Ext) -> usize;
    /// Copies a buffer back.
    fn to_host(&self, values: &Self::Ext) -> Vec<QM31>;

    /// Encodes every row.
    fn encode_base(&self, rows: &Self::Base, code: CodeShape) -> Self::Words;
    /// Tree over the positions of `words`; a leaf is one position's symbols of all rows in row order.
    fn words_tree<S: HashSuite>(&self, words: &Self::Words, code: CodeShape) -> Self::Tree;
    /// Symbols at `positions`, leaf after leaf.
    fn words_at(&self, words: &Self::Words, code: CodeShape, positions: &[usize]) -> Vec<M31>;
    /// The tree over the words of int8 rows. With `leaves` given it is filled too: `2^(h+b)` leaves of `R` little-endian
    /// `u32` symbols, position-major.
    fn encode_int8<S: HashSuite>(&self, rows: &Self::Int8, code: CodeShape, leaves: Option<&mut [u8]>) -> Self::Tree;
    /// Symbols of the words of int8 rows at `positions`, leaf after leaf, without encoding whole rows.
    fn symbols_int8(&self, rows: &Self::Int8, code: CodeShape, positions: &[usize]) -> Vec<M31>;
    /// Nodes of a tree by `(level, index)`, leaves at level 0.
    fn nodes(&self, tree: &Self::Tree, wanted: &[(u32, usize)]) -> Vec<Digest>;
    /// All nodes of a tree, level by level from the leaves; the last one is the root.
    fn all_nodes(&self, tree: &Self::Tree) -> Vec<Digest>;
    /// Root of a tree.
    fn root(&self, tree: &Self::Tree) -> Digest;

    /// `F[col] = sum_row coefficients[row] · rows[row][col]`.
    fn combine_base(&self, rows: &Self::Base, h: u32, coefficients: &[QM31]) -> Self::Ext;
    /// As [`Self::combine_base`] for int8 rows.
    fn combine_int8(&self, rows: &Self::Int8, h: u32, coefficients: &[QM31]) -> Self::Ext;
    /// `A[row·2^s + slot] = <rows[row][slot·2^(h-s)..], eq(point)>` with `h - s = point.len()`.
    fn partials_base(&self, rows: &Self::Base, point: &[QM31]) -> Vec<QM31>;
    /// As [`Self::partials_base`] for int8 rows.
    fn partials_int8(&self, rows: &Self::Int8, point: &[QM31]) -> Vec<QM31>;

    /// `out[i + len(low)·j] = low[i] · high[j]`.
    fn outer(&self, low: &[QM31], high: &[QM31]) -> Self::Ext;
    /// `sum_i weight_i · vector_i`; at least one term, equal lengths.
    fn weighted_sum(&self, terms: &[(&Self::Ext, QM31)]) -> Self::Ext;
    /// `[s(0), s(2)]` of `s(X) = sum_i f(X, i) · k(X, i)`, the lowest variable being `X`.
    fn product_round(&self, f: &Self::Ext, k: &Self::Ext) -> [QM31; 2];
    /// As [`Self::product_round`], `[s(0), s(1), s(2)]`: for whoever checks `s(0) + s(1)` against a claim.
    fn product_round_full(&self, f: &Self::Ext, k: &Self::Ext) -> [QM31; 3];
    /// Binds the lowest variable to `r`.
    fn bind(&self, v: &Self::Ext, r: QM31) -> Self::Ext;

    /// Encodes one message.
    fn encode_ext(&self, message: &Self::Ext, code: CodeShape) -> Self::ExtWord;
    /// Fold number `round` of a word whose original log length was `code.log_n()`.
    fn fold_word(&self, word: &Self::ExtWord, code: CodeShape, round: u32, alpha: QM31) -> Self::ExtWord;
    /// Tree over blocks of `2^step` neighbours, a leaf being their coordinates in order.
    fn blocks_tree<S: HashSuite>(&self, word: &Self::ExtWord, step: u32) -> Self::Tree;
    /// The blocks with these numbers, one after the other.
    fn blocks_at(&self, word: &Self::ExtWord, step: u32, blocks: &[usize]) -> Vec<QM31>;

    /// The smallest nonce with `bits` zero bits under `prefix`.
    fn grind<S: HashSuite>(&self, prefix: &Digest, bits: u32) -> u64;
}
