//! The opening of all segments: parts joined in any order give the bytes of one process, and every part that lies is refused
//! by the name of its segment.

use super::{Case, Kind, params};
use crate::kernels::CommitKernels;
use crate::kernels::reference::Reference;
use crate::kernels::simd::Simd;
use crate::prover::aggregate::join::{AggregateError, JointRounds};
use crate::prover::aggregate::part::{FoldedPart, JointPart, PartRounds, RoundPart, answer};
use crate::prover::aggregate::{Segment, open_all};
use crate::prover::commitment::Oracle;
use crate::prover::opening::prove_rows;
use obelysk_protocol::field::{M31, ONE, QM31};
use obelysk_protocol::transcript::{Blake2s, Digest, Transcript};
use obelysk_protocol::verifier::merkle::MerkleError;
use obelysk_protocol::verifier::opening::{
    CombinedProof, OpeningError, OpeningParams, OpeningProof, Reduced, TreeOpening, absorb_all, verify_combined, verify_rows,
};

/// Oracles of three segments, the second without weights.
const SEGMENTS: [&[(usize, Kind)]; 3] =
    [&[(3, Kind::Tiles(1)), (2, Kind::Point)], &[(1, Kind::Point)], &[(2, Kind::Tiles(0)), (5, Kind::Point)]];

/// Segments with their forks behind them.
struct World<B: CommitKernels> {
    params: OpeningParams,
    cases: Vec<Case<B>>,
    reduced: Vec<Vec<Reduced>>,
    main: Transcript<Blake2s>,
}

fn join(closings: &[Digest]) -> Transcript<Blake2s> {
    let mut main = Transcript::new("main");
    closings.iter().for_each(|d| main.absorb_digest("closing", d));
    main
}

/// The world and the parts of its segments. What the verifier reduces must be what the prover does.
fn world<B: CommitKernels>(b: &B, h: u32) -> (World<B>, Vec<JointPart<B>>) {
    let params = params(h, 2);
    let case = |(l, spec): (usize, &&[(usize, Kind)])| Case::new::<Blake2s>(b, 50 + l as u64, params, spec);
    let cases: Vec<Case<B>> = SEGMENTS.iter().enumerate().map(case).collect();
    let (mut reduced, mut parts, mut closings) = (Vec::new(), Vec::new(), Vec::new());
    for case in &cases {
        let (mut t, mut fork) = (Transcript::<Blake2s>::new("fork"), Transcript::<Blake2s>::new("fork"));
        let (rows, residuals) = prove_rows(b, &mut t, &params, &case.inputs()).unwrap();
        parts.push(JointPart::new(b, &case.inputs(), residuals));
        let proof = OpeningProof { rows, combined: None };
        reduced.push(verify_rows(&mut fork, &params, &case.statement(), &proof, false).unwrap());
        assert_eq!(t.digest(), fork.digest());
        closings.push(t.digest());
    }
    (World { params, cases, reduced, main: join(&closings) }, parts)
}

impl<B: CommitKernels> World<B> {
    fn answers(&self, b: &B, l: usize, positions: &[usize]) -> Vec<TreeOpening<M31>> {
        let oracles: Vec<&dyn Oracle<B>> = self.cases[l].oracles.iter().map(|o| o as &dyn Oracle<B>).collect();
        answer(b, &self.params, &oracles, positions)
    }

    fn verify(&self, proof: &CombinedProof) -> Result<(), OpeningError> {
        let (mut t, reduced) = (self.main.clone(), self.reduced.concat());
        absorb_all(&mut t, &self.params, reduced.len());
        verify_combined(&mut t, &self.params, &reduced, proof)
    }

    fn alone(&self, b: &B, parts: Vec<JointPart<B>>) -> CombinedProof {
        let segments = self.reduced.iter().cloned().zip(parts).map(|(reduced, part)| Segment { reduced, part }).collect();
        let answers = |l: usize, positions: &[usize]| Ok::<_, AggregateError>(self.answers(b, l, positions));
        open_all(b, self.main.clone(), &self.params, segments, answers).unwrap()
    }
}

/// What a segment sends, in a liar's hands.
trait Lie {
    fn round(&self, _segment: usize, _round: usize, _part: &mut RoundPart) {}
    fn values(&self, _segment: usize, _values: &mut Vec<QM31>) {}
    fn share(&self, _segment: usize, _share: &mut Vec<QM31>) {}
    fn trees(&self, _segment: usize, _trees: &mut Vec<TreeOpening<M31>>) {}
}

