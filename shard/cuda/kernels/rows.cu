// Stacked rows, in the base field or as signed bytes: combinations, inner products, gathers.

// Column sums of weighted rows. A slab is `rows` rows of `columns`; slab s takes weights[s * stride ..] and writes its own
// vector of sums. A thread has one column, a block's reads are consecutive. Grid: blocks of columns, slab after slab.
extern "C" __global__ void fold_int8(const signed char* data, u64 columns, u64 total_rows, u64 rows, const QM31* weights, u64 stride, QM31* out) {
    u64 per_slab = (columns + blockDim.x - 1) / blockDim.x;
    u64 slab = blockIdx.x / per_slab, column = (blockIdx.x % per_slab) * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    u64 first = slab * rows, end = first + rows < total_rows ? first + rows : total_rows;
    const QM31* w = weights + slab * stride;
    // |byte| < 2^8 and a coordinate < 2^31: 2^24 rows cannot overflow, and no matrix has them.
    i64 a = 0, b = 0, c = 0, d = 0;
    for (u64 row = first; row < end; row++) {
        signed char v = data[row * columns + column];
        QM31 k = w[row - first];
        a += wide(v, k.a);
        b += wide(v, k.b);
        c += wide(v, k.c);
        d += wide(v, k.d);
    }
    out[slab * columns + column] = QM31{msigned(a), msigned(b), msigned(c), msigned(d)};
}

// The same of base elements.
extern "C" __global__ void fold_base(const u32* data, u64 columns, u64 total_rows, u64 rows, const QM31* weights, u64 stride, QM31* out) {
    u64 per_slab = (columns + blockDim.x - 1) / blockDim.x;
    u64 slab = blockIdx.x / per_slab, column = (blockIdx.x % per_slab) * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    u64 first = slab * rows, end = first + rows < total_rows ? first + rows : total_rows;
    const QM31* w = weights + slab * stride;
    QM31 sum = qzero();
    for (u64 row = first; row < end; row++) sum = qadd(sum, qscale(w[row - first], data[row * columns + column]));
    out[slab * columns + column] = sum;
}

// The same of extension elements.
extern "C" __global__ void fold_ext(const QM31* data, u64 columns, u64 total_rows, u64 rows, const QM31* weights, u64 stride, QM31* out) {
    u64 per_slab = (columns + blockDim.x - 1) / blockDim.x;
    u64 slab = blockIdx.x / per_slab, column = (blockIdx.x % per_slab) * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    u64 first = slab * rows, end = first + rows < total_rows ? first + rows : total_rows;
    const QM31* w = weights + slab * stride;
    QM31 sum = qzero();
    for (u64 row = first; row < end; row++) sum = qadd(sum, qmul(w[row - first], data[row * columns + column]));
    out[slab * columns + column] = sum;
}

// out[i] = sum_s slabs[s * columns + i]; what is beyond `columns` is zero.
extern "C" __global__ void sum_slabs(const QM31* slabs, u64 columns, u64 count, u64 n, QM31* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 sum = qzero();
        if (i < columns)
            for (u64 s = 0; s < count; s++) sum = qadd(sum, slabs[s * columns + i]);
        out[i] = sum;
    }
}

// Inner products with one vector of weights: <data[slot * length ..], weights>, one block per slot.
extern "C" __global__ void dots_int8(const signed char* data, u64 length, const QM31* weights, QM31* out) {
    SHARED(QM31, shared);
    i64 a = 0, b = 0, c = 0, d = 0;
    for (u64 i = threadIdx.x; i < length; i += blockDim.x) {
        signed char v = data[(u64)blockIdx.x * length + i];
        QM31 k = weights[i];
        a += wide(v, k.a);
        b += wide(v, k.b);
        c += wide(v, k.c);
        d += wide(v, k.d);
    }
    QM31 sums[1] = {QM31{msigned(a), msigned(b), msigned(c), msigned(d)}};
    block_sums<1>(sums, shared, out + blockIdx.x);
}

extern "C" __global__ void dots_base(const u32* data, u64 length, const QM31* weights, QM31* out) {
    SHARED(QM31, shared);
    QM31 sums[1] = {qzero()};
    for (u64 i = threadIdx.x; i < length; i += blockDim.x) sums[0] = qadd(sums[0], qscale(weights[i], data[(u64)blockIdx.x * length + i]));
    block_sums<1>(sums, shared, out + blockIdx.x);
}

extern "C" __global__ void dots_ext(const QM31* data, u64 length, const QM31* weights, QM31* out) {
    SHARED(QM31, shared);
    QM31 sums[1] = {qzero()};
    for (u64 i = threadIdx.x; i < length; i += blockDim.x) sums[0] = qadd(sums[0], qmul(weights[i], data[(u64)blockIdx.x * length + i]));
    block_sums<1>(sums, shared, out + blockIdx.x);
}

// One inner product of a long column, one sum per block.
extern "C" __global__ void dot_base(const u32* column, const QM31* weights, u64 n, QM31* partial) {
    SHARED(QM31, shared);
    QM31 sums[1] = {qzero()};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) sums[0] = qadd(sums[0], qscale(weights[i], column[i]));
    block_sums<1>(sums, shared, partial + blockIdx.x);
}

// The code's basis at some positions: basis[k * 2^h + i] = product of factors[k * h + bit] over the bits of i.
extern "C" __global__ void basis_at(const u32* factors, u32 h, u64 n, u32* basis) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const u32* f = factors + (i >> h) * h;
        u32 product = 1;
        for (u32 bit = 0; bit < h; bit++)
            if ((i >> bit) & 1) product = mmul(product, f[bit]);
        basis[i] = product;
    }
}

// Symbols of rows of bytes at positions whose basis is given: one block per row and position.
extern "C" __global__ void symbols_int8(const signed char* rows, u32 h, u64 row_count, const u32* basis, u32* out) {
    SHARED(QM31, shared);
    u64 row = blockIdx.x % row_count, position = blockIdx.x / row_count;
    i64 sum = 0;
    for (u64 i = threadIdx.x; i < 1ull << h; i += blockDim.x) sum += wide(rows[(row << h) + i], basis[(position << h) + i]);
    QM31 sums[1] = {qbase(msigned(sum))};
    // Thread 0 reads what thread 0 wrote.
    QM31* total = shared + blockDim.x;
    block_sums<1>(sums, shared, total);
    if (threadIdx.x == 0) out[position * row_count + row] = total->a;
}

// out[k] = words[row * n + positions[k / rows]], row = k mod rows: leaf after leaf.
extern "C" __global__ void gather_leaves(const u32* words, u64 n, u64 rows, const u64* positions, u64 total, u32* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 k = (u64)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += step) out[k] = words[(k % rows) * n + positions[k / rows]];
}

// out[k * width + w] = data[positions[k] * width + w]
extern "C" __global__ void gather_blocks(const u32* data, u64 width, const u64* positions, u64 total, u32* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 k = (u64)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += step) out[k] = data[positions[k / width] * width + k % width];
}
