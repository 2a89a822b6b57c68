//! LogUp layers, 16 fractions at a time.
//!
//! Three things keep it near the speed of the field products: `n1 + mu d1` is formed once per layer, so a round costs three
//! products per evaluation; binding and evaluation are one pass; and the constant 0/1 leaves beyond the last table are
//! never stored (their share of a round is `mu (1 - sum of the stored eq weights)`).

use super::SimdExt;
use super::ext::{bind, outer};

use obelysk_protocol::field::{M31, ONE, QM31, ZERO, eq_vector, fold};
use rayon::prelude::*;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

/// Packs one task handles; even.
const TASK: usize = 256;

/// Numerators of a layer: leaves are base elements.
pub enum Numerators {
    /// Leaves.
    Base(Vec<PackedM31>),
    /// Inner nodes.
    Ext(Vec<PackedQM31>),
}

/// One layer of the tree. Stored packs come in pairs; everything beyond them is 0 over 1.
pub struct Fractions {
    pub(super) num: Numerators,
    pub(super) den: Vec<PackedQM31>,
    /// log2 of the layer's length.
    pub(super) log: usize,
}

/// `eq(point, i)` for all i.
pub(super) fn eq(point: &[QM31]) -> SimdExt {
    let (low, high) = point.split_at(point.len().min(8));
    if low.len() < 4 { SimdExt::from_host(&eq_vector(point)) } else { outer(&eq_vector(low), &eq_vector(high)) }
}

/// `out[i] = v[2i] + v[2i+1]`.
pub(super) fn drop_low(v: &SimdExt) -> SimdExt {
    if v.is_small() {
        let sums: Vec<QM31> = v.to_host().chunks(2).map(|p| p.iter().fold(ZERO, |a, &x| a + x)).collect();
        return SimdExt::from_host(&sums);
    }
    let add = |p: &[PackedQM31]| {
        let (even, odd) = p[0].deinterleave(p[1]);
        even + odd
    };
    SimdExt { packs: v.packs.par_chunks_exact(2).with_min_len(TASK).map(add).collect(), len: v.len / 2 }
}

fn lift(v: PackedM31) -> PackedQM31 {
    let zero = PackedM31::broadcast(M31::from_u32_unchecked(0));
    PackedQM31::from_packed_m31s([v, zero, zero, zero])
}

/// Element `i` of packs, with `fill` beyond the stored ones.
fn element(packs: &[PackedQM31], i: usize, fill: QM31) -> QM31 {
    packs.get(i / N_LANES).map_or(fill, |p| p.to_array()[i % N_LANES])
}

fn splat(v: QM31) -> PackedQM31 {
    PackedQM31::broadcast(v)
}

impl Fractions {
    fn host(&self) -> (Vec<QM31>, Vec<QM31>) {
        let size = 1usize << self.log;
        let num = match &self.num {
            Numerators::Base(b) => {
                (0..size).map(|i| b.get(i / N_LANES).map_or(ZERO, |p| QM31::from(p.to_array()[i % N_LANES]))).collect()
            }
            Numerators::Ext(e) => (0..size).map(|i| element(e, i, ZERO)).collect(),
        };
        (num, (0..size).map(|i| element(&self.den, i, ONE)).collect())
    }

    /// From host vectors of a small layer.
    fn small(num: &[QM31], den: &[QM31]) -> Self {
        let pack = |v: &[QM31], fill: QM31| {
            let mut all = v.to_vec();
            all.resize(v.len().next_multiple_of(2 * N_LANES), fill);
            SimdExt::from_host(&all).packs
        };
        let log = num.len().trailing_zeros() as usize;
        Self { num: Numerators::Ext(pack(num, ZERO)), den: pack(den, ONE), log }
    }

    pub(super) fn children(&self) -> [QM31; 4] {
        let (n, d) = self.host();
        [n[0], n[1], d[0], d[1]]
    }

