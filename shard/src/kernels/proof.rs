//! Kernels of the lookup, product and final sumchecks.
//!
//! Buffers are opaque and stay where the backend keeps them; kernels never see a transcript. Every result is an exact field
//! element, so backends are compared by equality. Low variable first: element `2i` and `2i + 1` are the pair of row i.

use obelysk_protocol::circuit::expr::Source;
use obelysk_protocol::circuit::segment::{Circuit, Eval, MatrixShape};
use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::points::Points;

/// Round values at 0, 1, 2, 3 of a sum without its eq factor.
pub type Evals = [QM31; 4];

/// Kernels over columns (`Base`) and extension vectors (`Ext`).
pub trait ProofKernels: Send + Sync {
    /// A column of base-field elements, power-of-two length.
    type Base: Send + Sync;
    /// A vector of extension elements, power-of-two length.
    type Ext: Send + Sync;
    /// One layer of the LogUp tree: numerators and denominators.
    type Fractions: Send + Sync;
    /// A layer in its sumcheck.
    type Layer: Send + Sync;
    /// A chip group being folded.
    type Chip: Send + Sync;

    /// Takes a column.
    fn column(&self, values: &[M31]) -> Self::Base;
    /// Takes an extension vector.
    fn vector(&self, values: &[QM31]) -> Self::Ext;
    /// Number of elements.
    fn len(&self, v: &Self::Ext) -> usize;
    /// Element 0, once a vector is folded to length 1.
    fn first(&self, v: &Self::Ext) -> QM31;
    /// `eq(point, i)` for all i.
    fn eq(&self, point: &[QM31]) -> Self::Ext;
    /// `out[i] = v[2i] + v[2i+1]`: drops the lowest variable of an eq vector.
    fn drop_low(&self, v: &Self::Ext) -> Self::Ext;
    /// `(1 - r) v[2i] + r v[2i+1]`.
    fn fold(&self, v: &Self::Ext, r: QM31) -> Self::Ext;
    /// `sum_i eq[i] column[i]`.
    fn evaluate(&self, column: &Self::Base, eq: &Self::Ext) -> QM31;
    /// `sum_k coef_k column_k`, all of length `2^n`.
    fn combine(&self, n: usize, terms: &[(&Self::Base, QM31)]) -> Self::Ext;
    /// `sum_i rest[i] l(X, i)` at X = 0, 1 for `l(X, i) = (1-X) l[2i] + X l[2i+1]`.
    fn linear_round(&self, rest: &Self::Ext, l: &Self::Ext) -> [QM31; 2];
    /// `sum_i prod_k f_k(X, i)` at X = 0..=3 for at most four factors of equal length.
    fn product_round(&self, factors: &[&Self::Ext]) -> Evals;

    /// Leaves of the LogUp tree, `2^tree_log` of them.
    fn leaves(&self, c: &Circuit, columns: &[Self::Base], alpha: QM31, beta: QM31) -> Self::Fractions;
    /// The layer above.
    fn next_layer(&self, f: &Self::Fractions) -> Self::Fractions;
    /// The four children of a root: numerators then denominators.
    fn children(&self, f: &Self::Fractions) -> [QM31; 4];
    /// Prepares the sumcheck of a layer: `sum_x eq(point, x) (n0 d1 + n1 d0 + mu d0 d1)(x)` over even and odd children.
    fn gkr_start(&self, f: Self::Fractions, point: &[QM31], mu: QM31) -> Self::Layer;
    /// Binds the previous challenge, drops the eq factor of the next variable and returns
    /// `sum_i rest[i] (n0 d1 + n1 d0 + mu d0 d1)(X, i)` at X = 0 and X = 2.
    fn gkr_round(&self, layer: &mut Self::Layer, bind: Option<QM31>) -> [QM31; 2];
    /// Binds the last challenge and returns the children's values n0, n1, d0, d1.
    fn gkr_end(&self, layer: Self::Layer, bind: QM31) -> [QM31; 4];

    /// A claim's vector over the summed variables: fixed coordinates contracted, kappa coordinates free.
    ///
    /// # Errors
    /// A fixed coordinate that `points` does not have.
    fn claim_vector(&self, eval: &Eval, columns: &[Self::Base], points: &Points, vars: usize) -> Result<Self::Ext, VerifyError>;
    /// `sum_n weight[n] W[n][k]` for every k, zero beyond K, length `2^vars`. `data` is row-major [N][K].
    fn fold_matrix(&self, shape: MatrixShape, data: &[i8], weight: &[QM31], vars: usize) -> Self::Ext;
    /// [`Self::fold_matrix`] tile by tile: `out[nt K + k] = sum_n low[n] W[2^b nt + n][k]` for tiles of `2^b = low.len()` outputs.
    fn fold_tiles(&self, shape: MatrixShape, data: &[i8], low: &[QM31]) -> Self::Ext;
    /// `sum_nt high[nt] tiles[nt K + k]` for every k, zero beyond K, length `2^vars`: what [`Self::fold_matrix`] gives.
    fn sum_tiles(&self, shape: MatrixShape, tiles: &Self::Ext, high: &[QM31], vars: usize) -> Self::Ext;
    /// `<tiles[i 2^a..], eq(low)>` for every tile of `2^a` inputs, `a = low.len()`: a tile's value at its own point.
    fn tile_values(&self, tiles: &Self::Ext, low: &[QM31]) -> Vec<QM31>;

    /// Prepares the non-linear monomials of rows `2^log_size`.
    fn chip(&self, c: &Circuit, log_size: usize, terms: &[(QM31, Vec<Source>)], columns: &[Self::Base]) -> Self::Chip;
    /// `sum_i rest[i] sum_t coef_t prod sources(X, i)` at X = 0..=3.
    fn chip_round(&self, chip: &Self::Chip, rest: &Self::Ext) -> Evals;
    /// Binds the lowest variable.
    fn chip_fold(&self, chip: &mut Self::Chip, r: QM31);
    /// The monomials' sum once every variable is bound.
    fn chip_value(&self, chip: &Self::Chip) -> QM31;
}
