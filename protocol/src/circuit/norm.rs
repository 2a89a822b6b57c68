//! LayerNorm on integers: `u = norm(x)` where `2^w x + rho_w = rhs` and x itself is never committed; RMSNorm of an input
//! committed in limbs, per token or per (token, head).
//!
//! Element: z = x - mu in limbs, `z 2^7 + half = x' 2^sigma + rho` (rounded shift), `u = floor((x' R + 2^13) / 2^14)`.
//! Row: mu is the integer with `0 <= sum z + floor(d/2) < d`; `S = sum z^2 + eps` in base-4 digits through a carry chain
//! ([`squares`]); sigma is the least with `S >> 2 sigma < 65280`; `R = floor(32000 2^7 / sqrt(i))`, `i = S >> 2 sigma`.

use super::builder::{Builder, Case};
use super::expr::{Expr, Source};
use super::segment::{Coord, Eval, Relation};
use super::shape::{Blocks, Logical, join, rho};
use super::table::{RowIndex, TableColumn};
use std::sync::Arc;

pub mod squares;

/// i < 65280: the reciprocal table ends here.
pub const INDEX_END: i64 = 65_280;
/// First row of the reciprocal table; `eps >= 2^14` keeps i at or above it.
pub const INDEX_BEGIN: i64 = 16_320;
/// Digits of i in base 4.
const INDEX_DIGITS: usize = 8;
/// |z| <= 255 * 2^16 + 65535 by its limbs: two lookups on the top limb keep `2^7 z` below p.
const TOP_LIMB: (i64, i64) = (-255, 254);
/// Bits by which z is scaled before the shift by sigma.
const PRE_SHIFT: usize = 7;
/// Largest sigma of any norm: with the next one `x' 2^(sigma - 7)` would reach p.
const SIGMA_TOP: usize = PRE_SHIFT + 15;
/// Largest S that [`SIGMA_TOP`] brings into the reciprocal table. A larger one has no witness: registration refuses a model
/// that could have one (only beyond 15,000 channels is any as large).
pub const SUM_TOP: u64 = ((INDEX_END as u64) << (2 * SIGMA_TOP)) - 1;

/// Plus the largest sigma (at most 63), which decides the content.
const TAG_SIGMA: u32 = 192;
const TAG_RECIPROCAL: u32 = 161;

/// Sizes that follow from the width alone.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// Base-4 digits of S.
    pub digits: usize,
    /// Largest sigma.
    pub sigma_max: usize,
    /// High limb bits of a signed carry between lines of bytes.
    pub carry_bits: usize,
    /// Bits of a product's high part, in a norm so wide that lines of products would reach p; else its lines are whole.
    pub part_bits: Option<usize>,
    /// Bits that hold d - 1.
    pub width_bits: usize,
}

impl NormShape {
    /// Sizes of a LayerNorm of width `d`.
    #[must_use]
    pub fn new(d: usize, eps: u64) -> Self {
        Self::of(255 << 16 | 0xffff, d, 3, eps)
    }

    /// Sizes for inputs of magnitude `z_max` in `limbs` limbs, width `d`.
    #[must_use]
    pub fn of(z_max: u128, d: usize, limbs: usize, eps: u64) -> Self {
        let s_max = (d as u128 * z_max * z_max + u128::from(eps)).min(SUM_TOP.into());
        let bits = 128 - s_max.leading_zeros() as usize;
        let sigma_max = (0..=SIGMA_TOP).find(|s| s_max >> (2 * s) < INDEX_END as u128).unwrap_or(SIGMA_TOP);
        let width_bits = d.next_power_of_two().trailing_zeros() as usize;
        let last = 4 * (2 * limbs.max(1) - 2);
        let digits = bits.div_ceil(2).max(last + INDEX_DIGITS);
        let (carry_bits, part_bits) = (squares::carry_bits(d), squares::part_bits(d));
        Self { digits, sigma_max, carry_bits, part_bits, width_bits }
    }
}

