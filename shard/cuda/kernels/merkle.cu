// Blake2s: leaves over positions, inner levels, grinding. A digest is eight little-endian words.

__device__ __forceinline__ u32 rotate(u32 v, u32 by) { return (v >> by) | (v << (32 - by)); }

#define BLAKE_G(a, b, c, d, x, y) \
    v[a] += v[b] + (x); v[d] = rotate(v[d] ^ v[a], 16); v[c] += v[d]; v[b] = rotate(v[b] ^ v[c], 12); \
    v[a] += v[b] + (y); v[d] = rotate(v[d] ^ v[a], 8); v[c] += v[d]; v[b] = rotate(v[b] ^ v[c], 7);

#define BLAKE_ROUND(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, sa, sb, sc, sd, se, sf) \
    BLAKE_G(0, 4, 8, 12, m[s0], m[s1]) BLAKE_G(1, 5, 9, 13, m[s2], m[s3]) \
    BLAKE_G(2, 6, 10, 14, m[s4], m[s5]) BLAKE_G(3, 7, 11, 15, m[s6], m[s7]) \
    BLAKE_G(0, 5, 10, 15, m[s8], m[s9]) BLAKE_G(1, 6, 11, 12, m[sa], m[sb]) \
    BLAKE_G(2, 7, 8, 13, m[sc], m[sd]) BLAKE_G(3, 4, 9, 14, m[se], m[sf])

struct Hash { u32 h[8]; };
struct Block { u32 m[16]; };

// A 32-byte hash without key, with this personalisation.
__device__ __forceinline__ Hash hash_start(u32 personal0, u32 personal1) {
    return Hash{{0x6a09e667u ^ 0x01010020u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu ^ personal0,
                 0x5be0cd19u ^ personal1}};
}

// `bytes` counts everything absorbed, this block included.
__device__ __forceinline__ void hash_block(Hash& state, const Block& block, u64 bytes, bool last) {
    const u32* m = block.m;
    u32 v[16] = {state.h[0], state.h[1], state.h[2], state.h[3], state.h[4], state.h[5], state.h[6], state.h[7],
                 0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu ^ (u32)bytes, 0x9b05688cu ^ (u32)(bytes >> 32),
                 last ? ~0x1f83d9abu : 0x1f83d9abu, 0x5be0cd19u};
    BLAKE_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    BLAKE_ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)
    BLAKE_ROUND(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4)
    BLAKE_ROUND(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8)
    BLAKE_ROUND(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13)
    BLAKE_ROUND(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9)
    BLAKE_ROUND(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11)
    BLAKE_ROUND(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10)
    BLAKE_ROUND(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5)
    BLAKE_ROUND(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0)
    for (u32 i = 0; i < 8; i++) state.h[i] ^= v[i] ^ v[i + 8];
}

// "obk:leaf", "obk:node", and the transcript's "obk:t\0\0" with its grinding domain.
#define LEAF_0 0x3a6b626fu
#define LEAF_1 0x6661656cu
#define NODE_1 0x65646f6eu
#define GRIND_1 0x05000074u

// Hashes `rows` more symbols of every position into its state. `before` rows went in already, a multiple of 16 unless these are
// the last; position i of row r is words[r * n + i].
extern "C" __global__ void absorb_rows(const u32* words, u32 rows, u64 n, u64 before, u32 last, Hash* states) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        Hash state = before == 0 ? hash_start(LEAF_0, LEAF_1) : states[i];
        for (u32 first = 0; first < rows; first += 16) {
            Block block;
            u32 count = rows - first < 16 ? rows - first : 16;
            for (u32 k = 0; k < 16; k++) block.m[k] = k < count ? words[(u64)(first + k) * n + i] : 0;
            hash_block(state, block, 4 * (before + first + count), last != 0 && first + count == rows);
        }
        states[i] = state;
    }
}

// Leaves over `per_leaf` neighbouring words each.
extern "C" __global__ void hash_blocks(const u32* words, u32 per_leaf, u64 n, Hash* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        Hash state = hash_start(LEAF_0, LEAF_1);
        for (u32 first = 0; first < per_leaf; first += 16) {
            Block block;
            u32 count = per_leaf - first < 16 ? per_leaf - first : 16;
            for (u32 k = 0; k < 16; k++) block.m[k] = k < count ? words[i * per_leaf + first + k] : 0;
            hash_block(state, block, 4 * (first + count), first + count == per_leaf);
        }
        out[i] = state;
    }
}

__device__ __forceinline__ Hash hash_pair(const Hash& left, const Hash& right) {
    Block block;
    for (u32 k = 0; k < 8; k++) {
        block.m[k] = left.h[k];
        block.m[8 + k] = right.h[k];
    }
    Hash state = hash_start(LEAF_0, NODE_1);
    hash_block(state, block, 64, true);
    return state;
}

// One level of a tree: n nodes from 2n.
extern "C" __global__ void tree_level(const Hash* below, u64 n, Hash* up) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) up[i] = hash_pair(below[2 * i], below[2 * i + 1]);
}

// All levels above 2^depth nodes, by one block; levels follow each other in memory.
extern "C" __global__ void tree_top(Hash* nodes, u32 depth) {
    for (u32 level = depth; level-- > 0;) {
        Hash* up = nodes + (2ull << level);
        for (u32 i = threadIdx.x; i < 1u << level; i += blockDim.x) up[i] = hash_pair(nodes[2 * i], nodes[2 * i + 1]);
        __syncthreads();
        nodes = up;
    }
}

// The smallest nonce in [from, from + count) with `bits` zero bits goes to `found`, if it is smaller than what is there.
extern "C" __global__ void grind(const Hash* prefix, u32 bits, u64 from, u64 count, u64* found) {
    u64 step = (u64)gridDim.x * blockDim.x;
    u64 mask = bits >= 64 ? ~0ull : (1ull << bits) - 1;
    Block block;
    for (u32 k = 0; k < 16; k++) block.m[k] = k < 8 ? prefix->h[k] : 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        u64 nonce = from + i;
        block.m[8] = (u32)nonce;
        block.m[9] = (u32)(nonce >> 32);
        Hash state = hash_start(LEAF_0, GRIND_1);
        hash_block(state, block, 40, true);
        if (((((u64)state.h[1] << 32) | state.h[0]) & mask) == 0) {
            atomicMin(found, nonce);
            return;
        }
    }
}
