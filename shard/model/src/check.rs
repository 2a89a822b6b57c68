//! Everything registration relies on: re-verified from the descriptor and the weights alone, trusting no quantiser.
//!
//! A model that passes has the shapes it claims, zero padding, weights in `[-127, 127]`, and no input of any length for
//! which an intermediate value leaves its window or wraps mod p.

mod decoder;

use crate::bounds::{self, E_RANGE, EMBED_SUM_MAX, M_RANGE, RESIDUAL_SHIFT_MAX};
use crate::weights::{EmbedAxis, Matrix, SegmentWeights, Weights, layer_shapes, slot};
use obelysk_protocol::circuit::descriptor::{Descriptor, Encoder, LayerSpec, NormSpec, Requant, Residual};
use obelysk_protocol::circuit::encode::{ACTIVATION_ROWS, MAX_CHANNELS, MAX_LAYERS, MAX_NAME};
use thiserror::Error;

/// Why a model cannot be registered. `at` names the tensor, for example `layer 3 down`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CheckError {
    /// Dimensions that contradict each other or a limit.
    #[error("dimensions are not admissible: {0}; quantise the model again")]
    Dimensions(String),
    /// A vector or matrix of the wrong size.
    #[error("{at}: {found} entries where the dimensions ask for {expected}; quantise the model again")]
    Length {
        /// Tensor.
        at: String,
        /// Entries found.
        found: usize,
        /// Entries needed.
        expected: usize,
    },
    /// A matrix under another name.
    #[error("{at}: found matrix `{found}`; the order of matrices is fixed, quantise the model again")]
    Order {
        /// Expected tensor.
        at: String,
        /// Name found.
        found: String,
    },
    /// A parameter outside its range.
    #[error("{at}: {what} = {value} is outside its allowed range; quantise the model again")]
    Parameter {
        /// Tensor.
        at: String,
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// A weight of -128.
    #[error("{at}: weight {index} is -128, below -127; quantise the model again")]
    Weight {
        /// Tensor.
        at: String,
        /// Flat index.
        index: usize,
    },
    /// A padding row of the embedding that is not zero.
    #[error("{at}: padding row {row} of channel {channel} is not zero; quantise the model again")]
    Padding {
        /// Tensor.
        at: String,
        /// K index.
        row: usize,
        /// N index.
        channel: usize,
    },
    /// A channel whose value can leave its window for some input.
    #[error("{at}: channel {channel} can reach {bound}, the limit is {limit}; use a larger scale for it")]
    Bound {
        /// Tensor.
        at: String,
        /// Output channel.
        channel: usize,
        /// Largest reachable magnitude.
        bound: i64,
        /// Largest allowed magnitude.
        limit: i64,
    },
}

type Checked = Result<(), CheckError>;

/// Verifies every fact that the proof system assumes about a registered model.
///
/// # Errors
/// The first violation found; see [`CheckError`].
pub fn check(d: &Descriptor, weights: &Weights) -> Checked {
    let mut checker = Checker::new(d)?;
    length("segments", weights.segments.len(), d.layer_count() + 2)?;
    weights.segments.iter().try_for_each(|w| checker.segment(w))
}

/// [`check`] of a model whose segments come one after the other, so that no more than one need be in memory.
#[derive(Debug)]
pub struct Checker<'a> {
    descriptor: &'a Descriptor,
    next: usize,
    /// Reach of a decoder's residual stream after the segments so far, per channel.
    stream: Vec<i64>,
}

impl<'a> Checker<'a> {
    /// Checks what can be said without weights.
    ///
    /// # Errors
    /// See [`CheckError`].
    pub fn new(descriptor: &'a Descriptor) -> Result<Self, CheckError> {
        match descriptor {
            Descriptor::Encoder(d) => encoder(d)?,
            Descriptor::Decoder(d) => decoder::start(d)?,
        }
        Ok(Self { descriptor, next: 0, stream: Vec::new() })
    }

    /// Checks the next segment. A model is good when all `layers + 2` of them are.
    ///
    /// # Errors
    /// See [`CheckError`]; also for a segment too many.
    pub fn segment(&mut self, w: &SegmentWeights) -> Checked {
        let index = self.next;
        self.next += 1;
        let count = self.descriptor.layer_count() + 2;
        if index >= count {
            return length("segments", self.next, count);
        }
        match self.descriptor {
            Descriptor::Encoder(d) if index == 0 => embedding(d, w),
            Descriptor::Encoder(d) => match d.layers.get(index - 1) {
                Some(spec) => layer(d, spec, &w.matrices, index - 1),
                None => length("head matrices", w.matrices.len(), 0),
            },
            Descriptor::Decoder(d) => decoder::segment(d, index, w, &mut self.stream),
        }
    }
}