/// Powers applied for a sigma: `(P1, P2, half)` with `z P2 + half = x' P1 + rho`, `rho` in `[0, P1)`.
#[must_use]
pub fn shift_powers(sigma: usize) -> (i64, i64, i64) {
    if sigma <= PRE_SHIFT {
        (1, 1 << (PRE_SHIFT - sigma), 0)
    } else {
        (1 << (sigma - PRE_SHIFT), 1, 1 << (sigma - PRE_SHIFT - 1))
    }
}

/// The (sigma, rho) table: all remainders of every sigma; the rest repeats the first row.
#[must_use]
pub fn sigma_table(sigma_max: usize) -> (Vec<i32>, Vec<i32>, usize) {
    let mut rows: Vec<(i32, i32)> = Vec::new();
    for s in 0..=sigma_max {
        rows.extend((0..shift_powers(s).0).map(|r| (s as i32, r as i32)));
    }
    let log = rows.len().next_power_of_two().trailing_zeros() as usize;
    rows.resize(1 << log, (0, 0));
    (rows.iter().map(|r| r.0).collect(), rows.iter().map(|r| r.1).collect(), log)
}

/// `floor(32000 * 2^7 / sqrt(i))` for `i` in `[16320, 65280)`, computed exactly; the rest repeats the first row.
#[must_use]
pub fn reciprocal_table() -> (Vec<i32>, Vec<i32>) {
    // floor(sqrt(N / (i 2^14))) with N = (32000 2^14)^2, so no rounding of a square root is ever involved.
    let cap = (32_000u64 << 14).pow(2);
    let row = |i: i64| (cap / ((i as u64) << 14)).isqrt() as i32;
    let mut rows: Vec<(i32, i32)> = (INDEX_BEGIN..INDEX_END).map(|i| (i as i32, row(i))).collect();
    let first = rows[0];
    rows.resize(1 << 16, first);
    (rows.iter().map(|r| r.0).collect(), rows.iter().map(|r| r.1).collect())
}

/// Per-token columns that the element chip reads.
struct Row {
    mu: Expr,
    p1: u32,
    p2: u32,
    half: u32,
    sigma: u32,
    recip: u32,
    onehot_cases: Vec<Case>,
}

/// What a norm sums over: limbs of its input, low limb first, and the name of each block.
pub struct Sheet {
    /// One logical column per limb; rows are its low variables.
    pub limbs: Vec<Logical>,
    /// One name per block.
    pub names: Vec<String>,
}

/// Rows of a norm: `2^vars` of them, over the channels of all sheets.
struct Rows<'a> {
    vars: usize,
    sheets: &'a [Sheet],
}

impl Rows<'_> {
    /// Channels of a row.
    fn width(&self) -> usize {
        let sheet = |s: &Sheet| s.limbs.first().map_or(0, |l| l.blocks.len() << (l.lo - self.vars));
        self.sheets.iter().map(sheet).sum()
    }

    /// Limbs of an input.
    fn limbs(&self) -> usize {
        self.sheets.first().map_or(0, |s| s.limbs.len())
    }
}

