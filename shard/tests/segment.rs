//! Toy segments through prover and verifier, without openings: every claim is checked against the columns instead.

use obelysk_model::{infer, toy};
use obelysk_protocol::circuit::{self, PublicInput, exp_tables, segment_count};
use obelysk_protocol::field::{QM31, mle_eval_base};
use obelysk_protocol::transcript::{Blake2s, HashSuite, Transcript};
use obelysk_protocol::verifier::final_sumcheck::RowShape;
use obelysk_protocol::verifier::segment::{self as verifier, Boundary, SegmentInput};
use obelysk_shard::kernels::proof::ProofKernels;
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::prover::final_sumcheck::Grinder;
use obelysk_shard::prover::segment as prover;
use obelysk_shard::witness::encoder::{self, Trace};

struct Slow;

impl<S: HashSuite> Grinder<S> for Slow {
    fn grind(&self, t: &mut Transcript<S>, bits: u32) -> u64 {
        (0..).find(|&n| t.clone().accept_pow(bits, n)).inspect(|&n| assert!(t.accept_pow(bits, n))).unwrap()
    }
}

fn run(ids: &[u32]) {
    let model = toy::model(3);
    let d = toy::encoder(&model);
    let trace = infer::run(&model, ids).unwrap();
    let input = PublicInput { ids: ids.to_vec(), sequences: Vec::new(), output: trace.pooled.clone() };
    let exp = exp_tables();
    let mut hidden: Vec<&[i16]> = vec![&trace.embed.norm.u];
    hidden.extend(trace.layers.iter().map(|l| l.ffn.norm.u.as_slice()));
    for s in 0..segment_count(&model.descriptor) {
        let c = circuit::build(&model.descriptor, &exp, &input, s).unwrap();
        let t = match s {
            0 => Trace::Embed(&trace.embed),
            s if s <= d.layers.len() => {
                Trace::Layer { spec: &d.layers[s - 1], input: hidden[s - 1], trace: &trace.layers[s - 1] }
            }
            _ => Trace::Head { input: hidden[s - 1] },
        };
        let columns = encoder::columns(d, &c, t).unwrap();
        let vars = c.token_log + 4;
        let boundary = |l: usize| {
            let point: Vec<QM31> = (0..vars).map(|k| QM31::from_u32_unchecked(k as u32 + 5, l as u32, 3, 9)).collect();
            let mut u: Vec<_> = hidden[l].iter().map(|&v| obelysk_protocol::field::signed(i64::from(v))).collect();
            u.resize(1 << vars, obelysk_protocol::field::signed(0));
            Boundary { values: vec![mle_eval_base(&u, &point)], point }
        };
        let seg = SegmentInput {
            circuit: &c,
            boundary_in: if s == 0 { Boundary::default() } else { boundary(s - 1) },
            boundary_out: if s <= d.layers.len() { boundary(s) } else { Boundary::default() },
            output: &input.output,
            shape: RowShape { h: usize::from(d.row_log), g_fold: 2 },
        };
        let k = Reference;
        let base: Vec<_> = columns.iter().map(|v| k.column(v)).collect();
        let matrices: Vec<&[i8]> = model.weights.segments[s].matrices.iter().map(|m| m.data.as_slice()).collect();
        let (proof, claims) = prover::prove(&mut Transcript::<Blake2s>::new("t"), &k, &seg, &base, &matrices, &Slow).unwrap();
        let verified = verifier::verify(&mut Transcript::<Blake2s>::new("t"), &seg, &proof);
        assert_eq!(verified.as_ref(), Ok(&claims.claims), "segment {s} of {} tokens", ids.len());
    }
}

#[test]
fn toy_segments_verify() {
    for ids in [&[1u32, 2, 3][..], &[4, 5, 6, 7], &[9], &[1, 2], &[3, 1, 4, 1, 5]] {
        run(ids);
    }
}
