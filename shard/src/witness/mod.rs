//! Column values of a segment from its integer trace, then the multiplicities of every lookup.
//!
//! Traces keep the row as the fast axis and channels above it, so a block column is a contiguous slice.

mod attention;
pub mod decoder;
pub mod encoder;
mod multiplicity;
mod norm;
mod rounding;

use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::field::{M31, signed};
use rayon::prelude::*;
use std::collections::BTreeMap;

pub use multiplicity::{centred, count};

/// Why a trace does not give a witness.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WitnessError {
    /// The circuit has a column the trace does not fill, or the lengths differ.
    #[error("column `{0}` has no values of the right length: circuit and trace are of different models")]
    Column(String),
    /// A lookup's tuple is not in its table.
    #[error(
        "row {row} of a lookup into `{table}` holds {tuple:?}, which is not in the table: the model has not passed the registration check"
    )]
    Lookup {
        /// The table.
        table: String,
        /// Which row.
        row: usize,
        /// The tuple.
        tuple: Vec<i64>,
    },
}

/// Columns under construction.
struct Filler<'a> {
    c: &'a Circuit,
    ids: BTreeMap<&'a str, usize>,
    columns: Vec<Vec<M31>>,
    /// Values that fill no whole number of blocks of the circuit.
    surplus: Option<String>,
}

impl<'a> Filler<'a> {
    fn new(c: &'a Circuit) -> Self {
        let ids = c.columns.iter().enumerate().map(|(i, col)| (col.name.as_str(), i)).collect();
        Self { c, ids, columns: vec![Vec::new(); c.columns.len()], surplus: None }
    }

    /// Sets a column; names the circuit does not have are a defect that `finish` reports as a missing column.
    fn set(&mut self, name: &str, values: impl Iterator<Item = i64>) {
        self.put(name, values.map(signed).collect());
    }

    fn put(&mut self, name: &str, values: Vec<M31>) {
        if let Some(&i) = self.ids.get(name) {
            self.columns[i] = values;
        }
    }

    /// Sets the blocks `{prefix}.0{suffix}`, `{prefix}.1{suffix}`, … from the `count` cells of a logical array.
    fn fill(&mut self, prefix: &str, suffix: &str, count: usize, value: impl Fn(usize) -> i64 + Sync) {
        let mut from = 0;
        for b in 0.. {
            let Some(&i) = self.ids.get(format!("{prefix}.{b}{suffix}").as_str()) else { break };
            let to = from + (1usize << self.c.columns[i].log_size);
            if to > count {
                break;
            }
            self.columns[i] = (from..to).into_par_iter().map(|k| signed(value(k))).collect();
            from = to;
        }
        if from != count {
            self.surplus.get_or_insert_with(|| format!("{prefix}.*{suffix}"));
        }
    }

    /// [`Self::fill`] from a slice.
    fn set_blocks<T: Copy + Into<i64> + Sync>(&mut self, prefix: &str, suffix: &str, values: &[T]) {
        self.fill(prefix, suffix, values.len(), |k| values[k].into());
    }

    /// Sets the row column `{name}.row.{column}`.
    fn set_row(&mut self, name: &str, column: &str, rows: usize, value: impl Fn(usize) -> i64) {
        self.set(&format!("{name}.row.{column}"), (0..rows).map(value));
    }

    fn has(&self, name: &str) -> bool {
        self.ids.contains_key(name)
    }

    fn finish(self) -> Result<Vec<Vec<M31>>, WitnessError> {
        if let Some(name) = self.surplus {
            return Err(WitnessError::Column(name));
        }
        for (i, col) in self.c.columns.iter().enumerate() {
            let multiplicity = self.c.tables.iter().any(|t| t.multiplicity as usize == i);
            if !multiplicity && self.columns[i].len() != 1 << col.log_size {
                return Err(WitnessError::Column(col.name.clone()));
            }
        }
        Ok(self.columns)
    }
}

/// Adds the multiplicity columns.
fn counted(c: &Circuit, mut columns: Vec<Vec<M31>>) -> Result<Vec<Vec<M31>>, WitnessError> {
    for (t, m) in c.tables.iter().zip(count(c, &columns)?) {
        columns[t.multiplicity as usize] = m;
    }
    Ok(columns)
}
