//! Axes: how logical channels become block columns (`docs/soundness.md`, "Axes and blocks").
//!
//! Token is the low axis of every column. C = c 2^k channels are c block columns of 2^k channels; the block index is the
//! high part of the channel index, so any logical point splits into `lo` and `hi` without reordering.

use super::segment::{Coord, Eval, log2_ceil};

/// A logical column: its blocks and how many variables a block and the block index have.
#[derive(Clone, Debug)]
pub struct Logical {
    /// One column id per block.
    pub blocks: Vec<u32>,
    /// Variables inside a block.
    pub lo: usize,
    /// Variables of the block index.
    pub hi: usize,
}

/// Blocks of a channel axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Number of blocks c.
    pub count: usize,
    /// k: log2 of the channels in a block.
    pub log: usize,
}

impl Blocks {
    /// The decomposition C = c 2^k with odd c.
    #[must_use]
    pub fn of(channels: usize) -> Self {
        let log = channels.trailing_zeros() as usize;
        Self { count: channels >> log, log }
    }

    /// Variables of the block index.
    #[must_use]
    pub fn hi(self) -> usize {
        log2_ceil(self.count)
    }

    /// The slice of a per-channel vector that belongs to block `b`.
    #[must_use]
    pub fn slice<T>(self, b: usize, values: &[T]) -> &[T] {
        values.get(b << self.log..(b + 1) << self.log).unwrap_or(&[])
    }
}

/// `rho[from..from + n]`.
#[must_use]
pub fn rho(from: usize, n: usize) -> Vec<Coord> {
    (from..from + n).map(Coord::Rho).collect()
}

/// `kappa[from..from + n]`.
#[must_use]
pub fn kappa(from: usize, n: usize) -> Vec<Coord> {
    (from..from + n).map(Coord::Kappa).collect()
}

/// Concatenates coordinate lists.
#[must_use]
pub fn join(parts: &[Vec<Coord>]) -> Vec<Coord> {
    parts.concat()
}

impl Logical {
    /// The logical column at a full point: the first `lo` coordinates inside the block, the rest over blocks.
    #[must_use]
    pub fn at(&self, point: &[Coord]) -> Eval {
        let (lo, hi) = point.split_at(self.lo.min(point.len()));
        debug_assert_eq!(hi.len(), self.hi);
        Eval { blocks: self.blocks.clone(), lo: lo.to_vec(), hi: hi.to_vec() }
    }

    /// The logical column at rho, block index at the coordinates that follow.
    #[must_use]
    pub fn at_rho(&self) -> Eval {
        self.at(&rho(0, self.lo + self.hi))
    }

    /// One block alone at `lo`.
    #[must_use]
    pub fn block_at(&self, b: usize, lo: Vec<Coord>) -> Eval {
        Eval { blocks: self.blocks.get(b).copied().into_iter().collect(), lo, hi: Vec::new() }
    }
}