struct Honest;

impl Lie for Honest {}

/// Joins parts that come in the given order; what was sent as shares is kept, as whoever joins keeps it.
fn joined(order: [usize; 3], lie: &dyn Lie) -> (Result<CombinedProof, AggregateError>, Vec<usize>) {
    let b = &Reference;
    let (w, parts) = world(b, 6);
    let mut liars = Vec::new();
    let run = || {
        let mut joint = JointRounds::new(w.main.clone(), w.params, w.reduced.clone())?;
        let mut parts: Vec<PartRounds<Reference>> =
            parts.into_iter().enumerate().map(|(l, p)| p.start(b, joint.delta(l))).collect();
        let mut z = None;
        for round in 0..6 {
            let mut shares = [[QM31::default(); 3]; 3];
            for l in order {
                shares[l] = parts[l].round(b, z);
                lie.round(l, round, &mut shares[l]);
            }
            z = Some(joint.round(&shares)?);
        }
        let (mut values, folded): (Vec<_>, Vec<FoldedPart<Reference>>) =
            parts.into_iter().map(|p| p.finish(b, z.unwrap())).unzip();
        values.iter_mut().enumerate().for_each(|(l, v)| lie.values(l, v));
        let mut joint = joint.values(b, &values)?;
        let mut sent: Vec<Vec<QM31>> = folded.into_iter().enumerate().map(|(l, f)| f.fold(b, joint.theta(l))).collect();
        for l in order {
            lie.share(l, &mut sent[l]);
            joint.share(b, l, &sent[l])?;
        }
        let mut joint = joint.fold(b)?;
        for l in order {
            let mut trees = w.answers(b, l, joint.positions());
            lie.trees(l, &mut trees);
            joint.answer::<Blake2s>(l, trees)?;
        }
        let outcome = joint.finish(b);
        if let Err(AggregateError::Word { position }) = outcome {
            liars = joint.liars(position, |l| sent[l].clone());
        }
        outcome
    };
    let outcome = run();
    if let Ok(proof) = &outcome {
        assert_eq!(w.verify(proof), Ok(()));
    }
    (outcome, liars)
}

#[test]
fn parts_joined_in_any_order_give_the_proof_of_one_process() {
    for h in [2, 3, 4, 6, 9] {
        let (w, parts) = world(&Reference, h);
        let proof = w.alone(&Reference, parts);
        assert_eq!(w.verify(&proof), Ok(()), "{h}");
        let simd = Simd::default();
        let (w, parts) = world(&simd, h);
        assert_eq!(w.alone(&simd, parts), proof, "{h}");
        if h == 6 {
            for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
                assert_eq!(joined(order, &Honest).0.as_ref(), Ok(&proof));
            }
        }
    }
}

/// Lies in segment 2 at one step.
enum At {
    Round(usize),
    RoundInSum(usize),
    Values,
    Share,
    Trees,
    OtherTrees,
}

impl Lie for At {
    fn round(&self, segment: usize, round: usize, part: &mut RoundPart) {
        match self {
            Self::Round(at) if (segment, round) == (2, *at) => part[0] += ONE,
            // What the claim says of the sum is heeded.
            Self::RoundInSum(at) if (segment, round) == (2, *at) => part[2] += ONE,
            _ => {}
        }
    }

    fn values(&self, segment: usize, values: &mut Vec<QM31>) {
        if matches!(self, Self::Values) && segment == 2 {
            values[1] += ONE;
        }
    }

    fn share(&self, segment: usize, share: &mut Vec<QM31>) {
        if matches!(self, Self::Share) && segment == 2 {
            share[5] += ONE;
        }
    }

    fn trees(&self, segment: usize, trees: &mut Vec<TreeOpening<M31>>) {
        match self {
            Self::Trees if segment == 2 => trees[1].symbols[0] += M31::from_u32_unchecked(1),
            Self::OtherTrees if segment == 2 => drop(trees.pop()),
            _ => {}
        }
    }
}

