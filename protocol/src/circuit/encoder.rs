//! Segments of a post-norm encoder. Boundaries are the normalised hidden state u.

use super::attention::{ExpTables, Heads, MAX_SCORE_SHIFT, attention};
use super::builder::{BuildError, Builder};
use super::descriptor::{Encoder, LayerSpec, Residual};
use super::expr::Expr;
use super::input::PublicInput;
use super::linear::{Output, Rounded, boundary_eval, input_claim, requantised, stopped, weight_product};
use super::norm::norm;
use super::segment::{Circuit, Coord, Factor, OneHot, Relation, Value, log2_ceil};
use super::shape::{Blocks, Logical, kappa, rho};
use std::sync::Arc;

/// The window of a boundary column: a theorem proved by the segment that commits it as a norm's output.
const BOUNDARY_WINDOW: (i64, i64) = (-(1 << 15), (1 << 15) - 1);
/// |a| <= 381: three int8 rows.
const EMBED_LIMIT: i64 = 381;

/// Rows of the embedding matrix's K axis: (first position row, type row, total), each table padded to the tile side.
#[must_use]
pub fn embed_rows(d: &Encoder) -> (usize, usize, usize) {
    let tile = 1usize << d.tile_k_log;
    let pad = |n: u32| (n as usize).div_ceil(tile) * tile;
    let position = pad(d.vocab);
    let types = position + pad(d.positions);
    (position, types, types + pad(d.types))
}

/// Builds segment `index`.
///
/// # Errors
/// A descriptor whose numbers do not fit together or whose equations could wrap mod p.
pub fn build(d: &Encoder, exp: &ExpTables, input: &PublicInput, index: usize) -> Result<Circuit, BuildError> {
    ranges(d).map_err(|reason| BuildError::Shape { segment: d.name.clone(), reason: reason.to_owned() })?;
    let name = if index == 0 { "embed".to_owned() } else { format!("layer{}", index - 1) };
    let mut b = Builder::new(&name, input.ids.len(), input.token_log());
    check_dimensions(&mut b, d);
    b.circuit().tile_k_log = usize::from(d.tile_k_log);
    b.circuit().tile_n_log = usize::from(d.tile_n_log);
    if index == 0 {
        embed(&mut b, d, input);
    } else if let Some(layer) = d.layers.get(index - 1) {
        transformer_layer(&mut b, d, layer, exp);
    } else {
        b.circuit().name = "head".to_owned();
        head(&mut b, d);
    }
    b.finish()
}

/// What shifts, sizes and windows must satisfy before anything is computed from them: a descriptor may come from a file.
fn ranges(d: &Encoder) -> Result<(), &'static str> {
    let axes = [d.positions, d.types, d.width, d.heads, d.head_dim, d.ffn];
    if axes.iter().any(|n| !(1..=1 << 20).contains(n)) || !(1..=1 << 28).contains(&d.vocab) {
        return Err("a dimension is zero or beyond every supported model");
    }
    let tile = u16::from(d.tile_k_log) + u16::from(d.tile_n_log);
    if !(2..=24).contains(&d.row_log) || tile > u16::from(d.row_log) || !(1..=4).contains(&d.blowup_log) {
        return Err("rows are outside 2^2..2^24, shorter than a tile, or of an unsupported rate");
    }
    let shifts = d.layers.iter().flat_map(|l| [l.attn_residual.shift, l.ffn_residual.shift]).chain([d.embed.shift]);
    // Beyond 2^8 a saturated index would not fit the entries of its table.
    if shifts.into_iter().any(|w| !(1..=7).contains(&w)) || d.layers.iter().any(|l| !(1..=8).contains(&l.score_shift)) {
        return Err("a residual shift is outside 1..=7 or a score shift outside 1..=8");
    }
    let window = -(1 << 15)..1 << 15;
    for r in d.layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.up]) {
        if !(1..=15).contains(&r.k) || r.lo > r.hi || !window.contains(&r.lo) || !window.contains(&r.hi) {
            return Err("a requantisation's k is outside 1..=15 or its window is not one of 16 bits");
        }
    }
    Ok(())
}

fn check_dimensions(b: &mut Builder, d: &Encoder) {
    let (width, heads, dim) = (d.width as usize, d.heads as usize, d.head_dim as usize);
    if heads * dim != width || !dim.is_power_of_two() || dim > 1 << Blocks::of(width).log {
        b.fail_shape(format!(
            "heads of dimension {dim} do not tile a width of {width}: this version needs a power of two that divides it"
        ));
    }
    let side = |log: u8, n: usize| n.is_multiple_of(1 << log);
    if ![width, d.ffn as usize].iter().all(|&n| side(d.tile_k_log, n) && side(d.tile_n_log, n)) {
        b.fail_shape("a matrix side is not a multiple of the tile side");
    }
}

/// A hidden state received from the previous segment: this segment's own copy, stitched by its value at the boundary point.
fn received(b: &mut Builder, blocks: Blocks) -> Logical {
    let n = b.circuit().token_log + blocks.log;
    let cols = (0..blocks.count)
        .map(|i| {
            let c = b.column(&format!("input.{i}"), n);
            b.assume_window(c, BOUNDARY_WINDOW);
            c
        })
        .collect();
    let u = Logical { blocks: cols, lo: n, hi: blocks.hi() };
    stitch(b, "boundary_in", &u, Coord::BoundaryIn, Value::BoundaryIn);
    u
}

fn stitch(b: &mut Builder, name: &str, u: &Logical, coord: fn(usize) -> Coord, value: Value) {
    let terms = vec![(1, boundary_eval(u, coord))];
    b.circuit().relations.push(Relation { name: name.into(), terms, constant: None, values: vec![(1, value)] });
}

