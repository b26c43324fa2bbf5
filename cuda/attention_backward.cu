/* op_attention_grad: the gradient of causal softmax attention tile by tile (Dao et al. 2022, FlashAttention, algorithm
 * 4; Dao 2023, FlashAttention-2), deterministic.
 *
 *      delta_i = dout_i·out_i      p_ij = exp(cap(s_ij) - lse_i)      ds_ij = p_ij cap'(s_ij) (dout_i·v_j - delta_i)
 *
 *      kernel, attention_backward_      a block of threads has              makes
 *      ..rows                           some rows of dout and out           delta, beside a copy of lse, in scratch
 *      ..keys                           a tile of keys of a key head        dv = pᵀ dout, dk = scale dsᵀ q, over all
 *                                                                           queries that see it, of all its query heads
 *      ..queries                        a tile of queries of a head         dq = scale ds k, over all keys it sees
 *
 * Each gradient is summed in registers by the one warp that owns its rows, in one fixed order, and stored once: no
 * atomics, no order of blocks that matters, no scratch beyond two numbers a row.
 *
 * The price is that s and dout vᵀ are computed for the keys and again for the queries: 7 products, 8 D + 6 E FLOPs for
 * each pair of a query and a key (14 D for D = E), where a single pass over the tiles makes do with 5, 6 D + 4 E. But a
 * single pass has to sum dq across blocks: by atomics, whose order is nobody's; in order, with blocks that wait for
 * each other; or in partial sums, T / tile times as large as dq. With one block for all tiles of a head none of it is
 * needed, but most of the device is idle at small batches, and dq is read and written in fp32 once for each key tile.
 * Above P = 128 dk and dv do not fit into a warp's registers together: ..keys is launched for each, and computes s a
 * third time (10 D + 6 E).
 *
 * Both tile kernels hold rows of their own and let rows of the other side pass by:
 *
 *                    OTHER rows of two tensors at a time,
 *                    double buffered                              own        other
 *                     +----+----+----+----+              ..keys     k, v       q, dout
 *      OWN      warp 0|  \ |    |    |    |              ..queries  q, dout    k, v
 *      rows     warp 1|    |\   |    |    |
 *      of two   warp 2|    |  \ |    |    |
 *      tensors  warp 3|    |    |\   |    |
 *                     +----+----+----+----+
 *
 * A warp takes CHUNK other rows at a time and computes s and dout vᵀ of them and its own rows. Rounded to bf16, p and
 * ds stay in registers: as the A operand of the product with other rows that is added to a gradient.
 *
 * A warp passes over chunks that its rows do not see. On the diagonal p and ds are set to 0 where nothing is seen, not
 * multiplied by 0; and as 0 times NaN is NaN, other rows that hold infinities or NaNs are multiplied row by row there
 * (multiply_row_by_row). So a NaN reaches what depends on it and nothing else.
 *
 * Tensors of f32, and heads larger than MAX_PADDED_HEAD, go through plain products (attention_plain_backward.cu).
 */
#include "cuda/attention_backward.cuh"

#include <algorithm>

