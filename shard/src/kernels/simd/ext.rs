//! Vectors of extension elements, 16 per pack: sumcheck rounds, binding, word folds.

use super::encode::{self, Tables};
use crate::kernels::CodeShape;
use obelysk_protocol::field::{M31, ONE, QM31, ZERO};
use rayon::prelude::*;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

/// Packs one task handles.
const TASK: usize = 256;

/// A vector of extension elements; lanes past `len` are zero.
#[derive(Clone, Debug)]
pub struct SimdExt {
    pub(super) packs: Vec<PackedQM31>,
    pub(super) len: usize,
}

impl SimdExt {
    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Self { packs: vec![PackedQM31::broadcast(ZERO); len.div_ceil(N_LANES)], len }
    }

    /// Packs a slice.
    #[must_use]
    pub fn from_host(values: &[QM31]) -> Self {
        let pack = |chunk: &[QM31]| {
            let mut lanes = [ZERO; N_LANES];
            lanes[..chunk.len()].copy_from_slice(chunk);
            PackedQM31::from_array(lanes)
        };
        Self { packs: values.chunks(N_LANES).map(pack).collect(), len: values.len() }
    }

    /// Canonical elements.
    #[must_use]
    pub fn to_host(&self) -> Vec<QM31> {
        let mut out: Vec<QM31> = self.packs.iter().flat_map(PackedQM31::to_array).collect();
        out.truncate(self.len);
        out
    }

    /// Whether pairs of packs exist, so that neighbours can be split by lanes.
    pub(super) fn is_small(&self) -> bool {
        self.len < 2 * N_LANES
    }

    /// Element `i`, canonical.
    pub(super) fn at(&self, i: usize) -> QM31 {
        self.packs[i / N_LANES].to_array()[i % N_LANES]
    }
}

/// `out[i + len(low)·j] = low[i]·high[j]`, `low` a multiple of 16 long.
pub(super) fn outer(low: &[QM31], high: &[QM31]) -> SimdExt {
    let low = SimdExt::from_host(low);
    let mut out = SimdExt::zeros(low.len * high.len());
    out.packs.par_chunks_mut(low.packs.len()).zip(high).for_each(|(out, &h)| {
        let h = PackedQM31::broadcast(h);
        for (o, &l) in out.iter_mut().zip(&low.packs) {
            *o = l * h;
        }
    });
    out
}

/// `sum_i weight_i·vector_i`.
pub(super) fn weighted_sum(terms: &[(&SimdExt, QM31)]) -> SimdExt {
    let mut out = SimdExt::zeros(terms.first().map_or(0, |(v, _)| v.len));
    out.packs.par_chunks_mut(TASK).enumerate().for_each(|(chunk, out)| {
        for (v, w) in terms {
            let w = PackedQM31::broadcast(*w);
            for (o, &x) in out.iter_mut().zip(&v.packs[chunk * TASK..]) {
                *o += x * w;
            }
        }
    });
    out
}

/// `[s(0), s(2)]`; both vectors have at least two packs.
pub(super) fn product_round(f: &SimdExt, k: &SimdExt) -> [QM31; 2] {
    let zero = [PackedQM31::broadcast(ZERO); 2];
    let task = |(f, k): (&[PackedQM31], &[PackedQM31])| {
        f.chunks_exact(2).zip(k.chunks_exact(2)).fold(zero, |[s0, s2], (f, k)| {
            let (f0, f1) = f[0].deinterleave(f[1]);
            let (k0, k1) = k[0].deinterleave(k[1]);
            [s0 + f0 * k0, s2 + (f1 + f1 - f0) * (k1 + k1 - k0)]
        })
    };
    let add = |a: [PackedQM31; 2], b: [PackedQM31; 2]| [a[0] + b[0], a[1] + b[1]];
    f.packs.par_chunks(TASK).zip(k.packs.par_chunks(TASK)).map(task).reduce(|| zero, add).map(|s| s.pointwise_sum())
}

/// `[s(0), s(1), s(2)]`; both vectors have at least two packs.
pub(super) fn product_round_full(f: &SimdExt, k: &SimdExt) -> [QM31; 3] {
    let zero = [PackedQM31::broadcast(ZERO); 3];
    let task = |(f, k): (&[PackedQM31], &[PackedQM31])| {
        f.chunks_exact(2).zip(k.chunks_exact(2)).fold(zero, |[s0, s1, s2], (f, k)| {
            let (f0, f1) = f[0].deinterleave(f[1]);
            let (k0, k1) = k[0].deinterleave(k[1]);
            [s0 + f0 * k0, s1 + f1 * k1, s2 + (f1 + f1 - f0) * (k1 + k1 - k0)]
        })
    };
    let add = |a: [PackedQM31; 3], b: [PackedQM31; 3]| [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
    f.packs.par_chunks(TASK).zip(k.packs.par_chunks(TASK)).map(task).reduce(|| zero, add).map(|s| s.pointwise_sum())
}

/// `(1 - r)·v[2i] + r·v[2i+1]`; at least two packs.
pub(super) fn bind(v: &SimdExt, r: QM31) -> SimdExt {
    let r = PackedQM31::broadcast(r);
    let fold = |p: &[PackedQM31]| {
        let (even, odd) = p[0].deinterleave(p[1]);
        even + r * (odd - even)
    };
    SimdExt { packs: v.packs.par_chunks_exact(2).with_min_len(TASK).map(fold).collect(), len: v.len / 2 }
}

/// Encodes coordinate by coordinate.
pub(super) fn encode(tables: &Tables, shape: CodeShape, message: &SimdExt) -> SimdExt {
    let words: Vec<Vec<PackedM31>> = (0..4)
        .into_par_iter()
        .map(|k| {
            let src: Vec<PackedM31> = message.packs.iter().map(|p| p.into_packed_m31s()[k]).collect();
            let mut dst = encode::aligned(1 << shape.log_n());
            encode::encode_row(tables, shape, &src, &mut dst);
            dst
        })
        .collect();
    let join = |i: usize| PackedQM31::from_packed_m31s(std::array::from_fn(|k| words[k][i]));
    SimdExt { packs: (0..words[0].len()).map(join).collect(), len: 1 << shape.log_n() }
}

/// One fold: `((1 - α)(p + n) + α (p - n) / t) / 2`; at least two packs.
pub(super) fn fold_word(tables: &Tables, word: &SimdExt, round: u32, alpha: QM31) -> SimdExt {
    let half = M31::from_u32_unchecked(1 << 30);
    let even = PackedQM31::broadcast((ONE - alpha) * half);
    let odd = PackedQM31::broadcast(alpha * half);
    let fold = |(p, t): (&[PackedQM31], &[M31])| {
        let mut lanes = [M31::from_u32_unchecked(0); N_LANES];
        lanes.copy_from_slice(t);
        let (p, n) = p[0].deinterleave(p[1]);
        (p + n) * even + (p - n) * PackedM31::from_array(lanes) * odd
    };
    let pairs = word.packs.par_chunks_exact(2).zip(tables.inverse[round as usize].par_chunks_exact(N_LANES));
    SimdExt { packs: pairs.with_min_len(TASK).map(fold).collect(), len: word.len / 2 }
}
