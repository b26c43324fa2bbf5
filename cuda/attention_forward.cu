/* op_attention: causal softmax attention tile by tile (Dao et al. 2022, FlashAttention; Dao 2023, FlashAttention-2).
 *
 * A block of threads takes QUERIES rows of one head and passes over the key tiles that they see. Each warp keeps its
 * rows' sums in registers from the first tile to the last, and works alone but for the tiles of K and V that it shares:
 *
 *           key tiles                  s = q kᵀ
 *         +---+---+---+---+            p = 2^(unit s - shift),  unit = scale log2(e)
 *  warp 0 |   |   | \ |   |            out = out + p v,  sum = sum + sum of p
 *  warp 1 |   |   |  \|   |            where max(unit s) is beyond shift + SHIFT_SLACK, it becomes the shift, and
 *  warp 2 |   |   |   | \ |            out and sum are first multiplied by 2^(old shift - shift)
 *  warp 3 |   |   |   |  \|        at the end: out / sum,  lse = ln(2) (shift + log2(sum))
 *         +---+---+---+---+
 *                                  Only tiles on the diagonal compare indices; those right of it are skipped.
 *
 * K and V tiles come through a ring of STAGES buffers, in the order K0 V0 K1 V1 ...: while one tile is in use, the next
 * ones are on their way (cp.async), and the barrier that says that a tile has arrived is also the one that says that
 * the tile before it is no longer read.
 *
 *      wait for n | barrier | start n + STAGES - 1 into n - 1's buffer | compute with n | wait for n + 1 | ...
 *
 * MaxLogit comes from the same pass: the softmax needs each tile's largest products anyway, and max |s| costs one
 * instruction for each product. Products are compared unscaled, so that scale is one multiplication at the end. Warps
 * raise max_logit and max_abs by compare-and-swap: a maximum does not depend on the order in which it is taken, so the
 * result is deterministic.
 *
 * Order of blocks: of the query tiles of a run of heads, those with the most keys come first, so that short ones fill
 * the gaps at the end. A run is as many heads as the L2 cache holds K and V of.
 *
 * Tensors of f32, and heads larger than MAX_PADDED_HEAD, go through plain products (attention_plain_forward.cu).
 */
#include "cuda/attention_forward.cuh"

/* ---- bf16: tensor cores ----------------------------------------------------------------------------------------- */

/* How the work is cut for padded head size P_. A warp's rows are M blocks of 16: with two, each fragment of K and V
 * that is read serves both, which halves the traffic on shared memory; beyond P = 128 their sums do not fit into the
 * registers any more, and from P = 96 on not beside the products of 64 keys. All sizes stay within 99 KiB of shared
 * memory, which every device grants, and BLOCKS times the size within the 164 KiB of sm_80. */
template <int P_, bool CAPPED_> struct ForwardPlan {
    static constexpr int P = P_, STRIDE = tile_stride(P);
    static constexpr bool CAPPED = CAPPED_;
    static constexpr int M = P <= 128 ? 2 : 1;
    static constexpr int WARPS = P <= 128 ? 4 : 8, THREADS = WARP * WARPS;
    static constexpr int WARP_QUERIES = MMA_ROWS * M, QUERIES = WARP_QUERIES * WARPS;
    static constexpr int KEYS = P < 96 ? 64 : 32;
    static constexpr int STAGES = P < 192 ? 4 : P == 192 ? 3 : 2;
    static constexpr int BLOCKS = P <= 128 ? 2 : 1;           /* on a multiprocessor at a time */
    static constexpr bool KEEPS_QUERIES = P <= 64 && !CAPPED; /* in registers */
    static constexpr size_t SHARED =
        sizeof(__nv_bfloat16) * (tile_elements(QUERIES, P) + STAGES * tile_elements(KEYS, P));
};

/* The ring's tile number n is the keys of key tile n/2 if n is even, its values if n is odd. */
struct Ring {
    __nv_bfloat16 *buffers;
    const __nv_bfloat16 *k, *v; /* the head's */
    int key_tiles;
};

CU_DEVICE Ring ring_of(const AttentionForward &a, QueryTile tile, int key_tiles, __nv_bfloat16 *buffers) {
    int key_head = tile.h / (a.shape.H / a.shape.K);
    return {buffers, head_of<const __nv_bfloat16>(a.k, tile.b, key_head),
            head_of<const __nv_bfloat16>(a.v, tile.b, key_head), key_tiles};
}

