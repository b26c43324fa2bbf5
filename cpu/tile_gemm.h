/* Products of small tiles that lie in cache, of fp32 or bf16 numbers with fp32 sums: what attention is made of.
 *
 *      C (TILE_ROWS,n) = or += A (TILE_ROWS,k) B (k,n)
 *
 *                  corner      n
 *               +-----+-----+---
 *             k |     |     |   B
 *               +-----+-----+---
 *          k
 *      +-----+  +-----+-----+---
 *    8 |  A  |  |  C  |     |
 *      +-----+  +-----+-----+---
 *
 * The corner of C that is being computed stays in registers: TILE_ROWS x TILE_VECTORS vectors, enough independent sums
 * to hide the latency of a multiply-add. With 8 x 2 a step of k costs 2 loads from B and 8 broadcasts from A for 16
 * multiply-adds. Measured on Zen 4 with AVX-512, in percent of the peak: 91 (8 x 3: 88, 12 x 2: 87, 4 x 4: 76,
 * 6 x 4: 66).
 *
 * A and B are made of words of 32 bits. A word holds `depth` numbers that follow each other along k: one fp32 or, where
 * the processor multiplies and adds pairs (AVX512_BF16), two bf16, the first in the lower half. So a step of k does
 * twice the work for the same loads and instructions. Sums are fp32, and nothing else distinguishes the two.
 *
 *      A, bf16:  a00 a01 | a02 a03 | ...        B, bf16:  b00 b10 | b01 b11 | ...
 *                a10 a11 | a12 a13 | ...                  b20 b30 | b21 b31 | ...
 *
 * A is read one word at a time, so it may have any strides: a transposed A costs nothing. B and C are read and written
 * in whole vectors: their rows are aligned to one and have room for n rounded up to TILE_LANES; what the room holds
 * stays there and reaches no other column. Numbers are added in the order of k. If k is odd, the half words that are
 * left over hold 0.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "base/integer.h"
#include "cpu/simd.h"
#include "ops/key_range.h"

/* A vector is one register: gcc splits wider ones badly. AVX2 and SSE have 16 of them, and the corner shrinks so as not
 * to spill. */
#if defined(__AVX512F__)
enum { TILE_LANES = 16, TILE_ROWS = 8, TILE_VECTORS = 2 };
#elif defined(__AVX__)
enum { TILE_LANES = 8, TILE_ROWS = 4, TILE_VECTORS = 2 };
#elif defined(__aarch64__)
enum { TILE_LANES = 4, TILE_ROWS = 8, TILE_VECTORS = 2 };
#else
enum { TILE_LANES = 4, TILE_ROWS = 4, TILE_VECTORS = 2 };
#endif
typedef float TileVector __attribute__((vector_size(4 * TILE_LANES), may_alias));
typedef uint32_t TileBits __attribute__((vector_size(4 * TILE_LANES), may_alias));
typedef float TileWord __attribute__((may_alias)); /* an fp32, or the bits of two bf16 */

#ifdef __AVX512BF16__
enum { TILE_DEPTH_F32 = 1, TILE_DEPTH_BF16 = 2 };
#else
enum { TILE_DEPTH_F32 = 1, TILE_DEPTH_BF16 = 1 };
#endif

/* Numbers in a word of operands that come from tensors of this type. */
static inline int tile_depth(DType dtype) {
    return dtype == DTYPE_BF16 ? TILE_DEPTH_BF16 : TILE_DEPTH_F32;
}

/* sum + a b, for one word of A and a vector of words of B. */
INLINE TileVector tile_multiply_add(int depth, TileVector sum, TileWord a, TileVector b) {
#ifdef __AVX512BF16__
    if (depth == TILE_DEPTH_BF16)
        return (TileVector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
#endif
    (void)depth;
    return sum + a * b;
}

/* fp32 to bf16, to nearest even; n is rounded up to TILE_LANES. One instruction instead of bf16_from_f32's ten. */
static inline void tile_narrow(bf16 *to, const float *from, int64_t n) {
#ifdef __AVX512BF16__
    for (int64_t c = 0; c < n; c += TILE_LANES)
        _mm256_storeu_si256((__m256i_u *)(to + c), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + c)));
#else
    for (int64_t c = 0; c < n; c++) to[c] = bf16_from_f32(from[c]);
#endif
}

/* Word (r,c) is data[r * row + c * column]. */
typedef struct {
    const TileWord *data;
    int64_t row, column;
} TileOperand;

typedef enum { TILE_SET, TILE_ADD } TileMode; /* C = A B, C += A B */

