//! AVX-512 VNNI: one instruction multiplies four unsigned digits with four weights in each of 16 lanes and adds them up.
//!
//! The digits are the 16 bytes of a canonical element, so nothing is centred and nothing corrected. A product is below
//! 2^15 in absolute value: 2^16 of them fit the 32-bit sums, and no instruction here saturates.
//!
//! Intrinsics without pointers are safe inside functions that enable their features; what is left unsafe is the way in,
//! which a value of [`Vnni`] vouches for, and the prefetch. Closures given to iterators would not be compiled with the
//! features, and registers would be spilled around any path that calls; hence the plain loops over whole registers.

use super::{BIAS, COLUMNS, Kernel, Pack, padded};
use bytemuck::{cast, cast_slice, pod_read_unaligned};
use obelysk_protocol::field::P;
use std::arch::x86_64::*;
use stwo::prover::backend::simd::m31::N_LANES;

/// Digits of an element: byte `k % 4` of coordinate `k / 4`.
const DIGITS: usize = 16;
/// Weights of a register.
const WIDTH: usize = 64;
/// Rows that one instruction multiplies.
const GROUP: usize = 4;
/// Groups of rows packed at a time.
const GROUPS: usize = 16;
/// Registers from one piece of packed columns to the next: odd, so that pieces do not fall on the same cache sets.
const STRIDE: usize = GROUPS + 1;
/// Digits multiplied with two registers at a time: 16 sums hide the instruction's latency.
const HALF: usize = DIGITS / 2;
/// Slots, and digits of positions, multiplied at a time: 16 sums again.
const QUAD: usize = 4;
/// Registers of a slot multiplied before the next digits: a kibibyte of each slot stays in the first-level cache.
const RUN: usize = 16;

/// What one load reads.
type Register = [i8; WIDTH];
/// A row that is not there.
static NO_ROW: [Register; COLUMNS.1 / WIDTH] = [[0; WIDTH]; COLUMNS.1 / WIDTH];
/// A run of a slot that is not there.
static NO_SLOT: [Register; RUN] = [[0; WIDTH]; RUN];

/// Packed weights and sums of a task's columns.
#[derive(Default)]
pub(crate) struct Scratch {
    packed: Vec<[__m512i; STRIDE]>,
    sums: Vec<[__m512i; DIGITS]>,
}

/// Proof that the processor has the instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vnni(());

impl Vnni {
    /// `None` without AVX-512 F, BW and VNNI.
    pub(super) fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        (found && is_x86_feature_detected!("avx512vnni")).then_some(Self(()))
    }
}

#[expect(unsafe_code, reason = "functions that enable instructions can be called from others only so")]
impl Kernel for Vnni {
    type Rows = [i32; DIGITS];
    type Positions = [__m512i; DIGITS];
    type Scratch = Scratch;

    fn rows(self, coefficients: &[[u32; 4]]) -> Vec<Self::Rows> {
        coefficients.chunks(GROUP).map(row_digits).collect()
    }

    fn combine(self, scratch: &mut Scratch, rows: &[&[i8]], digits: &[Self::Rows], out: &mut [Pack]) {
        // SAFETY: a Vnni exists only where the three features were detected.
        unsafe { combine(scratch, rows, digits, out) }
    }

    fn positions(self, e: &[Pack]) -> Vec<Self::Positions> {
        e.chunks(WIDTH / N_LANES).map(position_digits).collect()
    }

    fn partials(self, slots: &[&[i8]], digits: &[Self::Positions], out: &mut [[i64; 4]]) {
        // SAFETY: as in combine.
        unsafe { partials(slots, digits, out) }
    }
}

fn digit(coordinate: u32, k: usize) -> u8 {
    coordinate.to_le_bytes()[k % 4]
}

/// Digit `k` of up to four rows, as the word to broadcast.
fn row_digits(c: &[[u32; 4]]) -> [i32; DIGITS] {
    std::array::from_fn(|k| {
        let mut bytes = [0u8; GROUP];
        for (b, c) in bytes.iter_mut().zip(c) {
            *b = digit(c[k / 4], k);
        }
        i32::from_le_bytes(bytes)
    })
}

/// Digit `k` of 64 positions.
fn position_digits(e: &[Pack]) -> [__m512i; DIGITS] {
    std::array::from_fn(|k| {
        let mut bytes = [0u8; WIDTH];
        for (out, pack) in bytes.chunks_exact_mut(N_LANES).zip(e) {
            for (b, &v) in out.iter_mut().zip(&pack[k / 4]) {
                *b = digit(v, k);
            }
        }
        cast(bytes)
    })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn load(weights: &Register) -> __m512i {
    pod_read_unaligned(cast_slice(weights))
}

/// Lines of the rows that come next.
struct Ahead<'a> {
    rows: &'a [&'a [i8]],
    at: usize,
}