fn embed(b: &mut Builder, d: &Encoder, input: &PublicInput) {
    let blocks = Blocks::of(d.width as usize);
    let n = b.circuit().token_log + blocks.log;
    let (position_row, type_row, rows) = embed_rows(d);
    b.circuit().one_hot = Some(OneHot { ids: input.ids.clone(), position_row, type_row });
    let m = b.matrix(rows, d.width as usize);
    let acc = b.product("embed", log2_ceil(rows), vec![Factor::OneHot, Factor::Weight(m)]);
    let a: Vec<u32> =
        (0..blocks.count).map(|i| b.bound_column(&format!("embed.{i}.a"), n, (-EMBED_LIMIT, EMBED_LIMIT))).collect();
    let shift = usize::from(d.embed.shift);
    let rhs: Vec<Expr> = a
        .iter()
        .enumerate()
        .map(|(i, &c)| {
            let scale = b.param(blocks.slice(i, &d.embed.scale));
            Expr::param(scale) * Expr::col(c) + Expr::constant(1 << (shift - 1))
        })
        .collect();
    let terms = vec![(1, Logical { blocks: a, lo: n, hi: blocks.hi() }.at_rho())];
    let values = vec![(1, Value::Accumulator(acc))];
    b.relate(Relation { name: "embed.acc".into(), terms, constant: None, values }, EMBED_LIMIT);
    let u = norm(b, "norm", blocks, shift, &rhs, d.embed.norm.eps);
    stitch(b, "boundary_out", &u, Coord::BoundaryOut, Value::BoundaryOut);
}

fn transformer_layer(b: &mut Builder, d: &Encoder, l: &LayerSpec, exp: &ExpTables) {
    let (width, ffn) = (d.width as usize, d.ffn as usize);
    let (blocks, wide) = (Blocks::of(width), Blocks::of(ffn));
    let u = received(b, blocks);
    let u_in = input_claim(b, "u", &u);
    let project = |b: &mut Builder, name: &str, spec| {
        let acc = weight_product(b, name, &u_in, width, width);
        requantised(b, name, blocks, spec, acc, &Output::Range)
    };
    let q = project(b, "q", &l.q);
    let k = project(b, "k", &l.k);
    let v = project(b, "v", &l.v);
    let clip = i64::from(l.q.hi.max(-l.q.lo).max(l.k.hi).max(-l.k.lo));
    let dim_log = d.head_dim.trailing_zeros() as usize;
    let heads = Heads { channels: blocks, dim_log, score_shift: usize::from(l.score_shift), clip };
    if heads.score_shift > MAX_SCORE_SHIFT {
        return b.fail_shape(format!("score shift {} exceeds {MAX_SCORE_SHIFT}", l.score_shift));
    }
    if l.v.lo < -(1 << 11) || l.v.hi >= 1 << 11 {
        b.fail_shape("values must fit 12 bits for the mix to stay in 16");
    }
    let mixed = attention(b, heads, &q, &k, &v, exp);
    let mix_in = input_claim(b, "mix", &mixed);
    let acc = weight_product(b, "o", &mix_in, width, width);
    let o = stopped(b, "o", blocks, &l.o, acc);
    let mid = residual(b, "norm1", blocks, &l.attn_residual, &u, &o);
    let mid_in = input_claim(b, "mid", &mid);
    let acc = weight_product(b, "up", &mid_in, width, ffn);
    let table = Arc::new(l.activation.iter().map(|&v| i32::from(v)).collect::<Vec<_>>());
    if table.len() != 1 << 16 {
        b.fail_shape("an activation table has 65,536 entries");
    }
    let act = requantised(b, "up", wide, &l.up, acc, &Output::Activation(table));
    let act_in = input_claim(b, "act", &act);
    let acc = weight_product(b, "down", &act_in, ffn, width);
    let down = stopped(b, "down", blocks, &l.down, acc);
    let out = residual(b, "norm2", blocks, &l.ffn_residual, &mid, &down);
    stitch(b, "boundary_out", &out, Coord::BoundaryOut, Value::BoundaryOut);
}

/// `2^w x + rho = G u + B + M t^ + 2^(w-1)`, then a norm of x.
fn residual(b: &mut Builder, name: &str, blocks: Blocks, r: &Residual, u: &Logical, t: &Rounded) -> Logical {
    let shift = usize::from(r.shift);
    let rhs: Vec<Expr> = (0..blocks.count)
        .map(|i| {
            let [gain, bias, mult] = [&r.gain, &r.bias, &r.mult].map(|v| b.param(blocks.slice(i, v)));
            let stay = Expr::param(gain) * Expr::col(u.blocks[i]) + Expr::param(bias);
            stay + Expr::param(mult) * t.t_hat[i].clone() + Expr::constant(1 << (shift - 1))
        })
        .collect();
    norm(b, name, blocks, shift, &rhs, r.norm.eps)
}

/// The pooled output `o_c = sum_{t < T} u(t, c)` at a random channel point.
fn head(b: &mut Builder, d: &Encoder) {
    let blocks = Blocks::of(d.width as usize);
    let u = received(b, blocks);
    let nt = b.circuit().token_log;
    let point = [kappa(0, nt), rho(nt, blocks.log + blocks.hi())].concat();
    let pooled = b.claim("pooled", u.at(&point));
    let acc = b.product("pool", nt, vec![Factor::RealTokens, pooled]);
    b.circuit().pooled = Some(acc);
}
