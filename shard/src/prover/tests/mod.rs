//! Opening tests: honest round trips, twins, forging provers.

mod aggregate;
mod crooked;
mod forging;
mod registered;
mod round_trip;

use crate::kernels::{CodeShape, CommitKernels};
use crate::prover::commitment::{CommittedValues, Oracle};
use crate::prover::opening::{OpeningInput, prove, tiles_value};
use obelysk_protocol::field::{M31, QM31, mle_eval_base};
use obelysk_protocol::transcript::{HashSuite, Transcript};
use obelysk_protocol::verifier::opening::{Claim, OpeningError, OpeningParams, OpeningProof, OracleClaim, row_vars, verify};

/// A small deterministic generator (SplitMix64): tests need variety, not secrecy.
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn base(&mut self) -> M31 {
        M31::from_u32_unchecked((self.next() % u64::from(obelysk_protocol::field::P)) as u32)
    }

    pub(crate) fn felt(&mut self) -> QM31 {
        QM31::from_m31_array([self.base(), self.base(), self.base(), self.base()])
    }

    pub(crate) fn felts(&mut self, n: usize) -> Vec<QM31> {
        (0..n).map(|_| self.felt()).collect()
    }

    pub(crate) fn rows(&mut self, rows: usize, h: u32) -> Vec<M31> {
        (0..rows << h).map(|_| self.base()).collect()
    }
}

/// What kind of claim a test oracle gets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Point,
    Tiles(u32),
}

/// A true claim of the given kind about stacked rows.
pub(crate) fn true_claim<B: CommitKernels>(
    backend: &B,
    rng: &mut Rng,
    oracle: &dyn Oracle<B>,
    values: &[M31],
    h: u32,
    kind: Kind,
) -> Claim {
    let rows = oracle.rows();
    match kind {
        Kind::Point => {
            let r = rng.felts((h + row_vars(rows)) as usize);
            let mut stack = values.to_vec();
            stack.resize(1 << r.len(), M31::from_u32_unchecked(0));
            let value = mle_eval_base(&stack, &r);
            Claim::Point { r, value }
        }
        Kind::Tiles(s) => {
            let weights = rng.felts(rows << s);
            let point = rng.felts((h - s) as usize);
            let value = tiles_value(&weights, &oracle.partials(backend, &point));
            Claim::Tiles { weights, point, value }
        }
    }
}

pub(crate) fn params(h: u32, blowup_log: u32) -> OpeningParams {
    OpeningParams { h, blowup_log, queries: 40, g_fold: 2, g_query: 3 }
}

/// Oracles with true claims, ready to be proved.
pub(crate) struct Case<B: CommitKernels> {
    pub params: OpeningParams,
    pub oracles: Vec<CommittedValues<B>>,
    pub claims: Vec<Claim>,
}

impl<B: CommitKernels> Case<B> {
    pub(crate) fn new<S: HashSuite>(backend: &B, seed: u64, params: OpeningParams, spec: &[(usize, Kind)]) -> Self {
        let mut rng = Rng(seed);
        let code = CodeShape { h: params.h, blowup_log: params.blowup_log };
        let (mut oracles, mut claims) = (Vec::new(), Vec::new());
        for &(rows, kind) in spec {
            let values = rng.rows(rows, params.h);
            let oracle = CommittedValues::commit::<S>(backend, code, values.clone());
            claims.push(true_claim(backend, &mut rng, &oracle, &values, params.h, kind));
            oracles.push(oracle);
        }
        Self { params, oracles, claims }
    }

    pub(crate) fn inputs(&self) -> Vec<OpeningInput<'_, B>> {
        let pairs = self.oracles.iter().zip(&self.claims);
        pairs.map(|(o, c)| OpeningInput { oracle: o, claim: c.clone(), partials: None }).collect()
    }

    pub(crate) fn statement(&self) -> Vec<OracleClaim> {
        let pairs = self.oracles.iter().zip(&self.claims);
        pairs.map(|(o, c)| OracleClaim { root: o.root(), rows: Oracle::<B>::rows(o), claim: c.clone() }).collect()
    }

    pub(crate) fn prove<S: HashSuite>(&self, backend: &B) -> OpeningProof {
        prove(backend, &mut Transcript::<S>::new("test"), &self.params, &self.inputs()).unwrap()
    }

    pub(crate) fn verify<S: HashSuite>(&self, proof: &OpeningProof) -> Result<(), OpeningError> {
        verify(&mut Transcript::<S>::new("test"), &self.params, &self.statement(), proof)
    }
}
