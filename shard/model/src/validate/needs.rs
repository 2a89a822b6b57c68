//! What proving a model takes, estimated from the sizes of its circuits. All numbers are estimates, none is measured.
//!
//! Per segment, with `2^h` the row length, `2^b` the inverse rate, `c` the rows of committed values and `2^t` the leaves of
//! the LogUp tree (`docs/soundness.md`):
//!
//! ```text
//! memory    = 4 c 2^h + 4 c 2^(h+b) + 64 2^(h+b) + 48 2^t + K N
//!             values    codewords     hash tree    LogUp    int8 weights
//! disk      = K N  +  4 r 2^(h+b) + 64 2^(h+b)          with r rows of weights
//!             int8    codewords     hash tree
//! core-s    = weights x tokens / rate
//! ```

use obelysk_protocol::circuit::descriptor::{Descriptor, MAX_TOKENS};
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::{BuildError, PublicInput, Sequence, build, exp_tables};
use obelysk_protocol::verifier::final_sumcheck::value_rows;
use obelysk_protocol::verifier::points::weight_rows;
use serde::Serialize;

/// Weights times tokens per second and core, unless another rate was measured: all-MiniLM-L6-v2 at 128 tokens on a core with
/// AVX-512 (`docs/performance.md`: 22.5 M weights, 6.16 core-seconds).
pub const DEFAULT_RATE: f64 = 4.7e8;

/// A field element, of which a codeword has one per position and row.
const VALUE_BYTES: u64 = 4;
/// Two digests per position: the leaf and, summed over all levels, one above it.
const TREE_BYTES: u64 = 64;
/// Per leaf of a LogUp tree: its denominator, and numerators and denominators of all levels above, in QM31.
const LEAF_BYTES: u64 = 48;

/// Estimate for one kind of segment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentNeeds {
    /// `embed`, `layer` or `head`.
    pub name: String,
    /// Segments of this kind.
    pub count: u64,
    /// Bytes of memory while one is proved.
    pub memory_bytes: u64,
    /// Bytes of int8 weights of one.
    pub weight_bytes: u64,
    /// Bytes of encoded weights of one.
    pub codeword_bytes: u64,
    /// Committed values of one.
    pub values: u64,
    /// Leaves of the LogUp tree of one, padded.
    pub leaves: u64,
}

/// Estimate for a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Needs {
    /// Tokens proved together.
    pub tokens: u64,
    /// Weights, padding included.
    pub parameters: u64,
    /// By kind of segment.
    pub segments: Vec<SegmentNeeds>,
    /// Bytes of memory for the largest segment: what a node needs that holds one segment's weights.
    pub memory_bytes: u64,
    /// Bytes on disk of int8 weights.
    pub weight_bytes: u64,
    /// Bytes on disk of encoded weights.
    pub codeword_bytes: u64,
    /// Seconds on one core.
    pub core_seconds: f64,
    /// Weights times tokens per second and core the time follows from.
    pub rate: f64,
}

impl Needs {
    /// Estimates for `tokens` tokens; the layers of `d` stand for `layers` of their kind, all of the size of its first.
    ///
    /// # Errors
    /// Dimensions that no circuit has.
    pub fn estimate(d: &Descriptor, layers: u64, tokens: usize, rate: f64) -> Result<Self, BuildError> {
        let exp = exp_tables();
        let input = input(d, tokens.clamp(1, MAX_TOKENS));
        let last = d.layer_count() + 1;
        let kinds = [("embed", 0, 1), ("layer", 1, layers), ("head", last, 1)];
        let kinds = kinds.into_iter().filter(|&(name, ..)| name != "layer" || d.layer_count() > 0);
        let segments: Vec<SegmentNeeds> = kinds
            .map(|(name, index, count)| Ok(segment(d, &build(d, &exp, &input, index)?, name, count)))
            .collect::<Result<_, BuildError>>()?;
        let sum =
            |of: fn(&SegmentNeeds) -> u64| segments.iter().map(|s| s.count.saturating_mul(of(s))).fold(0, u64::saturating_add);
        let parameters = sum(|s| s.weight_bytes);
        Ok(Self {
            tokens: input.tokens() as u64,
            parameters,
            memory_bytes: segments.iter().map(|s| s.memory_bytes).max().unwrap_or(0),
            weight_bytes: parameters,
            codeword_bytes: sum(|s| s.codeword_bytes),
            core_seconds: parameters as f64 * input.tokens() as f64 / rate,
            rate,
            segments,
        })
    }
}

/// A public input of so many tokens; circuits depend on its shape alone. A decoder's completes as much as it can, which is
/// the most work for its head.
fn input(d: &Descriptor, tokens: usize) -> PublicInput {
    match d {
        Descriptor::Encoder(e) => PublicInput { ids: vec![0; tokens], sequences: Vec::new(), output: vec![0; e.width as usize] },
        Descriptor::Decoder(m) => {
            let longest = (m.positions as usize).saturating_sub(1).max(1);
            let lengths: Vec<usize> = (0..tokens).step_by(longest).map(|at| (tokens - at).min(longest)).collect();
            let sequences: Vec<_> = lengths.iter().map(|&n| Sequence { prompt: 1, completion: n as u32 }).collect();
            PublicInput { ids: vec![0; tokens + sequences.len()], sequences, output: Vec::new() }
        }
    }
}

fn segment(d: &Descriptor, c: &Circuit, name: &str, count: u64) -> SegmentNeeds {
    let (h, word) = (usize::from(d.row_log()), 1u64 << (d.row_log() + d.blowup_log()));
    let encoded = |rows: u64| rows.saturating_mul(VALUE_BYTES).saturating_add(TREE_BYTES).saturating_mul(word);
    let rows = value_rows(c, h) as u64;
    let weight_bytes = c.matrices.iter().map(|m| m.inputs as u64 * m.outputs as u64).sum();
    let leaves = 1u64 << c.tree_log();
    let values = rows << h;
    let memory = [values * VALUE_BYTES, encoded(rows), leaves * LEAF_BYTES, weight_bytes];
    SegmentNeeds {
        name: name.to_owned(),
        count,
        memory_bytes: memory.into_iter().fold(0, u64::saturating_add),
        weight_bytes,
        codeword_bytes: if weight_bytes == 0 { 0 } else { encoded(weight_rows(c, h) as u64) },
        values,
        leaves,
    }
}
