/* Optimizer steps: each reads and writes its tensors once. An absent w_copy is w itself, stored to a second time. */
#include <math.h>

#include "cpu/cpu.h"
#include "cpu/simd.h"
#include "cpu/sweep.h"

/* ---- adamw ------------------------------------------------------------------------------------------------------ */

/* Constant where it is called, so that the loop is compiled once for each. */
typedef enum { DECAY_ALL, DECAY_CAUTIOUS } Decay;

INLINE float kept(Decay decay, float keep, float w, float update) {
    return decay == DECAY_CAUTIOUS && !(update * w >= 0) ? 1.0f : keep;
}

INLINE void adamw_row(Decay decay, DType t, float *w, void *w_copy, float *m, float *v, const float *g, int64_t n,
                      AdamwStep s) {
    float keep = 1.0f - s.lr * s.decay;
    float rate = s.lr / s.correction1, root = 1.0f / sqrtf(s.correction2);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float gradient = s.grad_scale * g[i];
        m[i] = mul_add(s.beta1, m[i], (1.0f - s.beta1) * gradient);
        v[i] = mul_add(s.beta2, v[i], (1.0f - s.beta2) * gradient * gradient);
        w[i] = kept(decay, keep, w[i], m[i]) * w[i] - rate * m[i] / mul_add(sqrtf(v[i]), root, s.eps);
        store(t, w_copy, i, w[i]);
    }
}

INLINE void adamw_row_as(DType t, float *w, void *w_copy, float *m, float *v, const float *g, int64_t n, AdamwStep s) {
    if (s.cautious)
        adamw_row(DECAY_CAUTIOUS, t, w, w_copy, m, v, g, n, s);
    else
        adamw_row(DECAY_ALL, t, w, w_copy, m, v, g, n, s);
}

void cpu_adamw(Backend *be, Tensor w, Tensor w_copy, Tensor m, Tensor v, Tensor g, AdamwStep s) {
    Tensor second = tensor_present(w_copy) ? w_copy : w;
    FOR_CHUNKS(c, BY_DTYPE(second.dtype, adamw_row_as, c.row[0], c.row[1], c.row[2], c.row[3], c.row[4], c.n, s), w,
               second, m, v, g);
}

/* ---- momentum --------------------------------------------------------------------------------------------------- */

typedef enum { AS_IT_IS, SIGN } Outcome;

INLINE float outcome_of(Outcome outcome, float u) {
    return outcome == AS_IT_IS ? u : u > 0 ? 1.0f : u < 0 ? -1.0f : u; /* 0 and NaN stay */
}

/* s.add and s.fresh have taken up grad_scale. */
INLINE void momentum_row(Outcome outcome, DType t, void *u, float *m, const float *g, int64_t n, MomentumStep s) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float old = m[i];
        m[i] = mul_add(s.keep, old, s.add * g[i]);
        store(t, u, i, outcome_of(outcome, mul_add(s.old, old, s.fresh * g[i])));
    }
}

INLINE void momentum_row_as(DType t, void *u, float *m, const float *g, int64_t n, MomentumStep s) {
    if (s.sign)
        momentum_row(SIGN, t, u, m, g, n, s);
    else
        momentum_row(AS_IT_IS, t, u, m, g, n, s);
}

void cpu_momentum(Backend *be, Tensor u, Tensor m, Tensor g, MomentumStep s) {
    s.add *= s.grad_scale;
    s.fresh *= s.grad_scale;
    FOR_CHUNKS(c, BY_DTYPE(u.dtype, momentum_row_as, c.row[0], c.row[1], c.row[2], c.n, s), u, m, g);
}

/* ---- second moments of updates ---------------------------------------------------------------------------------- */

/* One v for each element. */
INLINE void adapt_elements(DType from, DType to, void *out, float *v, const void *x, int64_t n, AdaptStep s) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float value = load(from, x, i);
        v[i] = mul_add(s.beta2, v[i], (1.0f - s.beta2) * value * value);
        store(to, out, i, value / (sqrtf(v[i]) + s.eps));
    }
}

