//! Every reason to reject a proof.

use crate::circuit::BuildError;

/// Why a proof was rejected. The message names the step; nothing of a rejected proof may be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The proof belongs to something else.
    #[error("{field} of the proof is {found}, the registered model expects {expected}: check which model and version made it")]
    Statement {
        /// Which field.
        field: &'static str,
        /// In the proof.
        found: String,
        /// Expected.
        expected: String,
    },
    /// The public input is not one the model accepts.
    #[error("public input: {0}")]
    Input(String),
    /// The registered model does not give a provable circuit.
    #[error("the registered model is not provable: {0}")]
    Circuit(#[from] BuildError),
    /// A count differs from what the circuit prescribes.
    #[error("{step}: {found} values where the circuit has {expected}")]
    Count {
        /// Which part.
        step: &'static str,
        /// In the proof.
        found: usize,
        /// Prescribed.
        expected: usize,
    },
    /// The circuit names coordinates that a point does not have.
    #[error("the circuit reads {needed} coordinates of {point}, which has {found}: circuit and proof are of other shapes")]
    Point {
        /// Which point.
        point: &'static str,
        /// Coordinates that are read.
        needed: usize,
        /// Coordinates there are.
        found: usize,
    },
    /// The circuit refers to something that it does not have.
    #[error("the circuit refers to {what} with index {index}, which is not there: it cannot be what the builder made")]
    Dangling {
        /// What.
        what: &'static str,
        /// Its index.
        index: usize,
    },
    /// A grinding nonce does not have the required zero bits.
    #[error("grinding before {0} does not hold")]
    Grinding(&'static str),
    /// The lookup argument's root is not zero over non-zero.
    #[error("lookups do not balance: some value is outside its table, or a multiplicity is wrong")]
    Lookups,
    /// A sumcheck's last equation fails.
    #[error("{0}: the final claim does not match the claimed values")]
    FinalClaim(&'static str),
    /// The pooled value is not the claimed output.
    #[error("the proven output is not the claimed one")]
    Output,
    /// An opening failed.
    #[error("opening: {0}")]
    Opening(String),
    /// The model was registered with weak parameters.
    #[error(
        "the proof holds but its model was registered for {found} bits of security only: register it with the standard parameters"
    )]
    Security {
        /// Bits, rounded down.
        found: i32,
    },
    /// The bytes are no canonical proof.
    #[error("malformed proof: {0}")]
    Malformed(String),
    /// Something of one segment.
    #[error("segment {index}: {source}")]
    Segment {
        /// Which segment.
        index: usize,
        /// What.
        source: Box<VerifyError>,
    },
}
