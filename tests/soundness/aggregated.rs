//! Attacks on the opening of all segments (mode 2): false claims carried as far as they go, parts and kernels exchanged, trees
//! left out or exchanged, values chosen late. Most prove one changed weight of a layer, which nothing but the opening can tell.

use crate::aggregated_forger::{
    Cheat, Closing, Line, Nowhere, OFF, attempt, bare, chase_message, honest, joint_error, prove, verdict,
};
use crate::harness::{Forger, IDS, Toy, inside, toy};
use obelysk_model::IntegerModel;
use obelysk_protocol::field::{FieldExpOps, M31, QM31, RoundPoly, inner};
use obelysk_protocol::transcript::{Blake2s, Digest, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::{verify, verify_reduced};
use obelysk_protocol::verifier::merkle::MerkleError;
use obelysk_protocol::verifier::opening::{Field, OpeningError, TreeOpening, label};
use obelysk_protocol::verifier::proof::Proof;
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::prover::commitment::{Oracle, RegisteredOracle};
use std::sync::OnceLock;

/// Weights and values of the first layer, then of the second, among all oracles: an embedding comes before, a head after.
const WEIGHTS: [usize; 2] = [2, 4];
const VALUES: [usize; 2] = [3, 5];

const INCONSISTENT: fn(usize) -> OpeningError = |layer| OpeningError::Inconsistent { layer };

/// The model with one weight of its first layer changed.
fn changed() -> IntegerModel {
    let mut model = bare().model.clone();
    model.weights.segments[1].matrices[0].data[0] ^= 1;
    model
}

/// Has the changed weights and the true model's registration.
fn liar() -> &'static Forger {
    static LIAR: OnceLock<Forger> = OnceLock::new();
    LIAR.get_or_init(|| {
        let toy: &'static Toy = Box::leak(Box::new(Toy { model: changed(), ..fresh() }));
        Forger { toy, mode: 2, ..Forger::of(&changed(), &IDS, &IDS) }
    })
}

fn fresh() -> Toy {
    Toy::with(bare().model.clone(), bare().registered.security)
}

/// The changed weights, committed.
fn changed_oracle() -> &'static RegisteredOracle<Reference> {
    static OTHER: OnceLock<Toy> = OnceLock::new();
    OTHER.get_or_init(|| Toy::with(changed(), bare().registered.security)).oracles[1].as_ref().unwrap()
}

/// What becomes of the changed weight with a cheat.
fn lie(cheat: &dyn Cheat) -> Result<(), VerifyError> {
    verdict(bare(), &prove(liar(), cheat))
}

fn tree(oracle: usize, source: MerkleError) -> Result<(), VerifyError> {
    joint_error(OpeningError::Oracle { oracle, source })
}

/// A false value at the joint point for one oracle, and as much of the rest as is asked for.
struct Carried {
    by: usize,
    message: bool,
}

impl Cheat for Carried {
    fn values(&self, values: &mut Vec<QM31>, closing: &Closing) {
        closing.chase(values, self.by);
    }
    fn message(&self, message: &mut Vec<QM31>, error: QM31, kernel: &[QM31]) {
        if self.message {
            chase_message(message, error, kernel);
        }
    }
}

#[test]
fn forging_a_weight_is_refused_however_far_it_is_carried() {
    assert_eq!(lie(&Nowhere), joint_error(OpeningError::Joint));
    // By its own oracle, by its own segment's other one, by another segment's.
    for by in [WEIGHTS[0], VALUES[0], WEIGHTS[1]] {
        assert_eq!(lie(&Carried { by, message: false }), joint_error(OpeningError::Fold), "{by}");
        assert_eq!(lie(&Carried { by, message: true }), joint_error(INCONSISTENT(1)), "{by}");
    }
}

/// Values of two segments are false and cancel in the joint sumcheck.
struct Cancelling {
    message: bool,
}

impl Cheat for Cancelling {
    fn values(&self, values: &mut Vec<QM31>, closing: &Closing) {
        values[WEIGHTS[0]] += OFF;
        closing.chase(values, VALUES[1]);
        assert_eq!(closing.error(values), QM31::default());
    }
    fn message(&self, message: &mut Vec<QM31>, error: QM31, kernel: &[QM31]) {
        if self.message {
            chase_message(message, error, kernel);
        }
    }
}

