//! Columns from the projections to the mix. Parts of a projection are contiguous in proof order, and so are, inside a part,
//! the blocks: one per group member and odd part of the key head.

use super::super::Filler;
use super::super::attention::{Scores, by_key};
use super::super::encoder::mix_rest;
use super::super::norm::{self, Normed};
use super::super::rounding::rounded;
use super::split;
use crate::hidden::limb;
use obelysk_model::infer::decoder::{DecoderLayerTrace, RmsTrace, RotatedTrace};
use obelysk_protocol::circuit::descriptor::{Decoder, DecoderLayer, Rotated, ScoreCap};
use obelysk_protocol::circuit::exp_tables;

/// Limbs of a head norm's input.
const HEAD_LIMBS: usize = 2;

pub(super) fn fill(f: &mut Filler<'_>, d: &Decoder, spec: &DecoderLayer, t: &DecoderLayerTrace) {
    rotation(f, d, "q", &spec.q, (&t.q, d.group()));
    rotation(f, d, "k", &spec.k, (&t.k, 1));
    for (p, (acc, y)) in parts(&t.v.acc, d.delta()).zip(parts(&t.v.y, d.delta())).enumerate() {
        rounded(f, &format!("v.{p}"), spec.v.e, acc);
        f.set_blocks(&format!("v.{p}"), ".y", y);
    }
    scores(f, d, spec, t);
    for (p, (acc, y)) in parts(&t.mix_acc, d.delta()).zip(parts(&t.mix, d.delta())).enumerate() {
        let name = format!("mix.{p}");
        f.fill(&name, ".r", acc.len(), |k| mix_rest(acc[k]));
        split(f, &name, ".y", spec.o.limbs, y);
    }
}

/// `count` equal pieces.
fn parts<T>(values: &[T], count: usize) -> impl Iterator<Item = &[T]> {
    values.chunks((values.len() / count.max(1)).max(1))
}

/// A projection to queries or keys of `group` members.
fn rotation(f: &mut Filler<'_>, d: &Decoder, name: &str, spec: &Rotated, (t, group): (&RotatedTrace, usize)) {
    let count = 2 * d.delta();
    for (p, (acc, y)) in parts(&t.acc, count).zip(parts(&t.y, count)).enumerate() {
        rounded(f, &format!("{name}.{p}"), spec.linear.e, acc);
        f.set_blocks(&format!("{name}.{p}"), ".y", y);
    }
    if let (Some(spec), Some(norm)) = (&spec.norm, &t.norm) {
        head_norm(f, d, name, spec.norm.eps, (&t.y, norm, group));
    }
    for (p, rot) in parts(&t.rot, count).enumerate() {
        f.set_blocks(&format!("{name}.rot.{p}"), "", rot);
    }
}

/// Norms per (token, low key head): one per block, over that block of every part.
fn head_norm(f: &mut Filler<'_>, d: &Decoder, name: &str, eps: u64, (y, t, group): (&[i32], &RmsTrace, usize)) {
    let blocks = group * d.kv_odd();
    let rows = (1usize << f.c.token_log) << d.kv_low_log();
    let cells = y.len() / (2 * d.delta() * blocks).max(1);
    for block in 0..blocks {
        let z = of_block(y, cells, (block, blocks));
        let (x_scaled, u) = (of_block(&t.x_scaled, cells, (block, blocks)), of_block(&t.u, cells, (block, blocks)));
        let name = format!("{name}.norm.{block}");
        for l in 0..HEAD_LIMBS {
            f.fill(&name, &format!(".{l}"), z.len(), |k| limb(z[k], l, HEAD_LIMBS).into());
        }
        let at = block * rows..(block + 1) * rows;
        let t = Normed {
            s: &t.s[at.clone()],
            sigma: &t.sigma[at.clone()],
            index: &t.index[at.clone()],
            recip: &t.recip[at],
            x_scaled: &x_scaled,
            u: &u,
        };
        norm::fill(f, &name, (&z, HEAD_LIMBS), t, eps);
    }
}

/// Block `block` of `blocks` of every part, one after the other.
fn of_block<T: Copy>(values: &[T], cells: usize, (block, blocks): (usize, usize)) -> Vec<T> {
    values.chunks(cells).skip(block).step_by(blocks).flatten().copied().collect()
}

/// Scores of every group member, in blocks of low key heads.
fn scores(f: &mut Filler<'_>, d: &Decoder, spec: &DecoderLayer, t: &DecoderLayerTrace) {
    let rows = 1usize << f.c.token_log;
    let heads = 1usize << d.kv_low_log();
    let (lambdas, tables) = (rows * heads, exp_tables());
    let scores = by_key(&t.scores, heads, rows);
    for (r, (raw, lambda)) in parts(&scores, d.group()).zip(parts(&t.lambda, d.group())).enumerate() {
        let capped = spec.score_cap.as_ref().map(|cap| cap_columns(f, &format!("score.{r}"), cap, raw));
        let values = capped.as_deref().unwrap_or(raw);
        for (i, (values, lambda)) in values.chunks(lambdas * rows).zip(lambda.chunks(lambdas)).enumerate() {
            let scores = Scores { values, lambda, shift: spec.score_shift.into() };
            scores.fill(f, &format!("score.{r}.{i}"), &format!("softmax.{r}.{i}"), &tables);
        }
    }
}

/// R1 of a group member's scores and the cap's values, which are returned.
fn cap_columns(f: &mut Filler<'_>, name: &str, cap: &ScoreCap, raw: &[i32]) -> Vec<i32> {
    rounded(f, &format!("{name}.r1"), cap.e, raw);
    let value = |&s: &i32| {
        let t = (i64::from(s) + (1 << (cap.e - 1))) >> cap.e;
        cap.table[(t.clamp(i16::MIN.into(), i16::MAX.into()) + (1 << 15)) as usize]
    };
    let values: Vec<i32> = raw.iter().map(value).collect();
    f.set_blocks(name, ".cap", &values);
    values
}
