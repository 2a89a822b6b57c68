//! A Merkle tree in host memory, all levels in one flat vector, leaves first.

use obelysk_protocol::transcript::{Digest, HashSuite};
use obelysk_protocol::verifier::merkle::flat_index;

/// All nodes of a tree over `2^depth` leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTree {
    depth: u32,
    nodes: Vec<Digest>,
}

impl HostTree {
    /// Builds the inner levels with `level`, which maps the digests of one level to those of the next.
    pub(crate) fn build(leaves: Vec<Digest>, level: impl Fn(&[Digest], &mut Vec<Digest>)) -> Self {
        debug_assert!(leaves.len().is_power_of_two());
        let depth = leaves.len().trailing_zeros();
        let mut nodes = leaves;
        let mut start = 0;
        let mut up = Vec::new();
        for k in 0..depth {
            level(&nodes[start..], &mut up);
            start += 1 << (depth - k);
            nodes.append(&mut up);
        }
        Self { depth, nodes }
    }

    /// Builds the inner levels one pair at a time.
    pub(crate) fn obvious<S: HashSuite>(leaves: Vec<Digest>) -> Self {
        Self::build(leaves, |below, up| up.extend(below.chunks_exact(2).map(|p| S::node(&p[0], &p[1]))))
    }

    /// Levels above the leaves.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// The node `(level, index)`.
    #[must_use]
    pub fn node(&self, level: u32, index: usize) -> Digest {
        self.nodes[flat_index(self.depth, level, index)]
    }

    /// All nodes, leaves first.
    #[must_use]
    pub fn flat(&self) -> &[Digest] {
        &self.nodes
    }
}
