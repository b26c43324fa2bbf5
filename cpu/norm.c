/* LayerNorm and RMSNorm: a row stays in cache while its statistics and its output are computed. Gradients of w and bias
 * are sums over rows: every thread sums its rows in scratch, then the threads' sums are added in their order.
 */
#include <omp.h>

#include "cpu/cpu.h"
#include "cpu/simd.h"

int64_t cpu_norm_scratch_bytes(const Backend *be, const OpLimits *limits) {
    return cpu_partial_bytes(be, 2 * limits->width); /* dw and dbias */
}

/* ---- layernorm -------------------------------------------------------------------------------------------------- */

typedef struct {
    float mean, rstd;
} Moments;

INLINE Moments layernorm_row(DType t, void *out, const void *x, const float *w, const float *bias, int64_t n,
                             float eps) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += load(t, x, i);
    float mean = sum / (float)n;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; i++) {
        float d = load(t, x, i) - mean; /* second pass: E[x²] - mean² would cancel */
        squares += d * d;
    }
    float rstd = 1.0f / sqrtf(squares / (float)n + eps);
    if (bias) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) store(t, out, i, mul_add((load(t, x, i) - mean) * rstd, w[i], bias[i]));
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) store(t, out, i, (load(t, x, i) - mean) * rstd * w[i]);
    }
    return (Moments){mean, rstd};
}

void cpu_layernorm(Backend *be, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor bias, float eps) {
    int64_t N = x.shape[0], C = x.shape[1];
    float *means = mean.data, *rstds = rstd.data;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        Moments m = BY_DTYPE(x.dtype, layernorm_row, at(x.dtype, out.data, n * C), at(x.dtype, x.data, n * C), w.data,
                             bias.data, C, eps);
        means[n] = m.mean;
        rstds[n] = m.rstd;
    }
}

/* With xhat = (x - mean) rstd and g = dout w:  dx += rstd (g - mean(g) - xhat mean(g xhat)). */
INLINE void layernorm_grad_row(DType t, void *dx, float *dw, float *dbias, const void *dout, const void *x,
                               const float *w, int64_t n, Moments m) {
    float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t i = 0; i < n; i++) {
        float d = load(t, dout, i), xhat = (load(t, x, i) - m.mean) * m.rstd;
        sum += d * w[i];
        along += d * w[i] * xhat;
        dw[i] += d * xhat;
        dbias[i] += d;
    }
    sum /= (float)n;
    along /= (float)n;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float xhat = (load(t, x, i) - m.mean) * m.rstd;
        store(t, dx, i, load(t, dx, i) + m.rstd * (load(t, dout, i) * w[i] - sum - xhat * along));
    }
}

void cpu_layernorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dbias, Tensor dout, Tensor x, Tensor mean,
                        Tensor rstd, Tensor w) {
    DType dtype = x.dtype;
    int64_t N = x.shape[0], C = x.shape[1];
    const float *means = mean.data, *rstds = rstd.data;
#pragma omp parallel num_threads(be->threads)
    {
        int part = omp_get_thread_num(), parts = omp_get_num_threads();
        float *my_dw = cpu_partial(be, part, 2 * C), *my_dbias = my_dw + C;
        Range mine = range_of(N, part, parts);
        memset(my_dw, 0, (size_t)(2 * C) * sizeof(float));
        for (int64_t n = mine.begin; n < mine.end; n++)
            BY_DTYPE(dtype, layernorm_grad_row, at(dtype, dx.data, n * C), my_dw, my_dbias, at(dtype, dout.data, n * C),
                     at(dtype, x.data, n * C), w.data, C, (Moments){means[n], rstds[n]});
#pragma omp barrier
        cpu_add_partials(be, dw.data, 2 * C, 0, C);
        if (tensor_present(dbias)) cpu_add_partials(be, dbias.data, 2 * C, C, C);
    }
}

/* ---- rmsnorm ---------------------------------------------------------------------------------------------------- */

/* Row r of a (N,C) or (N,H,C) tensor. */
static void *row_of(Tensor x, int64_t r) {
    int64_t offset = x.ndim == 2 ? r * x.stride[0] : r / x.shape[1] * x.stride[0] + r % x.shape[1] * x.stride[1];
    return at(x.dtype, x.data, offset);
}

INLINE float rmsnorm_row(DType t, void *out, const void *x, const float *w, int64_t n, float eps) {
    float rstd = 1.0f / sqrtf(squares_of_row(t, x, n) / (float)n + eps);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(t, out, i, load(t, x, i) * rstd * w[i]);
    return rstd;
}

void cpu_rmsnorm(Backend *be, Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
    int64_t C = x.shape[x.ndim - 1], rows = tensor_numel(rstd);
    float *rstds = rstd.data;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        rstds[r] = BY_DTYPE(x.dtype, rmsnorm_row, row_of(out, r), row_of(x, r), w.data, C, eps);
}

/* With xhat = x rstd and g = dout w:  dx += rstd (g - xhat mean(g xhat)). */
INLINE void rmsnorm_grad_row(DType t, void *dx, float *dw, const void *dout, const void *x, const float *w, int64_t n,
                             float rstd) {
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < n; i++) {
        float d = load(t, dout, i), xhat = load(t, x, i) * rstd;
        along += d * w[i] * xhat;
        dw[i] += d * xhat;
    }
    along /= (float)n;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float xhat = load(t, x, i) * rstd;
        store(t, dx, i, load(t, dx, i) + rstd * (load(t, dout, i) * w[i] - xhat * along));
    }
}

void cpu_rmsnorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dout, Tensor x, Tensor rstd, Tensor w) {
    int64_t C = x.shape[x.ndim - 1], rows = tensor_numel(rstd);
    const float *rstds = rstd.data;
#pragma omp parallel num_threads(be->threads)
    {
        int part = omp_get_thread_num(), parts = omp_get_num_threads();
        float *my_dw = cpu_partial(be, part, C);
        Range mine = range_of(rows, part, parts);
        memset(my_dw, 0, (size_t)C * sizeof(float));
        for (int64_t r = mine.begin; r < mine.end; r++)
            BY_DTYPE(x.dtype, rmsnorm_grad_row, row_of(dx, r), my_dw, row_of(dout, r), row_of(x, r), w.data, C,
                     rstds[r]);
#pragma omp barrier
        cpu_add_partials(be, dw.data, C, 0, C);
    }
}

/* ---- the largest norm ------------------------------------------------------------------------------------------- */

/* Squares are not negative: they are ordered as their bits are, and a NaN's, with its sign off, are above infinity's.
 * So a maximum of integers keeps the NaN. */
void cpu_max_norm(Backend *be, Tensor max, Tensor x) {
    int32_t largest = 0;
    float *held = max.data;
#pragma omp parallel for schedule(static) reduction(max : largest)
    for (int64_t n = 0; n < x.shape[0]; n++) {
        float squares = BY_DTYPE(x.dtype, squares_of_row, row_of(x, n), x.shape[1]);
        int32_t bits = (int32_t)(bits_from_float(squares) & INT32_MAX);
        largest = bits > largest ? bits : largest;
    }
    float norm = sqrtf(float_from_bits((uint32_t)largest));
    if (norm > *held || isnan(norm)) *held = norm;
}
