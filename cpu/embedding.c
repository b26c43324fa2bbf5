/* Rows picked by token, and rotary positions. */
#include <omp.h>

#include "cpu/cpu.h"
#include "cpu/simd.h"

/* ---- embedding -------------------------------------------------------------------------------------------------- */

INLINE void embed_row(DType t, void *out, const void *token, const void *position, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(t, out, i, load(t, token, i) + load(t, position, i));
}

void cpu_embed(Backend *be, Tensor out, Tensor tokens, Tensor wte, Tensor wpe) {
    DType dtype = out.dtype;
    int64_t N = out.shape[0], C = out.shape[1], T = tokens.shape[1];
    const int32_t *token = tokens.data;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        void *row = at(dtype, out.data, n * C);
        const void *by_token = at(dtype, wte.data, token[n] * C);
        if (tensor_present(wpe))
            BY_DTYPE(dtype, embed_row, row, by_token, at(dtype, wpe.data, n % T * C), C);
        else
            memcpy(row, by_token, (size_t)(C * dtype_size(dtype)));
    }
}

/* Threads share the columns out, by whole cache lines: each element is summed by one thread, in the order of n. */
void cpu_embed_grad(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens) {
    DType dtype = dout.dtype;
    int64_t N = dout.shape[0], C = dout.shape[1], T = tokens.shape[1];
    const int32_t *token = tokens.data;
    float *by_token = dwte.data, *by_position = dwpe.data;
#pragma omp parallel
    {
        enum { LINE = 16 };
        Range mine = range_of((C + LINE - 1) / LINE, omp_get_thread_num(), omp_get_num_threads());
        int64_t begin = mine.begin * LINE, end = mine.end * LINE < C ? mine.end * LINE : C;
        for (int64_t n = 0; n < N && begin < end; n++) {
            const void *row = at(dtype, dout.data, n * C + begin);
            BY_DTYPE(dtype, accumulate_row, by_token + token[n] * C + begin, row, end - begin);
            if (by_position) BY_DTYPE(dtype, accumulate_row, by_position + n % T * C + begin, row, end - begin);
        }
    }
}

/* ---- rotary positions ------------------------------------------------------------------------------------------- */

/* One head: the pairs (x[i], x[i+half]) turn by the table's angles, or back where direction is -1. */
INLINE void rotate_row(DType t, void *x, const float *table, int64_t half, float direction) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float c = table[i], s = direction * table[half + i];
        float a = load(t, x, i), b = load(t, x, i + half);
        store(t, x, i, a * c - b * s);
        store(t, x, i + half, b * c + a * s);
    }
}

static void rotate(Tensor x, Tensor table, float direction) {
    int64_t B = x.shape[0], T = x.shape[1], H = x.shape[2], D = x.shape[3];
    const float *angles = table.data;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < B * T; n++) {
        int64_t b = n / T, t = n % T;
        for (int64_t h = 0; h < H; h++) {
            void *head = at(x.dtype, x.data, b * x.stride[0] + t * x.stride[1] + h * x.stride[2]);
            BY_DTYPE(x.dtype, rotate_row, head, angles + t * D, D / 2, direction);
        }
    }
}

void cpu_rope(Backend *be, Tensor x, Tensor table) {
    rotate(x, table, 1.0f);
}

void cpu_rope_grad(Backend *be, Tensor dx, Tensor table) {
    rotate(dx, table, -1.0f);
}
