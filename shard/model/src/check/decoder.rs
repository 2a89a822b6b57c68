//! Registration facts of a decoder.

use super::{CheckError, Checked};
use crate::weights::Weights;
use obelysk_protocol::circuit::descriptor::Decoder;

/// Verifies every fact that the proof system assumes about a registered decoder.
pub(super) fn check(d: &Decoder, _weights: &Weights) -> Checked {
    Err(CheckError::Dimensions(format!("decoder `{}` cannot be registered yet", d.name)))
}
