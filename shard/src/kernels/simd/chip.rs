//! Non-linear monomials of a chip group: base field in the first round, extension after it.
//!
//! Monomials run outside, packs inside, over chunks that stay in cache: nothing is interpreted per element.

use super::SimdExt;
use super::ext::bind;
use super::proof::Column;
use crate::kernels::proof::Evals;
use crate::kernels::rows::{mask_column, param_column, public_column};
use obelysk_protocol::circuit::expr::Source;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::field::{QM31, ZERO};
use rayon::prelude::*;
use std::sync::Arc;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

/// Output packs one task handles.
const TASK: usize = 16;

/// A source over the rows of its group.
enum Rows {
    /// Untouched: shorter columns repeat.
    Base(Arc<Vec<PackedM31>>),
    /// After the first binding.
    Ext(SimdExt),
}

/// A chip group being folded.
pub struct Chip {
    sources: Vec<Rows>,
    terms: Vec<(QM31, Vec<usize>)>,
    log: usize,
}

/// A column of `len` rows repeated over `2^log` rows.
pub(super) fn repeat(values: &[PackedM31], len: usize, log: usize) -> Vec<PackedM31> {
    let n = 1usize << log;
    let packs = n.div_ceil(N_LANES);
    if len >= N_LANES {
        return (0..packs).map(|i| values[i % values.len()]).collect();
    }
    let lanes = values[0].to_array();
    let zero = obelysk_protocol::field::signed(0);
    let one: [_; N_LANES] = std::array::from_fn(|i| if i < n { lanes[i % len] } else { zero });
    vec![PackedM31::from_array(one); packs]
}

