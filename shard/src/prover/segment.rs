//! Twin of the verifier's `segment`: one fork from its boundary values to the claims that are opened.

use super::final_sumcheck::{self, Grinder};
use super::{logup, product};
use crate::kernels::proof::ProofKernels;
use obelysk_protocol::field::QM31;
use obelysk_protocol::transcript::{HashSuite, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::final_sumcheck::stack_value;
use obelysk_protocol::verifier::plan::plan;
use obelysk_protocol::verifier::points::Points;
use obelysk_protocol::verifier::segment::{
    ClaimsProof, OpeningClaims, SegmentInput, extend_rho, join_tiles, open_fork, plan_input,
};

/// What proving gives beside the proof, for an opening on the same machine.
pub struct Proved {
    /// The claims to open.
    pub claims: OpeningClaims,
    /// Values of the weight tiles at the claims' point, in the registered oracle's order, if they came for free.
    pub partials: Option<Vec<QM31>>,
}

/// Proves everything of a segment up to the openings.
///
/// `columns` are the circuit's columns in order, `matrices[m]` row-major [N][K].
///
/// # Errors
/// A defect of the circuit (never of the input).
pub fn prove<S: HashSuite, K: ProofKernels>(
    t: &mut Transcript<S>,
    k: &K,
    input: &SegmentInput<'_>,
    columns: &[K::Base],
    matrices: &[&[i8]],
    grinder: &dyn Grinder<S>,
) -> Result<(ClaimsProof, Proved), VerifyError> {
    let c = input.circuit;
    let challenges = open_fork(t, input);
    let (layers, leaf) = tracing::info_span!("logup").in_scope(|| logup::prove(t, k, c, columns, challenges));
    let mut points = Points {
        rho: extend_rho(t, c, leaf.point.clone()),
        kappa: Vec::new(),
        boundary_in: input.boundary_in.point.clone(),
        boundary_out: input.boundary_out.point.clone(),
    };
    let (product, partials) =
        tracing::info_span!("products").in_scope(|| product::prove(t, k, c, &mut points, columns, matrices))?;
    let _span = tracing::info_span!("final").entered();
    let lambda = t.draw("final.lambda");
    let plan = plan(c, &points, &plan_input((challenges.0, challenges.1, lambda), &leaf, input, &product))?;
    let (last, r) = final_sumcheck::prove(t, k, c, &plan, columns, input.shape, grinder);
    let value = stack_value(c, &r, &last.columns)?;
    let weights = join_tiles(t, c, &points, input.shape.h, &product.weights)?;
    Ok((ClaimsProof { logup: layers, product, last }, Proved { claims: OpeningClaims { values: (r, value), weights }, partials }))
}
