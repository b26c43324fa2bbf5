/* What kernels share: dtypes, 16-byte accesses, fast functions, reductions over a warp or a block.
 *
 * One kernel source serves f32 and bf16, and aligned and unaligned memory. T is the type in memory; N is how many
 * elements a thread takes at a time, always as fp32 in registers:
 *
 *      N = 8 (bf16) or 4 (f32)      16-byte accesses, where pointers, strides and sizes allow them
 *      N = 1                        element by element, everywhere else
 *
 * Every function keeps NaN unless its comment says otherwise. Reductions have a fixed order: the result depends on the
 * block's size and on nothing else.
 */
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/cuda.h"
#include "cuda/ptx.cuh"

constexpr int WARP = 32;
constexpr int MAX_WARPS = 32; /* of a block */
constexpr unsigned FULL_WARP = 0xffffffffu;

/* ---- host: choosing the kernel ---------------------------------------------------------------------------------- */

/* f(zero) with a zero of the dtype's type:   by_dtype(x.dtype, [&](auto zero) { using T = decltype(zero); ... }); */
template <class F> void by_dtype(DType dtype, F f) {
    if (dtype == DTYPE_F32)
        f(float());
    else
        f(__nv_bfloat16());
}

/* How many T are 16 bytes. */
template <class T> constexpr int PACK_SIZE = 16 / static_cast<int>(sizeof(T));

/* f(N) as std::integral_constant, for a kernel that takes N elements at a time: PACK_SIZE<T> or 1. */
template <class T, class F> void by_access(bool aligned, F f) {
    if (aligned)
        f(std::integral_constant<int, PACK_SIZE<T>>());
    else
        f(std::integral_constant<int, 1>());
}

static inline bool is_aligned(const void *p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

/* True if every row of x begins on a 16-byte boundary and consists of whole packs. An absent x is no obstacle. */
static inline bool rows_are_aligned(Tensor x) {
    if (!tensor_present(x)) return true;
    int64_t pack = 16 / dtype_size(x.dtype);
    bool aligned = is_aligned(x.data) && x.shape[x.ndim - 1] % pack == 0;
    for (int i = 0; i < x.ndim - 1; i++) aligned = aligned && (x.shape[i] <= 1 || x.stride[i] % pack == 0);
    return aligned;
}

template <class T> static inline T *data_of(Tensor x) {
    return static_cast<T *>(x.data);
}

/* What a launch can have in its first dimension; the others end at MAX_GRID_Y. */
constexpr int64_t MAX_GRID_Y = 65535;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* A block for rows of n elements, of which a thread takes some at a time: as many threads along a row as it keeps busy,
 * a power of two, and the others across rows. */
static inline dim3 block_of_rows(unsigned threads, int64_t n, int at_a_time) {
    unsigned along = 1;
    while (along < threads && along * at_a_time < n) along *= 2;
    return dim3(along, threads / along);
}

/* A size that kernels count in an int: rows, columns, blocks. Offsets are int64_t everywhere. */
static inline int int_of(int64_t n) {
    CHECK(n <= INT32_MAX, "%lld is too large", static_cast<long long>(n));
    return static_cast<int>(n);
}

/* ---- elements --------------------------------------------------------------------------------------------------- */

CU_DEVICE float to_float(float x) {
    return x;
}
CU_DEVICE float to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

/* Rounds to nearest, ties to even. */
template <class T> CU_DEVICE T from_float(float x) {
    if constexpr (std::is_same<T, float>::value)
        return x;
    else
        return __float2bfloat16_rn(x);
}

/* N neighbouring elements, as they are in memory: 16 bytes in one access, or a single element. */
template <class T, int N = PACK_SIZE<T>> struct Pack { T item[N]; };

template <int N, class T> CU_DEVICE Pack<T, N> load_pack(const T *from) {
    Pack<T, N> pack;
    if constexpr (N == 1) {
        pack.item[0] = *from;
    } else {
        static_assert(sizeof(pack) == sizeof(uint4), "a pack is 16 bytes");
        uint4 bits = *reinterpret_cast<const uint4 *>(from);
        memcpy(&pack, &bits, sizeof bits);
    }
    return pack;
}

template <class T, int N> CU_DEVICE void store_pack(T *to, const Pack<T, N> &pack) {
    if constexpr (N == 1) {
        *to = pack.item[0];
    } else {
        static_assert(sizeof(pack) == sizeof(uint4), "a pack is 16 bytes");
        uint4 bits;
        memcpy(&bits, &pack, sizeof bits);
        *reinterpret_cast<uint4 *>(to) = bits;
    }
}

/* A pack in 4 registers, for what is used much later: compilers spread a Pack's items over one register each. */
template <class T, int N> struct PackedRegisters {
    uint4 bits;

    __device__ PackedRegisters() {}
    __device__ explicit PackedRegisters(const T *from) : bits(*reinterpret_cast<const uint4 *>(from)) {}

    __device__ float operator[](int k) const {
        const uint32_t word[4] = {bits.x, bits.y, bits.z, bits.w};
        if constexpr (sizeof(T) == sizeof(float)) return __uint_as_float(word[k]);
        return __uint_as_float(k % 2 ? word[k / 2] & 0xffff0000u : word[k / 2] << 16);
    }
};

template <class T> struct PackedRegisters<T, 1> {
    T item;

    __device__ PackedRegisters() {}
    __device__ explicit PackedRegisters(const T *from) : item(*from) {}

    __device__ float operator[](int) const { return to_float(item); }
};

/* N neighbouring elements as fp32: one element, or packs one after another. */
template <int N, class T> CU_DEVICE void load_floats(float (&value)[N], const T *from) {
    constexpr int SIZE = N == 1 ? 1 : PACK_SIZE<T>;
#pragma unroll
    for (int i = 0; i < N; i += SIZE) {
        Pack<T, SIZE> pack = load_pack<SIZE>(from + i);
#pragma unroll
        for (int k = 0; k < SIZE; k++) value[i + k] = to_float(pack.item[k]);
    }
}

/* To global memory. By the intrinsic, which is one instruction: an assignment is cut up where the compiler can merge
 * one of its parts with a store on another path. */
template <int N, class T> CU_DEVICE void store_floats(T *to, const float (&value)[N]) {
    constexpr int SIZE = PACK_SIZE<T>;
    if constexpr (N == 1) {
        *to = from_float<T>(value[0]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += SIZE) {
            Pack<T> pack;
            uint4 bits;
#pragma unroll
            for (int k = 0; k < SIZE; k++) pack.item[k] = from_float<T>(value[i + k]);
            memcpy(&bits, &pack, sizeof bits);
            __stwb(reinterpret_cast<uint4 *>(to + i), bits);
        }
    }
}

/* to[k] += value[k], in global or shared memory. */
template <int N> CU_DEVICE void add_floats(float *to, const float (&value)[N]) {
    constexpr int SIZE = N == 1 ? 1 : PACK_SIZE<float>;
#pragma unroll
    for (int i = 0; i < N; i += SIZE) {
        Pack<float, SIZE> sum = load_pack<SIZE>(to + i);
#pragma unroll
        for (int k = 0; k < SIZE; k++) sum.item[k] += value[i + k];
        store_pack(to + i, sum);
    }
}

/* ---- functions -------------------------------------------------------------------------------------------------- */

/* e^x within 2 + |x| / 2 units in the last place; 0 for what would be subnormal. */
CU_DEVICE float fast_exp(float x) {
    return __expf(x);
}

CU_DEVICE float fast_sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + fast_exp(-x));
}

