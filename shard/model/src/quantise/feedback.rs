//! Rounding with error feedback: each weight is rounded after adding what the inputs before it lost, weighted by how well
//! this input can make up for them. This is LDLQ (Chee et al., QuIP, 2023, Algorithm 3), the same result as GPTQ.
//!
//! The covariance of inputs is split as `H = (U + I) D (U + I)^T` with U strictly upper triangular; column k of U holds the
//! feedback into input k.

/// Share of the mean variance added to the diagonal: calibration sees fewer tokens than there are directions.
const DAMPING: f64 = 0.03;

/// Feedback coefficients of one layer's inputs.
pub(super) struct Feedback {
    inputs: usize,
    /// Row k holds column k of U: coefficients from inputs `0..k`.
    columns: Vec<f64>,
}

impl Feedback {
    /// Rounding one by one.
    pub fn none(inputs: usize) -> Self {
        Self { inputs, columns: Vec::new() }
    }

    /// Decomposes a covariance (row-major, symmetric).
    pub fn new(covariance: &[f64], inputs: usize) -> Self {
        let mut h = covariance.to_vec();
        let trace: f64 = (0..inputs).map(|k| h[k * inputs + k]).sum();
        let damping = (trace / inputs.max(1) as f64 * DAMPING).max(1e-12);
        for k in 0..inputs {
            h[k * inputs + k] += damping;
        }
        // Elimination from the last input to the first; after step k, row k holds column k of U left of the diagonal.
        for k in (0..inputs).rev() {
            let (before, row) = h.split_at_mut(k * inputs);
            let row = &mut row[..inputs];
            let pivot = row[k].max(1e-12);
            for v in &mut row[..k] {
                *v /= pivot;
            }
            for (i, target) in before.chunks_exact_mut(inputs).enumerate() {
                let factor = row[i] * pivot;
                for (t, u) in target[..=i].iter_mut().zip(&row[..=i]) {
                    *t -= factor * u;
                }
            }
        }
        Self { inputs, columns: h }
    }

    /// Rounds one row of weights to int8 in units of `step`.
    pub fn round(&self, row: &[f64], step: f64, out: &mut [i8]) {
        if self.columns.is_empty() {
            return super::linear::round_row(row.iter().copied(), step, out);
        }
        let mut lost: Vec<f64> = Vec::with_capacity(self.inputs);
        for ((&w, out), column) in row.iter().zip(out).zip(self.columns.chunks_exact(self.inputs.max(1))) {
            let wanted = w + dot(&lost, column);
            *out = (wanted / step).round_ties_even().clamp(-127.0, 127.0) as i8;
            lost.push(w - f64::from(*out) * step);
        }
    }
}

/// Sum over the length of `a`, in four interleaved parts.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 4];
    let (a4, b4) = (a.chunks_exact(4), b[..a.len()].chunks_exact(4));
    let tail: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a4.zip(b4) {
        for (s, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *s += a * b;
        }
    }
    sums.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy::Prng;

    /// `e^T H e` for the rounding error of a row.
    fn loss(h: &[f64], row: &[f64], q: &[i8], step: f64) -> f64 {
        let e: Vec<f64> = row.iter().zip(q).map(|(w, &q)| w - f64::from(q) * step).collect();
        let n = e.len();
        (0..n * n).map(|i| e[i / n] * h[i] * e[i % n]).sum()
    }

    #[test]
    fn feedback_lowers_the_output_error_of_correlated_inputs() {
        let (n, mut rng) = (24, Prng::new(1));
        let mut real = || f64::from(rng.range(-1000, 1000)) / 1000.0;
        let samples: Vec<Vec<f64>> = (0..100)
            .map(|_| {
                let common = 3.0 * real();
                (0..n).map(|_| common + real()).collect()
            })
            .collect();
        let h: Vec<f64> = (0..n * n).map(|i| samples.iter().map(|s| s[i / n] * s[i % n]).sum::<f64>() / 100.0).collect();
        let feedback = Feedback::new(&h, n);
        let (mut plain, mut fed) = (0.0, 0.0);
        for _ in 0..50 {
            let row: Vec<f64> = (0..n).map(|_| real()).collect();
            let mut q = vec![0i8; n];
            feedback.round(&row, 0.02, &mut q);
            fed += loss(&h, &row, &q, 0.02);
            let nearest: Vec<i8> = row.iter().map(|w| (w / 0.02).round() as i8).collect();
            plain += loss(&h, &row, &nearest, 0.02);
        }
        assert!(fed < 0.5 * plain, "{fed} against {plain}");
    }
}
