//! Columns of a decoder's segments.

mod attention;
mod head;

use super::norm::{self, Normed};
use super::rounding::{rounded, rounded_wide};
use super::{Filler, WitnessError, counted};
use crate::hidden::limb;
use obelysk_model::infer::LinearTrace;
use obelysk_model::infer::decoder::{AccumulatedTrace, BranchTrace, DecoderLayerTrace, HeadTrace, RmsTrace, TokenEmbedTrace};
use obelysk_protocol::circuit::descriptor::{Accumulated, Branch, Decoder, DecoderLayer};
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::field::M31;

/// Limbs of the residual stream.
const LIMBS: usize = 3;

/// What a segment computed.
#[derive(Clone, Copy, Debug)]
pub enum Trace<'a> {
    /// Segment 0.
    Embed(&'a TokenEmbedTrace),
    /// A layer and the residual stream it received.
    Layer {
        /// The layer's parameters.
        spec: &'a DecoderLayer,
        /// Received residual stream.
        input: &'a [i32],
        /// What it computed.
        trace: &'a DecoderLayerTrace,
    },
    /// The head and the residual stream it received.
    Head {
        /// Received residual stream.
        input: &'a [i32],
        /// What it computed.
        trace: &'a HeadTrace,
        /// Claimed next token of every checked row.
        targets: &'a [u32],
    },
}

/// All columns of a segment, in the circuit's order.
///
/// # Errors
/// [`WitnessError`] when circuit and trace do not belong together, or the model does not continue with the claimed tokens.
pub fn columns(d: &Decoder, c: &Circuit, trace: Trace<'_>) -> Result<Vec<Vec<M31>>, WitnessError> {
    counted(c, uncounted(d, c, trace)?)
}

/// As [`columns`] with empty multiplicity columns: the trace may be a false one, whose tuples are in no table.
///
/// # Errors
/// [`WitnessError::Column`] when circuit and trace do not belong together.
pub fn uncounted(d: &Decoder, c: &Circuit, trace: Trace<'_>) -> Result<Vec<Vec<M31>>, WitnessError> {
    let mut f = Filler::new(c);
    match trace {
        Trace::Embed(t) => {
            for (i, a) in t.a.iter().enumerate() {
                f.set_blocks("embed", &format!(".a{i}"), a);
            }
            stream(&mut f, "x", &t.x);
            f.set_blocks("x", ".rho", &t.rho);
        }
        Trace::Layer { spec, input, trace } => {
            stream(&mut f, "input", input);
            layer(&mut f, d, spec, (input, trace));
        }
        Trace::Head { input, trace, targets } => {
            stream(&mut f, "input", input);
            head::fill(&mut f, d, trace, targets);
        }
    }
    f.finish()
}

/// Limbs of 24-bit values.
fn stream(f: &mut Filler<'_>, name: &str, x: &[i32]) {
    for l in 0..LIMBS {
        f.fill(name, &format!(".{l}"), x.len(), |k| limb(x[k], l, LIMBS).into());
    }
}

/// An RMSNorm of 24-bit values.
fn rms(f: &mut Filler<'_>, name: &str, x: &[i32], t: &RmsTrace, eps: u64) {
    norm::fill(f, name, (x, LIMBS), normed(t), eps);
}

fn normed(t: &RmsTrace) -> Normed<'_> {
    Normed { s: &t.s, sigma: &t.sigma, index: &t.index, recip: &t.recip, x_scaled: &t.x_scaled, u: &t.u }
}

fn layer(f: &mut Filler<'_>, d: &Decoder, spec: &DecoderLayer, (x, t): (&[i32], &DecoderLayerTrace)) {
    rms(f, "attn_norm", x, &t.attn_norm, spec.attn_norm.eps);
    attention::fill(f, d, spec, t);
    accumulated(f, "o", spec.o, &t.o);
    branch(f, "attn", &spec.attn_branch, &t.attn);
    rms(f, "ffn_norm", &t.attn.x, &t.ffn_norm, spec.ffn_norm.eps);
    linear(f, "gate", spec.gate.e, &t.gate);
    f.set_blocks("gate", ".g", &t.act);
    rounded(f, "up", spec.up.e, &t.up.acc);
    rounded(f, "product", spec.product.e, &t.product.acc);
    split(f, "product", ".h", spec.down.limbs, &t.product.t_hat);
    accumulated(f, "down", spec.down, &t.down);
    branch(f, "ffn", &spec.ffn_branch, &t.ffn);
}

/// A requantised projection.
fn linear(f: &mut Filler<'_>, name: &str, e: u8, t: &LinearTrace) {
    rounded(f, name, e, &t.acc);
    f.set_blocks(name, ".y", &t.y);
}

/// A 16-bit input of a matrix: itself, or in two limbs.
fn split(f: &mut Filler<'_>, prefix: &str, suffix: &str, limbs: u8, values: &[i16]) {
    if limbs == 1 {
        f.set_blocks(prefix, suffix, values);
        return;
    }
    for l in 0..usize::from(limbs) {
        f.fill(prefix, &format!("{suffix}{l}"), values.len(), |k| limb(values[k].into(), l, limbs.into()).into());
    }
}

/// A matrix that stops at `t^`.
fn accumulated(f: &mut Filler<'_>, name: &str, spec: Accumulated, t: &AccumulatedTrace) {
    match t.acc.as_slice() {
        [acc] => rounded(f, name, spec.e, acc),
        [low, high] => rounded_wide(f, name, spec.e, (low, high)),
        _ => {}
    }
}

fn branch(f: &mut Filler<'_>, name: &str, spec: &Branch, t: &BranchTrace) {
    if let (Some(spec), Some(t)) = (&spec.norm, &t.norm) {
        let y = format!("{name}.y");
        stream(f, &y, &t.y);
        f.set_blocks(&y, ".rho", &t.rho);
        rms(f, &format!("{name}.norm"), &t.y, &t.norm, spec.norm.eps);
    }
    let x = format!("{name}.x");
    stream(f, &x, &t.x);
    f.set_blocks(&x, ".rho", &t.rho);
}