impl Chip {
    pub(super) fn new(c: &Circuit, log: usize, terms: &[(QM31, Vec<Source>)], columns: &[Column]) -> Self {
        let mut all: Vec<Source> = terms.iter().flat_map(|t| t.1.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        let n = 1usize << log;
        let rows = |s: &Source| match s {
            Source::Col(id) => {
                let col = &columns[*id as usize];
                if col.len == n { Rows::Base(col.packs.clone()) } else { Rows::Base(Arc::new(repeat(&col.packs, col.len, log))) }
            }
            Source::Param(id) => Rows::Base(Column::new(&param_column(c, *id, log)).packs),
            Source::Public(id) => Rows::Base(Column::new(&public_column(c, *id, log)).packs),
            Source::Mask => Rows::Base(Column::new(&mask_column(c)).packs),
        };
        let index = |s: &Source| all.iter().position(|x| x == s).unwrap_or(0);
        let terms = terms.iter().map(|(w, f)| (*w, f.iter().map(index).collect())).collect();
        Self { sources: all.par_iter().map(rows).collect(), terms, log }
    }

    /// Values at X = 0..=3, before the eq weights of `rest` (length `2^(log - 1)`).
    pub(super) fn round(&self, rest: &SimdExt) -> Evals {
        if 1usize << self.log < 2 * N_LANES {
            return self.round_small(&rest.to_host());
        }
        let zero = [PackedQM31::broadcast(ZERO); 4];
        let out = rest.packs.len();
        let task = |chunk: usize| {
            let (from, to) = (chunk * TASK, ((chunk + 1) * TASK).min(out));
            let mut acc = [[PackedQM31::broadcast(ZERO); TASK]; 4];
            for (w, factors) in &self.terms {
                self.add_term(*w, factors, from, to, &mut acc);
            }
            let mut sums = zero;
            for (s, a) in sums.iter_mut().zip(&acc) {
                for (v, &e) in a.iter().zip(&rest.packs[from..to]) {
                    *s += *v * e;
                }
            }
            sums
        };
        let add = |a: [PackedQM31; 4], b: [PackedQM31; 4]| std::array::from_fn(|x| a[x] + b[x]);
        (0..out.div_ceil(TASK)).into_par_iter().map(task).reduce(|| zero, add).map(|s| s.pointwise_sum())
    }

    fn add_term(&self, w: QM31, factors: &[usize], from: usize, to: usize, acc: &mut [[PackedQM31; TASK]; 4]) {
        let base: Vec<&[PackedM31]> = factors
            .iter()
            .filter_map(|&f| if let Rows::Base(b) = &self.sources[f] { Some(b.as_slice()) } else { None })
            .collect();
        let ext: Vec<&[PackedQM31]> = factors
            .iter()
            .filter_map(|&f| if let Rows::Ext(e) = &self.sources[f] { Some(e.packs.as_slice()) } else { None })
            .collect();
        let w = PackedQM31::broadcast(w);
        for i in from..to {
            let slot = i - from;
            if ext.is_empty() {
                let v = products(&base, |s| s[2 * i].deinterleave(s[2 * i + 1]));
                (0..4).for_each(|x| acc[x][slot] += w * v[x]);
            } else {
                let v = products(&ext, |s| s[2 * i].deinterleave(s[2 * i + 1]));
                (0..4).for_each(|x| acc[x][slot] += w * v[x]);
            }
        }
    }

    fn host(&self) -> Vec<Vec<QM31>> {
        let rows = |s: &Rows| match s {
            Rows::Base(b) => b.iter().flat_map(|p| p.to_array()).map(QM31::from).take(1 << self.log).collect::<Vec<_>>(),
            Rows::Ext(e) => e.to_host(),
        };
        self.sources.iter().map(rows).collect()
    }

    fn round_small(&self, rest: &[QM31]) -> Evals {
        let sources = self.host();
        let at = |s: usize, i: usize, x: u32| {
            let (a, b) = (sources[s][2 * i], sources[s][2 * i + 1]);
            (0..x).fold(a, |v, _| v + (b - a))
        };
        [0, 1, 2, 3].map(|x| {
            rest.iter().enumerate().fold(ZERO, |acc, (i, &e)| {
                let sum = self.terms.iter().fold(ZERO, |a, (w, f)| a + f.iter().fold(*w, |p, &s| p * at(s, i, x)));
                acc + e * sum
            })
        })
    }

    pub(super) fn bind(&mut self, r: QM31) {
        let small = 1usize << self.log < 2 * N_LANES;
        let log = self.log;
        self.sources.par_iter_mut().for_each(|s| {
            let bound = match s {
                Rows::Base(b) if small => {
                    let host: Vec<QM31> = b.iter().flat_map(|p| p.to_array()).map(QM31::from).take(1 << log).collect();
                    SimdExt::from_host(&obelysk_protocol::field::fold(&host, r))
                }
                Rows::Base(b) => bind_base(b, r),
                Rows::Ext(e) if small => SimdExt::from_host(&obelysk_protocol::field::fold(&e.to_host(), r)),
                Rows::Ext(e) => bind(e, r),
            };
            *s = Rows::Ext(bound);
        });
        self.log -= 1;
    }

    pub(super) fn value(&self) -> QM31 {
        let sources = self.host();
        self.terms.iter().fold(ZERO, |a, (w, f)| a + f.iter().fold(*w, |p, &s| p * sources[s][0]))
    }
}

fn bind_base(v: &[PackedM31], r: QM31) -> SimdExt {
    let r = PackedQM31::broadcast(r);
    let fold = |p: &[PackedM31]| {
        let (even, odd) = p[0].deinterleave(p[1]);
        r * (odd - even) + even
    };
    let packs: Vec<PackedQM31> = v.chunks_exact(2).map(fold).collect();
    SimdExt { len: packs.len() * N_LANES, packs }
}

/// The products of the factors' lines at X = 0..=3.
fn products<T, V>(factors: &[&[T]], load: impl Fn(&[T]) -> (V, V)) -> [V; 4]
where
    V: Copy + std::ops::Add<Output = V> + std::ops::Sub<Output = V> + std::ops::Mul<Output = V>,
{
    let line = |s: &[T]| {
        let (a, b) = load(s);
        let d = b - a;
        let c = b + d;
        [a, b, c, c + d]
    };
    let first = line(factors[0]);
    factors[1..].iter().fold(first, |acc, s| {
        let v = line(s);
        std::array::from_fn(|x| acc[x] * v[x])
    })
}
