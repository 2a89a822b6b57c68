//! Least squares of a quadratic.

/// Coefficients of `a + b t + c t^2`; `None` with fewer than three points.
pub fn quadratic(points: &[(f64, f64)]) -> Option<[f64; 3]> {
    if points.len() < 3 {
        return None;
    }
    // Normal equations, solved by elimination; three unknowns.
    let mut m = [[0.0f64; 4]; 3];
    for &(t, y) in points {
        // Relative weights: every token count matters alike.
        let w = 1.0 / (y * y).max(1e-12);
        let basis = [1.0, t, t * t];
        for (row, b) in m.iter_mut().zip(basis) {
            for (cell, v) in row.iter_mut().zip(basis.iter().chain([&y])) {
                *cell += w * b * v;
            }
        }
    }
    for i in 0..3 {
        let pivot = (i..3).max_by(|&a, &b| m[a][i].abs().total_cmp(&m[b][i].abs()))?;
        m.swap(i, pivot);
        if m[i][i] == 0.0 {
            return None;
        }
        for j in (0..3).filter(|&j| j != i) {
            let f = m[j][i] / m[i][i];
            let base = m[i];
            m[j].iter_mut().zip(base).for_each(|(v, b)| *v -= f * b);
        }
    }
    Some([m[0][3] / m[0][0], m[1][3] / m[1][1], m[2][3] / m[2][2]])
}

/// The fitted value at `t`.
pub fn through(fit: &[f64; 3], t: f64) -> f64 {
    fit[0] + fit[1] * t + fit[2] * t * t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovers_an_exact_quadratic() {
        let points: Vec<(f64, f64)> = [8.0, 32.0, 128.0, 512.0].iter().map(|&t| (t, 0.5 + 0.01 * t + 2e-5 * t * t)).collect();
        let fit = quadratic(&points).unwrap();
        assert!((fit[0] - 0.5).abs() < 1e-6 && (fit[1] - 0.01).abs() < 1e-8 && (fit[2] - 2e-5).abs() < 1e-10);
    }
}