#[test]
fn forging_values_that_cancel_across_segments_is_refused() {
    assert_eq!(attempt(&Cancelling { message: false }), joint_error(OpeningError::Fold));
    assert_eq!(attempt(&Cancelling { message: true }), joint_error(INCONSISTENT(1)));
}

/// Values of two segments that close both the joint sumcheck and the combination, chosen when θ is known: θ was drawn with the
/// true values absorbed, or with none.
struct Late {
    absorbed: bool,
}

impl Cheat for Late {
    fn absorb_values(&self, t: &mut Transcript<Blake2s>, values: &[QM31]) {
        if self.absorbed {
            t.absorb_felts(label::VALUES, values);
        }
    }
    fn sent(&self, values: &mut Vec<QM31>, closing: &Closing, theta: &[QM31]) {
        let ([a, b], error) = (WEIGHTS, closing.error(values));
        let scale = error * (closing.kernels[a] * theta[b] - closing.kernels[b] * theta[a]).inverse();
        let before = inner(theta, values);
        values[a] += scale * theta[b];
        values[b] -= scale * theta[a];
        assert!(closing.error(values) == QM31::default() && inner(theta, values) == before && error != QM31::default());
    }
}

#[test]
fn forging_values_after_the_combination_is_refused() {
    // A changed weight would be proved to a verifier that draws θ without having absorbed the values.
    for absorbed in [false, true] {
        assert_eq!(lie(&Late { absorbed }), joint_error(OpeningError::Fold));
    }
}

/// The changed weights under the true root; opened leaves are the true tree's unless told otherwise.
struct OtherData {
    leaves: bool,
}

impl OtherData {
    fn opened(&self) -> &RegisteredOracle<Reference> {
        if self.leaves { changed_oracle() } else { bare().oracles[1].as_ref().unwrap() }
    }
}

impl Oracle<Reference> for OtherData {
    fn rows(&self) -> usize {
        changed_oracle().rows()
    }
    fn root(&self) -> Digest {
        bare().registered.roots[1].unwrap()
    }
    fn partials(&self, b: &Reference, point: &[QM31]) -> Vec<QM31> {
        changed_oracle().partials(b, point)
    }
    fn combine(&self, b: &Reference, coefficients: &[QM31]) -> Vec<QM31> {
        changed_oracle().combine(b, coefficients)
    }
    fn leaves(&self, b: &Reference, positions: &[usize]) -> Vec<M31> {
        self.opened().leaves(b, positions)
    }
    fn nodes(&self, b: &Reference, wanted: &[(u32, usize)]) -> Vec<Digest> {
        self.opened().nodes(b, wanted)
    }
}

impl Cheat for OtherData {
    fn weights(&self, segment: usize) -> Option<&dyn Oracle<Reference>> {
        (segment == 1).then_some(self)
    }
}

#[test]
fn forging_an_oracle_of_other_data_is_refused_by_its_tree() {
    assert_eq!(lie(&OtherData { leaves: false }), joint_error(INCONSISTENT(0)));
    assert_eq!(lie(&OtherData { leaves: true }), tree(WEIGHTS[0], MerkleError::Root));
}

/// Leaves one oracle out of the combined row, or its tree out of the queries.
enum LeftOut {
    Combination(bool),
    Leaves,
    Nodes,
}

