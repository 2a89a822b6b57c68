//! Lies that are carried: a prover that chooses every later message so that the next check passes, as far as it can. Each
//! step of the verifier is then the one that stops it.

use crate::harness::{Columns, EQUATIONS, Forger, Honest, Steps, honest, inside, verdict};
use obelysk_protocol::circuit::segment::{Circuit, Factor};
use obelysk_protocol::field::{
    FieldExpOps, ONE, QM31, RoundPoly, ZERO, eq_at_index, eq_eval, eq_vector, fold, mle_eval_base, signed_ext,
};
use obelysk_protocol::transcript::{Blake2s, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::final_sumcheck::{FinalProof, absorb_round, closing_columns, point_len};
use obelysk_protocol::verifier::logup::{GkrLayer, LeafClaim, absorb_mask};
use obelysk_protocol::verifier::plan::{Plan, source_eval};
use obelysk_protocol::verifier::points::{Points, low_corner};
use obelysk_protocol::verifier::product::{ProductProof, absorb_accumulators, absorb_claims, powers};
use obelysk_protocol::verifier::segment::{OpeningClaims, SegmentInput};
use obelysk_protocol::verifier::sumcheck;
use obelysk_shard::kernels::proof::ProofKernels;
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::prover::final_sumcheck::{self, Grinder};
use obelysk_shard::prover::product;

/// A layer.
const S: usize = 1;

/// How far a prover goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    Root,
    Layers,
    Columns,
}

/// Balances the root by force and carries the difference down the tree, then into a column's value.
struct FalseRoot(Depth);

/// `sum_i rest[i] f(parts at X, i)` at X = 0..=3 for the GKR summand.
fn summand(rest: &[QM31], parts: &[Vec<QM31>; 4], mu: QM31) -> [QM31; 4] {
    [0, 1, 2, 3].map(|x| {
        rest.iter().enumerate().fold(ZERO, |acc, (i, &e)| {
            let [n0, n1, d0, d1] =
                [0, 1, 2, 3].map(|k: usize| parts[k][2 * i] + (parts[k][2 * i + 1] - parts[k][2 * i]) * signed_ext(x));
            acc + e * (n0 * d1 + n1 * d0 + mu * d0 * d1)
        })
    })
}

impl FalseRoot {
    /// One layer: true round values at 0, 2, 3, and the even numerator that satisfies the layer's last equation.
    fn layer(&self, t: &mut Transcript<Blake2s>, mut parts: [Vec<QM31>; 4], from: &LeafClaim) -> (GkrLayer, Vec<QM31>) {
        let mu = t.draw("logup.mu");
        let mut claim = from.numerator + mu * from.denominator;
        let (mut rest, mut scale) = (eq_vector(&from.point), ONE);
        let (mut rounds, mut point) = (Vec::new(), Vec::new());
        for &z in &from.point {
            rest = rest.chunks_exact(2).map(|p| p[0] + p[1]).collect();
            let q = summand(&rest, &parts, mu);
            let line = |x: i64| scale * ((ONE - z) + (z + z - ONE) * signed_ext(x));
            let values: Vec<QM31> = (0..4).map(|x| line(x as i64) * q[x]).collect();
            let poly = RoundPoly::<3>::from_values(&values);
            let r = sumcheck::round(t, "logup.round", &poly);
            claim = poly.eval(claim, r);
            scale *= z * r + (ONE - z) * (ONE - r);
            parts = parts.map(|p| fold(&p, r));
            rounds.push(poly);
            point.push(r);
        }
        let [_, n1, d0, d1] = [0, 1, 2, 3].map(|k: usize| parts[k][0]);
        let honest = parts[0][0];
        let n0 = (claim * scale.inverse() - n1 * d0 - mu * d0 * d1) * d1.inverse();
        let carried = self.0 >= Depth::Layers;
        (GkrLayer { rounds, mask: [if carried { n0 } else { honest }, n1, d0, d1] }, point)
    }
}