namespace {

enum { MOST_OWN_ROWS = 128 }; /* of any kernel below; rows of the scratch are padded to it */

/* ---- delta ------------------------------------------------------------------------------------------------------ */

enum { ROW_THREADS = 256, ROW_LANES = 8 /* to a row */ };

template <class T, int N> CU_DEVICE float partial_dot(const T *a, const T *b, int size, int lane) {
    float sum = 0;
    for (int e = lane * N; e < size; e += ROW_LANES * N) {
        float x[N], y[N];
        load_floats(x, a + e);
        load_floats(y, b + e);
#pragma unroll
        for (int i = 0; i < N; i++) sum += x[i] * y[i];
    }
    return sum;
}

template <class T, int N> __global__ void __launch_bounds__(ROW_THREADS) attention_backward_rows(AttentionBackward a) {
    int64_t row = ((int64_t)blockIdx.x * ROW_THREADS + threadIdx.x) / ROW_LANES, position = row / a.shape.H;
    int lane = threadIdx.x % ROW_LANES, h = (int)(row % a.shape.H);
    int b = (int)(position / a.padded_T), i = (int)(position % a.padded_T);
    bool exists = b < a.shape.B && i < a.shape.T;
    float delta = 0;
    if (exists)
        delta = partial_dot<T, N>(head_of<T>(a.dout, b, h) + i * a.dout.row_stride,
                                  head_of<T>(a.out, b, h) + i * a.out.row_stride, a.shape.E, lane);
    delta = warp_sum<ROW_LANES>(delta);
    if (lane != 0 || b >= a.shape.B) return;
    rows_of(a, b, h)[i] = {exists ? a.lse[((int64_t)b * a.shape.H + h) * a.shape.T + i] : INFINITY, delta};
}

/* ---- bf16: tensor cores ----------------------------------------------------------------------------------------- */

/* How the work is cut for padded head size P_. A warp's own rows are M_ blocks of 16: two let every fragment of the
 * other side serve twice, as long as the registers have room for the sums. Up to P = 128 a block's shared memory stays
 * within the 99 KiB that even the smallest devices grant; P = 192 needs 101 KiB and P = 256 133 KiB. */
template <int P_, int M_> struct BackwardPlan {
    static constexpr int P = P_, M = M_, STRIDE = tile_stride(P);
    static constexpr int WARPS = 4, THREADS = 32 * WARPS;
    static constexpr int WARP_ROWS = MMA_ROWS * M, OWN = WARPS * WARP_ROWS;
    static constexpr int OTHER = P <= 64 ? 64 : 32;
    static constexpr int CHUNK = 32; /* rows of the other side whose p and ds are in registers at once */
    static constexpr int CHUNK_BLOCKS = CHUNK / MMA_ROWS;
    static constexpr int BLOCKS = P <= 128 ? 2 : 1; /* on a multiprocessor at a time */
    static_assert(OWN <= MOST_OWN_ROWS && MOST_OWN_ROWS % OTHER == 0 && OWN % OTHER == 0, "rows are padded");
    static_assert(OTHER % CHUNK == 0, "a tile is whole chunks");
};

template <int P> using KeyPlan = BackwardPlan<P, P <= 64 ? 2 : 1>;
template <int P> using QueryPlan = BackwardPlan<P, P <= 96 ? 2 : 1>;

/* Two tensors' tiles and what is known of their rows. */
template <class Plan> struct SharedTiles {
    __nv_bfloat16 own[2][tile_elements(Plan::OWN, Plan::P)];
    __nv_bfloat16 other[2][2][tile_elements(Plan::OTHER, Plan::P)]; /* [buffer][tensor] */
    RowStats rows[2][Plan::OTHER];                                  /* attention_backward_keys: of the other side */
};

template <class Plan> using Scores = float[Plan::M][Plan::CHUNK / 8][4];
template <class Plan> using Fragments = uint32_t[Plan::M][4]; /* of 16 columns of p or ds, rounded */
template <class Plan> using Sums = float[Plan::M][Plan::P / 8][4];

/* ---- who sees whom ---------------------------------------------------------------------------------------------- */

/* Where a block of a warp's own rows meets a block of the other side: the first row of each. */
template <Triangle SIGHT> struct Meeting { int own, other; };

/* Of `own_rows` and `other_rows` rows from there on. */
template <Triangle SIGHT> CU_DEVICE Sight sight_of(Meeting<SIGHT> m, int own_rows, int other_rows) {
    return SIGHT == SEES_UP_TO_ITSELF ? sight_of_tile(m.own, m.own + own_rows, m.other, m.other + other_rows)
                                      : sight_of_tile(m.other, m.other + other_rows, m.own, m.own + own_rows);
}

/* Of two blocks, as side_of_square. */
template <Triangle SIGHT> CU_DEVICE int side_of_block(Meeting<SIGHT> m) {
    return SIGHT == SEES_UP_TO_ITSELF ? side_of_square(m.own, m.other) : side_of_square(m.other, m.own);
}

/* Of block m of a warp's rows and block n of a chunk, if `first` is where their first blocks meet. */
template <Triangle SIGHT> CU_DEVICE Meeting<SIGHT> block_of(Meeting<SIGHT> first, int m, int n) {
    return {first.own + m * MMA_ROWS, first.other + n * MMA_ROWS};
}

/* x, two neighbouring blocks of C, becomes 0 where no pair is seen. */
template <Triangle SIGHT> CU_DEVICE void clear_unseen(float (&x)[2][4], Meeting<SIGHT> m) {
    if (side_of_block(m) < 0) return;
    int lane = threadIdx.x % 32, own = m.own + lane / 4, other = m.other + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int x_own = own + i / 2 % 2 * 8, x_other = other + i / 4 * 8 + i % 2;
        if (!is_seen<SIGHT>(x_own, x_other)) x[i / 4][i % 4] = 0;
    }
}

