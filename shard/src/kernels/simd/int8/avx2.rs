//! AVX2: one instruction multiplies two 16-bit digits with two widened weights in each of 8 lanes and adds them up.
//!
//! The byte instruction would saturate, so digits have 16 bits: a centred coordinate below 2^30 is two of them, the low
//! one below 2^15 and the high one below 2^14 in absolute value. A product is at most 2^22: 511 of them fit 32 bits, and
//! sums go to 64 bits after 256 at the latest.
//!
//! What is unsafe here, and why the loops are plain, is as in the kernel for AVX-512.

use super::{Kernel, Pack, centred, padded, reduced};
use bytemuck::{cast, cast_slice, pod_read_unaligned};
use std::arch::x86_64::*;

/// Digits of an element: half `k % 2` of coordinate `k / 2`.
const DIGITS: usize = 8;
/// Weights of a register once widened.
const WIDTH: usize = 16;
/// Rows that one instruction multiplies.
const GROUP: usize = 2;
/// Groups of rows packed at a time: 64 terms.
const GROUPS: usize = 32;
/// Registers from one piece of packed columns to the next: odd, so that pieces do not fall on the same cache sets.
const STRIDE: usize = GROUPS + 1;
/// Registers of positions whose digits stay in the first-level cache: 256 terms a lane.
const RUN: usize = 128;

/// What one load reads.
type Register = [i8; WIDTH];

/// Packed weights and sums of a task's columns.
#[derive(Default)]
pub(crate) struct Scratch {
    packed: Vec<[__m256i; STRIDE]>,
    sums: Vec<[[i64; 8]; 4]>,
}

/// Proof that the processor has the instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// `None` without AVX2.
    pub(super) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

#[expect(unsafe_code, reason = "functions that enable instructions can be called from others only so")]
impl Kernel for Avx2 {
    type Rows = [i32; DIGITS];
    type Positions = [__m256i; DIGITS];
    type Scratch = Scratch;

    fn rows(self, coefficients: &[[u32; 4]]) -> Vec<Self::Rows> {
        coefficients.chunks(GROUP).map(row_digits).collect()
    }

    fn combine(self, scratch: &mut Scratch, rows: &[&[i8]], digits: &[Self::Rows], out: &mut [Pack]) {
        // SAFETY: an Avx2 exists only where the feature was detected.
        unsafe { combine(scratch, rows, digits, out) }
    }

    fn positions(self, e: &[Pack]) -> Vec<Self::Positions> {
        e.iter().map(position_digits).collect()
    }

    fn partials(self, slots: &[&[i8]], digits: &[Self::Positions], out: &mut [[i64; 4]]) {
        // SAFETY: as in combine.
        unsafe { partials(slots, digits, out) }
    }
}

/// Digit `k` of a coordinate.
fn digit(coordinate: u32, k: usize) -> i16 {
    let c = centred(coordinate);
    let low = c as i16;
    if k.is_multiple_of(2) { low } else { ((c - i32::from(low)) >> 16) as i16 }
}

/// Digit `k` of up to two rows, as the word to broadcast.
fn row_digits(c: &[[u32; 4]]) -> [i32; DIGITS] {
    std::array::from_fn(|k| {
        let mut digits = [0i16; GROUP];
        for (d, c) in digits.iter_mut().zip(c) {
            *d = digit(c[k / 2], k);
        }
        cast(digits)
    })
}

