//! Provers who claim a completion that the model does not give. Their witnesses are as true as they can be made, so that each
//! lie is refused for itself, by the head.

use crate::equations;
use crate::segments::trace_of;
use crate::toys::{CUTS, input, toys};
use crate::whole::Place;
use obelysk_model::IntegerModel;
use obelysk_model::infer::decoder::{DecoderTrace, run};
use obelysk_model::toy;
use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::{PublicInput, segment_count};
use obelysk_protocol::field::{M31, QM31, signed};
use obelysk_protocol::transcript::Transcript;
use obelysk_protocol::transcript::{Blake2s, Digest, HashSuite, Seed};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::{
    Statement, absorb_roots, boundary_point, main_transcript, neighbours, oracle_claims, segment_fork, segment_input, verify,
};
use obelysk_protocol::verifier::final_sumcheck::value_rows;
use obelysk_protocol::verifier::opening::{Claim, OpeningProof};
use obelysk_protocol::verifier::proof::{Header, MODE_FORKED, Proof, SegmentProof};
use obelysk_shard::hidden::boundary_values;
use obelysk_shard::kernels::CommitKernels;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::prover::commitment::{CommittedValues, Oracle};
use obelysk_shard::prover::final_sumcheck::Grinder;
use obelysk_shard::prover::opening::{self, OpeningInput};
use obelysk_shard::prover::segment;
use obelysk_shard::registration::{code_shape, open_oracle};
use obelysk_shard::witness::decoder;

struct Grind;

impl<S: HashSuite> Grinder<S> for Grind {
    fn grind(&self, t: &mut Transcript<S>, bits: u32) -> u64 {
        let nonce = Simd::default().grind::<S>(&t.pow_prefix(bits), bits);
        t.accept_pow(bits, nonce);
        nonce
    }
}

type Columns = Vec<Vec<M31>>;

/// A statement with a witness that need not be true.
pub struct Forger<'a> {
    pub place: &'a Place<Blake2s, Simd>,
    pub statement: Statement,
    pub trace: DecoderTrace,
    pub columns: Vec<Columns>,
}

impl<'a> Forger<'a> {
    /// The witness of `run` offered for `claimed`: the ids that are read must be the same for it to be a true one but for the
    /// last tokens.
    pub fn new(place: &'a Place<Blake2s, Simd>, ran: &PublicInput, claimed: PublicInput) -> Self {
        let model = &place.model;
        let statement = Statement::new::<Blake2s>(&place.registered, claimed, MODE_FORKED).unwrap();
        let trace = run(model, ran).unwrap();
        let targets: Vec<u32> = statement.input.checked().iter().map(|c| c.target).collect();
        let column = |(s, c): (usize, &Circuit)| {
            let trace = trace_of(model, &trace, s, &targets);
            let mut columns = decoder::uncounted(toy::decoder_of(model), c, trace).unwrap();
            equations::recount(c, &mut columns);
            columns
        };
        let columns = statement.circuits.iter().enumerate().map(column).collect();
        Self { place, statement, trace, columns }
    }

    pub fn head(&self) -> usize {
        self.statement.circuits.len() - 1
    }

    /// Changes cells of the head, by column name and row.
    pub fn edit(&mut self, name: &str, row: usize, value: i64) {
        let s = self.head();
        let id = equations::id(&self.statement.circuits[s], name);
        self.columns[s][id][row] = signed(value);
        equations::recount(&self.statement.circuits[s], &mut self.columns[s]);
    }

    fn values(&self) -> Vec<CommittedValues<Simd>> {
        let code = code_shape(&self.place.registered.descriptor);
        let h = code.h as usize;
        let commit = |(c, columns): (&Circuit, &Columns)| {
            let mut stack = vec![signed(0); value_rows(c, h) << h];
            for (col, at) in columns.iter().zip(c.stack().0) {
                stack[at..at + col.len()].copy_from_slice(col);
            }
            CommittedValues::commit::<Blake2s>(&Simd::default(), code, stack)
        };
        self.statement.circuits.iter().zip(&self.columns).map(commit).collect()
    }

