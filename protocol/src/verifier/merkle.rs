//! Merkle multiproofs over positions: one deduplicated proof per tree, nodes in one canonical order.
//!
//! Level 0 is the leaves. Going up, a node is sent exactly where a path needs a sibling that no other path computes; nodes
//! come level by level, left to right. Nothing is sent twice and nothing may be left over.

use crate::transcript::{Digest, HashSuite};

/// Why a multiproof does not lead to the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MerkleError {
    /// A node is not the one encoding of its value.
    #[error("a Merkle node is not canonical")]
    Canonical,
    /// No leaf, leaves out of order or twice, or an index outside the tree.
    #[error("leaf indices are not strictly increasing inside the tree: sort and deduplicate the queried positions")]
    Indices,
    /// More or fewer nodes than the indices call for.
    #[error("multiproof does not have exactly the nodes its positions need: open the positions of this transcript")]
    NodeCount,
    /// The recomputed root differs.
    #[error("opened leaves do not hash to the committed root: the data is not what was committed")]
    Root,
}

/// Offset of `(level, index)` in a tree stored flat, leaves first, `2^(depth + 1) - 1` nodes in all.
#[must_use]
pub fn flat_index(depth: u32, level: u32, index: usize) -> usize {
    (2usize << depth) - (2usize << (depth - level)) + index
}

/// Moves one level up: the sorted parents of sorted `indices`, and for each whether both children are known.
fn parents(indices: &[usize]) -> Vec<(usize, bool)> {
    let mut out: Vec<(usize, bool)> = Vec::with_capacity(indices.len());
    for &i in indices {
        match out.last_mut() {
            Some(last) if last.0 == i >> 1 => last.1 = true,
            _ => out.push((i >> 1, false)),
        }
    }
    out
}

/// The nodes a proof for sorted, distinct `leaves` consists of, as `(level, index)` in canonical order.
#[must_use]
pub fn proof_nodes(depth: u32, leaves: &[usize]) -> Vec<(u32, usize)> {
    let mut out = Vec::new();
    let mut level_indices = leaves.to_vec();
    for level in 0..depth {
        let up = parents(&level_indices);
        let single = up.iter().filter(|(_, both)| !both).map(|(p, _)| *p);
        for parent in single {
            // The known child decides which sibling is missing.
            let left_known = level_indices.binary_search(&(2 * parent)).is_ok();
            out.push((level, 2 * parent + usize::from(left_known)));
        }
        level_indices = up.into_iter().map(|(p, _)| p).collect();
    }
    out
}

/// Checks that `leaves` (index, digest; strictly increasing) lie under `root` in a tree of `2^depth` leaves.
///
/// # Errors
/// [`MerkleError`] on any deviation, surplus nodes included.
pub fn verify<S: HashSuite>(root: &Digest, depth: u32, leaves: &[(usize, Digest)], nodes: &[Digest]) -> Result<(), MerkleError> {
    let increasing = leaves.iter().zip(leaves.iter().skip(1)).all(|(a, b)| a.0 < b.0);
    let inside = leaves.last().is_some_and(|l| l.0.checked_shr(depth).unwrap_or(0) == 0);
    if !increasing || !inside {
        return Err(MerkleError::Indices);
    }
    if !nodes.iter().all(S::is_canonical) {
        return Err(MerkleError::Canonical);
    }
    let mut sent = nodes.iter();
    let mut level: Vec<(usize, Digest)> = leaves.to_vec();
    for _ in 0..depth {
        let (mut up, mut children) = (Vec::with_capacity(level.len()), Vec::with_capacity(level.len()));
        let mut known = level.iter().peekable();
        while let Some((index, digest)) = known.next() {
            children.push(if index & 1 == 1 {
                [*sent.next().ok_or(MerkleError::NodeCount)?, *digest]
            } else if let Some((_, right)) = known.next_if(|next| next.0 == index + 1) {
                [*digest, *right]
            } else {
                [*digest, *sent.next().ok_or(MerkleError::NodeCount)?]
            });
            up.push(index >> 1);
        }
        level = up.into_iter().zip(S::nodes(&children)).collect();
    }
    if sent.next().is_some() {
        return Err(MerkleError::NodeCount);
    }
    match level.as_slice() {
        [(0, found)] if found == root => Ok(()),
        _ => Err(MerkleError::Root),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::M31;
    use crate::transcript::Blake2s;

    fn tree(depth: u32) -> Vec<Digest> {
        let mut flat: Vec<Digest> = (0..1u32 << depth).map(|i| Blake2s::leaf(&[M31::from_u32_unchecked(i)])).collect();
        for level in 1..=depth {
            for i in 0..1usize << (depth - level) {
                let l = flat[flat_index(depth, level - 1, 2 * i)];
                let r = flat[flat_index(depth, level - 1, 2 * i + 1)];
                assert_eq!(flat.len(), flat_index(depth, level, i));
                flat.push(Blake2s::node(&l, &r));
            }
        }
        flat
    }

    #[test]
    fn every_subset_of_a_small_tree_opens_and_nothing_else_does() {
        let depth = 3;
        let flat = tree(depth);
        let root = flat[flat_index(depth, depth, 0)];
        for mask in 1u32..256 {
            let idx: Vec<usize> = (0..8).filter(|i| mask >> i & 1 == 1).collect();
            let leaves: Vec<(usize, Digest)> = idx.iter().map(|&i| (i, flat[i])).collect();
            let nodes: Vec<Digest> = proof_nodes(depth, &idx).into_iter().map(|(l, i)| flat[flat_index(depth, l, i)]).collect();
            assert_eq!(verify::<Blake2s>(&root, depth, &leaves, &nodes), Ok(()));
            let mut extra = nodes.clone();
            extra.push(root);
            assert_eq!(verify::<Blake2s>(&root, depth, &leaves, &extra), Err(MerkleError::NodeCount));
            for k in 0..nodes.len() {
                let mut bad = nodes.clone();
                bad[k][0] ^= 1;
                assert_eq!(verify::<Blake2s>(&root, depth, &leaves, &bad), Err(MerkleError::Root));
                bad.remove(k);
                assert!(verify::<Blake2s>(&root, depth, &leaves, &bad).is_err());
            }
            for k in 0..leaves.len() {
                let mut bad = leaves.clone();
                bad[k].1[31] ^= 1;
                assert_eq!(verify::<Blake2s>(&root, depth, &bad, &nodes), Err(MerkleError::Root));
            }
        }
        assert_eq!(verify::<Blake2s>(&root, depth, &[], &[]), Err(MerkleError::Indices));
        assert_eq!(verify::<Blake2s>(&root, depth, &[(8, root)], &[]), Err(MerkleError::Indices));
        assert_eq!(verify::<Blake2s>(&root, depth, &[(1, root), (1, root)], &[]), Err(MerkleError::Indices));
    }
}
