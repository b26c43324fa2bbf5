/* CUDA's device side for g++: built-in variables, barriers, shuffles, votes, integer atomics, bit casts, arithmetic.
 *
 * Only what cannot change the result's meaning is offered: atomics of floats are missing on purpose (their order is not
 * fixed, and this project's results are), and a bare __shared__ does not compile (it would be an array per thread).
 * Approximate functions (__expf, ...) are the exact ones here.
 */
#pragma once

#include <math.h>
#include <string.h>

#include <cuda_bf16.h>

#include <emulator.h>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "declare shared memory with CU_SHARED or CU_SHARED_DYN");

constexpr int warpSize = 32;

#define EMULATED static inline __attribute__((unused))

/* ---- barriers ---------------------------------------------------------------------------------------------------- */

EMULATED void __syncthreads(emulator::Site site = {}) {
    emulator::block_barrier(emulator::BARRIER_NOTHING, 0, site);
}
EMULATED int __syncthreads_count(int predicate, emulator::Site site = {}) {
    return emulator::block_barrier(emulator::BARRIER_COUNT, predicate, site);
}
EMULATED int __syncthreads_and(int predicate, emulator::Site site = {}) {
    return emulator::block_barrier(emulator::BARRIER_AND, predicate, site);
}
EMULATED int __syncthreads_or(int predicate, emulator::Site site = {}) {
    return emulator::block_barrier(emulator::BARRIER_OR, predicate, site);
}
EMULATED void __syncwarp(unsigned mask = 0xffffffffu, emulator::Site site = {}) {
    emulator::warp_barrier(mask, site);
}
EMULATED void __threadfence() {}
EMULATED void __threadfence_block() {}

/* ---- shuffles ---------------------------------------------------------------------------------------------------- */

namespace emulator {

enum ShuffleKind { SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };

template <class T> struct Shuffle {
    T value;
    int operand, width;
};

/* The lane that lane l reads: within its segment of `width` lanes; past the segment's end its own. */
inline int shuffle_source(ShuffleKind kind, int l, int operand, int width) {
    int first = l & ~(width - 1), last = first + width - 1;
    switch (kind) {
    case SHUFFLE_INDEX:
        return first + (operand & (width - 1));
    case SHUFFLE_UP:
        return l - operand < first ? l : l - operand;
    case SHUFFLE_DOWN:
        return l + operand > last ? l : l + operand;
    case SHUFFLE_XOR:
        return (l ^ operand) > last ? l : l ^ operand;
    }
    return l;
}

template <ShuffleKind KIND, class T>
void exchange_shuffle(unsigned mask, const void *const in[32], void *const out[32]) {
    for (int l = 0; l < 32; l++) {
        if (!in[l]) continue;
        const Shuffle<T> &mine = *static_cast<const Shuffle<T> *>(in[l]);
        int source = shuffle_source(KIND, l, mine.operand, mine.width);
        if (!in[source]) fail("shuffle: lane %d reads lane %d, which takes no part (mask %08x)", l, source, mask);
        *static_cast<T *>(out[l]) = static_cast<const Shuffle<T> *>(in[source])->value;
    }
}

template <ShuffleKind KIND, class T>
T shuffle(const char *operation, unsigned mask, T value, int operand, int width, Site site) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 2, 4 or 8 bytes");
    if (width < 1 || width > 32 || width & (width - 1))
        fail("%s at %s:%d: width is %d; use a power of two up to 32", operation, site.file, site.line, width);
    Shuffle<T> in = {value, operand, width};
    T out;
    warp_collective(operation, mask, &in, &out, exchange_shuffle<KIND, T>, site);
    return out;
}

} // namespace emulator

template <class T> EMULATED T __shfl_sync(unsigned mask, T value, int from, int width = 32, emulator::Site site = {}) {
    return emulator::shuffle<emulator::SHUFFLE_INDEX>("__shfl_sync", mask, value, from, width, site);
}
template <class T>
EMULATED T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, emulator::Site site = {}) {
    return emulator::shuffle<emulator::SHUFFLE_UP>("__shfl_up_sync", mask, value, static_cast<int>(by), width, site);
}
template <class T>
EMULATED T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, emulator::Site site = {}) {
    return emulator::shuffle<emulator::SHUFFLE_DOWN>("__shfl_down_sync", mask, value, static_cast<int>(by), width,
                                                     site);
}
template <class T>
EMULATED T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, emulator::Site site = {}) {
    return emulator::shuffle<emulator::SHUFFLE_XOR>("__shfl_xor_sync", mask, value, with, width, site);
}

