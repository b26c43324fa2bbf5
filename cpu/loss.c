/* Cross entropy, row by row while the row is in cache, and sums of elements. */
#include <omp.h>

#include "cpu/cpu.h"
#include "cpu/simd.h"
#include "cpu/sweep.h"

/* ---- cross entropy ---------------------------------------------------------------------------------------------- */

typedef struct {
    float max;
    float sum; /* of exp(x - max) */
} Softmax;

/* A NaN may escape the maximum, but not the sum. */
INLINE Softmax softmax_of_row(DType t, const void *x, int64_t n) {
    int32_t order = INT32_MIN;
#pragma omp simd reduction(max : order)
    for (int64_t i = 0; i < n; i++) {
        int32_t candidate = order_from_float(load(t, x, i));
        order = candidate > order ? candidate : order;
    }
    float max = float_from_order(order), sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += fast_expf(load(t, x, i) - max);
    return (Softmax){max, sum};
}

INLINE float loss_of_row(DType t, const void *x, int64_t n, int32_t target) {
    if (target < 0) return 0;
    Softmax s = softmax_of_row(t, x, n);
    return logf(s.sum) + (s.max - load(t, x, target));
}

void cpu_cross_entropy(Backend *be, Tensor loss, Tensor logits, Tensor targets) {
    int64_t N = logits.shape[0], V = logits.shape[1];
    float *losses = loss.data;
    const int32_t *target = targets.data;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++)
        losses[n] = BY_DTYPE(logits.dtype, loss_of_row, at(logits.dtype, logits.data, n * V), V, target[n]);
}

INLINE float loss_grad_of_row(DType t, void *x, int64_t n, int32_t target, float scale) {
    if (target < 0) {
        memset(x, 0, (size_t)n * (t == DTYPE_F32 ? sizeof(float) : sizeof(bf16)));
        return 0;
    }
    Softmax s = softmax_of_row(t, x, n);
    float at_target = load(t, x, target), factor = scale / s.sum;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(t, x, i, factor * fast_expf(load(t, x, i) - s.max));
    /* From the fp32 probability: subtracting 1 from the stored one would round twice. */
    store(t, x, target, mul_add(factor, fast_expf(at_target - s.max), -scale));
    return logf(s.sum) + (s.max - at_target);
}

void cpu_cross_entropy_grad(Backend *be, Tensor loss, Tensor logits, Tensor targets, float scale) {
    int64_t N = logits.shape[0], V = logits.shape[1];
    float *losses = loss.data;
    const int32_t *target = targets.data;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++)
        losses[n] = BY_DTYPE(logits.dtype, loss_grad_of_row, at(logits.dtype, logits.data, n * V), V, target[n], scale);
}

/* ---- sums ------------------------------------------------------------------------------------------------------- */

INLINE double sum_of_row(DType t, const void *x, int64_t n, bool squared) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        double v = (double)load(t, x, i);
        sum += squared ? v * v : v;
    }
    return sum;
}

static double sum_over(Backend *be, Tensor x, bool squared) {
    Sweep sweep = sweep_over(1, (Tensor[]){x});
    double total = 0;
    int parts = 1;
#pragma omp parallel num_threads(be->threads) if (sweep.chunks > 1)
    {
        int part = omp_get_thread_num();
        Range mine = range_of(sweep.chunks, part, omp_get_num_threads());
        double sum = 0;
        for (int64_t i = mine.begin; i < mine.end; i++) {
            Chunk c = sweep_chunk(&sweep, i);
            sum += squared ? BY_DTYPE(x.dtype, sum_of_row, c.row[0], c.n, true)
                           : BY_DTYPE(x.dtype, sum_of_row, c.row[0], c.n, false);
        }
        *(double *)cpu_partial(be, part, 2) = sum;
        if (part == 0) parts = omp_get_num_threads();
    }
    for (int part = 0; part < parts; part++) total += *(double *)cpu_partial(be, part, 2);
    return total;
}

void cpu_sum(Backend *be, Tensor total, Tensor x) {
    float *t = total.data;
    t[0] = (float)((double)t[0] + sum_over(be, x, false));
}

void cpu_sum_squares(Backend *be, Tensor total, Tensor x) {
    float *t = total.data;
    t[0] = (float)((double)t[0] + cpu_total_of_squares(be, x));
}

double cpu_total_of_squares(Backend *be, Tensor x) {
    return sum_over(be, x, true);
}