#[test]
fn a_part_that_lies_is_refused_by_name() {
    let segment = 2;
    let refused = |lie: At| joined([0, 1, 2], &lie).0.unwrap_err();
    assert_eq!(refused(At::Round(0)), AggregateError::Round { segment, round: 0 });
    assert_eq!(refused(At::Round(4)), AggregateError::Round { segment, round: 4 });
    // A false polynomial with a true sum has a false claim in the round after.
    assert_eq!(refused(At::RoundInSum(1)), AggregateError::Round { segment, round: 2 });
    assert_eq!(refused(At::RoundInSum(5)), AggregateError::Values { segment });
    assert_eq!(refused(At::Values), AggregateError::Values { segment });
    assert_eq!(refused(At::Share), AggregateError::Share { segment });
    let tree = |source| AggregateError::Answer { segment, oracle: 1, source };
    assert_eq!(refused(At::Trees), tree(MerkleError::Root));
    assert_eq!(refused(At::OtherTrees), AggregateError::Lengths { segment, step: "opened trees" });
}

/// Sends a share of other data with the value that is expected of it.
struct SameValue(std::cell::Cell<QM31>);

impl Lie for SameValue {
    fn share(&self, segment: usize, share: &mut Vec<QM31>) {
        if segment == 1 {
            // Two entries change so that nothing changes at the joint point: w_0 x_0 + w_1 x_1 with w_1 / w_0 known.
            share[0] += self.0.get();
            share[1] -= ONE;
        }
    }
}

#[test]
fn a_share_of_other_data_is_found_by_its_leaves() {
    // The ratio of two weights of eq(ζ, ·) is ζ_0 / (1 - ζ_0): taken from the proof that an honest run makes.
    let (proof, _) = joined([0, 1, 2], &Honest);
    let joint = proof.unwrap().joint;
    let (w, _) = world(&Reference, 6);
    let mut t = w.main.clone();
    let count = w.reduced.concat().len();
    absorb_all(&mut t, &w.params, count);
    t.draw_many(obelysk_protocol::verifier::opening::label::DELTA, 3);
    t.absorb_felts(obelysk_protocol::verifier::opening::label::JOINT_POLY, &joint[0].0);
    let z = t.draw(obelysk_protocol::verifier::opening::label::ZETA);
    let ratio = z * obelysk_protocol::field::FieldExpOps::inverse(&(ONE - z));
    let (outcome, liars) = joined([0, 1, 2], &SameValue(std::cell::Cell::new(ratio)));
    assert!(matches!(outcome, Err(AggregateError::Word { .. })), "{outcome:?}");
    assert_eq!(liars, [1]);
}

#[test]
fn what_comes_twice_or_never_is_refused() {
    let b = &Reference;
    let (w, parts) = world(b, 6);
    let start = || JointRounds::new(w.main.clone(), w.params, w.reduced.clone()).unwrap();
    assert_eq!(
        start().round(&[[QM31::default(); 3]; 2]).err(),
        Some(AggregateError::Lengths { segment: 2, step: "shares of a joint round" })
    );
    let early = start().values(b, &[vec![], vec![], vec![]]).err();
    assert_eq!(early, Some(AggregateError::Lengths { segment: 0, step: "joint rounds" }));
    let mut joint = start();
    let mut parts: Vec<_> = parts.into_iter().enumerate().map(|(l, p)| p.start(b, joint.delta(l))).collect();
    let mut z = None;
    for _ in 0..6 {
        let shares: Vec<_> = parts.iter_mut().map(|p| p.round(b, z)).collect();
        z = Some(joint.round(&shares).unwrap());
    }
    let (values, folded): (Vec<_>, Vec<_>) = parts.into_iter().map(|p| p.finish(b, z.unwrap())).unzip();
    let mut joint = joint.values(b, &values).unwrap();
    let shares: Vec<_> = folded.into_iter().enumerate().map(|(l, f)| f.fold(b, joint.theta(l))).collect();
    assert_eq!(joint.share(b, 3, &shares[0]), Err(AggregateError::Lengths { segment: 3, step: "shares of the row" }));
    let short = shares[0][..32].to_vec();
    assert_eq!(joint.share(b, 0, &short), Err(AggregateError::Lengths { segment: 0, step: "shares of the row" }));
    for l in [0, 1, 1] {
        joint.share(b, l, &shares[l]).unwrap();
    }
    let step = "share of the combined row";
    assert_eq!(joint.fold(b).err(), Some(AggregateError::Delivery { segment: 1, step, times: 2 }));
    let none = JointRounds::<Blake2s>::new(w.main.clone(), w.params, Vec::new()).err();
    assert_eq!(none, Some(AggregateError::Opening(OpeningError::Params)));
}
