//! The proof of one segment in its own fork: lookups, products, final sumcheck; then the openings (`docs/soundness.md` §4).
//!
//! Step order is the protocol: boundary values, alpha, beta, LogUp, accumulators, products, lambda, final sumcheck, gamma.

use super::error::VerifyError;
use super::final_sumcheck::{self, FinalProof, RowShape, closing_columns, point_len};
use super::logup::{self, GkrLayer, LeafClaim};
use super::plan::{PlanInput, plan};
use super::points::{Points, tile_point, tile_weights, weight_rows};
use super::product::{self, ProductProof};
use crate::circuit::segment::{Circuit, log2_ceil};
use crate::field::{QM31, ZERO, eq_vector, inner, mle_eval, signed_ext};
use crate::transcript::{HashSuite, Transcript};

/// Everything of a segment's proof but the openings.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ClaimsProof {
    /// One entry per layer of the LogUp tree, root first.
    pub logup: Vec<GkrLayer>,
    /// Products.
    pub product: ProductProof,
    /// Final sumcheck.
    pub last: FinalProof,
}

/// A boundary as a segment sees it: its random point and the value both neighbours open to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Point over (token, channel).
    pub point: Vec<QM31>,
    /// Value of the hidden state's extension there, one per limb.
    pub values: Vec<QM31>,
}

/// What is public about a segment when its fork starts.
#[derive(Clone, Debug)]
pub struct SegmentInput<'a> {
    /// The circuit, built from the registered model and the public input.
    pub circuit: &'a Circuit,
    /// Towards the previous segment; empty for the first.
    pub boundary_in: Boundary,
    /// Towards the next segment; empty for the last.
    pub boundary_out: Boundary,
    /// Claimed pooled output (used by the last segment).
    pub output: &'a [i64],
    /// Row shape and grinding.
    pub shape: RowShape,
}

/// The claims that remain for the openings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpeningClaims {
    /// r and P(r) on the fresh value oracle.
    pub values: (Vec<QM31>, QM31),
    /// Tile weights, column point and value on the registered weight oracle; `None` without matrices.
    pub weights: Option<TileClaim>,
}

/// `sum_{row, slot} weights P(row, slot, .) eq(point) = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileClaim {
    /// Slot fastest.
    pub weights: Vec<QM31>,
    /// Column point inside a tile.
    pub point: Vec<QM31>,
    /// Claimed value.
    pub value: QM31,
}

/// Starts a segment's fork: absorbs the boundary values and draws `(alpha, beta)`. Shared with the prover.
pub fn open_fork<S: HashSuite>(t: &mut Transcript<S>, input: &SegmentInput<'_>) -> (QM31, QM31) {
    t.absorb_felts("boundary.in", &input.boundary_in.values);
    t.absorb_felts("boundary.out", &input.boundary_out.values);
    (t.draw("alpha"), t.draw("beta"))
}

/// Extends rho beyond the tree to every coordinate the circuit names. Shared with the prover.
pub fn extend_rho<S: HashSuite>(t: &mut Transcript<S>, c: &Circuit, mut rho: Vec<QM31>) -> Vec<QM31> {
    let missing = c.rho_len().saturating_sub(rho.len());
    rho.extend(t.draw_many("rho.extend", missing));
    rho
}

/// Checks that every list of the proof has the length the circuit prescribes.
///
/// # Errors
/// [`VerifyError::Count`] naming the part.
pub fn check_counts(c: &Circuit, h: usize, p: &ClaimsProof) -> Result<(), VerifyError> {
    let check = |step: &'static str, found: usize, expected: usize| {
        if found == expected { Ok(()) } else { Err(VerifyError::Count { step, found, expected }) }
    };
    check("logup layers", p.logup.len(), c.tree_log())?;
    for (depth, layer) in p.logup.iter().enumerate() {
        check("logup rounds", layer.rounds.len(), depth)?;
    }
    check("accumulators", p.product.accumulators.len(), c.products.len())?;
    check("product rounds", p.product.rounds.len(), c.product_vars())?;
    check("input claims", p.product.claims.len(), c.claims.len())?;
    check("weight claims", p.product.weights.len(), c.matrices.len())?;
    check("final rounds", p.last.rounds.len(), c.max_log())?;
    check("columns", p.last.columns.len(), c.columns.len())?;
    check("nonces", p.last.nonces.len(), point_len(c, h) - h)
}

/// Checks that the boundaries have the coordinates and limbs that the circuit names, no fewer and no more.
fn check_boundaries(input: &SegmentInput<'_>) -> Result<(), VerifyError> {
    let check = |step: &'static str, found: usize, expected: usize| {
        if found == expected { Ok(()) } else { Err(VerifyError::Count { step, found, expected }) }
    };
    for (boundary, (vars, limbs)) in [&input.boundary_in, &input.boundary_out].into_iter().zip(input.circuit.boundaries()) {
        check("coordinates of a boundary", boundary.point.len(), vars)?;
        check("limbs of a boundary", boundary.values.len(), limbs)?;
    }
    Ok(())
}

