/* What attention's two passes share: how heads lie in memory and in shared memory, and products of 16 x 16 blocks.
 *
 * A kernel takes one head at a time, in tiles of rows: 64 to 128 queries, 16 to 128 keys. A tile is P columns wide, P
 * being the larger of the head sizes D (of q and k) and E (of v and out) rounded up to one for which a kernel is
 * compiled. What a tile has beyond T rows and D or E columns is 0, so that products need no bounds.
 *
 *      global: head h of (B,T,H,D)          shared: a tile
 *
 *           D                                  D     P   P+8
 *        +-----+  . . .                      +-----+---+--+
 *        |     |  other heads, any strides   |     | 0 |  |    rows are P+8 numbers apart: an odd number of 16-byte
 *      T |     |  but the last               |     |   |  |    pieces, so that the 8 rows which one part of an ldmatrix
 *        |     |                             +-----+ 0 |  |    reads lie in different banks
 *        +-----+                             |  0      |  |
 *                                            +---------+--+
 *
 * All products are mma.m16n8k16 (cuda/ptx.cuh draws the fragments): bf16 times bf16, summed in fp32. A lane has of each
 * 16 x 8 block C the columns 2t and 2t + 1 of the rows g and g + 8, for lane = 4 g + t. Two neighbouring Cs, rounded to
 * bf16, are an A of the next product: P = softmax(Q Kᵀ) stays in registers for P V.
 *
 * The diagonal. Tiles that no query of a warp sees are skipped, and so are 16 x 16 blocks; what remains are the blocks
 * on the diagonal, in which weights of unseen keys are 0. But 0 times NaN is NaN, and a NaN must reach no query that
 * does not see it: multiply_triangle.
 *
 * Letters: B batch, T context, H query heads, K key heads, D size of q and k, E size of v and out.
 */
#pragma once

#include <type_traits>

#include "cuda/cuda.h"
#include "cuda/device.cuh"
#include "cuda/ptx.cuh"
#include "ops/key_range.h"

enum { MMA_ROWS = 16 }; /* a block: rows of A, rows of B */

/* ---- what a kernel is given ------------------------------------------------------------------------------------- */

/* A (B,T,heads,size) tensor. Strides in elements. */
struct HeadTensor {
    void *data;
    int64_t batch_stride, row_stride, head_stride;
};

struct AttentionShape {
    int B, T, H, K, D, E;
    float scale, softcap; /* softcap 0: none */
};

static inline HeadTensor head_tensor(Tensor x) {
    return {x.data, x.stride[0], x.stride[1], x.stride[2]};
}

static inline AttentionShape attention_shape(Tensor q, Tensor k, Tensor v, AttentionParams p) {
    return {(int)q.shape[0], (int)q.shape[1], (int)q.shape[2], (int)k.shape[2],
            (int)q.shape[3], (int)v.shape[3], p.scale,         p.softcap};
}

enum { MAX_PADDED_HEAD = 256 };

/* f(P), as std::integral_constant, for head sizes up to MAX_PADDED_HEAD. */
template <class F> static void by_padded_head_size(int64_t size, F f) {
    if (size <= 32) return f(std::integral_constant<int, 32>());
    if (size <= 64) return f(std::integral_constant<int, 64>());
    if (size <= 96) return f(std::integral_constant<int, 96>());
    if (size <= 128) return f(std::integral_constant<int, 128>());
    if (size <= 192) return f(std::integral_constant<int, 192>());
    return f(std::integral_constant<int, MAX_PADDED_HEAD>());
}

