//! Univariate round polynomials of sumchecks, as values at 0, 1, .., degree with the value at 1 left out.

use super::{QM31, ZERO, signed, signed_ext};

/// A round polynomial of degree `D`, sent as its values at `0, 2, 3, .., D`.
///
/// The value at 1 is not sent: it is `claim - s(0)`, so the round equation `s(0) + s(1) = claim` holds by construction
/// and a wrong polynomial only shows in the final claim, as in every compressed sumcheck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundPoly<const D: usize>(pub [QM31; D]);

impl<const D: usize> RoundPoly<D> {
    /// Builds the message from all values `s(0), s(1), .., s(D)`.
    #[must_use]
    pub fn from_values(values: &[QM31]) -> Self {
        debug_assert_eq!(values.len(), D + 1);
        let mut out = [ZERO; D];
        let mut sent = values.iter().enumerate().filter(|(i, _)| *i != 1);
        for slot in &mut out {
            if let Some((_, &v)) = sent.next() {
                *slot = v;
            }
        }
        Self(out)
    }

    /// `s(r)` given the claim `s(0) + s(1)`, by Lagrange interpolation on `0..=D`.
    #[must_use]
    pub fn eval(&self, claim: QM31, r: QM31) -> QM31 {
        let value = |i: usize| match i {
            0 => self.0[0],
            1 => claim - self.0[0],
            _ => self.0[i - 1],
        };
        let mut acc = ZERO;
        for i in 0..=D {
            // Nodes are small integers: their differences multiply in the base field, where inverting is cheap.
            let (mut num, mut den) = (value(i), signed(1));
            for j in (0..=D).filter(|&j| j != i) {
                num *= r - signed_ext(j as i64);
                den *= signed(i as i64 - j as i64);
            }
            acc += num * den.inverse();
        }
        acc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolates_exactly() {
        let r = QM31::from_u32_unchecked(9, 8, 7, 6);
        let f = |x: QM31| x * x * x * x - x * x + signed_ext(5);
        let values: Vec<QM31> = (0..5).map(|i| f(signed_ext(i))).collect();
        let p = RoundPoly::<4>::from_values(&values);
        assert_eq!(p.eval(values[0] + values[1], r), f(r));
    }
}
