//! Queries and keys: projection, norm per head if the family has one, rotation by position.

use super::super::builder::Builder;
use super::super::descriptor::{Decoder, HeadNorm, Rotated};
use super::super::expr::Expr;
use super::super::linear::{Output, Slice, requantised_slice, weight_product};
use super::super::norm::{Sheet, limb_sum, rms_norm};
use super::super::rotary;
use super::super::rotations::Rotations;
use super::super::segment::{Factor, PublicColumn};
use super::super::shape::{Blocks, Logical};

/// What a rotation needs besides its projection.
pub(super) struct Rotation<'a> {
    /// The model.
    pub d: &'a Decoder,
    /// Position of every row of the token axis.
    pub positions: &'a [u32],
    /// Members of the group: the query's group size, or 1 for keys.
    pub group: usize,
    /// What circuits share of rotations.
    pub shared: &'a Rotations,
}

impl Rotation<'_> {
    /// Blocks of one part: `kv_lo` and the channel inside, `kv_hi` and the group member over blocks.
    pub(super) fn blocks(&self) -> Blocks {
        Blocks { count: self.d.kv_odd() * self.group, log: self.d.pair_log() + self.d.kv_low_log() }
    }

    /// Rotated parts, each over [`Self::blocks`]: first halves, then second halves.
    pub(super) fn build(&self, b: &mut Builder, name: &str, spec: &Rotated, u: &Factor) -> Vec<Logical> {
        let (d, blocks) = (self.d, self.blocks());
        let outputs = blocks.count << blocks.log;
        let mut parts: Vec<Logical> = (0..2 * d.delta())
            .map(|p| {
                let part = format!("{name}.{p}");
                let acc = weight_product(b, &part, u, d.width as usize, outputs);
                let slice = Slice { spec: &spec.linear, first: p * outputs };
                requantised_slice(b, &part, blocks, slice, acc, &Output::Range)
            })
            .collect();
        if let Some(norm) = &spec.norm {
            parts = self.head_norm(b, name, norm, &parts);
        }
        let reach = rotary::reach(spec);
        let limit = i64::from(spec.limit);
        if reach.pairs.iter().any(|&p| p > limit) || reach.product >= 1 << 30 {
            b.fail_shape(format!("{name}: a rotated value can exceed its limit of {limit}: use a larger shift"));
        }
        let (first, second) = parts.split_at(d.delta());
        let mut out: (Vec<Logical>, Vec<Logical>) = (Vec::new(), Vec::new());
        for (part, (x, y)) in first.iter().zip(second).enumerate() {
            let (x, y) = self.rotate(b, &format!("{name}.rot"), spec, part, (x, y));
            out.0.push(x);
            out.1.push(y);
        }
        [out.0, out.1].concat()
    }

    /// RMSNorm over the channels of each (token, head): 16-bit inputs in two limbs.
    fn head_norm(&self, b: &mut Builder, name: &str, spec: &HeadNorm, parts: &[Logical]) -> Vec<Logical> {
        let rows = b.circuit().token_log + self.d.kv_low_log();
        let n = rows + self.d.pair_log();
        let mut out: Vec<Logical> = parts.iter().map(|p| Logical { blocks: Vec::new(), lo: p.lo, hi: p.hi }).collect();
        for block in 0..self.blocks().count {
            let norm = format!("{name}.norm.{block}");
            let sheets: Vec<Sheet> = parts
                .iter()
                .enumerate()
                .map(|(p, part)| {
                    let name = format!("{norm}.{p}");
                    let low = b.bound_column(&format!("{name}.0"), n, (0, 255));
                    let high = b.bound_column(&format!("{name}.1"), n, (-128, 127));
                    let e = limb_sum(&[low, high]) - Expr::col(part.blocks[block]);
                    b.constrain(&format!("{name}.limbs"), e, n, &[]);
                    let limb = |c: u32| Logical { blocks: vec![c], lo: n, hi: 0 };
                    Sheet { limbs: vec![limb(low), limb(high)], names: vec![name] }
                })
                .collect();
            let normed = rms_norm(b, &norm, rows, &sheets, 1 << 15, spec.norm.eps);
            for (out, u) in out.iter_mut().zip(normed) {
                out.blocks.extend(u.blocks);
            }
        }
        out
    }

    /// `2^s a' + r = C_a a - S_b b + 2^(s-1)`, `2^s b' + r = S_a a + C_b b + 2^(s-1)`, r in `[0, 2^s)` uncommitted.
    fn rotate(
        &self,
        b: &mut Builder,
        name: &str,
        spec: &Rotated,
        part: usize,
        (x, y): (&Logical, &Logical),
    ) -> (Logical, Logical) {
        let d = self.d;
        let tables = self.shared.tables(d, &spec.rotary.gain, self.positions, part);
        let [cos_a, sin_b, sin_a, cos_b] = tables.map(|values| {
            let (skip, log_channels) = (d.kv_low_log(), d.pair_log());
            Expr::public(b.public(PublicColumn::Table { values, skip, log_channels }))
        });
        let shift = usize::from(spec.rotary.shift);
        let limit = i64::from(spec.limit);
        let mut turn = |half: usize, i: usize, value: Expr| {
            let p = format!("{name}.{}.{i}", half * d.delta() + part);
            let out = b.bound_column(&p, x.lo, (-(1 << 15), (1 << 15) - 1));
            let rest = value + Expr::constant(1 << (shift - 1)) - Expr::col(out).scale(1 << shift);
            b.virtual_range(&format!("{p}.rem"), rest, shift, x.lo, &[]);
            // `rotary::reach`: the remainder fixes the value, and no angle takes it further.
            b.assume_window(out, (-limit, limit));
            out
        };
        let mut blocks = (Vec::new(), Vec::new());
        for (i, (&ca, &cb)) in x.blocks.iter().zip(&y.blocks).enumerate() {
            let (a, c) = (Expr::col(ca), Expr::col(cb));
            blocks.0.push(turn(0, i, cos_a.clone() * a.clone() - sin_b.clone() * c.clone()));
            blocks.1.push(turn(1, i, sin_a.clone() * a + cos_b.clone() * c));
        }
        let logical = |blocks| Logical { blocks, lo: x.lo, hi: x.hi };
        (logical(blocks.0), logical(blocks.1))
    }
}
