//! A prover of mode 2, every step of the joint opening in a forger's hands. What is not replaced is honest, and follows from
//! what was replaced before it.

use crate::harness::{Forger, Honest, SECURITY, Steps, Toy, claims, stack};
use obelysk_model::toy;
use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::field::{FieldExpOps, M31, ONE, QM31, RoundPoly, ZERO, eq_eval, eq_vector, fold, inner};
use obelysk_protocol::transcript::{Blake2s, Digest, HashSuite, Seed, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::{
    absorb_closing, absorb_roots, boundary_point, main_transcript, neighbours, oracle_claims, segment_fork, segment_input,
    verify, verify_reduced,
};
use obelysk_protocol::verifier::opening::{
    Claim, CombinedProof, OpeningError, OpeningParams, OpeningProof, Residual, TreeOpening, absorb_all, label, row_vars,
};
use obelysk_protocol::verifier::proof::{Header, MODE_AGGREGATED, Proof, SegmentProof};
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::kernels::CommitKernels;
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::prover::commitment::{CommittedValues, Oracle};
use obelysk_shard::prover::final_sumcheck::Grinder;
use obelysk_shard::prover::opening::{
    Folds, OpeningInput, draw_queries, fold_phase, ground_draw, kernel, open_layers, open_oracle, prove_rows,
};
use obelysk_shard::registration::code_shape;
use std::sync::OnceLock;

/// No grinding, so that a transcript that went another way is refused by an equation and not by a missing nonce.
const BARE: SecurityParams = SecurityParams { g_seed: 0, g_fold: 0, g_query: 0, ..SECURITY };

/// The model under attack, without grinding.
pub fn bare() -> &'static Toy {
    static TOY: OnceLock<Toy> = OnceLock::new();
    TOY.get_or_init(|| Toy::with(toy::model(5), BARE))
}

/// The honest statement and witness in mode 2.
pub fn honest(toy: &'static Toy) -> Forger {
    Forger { toy, mode: MODE_AGGREGATED, ..crate::harness::honest().clone() }
}

/// An oracle of some segment in the joint opening.
pub struct Line<'a> {
    /// What is left of its claim.
    pub residual: Residual,
    /// Its folded row.
    pub folded: Vec<QM31>,
    /// Where its leaves come from.
    pub oracle: &'a dyn Oracle<Reference>,
}

/// What a forger knows when it chooses values: the weighted kernels at ζ and what their products must sum to.
pub struct Closing {
    /// `δ_o K_o(ζ)`.
    pub kernels: Vec<QM31>,
    /// The running claim at the end.
    pub claim: QM31,
}

impl Closing {
    /// How far values are from closing the joint sumcheck.
    pub fn error(&self, values: &[QM31]) -> QM31 {
        self.claim - inner(&self.kernels, values)
    }

    /// Makes the value of one oracle close it.
    pub fn chase(&self, values: &mut [QM31], oracle: usize) {
        values[oracle] += self.error(values) * self.kernels[oracle].inverse();
    }
}

