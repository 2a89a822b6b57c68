//! Lookup tables: closed forms the verifier evaluates in O(log n), and registered function tables it evaluates itself.
//!
//! A tag is unique per table content; tuples of different tables never meet (`docs/soundness.md` §4.1).

use crate::field::{M31, ONE, QM31, eq_at_index, identity_mle, mle_eval_ints, signed, signed_ext};
use std::sync::Arc;

/// Most entries of a table's tuple: a fingerprint is a polynomial of this degree in alpha, which the budget counts.
pub const MAX_TUPLE: usize = 5;

/// One column of a table of `2^log_size` rows.
#[derive(Clone, Debug)]
pub enum TableColumn {
    /// `index + offset`.
    Identity {
        /// Added to the row index.
        offset: i64,
    },
    /// v of the R1 table: `2^(16+e) (H) + r` with `index = r + 2^e (H + 2^(14-e))`.
    R1Value {
        /// The rounding shift.
        e: u8,
    },
    /// s of the R1 table: 0 where H = 0, else 1.
    R1Saturated {
        /// The rounding shift.
        e: u8,
    },
    /// c of the R1 table: the clip value, 0 where H = 0.
    R1Clip {
        /// The rounding shift.
        e: u8,
    },
    /// The low `log_size - 1` bits of the index.
    LowBits,
    /// The top bit of the index.
    TopBit,
    /// A registered function of the low bits, zero where the top bit is set; `2^(log_size-1)` entries.
    HalfFunction(Arc<Vec<i32>>),
    /// A registered function; `2^log_size` entries.
    Function(Arc<Vec<i32>>),
}

/// How a tuple's row is found from its entries. Only provers need it; it sits beside the columns it inverts.
#[derive(Clone, Debug)]
pub enum RowIndex {
    /// The first entry minus an offset.
    First {
        /// Value in row 0.
        offset: i64,
    },
    /// The R1 table of e, from v.
    R1 {
        /// The rounding shift.
        e: u8,
    },
    /// Low bits in the first entry, top bit in the second.
    Split {
        /// Bits of the first entry.
        low: u8,
    },
    /// `w = 2^high hi - r`, `r < 2^low`: row `r + 2^low hi`.
    Over {
        /// log2 of hi's unit.
        high: u8,
        /// log2 of r's range.
        low: u8,
    },
    /// Rows are runs: the first entry names the run, the second the place in it.
    Runs {
        /// First row of each run, then the end.
        starts: Arc<Vec<usize>>,
    },
}

impl RowIndex {
    /// The row that should hold `tuple`, or `None`; the caller compares the row's entries.
    #[must_use]
    pub fn row(&self, tuple: &[i64]) -> Option<usize> {
        let first = *tuple.first()?;
        let row = match self {
            Self::First { offset } => first - offset,
            Self::R1 { e } => (first & ((1 << e) - 1)) + (((first >> (16 + e)) + (1 << (14 - e))) << e),
            Self::Split { low } => first + (*tuple.get(1)? << low),
            Self::Over { high, low } => {
                let hi = (first + (1 << low) - 1) >> high;
                ((hi << high) - first) + (hi << low)
            }
            Self::Runs { starts } => {
                let (run, place) = (usize::try_from(first).ok()?, usize::try_from(*tuple.get(1)?).ok()?);
                let start = *starts.get(run)?;
                return (start + place < *starts.get(run + 1)?).then_some(start + place);
            }
        };
        usize::try_from(row).ok()
    }
}

/// A table with its tag, columns and the column id of its multiplicities.
#[derive(Clone, Debug)]
pub struct Table {
    /// Name for people.
    pub name: String,
    /// First entry of every fingerprint.
    pub tag: u32,
    /// log2 of the number of rows.
    pub log_size: usize,
    /// Columns, in tuple order.
    pub columns: Vec<TableColumn>,
    /// Finds a tuple's row.
    pub index: RowIndex,
    /// The committed column of multiplicities.
    pub multiplicity: u32,
}

impl TableColumn {
    /// The value in row `index` of a table with `2^log_size` rows.
    #[must_use]
    pub fn value(&self, index: usize, log_size: usize) -> i64 {
        let half = 1usize << log_size.saturating_sub(1);
        match self {
            Self::Identity { offset } => index as i64 + offset,
            Self::R1Value { e } => {
                let (r, h) = r1_split(index, *e);
                (h << (16 + e)) + r
            }
            Self::R1Saturated { e } => i64::from(r1_split(index, *e).1 != 0),
            Self::R1Clip { e } => match r1_split(index, *e).1 {
                0 => 0,
                h if h > 0 => i64::from(i16::MAX),
                _ => i64::from(i16::MIN),
            },
            Self::LowBits => (index % half) as i64,
            Self::TopBit => i64::from(index >= half),
            Self::HalfFunction(f) => f.get(index).map_or(0, |&v| i64::from(v)),
            Self::Function(f) => f.get(index).map_or(0, |&v| i64::from(v)),
        }
    }

