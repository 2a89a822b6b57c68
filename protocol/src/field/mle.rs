//! Multilinear extensions over the Boolean hypercube, low variable first.

use super::{M31, ONE, QM31, ZERO, signed};

/// `eq(z, i)` for all `i` in `[0, 2^n)`: bit `k` of `i` is matched with `z[k]`.
#[must_use]
pub fn eq_vector(z: &[QM31]) -> Vec<QM31> {
    let mut out = Vec::with_capacity(1 << z.len());
    out.push(ONE);
    for &t in z {
        let len = out.len();
        for i in 0..len {
            let hi = out[i] * t;
            out[i] -= hi;
            out.push(hi);
        }
    }
    out
}

/// `eq(a, b) = prod_k (a_k b_k + (1 - a_k)(1 - b_k))`; missing coordinates of the shorter side are an error of the caller.
#[must_use]
pub fn eq_eval(a: &[QM31], b: &[QM31]) -> QM31 {
    debug_assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(ONE, |acc, (&x, &y)| {
        let xy = x * y;
        acc * (xy + xy + ONE - x - y)
    })
}

/// `eq(bits(index), z)`: the weight of one hypercube corner at `z`.
#[must_use]
pub fn eq_at_index(index: usize, z: &[QM31]) -> QM31 {
    z.iter().enumerate().fold(ONE, |acc, (k, &t)| if index >> k & 1 == 1 { acc * t } else { acc * (ONE - t) })
}

/// `sum_k 2^k z_k`: the extension of the function `i -> i`, the closed form of every range table.
#[must_use]
pub fn identity_mle(z: &[QM31]) -> QM31 {
    z.iter().rev().fold(ZERO, |acc, &t| acc + acc + t)
}

/// The extension of `[i < bound]` at `z`, in O(n): walks the bits of `bound` from the top, keeping the weight of the equal prefix.
#[must_use]
pub fn lt_mle(bound: usize, z: &[QM31]) -> QM31 {
    if bound >> z.len() != 0 {
        return ONE;
    }
    let mut prefix = ONE;
    let mut below = ZERO;
    for (k, &t) in z.iter().enumerate().rev() {
        if bound >> k & 1 == 1 {
            below += prefix * (ONE - t);
            prefix *= t;
        } else {
            prefix *= ONE - t;
        }
    }
    below
}

/// Binds the lowest variable: `out[i] = (1 - r) v[2i] + r v[2i+1]`.
#[must_use]
pub fn fold(v: &[QM31], r: QM31) -> Vec<QM31> {
    v.chunks_exact(2).map(|p| p[0] + r * (p[1] - p[0])).collect()
}

/// Value of the extension of `v` (length `2^z.len()`) at `z`.
#[must_use]
pub fn mle_eval(v: &[QM31], z: &[QM31]) -> QM31 {
    debug_assert_eq!(v.len(), 1 << z.len());
    inner(v, &eq_vector(z))
}

/// Value of the extension of a base-field vector at `z`.
#[must_use]
pub fn mle_eval_base(v: &[M31], z: &[QM31]) -> QM31 {
    debug_assert_eq!(v.len(), 1 << z.len());
    v.iter().zip(eq_vector(z)).fold(ZERO, |acc, (&a, e)| acc + e * a)
}

/// Value at `z` of the extension of small integers, at most `2^z.len()` of them and zeros beyond.
///
/// The table is read in rows of `2^10`: nothing of its size is allocated, and one extension product is paid per row.
#[must_use]
pub fn mle_eval_ints(v: &[i32], z: &[QM31]) -> QM31 {
    debug_assert!(v.len() <= 1 << z.len());
    let (low, high) = z.split_at(z.len().min(INT_ROW_LOG));
    let (weights, rows) = (IntWeights::new(&eq_vector(low)), eq_vector(high));
    v.chunks(1 << low.len()).zip(rows).fold(ZERO, |acc, (row, e)| acc + e * weights.inner(row))
}

/// log2 of a row of integers summed up before it is reduced.
const INT_ROW_LOG: usize = 10;
/// Integers up to `2^20` in magnitude, times coordinates below `2^31`, `2^10` of them: below `2^61`.
const SMALL_INT: u32 = 1 << 20;

/// Extension elements that many vectors of small integers are multiplied with.
#[derive(Clone, Debug)]
pub struct IntWeights([Vec<i32>; 4]);

