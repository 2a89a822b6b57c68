//! Grouped attention: every member of a key head's group scores and mixes on its own, and shares the keys and values.
//!
//! Score rows are (query i, kv_lo, key j), one block per kv_hi, one set of columns per group member r.

use super::super::attention::{ExpTables, MASS_LOG, MIX_SHIFT, ScoreColumns, row_sums, score_columns, score_relation};
use super::super::builder::Builder;
use super::super::descriptor::{Decoder, DecoderLayer, ScoreCap};
use super::super::expr::Expr;
use super::super::input::PublicInput;
use super::super::linear::{
    Output, R1Columns, Rounded, Slice, input_claim, r1_bound, r1_columns, requantised_slice, weight_product, weight_products,
};
use super::super::rotary;
use super::super::segment::{Factor, Relation, Value, log2_ceil};
use super::super::shape::{Blocks, Logical, join, kappa, rho};
use super::super::table::{RowIndex, TableColumn};
use super::gated::{limb_columns, stopped};
use super::rotation::Rotation;
use std::sync::Arc;

const TAG_CAP: u32 = 163;
/// Values fit 12 bits, so that the mix needs no clip.
const VALUE_LOG: usize = 11;

/// Sizes shared by the steps.
#[derive(Clone, Copy)]
struct Shape {
    nt: usize,
    /// b: bits of the key head inside a block.
    hl: usize,
    /// kappa: blocks of one group member.
    kv_odd: usize,
    /// log2 of kappa, rounded up.
    hi: usize,
    group: usize,
    /// a: log2 of the channels in a part of values.
    part_log: usize,
}

/// From the normalised stream to the output projection's `t^`.
pub(super) fn build(b: &mut Builder, d: &Decoder, l: &DecoderLayer, u: &Factor, exp: &ExpTables, input: &PublicInput) -> Rounded {
    let nt = b.circuit().token_log;
    let (kv_odd, hl) = (d.kv_odd(), d.kv_low_log());
    let s = Shape { nt, hl, kv_odd, hi: log2_ceil(kv_odd), group: d.group(), part_log: d.part_log() };
    b.circuit().block_heads_log = hl;
    let mut positions: Vec<u32> = input.rows().iter().map(|r| r.position).collect();
    positions.resize(1 << nt, 0);
    let rotation = |group| Rotation { d, positions: &positions, group, shared: &exp.rotations };
    let q = rotation(s.group).build(b, "q", &l.q, u);
    let k = rotation(1).build(b, "k", &l.k, u);
    let v = values(b, d, l, u, s);
    let scores = scores(b, d, l, s, (&q, &k), exp);
    let mixed = mix(b, d, (s, l.o.limbs), &scores, &v);
    let inputs = (s.group * kv_odd) << (s.part_log + hl);
    // One list of accumulators per limb: the sum over parts.
    let mut accs = vec![Vec::new(); usize::from(l.o.limbs)];
    for (p, limbs) in mixed.iter().enumerate() {
        let claim = |(k, m): (usize, &Logical)| input_claim(b, &format!("mix{k}.{p}"), m);
        let claims: Vec<Factor> = limbs.iter().enumerate().map(claim).collect();
        let products = weight_products(b, &format!("o.{p}"), &claims, inputs, d.width as usize);
        for (list, acc) in accs.iter_mut().zip(products) {
            list.push(acc);
        }
    }
    stopped(b, "o", Blocks::of(d.width as usize), l.o, &accs)
}

/// Value parts, 12 bit.
fn values(b: &mut Builder, d: &Decoder, l: &DecoderLayer, u: &Factor, s: Shape) -> Vec<Logical> {
    if l.v.lo < -(1 << VALUE_LOG) || l.v.hi >= 1 << VALUE_LOG {
        b.fail_shape("values must fit 12 bits for the mix to stay in 16");
    }
    let blocks = Blocks { count: s.kv_odd, log: s.part_log + s.hl };
    let outputs = blocks.count << blocks.log;
    let part = |p: usize| {
        let name = format!("v.{p}");
        let acc = weight_product(b, &name, u, d.width as usize, outputs);
        requantised_slice(b, &name, blocks, Slice { spec: &l.v, first: p * outputs }, acc, &Output::Range)
    };
    (0..d.delta()).map(part).collect()
}

