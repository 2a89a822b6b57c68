//! Leaves of the LogUp tree: tuples in the base field, denominators in the extension.

use super::gkr::{Fractions, Numerators};
use super::proof::Column;
use crate::kernels::rows::{mask_column, param_column};
use obelysk_protocol::circuit::expr::{Expr, Source};
use obelysk_protocol::circuit::segment::{Circuit, Leaf, LeafKind};
use obelysk_protocol::field::{ONE, QM31, signed, signed_ext};
use obelysk_protocol::verifier::product::powers;
use rayon::prelude::*;
use std::sync::Arc;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

/// A leaf block: numerators and denominators of at least one pack; lanes past its size are 0 over 1.
struct Block {
    num: Vec<PackedM31>,
    den: Vec<PackedQM31>,
}

pub(super) fn build(c: &Circuit, columns: &[Column], alpha: QM31, beta: QM31) -> Fractions {
    let alphas = powers(alpha, 8);
    let leaves = c.leaves();
    let (large, small): (Vec<Leaf>, Vec<Leaf>) = leaves.into_iter().partition(|l| 1usize << l.log_size >= N_LANES);
    let blocks: Vec<Block> = large.par_iter().map(|l| block(c, columns, *l, &alphas, beta)).collect();
    let total: usize = blocks.iter().map(|b| b.num.len()).sum();
    let (mut num, mut den) = (Vec::with_capacity(total + 2), Vec::with_capacity(total + 2));
    for b in blocks {
        num.extend(b.num);
        den.extend(b.den);
    }
    push_small(c, columns, &small, (&alphas, beta), &mut num, &mut den);
    if num.len() % 2 == 1 {
        num.push(PackedM31::broadcast(signed(0)));
        den.push(PackedQM31::broadcast(ONE));
    }
    Fractions { num: Numerators::Base(num), den, log: c.tree_log() }
}

/// Blocks shorter than a pack, one after the other.
fn push_small(
    c: &Circuit,
    columns: &[Column],
    small: &[Leaf],
    (alphas, beta): (&[QM31], QM31),
    num: &mut Vec<PackedM31>,
    den: &mut Vec<PackedQM31>,
) {
    let (mut nums, mut dens) = (Vec::new(), Vec::new());
    for l in small {
        let b = block(c, columns, *l, alphas, beta);
        nums.extend(b.num[0].to_array().into_iter().take(1 << l.log_size));
        dens.extend(b.den[0].to_array().into_iter().take(1 << l.log_size));
    }
    nums.resize(nums.len().next_multiple_of(N_LANES), signed(0));
    dens.resize(dens.len().next_multiple_of(N_LANES), ONE);
    num.extend(Column::new(&nums).packs.iter());
    den.extend(super::SimdExt::from_host(&dens).packs);
}

fn block(c: &Circuit, columns: &[Column], leaf: Leaf, alphas: &[QM31], beta: QM31) -> Block {
    let n = leaf.log_size;
    let (tag, rows, num): (u32, Vec<Rows>, Rows) = match leaf.kind {
        LeafKind::Lookup(i) => {
            let l = &c.lookups[i];
            let ones = if l.masked { Column::new(&mask_column(c)) } else { Column::new(&vec![signed(1); 1 << n]) };
            (c.tables[l.table].tag, l.inputs.iter().map(|e| rows(c, e, n, columns)).collect(), ones.packs)
        }
        LeafKind::Table(i) => {
            let t = &c.tables[i];
            let minus: Vec<PackedM31> = columns[t.multiplicity as usize].packs.iter().map(|&m| -m).collect();
            (t.tag, t.materialise().iter().map(|v| Column::new(v).packs).collect(), Arc::new(minus))
        }
    };
    let start = PackedQM31::broadcast(beta - signed_ext(i64::from(tag)));
    let mut den = vec![start; num.len()];
    for (r, &a) in rows.iter().zip(&alphas[1..]) {
        let a = PackedQM31::broadcast(-a);
        for (d, &v) in den.iter_mut().zip(r.iter()) {
            *d += a * v;
        }
    }
    Block { num: num.to_vec(), den }
}

type Rows = Arc<Vec<PackedM31>>;

/// An expression at every row.
fn rows(c: &Circuit, e: &Expr, n: usize, columns: &[Column]) -> Rows {
    let terms: Vec<_> = e.terms().collect();
    if let [t] = terms.as_slice()
        && let [Source::Col(id)] = t.factors.as_slice()
        && t.coef == 1
        && columns[*id as usize].len == 1 << n
    {
        return columns[*id as usize].packs.clone();
    }
    let packs = (1usize << n).div_ceil(N_LANES);
    let mut out = vec![PackedM31::broadcast(signed(0)); packs];
    for t in &terms {
        let factors: Vec<Rows> = t.factors.iter().map(|&s| source(c, s, n, columns)).collect();
        let k = PackedM31::broadcast(signed(t.coef));
        match factors.as_slice() {
            [] => out.iter_mut().for_each(|o| *o += k),
            [a] => out.iter_mut().zip(a.iter()).for_each(|(o, &a)| *o += k * a),
            [a, b] => out.iter_mut().zip(a.iter()).zip(b.iter()).for_each(|((o, &a), &b)| *o += k * a * b),
            more => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o += more.iter().fold(k, |acc, f| acc * f[i]);
                }
            }
        }
    }
    Arc::new(out)
}

fn source(c: &Circuit, s: Source, n: usize, columns: &[Column]) -> Rows {
    match s {
        Source::Col(id) => {
            let col = &columns[id as usize];
            if col.len == 1 << n { col.packs.clone() } else { Arc::new(super::chip::repeat(&col.packs, col.len, n)) }
        }
        Source::Param(id) => Column::new(&param_column(c, id, n)).packs,
        Source::Mask => Column::new(&mask_column(c)).packs,
    }
}
