//! Rows of a linear layer: folding of the norm in front, choice of e, choice of m and b, rounding of weights.

use super::feedback::Feedback;
use super::pattern::{LinearView, NormView};
use crate::bounds::{E_RANGE, M_RANGE};
use crate::calibrate::{Moments, Ranges};
use rayon::prelude::*;
use std::ops::RangeInclusive;

/// Inputs up to which rounding feeds its errors back: the decomposition of their covariance takes the cube of it.
const FEEDBACK_INPUTS: usize = 8192;

/// A linear layer on integer inputs with real outputs: `y_n = sum_k weight[n][k] x_k + bias_n`.
pub(super) struct Folded {
    /// K.
    pub inputs: usize,
    /// `[N][K]`, real output per unit of input.
    pub weight: Vec<f64>,
    /// Real bias, the norm's own included.
    pub bias: Vec<f64>,
    /// Mean of each input over calibration, in input units.
    pub mean: Vec<f64>,
    /// How the error of one input's weight is made up for by later inputs.
    pub feedback: Feedback,
    /// Largest weight of a row over 127: the finest step its int8 weights can have.
    pub step: Vec<f64>,
}

impl Folded {
    /// Reads a norm's output: gain and bias of the norm move into the layer.
    pub fn after_norm(linear: &LinearView<'_>, norm: &NormView<'_>, unit: f64, moments: &Moments) -> Self {
        let inputs = norm.gain.len();
        let bias =
            linear.weight.data.chunks_exact(inputs).zip(linear.bias).map(|(row, &b)| {
                f64::from(b) + row.iter().zip(norm.bias).map(|(&w, &n)| f64::from(w) * f64::from(n)).sum::<f64>()
            });
        let bias = bias.collect();
        Self::new(linear, bias, moments, unit, |k| f64::from(norm.gain[k]) * unit)
    }

    /// Reads values of one scale: `unit` is the real value of an input step.
    pub fn after_scale(linear: &LinearView<'_>, unit: f64, moments: &Moments) -> Self {
        let bias = linear.bias.iter().map(|&b| f64::from(b)).collect();
        Self::new(linear, bias, moments, unit, |_| unit)
    }

    /// Reads inputs of given real units: `unit(k)` is worth of input k's step in the output, `own(k)` its worth in the values
    /// that the moments saw. Without moments weights are rounded one by one.
    pub fn of(
        weight: &[f32],
        inputs: usize,
        bias: Option<&[f32]>,
        unit: impl Fn(usize) -> f64,
        own: impl Fn(usize) -> f64,
        moments: Option<&Moments>,
    ) -> Self {
        let weight: Vec<f64> = weight.iter().enumerate().map(|(i, &w)| f64::from(w) * unit(i % inputs)).collect();
        let step: Vec<f64> = weight.chunks_exact(inputs).map(|r| r.iter().fold(0.0f64, |a, w| a.max(w.abs())) / 127.0).collect();
        let bias = bias.map_or_else(|| vec![0.0; step.len()], |b| b.iter().map(|&b| f64::from(b)).collect());
        let mean = moments
            .map_or_else(|| vec![0.0; inputs], |m| m.mean().iter().enumerate().map(|(k, m)| m / own(k).max(1e-300)).collect());
        let feedback = moments.filter(|_| inputs <= FEEDBACK_INPUTS).map_or_else(
            || Feedback::none(inputs),
            |m| {
                // Moments in units of the inputs' steps.
                let covariance = m.covariance();
                let scaled = covariance.iter().enumerate().map(|(i, v)| v / (own(i / inputs) * own(i % inputs)).max(1e-300));
                Feedback::new(&scaled.collect::<Vec<f64>>(), inputs)
            },
        );
        Self { inputs, weight, bias, mean, feedback, step }
    }

    fn new(linear: &LinearView<'_>, bias: Vec<f64>, moments: &Moments, input_unit: f64, unit: impl Fn(usize) -> f64) -> Self {
        let inputs = linear.weight.shape[1];
        let weight: Vec<f64> = linear.weight.data.iter().enumerate().map(|(i, &w)| f64::from(w) * unit(i % inputs)).collect();
        let step = weight.chunks_exact(inputs).map(|r| r.iter().fold(0.0f64, |a, w| a.max(w.abs())) / 127.0).collect();
        let mean = moments.mean().iter().map(|m| m / input_unit).collect();
        Self { inputs, weight, bias, mean, feedback: Feedback::new(&moments.covariance(), inputs), step }
    }