fn encoder(d: &Encoder) -> Checked {
    dimensions(d)?;
    for (at, bits) in [("output gain", &d.output.gain_bits), ("output bias", &d.output.bias_bits)] {
        length(at, bits.len(), d.width as usize)?;
        if let Some(&bad) = bits.iter().find(|&&b| !f32::from_bits(b).is_finite()) {
            return Err(parameter(at, "float bits", i64::from(bad)));
        }
    }
    Ok(())
}

fn dimensions(d: &Encoder) -> Checked {
    let refuse = |text: String| Err(CheckError::Dimensions(text));
    let dims = [d.vocab, d.positions, d.types, d.width, d.heads, d.head_dim, d.ffn];
    if d.name.len() > MAX_NAME {
        return refuse(format!("the name is longer than {MAX_NAME} bytes"));
    }
    if dims.contains(&0) || d.ffn as usize > MAX_CHANNELS || d.width > bounds::ENCODER_WIDTH_MAX {
        return refuse(format!("every one must be positive, width at most {}: {dims:?}", bounds::ENCODER_WIDTH_MAX));
    }
    // Ids, positions and types share one axis of int8 rows; a quarter of p keeps its length an honest field element.
    if u64::from(d.vocab) + u64::from(d.positions) + u64::from(d.types) > 1 << 28 {
        return refuse("vocabulary, positions and types exceed 2^28 rows".into());
    }
    if u64::from(d.heads) * u64::from(d.head_dim) != u64::from(d.width) {
        return refuse(format!("{} heads of {} are not width {}", d.heads, d.head_dim, d.width));
    }
    if d.layers.len() > MAX_LAYERS {
        return refuse(format!("{} layers, at most {MAX_LAYERS}", d.layers.len()));
    }
    if d.row_log > 24
        || u16::from(d.tile_k_log) + u16::from(d.tile_n_log) > u16::from(d.row_log)
        || !(1..=4).contains(&d.blowup_log)
    {
        return refuse(format!(
            "tiles 2^{} x 2^{} need a row of at least their product and at most 2^24 (here 2^{}), rate 1/2 to 1/16",
            d.tile_k_log, d.tile_n_log, d.row_log
        ));
    }
    for n in [d.width, d.ffn] {
        if !n.is_multiple_of(1 << d.tile_k_log) || !n.is_multiple_of(1 << d.tile_n_log) {
            return refuse(format!("{n} channels are not whole tiles of 2^{} x 2^{}", d.tile_k_log, d.tile_n_log));
        }
    }
    Ok(())
}

fn embedding(d: &Encoder, w: &SegmentWeights) -> Checked {
    let at = "embedding";
    length(at, w.matrices.len(), 1)?;
    let m = &w.matrices[0];
    let axis = EmbedAxis::new(d);
    matrix(at, m, "embed", axis.rows, d.width as usize)?;
    let (vocab, positions) = (d.vocab as usize, axis.positions + d.positions as usize);
    let padding = [vocab..axis.positions, positions..axis.types, axis.types + d.types as usize..axis.rows];
    for channel in 0..m.outputs {
        let row = m.row(channel);
        if let Some(k) = padding.iter().flat_map(Clone::clone).find(|&k| row[k] != 0) {
            return Err(CheckError::Padding { at: at.into(), row: k, channel });
        }
    }
    let w = d.embed.shift;
    if !(1..=RESIDUAL_SHIFT_MAX).contains(&w) {
        return Err(parameter(at, "shift", i64::from(w)));
    }
    length("embedding scale", d.embed.scale.len(), d.width as usize)?;
    for (channel, &scale) in d.embed.scale.iter().enumerate() {
        if scale <= 0 {
            return Err(parameter(at, "scale", i64::from(scale)));
        }
        residual_bound(at, channel, i64::from(scale) * EMBED_SUM_MAX, w)?;
    }
    norm(at, &d.embed.norm)
}

fn layer(d: &Encoder, spec: &LayerSpec, matrices: &[Matrix], l: usize) -> Checked {
    let at = |name: &str| format!("layer {l} {name}");
    length(&at("matrices"), matrices.len(), 6)?;
    for (m, (name, k, n)) in matrices.iter().zip(layer_shapes(d)) {
        matrix(&at(name), m, name, k, n)?;
    }
    if !(1..=7).contains(&spec.score_shift) {
        return Err(parameter(&at("scores"), "shift", i64::from(spec.score_shift)));
    }
    let q = bounds::score_window(d.head_dim, spec.score_shift);
    for (s, r, lo, hi, closed) in [
        (slot::Q, &spec.q, -q, q, false),
        (slot::K, &spec.k, -q, q, false),
        (slot::V, &spec.v, -2048, 2047, true),
        (slot::UP, &spec.up, -32_768, 32_767, true),
    ] {
        let at = at(slot::NAMES[s]);
        requant(&at, r, matrices[s].outputs)?;
        if r.lo != lo || r.hi != hi {
            return Err(parameter(&at, "window", i64::from(r.hi)));
        }
        // Two-sided windows are closed under the sign; half-open ones exclude the upper power of two itself.
        window(&at, r, if closed { ((i64::from(hi) + 1) << r.k) - 1 } else { i64::from(hi) << r.k })?;
        rows(&at, &matrices[s], r.e, bounds::norm_reader_bound)?;
    }
    length(&at("activation"), spec.activation.len(), ACTIVATION_ROWS)?;
    let (lo, hi) = bounds::activation_window(&spec.activation);
    exponent(&at("o"), spec.o.e)?;
    rows(&at("o"), &matrices[slot::O], spec.o.e, |row| bounds::window_bound(row, -32_768, 32_767))?;
    exponent(&at("down"), spec.down.e)?;
    rows(&at("down"), &matrices[slot::DOWN], spec.down.e, |row| bounds::window_bound(row, lo, hi))?;
    residual(&at("attention residual"), &spec.attn_residual, d.width as usize)?;
    residual(&at("feed-forward residual"), &spec.ffn_residual, d.width as usize)
}

