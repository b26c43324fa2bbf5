/* op_logit_census: where the largest logits are, by a pass over q kᵀ alone.
 *
 * A block of threads takes PLAIN_QUERIES rows of one head in one sequence and passes over the keys that they see, in
 * fp32 (cuda/attention_plain.cuh). It leaves one Census in scratch, and a second kernel compares those of a head:
 *
 *      scratch    [head][sequence][query tile] Census
 *
 * Of two pairs with equal logits the one that comes first in the order of (sequence, query, key) is kept, so it does
 * not matter in which order they are compared; and counts are whole numbers. Hence the result is deterministic.
 */
#include <cmath>

#include "cuda/attention_plain.cuh"

namespace {

/* A logit and its pair's number, (sequence T + query) T + key. */
struct Sighting {
    float value;
    int64_t pair;
};

struct Census {
    Sighting peak[PEAKS];
    int64_t above;
};

constexpr int64_t NO_PAIR = INT64_MAX;

CU_DEVICE Census no_census() {
    Sighting none = {-INFINITY, NO_PAIR};
    return {{none, none}, 0};
}

/* A NaN is above every number. */
CU_DEVICE bool is_above(float a, float b) {
    return a > b || (isnan(a) && !isnan(b));
}

CU_DEVICE Sighting first_peak(Sighting a, Sighting b) {
    if (is_above(a.value, b.value)) return a;
    if (is_above(b.value, a.value)) return b;
    return a.pair < b.pair ? a : b;
}

CU_DEVICE void add_census(Census &sum, const Census &x) {
    for (int which = 0; which < PEAKS; which++) sum.peak[which] = first_peak(sum.peak[which], x.peak[which]);
    sum.above += x.above;
}

CU_DEVICE void add_logit(Census &sum, float s, float threshold, int64_t pair) {
    sum.peak[PEAK_SIGNED] = first_peak(sum.peak[PEAK_SIGNED], {s, pair});
    sum.peak[PEAK_MAGNITUDE] = first_peak(sum.peak[PEAK_MAGNITUDE], {fabsf(s), pair});
    sum.above += s > threshold;
}

/* Of all threads of the block, in its first thread. */
CU_DEVICE Census census_of_block(Census sum) {
    CU_SHARED(Census, of_warp, [PLAIN_THREADS / WARP]);
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        Census other;
        for (int which = 0; which < PEAKS; which++) {
            other.peak[which].value = __shfl_xor_sync(FULL_WARP, sum.peak[which].value, distance);
            other.peak[which].pair = __shfl_xor_sync(FULL_WARP, sum.peak[which].pair, distance);
        }
        other.above = __shfl_xor_sync(FULL_WARP, sum.above, distance);
        add_census(sum, other);
    }
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = sum;
    __syncthreads();
    for (int warp = 1; warp < PLAIN_THREADS / WARP && threadIdx.x == 0; warp++) add_census(sum, of_warp[warp]);
    return sum;
}

struct CensusCall {
    AttentionShape shape;
    HeadTensor q, k;
    float threshold;
    int64_t first_row;
    int tiles; /* of queries, in a sequence */
    Census *of_tile;
};

