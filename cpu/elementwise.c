/* Ops on single elements: each is one sweep over memory, and bound by it. Outputs may be inputs. Beside them the sum
 * over heads, whose output may not. */
#include "cpu/cpu.h"
#include "cpu/simd.h"
#include "cpu/sweep.h"

/* ---- moving ----------------------------------------------------------------------------------------------------- */

INLINE void fill_row(DType t, void *x, int64_t n, float value) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(t, x, i, value);
}

void cpu_fill(Backend *be, Tensor x, float value) {
    FOR_CHUNKS(c, BY_DTYPE(x.dtype, fill_row, c.row[0], c.n, value), x);
}

INLINE void convert_row(DType from, DType to, void *dst, const void *src, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(to, dst, i, load(from, src, i));
}

static void copy_row(DType from, DType to, void *dst, const void *src, int64_t n) {
    if (from == to)
        memcpy(dst, src, (size_t)(n * dtype_size(from)));
    else if (from == DTYPE_F32)
        convert_row(DTYPE_F32, DTYPE_BF16, dst, src, n);
    else
        convert_row(DTYPE_BF16, DTYPE_F32, dst, src, n);
}

void cpu_copy(Backend *be, Tensor dst, Tensor src) {
    FOR_CHUNKS(c, copy_row(src.dtype, dst.dtype, c.row[0], c.row[1], c.n), dst, src);
}

INLINE void scale_row(DType t, void *x, int64_t n, float factor) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(t, x, i, factor * load(t, x, i));
}

void cpu_scale(Backend *be, Tensor x, float factor) {
    FOR_CHUNKS(c, BY_DTYPE(x.dtype, scale_row, c.row[0], c.n, factor), x);
}

/* A piece of one row at a time, so that its sums stay in fp32 and in the L1 cache. */
enum { SUM_PIECE = 256 };

INLINE void sum_heads_row(DType t, void *out, const void *x, int64_t heads, int64_t stride, int64_t n) {
    float sum[SUM_PIECE];
    for (int64_t first = 0; first < n; first += SUM_PIECE) {
        int64_t count = n - first < SUM_PIECE ? n - first : SUM_PIECE;
        memset(sum, 0, sizeof sum);
        for (int64_t h = 0; h < heads; h++) accumulate_row(t, sum, at(t, x, h * stride + first), count);
#pragma omp simd
        for (int64_t i = 0; i < count; i++) store(t, out, first + i, sum[i]);
    }
}

void cpu_sum_heads(Backend *be, Tensor out, Tensor x) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < x.shape[0]; n++)
        BY_DTYPE(x.dtype, sum_heads_row, at(x.dtype, out.data, n * out.stride[0]), at(x.dtype, x.data, n * x.stride[0]),
                 x.shape[1], x.stride[1], x.shape[2]);
}

/* ---- gelu ------------------------------------------------------------------------------------------------------- */

/* With u = sqrt(2/pi) (x + 0.044715 x³):  0.5 (1 + tanh u) = sigmoid(2u), one exponential and no cancellation. */
static const float GELU_LINEAR = 2 * 0.7978845608f;            /* of 2u */
static const float GELU_CUBIC = 2 * 0.7978845608f * 0.044715f; /* of 2u */

INLINE void gelu_row(DType t, void *out, const void *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float v = load(t, x, i);
        store(t, out, i, v * fast_sigmoidf(v * mul_add(GELU_CUBIC, v * v, GELU_LINEAR)));
    }
}

void cpu_gelu(Backend *be, Tensor out, Tensor x) {
    FOR_CHUNKS(c, BY_DTYPE(x.dtype, gelu_row, c.row[0], c.row[1], c.n), out, x);
}

/* (x s(2u))' = s + x s (1-s) (2u)' */
INLINE void gelu_grad_row(DType t, void *dx, const void *dout, const void *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float v = load(t, x, i), square = v * v;
        float s = fast_sigmoidf(v * mul_add(GELU_CUBIC, square, GELU_LINEAR));
        float slope = mul_add(3 * GELU_CUBIC, square, GELU_LINEAR);
        store(t, dx, i, load(t, dout, i) * mul_add(v * slope, s * (1.0f - s), s));
    }
}

void cpu_gelu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x) {
    FOR_CHUNKS(c, BY_DTYPE(x.dtype, gelu_grad_row, c.row[0], c.row[1], c.row[2], c.n), dx, dout, x);
}

/* ---- swiglu ----------------------------------------------------------------------------------------------------- */

INLINE void swiglu_row(DType t, void *out, const void *gate, const void *up, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float g = load(t, gate, i);
        store(t, out, i, g * fast_sigmoidf(g) * load(t, up, i));
    }
}

void cpu_swiglu(Backend *be, Tensor out, Tensor x) {
    int64_t F = out.shape[1];
    FOR_CHUNKS(c, BY_DTYPE(x.dtype, swiglu_row, c.row[0], c.row[1], c.row[2], c.n), out, tensor_slice(x, 1, 0, F),
               tensor_slice(x, 1, F, F));
}

/* silu'(g) = s + g s (1-s) with s = sigmoid(g). */
INLINE void swiglu_grad_row(DType t, void *dgate, void *dup, const void *dout, const void *gate, const void *up,
                            int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float g = load(t, gate, i), u = load(t, up, i), d = load(t, dout, i);
        float s = fast_sigmoidf(g), silu = g * s;
        store(t, dgate, i, d * u * mul_add(silu, 1.0f - s, s));
        store(t, dup, i, d * silu);
    }
}

void cpu_swiglu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x) {
    int64_t F = dout.shape[1];
    FOR_CHUNKS(c, BY_DTYPE(x.dtype, swiglu_grad_row, c.row[0], c.row[1], c.row[2], c.row[3], c.row[4], c.n),
               tensor_slice(dx, 1, 0, F), tensor_slice(dx, 1, F, F), dout, tensor_slice(x, 1, 0, F),
               tensor_slice(x, 1, F, F));
}
