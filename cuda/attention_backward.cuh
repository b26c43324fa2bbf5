/* What op_attention_grad's kernels share, attention_backward.cu on tensor cores and attention_plain_backward.cu in
 * fp32. */
#pragma once

#include "cuda/attention.cuh"

/* lse +infinity where there is no row, so that its p is 0. */
struct RowStats {
    float lse, delta;
};

struct AttentionBackward {
    AttentionShape shape;
    HeadTensor dq, dk, dv, dout, out, q, k, v;
    const float *lse; /* (B,H,T) */
    RowStats *rows;   /* (B,H,padded_T) */
    int padded_T;
};

CU_DEVICE RowStats *rows_of(const AttentionBackward &a, int b, int h) {
    return a.rows + ((int64_t)b * a.shape.H + h) * a.padded_T;
}

static inline dim3 grid_of(const AttentionBackward &a, int64_t tiles, int heads) {
    return dim3((unsigned)int_of(tiles), (unsigned)heads, (unsigned)a.shape.B);
}

/* All but delta: of any head size and either dtype. */
void cuda_attention_plain_backward(Backend *be, const AttentionBackward &a, DType dtype);
