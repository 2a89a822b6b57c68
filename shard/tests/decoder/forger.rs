//! A prover who need not be honest: its witness is whatever a model computes, true or not, and it writes the proof through to
//! its end. What it says is as consistent as it can be made, so that each lie is refused for itself.

use crate::equations;
use crate::place::Place;
use obelysk_model::IntegerModel;
use obelysk_model::infer::decoder::{DecoderTrace, run};
use obelysk_model::toy;
use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::circuit::segment::Circuit;
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
use obelysk_shard::witness::decoder::{self, Trace};

/// What segment `s` computed.
pub fn trace_of<'a>(model: &'a IntegerModel, trace: &'a DecoderTrace, s: usize, targets: &'a [u32]) -> Trace<'a> {
    match (s, toy::decoder_of(model).layers.get(s.wrapping_sub(1))) {
        (0, _) => Trace::Embed(&trace.embed),
        (_, Some(spec)) => Trace::Layer { spec, input: trace.entering(s), trace: &trace.layers[s - 1] },
        _ => Trace::Head { input: trace.entering(s), trace: &trace.head, targets },
    }
}

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
    /// Whose weights are multiplied and opened.
    own: &'a Place<Blake2s, Simd>,
    pub statement: Statement,
    pub trace: DecoderTrace,
    pub columns: Vec<Columns>,
}

impl<'a> Forger<'a> {
    /// The witness of `ran` offered for `claimed`: the ids that are read must be the same for it to be a true one but for the
    /// last tokens.
    pub fn new(place: &'a Place<Blake2s, Simd>, ran: &PublicInput, claimed: PublicInput) -> Self {
        Self::with(place, place, ran, claimed)
    }

    /// The same with witness, weights and codewords of a model that need not be the registered one, but has its shape.
    pub fn with(place: &'a Place<Blake2s, Simd>, own: &'a Place<Blake2s, Simd>, ran: &PublicInput, claimed: PublicInput) -> Self {
        let model = &own.model;
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
        Self { place, own, statement, trace, columns }
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
        Proof { header, segments, opening: None }
    }

    fn segment(&self, l: usize, seed: &Seed, boundaries: &[QM31], values: &CommittedValues<Simd>) -> SegmentProof {
        let (s, registered, k) = (&self.statement, &self.place.registered, Simd::default());
        let input = segment_input::<Blake2s>(registered, s, seed, l, neighbours(boundaries, 3, l));
        let mut t = segment_fork::<Blake2s>(seed, s, l);
        let weights = &self.own.model.weights.segments[l];
        let matrices: Vec<&[i8]> = weights.matrices.iter().map(|m| m.data.as_slice()).collect();
        let base: Vec<_> = self.columns[l].iter().map(|v| obelysk_shard::kernels::proof::ProofKernels::column(&k, v)).collect();
        let (claims, proved) = segment::prove(&mut t, &k, &input, &base, &matrices, &Grind).unwrap();
        let opening = self.opened(&mut t, l, values, oracle_claims(registered, input.circuit, l, values.root(), proved.claims));
        SegmentProof { claims, opening }
    }

    fn opened(
        &self,
        t: &mut Transcript<Blake2s>,
        l: usize,
        values: &CommittedValues<Simd>,
        claims: Vec<obelysk_protocol::verifier::opening::OracleClaim>,
    ) -> OpeningProof {
        let (k, own) = (Simd::default(), self.own);
        let weights = open_oracle::<Blake2s, _>(&k, &own.model, &own.registered, own.dir.path(), l).unwrap();
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
        opening::prove(&k, t, &self.place.registered.opening(), &inputs).unwrap()
    }

    /// The proof is refused, and by the head.
    #[track_caller]
    pub fn refused(&self, about: &str) {
        self.refused_in(self.head(), about);
    }

    /// The proof is refused, and by this segment.
    #[track_caller]
    pub fn refused_in(&self, index: usize, about: &str) {
        match verify::<Blake2s>(&self.place.registered, &self.prove()) {
            Err(VerifyError::Segment { index: found, .. }) => assert_eq!(found, index, "{about}"),
            other => panic!("{about}: {other:?}"),
        }
    }
}
