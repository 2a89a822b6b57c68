// LogUp: leaves from expressions, layers of fractions, and the sumcheck of a layer.
//
// Of a layer only the fractions before `stored` are in memory; those beyond are 0 over 1.

#define ONES 0u
#define COLUMN 1u
#define MINUS_COLUMN 2u

// A block of leaves: numerators by `kind` from source `numerator`, denominators first - sum_k alphas[k] input_k, where input k is
// the sum of terms[starts[k]..starts[k+1]].
extern "C" __global__ void leaf_block(const Source* sources, const BaseTerm* terms, const u32* starts, const QM31* alphas, u32 inputs,
                                      QM31 first, u32 kind, u32 numerator, u64 n, u32* num, QM31* den) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 d = first;
        for (u32 k = 0; k < inputs; k++) {
            u32 input = 0;
            for (u32 t = starts[k]; t < starts[k + 1]; t++) {
                u32 product = terms[t].coef;
                for (u32 f = 0; f < terms[t].count; f++) product = mmul(product, base_at(sources[terms[t].factors[f]], i));
                input = madd(input, product);
            }
            d = qsub(d, qscale(alphas[k], input));
        }
        den[i] = d;
        num[i] = kind == ONES ? 1 : kind == COLUMN ? base_at(sources[numerator], i) : mneg(base_at(sources[numerator], i));
    }
}

// 1 where key j may be attended from row i: column over (i, head, j), `visible` holds [first, end) per row.
extern "C" __global__ void mask_column(const u32* visible, u32 token_log, u32 heads_log, u64 n, u32* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        u64 row = i & ((1ull << token_log) - 1), key = i >> (token_log + heads_log);
        out[i] = key >= visible[2 * row] && key < visible[2 * row + 1];
    }
}

// [channel < thresholds[token]], token in the low bits.
extern "C" __global__ void below_column(const u32* thresholds, u32 token_log, u64 n, u32* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        out[i] = (i >> token_log) < thresholds[i & ((1ull << token_log) - 1)];
}

__device__ __forceinline__ QM31 extended(Symbol s) { return qbase(s.v); }
__device__ __forceinline__ QM31 extended(QM31 v) { return v; }
template <typename N>
__device__ __forceinline__ QM31 numerator_at(const N* num, u64 stored, u64 i) { return i < stored ? extended(num[i]) : qzero(); }
__device__ __forceinline__ QM31 denominator_at(const QM31* den, u64 stored, u64 i) { return i < stored ? den[i] : qone(); }

template <typename N>
__device__ __forceinline__ void add_pairs(const N* num, const QM31* den, u64 stored, u64 n, QM31* up_num, QM31* up_den) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 n0 = numerator_at<N>(num, stored, 2 * i), n1 = numerator_at<N>(num, stored, 2 * i + 1);
        QM31 d0 = denominator_at(den, stored, 2 * i), d1 = denominator_at(den, stored, 2 * i + 1);
        up_num[i] = qadd(qmul(n0, d1), qmul(n1, d0));
        up_den[i] = qmul(d0, d1);
    }
}

extern "C" __global__ void layer_base(const Symbol* num, const QM31* den, u64 stored, u64 n, QM31* up_num, QM31* up_den) {
    add_pairs<Symbol>(num, den, stored, n, up_num, up_den);
}

extern "C" __global__ void layer_ext(const QM31* num, const QM31* den, u64 stored, u64 n, QM31* up_num, QM31* up_den) {
    add_pairs<QM31>(num, den, stored, n, up_num, up_den);
}

// The four children's extensions at one point: n0, n1, d0, d1.
struct Four { QM31 v[4]; };

// Even and odd children of a layer.
template <typename N>
struct LayerInput {
    const N* num;
    const QM31* den;
    u64 stored;
    __device__ __forceinline__ Four at(u64 i) const {
        return Four{{numerator_at<N>(num, stored, 2 * i), numerator_at<N>(num, stored, 2 * i + 1), denominator_at(den, stored, 2 * i),
                     denominator_at(den, stored, 2 * i + 1)}};
    }
};

// Children that were bound before: four vectors, one after the other, `stored` of `room` each.
struct PartsInput {
    const QM31* parts;
    u64 room, stored;
    __device__ __forceinline__ Four at(u64 i) const {
        if (i >= stored) return Four{{qzero(), qzero(), qone(), qone()}};
        return Four{{parts[i], parts[room + i], parts[2 * room + i], parts[3 * room + i]}};
    }
};

__device__ __forceinline__ Four four_line(const Four& even, const Four& odd, QM31 r) {
    Four out;
    for (u32 k = 0; k < 4; k++) out.v[k] = qline(even.v[k], odd.v[k], r);
    return out;
}

