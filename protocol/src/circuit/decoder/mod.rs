//! Segments of a pre-norm decoder. Boundaries are the residual stream, 24 bit in three limbs.
//!
//! A receiving segment's copy of the limbs needs no range checks: it equals, limb by limb, columns that the sending segment
//! bounds (`docs/soundness.md`, "Decoders").

mod attention;
mod branch;
mod embed;
mod gated;
mod head;
mod rotation;

pub use head::{ABSENT, GAP_LOG};

use super::attention::ExpTables;
use super::builder::{BuildError, Builder, Window};
use super::descriptor::{Branch, Decoder, DecoderLayer, Requant};
use super::input::PublicInput;
use super::linear::{boundary_eval, input_claim};
use super::norm::{Sheet, rms_norm};
use super::segment::{Circuit, Coord, Factor, Relation, Value};
use super::shape::{Blocks, Logical};

/// Windows of the residual stream's limbs, low limb first: signed 24 bit.
const LIMBS: [Window; 3] = [(0, 255), (0, 255), (-128, 127)];
/// `|x| <= 2^23`.
const RESIDUAL_TOP: i64 = 1 << 23;

/// The residual stream: one logical column per limb.
struct Stream {
    limbs: Vec<Logical>,
}

impl Stream {
    /// Limbs of one block.
    fn block(&self, i: usize) -> Vec<u32> {
        self.limbs.iter().filter_map(|l| l.blocks.get(i).copied()).collect()
    }

    /// As the input of a norm whose blocks are named `{name}.{i}`.
    fn sheet(&self, name: &str) -> Sheet {
        let count = self.limbs.first().map_or(0, |l| l.blocks.len());
        Sheet { limbs: self.limbs.clone(), names: (0..count).map(|i| format!("{name}.{i}")).collect() }
    }
}

/// Builds segment `index`.
///
/// # Errors
/// A descriptor whose numbers do not fit together or whose equations could wrap mod p.
pub fn build(d: &Decoder, exp: &ExpTables, input: &PublicInput, index: usize) -> Result<Circuit, BuildError> {
    dimensions(d).map_err(|reason| BuildError::Shape { segment: d.name.clone(), reason: reason.to_owned() })?;
    let layer = index.checked_sub(1).and_then(|l| d.layers.get(l));
    let name = match (index, layer) {
        (0, _) => "embed".to_owned(),
        (_, Some(_)) => format!("layer{}", index - 1),
        _ => "head".to_owned(),
    };
    let head = index > 0 && layer.is_none();
    let (rows, row_log) = if head { head::rows(input) } else { (input.tokens(), input.token_log()) };
    let mut b = Builder::new(&name, rows, row_log);
    b.circuit().tile_k_log = usize::from(d.tile_k_log);
    b.circuit().tile_n_log = usize::from(d.tile_n_log);
    match layer {
        _ if index == 0 => embed::build(&mut b, d, input),
        Some(layer) => transformer_layer(&mut b, d, layer, exp, input),
        None => head::build(&mut b, d, input),
    }
    b.finish()
}

/// What sizes, shifts and windows must satisfy before anything is computed from them: a descriptor may come from a file.
fn dimensions(d: &Decoder) -> Result<(), &'static str> {
    let axes = [d.width, d.heads, d.kv_heads, d.head_dim, d.ffn, d.positions];
    if axes.iter().any(|n| !(1..=1 << 20).contains(n)) || !(1..=1 << 20).contains(&d.vocab) {
        return Err("a dimension is zero or beyond every supported model");
    }
    let tile = u16::from(d.tile_k_log) + u16::from(d.tile_n_log);
    if !(2..=24).contains(&d.row_log) || tile > u16::from(d.row_log) || !(1..=4).contains(&d.blowup_log) {
        return Err("rows are outside 2^2..2^24, shorter than a tile, or of an unsupported rate");
    }
    if !d.heads.is_multiple_of(d.kv_heads) || !d.head_dim.is_multiple_of(2) || d.head_dim > 1 << 12 {
        return Err("key heads do not divide the query heads, or a head's dimension is odd or beyond 4096");
    }
    if d.frequencies.len() != d.head_dim as usize / 2 || !(1..=2).contains(&d.embed.limbs) {
        return Err("rotary frequencies are not one per pair, or the embedding has neither one nor two limbs");
    }
    let (kv, part) = (1usize << d.kv_low_log(), 1usize << d.part_log());
    let inputs = [d.width as usize, d.ffn as usize, d.embed_inputs(), d.group() * d.kv_odd() * kv * part];
    let outputs = [d.width as usize, d.ffn as usize, d.head_outputs(), d.kv_odd() * kv * part / 2];
    let whole = |n: &usize, log: u8| n.is_multiple_of(1 << log);
    if !inputs.iter().all(|n| whole(n, d.tile_k_log)) || !outputs.iter().all(|n| whole(n, d.tile_n_log)) {
        return Err("a matrix side is not a multiple of the tile side");
    }
    if d.layers.iter().any(|l| !layer_ranges(d, l))
        || !(1..=7).contains(&d.embed.shift)
        || d.embed.scale.len() != d.width as usize
    {
        return Err("a shift is outside its range, a window is not one of 16 bits, or a vector has the wrong length");
    }
    if d.head.mult.len() != d.vocab as usize || d.head.mult.iter().any(|m| !(1..=255).contains(m)) {
        return Err("the head's multipliers are not one in 1..=255 per token");
    }
    Ok(())
}

