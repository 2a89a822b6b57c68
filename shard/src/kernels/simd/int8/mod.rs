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
use stwo::prover::backend::simd::m31::N_LANES;

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
/// A symbol is an inner product with the code's basis functions at its position, and these are products of one function of
/// the low index bits and one of the high. Four positions are the coordinates of one extension vector of the low functions;
/// the vectors of all positions stay in the caches, so that the weights are read from memory once.
pub(crate) fn symbols(path: Path, rows: &[i8], code: CodeShape, positions: &[usize]) -> Vec<M31> {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Vnni(k) => symbols_with(k, rows, code, positions),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2(k) => symbols_with(k, rows, code, positions),
        Path::Portable(k) => symbols_with(k, rows, code, positions),
    }
}

fn symbols_with<K: Kernel>(k: K, rows: &[i8], code: CodeShape, positions: &[usize]) -> Vec<M31> {
    let domain = CodeDomain::new(code.log_n());
    let low = code.h.min(POSITIONS.ilog2());
    let factors: Vec<Vec<M31>> = positions.iter().map(|&p| factors(&domain, code.h, p)).collect();
    let digits = |four: &[Vec<M31>]| k.positions(cast_slice(&basis(four, low as usize).packs));
    let digits: Vec<Vec<K::Positions>> = factors.par_chunks(4).map(digits).collect();
    let high: Vec<Vec<M31>> = factors.iter().map(|f| products_of(&f[low as usize..])).collect();
    let slots: Vec<&[i8]> = rows.chunks_exact(1 << low).collect();
    // Parts of symbols, slot after slot and in it group after group of four positions.
    let groups = digits.len();
    let mut parts = vec![[0i64; 4]; slots.len() * groups];
    let tasks = parts.par_chunks_mut((SLOTS.0 * groups).max(1)).zip(slots.par_chunks(SLOTS.0));
    tasks.with_min_len(TASK.div_ceil(SLOTS.0 << low)).for_each(|(parts, slots)| {
        let mut sums = vec![[0i64; 4]; slots.len()];
        for (group, digits) in digits.iter().enumerate() {
            sums.fill([0; 4]);
            k.partials(slots, digits, &mut sums);
            parts.iter_mut().skip(group).step_by(groups).zip(&sums).for_each(|(part, &sum)| *part = sum);
        }
    });
    let symbol = |position: usize, slots: &[[i64; 4]]| {
        let part = |p: &[[i64; 4]]| signed(p[position / 4][position % 4]);
        slots.chunks_exact(groups).zip(&high[position]).map(|(p, &h)| part(p) * h).sum::<M31>()
    };
    let row = groups << (code.h - low);
    let leaf = |position: usize| parts.chunks_exact(row.max(1)).map(move |slots| symbol(position, slots)).collect::<Vec<_>>();
    (0..positions.len()).into_par_iter().flat_map_iter(leaf).collect()
}

/// What index bit `k` multiplies a basis function by at a position: `y` for bit 0, else the x-coordinate doubled `k - 1`
/// times.
fn factors(domain: &CodeDomain, h: u32, position: usize) -> Vec<M31> {
    let (mut x, y) = domain.point(position);
    let mut out = vec![y];
    while out.len() < h as usize {
        out.push(x);
        x = double_x(x);
    }
    out.truncate(h as usize);
    out
}

/// Products of every subset of factors, bit `k` of the index for factor `k`.
fn products_of(factors: &[M31]) -> Vec<M31> {
    let mut out = vec![M31::from_u32_unchecked(1)];
    for &f in factors {
        let odd: Vec<M31> = out.iter().map(|&v| v * f).collect();
        out.extend(odd);
    }
    out
}

/// Values of the first `2^low` basis functions at up to four positions, one per coordinate.
fn basis(positions: &[Vec<M31>], low: usize) -> SimdExt {
    let four: [Vec<M31>; 4] = std::array::from_fn(|k| positions.get(k).map_or_else(Vec::new, |f| products_of(&f[..low])));
    let at = |i: usize| QM31::from_m31_array(std::array::from_fn(|k| four[k].get(i).copied().unwrap_or_default()));
    SimdExt::from_host(&(0..1usize << low).map(at).collect::<Vec<_>>())
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
