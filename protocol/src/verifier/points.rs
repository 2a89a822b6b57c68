//! The points of a segment's proof, and public data evaluated at them.

use crate::circuit::segment::{Circuit, Coord, Eval, Factor, MatrixShape, PublicColumn, Selection, log2_ceil};
use crate::field::{IntWeights, ONE, QM31, ZERO, eq_at_index, eq_eval, eq_vector, lt_mle};

/// One half: `2^31 = 1` mod p.
const HALF: QM31 = QM31::from_u32_unchecked(1 << 30, 0, 0, 0);

/// The random points a segment's claims refer to.
#[derive(Clone, Debug, Default)]
pub struct Points {
    /// Where the LogUp tree, constraints and accumulators are claimed.
    pub rho: Vec<QM31>,
    /// Where the product sumcheck ends.
    pub kappa: Vec<QM31>,
    /// The boundary with the previous segment.
    pub boundary_in: Vec<QM31>,
    /// The boundary with the next segment.
    pub boundary_out: Vec<QM31>,
}

impl Points {
    /// The value of one coordinate.
    #[must_use]
    pub fn coord(&self, c: Coord) -> QM31 {
        let at = |v: &[QM31], k: usize| v.get(k).copied().unwrap_or(ZERO);
        match c {
            Coord::Rho(k) => at(&self.rho, k),
            Coord::Kappa(k) => at(&self.kappa, k),
            Coord::BoundaryIn(k) => at(&self.boundary_in, k),
            Coord::BoundaryOut(k) => at(&self.boundary_out, k),
            Coord::Half => HALF,
        }
    }

    /// The values of a list of coordinates.
    #[must_use]
    pub fn resolve(&self, coords: &[Coord]) -> Vec<QM31> {
        coords.iter().map(|&c| self.coord(c)).collect()
    }

    /// Weight of block `b` in a logical evaluation.
    #[must_use]
    pub fn block_weight(&self, eval: &Eval, b: usize) -> QM31 {
        eq_at_index(b, &self.resolve(&eval.hi))
    }

    /// `kappa[..n]` and `rho[from..from+n]` as slices.
    #[must_use]
    pub fn kappa_to(&self, n: usize) -> &[QM31] {
        self.kappa.get(..n).unwrap_or(&self.kappa)
    }

    /// A slice of rho.
    #[must_use]
    pub fn rho_range(&self, from: usize, n: usize) -> &[QM31] {
        self.rho.get(from..from + n).unwrap_or(&[])
    }
}

/// Value at kappa of a factor that the verifier evaluates itself; `None` for committed ones.
#[must_use]
pub fn public_factor(c: &Circuit, points: &Points, factor: &Factor) -> Option<QM31> {
    match factor {
        Factor::Claim(_) | Factor::Weight(_) => None,
        Factor::Eq { offset, coords } => {
            let y = points.kappa.get(*offset..offset + coords.len()).unwrap_or(&[]);
            Some(eq_eval(y, &points.resolve(coords)))
        }
        Factor::OneHot(i) => c.selections.get(*i).map(|s| selection_eval(c, s, points)),
        Factor::RealTokens => Some(lt_mle(c.tokens, points.kappa_to(c.token_log))),
    }
}

/// `sum eq(rho_t, t) eq(kappa, k)` over the entries.
fn selection_eval(c: &Circuit, s: &Selection, points: &Points) -> QM31 {
    let rows = eq_vector(points.rho_range(0, c.token_log));
    s.entries.iter().fold(ZERO, |acc, &(t, k)| {
        let w = rows.get(t as usize).copied().unwrap_or(ZERO);
        acc + w * eq_at_index(k as usize, points.kappa_to(s.vars))
    })
}

