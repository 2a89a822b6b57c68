// M31 and its degree-4 extension QM31 = M31[i][u], i^2 = -1, u^2 = 2 + i. Every value in memory is canonical (below p).
#define P31 0x7fffffffu
#define HALF31 0x40000000u

struct __align__(16) QM31 { u32 a, b, c, d; };

__device__ __forceinline__ u32 madd(u32 x, u32 y) {
    u32 sum = x + y;
    u32 less = sum - P31;
    return less < sum ? less : sum;
}

__device__ __forceinline__ u32 msub(u32 x, u32 y) {
    u32 difference = x - y;
    u32 more = difference + P31;
    return more < difference ? more : difference;
}

__device__ __forceinline__ u32 mneg(u32 x) { return msub(0, x); }

// Any 64-bit value, to canonical.
__device__ __forceinline__ u32 mfold(u64 x) {
    u64 once = (x & P31) + (x >> 31);
    u32 low = (u32)(once & P31), high = (u32)(once >> 31);
    u32 sum = low + high;
    // At most p + 7 here.
    return sum >= P31 ? sum - P31 : sum;
}

__device__ __forceinline__ u32 mmul(u32 x, u32 y) {
    u64 product = (u64)x * y;
    return madd((u32)product & P31, (u32)(product >> 31));
}

// A signed sum of products, to canonical.
__device__ __forceinline__ u32 msigned(i64 x) {
    return x < 0 ? mneg(mfold((u64)(-x))) : mfold((u64)x);
}

// A product of a signed byte and a canonical element: one multiply-add of 32-bit numbers into 64.
__device__ __forceinline__ i64 wide(signed char x, u32 y) { return (i64)(i32)x * (i64)(i32)y; }

__device__ __forceinline__ u32 mbyte(signed char v) { return v < 0 ? (u32)(P31 + (i32)v) : (u32)v; }

__device__ __forceinline__ QM31 qzero() { return QM31{0, 0, 0, 0}; }
__device__ __forceinline__ QM31 qone() { return QM31{1, 0, 0, 0}; }
__device__ __forceinline__ QM31 qbase(u32 v) { return QM31{v, 0, 0, 0}; }
__device__ __forceinline__ QM31 qadd(QM31 x, QM31 y) {
    return QM31{madd(x.a, y.a), madd(x.b, y.b), madd(x.c, y.c), madd(x.d, y.d)};
}
__device__ __forceinline__ QM31 qsub(QM31 x, QM31 y) {
    return QM31{msub(x.a, y.a), msub(x.b, y.b), msub(x.c, y.c), msub(x.d, y.d)};
}
__device__ __forceinline__ QM31 qscale(QM31 x, u32 k) {
    return QM31{mmul(x.a, k), mmul(x.b, k), mmul(x.c, k), mmul(x.d, k)};
}

// (x0 + u x1)(y0 + u y1) = x0 y0 + (2 + i) x1 y1 + u (x0 y1 + x1 y0); sums of products are reduced once.
__device__ __forceinline__ QM31 qmul(QM31 x, QM31 y) {
    u32 rr = msub(mmul(x.c, y.c), mmul(x.d, y.d));
    u32 ri = mfold((u64)x.c * y.d + (u64)x.d * y.c);
    u32 pr = msub(mmul(x.a, y.a), mmul(x.b, y.b));
    u32 pi = mfold((u64)x.a * y.b + (u64)x.b * y.a);
    u32 cr = msub(mfold((u64)x.a * y.c + (u64)x.c * y.a), mfold((u64)x.b * y.d + (u64)x.d * y.b));
    u64 ci = (u64)mfold((u64)x.a * y.d + (u64)x.b * y.c) + mfold((u64)x.c * y.b + (u64)x.d * y.a);
    return QM31{madd(pr, msub(madd(rr, rr), ri)), madd(pi, madd(madd(ri, ri), rr)), cr, mfold(ci)};
}

// even + r (odd - even)
__device__ __forceinline__ QM31 qline(QM31 even, QM31 odd, QM31 r) { return qadd(even, qmul(r, qsub(odd, even))); }
// The line through even (at 0) and odd (at 1), at 2.
__device__ __forceinline__ QM31 qtwo(QM31 even, QM31 odd) { return qsub(qadd(odd, odd), even); }

// The same names over both fields, for templates.
__device__ __forceinline__ u32 fadd(u32 x, u32 y) { return madd(x, y); }
__device__ __forceinline__ u32 fsub(u32 x, u32 y) { return msub(x, y); }
__device__ __forceinline__ u32 fscale(u32 x, u32 k) { return mmul(x, k); }
__device__ __forceinline__ QM31 fadd(QM31 x, QM31 y) { return qadd(x, y); }
__device__ __forceinline__ QM31 fsub(QM31 x, QM31 y) { return qsub(x, y); }
__device__ __forceinline__ QM31 fscale(QM31 x, u32 k) { return qscale(x, k); }
__device__ __forceinline__ QM31 lift(u32 v) { return qbase(v); }
__device__ __forceinline__ QM31 lift(QM31 v) { return v; }
__device__ __forceinline__ u32 lift(signed char v) { return mbyte(v); }
