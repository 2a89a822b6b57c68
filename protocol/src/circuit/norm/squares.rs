//! `S = sum z^2 + eps` as base-4 digits: sums of products of limbs, and a chain of carries between them.
//!
//! Up to 5,482 channels the chain goes byte by byte, and a line is one equation over the products themselves. Above, such a
//! line reaches p; then every sum of products `P_xy` is split on its own, `P_xy = low + 2^16 high`, and the chain goes by
//! words of 16 bits over these small columns. Either way each row has exactly one witness (`docs/soundness.md` §3).

use super::super::builder::Builder;
use super::super::expr::Expr;
use super::super::segment::{Eval, Factor, Relation, Value};
use super::super::shape::{Logical, kappa, rho};
use super::{NormShape, Rows};
use crate::field::P;

/// Largest magnitude of a limb.
const LIMB_TOP: i64 = 255;
/// Largest weight of the products in a line of bytes: of three limbs, twice `z_0 z_2` and once `z_1^2`.
const LINE_WEIGHT: i64 = 3;
/// Bits of a word, the base of the chain over split products.
pub const WORD_LOG: usize = 16;
/// Carries of that chain are below `2^10`: a line has weight `3 + 2 2^8 = 515` in products, whose low parts are words and
/// whose high parts have at most 14 bits, beside a word of eps and the last carry, and `515 (1 + 1/4) + 2 < 2^10`.
pub const WORD_CARRY_LOG: usize = 10;

/// Largest magnitude of a sum of products of limbs over `d` channels.
fn product_top(d: usize) -> i128 {
    d as i128 * i128::from(LIMB_TOP * LIMB_TOP)
}

/// Bits of the high limb of a signed carry between lines of bytes.
pub(super) fn carry_bits(d: usize) -> usize {
    let carry = ((i128::from(LINE_WEIGHT) * product_top(d)) >> 8) + 4;
    (1..16).find(|b| 1i128 << (15 + b) >= carry).unwrap_or(16)
}

/// Bits of the high part of a sum of products, where lines of bytes would reach p; `None` where they do not.
pub(super) fn part_bits(d: usize) -> Option<usize> {
    // Digits and carry out on one side; carry in, a byte of eps and the products on the other.
    let carry = 1i128 << (15 + carry_bits(d));
    let reach = (carry << 8) + carry - 1 + 255 + i128::from(LINE_WEIGHT) * product_top(d);
    let high = product_top(d) >> WORD_LOG;
    (reach >= i128::from(P)).then(|| (0..32).find(|b| high < 1 << b).unwrap_or(32))
}

/// The sum of one product of limbs over a sheet: `z_x z_y`.
struct Sum {
    x: usize,
    y: usize,
    accumulator: usize,
}

impl Sum {
    /// How often it occurs in the square of the sum of limbs.
    const fn weight(&self) -> i64 {
        if self.x == self.y { 1 } else { 2 }
    }
}

/// The row at which relations are taken.
fn at(c: u32, vars: usize) -> Eval {
    Eval { blocks: vec![c], lo: rho(0, vars), hi: Vec::new() }
}

/// Ties `digits`, which are committed, to the limbs of `rows`.
pub(super) fn squares(b: &mut Builder, name: &str, rows: &Rows<'_>, shape: &NormShape, digits: &[u32], eps: u64) {
    let sums = sums(b, name, rows);
    match shape.part_bits {
        None => byte_lines(b, name, rows, &sums, (shape, digits, eps)),
        Some(bits) => {
            let parts = parts(b, name, rows, &sums, bits);
            word_lines(b, name, rows, &parts, (digits, eps));
        }
    }
}

/// Products of every pair of limbs, sheet by sheet.
fn sums(b: &mut Builder, name: &str, rows: &Rows<'_>) -> Vec<Sum> {
    let mut sums = Vec::new();
    for (s, sheet) in rows.sheets.iter().enumerate() {
        let prefix = if rows.sheets.len() == 1 { name.to_owned() } else { format!("{name}.{s}") };
        let vars = sheet.limbs.first().map_or(0, |l| l.lo + l.hi);
        let claim = |b: &mut Builder, (l, x): (usize, &Logical)| b.claim(&format!("{prefix}.z{l}"), x.at(&kappa(0, vars)));
        let claims: Vec<Factor> = sheet.limbs.iter().enumerate().map(|x| claim(b, x)).collect();
        for x in 0..rows.limbs() {
            for y in x..rows.limbs() {
                let eq = Factor::Eq { offset: 0, coords: rho(0, rows.vars) };
                let factors = vec![eq, claims[x].clone(), claims[y].clone()];
                sums.push(Sum { x, y, accumulator: b.product(&format!("{prefix}.s{x}{y}"), vars, factors) });
            }
        }
    }
    sums
}

