/* op_attention in fp32, for tensors of f32 and for heads of any size: products that cuda/attention_plain.cuh makes. */
#include "cuda/attention_forward.cuh"
#include "cuda/attention_plain.cuh"

/* Rows and lanes are those of cuda/attention_plain.cuh: of the values' columns each lane takes four of 32. The sums of
 * out wait in shared memory, where each lane touches only its own. */

/* out = shrink out + p v for the lane's row, of the first `seen` keys. */
template <class T>
CU_DEVICE void multiply_values_plainly(float *out, const AttentionForward &a, const float *p, float shrink, int seen,
                                       const T *v, int first_key) {
    CU_SHARED(float, values, [PLAIN_KEYS][CHUNK_STRIDE]);
    int lane = threadIdx.x % PLAIN_LANES;
    for (int column = 0; column < a.shape.E; column += CHUNK) {
        __syncthreads();
        load_chunk(values, PlainRows<T>{v, a.v.row_stride, first_key}, a.shape.T, column, a.shape.E);
        __syncthreads();
        float4 sum = {0, 0, 0, 0}, *held = four_of(out + column, lane);
        if (first_key > 0) sum = {held->x * shrink, held->y * shrink, held->z * shrink, held->w * shrink};
        for (int key = 0; key < seen; key++) {
            float4 x = *four_of(values[key], lane);
            sum = {sum.x + p[key] * x.x, sum.y + p[key] * x.y, sum.z + p[key] * x.z, sum.w + p[key] * x.w};
        }
        *held = sum;
    }
}

struct PlainRow {
    float top, sum, magnitude;
};

/* Products of `seen` keys of a tile become weights p[0..seen), and the row is raised to its largest product; what older
 * sums shrink by. */
template <bool CAPPED>
CU_DEVICE float weigh_row(PlainRow &row, float *p, float (&s)[4], int seen, const Logits &logits) {
    int lane = threadIdx.x % PLAIN_LANES;
    float top = row.top;
    for (int c = 0; c < 4; c++) {
        if (logits.negated) s[c] = -s[c];
        if (lane + PLAIN_LANES * c >= seen) continue;
        top = max_keeping_nan(top, s[c]);
        row.magnitude = fmaxf(row.magnitude, fabsf(s[c]));
    }
    top = warp_max<PLAIN_LANES>(top);
    float shift = shift_of<CAPPED>(logits, top), shrink = exp2_approximate(shift_of<CAPPED>(logits, row.top) - shift);
    row.top = top;
    row.sum *= shrink;
    for (int c = 0; c < 4; c++) {
        if (lane + PLAIN_LANES * c >= seen) continue;
        float weight = exp2_approximate(logits.unit * capped<CAPPED>(logits, s[c]) - shift);
        p[lane + PLAIN_LANES * c] = weight;
        row.sum += weight;
    }
    return shrink;
}

template <class T, bool CAPPED>
__global__ void __launch_bounds__(PLAIN_THREADS, 4) attention_forward_plain(AttentionForward a) {
    CU_SHARED_DYN(float, sums); /* [PLAIN_QUERIES][E rounded up to whole chunks] */
    CU_SHARED(float, weights, [PLAIN_QUERIES][CHUNK_STRIDE]);
    QueryTile tile = query_tile_of(a.shape, blockIdx, PLAIN_QUERIES);
    if (tile.b >= a.shape.B) return;
    int i = (int)threadIdx.x / PLAIN_LANES, lane = threadIdx.x % PLAIN_LANES, query = tile.first + i;
    int key_head = tile.h / (a.shape.H / a.shape.K);
    int last = keys_of_some(tile.first, min(tile.first + PLAIN_QUERIES, a.shape.T)).end;
    const T *q = head_of<const T>(a.q, tile.b, tile.h), *k = head_of<const T>(a.k, tile.b, key_head);
    const T *v = head_of<const T>(a.v, tile.b, key_head);
    float *out = sums + i * (int)ceil_div(a.shape.E, CHUNK) * CHUNK, s[4];
    PlainRow row = {NO_TOP, 0, 0};
    for (int first_key = 0; first_key < last; first_key += PLAIN_KEYS) {
        int seen = min(PLAIN_KEYS, keys_of_query(query).end - first_key);
        multiply_keys_plainly(s, PlainRows<T>{q, a.q.row_stride, tile.first},
                              PlainRows<T>{k, a.k.row_stride, first_key}, a.shape);
        float shrink = weigh_row<CAPPED>(row, weights[i], s, seen, a.logits);
        multiply_values_plainly(out, a, weights[i], shrink, seen, v, first_key);
    }
    float sum = warp_sum<PLAIN_LANES>(row.sum), factor = __fdividef(1.0f, sum);
    bool exists = query < a.shape.T;
    if (exists) {
        T *target = head_of<T>(a.out, tile.b, tile.h) + query * a.out.row_stride;
        for (int column = 4 * lane; column < a.shape.E; column += CHUNK)
            for (int c = column; c < min(column + 4, a.shape.E); c++) target[c] = from_float<T>(out[c] * factor);
        if (lane == 0) store_lse(a, tile, query, shift_of<CAPPED>(a.logits, row.top), sum);
    }
    raise_maxima(a, tile.h, exists ? row.top : NO_TOP, row.magnitude);
}

template <class T> static void launch_plain(Backend *be, const AttentionForward &a) {
    size_t row = (size_t)ceil_div(a.shape.E, CHUNK) * CHUNK * sizeof(float);
    size_t room = cuda_state(be)->shared_limit - sizeof(float) * CHUNK_STRIDE * (2 * PLAIN_QUERIES + 2 * PLAIN_KEYS);
    if (PLAIN_QUERIES * row > room) {
        backend_fail(
            be, "attention",
            status_error(STATUS_BAD_INPUT, "head size %d is more than this device can do; use device=cpu", a.shape.E));
        return;
    }
    dim3 grid = grid_of(a.shape, PLAIN_QUERIES, DTYPE_F32);
    auto kernel = a.shape.softcap > 0 ? attention_forward_plain<T, true> : attention_forward_plain<T, false>;
    cuda_launch(be, "attention_forward_plain", kernel, grid, dim3(PLAIN_THREADS), PLAIN_QUERIES * row, a);
}

void cuda_attention_plain_forward(Backend *be, const AttentionForward &a, DType dtype) {
    by_dtype(dtype, [&](auto zero) { launch_plain<decltype(zero)>(be, a); });
}
