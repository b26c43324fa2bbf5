/* Token and position embedding, and rotary embedding. */
#include "ref/ref.h"

static int64_t token_at(Tensor tokens, int64_t n, int64_t V) {
    int64_t token = (int64_t)get_flat(tokens, n);
    CHECK(token >= 0 && token < V, "token %lld at position %lld, of a vocabulary of %lld", (long long)token,
          (long long)n, (long long)V);
    return token;
}

void ref_embed(Backend *be, Tensor out, Tensor tokens, Tensor wte, Tensor wpe) {
    int64_t T = tokens.shape[1];
    for (int64_t n = 0; n < out.shape[0]; n++) {
        int64_t token = token_at(tokens, n, wte.shape[0]);
        for (int64_t c = 0; c < out.shape[1]; c++) {
            double position = tensor_present(wpe) ? get2(wpe, n % T, c) : 0;
            set2(out, n, c, get2(wte, token, c) + position);
        }
    }
}

void ref_embed_grad(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens) {
    int64_t T = tokens.shape[1];
    for (int64_t n = 0; n < dout.shape[0]; n++) {
        int64_t token = token_at(tokens, n, dwte.shape[0]);
        for (int64_t c = 0; c < dout.shape[1]; c++) {
            add2(dwte, token, c, get2(dout, n, c));
            if (tensor_present(dwpe)) add2(dwpe, n % T, c, get2(dout, n, c));
        }
    }
}

/* Rotates each pair (x[i], x[i+D/2]) of position t by the angle whose cosine and sine are in the table; direction -1
 * rotates back, which is the transpose. */
static void rotate(Tensor x, Tensor table, int direction) {
    int64_t half = x.shape[3] / 2;
    for (int64_t b = 0; b < x.shape[0]; b++)
        for (int64_t t = 0; t < x.shape[1]; t++)
            for (int64_t h = 0; h < x.shape[2]; h++)
                for (int64_t i = 0; i < half; i++) {
                    double c = get2(table, t, i), s = direction * get2(table, t, half + i);
                    double u = get4(x, b, t, h, i), v = get4(x, b, t, h, half + i);
                    set4(x, b, t, h, i, u * c - v * s);
                    set4(x, b, t, h, half + i, v * c + u * s);
                }
}

void ref_rope(Backend *be, Tensor x, Tensor table) {
    rotate(x, table, 1);
}

void ref_rope_grad(Backend *be, Tensor dx, Tensor table) {
    rotate(dx, table, -1);
}
