//! From a float graph and its ranges to the integer model: scales first, then weights rounded against them.
//!
//! Gains and biases of norms go into the weights that read them and into the residual's constants. For every tensor the
//! accumulator shift e is chosen from calibration, then the output scale, then m; weights are rounded last, so that no
//! rounding of a scale adds to their error. The result has passed the registration check.

pub(crate) mod decoder;
mod feedback;
mod layer;
mod linear;
mod pattern;

use crate::bounds;
use crate::calibrate::Calibration;
use crate::check::{CheckError, check};
use crate::graph::Graph;
use crate::tables::NORM_UNIT;
use crate::weights::{EmbedAxis, IntegerModel, Matrix, SegmentWeights, Weights};
use linear::round_row;
use obelysk_protocol::circuit::descriptor::{Descriptor, EmbedSpec, Encoder, NormSpec, OutputSpec};
use pattern::{NormView, PostNorm};
use serde::Serialize;
use thiserror::Error;

pub use decoder::quantise_decoder;

/// Largest number of fractional bits the embedding's residual is given.
const EMBED_FRACTION_MAX: i32 = 20;

/// Choices of the caller. The defaults are those of the registered presets.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantiseOptions {
    /// Name written into the descriptor.
    pub name: String,
    /// log2 of the weight tile along the input axis; by default the power of two common to all axes.
    pub tile_k_log: Option<u8>,
    /// log2 of the weight tile along the output axis; by default the power of two common to all axes.
    pub tile_n_log: Option<u8>,
    /// log2 of the row length of every oracle; raised to a whole tile.
    pub row_log: u8,
    /// log2 of the inverse code rate.
    pub blowup_log: u8,
    /// Factor left above calibrated maxima.
    pub headroom: f64,
    /// w: bits dropped by residuals.
    pub residual_shift: u8,
    /// int8 matrices that hold a decoder's embedding: 1 or 2.
    pub embed_limbs: u8,
    /// F: fractional bits of residuals to start from; lowered until no input can overflow.
    pub residual_fraction: i32,
}

impl Default for QuantiseOptions {
    fn default() -> Self {
        Self {
            name: "model".into(),
            tile_k_log: None,
            tile_n_log: None,
            row_log: 16,
            blowup_log: 2,
            headroom: 1.3,
            residual_shift: 5,
            embed_limbs: 2,
            residual_fraction: 15,
        }
    }
}

/// Why a graph cannot be quantised.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum QuantiseError {
    /// The graph is not of a shape the descriptor can express.
    #[error("node `{0}` does not fit the post-norm encoder pattern; this version proves BERT-type encoders only")]
    Pattern(String),
    /// No scale satisfies the bounds.
    #[error("no admissible scale for `{0}`; lower the head-room or calibrate on more text")]
    Scale(String),
    /// An option out of range.
    #[error("option `{option}` = {value} is outside {range}")]
    Option {
        /// Option name.
        option: &'static str,
        /// Value given.
        value: String,
        /// Allowed range.
        range: &'static str,
    },
    /// The float model cannot be run or read.
    #[error("calibration: {0}")]
    Float(String),
    /// The result violates a registration fact.
    #[error("the quantised model fails the registration check: {0}")]
    Check(#[from] CheckError),
}

impl From<crate::graph::FloatError> for QuantiseError {
    fn from(e: crate::graph::FloatError) -> Self {
        Self::Float(e.to_string())
    }
}

impl From<crate::import::ImportError> for QuantiseError {
    fn from(e: crate::import::ImportError) -> Self {
        Self::Float(e.to_string())
    }
}

/// Scales chosen for a tensor, for reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorScale {
    /// Tensor.
    pub name: String,
    /// Accumulator shift, if it has one.
    pub e: Option<u8>,
    /// Output shift, if it has one.
    pub k: Option<u8>,
    /// Fractional bits of the value (of the score product for q and k).
    pub fraction: i32,
}

/// A quantised model and the scales it was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    /// Encoder and weights, checked.
    pub model: IntegerModel,
    /// One entry per tensor with a scale.
    pub scales: Vec<TensorScale>,
}

/// Quantises a post-norm encoder.
///
/// # Errors
/// See [`QuantiseError`].
pub fn quantise(graph: &Graph, ranges: &Calibration, options: &QuantiseOptions) -> Result<Quantised, QuantiseError> {
    validate(options)?;
    let pattern = PostNorm::find(graph)?;
    let mut scales = Vec::new();
    let mut descriptor = dimensions(&pattern, options);
    let (embed, matrix) = embedding(&pattern, &descriptor, options, &mut scales)?;
    descriptor.embed = embed;
    let mut segments = vec![SegmentWeights { matrices: vec![matrix] }];
    for (l, nodes) in pattern.layers.iter().enumerate() {
        let mut builder = layer::Builder { l, nodes, ranges, options, head_dim: descriptor.head_dim, scales: &mut scales };
        let (spec, weights) = builder.build()?;
        descriptor.layers.push(spec);
        segments.push(weights);
    }
    segments.push(SegmentWeights::default());
    let last = pattern.layers.last().map_or(pattern.embed_norm, |l| l.norm2);
    descriptor.output = OutputSpec {
        gain_bits: last.gain.iter().map(|v| v.to_bits()).collect(),
        bias_bits: last.bias.iter().map(|v| v.to_bits()).collect(),
    };
    let weights = Weights { segments };
    let descriptor = Descriptor::Encoder(descriptor);
    check(&descriptor, &weights)?;
    Ok(Quantised { model: IntegerModel { descriptor, weights }, scales })
}