    /// The layer above.
    pub(super) fn parents(&self) -> Self {
        if 1usize << self.log < 4 * N_LANES {
            let (n, d) = self.host();
            let add = |i: usize| (n[2 * i] * d[2 * i + 1] + n[2 * i + 1] * d[2 * i], d[2 * i] * d[2 * i + 1]);
            let (num, den): (Vec<_>, Vec<_>) = (0..n.len() / 2).map(add).unzip();
            return Self::small(&num, &den);
        }
        // unzip_into_vecs writes in place; a plain unzip of this size copies everything once more, on one thread.
        let (mut num, mut den) = (Vec::new(), Vec::new());
        let dens = self.den.par_chunks_exact(2);
        match &self.num {
            Numerators::Base(b) => b
                .par_chunks_exact(2)
                .zip(dens)
                .with_min_len(TASK)
                .map(|(n, d)| {
                    let (n0, n1) = n[0].deinterleave(n[1]);
                    let (d0, d1) = d[0].deinterleave(d[1]);
                    (d1 * n0 + d0 * n1, d0 * d1)
                })
                .unzip_into_vecs(&mut num, &mut den),
            Numerators::Ext(e) => e
                .par_chunks_exact(2)
                .zip(dens)
                .with_min_len(TASK)
                .map(|(n, d)| {
                    let (n0, n1) = n[0].deinterleave(n[1]);
                    let (d0, d1) = d[0].deinterleave(d[1]);
                    (n0 * d1 + n1 * d0, d0 * d1)
                })
                .unzip_into_vecs(&mut num, &mut den),
        }
        if num.len() % 2 == 1 {
            num.push(splat(ZERO));
            den.push(splat(ONE));
        }
        Self { num: Numerators::Ext(num), den, log: self.log - 1 }
    }
}

/// A layer in its sumcheck: n0, n1 + mu d1, d0, d1. Stored packs come in pairs; beyond them 0, mu, 1, 1.
pub struct Layer {
    parts: [Vec<PackedQM31>; 4],
    /// Weights of the variables not yet bound, over the whole layer.
    rest: SimdExt,
    mu: QM31,
    log: usize,
}

impl Layer {
    fn fill(&self) -> [QM31; 4] {
        [ZERO, self.mu, ONE, ONE]
    }

    pub(super) fn start(f: &Fractions, point: &[QM31], mu: QM31) -> Self {
        let log = f.log - 1;
        let mut layer = Self { parts: Default::default(), rest: SimdExt::zeros(0), mu, log };
        if 1usize << f.log < 4 * N_LANES {
            let (n, d) = f.host();
            let even = |v: &[QM31], odd: usize| v.iter().skip(odd).step_by(2).copied().collect::<Vec<_>>();
            let (n0, n1, d0, d1) = (even(&n, 0), even(&n, 1), even(&d, 0), even(&d, 1));
            let n1 = n1.iter().zip(&d1).map(|(&n, &d)| n + mu * d).collect();
            layer.set_host([n0, n1, d0, d1]);
            layer.rest = SimdExt::from_host(&eq_vector(point));
            return layer;
        }
        let mu_pack = splat(mu);
        let (mut n0, mut n1, mut d0, mut d1) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let den = f.den.par_chunks_exact(2).with_min_len(TASK);
        den.map(|d| d[0].deinterleave(d[1])).unzip_into_vecs(&mut d0, &mut d1);
        match &f.num {
            Numerators::Base(b) => b
                .par_chunks_exact(2)
                .zip(&d1)
                .with_min_len(TASK)
                .map(|(n, &d)| {
                    let (even, odd) = n[0].deinterleave(n[1]);
                    (lift(even), mu_pack * d + lift(odd))
                })
                .unzip_into_vecs(&mut n0, &mut n1),
            Numerators::Ext(e) => e
                .par_chunks_exact(2)
                .zip(&d1)
                .with_min_len(TASK)
                .map(|(n, &d)| {
                    let (even, odd) = n[0].deinterleave(n[1]);
                    (even, odd + mu_pack * d)
                })
                .unzip_into_vecs(&mut n0, &mut n1),
        }
        layer.parts = [n0, n1, d0, d1];
        layer.pad();
        layer.rest = eq(point);
        layer
    }