template <class Plan> CU_DEVICE __nv_bfloat16 *ring_buffer(const Ring &ring, int n) {
    return ring.buffers + n % Plan::STAGES * tile_elements(Plan::KEYS, Plan::P);
}

/* Waiting counts groups: so every call commits one, beyond the last tile an empty one. */
template <class Plan, bool ALIGNED> CU_DEVICE void start_tile(const Ring &ring, const AttentionForward &a, int n) {
    bool values = n % 2;
    if (n / 2 < ring.key_tiles)
        load_tile<Plan::KEYS, Plan::P, Plan::THREADS, ALIGNED>(
            ring_buffer<Plan>(ring, n), values ? ring.v : ring.k, values ? a.v.row_stride : a.k.row_stride,
            n / 2 * Plan::KEYS, a.shape.T, values ? a.shape.E : a.shape.D, thread_anew());
    cp_async_commit();
}

/* Tile n, once it has arrived. Tile n - 1 is done with. */
template <class Plan, bool ALIGNED>
CU_DEVICE const __nv_bfloat16 *wait_for_tile(const Ring &ring, const AttentionForward &a, int n) {
    cp_async_wait<Plan::STAGES - 2>();
    __syncthreads();
    start_tile<Plan, ALIGNED>(ring, a, n + Plan::STAGES - 1);
    return ring_buffer<Plan>(ring, n);
}

/* A warp's queries as A fragments: of all slices of 16 columns, or of the one in use. */
template <class Plan> struct Queries {
    static constexpr int KEPT = Plan::KEEPS_QUERIES ? Plan::P / 16 : 1;
    const __nv_bfloat16 *rows;
    uint32_t fragment[KEPT][Plan::M][4];
};

template <class Plan> CU_DEVICE void read_queries(Queries<Plan> &q, int slice) {
#pragma unroll
    for (int m = 0; m < Plan::M; m++)
        fragment_a(q.fragment[slice % q.KEPT][m], q.rows + m * MMA_ROWS * Plan::STRIDE + slice * 16, Plan::STRIDE);
}

template <class Plan> CU_DEVICE void start_queries(Queries<Plan> &q, const __nv_bfloat16 *rows) {
    q.rows = rows;
    if constexpr (Plan::KEEPS_QUERIES) {
#pragma unroll
        for (int slice = 0; slice < q.KEPT; slice++) read_queries(q, slice);
    }
}

/* Where a warp's queries meet a key tile. */
struct Meeting {
    int lead;  /* the first query's position less the first key's */
    int sight; /* how many keys of the tile the lane's first row sees, less the lane's first column */
    int rows;  /* that exist, from the lane's first row on */
};

CU_DEVICE Meeting meeting_of(int first_query, int first_key, int T) {
    int lane = thread_anew() % WARP, g = lane / ROW_LANES, t = lane % ROW_LANES, lead = first_query - first_key;
    return {lead, keys_of_query(lead + g).end - 2 * t, T - first_query - g};
}

/* Of the queries of block m and the keys of block j, as side_of_square. */
CU_DEVICE int side_of_block(Meeting meeting, int m, int j) {
    return side_of_square(meeting.lead, MMA_ROWS * (j - m));
}

/* Whether in block m of C, 8 columns from column 8 n on, the query of this lane's element i sees the key. */
CU_DEVICE bool sees(Meeting meeting, int m, int n, int i) {
    return 8 * n + i % 2 - MMA_ROWS * m - i / 2 * 8 < meeting.sight;
}

CU_DEVICE bool row_exists(Meeting meeting, int m, int half) {
    return MMA_ROWS * m + half * 8 < meeting.rows;
}

/* What a warp has of its rows, and of one key tile. A lane has two rows of each block of 16 (g and g + 8), and of
 * `sum` only its own columns' part. */
template <class Plan> struct WarpRows {
    float out[Plan::M][Plan::P / 8][4];
    float s[Plan::M][Plan::KEYS / 8][4]; /* products, then weights */
    float shift[Plan::M][2], sum[Plan::M][2];
    float top, magnitude; /* the largest product, of rows that exist, and the largest magnitude */
};

/* f(element of s, m, n, i) for all of a lane's. */
template <class Plan, class F> CU_DEVICE void for_each_score(WarpRows<Plan> &rows, F f) {
#pragma unroll
    for (int m = 0; m < Plan::M; m++)
#pragma unroll
        for (int n = 0; n < Plan::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) f(rows.s[m][n][i], m, n, i);
}

template <class Plan, class F> CU_DEVICE void for_each_row(const WarpRows<Plan> &, F f) {
#pragma unroll
    for (int row = 0; row < 2 * Plan::M; row++) f(row / 2, row % 2);
}

