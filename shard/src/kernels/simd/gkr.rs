//! A LogUp layer in its sumcheck, 16 fractions at a time.
//!
//! What keeps it near the speed of the field products: binding a variable and evaluating the next round is one pass over
//! memory, into two buffers that take turns; the first two rounds read the layer itself, so that it is never laid out anew;
//! `n1 + mu d1` is formed once, so a round costs three products per evaluation; eq weights are an outer product of two short
//! vectors (Dao and Thaler 2024, "More optimizations to sum-check proving", §3); and of the constant 0/1 leaves beyond the
//! last table only the total weight is used: their share of a round is `mu (1 - sum of the stored eq weights)`.

use super::SimdExt;
use super::ext::outer;
use super::fractions::{Fractions, Numerator, Numerators, element};
use obelysk_protocol::field::{ONE, QM31, ZERO, eq_vector, fold};
use rayon::prelude::*;
use stwo::prover::backend::simd::m31::N_LANES;
use stwo::prover::backend::simd::qm31::PackedQM31;

/// Packs of [`drop_low`] one task handles; even.
const TASK: usize = 256;
/// log2 of the weights of one task: 256 packs, whose layer packs stay in the second-level cache.
const BLOCK_LOG: usize = 12;

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

fn splat(v: QM31) -> PackedQM31 {
    PackedQM31::broadcast(v)
}

/// n0, n1 + mu d1, d0, d1 at 16 neighbours.
type Four = [PackedQM31; 4];
/// The same of many.
type Parts = [Vec<PackedQM31>; 4];

/// A layer in its sumcheck. Stored packs come in pairs; beyond them n0 = 0, n1 + mu d1 = mu, d0 = d1 = 1.
pub struct Layer {
    /// The layer itself, until a variable is bound.
    source: Option<Fractions>,
    parts: Parts,
    /// Buffers of the round before.
    spare: Parts,
    /// Where the layer is claimed; its first `bound` coordinates have been replaced by challenges.
    point: Vec<QM31>,
    bound: usize,
    mu: QM31,
}

/// Weights of the variables after the current one: `low[i] high[j]` at `i + low.len() j`.
struct Weights {
    low: Vec<PackedQM31>,
    high: Vec<QM31>,
}

impl Weights {
    fn new(point: &[QM31]) -> Self {
        let (low, high) = point.split_at(point.len().min(BLOCK_LOG));
        Self { low: eq(low).packs, high: eq_vector(high) }
    }

    /// Sum of the first `packs` packs.
    fn sum(&self, packs: usize) -> QM31 {
        let (whole, rest) = (packs / self.low.len(), packs % self.low.len());
        let blocks = self.high[..whole].iter().fold(ZERO, |sum, &h| sum + h);
        let last = self.low[..rest].iter().fold(splat(ZERO), |sum, &e| sum + e).pointwise_sum();
        blocks + self.high.get(whole).map_or(ZERO, |&h| h * last)
    }
}

impl Layer {
    pub(super) fn start(source: Fractions, point: &[QM31], mu: QM31) -> Self {
        let empty = || std::array::from_fn(|_| Vec::new());
        let mut layer = Self { source: None, parts: empty(), spare: empty(), point: point.to_vec(), bound: 0, mu };
        if layer.is_small() {
            let (n, d) = source.host();
            let every = |v: &[QM31], odd: usize| v.iter().skip(odd).step_by(2).copied().collect::<Vec<_>>();
            let (d0, d1) = (every(&d, 0), every(&d, 1));
            let n1 = every(&n, 1).iter().zip(&d1).map(|(&n, &d)| n + mu * d).collect();
            layer.set_host([every(&n, 0), n1, d0, d1]);
        } else {
            layer.source = Some(source);
        }
        layer
    }

    /// Evaluations at 0 and 2 of the next variable, after binding the last one.
    pub(super) fn round(&mut self, r: Option<QM31>) -> [QM31; 2] {
        let large = !self.is_small();
        if r.is_some() {
            self.bound += 1;
        }
        match (r, large) {
            (Some(r), true) => return self.bind_and_evaluate(r),
            (Some(r), false) => self.bind_host(r),
            (None, _) => {}
        }
        match &self.source {
            Some(f) => match &f.num {
                Numerators::Base(n) => self.evaluate(n, &f.den),
                Numerators::Ext(n) => self.evaluate(n, &f.den),
            },
            None => self.evaluate_host(),
        }
    }

    pub(super) fn end(mut self, r: QM31) -> [QM31; 4] {
        // At one variable the layer is small.
        self.bound += 1;
        self.bind_host(r);
        let [n0, n1, d0, d1] = self.host().map(|p| p[0]);
        [n0, n1 - self.mu * d1, d0, d1]
    }