/// Digit `k` of 16 positions.
fn position_digits(e: &Pack) -> [__m256i; DIGITS] {
    std::array::from_fn(|k| cast(e[k / 2].map(|v| digit(v, k))))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(weights: &Register) -> __m256i {
    _mm256_cvtepi8_epi16(pod_read_unaligned(cast_slice(weights)))
}

/// `out[2·strip + j][g]`: group `g` of rows at 8 columns of the strip, two rows of a column side by side. Half `l` of
/// register `j` holds columns `8 l + 4 j ..` of the strip's 16.
#[inline]
#[target_feature(enable = "avx2")]
fn pack(rows: &[&[i8]], out: &mut [[__m256i; STRIDE]]) {
    for (g, group) in rows.chunks(GROUP).enumerate() {
        let (a, a_rest) = group[0].as_chunks();
        // A row that is not there may be any: its digits are zero.
        let (b, b_rest) = group.get(1).unwrap_or(&group[0]).as_chunks();
        let (whole, rest) = out.split_at_mut(2 * a.len());
        pack_group(a, b, g, whole);
        pack_group(&[padded(a_rest)], &[padded(b_rest)], g, rest);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn pack_group(a: &[Register], b: &[Register], g: usize, out: &mut [[__m256i; STRIDE]]) {
    for ((out, a), b) in out.chunks_exact_mut(2).zip(a).zip(b) {
        let (a, b) = (load(a), load(b));
        out[0][g] = _mm256_unpacklo_epi16(a, b);
        out[1][g] = _mm256_unpackhi_epi16(a, b);
    }
}

#[target_feature(enable = "avx2")]
fn combine(scratch: &mut Scratch, rows: &[&[i8]], digits: &[[i32; DIGITS]], out: &mut [Pack]) {
    let columns = rows.first().map_or(0, |r| r.len());
    let pieces = 2 * columns.div_ceil(WIDTH);
    let Scratch { packed, sums } = scratch;
    packed.resize(pieces, [_mm256_setzero_si256(); STRIDE]);
    sums.clear();
    sums.resize(pieces, [[0; 8]; 4]);
    for (block, digits) in rows.chunks(GROUPS * GROUP).zip(digits.chunks(GROUPS)) {
        pack(block, packed);
        for (weights, sums) in packed.iter().zip(sums.iter_mut()) {
            multiply(weights, digits, sums);
        }
    }
    for (strip, out) in sums.chunks_exact(2).zip(out) {
        for (j, sums) in strip.iter().enumerate() {
            for (out, sums) in out.iter_mut().zip(sums) {
                for (i, &sum) in sums.iter().enumerate() {
                    out[8 * (i / 4) + 4 * j + i % 4] = reduced(sum);
                }
            }
        }
    }
}

/// Adds the products of a piece of columns with all digits.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply(weights: &[__m256i; STRIDE], digits: &[[i32; DIGITS]], sums: &mut [[i64; 8]; 4]) {
    let mut acc = [_mm256_setzero_si256(); DIGITS];
    for (d, &w) in digits.iter().zip(weights) {
        for (acc, &d) in acc.iter_mut().zip(d) {
            *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(w, _mm256_set1_epi32(d)));
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc.chunks_exact(2)) {
        let (low, high): ([i32; 8], [i32; 8]) = (cast(acc[0]), cast(acc[1]));
        for ((sum, low), high) in sums.iter_mut().zip(low).zip(high) {
            *sum += i64::from(low) + (i64::from(high) << 16);
        }
    }
}

#[target_feature(enable = "avx2")]
fn partials(slots: &[&[i8]], digits: &[[__m256i; DIGITS]], out: &mut [[i64; 4]]) {
    let whole = slots.first().map_or(0, |slot| slot.len() / WIDTH);
    for (digits, first) in digits[..whole].chunks(RUN).zip((0..).step_by(RUN)) {
        for (slot, out) in slots.iter().zip(out.iter_mut()) {
            multiply_run(&slot.as_chunks().0[first..first + digits.len()], digits, out);
        }
    }
    if let Some(last) = digits.get(whole..whole + 1) {
        for (slot, out) in slots.iter().zip(out) {
            multiply_run(&[padded(&slot[whole * WIDTH..])], last, out);
        }
    }
}

/// Adds the products of a slot with all digits.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply_run(slot: &[Register], digits: &[[__m256i; DIGITS]], out: &mut [i64; 4]) {
    let mut acc = [_mm256_setzero_si256(); DIGITS];
    for (d, w) in digits.iter().zip(slot) {
        let w = load(w);
        for (acc, &d) in acc.iter_mut().zip(d) {
            *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(w, d));
        }
    }
    for (out, acc) in out.iter_mut().zip(acc.chunks_exact(2)) {
        let (low, high): ([i32; 8], [i32; 8]) = (cast(acc[0]), cast(acc[1]));
        for (low, high) in low.into_iter().zip(high) {
            *out += i64::from(low) + (i64::from(high) << 16);
        }
    }
}
