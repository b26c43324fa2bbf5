/* Cross entropy and sums. */
#include <math.h>

#include "ref/ref.h"

/* log sum over v of exp(logits[n][v]). The largest logit goes outside, so that exp cannot overflow. */
static double row_lse(Tensor logits, int64_t n) {
    double top = get2(logits, n, 0), sum = 0;
    for (int64_t v = 1; v < logits.shape[1]; v++) top = fmax(top, get2(logits, n, v));
    for (int64_t v = 0; v < logits.shape[1]; v++) sum += exp(get2(logits, n, v) - top);
    return top + log(sum);
}

static int64_t target_at(Tensor targets, int64_t n, int64_t V) {
    int64_t target = (int64_t)get1(targets, n);
    CHECK(target < V, "target %lld of row %lld, of a vocabulary of %lld", (long long)target, (long long)n,
          (long long)V);
    return target;
}

void ref_cross_entropy(Backend *be, Tensor loss, Tensor logits, Tensor targets) {
    for (int64_t n = 0; n < logits.shape[0]; n++) {
        int64_t target = target_at(targets, n, logits.shape[1]);
        set1(loss, n, target < 0 ? 0 : row_lse(logits, n) - get2(logits, n, target));
    }
}

void ref_cross_entropy_grad(Backend *be, Tensor loss, Tensor logits, Tensor targets, float scale) {
    ref_cross_entropy(be, loss, logits, targets);
    for (int64_t n = 0; n < logits.shape[0]; n++) {
        int64_t target = target_at(targets, n, logits.shape[1]);
        double lse = row_lse(logits, n);
        for (int64_t v = 0; v < logits.shape[1]; v++) {
            double gradient = exp(get2(logits, n, v) - lse) - (v == target ? 1 : 0);
            set2(logits, n, v, target < 0 ? 0 : (double)scale * gradient);
        }
    }
}

void ref_sum(Backend *be, Tensor total, Tensor x) {
    double sum = 0;
    for (int64_t i = 0; i < tensor_numel(x); i++) sum += get_flat(x, i);
    add1(total, 0, sum);
}

void ref_sum_squares(Backend *be, Tensor total, Tensor x) {
    double sum = 0;
    for (int64_t i = 0; i < tensor_numel(x); i++) sum += pow(get_flat(x, i), 2);
    add1(total, 0, sum);
}
