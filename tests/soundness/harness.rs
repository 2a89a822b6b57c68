//! Whole proofs of false witnesses: the honest prover's steps on whatever columns, statement and lies a test chose.
//!
//! Commitments, grinding, sumchecks and openings are always made properly; a test changes one thing and asks who notices.

use crate::equations;
use obelysk_model::infer::{self, ModelTrace};
use obelysk_model::toy::encoder;
use obelysk_model::{IntegerModel, toy};
use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::{self, PublicInput, Sequence, exp_tables, segment_count};
use obelysk_protocol::field::{M31, QM31, mle_eval_base, signed};
use obelysk_protocol::transcript::{Blake2s, Digest, HashSuite, Seed, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::{
    Statement, absorb_roots, boundary_point, chained, main_transcript, neighbours, oracle_claims, segment_fork, segment_input,
    verify, verify_reduced,
};
use obelysk_protocol::verifier::final_sumcheck::{FinalProof, stack_value, value_rows};
use obelysk_protocol::verifier::logup::{GkrLayer, LeafClaim};
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::opening::{Claim, OpeningProof};
use obelysk_protocol::verifier::plan::{Plan, plan};
use obelysk_protocol::verifier::points::Points;
use obelysk_protocol::verifier::product::ProductProof;
use obelysk_protocol::verifier::proof::{Header, MODE_FORKED, Proof, SegmentProof};
use obelysk_protocol::verifier::registered::{Registered, SecurityParams};
use obelysk_protocol::verifier::segment::{
    ClaimsProof, OpeningClaims, SegmentInput, extend_rho, join_tiles, open_fork, plan_input,
};
use obelysk_shard::kernels::CommitKernels;
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::prover::commitment::{CommittedValues, Oracle, RegisteredOracle};
use obelysk_shard::prover::final_sumcheck::{self, Grinder};
use obelysk_shard::prover::opening::{self, OpeningInput};
use obelysk_shard::prover::{logup, product};
use obelysk_shard::registration::{code_shape, open_oracle, register};
use obelysk_shard::witness;
use obelysk_shard::witness::encoder::{Trace, uncounted};
use std::sync::OnceLock;

/// Enough queries that a far word is caught in these deterministic runs, little enough grinding to be instant.
pub const SECURITY: SecurityParams = SecurityParams { queries: 16, g_seed: 3, g_fold: 2, g_query: 4 };

/// Token ids most tests prove: three tokens in four rows, so padding rows and masks exist.
pub const IDS: [u32; 3] = [1, 2, 3];

pub use crate::equations::Columns;

/// A registered toy model with its oracles.
pub struct Toy {
    pub model: IntegerModel,
    pub registered: Registered,
    pub oracles: Vec<Option<RegisteredOracle<Reference>>>,
}

impl Toy {
    pub fn new(model: IntegerModel) -> Self {
        Self::with(model, SECURITY)
    }

    pub fn with(model: IntegerModel, security: SecurityParams) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registered = register::<Blake2s, _>(&Reference, &model, security, [7; 32], dir.path(), &|_| ()).unwrap();
        // The memory maps outlive the directory.
        let oracle = |s| open_oracle::<Blake2s, _>(&Reference, &model, &registered, dir.path(), s).unwrap();
        let oracles = (0..model.weights.segments.len()).map(oracle).collect();
        Self { oracles, registered, model }
    }
}

/// The model under attack.
pub fn toy() -> &'static Toy {
    static TOY: OnceLock<Toy> = OnceLock::new();
    TOY.get_or_init(|| Toy::new(toy::model(5)))
}

/// The honest forger, whose proof is accepted.
pub fn honest() -> &'static Forger {
    static HONEST: OnceLock<Forger> = OnceLock::new();
    HONEST.get_or_init(|| Forger::of(&toy().model, &IDS, &IDS))
}

/// The honest proof.
pub fn honest_proof() -> &'static Proof {
    static PROOF: OnceLock<Proof> = OnceLock::new();
    PROOF.get_or_init(|| honest().prove().proof)
}

/// Steps of a segment's proof that a test may replace; the defaults are honest.
pub trait Steps {
    fn logup(&self, t: &mut Transcript<Blake2s>, c: &Circuit, columns: &Columns, at: (QM31, QM31)) -> (Vec<GkrLayer>, LeafClaim) {
        logup::prove(t, &Reference, c, columns, at)
    }

    fn product(
        &self,
        t: &mut Transcript<Blake2s>,
        c: &Circuit,
        points: &mut Points,
        columns: &Columns,
        w: &[&[i8]],
    ) -> ProductProof {
        product::prove(t, &Reference, c, points, columns, w).unwrap().0
    }