    /// N.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// Least e whose 16-bit window holds the calibrated accumulators with head-room.
    pub fn choose_e(&self, ranges: &Ranges, headroom: f64) -> u8 {
        self.choose_e_in(E_RANGE, ranges, headroom)
    }

    /// The same among other shifts.
    pub fn choose_e_in(&self, mut admitted: RangeInclusive<u8>, ranges: &Ranges, headroom: f64) -> u8 {
        let last = *admitted.end();
        let rows = self.bias.iter().zip(&self.step).zip(ranges.lo.iter().zip(&ranges.hi));
        let largest = rows
            .filter(|((_, step), _)| **step > 0.0)
            .map(|((b, step), (&lo, &hi))| (f64::from(lo) - b).abs().max((f64::from(hi) - b).abs()) / step)
            .fold(0.0, f64::max);
        admitted.find(|&e| largest * headroom <= 32_767.0 * 2f64.powi(i32::from(e))).unwrap_or(last)
    }

    /// Multipliers and biases at output scale `scale(n)` (steps per real unit), if all satisfy `m 2^15 + |b| <= limit`.
    pub fn fit(&self, e: u8, k: u8, limit: i64, scale: impl Fn(usize) -> f64) -> Option<(Vec<i32>, Vec<i32>)> {
        let (unit, whole) = (2f64.powi(i32::from(e) + i32::from(k)), 2f64.powi(i32::from(k)));
        let mut out = (Vec::with_capacity(self.outputs()), Vec::with_capacity(self.outputs()));
        for (n, (step, bias)) in self.step.iter().zip(&self.bias).enumerate() {
            let m = (step * scale(n) * unit).ceil().max(1.0);
            let b = (bias * scale(n) * whole).round() + whole / 2.0;
            if m > f64::from(*M_RANGE.end()) || m * 32_768.0 + b.abs() > limit as f64 {
                return None;
            }
            out.0.push(m as i32);
            out.1.push(b as i32);
        }
        Some(out)
    }

    /// Real amount by which rounding the weights lowered the mean output of each row: added to biases, it keeps a
    /// systematic error from surviving the mean over tokens (Nagel et al. 2019, bias correction).
    pub fn lost_mean(&self, data: &[i8], step: impl Fn(usize) -> f64) -> Vec<f64> {
        let rows = data.chunks_exact(self.inputs).zip(self.weight.chunks_exact(self.inputs)).enumerate();
        let lost = |(n, (q, w)): (usize, (&[i8], &[f64]))| -> f64 {
            let step = step(n);
            q.iter().zip(w).zip(&self.mean).map(|((&q, w), mean)| (w - f64::from(q) * step) * mean).sum()
        };
        rows.map(lost).collect()
    }

    /// Adds the lost mean to the integer biases `b` (`whole` units per real unit), staying within `m 2^15 + |b| <= limit`.
    pub fn correct(&self, b: &mut [i32], m: &[i32], limit: i64, lost: &[f64], whole: impl Fn(usize) -> f64) {
        for (n, ((b, &m), lost)) in b.iter_mut().zip(m).zip(lost).enumerate() {
            let room = limit - (i64::from(m) << 15);
            *b = (i64::from(*b) + (lost * whole(n)).round() as i64).clamp(-room, room) as i32;
        }
    }

    /// int8 weights, row `n` in steps of `step(n)` real output per accumulator unit.
    pub fn round(&self, step: impl Fn(usize) -> f64 + Sync) -> Vec<i8> {
        let mut data = vec![0i8; self.weight.len()];
        let rows = data.par_chunks_exact_mut(self.inputs).zip(self.weight.par_chunks_exact(self.inputs));
        rows.enumerate().for_each(|(n, (out, row))| self.feedback.round(row, step(n), out));
        data
    }
}

/// Rounds `values / step` to int8.
pub(super) fn round_row(values: impl Iterator<Item = f64>, step: f64, out: &mut [i8]) {
    for (out, v) in out.iter_mut().zip(values) {
        *out = (v / step).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
}
