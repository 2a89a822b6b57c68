//! Column values of a segment from its integer trace, then the multiplicities of every lookup.
//!
//! Traces keep the token as the fast axis and channels above it, so a block column is a contiguous slice.

mod layer;
mod multiplicity;
mod norm;

use obelysk_model::infer::{EmbedTrace, LayerTrace};
use obelysk_protocol::circuit::descriptor::{Encoder, LayerSpec};
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::shape::Blocks;
use obelysk_protocol::field::{M31, signed};
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

/// What a segment computed.
#[derive(Clone, Copy, Debug)]
pub enum Trace<'a> {
    /// Segment 0.
    Embed(&'a EmbedTrace),
    /// A layer and its received hidden state.
    Layer {
        /// The layer's parameters.
        spec: &'a LayerSpec,
        /// Received hidden state.
        input: &'a [i16],
        /// What it computed.
        trace: &'a LayerTrace,
    },
    /// The head only receives.
    Head {
        /// Received hidden state.
        input: &'a [i16],
    },
}

/// Columns under construction.
pub(crate) struct Filler<'a> {
    c: &'a Circuit,
    ids: BTreeMap<&'a str, usize>,
    columns: Vec<Vec<M31>>,
}

impl<'a> Filler<'a> {
    fn new(c: &'a Circuit) -> Self {
        let ids = c.columns.iter().enumerate().map(|(i, col)| (col.name.as_str(), i)).collect();
        Self { c, ids, columns: vec![Vec::new(); c.columns.len()] }
    }

    /// Sets a column; names the circuit does not have are a defect that `finish` reports as a missing column.
    pub(crate) fn set(&mut self, name: &str, values: impl Iterator<Item = i64>) {
        if let Some(&i) = self.ids.get(name) {
            self.columns[i] = values.map(signed).collect();
        }
    }

    /// Sets one column per block from a logical array.
    pub(crate) fn set_blocks<T: Copy + Into<i64>>(&mut self, prefix: &str, suffix: &str, blocks: Blocks, values: &[T]) {
        let cells = 1usize << (self.c.token_log + blocks.log);
        for (b, part) in values.chunks(cells).enumerate() {
            self.set(&format!("{prefix}.{b}{suffix}"), part.iter().map(|&v| v.into()));
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.ids.contains_key(name)
    }

    fn finish(self) -> Result<Vec<Vec<M31>>, WitnessError> {
        for (i, col) in self.c.columns.iter().enumerate() {
            let multiplicity = self.c.tables.iter().any(|t| t.multiplicity as usize == i);
            if !multiplicity && self.columns[i].len() != 1 << col.log_size {
                return Err(WitnessError::Column(col.name.clone()));
            }
        }
        Ok(self.columns)
    }
}

/// All columns of a segment, in the circuit's order.
///
/// # Errors
/// [`WitnessError`] when circuit and trace do not belong together.
pub fn columns(d: &Encoder, c: &Circuit, trace: Trace<'_>) -> Result<Vec<Vec<M31>>, WitnessError> {
    let mut columns = uncounted(d, c, trace)?;
    for (t, m) in c.tables.iter().zip(count(c, &columns)?) {
        columns[t.multiplicity as usize] = m;
    }
    Ok(columns)
}

/// As [`columns`] with empty multiplicity columns: the trace may be a false one, whose tuples are in no table.
///
/// # Errors
/// [`WitnessError::Column`] when circuit and trace do not belong together.
pub fn uncounted(d: &Encoder, c: &Circuit, trace: Trace<'_>) -> Result<Vec<Vec<M31>>, WitnessError> {
    let mut f = Filler::new(c);
    let blocks = Blocks::of(d.width as usize);
    match trace {
        Trace::Embed(t) => {
            f.set_blocks("embed", ".a", blocks, &t.a);
            norm::fill(&mut f, "norm", blocks, &t.rho, &t.norm, d.embed.norm.eps);
        }
        Trace::Layer { spec, input, trace } => {
            f.set_blocks("input", "", blocks, input);
            layer::fill(&mut f, d, spec, trace);
        }
        Trace::Head { input } => f.set_blocks("input", "", blocks, input),
    }
    f.finish()
}
