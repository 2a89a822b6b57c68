//! One decoder layer: scales of its matrices, tables and branches, in the order the integer function uses them.

use super::super::linear::Folded;
use super::super::{QuantiseError, QuantiseOptions, TensorScale, norm_unit};
use super::order;
use super::record::Record;
use crate::bounds;
use crate::calibrate::{Moments, Ranges};
use crate::graph::decoder::DecoderLayer as FloatLayer;
use crate::graph::decoder_float::Stage;
use crate::import::{DecoderConfig, HiddenAct};
use crate::tables::{gate_table, gelu, gelu_tanh, score_cap_table, silu};
use crate::weights::{Matrix, SegmentWeights};
use obelysk_protocol::circuit::descriptor::{
    Accumulated, Branch, BranchNorm, Decoder, DecoderLayer, HeadNorm, NormSpec, Requant, Rotary, Rotated, ScoreCap, Stop,
};
use obelysk_protocol::circuit::{rotary, wide};

/// k of queries, keys and values: with it `m <= 255` fills a window of 12 bits.
const NARROW_SHIFT: u8 = 12;
/// k of 16-bit outputs.
const WIDE_SHIFT: u8 = 8;
/// Most score bits dropped before the exponential.
const SCORE_SHIFT_MAX: u8 = 7;
/// Fraction bits of a score before those are dropped.
const SCORE_FRACTION: i32 = 12;
/// Gain of a rotation without a norm, and its shift.
const PLAIN_GAIN: i32 = 1 << 14;
const PLAIN_SHIFT: u8 = 14;
/// Largest gain of a rotation behind a norm: its products with 16 bits and the shifted result stay below p.
const NORMED_GAIN: f64 = 16_383.0;
/// Most fractional bits of an activation.
const ACTIVATION_FRACTION_MAX: i32 = 14;
/// Largest activation: its product with 16 bits fits R1 for every admitted e.
const ACTIVATION_MAX: f64 = 28_000.0;
/// Bits by which the mix has more fraction than v: weights have 18, 14 are dropped.
const MIX_EXTRA: i32 = 4;
/// Fraction of a value that a norm of its own reads: its scale does not matter, only its resolution.
const OWN_NORM_BITS: i32 = 22;

pub(super) struct Builder<'a> {
    pub l: usize,
    pub config: &'a DecoderConfig,
    pub d: &'a Decoder,
    pub w: &'a FloatLayer,
    pub record: &'a Record,
    pub options: &'a QuantiseOptions,
    /// Fraction of the residual stream plus bits dropped into it.
    pub fixed: i32,
    pub scales: &'a mut Vec<TensorScale>,
}

/// Queries and keys with what the score needs to know.
struct Scores {
    q: (Rotated, Matrix),
    k: (Rotated, Matrix),
    shift: u8,
    cap: Option<ScoreCap>,
}

