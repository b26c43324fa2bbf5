/* Matrix products. The three linear ops are what a backend may do faster than by calling matmul. */
#include "ref/ref.h"

void ref_matmul(Backend *be, Tensor out, Tensor a, Tensor b, Tensor addend, MatmulScale s) {
    bool add = tensor_present(addend);
    out = tensor_pad_4d(out), a = tensor_pad_4d(a), b = tensor_pad_4d(b), addend = tensor_pad_4d(addend);
    for (int64_t p = 0; p < out.shape[0]; p++)
        for (int64_t q = 0; q < out.shape[1]; q++)
            for (int64_t n = 0; n < out.shape[2]; n++)
                for (int64_t m = 0; m < out.shape[3]; m++) {
                    double sum = 0;
                    for (int64_t k = 0; k < a.shape[3]; k++) sum += get4(a, p, q, n, k) * get4(b, p, q, k, m);
                    double rest = add ? (double)s.beta * get4(addend, p, q, n, m) : 0;
                    set4(out, p, q, n, m, (double)s.alpha * sum + rest);
                }
}

void ref_matmul_symmetric(Backend *be, Tensor out, Tensor a, Tensor addend, MatmulScale s) {
    ref_matmul(be, out, a, tensor_transpose(a), addend, s);
}

void ref_linear(Backend *be, Tensor out, Tensor x, Tensor w, Tensor bias, Tensor addend) {
    for (int64_t n = 0; n < out.shape[0]; n++)
        for (int64_t o = 0; o < out.shape[1]; o++) {
            double sum = tensor_present(bias) ? get1(bias, o) : 0;
            if (tensor_present(addend)) sum += get2(addend, n, o);
            for (int64_t i = 0; i < x.shape[1]; i++) sum += get2(x, n, i) * get2(w, o, i);
            set2(out, n, o, sum);
        }
}

void ref_linear_grad_input(Backend *be, Tensor dx, Tensor dout, Tensor w) {
    for (int64_t n = 0; n < dx.shape[0]; n++)
        for (int64_t i = 0; i < dx.shape[1]; i++) {
            double sum = 0;
            for (int64_t o = 0; o < dout.shape[1]; o++) sum += get2(dout, n, o) * get2(w, o, i);
            set2(dx, n, i, sum);
        }
}

void ref_linear_grad_weight(Backend *be, Tensor dw, Tensor dbias, Tensor dout, Tensor x, GradientMode mode) {
    bool add = mode == GRADIENT_ADD;
    for (int64_t o = 0; o < dw.shape[0]; o++) {
        for (int64_t i = 0; i < dw.shape[1]; i++) {
            double sum = 0;
            for (int64_t n = 0; n < x.shape[0]; n++) sum += get2(dout, n, o) * get2(x, n, i);
            set2(dw, o, i, (add ? get2(dw, o, i) : 0) + sum);
        }
        double sum = 0;
        for (int64_t n = 0; n < x.shape[0]; n++) sum += get2(dout, n, o);
        if (tensor_present(dbias)) set1(dbias, o, (add ? get1(dbias, o) : 0) + sum);
    }
}