/* One v for the row. */
INLINE void adapt_row(DType from, DType to, void *out, float *v, const void *x, int64_t n, AdaptStep s) {
    *v = mul_add(s.beta2, *v, (1.0f - s.beta2) * squares_of_row(from, x, n) / (float)n);
    float divisor = sqrtf(*v) + s.eps;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(to, out, i, load(from, x, i) / divisor);
}

static void adapt_by_elements(Tensor out, Tensor v, Tensor x, AdaptStep s) {
    FOR_CHUNKS(c, BY_DTYPES(x.dtype, out.dtype, adapt_elements, c.row[0], c.row[1], c.row[2], c.n, s), out, v, x);
}

/* Row r of a 4-d tensor. */
static void *row_of(Tensor t, int64_t r) {
    int64_t c = r % t.shape[2], b = r / t.shape[2] % t.shape[1], a = r / t.shape[2] / t.shape[1];
    return at(t.dtype, t.data, a * t.stride[0] + b * t.stride[1] + c * t.stride[2]);
}

static void adapt_by_rows(Tensor out, Tensor v, Tensor x, AdaptStep s) {
    int64_t rows = x.shape[0] * x.shape[1] * x.shape[2], n = x.shape[3];
#pragma omp parallel for schedule(static) if (rows * n > SWEEP_CHUNK)
    for (int64_t r = 0; r < rows; r++)
        BY_DTYPES(x.dtype, out.dtype, adapt_row, row_of(out, r), row_of(v, r), row_of(x, r), n, s);
}

void cpu_adapt(Backend *be, Tensor out, Tensor v, Tensor x, AdaptStep s) {
    Tensor to = tensor_pad_4d(out), second = tensor_pad_4d(v), from = tensor_pad_4d(x);
    if (second.shape[3] == from.shape[3])
        adapt_by_elements(to, second, from, s);
    else
        adapt_by_rows(to, second, from, s);
}

/* ---- norms of updates ------------------------------------------------------------------------------------------- */

INLINE void scaled_row(DType from, DType to, void *out, const void *x, int64_t n, float factor) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(to, out, i, factor * load(from, x, i));
}

static void normalize_matrix(Backend *be, Tensor out, Tensor x, float eps) {
    float factor = (float)(1.0 / (sqrt(cpu_total_of_squares(be, x)) + (double)eps));
    FOR_CHUNKS(c, BY_DTYPES(x.dtype, out.dtype, scaled_row, c.row[0], c.row[1], c.n, factor), out, x);
}

void cpu_normalize(Backend *be, Tensor out, Tensor x, float eps) {
    Tensor to = tensor_pad_4d(out), from = tensor_pad_4d(x);
    for (int64_t a = 0; a < to.shape[0]; a++)
        for (int64_t b = 0; b < to.shape[1]; b++)
            normalize_matrix(be, tensor_index(tensor_index(to, a), b), tensor_index(tensor_index(from, a), b), eps);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

INLINE void update_row(Decay decay, DType copy, DType t, float *w, void *w_copy, const void *update, int64_t n,
                       UpdateStep s) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float u = load(t, update, i);
        w[i] = kept(decay, s.keep, w[i], u) * w[i] - s.step * u;
        store(copy, w_copy, i, w[i]);
    }
}

INLINE void update_row_as(DType copy, DType t, float *w, void *w_copy, const void *update, int64_t n, UpdateStep s) {
    if (s.cautious)
        update_row(DECAY_CAUTIOUS, copy, t, w, w_copy, update, n, s);
    else
        update_row(DECAY_ALL, copy, t, w, w_copy, update, n, s);
}

void cpu_apply_update(Backend *be, Tensor w, Tensor w_copy, Tensor update, UpdateStep s) {
    Tensor second = tensor_present(w_copy) ? w_copy : w;
    FOR_CHUNKS(c, BY_DTYPES(second.dtype, update.dtype, update_row_as, c.row[0], c.row[1], c.row[2], c.n, s), w, second,
               update);
}
