//! Attention: scores, softmax with a searched normaliser, mix.
//!
//! Score rows are (query i, head, key j) with i low, so the per-(query, head) columns are prefixes. Lambda is the least
//! integer with `P = sum_j E(Lambda - floor(s_j / 2^g)) <= 2^18`, proved by `P <= 2^18 < P'` with P' the sum at Lambda - 1.

use super::builder::Builder;
use super::expr::Expr;
use super::rotations::Rotations;
use super::segment::{Coord, Eval, Factor, Relation, Value};
use super::shape::{Blocks, Logical, join, kappa, rho};
use super::table::{RowIndex, TableColumn};
use std::sync::Arc;

/// log2 of the mass a softmax row is normalised to.
pub const MASS_LOG: usize = 18;
/// Bits of an index before it saturates to zero mass.
const INDEX_LOG: usize = 16;
/// `2 |s| < 2^30`, so an index stays below `2^(30 - g)`: with g low bits and the part beyond 16 bits, 14 bits for any g.
const OVER_LOG: usize = 14;
/// Largest g: leaves room for `4096 ln T` above the largest score in lambda's window.
pub const MAX_SCORE_SHIFT: usize = 7;
/// Bits dropped by the mix: `|sum p v| <= 2^18 * 2^11`, so 14 bits leave exactly 16 and nothing saturates.
pub const MIX_SHIFT: usize = 14;
const TAG_EXP: u32 = 96;
const TAG_OVER: u32 = 128;

/// Shape of the heads.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Channel blocks of q, k, v and the mix.
    pub channels: Blocks,
    /// log2 of the head dimension.
    pub dim_log: usize,
    /// g.
    pub score_shift: usize,
    /// Q: |q|, |k| <= Q.
    pub clip: i64,
}

impl Heads {
    /// log2 of the heads in one block.
    #[must_use]
    pub fn block_heads_log(&self) -> usize {
        self.channels.log - self.dim_log
    }
}

/// Tables that circuits share: of the exponential, `E(i)` and `E(i - 1)` for `i` in `[0, 2^16)`, and of rotations.
///
/// Whoever builds several circuits of a statement hands the same value to each: rotations are then computed once.
#[derive(Clone, Debug)]
pub struct ExpTables {
    /// E(i).
    pub at: Arc<Vec<i32>>,
    /// E(i - 1).
    pub before: Arc<Vec<i32>>,
    /// Rotations by the positions of the statement.
    pub(super) rotations: Rotations,
}

/// Columns of a score chip, one per block of heads.
pub(super) struct ScoreColumns {
    pub(super) idx: Vec<u32>,
    pub(super) w: Vec<u32>,
    pub(super) p: Vec<u32>,
    pub(super) p_before: Vec<u32>,
    pub(super) lambda: Vec<[u32; 2]>,
}

/// From q, k, v to the mixed values (16 bit).
pub fn attention(b: &mut Builder, heads: Heads, q: &Logical, k: &Logical, v: &Logical, tables: &ExpTables) -> Logical {
    let nt = b.circuit().token_log;
    let hl = heads.block_heads_log();
    b.circuit().block_heads_log = hl;
    let blocks = heads.channels;
    let score = scores(b, heads, q, k, tables);
    row_sums(b, "softmax", &score);
    // mix: sum over (h, j) of eq(rho_h, h) p(rho_t, h, j) v(j, rho_d, h), y = (h_lo, j, h_hi).
    let p = Logical { blocks: score.p, lo: 2 * nt + hl, hi: blocks.hi() };
    let p_claim = b.claim("p", p.at(&join(&[rho(0, nt), kappa(0, hl + nt + blocks.hi())])));
    let v_point = join(&[kappa(hl, nt), rho(nt, heads.dim_log), kappa(0, hl), kappa(hl + nt, blocks.hi())]);
    let v_claim = b.claim("v", v.at(&v_point));
    let head_rho = nt + heads.dim_log;
    let lo_eq = Factor::Eq { offset: 0, coords: rho(head_rho, hl) };
    let hi_eq = Factor::Eq { offset: hl + nt, coords: rho(head_rho + hl, blocks.hi()) };
    let acc = b.product("mix", hl + nt + blocks.hi(), vec![lo_eq, hi_eq, p_claim, v_claim]);
    mix(b, blocks, acc)
}

