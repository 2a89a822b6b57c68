//! False witnesses of decoders: two registered toys with their honest runs, a layer recomputed from a forged stage on, and the
//! verifier's word on the proof.
//!
//! The recomputation is written against the integer semantics, not against the executor.

use crate::equations;
use crate::harness::{Forger, Honest, Toy, inside};
use crate::tail::{clipped, product, requantised, stop, wide};
use obelysk_model::infer::decoder::{
    self, AccumulatedTrace, BranchNormTrace, BranchTrace, DecoderTrace, RmsTrace, generate, key_of,
};
use obelysk_model::tables::exp_at;
use obelysk_model::toy::{self, DecoderToy, Prng, decoder_of};
use obelysk_model::weights::{DecoderSlots, Matrix};
use obelysk_model::{IntegerModel, infer};
use obelysk_protocol::circuit::descriptor::{Accumulated, Branch, Decoder, DecoderLayer};
use obelysk_protocol::circuit::norm::shift_powers;
use obelysk_protocol::circuit::{self, PublicInput, Sequence, exp_tables, segment_count};
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::verify;
use obelysk_protocol::verifier::proof::{MODE_FORKED, Proof};
use obelysk_shard::witness::decoder::{Trace, uncounted};
use std::sync::OnceLock;

/// Two sequences of 4 and 2 rows, then two padding rows; three checked rows and one padding row in the head.
pub const CUTS: [(u32, u32); 2] = [(3, 2), (2, 1)];
/// Rows with padding.
pub const ROWS: usize = 8;

/// A registered decoder, a text that it completes, and its run.
pub struct Case {
    pub toy: Toy,
    pub input: PublicInput,
    pub honest: DecoderTrace,
}

impl Case {
    pub fn new(model: IntegerModel) -> Self {
        let input = completed(&model, &CUTS);
        let honest = decoder::run(&model, &input).unwrap();
        assert_eq!(honest.t_pad, ROWS);
        Self { toy: Toy::new(model), input, honest }
    }

    pub fn d(&self) -> &Decoder {
        decoder_of(&self.toy.model)
    }

    pub fn layer(&self, l: usize) -> &DecoderLayer {
        &self.d().layers[l]
    }

    /// Whether row i may see row j in layer l.
    pub fn visible(&self, l: usize, i: usize, j: usize) -> bool {
        decoder::visible(&self.input.rows(), self.layer(l).window, i, j)
    }
}

/// Plain attention in groups of three, odd parts of a head, a window in the second layer.
pub fn plain() -> &'static Case {
    static CASE: OnceLock<Case> = OnceLock::new();
    let toy = DecoderToy { seed: 5, group: 3, kv_heads: 2, head_dim: 12, window: 2, layers: 2, ..DecoderToy::default() };
    CASE.get_or_init(|| Case::new(toy::decoder(&toy)))
}

/// Head norms, capped scores, norms of branches, two limbs everywhere.
pub fn full() -> &'static Case {
    static CASE: OnceLock<Case> = OnceLock::new();
    CASE.get_or_init(|| Case::new(toy::decoder(&DecoderToy { group: 2, head_dim: 8, ..crate::decoder_circuits::FULL })))
}

/// Random prompts and the model's own completions.
pub fn completed(model: &IntegerModel, cuts: &[(u32, u32)]) -> PublicInput {
    let (d, mut rng, mut ids) = (decoder_of(model), Prng::new(77), Vec::new());
    for &(prompt, completion) in cuts {
        let start = ids.len();
        ids.extend((0..prompt).map(|_| rng.range(0, d.vocab as i32 - 1) as u32));
        ids.extend(generate(d, &model.weights, &ids[start..], completion as usize, &[]).unwrap());
    }
    let sequences = cuts.iter().map(|&(prompt, completion)| Sequence { prompt, completion }).collect();
    PublicInput { ids, sequences, output: Vec::new() }
}

/// A trace as the registered model's witness of the case's own text.
pub fn forger(case: &'static Case, trace: &DecoderTrace) -> Forger {
    offered(case, trace, &case.input)
}