template <class Plan> CU_DEVICE void clear_rows(WarpRows<Plan> &rows) {
    rows.top = NO_TOP;
    rows.magnitude = 0;
    for_each_row(rows, [&](int m, int half) {
        rows.shift[m][half] = NO_TOP;
        rows.sum[m][half] = 0;
#pragma unroll
        for (int n = 0; n < Plan::P / 8; n++) rows.out[m][n][2 * half] = rows.out[m][n][2 * half + 1] = 0;
    });
}

/* s = q kᵀ; 0 in blocks of keys that no query of the warp sees. */
template <bool DIAGONAL, class Plan>
CU_DEVICE void multiply_keys(WarpRows<Plan> &rows, Queries<Plan> &q, const __nv_bfloat16 *keys, Meeting meeting) {
    for_each_score(rows, [](float &s, int, int, int) { s = 0; });
#pragma unroll
    for (int slice = 0; slice < Plan::P / 16; slice++) {
        uint32_t b[4];
        if (!Plan::KEEPS_QUERIES) read_queries(q, slice);
#pragma unroll
        for (int j = 0; j < Plan::KEYS / 16; j++) {
            if (DIAGONAL && side_of_block(meeting, Plan::M - 1, j) > 0) continue;
            fragment_b_transposed(b, keys + j * 16 * Plan::STRIDE + slice * 16, Plan::STRIDE);
#pragma unroll
            for (int m = 0; m < Plan::M; m++)
                multiply_block(rows.s[m][2 * j], rows.s[m][2 * j + 1], q.fragment[slice % q.KEPT][m], b);
        }
    }
}

/* Takes note of the largest products, and brings rows to the largest of this tile and those before it. Shifts follow
 * only when one of the warp's rows would get weights above 2^SHIFT_SLACK, which is rarely after the first tile; so
 * `out` is rarely scaled. */
constexpr float SHIFT_SLACK = 8;

template <bool DIAGONAL, class Plan>
CU_DEVICE void raise_rows(WarpRows<Plan> &rows, const Logits &logits, Meeting meeting) {
    float top[Plan::M][2];
    for_each_row(rows, [&](int m, int half) { top[m][half] = NO_TOP; });
    for_each_score(rows, [&](float &s, int m, int n, int i) {
        if (DIAGONAL && !sees(meeting, m, n, i)) return;
        top[m][i / 2] = max_keeping_nan(top[m][i / 2], s);
        rows.magnitude = fmaxf(rows.magnitude, fabsf(s));
    });
    bool beyond_slack = false;
    for_each_row(rows, [&](int m, int half) {
        if (row_exists(meeting, m, half)) rows.top = max_keeping_nan(rows.top, top[m][half]);
        top[m][half] = shift_of<Plan::CAPPED>(logits, warp_max<ROW_LANES>(top[m][half]));
        beyond_slack |= top[m][half] > rows.shift[m][half] + SHIFT_SLACK;
    });
    if (!__any_sync(FULL_WARP, beyond_slack)) return;
    for_each_row(rows, [&](int m, int half) {
        float shift = fmaxf(rows.shift[m][half], top[m][half]), shrink = exp2_approximate(rows.shift[m][half] - shift);
        rows.shift[m][half] = shift;
        rows.sum[m][half] *= shrink;
#pragma unroll
        for (int n = 0; n < Plan::P / 8; n++) {
            rows.out[m][n][2 * half] *= shrink;
            rows.out[m][n][2 * half + 1] *= shrink;
        }
    });
}

/* Products become weights, exactly 0 for keys that are not seen. */
template <bool DIAGONAL, class Plan>
CU_DEVICE void weigh_scores(WarpRows<Plan> &rows, const Logits &logits, Meeting meeting) {
    if (logits.negated) for_each_score(rows, [](float &s, int, int, int) { s = -s; });
    raise_rows<DIAGONAL>(rows, logits, meeting);
    for_each_score(rows, [&](float &s, int m, int n, int i) {
        float weight = exp2_approximate(logits.unit * capped<Plan::CAPPED>(logits, s) - rows.shift[m][i / 2]);
        s = !DIAGONAL || sees(meeting, m, n, i) ? weight : 0;
        rows.sum[m][i / 2] += s;
    });
}

template <class Plan> CU_DEVICE void weight_fragment(uint32_t (&a)[4], const WarpRows<Plan> &rows, int m, int j) {
    fragment_a_from_c(a, rows.s[m][2 * j], rows.s[m][2 * j + 1]);
}

