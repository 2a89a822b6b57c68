//! Soundness error of every challenge of an opening, in the unique-decoding regime, no conjecture.
//!
//! The circle code of length `n` and dimension `N` is a codimension-1 subcode of a generalised Reed–Solomon code
//! `GRS[n, N + 1]` with public non-zero multipliers; both have distance at least `n - N`, so below `δ = (1 - N/n) / 2` the
//! nearest codeword is unique. Proximity gaps of the Reed–Solomon code (`n / q` for a line, BCIKS20, Thm 4.1) pass to the
//! subcode: if two combinations of a line lie in a linear subcode, so do the two words spanning it.

use super::shape::{OpeningParams, OpeningShape, STEP};

/// log2 of the challenge field's size.
fn field_bits() -> f64 {
    4.0 * f64::from(crate::field::P).log2()
}

/// A challenge: its name, the bits of its round-by-round error without grinding, and the grinding bits directly before it.
pub type Bits = (String, f64, u32);

/// Every challenge of an opening of one segment's oracles.
///
/// The row coordinates of Point claims are listed too, although the caller draws them.
#[must_use]
pub fn opening_bits(shape: &OpeningShape) -> Vec<Bits> {
    let mut out = row_bits(shape);
    out.extend(combined_bits(&shape.params, shape.oracles.len()));
    out
}

/// The challenges of step 1, which stay in the segment's fork.
#[must_use]
pub fn row_bits(shape: &OpeningShape) -> Vec<Bits> {
    let p = &shape.params;
    let q = field_bits();
    let n = (p.log_n() as f64).exp2();
    let mut out = Vec::new();
    let deepest = |form| shape.oracles.iter().filter(|o| o.form == form).map(|o| super::row_vars(o.rows)).max();
    if deepest(super::Form::Point).is_some_and(|v| v > 0) {
        // A row coordinate of a point is a proximity challenge for two halves of the rows.
        out.push(("row coordinate of a point claim: n/q".to_owned(), q - n.log2(), p.g_fold));
    }
    if deepest(super::Form::Tiles).is_some_and(|v| v > 0) {
        out.push(("row challenge of a tile claim: (n+2)/q".to_owned(), q - (n + 2.0).log2(), p.g_fold));
    }
    out
}

/// The challenges of steps 2 to 5 over this many oracles, be they of one segment or of all.
#[must_use]
pub fn combined_bits(p: &OpeningParams, oracles: usize) -> Vec<Bits> {
    let q = field_bits();
    let n = (p.log_n() as f64).exp2();
    let mut out = Vec::new();
    let vars = f64::from(super::row_vars(oracles));
    if vars > 0.0 {
        out.push(("delta: log2(oracles)/q".to_owned(), q - vars.log2(), 0));
        out.push(("theta coordinate: log2(oracles)(n+1)/q".to_owned(), q - (n + 1.0).log2() - vars.log2(), p.g_fold));
    }
    out.push(("joint sumcheck round: 2/q".to_owned(), q - 1.0, 0));
    for k in 0..p.folds() {
        // The word that is folded in round k has n / 2^k positions; between roots it is implied, not committed.
        let committed = n / f64::from(k / STEP * STEP).exp2();
        out.push((format!("fold {k}: (n_k+2)/q"), q - (committed + 2.0).log2(), p.g_fold));
    }
    let delta = (1.0 - (-f64::from(p.blowup_log)).exp2()) / 2.0;
    out.push((format!("{} queries: (1-delta)^queries", p.queries), -(p.queries as f64) * (1.0 - delta).log2(), p.g_query));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier::opening::{Form, OpeningParams, OracleShape};

    #[test]
    fn defaults_reach_the_promised_bits() {
        for (blowup_log, queries) in [(1, 195), (2, 120), (3, 98)] {
            let params = OpeningParams { h: 24 - blowup_log, blowup_log, queries, g_fold: 8, g_query: 20 };
            let oracles = vec![
                OracleShape { rows: 190, form: Form::Point },
                OracleShape { rows: 110, form: Form::Tiles },
                OracleShape { rows: 4, form: Form::Tiles },
            ];
            let bits = opening_bits(&OpeningShape { params, oracles });
            let min = bits.iter().map(|(_, b, g)| b + f64::from(*g)).fold(f64::INFINITY, f64::min);
            assert!((100.0..110.0).contains(&min), "rate 2^-{blowup_log}: {min} of {bits:?}");
        }
    }

    #[test]
    fn one_opening_of_all_oracles_keeps_the_bits() {
        // The oracles of a thousand layers, and the most that any opening takes.
        for (blowup_log, queries) in [(1, 195), (2, 120), (3, 98)] {
            let params = OpeningParams { h: 24 - blowup_log, blowup_log, queries, g_fold: 8, g_query: 20 };
            let min =
                |oracles| combined_bits(&params, oracles).iter().map(|(_, b, g)| b + f64::from(*g)).fold(f64::MAX, f64::min);
            for oracles in [3, 163, 2_051, crate::verifier::opening::MAX_ORACLES] {
                assert!((100.0..110.0).contains(&min(oracles)), "rate 2^-{blowup_log}, {oracles} oracles: {}", min(oracles));
            }
            // θ pays for the number of oracles, and its share is all that the number costs.
            let theta = |oracles| combined_bits(&params, oracles).iter().find(|b| b.0.starts_with("theta")).map(|b| b.1);
            let lost = theta(4).zip(theta(256)).map(|(few, many)| few - many);
            assert!(lost.is_some_and(|lost| (lost - 2.0).abs() < 1e-9), "{lost:?}");
        }
    }

    #[test]
    fn fewer_queries_or_less_grinding_show() {
        let params = OpeningParams { h: 16, blowup_log: 2, queries: 60, g_fold: 0, g_query: 0 };
        let shape = OpeningShape { params, oracles: vec![OracleShape { rows: 1, form: Form::Point }] };
        let min = opening_bits(&shape).iter().map(|(_, b, g)| b + f64::from(*g)).fold(f64::INFINITY, f64::min);
        assert!((40.0..41.0).contains(&min), "{min}");
    }
}