/// A trace as the registered model's witness of a text.
pub fn offered(case: &'static Case, trace: &DecoderTrace, claimed: &PublicInput) -> Forger {
    let (d, model) = (case.d(), &case.toy.model);
    let targets: Vec<u32> = claimed.checked().iter().map(|c| c.target).collect();
    let segments = 0..segment_count(&model.descriptor);
    let circuits: Vec<_> = segments.map(|s| circuit::build(&model.descriptor, &exp_tables(), claimed, s).unwrap()).collect();
    let columns = circuits.iter().enumerate().map(|(s, c)| {
        let t = match (s, d.layers.get(s.wrapping_sub(1))) {
            (0, _) => Trace::Embed(&trace.embed),
            (_, Some(spec)) => Trace::Layer { spec, input: trace.entering(s), trace: &trace.layers[s - 1] },
            _ => Trace::Head { input: trace.entering(s), trace: &trace.head, targets: &targets },
        };
        uncounted(d, c, t).unwrap()
    });
    let columns = columns.collect();
    let mut f = Forger {
        toy: &case.toy,
        ids: claimed.ids.clone(),
        sequences: claimed.sequences.clone(),
        output: Vec::new(),
        mode: MODE_FORKED,
        committed: vec![None; circuits.len()],
        circuits,
        columns,
        from_receiver: false,
        unchained: false,
    };
    (0..f.circuits.len()).for_each(|s| f.recount(s));
    f
}

pub fn verdict(case: &Case, proof: &Proof) -> Result<(), VerifyError> {
    verify::<Blake2s>(&case.toy.registered, proof).map(|_| ())
}

/// Proves; exactly `broken` is broken up to segment `index`, and that segment is refused for `reason`.
#[track_caller]
pub fn refused(case: &Case, f: &Forger, broken: &[&str], index: usize, reason: VerifyError) {
    let forged = f.prove_with(index, &|_| &Honest);
    assert_eq!(forged.broken, broken, "the cheat is not where it should be");
    assert_eq!(verdict(case, &forged.proof), inside(index, reason));
}

/// A cell of a block column by its index over all blocks.
pub fn cell(f: &Forger, segment: usize, name: &dyn Fn(usize) -> String, index: usize) -> (String, usize) {
    let c = &f.circuits[segment];
    let rows = 1usize << c.columns[equations::id(c, &name(0))].log_size;
    (name(index / rows), index % rows)
}

/// Index in proof order of channel `c` of head `hh` among `heads`.
pub fn place(d: &Decoder, heads: usize, part_log: usize, hh: usize, c: usize) -> usize {
    let (keys, part) = (d.kv_heads as usize, 1usize << part_log);
    (c / part) * heads * part + d.channel(part_log, hh / keys, hh % keys, c % part)
}

/// Where a layer is taken up again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    Turned,
    Scores,
    Mix,
    Mid,
    Gate,
    Act,
    Product,
    Hidden,
    Down,
    Out,
}

pub const STAGES: [Stage; 10] = [
    Stage::Turned,
    Stage::Scores,
    Stage::Mix,
    Stage::Mid,
    Stage::Gate,
    Stage::Act,
    Stage::Product,
    Stage::Hidden,
    Stage::Down,
    Stage::Out,
];

/// Recomputes layer `l` after `stage`, all later layers and the head.
pub fn redo(case: &Case, t: &mut DecoderTrace, l: usize, stage: Stage) {
    redo_seeing(case, t, l, stage, &|_, i, j| case.visible(l, i, j));
}

/// Whether query row `i` of head `hh` sees key row `j`.
pub type Sees<'a> = &'a dyn Fn(usize, usize, usize) -> bool;

