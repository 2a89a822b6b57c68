//! The points of a segment's proof, and public data evaluated at them.
//!
//! It refuses a circuit that names a coordinate, a row or an entry that is not there: whatever was put in its place would be
//! a value that nobody proved.

use super::error::VerifyError;
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
    ///
    /// # Errors
    /// [`VerifyError::Point`] when the point has no such coordinate.
    pub fn coord(&self, c: Coord) -> Result<QM31, VerifyError> {
        let (point, z, k) = match c {
            Coord::Rho(k) => ("rho", &self.rho, k),
            Coord::Kappa(k) => ("kappa", &self.kappa, k),
            Coord::BoundaryIn(k) => ("the boundary before", &self.boundary_in, k),
            Coord::BoundaryOut(k) => ("the boundary after", &self.boundary_out, k),
            Coord::Half => return Ok(HALF),
        };
        Ok(coordinates(point, z, k, 1)?[0])
    }

    /// The values of a list of coordinates.
    ///
    /// # Errors
    /// As [`Self::coord`].
    pub fn resolve(&self, coords: &[Coord]) -> Result<Vec<QM31>, VerifyError> {
        coords.iter().map(|&c| self.coord(c)).collect()
    }

    /// Weight of block `b` in a logical evaluation.
    ///
    /// # Errors
    /// As [`Self::coord`]; [`VerifyError::Dangling`] for a block that the coordinates cannot tell from another.
    pub fn block_weight(&self, eval: &Eval, b: usize) -> Result<QM31, VerifyError> {
        corner("a block", b, &self.resolve(&eval.hi)?)
    }

    /// `kappa[..n]`.
    ///
    /// # Errors
    /// [`VerifyError::Point`] when kappa is shorter.
    pub fn kappa_to(&self, n: usize) -> Result<&[QM31], VerifyError> {
        coordinates("kappa", &self.kappa, 0, n)
    }

    /// `rho[from..from + n]`.
    ///
    /// # Errors
    /// [`VerifyError::Point`] when rho is shorter.
    pub fn rho_range(&self, from: usize, n: usize) -> Result<&[QM31], VerifyError> {
        coordinates("rho", &self.rho, from, n)
    }
}

/// `z[from..from + n]` of the point with this name.
///
/// # Errors
/// [`VerifyError::Point`] when it is shorter.
pub(super) fn coordinates<'a>(point: &'static str, z: &'a [QM31], from: usize, n: usize) -> Result<&'a [QM31], VerifyError> {
    let needed = from.saturating_add(n);
    z.get(from..needed).ok_or(VerifyError::Point { point, needed, found: z.len() })
}

/// `eq(index, z)` of an index that `z` has a corner for.
fn corner(what: &'static str, index: usize, z: &[QM31]) -> Result<QM31, VerifyError> {
    let beyond = index.checked_shr(z.len() as u32).unwrap_or(0) != 0;
    if beyond { Err(VerifyError::Dangling { what, index }) } else { Ok(eq_at_index(index, z)) }
}

/// A list of public data that must have one entry per row.
fn rows_of(step: &'static str, found: usize, expected: usize) -> Result<(), VerifyError> {
    if found == expected { Ok(()) } else { Err(VerifyError::Count { step, found, expected }) }
}

/// Value at kappa of a factor that the verifier evaluates itself; `None` for committed ones.
///
/// # Errors
/// [`VerifyError::Point`], [`VerifyError::Dangling`].
pub fn public_factor(c: &Circuit, points: &Points, factor: &Factor) -> Result<Option<QM31>, VerifyError> {
    Ok(Some(match factor {
        Factor::Claim(_) | Factor::Weight(_) => return Ok(None),
        Factor::Eq { offset, coords } => {
            let y = coordinates("kappa", &points.kappa, *offset, coords.len())?;
            eq_eval(y, &points.resolve(coords)?)
        }
        Factor::OneHot(i) => {
            let selection = c.selections.get(*i).ok_or(VerifyError::Dangling { what: "a selection", index: *i })?;
            selection_eval(c, selection, points)?
        }
        Factor::RealTokens => lt_mle(c.tokens, points.kappa_to(c.token_log)?),
    }))
}

/// `sum eq(rho_t, t) eq(kappa, k)` over the entries.
fn selection_eval(c: &Circuit, s: &Selection, points: &Points) -> Result<QM31, VerifyError> {
    let (rows, y) = (eq_vector(points.rho_range(0, c.token_log)?), points.kappa_to(s.vars)?);
    let mut sum = ZERO;
    for &(t, k) in &s.entries {
        let row = rows.get(t as usize).ok_or(VerifyError::Dangling { what: "a selected row", index: t as usize })?;
        sum += *row * corner("a selected entry", k as usize, y)?;
    }
    Ok(sum)
}

