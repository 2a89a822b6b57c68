//! Columns of an encoder's segments.

use super::attention::{Scores, by_key};
use super::norm::layer_norm;
use super::rounding::rounded;
use super::{Filler, WitnessError, counted};
use obelysk_model::infer::{EmbedTrace, LayerTrace, LinearTrace};
use obelysk_protocol::circuit::attention::MIX_SHIFT;
use obelysk_protocol::circuit::descriptor::{Encoder, LayerSpec};
use obelysk_protocol::circuit::exp_tables;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::shape::Blocks;
use obelysk_protocol::field::M31;

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

/// All columns of a segment, in the circuit's order.
///
/// # Errors
/// [`WitnessError`] when circuit and trace do not belong together.
pub fn columns(d: &Encoder, c: &Circuit, trace: Trace<'_>) -> Result<Vec<Vec<M31>>, WitnessError> {
    counted(c, uncounted(d, c, trace)?)
}

/// As [`columns`] with empty multiplicity columns: the trace may be a false one, whose tuples are in no table.
///
/// # Errors
/// [`WitnessError::Column`] when circuit and trace do not belong together.
pub fn uncounted(d: &Encoder, c: &Circuit, trace: Trace<'_>) -> Result<Vec<Vec<M31>>, WitnessError> {
    let mut f = Filler::new(c);
    match trace {
        Trace::Embed(t) => {
            f.set_blocks("embed", ".a", &t.a);
            layer_norm(&mut f, "norm", &t.rho, &t.norm, d.embed.norm.eps);
        }
        Trace::Layer { spec, input, trace } => {
            f.set_blocks("input", "", input);
            layer(&mut f, d, spec, trace);
        }
        Trace::Head { input } => f.set_blocks("input", "", input),
    }
    f.finish()
}

fn layer(f: &mut Filler<'_>, d: &Encoder, spec: &LayerSpec, t: &LayerTrace) {
    let linear = |f: &mut Filler<'_>, name: &str, e: u8, l: &LinearTrace| {
        rounded(f, name, e, &l.acc);
        f.set_blocks(name, ".y", &l.y);
    };
    linear(f, "q", spec.q.e, &t.q);
    linear(f, "k", spec.k.e, &t.k);
    linear(f, "v", spec.v.e, &t.v);
    attention(f, d, spec, t);
    f.fill("mix", ".r", t.mix_acc.len(), |k| mix_rest(t.mix_acc[k]));
    f.set_blocks("mix", ".y", &t.mix);
    rounded(f, "o", spec.o.e, &t.o.acc);
    layer_norm(f, "norm1", &t.attn.rho, &t.attn.norm, spec.attn_residual.norm.eps);
    linear(f, "up", spec.up.e, &t.up);
    f.set_blocks("up", ".g", &t.act);
    rounded(f, "down", spec.down.e, &t.down.acc);
    layer_norm(f, "norm2", &t.ffn.rho, &t.ffn.norm, spec.ffn_residual.norm.eps);
}

/// What the mix drops of an accumulator.
pub(super) fn mix_rest(acc: i32) -> i64 {
    (i64::from(acc) + (1 << (MIX_SHIFT - 1))) & ((1 << MIX_SHIFT) - 1)
}

fn attention(f: &mut Filler<'_>, d: &Encoder, spec: &LayerSpec, t: &LayerTrace) {
    let blocks = Blocks::of(d.width as usize);
    let rows = 1usize << f.c.token_log;
    let heads = (1usize << blocks.log) / d.head_dim as usize;
    let (lambdas, tables) = (rows * heads, exp_tables());
    let scores = by_key(&t.scores, heads, rows);
    for (b, (values, lambda)) in scores.chunks(lambdas * rows).zip(t.lambda.chunks(lambdas)).enumerate() {
        let scores = Scores { values, lambda, shift: spec.score_shift.into() };
        scores.fill(f, &format!("score.{b}"), &format!("softmax.{b}"), &tables);
    }
}
