/* Optimizer steps: each reads and writes its tensors once. An absent w_copy is w itself, stored to a second time. */
#include <math.h>

#include "cpu/cpu.h"
#include "cpu/simd.h"
#include "cpu/sweep.h"

/* ---- adamw ------------------------------------------------------------------------------------------------------ */

INLINE void adamw_row(DType t, float *w, void *w_copy, float *m, float *v, const float *g, int64_t n, AdamwStep s) {
    float keep = 1.0f - s.lr * s.decay;
    float rate = s.lr / s.correction1, root = 1.0f / sqrtf(s.correction2);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float gradient = s.grad_scale * g[i];
        m[i] = mul_add(s.beta1, m[i], (1.0f - s.beta1) * gradient);
        v[i] = mul_add(s.beta2, v[i], (1.0f - s.beta2) * gradient * gradient);
        w[i] = keep * w[i] - rate * m[i] / mul_add(sqrtf(v[i]), root, s.eps);
        store(t, w_copy, i, w[i]);
    }
}

static void adamw(Backend *be, Tensor w, Tensor w_copy, Tensor m, Tensor v, Tensor g, AdamwStep s) {
    (void)be;
    Tensor second = tensor_present(w_copy) ? w_copy : w;
    Sweep sweep = sweep_over(5, (Tensor[]){w, second, m, v, g});
#pragma omp parallel for schedule(static) if (sweep.chunks > 1)
    for (int64_t i = 0; i < sweep.chunks; i++) {
        Chunk c = sweep_chunk(&sweep, i);
        BY_DTYPE(second.dtype, adamw_row, c.row[0], c.row[1], c.row[2], c.row[3], c.row[4], c.n, s);
    }
}

/* ---- muon ------------------------------------------------------------------------------------------------------- */

/* m = mu m + fresh g,  u = of_gradient g + of_momentum m: every form of op_momentum; grad_scale is in the weights. */
typedef struct {
    float mu, fresh, of_gradient, of_momentum;
} MomentumWeights;

static MomentumWeights momentum_weights(MomentumStep s) {
    float fresh = s.form == MOMENTUM_EMA ? 1.0f - s.mu : 1.0f;
    MomentumWeights w = {.mu = s.mu, .fresh = fresh * s.grad_scale, .of_momentum = 1.0f};
    if (s.nesterov) {
        w.of_gradient = fresh * s.grad_scale;
        w.of_momentum = s.mu;
    }
    return w;
}

INLINE void momentum_row(DType t, void *u, float *m, const float *g, int64_t n, MomentumWeights w) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        m[i] = mul_add(w.mu, m[i], w.fresh * g[i]);
        store(t, u, i, mul_add(w.of_momentum, m[i], w.of_gradient * g[i]));
    }
}

static void momentum(Backend *be, Tensor u, Tensor m, Tensor g, MomentumStep s) {
    (void)be;
    MomentumWeights weights = momentum_weights(s);
    Sweep sweep = sweep_over(3, (Tensor[]){u, m, g});
#pragma omp parallel for schedule(static) if (sweep.chunks > 1)
    for (int64_t i = 0; i < sweep.chunks; i++) {
        Chunk c = sweep_chunk(&sweep, i);
        BY_DTYPE(u.dtype, momentum_row, c.row[0], c.row[1], c.row[2], c.n, weights);
    }
}

INLINE void scaled_row(DType from, DType to, void *out, const void *x, int64_t n, float factor) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(to, out, i, factor * load(from, x, i));
}

INLINE void scaled_row_to(DType to, DType from, void *out, const void *x, int64_t n, float factor) {
    if (from == DTYPE_F32)
        scaled_row(DTYPE_F32, to, out, x, n, factor);
    else
        scaled_row(DTYPE_BF16, to, out, x, n, factor);
}

static void normalize_matrix(Backend *be, Tensor out, Tensor x, float eps) {
    float factor = (float)(1.0 / (sqrt(cpu_sum_squares(be, x)) + (double)eps));
    Sweep sweep = sweep_over(2, (Tensor[]){out, x});
#pragma omp parallel for schedule(static) if (sweep.chunks > 1)
    for (int64_t i = 0; i < sweep.chunks; i++) {
        Chunk c = sweep_chunk(&sweep, i);
        BY_DTYPE(out.dtype, scaled_row_to, x.dtype, c.row[0], c.row[1], c.n, factor);
    }
}

static void normalize(Backend *be, Tensor out, Tensor x, float eps) {
    Tensor to = tensor_pad_4d(out), from = tensor_pad_4d(x);
    for (int64_t a = 0; a < to.shape[0]; a++)
        for (int64_t b = 0; b < to.shape[1]; b++)
            normalize_matrix(be, tensor_index(tensor_index(to, a), b), tensor_index(tensor_index(from, a), b), eps);
}

INLINE void update_row(DType copy, DType t, float *w, void *w_copy, const void *update, int64_t n, float keep,
                       float step) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        w[i] = keep * w[i] - step * load(t, update, i);
        store(copy, w_copy, i, w[i]);
    }
}

INLINE void update_row_by(DType copy, DType t, float *w, void *w_copy, const void *update, int64_t n, float keep,
                          float step) {
    if (t == DTYPE_F32)
        update_row(copy, DTYPE_F32, w, w_copy, update, n, keep, step);
    else
        update_row(copy, DTYPE_BF16, w, w_copy, update, n, keep, step);
}

static void apply_update(Backend *be, Tensor w, Tensor w_copy, Tensor update, float keep, float step) {
    (void)be;
    Tensor second = tensor_present(w_copy) ? w_copy : w;
    Sweep sweep = sweep_over(3, (Tensor[]){w, second, update});
#pragma omp parallel for schedule(static) if (sweep.chunks > 1)
    for (int64_t i = 0; i < sweep.chunks; i++) {
        Chunk c = sweep_chunk(&sweep, i);
        BY_DTYPE(second.dtype, update_row_by, update.dtype, c.row[0], c.row[1], c.row[2], c.n, keep, step);
    }
}

void cpu_fill_optimizer_ops(BackendOps *ops) {
    ops->adamw = adamw;
    ops->momentum = momentum;
    ops->normalize = normalize;
    ops->apply_update = apply_update;
}