/// The extension of the attention mask over (i, head, j) at `z`: `sum_i eq(z_i, i) sum_{j visible to i} eq(z_j, j)`.
///
/// # Errors
/// [`VerifyError::Point`], [`VerifyError::Count`] for a mask of other rows, [`VerifyError::Dangling`] for keys there are not.
pub fn mask_eval(c: &Circuit, z: &[QM31]) -> Result<QM31, VerifyError> {
    let nt = c.token_log;
    let i = eq_vector(coordinates("a row's point", z, 0, nt)?);
    let j = eq_vector(coordinates("a row's point", z, nt + c.block_heads_log, nt)?);
    rows_of("rows of the mask", c.visible.len(), i.len())?;
    // before[k]: sum of the first k.
    let before: Vec<QM31> = std::iter::once(ZERO)
        .chain(j.iter().scan(ZERO, |sum, &e| {
            *sum += e;
            Some(*sum)
        }))
        .collect();
    let at = |k: u32| before.get(k as usize).copied().ok_or(VerifyError::Dangling { what: "a visible key", index: k as usize });
    let mut sum = ZERO;
    for (&(first, end), &e) in c.visible.iter().zip(&i) {
        sum += e * (at(end)? - at(first)?);
    }
    Ok(sum)
}

/// A public column's extension at a row's point.
///
/// # Errors
/// [`VerifyError::Point`], [`VerifyError::Count`] for a column of other rows.
pub fn public_eval(c: &Circuit, column: &PublicColumn, z: &[QM31]) -> Result<QM31, VerifyError> {
    let nt = c.token_log;
    let rows = eq_vector(coordinates("a row's point", z, 0, nt)?);
    match column {
        PublicColumn::Table { values, skip, log_channels } => {
            let channels = eq_vector(coordinates("a row's point", z, nt + skip, *log_channels)?);
            rows_of("values of a public column", values.len(), channels.len() << nt)?;
            let rows = IntWeights::new(&rows);
            Ok(values.chunks_exact(1 << nt).zip(&channels).fold(ZERO, |acc, (values, &e)| acc + e * rows.inner(values)))
        }
        PublicColumn::Below { thresholds, log_channels } => {
            let at = coordinates("a row's point", z, nt, *log_channels)?;
            rows_of("thresholds of a public column", thresholds.len(), rows.len())?;
            Ok(thresholds.iter().zip(&rows).fold(ZERO, |acc, (&t, &r)| acc + r * lt_mle(t as usize, at)))
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
///
/// # Errors
/// [`VerifyError::Point`], [`VerifyError::Count`] for fewer weights than matrices.
pub fn tile_weights(c: &Circuit, points: &Points, gamma: &[QM31], h: usize) -> Result<Vec<QM31>, VerifyError> {
    let slots = 1usize << (h - c.tile_k_log - c.tile_n_log);
    let gamma = gamma.get(..c.matrices.len()).ok_or(VerifyError::Count {
        step: "weights of matrices",
        found: gamma.len(),
        expected: c.matrices.len(),
    })?;
    let mut out = Vec::with_capacity(weight_rows(c, h) * slots);
    for (m, &g) in c.matrices.iter().zip(gamma) {
        let (tk, tn) = tile_grid(c, m);
        let k_hi = coordinates("kappa", &points.kappa, c.tile_k_log, log2_ceil(tk))?;
        let n_hi = points.rho_range(c.token_log + c.tile_n_log, log2_ceil(tn))?;
        let (ek, en) = (eq_vector(k_hi), eq_vector(n_hi));
        for &wn in en.iter().take(tn) {
            out.extend(ek.iter().take(tk).map(|&wk| g * wn * wk));
        }
    }
    out.resize(weight_rows(c, h) * slots, ZERO);
    Ok(out)
}

/// The column point all tiles share: `kappa[..a]`, then `rho[n_t..n_t+b]`.
///
/// # Errors
/// [`VerifyError::Point`].
pub fn tile_point(c: &Circuit, points: &Points) -> Result<Vec<QM31>, VerifyError> {
    Ok([points.kappa_to(c.tile_k_log)?, points.rho_range(c.token_log, c.tile_n_log)?].concat())
}

/// `prod (1 - z_j)`: a function of fewer variables placed in the low corner of more.
#[must_use]
pub fn low_corner(z: &[QM31]) -> QM31 {
    z.iter().fold(ONE, |acc, &v| acc * (ONE - v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn point(n: u32) -> Vec<QM31> {
        (0..n).map(|k| QM31::from_u32_unchecked(k + 2, 3, 5, 7)).collect()
    }

    fn points() -> Points {
        Points { rho: point(4), kappa: point(3), boundary_in: Vec::new(), boundary_out: point(1) }
    }

    #[test]
    fn a_coordinate_that_was_not_drawn_has_no_value() {
        let p = points();
        for (coord, point, needed, found) in [
            (Coord::Rho(4), "rho", 5, 4),
            (Coord::Kappa(3), "kappa", 4, 3),
            (Coord::BoundaryIn(0), "the boundary before", 1, 0),
            (Coord::BoundaryOut(1), "the boundary after", 2, 1),
            (Coord::Rho(usize::MAX), "rho", usize::MAX, 4),
        ] {
            let error = VerifyError::Point { point, needed, found };
            assert_eq!(p.coord(coord), Err(error.clone()));
            assert_eq!(p.resolve(&[Coord::Half, coord]), Err(error.clone()));
            let eval = Eval { blocks: vec![0], lo: Vec::new(), hi: vec![coord] };
            assert_eq!(p.block_weight(&eval, 0), Err(error));
        }
        assert_eq!(p.resolve(&[Coord::Rho(3), Coord::Kappa(2)]), Ok(vec![p.rho[3], p.kappa[2]]));
        assert!(p.kappa_to(3).is_ok() && p.kappa_to(4).is_err());
        assert!(p.rho_range(2, 2).is_ok() && p.rho_range(3, 2).is_err() && p.rho_range(usize::MAX, 2).is_err());
        // Block 2 of one coordinate would be block 0.
        let eval = Eval { blocks: vec![0; 3], lo: Vec::new(), hi: vec![Coord::Rho(0)] };
        assert!(p.block_weight(&eval, 1).is_ok());
        assert_eq!(p.block_weight(&eval, 2), Err(VerifyError::Dangling { what: "a block", index: 2 }));
    }

    #[test]
    fn public_factors_without_their_data_have_no_value() {
        let entries = vec![(0, 1), (3, 7)];
        let c = Circuit {
            tokens: 3,
            token_log: 2,
            selections: vec![Selection { entries, vars: 3 }, Selection { entries: vec![(4, 0)], vars: 3 }],
            ..Circuit::default()
        };
        let of = |c: &Circuit, p: &Points, f: Factor| public_factor(c, p, &f);
        assert!(matches!(of(&c, &points(), Factor::OneHot(0)), Ok(Some(v)) if v != ZERO));
        assert!(matches!(of(&c, &points(), Factor::RealTokens), Ok(Some(_))));
        assert!(matches!(of(&c, &points(), Factor::OneHot(1)), Err(VerifyError::Dangling { index: 4, .. })));
        assert!(matches!(of(&c, &points(), Factor::OneHot(2)), Err(VerifyError::Dangling { index: 2, .. })));
        let short = Points { kappa: point(1), ..points() };
        for f in [Factor::OneHot(0), Factor::RealTokens, Factor::Eq { offset: 1, coords: vec![Coord::Half] }] {
            assert!(matches!(of(&c, &short, f), Err(VerifyError::Point { point: "kappa", .. })));
        }
        let eq = Factor::Eq { offset: 0, coords: vec![Coord::BoundaryIn(0)] };
        assert!(matches!(of(&c, &points(), eq), Err(VerifyError::Point { .. })));
    }

    #[test]
    fn public_data_of_other_rows_has_no_value() {
        let c = Circuit { token_log: 1, visible: vec![(0, 1), (0, 2)], ..Circuit::default() };
        assert!(mask_eval(&c, &point(2)).is_ok());
        assert!(matches!(mask_eval(&c, &point(1)), Err(VerifyError::Point { .. })));
        let short = Circuit { visible: vec![(0, 1)], ..c.clone() };
        assert!(matches!(mask_eval(&short, &point(2)), Err(VerifyError::Count { found: 1, expected: 2, .. })));
        let far = Circuit { visible: vec![(0, 1), (0, 3)], ..c.clone() };
        assert!(matches!(mask_eval(&far, &point(2)), Err(VerifyError::Dangling { index: 3, .. })));

        let table = |n| PublicColumn::Table { values: Arc::new(vec![1; n]), skip: 1, log_channels: 1 };
        assert!(public_eval(&c, &table(4), &point(3)).is_ok());
        assert!(matches!(public_eval(&c, &table(4), &point(2)), Err(VerifyError::Point { .. })));
        assert!(matches!(public_eval(&c, &table(2), &point(3)), Err(VerifyError::Count { found: 2, expected: 4, .. })));
        let below = |n| PublicColumn::Below { thresholds: Arc::new(vec![1; n]), log_channels: 1 };
        assert!(public_eval(&c, &below(2), &point(2)).is_ok());
        assert!(matches!(public_eval(&c, &below(2), &point(1)), Err(VerifyError::Point { .. })));
        assert!(matches!(public_eval(&c, &below(1), &point(2)), Err(VerifyError::Count { found: 1, expected: 2, .. })));
    }

    #[test]
    fn tiles_are_weighed_by_coordinates_that_were_drawn() {
        let matrices = vec![MatrixShape { inputs: 8, outputs: 4 }];
        let c = Circuit { token_log: 2, matrices, tile_k_log: 1, tile_n_log: 1, ..Circuit::default() };
        let weights = |p: &Points, gamma: &[QM31]| tile_weights(&c, p, gamma, 4);
        assert_eq!(weights(&points(), &[ONE]).map(|w| w.len()), Ok(8));
        assert!(tile_point(&c, &points()).is_ok());
        assert!(matches!(weights(&points(), &[]), Err(VerifyError::Count { found: 0, expected: 1, .. })));
        for short in [Points { kappa: point(2), ..points() }, Points { rho: point(3), ..points() }] {
            assert!(matches!(weights(&short, &[ONE]), Err(VerifyError::Point { .. })));
        }
        assert!(matches!(tile_point(&c, &Points { rho: point(2), ..points() }), Err(VerifyError::Point { .. })));
    }
}