/// Adds the LayerNorm named `name`. `rhs[b]` is block b's `2^w x + rho_w`, for `w = shift`.
pub fn norm(b: &mut Builder, name: &str, blocks: Blocks, shift: usize, rhs: &[Expr], eps: u64) -> Logical {
    let nt = b.circuit().token_log;
    let n = nt + blocks.log;
    let d = blocks.count << blocks.log;
    let shape = NormShape::new(d, eps);
    let row = row_columns(b, name, nt, &shape, true);
    let mut limbs: [Vec<u32>; 3] = Default::default();
    let mut out = Vec::new();
    for (i, rhs) in rhs.iter().enumerate() {
        let p = format!("{name}.{i}");
        let z0 = b.bound_column(&format!("{p}.z0"), n, (0, 255));
        let z1 = b.bound_column(&format!("{p}.z1"), n, (0, 255));
        let z2 = b.bound_column(&format!("{p}.z2"), n, TOP_LIMB);
        for (l, z) in limbs.iter_mut().zip([z0, z1, z2]) {
            l.push(z);
        }
        let z = limb_sum(&[z0, z1, z2]);
        let rho_w = b.bound_column(&format!("{p}.rho_w"), n, (0, (1 << shift) - 1));
        let x = z.clone() + row.mu.clone();
        b.constrain(&format!("{p}.input"), x.scale(1 << shift) + Expr::col(rho_w) - rhs.clone(), n, &[]);
        out.push(element(b, &p, n, &shape, &row, z));
    }
    mean(b, name, blocks, &shape, &limbs);
    let limbs = limbs.into_iter().map(|blocks_of| Logical { blocks: blocks_of, lo: n, hi: blocks.hi() }).collect();
    let sheets = [Sheet { limbs, names: Vec::new() }];
    row_equations(b, name, &Rows { vars: nt, sheets: &sheets }, &shape, eps);
    Logical { blocks: out, lo: n, hi: blocks.hi() }
}

/// Adds the RMSNorm named `name` of an input given in limbs, `2^vars` rows; `top` bounds the input's magnitude. Returns u per
/// sheet.
pub fn rms_norm(b: &mut Builder, name: &str, vars: usize, sheets: &[Sheet], top: i64, eps: u64) -> Vec<Logical> {
    let rows = Rows { vars, sheets };
    let shape = NormShape::of(top.unsigned_abs().into(), rows.width(), rows.limbs(), eps);
    let row = row_columns(b, name, vars, &shape, false);
    let mut out = Vec::new();
    for sheet in sheets {
        let Some(first) = sheet.limbs.first() else { continue };
        let mut blocks = Vec::new();
        for (i, p) in sheet.names.iter().enumerate() {
            let cols: Vec<u32> = sheet.limbs.iter().filter_map(|l| l.blocks.get(i).copied()).collect();
            blocks.push(element(b, p, first.lo, &shape, &row, limb_sum(&cols)));
        }
        out.push(Logical { blocks, lo: first.lo, hi: first.hi });
    }
    row_equations(b, name, &rows, &shape, eps);
    out
}

/// `sum limb_k 2^(8k)`.
#[must_use]
pub fn limb_sum(limbs: &[u32]) -> Expr {
    limbs.iter().enumerate().fold(Expr::default(), |e, (k, &l)| e + Expr::col(l).scale(1 << (8 * k)))
}

/// x', rho, u of one block.
fn element(b: &mut Builder, p: &str, n: usize, shape: &NormShape, row: &Row, z: Expr) -> u32 {
    let xp = b.bound_column(&format!("{p}.xp"), n, (-(1 << 15), (1 << 15) - 1));
    let rem = b.column(&format!("{p}.rho"), n);
    let u = b.bound_column(&format!("{p}.u"), n, (-(1 << 15), (1 << 15) - 1));
    let sigma_max = shape.sigma_max;
    let (s, r, log) = sigma_table(sigma_max);
    let mut starts = vec![0usize];
    starts.extend((0..=sigma_max).scan(0usize, |end, s| {
        *end += shift_powers(s).0 as usize;
        Some(*end)
    }));
    let runs = RowIndex::Runs { starts: Arc::new(starts) };
    let t = b.table(&format!("sigma.{sigma_max}"), TAG_SIGMA + sigma_max as u32, log, runs, || {
        vec![TableColumn::Function(Arc::new(s)), TableColumn::Function(Arc::new(r))]
    });
    b.lookup(t, vec![Expr::col(row.sigma), Expr::col(rem)], n, false);
    let e = z * Expr::col(row.p2) + Expr::col(row.half) - Expr::col(xp) * Expr::col(row.p1) - Expr::col(rem);
    b.constrain(&format!("{p}.shift"), e, n, &row.onehot_cases);
    let scaled = Expr::col(xp) * Expr::col(row.recip) + Expr::constant(1 << 13) - Expr::col(u).scale(1 << 14);
    b.virtual_range(&format!("{p}.scale"), scaled, 14, n, &[]);
    u
}

