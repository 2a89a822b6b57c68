// Folds of int8 rows by digits: a centred coordinate is four signed digits of base 256, so that a fold by an extension vector is
// sixteen exact int8 dot products with 32-bit sums. Four rows at a time, four columns per thread.

// |digit| and |byte| are at most 2^7: sums of this many products fit 32 bits.
#define PACKED_ROWS 65536u

// Digits of weights, four neighbours in a word: word 4 c + j of a group is digit j of coordinate c. Those beyond `count` are zero.
extern "C" __global__ void digits(const QM31* weights, u64 count, u64 groups, u32* out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < 4 * groups; i += step) {
        u64 group = i >> 2;
        u32 coordinate = (u32)(i & 3), words[4] = {0, 0, 0, 0};
        for (u32 k = 0; k < 4 && 4 * group + k < count; k++) {
            QM31 w = weights[4 * group + k];
            u32 v = coordinate == 0 ? w.a : coordinate == 1 ? w.b : coordinate == 2 ? w.c : w.d;
            i32 rest = v > P31 / 2 ? (i32)v - (i32)P31 : (i32)v;
            for (u32 j = 0; j < 4; j++) {
                i32 digit = (i32)(signed char)(rest & 0xff);
                rest = (rest - digit) >> 8;
                words[j] |= ((u32)digit & 0xff) << (8 * k);
            }
        }
        for (u32 j = 0; j < 4; j++) out[4 * i + j] = words[j];
    }
}

// sum_j 256^j digits_j, to canonical.
__device__ __forceinline__ u32 joined(const i32* digits) {
    return msigned((i64)digits[0] + ((i64)digits[1] << 8) + ((i64)digits[2] << 16) + ((i64)digits[3] << 24));
}

// As fold_int8, for columns and rows of a slab that are multiples of 4, at most PACKED_ROWS rows; `table` holds the digits, of
// which slab s takes groups from s * group_stride on.
extern "C" __global__ void fold_packed(const u32* data, u64 columns, u64 total_rows, u64 rows, const u32* table, u64 group_stride, QM31* out) {
    u64 width = columns / 4, per_slab = (width + blockDim.x - 1) / blockDim.x;
    u64 slab = blockIdx.x / per_slab, column = (blockIdx.x % per_slab) * blockDim.x + threadIdx.x;
    if (column >= width) return;
    u64 first = slab * rows, end = first + rows < total_rows ? first + rows : total_rows;
    const u32* digit = table + 16 * slab * group_stride;
    i32 sums[4][16];
    for (u32 c = 0; c < 4; c++)
        for (u32 k = 0; k < 16; k++) sums[c][k] = 0;
    for (u64 row = first; row < end; row += 4, digit += 16) {
        u32 r[4];
        for (u32 k = 0; k < 4; k++) r[k] = row + k < end ? data[(row + k) * width + column] : 0;
        // Four rows of four columns become four columns of four rows.
        u32 low01 = __byte_perm(r[0], r[1], 0x5140), high01 = __byte_perm(r[0], r[1], 0x7362);
        u32 low23 = __byte_perm(r[2], r[3], 0x5140), high23 = __byte_perm(r[2], r[3], 0x7362);
        u32 v[4] = {__byte_perm(low01, low23, 0x5410), __byte_perm(low01, low23, 0x7632), __byte_perm(high01, high23, 0x5410),
                    __byte_perm(high01, high23, 0x7632)};
        for (u32 k = 0; k < 16; k++) {
            u32 d = digit[k];
            for (u32 c = 0; c < 4; c++) sums[c][k] = __dp4a((i32)v[c], (i32)d, sums[c][k]);
        }
    }
    for (u32 c = 0; c < 4; c++)
        out[slab * columns + 4 * column + c] = QM31{joined(sums[c]), joined(sums[c] + 4), joined(sums[c] + 8), joined(sums[c] + 12)};
}