/// Steps that a test may replace; the defaults are honest.
pub trait Cheat {
    fn steps(&self, _segment: usize) -> &dyn Steps {
        &Honest
    }
    /// What stands in for the registered weights of a segment.
    fn weights(&self, _segment: usize) -> Option<&dyn Oracle<Reference>> {
        None
    }
    /// The digest with which a fork is joined, given those before and after its rows.
    fn closing(&self, _segment: usize, _before_rows: Digest, after: Digest) -> Digest {
        after
    }
    /// Joins the forks and draws the weights of the oracles.
    fn join(&self, t: &mut Transcript<Blake2s>, closings: &[Digest], p: &OpeningParams, oracles: usize) -> Vec<QM31> {
        closings.iter().for_each(|d| absorb_closing(t, d));
        absorb_all(t, p, oracles);
        t.draw_many(label::DELTA, row_vars(oracles) as usize)
    }
    /// All oracles once the weights are known.
    fn lines(&self, _lines: &mut Vec<Line<'_>>) {}
    /// One vector per oracle, weights included.
    fn kernels(&self, _kernels: &mut Vec<Vec<QM31>>) {}
    /// `[s(0), s(2)]` of every oracle.
    fn parts(&self, _round: usize, _parts: &mut Vec<[QM31; 2]>) {}
    /// The joint round polynomial.
    fn poly(&self, _round: usize, _poly: &mut RoundPoly<2>) {}
    /// Values at ζ before they are absorbed.
    fn values(&self, _values: &mut Vec<QM31>, _closing: &Closing) {}
    fn absorb_values(&self, t: &mut Transcript<Blake2s>, values: &[QM31]) {
        t.absorb_felts(label::VALUES, values);
    }
    /// Values at ζ as they are sent, once θ's eq weights are known.
    fn sent(&self, _values: &mut Vec<QM31>, _closing: &Closing, _theta: &[QM31]) {}
    /// The combined row.
    fn combined(&self, _row: &mut Vec<QM31>, _lines: &[Line<'_>], _theta: &[QM31]) {}
    /// The message in clear, given how far it is from closing the fold sumcheck, and its kernel.
    fn message(&self, _message: &mut Vec<QM31>, _error: QM31, _kernel: &[QM31]) {}
    /// Positions that are opened.
    fn positions(&self, _positions: &mut Vec<usize>) {}
    /// Opened trees.
    fn trees(&self, _trees: &mut Vec<TreeOpening<M31>>) {}
    /// The finished proof.
    fn proof(&self, _proof: &mut Proof) {}
}

/// Cheats nowhere.
pub struct Nowhere;

impl Cheat for Nowhere {}

/// Proves a statement in mode 2.
pub fn prove(f: &Forger, cheat: &dyn Cheat) -> Proof {
    let (s, registered) = (f.statement(), &f.toy.registered);
    let (code, params) = (code_shape(&registered.descriptor), registered.opening());
    let committed = |(l, c): (usize, &Circuit)| {
        let columns = f.committed[l].as_ref().unwrap_or(&f.columns[l]);
        CommittedValues::commit::<Blake2s>(&Reference, code, stack(c, columns, code.h as usize))
    };
    let values: Vec<_> = s.circuits.iter().enumerate().map(committed).collect();
    let roots: Vec<Digest> = values.iter().map(CommittedValues::root).collect();
    let mut main = main_transcript::<Blake2s>(registered, &s);
    absorb_roots(&mut main, &roots);
    let seed_nonce = Honest.grind(&mut main, u32::from(registered.security.g_seed));
    let seed = Seed(main.digest());
    let point = |l| boundary_point::<Blake2s>(&seed, &s, registered, l);
    let boundaries: Vec<QM31> = (0..s.circuits.len() - 1).flat_map(|l| f.boundary(l, 1, &point(l))).collect();
    let (mut segments, mut lines, mut closings) = (Vec::new(), Vec::new(), Vec::new());
    for (l, values) in values.iter().enumerate() {
        let input = segment_input::<Blake2s>(registered, &s, &seed, l, neighbours(&boundaries, 1, l));
        let mut t = segment_fork::<Blake2s>(&seed, &s, l);
        let (claims, open, _) = claims(&mut t, &input, &f.columns[l], (f.toy, l), cheat.steps(l));
        let before = t.digest();
        let inputs: Vec<OpeningInput<'_, Reference>> = oracle_claims(registered, input.circuit, l, values.root(), open)
            .into_iter()
            .map(|o| {
                let oracle: &dyn Oracle<Reference> = match &o.claim {
                    Claim::Tiles { .. } => cheat.weights(l).unwrap_or_else(|| f.toy.oracles[l].as_ref().unwrap()),
                    Claim::Point { .. } => values,
                };
                OpeningInput { oracle, claim: o.claim, partials: None }
            })
            .collect();
        let (rows, residuals) = prove_rows(&Reference, &mut t, &params, &inputs).unwrap();
        closings.push(cheat.closing(l, before, t.digest()));
        for (i, residual) in inputs.iter().zip(residuals) {
            let folded = i.oracle.combine(&Reference, &residual.coefficients);
            lines.push(Line { residual, folded, oracle: i.oracle });
        }
        segments.push(SegmentProof { claims, opening: OpeningProof { rows, combined: None } });
    }
    let opening = Some(joint(&mut main, &params, &closings, lines, cheat));
    let header = Header {
        version: PROTOCOL_VERSION,
        suite: Blake2s::ID,
        mode: f.mode,
        model_id: s.model_id,
        ids: f.ids.clone(),
        sequences: f.sequences.clone(),
        output: f.output.clone(),
        roots,
        seed_nonce,
        boundaries,
    };
    let mut proof = Proof { header, segments, opening };
    cheat.proof(&mut proof);
    proof
}

/// The joint opening of all oracles.
fn joint(
    t: &mut Transcript<Blake2s>,
    p: &OpeningParams,
    closings: &[Digest],
    mut lines: Vec<Line<'_>>,
    cheat: &dyn Cheat,
) -> CombinedProof {
    let b = &Reference;
    let delta = eq_vector(&cheat.join(t, closings, p, lines.len()));
    cheat.lines(&mut lines);
    let claim = lines.iter().zip(&delta).fold(ZERO, |acc, (o, &d)| acc + d * o.residual.value);
    let mut kernels: Vec<Vec<QM31>> = lines.iter().zip(&delta).map(|(o, &d)| kernel(b, &o.residual, d)).collect();
    cheat.kernels(&mut kernels);
    let (polys, zeta, claim) = rounds(t, p, (&lines, kernels), claim, cheat);
    let at = lines.iter().zip(&delta).map(|(o, &d)| d * o.residual.kernel_at(&zeta)).collect();
    let closing = Closing { kernels: at, claim };
    let mut values: Vec<QM31> = lines.iter().map(|o| inner(&o.folded, &eq_vector(&zeta))).collect();
    cheat.values(&mut values, &closing);
    cheat.absorb_values(t, &values);
    let (theta_nonces, theta): (Vec<u64>, Vec<QM31>) =
        (0..row_vars(lines.len())).map(|_| ground_draw(b, t, p.g_fold, label::THETA)).unzip();
    let theta = eq_vector(&theta);
    cheat.sent(&mut values, &closing, &theta);
    let mut row = vec![ZERO; 1 << p.h];
    for (o, &w) in lines.iter().zip(&theta) {
        row.iter_mut().zip(&o.folded).for_each(|(sum, &v)| *sum += w * v);
    }
    cheat.combined(&mut row, &lines, &theta);
    let Folds { rounds, roots, message, words } = folds(t, p, (&zeta, row), inner(&theta, &values), cheat);
    let (query_nonce, mut positions) = draw_queries(b, t, p);
    cheat.positions(&mut positions);
    let mut oracles = lines.iter().map(|o| open_oracle(b, p, o.oracle, &positions)).collect();
    cheat.trees(&mut oracles);
    let layers = open_layers(b, p, &words, &positions);
    CombinedProof { joint: polys, values, theta_nonces, roots, folds: rounds, message, query_nonce, oracles, layers }
}

/// The joint sumcheck: polynomials, point, last claim.
fn rounds(
    t: &mut Transcript<Blake2s>,
    p: &OpeningParams,
    (lines, mut kernels): (&[Line<'_>], Vec<Vec<QM31>>),
    mut claim: QM31,
    cheat: &dyn Cheat,
) -> (Vec<RoundPoly<2>>, Vec<QM31>, QM31) {
    let mut bound: Vec<Vec<QM31>> = lines.iter().map(|o| o.folded.clone()).collect();
    let (mut polys, mut zeta) = (Vec::new(), Vec::new());
    for round in 0..p.h as usize {
        let mut parts = bound.iter().zip(&kernels).map(|(f, k)| Reference.product_round(f, k)).collect();
        cheat.parts(round, &mut parts);
        let mut poly = RoundPoly(parts.iter().fold([ZERO; 2], |sum, s| [sum[0] + s[0], sum[1] + s[1]]));
        cheat.poly(round, &mut poly);
        t.absorb_felts(label::JOINT_POLY, &poly.0);
        let z = t.draw(label::ZETA);
        claim = poly.eval(claim, z);
        for v in bound.iter_mut().chain(&mut kernels) {
            *v = fold(v, z);
        }
        polys.push(poly);
        zeta.push(z);
    }
    (polys, zeta, claim)
}

/// The folds; the message that is sent, and thus absorbed, is the forger's.
fn folds(
    t: &mut Transcript<Blake2s>,
    p: &OpeningParams,
    (zeta, row): (&[QM31], Vec<QM31>),
    mut claim: QM31,
    cheat: &dyn Cheat,
) -> Folds<Reference> {
    // The honest folds end with their message absorbed; the challenges are those of a replay that stops before it.
    let mut replay = t.clone();
    let mut out = fold_phase(&Reference, &mut t.clone(), p, zeta, row);
    let (mut roots, mut alphas) = (out.roots.iter(), Vec::new());
    for (k, round) in out.rounds.iter().enumerate() {
        if k % 3 == 0
            && let Some(root) = roots.next()
        {
            replay.absorb_digest(label::ROOT, root);
        }
        replay.absorb_felts(label::FOLD_POLY, &round.poly.0);
        replay.accept_pow(p.g_fold, round.nonce);
        let a = replay.draw(label::ALPHA);
        claim = round.poly.eval(claim, a);
        alphas.push(a);
    }
    let (bound, free) = zeta.split_at(alphas.len());
    let scale = eq_eval(bound, &alphas);
    let kernel: Vec<QM31> = eq_vector(free).into_iter().map(|e| e * scale).collect();
    let error = claim - inner(&out.message, &kernel);
    cheat.message(&mut out.message, error, &kernel);
    replay.absorb_felts(label::MESSAGE, &out.message);
    *t = replay;
    out
}

/// Chases a false value through the message in clear.
pub fn chase_message(message: &mut [QM31], error: QM31, kernel: &[QM31]) {
    message[0] += error * kernel[0].inverse();
}

/// What the verifier says to a proof, once as a value and once as bytes; both must agree.
pub fn verdict(toy: &Toy, proof: &Proof) -> Result<(), VerifyError> {
    let direct = verify::<Blake2s>(&toy.registered, proof).map(|_| ());
    let parsed = verify_reduced::<Blake2s>(&toy.registered, &proof.write()).map(|_| ());
    assert_eq!(direct, parsed);
    direct
}

/// The verdict on the honest statement proved with a cheat, without grinding.
pub fn attempt(cheat: &dyn Cheat) -> Result<(), VerifyError> {
    let toy = bare();
    verdict(toy, &prove(&honest(toy), cheat))
}

/// An error of the joint opening.
pub fn joint_error(e: OpeningError) -> Result<(), VerifyError> {
    Err(VerifyError::Opening(e.to_string()))
}

/// Something that is not zero.
pub const OFF: QM31 = ONE;

#[test]
fn the_forger_makes_the_prover_s_proof_and_it_is_accepted() {
    assert_eq!(attempt(&Nowhere), Ok(()));
    let toy = crate::harness::toy();
    assert_eq!(verdict(toy, &prove(&honest(toy), &Nowhere)), Ok(()));
}
