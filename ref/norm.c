/* Norms over the last dimension. With y = x̂ w and g = dout w, the gradient of both is
 *
 *      dx = rstd (g - mean(g) - x̂ mean(g x̂)),    x̂ = (x - mean) rstd
 *
 * where rmsnorm has mean = 0 and no mean(g) term. */
#include <math.h>

#include "ref/ref.h"

void ref_layernorm(Backend *be, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor bias, float eps) {
    int64_t C = x.shape[1];
    for (int64_t n = 0; n < x.shape[0]; n++) {
        double m = 0, var = 0;
        for (int64_t c = 0; c < C; c++) m += get2(x, n, c) / (double)C;
        for (int64_t c = 0; c < C; c++) var += pow(get2(x, n, c) - m, 2) / (double)C;
        double r = 1 / sqrt(var + (double)eps);
        for (int64_t c = 0; c < C; c++) {
            double b = tensor_present(bias) ? get1(bias, c) : 0;
            set2(out, n, c, (get2(x, n, c) - m) * r * get1(w, c) + b);
        }
        set1(mean, n, m);
        set1(rstd, n, r);
    }
}

static void layernorm_grad_input(Tensor dx, Tensor dout, Tensor x, Tensor w, int64_t n, double m, double r) {
    int64_t C = x.shape[1];
    double mean_g = 0, mean_gx = 0;
    for (int64_t c = 0; c < C; c++) {
        double g = get2(dout, n, c) * get1(w, c);
        mean_g += g / (double)C;
        mean_gx += g * (get2(x, n, c) - m) * r / (double)C;
    }
    for (int64_t c = 0; c < C; c++) {
        double g = get2(dout, n, c) * get1(w, c), xhat = (get2(x, n, c) - m) * r;
        add2(dx, n, c, r * (g - mean_g - xhat * mean_gx));
    }
}

void ref_layernorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dbias, Tensor dout, Tensor x, Tensor mean,
                        Tensor rstd, Tensor w) {
    int64_t N = x.shape[0], C = x.shape[1];
    for (int64_t n = 0; n < N; n++) layernorm_grad_input(dx, dout, x, w, n, get1(mean, n), get1(rstd, n));
    for (int64_t c = 0; c < C; c++) {
        double sum_w = 0, sum_bias = 0;
        for (int64_t n = 0; n < N; n++) {
            sum_w += get2(dout, n, c) * (get2(x, n, c) - get1(mean, n)) * get1(rstd, n);
            sum_bias += get2(dout, n, c);
        }
        add1(dw, c, sum_w);
        if (tensor_present(dbias)) add1(dbias, c, sum_bias);
    }
}

/* Padded to 4 dimensions, (N,C) and (N,H,C) are both (1,n,h,C), and rstd is (1,1,n,h): one loop serves both forms. */
void ref_rmsnorm(Backend *be, Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
    int64_t C = w.shape[0];
    out = tensor_pad_4d(out), rstd = tensor_pad_4d(rstd), x = tensor_pad_4d(x);
    for (int64_t n = 0; n < x.shape[1]; n++)
        for (int64_t h = 0; h < x.shape[2]; h++) {
            double mean_square = 0;
            for (int64_t c = 0; c < C; c++) mean_square += pow(get4(x, 0, n, h, c), 2) / (double)C;
            double r = 1 / sqrt(mean_square + (double)eps);
            for (int64_t c = 0; c < C; c++) set4(out, 0, n, h, c, get4(x, 0, n, h, c) * r * get1(w, c));
            set4(rstd, 0, 0, n, h, r);
        }
}

void ref_rmsnorm_grad(Backend *be, Tensor dx, Tensor dw, Tensor dout, Tensor x, Tensor rstd, Tensor w) {
    int64_t C = w.shape[0];
    dx = tensor_pad_4d(dx), dout = tensor_pad_4d(dout), x = tensor_pad_4d(x), rstd = tensor_pad_4d(rstd);
    for (int64_t n = 0; n < x.shape[1]; n++)
        for (int64_t h = 0; h < x.shape[2]; h++) {
            double r = get4(rstd, 0, 0, n, h), mean_gx = 0;
            for (int64_t c = 0; c < C; c++)
                mean_gx += get4(dout, 0, n, h, c) * get1(w, c) * get4(x, 0, n, h, c) * r / (double)C;
            for (int64_t c = 0; c < C; c++) {
                double g = get4(dout, 0, n, h, c) * get1(w, c), xhat = get4(x, 0, n, h, c) * r;
                add4(dx, 0, n, h, c, r * (g - xhat * mean_gx));
            }
        }
    for (int64_t c = 0; c < C; c++) {
        double sum = 0;
        for (int64_t n = 0; n < x.shape[1]; n++)
            for (int64_t h = 0; h < x.shape[2]; h++)
                sum += get4(dout, 0, n, h, c) * get4(x, 0, n, h, c) * get4(rstd, 0, 0, n, h);
        add1(dw, c, sum);
    }
}

void ref_max_norm(Backend *be, Tensor max, Tensor x) {
    double largest = get1(max, 0);
    for (int64_t n = 0; n < x.shape[0]; n++) {
        double square = 0;
        for (int64_t c = 0; c < x.shape[1]; c++) square += pow(get2(x, n, c), 2);
        double norm = sqrt(square);
        if (norm > largest || isnan(norm)) largest = norm;
    }
    set1(max, 0, largest);
}
