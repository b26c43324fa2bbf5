/* Optimizer steps, element by element; normalize works on whole matrices. */
#include <math.h>

#include "ref/ref.h"

/* w[i] = value; w_copy[i] = w[i], rounded from the stored w, as every reader of w would round it. */
static void set_weight(Tensor w, Tensor w_copy, int64_t i, double value) {
    set_flat(w, i, value);
    if (tensor_present(w_copy)) set_flat(w_copy, i, get_flat(w, i));
}

/* Where cautious weight decay acts. */
static bool decays(double w, double update) {
    return update * w >= 0;
}

void ref_adamw(Backend *be, Tensor w, Tensor w_copy, Tensor m, Tensor v, Tensor g, AdamwStep s) {
    double beta1 = (double)s.beta1, beta2 = (double)s.beta2, lr = (double)s.lr;
    for (int64_t i = 0; i < tensor_numel(w); i++) {
        double grad = (double)s.grad_scale * get_flat(g, i);
        double m_new = beta1 * get_flat(m, i) + (1 - beta1) * grad;
        double v_new = beta2 * get_flat(v, i) + (1 - beta2) * grad * grad;
        double update = m_new / (double)s.correction1 / (sqrt(v_new / (double)s.correction2) + (double)s.eps);
        set_flat(m, i, m_new);
        set_flat(v, i, v_new);
        double keep = 1 - lr * (double)s.decay;
        if (s.cautious && !decays(get_flat(w, i), update)) keep = 1;
        set_weight(w, w_copy, i, keep * get_flat(w, i) - lr * update);
    }
}

void ref_momentum(Backend *be, Tensor u, Tensor m, Tensor g, MomentumStep s) {
    for (int64_t i = 0; i < tensor_numel(m); i++) {
        double grad = (double)s.grad_scale * get_flat(g, i), old = get_flat(m, i);
        double update = (double)s.old * old + (double)s.fresh * grad;
        if (s.sign) update = update > 0 ? 1 : update < 0 ? -1 : update; /* 0 and NaN stay */
        set_flat(m, i, (double)s.keep * old + (double)s.add * grad);
        set_flat(u, i, update);
    }
}

static void adapt_row(Tensor out, Tensor v, Tensor x, AdaptStep s) {
    int64_t m = x.shape[0], count = v.shape[0];
    double beta2 = (double)s.beta2, squares = 0;
    for (int64_t j = 0; j < m; j++) squares += pow(get1(x, j), 2);
    for (int64_t j = 0; j < count; j++) {
        double mean = count == m ? pow(get1(x, j), 2) : squares / (double)m;
        set1(v, j, beta2 * get1(v, j) + (1 - beta2) * mean);
    }
    for (int64_t j = 0; j < m; j++) set1(out, j, get1(x, j) / (sqrt(get1(v, count == m ? j : 0)) + (double)s.eps));
}

void ref_adapt(Backend *be, Tensor out, Tensor v, Tensor x, AdaptStep s) {
    out = tensor_pad_4d(out), v = tensor_pad_4d(v), x = tensor_pad_4d(x);
    for (int64_t p = 0; p < x.shape[0]; p++)
        for (int64_t q = 0; q < x.shape[1]; q++)
            for (int64_t i = 0; i < x.shape[2]; i++)
                adapt_row(tensor_index(tensor_index(tensor_index(out, p), q), i),
                          tensor_index(tensor_index(tensor_index(v, p), q), i),
                          tensor_index(tensor_index(tensor_index(x, p), q), i), s);
}

static void normalize_matrix(Tensor out, Tensor x, double eps) {
    double squares = 0;
    for (int64_t i = 0; i < tensor_numel(x); i++) squares += pow(get_flat(x, i), 2);
    double divisor = sqrt(squares) + eps;
    for (int64_t i = 0; i < tensor_numel(x); i++) set_flat(out, i, get_flat(x, i) / divisor);
}

void ref_normalize(Backend *be, Tensor out, Tensor x, float eps) {
    out = tensor_pad_4d(out), x = tensor_pad_4d(x);
    for (int64_t p = 0; p < x.shape[0]; p++)
        for (int64_t q = 0; q < x.shape[1]; q++)
            normalize_matrix(tensor_index(tensor_index(out, p), q), tensor_index(tensor_index(x, p), q), (double)eps);
}

void ref_apply_update(Backend *be, Tensor w, Tensor w_copy, Tensor update, UpdateStep s) {
    for (int64_t i = 0; i < tensor_numel(w); i++) {
        double keep = s.cautious && !decays(get_flat(w, i), get_flat(update, i)) ? 1 : (double)s.keep;
        set_weight(w, w_copy, i, keep * get_flat(w, i) - (double)s.step * get_flat(update, i));
    }
}