impl IntWeights {
    /// Unpacks the elements.
    #[must_use]
    pub fn new(weights: &[QM31]) -> Self {
        let coordinates: Vec<[M31; 4]> = weights.iter().map(|w| w.to_m31_array()).collect();
        Self([0, 1, 2, 3].map(|k| coordinates.iter().map(|c| c[k].0.cast_signed()).collect()))
    }

    /// Inner product over the common prefix.
    #[must_use]
    pub fn inner(&self, v: &[i32]) -> QM31 {
        let mut sums = [M31::from_u32_unchecked(0); 4];
        for (i, v) in v.chunks(1 << INT_ROW_LOG).enumerate() {
            let sum = if v.iter().all(|v| v.unsigned_abs() <= SMALL_INT) { row } else { wide_row };
            for (total, w) in sums.iter_mut().zip(&self.0) {
                *total += sum(v, w.get(i << INT_ROW_LOG..).unwrap_or(&[]));
            }
        }
        QM31::from_m31_array(sums)
    }
}

/// At most `2^10` products of integers within [`SMALL_INT`], reduced at the end: no sum leaves 64 bits.
fn row(v: &[i32], w: &[i32]) -> M31 {
    let products = v.iter().zip(w).map(|(&v, &w)| i64::from(v).wrapping_mul(i64::from(w)));
    signed(products.fold(0i64, i64::wrapping_add))
}

/// As [`row`] for any integers, each product below `2^62`.
fn wide_row(v: &[i32], w: &[i32]) -> M31 {
    let products = v.iter().zip(w).map(|(&v, &w)| signed(i64::from(v) * i64::from(w)));
    products.fold(M31::from_u32_unchecked(0), |acc, p| acc + p)
}

/// Inner product over the common prefix of two vectors.
#[must_use]
pub fn inner(a: &[QM31], b: &[QM31]) -> QM31 {
    a.iter().zip(b).fold(ZERO, |acc, (&x, &y)| acc + x * y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{P, signed_ext};

    fn point(n: u32) -> Vec<QM31> {
        (0..n).map(|k| QM31::from_u32_unchecked(7 * k + 3, k * k + 1, 11, 5 + k)).collect()
    }

    #[test]
    fn closed_forms_equal_the_sums() {
        let z = point(5);
        let ids: Vec<QM31> = (0..32).map(signed_ext).collect();
        assert_eq!(identity_mle(&z), mle_eval(&ids, &z));
        for bound in 0..=33usize {
            let lt: Vec<QM31> = (0..32).map(|i| if i < bound { ONE } else { ZERO }).collect();
            assert_eq!(lt_mle(bound, &z), mle_eval(&lt, &z), "bound {bound}");
        }
        for i in 0..32 {
            assert_eq!(eq_at_index(i, &z), eq_vector(&z)[i]);
        }
    }

    #[test]
    fn sums_of_integers_equal_sums_of_field_elements() {
        for (n, scale) in [(0, 1i64), (3, 7), (10, 1 << 20), (12, 1 << 20), (12, (1 << 31) - 1), (11, -(1 << 20))] {
            let z = point(n);
            // Rows of extremes, of both signs, and a last row that ends early.
            let v: Vec<i32> =
                (0..(1i64 << n) - i64::from(n > 1)).map(|i| if i % 5 == 0 { -scale } else { scale } as i32).collect();
            let mut base: Vec<M31> = v.iter().map(|&v| signed(v.into())).collect();
            base.resize(1 << n, signed(0));
            assert_eq!(mle_eval_ints(&v, &z), mle_eval_base(&base, &z), "{n} {scale}");
            let top = QM31::from_u32_unchecked(P - 1, P - 1, P - 1, P - 1);
            let sum = v.iter().fold(ZERO, |acc, &v| acc + top * signed(v.into()));
            assert_eq!(IntWeights::new(&vec![top; v.len()]).inner(&v), sum, "{n} {scale}");
        }
        assert_eq!(mle_eval_ints(&[i32::MIN; 4], &point(2)), mle_eval_base(&[signed(i32::MIN.into()); 4], &point(2)));
    }

    #[test]
    fn folding_binds_the_lowest_variable() {
        let z = point(4);
        let v: Vec<QM31> = (0..16).map(|i| signed_ext(i * i - 40)).collect();
        let direct = mle_eval(&v, &z);
        let folded = z.iter().fold(v, |acc, &r| fold(&acc, r));
        assert_eq!(folded, vec![direct]);
        assert_eq!(eq_eval(&z, &z), mle_eval(&eq_vector(&z), &z));
    }
}
