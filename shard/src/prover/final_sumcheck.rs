//! Twin of the verifier's `final_sumcheck`: all claims of a segment down to one point r.

use crate::kernels::proof::ProofKernels;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::field::{ONE, QM31, RoundPoly, ZERO, signed_ext};
use obelysk_protocol::transcript::{HashSuite, Transcript};
use obelysk_protocol::verifier::final_sumcheck::{FinalProof, RowShape, absorb_round, closing_columns, point_len};
use obelysk_protocol::verifier::plan::Plan;

/// Smallest nonce for a transcript's grinding, and the transcript advanced by it.
pub trait Grinder<S: HashSuite>: Sync {
    /// Finds, absorbs and returns the nonce.
    fn grind(&self, t: &mut Transcript<S>, bits: u32) -> u64;
}

enum Body<K: ProofKernels> {
    Linear(K::Ext),
    Chip(K::Chip),
}

/// One weighted sum with its own eq point.
struct Group<K: ProofKernels> {
    point: Vec<QM31>,
    rest: K::Ext,
    scale: QM31,
    body: Body<K>,
}

/// Runs the rounds; returns the proof and r.
pub fn prove<S: HashSuite, K: ProofKernels>(
    t: &mut Transcript<S>,
    k: &K,
    c: &Circuit,
    plan: &Plan,
    columns: &[K::Base],
    shape: RowShape,
    grinder: &dyn Grinder<S>,
) -> (FinalProof, Vec<QM31>) {
    let mut groups = groups(k, c, plan, columns);
    let mut proof = FinalProof { columns: vec![ZERO; c.columns.len()], ..FinalProof::default() };
    let mut done = ZERO;
    let mut r: Vec<QM31> = Vec::new();
    let rounds = c.max_log();
    for j in 0..point_len(c, shape.h) {
        let poly = (j < rounds).then(|| round(k, &mut groups, j, &mut done));
        evaluate_ended(k, c, j, &r, columns, &mut proof.columns);
        absorb_round(t, c, j, poly.as_ref(), &proof.columns);
        if j >= shape.h {
            proof.nonces.push(grinder.grind(t, shape.g_fold));
        }
        let x = t.draw("final.r");
        r.push(x);
        if let Some(p) = poly {
            proof.rounds.push(p);
            done *= ONE - x;
            groups.iter_mut().for_each(|g| g.bind(k, j, x));
        }
    }
    evaluate_ended(k, c, r.len(), &r, columns, &mut proof.columns);
    closing_columns(t, c, r.len(), &proof.columns);
    (proof, r)
}

/// Evaluates the columns of exactly `j` variables at `r[..j]`.
fn evaluate_ended<K: ProofKernels>(k: &K, c: &Circuit, j: usize, r: &[QM31], columns: &[K::Base], out: &mut [QM31]) {
    let mut eq = None;
    for (i, _) in c.columns.iter().enumerate().filter(|(_, col)| col.log_size == j) {
        let eq = eq.get_or_insert_with(|| k.eq(&r[..j]));
        out[i] = k.evaluate(&columns[i], eq);
    }
}

fn groups<K: ProofKernels>(k: &K, c: &Circuit, plan: &Plan, columns: &[K::Base]) -> Vec<Group<K>> {
    let linear = plan.linear.iter().map(|g| {
        let terms: Vec<(&K::Base, QM31)> = g.terms.iter().map(|(id, w)| (&columns[*id as usize], *w)).collect();
        (g.point.clone(), Body::Linear(k.combine(g.point.len(), &terms)))
    });
    let chips = plan.chips.iter().map(|g| (g.point.clone(), Body::Chip(k.chip(c, g.log_size, &g.terms, columns))));
    linear.chain(chips).map(|(point, body)| Group { rest: k.eq(&point), point, scale: ONE, body }).collect()
}

/// The round polynomial of round j; moves groups without variables left into `done`.
fn round<K: ProofKernels>(k: &K, groups: &mut Vec<Group<K>>, j: usize, done: &mut QM31) -> RoundPoly<4> {
    groups.retain(|g| {
        let ended = g.point.len() == j;
        if ended {
            *done += g.scale * g.value(k);
        }
        !ended
    });
    // s(X) at 0..=4; what has ended contributes done (1 - X).
    let mut s: [QM31; 5] = std::array::from_fn(|x| *done * signed_ext(1 - x as i64));
    for g in groups.iter_mut() {
        let z = g.point[j];
        g.rest = k.drop_low(&g.rest);
        let q = g.evals(k);
        for (x, out) in s.iter_mut().enumerate() {
            *out += g.scale * ((ONE - z) + (z + z - ONE) * signed_ext(x as i64)) * q[x];
        }
    }
    RoundPoly::from_values(&s)
}

impl<K: ProofKernels> Group<K> {
    /// The sum without its eq factor at X = 0..=4.
    fn evals(&self, k: &K) -> [QM31; 5] {
        match &self.body {
            Body::Linear(l) => {
                let [a, b] = k.linear_round(&self.rest, l);
                std::array::from_fn(|x| a + (b - a) * signed_ext(x as i64))
            }
            Body::Chip(chip) => {
                let [a, b, c, d] = k.chip_round(chip, &self.rest);
                let e = signed_ext(4) * (d + b) - signed_ext(6) * c - a;
                [a, b, c, d, e]
            }
        }
    }

    fn bind(&mut self, k: &K, j: usize, x: QM31) {
        let z = self.point[j];
        self.scale *= z * x + (ONE - z) * (ONE - x);
        match &mut self.body {
            Body::Linear(l) => *l = k.fold(l, x),
            Body::Chip(chip) => k.chip_fold(chip, x),
        }
    }

    /// The summand's value once every variable is bound.
    fn value(&self, k: &K) -> QM31 {
        match &self.body {
            Body::Linear(l) => k.first(l),
            Body::Chip(chip) => k.chip_value(chip),
        }
    }
}
