//! Columns of the requantisations R1 (one accumulator) and R2 (two).

use super::Filler;

/// v, s, c, tau of R1 from the accumulators.
pub(super) fn rounded(f: &mut Filler<'_>, name: &str, e: u8, acc: &[i32]) {
    let parts = |k: usize| {
        let shifted = i64::from(acc[k]) + (1i64 << (e - 1));
        let (t, r) = (shifted >> e, shifted & ((1 << e) - 1));
        let high = (t + (1 << 15)) >> 16;
        (r + (high << (16 + e)), high, t - (high << 16))
    };
    f.fill(name, ".v", acc.len(), |k| parts(k).0);
    f.fill(name, ".s", acc.len(), |k| i64::from(parts(k).1 != 0));
    f.fill(name, ".c", acc.len(), |k| clip(parts(k).1));
    f.fill(name, ".tau", acc.len(), |k| parts(k).2);
}

/// r, d, h, top, s, c, tau of R2 from the accumulators of both limbs (`circuit::wide`).
pub(super) fn rounded_wide(f: &mut Filler<'_>, name: &str, e: u8, (low, high): (&[i32], &[i32])) {
    let count = low.len().min(high.len());
    let total = |k: usize| i64::from(low[k]) + (i64::from(high[k]) << 8) + (1i64 << (e - 1));
    let unit = e - 8;
    let d = |k: usize| -i64::from(high[k]) & ((1 << unit) - 1);
    let t = |k: usize| total(k) >> e;
    let top = |k: usize| (t(k) + (1 << 15)) >> 16;
    f.fill(name, ".r", count, |k| total(k) & ((1 << e) - 1));
    f.fill(name, ".d", count, d);
    f.fill(name, ".h", count, |k| t(k) - ((i64::from(high[k]) + d(k)) >> unit));
    f.fill(name, ".top", count, top);
    f.fill(name, ".s", count, |k| i64::from(top(k) != 0));
    f.fill(name, ".c", count, |k| clip(top(k)));
    f.fill(name, ".tau", count, |k| t(k) - (top(k) << 16));
}

/// The clip value for the bits of t beyond 16.
fn clip(high: i64) -> i64 {
    match high {
        0 => 0,
        h if h > 0 => i16::MAX.into(),
        _ => i16::MIN.into(),
    }
}
