//! Int8 rows combined by extension elements, and their inner products with one: exact integer matrix products.
//!
//! Int8 rows never become field elements. The 31 bits of every coordinate are written in digits that the processor's
//! integer instructions take, digits times weights are summed exactly, and each sum is joined and reduced once. The
//! three kernels differ in digits and instructions only, so their results are the same bytes; the processor decides
//! once, at run time, which one is used.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use super::SimdExt;
use super::gkr::eq;
use crate::kernels::CodeShape;
use bytemuck::{cast_slice, cast_slice_mut};
use obelysk_protocol::field::{M31, P, QM31, signed};
use obelysk_protocol::verifier::code::{CodeDomain, double_x};
use portable::Portable;
use rayon::prelude::*;
use stwo::prover::backend::simd::m31::{N_LANES, PackedM31};
use stwo::prover::backend::simd::qm31::PackedQM31;

/// One coordinate of 16 neighbours.
type Lanes = [u32; N_LANES];
/// 16 neighbours, coordinate by coordinate: the layout of a packed extension element.
type Pack = [Lanes; 4];

/// Rows combined before a sum is reduced. Digits below 2^8 times bytes stay below 2^15, so 2^16 terms fit 32 bits; fewer
/// make several tasks of a tall matrix.
const ROWS: usize = 1 << 12;
/// Columns one task combines at least and at most: long runs of every row, sums still in the second-level cache.
const COLUMNS: (usize, usize) = (1 << 10, 1 << 12);
/// Tasks wanted of one row.
const TASKS: usize = 8;
/// Positions of a slot multiplied before a sum leaves 32 bits; their digits stay in the second-level cache.
const POSITIONS: usize = 1 << 15;
/// Slots of one task, while a slot's digits fit the second-level cache and when they do not.
const SLOTS: (usize, usize) = (16, 64);
/// Weights below which a task is not worth a thread.
const TASK: usize = 1 << 17;

/// A multiple of p above every joined sum: `2^12 · 2^7 · 2^31 = 2^50` in absolute value.
const BIAS: i64 = (P as i64) << 21;

/// An exact int8 matrix product by one kind of instructions.
trait Kernel: Copy + Sync {
    /// Digits of a few neighbouring rows' coefficients.
    type Rows: Sync;
    /// Digits of a few neighbouring positions.
    type Positions: Send + Sync;
    /// Buffers of [`Self::combine`], kept between calls.
    type Scratch: Default + Send;

    /// Coefficients by their canonical coordinates.
    fn rows(self, coefficients: &[[u32; 4]]) -> Vec<Self::Rows>;
    /// `out[col] = sum_row coefficient[row]·rows[row][col]`, lanes in `[0, p]`, those past the last column zero; at most
    /// [`ROWS`] rows of equal length.
    fn combine(self, scratch: &mut Self::Scratch, rows: &[&[i8]], digits: &[Self::Rows], out: &mut [Pack]);
    /// At most [`POSITIONS`] positions.
    fn positions(self, e: &[Pack]) -> Vec<Self::Positions>;
    /// Adds `<slot, e>` to `out`, an integer congruent to it, below 2^53 in absolute value.
    fn partials(self, slots: &[&[i8]], digits: &[Self::Positions], out: &mut [[i64; 4]]);
}

/// The instructions in use.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Path {
    /// AVX-512 VNNI: four products a lane.
    #[cfg(target_arch = "x86_64")]
    Vnni(vnni::Vnni),
    /// AVX2: two products a lane.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    /// 64-bit sums in plain Rust.
    Portable(Portable),
}

impl Path {
    /// What this processor has, fastest first.
    pub(crate) fn all() -> Vec<Self> {
        let portable = Self::Portable(Portable);
        #[cfg(target_arch = "x86_64")]
        return [vnni::Vnni::new().map(Self::Vnni), avx2::Avx2::new().map(Self::Avx2), Some(portable)]
            .into_iter()
            .flatten()
            .collect();
        #[cfg(not(target_arch = "x86_64"))]
        return vec![portable];
    }

    /// The fastest.
    pub(crate) fn best() -> Self {
        Self::all().first().copied().unwrap_or(Self::Portable(Portable))
    }

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni(_) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            Self::Portable(_) => "portable",
        }
    }
}

/// `sum_row coefficients[row]·rows[row]` for int8 rows of `n` columns.
pub(crate) fn combine(path: Path, rows: &[i8], n: usize, coefficients: &[QM31]) -> SimdExt {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Vnni(k) => combine_with(k, rows, n, coefficients),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2(k) => combine_with(k, rows, n, coefficients),
        Path::Portable(k) => combine_with(k, rows, n, coefficients),
    }
}

/// `<slot, eq(point)>` of every slot of int8 rows.
pub(crate) fn partials(path: Path, rows: &[i8], point: &[QM31]) -> Vec<QM31> {
    products(path, rows, &eq(point))
}

/// `<slot, e>` of every slot of int8 rows.
fn products(path: Path, rows: &[i8], e: &SimdExt) -> Vec<QM31> {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Vnni(k) => partials_with(k, rows, e),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2(k) => partials_with(k, rows, e),
        Path::Portable(k) => partials_with(k, rows, e),
    }
}