/* Whether any of a warp's rows sees any of a chunk's. */
template <class Plan, Triangle SIGHT> CU_DEVICE bool chunk_is_seen(Meeting<SIGHT> first, int T) {
    if (first.own >= T || first.other >= T) return false;
    return sight_of(first, Plan::WARP_ROWS, Plan::CHUNK) != SIGHT_NONE;
}

/* ---- products --------------------------------------------------------------------------------------------------- */

/* c = own otherᵀ, for a warp's rows of a tile and a chunk of another. */
template <class Plan>
CU_DEVICE void multiply_rows(Scores<Plan> &c, const __nv_bfloat16 *own, const __nv_bfloat16 *other) {
#pragma unroll
    for (int m = 0; m < Plan::M; m++)
#pragma unroll
        for (int n = 0; n < Plan::CHUNK / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[m][n][i] = 0;
#pragma unroll
    for (int d = 0; d < Plan::P; d += 16) {
        uint32_t a[Plan::M][4];
#pragma unroll
        for (int m = 0; m < Plan::M; m++) fragment_a(a[m], own + m * MMA_ROWS * Plan::STRIDE + d, Plan::STRIDE);
#pragma unroll
        for (int n = 0; n < Plan::CHUNK_BLOCKS; n++) {
            uint32_t b[4];
            fragment_b_transposed(b, other + n * 16 * Plan::STRIDE + d, Plan::STRIDE);
#pragma unroll
            for (int m = 0; m < Plan::M; m++) multiply_block(c[m][2 * n], c[m][2 * n + 1], a[m], b);
        }
    }
}

/* sums += weights · rows, for 16 rows of the other side, which meet the warp's first own block at `first`. */
template <class Plan, Triangle SIGHT>
CU_DEVICE void accumulate(Sums<Plan> &sums, const Fragments<Plan> &weights, const __nv_bfloat16 *rows,
                          Meeting<SIGHT> first) {
    Meeting<SIGHT> least = block_of(first, SIGHT == SEES_UP_TO_ITSELF ? 0 : Plan::M - 1, 0);
    if (Plan::M > 1 && side_of_block(least) < 0) return multiply_slice<Plan::M, Plan::P>(sums, weights, rows);
#pragma unroll
    for (int m = 0; m < Plan::M; m++) {
        Meeting<SIGHT> meeting = block_of(first, m, 0);
        int side = side_of_block(meeting);
        if (side > 0) continue;
        if (side == 0 && !slice_is_finite<Plan::P>(rows))
            multiply_row_by_row<SIGHT, Plan::P>(sums[m], weights[m], rows);
        else
            multiply_slice<1, Plan::P>(&sums[m], &weights[m], rows);
    }
}

/* ---- p and ds --------------------------------------------------------------------------------------------------- */

/* From a product x = q·k to p = 2^(log2(e) (cap(scale x) - lse)) and to cap'(scale x). */
struct Logits {
    float softcap, inner, unit;
};

CU_DEVICE Logits logits_of(const AttentionShape &shape) {
    float softcap = shape.softcap;
    return {softcap, shape.scale / softcap, (softcap > 0 ? softcap : shape.scale) * LOG2_E};
}

/* Statistics of the queries, where these are the other side: a chunk's. */
struct OtherStats {
    const RowStats *rows;
};

/* Where they are the own side: of rows g and g + 8 of each of a warp's blocks. */
template <class Plan> struct OwnStats { RowStats rows[Plan::M][2]; };

/* Those of C's four elements, in column block n of block m of a warp's rows. */
CU_DEVICE void stats_of_elements(RowStats (&stats)[4], OtherStats source, int, int n) {
    float4 pair = *(const float4 *)&source.rows[n * 8 + threadIdx.x % 4 * 2];
    stats[0] = stats[2] = {pair.x, pair.y};
    stats[1] = stats[3] = {pair.z, pair.w};
}

template <class Plan> CU_DEVICE void stats_of_elements(RowStats (&stats)[4], const OwnStats<Plan> &source, int m, int) {
    stats[0] = stats[1] = source.rows[m][0];
    stats[2] = stats[3] = source.rows[m][1];
}

/* p of four products; x becomes p cap'. */
CU_DEVICE void weigh(float (&p)[4], float (&x)[4], const RowStats (&stats)[4], Logits logits) {
    if (logits.softcap > 0) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float t = tanh_approximate(logits.inner * x[i]);
            p[i] = exp2_approximate(logits.unit * t - LOG2_E * stats[i].lse);
            x[i] = p[i] * (1 - t * t);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = p[i] = exp2_approximate(logits.unit * x[i] - LOG2_E * stats[i].lse);
    }
}

