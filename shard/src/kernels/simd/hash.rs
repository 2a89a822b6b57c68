//! 16 Blake2s hashes at a time with the leaf and node personalisation, equal to `Blake2s::leaf` and `Blake2s::node`.
#![expect(clippy::missing_transmute_annotations, reason = "the vector type cannot be named on a stable toolchain")]

use obelysk_protocol::transcript::Digest;
use rayon::prelude::*;
use stwo::prover::backend::simd::blake2s;

/// One message word (or state word) of 16 instances.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Lane(pub [u32; 16]);

pub(super) const ZERO: Lane = Lane([0; 16]);
/// Words of one Blake2s block.
pub(super) const BLOCK: usize = 16;
pub(super) type State = [Lane; 8];

/// Personalisations of the Blake2s suite; the tests below hold them against the suite itself.
const LEAF_PERSONAL: [u8; 8] = *b"obk:leaf";
const NODE_PERSONAL: [u8; 8] = *b"obk:node";
/// Personalisation of grinding hashes: the transcript's personalisation with its grinding domain in the last byte.
const POW_PERSONAL: [u8; 8] = *b"obk:t\0\0\x05";
/// Nonces tried by one task of a parallel search.
const POW_TASK: u64 = 1 << 12;

/// Initial state of an unkeyed 32-byte Blake2s with this personalisation.
fn initial(personal: [u8; 8]) -> State {
    let [a, b, c, d, e, f, g, h] = personal;
    let mut words = blake2s::IV;
    words[0] ^= 0x0101_0020;
    words[6] ^= u32::from_le_bytes([a, b, c, d]);
    words[7] ^= u32::from_le_bytes([e, f, g, h]);
    words.map(|w| Lane([w; 16]))
}

/// Initial state of a leaf.
pub(super) fn leaf_state() -> State {
    initial(LEAF_PERSONAL)
}

/// Absorbs one block; `bytes` counts everything absorbed including this block.
#[expect(unsafe_code, reason = "S-two's hash takes an unstable vector type that can only be reached by transmute")]
pub(super) fn compress(state: &mut State, block: &[Lane; BLOCK], bytes: usize, last: bool) {
    // SAFETY: Lane is 16 u32 aligned like u32x16, so arrays of them have the same size and any bits are valid.
    unsafe {
        let (s, m) = (std::mem::transmute::<State, _>(*state), std::mem::transmute::<[Lane; BLOCK], _>(*block));
        let out =
            if last { blake2s::compress_finalize(s, m, bytes as u64) } else { blake2s::compress_unfinalized(s, m, bytes as u64) };
        *state = std::mem::transmute::<_, State>(out);
    }
}

/// 16 messages of 16 words each become 16 words of 16 instances, and back.
#[expect(unsafe_code, reason = "as in compress")]
pub(super) fn transpose(block: [Lane; BLOCK]) -> [Lane; BLOCK] {
    // SAFETY: as in compress.
    unsafe { std::mem::transmute(blake2s::transpose_msgs(std::mem::transmute::<[Lane; BLOCK], _>(block))) }
}

/// The 16 digests of a finished state.
#[expect(unsafe_code, reason = "as in compress")]
pub(super) fn digests(state: State) -> [Digest; 16] {
    const { assert!(cfg!(target_endian = "little"), "digest words are little-endian") };
    // SAFETY: as in compress; the untransposed state is 16 digests of 8 little-endian words each, 512 bytes.
    unsafe { std::mem::transmute(blake2s::untranspose_states(std::mem::transmute::<State, _>(state))) }
}

/// Reads up to 64 bytes of one message as a block's words; what is missing is zero.
pub(super) fn message(bytes: &[u8]) -> Lane {
    let mut out = [0u32; 16];
    for (w, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *w = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
    Lane(out)
}

/// Inner level of a tree: the digests of all pairs of `below`. Few pairs are left to the caller's scalar path.
pub(super) fn level(below: &[Digest]) -> Vec<Digest> {
    debug_assert!(below.len().is_multiple_of(32));
    let start = initial(NODE_PERSONAL);
    let mut out = vec![[0u8; 32]; below.len() / 2];
    out.par_chunks_mut(16).zip(below.par_chunks(32)).with_min_len(16).for_each(|(out, pairs)| {
        let block = std::array::from_fn(|i| message(pairs[2 * i..2 * i + 2].as_flattened()));
        let mut state = start;
        compress(&mut state, &transpose(block), 64, true);
        out.copy_from_slice(&digests(state));
    });
    out
}

/// The smallest nonce with `bits` zero bits, 16 at a time.
pub(super) fn grind(prefix: &Digest, bits: u32) -> u64 {
    let start = initial(POW_PERSONAL);
    let search = |from: u64, to: u64| {
        let mut block = [ZERO; BLOCK];
        for (lane, b) in block.iter_mut().zip(prefix.chunks_exact(4)) {
            *lane = Lane([u32::from_le_bytes([b[0], b[1], b[2], b[3]]); 16]);
        }
        (from..to).step_by(16).find_map(|nonce| {
            block[8] = Lane(std::array::from_fn(|i| (nonce + i as u64) as u32));
            block[9] = Lane(std::array::from_fn(|i| ((nonce + i as u64) >> 32) as u32));
            let mut state = start;
            compress(&mut state, &block, 40, true);
            let low = |i: usize| u64::from(state[0].0[i]) | u64::from(state[1].0[i]) << 32;
            (0..16).find(|&i| low(i).trailing_zeros() >= bits).map(|i| nonce + i as u64)
        })
    };
    // Short searches end before a second thread would have started.
    if let Some(nonce) = search(0, POW_TASK) {
        return nonce;
    }
    (1..u64::MAX / POW_TASK)
        .step_by(256)
        .find_map(|first| {
            let tasks = (0..256u32).into_par_iter().with_max_len(1);
            tasks.find_map_first(|i| search((first + u64::from(i)) * POW_TASK, (first + u64::from(i) + 1) * POW_TASK))
        })
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use obelysk_protocol::transcript::{Blake2s, HashSuite, pow_ok};

    #[test]
    fn sixteen_nodes_equal_the_scalar_ones() {
        let below: Vec<Digest> = (0..64u8).map(|i| Blake2s::hash(9, &[i])).collect();
        let expected: Vec<Digest> = below.chunks_exact(2).map(|p| Blake2s::node(&p[0], &p[1])).collect();
        assert_eq!(level(&below), expected);
    }

    #[test]
    fn the_nonce_is_the_smallest() {
        for (seed, bits) in [(1u8, 0), (2, 3), (3, 9), (4, 14)] {
            let prefix = Blake2s::hash(9, &[seed]);
            let smallest = (0..).find(|&n| pow_ok::<Blake2s>(&prefix, bits, n));
            assert_eq!(Some(grind(&prefix, bits)), smallest);
        }
    }
}
