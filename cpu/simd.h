/* Elementwise arithmetic that compilers vectorise, written once for f32 and bf16 rows.
 *
 * A row function is INLINE and takes its dtype as the first argument. BY_DTYPE calls it with a constant there, so that
 * the compiler makes one copy per dtype in which load() and store() are single conversions:
 *
 *      INLINE void scale_row(DType t, void *x, int64_t n, float factor) {
 *      #pragma omp simd
 *          for (int64_t i = 0; i < n; i++) store(t, x, i, factor * load(t, x, i));
 *      }
 *      ...
 *      BY_DTYPE(x.dtype, scale_row, x.data, n, factor);
 *
 * Nothing here branches or calls a library, and there are no intrinsics: the same source serves AVX-512, AVX2, SSE2 and
 * NEON. Every function keeps NaN.
 */
#pragma once

#include <math.h>

#include "ops/tensor.h"

#define INLINE static inline __attribute__((always_inline))

/* function(DTYPE_F32, ...) or function(DTYPE_BF16, ...), each specialised. */
#define BY_DTYPE(dtype, function, ...)                                                                                 \
    ((dtype) == DTYPE_F32 ? function(DTYPE_F32, __VA_ARGS__) : function(DTYPE_BF16, __VA_ARGS__))

/* The same of two dtypes. */
#define BY_DTYPES(first, second, function, ...)                                                                        \
    ((first) == DTYPE_F32 ? BY_SECOND(second, function, DTYPE_F32, __VA_ARGS__)                                        \
                          : BY_SECOND(second, function, DTYPE_BF16, __VA_ARGS__))
#define BY_SECOND(dtype, function, first, ...)                                                                         \
    ((dtype) == DTYPE_F32 ? function(first, DTYPE_F32, __VA_ARGS__) : function(first, DTYPE_BF16, __VA_ARGS__))

/* ---- rows ------------------------------------------------------------------------------------------------------- */

INLINE float load(DType t, const void *row, int64_t i) {
    return t == DTYPE_F32 ? ((const float *)row)[i] : bf16_to_f32(((const bf16 *)row)[i]);
}

INLINE void store(DType t, void *row, int64_t i, float value) {
    if (t == DTYPE_F32)
        ((float *)row)[i] = value;
    else
        ((bf16 *)row)[i] = bf16_from_f32(value);
}

/* The address of element i. */
INLINE void *at(DType t, const void *base, int64_t i) {
    return (char *)(uintptr_t)base + i * (t == DTYPE_BF16 ? 2 : 4);
}

/* sum += x */
INLINE void accumulate_row(DType t, float *sum, const void *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) sum[i] += load(t, x, i);
}

INLINE float squares_of_row(DType t, const void *x, int64_t n) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; i++) squares += load(t, x, i) * load(t, x, i);
    return squares;
}

/* ---- functions -------------------------------------------------------------------------------------------------- */

/* a b + c: one instruction where there is one (ISO C mode keeps gcc from fusing by itself), never a call. */
INLINE float mul_add(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

INLINE float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* An integer that is ordered as the numbers are (below 0 the bits without the sign count downwards), and back.
 * Compilers vectorise the maximum of integers, where for the sake of NaN they would not that of floats. */
INLINE int32_t order_from_float(float value) {
    int32_t bits = (int32_t)bits_from_float(value);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

INLINE float float_from_order(int32_t order) {
    return float_from_bits((uint32_t)(order ^ ((order >> 31) & INT32_MAX)));
}

/* e^x within 2 ulp; 0 below -86.98 (no subnormals), infinity above 88.7228.
 * x = n ln 2 + r with |r| <= ln 2 / 2; 2 e^r by Cephes' polynomial (its coefficients doubled), times 2^(n-1), so that
 * neither n = 128, which must overflow gracefully, nor n = -126, which becomes 0, leaves the exponent's 8 bits. */
INLINE float fast_expf(float x) {
    const float shifter = 12582912.0f; /* 1.5 * 2^23: adding it leaves round(x) in the mantissa's low bits */
    x = x < -87.5f ? -87.5f : x;       /* false for NaN, which passes */
    x = x > 88.8f ? 88.8f : x;
    float shifted = mul_add(x, 1.44269504f, shifter);
    float n = shifted - shifter;
    float r = mul_add(n, -0.693359375f, x); /* ln 2 in two parts */
    r = mul_add(n, 2.12194440e-4f, r);
    float p = 2 * 1.9875691500e-4f;
    p = mul_add(p, r, 2 * 1.3981999507e-3f);
    p = mul_add(p, r, 2 * 8.3334519073e-3f);
    p = mul_add(p, r, 2 * 4.1665795894e-2f);
    p = mul_add(p, r, 2 * 1.6666665459e-1f);
    p = mul_add(p, r, 2 * 5.0000001201e-1f);
    p = mul_add(p, r, 2.0f);
    p = mul_add(p, r, 2.0f);
    uint32_t exponent = bits_from_float(shifted) - bits_from_float(shifter) + 126u;
    return p * float_from_bits(exponent << 23);
}

INLINE float fast_sigmoidf(float x) {
    return 1.0f / (1.0f + fast_expf(-x));
}

/* Within 3 ulp: (1 - e^-2|x|) / (1 + e^-2|x|), and Cephes' odd polynomial where that would cancel. */
INLINE float fast_tanhf(float x) {
    float a = fabsf(x), z = x * x;
    float e = fast_expf(-2.0f * a);
    float large = copysignf((1.0f - e) / (1.0f + e), x);
    float p = -5.70498872745e-3f;
    p = mul_add(p, z, 2.06390887954e-2f);
    p = mul_add(p, z, -5.37397155531e-2f);
    p = mul_add(p, z, 1.33314422036e-1f);
    p = mul_add(p, z, -3.33332819422e-1f);
    float small = mul_add(p * z, x, x);
    return a < 0.625f ? small : large;
}
