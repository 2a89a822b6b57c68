//! What one segment does in an opening of all segments, as a machine whose states are types: whoever holds the segment's data
//! can be it. It sees challenges and never a transcript.
//!
//! A part moves little: three elements per round, one value per oracle, one row of `2^h` elements (the row, not its word:
//! encoding is linear, so the sum is encoded once), and the opened leaves.

use crate::kernels::CommitKernels;
use crate::prover::commitment::Oracle;
use crate::prover::opening::{OpeningInput, kernel, open_oracle};
use obelysk_protocol::field::{M31, ONE, QM31, ZERO};
use obelysk_protocol::verifier::opening::{OpeningParams, Residual, TreeOpening};

/// A segment's share of a round polynomial: its values at 0, 1 and 2, weighted. The first two sum to the segment's claim.
pub type RoundPart = [QM31; 3];

/// A segment before the joint sumcheck: the folded rows of its oracles, weights first.
pub struct JointPart<B: CommitKernels> {
    residuals: Vec<Residual>,
    folded: Vec<B::Ext>,
}

impl<B: CommitKernels> JointPart<B> {
    /// Combines the rows of every oracle as its residual says: the one pass over the data before the queries.
    pub fn new(backend: &B, inputs: &[OpeningInput<'_, B>], residuals: Vec<Residual>) -> Self {
        let folded = inputs.iter().zip(&residuals).map(|(i, r)| i.oracle.combine(backend, &r.coefficients)).collect();
        Self { residuals, folded }
    }

    /// Whether every residual claim is true of these rows. Where another party made the claims this is not given: what they rest on
    /// is first opened after the joint sumcheck.
    pub fn holds(&self, backend: &B) -> bool {
        self.residuals.iter().zip(&self.folded).all(|(r, f)| {
            let [at_0, at_1, _] = backend.product_round_full(f, &kernel(backend, r, ONE));
            at_0 + at_1 == r.value
        })
    }

    /// Memory it takes through the whole opening, about: rows and kernels of every oracle, and what is bound of them.
    #[must_use]
    pub fn bytes(&self, backend: &B) -> usize {
        self.folded.iter().map(|f| 4 * size_of::<QM31>() * backend.ext_len(f)).sum()
    }

    /// Starts the joint sumcheck, given the weight of each of the segment's oracles.
    pub fn start(self, backend: &B, delta: &[QM31]) -> PartRounds<B> {
        let kernels = self.residuals.iter().zip(delta).map(|(r, &d)| kernel(backend, r, d)).collect();
        PartRounds { folded: self.folded, bound: Vec::new(), kernels }
    }
}

/// A segment during the joint sumcheck.
pub struct PartRounds<B: CommitKernels> {
    folded: Vec<B::Ext>,
    /// The folded rows with the variables so far bound; empty while there are none.
    bound: Vec<B::Ext>,
    kernels: Vec<B::Ext>,
}

impl<B: CommitKernels> PartRounds<B> {
    /// Binds the challenge of the round before, if there was one, and gives this round's share.
    pub fn round(&mut self, backend: &B, challenge: Option<QM31>) -> RoundPart {
        if let Some(z) = challenge {
            self.bind(backend, z);
        }
        let mut sum = [ZERO; 3];
        for (f, k) in self.current().iter().zip(&self.kernels) {
            for (sum, s) in sum.iter_mut().zip(backend.product_round_full(f, k)) {
                *sum += s;
            }
        }
        sum
    }

    /// Binds the last challenge; gives the values of the folded rows at the joint point.
    pub fn finish(mut self, backend: &B, challenge: QM31) -> (Vec<QM31>, FoldedPart<B>) {
        self.bind(backend, challenge);
        let values = self.bound.iter().map(|f| backend.to_host(f)[0]).collect();
        (values, FoldedPart { folded: self.folded })
    }

    fn current(&self) -> &[B::Ext] {
        if self.bound.is_empty() { &self.folded } else { &self.bound }
    }

    fn bind(&mut self, backend: &B, z: QM31) {
        self.bound = self.current().iter().map(|f| backend.bind(f, z)).collect();
        self.kernels = self.kernels.iter().map(|k| backend.bind(k, z)).collect();
    }
}

/// A segment after the joint sumcheck.
pub struct FoldedPart<B: CommitKernels> {
    folded: Vec<B::Ext>,
}

impl<B: CommitKernels> FoldedPart<B> {
    /// The segment's share of the combined row, `2^h` elements, given the weight of each of its oracles.
    pub fn fold(self, backend: &B, theta: &[QM31]) -> B::Ext {
        let terms: Vec<(&B::Ext, QM31)> = self.folded.iter().zip(theta.iter().copied()).collect();
        backend.weighted_sum(&terms)
    }
}

/// Opens the trees of a segment's oracles at sorted, distinct positions.
pub fn answer<B: CommitKernels>(
    backend: &B,
    params: &OpeningParams,
    oracles: &[&dyn Oracle<B>],
    positions: &[usize],
) -> Vec<TreeOpening<M31>> {
    oracles.iter().map(|o| open_oracle(backend, params, *o, positions)).collect()
}