    fn last(
        &self,
        t: &mut Transcript<Blake2s>,
        input: &SegmentInput<'_>,
        plan: &Plan,
        columns: &Columns,
    ) -> (FinalProof, Vec<QM31>) {
        final_sumcheck::prove(t, &Reference, input.circuit, plan, columns, input.shape, &Honest)
    }

    /// Called with the claims that are about to be opened.
    fn claims(&self, claims: OpeningClaims) -> OpeningClaims {
        claims
    }
}

/// Does what it should; also grinds.
pub struct Honest;

impl Steps for Honest {}

impl<S: HashSuite> Grinder<S> for Honest {
    fn grind(&self, t: &mut Transcript<S>, bits: u32) -> u64 {
        let nonce = Reference.grind::<S>(&t.pow_prefix(bits), bits);
        t.accept_pow(bits, nonce);
        nonce
    }
}

/// A statement and a witness, true or not.
#[derive(Clone)]
pub struct Forger {
    pub toy: &'static Toy,
    pub ids: Vec<u32>,
    /// A decoder's cuts.
    pub sequences: Vec<Sequence>,
    pub output: Vec<i64>,
    pub mode: u8,
    pub circuits: Vec<Circuit>,
    pub columns: Vec<Columns>,
    /// Columns that are committed, where they differ from those proved about.
    pub committed: Vec<Option<Columns>>,
    /// Whether boundary values are taken from the receiving segment.
    pub from_receiver: bool,
    /// Whether all forks start from the seed, whatever the mode.
    pub unchained: bool,
}

/// A finished attempt.
pub struct Forged {
    pub proof: Proof,
    /// Every equation of the circuit that the witness breaks, as `segment name`.
    pub broken: Vec<String>,
}

/// Hidden state after segment `l`.
pub fn hidden(trace: &ModelTrace, l: usize) -> &[i16] {
    l.checked_sub(1).map_or(&trace.embed.norm.u, |k| &trace.layers[k].ffn.norm.u)
}

impl Forger {
    /// The witness of `model` (perhaps not the registered one) on `run`, offered as the registered model's on `ids`.
    pub fn of(model: &IntegerModel, run: &[u32], ids: &[u32]) -> Self {
        Self::of_trace(model, &infer::run(model, run).unwrap(), run, ids)
    }

    /// As [`Self::of`] for a trace made elsewhere.
    pub fn of_trace(model: &IntegerModel, trace: &ModelTrace, run: &[u32], ids: &[u32]) -> Self {
        let columns = (0..segment_count(&model.descriptor)).map(|s| columns(model, trace, run, s)).collect();
        let input = PublicInput { ids: ids.to_vec(), sequences: Vec::new(), output: trace.pooled.clone() };
        let d = &toy().model.descriptor;
        let circuits: Vec<_> = (0..segment_count(d)).map(|s| circuit::build(d, &exp_tables(), &input, s).unwrap()).collect();
        let committed = vec![None; circuits.len()];
        let (ids, output) = (input.ids, input.output);
        let (toy, mode, sequences) = (toy(), MODE_FORKED, Vec::new());
        let mut f =
            Self { toy, ids, sequences, output, mode, circuits, columns, committed, from_receiver: false, unchained: false };
        (0..f.circuits.len()).for_each(|s| f.recount(s));
        f
    }

    /// A column by name.
    pub fn column(&mut self, segment: usize, name: &str) -> &mut Vec<M31> {
        let id = equations::id(&self.circuits[segment], name);
        &mut self.columns[segment][id]
    }

    /// A cell, centred.
    pub fn get(&self, segment: usize, name: &str, row: usize) -> i64 {
        witness::centred(self.columns[segment][equations::id(&self.circuits[segment], name)][row])
    }

    /// Adds to a cell.
    pub fn add(&mut self, segment: usize, name: &str, row: usize, delta: i64) {
        self.column(segment, name)[row] += signed(delta);
    }

    /// Makes multiplicities those of the columns, as far as tuples are in their tables.
    pub fn recount(&mut self, segment: usize) {
        equations::recount(&self.circuits[segment], &mut self.columns[segment]);
    }

    /// Proves with honest steps.
    pub fn prove(&self) -> Forged {
        self.prove_with(usize::MAX, &|_| &Honest)
    }