/* p of block n of a chunk; x, the products of q and k, becomes p cap'. The chunk's first block meets the warp's at
 * `first`. */
template <class Plan, Triangle SIGHT, class Stats>
CU_DEVICE void weigh_block(Fragments<Plan> &p, Scores<Plan> &x, int n, const Stats &source, Meeting<SIGHT> first,
                           const AttentionShape &shape) {
    Logits logits = logits_of(shape);
#pragma unroll
    for (int m = 0; m < Plan::M; m++) {
        float value[2][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            RowStats stats[4];
            stats_of_elements(stats, source, m, 2 * n + half);
            weigh(value[half], x[m][2 * n + half], stats, logits);
        }
        clear_unseen(value, block_of(first, m, n));
        fragment_a_from_c(p[m], value[0], value[1]);
    }
}

/* ds of block n of a chunk, with x = p cap' and dp the products of dout and v. */
template <class Plan, Triangle SIGHT, class Stats>
CU_DEVICE void differentiate_block(Fragments<Plan> &ds, const Scores<Plan> &x, const Scores<Plan> &dp, int n,
                                   const Stats &source, Meeting<SIGHT> first) {
#pragma unroll
    for (int m = 0; m < Plan::M; m++) {
        float value[2][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            RowStats stats[4];
            stats_of_elements(stats, source, m, 2 * n + half);
#pragma unroll
            for (int i = 0; i < 4; i++)
                value[half][i] = x[m][2 * n + half][i] * (dp[m][2 * n + half][i] - stats[i].delta);
        }
        clear_unseen(value, block_of(first, m, n));
        fragment_a_from_c(ds[m], value[0], value[1]);
    }
}

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/* Where a warp's rows begin in a tile of the own side. */
template <class Plan> CU_DEVICE int warp_row() {
    return (int)threadIdx.x / 32 * Plan::WARP_ROWS;
}

template <class Plan, bool ALIGNED>
CU_DEVICE void load_own(__nv_bfloat16 *tile, const HeadTensor &x, int b, int head, int first, int T, int size) {
    load_tile<Plan::OWN, Plan::P, Plan::THREADS, ALIGNED>(tile, head_of<__nv_bfloat16>(x, b, head), x.row_stride, first,
                                                          T, size, (int)threadIdx.x);
}

template <class Plan, bool ALIGNED>
CU_DEVICE void load_other(__nv_bfloat16 *tile, const HeadTensor &x, int b, int head, int first, int T, int size) {
    load_tile<Plan::OTHER, Plan::P, Plan::THREADS, ALIGNED>(tile, head_of<__nv_bfloat16>(x, b, head), x.row_stride,
                                                            first, T, size, (int)threadIdx.x);
}

