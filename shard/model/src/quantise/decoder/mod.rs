//! Decoders: scales from calibration, layer by layer, so that memory holds one layer's floats and the calibration streams.
//!
//! The residual stream has one power-of-two scale for the whole model. Every constant that leads into it is chosen at a fixed
//! sum of fraction and dropped bits; when all layers are known, the fraction becomes the largest at which no input can leave
//! 24 bits, and the shifts follow. Weights are rounded last, with error feedback.

mod layer;
mod order;
mod record;

use super::linear::Folded;
use super::{QuantiseError, QuantiseOptions, Quantised, TensorScale, norm_unit};
use crate::bounds;
use crate::calibrate::{Moments, Ranges};
use crate::check::check;
use crate::graph::decoder::DecoderGraph;
use crate::graph::decoder_float::{Stage, embed, logits};
use crate::import::DecoderConfig;
use crate::weights::{IntegerModel, Matrix, SegmentWeights, Weights, decoder_shapes};
use obelysk_protocol::circuit::descriptor::{Branch, Decoder, DecoderLayer, Descriptor, Head, NormSpec, Stop, TokenEmbed};
use record::{Record, before_gain};

/// Largest shift into the residual stream.
const SHIFT_MAX: i32 = 7;
/// Bits dropped into the residual stream at the first attempt: leaves room both ways.
const SHIFT_FIRST: i32 = 4;
/// Attempts at a scale of the residual stream; one correction always suffices unless a bound cannot be met at all.
const ATTEMPTS: usize = 4;
/// Symbols a leaf may have before rows grow: a proof opens some hundred leaves of every segment.
const LEAF_SYMBOLS: usize = 512;
/// log2 of the longest row chosen here: its word takes a gibibyte as extension elements.
const ROW_LOG_MAX: u8 = 22;
/// Base of the embedding's two int8 limbs.
const LIMB_BASE: i32 = 255;
/// Rows of the head that error feedback is worth: above it the products take longer than all layers together.
const FEEDBACK_WORK: usize = 1 << 38;

/// Told the layer that is done, of how many.
pub type Progress<'a> = dyn Fn(usize, usize) + 'a;

/// Quantises a decoder, calibrated on token sequences.
///
/// # Errors
/// See [`QuantiseError`].
pub fn quantise_decoder(
    graph: &DecoderGraph,
    sequences: &[Vec<u32>],
    options: &QuantiseOptions,
    progress: &Progress<'_>,
) -> Result<Quantised, QuantiseError> {
    super::validate(options)?;
    let mut fixed = first_scale(graph, sequences)?;
    for _ in 0..ATTEMPTS {
        let mut made = attempt(graph, sequences, options, fixed, progress)?;
        let fraction = made.fraction();
        let shift = fixed - fraction;
        if (1..=SHIFT_MAX).contains(&shift) {
            made.finish(graph, fraction, shift as u8);
            let descriptor = Descriptor::Decoder(made.descriptor);
            let weights = Weights { segments: made.segments };
            check(&descriptor, &weights)?;
            return Ok(Quantised { model: IntegerModel { descriptor, weights }, scales: made.scales });
        }
        fixed = fraction + SHIFT_FIRST;
    }
    Err(QuantiseError::Scale("residual stream".into()))
}

/// Everything but the residual stream's scale.
struct Made {
    descriptor: Decoder,
    segments: Vec<SegmentWeights>,
    scales: Vec<TensorScale>,
    /// Fraction plus dropped bits.
    fixed: i32,
}

/// Fraction plus dropped bits to begin with, from the largest value of the stream on a few sequences.
fn first_scale(graph: &DecoderGraph, sequences: &[Vec<u32>]) -> Result<i32, QuantiseError> {
    let mut largest = 1e-3f64;
    for ids in sequences.iter().take(2) {
        let (mut x, tokens) = (embed(graph, ids)?, ids.len());
        for l in 0..graph.config.layers {
            x = crate::graph::decoder_float::layer(&graph.config, l, &graph.layer(l)?, &x, tokens, &mut |_, _, _, _| ());
            largest = x.iter().fold(largest, |a, v| a.max(f64::from(v.abs())));
        }
    }
    // The sum of all worst cases is some eight times what is seen.
    Ok((2f64.powi(20) / largest).log2().floor() as i32 + SHIFT_FIRST)
}