    pub fn statement(&self) -> Statement {
        let input = PublicInput { ids: self.ids.clone(), sequences: self.sequences.clone(), output: self.output.clone() };
        let model_id = self.toy.registered.model_id::<Blake2s>();
        Statement { input, circuits: self.circuits.clone(), mode: self.mode, model_id }
    }

    /// Proves segments up to `end` with the steps a test gives for each; later ones, which the verifier should not
    /// reach, are taken from the honest proof.
    pub fn prove_with<'s>(&self, end: usize, steps: &dyn Fn(usize) -> &'s dyn Steps) -> Forged {
        let (s, registered) = (self.statement(), &self.toy.registered);
        let limbs = registered.descriptor.boundary_limbs();
        let code = code_shape(&registered.descriptor);
        let mut values = Vec::new();
        for (l, c) in s.circuits.iter().enumerate() {
            let columns = self.committed[l].as_ref().unwrap_or(&self.columns[l]);
            // A decoder has no proof to take later segments from; nobody looks at their roots either.
            if l <= end || limbs == 1 {
                values.push(CommittedValues::commit::<Blake2s>(&Reference, code, stack(c, columns, code.h as usize)));
            }
        }
        let mut roots: Vec<Digest> = values.iter().map(CommittedValues::root).collect();
        roots.resize(s.circuits.len(), [0; 32]);
        let mut main = main_transcript::<Blake2s>(registered, &s);
        absorb_roots(&mut main, &roots);
        let seed_nonce = Honest.grind(&mut main, u32::from(registered.security.g_seed));
        let seed = Seed(main.digest());
        let boundaries: Vec<QM31> = (0..s.circuits.len() - 1)
            .flat_map(|l| self.boundary(l, limbs, &boundary_point::<Blake2s>(&seed, &s, registered, l)))
            .collect();
        let (mut segments, mut broken) = (Vec::<SegmentProof>::new(), Vec::new());
        let mut start = seed;
        for l in 0..s.circuits.len() {
            if l > end {
                segments.push(if limbs == 1 { honest_proof().segments[l].clone() } else { segments[l - 1].clone() });
                continue;
            }
            let input = segment_input::<Blake2s>(registered, &s, &seed, l, neighbours(&boundaries, limbs, l));
            let mut t = segment_fork::<Blake2s>(&start, &s, l);
            let (claims, open, mut found) = claims(&mut t, &input, &self.columns[l], (self.toy, l), steps(l));
            broken.append(&mut found);
            segments.push(SegmentProof { claims, opening: opened(&mut t, input.circuit, (self.toy, l), &values[l], open) });
            let mode = Mode::of(self.mode).filter(|_| !self.unchained);
            start = chained(mode.unwrap_or(Mode::Forked), start, t.digest());
        }
        let header = Header {
            version: PROTOCOL_VERSION,
            suite: Blake2s::ID,
            mode: self.mode,
            model_id: s.model_id,
            ids: self.ids.clone(),
            sequences: self.sequences.clone(),
            output: self.output.clone(),
            roots,
            seed_nonce,
            boundaries,
        };
        Forged { proof: Proof { header, segments, opening: None }, broken }
    }

    /// Value of the hidden state that segment `l` hands on, limb by limb, from its own columns.
    pub fn boundary(&self, l: usize, limbs: usize, point: &[QM31]) -> Vec<QM31> {
        let l = l + usize::from(self.from_receiver);
        let c = &self.circuits[l];
        let name = |b: usize, limb: usize| match (self.from_receiver, limbs, l) {
            (true, 1, _) => format!("input.{b}"),
            (true, ..) => format!("input.{b}.{limb}"),
            (_, 1, 0) => format!("norm.{b}.u"),
            (_, 1, _) => format!("norm2.{b}.u"),
            (.., 0) => format!("x.{b}.{limb}"),
            _ => format!("ffn.x.{b}.{limb}"),
        };
        let value = |limb: usize| {
            let column = |b: usize| c.columns.iter().position(|x| x.name == name(b, limb));
            let mut cells: Vec<M31> = (0..).map_while(column).flat_map(|id| self.columns[l][id].clone()).collect();
            cells.resize(1 << point.len(), signed(0));
            mle_eval_base(&cells, point)
        };
        (0..limbs).map(value).collect()
    }
}