/* out += p v */
template <class Plan> CU_DEVICE void multiply_values(WarpRows<Plan> &rows, const __nv_bfloat16 *values) {
#pragma unroll
    for (int j = 0; j < Plan::KEYS / 16; j++) {
        uint32_t a[Plan::M][4];
#pragma unroll
        for (int m = 0; m < Plan::M; m++) weight_fragment(a[m], rows, m, j);
        multiply_slice<Plan::M, Plan::P>(rows.out, a, values + j * 16 * Plan::STRIDE);
    }
}

/* The same where the tile meets the diagonal: first what is left of it, then the blocks on it. */
template <class Plan>
CU_DEVICE void multiply_seen_values(WarpRows<Plan> &rows, const __nv_bfloat16 *values, Meeting meeting) {
    uint32_t a[4], diagonal[Plan::M][4];
    const __nv_bfloat16 *diagonal_values[Plan::M] = {};
#pragma unroll
    for (int m = 0; m < Plan::M; m++)
#pragma unroll
        for (int j = 0; j < Plan::KEYS / 16; j++) {
            const __nv_bfloat16 *slice = values + j * 16 * Plan::STRIDE;
            weight_fragment(a, rows, m, j);
            if (side_of_block(meeting, m, j) < 0) multiply_slice<1, Plan::P>(&rows.out[m], &a, slice);
            if (side_of_block(meeting, m, j) == 0) {
                memcpy(diagonal[m], a, sizeof a);
                diagonal_values[m] = slice;
            }
        }
#pragma unroll
    for (int m = 0; m < Plan::M; m++)
        if (diagonal_values[m])
            multiply_triangle<SEES_UP_TO_ITSELF, Plan::P>(rows.out[m], diagonal[m], diagonal_values[m]);
}

/* By way of the warp's rows of the query tile, so that rows are stored in pieces of 16 bytes. */
template <bool ALIGNED, class Plan>
CU_DEVICE void store_out(const AttentionForward &a, QueryTile tile, const WarpRows<Plan> &rows,
                         const float (&factor)[Plan::M][2], __nv_bfloat16 *staging, int first, int lane) {
    __nv_bfloat16 *own = staging + lane / ROW_LANES * Plan::STRIDE + lane % ROW_LANES * 2;
    __syncwarp();
    for_each_row(rows, [&](int m, int half) {
#pragma unroll
        for (int n = 0; n < Plan::P / 8; n++) {
            const float *x = &rows.out[m][n][2 * half];
            uint32_t pair = pack_bf16(x[0] * factor[m][half], x[1] * factor[m][half]);
            *(uint32_t *)(own + (m * MMA_ROWS + half * 8) * Plan::STRIDE + n * 8) = pair;
        }
    });
    __syncwarp();
    store_tile<Plan::WARP_QUERIES, Plan::P, WARP, ALIGNED>(
        head_of<__nv_bfloat16>(a.out, tile.b, tile.h), a.out.row_stride, staging, first, a.shape.T, a.shape.E, lane);
}

/* out, lse and the maxima of a warp's rows. */
template <bool ALIGNED, class Plan>
CU_DEVICE void finish_rows(const AttentionForward &a, const WarpRows<Plan> &rows, __nv_bfloat16 *query_rows) {
    QueryTile tile = query_tile_of(a.shape, block_anew(), Plan::QUERIES);
    int thread = thread_anew(), lane = thread % WARP, own = thread / WARP * Plan::WARP_QUERIES;
    float factor[Plan::M][2];
    for_each_row(rows, [&](int m, int half) {
        float sum = warp_sum<ROW_LANES>(rows.sum[m][half]);
        int query = tile.first + own + m * MMA_ROWS + half * 8 + lane / ROW_LANES;
        factor[m][half] = __fdividef(1.0f, sum);
        if (lane % ROW_LANES == 0 && query < a.shape.T) store_lse(a, tile, query, rows.shift[m][half], sum);
    });
    store_out<ALIGNED>(a, tile, rows, factor, query_rows + own * Plan::STRIDE, tile.first + own, lane);
    raise_maxima(a, tile.h, rows.top, rows.magnitude);
}