// n0 d1 + n1 d0 + mu d0 d1
__device__ __forceinline__ QM31 gkr_value(const Four& f, QM31 mu) {
    return qadd(qmul(f.v[0], f.v[3]), qmul(qadd(f.v[1], qmul(mu, f.v[3])), f.v[2]));
}

// Adds e q(0), e q(2) and e for the line through two neighbours.
__device__ __forceinline__ void gkr_add(const Four& a, const Four& b, QM31 e, QM31 mu, QM31 (&sums)[3]) {
    Four two;
    for (u32 k = 0; k < 4; k++) two.v[k] = qtwo(a.v[k], b.v[k]);
    sums[0] = qadd(sums[0], qmul(e, gkr_value(a, mu)));
    sums[1] = qadd(sums[1], qmul(e, gkr_value(two, mu)));
    sums[2] = qadd(sums[2], e);
}

// Weights of the variables after the current one are an outer product: low[i mod 2^low_log] high[i >> low_log].
struct Weights {
    const QM31 *low, *high;
    u32 low_log;
    __device__ __forceinline__ QM31 at(u64 i) const { return qmul(low[i & ((1ull << low_log) - 1)], high[i >> low_log]); }
};

template <typename I>
__device__ __forceinline__ void gkr_evaluate(const I& input, const Weights& weights, QM31 mu, u64 n, QM31* shared, QM31* partial) {
    QM31 sums[3] = {qzero(), qzero(), qzero()};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        gkr_add(input.at(2 * i), input.at(2 * i + 1), weights.at(i), mu, sums);
    block_sums<3>(sums, shared, partial + 3ull * blockIdx.x);
}

// Binds the lowest variable to r, keeps what is bound, and evaluates the next round in the same pass.
template <typename I>
__device__ __forceinline__ void gkr_pass(const I& input, const Weights& weights, QM31 mu, QM31 r, u64 n, QM31* out, u64 room, u64 kept, QM31* shared, QM31* partial) {
    QM31 sums[3] = {qzero(), qzero(), qzero()};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        Four a = four_line(input.at(4 * i), input.at(4 * i + 1), r), b = four_line(input.at(4 * i + 2), input.at(4 * i + 3), r);
        for (u32 k = 0; k < 4; k++) {
            out[k * room + 2 * i] = a.v[k];
            if (2 * i + 1 < kept) out[k * room + 2 * i + 1] = b.v[k];
        }
        gkr_add(a, b, weights.at(i), mu, sums);
    }
    block_sums<3>(sums, shared, partial + 3ull * blockIdx.x);
}

extern "C" __global__ void gkr_first_base(const Symbol* num, const QM31* den, u64 stored, const QM31* low, const QM31* high, u32 low_log, QM31 mu, u64 n, QM31* partial) {
    SHARED(QM31, shared);
    gkr_evaluate(LayerInput<Symbol>{num, den, stored}, Weights{low, high, low_log}, mu, n, shared, partial);
}

extern "C" __global__ void gkr_first_ext(const QM31* num, const QM31* den, u64 stored, const QM31* low, const QM31* high, u32 low_log, QM31 mu, u64 n, QM31* partial) {
    SHARED(QM31, shared);
    gkr_evaluate(LayerInput<QM31>{num, den, stored}, Weights{low, high, low_log}, mu, n, shared, partial);
}

extern "C" __global__ void gkr_bind_base(const Symbol* num, const QM31* den, u64 stored, const QM31* low, const QM31* high, u32 low_log, QM31 mu, QM31 r, u64 n, QM31* out, u64 room, u64 kept, QM31* partial) {
    SHARED(QM31, shared);
    gkr_pass(LayerInput<Symbol>{num, den, stored}, Weights{low, high, low_log}, mu, r, n, out, room, kept, shared, partial);
}

extern "C" __global__ void gkr_bind_ext(const QM31* num, const QM31* den, u64 stored, const QM31* low, const QM31* high, u32 low_log, QM31 mu, QM31 r, u64 n, QM31* out, u64 room, u64 kept, QM31* partial) {
    SHARED(QM31, shared);
    gkr_pass(LayerInput<QM31>{num, den, stored}, Weights{low, high, low_log}, mu, r, n, out, room, kept, shared, partial);
}

extern "C" __global__ void gkr_bind_parts(const QM31* parts, u64 in_room, u64 stored, const QM31* low, const QM31* high, u32 low_log, QM31 mu, QM31 r, u64 n, QM31* out, u64 room, u64 kept, QM31* partial) {
    SHARED(QM31, shared);
    gkr_pass(PartsInput{parts, in_room, stored}, Weights{low, high, low_log}, mu, r, n, out, room, kept, shared, partial);
}