impl Ahead<'_> {
    /// Brings one more line nearer. Without it a third of the time is spent waiting for rows.
    #[inline]
    #[expect(unsafe_code, reason = "the intrinsic takes a pointer")]
    fn fetch(&mut self) {
        let Some((row, later)) = self.rows.split_first() else { return };
        match row.get(self.at) {
            // SAFETY: a prefetch reads nothing that the program could see, and the address is that of a live reference.
            Some(weight) => unsafe { _mm_prefetch::<_MM_HINT_T1>(weight) },
            None => (self.rows, self.at) = (later, 0),
        }
        self.at += WIDTH;
    }
}

/// `out[4·strip + j][g]`: group `g` of rows at 16 columns of the strip, four rows of a column side by side. Lane quarter
/// `l` of register `j` holds columns `16 l + 4 j ..` of the strip's 64.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn pack(rows: &[&[i8]], out: &mut [[__m512i; STRIDE]]) {
    for (g, group) in rows.chunks(GROUP).enumerate() {
        let mut whole: [&[Register]; GROUP] = [&NO_ROW; GROUP];
        let mut rests = [[0; WIDTH]; GROUP];
        for (i, row) in group.iter().enumerate() {
            let (registers, rest) = row.as_chunks();
            (whole[i], rests[i]) = (registers, padded(rest));
        }
        let strips = group.first().map_or(0, |row| row.len() / WIDTH);
        pack_group(whole, g, &mut out[..4 * strips]);
        pack_group(rests.each_ref().map(std::slice::from_ref), g, &mut out[4 * strips..]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn pack_group(rows: [&[Register]; GROUP], g: usize, out: &mut [[__m512i; STRIDE]]) {
    for ((((out, a), b), c), d) in out.chunks_exact_mut(4).zip(rows[0]).zip(rows[1]).zip(rows[2]).zip(rows[3]) {
        let (a, b, c, d) = (load(a), load(b), load(c), load(d));
        let (ab_low, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
        out[0][g] = _mm512_unpacklo_epi16(ab_low, cd_low);
        out[1][g] = _mm512_unpackhi_epi16(ab_low, cd_low);
        out[2][g] = _mm512_unpacklo_epi16(ab_high, cd_high);
        out[3][g] = _mm512_unpackhi_epi16(ab_high, cd_high);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn combine(scratch: &mut Scratch, rows: &[&[i8]], digits: &[[i32; DIGITS]], out: &mut [Pack]) {
    let columns = rows.first().map_or(0, |r| r.len());
    let pieces = 4 * columns.div_ceil(WIDTH);
    let Scratch { packed, sums } = scratch;
    packed.resize(pieces, [_mm512_setzero_si512(); STRIDE]);
    sums.clear();
    sums.resize(pieces, [_mm512_setzero_si512(); DIGITS]);
    let mut blocks = rows.chunks(GROUPS * GROUP).zip(digits.chunks(GROUPS)).peekable();
    while let Some((block, digits)) = blocks.next() {
        pack(block, packed);
        // As many lines as there are steps of the products below.
        let mut ahead = Ahead { rows: blocks.peek().map_or(&[], |b| b.0), at: 0 };
        for (weights, sums) in packed.chunks_exact(2).zip(sums.chunks_exact_mut(2)) {
            multiply(weights, digits, 0, sums, &mut ahead);
            multiply(weights, digits, HALF, sums, &mut ahead);
        }
    }
    for (strip, out) in sums.chunks_exact(4).zip(out.chunks_mut(4)) {
        for (j, sums) in strip.iter().enumerate() {
            for coordinate in 0..4 {
                let quarters: [[u32; 4]; 4] = cast(joined(&sums[4 * coordinate..4 * coordinate + 4]));
                for (out, quarter) in out.iter_mut().zip(quarters) {
                    out[coordinate][4 * j..4 * j + 4].copy_from_slice(&quarter);
                }
            }
        }
    }
}

/// Adds the products of two pieces of columns with the digits from `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply(
    weights: &[[__m512i; STRIDE]],
    digits: &[[i32; DIGITS]],
    first: usize,
    sums: &mut [[__m512i; DIGITS]],
    ahead: &mut Ahead<'_>,
) {
    let [w0, w1] = weights else { return };
    let mut acc = [[_mm512_setzero_si512(); 2]; HALF];
    for ((d, &w0), &w1) in digits.iter().zip(w0).zip(w1) {
        ahead.fetch();
        for (acc, &d) in acc.iter_mut().zip(&d[first..first + HALF]) {
            let d = _mm512_set1_epi32(d);
            *acc = [_mm512_dpbusd_epi32(acc[0], d, w0), _mm512_dpbusd_epi32(acc[1], d, w1)];
        }
    }
    for (k, acc) in acc.iter().enumerate() {
        for (sums, &acc) in sums.iter_mut().zip(acc) {
            sums[first + k] = _mm512_add_epi32(sums[first + k], acc);
        }
    }
}

/// Sums of a coordinate's four digits, joined and reduced as [`super::reduced`] does.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn joined(d: &[__m512i]) -> __m512i {
    let mut halves = [_mm256_setzero_si256(); 2];
    for (half, out) in halves.iter_mut().enumerate() {
        let mut sum = _mm512_setzero_si512();
        for &d in d.iter().rev() {
            let d = if half == 0 { _mm512_castsi512_si256(d) } else { _mm512_extracti64x4_epi64::<1>(d) };
            sum = _mm512_add_epi64(_mm512_slli_epi64::<8>(sum), _mm512_cvtepi32_epi64(d));
        }
        sum = _mm512_add_epi64(sum, _mm512_set1_epi64(BIAS));
        let low = _mm512_and_si512(sum, _mm512_set1_epi64(i64::from(P)));
        *out = _mm512_cvtepi64_epi32(_mm512_add_epi64(low, _mm512_srli_epi64::<31>(sum)));
    }
    let r = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves[0]), halves[1]);
    _mm512_min_epu32(r, _mm512_sub_epi32(r, _mm512_set1_epi32(P.cast_signed())))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn partials(slots: &[&[i8]], digits: &[[__m512i; DIGITS]], out: &mut [[i64; 4]]) {
    let mut sums = vec![[_mm512_setzero_si512(); DIGITS]; slots.len().next_multiple_of(QUAD)];
    let whole = slots.first().map_or(0, |slot| slot.len() / WIDTH);
    for (digits, first) in digits[..whole].chunks(RUN).zip((0..).step_by(RUN)) {
        for (slots, sums) in slots.chunks(QUAD).zip(sums.chunks_exact_mut(QUAD)) {
            let mut run: [&[Register]; QUAD] = [&NO_SLOT; QUAD];
            for (run, slot) in run.iter_mut().zip(slots) {
                *run = &slot.as_chunks().0[first..first + digits.len()];
            }
            multiply_run(run, digits, sums);
        }
    }
    if let Some(last) = digits.get(whole..whole + 1) {
        for (slots, sums) in slots.chunks(QUAD).zip(sums.chunks_exact_mut(QUAD)) {
            let mut rests = [[0; WIDTH]; QUAD];
            for (rest, slot) in rests.iter_mut().zip(slots) {
                *rest = padded(&slot[whole * WIDTH..]);
            }
            multiply_run(rests.each_ref().map(std::slice::from_ref), last, sums);
        }
    }
    for (out, sums) in out.iter_mut().zip(&sums) {
        for (out, digits) in out.iter_mut().zip(sums.chunks_exact(4)) {
            let mut sum = 0;
            for &d in digits.iter().rev() {
                sum = (sum << 8) + i64::from(_mm512_reduce_add_epi32(d));
            }
            *out += sum;
        }
    }
}

/// Adds the products of four slots with all digits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_run(slots: [&[Register]; QUAD], digits: &[[__m512i; DIGITS]], sums: &mut [[__m512i; DIGITS]]) {
    for first in (0..DIGITS).step_by(QUAD) {
        let mut acc = [[_mm512_setzero_si512(); QUAD]; QUAD];
        for ((((d, w0), w1), w2), w3) in digits.iter().zip(slots[0]).zip(slots[1]).zip(slots[2]).zip(slots[3]) {
            for (acc, w) in acc.iter_mut().zip([load(w0), load(w1), load(w2), load(w3)]) {
                for (acc, &d) in acc.iter_mut().zip(&d[first..first + QUAD]) {
                    *acc = _mm512_dpbusd_epi32(*acc, d, w);
                }
            }
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            for (sum, acc) in sums[first..first + QUAD].iter_mut().zip(acc) {
                *sum = _mm512_add_epi32(*sum, acc);
            }
        }
    }
}
