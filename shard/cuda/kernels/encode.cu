// Circle FFT of rows, several layers at a time in shared memory.
//
// A message of 2^h symbols becomes a word of 2^log_n. The layers above h only repeat the message, so the first pass reads symbol
// `i mod 2^h`. A pass does layers [low, low + layers): a tile holds 2^layers symbols at distance 2^low, for 2^column neighbours,
// so that reads and writes stay coalesced. Twiddles: layer k has 2^(log_n - 1 - k), layer after layer, the lowest first.

template <typename F>
__device__ __forceinline__ void butterflies(F* tile, const u32* twiddles, u32 log_n, u32 low, u32 layers, u32 column, u64 top) {
    u32 size = 1u << (layers + column);
    for (u32 layer = layers; layer-- > 0;) {
        __syncthreads();
        // Layers of log_n - 1 - k twiddles below this one: 2^log_n - 2^(log_n - k) in all.
        u32 k = low + layer;
        const u32* t = twiddles + ((1ull << log_n) - (1ull << (log_n - k)));
        for (u32 pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
            u32 distance = 1u << (layer + column);
            u32 first = ((pair >> (layer + column)) << (layer + column + 1)) | (pair & (distance - 1));
            u64 block = (top << (layers - 1 - layer)) | (pair >> (layer + column));
            F a = tile[first], b = fscale(tile[first + distance], t[block]);
            tile[first] = fadd(a, b);
            tile[first + distance] = fsub(a, b);
        }
    }
    __syncthreads();
}

// Where symbol e of tile number `at` of a word lies.
__device__ __forceinline__ u64 tile_index(u64 at, u32 e, u32 low, u32 layers, u32 column) {
    u32 chunks_log = low - column;
    u64 top = at >> chunks_log, chunk = at & ((1ull << chunks_log) - 1);
    return (top << (low + layers)) | ((u64)(e >> column) << low) | (chunk << column) | (e & ((1u << column) - 1));
}

// First pass: from messages of 2^h to words of 2^log_n.
template <typename S, typename F>
__device__ __forceinline__ void encode_first(const S* rows, F* words, F* tile, const u32* twiddles, u32 h, u32 log_n, u32 low, u32 layers, u32 column) {
    u32 tiles_log = log_n - layers - column;
    u64 row = (u64)blockIdx.x >> tiles_log, at = (u64)blockIdx.x & ((1ull << tiles_log) - 1);
    const S* message = rows + (row << h);
    for (u32 e = threadIdx.x; e < 1u << (layers + column); e += blockDim.x)
        tile[e] = (F)lift(message[tile_index(at, e, low, layers, column) & ((1ull << h) - 1)]);
    butterflies<F>(tile, twiddles, log_n, low, layers, column, at >> (low - column));
    F* word = words + (row << log_n);
    for (u32 e = threadIdx.x; e < 1u << (layers + column); e += blockDim.x) word[tile_index(at, e, low, layers, column)] = tile[e];
}

template <typename F>
__device__ __forceinline__ void encode_next(F* words, F* tile, const u32* twiddles, u32 log_n, u32 low, u32 layers, u32 column) {
    u32 tiles_log = log_n - layers - column;
    u64 row = (u64)blockIdx.x >> tiles_log, at = (u64)blockIdx.x & ((1ull << tiles_log) - 1);
    F* word = words + (row << log_n);
    for (u32 e = threadIdx.x; e < 1u << (layers + column); e += blockDim.x) tile[e] = word[tile_index(at, e, low, layers, column)];
    butterflies<F>(tile, twiddles, log_n, low, layers, column, at >> (low - column));
    for (u32 e = threadIdx.x; e < 1u << (layers + column); e += blockDim.x) word[tile_index(at, e, low, layers, column)] = tile[e];
}

struct Symbol { u32 v; };
__device__ __forceinline__ u32 lift(Symbol s) { return s.v; }

extern "C" __global__ void encode_base_first(const Symbol* rows, u32* words, const u32* twiddles, u32 h, u32 log_n, u32 low, u32 layers, u32 column) {
    SHARED(u32, tile);
    encode_first<Symbol, u32>(rows, words, tile, twiddles, h, log_n, low, layers, column);
}

extern "C" __global__ void encode_int8_first(const signed char* rows, u32* words, const u32* twiddles, u32 h, u32 log_n, u32 low, u32 layers, u32 column) {
    SHARED(u32, tile);
    encode_first<signed char, u32>(rows, words, tile, twiddles, h, log_n, low, layers, column);
}

extern "C" __global__ void encode_base_next(u32* words, const u32* twiddles, u32 log_n, u32 low, u32 layers, u32 column) {
    SHARED(u32, tile);
    encode_next<u32>(words, tile, twiddles, log_n, low, layers, column);
}

extern "C" __global__ void encode_ext_first(const QM31* rows, QM31* words, const u32* twiddles, u32 h, u32 log_n, u32 low, u32 layers, u32 column) {
    SHARED(QM31, tile);
    encode_first<QM31, QM31>(rows, words, tile, twiddles, h, log_n, low, layers, column);
}

extern "C" __global__ void encode_ext_next(QM31* words, const u32* twiddles, u32 log_n, u32 low, u32 layers, u32 column) {
    SHARED(QM31, tile);
    encode_next<QM31>(words, tile, twiddles, log_n, low, layers, column);
}

// One fold: ((1 - alpha)(p + n) + alpha (p - n) / t) / 2; `even` and `odd` are the two factors, halved.
extern "C" __global__ void fold_word(const QM31* word, const u32* inverses, QM31 even, QM31 odd, u64 n, QM31* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 p = word[2 * i], q = word[2 * i + 1];
        out[i] = qadd(qmul(qadd(p, q), even), qmul(qscale(qsub(p, q), inverses[i]), odd));
    }
}