    pub fn prove(&self) -> Proof {
        let (s, registered, values) = (&self.statement, &self.place.registered, self.values());
        let roots: Vec<Digest> = values.iter().map(CommittedValues::root).collect();
        let mut main = main_transcript::<Blake2s>(registered, s);
        absorb_roots(&mut main, &roots);
        let seed_nonce = Grind.grind(&mut main, u32::from(registered.security.g_seed));
        let seed = Seed(main.digest());
        let boundary = |l: usize| {
            let point = boundary_point::<Blake2s>(&seed, s, registered, l);
            boundary_values(3, self.trace.entering(l + 1), &point)
        };
        let boundaries: Vec<QM31> = (0..self.head()).flat_map(boundary).collect();
        let segments = (0..s.circuits.len()).map(|l| self.segment(l, &seed, &boundaries, &values[l])).collect();
        let header = Header {
            version: PROTOCOL_VERSION,
            suite: Blake2s::ID,
            mode: MODE_FORKED,
            model_id: s.model_id,
            ids: s.input.ids.clone(),
            sequences: s.input.sequences.clone(),
            output: Vec::new(),
            roots,
            seed_nonce,
            boundaries,
        };
        Proof { header, segments }
    }

    fn segment(&self, l: usize, seed: &Seed, boundaries: &[QM31], values: &CommittedValues<Simd>) -> SegmentProof {
        let (s, registered, k) = (&self.statement, &self.place.registered, Simd::default());
        let input = segment_input::<Blake2s>(registered, s, seed, l, neighbours(boundaries, 3, l));
        let mut t = segment_fork::<Blake2s>(seed, s, l);
        let weights = &self.place.model.weights.segments[l];
        let matrices: Vec<&[i8]> = weights.matrices.iter().map(|m| m.data.as_slice()).collect();
        let base: Vec<_> = self.columns[l].iter().map(|v| obelysk_shard::kernels::proof::ProofKernels::column(&k, v)).collect();
        let (claims, open) = segment::prove(&mut t, &k, &input, &base, &matrices, &Grind).unwrap();
        let opening = self.opened(&mut t, l, values, oracle_claims(registered, input.circuit, l, values.root(), open));
        SegmentProof { claims, opening }
    }

    fn opened(
        &self,
        t: &mut Transcript<Blake2s>,
        l: usize,
        values: &CommittedValues<Simd>,
        claims: Vec<obelysk_protocol::verifier::opening::OracleClaim>,
    ) -> OpeningProof {
        let (k, place) = (Simd::default(), self.place);
        let weights = open_oracle::<Blake2s, _>(&k, &place.model, &place.registered, place.dir.path(), l).unwrap();
        let inputs: Vec<OpeningInput<'_, Simd>> = claims
            .into_iter()
            .map(|o| {
                let oracle: &dyn Oracle<Simd> = match &o.claim {
                    Claim::Tiles { .. } => weights.as_ref().unwrap(),
                    Claim::Point { .. } => values,
                };
                OpeningInput { oracle, claim: o.claim, partials: None }
            })
            .collect();
        opening::prove(&k, t, &place.registered.opening(), &inputs).unwrap()
    }

    /// The proof is refused, and by the head.
    #[track_caller]
    fn refused(&self, about: &str) {
        let index = self.head();
        match verify::<Blake2s>(&self.place.registered, &self.prove()) {
            Err(VerifyError::Segment { index: found, .. }) => assert_eq!(found, index, "{about}"),
            other => panic!("{about}: {other:?}"),
        }
    }
}

/// A registered toy and the model's own continuation.
fn place(change: impl Fn(&mut IntegerModel)) -> Place<Blake2s, Simd> {
    let mut model = toy::decoder(&toys()[5]);
    change(&mut model);
    Place::new(&Simd::default(), model)
}

fn with_last(input: &PublicInput, id: u32) -> PublicInput {
    let mut out = input.clone();
    *out.ids.last_mut().unwrap() = id;
    out
}

