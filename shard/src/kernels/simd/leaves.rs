//! Leaves of the LogUp tree: tuples in the base field, denominators in the extension.

use super::fractions::{Fractions, Numerators};
use super::proof::Column;
use crate::kernels::rows::{mask_column, param_column, public_column};
use obelysk_protocol::circuit::expr::{Expr, Source};
use obelysk_protocol::circuit::segment::{Circuit, Leaf, LeafKind};
use obelysk_protocol::field::{ONE, QM31, signed, signed_ext};
use obelysk_protocol::verifier::product::powers;
use rayon::prelude::*;
use std::sync::Arc;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

pub(super) fn build(c: &Circuit, columns: &[Column], alpha: QM31, beta: QM31) -> Fractions {
    let challenges = (powers(alpha, 1 + c.tuple_len()), beta);
    let (large, small): (Vec<Leaf>, Vec<Leaf>) = c.leaves().into_iter().partition(|l| packs(l) * N_LANES == 1 << l.log_size);
    let large_packs: usize = large.iter().map(packs).sum();
    let small_cells: usize = small.iter().map(|l| 1usize << l.log_size).sum();
    // Layers are stored in pairs of packs.
    let total = (large_packs + small_cells.div_ceil(N_LANES)).next_multiple_of(2);
    // Zeroed pages come from the kernel as they are written, by the thread that writes them.
    let mut num: Vec<PackedM31> = bytemuck::zeroed_vec(total);
    let mut den: Vec<PackedQM31> = bytemuck::zeroed_vec(total);
    let mut jobs = Vec::new();
    let (mut num_rest, mut den_rest) = (num.as_mut_slice(), den.as_mut_slice());
    for l in large {
        let (n, num_tail) = num_rest.split_at_mut(packs(&l));
        let (d, den_tail) = den_rest.split_at_mut(packs(&l));
        (num_rest, den_rest) = (num_tail, den_tail);
        jobs.push((l, n, d));
    }
    jobs.into_par_iter().for_each(|(l, n, d)| fill(c, columns, l, &challenges, n, d));
    fill_small(c, columns, &small, &challenges, num_rest, den_rest);
    Fractions { num: Numerators::Base(num), den, log: c.tree_log() }
}

/// Packs of a block.
fn packs(l: &Leaf) -> usize {
    (1usize << l.log_size).div_ceil(N_LANES)
}

/// Blocks shorter than a pack, one after the other, then leaves 0 over 1 to the end of the stored part.
fn fill_small(
    c: &Circuit,
    columns: &[Column],
    small: &[Leaf],
    challenges: &(Vec<QM31>, QM31),
    num: &mut [PackedM31],
    den: &mut [PackedQM31],
) {
    let (mut nums, mut dens) = (Vec::new(), Vec::new());
    for l in small {
        let mut n = [PackedM31::broadcast(signed(0))];
        let mut d = [PackedQM31::broadcast(ONE)];
        fill(c, columns, *l, challenges, &mut n, &mut d);
        nums.extend(n[0].to_array().into_iter().take(1 << l.log_size));
        dens.extend(d[0].to_array().into_iter().take(1 << l.log_size));
    }
    nums.resize(num.len() * N_LANES, signed(0));
    dens.resize(den.len() * N_LANES, ONE);
    num.copy_from_slice(&Column::new(&nums).packs);
    den.copy_from_slice(&super::SimdExt::from_host(&dens).packs);
}

/// Writes a block's numerators and denominators.
fn fill(
    c: &Circuit,
    columns: &[Column],
    leaf: Leaf,
    (alphas, beta): &(Vec<QM31>, QM31),
    num: &mut [PackedM31],
    den: &mut [PackedQM31],
) {
    let n = leaf.log_size;
    let (tag, rows): (u32, Vec<Rows>) = match leaf.kind {
        LeafKind::Lookup(i) => {
            let l = &c.lookups[i];
            if l.masked {
                num.copy_from_slice(&Column::new(&mask_column(c)).packs);
            } else {
                num.fill(PackedM31::broadcast(signed(1)));
            }
            (c.tables[l.table].tag, l.inputs.iter().map(|e| rows(c, e, n, columns)).collect())
        }
        LeafKind::Table(i) => {
            let t = &c.tables[i];
            for (out, &m) in num.iter_mut().zip(columns[t.multiplicity as usize].packs.iter()) {
                *out = -m;
            }
            (t.tag, t.materialise().iter().map(|v| Column::new(v).packs).collect())
        }
    };
    den.fill(PackedQM31::broadcast(*beta - signed_ext(i64::from(tag))));
    for (r, &a) in rows.iter().zip(&alphas[1..]) {
        let a = PackedQM31::broadcast(-a);
        for (d, &v) in den.iter_mut().zip(r.iter()) {
            *d += a * v;
        }
    }
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
        Source::Public(id) => Column::new(&public_column(c, id, n)).packs,
        Source::Mask => Column::new(&mask_column(c)).packs,
    }
}