/// Even and odd numerators and denominators of a layer.
fn split((n, d): &(Vec<QM31>, Vec<QM31>)) -> [Vec<QM31>; 4] {
    let part = |v: &[QM31], odd: usize| v.iter().skip(odd).step_by(2).copied().collect();
    [part(n, 0), part(n, 1), part(d, 0), part(d, 1)]
}

impl Steps for FalseRoot {
    fn logup(&self, t: &mut Transcript<Blake2s>, c: &Circuit, columns: &Columns, at: (QM31, QM31)) -> (Vec<GkrLayer>, LeafClaim) {
        let mut tree = vec![Reference.leaves(c, columns, at.0, at.1)];
        for _ in 1..c.tree_log() {
            tree.push(Reference.next_layer(&tree[tree.len() - 1]));
        }
        let mut claim = LeafClaim { point: Vec::new(), numerator: ZERO, denominator: ONE };
        let mut layers = Vec::new();
        while let Some(nodes) = tree.pop() {
            let (layer, x) = if layers.is_empty() {
                let [_, n1, d0, d1] = Reference.children(&nodes);
                (GkrLayer { rounds: Vec::new(), mask: [-(n1 * d0 * d1.inverse()), n1, d0, d1] }, Vec::new())
            } else {
                self.layer(t, split(&nodes), &claim)
            };
            let y = absorb_mask(t, &layer.mask);
            let [n0, n1, d0, d1] = layer.mask;
            claim = LeafClaim { point: x, numerator: n0 + y * (n1 - n0), denominator: d0 + y * (d1 - d0) };
            claim.point.insert(0, y);
            layers.push(layer);
        }
        (layers, claim)
    }

    fn last(
        &self,
        t: &mut Transcript<Blake2s>,
        input: &SegmentInput<'_>,
        plan: &Plan,
        columns: &Columns,
    ) -> (FinalProof, Vec<QM31>) {
        let fix = |proof: &mut FinalProof, c: &Circuit, gap: QM31, r: &[QM31]| {
            let col = crate::equations::id(c, "mult.exp");
            proof.columns[col] += gap * weight(plan, c, col, r).inverse();
        };
        last(
            t,
            input,
            plan,
            columns,
            (None, &|p, c, gap, r| {
                if self.0 >= Depth::Columns {
                    fix(p, c, gap, r)
                }
            }),
        )
    }
}

/// The coefficient of a column's value in the last equation; the column must occur in no product.
fn weight(plan: &Plan, c: &Circuit, col: usize, r: &[QM31]) -> QM31 {
    let part = |g: &obelysk_protocol::verifier::plan::LinearGroup| {
        let n = g.point.len();
        let w = g.terms.iter().filter(|t| t.0 as usize == col).fold(ZERO, |a, t| a + t.1);
        w * eq_eval(&g.point, &r[..n]) * low_corner(&r[n..c.max_log()])
    };
    plan.linear.iter().map(part).fold(ZERO, |a, v| a + v)
}

/// The last equation's right side, from the columns' values.
fn right_side(c: &Circuit, plan: &Plan, r: &[QM31], columns: &[QM31]) -> QM31 {
    let linear = (0..c.columns.len()).fold(ZERO, |a, col| a + weight(plan, c, col, r) * columns[col]);
    plan.chips.iter().fold(linear, |a, g| {
        let n = g.log_size;
        let value = |w: QM31, f: &[obelysk_protocol::circuit::expr::Source]| {
            f.iter().fold(w, |p, &s| p * source_eval(c, r, s, columns).unwrap())
        };
        let sum = g.terms.iter().fold(ZERO, |a, (w, f)| a + value(*w, f));
        a + sum * eq_eval(&g.point, &r[..n]) * low_corner(&r[n..c.max_log()])
    })
}

/// Changes the columns' values, given by how much the last equation fails and r so far.
type Fix<'a> = &'a dyn Fn(&mut FinalProof, &Circuit, QM31, &[QM31]);

