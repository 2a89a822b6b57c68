//! The statement of a proof: public input, weight-binding mode, model; and the circuits that follow from them.
//!
//! It refuses inputs that the model does not take. Circuits come from model and input alone, so whoever needs one builds it.

use super::error::VerifyError;
use super::mode::Mode;
use super::registered::Registered;
use crate::circuit::attention::ExpTables;
use crate::circuit::descriptor::Descriptor;
use crate::circuit::segment::{Circuit, log2_ceil};
use crate::circuit::{self, PublicInput, exp_tables, segment_count};
use crate::transcript::{Digest, HashSuite};
use std::borrow::Cow;

/// What every form of a statement gives.
pub trait Stated {
    /// Public input and claimed output.
    fn input(&self) -> &PublicInput;
    /// Weight-binding mode.
    fn mode(&self) -> u8;
    /// Model id.
    fn model_id(&self) -> &Digest;
    /// The circuit of segment `index`; `model` is the model of the statement.
    ///
    /// # Errors
    /// [`VerifyError::Input`] for a segment that the model does not have, [`VerifyError::Circuit`].
    fn circuit(&self, model: &Registered, index: usize) -> Result<Cow<'_, Circuit>, VerifyError>;

    /// Variables of a boundary point.
    fn boundary_vars(&self, model: &Registered) -> usize {
        self.input().token_log() + log2_ceil(model.descriptor.width() as usize)
    }
}

/// A statement whose circuits are built one at a time, so that memory does not grow with the number of layers.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Public input and claimed output.
    pub input: PublicInput,
    /// Weight-binding mode.
    pub mode: Mode,
    /// Model id.
    pub model_id: Digest,
    tables: ExpTables,
}

/// The statement of one proof with all its circuits.
#[derive(Debug)]
pub struct Statement {
    /// Public input and claimed output.
    pub input: PublicInput,
    /// One circuit per segment.
    pub circuits: Vec<Circuit>,
    /// Weight-binding mode.
    pub mode: u8,
    /// Model id.
    pub model_id: Digest,
}

impl Outline {
    /// Checks the public input against the model; builds no circuit.
    ///
    /// # Errors
    /// [`VerifyError::Input`], [`VerifyError::Statement`] for an unknown mode.
    pub fn new<S: HashSuite>(model: &Registered, input: PublicInput, mode: u8) -> Result<Self, VerifyError> {
        Self::named(model, input, mode, model.model_id::<S>())
    }

    /// As [`Self::new`] for a model whose id is known.
    pub(super) fn named(model: &Registered, input: PublicInput, mode: u8, model_id: Digest) -> Result<Self, VerifyError> {
        let unknown = || (mode.to_string(), "0, 1 or 2".to_owned());
        let mode = Mode::of(mode).ok_or_else(unknown).map_err(|(found, expected)| {
            let field = "weight-binding mode";
            VerifyError::Statement { field, found, expected }
        })?;
        check_input(&model.descriptor, &input)?;
        check_output(&model.descriptor, &input)?;
        Ok(Self { input, mode, model_id, tables: exp_tables() })
    }
}

impl Stated for Outline {
    fn input(&self) -> &PublicInput {
        &self.input
    }

    fn mode(&self) -> u8 {
        self.mode as u8
    }

    fn model_id(&self) -> &Digest {
        &self.model_id
    }

    fn circuit(&self, model: &Registered, index: usize) -> Result<Cow<'_, Circuit>, VerifyError> {
        let segments = segment_count(&model.descriptor);
        if index >= segments {
            return Err(no_segment(index, segments));
        }
        Ok(Cow::Owned(circuit::build(&model.descriptor, &self.tables, &self.input, index)?))
    }
}