/* Stores a warp's sums as a head's rows from `first` on. They pass through `tile`, own rows of the warp that nobody
 * reads any more, so that they leave in pieces of 16 bytes. */
template <class Plan, bool ALIGNED>
CU_DEVICE void store_sums(const HeadTensor &x, int b, int head, int first, int T, int size, __nv_bfloat16 *tile,
                          const Sums<Plan> &sums, float factor) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < Plan::M; m++)
#pragma unroll
        for (int n = 0; n < Plan::P / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *(uint32_t *)&tile[(m * MMA_ROWS + half * 8 + g) * Plan::STRIDE + n * 8 + 2 * t] =
                    pack_bf16(factor * sums[m][n][2 * half], factor * sums[m][n][2 * half + 1]);
    __syncwarp();
    store_tile<Plan::WARP_ROWS, Plan::P, 32, ALIGNED>(head_of<__nv_bfloat16>(x, b, head), x.row_stride, tile, first, T,
                                                      size, lane);
}

/* ---- dk and dv -------------------------------------------------------------------------------------------------- */

enum { MAX_PADDED_HEAD_OF_BOTH = 128 }; /* above, dk and dv are made by a launch each */

enum KeyGradients { KEY_GRADIENT = 1, VALUE_GRADIENT = 2, BOTH_GRADIENTS = 3 };

/* What one block of threads computes: the keys from `first` on of one key head. Items are the query tiles that see
 * them, one query head after the other. */
struct KeyTile {
    int b, head, first;
    int group;       /* query heads to the key head */
    int query_tile;  /* the first that sees a key */
    int query_tiles; /* of each head */
};

template <class Plan> CU_DEVICE KeyTile key_tile_of_block(const AttentionBackward &a) {
    int first = (int)blockIdx.x * Plan::OWN;
    KeyRange queries = queries_of_some(first, min(first + Plan::OWN, a.shape.T), a.shape.T);
    int query_tile = queries.first / Plan::OTHER, end = (queries.end + Plan::OTHER - 1) / Plan::OTHER;
    return {(int)blockIdx.z, (int)blockIdx.y, first, a.shape.H / a.shape.K, query_tile, end - query_tile};
}

/* Starts to load a query tile's q, dout and row statistics. */
template <class Plan, bool ALIGNED>
CU_DEVICE void load_queries(SharedTiles<Plan> &shared, const AttentionBackward &a, const KeyTile &keys, int item) {
    int b = anew(keys.b), h = anew(keys.head) * keys.group + item / keys.query_tiles, thread = (int)threadIdx.x;
    int first = (keys.query_tile + item % keys.query_tiles) * Plan::OTHER, buffer = item % 2;
    load_other<Plan, ALIGNED>(shared.other[buffer][0], a.q, b, h, first, a.shape.T, a.shape.D);
    load_other<Plan, ALIGNED>(shared.other[buffer][1], a.dout, b, h, first, a.shape.T, a.shape.E);
    if (thread < Plan::OTHER / 2) cp_async16(&shared.rows[buffer][2 * thread], &rows_of(a, b, h)[first + 2 * thread]);
    cp_async_commit();
}

/* A warp's rows of k and v, and a chunk of a query head's rows. */
struct KeyChunk {
    const __nv_bfloat16 *k, *v, *q, *dout;
    OtherStats stats;
    Meeting<SEES_FROM_ITSELF> meeting;
};