fn validate(options: &QuantiseOptions) -> Result<(), QuantiseError> {
    let refuse = |option, value: String, range| Err(QuantiseError::Option { option, value, range });
    if !(1.0..=16.0).contains(&options.headroom) {
        return refuse("headroom", options.headroom.to_string(), "1 to 16");
    }
    if !(1..=bounds::RESIDUAL_SHIFT_MAX).contains(&options.residual_shift) {
        return refuse("residual_shift", options.residual_shift.to_string(), "1 to 7");
    }
    if !(1..=20).contains(&options.residual_fraction) {
        return refuse("residual_fraction", options.residual_fraction.to_string(), "1 to 20");
    }
    if !(1..=2).contains(&options.embed_limbs) {
        return refuse("embed_limbs", options.embed_limbs.to_string(), "1 to 2");
    }
    for (option, log) in [("tile_k_log", options.tile_k_log), ("tile_n_log", options.tile_n_log)] {
        if let Some(log) = log.filter(|&l| l > 12) {
            return refuse(option, log.to_string(), "0 to 12");
        }
    }
    Ok(())
}

fn dimensions(p: &PostNorm<'_>, options: &QuantiseOptions) -> Encoder {
    // Tiles as large as the axes allow, but no more than half a row each way.
    let common = (p.width.trailing_zeros().min(p.ffn.trailing_zeros()) as u8).min(options.row_log / 2);
    let (tile_k_log, tile_n_log) = (options.tile_k_log.unwrap_or(common), options.tile_n_log.unwrap_or(common));
    Encoder {
        name: options.name.clone(),
        vocab: p.word.shape[0] as u32,
        positions: p.position.shape[0] as u32,
        types: p.kind.shape[0] as u32,
        width: p.width as u32,
        heads: p.heads as u32,
        head_dim: (p.width / p.heads) as u32,
        ffn: p.ffn as u32,
        tile_k_log,
        tile_n_log,
        row_log: options.row_log.max(tile_k_log + tile_n_log),
        blowup_log: options.blowup_log,
        embed: EmbedSpec { scale: Vec::new(), shift: options.residual_shift, norm: NormSpec { eps: 0 } },
        layers: Vec::new(),
        output: OutputSpec { gain_bits: Vec::new(), bias_bits: Vec::new() },
    }
}

/// Integer eps of a norm whose input has `fraction` fractional bits: never below `2^14`, so that a zero row is defined.
fn norm_spec(norm: &NormView<'_>, fraction: i32) -> NormSpec {
    let eps = (norm.eps * norm.gain.len() as f64 * 2f64.powi(2 * fraction)).round() as u64;
    NormSpec { eps: eps.clamp(bounds::NORM_EPS_MIN, bounds::NORM_EPS_MAX) }
}

/// Real value of one unit of a norm's output, before its gain.
fn norm_unit(width: usize) -> f64 {
    (width as f64).sqrt() / NORM_UNIT
}

fn embedding(
    p: &PostNorm<'_>,
    d: &Encoder,
    options: &QuantiseOptions,
    scales: &mut Vec<TensorScale>,
) -> Result<(EmbedSpec, Matrix), QuantiseError> {
    let (w, width) = (options.residual_shift, p.width);
    let tables = [p.word, p.position, p.kind];
    let column = |c: usize| tables.map(|t| t.data.iter().skip(c).step_by(width));
    let steps: Vec<f64> =
        (0..width).map(|c| column(c).into_iter().flatten().map(|v| f64::from(v.abs())).fold(0.0, f64::max) / 127.0).collect();
    let unit = |fraction: i32| 2f64.powi(fraction + i32::from(w));
    let scale_at = |fraction: i32| steps.iter().map(move |s| (s * unit(fraction)).ceil().max(1.0));
    let fits =
        |fraction: &i32| scale_at(*fraction).all(|s| s < 1e9 && bounds::residual_fits(s as i64 * bounds::EMBED_SUM_MAX, w));
    let fraction = (0..=EMBED_FRACTION_MAX).rev().find(fits).ok_or_else(|| QuantiseError::Scale("embedding".into()))?;
    let scale: Vec<i32> = scale_at(fraction).map(|s| s as i32).collect();
    let axis = EmbedAxis::new(d);
    let mut data = vec![0i8; axis.rows * width];
    for (c, row) in data.chunks_exact_mut(axis.rows).enumerate() {
        let step = f64::from(scale[c]) / unit(fraction);
        for (start, values) in [0, axis.positions, axis.types].into_iter().zip(column(c)) {
            round_row(values.map(|&v| f64::from(v)), step, &mut row[start..]);
        }
    }
    scales.push(TensorScale { name: "embed".into(), e: None, k: None, fraction });
    let spec = EmbedSpec { scale, shift: w, norm: norm_spec(&p.embed_norm, fraction) };
    Ok((spec, Matrix { name: "embed".into(), inputs: axis.rows, outputs: width, data }))
}
