//! Batched opening, prover side; twin of the verifier's `opening`, same steps: 1 rows, 2 joint sumcheck, 3 combination,
//! 4 folds, 5 queries. Steps 2 to 5 over the oracles of all segments are in `aggregate`, which shares the functions here.

use super::commitment::Oracle;
use crate::kernels::{CodeShape, CommitKernels};
use obelysk_protocol::field::{QM31, RoundPoly, ZERO, eq_vector, fold, inner};
use obelysk_protocol::transcript::{HashSuite, Transcript};
use obelysk_protocol::verifier::merkle::proof_nodes;
use obelysk_protocol::verifier::opening::{
    Claim, CombinedProof, GroundRound, OpeningError, OpeningParams, OpeningProof, OpeningShape, OracleClaim, Residual, STEP,
    TreeOpening, absorb_statement, label, row_vars,
};

/// One oracle to open.
pub struct OpeningInput<'a, B: CommitKernels> {
    /// The committed data.
    pub oracle: &'a dyn Oracle<B>,
    /// Its claim.
    pub claim: Claim,
    /// `A[row·2^s + slot]` of a Tiles claim if the caller has it already (the product sumcheck folds the same tiles).
    pub partials: Option<Vec<QM31>>,
}

/// The code that `params` describe.
#[must_use]
pub fn code_shape(params: &OpeningParams) -> CodeShape {
    CodeShape { h: params.h, blowup_log: params.blowup_log }
}