/// Index, probabilities and the score product.
fn scores(b: &mut Builder, heads: Heads, q: &Logical, k: &Logical, tables: &ExpTables) -> ScoreColumns {
    let masked = b.circuit().tokens != 1 << b.circuit().token_log;
    let out = score_columns(b, "score", heads.channels.count, heads.score_shift, masked, tables);
    let acc = score_product(b, heads, q, k);
    let bound = (heads.clip * heads.clip) << heads.dim_log;
    score_relation(b, "score.acc", (&out, heads.channels.hi(), heads.score_shift), &[acc], bound);
    out
}

/// `2^g Lambda - 2^g idx - w = sum of the products`, each the score at rho: (query, head, key), then block.
pub(super) fn score_relation(
    b: &mut Builder,
    name: &str,
    (columns, hi, g): (&ScoreColumns, usize, usize),
    products: &[usize],
    bound: i64,
) {
    let (nt, hl) = (b.circuit().token_log, b.circuit().block_heads_log);
    let n = 2 * nt + hl;
    let at_rho = |cols: &[u32], lo: usize| {
        let point = join(&[rho(0, lo), rho(n, hi)]);
        Logical { blocks: cols.to_vec(), lo, hi }.at(&point)
    };
    let lam = |l: usize| at_rho(&columns.lambda.iter().map(|x| x[l]).collect::<Vec<_>>(), nt + hl);
    let (idx, w) = (at_rho(&columns.idx, n), at_rho(&columns.w, n));
    let terms = vec![(1 << g, lam(0)), (1 << (g + 16), lam(1)), (-(1 << g), idx), (-1, w)];
    let values = products.iter().map(|&p| (1, Value::Accumulator(p))).collect();
    // At masked positions idx and w are free and p, p_before are forced to 0; the bound matters where the mask is 1.
    b.relate(Relation { name: name.to_owned(), terms, constant: None, values }, bound);
}

/// Columns of the score chip with their lookups, `count` blocks named `{prefix}.{i}`.
pub(super) fn score_columns(
    b: &mut Builder,
    prefix: &str,
    count: usize,
    g: usize,
    masked: bool,
    tables: &ExpTables,
) -> ScoreColumns {
    let (nt, hl) = (b.circuit().token_log, b.circuit().block_heads_log);
    let n = 2 * nt + hl;
    let (at, before) = (tables.at.clone(), tables.before.clone());
    let exp = b.table("exp", TAG_EXP, INDEX_LOG + 1, RowIndex::Split { low: 16 }, || {
        vec![TableColumn::LowBits, TableColumn::TopBit, TableColumn::HalfFunction(at), TableColumn::HalfFunction(before)]
    });
    let over = b.table(
        &format!("over.{g}"),
        TAG_OVER + g as u32,
        OVER_LOG,
        RowIndex::Over { high: (16 + g) as u8, low: g as u8 },
        || over_table(g),
    );
    let mut out = ScoreColumns { idx: Vec::new(), w: Vec::new(), p: Vec::new(), p_before: Vec::new(), lambda: Vec::new() };
    for i in 0..count {
        let name = |s: &str| format!("{prefix}.{i}.{s}");
        let [ci, cp, cb, cw, cz] = ["idx", "p", "p_before", "w", "z"].map(|s| b.column(&name(s), n));
        let l0 = b.bound_column(&name("lambda0"), nt + hl, (0, 65_535));
        // |lambda| < 2^(29 - g).
        let limit = 1i64 << (13 - g);
        let l1 = b.bound_column(&name("lambda1"), nt + hl, (-limit, limit - 1));
        b.lookup(exp, vec![Expr::col(ci), Expr::col(cz), Expr::col(cp), Expr::col(cb)], n, masked);
        b.lookup(over, vec![Expr::col(cw), Expr::col(cz)], n, masked);
        if masked {
            let off = Expr::constant(1) - Expr::mask();
            b.force_zero(&name("masked_p"), off.clone() * Expr::col(cp), n);
            b.force_zero(&name("masked_p_before"), off * Expr::col(cb), n);
        }
        out.idx.push(ci);
        out.w.push(cw);
        out.p.push(cp);
        out.p_before.push(cb);
        out.lambda.push([l0, l1]);
    }
    out
}