/* ---- votes and reductions of integers ---------------------------------------------------------------------------- */

namespace emulator {

inline void exchange_ballot(unsigned, const void *const in[32], void *const out[32]) {
    unsigned votes = 0;
    for (int l = 0; l < 32; l++)
        if (in[l] && *static_cast<const int *>(in[l])) votes |= 1u << l;
    for (int l = 0; l < 32; l++)
        if (out[l]) *static_cast<unsigned *>(out[l]) = votes;
}

template <class T> T add(T a, T b) {
    return a + b;
}
template <class T> T smaller(T a, T b) {
    return b < a ? b : a;
}
template <class T> T larger(T a, T b) {
    return a < b ? b : a;
}
template <class T> T bitwise_or(T a, T b) {
    return a | b;
}
template <class T> T bitwise_and(T a, T b) {
    return a & b;
}

template <class T, T (*COMBINE)(T, T)> void exchange_reduce(unsigned, const void *const in[32], void *const out[32]) {
    const T *total = nullptr;
    T result = {};
    for (int l = 0; l < 32; l++) {
        const T *value = static_cast<const T *>(in[l]);
        if (!value) continue;
        result = total ? COMBINE(result, *value) : *value;
        total = &result;
    }
    for (int l = 0; l < 32; l++)
        if (out[l]) *static_cast<T *>(out[l]) = result;
}

template <class T, T (*COMBINE)(T, T)> T reduce(const char *operation, unsigned mask, T value, Site site) {
    T out;
    warp_collective(operation, mask, &value, &out, exchange_reduce<T, COMBINE>, site);
    return out;
}

} // namespace emulator

EMULATED unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = {}) {
    unsigned votes;
    emulator::warp_collective("__ballot_sync", mask, &predicate, &votes, emulator::exchange_ballot, site);
    return votes;
}
EMULATED int __any_sync(unsigned mask, int predicate, emulator::Site site = {}) {
    return __ballot_sync(mask, predicate, site) != 0;
}
EMULATED int __all_sync(unsigned mask, int predicate, emulator::Site site = {}) {
    return __ballot_sync(mask, !predicate, site) == 0;
}
EMULATED unsigned __reduce_add_sync(unsigned mask, unsigned value, emulator::Site site = {}) {
    return emulator::reduce<unsigned, emulator::add>("__reduce_add_sync", mask, value, site);
}
EMULATED int __reduce_add_sync(unsigned mask, int value, emulator::Site site = {}) {
    return emulator::reduce<int, emulator::add>("__reduce_add_sync", mask, value, site);
}
EMULATED unsigned __reduce_max_sync(unsigned mask, unsigned value, emulator::Site site = {}) {
    return emulator::reduce<unsigned, emulator::larger>("__reduce_max_sync", mask, value, site);
}
EMULATED int __reduce_max_sync(unsigned mask, int value, emulator::Site site = {}) {
    return emulator::reduce<int, emulator::larger>("__reduce_max_sync", mask, value, site);
}
EMULATED unsigned __reduce_min_sync(unsigned mask, unsigned value, emulator::Site site = {}) {
    return emulator::reduce<unsigned, emulator::smaller>("__reduce_min_sync", mask, value, site);
}
EMULATED int __reduce_min_sync(unsigned mask, int value, emulator::Site site = {}) {
    return emulator::reduce<int, emulator::smaller>("__reduce_min_sync", mask, value, site);
}
EMULATED unsigned __reduce_or_sync(unsigned mask, unsigned value, emulator::Site site = {}) {
    return emulator::reduce<unsigned, emulator::bitwise_or>("__reduce_or_sync", mask, value, site);
}
EMULATED unsigned __reduce_and_sync(unsigned mask, unsigned value, emulator::Site site = {}) {
    return emulator::reduce<unsigned, emulator::bitwise_and>("__reduce_and_sync", mask, value, site);
}

/* ---- atomics of integers: builtins, so that the race checker knows them as atomic -------------------------------- */