/// Symbols of the words of int8 rows at `positions`, leaf after leaf.
///
/// A symbol is an inner product with the code's basis functions at its position. Four positions are the coordinates of one
/// extension vector, so they cost one pass over the weights.
pub(crate) fn symbols(path: Path, rows: &[i8], code: CodeShape, positions: &[usize]) -> Vec<M31> {
    let domain = CodeDomain::new(code.log_n());
    let four = |positions: &[usize]| {
        let sums = products(path, rows, &basis(&domain, code.h, positions));
        let leaf = |k: usize| sums.iter().map(move |s| s.to_m31_array()[k]);
        (0..positions.len()).flat_map(leaf).collect::<Vec<_>>()
    };
    positions.chunks(4).flat_map(four).collect()
}

/// Values of the `2^h` basis functions at up to four positions, one per coordinate: index bit 0 multiplies by `y`, bit `k`
/// by the x-coordinate doubled `k - 1` times.
fn basis(domain: &CodeDomain, h: u32, positions: &[usize]) -> SimdExt {
    let mut factors = vec![[M31::from_u32_unchecked(0); 4]; h as usize];
    for (k, &position) in positions.iter().enumerate() {
        let (mut x, y) = domain.point(position);
        for (bit, factor) in factors.iter_mut().enumerate() {
            factor[k] = if bit == 0 { y } else { x };
            x = if bit == 0 { x } else { double_x(x) };
        }
    }
    let (low, high) = factors.split_at(factors.len().min(N_LANES.ilog2() as usize));
    let mut first = vec![[M31::from_u32_unchecked(1); 4]];
    for f in low {
        let odd: Vec<[M31; 4]> = first.iter().map(|v| std::array::from_fn(|k| v[k] * f[k])).collect();
        first.extend(odd);
    }
    let mut out = SimdExt::from_host(&first.into_iter().map(QM31::from_m31_array).collect::<Vec<_>>());
    for f in high {
        let f = f.map(PackedM31::broadcast);
        let odd = |p: &PackedQM31| {
            let [a, b, c, d] = p.into_packed_m31s();
            PackedQM31::from_packed_m31s([a * f[0], b * f[1], c * f[2], d * f[3]])
        };
        let odd: Vec<PackedQM31> = out.packs.par_iter().with_min_len(TASK / N_LANES).map(odd).collect();
        out.packs.extend(odd);
    }
    out.len = 1 << h;
    out
}

fn combine_with<K: Kernel>(k: K, rows: &[i8], n: usize, coefficients: &[QM31]) -> SimdExt {
    let width = (n / TASKS).clamp(COLUMNS.0, COLUMNS.1).next_multiple_of(N_LANES);
    let part = |(rows, coefficients): (&[i8], &[QM31])| {
        let c: Vec<[u32; 4]> = coefficients.iter().map(|c| c.to_m31_array().map(|v| v.0)).collect();
        let digits = k.rows(&c);
        let stacked: Vec<&[i8]> = rows.chunks_exact(n).take(c.len()).collect();
        let mut out = SimdExt::zeros(n);
        let packs: &mut [Pack] = cast_slice_mut(&mut out.packs);
        packs.par_chunks_mut(width / N_LANES).enumerate().for_each_init(K::Scratch::default, |scratch, (chunk, out)| {
            let columns = chunk * width..n.min((chunk + 1) * width);
            let rows: Vec<&[i8]> = stacked.iter().map(|row| &row[columns.clone()]).collect();
            k.combine(scratch, &rows, &digits, out);
        });
        out
    };
    let add = |mut a: SimdExt, b: SimdExt| {
        a.packs.iter_mut().zip(&b.packs).for_each(|(a, &b)| *a += b);
        a
    };
    rows.par_chunks(ROWS * n).zip(coefficients.par_chunks(ROWS)).map(part).reduce_with(add).unwrap_or_else(|| SimdExt::zeros(n))
}

fn partials_with<K: Kernel>(k: K, rows: &[i8], e: &SimdExt) -> Vec<QM31> {
    let packs: &[Pack] = cast_slice(&e.packs);
    let digits: Vec<Vec<K::Positions>> = packs.par_chunks(POSITIONS / N_LANES).map(|e| k.positions(e)).collect();
    let slots: Vec<&[i8]> = rows.chunks_exact(e.len).collect();
    let together = if e.len <= POSITIONS { SLOTS.0 } else { SLOTS.1 };
    let mut sums = vec![[0i64; 4]; slots.len()];
    let tasks = sums.par_chunks_mut(together).zip(slots.par_chunks(together)).with_min_len(TASK.div_ceil(together * e.len));
    tasks.for_each(|(sums, slots)| {
        for (digits, first) in digits.iter().zip((0..e.len).step_by(POSITIONS)) {
            let parts: Vec<&[i8]> = slots.iter().map(|s| &s[first..e.len.min(first + POSITIONS)]).collect();
            // Codes have at most 2^24 positions, hence 2^9 parts, which 64 bits hold.
            k.partials(&parts, digits, sums);
        }
    });
    sums.into_iter().map(|s| QM31::from_m31_array(s.map(signed))).collect()
}

/// The weights after the last whole register, and zeros.
fn padded<const N: usize>(rest: &[i8]) -> [i8; N] {
    let mut out = [0; N];
    out[..rest.len()].copy_from_slice(rest);
    out
}

/// Coordinates as integers in `(-2^30, 2^30)`.
fn centred(c: u32) -> i32 {
    if c > P / 2 { c.wrapping_sub(P).cast_signed() } else { c.cast_signed() }
}

/// A sum below [`BIAS`] in absolute value, mod p.
#[inline]
fn reduced(sum: i64) -> u32 {
    let positive = (sum + BIAS).cast_unsigned();
    let r = (positive & u64::from(P)) as u32 + (positive >> 31) as u32;
    r.min(r.wrapping_sub(P))
}
