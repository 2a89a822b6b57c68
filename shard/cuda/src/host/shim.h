// Runs kernels on a processor: every thread of a block is a fiber, so that barriers and shuffles mean what they mean on a card.
//
// Fibers run one after the other, in an order that a seed changes: what a missing barrier would leave to chance differs between
// seeds. A barrier that some threads of a block never reach is an error, and so is a shuffle that not all lanes of a warp join.
// Memory that nobody wrote holds a pattern that is no field element.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <sys/mman.h>

// Hidden, so that a kernel named like a function of the system is not taken for it.
#define __global__ __attribute__((visibility("hidden")))
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define SHARED(type, name) type* name = (type*)shim::shared_memory

namespace shim {
struct Dim { uint32_t x, y, z; };
enum Wait : uint32_t { FRESH, READY, AT_BLOCK, AT_WARP, DONE };
enum Fault : int { NONE = 0, DIVERGED = 1, NO_MEMORY = 2, BESIDE = 3 };
struct Fiber {
    void* stack_pointer;
    char* stack;
    Wait wait;
    uint32_t parity;
    uint32_t slot[2];
};

constexpr uint32_t MOST_THREADS = 1024;
constexpr size_t STACK_BYTES = 32 * 1024;
// What every card gives a block without being asked for more.
constexpr size_t SHARED_BYTES = 48 * 1024;
// Behind a block's shared memory, however much it has: what is written there is an error.
constexpr size_t SHARED_GUARD = 4 * 1024;
constexpr unsigned char UNWRITTEN = 0xa5;

// One per thread of the system that runs blocks; made at its first launch.
struct Machine {
    Fiber fibers[MOST_THREADS];
    char* stacks[MOST_THREADS];
    uint32_t free_stacks;
    char* shared;
};

static thread_local Machine* machine;
static thread_local char* shared_memory;
static thread_local void* scheduler;
static thread_local uint32_t current;
static thread_local void (*body)(void*);
static thread_local void* body_argument;
}  // namespace shim

static thread_local shim::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace shim {
// Keeps callee-saved registers on the stack that is left.
extern "C" void obelysk_shim_switch(void** from, void* to);
#if defined(__x86_64__)
asm(".text\n"
    ".type obelysk_shim_switch,@function\n"
    "obelysk_shim_switch:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n"
    "  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
    "  ret\n");
constexpr size_t SAVED_WORDS = 6;
#elif defined(__aarch64__)
asm(".text\n"
    ".type obelysk_shim_switch,%function\n"
    "obelysk_shim_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n");
constexpr size_t SAVED_WORDS = 20;
#else
#error "kernels run on the host on x86-64 and aarch64 only"
#endif

static __attribute__((noinline)) void pause(Wait wait) {
    Fiber& self = machine->fibers[current];
    self.wait = wait;
    obelysk_shim_switch(&self.stack_pointer, scheduler);
}

static __attribute__((noinline)) void enter() {
    body(body_argument);
    pause(DONE);
    abort();
}

static bool prepare() {
    if (machine) return true;
    Machine* made = (Machine*)calloc(1, sizeof(Machine));
    if (!made) return false;
    size_t bytes = MOST_THREADS * STACK_BYTES + SHARED_BYTES + SHARED_GUARD;
    char* memory = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return free(made), false;
    for (uint32_t i = 0; i < MOST_THREADS; i++) made->stacks[i] = memory + i * STACK_BYTES;
    made->free_stacks = MOST_THREADS;
    made->shared = memory + MOST_THREADS * STACK_BYTES;
    machine = made;
    return true;
}

static void start(Fiber& fiber) {
    fiber.stack = machine->stacks[--machine->free_stacks];
    void** top = (void**)(fiber.stack + STACK_BYTES);
#if defined(__x86_64__)
    // As after a call: the stack is 8 below a multiple of 16 when `enter` begins.
    *--top = nullptr;
    *--top = (void*)enter;
    for (size_t i = 0; i < SAVED_WORDS; i++) *--top = nullptr;
#else
    top -= SAVED_WORDS;
    memset(top, 0, SAVED_WORDS * sizeof(void*));
    top[11] = (void*)enter;
#endif
    fiber.stack_pointer = top;
}

static void resume(uint32_t i) {
    Fiber& fiber = machine->fibers[i];
    if (fiber.wait == FRESH) start(fiber);
    current = i;
    threadIdx = Dim{i, 0, 0};
    obelysk_shim_switch(&scheduler, fiber.stack_pointer);
    if (fiber.wait == DONE) machine->stacks[machine->free_stacks++] = fiber.stack;
}

// Lets those go on who all wait for each other; false if nobody may.
static bool release(uint32_t n) {
    bool any = false;
    for (uint32_t first = 0; first < n; first += 32) {
        uint32_t end = first + 32 < n ? first + 32 : n, waiting = 0;
        for (uint32_t i = first; i < end; i++) waiting += machine->fibers[i].wait == AT_WARP;
        if (waiting == 0) continue;
        if (waiting != end - first) continue;
        for (uint32_t i = first; i < end; i++) machine->fibers[i].wait = READY;
        any = true;
    }
    if (any) return true;
    for (uint32_t i = 0; i < n; i++)
        if (machine->fibers[i].wait != AT_BLOCK) return false;
    for (uint32_t i = 0; i < n; i++) machine->fibers[i].wait = READY;
    return true;
}

static uint64_t mix(uint64_t& seed) {
    seed += 0x9e3779b97f4a7c15ull;
    uint64_t z = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9ull;
    return z ^ (z >> 27);
}

static Fault run_block(uint64_t seed, size_t shared) {
    uint32_t n = blockDim.x, live = n;
    memset(machine->shared, UNWRITTEN, shared + SHARED_GUARD);
    shared_memory = machine->shared;
    for (uint32_t i = 0; i < n; i++) machine->fibers[i] = Fiber{nullptr, nullptr, FRESH, 0, {0, 0}};
    while (live > 0) {
        // Seed 0 is the order of the threads; others go up or down from any of them.
        uint64_t chance = seed ? mix(seed) : 0;
        uint32_t from = (uint32_t)((chance >> 8) % n), step = chance & 1 ? n - 1 : 1;
        for (uint32_t k = 0, i = from; k < n; k++, i = (i + step) % n) {
            if (machine->fibers[i].wait > READY) continue;
            resume(i);
            live -= machine->fibers[i].wait == DONE;
        }
        if (live > 0 && !release(n)) {
            for (uint32_t i = 0; i < n; i++)
                if (machine->fibers[i].wait != DONE) machine->stacks[machine->free_stacks++] = machine->fibers[i].stack;
            return DIVERGED;
        }
    }
    // All of it is as its first byte.
    const char* guard = machine->shared + shared;
    bool whole = (unsigned char)guard[0] == UNWRITTEN && memcmp(guard, guard + 1, SHARED_GUARD - 1) == 0;
    return whole ? NONE : BESIDE;
}

template <typename... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}

