//! Segments through prover and verifier, without openings. Every lookup, constraint and relation is looked at on its own
//! first, so that what fails has a name.

use crate::equations;
use crate::forger::trace_of;
use crate::toys::{CUTS, input, toys};
use obelysk_model::IntegerModel;
use obelysk_model::infer::decoder::{DecoderTrace, run};
use obelysk_model::toy;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::{self, PublicInput, exp_tables, segment_count};
use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::transcript::{Blake2s, HashSuite, Transcript};
use obelysk_protocol::verifier::final_sumcheck::RowShape;
use obelysk_protocol::verifier::points::Points;
use obelysk_protocol::verifier::segment::{self as verifier, Boundary, SegmentInput, extend_rho, open_fork};
use obelysk_shard::hidden::boundary_values;
use obelysk_shard::kernels::proof::ProofKernels;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::prover::final_sumcheck::Grinder;
use obelysk_shard::prover::segment as prover;
use obelysk_shard::prover::{logup, product};
use obelysk_shard::witness::decoder;

struct Slow;

impl<S: HashSuite> Grinder<S> for Slow {
    fn grind(&self, t: &mut Transcript<S>, bits: u32) -> u64 {
        (0..).find(|&n| t.clone().accept_pow(bits, n)).inspect(|&n| assert!(t.accept_pow(bits, n))).unwrap()
    }
}

/// A segment between its boundaries, at points of no meaning.
pub fn segment_at<'a>(
    model: &IntegerModel,
    (c, s): (&'a Circuit, usize),
    (input, trace): (&PublicInput, &DecoderTrace),
) -> SegmentInput<'a> {
    let d = toy::decoder_of(model);
    let vars = input.token_log() + (d.width as usize).next_power_of_two().trailing_zeros() as usize;
    let boundary = |l: usize| {
        let point: Vec<QM31> = (0..vars).map(|k| QM31::from_u32_unchecked(k as u32 + 5, l as u32, 3, 9)).collect();
        Boundary { values: boundary_values(3, trace.entering(l + 1), &point), point }
    };
    let boundary_in = if s == 0 { Boundary::default() } else { boundary(s - 1) };
    let boundary_out = if s + 1 == segment_count(&model.descriptor) { Boundary::default() } else { boundary(s) };
    let shape = RowShape { h: usize::from(model.descriptor.row_log()), g_fold: 2 };
    SegmentInput { circuit: c, boundary_in, boundary_out, output: &[], shape }
}

/// Names of the equations that columns of segment `s` break.
pub fn broken(model: &IntegerModel, seg: &SegmentInput<'_>, columns: &[Vec<M31>], s: usize) -> Vec<String> {
    let (k, c) = (Simd::default(), seg.circuit);
    let base: Vec<_> = columns.iter().map(|v| k.column(v)).collect();
    let matrices: Vec<&[i8]> = model.weights.segments[s].matrices.iter().map(|m| m.data.as_slice()).collect();
    let t = &mut Transcript::<Blake2s>::new("t");
    let at = open_fork(t, seg);
    let (_, leaf) = logup::prove(t, &k, c, &base, at);
    let mut points = Points {
        rho: extend_rho(t, c, leaf.point.clone()),
        kappa: Vec::new(),
        boundary_in: seg.boundary_in.point.clone(),
        boundary_out: seg.boundary_out.point.clone(),
    };
    let (products, _) = product::prove(t, &k, c, &mut points, &base, &matrices).unwrap();
    equations::broken(seg, &points, &products, &columns.to_vec())
}

/// Runs a segment's protocol on columns; what fails is named by `about`.
fn prove_and_verify(model: &IntegerModel, seg: &SegmentInput<'_>, columns: &[Vec<M31>], s: usize, about: &str) {
    let broken = broken(model, seg, columns, s);
    assert!(broken.is_empty(), "{about}: {broken:?}");
    let k = Simd::default();
    let base: Vec<_> = columns.iter().map(|v| k.column(v)).collect();
    let matrices: Vec<&[i8]> = model.weights.segments[s].matrices.iter().map(|m| m.data.as_slice()).collect();
    let (proof, claims) = prover::prove(&mut Transcript::<Blake2s>::new("t"), &k, seg, &base, &matrices, &Slow).unwrap();
    let verified = verifier::verify(&mut Transcript::<Blake2s>::new("t"), seg, &proof);
    assert_eq!(verified.as_ref(), Ok(&claims.claims), "{about}");
}

pub fn run_segments(model: &IntegerModel, input: &PublicInput, about: &str) {
    let d = toy::decoder_of(model);
    let trace = run(model, input).unwrap();
    let targets: Vec<u32> = input.checked().iter().map(|c| c.target).collect();
    assert_eq!(trace.head.tokens, targets, "{about}");
    let exp = exp_tables();
    for s in 0..segment_count(&model.descriptor) {
        let about = format!("{about}, segment {s}");
        let c = circuit::build(&model.descriptor, &exp, input, s).unwrap_or_else(|e| panic!("{about}: {e}"));
        let columns = decoder::columns(d, &c, trace_of(model, &trace, s, &targets)).unwrap_or_else(|e| panic!("{about}: {e}"));
        prove_and_verify(model, &segment_at(model, (&c, s), (input, &trace)), &columns, s, &about);
    }
}

#[test]
fn every_option_at_five_rows() {
    for toy in toys() {
        let model = toy::decoder(&toy);
        run_segments(&model, &input(&model, CUTS[3], toy.seed), &format!("{toy:?}"));
    }
}

#[test]
fn every_number_of_rows() {
    let toy = toys()[1];
    let model = toy::decoder(&toy);
    for cuts in CUTS {
        run_segments(&model, &input(&model, cuts, 7), &format!("{cuts:?}"));
    }
}