    fn vars(&self) -> usize {
        self.point.len() - self.bound
    }

    /// Whether binding would leave less than a pair of packs.
    fn is_small(&self) -> bool {
        1usize << self.vars() < 4 * N_LANES
    }

    fn fill(&self) -> [QM31; 4] {
        [ZERO, self.mu, ONE, ONE]
    }

    /// Round values from the weighted sums over the first `packs` packs of weights.
    fn complete(&self, weights: &Weights, packs: usize, sums: [QM31; 2]) -> [QM31; 2] {
        let beyond = self.mu * (ONE - weights.sum(packs));
        sums.map(|s| s + beyond)
    }

    /// The first round, from the layer itself.
    fn evaluate<N: Numerator>(&self, num: &[N], den: &[PackedQM31]) -> [QM31; 2] {
        let weights = Weights::new(&self.point[1..]);
        let mu = splat(self.mu);
        // Four packs of the layer are two of its parts, hence one of weights.
        let block = 4 * weights.low.len();
        let tasks = num.par_chunks(block).zip(den.par_chunks(block)).zip(&weights.high);
        let sums = tasks.map(|((num, den), &h)| {
            let mut acc = [splat(ZERO); 2];
            for ((n, d), &e) in num.chunks(4).zip(den.chunks(4)).zip(&weights.low) {
                let ([n0, n1], [d0, d1]) = (halves(n, N::none()), halves(d, splat(ONE)));
                let (n0, d0, d1) = (n0[0].split(n0[1]), d0[0].deinterleave(d0[1]), d1[0].deinterleave(d1[1]));
                let n1 = n1[0].split(n1[1]);
                let n1 = (n1.0.lift() + mu * d1.0, n1.1.lift() + mu * d1.1);
                acc[0] += e * (n0.0.times(d1.0) + n1.0 * d0.0);
                let (n0, n1, d0, d1) = (n0.0.at_two(n0.1), n1.0.at_two(n1.1), d0.0.at_two(d0.1), d1.0.at_two(d1.1));
                acc[1] += e * (n0.times(d1) + n1 * d0);
            }
            acc.map(|a| h * a.pointwise_sum())
        });
        let sums = tasks_sum(sums);
        self.complete(&weights, num.len().div_ceil(4), sums)
    }

    /// Binds the lowest variable and evaluates the next one in the same pass.
    fn bind_and_evaluate(&mut self, r: QM31) -> [QM31; 2] {
        let weights = Weights::new(&self.point[self.bound + 1..]);
        let stored = self.source.as_ref().map_or(self.parts[0].len(), |f| f.den.len() / 2);
        let mut out = std::mem::take(&mut self.spare);
        for part in &mut out {
            resize(part, stored.div_ceil(2).next_multiple_of(2));
        }
        let sums = match &self.source {
            Some(f) => match &f.num {
                Numerators::Base(n) => self.pass(&weights, &mut out, &Leaves::new(n, &f.den, self.mu, r)),
                Numerators::Ext(n) => self.pass(&weights, &mut out, &Leaves::new(n, &f.den, self.mu, r)),
            },
            None => self.pass(&weights, &mut out, &Bound { parts: &self.parts, fill: self.fill().map(splat), r: splat(r) }),
        };
        let packs = out[0].len() / 2;
        self.spare = std::mem::replace(&mut self.parts, out);
        self.source = None;
        self.complete(&weights, packs, sums)
    }

    /// Writes the bound packs and sums up the round.
    fn pass(&self, weights: &Weights, out: &mut Parts, input: &impl Input) -> [QM31; 2] {
        // A pack of weights is a pair of packs.
        let block = 2 * weights.low.len();
        let [n0, n1, d0, d1] = out;
        let chunks = n0.par_chunks_mut(block).zip(n1.par_chunks_mut(block)).zip(d0.par_chunks_mut(block));
        let tasks = chunks.zip(d1.par_chunks_mut(block)).zip(&weights.high).enumerate();
        let sums = tasks.map(|(task, ((((n0, n1), d0), d1), &h))| {
            let mut acc = [splat(ZERO); 2];
            let pairs = n0.chunks_exact_mut(2).zip(n1.chunks_exact_mut(2)).zip(d0.chunks_exact_mut(2));
            let pairs = pairs.zip(d1.chunks_exact_mut(2)).zip(&weights.low).enumerate();
            for (i, ((((n0, n1), d0), d1), &e)) in pairs {
                let at = task * block + 2 * i;
                let (a, b) = (input.pack(at), input.pack(at + 1));
                (n0[0], n1[0], d0[0], d1[0]) = (a[0], a[1], a[2], a[3]);
                (n0[1], n1[1], d0[1], d1[1]) = (b[0], b[1], b[2], b[3]);
                let [n0, n1, d0, d1] = std::array::from_fn(|k| a[k].deinterleave(b[k]));
                acc[0] += e * (n0.0 * d1.0 + n1.0 * d0.0);
                let [n0, n1, d0, d1] = [n0, n1, d0, d1].map(|(even, odd)| even.at_two(odd));
                acc[1] += e * (n0 * d1 + n1 * d0);
            }
            acc.map(|a| h * a.pointwise_sum())
        });
        tasks_sum(sums)
    }