/* Where row 0 of one head lies; row i is i * x.row_stride further. */
template <class T> CU_DEVICE T *head_of(const HeadTensor &x, int b, int head) {
    return (T *)x.data + b * x.batch_stride + head * x.head_stride;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;

/* To about 1e-7 absolutely: a logit's error is that times the softcap. */
CU_DEVICE float tanh_approximate(float x) {
    return 1.0f - __fdividef(2.0f, 1.0f + exp2_approximate(2.0f * LOG2_E * x));
}

CU_DEVICE uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

/* A row of C lies in four lanes: warp_sum<ROW_LANES>. */
enum { ROW_LANES = 4 };

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

__host__ __device__ constexpr int tile_stride(int P) {
    return P + 8;
}

__host__ __device__ constexpr int tile_elements(int rows, int P) {
    return rows * tile_stride(P);
}

constexpr int PIECE = 16 / sizeof(__nv_bfloat16);

/* The first `count` numbers from `source`, then zeros. */
CU_DEVICE Pack<__nv_bfloat16, PIECE> load_piece_by_element(const __nv_bfloat16 *source, int count) {
    Pack<__nv_bfloat16, PIECE> piece;
#pragma unroll
    for (int c = 0; c < PIECE; c++) piece.item[c] = c < count ? source[c] : __ushort_as_bfloat16(0);
    return piece;
}

/* Starts to copy rows [first, first + ROWS) of a head (T,size) into a tile, by THREADS threads of which this is number
 * `thread`. Complete after cp_async_commit, cp_async_wait and a barrier. ALIGNED: rows_are_aligned (cuda/device.cuh).
 */
template <int ROWS, int P, int THREADS, bool ALIGNED>
CU_DEVICE void load_tile(__nv_bfloat16 *tile, const __nv_bfloat16 *head, int64_t row_stride, int first, int T, int size,
                         int thread) {
    constexpr int PIECES = P / PIECE, STEP = THREADS / PIECES; /* rows at a time */
    int row = thread / PIECES, column = thread % PIECES * PIECE;
    const __nv_bfloat16 *source = head + (first + row) * row_stride + column;
    __nv_bfloat16 *target = tile + row * tile_stride(P) + column;
    if (row >= STEP) return;
#pragma unroll 1 /* unrolled, all rows' addresses would be kept in registers */
    for (; row < ROWS; row += STEP, source += STEP * row_stride, target += STEP * tile_stride(P)) {
        int count = first + row < T ? size - column : 0;
        if (ALIGNED)
            cp_async16_or_zero(target, source, count > 0);
        else
            store_pack(target, load_piece_by_element(source, count));
    }
}

/* Copies a tile's rows [0, ROWS) to rows [first, first + ROWS) of a head (T,size), as far as those exist. */
template <int ROWS, int P, int THREADS, bool ALIGNED>
CU_DEVICE void store_tile(__nv_bfloat16 *head, int64_t row_stride, const __nv_bfloat16 *tile, int first, int T,
                          int size, int thread) {
    constexpr int PIECES = P / PIECE, STEP = THREADS / PIECES;
    int row = thread / PIECES, column = thread % PIECES * PIECE, count = min(PIECE, size - column);
    const __nv_bfloat16 *source = tile + row * tile_stride(P) + column;
    __nv_bfloat16 *target = head + (first + row) * row_stride + column;
    if (row >= STEP || count <= 0) return;
#pragma unroll 1
    for (; row < ROWS && first + row < T; row += STEP, source += STEP * tile_stride(P), target += STEP * row_stride)
        if (ALIGNED)
            store_pack(target, load_pack<PIECE>(source));
        else
            for (int c = 0; c < count; c++) target[c] = source[c];
}

/* ---- fragments -------------------------------------------------------------------------------------------------- */

/* Each reads the 16 x 16 block x of a tile whose rows are `stride` numbers apart. fragment_b and fragment_b_transposed
 * give two Bs: columns 0 to 7 in b[0] and b[1], columns 8 to 15 in b[2] and b[3]. Lane l tells ldmatrix where row l % 8
 * of its 8 x 8 part number l / 8 begins. */

/* A = x. */
CU_DEVICE void fragment_a(uint32_t (&a)[4], const __nv_bfloat16 *x, int stride) {
    int lane = threadIdx.x % WARP;
    ldmatrix_x4(a, x + lane % 16 * stride + lane / 16 * 8);
}

/* A = xᵀ. */
CU_DEVICE void fragment_a_transposed(uint32_t (&a)[4], const __nv_bfloat16 *x, int stride) {
    int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(a, x + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
}

/* B = x: rows of x are rows of B. */
CU_DEVICE void fragment_b(uint32_t (&b)[4], const __nv_bfloat16 *x, int stride) {
    int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(b, x + lane % 16 * stride + lane / 16 * 8);
}

/* B = xᵀ: rows of x are columns of B. */
CU_DEVICE void fragment_b_transposed(uint32_t (&b)[4], const __nv_bfloat16 *x, int stride) {
    int lane = threadIdx.x % WARP;
    ldmatrix_x4(b, x + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
}

/* Two neighbouring blocks of C, rounded, are an A. */
CU_DEVICE void fragment_a_from_c(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack_bf16(left[0], left[1]);
    a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]);
    a[3] = pack_bf16(right[2], right[3]);
}

/* left += a times the first B, right += a times the second. */
CU_DEVICE void multiply_block(float (&left)[4], float (&right)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    mma_m16n8k16_bf16(left, a, b, left);
    mma_m16n8k16_bf16(right, a, b + 2, right);
}

/* ---- products --------------------------------------------------------------------------------------------------- */

/* c (16 M x P) += a (16 M x 16) · x, for x the 16 rows of a tile of width P that start there. */
template <int M, int P>
CU_DEVICE void multiply_slice(float (*c)[P / 8][4], const uint32_t (*a)[4], const __nv_bfloat16 *x) {
#pragma unroll
    for (int n = 0; n < P / 8; n += 2) {
        uint32_t b[4];
        fragment_b(b, x + n * 8, tile_stride(P));
#pragma unroll
        for (int m = 0; m < M; m++) multiply_block(c[m][n], c[m][n + 1], a[m], b);
    }
}

CU_DEVICE bool pair_is_finite(uint32_t pair) {
    return (pair & 0x7f80u) != 0x7f80u && (pair & 0x7f800000u) != 0x7f800000u;
}

/* Of 16 rows of a tile of width P: all of the warp's lanes get the same answer. */
template <int P> CU_DEVICE bool slice_is_finite(const __nv_bfloat16 *x) {
    int lane = thread_anew() % WARP;
    const __nv_bfloat16 *row = x + lane % 16 * tile_stride(P) + lane / 16 * 8;
    bool finite = true;
#pragma unroll 2 /* no more of it in registers at a time */
    for (int c = 0; c < P; c += 16) {
        uint4 piece = *(const uint4 *)(row + c);
        finite = finite && pair_is_finite(piece.x) && pair_is_finite(piece.y) && pair_is_finite(piece.z) &&
                 pair_is_finite(piece.w);
    }
    return __all_sync(0xffffffffu, finite);
}

/* What row i of a diagonal block sees of another operand's rows. */
enum Triangle { SEES_UP_TO_ITSELF /* a query, of keys */, SEES_FROM_ITSELF /* a key, of queries */ };

/* Whether an own row and a row of the other side are a query and a key that it sees, whichever is which. */
template <Triangle SIGHT> CU_DEVICE bool is_seen(int own, int other) {
    return SIGHT == SEES_UP_TO_ITSELF ? query_sees(own, other) : query_sees(other, own);
}

/* Keeps of rows k and k + 1 of B what `row` of A sees. */
template <Triangle SIGHT> CU_DEVICE uint32_t seen_pair(uint32_t pair, int k, int row) {
    return pair & ((is_seen<SIGHT>(row, k) ? 0x0000ffffu : 0u) | (is_seen<SIGHT>(row, k + 1) ? 0xffff0000u : 0u));
}

/* c (16 x P) += a · x for a block on the diagonal where x holds infinities or NaNs, which hardly ever happens: one row
 * at a time is multiplied by what it sees. */
template <Triangle SIGHT, int P>
CU_DEVICE void multiply_row_by_row(float (&c)[P / 8][4], const uint32_t (&a)[4], const __nv_bfloat16 *x) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll 1
    for (int row = 0; row < MMA_ROWS; row++) {
#pragma unroll
        for (int n = 0; n < P / 8; n += 2) {
            uint32_t b[4];
            float left[4] = {}, right[4] = {};
            __syncwarp(); /* or else all of x is loaded before the first product, into registers that are not free */
            fragment_b(b, x + n * 8, tile_stride(P));
#pragma unroll
            for (int i = 0; i < 4; i++) b[i] = seen_pair<SIGHT>(b[i], 2 * t + i % 2 * 8, row);
            multiply_block(left, right, a, b);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool own = row == g + i / 2 * 8; /* others' sums may hold 0 times NaN */
                c[n][i] += own ? left[i] : 0;
                c[n + 1][i] += own ? right[i] : 0;
            }
        }
    }
}

/* c (16 x P) += a · x as multiply_slice does, for a block on the diagonal: a is 0 where its row does not see x's. */
template <Triangle SIGHT, int P>
CU_DEVICE void multiply_triangle(float (&c)[P / 8][4], const uint32_t (&a)[4], const __nv_bfloat16 *x) {
    if (slice_is_finite<P>(x))
        multiply_slice<1, P>(&c, &a, x);
    else
        multiply_row_by_row<SIGHT, P>(c, a, x);
}
