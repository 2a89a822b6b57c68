//! Merkle trees: Blake2s on the device, other suites on the processor from downloaded symbols.

use super::CudaBackend;
use super::run::{Buffer, THREADS};
use crate::device::{Arg, Device};
use bytemuck::cast_slice_mut;
use obelysk_protocol::field::M31;
use obelysk_protocol::transcript::{Blake2s, Digest, HashSuite};
use obelysk_protocol::verifier::merkle::flat_index;
use rayon::prelude::*;

/// log2 of the nodes from which on one block does all levels.
const TOP_LOG: u32 = 8;
/// Bytes of a digest.
const DIGEST: usize = 32;

/// All nodes of a tree, leaves first.
pub struct Tree<D: Device> {
    depth: u32,
    nodes: Nodes<D>,
}

enum Nodes<D: Device> {
    Device(Buffer<D>),
    Host(Vec<Digest>),
}

/// Whether the device hashes for this suite.
pub(super) fn on_device<S: HashSuite>() -> bool {
    S::ID == Blake2s::ID
}

impl<D: Device> CudaBackend<D> {
    /// Room for a tree over `2^depth` leaves.
    pub(super) fn tree_room(&self, depth: u32) -> Buffer<D> {
        self.buffer(DIGEST * ((2 << depth) - 1))
    }

    /// Fills the levels above the leaves.
    pub(super) fn grow(&self, nodes: Buffer<D>, depth: u32) -> Tree<D> {
        let at = |level: u32| nodes.arg_at(DIGEST * flat_index(depth, level, 0));
        let wide = depth.saturating_sub(TOP_LOG);
        for level in 0..wide {
            let count = 1u64 << (depth - level - 1);
            self.each("tree_level", count, &[at(level), Arg::U64(count), at(level + 1)]);
        }
        if depth > wide {
            self.blocks("tree_top", 1, THREADS / 2, 0, &[at(wide), Arg::U32(depth - wide)]);
        }
        Tree { depth, nodes: Nodes::Device(nodes) }
    }

    /// A tree of a suite that the device does not hash, over leaves of `per_leaf` symbols.
    pub(super) fn host_tree<S: HashSuite>(symbols: &[M31], per_leaf: usize) -> Tree<D> {
        let mut nodes: Vec<Digest> = symbols.par_chunks_exact(per_leaf).map(S::leaf).collect();
        let depth = nodes.len().trailing_zeros();
        for level in 0..depth {
            let below = &nodes[flat_index(depth, level, 0)..];
            let up: Vec<Digest> = below.par_chunks_exact(2).map(|p| S::node(&p[0], &p[1])).collect();
            nodes.extend(up);
        }
        Tree { depth, nodes: Nodes::Host(nodes) }
    }

    pub(super) fn nodes_of(&self, tree: &Tree<D>, wanted: &[(u32, usize)]) -> Vec<Digest> {
        let flat = wanted.iter().map(|&(level, index)| flat_index(tree.depth, level, index));
        match &tree.nodes {
            Nodes::Host(nodes) => flat.map(|i| nodes[i]).collect(),
            Nodes::Device(nodes) => {
                let (words, total) = (DIGEST / 4, wanted.len() * DIGEST / 4);
                let (positions, out) = (self.upload_positions(flat), self.buffer(DIGEST * wanted.len()));
                let args = [nodes.arg(), Arg::U64(words as u64), positions.arg(), Arg::U64(total as u64), out.arg()];
                self.each("gather_blocks", total as u64, &args);
                digests(&out, 0, wanted.len())
            }
        }
    }

    pub(super) fn all_nodes_of(&self, tree: &Tree<D>) -> Vec<Digest> {
        match &tree.nodes {
            Nodes::Host(nodes) => nodes.clone(),
            Nodes::Device(nodes) => digests(nodes, 0, (2 << tree.depth) - 1),
        }
    }

    pub(super) fn root_of(&self, tree: &Tree<D>) -> Digest {
        match &tree.nodes {
            Nodes::Host(nodes) => nodes[nodes.len() - 1],
            Nodes::Device(nodes) => digests(nodes, flat_index(tree.depth, tree.depth, 0), 1)[0],
        }
    }
}

fn digests<D: Device>(nodes: &Buffer<D>, from: usize, count: usize) -> Vec<Digest> {
    let mut out = vec![[0u8; DIGEST]; count];
    nodes.read(DIGEST * from, cast_slice_mut(&mut out));
    out
}
