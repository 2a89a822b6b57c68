//! Columns of a norm: of a LayerNorm, which subtracts a mean, and of an RMSNorm, per token or per (token, head).
//!
//! Rows are the low bits of a cell's index, so the row of cell `k` is `k` modulo the number of rows.

use super::Filler;
use crate::hidden::limb;
use obelysk_model::infer::NormTrace;
use obelysk_protocol::circuit::norm::squares::WORD_LOG;
use obelysk_protocol::circuit::norm::{INDEX_END, shift_powers};

/// Floor-split into `(low, high)` with `low` in `[0, 2^bits)`.
fn split(v: i64, bits: u32) -> (i64, i64) {
    (v & ((1 << bits) - 1), v >> bits)
}

/// What a norm computed; its rows are those of `s`.
#[derive(Clone, Copy)]
pub(super) struct Normed<'a> {
    pub(super) s: &'a [u64],
    pub(super) sigma: &'a [u8],
    pub(super) index: &'a [u32],
    pub(super) recip: &'a [i32],
    pub(super) x_scaled: &'a [i32],
    pub(super) u: &'a [i16],
}

/// Fills the LayerNorm named `name`; `rho_w` are the bits dropped before it.
pub(super) fn layer_norm(f: &mut Filler<'_>, name: &str, rho_w: &[i32], t: &NormTrace, eps: u64) {
    let rows = t.mu.len();
    let z: Vec<i32> = t.x.iter().enumerate().map(|(i, &x)| x - t.mu[i % rows]).collect();
    f.set_blocks(name, ".rho_w", rho_w);
    for l in 0..3 {
        f.fill(name, &format!(".z{l}"), z.len(), |k| limb(z[k], l, 3).into());
    }
    f.set_row(name, "mu0", rows, |i| split(t.mu[i].into(), 16).0);
    f.set_row(name, "mu1", rows, |i| split(t.mu[i].into(), 16).1);
    fill_mean(f, name, &z, rows);
    let t = Normed { s: &t.s, sigma: &t.sigma, index: &t.index, recip: &t.recip, x_scaled: &t.x_scaled, u: &t.u };
    fill(f, name, (&z, 3), t, eps);
}

/// Fills what every norm of `z`, given in `limbs`, has.
pub(super) fn fill(f: &mut Filler<'_>, name: &str, (z, limbs): (&[i32], usize), t: Normed<'_>, eps: u64) {
    let rows = t.s.len();
    f.set_blocks(name, ".xp", t.x_scaled);
    f.fill(name, ".rho", z.len(), |k| {
        let (p1, p2, half) = shift_powers(t.sigma[k % rows].into());
        i64::from(z[k]) * p2 + half - i64::from(t.x_scaled[k]) * p1
    });
    f.set_blocks(name, ".u", t.u);
    fill_scale(f, name, t);
    fill_squares(f, name, (z, limbs), t.s, eps);
}

/// sigma and what follows from it.
fn fill_scale(f: &mut Filler<'_>, name: &str, t: Normed<'_>) {
    let rows = t.s.len();
    let powers = |i: usize| shift_powers(t.sigma[i].into());
    f.set_row(name, "sigma", rows, |i| t.sigma[i].into());
    f.set_row(name, "p1", rows, |i| powers(i).0);
    f.set_row(name, "p2", rows, |i| powers(i).1);
    f.set_row(name, "half", rows, |i| powers(i).2);
    f.set_row(name, "index", rows, |i| t.index[i].into());
    f.set_row(name, "recip", rows, |i| t.recip[i].into());
    for s in (0..).take_while(|s| f.has(&format!("{name}.row.o{s}"))).collect::<Vec<usize>>() {
        f.set_row(name, &format!("o{s}"), rows, |i| i64::from(usize::from(t.sigma[i]) == s));
    }
    let excess = |i: usize| {
        let sigma = u32::from(t.sigma[i]);
        if sigma == 0 { 0 } else { (t.s[i] >> (2 * sigma - 2)) as i64 - INDEX_END }
    };
    f.set_row(name, "q0", rows, |i| split(excess(i), 16).0);
    f.set_row(name, "q1", rows, |i| split(excess(i), 16).1);
}