/* The larger; NaN if either is. */
template <class T> CU_DEVICE T max_keeping_nan(T a, T b) {
    return a > b || a != a ? a : b;
}
CU_DEVICE float max_keeping_nan(float a, float b) {
    return max_nan(a, b);
}

/* ---- reductions ------------------------------------------------------------------------------------------------- */

struct Sum {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};

struct MaxKeepingNan {
    template <class T> __device__ T operator()(T a, T b) const { return max_keeping_nan(a, b); }
};

/* Over each group of LANES neighbouring threads of a warp, to all of them. The whole warp takes part. */
template <int LANES = WARP, class T, class Op> CU_DEVICE T warp_reduce(T value, Op op) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        value = op(value, __shfl_xor_sync(FULL_WARP, value, distance));
    return value;
}

template <int LANES = WARP, class T> CU_DEVICE T warp_sum(T value) {
    return warp_reduce<LANES>(value, Sum());
}

template <int LANES = WARP, class T> CU_DEVICE T warp_max(T value) {
    return warp_reduce<LANES>(value, MaxKeepingNan());
}

CU_DEVICE int thread_in_block() {
    return static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y);
}

CU_DEVICE int threads_in_block() {
    return static_cast<int>(blockDim.x * blockDim.y);
}

/* Over the block's threads, a multiple of a warp, to all of them. Two barriers. */
template <class T, class Op> CU_DEVICE T block_reduce(T value, T identity, Op op) {
    CU_SHARED(T, of_warp, [MAX_WARPS]);
    int lane = thread_in_block() % WARP, warps = threads_in_block() / WARP;
    value = warp_reduce(value, op);
    if (lane == 0) of_warp[thread_in_block() / WARP] = value;
    __syncthreads();
    value = warp_reduce(lane < warps ? of_warp[lane] : identity, op);
    __syncthreads(); /* the next reduction writes to of_warp again */
    return value;
}

template <class T> CU_DEVICE T block_sum(T value) {
    return block_reduce(value, T(0), Sum());
}

CU_DEVICE float block_max(float value) {
    return block_reduce(value, -INFINITY, MaxKeepingNan());
}
