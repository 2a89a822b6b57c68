//! Twin of the verifier's `product`: all matrix products and sums of a segment in one sumcheck.

use crate::kernels::proof::ProofKernels;
use obelysk_protocol::circuit::segment::{Circuit, Factor, MatrixShape, Product, log2_ceil};
use obelysk_protocol::field::{ONE, QM31, RoundPoly, ZERO, eq_vector};
use obelysk_protocol::transcript::{HashSuite, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::points::Points;
use obelysk_protocol::verifier::product::{ProductProof, absorb_accumulators, absorb_claims, powers};
use obelysk_protocol::verifier::sumcheck;

/// Vectors of all factors, by product.
struct Vectors<E> {
    claims: Vec<E>,
    weights: Vec<E>,
    /// Weights folded within their output tiles; empty unless tiles are large.
    tiles: Vec<E>,
    public: Vec<E>,
    terms: Vec<Vec<Slot>>,
}

#[derive(Clone, Copy)]
enum Slot {
    Claim(usize),
    Weight(usize),
    Public(usize),
}

/// log2 of a tile's sides from which weights are folded tile by tile: what is kept of them is an eighth of the weights or less.
const SPLIT_LOG: usize = 7;

/// Proves the products; fills `points.kappa`. `matrices[m]` is row-major [N][K].
///
/// Also returns every tile's value at the segment's tile point, in the registered oracle's order, which the opening would
/// otherwise read all weights for; nothing where tiles are small.
///
/// # Errors
/// A circuit that names coordinates which `points` does not have.
pub fn prove<S: HashSuite, K: ProofKernels>(
    t: &mut Transcript<S>,
    k: &K,
    c: &Circuit,
    points: &mut Points,
    columns: &[K::Base],
    matrices: &[&[i8]],
) -> Result<(ProductProof, Option<Vec<QM31>>), VerifyError> {
    let mut v = vectors(k, c, points, columns, matrices)?;
    let accumulators: Vec<QM31> = (0..c.products.len())
        .map(|m| {
            let e = k.product_round(&factors(&v, m));
            if c.products[m].vars == 0 { v.terms[m].iter().fold(ONE, |a, s| a * k.first(vector(&v, *s))) } else { e[0] + e[1] }
        })
        .collect();
    let lambda = powers(absorb_accumulators(t, &accumulators), accumulators.len());
    let mut claim = accumulators.iter().zip(&lambda).fold(ZERO, |a, (&x, &l)| a + x * l);
    let mut rounds = Vec::new();
    // done[m]: value of a product whose variables ran out, times prod (1 - kappa_j) since.
    let mut done: Vec<QM31> = vec![ZERO; c.products.len()];
    for j in 0..c.product_vars() {
        let mut s = [ZERO; 4];
        for (m, p) in c.products.iter().enumerate() {
            if j < p.vars {
                let e = k.product_round(&factors(&v, m));
                (0..4).for_each(|x| s[x] += lambda[m] * e[x]);
            } else {
                if j == p.vars {
                    done[m] = lambda[m] * v.terms[m].iter().fold(ONE, |a, f| a * k.first(vector(&v, *f)));
                }
                // (1 - X) at 0, 1, 2, 3.
                s[0] += done[m];
                s[2] -= done[m];
                s[3] -= done[m] + done[m];
            }
        }
        let poly = RoundPoly::<3>::from_values(&s);
        let r = sumcheck::round(t, "product.round", &poly);
        claim = poly.eval(claim, r);
        fold_all(k, c, &mut v, j, r);
        done.iter_mut().for_each(|d| *d *= ONE - r);
        points.kappa.push(r);
        rounds.push(poly);
    }
    let firsts = |e: &[K::Ext]| e.iter().map(|x| k.first(x)).collect::<Vec<_>>();
    let proof = ProductProof { accumulators, rounds, claims: firsts(&v.claims), weights: firsts(&v.weights) };
    absorb_claims(t, &proof);
    if v.tiles.is_empty() {
        return Ok((proof, None));
    }
    let low = points.kappa_to(c.tile_k_log)?;
    Ok((proof, Some(v.tiles.iter().flat_map(|tiles| k.tile_values(tiles, low)).collect())))
}

fn vector<E>(v: &Vectors<E>, s: Slot) -> &E {
    match s {
        Slot::Claim(i) => &v.claims[i],
        Slot::Weight(i) => &v.weights[i],
        Slot::Public(i) => &v.public[i],
    }
}

fn factors<E>(v: &Vectors<E>, m: usize) -> Vec<&E> {
    v.terms[m].iter().map(|&s| vector(v, s)).collect()
}

/// Vectors of every product. A claim vector has as many variables as the product that reads it.
fn vectors<K: ProofKernels>(
    k: &K,
    c: &Circuit,
    points: &Points,
    columns: &[K::Base],
    matrices: &[&[i8]],
) -> Result<Vectors<K::Ext>, VerifyError> {
    let reader = |i: usize| c.products.iter().find(|p| p.factors.iter().any(|f| matches!(f, Factor::Claim(x) if *x == i)));
    let claim = |(i, e)| k.claim_vector(e, columns, points, reader(i).map_or(0, |p| p.vars));
    let claims = c.claims.iter().enumerate().map(claim).collect::<Result<_, _>>()?;
    let (weights, tiles) = fold_weights(k, c, points, matrices)?;
    let (mut public, mut terms) = (Vec::new(), Vec::with_capacity(c.products.len()));
    for p in &c.products {
        let mut slots = Vec::with_capacity(p.factors.len());
        for f in &p.factors {
            slots.push(match f {
                Factor::Claim(i) => Slot::Claim(*i),
                Factor::Weight(i) => Slot::Weight(*i),
                other => {
                    public.push(k.vector(&public_rows(c, points, p, other)?));
                    Slot::Public(public.len() - 1)
                }
            });
        }
        terms.push(slots);
    }
    Ok(Vectors { claims, weights, tiles, public, terms })
}

/// Vectors over the inputs of all matrices, and within output tiles.
type Folded<E> = (Vec<E>, Vec<E>);

/// Every matrix folded over its outputs, and the same within output tiles if these are large.
fn fold_weights<K: ProofKernels>(k: &K, c: &Circuit, points: &Points, matrices: &[&[i8]]) -> Result<Folded<K::Ext>, VerifyError> {
    if matrices.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let _span = tracing::info_span!("products.weights").entered();
    let eq = |from: usize, to: usize| points.rho_range(c.token_log + from, to - from).map(eq_vector);
    let all = c.matrices.iter().zip(matrices);
    if c.tile_n_log.min(c.tile_k_log) < SPLIT_LOG {
        let fold = |(&m, data): (&MatrixShape, &&[i8])| {
            let weight = eq(0, log2_ceil(m.outputs))?;
            Ok::<_, VerifyError>(k.fold_matrix(m, data, &weight, log2_ceil(m.inputs)))
        };
        return Ok((all.map(fold).collect::<Result<_, _>>()?, Vec::new()));
    }
    let low = eq(0, c.tile_n_log)?;
    let (mut weights, mut tiled) = (Vec::new(), Vec::new());
    for (&m, data) in all {
        let tiles = k.fold_tiles(m, data, &low);
        weights.push(k.sum_tiles(m, &tiles, &eq(c.tile_n_log, log2_ceil(m.outputs))?, log2_ceil(m.inputs)));
        tiled.push(tiles);
    }
    Ok((weights, tiled))
}

/// A public factor over all summed points.
fn public_rows(c: &Circuit, points: &Points, p: &Product, f: &Factor) -> Result<Vec<QM31>, VerifyError> {
    let size = 1usize << p.vars;
    Ok(match f {
        Factor::Eq { offset, coords } => {
            let e = eq_vector(&points.resolve(coords)?);
            (0..size).map(|y| e[(y >> offset) & (e.len() - 1)]).collect()
        }
        Factor::OneHot(i) => {
            let mut out = vec![ZERO; size];
            let rows = eq_vector(points.rho_range(0, c.token_log)?);
            for &(t, k) in &c.selections[*i].entries {
                out[k as usize] += rows[t as usize];
            }
            out
        }
        _ => (0..size).map(|y| if y < c.tokens { ONE } else { ZERO }).collect(),
    })
}

/// Folds every vector that still has variable j.
fn fold_all<K: ProofKernels>(k: &K, c: &Circuit, v: &mut Vectors<K::Ext>, j: usize, r: QM31) {
    for e in v.claims.iter_mut().chain(&mut v.weights).chain(&mut v.public) {
        if k.len(e) > 1 {
            *e = k.fold(e, r);
        }
    }
    debug_assert!(j < c.product_vars());
}