impl Builder<'_> {
    pub fn build(&mut self) -> Result<(DecoderLayer, SegmentWeights), QuantiseError> {
        let (d, w) = (self.d, self.w);
        let width = d.width as usize;
        let scores = if self.config.qk_norm { self.normed_scores()? } else { self.plain_scores()? };
        let value_order = order::plain(d, 1);
        let v_rows = order::rows(&w.v, width, &value_order);
        let v_bias = w.v_bias.as_ref().map(|b| order::rows(b, 1, &value_order));
        let folded = self.behind(&v_rows, v_bias.as_deref(), &w.attn_norm, &self.record.attn);
        let ranges = self.record.ordered(Stage::V, &value_order);
        let (v, v_matrix, v_fraction) = self.scaled("v", &folded, &ranges, NARROW_SHIFT, 2048)?;
        let mix_order = order::plain(d, d.group());
        let o_weight = order::columns(&w.o, &mix_order);
        let mix_unit = 2f64.powi(-(v_fraction + MIX_EXTRA));
        let o = Folded::of(&o_weight, mix_order.len(), None, |_| mix_unit, |_| mix_unit, Some(&self.record.mix));
        let (o, attn_branch, o_matrix) = self.branch("o", &o, Stage::AttnOut, w.post_attn_norm.as_deref())?;
        let gate_in = self.behind(&w.gate, None, &w.ffn_norm, &self.record.ffn);
        let (gate, gate_matrix, gate_fraction) =
            self.scaled("gate", &gate_in, &self.record.ranges(Stage::GatePre), WIDE_SHIFT, 32_768)?;
        let up_in = self.behind(&w.up, None, &w.ffn_norm, &self.record.ffn);
        let gated = self.gated(gate_fraction, &up_in)?;
        let down = Folded::of(&w.down, d.ffn as usize, None, |k| gated.units[k], |k| gated.units[k], Some(&self.record.product));
        let (down, ffn_branch, down_matrix) = self.branch("down", &down, Stage::Down, w.post_ffn_norm.as_deref())?;
        let empty = NormSpec { eps: 0 };
        let spec = DecoderLayer {
            attn_norm: empty.clone(),
            q: scores.q.0,
            k: scores.k.0,
            v,
            score_shift: scores.shift,
            score_cap: scores.cap,
            window: self.config.windows.get(self.l).copied().flatten().map_or(0, |w| w.min(1 << 30) as u32),
            o,
            attn_branch,
            ffn_norm: empty,
            gate,
            activation: gated.activation,
            up: gated.up,
            product: gated.product,
            down,
            ffn_branch,
        };
        let mut matrices = Vec::new();
        for (m, parts, by_input) in [
            (scores.q.1, 2 * d.delta(), false),
            (scores.k.1, 2 * d.delta(), false),
            (v_matrix, d.delta(), false),
            (o_matrix, d.delta(), true),
        ] {
            matrices.extend(split(&m, parts, by_input));
        }
        matrices.extend([gate_matrix, gated.matrix, down_matrix]);
        Ok((spec, SegmentWeights { matrices }))
    }

    fn name(&self, part: &str) -> String {
        format!("layer.{}.{part}", self.l)
    }

    fn note(&mut self, part: &str, e: Option<u8>, k: Option<u8>, fraction: i32) {
        let name = self.name(part);
        self.scales.push(TensorScale { name, e, k, fraction });
    }

    /// A matrix that reads a norm: the norm's gain moves into it.
    fn behind(&self, weight: &[f32], bias: Option<&[f32]>, gain: &[f32], moments: &Moments) -> Folded {
        let unit = norm_unit(gain.len());
        Folded::of(weight, gain.len(), bias, |k| f64::from(gain[k]) * unit, |_| unit, Some(moments))
    }

    /// One power-of-two scale: the largest fraction whose outputs cannot leave `[-half, half)`.
    fn scaled(
        &mut self,
        part: &str,
        folded: &Folded,
        ranges: &Ranges,
        k: u8,
        half: i32,
    ) -> Result<(Requant, Matrix, i32), QuantiseError> {
        let e = folded.choose_e(ranges, self.options.headroom);
        let limit = (i64::from(half) << k) - 1;
        let at = |f: i32| folded.fit(e, k, limit, |_| 2f64.powi(f)).map(|mb| (mb, f));
        let (mb, fraction) = (-20..=24).rev().find_map(at).ok_or_else(|| QuantiseError::Scale(self.name(part)))?;
        self.note(part, Some(e), Some(k), fraction);
        let (spec, matrix) = finish(part, folded, e, k, limit, mb, &|_| 2f64.powi(fraction));
        Ok((Requant { lo: -half, hi: half - 1, ..spec }, matrix, fraction))
    }

    /// Rows and ranges of queries and keys in proof order.
    fn projections(&self) -> [(Folded, u8); 2] {
        let (d, w) = (self.d, self.w);
        let one = |weight: &[f32], bias: Option<&Vec<f32>>, stage: Stage, group: usize| {
            let order = order::rotated(d, group);
            let rows = order::rows(weight, d.width as usize, &order);
            let bias = bias.map(|b| order::rows(b, 1, &order));
            let folded = self.behind(&rows, bias.as_deref(), &w.attn_norm, &self.record.attn);
            let e = folded.choose_e(&self.record.ordered(stage, &order), self.options.headroom);
            (folded, e)
        };
        [one(&w.q, w.q_bias.as_ref(), Stage::QPre, d.group()), one(&w.k, w.k_bias.as_ref(), Stage::KPre, 1)]
    }

    /// Real units of a score: `12 + g` fraction bits with the attention scale and the rotation's amplitude folded in.
    fn score_unit(&self, g: u8) -> f64 {
        2f64.powi(SCORE_FRACTION + i32::from(g)) * self.config.attention_scale * self.config.rope_amplitude.powi(2)
    }

    /// Families without norms per head. Only the product of scales matters, so each rotated pair of a key head is balanced
    /// against the same pair of its queries.
    fn plain_scores(&mut self) -> Result<Scores, QuantiseError> {
        let [(fq, eq), (fk, ek)] = self.projections();
        let balance = self.balance((&fq, eq), (&fk, ek));
        let k = NARROW_SHIFT;
        for g in (1..=SCORE_SHIFT_MAX).rev() {
            // A capped score is rounded by R1 instead, which leaves it the same room.
            let full = bounds::score_window(self.d.head_dim, g);
            let half = (f64::from(full) / std::f64::consts::SQRT_2).floor() as i32 - 2;
            let limit = i64::from(half) << k;
            let unit = self.score_unit(g).sqrt();
            let (scale_q, scale_k) = (|n: usize| unit * balance.0[n], |n: usize| unit * balance.1[n]);
            let (Some(mb_q), Some(mb_k)) = (fq.fit(eq, k, limit, scale_q), fk.fit(ek, k, limit, scale_k)) else {
                continue;
            };
            let rotated = |(linear, matrix): (Requant, Matrix)| {
                let linear = Requant { lo: -half, hi: half, ..linear };
                let rotary = Rotary { gain: vec![PLAIN_GAIN; self.d.head_dim as usize], shift: PLAIN_SHIFT };
                (with_limit(Rotated { linear, norm: None, rotary, limit: 0 }), matrix)
            };
            let q = rotated(finish("q", &fq, eq, k, limit, mb_q, &scale_q));
            let key = rotated(finish("k", &fk, ek, k, limit, mb_k, &scale_k));
            self.note("q", Some(eq), Some(k), SCORE_FRACTION + i32::from(g));
            self.note("k", Some(ek), Some(k), SCORE_FRACTION + i32::from(g));
            let (shift, cap) = self.capped(g);
            return Ok(Scores { q, k: key, shift, cap });
        }
        Err(QuantiseError::Scale(self.name("q and k")))
    }

    /// Per output row of q and of k: factors whose product is one for a query and its key.
    fn balance(&self, (fq, eq): (&Folded, u8), (fk, ek): (&Folded, u8)) -> (Vec<f64>, Vec<f64>) {
        let d = self.d;
        let reach = |f: &Folded, e: u8, n: usize| (f.step[n] * 2f64.powi(15 + i32::from(e)) + f.bias[n].abs()).max(1e-9);
        let mut out = (vec![1.0; fq.outputs()], vec![1.0; fk.outputs()]);
        let (log, group, kv) = (d.pair_log(), d.group(), d.kv_heads as usize);
        let (q_size, k_size) = ((group * kv) << log, kv << log);
        for part in 0..d.delta() {
            for head in 0..kv {
                for c in 0..1usize << log {
                    // Both halves of the pair rotate into each other.
                    let parts = [part, part + d.delta()];
                    let keys = parts.map(|p| p * k_size + d.channel(log, 0, head, c));
                    let queries =
                        parts.into_iter().flat_map(|p| (0..group).map(move |r| p * q_size + d.channel(log, r, head, c)));
                    let queries: Vec<usize> = queries.collect();
                    let top_k = keys.iter().map(|&n| reach(fk, ek, n)).fold(0.0, f64::max);
                    let top_q = queries.iter().map(|&n| reach(fq, eq, n)).fold(0.0, f64::max);
                    let b = (top_k / top_q).sqrt();
                    queries.iter().for_each(|&n| out.0[n] = b);
                    keys.iter().for_each(|&n| out.1[n] = 1.0 / b);
                }
            }
        }
        out
    }

    /// Families with norms per head: projections keep 16 bits, gains and the score's unit go into the rotation.
    fn normed_scores(&mut self) -> Result<Scores, QuantiseError> {
        let dim = f64::from(self.d.head_dim);
        let projections = self.projections();
        let gains = [&self.w.q_norm, &self.w.k_norm].map(|g| g.clone().unwrap_or_default());
        let top = gains.each_ref().map(|g| g.iter().fold(1e-6f64, |a, v| a.max(f64::from(v.abs()))));
        let room = (bounds::P - 1) as f64 / 4.0;
        // |q'| |k'| <= 1.01 gain_q gain_k unit dim, in score units.
        let fits = |g: &u8| 1.1 * top[0] * top[1] * self.score_unit(*g) * dim + 3.0 * 2f64.powi(16 + i32::from(*g)) / 4.0 < room;
        let g = (1..=SCORE_SHIFT_MAX).rev().find(fits).ok_or_else(|| QuantiseError::Scale(self.name("q and k")))?;
        // Product of both rotations' factors per unit of the norms' outputs.
        let factor = self.score_unit(g) * (norm_unit(self.d.head_dim as usize)).powi(2);
        let mut made = Vec::new();
        for (i, ((folded, e), part)) in projections.into_iter().zip(["q", "k"]).enumerate() {
            let limit = (32_768i64 << WIDE_SHIFT) - 1;
            let at = |f: i32| folded.fit(e, WIDE_SHIFT, limit, |_| 2f64.powi(f)).map(|mb| (mb, f));
            let (mb, fraction) = (-20..=24).rev().find_map(at).ok_or_else(|| QuantiseError::Scale(self.name(part)))?;
            self.note(part, Some(e), Some(WIDE_SHIFT), fraction);
            let (linear, matrix) = finish(part, &folded, e, WIDE_SHIFT, limit, mb, &|_| 2f64.powi(fraction));
            let linear = Requant { lo: -32_768, hi: 32_767, ..linear };
            let scale = (factor * top[1 - i] / top[i]).sqrt();
            let shift = (1..=14).rev().find(|&s| top[i] * scale * 2f64.powi(s) <= NORMED_GAIN).unwrap_or(1);
            let gain = gains[i].iter().map(|&v| (f64::from(v) * scale * 2f64.powi(shift)).round() as i32).collect();
            let eps = (self.config.norm_eps * dim * 2f64.powi(2 * fraction)).round() as u64;
            let norm = HeadNorm { norm: NormSpec { eps: eps.clamp(bounds::NORM_EPS_MIN, bounds::NORM_EPS_MAX) } };
            let rotary = Rotary { gain, shift: shift as u8 };
            made.push((with_limit(Rotated { linear, norm: Some(norm), rotary, limit: 0 }), matrix));
        }
        let (shift, cap) = self.capped(g);
        let (Some(k), Some(q)) = (made.pop(), made.pop()) else { return Err(QuantiseError::Scale(self.name("q and k"))) };
        Ok(Scores { q, k, shift, cap })
    }

    /// Score shift, or the cap's table: a score of `12 + g` fraction bits rounded to 16 bits.
    fn capped(&self, g: u8) -> (u8, Option<ScoreCap>) {
        let Some(cap) = self.config.score_cap else { return (g, None) };
        // Beyond twice the cap a tanh has 0.964 of it and is nearly flat; a finer step below is worth more.
        let fraction = (32_767.0 / (2.0 * cap)).log2().floor() as i32;
        let e = (SCORE_FRACTION + i32::from(g) - fraction).clamp(1, 13) as u8;
        let fraction = SCORE_FRACTION + i32::from(g) - i32::from(e);
        (0, Some(ScoreCap { e, table: score_cap_table(cap, 2f64.powi(-fraction)) }))
    }

    /// Activation, up projection and their product.
    fn gated(&mut self, gate_fraction: i32, up: &Folded) -> Result<Gated, QuantiseError> {
        let headroom = self.options.headroom;
        let largest = self.record.ranges(Stage::Gate).max_abs() * headroom;
        let e_up = up.choose_e(&self.record.ranges(Stage::Up), headroom);
        let products = self.record.ranges(Stage::Product);
        let top: Vec<f64> = products.lo.iter().zip(&products.hi).map(|(l, h)| f64::from(l.abs().max(h.abs()))).collect();
        let up_unit = |n: usize| up.step[n] * 2f64.powi(i32::from(e_up));
        let fits = |f: &i32| largest * 2f64.powi(*f) <= ACTIVATION_MAX;
        let mut fraction = (-8..=ACTIVATION_FRACTION_MAX).rev().find(fits).unwrap_or(-8);
        loop {
            let reach = top.iter().enumerate().map(|(n, t)| t * 2f64.powi(fraction) / up_unit(n).max(1e-12)).fold(0.0, f64::max);
            let e = bounds::E_RANGE.clone().find(|&e| reach * headroom <= 32_767.0 * 2f64.powi(i32::from(e)));
            let Some(e) = e else {
                fraction -= 1;
                if fraction < -16 {
                    return Err(QuantiseError::Scale(self.name("product")));
                }
                continue;
            };
            self.note("act", None, None, fraction);
            self.note("product", Some(e), None, fraction - i32::from(e));
            let function: fn(f64) -> f64 = match self.config.activation {
                HiddenAct::Gelu => gelu,
                HiddenAct::GeluTanh => gelu_tanh,
                HiddenAct::Silu => silu,
            };
            let limit = ACTIVATION_MAX as i16;
            let activation = gate_table(function, gate_fraction, fraction).into_iter().map(|v| v.clamp(-limit, limit)).collect();
            let units = (0..up.outputs()).map(|n| up_unit(n) * 2f64.powi(i32::from(e) - fraction)).collect();
            let data = up.round(|n| up.step[n]);
            let matrix = Matrix { name: "up".into(), inputs: up.inputs, outputs: up.outputs(), data };
            return Ok(Gated { activation, up: Stop { e: e_up }, product: Stop { e }, units, matrix });
        }
    }

    /// e, and one limb where the finest rows stay within one accumulator, else two.
    fn accumulated(&self, folded: &Folded, ranges: &Ranges) -> Accumulated {
        let e = folded.choose_e(ranges, self.options.headroom);
        let limit = bounds::accumulator_limit(e);
        // A row's finest weights are its values over the step that gives its largest 127.
        let worst = folded.weight.chunks_exact(folded.inputs).zip(&folded.step);
        let sum = |(row, step): (&[f64], &f64)| row.iter().map(|w| w.abs()).sum::<f64>() / step.max(1e-300);
        if worst.map(sum).all(|l1| l1 * 32_768.0 * 1.01 <= limit as f64) {
            return Accumulated { e, limbs: 1 };
        }
        Accumulated { e: folded.choose_e_in(wide::E_RANGE, ranges, self.options.headroom), limbs: 2 }
    }

    /// A matrix that stops at `t^`, and its way into the residual stream.
    fn branch(
        &mut self,
        part: &str,
        folded: &Folded,
        stage: Stage,
        norm: Option<&[f32]>,
    ) -> Result<(Accumulated, Branch, Matrix), QuantiseError> {
        let spec = self.accumulated(folded, &self.record.ranges(stage));
        let e = spec.e;
        let into = |unit: f64| {
            let unit = unit * 2f64.powi(i32::from(e));
            if spec.limbs == 1 {
                return super::super::layer::stopped_rows(folded, e, unit, INPUT);
            }
            let mult: Vec<i32> = folded.step.iter().map(|step| (step * unit).ceil().clamp(1.0, 1e9) as i32).collect();
            let data = folded.round(|n| f64::from(mult[n]) / unit);
            (mult, data)
        };
        let stream = 2f64.powi(self.fixed);
        let (branch, data) = match norm {
            None => {
                let (mult, data) = into(stream);
                (Branch { norm: None, shift: 1, mult }, data)
            }
            Some(gain) => {
                // y's scale cancels in its norm: give the largest channel's full range 22 bits.
                let shift = SHIFT_OWN;
                let top = folded.step.iter().copied().fold(1e-12, f64::max) * 2f64.powi(15 + i32::from(e));
                let fraction = OWN_NORM_BITS - top.log2().ceil() as i32;
                let (mult, data) = into(2f64.powi(fraction + i32::from(shift)));
                let eps = (self.config.norm_eps * gain.len() as f64 * 2f64.powi(2 * fraction)).round() as u64;
                let spec = NormSpec { eps: eps.clamp(bounds::NORM_EPS_MIN, bounds::NORM_EPS_MAX) };
                let unit = norm_unit(gain.len()) * stream;
                let gain = gain.iter().map(|&g| (f64::from(g) * unit).round().clamp(-32_000.0, 32_000.0) as i32).collect();
                (Branch { norm: Some(BranchNorm { shift, mult, norm: spec }), shift: 1, mult: gain }, data)
            }
        };
        self.note(part, Some(e), None, self.fixed);
        let matrix = Matrix { name: part.into(), inputs: folded.inputs, outputs: folded.outputs(), data };
        Ok((spec, branch, matrix))
    }
}

