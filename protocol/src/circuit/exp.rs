//! `E(i) = round(2^18 e^(-i / 4096))`, by integer arithmetic only: the same table on every machine.

use std::sync::Arc;

use super::attention::ExpTables;
use super::rotations::Rotations;

/// Fraction bits of the running product; 65,536 steps lose at most 17 of them.
const FRACTION: u32 = 96;
const STEPS_PER_UNIT: u128 = 4096;
const ROWS: usize = 1 << 16;

/// `a b 2^-96`, rounded down, for `a, b <= 2^96`.
fn mul(a: u128, b: u128) -> u128 {
    let low = u128::from(u64::MAX);
    let (a1, a0, b1, b0) = (a >> 64, a & low, b >> 64, b & low);
    let middle = ((a0 * b0) >> 64) + a1 * b0 + a0 * b1;
    ((a1 * b1) << 32) + (middle >> 32)
}

/// `e^(-1/4096)` by its alternating series.
fn step() -> u128 {
    let mut term = 1u128 << FRACTION;
    let mut sum = term;
    for k in 1.. {
        term /= STEPS_PER_UNIT * k;
        if term == 0 {
            break;
        }
        sum = if k % 2 == 1 { sum - term } else { sum + term };
    }
    sum
}

/// `E(-1) = round(2^18 e^(1/4096))`.
const BEFORE_FIRST: i32 = 262_208;

/// The two function columns of the exponential table: `E(i)` and `E(i - 1)` for `i` in `[0, 2^16)`; no rotation yet.
#[must_use]
pub fn exp_tables() -> ExpTables {
    let step = step();
    let mut value = 1u128 << FRACTION;
    let mut at = Vec::with_capacity(ROWS);
    for _ in 0..ROWS {
        let scaled = value >> (FRACTION - 19);
        at.push(((scaled + 1) >> 1) as i32);
        value = mul(value, step);
    }
    let mut before = vec![BEFORE_FIRST];
    before.extend_from_slice(&at[..ROWS - 1]);
    ExpTables { at: Arc::new(at), before: Arc::new(before), rotations: Rotations::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_floating_point_where_that_is_unambiguous() {
        let t = exp_tables();
        let mut compared = 0;
        for i in 0..ROWS {
            let exact = 262_144.0 * (-(i as f64) / 4096.0).exp();
            if (exact - exact.floor() - 0.5).abs() > 1e-6 {
                assert_eq!(t.at[i], exact.round() as i32, "row {i}");
                compared += 1;
            }
        }
        assert!(compared > ROWS - 10);
        assert_eq!(t.before[0], (262_144.0 * (1.0f64 / 4096.0).exp()).round() as i32);
        assert_eq!(t.at.iter().rposition(|&v| v > 0), Some(53_943));
        assert!(t.at.windows(2).all(|w| w[0] >= w[1]));
    }
}