fn fill_mean(f: &mut Filler<'_>, name: &str, z: &[i32], rows: usize) {
    let d = (z.len() / rows) as i64;
    let mut sums = vec![[0i64; 3]; rows];
    for (k, &v) in z.iter().enumerate() {
        (0..3).for_each(|l| sums[k % rows][l] += i64::from(limb(v, l, 3)));
    }
    f.set_row(name, "val", rows, |i| sums[i][0] + (sums[i][1] << 8) + (sums[i][2] << 16) + d / 2);
    // S0 + floor(d/2) + 2^8 k0 = val, S1 - k0 = 2^8 k1, S2 = -k1 (`circuit::norm::mean`).
    f.set_row(name, "k0", rows, |i| sums[i][1] + (sums[i][2] << 8));
    f.set_row(name, "k1", rows, |i| -sums[i][2]);
}

/// Digits of S, the carries of its chain and, in a wide norm, the parts of every sum of products (`circuit::norm::squares`).
fn fill_squares(f: &mut Filler<'_>, name: &str, (z, limbs): (&[i32], usize), s: &[u64], eps: u64) {
    let rows = s.len();
    for k in (0..).take_while(|k| f.has(&format!("{name}.row.g{k}"))).collect::<Vec<usize>>() {
        // A norm narrower than its digits has zeros above.
        f.set_row(name, &format!("g{k}"), rows, |i| s[i].checked_shr(2 * k as u32).unwrap_or(0) as i64 & 3);
    }
    let wide = f.has(&format!("{name}.row.s00l"));
    // The last line has no carry, so only parts need its products.
    let pairs = (0..limbs).flat_map(|x| (x..limbs).map(move |y| (x, y)));
    let sums: Vec<Sum> =
        pairs.filter(|(x, y)| wide || x + y < 2 * limbs - 2).map(|pair| Sum::new(z, pair, limbs, rows)).collect();
    let terms: Vec<Line> = if wide { parts(f, name, &sums) } else { sums.iter().map(Sum::line).collect() };
    carries(f, name, &terms, eps, (rows, if wide { limbs - 1 } else { 2 * limbs - 2 }, wide));
}

/// Sums of the products of limbs x and y, one per row.
struct Sum {
    x: usize,
    y: usize,
    values: Vec<i64>,
}

/// What is added to line `line` of a chain in every row.
struct Line {
    line: usize,
    weight: i64,
    values: Vec<i64>,
}

impl Sum {
    fn new(z: &[i32], (x, y): (usize, usize), limbs: usize, rows: usize) -> Self {
        let product = |v: i32| i64::from(limb(v, x, limbs)) * i64::from(limb(v, y, limbs));
        let mut values = vec![0i64; rows];
        for row in z.chunks(rows) {
            values.iter_mut().zip(row).for_each(|(sum, &v)| *sum += product(v));
        }
        Self { x, y, values }
    }

    const fn weight(&self) -> i64 {
        if self.x == self.y { 1 } else { 2 }
    }

    /// Of a chain of bytes.
    fn line(&self) -> Line {
        Line { line: self.x + self.y, weight: self.weight(), values: self.values.clone() }
    }
}

/// Fills the parts of every sum, and gives what they add to a chain of words; what is above a line's word goes to a later one.
fn parts(f: &mut Filler<'_>, name: &str, sums: &[Sum]) -> Vec<Line> {
    let mut out = Vec::new();
    for sum in sums {
        let (low, high): (Vec<i64>, Vec<i64>) = sum.values.iter().map(|&v| split(v, WORD_LOG as u32)).unzip();
        for (suffix, shift, values) in [("l", 0, low), ("h", WORD_LOG, high)] {
            f.set(&format!("{name}.row.s{}{}{suffix}", sum.x, sum.y), values.iter().copied());
            let bits = 8 * (sum.x + sum.y) + shift;
            out.push(Line { line: bits / WORD_LOG, weight: sum.weight() << (bits % WORD_LOG), values });
        }
    }
    out
}

/// Carries of a chain of words or bytes, out of each of `count` lines.
fn carries(f: &mut Filler<'_>, name: &str, terms: &[Line], eps: u64, (rows, count, words): (usize, usize, bool)) {
    let base = if words { WORD_LOG } else { 8 };
    let mut carry = vec![0i64; rows];
    for k in 0..count {
        let own = (eps >> (base * k) & ((1 << base) - 1)) as i64;
        carry.iter_mut().for_each(|c| *c += own);
        for t in terms.iter().filter(|t| t.line == k) {
            carry.iter_mut().zip(&t.values).for_each(|(c, v)| *c += t.weight * v);
        }
        carry.iter_mut().for_each(|c| *c >>= base);
        if words {
            f.set_row(name, &format!("c{k}"), rows, |i| carry[i]);
        } else {
            f.set_row(name, &format!("c{k}l"), rows, |i| split(carry[i], 16).0);
            f.set_row(name, &format!("c{k}h"), rows, |i| split(carry[i], 16).1);
        }
    }
}