/// Window of what o and down read.
const INPUT: (i64, i64) = (-32_768, 32_767);

/// Bits dropped into a branch's own norm.
const SHIFT_OWN: u8 = 4;

/// The feed-forward block up to the input of down.
struct Gated {
    activation: Vec<i16>,
    up: Stop,
    product: Stop,
    /// Real value of a unit of h, per channel.
    units: Vec<f64>,
    matrix: Matrix,
}

/// Rounds weights against the scales and corrects biases by what rounding lost on average.
fn finish(
    part: &str,
    f: &Folded,
    e: u8,
    k: u8,
    limit: i64,
    (m, mut b): (Vec<i32>, Vec<i32>),
    scale: &(dyn Fn(usize) -> f64 + Sync),
) -> (Requant, Matrix) {
    let unit = 2f64.powi(-i32::from(e) - i32::from(k));
    let step = |n: usize| f64::from(m[n]) * unit / scale(n);
    let data = f.round(step);
    f.correct(&mut b, &m, limit, &f.lost_mean(&data, step), |n| scale(n) * 2f64.powi(i32::from(k)));
    let matrix = Matrix { name: part.into(), inputs: f.inputs, outputs: f.outputs(), data };
    (Requant { e, k, m, b, lo: 0, hi: 0 }, matrix)
}

/// The least limit that the rotation's reach allows.
fn with_limit(mut r: Rotated) -> Rotated {
    let limit = rotary::reach(&r).pairs.into_iter().max().unwrap_or(0);
    r.limit = i32::try_from(limit).unwrap_or(i32::MAX);
    r
}

/// The matrices of a tensor's parts: by output rows, or by input columns.
fn split(m: &Matrix, parts: usize, by_input: bool) -> Vec<Matrix> {
    (0..parts)
        .map(|p| {
            let name = format!("{}.{p}", m.name);
            if by_input {
                let inputs = m.inputs / parts;
                let data = (0..m.outputs).flat_map(|n| &m.row(n)[p * inputs..(p + 1) * inputs]).copied().collect();
                Matrix { name, inputs, outputs: m.outputs, data }
            } else {
                let outputs = m.outputs / parts;
                let data = m.data[p * outputs * m.inputs..(p + 1) * outputs * m.inputs].to_vec();
                Matrix { name, inputs: m.inputs, outputs, data }
            }
        })
        .collect()
}