// Runs blocks [from, to) of a launch.
template <typename... A>
static int launch(void (*kernel)(A...), uint32_t grid, uint32_t threads, size_t shared, void** arguments, uint32_t from, uint32_t to, uint64_t seed) {
    if (!prepare() || threads > MOST_THREADS || threads % 32 != 0 || shared > SHARED_BYTES) return NO_MEMORY;
    auto one = [&] { call(kernel, arguments, std::index_sequence_for<A...>{}); };
    body = [](void* run) { (*(decltype(one)*)run)(); };
    body_argument = &one;
    gridDim = Dim{grid, 1, 1};
    blockDim = Dim{threads, 1, 1};
    for (uint32_t k = from; k < to; k++) {
        uint64_t own = seed ? seed + k : 0;
        blockIdx = Dim{seed & 1 ? from + to - 1 - k : k, 0, 0};
        Fault fault = run_block(own, shared);
        if (fault != NONE) return fault;
    }
    return NONE;
}

static uint32_t exchange(uint32_t value, uint32_t lane) {
    Fiber& self = machine->fibers[current];
    uint32_t own = current, parity = self.parity ^= 1;
    self.slot[parity] = value;
    pause(AT_WARP);
    return machine->fibers[(own & ~31u) | (lane & 31u)].slot[parity];
}
}  // namespace shim

static inline void __syncthreads() { shim::pause(shim::AT_BLOCK); }
static inline void __syncwarp(uint32_t = ~0u) { shim::pause(shim::AT_WARP); }
static inline uint32_t __shfl_down_sync(uint32_t, uint32_t value, uint32_t by) {
    uint32_t lane = shim::current & 31u;
    return shim::exchange(value, lane + by < 32 ? lane + by : lane);
}
// Byte k of the result is the byte of y:x that nibble k of `selector` names.
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
    uint64_t both = (uint64_t)y << 32 | x;
    uint32_t out = 0;
    for (int k = 0; k < 4; k++) out |= (uint32_t)(both >> (8 * (selector >> (4 * k) & 7)) & 0xff) << (8 * k);
    return out;
}
// Products of signed bytes, added up.
static inline int __dp4a(int x, int y, int sum) {
    for (int k = 0; k < 4; k++) sum += (int)(signed char)(x >> (8 * k)) * (int)(signed char)(y >> (8 * k));
    return sum;
}
template <typename T>
static inline T atomicMin(T* at, T value) {
    T seen = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value < seen && !__atomic_compare_exchange_n(at, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return seen;
}
