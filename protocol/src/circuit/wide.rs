//! Requantisation R2 of a product whose inputs come in two limbs: `acc = A_0 + 2^8 A_1`, each accumulator below p/2.
//!
//! `A_0 + 2^(e-1) = r + 2^8 d + 2^e h` and `A_1 = 2^(e-8) (t - h) - d` with r in `[0, 2^e)`, d in `[0, 2^(e-8))`: adding the
//! second, times 2^8, to the first leaves `acc + 2^(e-1) = r + 2^e t`. t = 2^16 H + tau, and (H, s, c) is a row of a table: s
//! says whether t leaves 16 bits and c is the clip value. `t^ = (1 - s) tau + c`.

use super::builder::{Builder, Case};
use super::expr::{Expr, Source};
use super::linear::Rounded;
use super::segment::{Relation, Value};
use super::shape::{Blocks, Logical};
use super::table::{RowIndex, TableColumn};
use std::ops::RangeInclusive;

/// Bits of a low limb.
pub const LIMB_LOG: usize = 8;
/// Admitted e.
pub const E_RANGE: RangeInclusive<u8> = 9..=16;
const TAG_SATURATION: u32 = 176;

/// log2 of the saturation table's rows: with it `2^(e-8) |t|` reaches `2^30`.
#[must_use]
pub const fn saturation_log(e: u8) -> usize {
    23 - e as usize
}

/// Largest `|A_0|` and `|A_1|` that R2 represents without wrapping; exactly one witness exists below them.
#[must_use]
pub fn r2_bounds(e: u8) -> (i64, i64) {
    let p = i64::from(crate::field::P);
    let (e, high) = (i64::from(e), 1i64 << 30);
    // r, d and h at their ends; h alone covers |A_0| up to 2^30 - 2^e.
    let first = (p - 1 - high - (1 << (e + 1))).min(high - (1 << e) - (1 << (e - 1)));
    let outer = 1i64 << (30 - LIMB_LOG as i64);
    // t covers 2^30 in units of 2^-(e-8), but for the step of tau, h and d.
    let second = (p - 1 - high - outer - (1 << e)).min(high - (1 << (e + 8)) - outer - (1 << (e - 8)));
    (first, second)
}

/// Columns r, d, h, H, s, c, tau of every block and the relations that tie them to the sums of accumulators `low` (of limb 0)
/// and `high` (of limb 1). The caller vouches that those stay within [`r2_bounds`].
pub fn rounded_wide(b: &mut Builder, name: &str, blocks: Blocks, e: u8, (low, high): (&[usize], &[usize])) -> Rounded {
    let n = b.circuit().token_log + blocks.log;
    if !E_RANGE.contains(&e) {
        b.fail_shape(format!("{name}: e = {e} is outside 9..=16, the range of two limbs"));
        return Rounded { t_hat: vec![Expr::default(); blocks.count], cases: vec![Vec::new(); blocks.count] };
    }
    let table = saturation_table(b, e);
    let wide = usize::from(e);
    let reach = 1i64 << (30 - wide);
    let mut columns: [Vec<u32>; 5] = Default::default();
    let mut out = Rounded { t_hat: Vec::new(), cases: Vec::new() };
    for i in 0..blocks.count {
        let p = format!("{name}.{i}");
        let r = b.bound_column(&format!("{p}.r"), n, (0, (1 << wide) - 1));
        let d = b.bound_column(&format!("{p}.d"), n, (0, (1 << (wide - LIMB_LOG)) - 1));
        let h = b.bound_column(&format!("{p}.h"), n, (-reach, reach - 1));
        let [top, s, c] = ["top", "s", "c"].map(|x| b.column(&format!("{p}.{x}"), n));
        let tau = b.bound_column(&format!("{p}.tau"), n, (-(1 << 15), (1 << 15) - 1));
        b.lookup(table, vec![Expr::col(top), Expr::col(s), Expr::col(c)], n, false);
        out.t_hat.push((Expr::constant(1) - Expr::col(s)) * Expr::col(tau) + Expr::col(c));
        let case = |flag, clip| -> Case { vec![(Source::Col(s), flag), (Source::Col(c), clip)] };
        out.cases.push(vec![case(0, 0), case(1, i64::from(i16::MAX)), case(1, i64::from(i16::MIN))]);
        for (column, id) in columns.iter_mut().zip([r, d, h, top, tau]) {
            column.push(id);
        }
    }
    let [r, d, h, top, tau] = columns.map(|cols| Logical { blocks: cols, lo: n, hi: blocks.hi() }.at_rho());
    let values = |accs: &[usize]| accs.iter().map(|&a| (1, Value::Accumulator(a))).collect();
    let bounds = r2_bounds(e);
    let constant = Some((-(1i64 << (wide - 1)), blocks.count, r.hi.clone()));
    let terms = vec![(1, r), (1 << LIMB_LOG, d.clone()), (1 << wide, h.clone())];
    b.relate(Relation { name: format!("{name}.low"), terms, constant, values: values(low) }, bounds.0);
    let unit = 1i64 << (wide - LIMB_LOG);
    let terms = vec![(unit << 16, top), (unit, tau), (-unit, h), (-1, d)];
    b.relate(Relation { name: format!("{name}.high"), terms, constant: None, values: values(high) }, bounds.1);
    out
}