/// Score columns of every group member.
fn scores(
    b: &mut Builder,
    d: &Decoder,
    l: &DecoderLayer,
    s: Shape,
    (q, k): (&[Logical], &[Logical]),
    exp: &ExpTables,
) -> Vec<ScoreColumns> {
    let vars = s.hl + d.pair_log() + s.hi;
    // Shared by the group: the keys at (rho_j, kappa).
    let key_point = join(&[rho(s.nt + s.hl, s.nt), kappa(0, vars)]);
    let keys: Vec<Factor> = k.iter().enumerate().map(|(p, k)| b.claim(&format!("k.{p}"), k.at(&key_point))).collect();
    let (reach_q, reach_k) = (rotary::reach(&l.q).l2, rotary::reach(&l.k).l2);
    let elementwise = i64::from(l.q.limit).saturating_mul(i64::from(l.k.limit)).saturating_mul(i64::from(d.head_dim));
    let bound = elementwise.min(reach_q.saturating_mul(reach_k));
    (0..s.group)
        .map(|r| {
            let products: Vec<usize> = (0..q.len())
                .map(|p| {
                    let own = Logical { blocks: member(&q[p], r, s), lo: q[p].lo, hi: s.hi };
                    let claim = b.claim(&format!("q.{p}.{r}"), own.at(&join(&[rho(0, s.nt), kappa(0, vars)])));
                    let head = Factor::Eq { offset: 0, coords: rho(s.nt, s.hl) };
                    let block = Factor::Eq { offset: s.hl + d.pair_log(), coords: rho(2 * s.nt + s.hl, s.hi) };
                    b.product(&format!("score.{r}.{p}"), vars, vec![head, block, claim, keys[p].clone()])
                })
                .collect();
            let name = format!("score.{r}");
            let columns = score_columns(b, &name, s.kv_odd, usize::from(l.score_shift), true, exp);
            match &l.score_cap {
                None => {
                    score_relation(b, &format!("{name}.acc"), (&columns, s.hi, usize::from(l.score_shift)), &products, bound);
                }
                Some(cap) => capped(b, &name, s, cap, &columns, (&products, bound)),
            }
            row_sums(b, &format!("softmax.{r}"), &columns);
            columns
        })
        .collect()
}

/// Blocks of group member r.
fn member(x: &Logical, r: usize, s: Shape) -> Vec<u32> {
    x.blocks.get(r * s.kv_odd..(r + 1) * s.kv_odd).unwrap_or(&[]).to_vec()
}

/// `Lambda - cap(t^) = idx + w` where `t^` is the rounded score: R1, then the table of the cap.
fn capped(b: &mut Builder, name: &str, s: Shape, cap: &ScoreCap, columns: &ScoreColumns, (products, bound): (&[usize], i64)) {
    let n = 2 * s.nt + s.hl;
    if bound > r1_bound(cap.e) {
        b.fail_shape(format!("{name}: a score can reach {bound}, beyond what e = {} represents", cap.e));
    }
    let blocks = Blocks { count: s.kv_odd, log: n - s.nt };
    let R1Columns { v, tau, rounded } = r1_columns(b, &format!("{name}.r1"), blocks, n, cap.e);
    let at_rho = |cols: Vec<u32>| Logical { blocks: cols, lo: n, hi: s.hi }.at_rho();
    let v = at_rho(v);
    let constant = Some((-(1i64 << (cap.e - 1)), s.kv_odd, v.hi.clone()));
    let terms = vec![(1, v), (1 << cap.e, at_rho(tau))];
    let values = products.iter().map(|&p| (1, Value::Accumulator(p))).collect();
    b.relate(Relation { name: format!("{name}.acc"), terms, constant, values }, bound);
    let values = Arc::new(cap.table.clone());
    let table = b.table("cap", TAG_CAP, 16, RowIndex::First { offset: -(1 << 15) }, || {
        vec![TableColumn::Identity { offset: -(1 << 15) }, TableColumn::Function(values)]
    });
    for i in 0..s.kv_odd {
        let c = b.column(&format!("{name}.{i}.cap"), n);
        b.lookup(table, vec![rounded.t_hat[i].clone(), Expr::col(c)], n, false);
        let [low, high] = columns.lambda[i];
        let lambda = Expr::col(low) + Expr::col(high).scale(1 << 16);
        let e = lambda - Expr::col(c) - Expr::col(columns.idx[i]) - Expr::col(columns.w[i]);
        b.constrain(&format!("{name}.{i}.index"), e, n, &[]);
    }
}

