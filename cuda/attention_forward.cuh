/* What op_attention's two kernels share, attention_forward.cu on tensor cores and attention_plain_forward.cu in fp32:
 * what they are given, which queries a block of threads takes, and how a row ends.
 */
#pragma once

#include <algorithm>
#include <cfloat>

#include "cuda/attention.cuh"

/* The weight of a product x = q·k, for which the largest product of the row is `top`: 2^(unit capped(x) - shift(top)).
 * Where the scale is negative, products are negated first, so that the largest product is the largest logit. */
struct Logits {
    float unit;
    float softcap, inner; /* capped(x) = softcap tanh(inner x), or x */
    bool negated;
};

struct AttentionForward {
    AttentionShape shape;
    Logits logits;
    HeadTensor q, k, v, out;
    float *lse;
    float *max_logit, *max_abs; /* NULL: nobody watches */
};

/* ---- what both kernels do --------------------------------------------------------------------------------------- */

/* What one block of threads computes: the queries from `first` on of one head. */
struct QueryTile {
    int b, h, first;
};

/* `block` is blockIdx: (head of the run, query tile from the last on, run). In the last run, b may be beyond B. */
CU_DEVICE QueryTile query_tile_of(const AttentionShape &shape, uint3 block, int queries) {
    int head = (int)(block.z * gridDim.x + block.x);
    return {head / shape.H, head % shape.H, (int)(gridDim.y - 1 - block.y) * queries};
}

template <bool CAPPED> CU_DEVICE float capped(const Logits &l, float x) {
    return CAPPED ? l.softcap * tanh_approximate(l.inner * x) : x;
}

template <bool CAPPED> CU_DEVICE float shift_of(const Logits &l, float top) {
    return l.unit * capped<CAPPED>(l, top);
}

/* A row's largest product before its first key: finite, because an infinite shift less itself is NaN. */
constexpr float NO_TOP = -FLT_MAX;

/* *maximum = max(*maximum, value), NaN if one is NaN. Swapping 0 for 0 reads. */
CU_DEVICE void raise_maximum(float *maximum, float value) {
    int *bits = (int *)maximum, held = atomicCAS(bits, 0, 0);
    for (;;) {
        float current = __int_as_float(held);
        if (isnan(current) || value <= current) return;
        int found = atomicCAS(bits, held, __float_as_int(value));
        if (found == held) return;
        held = found;
    }
}

/* The largest product and the largest magnitude that each lane of a warp has seen, into the head's maxima. */
CU_DEVICE void raise_maxima(const AttentionForward &a, int h, float top, float magnitude) {
    top = warp_max(top), magnitude = warp_max(magnitude);
    if (!a.max_logit || threadIdx.x % WARP != 0 || top == NO_TOP) return;
    float scale = fabsf(a.shape.scale);
    raise_maximum(a.max_logit + h, scale * top);
    raise_maximum(a.max_abs + h, isnan(top) ? top : scale * magnitude);
}

CU_DEVICE void store_lse(const AttentionForward &a, QueryTile tile, int row, float shift, float sum) {
    a.lse[((int64_t)tile.b * a.shape.H + tile.h) * a.shape.T + row] = LN_2 * shift + logf(sum);
}

/* ---- launching --------------------------------------------------------------------------------------------------- */

/* A run of heads is as many as a part of the L2 cache, of 40 MB and more, holds K and V of. */
static inline dim3 grid_of(const AttentionShape &shape, int queries, DType dtype) {
    constexpr int64_t BUDGET = 16 << 20;
    int64_t heads = int_of((int64_t)shape.B * shape.H),
            bytes = shape.T * (int64_t)(shape.D + shape.E) * dtype_size(dtype);
    int64_t together = std::max<int64_t>(1, BUDGET / bytes) * (shape.H / shape.K), runs = ceil_div(heads, together);
    return dim3((unsigned)ceil_div(heads, runs), (unsigned)ceil_div(shape.T, queries), (unsigned)runs);
}

/* Of any head size and either dtype. */
void cuda_attention_plain_forward(Backend *be, const AttentionForward &a, DType dtype);
