// Sums over a block. Every thread of the block calls; only thread 0 gets the sum.

#define WARP 32u
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ QM31 warp_sum(QM31 v) {
    for (u32 step = WARP / 2; step > 0; step >>= 1) {
        QM31 other = QM31{__shfl_down_sync(ALL_LANES, v.a, step), __shfl_down_sync(ALL_LANES, v.b, step),
                          __shfl_down_sync(ALL_LANES, v.c, step), __shfl_down_sync(ALL_LANES, v.d, step)};
        v = qadd(v, other);
    }
    return v;
}

// Writes `count` sums to `out`. `shared` holds `count * blockDim.x` elements; blockDim.x is a multiple of a warp.
template <int COUNT>
__device__ __forceinline__ void block_sums(const QM31 (&v)[COUNT], QM31* shared, QM31* out) {
    for (int k = 0; k < COUNT; k++) shared[k * blockDim.x + threadIdx.x] = v[k];
    __syncthreads();
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // One warp per sum, as far as there are warps.
    for (u32 k = warp; k < COUNT; k += blockDim.x / WARP) {
        QM31 sum = qzero();
        for (u32 i = lane; i < blockDim.x; i += WARP) sum = qadd(sum, shared[k * blockDim.x + i]);
        sum = warp_sum(sum);
        if (lane == 0) out[k] = sum;
    }
}