/// As [`redo`], with other keys visible.
pub fn redo_seeing(case: &Case, t: &mut DecoderTrace, l: usize, stage: Stage, sees: Sees<'_>) {
    let (d, spec, w) = (case.d(), case.layer(l), &case.toy.model.weights.segments[l + 1].matrices);
    let at = DecoderSlots::new(d);
    let input = t.entering(l + 1).to_vec();
    let x = &mut t.layers[l];
    if stage <= Stage::Turned {
        x.scores = scores(d, (&x.q.rot, &x.k.rot), &|hh| hh % d.kv_heads as usize);
    }
    if stage <= Stage::Scores {
        (x.lambda, x.mix_acc) = softmax(d, spec, (&x.scores, &x.v.y), sees);
        x.mix = x.mix_acc.iter().map(|&a| ((i64::from(a) + (1 << 13)) >> 14) as i16).collect();
    }
    if stage <= Stage::Mix {
        x.o = accumulated(&w[at.o.clone()], spec.o, &x.mix);
        x.attn = branch(&spec.attn_branch, &input, &x.o.t_hat);
    }
    if stage <= Stage::Mid {
        x.ffn_norm = rms(&x.attn.x, spec.ffn_norm.eps, 0);
    }
    if stage <= Stage::Gate {
        let acc = product(&w[at.gate], &wide(&x.ffn_norm.u), ROWS);
        x.gate.y = requantised(&spec.gate, &acc, ROWS);
        x.gate.acc = acc.iter().map(|&a| a as i32).collect();
        x.act = x.gate.y.iter().map(|&y| spec.activation[(y + (1 << 15)) as usize]).collect();
        x.up = stop(&w[at.up], spec.up.e, &wide(&x.ffn_norm.u), ROWS);
    }
    if stage <= Stage::Act {
        x.product.acc = x.act.iter().zip(&x.up.t_hat).map(|(&g, &t)| i32::from(g) * i32::from(t)).collect();
    }
    if stage <= Stage::Product {
        x.product.t_hat = x.product.acc.iter().map(|&a| clipped(a.into(), spec.product.e) as i16).collect();
    }
    if stage <= Stage::Hidden {
        x.down = accumulated(&w[at.down..=at.down], spec.down, &x.product.t_hat);
    }
    if stage <= Stage::Down {
        x.ffn = branch(&spec.ffn_branch, &x.attn.x, &x.down.t_hat);
    }
    let (segments, rows) = (&case.toy.model.weights.segments, case.input.rows());
    for next in l + 1..d.layers.len() {
        let x = t.entering(next + 1).to_vec();
        t.layers[next] = decoder::layer(d, &d.layers[next], &segments[next + 1], &x, &rows, ROWS).unwrap();
    }
    let checked: Vec<u32> = case.input.checked().iter().map(|c| c.row).collect();
    let end = d.layers.len() + 1;
    t.head = decoder::head(d, &segments[end], t.entering(end), &checked, ROWS).unwrap();
}

/// Scores of every pair, with the key head that `key` names for a query head.
pub fn scores(d: &Decoder, (q, k): (&[i32], &[i32]), key: &dyn Fn(usize) -> usize) -> Vec<i32> {
    let (heads, keys, dim) = (d.heads as usize, d.kv_heads as usize, d.head_dim as usize);
    let at = |heads: usize, hh: usize, c: usize, t: usize| place(d, heads, d.pair_log(), hh, c) * ROWS + t;
    let one = |hh: usize, j: usize, i: usize| -> i64 {
        (0..dim).map(|c| i64::from(q[at(heads, hh, c, i)]) * i64::from(k[at(keys, key(hh), c, j)])).sum()
    };
    let mut out = Vec::with_capacity(heads * ROWS * ROWS);
    for hh in 0..heads {
        out.extend((0..ROWS * ROWS).map(|cell| one(hh, cell / ROWS, cell % ROWS) as i32));
    }
    out
}

/// Normalisers and mix.
fn softmax(d: &Decoder, spec: &DecoderLayer, (scores, v): (&[i32], &[i32]), sees: Sees<'_>) -> (Vec<i32>, Vec<i32>) {
    let (heads, keys, dim) = (d.heads as usize, d.kv_heads as usize, d.head_dim as usize);
    let (mut lambdas, mut mix) = (Vec::new(), vec![0i32; heads * dim * ROWS]);
    for (hh, i) in (0..heads).flat_map(|hh| (0..ROWS).map(move |i| (hh, i))) {
        let key = |j: usize| i64::from(key_of(spec, scores[(hh * ROWS + j) * ROWS + i]));
        let seen: Vec<usize> = (0..ROWS).filter(|&j| sees(hh, i, j)).collect();
        let mass = |lambda: i64| seen.iter().map(|&j| exp_at(lambda - key(j))).sum::<i64>();
        let first = seen.iter().map(|&j| key(j)).max().unwrap();
        let lambda = (first..).find(|&l| mass(l) <= 1 << 18).unwrap();
        for c in 0..dim {
            let value = |j: usize| i64::from(v[place(d, keys, d.part_log(), hh % keys, c) * ROWS + j]);
            let sum: i64 = seen.iter().map(|&j| exp_at(lambda - key(j)) * value(j)).sum();
            mix[place(d, heads, d.part_log(), hh, c) * ROWS + i] = sum as i32;
        }
        lambdas.push(lambda as i32);
    }
    (lambdas, mix)
}