/* Block (head, query tile from the last on, sequence). */
template <class T> __global__ void __launch_bounds__(PLAIN_THREADS, 4) logit_census_kernel(CensusCall a) {
    int h = static_cast<int>(blockIdx.x), tile = a.tiles - 1 - static_cast<int>(blockIdx.y);
    int b = static_cast<int>(blockIdx.z), lane = threadIdx.x % PLAIN_LANES;
    int first = tile * PLAIN_QUERIES, query = first + static_cast<int>(threadIdx.x) / PLAIN_LANES;
    int key_head = h / (a.shape.H / a.shape.K), seen = keys_of_some(first, min(first + PLAIN_QUERIES, a.shape.T)).end;
    PlainRows<T> q = {head_of<const T>(a.q, b, h), a.q.row_stride, first};
    PlainRows<T> k = {head_of<const T>(a.k, b, key_head), a.k.row_stride, 0};
    int64_t first_pair = (static_cast<int64_t>(b) * a.shape.T + query) * a.shape.T;
    Census sum = no_census();
    for (; k.first < seen; k.first += PLAIN_KEYS) {
        float s[PLAIN_KEYS_PER_LANE];
        multiply_keys_plainly(s, q, k, a.shape);
        for (int c = 0; c < PLAIN_KEYS_PER_LANE; c++) {
            int key = k.first + lane + PLAIN_LANES * c;
            if (query < a.shape.T && query_sees(query, key))
                add_logit(sum, a.shape.scale * s[c], a.threshold, first_pair + key);
        }
    }
    sum = census_of_block(sum);
    if (threadIdx.x == 0) a.of_tile[(static_cast<int64_t>(h) * a.shape.B + b) * a.tiles + tile] = sum;
}

CU_DEVICE void store_peak(const CensusCall &a, float *peak, int32_t *place, Sighting s) {
    if (!is_above(s.value, *peak)) return;
    int64_t row = s.pair / a.shape.T;
    *peak = s.value;
    place[0] = static_cast<int32_t>(a.first_row + row / a.shape.T);
    place[1] = static_cast<int32_t>(row % a.shape.T);
    place[2] = static_cast<int32_t>(s.pair % a.shape.T);
}

/* One block a head: its tiles, and then what it had before. */
__global__ void __launch_bounds__(PLAIN_THREADS)
    merge_census_kernel(CensusCall a, float *peak, int32_t *place, float *above) {
    int64_t h = blockIdx.x, tiles = static_cast<int64_t>(a.shape.B) * a.tiles;
    Census sum = no_census();
    for (int64_t i = threadIdx.x; i < tiles; i += PLAIN_THREADS) add_census(sum, a.of_tile[h * tiles + i]);
    sum = census_of_block(sum);
    if (threadIdx.x != 0) return;
    for (int which = 0; which < PEAKS; which++)
        store_peak(a, peak + h * PEAKS + which, place + (h * PEAKS + which) * 3, sum.peak[which]);
    above[h] = static_cast<float>(static_cast<double>(above[h]) + static_cast<double>(sum.above));
}

int64_t census_bytes(int64_t batch, int64_t heads, int64_t context) {
    return batch * heads * ceil_div(context, PLAIN_QUERIES) * static_cast<int64_t>(sizeof(Census));
}

void logit_census(Backend *be, Tensor peak, Tensor place, Tensor above, Tensor q, Tensor k, CensusParams p) {
    CensusCall a = {attention_shape(q, k, k, {p.scale, 0}),
                    head_tensor(q),
                    head_tensor(k),
                    p.threshold,
                    p.first_row,
                    int_of(ceil_div(q.shape[1], PLAIN_QUERIES)),
                    static_cast<Census *>(cuda_scratch(be, census_bytes(q.shape[0], q.shape[2], q.shape[1])))};
    by_dtype(q.dtype, [&](auto zero) {
        dim3 grid(static_cast<unsigned>(a.shape.H), static_cast<unsigned>(a.tiles), static_cast<unsigned>(a.shape.B));
        cuda_launch(be, "logit_census", logit_census_kernel<decltype(zero)>, grid, dim3(PLAIN_THREADS), 0, a);
    });
    cuda_launch(be, "merge_census", merge_census_kernel, dim3(static_cast<unsigned>(a.shape.H)), dim3(PLAIN_THREADS), 0,
                a, data_of<float>(peak), data_of<int32_t>(place), data_of<float>(above));
}

} // namespace

int64_t cuda_census_scratch_bytes(const Backend *, const OpLimits *limits) {
    return census_bytes(limits->batch, limits->heads, limits->context);
}

void cuda_fill_census(BackendOps *ops) {
    ops->logit_census = logit_census;
}