    fn host(&self) -> [Vec<QM31>; 4] {
        let (fill, size) = (self.fill(), 1usize << self.vars());
        std::array::from_fn(|k| (0..size).map(|i| element(&self.parts[k], i, fill[k])).collect())
    }

    fn set_host(&mut self, parts: [Vec<QM31>; 4]) {
        self.parts = parts.map(|p| SimdExt::from_host(&p).packs);
    }

    /// Binds the variable that was just counted as bound.
    fn bind_host(&mut self, r: QM31) {
        self.bound -= 1;
        let parts = self.host();
        self.bound += 1;
        self.set_host(parts.map(|p| fold(&p, r)));
    }

    fn evaluate_host(&self) -> [QM31; 2] {
        let (rest, parts) = (eq_vector(&self.point[self.bound + 1..]), self.host());
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
}

/// Makes a buffer `len` long without looking at what it holds; one that is used again only shrinks.
fn resize(part: &mut Vec<PackedQM31>, len: usize) {
    if part.len() < len {
        *part = bytemuck::zeroed_vec(len);
    }
    part.truncate(len);
}

fn tasks_sum(sums: impl ParallelIterator<Item = [QM31; 2]>) -> [QM31; 2] {
    sums.reduce(|| [ZERO; 2], |a, b| [a[0] + b[0], a[1] + b[1]])
}

/// Even and odd elements of up to four neighbouring packs, with `fill` for those that are not there.
#[inline]
fn halves<N: Numerator>(packs: &[N], fill: N) -> [[N; 2]; 2] {
    let at = |i: usize| packs.get(i).copied().unwrap_or(fill);
    let ((e0, o0), (e1, o1)) = (at(0).split(at(1)), at(2).split(at(3)));
    [[e0, e1], [o0, o1]]
}

/// What a pass binds.
trait Input: Sync {
    /// Bound pack `i`.
    fn pack(&self, i: usize) -> Four;
}

/// Parts that are stored.
struct Bound<'a> {
    parts: &'a Parts,
    fill: Four,
    r: PackedQM31,
}

impl Input for Bound<'_> {
    #[inline]
    fn pack(&self, i: usize) -> Four {
        std::array::from_fn(|k| match self.parts[k].get(2 * i..2 * i + 2) {
            Some(p) => line(p[0].deinterleave(p[1]), self.r),
            // Pairs are whole, so nothing of this one is stored; what is constant stays so.
            None => self.fill[k],
        })
    }
}

/// A layer whose lowest variable is bound for the first time.
struct Leaves<'a, N> {
    num: &'a [N],
    den: &'a [PackedQM31],
    mu: PackedQM31,
    r: PackedQM31,
}

impl<'a, N: Numerator> Leaves<'a, N> {
    fn new(num: &'a [N], den: &'a [PackedQM31], mu: QM31, r: QM31) -> Self {
        Self { num, den, mu: splat(mu), r: splat(r) }
    }
}

impl<N: Numerator> Input for Leaves<'_, N> {
    #[inline]
    fn pack(&self, i: usize) -> Four {
        let at = 4 * i;
        let (num, den) = (self.num.get(at..).unwrap_or(&[]), self.den.get(at..).unwrap_or(&[]));
        let ([n0, n1], [d0, d1]) = (halves(&num[..num.len().min(4)], N::none()), halves(&den[..den.len().min(4)], splat(ONE)));
        let bound = |p: [N; 2]| {
            let (even, odd) = p[0].split(p[1]);
            even.to(odd, self.r)
        };
        let [d0, d1] = [d0, d1].map(|d| line(d[0].deinterleave(d[1]), self.r));
        [bound(n0), bound(n1) + self.mu * d1, d0, d1]
    }
}

/// `even + r (odd - even)`.
#[inline]
fn line((even, odd): (PackedQM31, PackedQM31), r: PackedQM31) -> PackedQM31 {
    even + r * (odd - even)
}
