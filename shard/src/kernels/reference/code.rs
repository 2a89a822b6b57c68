//! Circle FFT and word fold over any of the two fields.

use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::verifier::code::{CodeDomain, fold_pair};
use std::ops::{Add, Mul, Sub};

/// Encodes a message of `2^h` coefficients on the domain of size `2^log_n`: zero-extend, line layers from the top, circle
/// layer last.
pub(crate) fn encode<F>(message: &[F], domain: &CodeDomain) -> Vec<F>
where
    F: Copy + Default + Add<Output = F> + Sub<Output = F> + Mul<M31, Output = F>,
{
    let log_n = domain.log_n();
    let mut word = message.to_vec();
    word.resize(1 << log_n, F::default());
    for layer in (0..log_n).rev() {
        for (block, values) in word.chunks_exact_mut(2 << layer).enumerate() {
            let t = domain.twiddle(layer, block);
            let (low, high) = values.split_at_mut(1 << layer);
            for (a, b) in low.iter_mut().zip(high) {
                let scaled = *b * t;
                (*a, *b) = (*a + scaled, *a - scaled);
            }
        }
    }
    word
}

/// Fold number `round` of a word on `domain`'s tower.
pub(crate) fn fold(word: &[QM31], domain: &CodeDomain, round: u32, alpha: QM31) -> Vec<QM31> {
    let pairs = word.chunks_exact(2).enumerate();
    pairs.map(|(i, p)| fold_pair(p[0], p[1], domain.twiddle(round, i).inverse(), alpha)).collect()
}