/// `acc = r + 2^14 y - 2^13` with `acc = sum_j p v`: no clip. Parts over all group members, each in limbs.
fn mix(b: &mut Builder, d: &Decoder, (s, limbs): (Shape, u8), scores: &[ScoreColumns], v: &[Logical]) -> Vec<Vec<Logical>> {
    // y = (kv_lo, j, kv_hi).
    let vars = s.hl + s.nt + s.hi;
    let n = s.nt + s.part_log + s.hl;
    let channels = rho(s.nt + s.hl, s.part_log);
    let weights: Vec<Factor> = scores
        .iter()
        .enumerate()
        .map(|(r, c)| {
            let p = Logical { blocks: c.p.clone(), lo: 2 * s.nt + s.hl, hi: s.hi };
            b.claim(&format!("p.{r}"), p.at(&join(&[rho(0, s.nt), kappa(0, vars)])))
        })
        .collect();
    // A value at (j, kv_lo, c, kv_hi).
    let point = join(&[kappa(s.hl, s.nt), kappa(0, s.hl), channels, kappa(s.hl + s.nt, s.hi)]);
    (0..d.delta())
        .map(|part| {
            let value = b.claim(&format!("v.{part}"), v[part].at(&point));
            let empty = Logical { blocks: Vec::new(), lo: n, hi: log2_ceil(s.kv_odd * s.group) };
            let mut out = vec![empty; usize::from(limbs)];
            for (r, weight) in weights.iter().enumerate() {
                let head = Factor::Eq { offset: 0, coords: rho(s.nt, s.hl) };
                let block = Factor::Eq { offset: s.hl + s.nt, coords: rho(n, s.hi) };
                let factors = vec![head, block, weight.clone(), value.clone()];
                let acc = b.product(&format!("mix.{part}.{r}"), vars, factors);
                for (out, cols) in out.iter_mut().zip(mixed_columns(b, (part, r), (s, limbs), n, acc)) {
                    out.blocks.extend(cols);
                }
            }
            out
        })
        .collect()
}

/// Columns of one group member: per limb, one per block.
fn mixed_columns(b: &mut Builder, (part, r): (usize, usize), (s, limbs): (Shape, u8), n: usize, acc: usize) -> Vec<Vec<u32>> {
    let mut rs = Vec::new();
    let mut ys = vec![Vec::new(); usize::from(limbs)];
    for i in r * s.kv_odd..(r + 1) * s.kv_odd {
        rs.push(b.bound_column(&format!("mix.{part}.{i}.r"), n, (0, (1 << MIX_SHIFT) - 1)));
        let name = format!("mix.{part}.{i}.y");
        let y = match limbs {
            1 => vec![b.bound_column(&name, n, (-(1 << 15), (1 << 15) - 1))],
            _ => limb_columns(b, &name, n, limbs),
        };
        for (limb, c) in ys.iter_mut().zip(y) {
            limb.push(c);
        }
    }
    let at_rho = |cols: &[u32]| Logical { blocks: cols.to_vec(), lo: n, hi: s.hi }.at_rho();
    let low = at_rho(&rs);
    let constant = Some((-(1 << (MIX_SHIFT - 1)), s.kv_odd, low.hi.clone()));
    let limb = |(k, cols): (usize, &Vec<u32>)| (1i64 << (MIX_SHIFT + 8 * k), at_rho(cols));
    let terms = std::iter::once((1, low)).chain(ys.iter().enumerate().map(limb)).collect();
    let values = vec![(1, Value::Accumulator(acc))];
    let bound = 1 << (MASS_LOG + VALUE_LOG);
    b.relate(Relation { name: format!("mix.{part}.{r}.acc"), terms, constant, values }, bound);
    ys
}