fn matrix(at: &str, m: &Matrix, name: &str, inputs: usize, outputs: usize) -> Checked {
    if m.name != name {
        return Err(CheckError::Order { at: at.into(), found: m.name.clone() });
    }
    length(at, m.inputs, inputs)?;
    length(at, m.outputs, outputs)?;
    length(at, m.data.len(), inputs * outputs)?;
    match m.data.iter().position(|&q| q == i8::MIN) {
        Some(index) => Err(CheckError::Weight { at: at.into(), index }),
        None => Ok(()),
    }
}

fn exponent(at: &str, e: u8) -> Checked {
    if E_RANGE.contains(&e) { Ok(()) } else { Err(parameter(at, "e", i64::from(e))) }
}

fn requant(at: &str, r: &Requant, outputs: usize) -> Checked {
    exponent(at, r.e)?;
    if !(1..=15).contains(&r.k) {
        return Err(parameter(at, "k", i64::from(r.k)));
    }
    length(&format!("{at} m"), r.m.len(), outputs)?;
    length(&format!("{at} b"), r.b.len(), outputs)?;
    match r.m.iter().find(|m| !M_RANGE.contains(m)) {
        Some(&m) => Err(parameter(at, "m", i64::from(m))),
        None => Ok(()),
    }
}

/// `m 2^15 + |b| <= limit`: no `t^` can push the output out of its window, nor the products near p.
fn window(at: &str, r: &Requant, limit: i64) -> Checked {
    let limit = limit.min((bounds::P >> 1) - (1 << r.k) - 1);
    for (channel, (&m, &b)) in r.m.iter().zip(&r.b).enumerate() {
        let bound = (i64::from(m) << 15) + i64::from(b).abs();
        if bound > limit {
            return Err(CheckError::Bound { at: at.into(), channel, bound, limit });
        }
    }
    Ok(())
}

fn rows(at: &str, m: &Matrix, e: u8, bound_of: impl Fn(&[i8]) -> i64) -> Checked {
    let limit = bounds::accumulator_limit(e);
    for channel in 0..m.outputs {
        let bound = bound_of(m.row(channel));
        if bound > limit {
            return Err(CheckError::Bound { at: at.into(), channel, bound, limit });
        }
    }
    Ok(())
}

fn residual(at: &str, r: &Residual, width: usize) -> Checked {
    if !(1..=RESIDUAL_SHIFT_MAX).contains(&r.shift) {
        return Err(parameter(at, "shift", i64::from(r.shift)));
    }
    for (what, v) in [("gain", &r.gain), ("bias", &r.bias), ("mult", &r.mult)] {
        length(&format!("{at} {what}"), v.len(), width)?;
    }
    for (channel, ((&g, &b), &m)) in r.gain.iter().zip(&r.bias).zip(&r.mult).enumerate() {
        if m < 0 {
            return Err(parameter(at, "mult", i64::from(m)));
        }
        let magnitude = i64::from(g).abs() * 32_767 + (i64::from(m) << 15) + i64::from(b).abs();
        residual_bound(at, channel, magnitude, r.shift)?;
    }
    norm(at, &r.norm)
}

fn residual_bound(at: &str, channel: usize, bound: i64, w: u8) -> Checked {
    let limit = (254i64 << (w + 15)) - (1 << w) - 1;
    if bounds::residual_fits(bound, w) { Ok(()) } else { Err(CheckError::Bound { at: at.into(), channel, bound, limit }) }
}

fn norm(at: &str, n: &NormSpec) -> Checked {
    if (bounds::NORM_EPS_MIN..=bounds::NORM_EPS_MAX).contains(&n.eps) {
        Ok(())
    } else {
        Err(parameter(at, "norm eps", i64::try_from(n.eps).unwrap_or(i64::MAX)))
    }
}

fn length(at: &str, found: usize, expected: usize) -> Checked {
    if found == expected { Ok(()) } else { Err(CheckError::Length { at: at.into(), found, expected }) }
}

fn parameter(at: &str, what: &'static str, value: i64) -> CheckError {
    CheckError::Parameter { at: at.into(), what, value }
}

#[cfg(test)]
mod tests;
