//! Public columns as rows, and the bit bookkeeping of claims: shared by all backends.

use obelysk_protocol::circuit::segment::{Circuit, Coord};
use obelysk_protocol::field::{M31, signed};

/// A parameter broadcast over the token axis and the bits above its block, `2^n` rows.
#[must_use]
pub fn param_column(c: &Circuit, id: u32, n: usize) -> Vec<M31> {
    let p = &c.params[id as usize];
    let mask = (1usize << p.log_size) - 1;
    (0..1usize << n).map(|i| signed(i64::from(p.values[i >> c.token_log & mask]))).collect()
}

/// A public column, `2^n` rows.
#[must_use]
pub fn public_column(c: &Circuit, id: u32, n: usize) -> Vec<M31> {
    let p = &c.public[id as usize];
    (0..1usize << n).map(|i| signed(p.value(i, c.token_log))).collect()
}

/// The attention mask over (i, head, j).
#[must_use]
pub fn mask_column(c: &Circuit) -> Vec<M31> {
    let (nt, hl) = (c.token_log, c.block_heads_log);
    (0..1usize << (2 * nt + hl))
        .map(|row| {
            let (i, j) = (row & ((1 << nt) - 1), row >> (nt + hl));
            let (first, end) = c.visible[i];
            signed(i64::from((first as usize..end as usize).contains(&j)))
        })
        .collect()
}

/// Splits index `i` by its coordinates: bits at kappa coordinates go to their place, the others are packed in order.
#[must_use]
pub fn place_bits(i: usize, coords: &[Coord]) -> (usize, usize) {
    let (mut free, mut fixed, mut fixed_bits) = (0, 0, 0);
    for (k, c) in coords.iter().enumerate() {
        let bit = i >> k & 1;
        if let Coord::Kappa(at) = c {
            free |= bit << at;
        } else {
            fixed |= bit << fixed_bits;
            fixed_bits += 1;
        }
    }
    (free, fixed)
}