/// Commits the per-token columns in a fixed order; equations follow in [`row_equations`].
fn row_columns(b: &mut Builder, name: &str, nt: usize, shape: &NormShape, centred: bool) -> Row {
    let col = |b: &mut Builder, s: &str, w| b.bound_column(&format!("{name}.row.{s}"), nt, w);
    let mu = if centred {
        let mu0 = col(b, "mu0", (0, 65_535));
        let mu1 = col(b, "mu1", (-128, 127));
        Expr::col(mu0) + Expr::col(mu1).scale(1 << 16)
    } else {
        Expr::default()
    };
    let free = |b: &mut Builder, s: &str| b.column(&format!("{name}.row.{s}"), nt);
    let sigma = free(b, "sigma");
    let p1 = free(b, "p1");
    let p2 = free(b, "p2");
    let half = free(b, "half");
    let index = free(b, "index");
    let recip = free(b, "recip");
    let table = b.table("reciprocal", TAG_RECIPROCAL, 16, RowIndex::First { offset: INDEX_BEGIN }, || {
        let (i, r) = reciprocal_table();
        vec![TableColumn::Function(Arc::new(i)), TableColumn::Function(Arc::new(r))]
    });
    b.lookup(table, vec![Expr::col(index), Expr::col(recip)], nt, false);
    // sigma, p1, p2 and half are proven to be linear functions of a one-hot vector (row_equations), hence these windows.
    let powers: Vec<(i64, i64, i64)> = (0..=shape.sigma_max).map(shift_powers).collect();
    let max = |f: fn(&(i64, i64, i64)) -> i64| powers.iter().map(f).max().unwrap_or(0);
    b.assume_window(sigma, (0, shape.sigma_max as i64));
    b.assume_window(p1, (1, max(|p| p.0)));
    b.assume_window(p2, (1, max(|p| p.1)));
    b.assume_window(half, (0, max(|p| p.2)));
    let onehot_cases = powers
        .iter()
        .enumerate()
        .map(|(s, p)| {
            let c = |id, v| (Source::Col(id), v);
            vec![c(sigma, s as i64), c(p1, p.0), c(p2, p.1), c(half, p.2)]
        })
        .collect();
    Row { mu, p1, p2, half, sigma, recip, onehot_cases }
}

fn named(b: &mut Builder, name: &str) -> u32 {
    let found = b.circuit().columns.iter().position(|c| c.name == name);
    found.map_or_else(
        || {
            b.fail_shape(format!("no column named {name}"));
            0
        },
        |i| i as u32,
    )
}

/// The sum of squares, sigma and the index.
fn row_equations(b: &mut Builder, name: &str, rows: &Rows<'_>, shape: &NormShape, eps: u64) {
    let nt = rows.vars;
    let digits: Vec<u32> = (0..shape.digits).map(|k| b.bound_column(&format!("{name}.row.g{k}"), nt, (0, 3))).collect();
    squares::squares(b, name, rows, shape, &digits, eps);
    let onehot: Vec<u32> = (0..=shape.sigma_max).map(|s| b.column(&format!("{name}.row.o{s}"), nt)).collect();
    for &o in &onehot {
        // o^2 = o mod p has the roots 0 and 1 only, so this needs no window beforehand.
        b.force_zero(&format!("{name}.bit"), Expr::col(o) * Expr::col(o) - Expr::col(o), nt);
        b.assume_window(o, (0, 1));
    }
    let sum = onehot.iter().fold(Expr::constant(-1), |e, &o| e + Expr::col(o));
    b.constrain(&format!("{name}.one_sigma"), sum, nt, &[]);
    for (s, f) in [("sigma", 0usize), ("p1", 1), ("p2", 2), ("half", 3)] {
        let c = named(b, &format!("{name}.row.{s}"));
        let value = |k: usize| {
            let p = shift_powers(k);
            [k as i64, p.0, p.1, p.2][f]
        };
        let e = onehot.iter().enumerate().fold(Expr::col(c), |e, (k, &o)| e - Expr::col(o).scale(value(k)));
        b.constrain(&format!("{name}.{s}"), e, nt, &[]);
    }
    index_equations(b, name, nt, shape, &digits, &onehot);
}

