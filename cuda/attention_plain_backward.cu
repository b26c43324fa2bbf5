/* op_attention_grad in fp32, for tensors of f32 and for heads of any size.
 *
 * A block of threads has SQUARE rows of its own and WIDTH columns of their gradients; it computes p and ds of SQUARE x
 * SQUARE pairs at a time, passing through D and E in steps of SQUARE columns. Heads wider than WIDTH do that again for
 * each WIDTH columns: any size is possible, and this is the path for comparisons, not for speed. Eight threads share
 * an own row: each has every eighth pair of it, and every eighth column. */
#include "cuda/attention_backward.cuh"

namespace {

enum { PLAIN_THREADS = 256, LANES = 8, SQUARE = PLAIN_THREADS / LANES, WIDTH = 64 };

/* Rows are an odd number of banks apart. */
struct PlainTiles {
    float a[SQUARE][SQUARE + 1], b[SQUARE][SQUARE + 1];
    float p[SQUARE][SQUARE + 1], ds[SQUARE][SQUARE + 1]; /* [own][other] */
    float rows[SQUARE][WIDTH + 1];
};

typedef float PlainScores[SQUARE / LANES]; /* of own row thread / LANES, other rows thread % LANES + LANES n */
typedef float PlainSums[WIDTH / LANES];    /* likewise columns */

/* SQUARE rows from `first` on of one head of a tensor. */
template <class T> struct PlainRows {
    const T *head;
    int64_t row_stride;
    int first, end, size;
};

template <class T>
CU_DEVICE PlainRows<T> plain_rows(const HeadTensor &x, int b, int head, int first, int end, int size) {
    return {head_of<T>(x, b, head), x.row_stride, first, end, size};
}

/* Columns [column, column + COLUMNS), 0 beyond the end. */
template <class T, int STRIDE>
CU_DEVICE void load_plain(float (&x)[SQUARE][STRIDE], const PlainRows<T> &rows, int column) {
    constexpr int COLUMNS = STRIDE - 1;
    for (int i = (int)threadIdx.x; i < SQUARE * COLUMNS; i += PLAIN_THREADS) {
        int row = rows.first + i / COLUMNS, c = column + i % COLUMNS;
        bool exists = row < rows.end && c < rows.size;
        x[i / COLUMNS][i % COLUMNS] = exists ? to_float(rows.head[row * rows.row_stride + c]) : 0;
    }
}

/* c = own otherᵀ */
template <class T>
CU_DEVICE void multiply_plain(PlainScores &c, PlainTiles &tiles, const PlainRows<T> &own, const PlainRows<T> &other) {
    int row = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
    for (float &sum : c) sum = 0;
    for (int column = 0; column < own.size; column += SQUARE) {
        load_plain(tiles.a, own, column);
        load_plain(tiles.b, other, column);
        __syncthreads();
        for (int d = 0; d < SQUARE; d++)
#pragma unroll
            for (int n = 0; n < SQUARE / LANES; n++) c[n] += tiles.a[row][d] * tiles.b[lane + LANES * n][d];
        __syncthreads();
    }
}

/* p and ds of one pair: s is q·k and dp dout·v. */
struct PlainPair {
    float p, ds;
};

CU_DEVICE PlainPair plain_pair(float s, float dp, RowStats query, const AttentionShape &shape) {
    float logit = shape.scale * s, t = shape.softcap > 0 ? tanhf(logit / shape.softcap) : 0;
    float p = expf((shape.softcap > 0 ? shape.softcap * t : logit) - query.lse);
    return {p, p * (1 - t * t) * (dp - query.delta)};
}

template <Triangle SIGHT> CU_DEVICE bool plain_sees(int own, int other, int T) {
    return is_seen<SIGHT>(own, other) && (SIGHT == SEES_UP_TO_ITSELF || other < T);
}

/* p and ds into shared memory; where a pair is unseen, anything. `stats` is of the own or the other side's query. */
template <Triangle SIGHT>
CU_DEVICE void store_plain_pairs(PlainTiles &tiles, const PlainScores &s, const PlainScores &dp, const RowStats *stats,
                                 int own_first, int other_first, const AttentionShape &shape) {
    int row = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
#pragma unroll
    for (int n = 0; n < SQUARE / LANES; n++) {
        int other = lane + LANES * n, query = SIGHT == SEES_UP_TO_ITSELF ? own_first + row : other_first + other;
        PlainPair pair = plain_pair(s[n], dp[n], stats[query], shape);
        tiles.p[row][other] = pair.p;
        tiles.ds[row][other] = pair.ds;
    }
    __syncthreads();
}

/* sums += weights · rows, over what the own row sees. */
template <Triangle SIGHT, class T>
CU_DEVICE void add_plain(PlainSums &sums, PlainTiles &tiles, const float (&weights)[SQUARE][SQUARE + 1],
                         const PlainRows<T> &rows, int column, int own_first) {
    int row = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
    load_plain(tiles.rows, rows, column);
    __syncthreads();
    for (int i = 0; i < SQUARE; i++) {
        if (!plain_sees<SIGHT>(own_first + row, rows.first + i, rows.end)) continue;
#pragma unroll
        for (int n = 0; n < WIDTH / LANES; n++) sums[n] += weights[row][i] * tiles.rows[i][lane + LANES * n];
    }
    __syncthreads();
}

template <class T>
CU_DEVICE void store_plain(const HeadTensor &x, int b, int head, int first, int end, int size, int column,
                           const PlainSums &sums, float factor) {
    int row = first + (int)threadIdx.x / LANES;
    T *target = head_of<T>(x, b, head) + row * x.row_stride;
#pragma unroll
    for (int n = 0; n < WIDTH / LANES; n++) {
        int c = column + (int)threadIdx.x % LANES + LANES * n;
        if (row < end && c < size) target[c] = from_float<T>(factor * sums[n]);
    }
}

template <class T>
__global__ void __launch_bounds__(PLAIN_THREADS) attention_backward_plain_keys(AttentionBackward a, int columns) {
    CU_SHARED(PlainTiles, tiles, [1]);
    const AttentionShape &shape = a.shape;
    int first = (int)blockIdx.x / columns * SQUARE, column = (int)blockIdx.x % columns * WIDTH;
    int head = (int)blockIdx.y, b = (int)blockIdx.z, group = shape.H / shape.K;
    PlainRows<T> k = plain_rows<T>(a.k, b, head, first, shape.T, shape.D);
    PlainRows<T> v = plain_rows<T>(a.v, b, head, first, shape.T, shape.E);
    KeyRange queries = queries_of_some(first, min(first + SQUARE, shape.T), shape.T);
    PlainSums dk = {}, dv = {};
    for (int h = head * group; h < (head + 1) * group; h++)
        for (int query = queries.first; query < queries.end; query += SQUARE) {
            PlainRows<T> q = plain_rows<T>(a.q, b, h, query, shape.T, shape.D);
            PlainRows<T> dout = plain_rows<T>(a.dout, b, h, query, shape.T, shape.E);
            PlainScores s, dp;
            multiply_plain(s, *tiles, k, q);
            multiply_plain(dp, *tiles, v, dout);
            store_plain_pairs<SEES_FROM_ITSELF>(*tiles, s, dp, rows_of(a, b, h), first, query, shape);
            add_plain<SEES_FROM_ITSELF>(dk, *tiles, tiles->ds, q, column, first);
            add_plain<SEES_FROM_ITSELF>(dv, *tiles, tiles->p, dout, column, first);
        }
    store_plain<T>(a.dk, b, head, first, shape.T, shape.D, column, dk, shape.scale);
    store_plain<T>(a.dv, b, head, first, shape.T, shape.E, column, dv, 1);
}

template <class T>
__global__ void __launch_bounds__(PLAIN_THREADS) attention_backward_plain_queries(AttentionBackward a, int columns) {
    CU_SHARED(PlainTiles, tiles, [1]);
    const AttentionShape &shape = a.shape;
    int first = (int)blockIdx.x / columns * SQUARE, column = (int)blockIdx.x % columns * WIDTH;
    int h = (int)blockIdx.y, b = (int)blockIdx.z, key_head = h / (shape.H / shape.K);
    PlainRows<T> q = plain_rows<T>(a.q, b, h, first, shape.T, shape.D);
    PlainRows<T> dout = plain_rows<T>(a.dout, b, h, first, shape.T, shape.E);
    KeyRange keys = keys_of_some(first, min(first + SQUARE, shape.T));
    PlainSums dq = {};
    for (int key = keys.first; key < keys.end; key += SQUARE) {
        PlainRows<T> k = plain_rows<T>(a.k, b, key_head, key, shape.T, shape.D);
        PlainRows<T> v = plain_rows<T>(a.v, b, key_head, key, shape.T, shape.E);
        PlainScores s, dp;
        multiply_plain(s, *tiles, q, k);
        multiply_plain(dp, *tiles, dout, v);
        store_plain_pairs<SEES_UP_TO_ITSELF>(*tiles, s, dp, rows_of(a, b, h), first, key, shape);
        add_plain<SEES_UP_TO_ITSELF>(dq, *tiles, tiles->ds, k, column, first);
    }
    store_plain<T>(a.dq, b, h, first, shape.T, shape.D, column, dq, shape.scale);
}

template <class T> void launch_plain(Backend *be, const AttentionBackward &a) {
    int size = a.shape.D > a.shape.E ? a.shape.D : a.shape.E;
    int key_columns = (int)ceil_div(size, WIDTH), query_columns = (int)ceil_div(a.shape.D, WIDTH);
    int64_t tiles = ceil_div(a.shape.T, SQUARE);
    cuda_launch(be, "attention_grad, keys and values in fp32", attention_backward_plain_keys<T>,
                grid_of(a, tiles * key_columns, a.shape.K), PLAIN_THREADS, 0, a, key_columns);
    cuda_launch(be, "attention_grad, queries in fp32", attention_backward_plain_queries<T>,
                grid_of(a, tiles * query_columns, a.shape.H), PLAIN_THREADS, 0, a, query_columns);
}

} // namespace

void cuda_attention_plain_backward(Backend *be, const AttentionBackward &a, DType dtype) {
    by_dtype(dtype, [&](auto zero) { launch_plain<decltype(zero)>(be, a); });
}