    /// Smallest and largest value.
    #[must_use]
    pub fn window(&self, log_size: usize) -> (i64, i64) {
        let rows = 1i64 << log_size;
        let span = |f: &[i32]| {
            let (low, high) = f.iter().fold((i32::MAX, i32::MIN), |(low, high), &v| (low.min(v), high.max(v)));
            (i64::from(low), i64::from(high))
        };
        match self {
            Self::Identity { offset } => (*offset, offset + rows - 1),
            Self::LowBits => (0, (rows / 2 - 1).max(0)),
            Self::TopBit | Self::R1Saturated { .. } => (0, 1),
            Self::R1Value { e } => {
                let half = 1i64 << (14 - e);
                (-(half << (16 + e)), ((half - 1) << (16 + e)) + (1 << e) - 1)
            }
            Self::R1Clip { .. } => (i64::from(i16::MIN), i64::from(i16::MAX)),
            Self::HalfFunction(f) => {
                let (low, high) = span(f);
                (low.min(0), high.max(0))
            }
            Self::Function(f) => span(f),
        }
    }

    /// The extension of the column at `z` (length `log_size`).
    #[must_use]
    pub fn evaluate(&self, z: &[QM31]) -> QM31 {
        let n = z.len();
        match self {
            Self::Identity { offset } => identity_mle(z) + signed_ext(*offset),
            Self::R1Value { e } => {
                let e = *e as usize;
                let h = identity_mle(&z[e..]) - signed_ext(1 << (14 - e));
                identity_mle(&z[..e]) + h * signed_ext(1 << (16 + e))
            }
            Self::R1Saturated { e } => ONE - r1_zero(z, *e),
            Self::R1Clip { e } => {
                let top = z[n - 1];
                let (max, min) = (signed_ext(i64::from(i16::MAX)), signed_ext(i64::from(i16::MIN)));
                top * max + (ONE - top) * min - r1_zero(z, *e) * max
            }
            Self::LowBits => identity_mle(&z[..n - 1]),
            Self::TopBit => z[n - 1],
            Self::HalfFunction(f) => (ONE - z[n - 1]) * mle_eval_ints(f, &z[..n - 1]),
            Self::Function(f) => mle_eval_ints(f, z),
        }
    }
}

/// `(r, H)` of row `index`: `r` the low e bits, `H` signed.
fn r1_split(index: usize, e: u8) -> (i64, i64) {
    let r = index & ((1 << e) - 1);
    ((r as i64), (index >> e) as i64 - (1 << (14 - e)))
}

/// The extension of `[H = 0]`: the bits above e are 10..0.
fn r1_zero(z: &[QM31], e: u8) -> QM31 {
    eq_at_index(1 << (14 - e), &z[e as usize..])
}

impl Table {
    /// Whether this is a plain range table `[0, 2^log_size)`.
    #[must_use]
    pub fn is_range(&self) -> bool {
        matches!(self.columns.as_slice(), [TableColumn::Identity { offset: 0 }])
    }

    /// All columns as field vectors (prover and tests).
    #[must_use]
    pub fn materialise(&self) -> Vec<Vec<M31>> {
        self.columns.iter().map(|c| (0..1usize << self.log_size).map(|i| signed(c.value(i, self.log_size))).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::mle_eval_base;

    #[test]
    fn closed_forms_equal_their_rows() {
        let f = Arc::new((0..1 << 14).map(|i: i32| i * i % 1000 - 500).collect::<Vec<_>>());
        let g = Arc::new((0..1 << 15).map(|i: i32| 7 - i).collect::<Vec<_>>());
        let z: Vec<QM31> = (0..15).map(|k| QM31::from_u32_unchecked(k * 91 + 5, 3 * k, k + 1, 77)).collect();
        let mut columns =
            vec![TableColumn::Identity { offset: -9 }, TableColumn::LowBits, TableColumn::TopBit, TableColumn::HalfFunction(f)];
        columns.push(TableColumn::Function(g));
        for e in [1u8, 4, 8, 12, 13] {
            columns.extend([TableColumn::R1Value { e }, TableColumn::R1Saturated { e }, TableColumn::R1Clip { e }]);
        }
        for c in columns {
            let rows: Vec<M31> = (0..1usize << 15).map(|i| signed(c.value(i, 15))).collect();
            assert_eq!(c.evaluate(&z), mle_eval_base(&rows, &z), "{c:?}");
            let values = || (0..1usize << 15).map(|i| c.value(i, 15));
            assert_eq!(Some(c.window(15)), values().min().zip(values().max()), "{c:?}");
        }
    }
}
