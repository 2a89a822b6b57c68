//! Public shapes of an opening: parameters, claims, fold schedule, exact sizes. Nothing here comes from a proof.

use super::OpeningError;
use crate::field::{QM31, QM31_BYTES, RoundPoly, eq_at_index, eq_eval, eq_vector, inner};
use crate::transcript::{Digest, HashSuite, Transcript};

/// Folds between two committed words: one Merkle path then pays for three rounds.
pub const STEP: u32 = 3;
/// The message is sent in clear once it has at most `2^CLEAR_LOG` entries (at a multiple of [`STEP`] folds).
pub const CLEAR_LOG: u32 = 4;
/// Most rows of one oracle; bounds the size of a leaf.
pub const MAX_ROWS: usize = 1 << 22;
/// Most oracles of one opening.
pub const MAX_ORACLES: usize = 1 << 12;
/// Most queries; far above what any rate needs.
pub const MAX_QUERIES: usize = 1 << 10;
/// Most grinding bits: a prover could not find more in reasonable time.
pub const MAX_POW: u32 = 40;

/// Registered parameters of every opening of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpeningParams {
    /// Log length of a message row, the same for every oracle.
    pub h: u32,
    /// `b`: the code has rate `2^-b`.
    pub blowup_log: u32,
    /// Positions drawn, with repetition.
    pub queries: usize,
    /// Grinding bits before each row, θ and fold challenge.
    pub g_fold: u32,
    /// Grinding bits before the positions.
    pub g_query: u32,
}

impl OpeningParams {
    /// Log length of a word.
    #[must_use]
    pub fn log_n(&self) -> u32 {
        self.h + self.blowup_log
    }

    /// Folds before the message is sent in clear: the smallest multiple of [`STEP`] that leaves at most `2^CLEAR_LOG`.
    #[must_use]
    pub fn folds(&self) -> u32 {
        self.h.saturating_sub(CLEAR_LOG).div_ceil(STEP) * STEP
    }

    /// Committed words (the combined word first). None if the message is short enough to be sent at once.
    #[must_use]
    pub fn layers(&self) -> u32 {
        self.folds() / STEP
    }

    /// Depth of the tree over layer `layer`, whose leaves hold `2^STEP` neighbours.
    #[must_use]
    pub fn layer_depth(&self, layer: u32) -> u32 {
        self.log_n().saturating_sub(STEP * (layer + 1))
    }

    /// Entries of the message sent in clear.
    #[must_use]
    pub fn clear_len(&self) -> usize {
        1 << (self.h - self.folds())
    }

    /// # Errors
    /// [`OpeningError::Params`] outside the supported ranges.
    pub fn validate(&self) -> Result<(), OpeningError> {
        let ok = (2..=24).contains(&self.h)
            && (1..=4).contains(&self.blowup_log)
            && (1..=MAX_QUERIES).contains(&self.queries)
            && self.g_fold <= MAX_POW
            && self.g_query <= MAX_POW;
        if ok { Ok(()) } else { Err(OpeningError::Params) }
    }
}

/// What is claimed about one committed stack of `R` rows of length `2^h` (index = `row·2^h + col`, low variable first).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The stack's extension at `r` (length `h + ceil(log2 R)`) is `value`.
    ///
    /// # Soundness
    /// The caller has ground `g_fold` bits directly before each `r[j]`, `j >= h`: these are the row challenges.
    Point {
        /// The point, column variables first.
        r: Vec<QM31>,
        /// The claimed value.
        value: QM31,
    },
    /// `sum over row, slot of weights[row·2^s + slot] · <P(row, slot·2^(h-s) + ·), eq(point)> = value`.
    Tiles {
        /// One weight per row and slot, slot fastest; length `R·2^s`.
        weights: Vec<QM31>,
        /// The point inside a slot, length `h - s`.
        point: Vec<QM31>,
        /// The claimed value.
        value: QM31,
    },
}

impl Claim {
    /// The claimed value.
    #[must_use]
    pub fn value(&self) -> QM31 {
        match self {
            Self::Point { value, .. } | Self::Tiles { value, .. } => *value,
        }
    }
}

/// One oracle with its claim, as the verifier knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OracleClaim {
    /// Root of the tree over its words.
    pub root: Digest,
    /// Rows `R >= 1`; rows up to the next power of two are zero and never stored.
    pub rows: usize,
    /// The claim.
    pub claim: Claim,
}