/// `digits_k + 2^8 carry_k = sum P_xy (x + y = k) + carry_(k-1) + eps_k`, where a sum of all products of a line is below p.
fn byte_lines(b: &mut Builder, name: &str, rows: &Rows<'_>, sums: &[Sum], (shape, digits, eps): (&NormShape, &[u32], u64)) {
    let nt = rows.vars;
    let last_line = 2 * rows.limbs() - 2;
    let limit = 1i64 << (shape.carry_bits - 1);
    let mut carry: Option<(u32, u32)> = None;
    for k in 0..=last_line {
        let products: Vec<&Sum> = sums.iter().filter(|s| s.x + s.y == k).collect();
        let last = k == last_line;
        let eps_part = if last { (eps >> (8 * k)) as i64 } else { (eps >> (8 * k) & 255) as i64 };
        // left: digits + 2^8 carry_out - carry_in - eps; right: the products.
        let mut terms: Vec<(i64, Eval)> = Vec::new();
        let end = if last { digits.len() } else { 4 * k + 4 };
        terms.extend((4 * k..end).map(|j| (1i64 << (2 * (j - 4 * k)), at(digits[j], nt))));
        if let Some((lo, hi)) = carry {
            terms.extend([(-1, at(lo, nt)), (-(1 << 16), at(hi, nt))]);
        }
        if !last {
            let lo = b.bound_column(&format!("{name}.row.c{k}l"), nt, (0, 65_535));
            let hi = b.bound_column(&format!("{name}.row.c{k}h"), nt, (-limit, limit - 1));
            terms.extend([(1 << 8, at(lo, nt)), (1 << 24, at(hi, nt))]);
            carry = Some((lo, hi));
        }
        let constant = (eps_part != 0).then(|| (-eps_part, 1, Vec::new()));
        let values = products.iter().map(|s| (s.weight(), Value::Accumulator(s.accumulator))).collect();
        let weight = products.iter().map(|s| s.weight()).sum::<i64>() / rows.sheets.len() as i64;
        let bound = weight * product_top(rows.width()) as i64;
        b.relate(Relation { name: format!("{name}.square{k}"), terms, constant, values }, bound);
    }
}

/// A sum of products over all sheets in two parts, `low + 2^16 high`.
struct Parts {
    /// Of `z_x z_y`: its weight, and `x + y`, the bytes it is shifted by.
    weight: i64,
    shift: usize,
    low: u32,
    high: u32,
}

/// Splits the sum over all sheets of every product. A square is not negative; any other product of signed limbs can be.
fn parts(b: &mut Builder, name: &str, rows: &Rows<'_>, sums: &[Sum], bits: usize) -> Vec<Parts> {
    let (nt, top) = (rows.vars, 1i64 << bits);
    let mut out = Vec::new();
    for x in 0..rows.limbs() {
        for y in x..rows.limbs() {
            let of: Vec<&Sum> = sums.iter().filter(|s| (s.x, s.y) == (x, y)).collect();
            let low = b.bound_column(&format!("{name}.row.s{x}{y}l"), nt, (0, (1 << WORD_LOG) - 1));
            let high = b.bound_column(&format!("{name}.row.s{x}{y}h"), nt, (if x == y { 0 } else { -top }, top - 1));
            let terms = vec![(1, at(low, nt)), (1 << WORD_LOG, at(high, nt))];
            let values = of.iter().map(|s| (1, Value::Accumulator(s.accumulator))).collect();
            let relation = Relation { name: format!("{name}.part{x}{y}"), terms, constant: None, values };
            b.relate(relation, product_top(rows.width()) as i64);
            out.push(Parts { weight: if x == y { 1 } else { 2 }, shift: x + y, low, high });
        }
    }
    out
}