impl Cheat for LeftOut {
    fn combined(&self, row: &mut Vec<QM31>, lines: &[Line<'_>], theta: &[QM31]) {
        if let Self::Combination(_) = self {
            let (o, w) = (&lines[WEIGHTS[0]], theta[WEIGHTS[0]]);
            row.iter_mut().zip(&o.folded).for_each(|(sum, &v)| *sum -= w * v);
        }
    }
    fn message(&self, message: &mut Vec<QM31>, error: QM31, kernel: &[QM31]) {
        if let Self::Combination(true) = self {
            chase_message(message, error, kernel);
        }
    }
    fn trees(&self, trees: &mut Vec<TreeOpening<M31>>) {
        match self {
            Self::Combination(_) => {}
            Self::Leaves => trees[WEIGHTS[0]] = TreeOpening::default(),
            Self::Nodes => trees[WEIGHTS[0]].nodes.clear(),
        }
    }
}

#[test]
fn forging_by_leaving_an_oracle_out_is_refused() {
    assert_eq!(attempt(&LeftOut::Combination(false)), joint_error(OpeningError::Fold));
    assert_eq!(attempt(&LeftOut::Combination(true)), joint_error(INCONSISTENT(0)));
    assert_eq!(attempt(&LeftOut::Leaves), tree(WEIGHTS[0], MerkleError::Indices));
    assert_eq!(attempt(&LeftOut::Nodes), tree(WEIGHTS[0], MerkleError::NodeCount));
    let mut proof = prove(&honest(bare()), &Nowhere);
    proof.opening.iter_mut().for_each(|o| drop(o.oracles.remove(WEIGHTS[0])));
    let verdict = verify::<Blake2s>(&bare().registered, &proof).map(|_| ());
    assert_eq!(verdict, joint_error(OpeningError::ProofShape { field: Field::Oracles }));
}

/// Round polynomials that are not the sum of every segment's own.
enum Rounds {
    /// One oracle's part stands in for another's.
    Swapped,
    /// A part of another round.
    Stale,
    /// Something is added to the sum.
    Added(usize),
}

impl Cheat for Rounds {
    fn parts(&self, round: usize, parts: &mut Vec<[QM31; 2]>) {
        match self {
            Self::Swapped if round == 2 => parts[WEIGHTS[0]] = parts[WEIGHTS[1]],
            Self::Stale if round == 3 => parts[VALUES[0]] = [parts[VALUES[0]][1], parts[VALUES[0]][0]],
            _ => {}
        }
    }
    fn poly(&self, round: usize, poly: &mut RoundPoly<2>) {
        if let Self::Added(at) = self
            && *at == round
        {
            poly.0[1] += OFF;
        }
    }
}

#[test]
fn forging_a_round_polynomial_is_refused() {
    let cheats = [Rounds::Swapped, Rounds::Stale, Rounds::Added(0), Rounds::Added(3), Rounds::Added(5)];
    for cheat in &cheats {
        assert_eq!(attempt(cheat), joint_error(OpeningError::Joint));
    }
}

/// Proves the sumcheck for the kernel of another segment.
struct Kernels(usize, usize);

impl Cheat for Kernels {
    fn kernels(&self, kernels: &mut Vec<Vec<QM31>>) {
        kernels.swap(self.0, self.1);
    }
}

#[test]
fn forging_with_the_kernel_of_another_point_is_refused() {
    for (a, b) in [(WEIGHTS[0], WEIGHTS[1]), (VALUES[0], VALUES[1]), (VALUES[0], WEIGHTS[0])] {
        assert_eq!(attempt(&Kernels(a, b)), joint_error(OpeningError::Joint), "{a} {b}");
    }
}

/// Opened trees in other places.
struct Exchanged(fn(&mut Vec<TreeOpening<M31>>));

impl Cheat for Exchanged {
    fn trees(&self, trees: &mut Vec<TreeOpening<M31>>) {
        (self.0)(trees);
    }
}

#[test]
fn forging_by_exchanged_trees_is_refused() {
    let swapped = [
        (Exchanged(|t| t.swap(VALUES[0], VALUES[1])), VALUES[0]),
        (Exchanged(|t| t[VALUES[1]] = t[VALUES[0]].clone()), VALUES[1]),
        (Exchanged(|t| t.swap(WEIGHTS[0], WEIGHTS[1])), WEIGHTS[0]),
        (Exchanged(|t| t[2..6].rotate_right(2)), WEIGHTS[0]),
    ];
    for (cheat, first) in &swapped {
        assert_eq!(attempt(cheat), tree(*first, MerkleError::Root));
    }
    // Leaves of one tree with the nodes of another.
    let nodes = Exchanged(|t| t[VALUES[0]].nodes = t[VALUES[1]].nodes.clone());
    assert_eq!(attempt(&nodes), tree(VALUES[0], MerkleError::Root));
}

/// Positions of the forger's choice.
struct Positions(fn(&mut Vec<usize>));

impl Cheat for Positions {
    fn positions(&self, positions: &mut Vec<usize>) {
        (self.0)(positions);
    }
}

#[test]
fn forging_the_positions_is_refused() {
    let chosen = attempt(&Positions(|q| *q = (0..q.len()).collect()));
    assert!(chosen == tree(0, MerkleError::Root) || chosen == tree(0, MerkleError::NodeCount), "{chosen:?}");
    assert_eq!(attempt(&Positions(|q| q.truncate(q.len() - 1))), tree(0, MerkleError::Indices));
}

/// A proof of other tokens by the same model.
fn another() -> Proof {
    let other = Forger { toy: bare(), mode: 2, ..Forger::of(&bare().model, &[1, 2, 4], &[1, 2, 4]) };
    let proof = prove(&other, &Nowhere);
    assert_eq!(verdict(bare(), &proof), Ok(()));
    proof
}

#[test]
fn forging_by_parts_of_another_proof_is_refused() {
    let (own, other) = (prove(&honest(bare()), &Nowhere), another());
    let with = |change: &dyn Fn(&mut Proof)| {
        let mut proof = own.clone();
        change(&mut proof);
        verdict(bare(), &proof)
    };
    for l in 0..own.segments.len() {
        let verdict = with(&|p| p.segments[l] = other.segments[l].clone());
        assert!(matches!(verdict, Err(VerifyError::Segment { index, .. }) if index == l), "{verdict:?}");
    }
    // Rows alone: the fork itself has nothing to hold them against.
    assert_eq!(with(&|p| p.segments[1].opening = other.segments[1].opening.clone()), joint_error(OpeningError::Joint));
    assert_eq!(with(&|p| p.opening = other.opening.clone()), joint_error(OpeningError::Joint));
    let trees = with(&|p| {
        let theirs = other.opening.as_ref().map(|o| o.oracles[VALUES[0]].clone());
        p.opening.iter_mut().zip(theirs).for_each(|(o, theirs)| o.oracles[VALUES[0]] = theirs);
    });
    assert!(trees.is_err_and(|e| e.to_string().contains("oracle 3")));
}

/// Writes a nonce where one step's grinding has it.
type SetNonce = fn(&mut Proof, u64);

#[test]
fn forging_by_skipped_grinding_is_refused() {
    let own = prove(&honest(toy()), &Nowhere);
    let steps: [(&str, SetNonce); 4] = [
        ("opening/beta", |p, n| p.segments[1].opening.rows[0][0].nonce = n),
        ("opening/theta", |p, n| p.opening.iter_mut().for_each(|o| o.theta_nonces[1] = n)),
        ("opening/alpha", |p, n| p.opening.iter_mut().for_each(|o| o.folds[1].nonce = n)),
        ("opening/query", |p, n| p.opening.iter_mut().for_each(|o| o.query_nonce = n)),
    ];
    for (step, set) in steps {
        let refused = (0..64).any(|n| {
            let mut proof = own.clone();
            set(&mut proof, n);
            verdict(toy(), &proof).is_err_and(|e| e.to_string().contains(step))
        });
        assert!(refused, "{step}");
    }
}

#[test]
fn an_opening_where_none_belongs_and_none_where_one_does_are_refused() {
    let registered = &bare().registered;
    let own = prove(&honest(bare()), &Nowhere);
    let none = Proof { opening: None, ..own.clone() };
    let count = VerifyError::Count { step: "openings of all segments", found: 0, expected: 1 };
    assert_eq!(verify::<Blake2s>(registered, &none).map(|_| ()), Err(count));
    assert!(matches!(verify_reduced::<Blake2s>(registered, &none.write()), Err(VerifyError::Malformed(_))));
    let mut both = own.clone();
    both.segments[0].opening.combined.clone_from(&own.opening);
    let field = VerifyError::Opening(OpeningError::ProofShape { field: Field::Combined }.to_string());
    assert_eq!(verify::<Blake2s>(registered, &both).map(|_| ()), inside(0, field));
    let mut each = crate::harness::honest_proof().clone();
    each.opening.clone_from(&own.opening);
    let count = VerifyError::Count { step: "openings of all segments", found: 1, expected: 0 };
    assert_eq!(verify::<Blake2s>(&toy().registered, &each).map(|_| ()), Err(count));
}
