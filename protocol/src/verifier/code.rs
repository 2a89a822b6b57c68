//! The circle code: which point a stored position is, how a word folds, and what a message encodes to at one position.
//!
//! A message of `2^h` symbols is read as coefficients in the basis where index bit 0 multiplies `y` and bit `k` multiplies
//! `π^(k-1)(x)`, `π(x) = 2x² - 1`. The word is stored bit-reversed on `CanonicCoset(h + b).circle_domain()`, so the two
//! positions that fold together are neighbours `2i, 2i + 1` in every round, and folding binds variable `x_0` first.
//! Encoding whole rows is the prover's business; this file never allocates a word.

use crate::field::{M31, ONE, QM31};
use stwo::core::circle::{CirclePointIndex, M31_CIRCLE_LOG_ORDER};

/// Largest supported log length of a word: the circle group has order `2^31` and a canonic coset needs one spare bit.
pub const MAX_LOG_WORD: u32 = 28;

type Point = (M31, M31);

fn add(a: Point, b: Point) -> Point {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

/// `π(x) = 2x² - 1`: the x-coordinate of the doubled point.
#[must_use]
pub fn double_x(x: M31) -> M31 {
    let xx = x * x;
    xx + xx - M31::from_u32_unchecked(1)
}

/// The evaluation domain of words of length `2^log_n`, addressed by *stored* (bit-reversed) position.
#[derive(Clone, Debug)]
pub struct CodeDomain {
    log_n: u32,
    first: Point,
    /// `steps[k - 1]`: the group element that stored bit `k >= 1` adds, of order `2^k` whatever the domain's size.
    steps: Vec<Point>,
}

impl CodeDomain {
    /// The domain of size `2^log_n`, `2 <= log_n <= MAX_LOG_WORD`; values outside are clamped into that range.
    #[must_use]
    pub fn new(log_n: u32) -> Self {
        let log_n = log_n.clamp(2, MAX_LOG_WORD);
        let at = |exp: u32| {
            let p = CirclePointIndex(1usize << exp).to_point();
            (p.x, p.y)
        };
        let first = at(M31_CIRCLE_LOG_ORDER - log_n - 1);
        let steps = (1..log_n).map(|k| at(M31_CIRCLE_LOG_ORDER - k)).collect();
        Self { log_n, first, steps }
    }

    /// Log of the number of positions.
    #[must_use]
    pub fn log_n(&self) -> u32 {
        self.log_n
    }

    /// Coordinates of the point stored at `position`; bits above `log_n` are ignored.
    #[must_use]
    pub fn point(&self, position: usize) -> (M31, M31) {
        let p = self
            .steps
            .iter()
            .enumerate()
            .filter(|(k, _)| position >> (k + 1) & 1 == 1)
            .fold(self.first, |acc, (_, &step)| add(acc, step));
        if position & 1 == 1 { (p.0, -p.1) } else { p }
    }

    /// Points stored at the even positions `0, 2, 4, ..`, in that order: what all twiddle tables are made from.
    #[must_use]
    pub fn even_points(&self) -> Vec<(M31, M31)> {
        let mut out = Vec::with_capacity(1 << (self.log_n - 1));
        out.push(self.first);
        for &step in &self.steps {
            for i in 0..out.len() {
                out.push(add(out[i], step));
            }
        }
        out
    }

    /// What the odd part of pair `(2·pair, 2·pair + 1)` is divided by in fold `round`: `y` in round 0, later the
    /// x-coordinate of the line domain reached by `round` folds.
    #[must_use]
    pub fn twiddle(&self, round: u32, pair: usize) -> M31 {
        let (x, y) = self.point(pair << (round + 1));
        if round == 0 { y } else { (1..round).fold(x, |t, _| double_x(t)) }
    }

    /// Folds a block of `2^alphas.len()` neighbours, block number `block` of the word after `round` folds, to the one
    /// symbol at position `block` of the word after `round + alphas.len()` folds.
    #[must_use]
    pub fn fold_block(&self, round: u32, block: usize, values: &[QM31], alphas: &[QM31]) -> QM31 {
        debug_assert_eq!(values.len(), 1 << alphas.len());
        let inverses = self.block_inverses(round, block, alphas.len());
        let (mut word, mut rest) = (values.to_vec(), inverses.as_slice());
        for &alpha in alphas {
            let (now, later) = rest.split_at(word.len() / 2);
            word = word.chunks_exact(2).zip(now).map(|(p, &t_inv)| fold_pair(p[0], p[1], t_inv, alpha)).collect();
            rest = later;
        }
        word.first().copied().unwrap_or_default()
    }

    /// Inverses of [`Self::twiddle`] of all pairs that `folds` folds of a block meet, fold after fold; one inversion in all.
    fn block_inverses(&self, round: u32, block: usize, folds: usize) -> Vec<M31> {
        if folds == 0 {
            return Vec::new();
        }
        // The points of the first fold's pairs differ in their low bits only.
        let mut points = vec![self.point(block << (folds as u32 + round))];
        for step in self.steps.iter().skip(round as usize).take(folds - 1) {
            for i in 0..points.len() {
                points.push(add(points[i], *step));
            }
        }
        let doubled = |x: M31| (1..round).fold(x, |t, _| double_x(t));
        let mut twiddles: Vec<M31> = points.iter().map(|&(x, y)| if round == 0 { y } else { doubled(x) }).collect();
        // Pair i of the next fold lies at the doubled point of pair 2i of this one; the first doubling only leaves y out.
        let mut next: Vec<M31> = points.iter().map(|&(x, _)| if round == 0 { x } else { double_x(doubled(x)) }).collect();
        for _ in 1..folds {
            next = next.into_iter().step_by(2).collect();
            twiddles.extend(&next);
            next = next.into_iter().map(double_x).collect();
        }
        inverses(&twiddles)
    }

    /// The symbol at `position` of the encoding of `message`, on the domain reached by `round` folds.
    ///
    /// `round = 0` uses the circle basis, later rounds the line basis `x^(i_0) π(x)^(i_1) ..`.
    #[must_use]
    pub fn encode_at(&self, round: u32, position: usize, message: &[QM31]) -> QM31 {
        let (x, y) = self.point(position << round);
        let mut x = (1..round).fold(x, |t, _| double_x(t));
        let mut m = message.to_vec();
        let mut circle_step = round == 0;
        while m.len() > 1 {
            let factor = if circle_step { y } else { x };
            m = m.chunks(2).map(|p| p[0] + p.get(1).map_or_else(QM31::default, |&odd| odd * factor)).collect();
            if !circle_step {
                x = double_x(x);
            }
            circle_step = false;
        }
        m.first().copied().unwrap_or_default()
    }
}

/// Inverses of non-zero elements at the price of one (Montgomery's trick).
fn inverses(values: &[M31]) -> Vec<M31> {
    let one = M31::from_u32_unchecked(1);
    // before[i]: the product of the first i.
    let products = values.iter().scan(one, |product, &v| Some(std::mem::replace(product, *product * v)));
    let before: Vec<M31> = products.collect();
    let (Some(&last), Some(&product)) = (values.last(), before.last()) else { return Vec::new() };
    let mut rest = (product * last).inverse();
    let mut out = before;
    for (slot, &v) in out.iter_mut().zip(values).rev() {
        *slot *= rest;
        rest *= v;
    }
    out
}

/// `(1 - α) f_e + α f_o` with `f_e = (p + n) / 2`, `f_o = (p - n) / (2t)`; `t_inv = 1 / t`.
#[must_use]
pub fn fold_pair(p: QM31, n: QM31, t_inv: M31, alpha: QM31) -> QM31 {
    let half = M31::from_u32_unchecked(1 << 30);
    ((ONE - alpha) * (p + n) + alpha * ((p - n) * t_inv)) * half
}

#[cfg(test)]
mod tests {
    use super::*;
    use stwo::core::poly::circle::CanonicCoset;
    use stwo::core::utils::bit_reverse_index;

    #[test]
    fn points_are_those_of_the_canonic_coset() {
        for log_n in 3..8 {
            let d = CodeDomain::new(log_n);
            let stwo = CanonicCoset::new(log_n).circle_domain();
            let evens = d.even_points();
            for j in 0..1usize << log_n {
                let p = stwo.at(bit_reverse_index(j, log_n));
                assert_eq!(d.point(j), (p.x, p.y));
                if j % 2 == 0 {
                    assert_eq!(evens[j / 2], (p.x, p.y));
                }
            }
        }
    }

    #[test]
    fn partners_are_neighbours_in_every_round() {
        let d = CodeDomain::new(7);
        for i in 0..64 {
            let (a, b) = (d.point(2 * i), d.point(2 * i + 1));
            assert_eq!((a.0, a.1), (b.0, -b.1));
        }
        for round in 1..5 {
            let x = |stored: usize| (1..round).fold(d.point(stored << round).0, |t, _| double_x(t));
            for i in 0..1usize << (6 - round) {
                assert_eq!(x(2 * i), -x(2 * i + 1));
                assert_eq!(x(2 * i), d.twiddle(round, i));
            }
        }
    }

    #[test]
    fn encoding_commutes_with_folding_in_every_round() {
        let (h, b) = (4u32, 2u32);
        let d = CodeDomain::new(h + b);
        let mut m: Vec<QM31> = (0..1u32 << h).map(|i| QM31::from_u32_unchecked(i * i + 3, 5 * i, 77 - i, i)).collect();
        for round in 0..h {
            let alpha = QM31::from_u32_unchecked(round + 9, 4, 3, 2);
            let folded: Vec<QM31> = m.chunks_exact(2).map(|p| (ONE - alpha) * p[0] + alpha * p[1]).collect();
            for i in 0..1usize << (h + b - round - 1) {
                let pair = [d.encode_at(round, 2 * i, &m), d.encode_at(round, 2 * i + 1, &m)];
                assert_eq!(d.fold_block(round, i, &pair, &[alpha]), d.encode_at(round + 1, i, &folded));
            }
            m = folded;
        }
    }

    #[test]
    fn inverses_of_a_block_are_those_of_its_twiddles() {
        let d = CodeDomain::new(9);
        for round in 0..6 {
            for folds in 1..4usize {
                for block in 0..1usize << (9 - round as usize - folds) {
                    let pairs = |k: usize| (0..1usize << (folds - k - 1)).map(move |i| (k, (block << (folds - k - 1)) + i));
                    let twiddle = |(k, pair)| d.twiddle(round + k as u32, pair).inverse();
                    let expected: Vec<M31> = (0..folds).flat_map(pairs).map(twiddle).collect();
                    assert_eq!(d.block_inverses(round, block, folds), expected, "{round} {folds} {block}");
                }
            }
        }
    }
}
