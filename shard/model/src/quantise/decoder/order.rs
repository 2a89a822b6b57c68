//! From the channel order of a checkpoint to proof order (`descriptor::Decoder`): which stored row or column goes where.

use obelysk_protocol::circuit::descriptor::Decoder;

/// Stored channel (head by head) of every position in proof order, over `parts` parts of `2^log` channels per head and
/// `group` query heads per key head (1 for keys and values).
pub(super) fn proof_order(d: &Decoder, parts: usize, log: usize, group: usize) -> Vec<usize> {
    let kv = d.kv_heads as usize;
    let size = (group * kv) << log;
    let mut out = vec![0; parts * size];
    for part in 0..parts {
        for r in 0..group {
            for head in 0..kv {
                for c in 0..1usize << log {
                    let stored = (head * group + r) * d.head_dim as usize + (part << log) + c;
                    out[part * size + d.channel(log, r, head, c)] = stored;
                }
            }
        }
    }
    out
}

/// Order of queries (`group` > 1) and keys: parts of rotated halves.
pub(super) fn rotated(d: &Decoder, group: usize) -> Vec<usize> {
    proof_order(d, 2 * d.delta(), d.pair_log(), group)
}

/// Order of values (group 1) and of the mix.
pub(super) fn plain(d: &Decoder, group: usize) -> Vec<usize> {
    proof_order(d, d.delta(), d.part_log(), group)
}

/// Rows of a row-major matrix (or channels of channel-major values) in a new order.
pub(super) fn rows(values: &[f32], width: usize, order: &[usize]) -> Vec<f32> {
    order.iter().flat_map(|&from| &values[from * width..(from + 1) * width]).copied().collect()
}

/// Columns of a row-major matrix in a new order.
pub(super) fn columns(values: &[f32], order: &[usize]) -> Vec<f32> {
    values.chunks_exact(order.len().max(1)).flat_map(|row| order.iter().map(|&from| row[from])).collect()
}