/// Row variables of an oracle with `rows` rows.
#[must_use]
pub fn row_vars(rows: usize) -> u32 {
    rows.checked_next_power_of_two().map_or(usize::BITS, usize::trailing_zeros)
}

/// The two forms of a claim, without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// [`Claim::Point`].
    Point,
    /// [`Claim::Tiles`].
    Tiles,
}

/// Shape of one oracle in an opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OracleShape {
    /// Rows.
    pub rows: usize,
    /// Form of its claim.
    pub form: Form,
}

impl OracleShape {
    /// Rounds of the row sumcheck.
    #[must_use]
    pub fn row_rounds(&self) -> u32 {
        match self.form {
            Form::Point => 0,
            Form::Tiles => row_vars(self.rows),
        }
    }
}

/// Shape of a whole opening; fixes every length in its proof except those that follow from the queried positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpeningShape {
    /// Parameters.
    pub params: OpeningParams,
    /// Oracles in claim order.
    pub oracles: Vec<OracleShape>,
}

impl OpeningShape {
    /// Checks parameters and claims against each other.
    ///
    /// # Errors
    /// [`OpeningError::Params`] or [`OpeningError::Claim`] naming the first oracle whose lengths do not fit.
    pub fn of(params: &OpeningParams, oracles: &[OracleClaim]) -> Result<Self, OpeningError> {
        params.validate()?;
        if oracles.is_empty() || oracles.len() > MAX_ORACLES {
            return Err(OpeningError::Params);
        }
        let h = params.h as usize;
        let shape = |(oracle, o): (usize, &OracleClaim)| {
            let fits = (1..=MAX_ROWS).contains(&o.rows)
                && match &o.claim {
                    Claim::Point { r, .. } => r.len() == h + row_vars(o.rows) as usize,
                    Claim::Tiles { weights, point, .. } => {
                        point.len() <= h && Some(weights.len()) == o.rows.checked_mul(1 << (h - point.len()))
                    }
                };
            let form = match o.claim {
                Claim::Point { .. } => Form::Point,
                Claim::Tiles { .. } => Form::Tiles,
            };
            if fits { Ok(OracleShape { rows: o.rows, form }) } else { Err(OpeningError::Claim { oracle }) }
        };
        Ok(Self { params: *params, oracles: oracles.iter().enumerate().map(shape).collect::<Result<_, _>>()? })
    }

    /// Rows of every oracle.
    #[must_use]
    pub fn row_counts(&self) -> Vec<usize> {
        self.oracles.iter().map(|o| o.rows).collect()
    }

    /// Coordinates of δ and of θ.
    #[must_use]
    pub fn oracle_vars(&self) -> u32 {
        row_vars(self.oracles.len())
    }

    /// Bytes of a serialised proof that do not depend on the queried positions.
    #[must_use]
    pub fn fixed_bytes(&self) -> usize {
        let poly = size_of::<RoundPoly<2>>() / size_of::<QM31>() * QM31_BYTES;
        let rows: usize = self.oracles.iter().map(|o| o.row_rounds() as usize * (poly + 8)).sum();
        let p = &self.params;
        rows + p.h as usize * poly
            + self.oracles.len() * QM31_BYTES
            + self.oracle_vars() as usize * 8
            + p.layers() as usize * 32
            + p.folds() as usize * (poly + 8)
            + p.clear_len() * QM31_BYTES
            + 8
    }
}

/// Transcript labels of the opening, one per step.
pub mod label {
    /// Statement: parameters, roots, claims.
    pub const STATEMENT: &str = "opening";
    /// Statement of an opening of all segments: parameters, number of oracles.
    pub const ALL: &str = "opening/all";
    /// Row sumcheck of a Tiles claim: round polynomial.
    pub const ROW_POLY: &str = "opening/row";
    /// Row challenge.
    pub const ROW: &str = "opening/beta";
    /// Weights of the oracles in the joint sumcheck.
    pub const DELTA: &str = "opening/delta";
    /// Joint sumcheck: round polynomial.
    pub const JOINT_POLY: &str = "opening/joint";
    /// Joint challenge.
    pub const ZETA: &str = "opening/zeta";
    /// Values of all folded rows at ζ.
    pub const VALUES: &str = "opening/values";
    /// Weights of the oracles in the combined word.
    pub const THETA: &str = "opening/theta";
    /// Root of a committed word.
    pub const ROOT: &str = "opening/layer";
    /// Fold sumcheck: round polynomial.
    pub const FOLD_POLY: &str = "opening/fold";
    /// Fold challenge.
    pub const ALPHA: &str = "opening/alpha";
    /// Message sent in clear.
    pub const MESSAGE: &str = "opening/message";
    /// Queried positions.
    pub const QUERY: &str = "opening/query";
}