fn attempt(
    graph: &DecoderGraph,
    sequences: &[Vec<u32>],
    options: &QuantiseOptions,
    fixed: i32,
    progress: &Progress<'_>,
) -> Result<Made, QuantiseError> {
    let config = &graph.config;
    let mut descriptor = dimensions(config, options);
    let mut scales = Vec::new();
    let (embed_spec, matrices) = embedding(graph, &descriptor, fixed)?;
    descriptor.embed = embed_spec;
    let mut segments = vec![SegmentWeights { matrices }];
    let mut streams: Vec<(Vec<f32>, usize)> =
        sequences.iter().map(|ids| Ok((embed(graph, ids)?, ids.len()))).collect::<Result<_, QuantiseError>>()?;
    let mix_order = order::plain(&descriptor, descriptor.group());
    for l in 0..config.layers {
        let weights = graph.layer(l)?;
        let record = Record::run(config, l, &weights, &mix_order, &mut streams);
        let mut builder =
            layer::Builder { l, config, d: &descriptor, w: &weights, record: &record, options, fixed, scales: &mut scales };
        let (spec, segment) = builder.build()?;
        descriptor.layers.push(spec);
        segments.push(segment);
        progress(l + 1, config.layers);
    }
    let (head, matrix) = head(graph, &descriptor, &streams, (options, &mut scales))?;
    descriptor.head = head;
    segments.push(SegmentWeights { matrices: vec![matrix] });
    Ok(Made { descriptor, segments, scales, fixed })
}

impl Made {
    /// The largest fraction at which the worst case of every channel stays within 24 bits.
    fn fraction(&self) -> i32 {
        let d = &self.descriptor;
        let entry = if d.embed.limbs == 1 { 127.0 } else { 127.0 * f64::from(LIMB_BASE + 1) };
        let branches = |l: &DecoderLayer| [l.attn_branch.clone(), l.ffn_branch.clone()];
        let all: Vec<Branch> = d.layers.iter().flat_map(branches).collect();
        let unit = 2f64.powi(-self.fixed);
        let worst = (0..d.width as usize)
            .map(|c| {
                let sum: f64 = all.iter().map(|b| f64::from(b.mult[c]) * 32_768.0).sum();
                (sum + f64::from(d.embed.scale[c]) * entry) * unit
            })
            .fold(1e-9, f64::max);
        // One unit of rounding per addition.
        let room = 2f64.powi(23) - 2.0 * (all.len() + 2) as f64;
        (room / worst).log2().floor() as i32
    }

    /// Writes the shifts, and what depends on the stream's unit: the epsilons of norms.
    fn finish(&mut self, graph: &DecoderGraph, fraction: i32, shift: u8) {
        let (eps, width) = (graph.config.norm_eps, graph.config.width);
        let norm = stream_norm(eps, width, fraction);
        let d = &mut self.descriptor;
        d.embed.shift = shift;
        for l in &mut d.layers {
            (l.attn_norm, l.ffn_norm) = (norm.clone(), norm.clone());
            (l.attn_branch.shift, l.ffn_branch.shift) = (shift, shift);
        }
        d.head.norm = norm;
        self.scales.push(TensorScale { name: "residual".into(), e: None, k: Some(shift), fraction });
    }
}

/// Integer eps of an RMSNorm whose input has `fraction` fractional bits: never below `2^14`, so that a zero row is defined.
fn stream_norm(eps: f64, width: usize, fraction: i32) -> NormSpec {
    let eps = (eps * width as f64 * 2f64.powi(2 * fraction)).round() as u64;
    NormSpec { eps: eps.clamp(bounds::NORM_EPS_MIN, bounds::NORM_EPS_MAX) }
}

pub(crate) fn dimensions(c: &DecoderConfig, options: &QuantiseOptions) -> Decoder {
    let mut d = Decoder {
        name: options.name.clone(),
        vocab: c.vocab as u32,
        positions: c.positions.min(1 << 20) as u32,
        width: c.width as u32,
        heads: c.heads as u32,
        kv_heads: c.kv_heads as u32,
        head_dim: c.head_dim as u32,
        ffn: c.ffn as u32,
        tile_k_log: 0,
        tile_n_log: 0,
        row_log: options.row_log,
        blowup_log: options.blowup_log,
        embed: TokenEmbed { limbs: options.embed_limbs, scale: Vec::new(), shift: 1 },
        frequencies: c.rope.iter().map(|&f| turns(f)).collect(),
        layers: Vec::new(),
        head: Head { norm: NormSpec { eps: 0 }, linear: Stop { e: 1 }, mult: Vec::new() },
    };
    lay_out(&mut d, options);
    d
}

/// Chooses tiles and rows: tiles divide every axis; rows are so long that no segment has many.
pub(crate) fn lay_out(d: &mut Decoder, options: &QuantiseOptions) {
    let layer: usize = decoder_shapes(d).iter().map(|(_, k, n)| k * n).sum();
    let longest = layer.max(d.vocab as usize * d.width as usize);
    let rows = options.row_log.max((longest.next_power_of_two() / LEAF_SYMBOLS).max(1).trailing_zeros() as u8).min(ROW_LOG_MAX);
    let (q, kv) = ((d.heads as usize) << d.part_log(), (d.kv_heads as usize) << d.part_log());
    let log = |n: usize| n.trailing_zeros() as u8;
    let half = rows / 2;
    let (width, ffn) = (d.width as usize, d.ffn as usize);
    let k = [width, ffn, q].into_iter().map(log).min().unwrap_or(0).min(half);
    let n = [width, ffn, kv / 2].into_iter().map(log).min().unwrap_or(0).min(half);
    d.tile_k_log = options.tile_k_log.unwrap_or(k);
    d.tile_n_log = options.tile_n_log.unwrap_or(n);
    d.row_log = rows.max(d.tile_k_log + d.tile_n_log);
}