/// `0 <= sum z + floor(d/2) < d`, with carries between the limb sums.
fn mean(b: &mut Builder, name: &str, blocks: Blocks, shape: &NormShape, limbs: &[Vec<u32>; 3]) {
    let nt = b.circuit().token_log;
    let d = (blocks.count << blocks.log) as i64;
    let carry = 1i64 << (shape.width_bits + 1);
    let val = b.bound_column(&format!("{name}.row.val"), nt, (0, d - 1));
    let k0 = b.bound_column(&format!("{name}.row.k0"), nt, (-carry, carry - 1));
    let k1 = b.bound_column(&format!("{name}.row.k1"), nt, (-carry, carry - 1));
    let sum = |l: usize| {
        let lo = join(&[rho(0, nt), vec![Coord::Half; blocks.log]]);
        (1i64 << (blocks.log + blocks.hi()), Eval { blocks: limbs[l].clone(), lo, hi: vec![Coord::Half; blocks.hi()] })
    };
    let at = |c: u32| Eval { blocks: vec![c], lo: rho(0, nt), hi: Vec::new() };
    let mut add = |n: &str, terms: Vec<(i64, Eval)>, constant: i64| {
        let constant = (constant != 0).then(|| (constant, 1, Vec::new()));
        b.relate(Relation { name: format!("{name}.{n}"), terms, constant, values: Vec::new() }, 0);
    };
    add("mean0", vec![sum(0), (1 << 8, at(k0)), (-1, at(val))], d / 2);
    add("mean1", vec![sum(1), (-1, at(k0)), (-(1 << 8), at(k1))], 0);
    add("mean2", vec![sum(2), (1, at(k1))], 0);
}

/// `i = S >> 2 sigma`, nothing above it, and sigma is the least.
fn index_equations(b: &mut Builder, name: &str, nt: usize, shape: &NormShape, digits: &[u32], onehot: &[u32]) {
    let index = named(b, &format!("{name}.row.index"));
    let window = |from: usize, count: usize| {
        (0..count).fold(Expr::default(), |e, k| digits.get(from + k).map_or(e.clone(), |&g| e + Expr::col(g).scale(1 << (2 * k))))
    };
    let mut value = Expr::col(index);
    let mut above = Expr::default();
    let mut previous = Expr::default();
    for (s, &o) in onehot.iter().enumerate() {
        value = value - Expr::col(o) * window(s, INDEX_DIGITS);
        let high = digits.iter().skip(s + INDEX_DIGITS).fold(Expr::default(), |e, &g| e + Expr::col(g));
        above = above + Expr::col(o) * high;
        if s > 0 {
            previous = previous + Expr::col(o) * (window(s - 1, INDEX_DIGITS + 1) - Expr::constant(INDEX_END));
        }
    }
    debug_assert!(shape.sigma_max < digits.len());
    b.constrain(&format!("{name}.index"), value, nt, &[]);
    b.constrain(&format!("{name}.above"), above, nt, &[]);
    let q0 = b.bound_column(&format!("{name}.row.q0"), nt, (0, 65_535));
    let q1 = b.bound_column(&format!("{name}.row.q1"), nt, (0, 3));
    let least = previous - Expr::col(q0) - Expr::col(q1).scale(1 << 16);
    b.constrain(&format!("{name}.least_sigma"), least, nt, &[]);
}
