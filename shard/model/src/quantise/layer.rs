//! One layer: scales of its six matrices, activation table and residuals, in the order the integer function uses them.

use super::linear::Folded;
use super::pattern::{LayerView, LinearView, NormView};
use super::{QuantiseError, QuantiseOptions, TensorScale, norm_spec, norm_unit};
use crate::bounds;
use crate::calibrate::Calibration;
use crate::tables::gelu_table;
use crate::weights::{Matrix, SegmentWeights};
use obelysk_protocol::circuit::descriptor::{LayerSpec, Requant, Residual, Stop};

/// k of queries, keys and values: with it `m <= 255` fills a window of 12 bits.
const NARROW_SHIFT: u8 = 12;
/// k of 16-bit outputs.
const WIDE_SHIFT: u8 = 8;
/// Most score bits dropped before the exponential.
const SCORE_SHIFT_MAX: u8 = 7;
/// Most fractional bits of an activation.
const ACTIVATION_FRACTION_MAX: i32 = 14;
/// Bits by which the mix has more fraction than v: weights have 18, 14 are dropped.
const MIX_EXTRA: i32 = 4;

pub(super) struct Builder<'a, 'g> {
    pub l: usize,
    pub nodes: &'a LayerView<'g>,
    pub ranges: &'a Calibration,
    pub options: &'a QuantiseOptions,
    pub head_dim: u32,
    pub scales: &'a mut Vec<TensorScale>,
}

/// A residual with its branch's matrix and shift.
struct Branch {
    stop: Stop,
    residual: Residual,
    matrix: Matrix,
}

impl Builder<'_, '_> {
    pub fn build(&mut self) -> Result<(LayerSpec, SegmentWeights), QuantiseError> {
        let n = self.nodes;
        let ((q, q_matrix), (k, k_matrix), score_shift) = self.query_key()?;
        let (v, v_matrix, v_fraction) = self.scaled("v", &n.v, &n.norm_in, NARROW_SHIFT, 2048)?;
        let o = Folded::after_scale(&n.o, 2f64.powi(-(v_fraction + MIX_EXTRA)), self.ranges.moments(n.o.input));
        let attn = self.branch("o", &n.o, &o, (-32_768, 32_767), [&n.norm_in, &n.norm1])?;
        let (up, up_matrix, up_fraction) = self.scaled("up", &n.up, &n.norm1, WIDE_SHIFT, 32_768)?;
        let (activation, act_fraction) = self.activation(up_fraction);
        let down = Folded::after_scale(&n.down, 2f64.powi(-act_fraction), self.ranges.moments(n.down.input));
        let window = bounds::activation_window(&activation);
        let ffn = self.branch("down", &n.down, &down, window, [&n.norm1, &n.norm2])?;
        let spec = LayerSpec {
            q,
            k,
            v,
            score_shift,
            o: attn.stop,
            attn_residual: attn.residual,
            up,
            activation,
            down: ffn.stop,
            ffn_residual: ffn.residual,
        };
        let matrices = vec![q_matrix, k_matrix, v_matrix, attn.matrix, up_matrix, ffn.matrix];
        Ok((spec, SegmentWeights { matrices }))
    }

    fn name(&self, part: &str) -> String {
        format!("layer.{}.{part}", self.l)
    }

    fn record(&mut self, part: &str, e: Option<u8>, k: Option<u8>, fraction: i32) {
        let name = self.name(part);
        self.scales.push(TensorScale { name, e, k, fraction });
    }

    fn folded(&self, linear: &LinearView<'_>, norm: &NormView<'_>) -> (Folded, u8) {
        let folded = Folded::after_norm(linear, norm, norm_unit(norm.gain.len()), self.ranges.moments(norm.id));
        let e = folded.choose_e(self.ranges.node(linear.id), self.options.headroom);
        (folded, e)
    }

    /// A layer with one power-of-two scale: the largest fraction whose outputs cannot leave `[-half, half)`.
    fn scaled(
        &mut self,
        part: &str,
        linear: &LinearView<'_>,
        norm: &NormView<'_>,
        k: u8,
        half: i32,
    ) -> Result<(Requant, Matrix, i32), QuantiseError> {
        let (folded, e) = self.folded(linear, norm);
        let limit = (i64::from(half) << k) - 1;
        let at = |f: i32| folded.fit(e, k, limit, |_| 2f64.powi(f)).map(|mb| (mb, f));
        let ((m, mut b), fraction) = (-20..=24).rev().find_map(at).ok_or_else(|| QuantiseError::Scale(self.name(part)))?;
        let unit = 2f64.powi(-(i32::from(e) + i32::from(k) + fraction));
        let step = |n: usize| f64::from(m[n]) * unit;
        let data = folded.round(step);
        let lost = folded.lost_mean(&data, step);
        folded.correct(&mut b, &m, limit, &lost, |_| 2f64.powi(fraction + i32::from(k)));
        self.record(part, Some(e), Some(k), fraction);
        let matrix = Matrix { name: part.into(), inputs: folded.inputs, outputs: folded.outputs(), data };
        Ok((Requant { e, k, m, b, lo: -half, hi: half - 1 }, matrix, fraction))
    }

