//! Columns of a norm.

use super::Filler;
use obelysk_model::infer::NormTrace;
use obelysk_protocol::circuit::norm::{INDEX_END, NormShape, shift_powers};
use obelysk_protocol::circuit::shape::Blocks;

/// Floor-split into `(low, high)` with `low` in `[0, 2^bits)`.
fn split(v: i64, bits: u32) -> (i64, i64) {
    (v & ((1 << bits) - 1), v >> bits)
}

/// Fills the norm named `name`; `rho_w` are the bits dropped before it.
pub(super) fn fill(f: &mut Filler<'_>, name: &str, blocks: Blocks, rho_w: &[i32], t: &NormTrace, eps: u64) {
    let tokens = 1usize << f.c.token_log;
    let z: Vec<i64> = t.x.iter().enumerate().map(|(i, &x)| i64::from(x) - i64::from(t.mu[i % tokens])).collect();
    f.set_blocks(name, ".rho_w", blocks, rho_w);
    let limb = |g: fn(i64) -> i64| z.iter().map(|&v| g(v)).collect::<Vec<i64>>();
    let limbs = [limb(|v| v & 255), limb(|v| v >> 8 & 255), limb(|v| v >> 16)];
    for (k, l) in limbs.iter().enumerate() {
        f.set_blocks(name, &format!(".z{k}"), blocks, l);
    }
    f.set_blocks(name, ".xp", blocks, &t.x_scaled);
    let remainder: Vec<i64> = z
        .iter()
        .enumerate()
        .map(|(i, &v)| {
            let (p1, p2, half) = shift_powers(usize::from(t.sigma[i % tokens]));
            v * p2 + half - i64::from(t.x_scaled[i]) * p1
        })
        .collect();
    f.set_blocks(name, ".rho", blocks, &remainder);
    f.set_blocks(name, ".u", blocks, &t.u);
    let mut row = Row { f, name, tokens };
    row.fill_scale(t);
    row.fill_mean(&limbs, blocks);
    row.fill_squares(&limbs, t, blocks, eps);
}

struct Row<'f, 'a> {
    f: &'f mut Filler<'a>,
    name: &'f str,
    tokens: usize,
}

impl Row<'_, '_> {
    fn set(&mut self, column: &str, value: impl Fn(usize) -> i64) {
        let name = format!("{}.row.{column}", self.name);
        self.f.set(&name, (0..self.tokens).map(value));
    }

    /// mu, sigma and what follows from them.
    fn fill_scale(&mut self, t: &NormTrace) {
        self.set("mu0", |i| split(i64::from(t.mu[i]), 16).0);
        self.set("mu1", |i| split(i64::from(t.mu[i]), 16).1);
        let powers = |i: usize| shift_powers(usize::from(t.sigma[i]));
        self.set("sigma", |i| i64::from(t.sigma[i]));
        self.set("p1", |i| powers(i).0);
        self.set("p2", |i| powers(i).1);
        self.set("half", |i| powers(i).2);
        self.set("index", |i| i64::from(t.index[i]));
        self.set("recip", |i| i64::from(t.recip[i]));
        let mut s = 0usize;
        while self.f.has(&format!("{}.row.o{s}", self.name)) {
            self.set(&format!("o{s}"), |i| i64::from(usize::from(t.sigma[i]) == s));
            s += 1;
        }
        let excess = |i: usize| {
            let sigma = u32::from(t.sigma[i]);
            if sigma == 0 { 0 } else { (t.s[i] >> (2 * sigma - 2)) as i64 - INDEX_END }
        };
        self.set("q0", |i| split(excess(i), 16).0);
        self.set("q1", |i| split(excess(i), 16).1);
    }

    /// Sums of one limb, or of a product of two, over all channels of a token.
    fn sums(&self, value: impl Fn(usize) -> i64, cells: usize) -> Vec<i64> {
        let mut out = vec![0i64; self.tokens];
        for i in 0..cells {
            out[i & (self.tokens - 1)] += value(i);
        }
        out
    }

    fn fill_mean(&mut self, limbs: &[Vec<i64>; 3], blocks: Blocks) {
        let d = (blocks.count << blocks.log) as i64;
        let cells = limbs[0].len();
        let [s0, s1, s2] = [0, 1, 2].map(|l: usize| self.sums(|i| limbs[l][i], cells));
        let value = |i: usize| s0[i] + (s1[i] << 8) + (s2[i] << 16) + d / 2;
        self.set("val", value);
        // S0 + floor(d/2) + 2^8 k0 = val, S1 - k0 = 2^8 k1, S2 = -k1 (`circuit::norm::mean`).
        self.set("k0", |i| s1[i] + (s2[i] << 8));
        self.set("k1", |i| -s2[i]);
    }

    fn fill_squares(&mut self, limbs: &[Vec<i64>; 3], t: &NormTrace, blocks: Blocks, eps: u64) {
        let cells = limbs[0].len();
        let shape = NormShape::new(blocks.count << blocks.log, eps);
        for k in 0..shape.digits {
            self.set(&format!("g{k}"), |i| (t.s[i] >> (2 * k)) as i64 & 3);
        }
        let product = |a: usize, b: usize| self.sums(|i| limbs[a][i] * limbs[b][i], cells);
        let (s00, s01, s02, s11, s12) = (product(0, 0), product(0, 1), product(0, 2), product(1, 1), product(1, 2));
        let lines: [Vec<i64>; 4] = [
            s00,
            s01.iter().map(|v| 2 * v).collect(),
            s02.iter().zip(&s11).map(|(a, b)| 2 * a + b).collect(),
            s12.iter().map(|v| 2 * v).collect(),
        ];
        let mut carry = vec![0i64; self.tokens];
        for (k, line) in lines.iter().enumerate() {
            let byte = (eps >> (8 * k) & 255) as i64;
            carry = carry.iter().zip(line).map(|(c, l)| (l + c + byte) >> 8).collect();
            self.set(&format!("c{k}l"), |i| split(carry[i], 16).0);
            self.set(&format!("c{k}h"), |i| split(carry[i], 16).1);
        }
    }
}
