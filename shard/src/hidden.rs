//! The state that one segment hands to the next: its size, what a boundary claims of it, and what an encoder pools from it.
//!
//! Values are `[channel][row]`, rows padded to a power of two: an encoder's normalised state (16 bit) or a decoder's residual
//! stream (24 bit).

use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::circuit::descriptor::Descriptor;
use obelysk_protocol::field::{QM31, eq_vector, signed};

/// Values of a hidden state.
#[must_use]
pub fn hidden_len(d: &Descriptor, input: &PublicInput) -> usize {
    (d.width() as usize) << input.token_log()
}

/// The extension of each limb of a hidden state at a boundary point (row low, then channel).
///
/// One limb is the value itself; several are its bytes, low first, the last one signed.
#[must_use]
pub fn boundary_values(limbs: usize, hidden: &[i32], point: &[QM31]) -> Vec<QM31> {
    let eq = eq_vector(point);
    let value = |l: usize| {
        let sum = |acc, (&v, &e): (&i32, &QM31)| acc + e * signed(i64::from(limb(v, l, limbs)));
        hidden.iter().zip(&eq).fold(QM31::default(), sum)
    };
    (0..limbs).map(value).collect()
}

/// Limb `l` of `limbs`: bytes, but for the last, which takes what is left.
#[must_use]
pub const fn limb(v: i32, l: usize, limbs: usize) -> i32 {
    let shifted = v >> (8 * l);
    if l + 1 == limbs { shifted } else { shifted & 255 }
}

/// The claimed output: an encoder's sums over all tokens of the state before the head; empty for a decoder.
#[must_use]
pub fn output(d: &Descriptor, input: &PublicInput, hidden: &[i32]) -> Vec<i64> {
    let pool = |row: &[i32]| row.iter().take(input.tokens()).map(|&v| i64::from(v)).sum();
    match d {
        Descriptor::Encoder(_) => hidden.chunks_exact(1 << input.token_log()).map(pool).collect(),
        Descriptor::Decoder(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use obelysk_protocol::field::signed_ext;

    #[test]
    fn limbs_join_to_the_value() {
        for v in [0, 1, -1, 255, 256, -256, 65_535, 8_388_607, -8_388_608] {
            let [a, b, c] = [0, 1, 2].map(|l| limb(v, l, 3));
            assert!((0..256).contains(&a) && (0..256).contains(&b) && (-128..128).contains(&c), "{v}");
            assert_eq!(a + (b << 8) + (c << 16), v);
            assert_eq!(limb(v, 0, 1), v);
        }
    }

    #[test]
    fn a_state_of_three_limbs_has_three_values() {
        let point = [signed_ext(0), signed_ext(1)];
        let values = boundary_values(3, &[9, 9, -70_000, 9], &point);
        // -70000 = 144 + 238 * 2^8 - 2 * 2^16.
        assert_eq!(values, [144, 238, -2].map(signed_ext));
        assert_eq!(boundary_values(1, &[9, 9, -70_000, 9], &point), [signed_ext(-70_000)]);
    }
}