/// Verifies everything up to the openings.
///
/// # Errors
/// Any [`VerifyError`] of the steps.
///
/// # Soundness
/// The caller must open the returned claims on the roots absorbed before the seed.
pub fn verify<S: HashSuite>(
    t: &mut Transcript<S>,
    input: &SegmentInput<'_>,
    proof: &ClaimsProof,
) -> Result<OpeningClaims, VerifyError> {
    let c = input.circuit;
    check_counts(c, input.shape.h, proof)?;
    check_boundaries(input)?;
    let (alpha, beta) = open_fork(t, input);
    let leaf = logup::verify(t, &proof.logup)?;
    let mut points = Points {
        rho: extend_rho(t, c, leaf.point.clone()),
        kappa: Vec::new(),
        boundary_in: input.boundary_in.point.clone(),
        boundary_out: input.boundary_out.point.clone(),
    };
    check_output(c, &points, input.output, &proof.product.accumulators)?;
    product::verify(t, c, &mut points, &proof.product)?;
    let lambda = t.draw("final.lambda");
    let plan = plan(c, &points, &plan_input((alpha, beta, lambda), &leaf, input, &proof.product))?;
    let values = final_sumcheck::verify(t, c, &plan, input.shape, &proof.last)?;
    closing_columns(t, c, values.0.len(), &proof.last.columns);
    let weights = join_tiles(t, c, &points, input.shape.h, &proof.product.weights)?;
    Ok(OpeningClaims { values, weights })
}

/// Collects the values a plan needs. Shared with the prover.
#[must_use]
pub fn plan_input<'a>(
    (alpha, beta, lambda): (QM31, QM31, QM31),
    leaf: &'a LeafClaim,
    input: &'a SegmentInput<'_>,
    product: &'a ProductProof,
) -> PlanInput<'a> {
    PlanInput {
        alpha,
        beta,
        lambda,
        leaf,
        accumulators: &product.accumulators,
        claims: &product.claims,
        boundary_in: &input.boundary_in.values,
        boundary_out: &input.boundary_out.values,
    }
}

/// The pooled product's value must be the claimed output's extension at `rho[token_log..]`.
fn check_output(c: &Circuit, points: &Points, output: &[i64], accumulators: &[QM31]) -> Result<(), VerifyError> {
    let Some(i) = c.pooled else { return Ok(()) };
    let vars = log2_ceil(output.len());
    let mut values: Vec<QM31> = output.iter().map(|&v| signed_ext(v)).collect();
    values.resize(1 << vars, ZERO);
    let expected = mle_eval(&values, points.rho_range(c.token_log, vars)?);
    if accumulators.get(i) == Some(&expected) { Ok(()) } else { Err(VerifyError::Output) }
}

/// Draws gamma and joins the matrices' claims by its eq weights; `None` without matrices. Shared with the prover.
///
/// # Errors
/// [`VerifyError::Count`] for other weights than one per matrix, [`VerifyError::Point`].
pub fn join_tiles<S: HashSuite>(
    t: &mut Transcript<S>,
    c: &Circuit,
    points: &Points,
    h: usize,
    weights: &[QM31],
) -> Result<Option<TileClaim>, VerifyError> {
    let (found, expected) = (weights.len(), c.matrices.len());
    if found != expected {
        return Err(VerifyError::Count { step: "weight claims", found, expected });
    }
    if c.matrices.is_empty() {
        return Ok(None);
    }
    let gamma = eq_vector(&t.draw_many("gamma", log2_ceil(c.matrices.len())));
    let value = inner(weights, &gamma);
    Ok(Some(TileClaim { weights: tile_weights(c, points, &gamma, h)?, point: tile_point(c, points)?, value }))
}

/// Rows of the segment's registered oracle, or `None` when it has no matrices.
#[must_use]
pub fn registered_rows(c: &Circuit, h: usize) -> Option<usize> {
    (!c.matrices.is_empty()).then(|| weight_rows(c, h))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::Blake2s;

    #[test]
    fn a_boundary_that_the_circuit_does_not_read_is_refused() {
        let circuit = Circuit::default();
        let input = SegmentInput {
            circuit: &circuit,
            boundary_in: Boundary::default(),
            boundary_out: Boundary::default(),
            output: &[],
            shape: RowShape { h: 2, g_fold: 0 },
        };
        let verdict =
            |input: &SegmentInput<'_>| verify(&mut Transcript::<Blake2s>::new("t"), input, &ClaimsProof::default()).map(|_| ());
        assert_eq!(verdict(&input), Ok(()));
        let longer = SegmentInput { boundary_in: Boundary { point: vec![ZERO], values: Vec::new() }, ..input.clone() };
        assert!(matches!(verdict(&longer), Err(VerifyError::Count { step: "coordinates of a boundary", .. })));
        let more = SegmentInput { boundary_out: Boundary { point: Vec::new(), values: vec![ZERO] }, ..input };
        assert!(matches!(verdict(&more), Err(VerifyError::Count { step: "limbs of a boundary", .. })));
    }
}