    /// Completes pairs of packs with the constants beyond the stored part.
    fn pad(&mut self) {
        let fill = self.fill();
        for (p, f) in self.parts.iter_mut().zip(fill) {
            if p.len() % 2 == 1 {
                p.push(splat(f));
            }
        }
    }

    fn host(&self) -> [Vec<QM31>; 4] {
        let fill = self.fill();
        std::array::from_fn(|k| (0..1usize << self.log).map(|i| element(&self.parts[k], i, fill[k])).collect())
    }

    fn set_host(&mut self, parts: [Vec<QM31>; 4]) {
        self.parts = parts.map(|p| SimdExt::from_host(&p).packs);
    }

    fn is_small(&self) -> bool {
        1usize << self.log < 4 * N_LANES
    }

    /// Binds the lowest variable of the parts.
    fn bind(&mut self, r: QM31) {
        if self.is_small() {
            let bound = self.host().map(|p| fold(&p, r));
            self.log -= 1;
            return self.set_host(bound);
        }
        for p in &mut self.parts {
            *p = bind(&SimdExt { len: p.len() * N_LANES, packs: std::mem::take(p) }, r).packs;
        }
        self.log -= 1;
        self.pad();
    }

    pub(super) fn round(&mut self, r: Option<QM31>) -> [QM31; 2] {
        if let Some(r) = r {
            self.bind(r);
        }
        if self.is_small() {
            return self.round_small();
        }
        self.rest = drop_low(&self.rest);
        let zero = [splat(ZERO); 3];
        let [n0, n1, d0, d1] = &self.parts;
        let task = |chunk: usize| {
            let to = ((chunk + 1) * TASK).min(n0.len());
            let mut acc = zero;
            for i in (chunk * TASK..to).step_by(2) {
                let e = self.rest.packs[i / 2];
                let (a0, a1) = n0[i].deinterleave(n0[i + 1]);
                let (b0, b1) = n1[i].deinterleave(n1[i + 1]);
                let (c0, c1) = d0[i].deinterleave(d0[i + 1]);
                let (f0, f1) = d1[i].deinterleave(d1[i + 1]);
                acc[0] += e * (a0 * f0 + b0 * c0);
                let (a2, b2, c2, f2) = (a1 + a1 - a0, b1 + b1 - b0, c1 + c1 - c0, f1 + f1 - f0);
                acc[1] += e * (a2 * f2 + b2 * c2);
                acc[2] += e;
            }
            acc
        };
        let add = |a: [PackedQM31; 3], b: [PackedQM31; 3]| [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
        let sums = (0..n0.len().div_ceil(TASK)).into_par_iter().map(task).reduce(|| zero, add).map(|s| s.pointwise_sum());
        let beyond = self.mu * (ONE - sums[2]);
        [sums[0] + beyond, sums[1] + beyond]
    }

    fn round_small(&mut self) -> [QM31; 2] {
        self.rest = drop_low(&self.rest);
        let rest = self.rest.to_host();
        let parts = self.host();
        [0u32, 2].map(|x| {
            rest.iter().enumerate().fold(ZERO, |acc, (i, &e)| {
                let v = |k: usize| {
                    let (a, b) = (parts[k][2 * i], parts[k][2 * i + 1]);
                    if x == 0 { a } else { b + b - a }
                };
                acc + e * (v(0) * v(3) + v(1) * v(2))
            })
        })
    }

    pub(super) fn end(mut self, r: QM31) -> [QM31; 4] {
        self.bind(r);
        let [n0, n1, d0, d1] = self.host().map(|p| p[0]);
        [n0, n1 - self.mu * d1, d0, d1]
    }
}