#[test]
fn the_forger_s_true_proof_is_accepted() {
    let place = place(|_| ());
    let input = input(&place.model, CUTS[3], 1);
    let proof = Forger::new(&place, &input, input.clone()).prove();
    verify::<Blake2s>(&place.registered, &proof).unwrap();
    assert_eq!(proof, obelysk_shard::local::prove(&Simd::default(), &place.loaded, &input).unwrap().0);
}

#[test]
fn no_other_last_token_is_accepted() {
    let place = place(|_| ());
    let input = input(&place.model, CUTS[2], 1);
    let best = *input.ids.last().unwrap();
    for id in (0..21).filter(|&id| id != best) {
        Forger::new(&place, &input, with_last(&input, id)).refused(&format!("{id} for {best}"));
    }
}

/// The best logit said to be the claimed token's: then the true best is above it.
#[test]
fn a_smaller_maximum_is_refused() {
    let place = place(|_| ());
    let input = input(&place.model, CUTS[0], 1);
    let claimed = (*input.ids.last().unwrap() + 1) % 21;
    let mut f = Forger::new(&place, &input, with_last(&input, claimed));
    let d = toy::decoder_of(&place.model);
    let logit = |j: u32| i64::from(d.head.mult[j as usize]) * i64::from(f.trace.head.linear.t_hat[j as usize]);
    let (best, gaps) = (logit(claimed), (0..21).map(|j| logit(claimed) - logit(j) - i64::from(j < claimed)));
    let gaps: Vec<i64> = gaps.collect();
    let (low, blocks) = (|v: i64| v & 8191, d.head_outputs());
    f.edit("best.0", 0, low(best));
    f.edit("best.1", 0, best >> 13);
    let block =
        f.statement.circuits[f.head()].columns.iter().find(|c| c.name == "gap.0.0").map(|c| 1usize << c.log_size).unwrap();
    for j in 0..blocks {
        let gap = gaps.get(j).copied().unwrap_or(best + (1 << 24));
        f.edit(&format!("gap.{}.0", j / block), j % block, low(gap));
        f.edit(&format!("gap.{}.1", j / block), j % block, gap >> 13);
    }
    f.refused("a smaller maximum");
}

/// Of equal logits the smallest index is the model's; the larger one is refused.
#[test]
fn the_larger_of_two_equal_logits_is_refused() {
    let plain = toy::decoder(&toys()[5]);
    let text = input(&plain, CUTS[0], 1);
    let best = *text.ids.last().unwrap() as usize;
    let twin = if best == 20 { 19 } else { best + 1 };
    let place = place(|model| {
        let head = segment_count(&model.descriptor) - 1;
        let m = &mut model.weights.segments[head].matrices[0];
        let row = m.data[best * m.inputs..(best + 1) * m.inputs].to_vec();
        m.data[twin * m.inputs..(twin + 1) * m.inputs].copy_from_slice(&row);
        let mult = &mut toy::decoder_mut(model).head.mult;
        mult[twin] = mult[best];
    });
    let (first, second) = (best.min(twin) as u32, best.max(twin) as u32);
    let truth = with_last(&text, first);
    assert_eq!(input(&place.model, CUTS[0], 1), truth);
    verify::<Blake2s>(&place.registered, &Forger::new(&place, &truth, truth.clone()).prove()).unwrap();
    Forger::new(&place, &truth, with_last(&truth, second)).refused("the larger of two");
}

/// A token in the middle of a completion that was not the model's choice, but from which the text goes on truly.
#[test]
fn a_forced_token_in_the_middle_is_refused() {
    let place = place(|_| ());
    let model = &place.model;
    let truth = input(model, &[(1, 3)], 2);
    let forced = (truth.ids[1] + 1) % 21;
    let rest = obelysk_model::infer::decoder::generate(toy::decoder_of(model), &model.weights, &[truth.ids[0], forced], 2, &[]);
    let claimed = PublicInput { ids: [vec![truth.ids[0], forced], rest.unwrap()].concat(), ..truth.clone() };
    Forger::new(&place, &claimed, claimed.clone()).refused("a forced token");
}