template <class Plan, bool ALIGNED>
__global__ void __launch_bounds__(Plan::THREADS, Plan::BLOCKS) attention_forward(AttentionForward a) {
    CU_SHARED_DYN(__nv_bfloat16, query_rows);
    QueryTile tile = query_tile_of(a.shape, blockIdx, Plan::QUERIES);
    if (tile.b >= a.shape.B) return;
    int seen = keys_of_some(tile.first, min(tile.first + Plan::QUERIES, a.shape.T)).end;
    int key_tiles = (seen + Plan::KEYS - 1) / Plan::KEYS;
    Ring ring = ring_of(a, tile, key_tiles, query_rows + tile_elements(Plan::QUERIES, Plan::P));
    load_tile<Plan::QUERIES, Plan::P, Plan::THREADS, ALIGNED>(
        query_rows, head_of<const __nv_bfloat16>(a.q, tile.b, tile.h), a.q.row_stride, tile.first, a.shape.T, a.shape.D,
        (int)threadIdx.x);
    cp_async_commit();
#pragma unroll 1
    for (int n = 0; n < Plan::STAGES - 1; n++) start_tile<Plan, ALIGNED>(ring, a, n);
    cp_async_wait<Plan::STAGES - 1>();
    __syncthreads();

    int own = (int)threadIdx.x / WARP * Plan::WARP_QUERIES, first = tile.first + own;
    Queries<Plan> q;
    WarpRows<Plan> rows;
    start_queries(q, query_rows + own * Plan::STRIDE);
    clear_rows(rows);
    for (int j = 0; j < ring.key_tiles; j++) {
        Meeting meeting = meeting_of(first, j * Plan::KEYS, a.shape.T);
        bool sees_all = keys_of_all(meeting.lead, meeting.lead + Plan::WARP_QUERIES).end >= Plan::KEYS;
        bool sees_none = keys_of_some(meeting.lead, meeting.lead + Plan::WARP_QUERIES).end <= 0;
        const __nv_bfloat16 *keys = wait_for_tile<Plan, ALIGNED>(ring, a, 2 * j);
        if (sees_all) {
            multiply_keys<false>(rows, q, keys, meeting);
            weigh_scores<false>(rows, a.logits, meeting);
        } else if (!sees_none) {
            multiply_keys<true>(rows, q, keys, meeting);
            weigh_scores<true>(rows, a.logits, meeting);
        }
        const __nv_bfloat16 *values = wait_for_tile<Plan, ALIGNED>(ring, a, 2 * j + 1);
        if (sees_all)
            multiply_values(rows, values);
        else if (!sees_none)
            multiply_seen_values(rows, values, meeting);
    }
    if (first < a.shape.T) finish_rows<ALIGNED>(a, rows, query_rows);
}

/* ---- launching --------------------------------------------------------------------------------------------------- */

template <class Plan> static void launch_plan(Backend *be, const AttentionForward &a, bool aligned) {
    auto kernel = aligned ? attention_forward<Plan, true> : attention_forward<Plan, false>;
    dim3 grid = grid_of(a.shape, Plan::QUERIES, DTYPE_BF16);
    cuda_launch(be, "attention_forward", kernel, grid, dim3(Plan::THREADS), Plan::SHARED, a);
}

static Logits logits_of(AttentionParams p) {
    float scale = fabsf(p.scale);
    if (p.softcap > 0) return {LOG2_E, p.softcap, scale / p.softcap, p.scale < 0};
    return {LOG2_E * scale, 0, 0, p.scale < 0};
}

static void cuda_attention(Backend *be, Tensor out, Tensor lse, Tensor max_logit, Tensor max_abs, Tensor q, Tensor k,
                           Tensor v, AttentionParams params) {
    AttentionForward a = {attention_shape(q, k, v, params),
                          logits_of(params),
                          head_tensor(q),
                          head_tensor(k),
                          head_tensor(v),
                          head_tensor(out),
                          data_of<float>(lse),
                          data_of<float>(max_logit),
                          data_of<float>(max_abs)};
    int size = std::max(a.shape.D, a.shape.E);
    bool aligned = rows_are_aligned(q) && rows_are_aligned(k) && rows_are_aligned(v) && rows_are_aligned(out);
    if (q.dtype == DTYPE_BF16 && size <= MAX_PADDED_HEAD)
        by_padded_head_size(size, [&](auto padded) {
            if (params.softcap > 0)
                launch_plan<ForwardPlan<padded.value, true>>(be, a, aligned);
            else
                launch_plan<ForwardPlan<padded.value, false>>(be, a, aligned);
        });
    else
        cuda_attention_plain_forward(be, a, q.dtype);
}

void cuda_fill_attention_forward(BackendOps *ops) {
    ops->attention = cuda_attention;
}

int64_t cuda_attention_forward_scratch_bytes(const Backend *, const OpLimits *) {
    return 0;
}