/* One corner of C; `vectors` wide, k in words. Inlined with constants, so that all loops but the one over k unroll. */
INLINE void tile_corner(int depth, float *c, int64_t ldc, TileOperand a, const TileWord *b, int64_t ldb, int64_t k,
                        TileMode mode, int vectors) {
    TileVector sum[TILE_ROWS][TILE_VECTORS];
    for (int r = 0; r < TILE_ROWS; r++)
        for (int v = 0; v < vectors; v++)
            sum[r][v] = mode == TILE_ADD ? ((const TileVector *)(c + r * ldc))[v] : (TileVector){0};
    for (int64_t i = 0; i < k; i++) {
        const TileVector *bi = (const TileVector *)(b + i * ldb);
        for (int r = 0; r < TILE_ROWS; r++)
            for (int v = 0; v < vectors; v++)
                sum[r][v] = tile_multiply_add(depth, sum[r][v], a.data[r * a.row + i * a.column], bi[v]);
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (int v = 0; v < vectors; v++) ((TileVector *)(c + r * ldc))[v] = sum[r][v];
}

/* Full corners, then what is left over in corners one vector wide. */
INLINE void tile_corners(int depth, float *c, int64_t ldc, TileOperand a, const TileWord *b, int64_t ldb, int64_t n,
                         int64_t k, TileMode mode) {
    enum { WIDE = TILE_VECTORS * TILE_LANES };
    int64_t j = 0;
    for (; j + WIDE <= n; j += WIDE) tile_corner(depth, c + j, ldc, a, b + j, ldb, k, mode, TILE_VECTORS);
    for (; j < n; j += TILE_LANES) tile_corner(depth, c + j, ldc, a, b + j, ldb, k, mode, 1);
}

/* The whole product; leading dimensions in words, k in numbers. */
static void tile_product(int depth, float *c, int64_t ldc, TileOperand a, const TileWord *b, int64_t ldb, int64_t n,
                         int64_t k, TileMode mode) {
    if (depth == TILE_DEPTH_F32)
        tile_corners(TILE_DEPTH_F32, c, ldc, a, b, ldb, n, k, mode);
    else
        tile_corners(TILE_DEPTH_BF16, c, ldc, a, b, ldb, n, (k + 1) / TILE_DEPTH_BF16, mode);
}

/* Which elements a square A on the diagonal of attention has. Rows are queries and terms the keys that they see: the
 * lower triangle; or rows are keys and terms the queries that see them: the upper. */
typedef enum { TILE_LOWER, TILE_UPPER } TileTriangle;

/* The bits of word y that hold numbers in [first, end). */
INLINE uint32_t tile_bits_within(int depth, int64_t y, int64_t first, int64_t end) {
    if (depth == 1) return UINT32_MAX;
    return (2 * y >= first ? 0x0000ffffu : 0) | (2 * y + 1 < end ? 0xffff0000u : 0);
}

INLINE void tile_triangle(int depth, float *c, int64_t ldc, TileOperand a, const TileWord *b, int64_t ldb, int64_t n,
                          int64_t k, TileTriangle triangle) {
    for (int64_t x = 0; x < TILE_ROWS; x++) {
        KeyRange seen = triangle == TILE_LOWER ? keys_of_query(x) : queries_of_key(x, k);
        int64_t first = seen.first, end = smaller(seen.end, k);
        for (int64_t j = 0; j < n; j += TILE_LANES) {
            TileVector sum = *(const TileVector *)(c + x * ldc + j);
            for (int64_t y = first / depth; y * depth < end; y++) {
                uint32_t keep = tile_bits_within(depth, y, first, end);
                TileWord ay = float_from_bits(bits_from_float(a.data[x * a.row + y * a.column]) & keep);
                TileVector by = (TileVector)(*(const TileBits *)(b + y * ldb + j) & keep);
                sum = tile_multiply_add(depth, sum, ay, by);
            }
            *(TileVector *)(c + x * ldc + j) = sum;
        }
    }
}

/* C (TILE_ROWS,n) += A (TILE_ROWS,k) B (k,n), k <= TILE_ROWS, where A is a triangle. What lies outside it is left out,
 * not multiplied as 0, which would carry a NaN or an infinity in B to rows of C that must not see it; if that is one
 * half of a word, it is 0 in both words. */
static void tile_triangle_add(int depth, float *c, int64_t ldc, TileOperand a, const TileWord *b, int64_t ldb,
                              int64_t n, int64_t k, TileTriangle triangle) {
    if (depth == TILE_DEPTH_F32)
        tile_triangle(TILE_DEPTH_F32, c, ldc, a, b, ldb, n, k, triangle);
    else
        tile_triangle(TILE_DEPTH_BF16, c, ldc, a, b, ldb, n, k, triangle);
}