/// An angle per position in turns times 2^64.
pub(crate) fn turns(radians: f64) -> u64 {
    // 2^64 / 2 pi loses nothing that matters: 53 bits of a turn, over at most 2^20 positions.
    (radians / std::f64::consts::TAU * 2f64.powi(64)).rem_euclid(2f64.powi(64)) as u64
}

/// Rows of the embedding in one or two int8 limbs, with one scale per channel.
fn embedding(graph: &DecoderGraph, d: &Decoder, fixed: i32) -> Result<(TokenEmbed, Vec<Matrix>), QuantiseError> {
    let (width, rows) = (graph.config.width, d.embed_inputs());
    let table = graph.embedding()?;
    let largest = if d.embed.limbs == 1 { 127 } else { 127 * (LIMB_BASE + 1) };
    let unit = 2f64.powi(fixed);
    let value = |v: f32| f64::from(v) * graph.config.embed_scale;
    let mut top = vec![0f64; width];
    for row in table.chunks_exact(width) {
        top.iter_mut().zip(row).for_each(|(t, &v)| *t = t.max(value(v).abs()));
    }
    let scale: Vec<i32> = top.iter().map(|t| (t * unit / f64::from(largest)).ceil().clamp(1.0, 32_000.0) as i32).collect();
    let mut limbs = vec![vec![0i8; rows * width]; usize::from(d.embed.limbs)];
    for (id, row) in table.chunks_exact(width).enumerate() {
        for (c, &v) in row.iter().enumerate() {
            let whole = (value(v) * unit / f64::from(scale[c])).round().clamp(-f64::from(largest), f64::from(largest)) as i32;
            let mut rest = whole;
            let count = limbs.len();
            for (k, limb) in limbs.iter_mut().enumerate() {
                let low = if k + 1 == count { rest } else { (rest + 127).rem_euclid(LIMB_BASE) - 127 };
                limb[c * rows + id] = low as i8;
                rest = (rest - low) / LIMB_BASE;
            }
        }
    }
    let names = ["embed", "embed_high"];
    let matrices = limbs
        .into_iter()
        .zip(names)
        .map(|(data, name)| Matrix { name: name.into(), inputs: rows, outputs: width, data })
        .collect();
    Ok((TokenEmbed { limbs: d.embed.limbs, scale, shift: 1 }, matrices))
}

/// Logit rows in steps of one unit times m: `y_j = m_j t^_j` orders all tokens.
fn head(
    graph: &DecoderGraph,
    d: &Decoder,
    streams: &[(Vec<f32>, usize)],
    (options, scales): (&QuantiseOptions, &mut Vec<TensorScale>),
) -> Result<(Head, Matrix), QuantiseError> {
    let (width, vocab, outputs) = (graph.config.width, graph.config.vocab, d.head_outputs());
    let (gain, weight) = (graph.final_norm()?, graph.head()?);
    let (mut moments, mut ranges) = (Moments::default(), Ranges::default());
    for (x, tokens) in streams {
        let cap = graph.config.logit_cap;
        logits(graph, x, *tokens, &mut |_, stage, values, tokens| match stage {
            Stage::FinalNorm => moments.extend(&before_gain(values, &gain, tokens), tokens),
            Stage::Logits => ranges.extend(&uncapped(values, cap), tokens),
            _ => {}
        })?;
    }
    let unit = norm_unit(width);
    let feedback = (vocab * width).saturating_mul(width) <= FEEDBACK_WORK;
    let folded = Folded::of(&weight, width, None, |k| f64::from(gain[k]) * unit, |_| unit, feedback.then_some(&moments));
    let e = folded.choose_e(&ranges, options.headroom);
    // A power of two, so that a logit's unit is one too.
    let finest = folded.step.iter().copied().fold(0.0, f64::max).max(1e-12) / f64::from(*bounds::M_RANGE.end());
    let fraction = -(finest.log2().ceil() as i32);
    let finest = 2f64.powi(-fraction);
    let mult: Vec<i32> = folded.step.iter().map(|s| (s / finest).ceil().clamp(1.0, 255.0) as i32).collect();
    let mut data = folded.round(|n| f64::from(mult[n]) * finest);
    data.resize(outputs * width, 0);
    scales.push(TensorScale { name: "head".into(), e: Some(e), k: None, fraction: fraction - i32::from(e) });
    let spec = Head { norm: NormSpec { eps: 0 }, linear: Stop { e }, mult };
    Ok((spec, Matrix { name: "head".into(), inputs: width, outputs, data }))
}

/// Undoes `c tanh(x / c)`; the integer logits have no cap, which changes no order.
fn uncapped(values: &[f32], cap: Option<f64>) -> Vec<f32> {
    let Some(c) = cap else { return values.to_vec() };
    values.iter().map(|&v| (c * (f64::from(v) / c).clamp(-0.999_999, 0.999_999).atanh()) as f32).collect()
}