fn accumulated(parts: &[Matrix], spec: Accumulated, x: &[i16]) -> AccumulatedTrace {
    let limb = |l: u8, v: i16| if spec.limbs == 1 { v } else { [v & 255, v >> 8][usize::from(l)] };
    let sum = |l: u8| {
        let (mut total, mut rest) = (Vec::new(), x);
        for m in parts {
            let (part, tail) = rest.split_at(m.inputs * ROWS);
            rest = tail;
            let acc = product(m, &part.iter().map(|&v| limb(l, v).into()).collect::<Vec<i64>>(), ROWS);
            total.resize(acc.len(), 0);
            total.iter_mut().zip(acc).for_each(|(t, a)| *t += a);
        }
        total.into_iter().map(|v| v as i32).collect::<Vec<i32>>()
    };
    let acc: Vec<Vec<i32>> = (0..spec.limbs).map(sum).collect();
    let total = |k: usize| acc.iter().enumerate().map(|(l, a)| i64::from(a[k]) << (8 * l)).sum();
    AccumulatedTrace { t_hat: (0..acc[0].len()).map(|k| clipped(total(k), spec.e) as i16).collect(), acc }
}

/// `(q, rho)` of `m v + 2^(w-1)` by `2^w`.
fn scaled(mult: &[i32], values: &[i16], w: u8) -> (Vec<i32>, Vec<i32>) {
    let total = |(k, &v): (usize, &i16)| i64::from(mult[k / ROWS]) * i64::from(v) + (1 << (w - 1));
    let totals: Vec<i64> = values.iter().enumerate().map(total).collect();
    (totals.iter().map(|t| (t >> w) as i32).collect(), totals.iter().map(|t| (t & ((1 << w) - 1)) as i32).collect())
}

pub fn branch(b: &Branch, x: &[i32], t_hat: &[i16]) -> BranchTrace {
    let norm = b.norm.as_ref().map(|n| {
        let (y, rho) = scaled(&n.mult, t_hat, n.shift);
        BranchNormTrace { norm: rms(&y, n.norm.eps, 0), y, rho }
    });
    let (change, rho) = scaled(&b.mult, norm.as_ref().map_or(t_hat, |n| &n.norm.u), b.shift);
    BranchTrace { norm, rho, x: x.iter().zip(change).map(|(x, c)| x + c).collect() }
}

/// RMSNorm over channels; the first row's sigma is off by `nudge` and the rest follows from it.
pub fn rms(x: &[i32], eps: u64, nudge: i64) -> RmsTrace {
    let mut out = RmsTrace { x_scaled: vec![0; x.len()], u: vec![0; x.len()], ..RmsTrace::default() };
    for t in 0..ROWS {
        let cells: Vec<usize> = (t..x.len()).step_by(ROWS).collect();
        let s = cells.iter().map(|&k| i64::from(x[k]).pow(2) as u64).sum::<u64>() + eps;
        let least = (0..32).find(|k| s >> (2 * k) < 65_280).unwrap();
        normed(&mut out, x, &cells, (s, least + if t == 0 { nudge } else { 0 }));
    }
    out
}

/// Adds a row with given S and sigma over `cells`.
pub fn normed(out: &mut RmsTrace, x: &[i32], cells: &[usize], (s, sigma): (u64, i64)) {
    let index = s >> (2 * sigma);
    let recip = ((32_000u64 << 7).pow(2) / index).isqrt() as i64;
    let (p1, p2, half) = shift_powers(sigma as usize);
    for &k in cells {
        let scaled = (i64::from(x[k]) * p2 + half).div_euclid(p1);
        out.x_scaled[k] = scaled as i32;
        out.u[k] = ((scaled * recip + (1 << 13)) >> 14) as i16;
    }
    out.s.push(s);
    out.sigma.push(sigma as u8);
    out.index.push(index as u32);
    out.recip.push(recip as i32);
}

#[test]
fn redoing_an_honest_layer_changes_nothing() {
    for case in [plain(), full()] {
        assert_eq!(infer::padded_length(case.input.tokens()), ROWS);
        for (stage, l) in STAGES.into_iter().flat_map(|s| (0..case.d().layers.len()).map(move |l| (s, l))) {
            let mut again = case.honest.clone();
            redo(case, &mut again, l, stage);
            assert!(again == case.honest, "{stage:?} of layer {l}");
        }
    }
}

#[test]
fn honest_proofs_of_decoders_are_accepted() {
    for case in [plain(), full()] {
        let forged = forger(case, &case.honest).prove();
        assert_eq!(forged.broken, [""; 0]);
        assert_eq!(verdict(case, &forged.proof), Ok(()));
    }
}