/// The final sumcheck with honest rounds, one column's value off by one if so named, and the largest columns `fix`ed once
/// the rounds are over.
fn last(
    t: &mut Transcript<Blake2s>,
    input: &SegmentInput<'_>,
    plan: &Plan,
    columns: &Columns,
    (lie, fix): (Option<&str>, Fix<'_>),
) -> (FinalProof, Vec<QM31>) {
    let (c, shape) = (input.circuit, input.shape);
    let honest = final_sumcheck::prove(&mut t.clone(), &Reference, c, plan, columns, shape, &Honest);
    let (mut proof, top) = (FinalProof { nonces: Vec::new(), ..honest.0 }, c.max_log());
    let (mut claim, mut r) = (plan.claim, Vec::new());
    if let Some(name) = lie {
        proof.columns[crate::equations::id(c, name)] += ONE;
    }
    for j in 0..point_len(c, shape.h) {
        if j == top {
            // The lie was absorbed before the last coordinates, so these differ from the honest run's.
            for (i, _) in c.columns.iter().enumerate().filter(|(_, col)| col.log_size == top) {
                proof.columns[i] = mle_eval_base(&columns[i], &r);
            }
            let gap = claim - right_side(c, plan, &r, &proof.columns);
            fix(&mut proof, c, gap, &r);
        }
        absorb_round(t, c, j, proof.rounds.get(j), &proof.columns);
        if j >= shape.h {
            proof.nonces.push(Honest.grind(t, shape.g_fold));
        }
        let x = t.draw("final.r");
        claim = proof.rounds.get(j).map_or(claim, |p| p.eval(claim, x));
        r.push(x);
    }
    closing_columns(t, c, r.len(), &proof.columns);
    (proof, r)
}

fn refused_with(f: &Forger, steps: &'static dyn Steps) -> Result<(), VerifyError> {
    verdict(&f.prove_with(S, &|l| if l == S { steps } else { &Honest }).proof)
}

#[track_caller]
fn opening_fails(verdict: &Result<(), VerifyError>) {
    let Err(VerifyError::Segment { index: S, source }) = verdict else { panic!("{verdict:?}") };
    assert!(matches!(**source, VerifyError::Opening(_)), "{source:?}");
}

#[test]
fn forging_a_lookup_sum_is_refused_however_far_it_is_carried() {
    let mut f = honest().clone();
    f.add(S, "mult.r16", 77, 1);
    assert_eq!(refused_with(&f, &FalseRoot(Depth::Root)), inside(S, VerifyError::Lookups));
    assert_eq!(refused_with(&f, &FalseRoot(Depth::Layers)), inside(S, EQUATIONS));
    opening_fails(&refused_with(&f, &FalseRoot(Depth::Columns)));
}

#[test]
fn the_carrying_prover_is_honest_without_a_lie() {
    assert_eq!(refused_with(honest(), &FalseRoot(Depth::Columns)).is_ok(), honest().prove().broken.is_empty());
}

/// A column's value changed, and the largest column's, sent last, so that the last equation still holds.
struct TwoColumns;

impl Steps for TwoColumns {
    fn last(
        &self,
        t: &mut Transcript<Blake2s>,
        input: &SegmentInput<'_>,
        plan: &Plan,
        columns: &Columns,
    ) -> (FinalProof, Vec<QM31>) {
        let fix = |p: &mut FinalProof, c: &Circuit, gap: QM31, r: &[QM31]| {
            assert_ne!(gap, ZERO);
            let col = crate::equations::id(c, "mult.exp");
            p.columns[col] += gap * weight(plan, c, col, r).inverse();
        };
        last(t, input, plan, columns, (Some("mult.r16"), &fix))
    }
}

#[test]
fn forging_column_values_that_compensate_is_refused() {
    opening_fails(&refused_with(honest(), &TwoColumns));
}

/// What a lie about the products changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Swap {
    /// The inputs of o and down, against each other.
    Claims,
    /// The matrices of q and k, against each other.
    Weights,
    /// As `Claims`, and a column takes the difference.
    ClaimsAndColumn,
}

struct Compensated(Swap);

