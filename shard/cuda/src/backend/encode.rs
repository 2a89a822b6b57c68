//! The code on the device: twiddles, the passes of an encoding, folds of words.

use super::CudaBackend;
use super::run::{Buffer, EXT, Ext, WARP, ext};
use crate::device::{Arg, Device};
use obelysk_protocol::field::{FieldExpOps, M31, ONE, QM31};
use obelysk_protocol::verifier::code::{CodeDomain, double_x};
use obelysk_shard::kernels::CodeShape;
use std::sync::{Arc, PoisonError};

/// log2 of the symbols of a tile in shared memory: 8 KiB of base elements.
const BASE_TILE: u32 = 11;
/// The same of extension elements.
const EXT_TILE: u32 = 9;
/// log2 of the neighbours a tile takes with each symbol, when its symbols are far apart: one line of a cache.
const NEIGHBOURS: u32 = 4;
/// Threads of an encoding block.
const ENCODE_THREADS: u32 = 256;

/// Twiddles of one word length, layer after layer, and their inverses.
pub(super) struct Tables<D: Device> {
    twiddles: Buffer<D>,
    inverses: Buffer<D>,
}

/// Layers `low..low + layers`, done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pass {
    low: u32,
    layers: u32,
    column: u32,
}

/// What is encoded: its kernels, the log of its tile, bytes of a symbol.
#[derive(Clone, Copy)]
pub(super) struct Symbols {
    first: &'static str,
    next: &'static str,
    tile: u32,
    bytes: usize,
}

/// Base elements.
pub(super) const BASE: Symbols = Symbols { first: "encode_base_first", next: "encode_base_next", tile: BASE_TILE, bytes: 4 };
/// Signed bytes, to base elements.
pub(super) const INT8: Symbols = Symbols { first: "encode_int8_first", next: "encode_base_next", tile: BASE_TILE, bytes: 4 };
/// Extension elements.
pub(super) const EXTENSION: Symbols = Symbols { first: "encode_ext_first", next: "encode_ext_next", tile: EXT_TILE, bytes: EXT };

/// Passes over the layers below `h`, in the order they are done.
fn passes(h: u32, tile: u32) -> Vec<Pass> {
    let lowest = Pass { low: 0, layers: h.min(tile), column: 0 };
    let mut out = vec![lowest];
    let mut low = lowest.layers;
    while low < h {
        let layers = (h - low).min(tile - NEIGHBOURS);
        out.push(Pass { low, layers, column: NEIGHBOURS });
        low += layers;
    }
    out.reverse();
    out
}

/// All twiddles of a domain, see `encode.cu`.
fn twiddles(log_n: u32) -> Vec<M31> {
    let points = CodeDomain::new(log_n).even_points();
    let mut out: Vec<M31> = points.iter().map(|p| p.1).collect();
    let mut layer: Vec<M31> = points.iter().step_by(2).map(|p| p.0).collect();
    for _ in 1..log_n {
        out.extend(&layer);
        layer = layer.into_iter().step_by(2).map(double_x).collect();
    }
    out
}

/// Where the twiddles of a layer begin.
fn layer_start(log_n: u32, layer: u32) -> usize {
    (1usize << log_n) - (1usize << (log_n - layer))
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn tables(&self, log_n: u32) -> Arc<Tables<D>> {
        // The map only ever gains finished tables.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let twiddles = twiddles(log_n);
            let inverses = M31::batch_inverse(&twiddles);
            Arc::new(Tables { twiddles: self.upload_base(&twiddles), inverses: self.upload_base(&inverses) })
        };
        tables.entry(log_n).or_insert_with(make).clone()
    }

    /// Encodes `rows` messages that begin at `from` into `words`.
    pub(super) fn encode(&self, symbols: Symbols, from: Arg, rows: usize, code: CodeShape, words: &Buffer<D>) {
        let (tables, log_n) = (self.tables(code.log_n()), code.log_n());
        for (i, pass) in passes(code.h, symbols.tile).into_iter().enumerate() {
            let tile = pass.layers + pass.column;
            let blocks = (rows as u64) << (log_n - tile);
            let threads = ((1u32 << tile) / 2).clamp(WARP, ENCODE_THREADS);
            let shared = symbols.bytes << tile;
            let place = [Arg::U32(log_n), Arg::U32(pass.low), Arg::U32(pass.layers), Arg::U32(pass.column)];
            if i == 0 {
                let [n, low, layers, column] = place;
                let args = [from, words.arg(), tables.twiddles.arg(), Arg::U32(code.h), n, low, layers, column];
                self.blocks(symbols.first, blocks, threads, shared, &args);
            } else {
                let [n, low, layers, column] = place;
                self.blocks(symbols.next, blocks, threads, shared, &[words.arg(), tables.twiddles.arg(), n, low, layers, column]);
            }
        }
    }

    /// Fold number `round` of a word.
    pub(super) fn fold_of(&self, word: &Ext<D>, code: CodeShape, round: u32, alpha: QM31) -> Ext<D> {
        let out = self.empty_ext(word.len / 2);
        let tables = self.tables(code.log_n());
        let half = M31::from_u32_unchecked(1 << 30);
        let inverses = tables.inverses.arg_at(4 * layer_start(code.log_n(), round));
        let (even, odd) = (ext((ONE - alpha) * half), ext(alpha * half));
        let n = out.len as u64;
        self.each("fold_word", n, &[word.data.arg(), inverses, even, odd, Arg::U64(n), out.data.arg()]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_do_every_layer_once_from_the_top() {
        for h in 0..28 {
            for tile in [BASE_TILE, EXT_TILE] {
                let mut below = h;
                for p in passes(h, tile) {
                    assert!(p.low + p.layers == below && p.low >= p.column && p.layers + p.column <= tile, "{h} {p:?}");
                    below = p.low;
                }
                assert_eq!(below, 0);
            }
        }
    }

    #[test]
    fn twiddles_are_the_domain_s() {
        for log_n in [2, 3, 7] {
            let (all, domain) = (twiddles(log_n), CodeDomain::new(log_n));
            for layer in 0..log_n {
                for pair in 0..1usize << (log_n - 1 - layer) {
                    assert_eq!(all[layer_start(log_n, layer) + pair], domain.twiddle(layer, pair), "{log_n} {layer} {pair}");
                }
            }
        }
    }
}