impl Statement {
    /// Checks the public input against the model and builds the circuits.
    ///
    /// # Errors
    /// [`VerifyError::Input`], [`VerifyError::Statement`] for an unknown mode, [`VerifyError::Circuit`].
    pub fn new<S: HashSuite>(model: &Registered, input: PublicInput, mode: u8) -> Result<Self, VerifyError> {
        let outline = Outline::new::<S>(model, input, mode)?;
        let build = |s| outline.circuit(model, s).map(Cow::into_owned);
        let circuits = (0..segment_count(&model.descriptor)).map(build).collect::<Result<_, _>>()?;
        Ok(Self { input: outline.input, circuits, mode, model_id: outline.model_id })
    }
}

impl Stated for Statement {
    fn input(&self) -> &PublicInput {
        &self.input
    }

    fn mode(&self) -> u8 {
        self.mode
    }

    fn model_id(&self) -> &Digest {
        &self.model_id
    }

    fn circuit(&self, _: &Registered, index: usize) -> Result<Cow<'_, Circuit>, VerifyError> {
        self.circuits.get(index).map(Cow::Borrowed).ok_or_else(|| no_segment(index, self.circuits.len()))
    }
}

fn no_segment(index: usize, segments: usize) -> VerifyError {
    VerifyError::Input(format!("no segment {index} in a model of {segments}"))
}

/// Whether the ids and sequences of a public input are ones the model takes. Whatever its output, circuits can be built of it.
///
/// # Errors
/// [`VerifyError::Input`].
pub fn check_input(d: &Descriptor, input: &PublicInput) -> Result<(), VerifyError> {
    let refuse = |reason: String| Err(VerifyError::Input(reason));
    if let Some(id) = input.ids.iter().find(|&&id| id >= d.vocab()) {
        return refuse(format!("token id {id} is outside the vocabulary of {}", d.vocab()));
    }
    let longest = match d {
        Descriptor::Encoder(_) if !input.sequences.is_empty() => {
            return refuse("an encoder takes one text, not sequences".to_owned());
        }
        Descriptor::Encoder(_) => input.ids.len(),
        Descriptor::Decoder(_) => check_sequences(input)?,
    };
    if longest > d.positions() as usize {
        return refuse(format!("a sequence of {longest} tokens; this model takes up to {}", d.positions()));
    }
    let limit = circuit::descriptor::MAX_TOKENS;
    if input.tokens() == 0 || input.tokens() > limit {
        return refuse(format!("{} tokens in one proof; it takes 1 to {limit}", input.tokens()));
    }
    Ok(())
}

/// An encoder claims as many sums as channels, a decoder none.
fn check_output(d: &Descriptor, input: &PublicInput) -> Result<(), VerifyError> {
    let width = match d {
        Descriptor::Encoder(_) => d.width() as usize,
        Descriptor::Decoder(_) => 0,
    };
    if input.output.len() != width {
        return Err(VerifyError::Input(format!("{} output channels; the model has {width}", input.output.len())));
    }
    // |sum_t u| <= T 2^15 < p / 2, so equality mod p is equality.
    let bound = (input.ids.len() as u64) << 15;
    // unsigned_abs: |i64::MIN| does not fit i64, and 2^63 = 2 mod p would pass for a small value.
    if input.output.iter().any(|v| v.unsigned_abs() > bound) {
        return Err(VerifyError::Input(format!("an output value exceeds {bound}")));
    }
    Ok(())
}

/// A decoder's input: non-empty prompts and completions that cover the ids exactly. Returns the longest sequence.
fn check_sequences(input: &PublicInput) -> Result<usize, VerifyError> {
    if input.sequences.is_empty() || input.sequences.iter().any(|s| s.prompt == 0 || s.completion == 0) {
        return Err(VerifyError::Input("every sequence needs a prompt and a completion".to_owned()));
    }
    let lengths = input.sequences.iter().map(|s| u64::from(s.prompt) + u64::from(s.completion));
    let (total, longest) = lengths.fold((0u64, 0u64), |(sum, max), n| (sum + n, max.max(n)));
    if total != input.ids.len() as u64 {
        return Err(VerifyError::Input(format!("sequences of {total} tokens in all; {} ids are given", input.ids.len())));
    }
    Ok(usize::try_from(longest).unwrap_or(usize::MAX))
}
