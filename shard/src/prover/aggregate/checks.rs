//! What a segment's part in an opening of all segments is judged by, a step at a time and one segment at a time: against the
//! segment's own claim, its own values, its own trees. Knows no transcript and no other segment.

use super::part::RoundPart;
use crate::kernels::CommitKernels;
use crate::prover::opening::code_shape;
use obelysk_protocol::field::{M31, QM31, ZERO, eq_vector, inner};
use obelysk_protocol::transcript::HashSuite;
use obelysk_protocol::verifier::merkle::{self, MerkleError};
use obelysk_protocol::verifier::opening::{OpeningParams, Reduced, TreeOpening};

/// Whether a share of a round polynomial sums to the segment's claim before the round.
#[must_use]
pub fn continues(share: &RoundPart, claim: QM31) -> bool {
    share[0] + share[1] == claim
}

/// What a segment's claim must be at the joint point `zeta`, where its folded rows have these values.
#[must_use]
pub fn weighted_values(own: &[Reduced], delta: &[QM31], zeta: &[QM31], values: &[QM31]) -> QM31 {
    let weighted = own.iter().zip(delta).zip(values);
    weighted.fold(ZERO, |acc, ((o, &d), &f)| acc + d * o.residual.kernel_at(zeta) * f)
}

/// Value of a share of the combined row at the joint point, of which `eq` is the kernel.
pub(super) fn value_at<B: CommitKernels>(backend: &B, share: &B::Ext, eq: &B::Ext) -> QM31 {
    let [at_0, at_1, _] = backend.product_round_full(share, eq);
    at_0 + at_1
}

/// Whether a segment's share of the combined row has, at the joint point, the values sent before; it must have `2^h` elements.
#[must_use]
pub fn share_agrees<B: CommitKernels>(backend: &B, zeta: &[QM31], (theta, values): (&[QM31], &[QM31]), share: &B::Ext) -> bool {
    let (low, high) = zeta.split_at(zeta.len() / 2);
    value_at(backend, share, &backend.outer(&eq_vector(low), &eq_vector(high))) == inner(theta, values)
}

/// Checks the opened trees of a segment's oracles against their roots; gives its weighted symbol at every position.
///
/// # Errors
/// The first oracle whose tree does not open, and why.
pub fn weighted_symbols<S: HashSuite>(
    params: &OpeningParams,
    (own, theta): (&[Reduced], &[QM31]),
    positions: &[usize],
    trees: &[TreeOpening<M31>],
) -> Result<Vec<QM31>, (usize, MerkleError)> {
    let mut sums = vec![ZERO; positions.len()];
    for (oracle, ((o, &weight), tree)) in own.iter().zip(theta).zip(trees).enumerate() {
        let coefficients = &o.residual.coefficients;
        if tree.symbols.len() != positions.len() * coefficients.len() {
            return Err((oracle, MerkleError::Indices));
        }
        let leaves: Vec<&[M31]> = tree.symbols.chunks(coefficients.len().max(1)).collect();
        let digests: Vec<_> = positions.iter().copied().zip(S::leaves(&leaves)).collect();
        for (leaf, sum) in leaves.into_iter().zip(&mut sums) {
            *sum += weight * leaf.iter().zip(coefficients).fold(ZERO, |acc, (&x, &c)| acc + c * x);
        }
        merkle::verify::<S>(&o.root, params.log_n(), &digests, &tree.nodes).map_err(|e| (oracle, e))?;
    }
    Ok(sums)
}

/// The word of a share of the combined row at these positions.
pub fn share_at<B: CommitKernels>(backend: &B, params: &OpeningParams, share: &B::Ext, positions: &[usize]) -> Vec<QM31> {
    let word = backend.encode_ext(share, code_shape(params));
    backend.blocks_at(&word, 0, positions)
}
