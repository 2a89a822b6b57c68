// Chips: monomials of sources, in the base field before the first binding.

// The four values X = 0..3 of a term's product of lines at pair i, without its coefficient.
__device__ __forceinline__ void base_lines(const Source* sources, const ExtTerm& term, u64 i, u32 (&product)[4]) {
    for (u32 f = 0; f < term.count; f++) {
        const Source& s = sources[term.factors[f]];
        u32 v = base_at(s, 2 * i), d = msub(base_at(s, 2 * i + 1), v);
        for (u32 x = 0; x < 4; x++) {
            product[x] = f == 0 ? v : mmul(product[x], v);
            v = madd(v, d);
        }
    }
}

__device__ __forceinline__ void ext_lines(const Source* sources, const ExtTerm& term, u64 i, QM31 (&product)[4]) {
    for (u32 f = 0; f < term.count; f++) {
        const Source& s = sources[term.factors[f]];
        QM31 v = ext_at(s, 2 * i), d = qsub(ext_at(s, 2 * i + 1), v);
        for (u32 x = 0; x < 4; x++) {
            product[x] = f == 0 ? v : qmul(product[x], v);
            v = qadd(v, d);
        }
    }
}

// Sums of rest[i] sum_t coef_t prod sources(X, i) at X = 0..3 over i < n; every source is of the base field.
extern "C" __global__ void chip_round_base(const Source* sources, const ExtTerm* terms, u32 count, const QM31* rest, u64 n, QM31* partial) {
    SHARED(QM31, shared);
    QM31 sums[4] = {qzero(), qzero(), qzero(), qzero()};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 row[4] = {qzero(), qzero(), qzero(), qzero()};
        for (u32 t = 0; t < count; t++) {
            u32 product[4] = {1, 1, 1, 1};
            base_lines(sources, terms[t], i, product);
            for (u32 x = 0; x < 4; x++) row[x] = qadd(row[x], qscale(terms[t].coef, product[x]));
        }
        for (u32 x = 0; x < 4; x++) sums[x] = qadd(sums[x], qmul(rest[i], row[x]));
    }
    block_sums<4>(sums, shared, partial + 4ull * blockIdx.x);
}

extern "C" __global__ void chip_round_ext(const Source* sources, const ExtTerm* terms, u32 count, const QM31* rest, u64 n, QM31* partial) {
    SHARED(QM31, shared);
    QM31 sums[4] = {qzero(), qzero(), qzero(), qzero()};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        QM31 row[4] = {qzero(), qzero(), qzero(), qzero()};
        for (u32 t = 0; t < count; t++) {
            QM31 product[4] = {qone(), qone(), qone(), qone()};
            ext_lines(sources, terms[t], i, product);
            for (u32 x = 0; x < 4; x++) row[x] = qadd(row[x], qmul(terms[t].coef, product[x]));
        }
        for (u32 x = 0; x < 4; x++) sums[x] = qadd(sums[x], qmul(rest[i], row[x]));
    }
    block_sums<4>(sums, shared, partial + 4ull * blockIdx.x);
}

// Binds several columns at once; `per` blocks work on each.
extern "C" __global__ void bind_all(const Binding* bindings, u32 per, QM31 r) {
    const Binding b = bindings[blockIdx.x / per];
    QM31* out = (QM31*)b.to;
    u64 step = (u64)per * blockDim.x;
    for (u64 i = (u64)(blockIdx.x % per) * blockDim.x + threadIdx.x; i < b.length; i += step) {
        if (b.is_ext) {
            const QM31* in = (const QM31*)b.from;
            out[i] = qline(in[2 * i], in[2 * i + 1], r);
        } else {
            const u32* in = (const u32*)b.from;
            u32 even = in[2 * i];
            out[i] = qadd(qbase(even), qscale(r, msub(in[2 * i + 1], even)));
        }
    }
}

// sum_t coef_t prod sources(0): one block, once every variable is bound.
extern "C" __global__ void chip_value(const Source* sources, const ExtTerm* terms, u32 count, QM31* out) {
    SHARED(QM31, shared);
    QM31 sums[1] = {qzero()};
    for (u32 t = threadIdx.x; t < count; t += blockDim.x) {
        QM31 product = terms[t].coef;
        for (u32 f = 0; f < terms[t].count; f++) product = qmul(product, ext_at(sources[terms[t].factors[f]], 0));
        sums[0] = qadd(sums[0], product);
    }
    block_sums<1>(sums, shared, out);
}

// Claims: an index of a column has bits that go to bits of the output (`free`), and bits that are contracted (`fixed`). `bits`
// holds the places of the free bits in the column, then in the output, then those of the fixed ones in the column.
__device__ __forceinline__ u64 scatter_bits(u64 i, const u32* places, u32 count) {
    u64 out = 0;
    for (u32 k = 0; k < count; k++) out |= ((i >> k) & 1) << places[k];
    return out;
}

// out[base | place(f)] += scale sum_j weights[j] column[f, j]: one thread per output, for short sums.
extern "C" __global__ void claim_wide(const u32* column, const QM31* weights, QM31 scale, const u32* bits, u32 free, u32 fixed, u64 base, QM31* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 f = (u64)blockIdx.x * blockDim.x + threadIdx.x; f < 1ull << free; f += step) {
        u64 at = scatter_bits(f, bits, free);
        QM31 sum = qzero();
        for (u64 j = 0; j < 1ull << fixed; j++)
            sum = qadd(sum, qscale(weights[j], column[at | scatter_bits(j, bits + 2 * free, fixed)]));
        u64 to = base | scatter_bits(f, bits + free, free);
        out[to] = qadd(out[to], qmul(scale, sum));
    }
}

// The same, one block per output, for long sums.
extern "C" __global__ void claim_deep(const u32* column, const QM31* weights, QM31 scale, const u32* bits, u32 free, u32 fixed, u64 base, QM31* out) {
    SHARED(QM31, shared);
    u64 at = scatter_bits(blockIdx.x, bits, free);
    QM31 sums[1] = {qzero()};
    for (u64 j = threadIdx.x; j < 1ull << fixed; j += blockDim.x)
        sums[0] = qadd(sums[0], qscale(weights[j], column[at | scatter_bits(j, bits + 2 * free, fixed)]));
    QM31* total = shared + blockDim.x;
    block_sums<1>(sums, shared, total);
    if (threadIdx.x == 0) {
        u64 to = base | scatter_bits(blockIdx.x, bits + free, free);
        out[to] = qadd(out[to], qmul(scale, *total));
    }
}

// Sizes and offsets of the structs above.
extern "C" __global__ void layout(u32* out) {
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    Source s;
    BaseTerm b;
    ExtTerm e;
    Binding d;
    u32 k = 0;
    out[k++] = sizeof(QM31);
    out[k++] = sizeof(Source);
    out[k++] = (u32)((char*)&s.low_mask - (char*)&s);
    out[k++] = (u32)((char*)&s.is_ext - (char*)&s);
    out[k++] = sizeof(BaseTerm);
    out[k++] = (u32)((char*)&b.factors - (char*)&b);
    out[k++] = sizeof(ExtTerm);
    out[k++] = (u32)((char*)&e.count - (char*)&e);
    out[k++] = sizeof(Binding);
    out[k++] = (u32)((char*)&d.length - (char*)&d);
    out[k++] = (u32)((char*)&d.is_ext - (char*)&d);
}