/// Absorbs parameters, roots and claims.
///
/// Claims follow from what the caller has absorbed before; absorbing them again makes the opening sound on its own.
pub fn absorb_statement<S: HashSuite>(t: &mut Transcript<S>, params: &OpeningParams, oracles: &[OracleClaim]) {
    t.absorb_bytes(label::STATEMENT, &numbers(params, oracles.len()));
    for o in oracles {
        t.absorb_digest("root", &o.root);
        t.absorb_u64("rows", o.rows as u64);
        match &o.claim {
            Claim::Point { r, .. } => t.absorb_felts("point", r),
            Claim::Tiles { weights, point, .. } => {
                t.absorb_felts("tiles", weights);
                t.absorb_felts("tile point", point);
            }
        }
        t.absorb_felts("value", &[o.claim.value()]);
    }
}

/// Starts the opening of all segments' oracles, after every fork's closing digest.
///
/// # Soundness
/// Roots and claims are not repeated: the closing digests commit to them, so every one must have been absorbed.
pub fn absorb_all<S: HashSuite>(t: &mut Transcript<S>, params: &OpeningParams, oracles: usize) {
    t.absorb_bytes(label::ALL, &numbers(params, oracles));
}

fn numbers(params: &OpeningParams, oracles: usize) -> Vec<u8> {
    let numbers = [params.h, params.blowup_log, params.queries as u32, params.g_fold, params.g_query, oracles as u32];
    numbers.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// An oracle whose rows are combined: what the steps after the rows need of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduced {
    /// Root of the tree over its words.
    pub root: Digest,
    /// What is left of its claim.
    pub residual: Residual,
}

/// What is left of a claim once its rows are combined: `<F, K> = value` with `F = sum_row coefficients[row]·P_row`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residual {
    /// Weight of every stored row, length `R`.
    pub coefficients: Vec<QM31>,
    /// `w'(slot)`, length `2^s` (one entry, equal to 1, for a Point claim).
    pub slots: Vec<QM31>,
    /// The point inside a slot, length `h - s`.
    pub point: Vec<QM31>,
    /// The claimed inner product.
    pub value: QM31,
}

impl Residual {
    /// The residual of a Point claim: no interaction, the row challenges are the high coordinates.
    #[must_use]
    pub fn of_point(h: u32, rows: usize, r: &[QM31], value: QM31) -> Self {
        let (point, high) = r.split_at((h as usize).min(r.len()));
        Self::after_rows(rows, high, vec![crate::field::ONE], point.to_vec(), value)
    }

    /// The residual once the row variables are bound to `beta`.
    #[must_use]
    pub fn after_rows(rows: usize, beta: &[QM31], slots: Vec<QM31>, point: Vec<QM31>, value: QM31) -> Self {
        let mut coefficients = eq_vector(beta);
        coefficients.truncate(rows);
        Self { coefficients, slots, point, value }
    }

    /// Whether slots and point make up a row of length `2^h`, and the rows are as many as an oracle may have.
    #[must_use]
    pub fn fits(&self, params: &OpeningParams) -> bool {
        let slots = (params.h as usize).checked_sub(self.point.len()).and_then(|s| 1usize.checked_shl(s as u32));
        slots == Some(self.slots.len()) && (1..=MAX_ROWS).contains(&self.coefficients.len())
    }

    /// `w'(slot)` of a Tiles claim at `beta`.
    #[must_use]
    pub fn slot_weights(weights: &[QM31], s: u32, beta: &[QM31]) -> Vec<QM31> {
        let mut out = vec![QM31::default(); 1 << s];
        for (row, row_weights) in weights.chunks(1 << s).enumerate() {
            let c = eq_at_index(row, beta);
            for (slot, w) in out.iter_mut().zip(row_weights) {
                *slot += c * *w;
            }
        }
        out
    }

    /// `K(ζ)` for `ζ` of length `h`.
    #[must_use]
    pub fn kernel_at(&self, zeta: &[QM31]) -> QM31 {
        let (low, high) = zeta.split_at(self.point.len().min(zeta.len()));
        inner(&self.slots, &eq_vector(high)) * eq_eval(&self.point, low)
    }
}
