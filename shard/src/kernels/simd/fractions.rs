//! LogUp layers, 16 fractions at a time: leaves, inner nodes and their parents.
//!
//! The constant 0/1 leaves beyond the last table are never stored.

use obelysk_protocol::field::{M31, ONE, QM31, ZERO};
use rayon::prelude::*;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

use super::SimdExt;

/// Pairs of packs one task handles.
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

/// A pack of numerators: of leaves in the base field, whose products cost a quarter.
pub(super) trait Numerator: Copy + Send + Sync {
    /// Zeros.
    fn none() -> Self;
    /// Even and odd elements of two neighbouring packs.
    fn split(self, other: Self) -> (Self, Self);
    /// `2 other - self`: the line through self at 0 and other at 1, at 2.
    fn at_two(self, other: Self) -> Self;
    /// `self + r (other - self)`.
    fn to(self, other: Self, r: PackedQM31) -> PackedQM31;
    /// `self d`.
    fn times(self, d: PackedQM31) -> PackedQM31;
    /// As extension elements.
    fn lift(self) -> PackedQM31;
}

impl Numerator for PackedM31 {
    fn none() -> Self {
        Self::broadcast(M31::from_u32_unchecked(0))
    }

    fn split(self, other: Self) -> (Self, Self) {
        self.deinterleave(other)
    }

    fn at_two(self, other: Self) -> Self {
        other + other - self
    }

    fn to(self, other: Self, r: PackedQM31) -> PackedQM31 {
        r * (other - self) + self
    }

    fn times(self, d: PackedQM31) -> PackedQM31 {
        d * self
    }

    fn lift(self) -> PackedQM31 {
        PackedQM31::from_packed_m31s([self, Self::none(), Self::none(), Self::none()])
    }
}

impl Numerator for PackedQM31 {
    fn none() -> Self {
        Self::broadcast(ZERO)
    }

    fn split(self, other: Self) -> (Self, Self) {
        self.deinterleave(other)
    }

    fn at_two(self, other: Self) -> Self {
        other + other - self
    }

    fn to(self, other: Self, r: PackedQM31) -> PackedQM31 {
        self + r * (other - self)
    }

    fn times(self, d: PackedQM31) -> PackedQM31 {
        self * d
    }

    fn lift(self) -> PackedQM31 {
        self
    }
}

/// Element `i` of packs, with `fill` beyond the stored ones.
pub(super) fn element(packs: &[PackedQM31], i: usize, fill: QM31) -> QM31 {
    packs.get(i / N_LANES).map_or(fill, |p| p.to_array()[i % N_LANES])
}

impl Fractions {
    /// Numerators and denominators, those beyond the stored ones included.
    pub(super) fn host(&self) -> (Vec<QM31>, Vec<QM31>) {
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
        let (num, den) = match &self.num {
            Numerators::Base(b) => sums(b, &self.den),
            Numerators::Ext(e) => sums(e, &self.den),
        };
        Self { num: Numerators::Ext(num), den, log: self.log - 1 }
    }
}

/// Neighbours added up; packs in pairs again.
fn sums<N: Numerator>(num: &[N], den: &[PackedQM31]) -> (Vec<PackedQM31>, Vec<PackedQM31>) {
    // Room for the pack that completes the last pair: growing would copy everything. unzip_into_vecs writes in place.
    let room = (den.len() / 2).next_multiple_of(2);
    let (mut sums, mut products) = (Vec::with_capacity(room), Vec::with_capacity(room));
    num.par_chunks_exact(2)
        .zip(den.par_chunks_exact(2))
        .with_min_len(TASK)
        .map(|(n, d)| {
            let (n0, n1) = n[0].split(n[1]);
            let (d0, d1) = d[0].deinterleave(d[1]);
            (n0.times(d1) + n1.times(d0), d0 * d1)
        })
        .unzip_into_vecs(&mut sums, &mut products);
    sums.resize(room, PackedQM31::broadcast(ZERO));
    products.resize(room, PackedQM31::broadcast(ONE));
    (sums, products)
}
