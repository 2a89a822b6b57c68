// Names that every kernel uses. On a card, shared memory is the launch's dynamic block, aligned for any element.
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
#ifndef SHARED
#define SHARED(type, name) \
    extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    type* name = (type*)shared_bytes
#endif