/// `digits_k + 2^16 carry_k = (parts of weight 2^(16 k) and 2^(16 k + 8)) + carry_(k-1) + eps_k`; the last line has no carry
/// and takes what is above it. Ordinary constraints of a row: everything is small.
fn word_lines(b: &mut Builder, name: &str, rows: &Rows<'_>, parts: &[Parts], (digits, eps): (&[u32], u64)) {
    let nt = rows.vars;
    let last_line = rows.limbs() - 1;
    let limit = 1i64 << WORD_CARRY_LOG;
    let mut right = vec![Expr::default(); last_line + 1];
    for p in parts {
        for (column, bits) in [(p.low, 8 * p.shift), (p.high, 8 * p.shift + WORD_LOG)] {
            let line = (bits / WORD_LOG).min(last_line);
            right[line] = right[line].clone() + Expr::col(column).scale(p.weight << (bits - WORD_LOG * line));
        }
    }
    let per_line = WORD_LOG / 2;
    let mut carry_in = Expr::default();
    for (k, right) in right.into_iter().enumerate() {
        let last = k == last_line;
        let above = eps >> (WORD_LOG * k);
        let eps_part = if last { above } else { above & ((1 << WORD_LOG) - 1) } as i64;
        let own = if last { &digits[per_line * k..] } else { &digits[per_line * k..per_line * (k + 1)] };
        let value = own.iter().enumerate().fold(Expr::default(), |e, (j, &g)| e + Expr::col(g).scale(1 << (2 * j)));
        let mut left = value - carry_in.clone() - Expr::constant(eps_part);
        if !last {
            let carry = b.bound_column(&format!("{name}.row.c{k}"), nt, (-limit, limit - 1));
            left = left + Expr::col(carry).scale(1 << WORD_LOG);
            carry_in = Expr::col(carry);
        }
        b.constrain(&format!("{name}.square{k}"), left - right, nt, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sheet;
    use super::*;
    use crate::circuit::shape::Blocks;
    use crate::circuit::{BuildError, Circuit};

    /// The squares of three limbs of `d` channels in equal sheets, one row, in lines of bytes or of words.
    fn built_of(d: usize, sheets: usize, words: bool) -> Result<Circuit, BuildError> {
        let mut b = Builder::new("t", 1, 0);
        let blocks = Blocks::of(d / sheets);
        let limb = |b: &mut Builder, name: String, window| {
            let column = |i| b.bound_column(&format!("{name}.{i}"), blocks.log, window);
            Logical { blocks: (0..blocks.count).map(column).collect(), lo: blocks.log, hi: blocks.hi() }
        };
        let windows = || [(0, 255), (0, 255), (-128, 127)].into_iter().enumerate();
        let limbs = |b: &mut Builder, s: usize| windows().map(|(l, w)| limb(b, format!("z.{s}.{l}"), w)).collect();
        let sheets: Vec<Sheet> = (0..sheets).map(|s| Sheet { limbs: limbs(&mut b, s), names: Vec::new() }).collect();
        let rows = Rows { vars: 0, sheets: &sheets };
        assert_eq!(rows.width(), d);
        let mut shape = NormShape::of(1 << 23, d, 3, 1 << 14);
        shape.part_bits = words.then(|| shape.part_bits.unwrap_or(13));
        let digits: Vec<u32> = (0..shape.digits).map(|k| b.bound_column(&format!("g{k}"), 0, (0, 3))).collect();
        squares(&mut b, "n", &rows, &shape, &digits, 1 << 14);
        b.finish()
    }

    fn built(d: usize, words: bool) -> Result<(), BuildError> {
        built_of(d, 1, words).map(|_| ())
    }

    #[test]
    fn a_split_sum_is_over_all_sheets() {
        let c = built_of(16_384, 4, true).unwrap();
        for (name, pair) in [("n.part00", "s00"), ("n.part02", "s02"), ("n.part22", "s22")] {
            let relation = c.relations.iter().find(|r| r.name == name).unwrap();
            let product = |v: &(i64, Value)| match v {
                (1, Value::Accumulator(i)) => c.products[*i].name.clone(),
                other => panic!("{other:?}"),
            };
            let found: Vec<String> = relation.values.iter().map(product).collect();
            assert_eq!(found, [0, 1, 2, 3].map(|s| format!("n.{s}.{pair}")));
        }
    }

    #[test]
    fn products_are_split_exactly_where_a_line_of_them_would_wrap() {
        for (d, split) in [(1, false), (4096, false), (5482, false), (5483, true), (8192, true), (16_384, true)] {
            assert_eq!(part_bits(d).is_some(), split, "{d}");
            let whole = built(d, false);
            assert_eq!(whole.is_ok(), !split, "{d}: {whole:?}");
            assert_eq!(built(d, true), Ok(()), "{d}");
        }
        let wraps = |r: Result<(), BuildError>| match r {
            Err(BuildError::Wraps { equation, .. }) => equation,
            other => panic!("{other:?}"),
        };
        assert_eq!(wraps(built(5483, false)), "n.square2");
        // The widest norm there is, beyond what registration admits.
        assert_eq!((part_bits(16_512), built(16_512, true)), (Some(14), Ok(())));
        assert_eq!(wraps(built(16_513, true)), "n.part00");
    }
}