fn layer_ranges(d: &Decoder, l: &DecoderLayer) -> bool {
    let window = -(1 << 15)..1 << 15;
    let vector = |v: &[i32], n: u32| v.len() == n as usize;
    let requant = |r: &Requant, n: u32| {
        let shape = vector(&r.m, n) && vector(&r.b, n) && (1..=15).contains(&r.k);
        shape && r.lo <= r.hi && window.contains(&r.lo) && window.contains(&r.hi)
    };
    let (q, kv) = (d.heads.saturating_mul(d.head_dim), d.kv_heads.saturating_mul(d.head_dim));
    let rotary = |r: &super::descriptor::Rotary| vector(&r.gain, d.head_dim) && (1..=16).contains(&r.shift);
    let branch = |b: &Branch| {
        let inner = b.norm.as_ref().is_none_or(|n| (1..=7).contains(&n.shift) && vector(&n.mult, d.width));
        (1..=7).contains(&b.shift) && vector(&b.mult, d.width) && inner
    };
    let score = match &l.score_cap {
        None => (1..=7).contains(&l.score_shift),
        Some(cap) => {
            l.score_shift == 0
                && (1..=13).contains(&cap.e)
                && cap.table.len() == 1 << 16
                && cap.table.iter().all(|v| v.unsigned_abs() < 1 << 20)
        }
    };
    let projections = requant(&l.q.linear, q) && requant(&l.k.linear, kv) && requant(&l.v, kv) && requant(&l.gate, d.ffn);
    let rest = rotary(&l.q.rotary) && rotary(&l.k.rotary) && branch(&l.attn_branch) && branch(&l.ffn_branch);
    let limbs = [l.o, l.down].iter().all(|a| (1..=2).contains(&a.limbs));
    projections && rest && score && limbs && l.activation.len() == 1 << 16
}

/// The residual stream as received: this segment's own copy, stitched limb by limb at the boundary point.
fn received(b: &mut Builder, blocks: Blocks, token_log: usize) -> Stream {
    let n = token_log + blocks.log;
    let limbs = LIMBS
        .iter()
        .enumerate()
        .map(|(l, &window)| {
            let cols = (0..blocks.count)
                .map(|i| {
                    let c = b.column(&format!("input.{i}.{l}"), n);
                    b.assume_window(c, window);
                    c
                })
                .collect();
            let limb = Logical { blocks: cols, lo: n, hi: blocks.hi() };
            stitch(b, &format!("boundary_in.{l}"), &limb, Coord::BoundaryIn, Value::BoundaryIn(l));
            limb
        })
        .collect();
    Stream { limbs }
}

/// Hands the residual stream to the next segment.
fn handed_on(b: &mut Builder, x: &Stream) {
    for (l, limb) in x.limbs.iter().enumerate() {
        stitch(b, &format!("boundary_out.{l}"), limb, Coord::BoundaryOut, Value::BoundaryOut(l));
    }
}

fn stitch(b: &mut Builder, name: &str, u: &Logical, coord: fn(usize) -> Coord, value: Value) {
    let terms = vec![(1, boundary_eval(u, coord))];
    b.circuit().relations.push(Relation { name: name.into(), terms, constant: None, values: vec![(1, value)] });
}

/// RMSNorm of the residual stream, and the claim its readers share.
fn normed(b: &mut Builder, name: &str, x: &Stream, eps: u64) -> Option<Factor> {
    let vars = b.circuit().token_log;
    let u = rms_norm(b, name, vars, &[x.sheet(name)], RESIDUAL_TOP, eps).pop()?;
    Some(input_claim(b, name, &u))
}

fn transformer_layer(b: &mut Builder, d: &Decoder, l: &DecoderLayer, exp: &ExpTables, input: &PublicInput) {
    let blocks = Blocks::of(d.width as usize);
    let nt = b.circuit().token_log;
    b.circuit().visible = visible(input, l.window);
    let x = received(b, blocks, nt);
    let Some(u) = normed(b, "attn_norm", &x, l.attn_norm.eps) else { return };
    let o = attention::build(b, d, l, &u, exp, input);
    let mid = branch::build(b, "attn", blocks, &l.attn_branch, &x, &o);
    let Some(u) = normed(b, "ffn_norm", &mid, l.ffn_norm.eps) else { return };
    let down = gated::build(b, d, l, &u);
    let out = branch::build(b, "ffn", blocks, &l.ffn_branch, &mid, &down);
    handed_on(b, &out);
}

/// Keys a query row sees: its own sequence up to itself, at most `window` of them (0: all). A padding row sees itself.
fn visible(input: &PublicInput, window: u32) -> Vec<(u32, u32)> {
    let mut out: Vec<(u32, u32)> = input
        .rows()
        .iter()
        .zip(0u32..)
        .map(|(row, i)| {
            let first = if window == 0 { row.start } else { row.start.max((i + 1).saturating_sub(window)) };
            (first, i + 1)
        })
        .collect();
    out.extend((out.len() as u32..1 << input.token_log()).map(|i| (i, i + 1)));
    out
}
