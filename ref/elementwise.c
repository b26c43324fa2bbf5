/* Moving, adding and the mlp's nonlinearities. Every loop reads an element before it writes the same one, so that an
 * output may be an input. */
#include <math.h>

#include "ref/ref.h"

void ref_fill(Backend *be, Tensor x, float value) {
    for (int64_t i = 0; i < tensor_numel(x); i++) set_flat(x, i, (double)value);
}

void ref_copy(Backend *be, Tensor dst, Tensor src) {
    for (int64_t i = 0; i < tensor_numel(dst); i++) set_flat(dst, i, get_flat(src, i));
}

void ref_scale(Backend *be, Tensor x, float factor) {
    for (int64_t i = 0; i < tensor_numel(x); i++) set_flat(x, i, (double)factor * get_flat(x, i));
}

void ref_sum_heads(Backend *be, Tensor out, Tensor x) {
    for (int64_t n = 0; n < x.shape[0]; n++)
        for (int64_t d = 0; d < x.shape[2]; d++) {
            double sum = 0;
            for (int64_t h = 0; h < x.shape[1]; h++) sum += get3(x, n, h, d);
            set2(out, n, d, sum);
        }
}

/* ---- gelu: 0.5 x (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x³) ---------------------------------------------------
 */

static const double sqrt_2_over_pi = 0.79788456080286535588;

void ref_gelu(Backend *be, Tensor out, Tensor x) {
    for (int64_t i = 0; i < tensor_numel(x); i++) {
        double z = get_flat(x, i), u = sqrt_2_over_pi * (z + 0.044715 * z * z * z);
        set_flat(out, i, 0.5 * z * (1 + tanh(u)));
    }
}

void ref_gelu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x) {
    for (int64_t i = 0; i < tensor_numel(x); i++) {
        double z = get_flat(x, i), t = tanh(sqrt_2_over_pi * (z + 0.044715 * z * z * z));
        double du = sqrt_2_over_pi * (1 + 3 * 0.044715 * z * z);
        set_flat(dx, i, get_flat(dout, i) * (0.5 * (1 + t) + 0.5 * z * (1 - t * t) * du));
    }
}

/* ---- swiglu: silu(gate) up, silu(z) = z sigmoid(z) --------------------------------------------------------------- */

static double sigmoid(double z) {
    return 1 / (1 + exp(-z));
}

void ref_swiglu(Backend *be, Tensor out, Tensor x) {
    int64_t F = out.shape[1];
    for (int64_t n = 0; n < out.shape[0]; n++)
        for (int64_t f = 0; f < F; f++) {
            double gate = get2(x, n, f), up = get2(x, n, F + f);
            set2(out, n, f, gate * sigmoid(gate) * up);
        }
}

void ref_swiglu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x) {
    int64_t F = dout.shape[1];
    for (int64_t n = 0; n < dout.shape[0]; n++)
        for (int64_t f = 0; f < F; f++) {
            double gate = get2(x, n, f), up = get2(x, n, F + f), d = get2(dout, n, f), s = sigmoid(gate);
            set2(dx, n, f, d * up * s * (1 + gate * (1 - s)));
            set2(dx, n, F + f, d * gate * s);
        }
}