namespace emulator {

template <class T, T (*COMBINE)(T, T)> T atomic_update(T *address, T value) {
    T old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (
        !__atomic_compare_exchange_n(address, &old, COMBINE(old, value), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}

} // namespace emulator

EMULATED int atomicAdd(int *address, int value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
EMULATED unsigned atomicAdd(unsigned *address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
EMULATED unsigned long long atomicAdd(unsigned long long *address, unsigned long long value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
EMULATED int atomicMax(int *address, int value) {
    return emulator::atomic_update<int, emulator::larger>(address, value);
}
EMULATED unsigned atomicMax(unsigned *address, unsigned value) {
    return emulator::atomic_update<unsigned, emulator::larger>(address, value);
}
EMULATED int atomicMin(int *address, int value) {
    return emulator::atomic_update<int, emulator::smaller>(address, value);
}
EMULATED unsigned atomicMin(unsigned *address, unsigned value) {
    return emulator::atomic_update<unsigned, emulator::smaller>(address, value);
}
EMULATED int atomicOr(int *address, int value) {
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
EMULATED unsigned atomicOr(unsigned *address, unsigned value) {
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
EMULATED int atomicExch(int *address, int value) {
    return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
EMULATED int atomicCAS(int *address, int expected, int value) {
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}

/* ---- loads and stores with a cache hint -------------------------------------------------------------------------- */

#define EMULATE_LOAD(name)                                                                                             \
    template <class T> EMULATED T name(const T *address) {                                                             \
        return *address;                                                                                               \
    }
#define EMULATE_STORE(name)                                                                                            \
    template <class T> EMULATED void name(T *address, T value) {                                                       \
        *address = value;                                                                                              \
    }
EMULATE_LOAD(__ldg)
EMULATE_LOAD(__ldca)
EMULATE_LOAD(__ldcg)
EMULATE_LOAD(__ldcs)
EMULATE_LOAD(__ldcv)
EMULATE_LOAD(__ldlu)
EMULATE_STORE(__stcg)
EMULATE_STORE(__stcs)
EMULATE_STORE(__stwb)
EMULATE_STORE(__stwt)

/* ---- bits -------------------------------------------------------------------------------------------------------- */

namespace emulator {

template <class To, class From> To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits are kept");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

} // namespace emulator

EMULATED unsigned __float_as_uint(float x) {
    return emulator::bit_cast<unsigned>(x);
}
EMULATED int __float_as_int(float x) {
    return emulator::bit_cast<int>(x);
}
EMULATED float __uint_as_float(unsigned x) {
    return emulator::bit_cast<float>(x);
}
EMULATED float __int_as_float(int x) {
    return emulator::bit_cast<float>(x);
}
EMULATED int __clz(int x) {
    return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
EMULATED int __ffs(int x) {
    return __builtin_ffs(x);
}
EMULATED int __popc(unsigned x) {
    return __builtin_popcount(x);
}
EMULATED unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
EMULATED unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
/* Byte i of the result is byte selector>>4i & 7 of b:a. */
EMULATED unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}

/* ---- arithmetic -------------------------------------------------------------------------------------------------- */

/* CUDA's overloads of min and max: of floats the one that is not NaN, as fminf and fmaxf. */
template <class A, class B> EMULATED typename std::common_type<A, B>::type min(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    T x = static_cast<T>(a), y = static_cast<T>(b);
    if (std::is_floating_point<T>::value && x != x) return y;
    return y < x ? y : x;
}
template <class A, class B> EMULATED typename std::common_type<A, B>::type max(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    T x = static_cast<T>(a), y = static_cast<T>(b);
    if (std::is_floating_point<T>::value && x != x) return y;
    return x < y ? y : x;
}

EMULATED float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
EMULATED float __frcp_rn(float x) {
    return 1.0f / x;
}
EMULATED float __frsqrt_rn(float x) {
    return 1.0f / sqrtf(x);
}
EMULATED float __fsqrt_rn(float x) {
    return sqrtf(x);
}
EMULATED float __fadd_rn(float a, float b) {
    return a + b;
}
EMULATED float __fsub_rn(float a, float b) {
    return a - b;
}
EMULATED float __fmul_rn(float a, float b) {
    return a * b;
}
EMULATED float __fdiv_rn(float a, float b) {
    return a / b;
}
EMULATED float __fdividef(float a, float b) {
    return a / b;
}
EMULATED float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
EMULATED float __saturatef(float x) {
    return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; /* NaN gives 0, as on the device */
}
EMULATED int __float2int_rn(float x) {
    return static_cast<int>(rintf(x));
}
EMULATED int __float2int_rd(float x) {
    return static_cast<int>(floorf(x));
}

/* glibc has functions of these names. */
#define __expf  expf
#define __exp2f exp2f
#define __logf  logf
#define __log2f log2f
#define __powf  powf
#define __sinf  sinf
#define __cosf  cosf
#define __tanf  tanf