/* dv += pᵀ dout, dk += dsᵀ q (scale follows). */
template <class Plan, int WANTED>
CU_DEVICE void add_to_keys(Sums<Plan> &dk, Sums<Plan> &dv, const KeyChunk &c, const AttentionShape &shape) {
    Scores<Plan> x, dp;
    multiply_rows<Plan>(x, c.k, c.q);
#pragma unroll
    for (int n = 0; n < Plan::CHUNK_BLOCKS; n++) {
        Fragments<Plan> p;
        weigh_block<Plan>(p, x, n, c.stats, c.meeting, shape);
        if constexpr (WANTED & VALUE_GRADIENT)
            accumulate<Plan>(dv, p, c.dout + n * MMA_ROWS * Plan::STRIDE, block_of(c.meeting, 0, n));
    }
    if constexpr (!(WANTED & KEY_GRADIENT)) return;
    multiply_rows<Plan>(dp, c.v, c.dout);
#pragma unroll
    for (int n = 0; n < Plan::CHUNK_BLOCKS; n++) {
        Fragments<Plan> ds;
        differentiate_block<Plan>(ds, x, dp, n, c.stats, c.meeting);
        accumulate<Plan>(dk, ds, c.q + n * MMA_ROWS * Plan::STRIDE, block_of(c.meeting, 0, n));
    }
}

template <class Plan, bool ALIGNED, int WANTED>
__global__ void __launch_bounds__(Plan::THREADS, Plan::BLOCKS) attention_backward_keys(AttentionBackward a) {
    CU_SHARED_DYN(SharedTiles<Plan>, shared);
    KeyTile keys = key_tile_of_block<Plan>(a);
    load_own<Plan, ALIGNED>(shared->own[0], a.k, keys.b, keys.head, keys.first, a.shape.T, a.shape.D);
    load_own<Plan, ALIGNED>(shared->own[1], a.v, keys.b, keys.head, keys.first, a.shape.T, a.shape.E);
    load_queries<Plan, ALIGNED>(*shared, a, keys, 0);

    Sums<Plan> dk = {}, dv = {};
    int own = warp_row<Plan>(), first = keys.first + own, items = keys.group * keys.query_tiles;
    for (int item = 0; item < items; item++) {
        cp_async_wait<0>();
        __syncthreads(); /* this item has arrived, and the one before is no longer read */
        if (item + 1 < items) load_queries<Plan, ALIGNED>(*shared, a, keys, item + 1);
        int buffer = item % 2, query = (keys.query_tile + item % keys.query_tiles) * Plan::OTHER;
#pragma unroll 1
        for (int c = 0; c < Plan::OTHER; c += Plan::CHUNK) {
            int own_row = own * Plan::STRIDE, other_row = c * Plan::STRIDE;
            KeyChunk chunk = {shared->own[0] + own_row,
                              shared->own[1] + own_row,
                              shared->other[buffer][0] + other_row,
                              shared->other[buffer][1] + other_row,
                              {shared->rows[buffer] + c},
                              {first, query + c}};
            if (chunk_is_seen<Plan>(chunk.meeting, a.shape.T)) add_to_keys<Plan, WANTED>(dk, dv, chunk, a.shape);
        }
    }
    if constexpr (WANTED & KEY_GRADIENT)
        store_sums<Plan, ALIGNED>(a.dk, keys.b, keys.head, first, a.shape.T, a.shape.D,
                                  shared->own[0] + own * Plan::STRIDE, dk, a.shape.scale);
    if constexpr (WANTED & VALUE_GRADIENT)
        store_sums<Plan, ALIGNED>(a.dv, keys.b, keys.head, first, a.shape.T, a.shape.E,
                                  shared->own[1] + own * Plan::STRIDE, dv, 1);
}

/* ---- dq --------------------------------------------------------------------------------------------------------- */

/* Starts to load a key tile's k and v. */
template <class Plan, bool ALIGNED>
CU_DEVICE void load_keys(SharedTiles<Plan> &shared, const AttentionBackward &a, int b, int head, int item) {
    int first = item * Plan::OTHER;
    b = anew(b);
    load_other<Plan, ALIGNED>(shared.other[item % 2][0], a.k, b, head, first, a.shape.T, a.shape.D);
    load_other<Plan, ALIGNED>(shared.other[item % 2][1], a.v, b, head, first, a.shape.T, a.shape.E);
    cp_async_commit();
}

/* A warp's rows of q and dout, and a chunk of the key head's rows. */
struct QueryChunk {
    const __nv_bfloat16 *q, *dout, *k, *v;
    Meeting<SEES_UP_TO_ITSELF> meeting;
};

