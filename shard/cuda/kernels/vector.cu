// Extension vectors: products, sums, binding, rounds of sumchecks. Low variable first.

// out[i] = low[i & (2^low_log - 1)] * high[i >> low_log]
extern "C" __global__ void outer(const QM31* low, const QM31* high, u32 low_log, u64 n, QM31* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        out[i] = qmul(low[i & ((1ull << low_log) - 1)], high[i >> low_log]);
}

// As outer, for a low part of any length.
extern "C" __global__ void outer_any(const QM31* low, const QM31* high, u64 low_len, u64 n, QM31* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) out[i] = qmul(low[i % low_len], high[i / low_len]);
}

// out[i] = sum_k weights[k] * vectors[k][i]
extern "C" __global__ void weighted_ext(const u64* vectors, const QM31* weights, u32 count, u64 n, QM31* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 sum = qzero();
        for (u32 k = 0; k < count; k++) sum = qadd(sum, qmul(weights[k], ((const QM31*)vectors[k])[i]));
        out[i] = sum;
    }
}

// The same of columns in the base field.
extern "C" __global__ void weighted_base(const u64* columns, const QM31* weights, u32 count, u64 n, QM31* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 sum = qzero();
        for (u32 k = 0; k < count; k++) sum = qadd(sum, qscale(weights[k], ((const u32*)columns[k])[i]));
        out[i] = sum;
    }
}

// out[i] = v[2i] + r (v[2i+1] - v[2i])
extern "C" __global__ void bind(const QM31* v, QM31 r, u64 n, QM31* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) out[i] = qline(v[2 * i], v[2 * i + 1], r);
}

// out[i] = v[2i] + v[2i+1]
extern "C" __global__ void drop_low(const QM31* v, u64 n, QM31* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) out[i] = qadd(v[2 * i], v[2 * i + 1]);
}

// Sums of f(X, i) k(X, i) at X = 0, 1, 2 over i < n, one triple per block.
extern "C" __global__ void pair_round(const QM31* f, const QM31* k, u64 n, QM31* partial) {
    SHARED(QM31, shared);
    QM31 sums[3] = {qzero(), qzero(), qzero()};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 f0 = f[2 * i], f1 = f[2 * i + 1], k0 = k[2 * i], k1 = k[2 * i + 1];
        sums[0] = qadd(sums[0], qmul(f0, k0));
        sums[1] = qadd(sums[1], qmul(f1, k1));
        sums[2] = qadd(sums[2], qmul(qtwo(f0, f1), qtwo(k0, k1)));
    }
    block_sums<3>(sums, shared, partial + 3ull * blockIdx.x);
}

// The products of up to four factors' lines at X = 0..3, summed over i < n, four sums per block.
extern "C" __global__ void product_round(const QM31* f0, const QM31* f1, const QM31* f2, const QM31* f3, u32 count, u64 n, QM31* partial) {
    SHARED(QM31, shared);
    QM31 sums[4] = {qzero(), qzero(), qzero(), qzero()};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 product[4];
        for (u32 k = 0; k < count; k++) {
            const QM31* f = k == 0 ? f0 : k == 1 ? f1 : k == 2 ? f2 : f3;
            QM31 v = f[2 * i], d = qsub(f[2 * i + 1], v);
            for (u32 x = 0; x < 4; x++) {
                product[x] = k == 0 ? v : qmul(product[x], v);
                v = qadd(v, d);
            }
        }
        for (u32 x = 0; x < 4; x++) sums[x] = qadd(sums[x], product[x]);
    }
    block_sums<4>(sums, shared, partial + 4ull * blockIdx.x);
}

// Sums of rest[i] l(X, i) at X = 0, 1 over i < n, two per block.
extern "C" __global__ void linear_round(const QM31* rest, const QM31* l, u64 n, QM31* partial) {
    SHARED(QM31, shared);
    QM31 sums[2] = {qzero(), qzero()};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 e = rest[i];
        sums[0] = qadd(sums[0], qmul(e, l[2 * i]));
        sums[1] = qadd(sums[1], qmul(e, l[2 * i + 1]));
    }
    block_sums<2>(sums, shared, partial + 2ull * blockIdx.x);
}

// out[k] = sum_b partial[b * count + k] over `blocks`; one block per k.
extern "C" __global__ void sum_partials(const QM31* partial, u32 blocks, u32 count, QM31* out) {
    SHARED(QM31, shared);
    QM31 sums[1] = {qzero()};
    for (u32 b = threadIdx.x; b < blocks; b += blockDim.x) sums[0] = qadd(sums[0], partial[(u64)b * count + blockIdx.x]);
    block_sums<1>(sums, shared, out + blockIdx.x);
}
