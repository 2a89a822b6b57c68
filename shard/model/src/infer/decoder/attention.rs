//! Attention over all rows at once, one task per query head; every score is kept.

use super::super::forward::{normaliser, weight};
use super::super::kernel::add_scaled;
use super::{key_of, keys_of};
use crate::tables;
use obelysk_protocol::circuit::descriptor::{Decoder, DecoderLayer};
use obelysk_protocol::circuit::input::TokenRow;
use rayon::prelude::*;

/// Where the channels of each head lie in proof order.
pub(super) struct Heads<'d> {
    d: &'d Decoder,
    heads: usize,
    part_log: usize,
}

impl<'d> Heads<'d> {
    /// For `heads` heads in parts of `2^part_log` channels.
    pub fn new(d: &'d Decoder, heads: usize, part_log: usize) -> Self {
        Self { d, heads, part_log }
    }

    /// Index of channel `c`, natural inside head `hh`.
    pub fn channel(&self, hh: usize, c: usize) -> usize {
        let (keys, part) = (self.d.kv_heads as usize, c >> self.part_log);
        let inside = c & ((1 << self.part_log) - 1);
        ((part * self.heads) << self.part_log) + self.d.channel(self.part_log, hh / keys, hh % keys, inside)
    }

    /// The head that the channel at `index` belongs to.
    pub fn head_of(&self, index: usize) -> usize {
        let (b, keys) = (self.d.kv_low_log(), self.d.kv_heads as usize);
        let inside = index % (self.heads << self.part_log);
        // r kappa + kv_hi, then the channel, then kv_lo.
        let high = inside >> (self.part_log + b);
        let (r, hi) = (high / self.d.kv_odd(), high % self.d.kv_odd());
        r * keys + (hi << b) + (inside & ((1 << b) - 1))
    }
}

/// `(scores, lambda, mix_acc)` from rotated queries and keys, and values.
pub(super) fn attention(
    d: &Decoder,
    spec: &DecoderLayer,
    [q, k, v]: [&[i32]; 3],
    rows: &[TokenRow],
    t_pad: usize,
) -> (Vec<i32>, Vec<i32>, Vec<i32>) {
    let (heads, keys, dim) = (d.heads as usize, d.kv_heads as usize, d.head_dim as usize);
    let at = |heads: usize, part_log: usize| Heads::new(d, heads, part_log);
    let (of_q, of_k) = (at(heads, d.pair_log()), at(keys, d.pair_log()));
    let (of_mix, of_v) = (at(heads, d.part_log()), at(keys, d.part_log()));
    let mut scores = vec![0i32; heads * t_pad * t_pad];
    let mut lambda = vec![0i32; heads * t_pad];
    let mut mixed = vec![0i32; heads * dim * t_pad];
    let row = |channel: usize| channel * t_pad..(channel + 1) * t_pad;
    scores
        .par_chunks_exact_mut(t_pad * t_pad)
        .zip(lambda.par_chunks_exact_mut(t_pad))
        .zip(mixed.par_chunks_exact_mut(dim * t_pad))
        .enumerate()
        .for_each(|(hh, ((scores, lambda), mixed))| {
            for c in 0..dim {
                let (q, k) = (&q[row(of_q.channel(hh, c))], &k[row(of_k.channel(hh % keys, c))]);
                for (scores, &k) in scores.chunks_exact_mut(t_pad).zip(k) {
                    add_scaled(scores, k, q);
                }
            }
            let weights = softmax(spec, scores, lambda, rows, t_pad);
            for (c, mixed) in mixed.chunks_exact_mut(t_pad).enumerate() {
                let v = &v[row(of_v.channel(hh % keys, c))];
                for (j, (weights, &v)) in weights.chunks_exact(t_pad).zip(v).enumerate() {
                    // No row before j sees it.
                    add_scaled(&mut mixed[j..], v, &weights[j..]);
                }
            }
        });
    let mut mix = vec![0i32; mixed.len()];
    for (i, mixed) in mixed.chunks_exact(t_pad).enumerate() {
        mix[row(of_mix.channel(i / dim, i % dim))].copy_from_slice(mixed);
    }
    (scores, lambda, mix)
}

/// Fills `lambda` and returns the weights `p[j][i]`, zero where `i` does not see `j`.
fn softmax(spec: &DecoderLayer, scores: &[i32], lambda: &mut [i32], rows: &[TokenRow], t_pad: usize) -> Vec<i32> {
    let exp = &tables::exp_ref().0;
    let mut weights = vec![0i32; t_pad * t_pad];
    let mut keys = Vec::with_capacity(t_pad);
    for (i, lambda) in lambda.iter_mut().enumerate() {
        let seen = keys_of(rows, spec.window, i);
        keys.clear();
        keys.extend(seen.clone().map(|j| key_of(spec, scores[j * t_pad + i])));
        *lambda = normaliser(&keys, exp);
        for (j, &key) in seen.zip(&keys) {
            weights[j * t_pad + i] = weight(exp, i64::from(*lambda) - i64::from(key));
        }
    }
    weights
}