/* dq += ds k (scale follows). */
template <class Plan>
CU_DEVICE void add_to_queries(Sums<Plan> &dq, const QueryChunk &c, const OwnStats<Plan> &stats,
                              const AttentionShape &shape) {
    Scores<Plan> x, dp;
    multiply_rows<Plan>(x, c.q, c.k);
#pragma unroll
    for (int n = 0; n < Plan::CHUNK_BLOCKS; n++) {
        Fragments<Plan> p; /* enters no product here */
        weigh_block<Plan>(p, x, n, stats, c.meeting, shape);
    }
    multiply_rows<Plan>(dp, c.dout, c.v);
#pragma unroll
    for (int n = 0; n < Plan::CHUNK_BLOCKS; n++) {
        Fragments<Plan> ds;
        differentiate_block<Plan>(ds, x, dp, n, stats, c.meeting);
        accumulate<Plan>(dq, ds, c.k + n * MMA_ROWS * Plan::STRIDE, block_of(c.meeting, 0, n));
    }
}

/* Of a warp's rows, which begin at `first`. */
template <class Plan> CU_DEVICE void read_own_stats(OwnStats<Plan> &stats, const RowStats *rows, int first) {
#pragma unroll
    for (int i = 0; i < 2 * Plan::M; i++) stats.rows[i / 2][i % 2] = rows[first + i * 8 + threadIdx.x % 32 / 4];
}

template <class Plan, bool ALIGNED>
__global__ void __launch_bounds__(Plan::THREADS, Plan::BLOCKS) attention_backward_queries(AttentionBackward a) {
    CU_SHARED_DYN(SharedTiles<Plan>, shared);
    int b = (int)blockIdx.z, h = (int)blockIdx.y, key_head = h / (a.shape.H / a.shape.K), T = a.shape.T;
    int first_of_block = (int)(gridDim.x - 1 - blockIdx.x) * Plan::OWN; /* the longest first */
    int own = warp_row<Plan>(), first = first_of_block + own;
    load_own<Plan, ALIGNED>(shared->own[0], a.q, b, h, first_of_block, T, a.shape.D);
    load_own<Plan, ALIGNED>(shared->own[1], a.dout, b, h, first_of_block, T, a.shape.E);
    load_keys<Plan, ALIGNED>(*shared, a, b, key_head, 0);

    Sums<Plan> dq = {};
    OwnStats<Plan> stats;
    read_own_stats<Plan>(stats, rows_of(a, b, h), first);
    int seen = keys_of_some(first_of_block, min(first_of_block + Plan::OWN, T)).end;
    int items = (seen + Plan::OTHER - 1) / Plan::OTHER;
    for (int item = 0; item < items; item++) {
        cp_async_wait<0>();
        __syncthreads(); /* this item has arrived, and the one before is no longer read */
        if (item + 1 < items) load_keys<Plan, ALIGNED>(*shared, a, b, key_head, item + 1);
#pragma unroll 1
        for (int c = 0; c < Plan::OTHER; c += Plan::CHUNK) {
            int own_row = own * Plan::STRIDE, other_row = c * Plan::STRIDE;
            QueryChunk chunk = {shared->own[0] + own_row,
                                shared->own[1] + own_row,
                                shared->other[item % 2][0] + other_row,
                                shared->other[item % 2][1] + other_row,
                                {first, item * Plan::OTHER + c}};
            if (chunk_is_seen<Plan>(chunk.meeting, T)) add_to_queries<Plan>(dq, chunk, stats, a.shape);
        }
    }
    store_sums<Plan, ALIGNED>(a.dq, b, h, first, T, a.shape.D, shared->own[0] + own * Plan::STRIDE, dq, a.shape.scale);
}

/* ---- the op ----------------------------------------------------------------------------------------------------- */

int64_t padded_rows(int64_t T) {
    return ceil_div(T, MOST_OWN_ROWS) * MOST_OWN_ROWS;
}

int64_t scratch_bytes(int64_t B, int64_t H, int64_t T) {
    return B * H * padded_rows(T) * (int64_t)sizeof(RowStats);
}

