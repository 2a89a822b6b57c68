//! Row encoding with S-two's circle FFT, twiddle tables shared by all rows, and inverse twiddles for folding words.

use crate::kernels::CodeShape;
use crate::kernels::reference::code;
use bytemuck::cast_slice;
use obelysk_protocol::field::{FieldExpOps, M31, P};
use obelysk_protocol::verifier::code::{CodeDomain, double_x};
use stwo::prover::backend::simd::fft::{CACHED_FFT_LOG_SIZE, MIN_FFT_LOG_SIZE, rfft, transpose_vecs};
use stwo::prover::backend::simd::m31::{LOG_N_LANES, N_LANES, PackedM31};

/// Twiddles of one word length.
pub(super) struct Tables {
    pub domain: CodeDomain,
    /// `doubled[k - 1][block]`: twice the twiddle of line layer `k >= 1`, as S-two's FFT wants it.
    doubled: Vec<Vec<u32>>,
    /// `inverse[round][pair]`: `1 / twiddle(round, pair)`, for folding words.
    pub inverse: Vec<Vec<M31>>,
}

impl Tables {
    pub(super) fn new(log_n: u32) -> Self {
        let domain = CodeDomain::new(log_n);
        let points = domain.even_points();
        let mut inverse = vec![M31::batch_inverse(&points.iter().map(|p| p.1).collect::<Vec<_>>())];
        let mut xs: Vec<M31> = points.iter().step_by(2).map(|p| p.0).collect();
        let mut doubled = Vec::new();
        while inverse.len() < log_n as usize {
            doubled.push(xs.iter().map(|x| x.0 * 2).collect());
            inverse.push(M31::batch_inverse(&xs));
            xs = xs.iter().step_by(2).map(|&x| double_x(x)).collect();
        }
        Self { domain, doubled, inverse }
    }
}

/// Packs needed for `len` base elements.
pub(super) fn packs(len: usize) -> usize {
    len.div_ceil(N_LANES)
}

/// A zeroed aligned buffer for `len` base elements; untouched pages cost nothing.
pub(super) fn aligned(len: usize) -> Vec<PackedM31> {
    bytemuck::zeroed_vec(packs(len))
}

/// Whether a code is too small for the 16-lane FFT.
pub(super) fn is_small(shape: CodeShape) -> bool {
    shape.h < MIN_FFT_LOG_SIZE
}

/// Encodes the aligned message `src` (length `2^h`) into `dst` (length `2^(h+b)`), canonical symbols.
///
/// The top `b` FFT layers only copy, because the message is zero-extended; what is left is one FFT of size `2^h` per part.
pub(super) fn encode_row(tables: &Tables, shape: CodeShape, src: &[PackedM31], dst: &mut [PackedM31]) {
    if is_small(shape) {
        let word = code::encode(&cast_slice::<_, M31>(src)[..1 << shape.h], &tables.domain);
        bytemuck::cast_slice_mut::<_, M31>(dst)[..word.len()].copy_from_slice(&word);
        return;
    }
    let h = shape.h as usize;
    // Above its cached size S-two's FFT wants the coefficients in the order its own inverse would leave them.
    let transposed = (shape.h > CACHED_FFT_LOG_SIZE).then(|| transposed(src, h));
    let src = transposed.as_deref().unwrap_or(src);
    for (part, out) in dst.chunks_exact_mut(packs(1 << h)).enumerate() {
        let twiddles: Vec<&[u32]> = (0..h - 1)
            .map(|k| {
                let log = h - 2 - k;
                &tables.doubled[k][part << log..(part + 1) << log]
            })
            .collect();
        fft(src, out, &twiddles, h);
        // The FFT leaves lanes in [0, p]; p would be a second encoding of 0.
        for v in bytemuck::cast_slice_mut::<_, u32>(out) {
            *v = (*v).min(v.wrapping_sub(P));
        }
    }
}

#[expect(unsafe_code, reason = "S-two's transposition takes a raw pointer")]
fn transposed(src: &[PackedM31], log_len: usize) -> Vec<PackedM31> {
    assert!(src.len() == packs(1 << log_len));
    let mut out = src.to_vec();
    // SAFETY: the buffer holds 2^log_len words (asserted), so 2^(log_len - 4) packs, with PackedM31's alignment.
    unsafe { transpose_vecs(out.as_mut_ptr().cast(), log_len - LOG_N_LANES as usize) };
    out
}

#[expect(unsafe_code, reason = "S-two's FFT takes raw pointers")]
fn fft(src: &[PackedM31], dst: &mut [PackedM31], twiddles: &[&[u32]], log_len: usize) {
    assert!(src.len() == packs(1 << log_len) && dst.len() == src.len() && twiddles.len() == log_len - 1);
    // SAFETY: both buffers hold 2^log_len words (asserted) and have PackedM31's alignment because they are slices of it;
    // src and dst do not overlap, being a shared and an exclusive borrow; twiddle slice k has 2^(log_len - 2 - k) entries.
    unsafe { rfft::fft(src.as_ptr().cast(), dst.as_mut_ptr().cast(), twiddles, log_len) }
}
