// How kernels read a circuit. These structs are shared with `layout.rs`, which checks their sizes and offsets.

// A column read at row i: element (i & low_mask) | ((i >> shift & high_mask) << place). Shorter columns repeat, parameters are
// read by channel, public tables by token and channel.
struct Source {
    u64 data;
    u32 low_mask, shift, high_mask, place;
    // Whether elements are of the extension.
    u32 is_ext;
    u32 unused;
};

// coef times the product of up to three sources.
struct BaseTerm { u32 coef, count, factors[3], unused[3]; };
struct ExtTerm { QM31 coef; u32 count, factors[3]; };

// A column to bind: out[j] = in[2j] + r (in[2j+1] - in[2j]).
struct Binding { u64 from, to, length; u32 is_ext, unused; };

__device__ __forceinline__ u64 source_index(const Source& s, u64 i) {
    return (i & s.low_mask) | (((i >> s.shift) & s.high_mask) << s.place);
}
__device__ __forceinline__ u32 base_at(const Source& s, u64 i) { return ((const u32*)s.data)[source_index(s, i)]; }
__device__ __forceinline__ QM31 ext_at(const Source& s, u64 i) {
    return s.is_ext ? ((const QM31*)s.data)[source_index(s, i)] : qbase(base_at(s, i));
}