/// The extension of the attention mask over (i, head, j) at `z`: `sum_i eq(z_i, i) sum_{j visible to i} eq(z_j, j)`.
#[must_use]
pub fn mask_eval(c: &Circuit, z: &[QM31]) -> QM31 {
    let nt = c.token_log;
    let i = eq_vector(z.get(..nt).unwrap_or(&[]));
    let j = eq_vector(z.get(nt + c.block_heads_log..2 * nt + c.block_heads_log).unwrap_or(&[]));
    // before[k]: sum of the first k.
    let before: Vec<QM31> = std::iter::once(ZERO)
        .chain(j.iter().scan(ZERO, |sum, &e| {
            *sum += e;
            Some(*sum)
        }))
        .collect();
    let at = |k: u32| before.get(k as usize).copied().unwrap_or(ZERO);
    c.visible.iter().zip(&i).fold(ZERO, |acc, (&(first, end), &e)| acc + e * (at(end) - at(first)))
}

/// A public column's extension at a row's point.
#[must_use]
pub fn public_eval(c: &Circuit, column: &PublicColumn, z: &[QM31]) -> QM31 {
    let nt = c.token_log;
    let range = |from: usize, n: usize| z.get(from..from + n).unwrap_or(&[]);
    let rows = eq_vector(range(0, nt));
    match column {
        PublicColumn::Table { values, skip, log_channels } => {
            let channels = eq_vector(range(nt + skip, *log_channels));
            let rows = IntWeights::new(&rows);
            values.chunks_exact(1 << nt).zip(&channels).fold(ZERO, |acc, (values, &e)| acc + e * rows.inner(values))
        }
        PublicColumn::Below { thresholds, log_channels } => {
            let at = range(nt, *log_channels);
            thresholds.iter().zip(&rows).fold(ZERO, |acc, (&t, &r)| acc + r * lt_mle(t as usize, at))
        }
    }
}
/// Rows of a segment's registered oracle for a message length `2^h`.
#[must_use]
pub fn weight_rows(c: &Circuit, h: usize) -> usize {
    let tiles: usize = c.matrices.iter().map(|m| tile_grid(c, m).0 * tile_grid(c, m).1).sum();
    tiles.div_ceil(1 << (h - c.tile_k_log - c.tile_n_log))
}

/// Tiles of a matrix along k and n.
fn tile_grid(c: &Circuit, m: &MatrixShape) -> (usize, usize) {
    (m.inputs >> c.tile_k_log, m.outputs >> c.tile_n_log)
}

/// The weights of all tiles in one claim `sum_m gamma_m W_m(kappa, rho_n)`, slot fastest, zero beyond the last tile.
///
/// Tiles of a matrix are ordered by output tile, then input tile; inside a tile the input (k) is the low axis.
#[must_use]
pub fn tile_weights(c: &Circuit, points: &Points, gamma: &[QM31], h: usize) -> Vec<QM31> {
    let slots = 1usize << (h - c.tile_k_log - c.tile_n_log);
    let mut out = Vec::with_capacity(weight_rows(c, h) * slots);
    for (m, &g) in c.matrices.iter().zip(gamma) {
        let (tk, tn) = tile_grid(c, m);
        let k_hi = points.kappa.get(c.tile_k_log..log2_ceil(m.inputs)).unwrap_or(&[]);
        let n_hi = points.rho.get(c.token_log + c.tile_n_log..c.token_log + log2_ceil(m.outputs)).unwrap_or(&[]);
        let (ek, en) = (eq_vector(k_hi), eq_vector(n_hi));
        for &wn in en.iter().take(tn) {
            out.extend(ek.iter().take(tk).map(|&wk| g * wn * wk));
        }
    }
    out.resize(weight_rows(c, h) * slots, ZERO);
    out
}

/// The column point all tiles share: `kappa[..a]`, then `rho[n_t..n_t+b]`.
#[must_use]
pub fn tile_point(c: &Circuit, points: &Points) -> Vec<QM31> {
    [points.kappa_to(c.tile_k_log), points.rho_range(c.token_log, c.tile_n_log)].concat()
}

/// `prod (1 - z_j)`: a function of fewer variables placed in the low corner of more.
#[must_use]
pub fn low_corner(z: &[QM31]) -> QM31 {
    z.iter().fold(ONE, |acc, &v| acc * (ONE - v))
}