template <class T> void launch_rows(Backend *be, const AttentionBackward &a, bool aligned) {
    int64_t rows = (int64_t)a.shape.B * a.shape.H * a.padded_T;
    by_access<T>(aligned, [&](auto n) {
        cuda_launch(be, "attention_grad, rows", attention_backward_rows<T, n()>,
                    (unsigned)int_of(ceil_div(rows * ROW_LANES, ROW_THREADS)), ROW_THREADS, 0, a);
    });
}

template <class Plan>
void launch_tiles(Backend *be, const AttentionBackward &a, const char *name, void (*kernel)(AttentionBackward),
                  int heads) {
    cuda_launch(be, name, kernel, grid_of(a, ceil_div(a.shape.T, Plan::OWN), heads), Plan::THREADS,
                sizeof(SharedTiles<Plan>), a);
}

template <int P, bool ALIGNED> void launch_tensor_cores(Backend *be, const AttentionBackward &a) {
    using Key = KeyPlan<P>;
    using Query = QueryPlan<P>;
    if constexpr (P <= MAX_PADDED_HEAD_OF_BOTH) {
        launch_tiles<Key>(be, a, "attention_grad, keys and values",
                          attention_backward_keys<Key, ALIGNED, BOTH_GRADIENTS>, a.shape.K);
    } else {
        launch_tiles<Key>(be, a, "attention_grad, values", attention_backward_keys<Key, ALIGNED, VALUE_GRADIENT>,
                          a.shape.K);
        launch_tiles<Key>(be, a, "attention_grad, keys", attention_backward_keys<Key, ALIGNED, KEY_GRADIENT>,
                          a.shape.K);
    }
    launch_tiles<Query>(be, a, "attention_grad, queries", attention_backward_queries<Query, ALIGNED>, a.shape.H);
}

/* False if heads are too large, or the device's shared memory too small. */
bool try_tensor_cores(Backend *be, const AttentionBackward &a, bool aligned) {
    int size = a.shape.D > a.shape.E ? a.shape.D : a.shape.E;
    if (size > MAX_PADDED_HEAD) return false;
    bool fits = true;
    by_padded_head_size(size, [&](auto padded) {
        constexpr int P = padded();
        size_t shared = std::max(sizeof(SharedTiles<KeyPlan<P>>), sizeof(SharedTiles<QueryPlan<P>>));
        fits = shared <= cuda_state(be)->shared_limit;
        if (fits && aligned) launch_tensor_cores<P, true>(be, a);
        if (fits && !aligned) launch_tensor_cores<P, false>(be, a);
    });
    return fits;
}

void cuda_attention_grad(Backend *be, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                         Tensor k, Tensor v, AttentionParams p) {
    AttentionBackward a = {};
    a.shape = attention_shape(q, k, v, p);
    a.dq = head_tensor(dq), a.dk = head_tensor(dk), a.dv = head_tensor(dv);
    a.dout = head_tensor(dout), a.out = head_tensor(out);
    a.q = head_tensor(q), a.k = head_tensor(k), a.v = head_tensor(v);
    a.lse = data_of<float>(lse);
    a.rows = (RowStats *)cuda_scratch(be, scratch_bytes(a.shape.B, a.shape.H, a.shape.T));
    a.padded_T = (int)padded_rows(a.shape.T);

    bool aligned = true;
    for (Tensor x : {dq, dk, dv, dout, q, k, v}) aligned = aligned && rows_are_aligned(x);
    by_dtype(q.dtype, [&](auto zero) {
        using T = decltype(zero);
        launch_rows<T>(be, a, rows_are_aligned(dout) && rows_are_aligned(out));
        if (std::is_same<T, __nv_bfloat16>::value && try_tensor_cores(be, a, aligned)) return;
        cuda_attention_plain_backward(be, a, q.dtype);
    });
}

} // namespace

int64_t cuda_attention_backward_scratch_bytes(const Backend *, const OpLimits *limits) {
    return scratch_bytes(limits->batch, limits->heads, limits->context);
}

void cuda_fill_attention_backward(BackendOps *ops) {
    ops->attention_grad = cuda_attention_grad;
}