/// Rows `(H, [H != 0], clip value)` for H in `[-2^(n-1), 2^(n-1))`.
fn saturation_table(b: &mut Builder, e: u8) -> usize {
    let log = saturation_log(e);
    let half = 1i32 << (log - 1);
    b.table(&format!("saturation.{log}"), TAG_SATURATION + log as u32, log, RowIndex::First { offset: -i64::from(half) }, || {
        let tops = -half..half;
        let clip = |h: i32| match h {
            0 => 0,
            h if h > 0 => i32::from(i16::MAX),
            _ => i32::from(i16::MIN),
        };
        vec![
            TableColumn::Identity { offset: -i64::from(half) },
            TableColumn::Function(std::sync::Arc::new(tops.clone().map(|h| i32::from(h != 0)).collect())),
            TableColumn::Function(std::sync::Arc::new(tops.map(clip).collect())),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All `(r, d, h, t)` in their windows that solve both equations mod p.
    fn witnesses(e: u8, a0: i64, a1: i64) -> Vec<(i64, i64, i64, i64)> {
        let p = i64::from(crate::field::P);
        let e = i64::from(e);
        let (reach, units) = (1i64 << (30 - e), 1i64 << (e - 8));
        let t_reach = 1i64 << (38 - e);
        let signed = |v: i64| if v.rem_euclid(p) > p / 2 { v.rem_euclid(p) - p } else { v.rem_euclid(p) };
        let inverse = 1i64 << ((31 - (e - 8)) % 31);
        let mut out = Vec::new();
        for d in 0..units {
            // t - h = (A_1 + d) / 2^(e-8) mod p.
            let x = signed(((i128::from(a1 + d) * i128::from(inverse)).rem_euclid(i128::from(p))) as i64);
            for h in [-reach, -1, 0, reach - 1].into_iter().chain((a0 >> e) - 2..=(a0 >> e) + 2) {
                let r = (a0 + (1 << (e - 1)) - (d << 8) - (h << e)).rem_euclid(p);
                let t = signed(x + h);
                let inside = (-reach..reach).contains(&h) && r < 1 << e && (-t_reach..t_reach).contains(&t);
                if inside && !out.contains(&(r, d, h, t)) {
                    out.push((r, d, h, t));
                }
            }
        }
        out
    }

    #[test]
    fn every_pair_of_accumulators_has_exactly_one_witness() {
        for e in [9u8, 12, 16] {
            let (first, second) = r2_bounds(e);
            assert!(first > 1 << 29 && second > 1 << 29, "two limbs admit 2^15 weights: {first} {second}");
            for a0 in [0, 1, -1, first, -first, 12_345, -777_777_777 % first] {
                for a1 in [0, 1, -1, second, -second, 54_321, -99_999_999] {
                    let found = witnesses(e, a0, a1);
                    assert_eq!(found.len(), 1, "e {e}, {a0} {a1}: {found:?}");
                    let t = (a0 + (a1 << 8) + (1 << (e - 1))) >> e;
                    assert_eq!(found[0].3, t, "e {e}, {a0} {a1}");
                }
            }
        }
    }
}
