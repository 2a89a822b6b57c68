//! Twin of the verifier's `logup`: builds the fraction tree and reduces it layer by layer.

use crate::kernels::proof::ProofKernels;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::field::{FieldExpOps, ONE, QM31, RoundPoly, ZERO, signed_ext};
use obelysk_protocol::transcript::{HashSuite, Transcript};
use obelysk_protocol::verifier::logup::{GkrLayer, LeafClaim, absorb_mask};
use obelysk_protocol::verifier::sumcheck;

/// Proves the tree over `columns`; returns the layers (root first) and the leaf claim.
pub fn prove<S: HashSuite, K: ProofKernels>(
    t: &mut Transcript<S>,
    k: &K,
    c: &Circuit,
    columns: &[K::Base],
    (alpha, beta): (QM31, QM31),
) -> (Vec<GkrLayer>, LeafClaim) {
    let mut claim = LeafClaim { point: Vec::new(), numerator: ZERO, denominator: ONE };
    if c.tree_log() == 0 {
        return (Vec::new(), claim);
    }
    let mut tree = vec![k.leaves(c, columns, alpha, beta)];
    for _ in 1..c.tree_log() {
        tree.push(k.next_layer(&tree[tree.len() - 1]));
    }
    let mut layers = Vec::new();
    while let Some(layer) = tree.pop() {
        let (rounds, x, mask) = if layers.is_empty() {
            (Vec::new(), Vec::new(), k.children(&layer))
        } else {
            let mu = t.draw("logup.mu");
            layer_sumcheck(t, k, k.gkr_start(layer, &claim.point, mu), &claim, mu)
        };
        let y = absorb_mask(t, &mask);
        claim.point = x;
        claim.point.insert(0, y);
        claim.numerator = mask[0] + y * (mask[1] - mask[0]);
        claim.denominator = mask[2] + y * (mask[3] - mask[2]);
        layers.push(GkrLayer { rounds, mask });
    }
    (layers, claim)
}

type LayerResult = (Vec<RoundPoly<3>>, Vec<QM31>, [QM31; 4]);

/// `sum_x eq(z, x) (n0 d1 + n1 d0 + mu d0 d1)(x) = claim`.
fn layer_sumcheck<S: HashSuite, K: ProofKernels>(
    t: &mut Transcript<S>,
    k: &K,
    mut layer: K::Layer,
    from: &LeafClaim,
    mu: QM31,
) -> LayerResult {
    let mut claim = from.numerator + mu * from.denominator;
    let mut scale = ONE;
    let (mut rounds, mut point) = (Vec::new(), Vec::new());
    for &z in &from.point {
        let [t0, t2] = k.gkr_round(&mut layer, point.last().copied());
        let poly = round_poly(claim, scale, z, t0, t2);
        let r = sumcheck::round(t, "logup.round", &poly);
        claim = poly.eval(claim, r);
        scale *= z * r + (ONE - z) * (ONE - r);
        rounds.push(poly);
        point.push(r);
    }
    let mask = k.gkr_end(layer, point.last().copied().unwrap_or(ZERO));
    (rounds, point, mask)
}

/// `s(X) = scale eq(z, X) q(X)` for quadratic q known at 0 and 2; `q(1)` follows from the claim (Gruen 2024, §3).
fn round_poly(claim: QM31, scale: QM31, z: QM31, q0: QM31, q2: QM31) -> RoundPoly<3> {
    let line = |x: i64| scale * ((ONE - z) + (z + z - ONE) * signed_ext(x));
    let at_one = claim - line(0) * q0;
    // line(1) = scale z vanishes with probability below 2^-118; the proof is then unsound for nobody, only invalid.
    let q1 = if line(1) == ZERO { ZERO } else { at_one * line(1).inverse() };
    let q3 = q0 - signed_ext(3) * q1 + signed_ext(3) * q2;
    RoundPoly::from_values(&[line(0) * q0, at_one, line(2) * q2, line(3) * q3])
}