fn product_index(c: &Circuit, name: &str) -> (usize, usize, usize) {
    let m = c.products.iter().position(|p| p.name == name).unwrap();
    let claim = c.products[m].factors.iter().find_map(|f| if let Factor::Claim(i) = f { Some(*i) } else { None });
    let weight = c.products[m].factors.iter().find_map(|f| if let Factor::Weight(i) = f { Some(*i) } else { None });
    (m, claim.unwrap(), weight.unwrap())
}

impl Steps for Compensated {
    fn product(
        &self,
        t: &mut Transcript<Blake2s>,
        c: &Circuit,
        points: &mut Points,
        columns: &Columns,
        w: &[&[i8]],
    ) -> ProductProof {
        let mut proof = product::prove(&mut t.clone(), &Reference, c, points, columns, w).unwrap().0;
        let lambda = powers(absorb_accumulators(t, &proof.accumulators), proof.accumulators.len());
        proof.rounds.iter().for_each(|p| {
            sumcheck::round(t, "product.round", p);
        });
        let names = if self.0 == Swap::Weights { ["q", "k"] } else { ["o", "down"] };
        let [(ma, ca, wa), (mb, cb, wb)] = names.map(|n| product_index(c, n));
        let corner = |m: usize| low_corner(&points.kappa[c.products[m].vars..]);
        if self.0 == Swap::Weights {
            let (fa, fb) = (lambda[ma] * corner(ma) * proof.claims[ca], lambda[mb] * corner(mb) * proof.claims[cb]);
            proof.weights[wa] += fb;
            proof.weights[wb] -= fa;
        } else {
            let (fa, fb) = (lambda[ma] * corner(ma) * proof.weights[wa], lambda[mb] * corner(mb) * proof.weights[wb]);
            proof.claims[ca] += fb;
            proof.claims[cb] -= fa;
        }
        absorb_claims(t, &proof);
        proof
    }

    fn last(
        &self,
        t: &mut Transcript<Blake2s>,
        input: &SegmentInput<'_>,
        plan: &Plan,
        columns: &Columns,
    ) -> (FinalProof, Vec<QM31>) {
        let carry = if self.0 == Swap::ClaimsAndColumn { Depth::Columns } else { Depth::Root };
        FalseRoot(carry).last(t, input, plan, columns)
    }
}

#[test]
fn forging_product_inputs_that_compensate_is_refused() {
    assert_eq!(refused_with(honest(), &Compensated(Swap::Claims)), inside(S, EQUATIONS));
    opening_fails(&refused_with(honest(), &Compensated(Swap::ClaimsAndColumn)));
}

#[test]
fn forging_matrix_values_that_compensate_is_refused() {
    opening_fails(&refused_with(honest(), &Compensated(Swap::Weights)));
}

/// Opens at another point than the sumcheck's, with the value that is true there.
struct WrongPoint;

impl Steps for WrongPoint {
    fn claims(&self, mut claims: OpeningClaims) -> OpeningClaims {
        let f = honest();
        let c = &f.circuits[S];
        claims.values.0[0] += ONE;
        let r = &claims.values.0;
        claims.values.1 = c.columns.iter().zip(c.stack().0).zip(&f.columns[S]).fold(ZERO, |a, ((col, at), cells)| {
            let n = col.log_size;
            let value = mle_eval_base(cells, &r[..n]);
            a + value * eq_at_index(at >> n, &r[n..])
        });
        claims
    }
}

/// Opens the right point with a value off by one, and the weights likewise.
struct WrongValue(bool);

impl Steps for WrongValue {
    fn claims(&self, mut claims: OpeningClaims) -> OpeningClaims {
        match (&mut claims.weights, self.0) {
            (Some(w), true) => w.value += ONE,
            _ => claims.values.1 += ONE,
        }
        claims
    }
}

#[test]
fn forging_an_opening_at_another_point_or_value_is_refused() {
    opening_fails(&refused_with(honest(), &WrongPoint));
    opening_fails(&refused_with(honest(), &WrongValue(false)));
    opening_fails(&refused_with(honest(), &WrongValue(true)));
}