/// Rows (w, z) with `w = 2^(16+g) hi - r`, `r` in `[0, 2^g)`, `hi` in `[0, 2^(14-g))`, `z = [hi != 0]`: the low score bits and
/// the part of the index beyond 16 bits.
fn over_table(g: usize) -> Vec<TableColumn> {
    let rows = 0..1usize << OVER_LOG;
    let split = |i: usize| ((i >> g) as i32, (i & ((1 << g) - 1)) as i32);
    let w = rows.clone().map(|i| (split(i).0 << (INDEX_LOG + g)) - split(i).1).collect();
    let z = rows.map(|i| i32::from(split(i).0 != 0)).collect();
    vec![TableColumn::Function(Arc::new(w)), TableColumn::Function(Arc::new(z))]
}

/// `s(rho) = sum_{d, h} eq(rho_h, h) q(rho_i, d, h) k(rho_j, d, h)`, y = the channel axis (d, h_lo, h_hi).
fn score_product(b: &mut Builder, heads: Heads, q: &Logical, k: &Logical) -> usize {
    let nt = b.circuit().token_log;
    let (hl, hi, dl) = (heads.block_heads_log(), heads.channels.hi(), heads.dim_log);
    let channels = heads.channels.log + hi;
    let q_claim = b.claim("q", q.at(&join(&[rho(0, nt), kappa(0, channels)])));
    let k_claim = b.claim("k", k.at(&join(&[rho(nt + hl, nt), kappa(0, channels)])));
    let head_coords = join(&[rho(nt, hl), rho(2 * nt + hl, hi)]);
    let eq = Factor::Eq { offset: dl, coords: head_coords };
    b.product("score", channels, vec![eq, q_claim, k_claim])
}

/// `P = 2^18 - D` and `P' = 2^18 + 1 + D'` with non-negative D, D', for every (query, head).
pub(super) fn row_sums(b: &mut Builder, prefix: &str, score: &ScoreColumns) {
    let (nt, n) = (b.circuit().token_log, b.circuit().token_log + b.circuit().block_heads_log);
    for i in 0..score.p.len() {
        let col = |b: &mut Builder, s: &str, w| b.bound_column(&format!("{prefix}.{i}.{s}"), n, w);
        let d0 = col(b, "d0", (0, 65_535));
        let d1 = col(b, "d1", (0, 7));
        let e0 = col(b, "e0", (0, 65_535));
        let e1 = col(b, "e1", (0, 15));
        let at = |c: u32| Eval { blocks: vec![c], lo: rho(0, n), hi: Vec::new() };
        let sum = |c: u32| Eval { blocks: vec![c], lo: join(&[rho(0, n), vec![Coord::Half; nt]]), hi: Vec::new() };
        let mass = 1i64 << MASS_LOG;
        let mut relate = |name: &str, terms, c: i64| {
            let constant = Some((c, 1, Vec::new()));
            b.relate(Relation { name: format!("{prefix}.{i}.{name}"), terms, constant, values: Vec::new() }, 0);
        };
        relate("below", vec![(1 << nt, sum(score.p[i])), (1, at(d0)), (1 << 16, at(d1))], -mass);
        relate("above", vec![(1 << nt, sum(score.p_before[i])), (-1, at(e0)), (-(1 << 16), at(e1))], -mass - 1);
    }
}

/// `acc = r + 2^14 y - 2^13`: the mix needs no clip.
fn mix(b: &mut Builder, blocks: Blocks, acc: usize) -> Logical {
    let n = b.circuit().token_log + blocks.log;
    let (mut rs, mut ys) = (Vec::new(), Vec::new());
    for i in 0..blocks.count {
        rs.push(b.bound_column(&format!("mix.{i}.r"), n, (0, (1 << MIX_SHIFT) - 1)));
        ys.push(b.bound_column(&format!("mix.{i}.y"), n, (-(1 << 15), (1 << 15) - 1)));
    }
    let logical = |cols: Vec<u32>| Logical { blocks: cols, lo: n, hi: blocks.hi() };
    let y = logical(ys);
    let y_eval = y.at_rho();
    let constant = Some((-(1 << (MIX_SHIFT - 1)), blocks.count, y_eval.hi.clone()));
    let terms = vec![(1, logical(rs).at_rho()), (1 << MIX_SHIFT, y_eval)];
    let values = vec![(1, Value::Accumulator(acc))];
    b.relate(Relation { name: "mix.acc".into(), terms, constant, values }, 1 << (MASS_LOG + 11));
    y
}
