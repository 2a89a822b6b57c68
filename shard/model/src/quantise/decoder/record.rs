//! What calibration sees of one layer: ranges of what gets a scale, moments of what matrices read.

use super::order;
use crate::calibrate::{Moments, Ranges};
use crate::graph::decoder::DecoderLayer;
use crate::graph::decoder_float::{Stage, layer};
use crate::import::DecoderConfig;
use std::collections::BTreeMap;

/// Ranges by stage; moments of the four inputs of matrices.
#[derive(Default)]
pub(super) struct Record {
    ranges: BTreeMap<Stage, Ranges>,
    /// Input of q, k, v: normalised, before the gain.
    pub attn: Moments,
    /// Input of o, in proof order.
    pub mix: Moments,
    /// Input of gate and up: normalised, before the gain.
    pub ffn: Moments,
    /// Input of down.
    pub product: Moments,
}

/// Stages whose ranges choose scales.
const RANGED: [Stage; 9] =
    [Stage::QPre, Stage::KPre, Stage::V, Stage::AttnOut, Stage::GatePre, Stage::Gate, Stage::Up, Stage::Product, Stage::Down];

impl Record {
    /// Runs one layer over every sequence's residual stream (`width x tokens`), in place.
    pub fn run(
        config: &DecoderConfig,
        l: usize,
        w: &DecoderLayer,
        mix_order: &[usize],
        streams: &mut [(Vec<f32>, usize)],
    ) -> Self {
        let mut out = Self::default();
        for (x, tokens) in streams {
            let next = layer(config, l, w, x, *tokens, &mut |_, stage, values, tokens| {
                out.see(w, mix_order, stage, values, tokens);
            });
            *x = next;
        }
        out
    }

    fn see(&mut self, w: &DecoderLayer, mix_order: &[usize], stage: Stage, values: &[f32], tokens: usize) {
        if RANGED.contains(&stage) {
            self.ranges.entry(stage).or_default().extend(values, tokens);
        }
        match stage {
            Stage::AttnNorm => self.attn.extend(&before_gain(values, &w.attn_norm, tokens), tokens),
            Stage::FfnNorm => self.ffn.extend(&before_gain(values, &w.ffn_norm, tokens), tokens),
            Stage::Mix => self.mix.extend(&order::rows(values, tokens, mix_order), tokens),
            Stage::Product => self.product.extend(values, tokens),
            _ => {}
        }
    }

    /// Ranges of a stage, per channel.
    pub fn ranges(&self, stage: Stage) -> Ranges {
        self.ranges.get(&stage).cloned().unwrap_or_default()
    }

    /// The same with channels in another order.
    pub fn ordered(&self, stage: Stage, order: &[usize]) -> Ranges {
        let r = self.ranges(stage);
        let pick = |v: &[f32]| order.iter().map(|&c| v.get(c).copied().unwrap_or(0.0)).collect();
        Ranges { lo: pick(&r.lo), hi: pick(&r.hi) }
    }
}

/// Undoes a gain. A channel without one says nothing about the value before it; zero is the mean over channels.
pub(super) fn before_gain(values: &[f32], gain: &[f32], tokens: usize) -> Vec<f32> {
    let plain = |v: f32, g: f32| if g.abs() < 1e-6 { 0.0 } else { v / g };
    values.chunks_exact(tokens).zip(gain).flat_map(|(row, &g)| row.iter().map(move |&v| plain(v, g))).collect()
}