    /// Queries and keys. Only the product of their scales matters, so each channel pair is balanced to equal windows; the
    /// product has `12 + g` fractional bits, with `1 / sqrt(d_h)` folded in.
    #[expect(clippy::type_complexity, reason = "two tensors that can only be chosen together")]
    fn query_key(&mut self) -> Result<((Requant, Matrix), (Requant, Matrix), u8), QuantiseError> {
        let (fq, eq) = self.folded(&self.nodes.q, &self.nodes.norm_in);
        let (fk, ek) = self.folded(&self.nodes.k, &self.nodes.norm_in);
        // Full range of each row in real units, which is what the window must hold.
        let reach = |f: &Folded, e: u8, n: usize| (f.step[n] * 2f64.powi(15 + i32::from(e)) + f.bias[n].abs()).max(1e-9);
        let balance: Vec<f64> = (0..fq.outputs()).map(|n| (reach(&fk, ek, n) / reach(&fq, eq, n)).sqrt()).collect();
        let k = NARROW_SHIFT;
        for g in (1..=SCORE_SHIFT_MAX).rev() {
            let half = bounds::score_window(self.head_dim, g);
            let limit = i64::from(half) << k;
            let unit = (2f64.powi(12 + i32::from(g)) / f64::from(self.head_dim).sqrt()).sqrt();
            let (scale_q, scale_k) = (|n: usize| unit * balance[n], |n: usize| unit / balance[n]);
            let (Some(mb_q), Some(mb_k)) = (fq.fit(eq, k, limit, scale_q), fk.fit(ek, k, limit, scale_k)) else {
                continue;
            };
            let finish =
                |part: &str, f: &Folded, e: u8, (m, mut b): (Vec<i32>, Vec<i32>), scale: &(dyn Fn(usize) -> f64 + Sync)| {
                    let unit = 2f64.powi(-i32::from(e) - i32::from(k));
                    let step = |n: usize| f64::from(m[n]) * unit / scale(n);
                    let data = f.round(step);
                    f.correct(&mut b, &m, limit, &f.lost_mean(&data, step), |n| scale(n) * 2f64.powi(i32::from(k)));
                    let matrix = Matrix { name: part.into(), inputs: f.inputs, outputs: f.outputs(), data };
                    (Requant { e, k, m, b, lo: -half, hi: half }, matrix)
                };
            let out = (finish("q", &fq, eq, mb_q, &scale_q), finish("k", &fk, ek, mb_k, &scale_k), g);
            self.record("q", Some(eq), Some(k), 12 + i32::from(g));
            self.record("k", Some(ek), Some(k), 12 + i32::from(g));
            return Ok(out);
        }
        Err(QuantiseError::Scale(self.name("q and k")))
    }

    fn activation(&mut self, f_in: i32) -> (Vec<i16>, i32) {
        let largest = self.ranges.node(self.nodes.act).max_abs() * self.options.headroom;
        let fits = |f: &i32| largest * 2f64.powi(*f) <= 32_767.0;
        let f_out = (-8..=ACTIVATION_FRACTION_MAX).rev().find(fits).unwrap_or(-8);
        self.record("act", None, None, f_out);
        (gelu_table(f_in, f_out), f_out)
    }

    /// A layer that stops at `t^` and its residual: the largest F at which no input can overflow.
    fn branch(
        &mut self,
        part: &str,
        linear: &LinearView<'_>,
        folded: &Folded,
        window: (i64, i64),
        [norm_in, norm_out]: [&NormView<'_>; 2],
    ) -> Result<Branch, QuantiseError> {
        let e = folded.choose_e(self.ranges.node(linear.id), self.options.headroom);
        let w = self.options.residual_shift;
        let unit_in = norm_unit(norm_in.gain.len());
        for fraction in (0..=self.options.residual_fraction).rev() {
            let unit = 2f64.powi(fraction + i32::from(w));
            let (mult, data) = stopped_rows(folded, e, unit * 2f64.powi(i32::from(e)), window);
            let gain: Vec<i32> = norm_in.gain.iter().map(|&g| (f64::from(g) * unit_in * unit).round() as i32).collect();
            let lost = folded.lost_mean(&data, |n| f64::from(mult[n]) / (unit * 2f64.powi(i32::from(e))));
            let biases = norm_in.bias.iter().zip(&folded.bias).zip(&lost);
            let bias: Vec<i32> = biases.map(|((&b, own), lost)| ((f64::from(b) + own + lost) * unit).round() as i32).collect();
            let fits = gain.iter().zip(&bias).zip(&mult).all(|((&g, &b), &m)| {
                let magnitude = i64::from(g).abs() * 32_767 + (i64::from(m) << 15) + i64::from(b).abs();
                bounds::residual_fits(magnitude, w)
            });
            if fits {
                self.record(part, Some(e), None, fraction);
                let residual = Residual { shift: w, gain, bias, mult, norm: norm_spec(norm_out, fraction) };
                let matrix = Matrix { name: part.into(), inputs: folded.inputs, outputs: folded.outputs(), data };
                return Ok(Branch { stop: Stop { e }, residual, matrix });
            }
        }
        Err(QuantiseError::Scale(self.name(part)))
    }
}

/// `(M, int8 rows)`: M residual units per unit of `t^`, raised where a row could leave the accumulator's window.
pub(super) fn stopped_rows(folded: &Folded, e: u8, unit: f64, (lo, hi): (i64, i64)) -> (Vec<i32>, Vec<i8>) {
    let limit = bounds::accumulator_limit(e);
    let mut mult: Vec<i32> = folded.step.iter().map(|step| (step * unit).ceil().clamp(1.0, 1e9) as i32).collect();
    loop {
        let data = folded.round(|n| f64::from(mult[n]) / unit);
        let mut admissible = true;
        for (row, m) in data.chunks_exact(folded.inputs).zip(&mut mult) {
            if bounds::window_bound(row, lo, hi) > limit {
                *m += *m / 50 + 1;
                admissible = false;
            }
        }
        if admissible {
            return (mult, data);
        }
    }
}
