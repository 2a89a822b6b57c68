//! Columns of a transformer layer.

use super::{Filler, norm};
use obelysk_model::infer::{LayerTrace, LinearTrace, visible};
use obelysk_protocol::circuit::attention::MIX_SHIFT;
use obelysk_protocol::circuit::descriptor::{Encoder, LayerSpec};
use obelysk_protocol::circuit::exp_tables;
use obelysk_protocol::circuit::shape::Blocks;

pub(super) fn fill(f: &mut Filler<'_>, d: &Encoder, spec: &LayerSpec, t: &LayerTrace) {
    let (blocks, wide) = (Blocks::of(d.width as usize), Blocks::of(d.ffn as usize));
    let linear = |f: &mut Filler<'_>, name: &str, blocks: Blocks, e: u8, l: &LinearTrace| {
        rounded(f, name, blocks, e, &l.acc);
        f.set_blocks(name, ".y", blocks, &l.y);
    };
    linear(f, "q", blocks, spec.q.e, &t.q);
    linear(f, "k", blocks, spec.k.e, &t.k);
    linear(f, "v", blocks, spec.v.e, &t.v);
    attention(f, d, spec, t);
    let low: Vec<i64> = t.mix_acc.iter().map(|&a| (i64::from(a) + (1 << (MIX_SHIFT - 1))) & ((1 << MIX_SHIFT) - 1)).collect();
    f.set_blocks("mix", ".r", blocks, &low);
    f.set_blocks("mix", ".y", blocks, &t.mix);
    rounded(f, "o", blocks, spec.o.e, &t.o.acc);
    norm::fill(f, "norm1", blocks, &t.attn.rho, &t.attn.norm, spec.attn_residual.norm.eps);
    linear(f, "up", wide, spec.up.e, &t.up);
    f.set_blocks("up", ".g", wide, &t.act);
    rounded(f, "down", blocks, spec.down.e, &t.down.acc);
    norm::fill(f, "norm2", blocks, &t.ffn.rho, &t.ffn.norm, spec.ffn_residual.norm.eps);
}

/// v, s, c, tau of R1 from the accumulators.
fn rounded(f: &mut Filler<'_>, name: &str, blocks: Blocks, e: u8, acc: &[i32]) {
    let parts = |a: i32| {
        let shifted = i64::from(a) + (1i64 << (e - 1));
        let (t, r) = (shifted >> e, shifted & ((1 << e) - 1));
        let high = (t + (1 << 15)) >> 16;
        (r + (high << (16 + e)), high, t - (high << 16))
    };
    let column = |g: fn((i64, i64, i64)) -> i64| acc.iter().map(|&a| g(parts(a))).collect::<Vec<i64>>();
    f.set_blocks(name, ".v", blocks, &column(|p| p.0));
    f.set_blocks(name, ".s", blocks, &column(|p| i64::from(p.1 != 0)));
    let clip = |h: i64| match h {
        0 => 0,
        h if h > 0 => i64::from(i16::MAX),
        _ => i64::from(i16::MIN),
    };
    let clips: Vec<i64> = acc.iter().map(|&a| clip(parts(a).1)).collect();
    f.set_blocks(name, ".c", blocks, &clips);
    f.set_blocks(name, ".tau", blocks, &column(|p| p.2));
}

/// Score, probability and row columns, per block of heads: rows are (query, head, key).
fn attention(f: &mut Filler<'_>, d: &Encoder, spec: &LayerSpec, t: &LayerTrace) {
    let nt = f.c.token_log;
    let (tokens, tp) = (f.c.tokens, 1usize << nt);
    let blocks = Blocks::of(d.width as usize);
    let per_block = (1usize << blocks.log) / d.head_dim as usize;
    let tables = exp_tables();
    let g = u32::from(spec.score_shift);
    for b in 0..blocks.count {
        let rows = per_block * tp * tp;
        let mut cols: [Vec<i64>; 5] = std::array::from_fn(|_| Vec::with_capacity(rows));
        let mut sums = vec![(0i64, 0i64); per_block * tp];
        for j in 0..tp {
            for h in 0..per_block {
                let head = b * per_block + h;
                for i in 0..tp {
                    let score = i64::from(t.scores[(head * tp + j) * tp + i]);
                    let lambda = i64::from(t.lambda[head * tp + i]);
                    let cell = if visible(i, j, tokens) {
                        score_cell(lambda, score, g, &tables.at, &tables.before)
                    } else {
                        // Masked: only the score equation binds idx and w, so the index is 0 and w takes the rest.
                        [0, 0, 0, (lambda << g) - score, 0]
                    };
                    for (col, v) in cols.iter_mut().zip(cell) {
                        col.push(v);
                    }
                    let sum = &mut sums[h * tp + i];
                    sum.0 += cell[1];
                    sum.1 += cell[2];
                }
            }
        }
        for (name, col) in ["idx", "p", "p_before", "w", "z"].iter().zip(cols) {
            f.set(&format!("score.{b}.{name}"), col.into_iter());
        }
        let lambda = |k: usize| i64::from(t.lambda[b * per_block * tp + k]);
        f.set(&format!("score.{b}.lambda0"), (0..per_block * tp).map(|k| lambda(k) & 0xffff));
        f.set(&format!("score.{b}.lambda1"), (0..per_block * tp).map(|k| lambda(k) >> 16));
        for (name, value) in [("d", (|s| (1 << 18) - s.0) as fn(&(i64, i64)) -> i64), ("e", |s| s.1 - (1 << 18) - 1)] {
            f.set(&format!("softmax.{b}.{name}0"), sums.iter().map(|s| value(s) & 0xffff));
            f.set(&format!("softmax.{b}.{name}1"), sums.iter().map(|s| value(s) >> 16));
        }
    }
}

/// idx, p, p', w, z of one visible pair.
fn score_cell(lambda: i64, score: i64, g: u32, at: &[i32], before: &[i32]) -> [i64; 5] {
    let (quotient, remainder) = (score >> g, score & ((1 << g) - 1));
    let index = lambda - quotient;
    let (idx, over) = (index & 0xffff, index >> 16);
    let w = (over << (16 + g)) - remainder;
    if over == 0 { [idx, i64::from(at[idx as usize]), i64::from(before[idx as usize]), w, 0] } else { [idx, 0, 0, w, 1] }
}