/// Proves every claim.
///
/// # Errors
/// [`OpeningError`] if parameters or claims do not fit the oracles; a false claim is not noticed here.
pub fn prove<S: HashSuite, B: CommitKernels>(
    backend: &B,
    t: &mut Transcript<S>,
    params: &OpeningParams,
    inputs: &[OpeningInput<'_, B>],
) -> Result<OpeningProof, OpeningError> {
    let (rows, residuals) = prove_rows(backend, t, params, inputs)?;
    let folded: Vec<B::Ext> = inputs.iter().zip(&residuals).map(|(i, r)| i.oracle.combine(backend, &r.coefficients)).collect();
    let oracle_vars = row_vars(inputs.len());

    // Step 2: joint sumcheck of sum_o eq(δ, o) <F_o, K_o>, ending at ζ.
    let Joint { polys: joint, zeta, values } = joint_phase(backend, t, params, oracle_vars, &residuals, &folded);

    // Step 3: combination G = sum_o eq(θ, o) F_o.
    let (theta_nonces, theta): (Vec<u64>, Vec<QM31>) =
        (0..oracle_vars).map(|_| ground_draw(backend, t, params.g_fold, label::THETA)).unzip();
    let terms: Vec<(&B::Ext, QM31)> = folded.iter().zip(eq_vector(&theta)).collect();
    let combined = backend.weighted_sum(&terms);

    // Step 4: folds of G at ζ.
    let folds = fold_phase(backend, t, params, &zeta, combined);

    // Step 5: queries.
    let (query_nonce, positions) = draw_queries(backend, t, params);
    let oracles = inputs.iter().map(|i| open_oracle(backend, params, i.oracle, &positions)).collect();
    let layers = open_layers(backend, params, &folds.words, &positions);
    let Folds { rounds, roots, message, .. } = folds;
    let combined = CombinedProof { joint, values, theta_nonces, roots, folds: rounds, message, query_nonce, oracles, layers };
    Ok(OpeningProof { rows, combined: Some(combined) })
}

/// Step 1: every claim becomes <F_o, K_o> = value with F_o a combination of the oracle's rows. What is returned are the row
/// sumchecks and these residual claims.
///
/// # Errors
/// As [`prove`].
pub fn prove_rows<S: HashSuite, B: CommitKernels>(
    backend: &B,
    t: &mut Transcript<S>,
    params: &OpeningParams,
    inputs: &[OpeningInput<'_, B>],
) -> Result<(Vec<Vec<GroundRound>>, Vec<Residual>), OpeningError> {
    let claims: Vec<OracleClaim> =
        inputs.iter().map(|i| OracleClaim { root: i.oracle.root(), rows: i.oracle.rows(), claim: i.claim.clone() }).collect();
    OpeningShape::of(params, &claims)?;
    absorb_statement(t, params, &claims);
    Ok(inputs.iter().map(|i| row_phase(backend, t, params, i)).unzip())
}

/// Grinds, then draws the positions, sorted and once each.
pub fn draw_queries<S: HashSuite, B: CommitKernels>(
    backend: &B,
    t: &mut Transcript<S>,
    params: &OpeningParams,
) -> (u64, Vec<usize>) {
    let nonce = grind(backend, t, params.g_query);
    let mut positions = t.draw_positions(label::QUERY, params.log_n(), params.queries);
    positions.sort_unstable();
    positions.dedup();
    (nonce, positions)
}

/// Finds and absorbs the smallest nonce.
pub fn grind<S: HashSuite, B: CommitKernels>(backend: &B, t: &mut Transcript<S>, bits: u32) -> u64 {
    let nonce = tracing::info_span!("grind").in_scope(|| backend.grind::<S>(&t.pow_prefix(bits), bits));
    t.accept_pow(bits, nonce);
    nonce
}

/// Grinds, then draws the challenge the nonce protects.
pub fn ground_draw<S: HashSuite, B: CommitKernels>(
    backend: &B,
    t: &mut Transcript<S>,
    bits: u32,
    step: &'static str,
) -> (u64, QM31) {
    let nonce = grind(backend, t, bits);
    (nonce, t.draw(step))
}

/// Step 1 for one oracle. A Point claim needs no rounds; a Tiles claim has a sumcheck over its row variables.
pub(crate) fn row_phase<S: HashSuite, B: CommitKernels>(
    backend: &B,
    t: &mut Transcript<S>,
    params: &OpeningParams,
    input: &OpeningInput<'_, B>,
) -> (Vec<GroundRound>, Residual) {
    let rows = input.oracle.rows();
    match &input.claim {
        Claim::Point { r, value } => (Vec::new(), Residual::of_point(params.h, rows, r, *value)),
        Claim::Tiles { weights, point, value } => {
            let s = params.h - point.len() as u32;
            let partials = input.partials.clone().unwrap_or_else(|| input.oracle.partials(backend, point));
            let mut a = slot_columns(&partials, rows, s);
            let mut w = slot_columns(weights, rows, s);
            let (mut rounds, mut beta, mut claim) = (Vec::new(), Vec::new(), *value);
            while a.first().is_some_and(|column| column.len() > 1) {
                let poly = row_poly(&a, &w);
                t.absorb_felts(label::ROW_POLY, &poly.0);
                let (nonce, b) = ground_draw(backend, t, params.g_fold, label::ROW);
                claim = poly.eval(claim, b);
                for column in a.iter_mut().chain(&mut w) {
                    *column = fold(column, b);
                }
                rounds.push(GroundRound { poly, nonce });
                beta.push(b);
            }
            let slots = w.into_iter().flatten().collect();
            (rounds, Residual::after_rows(rows, &beta, slots, point.clone(), claim))
        }
    }
}

/// One vector over the (zero-padded) rows per slot.
fn slot_columns(v: &[QM31], rows: usize, s: u32) -> Vec<Vec<QM31>> {
    let column = |slot| {
        let mut out: Vec<QM31> = v.iter().skip(slot).step_by(1 << s).copied().collect();
        out.resize(rows.next_power_of_two(), ZERO);
        out
    };
    (0..1usize << s).map(column).collect()
}

fn row_poly(a: &[Vec<QM31>], w: &[Vec<QM31>]) -> RoundPoly<2> {
    let mut out = [ZERO; 2];
    for (a, w) in a.iter().zip(w) {
        for (a, w) in a.chunks_exact(2).zip(w.chunks_exact(2)) {
            out[0] += a[0] * w[0];
            out[1] += (a[1] + a[1] - a[0]) * (w[1] + w[1] - w[0]);
        }
    }
    RoundPoly(out)
}

/// Outcome of step 2.
pub(crate) struct Joint {
    pub polys: Vec<RoundPoly<2>>,
    pub zeta: Vec<QM31>,
    pub values: Vec<QM31>,
}

/// Step 2. Ends with the values of all folded rows at ζ absorbed.
pub(crate) fn joint_phase<S: HashSuite, B: CommitKernels>(
    backend: &B,
    t: &mut Transcript<S>,
    params: &OpeningParams,
    oracle_vars: u32,
    residuals: &[Residual],
    folded: &[B::Ext],
) -> Joint {
    let delta = eq_vector(&t.draw_many(label::DELTA, oracle_vars as usize));
    let mut kernels: Vec<B::Ext> = residuals.iter().zip(&delta).map(|(r, &d)| kernel(backend, r, d)).collect();
    let (mut polys, mut zeta) = (Vec::new(), Vec::new());
    let mut bound: Vec<B::Ext> = Vec::new();
    for _ in 0..params.h {
        let current = if bound.is_empty() { folded } else { &bound };
        let mut evals = [ZERO; 2];
        for (f, k) in current.iter().zip(&kernels) {
            let [s0, s2] = backend.product_round(f, k);
            evals = [evals[0] + s0, evals[1] + s2];
        }
        let poly = RoundPoly(evals);
        t.absorb_felts(label::JOINT_POLY, &poly.0);
        let z = t.draw(label::ZETA);
        bound = current.iter().map(|f| backend.bind(f, z)).collect();
        kernels = kernels.iter().map(|k| backend.bind(k, z)).collect();
        polys.push(poly);
        zeta.push(z);
    }
    let values: Vec<QM31> = bound.iter().map(|f| backend.to_host(f)[0]).collect();
    t.absorb_felts(label::VALUES, &values);
    Joint { polys, zeta, values }
}

/// `weight · K(slot, col) = weight · w'(slot) · eq(point, col)` as a vector of length `2^h`.
pub fn kernel<B: CommitKernels>(backend: &B, r: &Residual, weight: QM31) -> B::Ext {
    let (low, high) = r.point.split_at(r.point.len() / 2);
    let high = eq_vector(high);
    let upper: Vec<QM31> = r.slots.iter().flat_map(|&w| high.iter().map(move |&e| weight * w * e)).collect();
    backend.outer(&eq_vector(low), &upper)
}

/// Outcome of step 4.
pub struct Folds<B: CommitKernels> {
    /// Round polynomials with their nonces.
    pub rounds: Vec<GroundRound>,
    /// Roots of the committed words.
    pub roots: Vec<[u8; 32]>,
    /// The message left.
    pub message: Vec<QM31>,
    /// The committed words.
    pub words: Vec<(B::ExtWord, B::Tree)>,
}

/// Step 4: BaseFold of `g` at `zeta`.
pub fn fold_phase<S: HashSuite, B: CommitKernels>(
    backend: &B,
    t: &mut Transcript<S>,
    params: &OpeningParams,
    zeta: &[QM31],
    mut g: B::Ext,
) -> Folds<B> {
    let code = code_shape(params);
    let (mut rounds, mut roots, mut words) = (Vec::new(), Vec::new(), Vec::new());
    if params.folds() > 0 {
        let (low, high) = zeta.split_at(zeta.len() / 2);
        let mut eq = backend.outer(&eq_vector(low), &eq_vector(high));
        let mut word = Some(backend.encode_ext(&g, code));
        for round in 0..params.folds() {
            if round % STEP == 0
                && let Some(word) = word.take()
            {
                let tree = backend.blocks_tree::<S>(&word, STEP);
                let root = backend.root(&tree);
                t.absorb_digest(label::ROOT, &root);
                roots.push(root);
                words.push((word, tree));
            }
            let poly = RoundPoly(backend.product_round(&g, &eq));
            t.absorb_felts(label::FOLD_POLY, &poly.0);
            let (nonce, alpha) = ground_draw(backend, t, params.g_fold, label::ALPHA);
            g = backend.bind(&g, alpha);
            eq = backend.bind(&eq, alpha);
            // Past the last committed word only the message matters.
            if round / STEP + 1 < params.layers() {
                let from = word.as_ref().or(words.last().map(|(w, _)| w));
                word = from.map(|w| backend.fold_word(w, code, round, alpha));
            }
            rounds.push(GroundRound { poly, nonce });
        }
    }
    let message = backend.to_host(&g);
    debug_assert_eq!(message.len(), params.clear_len());
    t.absorb_felts(label::MESSAGE, &message);
    Folds { rounds, roots, message, words }
}

/// Step 5: opens one oracle at sorted, distinct positions.
pub fn open_oracle<B: CommitKernels>(
    backend: &B,
    params: &OpeningParams,
    oracle: &dyn Oracle<B>,
    positions: &[usize],
) -> TreeOpening<obelysk_protocol::field::M31> {
    let nodes = proof_nodes(params.log_n(), positions);
    TreeOpening { symbols: oracle.leaves(backend, positions), nodes: oracle.nodes(backend, &nodes) }
}

/// Step 5: opens every committed word at the blocks that contain the positions.
pub fn open_layers<B: CommitKernels>(
    backend: &B,
    params: &OpeningParams,
    words: &[(B::ExtWord, B::Tree)],
    positions: &[usize],
) -> Vec<TreeOpening<QM31>> {
    let mut blocks = positions.to_vec();
    let mut out = Vec::with_capacity(words.len());
    for (layer, (word, tree)) in words.iter().enumerate() {
        for b in &mut blocks {
            *b >>= STEP;
        }
        blocks.dedup();
        let nodes = proof_nodes(params.layer_depth(layer as u32), &blocks);
        out.push(TreeOpening { symbols: backend.blocks_at(word, STEP, &blocks), nodes: backend.nodes(tree, &nodes) });
    }
    out
}

/// The value of a Tiles claim from its parts, for callers that do not have it yet.
#[must_use]
pub fn tiles_value(weights: &[QM31], partials: &[QM31]) -> QM31 {
    inner(weights, partials)
}