/// Columns of segment `s` for a model's own circuit.
fn columns(model: &IntegerModel, trace: &ModelTrace, run: &[u32], s: usize) -> Columns {
    let d = &model.descriptor;
    let input = PublicInput { ids: run.to_vec(), sequences: Vec::new(), output: trace.pooled.clone() };
    let c = circuit::build(d, &exp_tables(), &input, s).unwrap();
    let d = encoder(model);
    let t = match s {
        0 => Trace::Embed(&trace.embed),
        s if s <= d.layers.len() => {
            Trace::Layer { spec: &d.layers[s - 1], input: hidden(trace, s - 1), trace: &trace.layers[s - 1] }
        }
        _ => Trace::Head { input: hidden(trace, s - 1) },
    };
    uncounted(d, &c, t).unwrap()
}

pub fn stack(c: &Circuit, columns: &Columns, h: usize) -> Vec<M31> {
    let mut out = vec![signed(0); value_rows(c, h) << h];
    for (col, at) in columns.iter().zip(c.stack().0) {
        out[at..at + col.len()].copy_from_slice(col);
    }
    out
}

/// A segment's claims, the claims to open, and what the witness breaks.
pub fn claims(
    t: &mut Transcript<Blake2s>,
    input: &SegmentInput<'_>,
    columns: &Columns,
    (toy, l): (&Toy, usize),
    steps: &dyn Steps,
) -> (ClaimsProof, OpeningClaims, Vec<String>) {
    let c = input.circuit;
    let matrices: Vec<&[i8]> = toy.model.weights.segments[l].matrices.iter().map(|m| m.data.as_slice()).collect();
    let at = open_fork(t, input);
    let (logup, leaf) = steps.logup(t, c, columns, at);
    let mut points = Points {
        rho: extend_rho(t, c, leaf.point.clone()),
        kappa: Vec::new(),
        boundary_in: input.boundary_in.point.clone(),
        boundary_out: input.boundary_out.point.clone(),
    };
    let product = steps.product(t, c, &mut points, columns, &matrices);
    let lambda = t.draw("final.lambda");
    let plan = plan(c, &points, &plan_input((at.0, at.1, lambda), &leaf, input, &product)).unwrap();
    let (last, r) = steps.last(t, input, &plan, columns);
    let value = stack_value(c, &r, &last.columns).unwrap();
    let weights = join_tiles(t, c, &points, input.shape.h, &product.weights).unwrap();
    let broken = equations::broken(input, &points, &product, columns).into_iter().map(|e| format!("{l} {e}")).collect();
    let open = steps.claims(OpeningClaims { values: (r, value), weights });
    (ClaimsProof { logup, product, last }, open, broken)
}

fn opened(
    t: &mut Transcript<Blake2s>,
    c: &Circuit,
    (toy, l): (&Toy, usize),
    values: &CommittedValues<Reference>,
    claims: OpeningClaims,
) -> OpeningProof {
    let oracles = oracle_claims(&toy.registered, c, l, values.root(), claims);
    let inputs: Vec<OpeningInput<'_, Reference>> = oracles
        .into_iter()
        .map(|o| {
            let oracle: &dyn Oracle<Reference> = match &o.claim {
                Claim::Tiles { .. } => toy.oracles[l].as_ref().unwrap(),
                Claim::Point { .. } => values,
            };
            OpeningInput { oracle, claim: o.claim, partials: None }
        })
        .collect();
    opening::prove(&Reference, t, &toy.registered.opening(), &inputs).unwrap()
}

/// What the verifier says to a proof, once as a value and once as bytes; both must agree.
pub fn verdict(proof: &Proof) -> Result<(), VerifyError> {
    let registered = &toy().registered;
    let direct = verify::<Blake2s>(registered, proof).map(|_| ());
    let parsed = verify_reduced::<Blake2s>(registered, &proof.write()).map(|_| ());
    assert_eq!(direct, parsed);
    direct
}

/// An error inside a segment.
pub fn inside(index: usize, source: VerifyError) -> Result<(), VerifyError> {
    Err(VerifyError::Segment { index, source: Box::new(source) })
}

/// The error of a broken constraint or relation.
pub const EQUATIONS: VerifyError = VerifyError::FinalClaim("constraints, lookups and relations");

/// Proves, checks that exactly `broken` is broken and that segment `index` is refused for `reason`.
#[track_caller]
pub fn refused(f: &Forger, broken: &[&str], index: usize, reason: VerifyError) {
    let forged = f.prove_with(index, &|_| &Honest);
    assert_eq!(forged.broken, broken, "the cheat is not where it should be");
    assert_eq!(verdict(&forged.proof), inside(index, reason));
}

#[test]
fn the_harness_makes_the_prover_s_proof_and_it_is_accepted() {
    assert_eq!(honest().prove().broken, [""; 0]);
    assert_eq!(verdict(honest_proof()), Ok(()));
}
