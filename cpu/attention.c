/* Causal attention and its gradient, tile by tile (Dao et al. 2022, FlashAttention; Dao 2023, FlashAttention-2).
 *
 * A thread takes one (sequence, key head) at a time with all query heads that read it, so dk and dv are summed in one
 * fixed order and results do not depend on the number of threads. The head's keys and values are unpacked once into the
 * thread's part of the scratch memory in the layouts that tile products read; then:
 *
 *                    KEY_TILE          forward, for each query tile, for each key tile on or left of the diagonal,
 *               +-------+-------+      for each block of TILE_ROWS rows (its logits never leave the L1 cache):
 *               | \     |       |          s = scale q kᵀ;  m' = max(m, max s);  p = exp(s - m')
 *    QUERY_TILE |   \   |       |          o = o exp(m - m') + p v;  sum = sum exp(m - m') + sum p
 *               |     \ |       |      at the row's end: out = o / sum, lse = m + log sum
 *               +-------+-------+
 *               |       | \     |      backward, the same order, p recomputed from the logsumexp:
 *               |       |   \   |          p = exp(s - lse);  dp = dout vᵀ;  ds = p (dp - dout·out)
 *               |       |     \ |          dq += ds k;  dk += dsᵀ q;  dv += pᵀ dout
 *               +-------+-------+
 *
 * Tiles right of the diagonal are skipped, and so are the blocks of a diagonal tile; only a block's own few logits
 * right of the diagonal are computed in vain. They enter no sum, not even as 0: a NaN never reaches an earlier token.
 *
 * Operands of products are fp32, or stay bf16 where the processor multiplies pairs of them (tile_gemm.h): then p and ds
 * are rounded to bf16 for the products they enter, and only there. Logits, their sums, lse, delta and all accumulators
 * are fp32 either way. Processor time of one thread on Zen 4, 16 x 6 heads, T = 256, D = E = 64, tensors in bf16: with
 * fp32 operands 14.5 ms forward and 27.9 backward, with bf16 operands and the tiles below 9.4 and 18.7.
 *
 * Invariants: rows of every buffer that whole vectors are read from are aligned to them. Padding, of rows as of
 * columns, holds anything: it enters products only in rows and columns that nobody reads. Only the second half of a
 * word whose first is in use holds 0.
 *
 * The census is the forward's first product alone, with a look at each row of logits.
 *
 * Letters: B batch, T context, H query heads, K key heads, D size of q and k, E size of v.
 */
#include "cpu/cpu.h"

#include <float.h>
#include <omp.h>

#include "base/status.h"
#include "cpu/simd.h"
#include "cpu/tile_gemm.h"

/* A tile of keys or of values (16 KiB in bf16 at D = 64) stays in the L1 cache while a query tile's blocks pass by. Of
 * 64 each, rows are visited more often: forward takes 9 % longer, backward 5 %. */
enum { QUERY_TILE = 128, KEY_TILE = 128 };
_Static_assert(QUERY_TILE % TILE_ROWS == 0 && KEY_TILE % TILE_ROWS == 0, "blocks begin on the diagonal");
_Static_assert(QUERY_TILE >= KEY_TILE, "keys are staged in buffers of QUERY_TILE rows");

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t context;       /* T, rounded up to whole tiles */
    int64_t key_columns;   /* D, rounded up to whole vectors: row length of q, k and their gradients */
    int64_t value_columns; /* E, likewise */
} Extent;

static Extent extent_of(int64_t context, int64_t key_size, int64_t value_size) {
    return (Extent){round_up(context, KEY_TILE), round_up(key_size, TILE_LANES), round_up(value_size, TILE_LANES)};
}

/* A thread's part of the scratch memory, for one head at a time. The transposes lie tile by tile, (T/KEY_TILE, D or E,
 * KEY_TILE): rows as long as the whole context would be a power of two apart and fall into the same few cache sets.
 *
 * Operands are words of `depth` numbers. In "rows" and transposes a word holds neighbours in one row of the tensor, in
 * "pairs" an even row's number in the lower half and the next row's in the upper. At depth 1 both are the same, and
 * what is then twice the same lies there once. */
typedef struct {
    float *base;
    int64_t used; /* floats */
    int depth;

    TileWord *k_transposed, *v_transposed; /* (T,D), (T,E): their tiles' transposes */
    TileWord *k_pairs, *v_pairs;           /* (T,D), (T,E) */
    TileWord *q_rows, *q_pairs;            /* (QUERY_TILE,D) */
    TileWord *dout_rows, *dout_pairs;      /* (QUERY_TILE,E) */
    TileWord *rows;                        /* (TILE_ROWS,KEY_TILE): p or ds of one block */
    TileWord *p_pairs, *ds_pairs;          /* (QUERY_TILE,KEY_TILE) */
    float *s, *dp;                         /* (TILE_ROWS,KEY_TILE), one block */
    float *dq, *o;                         /* (QUERY_TILE,D), (QUERY_TILE,E) */
    float *dk, *dv;                        /* (T,D), (T,E): sums over the query heads */
    float *row_max, *row_sum; /* (QUERY_TILE), (QUERY_TILE,TILE_LANES) of the softmax so far; lane by lane */
    float *lse, *delta;       /* (QUERY_TILE) logsumexp; dout·out */
} Workspace;

static float *take(Workspace *w, int64_t rows, int64_t columns) {
    float *memory = w->base ? w->base + w->used : NULL;
    w->used += rows * columns;
    return memory;
}

static TileWord *take_words(Workspace *w, int64_t rows, int64_t columns) {
    return take(w, rows / w->depth, columns);
}

/* Another layout of what lies in `same`, which at depth 1 is that layout too. */
static TileWord *take_other(Workspace *w, TileWord *same, int64_t rows, int64_t columns) {
    return w->depth == 1 ? same : take_words(w, rows, columns);
}

/* Both lay the buffers out from `base`, or only measure them if it is NULL. */
static Workspace forward_workspace(float *base, Extent x, int depth) {
    Workspace w = {.base = base, .depth = depth};
    w.k_transposed = take_words(&w, x.context, x.key_columns);
    w.v_pairs = take_words(&w, x.context, x.value_columns);
    w.q_rows = take_words(&w, QUERY_TILE, x.key_columns);
    w.o = take(&w, QUERY_TILE, x.value_columns);
    w.s = take(&w, TILE_ROWS, KEY_TILE);
    w.rows = take_other(&w, w.s, TILE_ROWS, KEY_TILE);
    w.row_sum = take(&w, QUERY_TILE, TILE_LANES);
    w.row_max = take(&w, 1, QUERY_TILE);
    return w;
}

static Workspace backward_workspace(float *base, Extent x, int depth) {
    Workspace w = {.base = base, .depth = depth};
    w.k_pairs = take_words(&w, x.context, x.key_columns);
    w.k_transposed = take_words(&w, x.context, x.key_columns);
    w.v_transposed = take_words(&w, x.context, x.value_columns);
    w.dk = take(&w, x.context, x.key_columns);
    w.dv = take(&w, x.context, x.value_columns);
    w.q_rows = take_words(&w, QUERY_TILE, x.key_columns);
    w.q_pairs = take_other(&w, w.q_rows, QUERY_TILE, x.key_columns);
    w.dout_rows = take_words(&w, QUERY_TILE, x.value_columns);
    w.dout_pairs = take_other(&w, w.dout_rows, QUERY_TILE, x.value_columns);
    w.dq = take(&w, QUERY_TILE, x.key_columns);
    w.s = take(&w, TILE_ROWS, KEY_TILE);
    w.dp = take(&w, TILE_ROWS, KEY_TILE);
    w.rows = take_other(&w, w.dp, TILE_ROWS, KEY_TILE);
    w.p_pairs = take_words(&w, QUERY_TILE, KEY_TILE);
    w.ds_pairs = take_words(&w, QUERY_TILE, KEY_TILE);
    w.lse = take(&w, 1, QUERY_TILE);
    w.delta = take(&w, 1, QUERY_TILE);
    return w;
}

/* Maxima of one head's logits in one sequence, as integers that order as the numbers do; all heads' lie in front of the
 * threads' workspaces and are merged at the end. */
typedef struct {
    int32_t logit;     /* order_from_float */
    int32_t magnitude; /* bits of |logit|; a NaN's are above infinity's, so the maximum keeps it */
} HeadMax;

static int64_t maxima_bytes(int64_t batch, int64_t heads) {
    return round_up(batch * heads * (int64_t)sizeof(HeadMax), 64);
}

/* One maximum of a head in a sequence, and the pair where it is; (-1,-1): none yet. */
typedef struct {
    float value;
    int32_t i, j;
} Sighting;

typedef struct {
    Sighting peak[PEAKS];
    int64_t above;
} HeadCensus;

static int64_t census_bytes(int64_t batch, int64_t heads) {
    return round_up(batch * heads * (int64_t)sizeof(HeadCensus), 64);
}

static Workspace census_workspace(float *base, Extent x, int depth) {
    Workspace w = {.base = base, .depth = depth};
    w.k_transposed = take_words(&w, x.context, x.key_columns);
    w.q_rows = take_words(&w, QUERY_TILE, x.key_columns);
    w.s = take(&w, TILE_ROWS, KEY_TILE);
    return w;
}

static int64_t census_scratch_bytes(const Backend *be, const OpLimits *limits) {
    Extent x = extent_of(limits->context, limits->head_size, limits->head_size);
    int64_t floats =
        max64(census_workspace(NULL, x, TILE_DEPTH_F32).used, census_workspace(NULL, x, TILE_DEPTH_BF16).used);
    return census_bytes(limits->batch, limits->heads) + be->threads * floats * (int64_t)sizeof(float);
}

/* limits->head_size covers both D and E. */
int64_t cpu_attention_scratch_bytes(const Backend *be, const OpLimits *limits) {
    Extent x = extent_of(limits->context, limits->head_size, limits->head_size);
    int64_t floats = 0;
    for (int depth = TILE_DEPTH_F32; depth <= TILE_DEPTH_BF16; depth++)
        floats = max64(floats, max64(forward_workspace(NULL, x, depth).used, backward_workspace(NULL, x, depth).used));
    int64_t bytes = maxima_bytes(limits->batch, limits->heads) + be->threads * floats * (int64_t)sizeof(float);
    return max64(bytes, census_scratch_bytes(be, limits));
}

/* ---- one call --------------------------------------------------------------------------------------------------- */

typedef struct {
    Tensor q, k, v, out, lse;
    Tensor dq, dk, dv, dout;
    AttentionParams params;
    int64_t B, T, H, K, D, E;
    Extent extent;
    int depth;                      /* numbers in a word of operands */
    int64_t key_words, value_words; /* in a row */
} Attention;

static Attention attention_of(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, AttentionParams params) {
    Attention a = {.q = q, .k = k, .v = v, .out = out, .lse = lse, .params = params};
    a.B = q.shape[0], a.T = q.shape[1], a.H = q.shape[2], a.D = q.shape[3];
    a.K = k.shape[2], a.E = v.shape[3];
    a.extent = extent_of(a.T, a.D, a.E);
    a.depth = tile_depth(q.dtype);
    a.key_words = (a.D + a.depth - 1) / a.depth, a.value_words = (a.E + a.depth - 1) / a.depth;
    return a;
}

/* A run of consecutive rows of one head: of x (B,T,heads,size) from x[b][i][head]. */
typedef struct {
    DType dtype;
    void *data;
    int64_t stride, rows, size;
} Rows;

static Rows rows_of(Tensor x, int64_t b, int64_t i, int64_t rows, int64_t head) {
    void *data = at(x.dtype, x.data, b * x.stride[0] + i * x.stride[1] + head * x.stride[2]);
    return (Rows){x.dtype, data, x.stride[1], rows, x.shape[3]};
}

static Rows rows_slice(Rows x, int64_t start, int64_t rows) {
    x.data = at(x.dtype, x.data, start * x.stride);
    x.rows = rows;
    return x;
}

/* Into the L2 cache. A head's rows are far apart, so that the processor does not foresee them, and since they were
 * written they have left the caches: with this, attention takes 6 % less time within a training step. */
static void prefetch(Rows x) {
    enum { LINE = 64 };
    for (int64_t i = 0; i < x.rows; i++) {
        const char *row = at(x.dtype, x.data, i * x.stride), *end = at(x.dtype, row, x.size);
        for (const char *line = row; line < end; line += LINE) __builtin_prefetch(line, 0, 2);
    }
}

/* What the next head will read of the queries of one block, while this head computes them. */
static void prefetch_next_head(const Attention *a, int64_t b, int64_t i, int64_t head) {
    int64_t rows = min64(TILE_ROWS, a->T - i), group = a->H / a->K, next = head + 1;
    if (next == a->H) return;
    prefetch(rows_of(a->q, b, i, rows, next));
    if (a->dout.data) {
        prefetch(rows_of(a->out, b, i, rows, next));
        prefetch(rows_of(a->dout, b, i, rows, next));
    }
    if (next % group == 0) {
        prefetch(rows_of(a->k, b, i, rows, next / group));
        prefetch(rows_of(a->v, b, i, rows, next / group));
    }
}

static float *lse_of(const Attention *a, int64_t b, int64_t head, int64_t i) {
    return (float *)a->lse.data + b * a->lse.stride[0] + head * a->lse.stride[1] + i;
}

/* ---- between storage and tiles ---------------------------------------------------------------------------------- */

INLINE void unpack_floats(DType t, float *tile, int64_t ld, Rows x) {
    for (int64_t i = 0; i < x.rows; i++) {
        const void *row = at(t, x.data, i * x.stride);
#pragma omp simd
        for (int64_t c = 0; c < x.size; c++) tile[i * ld + c] = load(t, row, c);
        for (int64_t c = x.size; c < ld; c++) tile[i * ld + c] = 0;
    }
}

/* Two rows of bf16 become words; if the second is absent, it is zeros. */
static void pair(TileWord *restrict words, const bf16 *restrict even, const bf16 *restrict odd, int64_t n) {
#pragma omp simd
    for (int64_t c = 0; c < n; c++) words[c] = float_from_bits((uint32_t)even[c] | (uint32_t)(odd ? odd[c] : 0) << 16);
}

/* Operands: `ld` numbers in a row, 0 beyond the rows' size. */
static void unpack_rows(int depth, TileWord *tile, int64_t ld, Rows x) {
    if (depth == 1) {
        BY_DTYPE(x.dtype, unpack_floats, tile, ld, x);
        return;
    }
    for (int64_t i = 0; i < x.rows; i++) {
        char *row = (char *)(tile + i * ld / depth);
        memcpy(row, at(x.dtype, x.data, i * x.stride), (size_t)x.size * sizeof(bf16));
        memset(row + x.size * (int64_t)sizeof(bf16), 0, (size_t)(ld - x.size) * sizeof(bf16));
    }
}

static void unpack_pairs(int depth, TileWord *tile, int64_t ld, Rows x) {
    if (depth == 1) {
        unpack_rows(depth, tile, ld, x);
        return;
    }
    for (int64_t i = 0; i < x.rows; i += depth) {
        TileWord *words = tile + i / depth * ld;
        const bf16 *odd = i + 1 < x.rows ? at(x.dtype, x.data, (i + 1) * x.stride) : NULL;
        pair(words, at(x.dtype, x.data, i * x.stride), odd, x.size);
        memset(words + x.size, 0, (size_t)(ld - x.size) * sizeof *words);
    }
}

/* Into tiles (words of a row, KEY_TILE), one after the other; by way of `staging` (KEY_TILE,ld), because reading memory
 * that is not in cache and scattering at the same time is slower than one after the other. */
static void unpack_transposed(int depth, TileWord *tiles, TileWord *staging, int64_t ld, Rows x) {
    int64_t words = (x.size + depth - 1) / depth;
    for (int64_t j0 = 0; j0 < x.rows; j0 += KEY_TILE) {
        TileWord *tile = tiles + j0 * words;
        Rows part = rows_slice(x, j0, min64(KEY_TILE, x.rows - j0));
        unpack_rows(depth, staging, ld, part);
        for (int64_t j = 0; j < part.rows; j++)
            for (int64_t c = 0; c < words; c++) tile[c * KEY_TILE + j] = staging[j * ld / depth + c];
    }
}

/* A block of p or ds as rows of an operand; where no rounding is needed it is `block` itself. */
static const TileWord *block_rows(int depth, TileWord *rows, const float *block, int64_t width) {
    if (depth == 1) return block;
    for (int64_t i = 0; i < TILE_ROWS; i++)
        tile_narrow((bf16 *)(rows + i * KEY_TILE / depth), block + i * KEY_TILE, width);
    return rows;
}

/* Its first `count` rows as pairs, 0 beyond them. */
static void block_pairs(int depth, TileWord *pairs, const TileWord *rows, int64_t count, int64_t width) {
    if (depth == 1) {
        memcpy(pairs, rows, (size_t)(TILE_ROWS * KEY_TILE) * sizeof *pairs);
        return;
    }
    const bf16 *numbers = (const bf16 *)rows;
    for (int64_t i = 0; i < count; i += depth)
        pair(pairs + i / depth * KEY_TILE, numbers + i * KEY_TILE, i + 1 < count ? numbers + (i + 1) * KEY_TILE : NULL,
             width);
}

INLINE void pack_row(DType t, Rows x, int64_t i, const float *values, float factor) {
    void *row = at(t, x.data, i * x.stride);
#pragma omp simd
    for (int64_t c = 0; c < x.size; c++) store(t, row, c, factor * values[c]);
}

static void pack(Rows x, const float *tile, int64_t ld, float factor) {
    for (int64_t i = 0; i < x.rows; i++) BY_DTYPE(x.dtype, pack_row, x, i, tile + i * ld, factor);
}

/* By address, because how vectors are passed by value depends on the instruction set. */
static float lane_sum(const TileVector *x) {
    float sum = 0;
    for (int l = 0; l < TILE_LANES; l++) sum += (*x)[l];
    return sum;
}

INLINE float dot_row(DType t, Rows x, Rows y, int64_t i) {
    const void *a = at(t, x.data, i * x.stride), *b = at(t, y.data, i * y.stride);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < x.size; c++) sum += load(t, a, c) * load(t, b, c);
    return sum;
}

/* ---- where tiles meet the diagonal ------------------------------------------------------------------------------ */

/* One query tile and one key tile. */
typedef struct {
    int64_t i0, rows; /* its queries are [i0, i0 + rows) */
    int64_t j0;       /* its keys start here */
} Meeting;

/* How many keys of the tile some row of the block [r, r + TILE_ROWS) may see. */
static int64_t keys_of_block(const Attention *a, Meeting m, int64_t r) {
    return max64(0, min64(KEY_TILE, min64(m.i0 + r + TILE_ROWS, a->T) - m.j0));
}

/* How many keys of the tile are left of the diagonal block: all of its rows see those. */
static int64_t keys_before_block(Meeting m, int64_t r) {
    return min64(KEY_TILE, m.i0 + r - m.j0);
}

/* A block of rows gathers from the keys it sees: c (TILE_ROWS,n) += weights (TILE_ROWS,KEY_TILE) x (KEY_TILE,n). */
static void add_from_keys(const Attention *a, Meeting m, int64_t r, float *c, const TileWord *weights,
                          const TileWord *x, int64_t ld, int64_t n) {
    int64_t whole = keys_before_block(m, r), keys = keys_of_block(a, m, r), words = whole / a->depth;
    TileOperand left = {weights, KEY_TILE / a->depth, 1}, diagonal = {weights + words, KEY_TILE / a->depth, 1};
    tile_product(a->depth, c, ld, left, x, ld, n, whole, TILE_ADD);
    if (keys > whole) tile_triangle_add(a->depth, c, ld, diagonal, x + words * ld, ld, n, keys - whole, TILE_LOWER);
}

/* The keys [j, j + TILE_ROWS) of the tile gather from the rows that see them: c (TILE_ROWS,n) += weightsᵀ x, with
 * weights (QUERY_TILE,KEY_TILE), x (QUERY_TILE,n), both in pairs. */
static void add_from_queries(const Attention *a, Meeting m, int64_t j, float *c, const TileWord *weights,
                             const TileWord *x, int64_t ld, int64_t n) {
    int64_t own = m.j0 + j - m.i0;             /* the row on the diagonal, if it is in this query tile */
    int64_t r = own < 0 ? 0 : own + TILE_ROWS; /* all rows from here on see all of them */
    if (own >= 0 && own < m.rows) {
        TileOperand diagonal = {weights + own / a->depth * KEY_TILE + j, 1, KEY_TILE};
        tile_triangle_add(a->depth, c, ld, diagonal, x + own / a->depth * ld, ld, n, min64(TILE_ROWS, m.rows - own),
                          TILE_UPPER);
    }
    if (r < m.rows) {
        TileOperand below = {weights + r / a->depth * KEY_TILE + j, 1, KEY_TILE};
        tile_product(a->depth, c, ld, below, x + r / a->depth * ld, ld, n, m.rows - r, TILE_ADD);
    }
}

/* ---- rows of logits --------------------------------------------------------------------------------------------- */

/* The part of one row that lies in a tile: `visible` logits (at least 1), then some right of the diagonal, `width` in
 * all. These are whole vectors: loops run over all of them and have no remainder. */
typedef struct {
    float *s;
    int64_t visible, width;
} LogitRow;

static LogitRow logit_row(const Attention *a, Meeting m, int64_t r, float *s) {
    int64_t block = r / TILE_ROWS * TILE_ROWS;
    int64_t visible = min64(KEY_TILE, m.i0 + r + 1 - m.j0);
    return (LogitRow){s, visible, round_up(keys_of_block(a, m, block), TILE_LANES)};
}

/* What is right of the diagonal becomes `value`. A loop of its own: a comparison with `visible` inside the others makes
 * gcc split them there, which leaves a remainder that it does one by one. It writes whole vectors: reading a vector in
 * which single numbers were just written waits for these to reach the cache. */
static void hide(LogitRow row, float value) {
#pragma omp simd
    for (int64_t c = row.visible / TILE_LANES * TILE_LANES; c < row.width; c++)
        row.s[c] = c < row.visible ? row.s[c] : value;
}

/* The products become logits; the maxima of these, and of their magnitudes if somebody watches. */
INLINE HeadMax scan_row(LogitRow row, float scale, bool watched) {
    int32_t logit = INT32_MIN, magnitude = 0;
#pragma omp simd reduction(max : logit, magnitude)
    for (int64_t c = 0; c < row.width; c++) {
        float s = scale * row.s[c];
        int32_t ordered = order_from_float(s), positive = (int32_t)bits_from_float(s) & INT32_MAX;
        row.s[c] = s;
        logit = ordered > logit ? ordered : logit;
        if (watched) magnitude = positive > magnitude ? positive : magnitude;
    }
    return (HeadMax){logit, magnitude};
}

/* The largest logit of the row; brings the head's maxima up to date. head NULL: nobody watches. */
static float row_maximum(LogitRow row, float scale, HeadMax *head) {
    hide(row, row.s[0]); /* it is among the visible ones already: neither maximum notices */
    if (!head) return float_from_order(scan_row(row, scale, false).logit);
    HeadMax max = scan_row(row, scale, true);
    head->logit = max.logit > head->logit ? max.logit : head->logit;
    head->magnitude = max.magnitude > head->magnitude ? max.magnitude : head->magnitude;
    return float_from_order(max.logit);
}

/* s = cap(scale s) */
static void cap_row(LogitRow row, float scale, float softcap) {
#pragma omp simd
    for (int64_t c = 0; c < row.width; c++) row.s[c] = softcap * fast_tanhf(scale * row.s[c] / softcap);
}

/* s = exp(s - shift), 0 right of the diagonal; sum += these, lane by lane. */
static void exponentiate_row(LogitRow row, float shift, TileVector *sum) {
    hide(row, -INFINITY);
#pragma omp simd
    for (int64_t c = 0; c < row.width; c++) row.s[c] = fast_expf(row.s[c] - shift);
    for (int64_t c = 0; c < row.width; c += TILE_LANES) *sum += *(const TileVector *)(row.s + c);
}

/* s becomes p = exp(cap(scale s) - lse), dp becomes ds = p (dp - delta) cap'(s): cap' = 1 - tanh², and cap(s)/softcap
 * is the tanh. softcap 0 is no cap. */
static void differentiate_row(LogitRow row, float *dp, float lse, float delta, AttentionParams params) {
    float scale = params.scale, inverse_softcap = 0;
    if (params.softcap > 0) {
        cap_row(row, scale, params.softcap);
        scale = 1;
        inverse_softcap = 1 / params.softcap;
    }
#pragma omp simd
    for (int64_t c = 0; c < row.width; c++) {
        float s = scale * row.s[c], t = s * inverse_softcap;
        row.s[c] = fast_expf(s - lse);
        dp[c] = row.s[c] * (dp[c] - delta) * (1.0f - t * t);
    }
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* s becomes p, and what row r of the query tile has summed so far is brought to the new maximum. */
static void softmax_row(const Attention *a, Workspace *w, int64_t r, LogitRow row, HeadMax *head) {
    float largest = row_maximum(row, a->params.scale, head), softcap = a->params.softcap;
    if (softcap > 0) {
        cap_row(row, 1, softcap);
        largest = softcap * fast_tanhf(largest / softcap);
    }
    float shift = largest > w->row_max[r] ? largest : w->row_max[r];
    float shrink = fast_expf(w->row_max[r] - shift);
    TileVector *sum = (TileVector *)w->row_sum + r;
    *sum *= shrink;
    exponentiate_row(row, shift, sum);
    w->row_max[r] = shift;
    if (shrink == 1.0f) return;
    float *o = w->o + r * a->extent.value_columns;
    for (int64_t c = 0; c < a->extent.value_columns; c++) o[c] *= shrink;
}

/* One block's part of x yᵀ, to `s`. */
static void block_product(const Attention *a, float *s, const TileWord *x, int64_t ld, const TileWord *y_transposed,
                          int64_t keys, int64_t size) {
    TileOperand rows = {x, ld / a->depth, 1};
    tile_product(a->depth, s, KEY_TILE, rows, y_transposed, KEY_TILE, keys, size, TILE_SET);
}

static void attend_block(const Attention *a, Workspace *w, Meeting m, int64_t r, HeadMax *head) {
    int64_t keys = keys_of_block(a, m, r), ldk = a->extent.key_columns, ldv = a->extent.value_columns;
    if (keys == 0) return;
    block_product(a, w->s, w->q_rows + r * ldk / a->depth, ldk, w->k_transposed + m.j0 * a->key_words, keys, a->D);
    for (int64_t i = r; i < min64(r + TILE_ROWS, m.rows); i++)
        softmax_row(a, w, i, logit_row(a, m, i, w->s + (i - r) * KEY_TILE), head);
    const TileWord *p = block_rows(a->depth, w->rows, w->s, keys);
    add_from_keys(a, m, r, w->o + r * ldv, p, w->v_pairs + m.j0 * ldv / a->depth, ldv, a->E);
}

static void finish_queries(const Attention *a, Workspace *w, int64_t b, int64_t head, int64_t i0, int64_t rows) {
    Rows out = rows_of(a->out, b, i0, rows, head);
    float *lse = lse_of(a, b, head, i0);
    for (int64_t r = 0; r < rows; r++) {
        float sum = lane_sum((const TileVector *)w->row_sum + r);
        BY_DTYPE(out.dtype, pack_row, out, r, w->o + r * a->extent.value_columns, 1.0f / sum);
        lse[r] = w->row_max[r] + logf(sum);
    }
}

static void attend_head(const Attention *a, Workspace *w, int64_t b, int64_t head, HeadMax *maxima) {
    if (maxima) *maxima = (HeadMax){.logit = INT32_MIN};
    for (int64_t i0 = 0; i0 < a->T; i0 += QUERY_TILE) {
        int64_t rows = min64(QUERY_TILE, a->T - i0);
        unpack_rows(a->depth, w->q_rows, a->extent.key_columns, rows_of(a->q, b, i0, rows, head));
        memset(w->o, 0, (size_t)(QUERY_TILE * a->extent.value_columns) * sizeof(float));
        memset(w->row_sum, 0, (size_t)(QUERY_TILE * TILE_LANES) * sizeof(float));
        for (int64_t r = 0; r < rows; r++) w->row_max[r] = -FLT_MAX;
        for (int64_t j0 = 0; j0 < i0 + rows; j0 += KEY_TILE)
            for (int64_t r = 0; r < rows; r += TILE_ROWS) {
                if (j0 == 0) prefetch_next_head(a, b, i0 + r, head);
                attend_block(a, w, (Meeting){i0, rows, j0}, r, maxima);
            }
        finish_queries(a, w, b, head, i0, rows);
    }
}

static void attend_group(const Attention *a, Workspace *w, int64_t b, int64_t kv, HeadMax *maxima) {
    unpack_transposed(a->depth, w->k_transposed, w->q_rows, a->extent.key_columns, rows_of(a->k, b, 0, a->T, kv));
    unpack_pairs(a->depth, w->v_pairs, a->extent.value_columns, rows_of(a->v, b, 0, a->T, kv));
    int64_t group = a->H / a->K;
    for (int64_t h = kv * group; h < (kv + 1) * group; h++)
        attend_head(a, w, b, h, maxima ? &maxima[b * a->H + h] : NULL);
}

/* The larger of two, NaN if one is NaN. */
static float merge_max(float a, float b) {
    return isnan(a) || a > b ? a : b;
}

static void merge_maxima(const Attention *a, const HeadMax *maxima, float *max_logit, float *max_abs) {
    for (int64_t i = 0; i < a->B * a->H; i++) {
        float magnitude = float_from_bits((uint32_t)maxima[i].magnitude);
        float largest = float_from_order(maxima[i].logit);
        if (isnan(magnitude)) largest = magnitude; /* one with its sign set is the smallest of the ordered bits */
        max_logit[i % a->H] = merge_max(max_logit[i % a->H], largest);
        max_abs[i % a->H] = merge_max(max_abs[i % a->H], magnitude);
    }
}

/* The scratch memory behind the first `shared` bytes, shared out in parts of `floats`. */
static float *thread_workspaces(const Backend *be, const char *op, int64_t shared, int64_t floats) {
    int64_t need = shared + be->threads * floats * (int64_t)sizeof(float);
    CHECK(need <= be->scratch_bytes, "%s needs %lld bytes of scratch memory, %lld are reserved", op, (long long)need,
          (long long)be->scratch_bytes);
    return (float *)((char *)be->scratch + shared);
}

void cpu_attention(Backend *be, Tensor out, Tensor lse, Tensor max_logit, Tensor max_abs, Tensor q, Tensor k, Tensor v,
                   AttentionParams params) {
    Attention a = attention_of(q, k, v, out, lse, params);
    HeadMax *maxima = tensor_present(max_logit) ? be->scratch : NULL;
    int64_t floats = forward_workspace(NULL, a.extent, a.depth).used;
    float *workspaces = thread_workspaces(be, "attention", maxima_bytes(a.B, a.H), floats);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t item = 0; item < a.B * a.K; item++) {
        Workspace w = forward_workspace(workspaces + omp_get_thread_num() * floats, a.extent, a.depth);
        attend_group(&a, &w, item / a.K, item % a.K, maxima);
    }
    if (maxima) merge_maxima(&a, maxima, max_logit.data, max_abs.data);
}

/* ---- census ----------------------------------------------------------------------------------------------------- */

/* The bits of logits at their extremes. Among numbers that are not negative, and among those that are, bits order as
 * magnitudes do; so `highest` is the maximum if one is not negative, and `lowest` the minimum if one is. A NaN is
 * beyond infinity, on its sign's side. */
typedef struct {
    int32_t highest;
    uint32_t lowest;
} Extremes;

typedef int32_t TileInts __attribute__((vector_size(4 * TILE_LANES), may_alias));

/* Of `rows` rows that lie KEY_TILE apart, `width` whole vectors of each. Lanes are compared at the end. */
static Extremes extremes_of(const float *s, int64_t rows, int64_t width, float scale) {
    TileInts highest = (TileInts){0} + INT32_MIN;
    TileBits lowest = {0};
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c += TILE_LANES) {
            TileBits bits = (TileBits)(scale * *(const TileVector *)(s + r * KEY_TILE + c));
            TileInts higher = (TileInts)bits > highest, lower = bits > lowest;
            highest = ((TileInts)bits & higher) | (highest & ~higher);
            lowest = (bits & (TileBits)lower) | (lowest & ~(TileBits)lower);
        }
    Extremes e = {INT32_MIN, 0};
    for (int l = 0; l < TILE_LANES; l++) {
        e.highest = highest[l] > e.highest ? highest[l] : e.highest;
        e.lowest = lowest[l] > e.lowest ? lowest[l] : e.lowest;
    }
    return e;
}

static bool extremes_hold_nan(Extremes e) {
    const uint32_t minus_infinity = 0xff800000u;
    return isnan(float_from_bits((uint32_t)e.highest)) || e.lowest > minus_infinity;
}

/* Without NaN. */
static float largest_magnitude(Extremes e) {
    float highest = fabsf(float_from_bits((uint32_t)e.highest)), lowest = fabsf(float_from_bits(e.lowest));
    return highest > lowest ? highest : lowest;
}

/* Of a row without NaN. */
static float largest_of(LogitRow row, float scale) {
    int32_t largest = INT32_MIN;
#pragma omp simd reduction(max : largest)
    for (int64_t c = 0; c < row.width; c++) {
        int32_t ordered = order_from_float(scale * row.s[c]);
        largest = ordered > largest ? ordered : largest;
    }
    return float_from_order(largest);
}

static int64_t count_above(LogitRow row, float scale, float threshold) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t c = 0; c < row.visible; c++) count += scale * row.s[c] > threshold;
    return count;
}

/* Whether a maximum is `value`, which may be NaN. */
static bool is_peak(float s, float value) {
    return s == value || (isnan(s) && isnan(value));
}

static int64_t first_place_of(LogitRow row, float scale, float value, int which) {
    int64_t c = 0;
    while (!is_peak(which == PEAK_MAGNITUDE ? fabsf(scale * row.s[c]) : scale * row.s[c], value)) c++;
    return c;
}

/* Rows do not come in order: where a maximum comes again, the earlier pair is the place. */
static void note_peak(HeadCensus *head, int which, float value, LogitRow row, float scale, int64_t i, int64_t j0) {
    Sighting *held = &head->peak[which];
    bool again = is_peak(value, held->value), larger = value > held->value || (isnan(value) && !again);
    if (!larger && !(again && i <= held->i)) return;
    int64_t j = j0 + first_place_of(row, scale, value, which);
    if (again && i == held->i && j >= held->j) return;
    *held = (Sighting){value, (int32_t)i, (int32_t)j};
}

static void census_row(HeadCensus *head, LogitRow row, CensusParams p, int64_t i, int64_t j0) {
    Extremes e = extremes_of(row.s, 1, row.width, p.scale);
    bool nan = extremes_hold_nan(e);
    float largest = nan ? NAN : largest_of(row, p.scale);
    note_peak(head, PEAK_SIGNED, largest, row, p.scale, i, j0);
    note_peak(head, PEAK_MAGNITUDE, nan ? NAN : largest_magnitude(e), row, p.scale, i, j0);
    head->above += count_above(row, p.scale, p.threshold);
}

/* Whether a block of logits with these extremes changes the census, and its rows are to be looked at one by one. If all
 * are negative, only they know the largest. */
static bool changes_census(const HeadCensus *head, Extremes e, float threshold) {
    float highest = e.highest < 0 ? 0 : float_from_bits((uint32_t)e.highest);
    return extremes_hold_nan(e) || highest >= head->peak[PEAK_SIGNED].value || highest > threshold ||
           largest_magnitude(e) >= head->peak[PEAK_MAGNITUDE].value;
}

static void census_block(const Attention *a, Workspace *w, Meeting m, int64_t r, HeadCensus *head, CensusParams p) {
    int64_t keys = keys_of_block(a, m, r), ldk = a->extent.key_columns, rows = min64(TILE_ROWS, m.rows - r);
    if (keys == 0) return;
    block_product(a, w->s, w->q_rows + r * ldk / a->depth, ldk, w->k_transposed + m.j0 * a->key_words, keys, a->D);
    for (int64_t i = 0; i < TILE_ROWS; i++) { /* what is not to be seen repeats what is: no maximum notices */
        if (i < rows)
            hide(logit_row(a, m, r + i, w->s + i * KEY_TILE), w->s[i * KEY_TILE]);
        else
            memcpy(w->s + i * KEY_TILE, w->s, KEY_TILE * sizeof *w->s);
    }
    int64_t width = logit_row(a, m, r, w->s).width;
    if (!changes_census(head, extremes_of(w->s, TILE_ROWS, width, p.scale), p.threshold)) return;
    for (int64_t i = 0; i < rows; i++)
        census_row(head, logit_row(a, m, r + i, w->s + i * KEY_TILE), p, m.i0 + r + i, m.j0);
}

static void census_head(const Attention *a, Workspace *w, int64_t b, int64_t h, HeadCensus *head, CensusParams p) {
    const Sighting none = {-INFINITY, -1, -1};
    *head = (HeadCensus){{none, none}, 0};
    for (int64_t i0 = 0; i0 < a->T; i0 += QUERY_TILE) {
        int64_t rows = min64(QUERY_TILE, a->T - i0);
        unpack_rows(a->depth, w->q_rows, a->extent.key_columns, rows_of(a->q, b, i0, rows, h));
        for (int64_t j0 = 0; j0 < i0 + rows; j0 += KEY_TILE)
            for (int64_t r = 0; r < rows; r += TILE_ROWS) census_block(a, w, (Meeting){i0, rows, j0}, r, head, p);
    }
}

static void census_group(const Attention *a, Workspace *w, int64_t b, int64_t kv, HeadCensus *heads, CensusParams p) {
    unpack_transposed(a->depth, w->k_transposed, w->q_rows, a->extent.key_columns, rows_of(a->k, b, 0, a->T, kv));
    int64_t group = a->H / a->K;
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) census_head(a, w, b, h, &heads[b * a->H + h], p);
}

/* Sequences in their order, so that the first of equal logits stays. */
static void merge_peak(float *peak, int32_t *place, const Sighting *s, int64_t row) {
    if (!(s->value > *peak) && !(isnan(s->value) && !isnan(*peak))) return;
    *peak = s->value;
    place[0] = (int32_t)row, place[1] = s->i, place[2] = s->j;
}

static void merge_census(const Attention *a, const HeadCensus *heads, float *peak, int32_t *place, float *above,
                         CensusParams p) {
    for (int64_t i = 0; i < a->B * a->H; i++) {
        int64_t h = i % a->H;
        for (int which = 0; which < PEAKS; which++)
            merge_peak(peak + h * PEAKS + which, place + (h * PEAKS + which) * 3, &heads[i].peak[which],
                       p.first_row + i / a->H);
        above[h] = (float)((double)above[h] + (double)heads[i].above);
    }
}

/* Costs little more than the products q kᵀ, which are a third of cpu_attention, and gives logits of the same bits.
 * Processor time as above: 3.4 ms with bf16 operands (attention 9.2), 6.4 with fp32 (14.0); where half of all logits
 * are above the threshold, 0.9 ms more. */
void cpu_logit_census(Backend *be, Tensor peak, Tensor place, Tensor above, Tensor q, Tensor k, CensusParams p) {
    Attention a = attention_of(q, k, k, tensor_none(), tensor_none(), (AttentionParams){.scale = p.scale});
    HeadCensus *heads = be->scratch;
    int64_t floats = census_workspace(NULL, a.extent, a.depth).used, shared = census_bytes(a.B, a.H);
    float *workspaces = thread_workspaces(be, "logit_census", shared, floats);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t item = 0; item < a.B * a.K; item++) {
        Workspace w = census_workspace(workspaces + omp_get_thread_num() * floats, a.extent, a.depth);
        census_group(&a, &w, item / a.K, item % a.K, heads, p);
    }
    merge_census(&a, heads, peak.data, place.data, above.data, p);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* p and ds of a block of rows, and its part of dq. */
static void differentiate_block(const Attention *a, Workspace *w, Meeting m, int64_t r) {
    int64_t keys = keys_of_block(a, m, r), rows = min64(TILE_ROWS, m.rows - r);
    int64_t ldk = a->extent.key_columns, ldv = a->extent.value_columns;
    if (keys == 0) return;
    block_product(a, w->s, w->q_rows + r * ldk / a->depth, ldk, w->k_transposed + m.j0 * a->key_words, keys, a->D);
    block_product(a, w->dp, w->dout_rows + r * ldv / a->depth, ldv, w->v_transposed + m.j0 * a->value_words, keys,
                  a->E);
    for (int64_t i = 0; i < rows; i++) {
        LogitRow row = logit_row(a, m, r + i, w->s + i * KEY_TILE);
        differentiate_row(row, w->dp + i * KEY_TILE, w->lse[r + i], w->delta[r + i], a->params);
    }
    int64_t pairs = r / a->depth * KEY_TILE;
    block_pairs(a->depth, w->p_pairs + pairs, block_rows(a->depth, w->rows, w->s, keys), rows, keys);
    const TileWord *ds = block_rows(a->depth, w->rows, w->dp, keys);
    block_pairs(a->depth, w->ds_pairs + pairs, ds, rows, keys);
    add_from_keys(a, m, r, w->dq + r * ldk, ds, w->k_pairs + m.j0 * ldk / a->depth, ldk, a->D);
}

static void load_queries(const Attention *a, Workspace *w, int64_t b, int64_t head, int64_t i0, int64_t rows) {
    Rows q = rows_of(a->q, b, i0, rows, head), dout = rows_of(a->dout, b, i0, rows, head);
    Rows out = rows_of(a->out, b, i0, rows, head);
    unpack_rows(a->depth, w->q_rows, a->extent.key_columns, q);
    unpack_rows(a->depth, w->dout_rows, a->extent.value_columns, dout);
    if (a->depth > 1) {
        unpack_pairs(a->depth, w->q_pairs, a->extent.key_columns, q);
        unpack_pairs(a->depth, w->dout_pairs, a->extent.value_columns, dout);
    }
    memset(w->dq, 0, (size_t)(QUERY_TILE * a->extent.key_columns) * sizeof(float));
    memcpy(w->lse, lse_of(a, b, head, i0), (size_t)rows * sizeof(float));
    for (int64_t r = 0; r < rows; r++) w->delta[r] = BY_DTYPE(dout.dtype, dot_row, dout, out, r);
}

static void differentiate_head(const Attention *a, Workspace *w, int64_t b, int64_t head) {
    int64_t ldk = a->extent.key_columns, ldv = a->extent.value_columns;
    for (int64_t i0 = 0; i0 < a->T; i0 += QUERY_TILE) {
        int64_t rows = min64(QUERY_TILE, a->T - i0);
        load_queries(a, w, b, head, i0, rows);
        for (int64_t j0 = 0; j0 < i0 + rows; j0 += KEY_TILE) {
            Meeting m = {i0, rows, j0};
            for (int64_t r = 0; r < rows; r += TILE_ROWS) {
                if (j0 == 0) prefetch_next_head(a, b, i0 + r, head);
                differentiate_block(a, w, m, r);
            }
            for (int64_t j = 0; j < min64(KEY_TILE, a->T - j0); j += TILE_ROWS) {
                add_from_queries(a, m, j, w->dk + (j0 + j) * ldk, w->ds_pairs, w->q_pairs, ldk, a->D);
                add_from_queries(a, m, j, w->dv + (j0 + j) * ldv, w->p_pairs, w->dout_pairs, ldv, a->E);
            }
        }
        pack(rows_of(a->dq, b, i0, rows, head), w->dq, ldk, a->params.scale);
    }
}

static void differentiate_group(const Attention *a, Workspace *w, int64_t b, int64_t kv) {
    int64_t ldk = a->extent.key_columns, ldv = a->extent.value_columns;
    unpack_pairs(a->depth, w->k_pairs, ldk, rows_of(a->k, b, 0, a->T, kv));
    unpack_transposed(a->depth, w->k_transposed, w->q_rows, ldk, rows_of(a->k, b, 0, a->T, kv));
    unpack_transposed(a->depth, w->v_transposed, w->dout_rows, ldv, rows_of(a->v, b, 0, a->T, kv));
    memset(w->dk, 0, (size_t)(a->extent.context * ldk) * sizeof(float));
    memset(w->dv, 0, (size_t)(a->extent.context * ldv) * sizeof(float));
    int64_t group = a->H / a->K;
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) differentiate_head(a, w, b, h);
    pack(rows_of(a->dk, b, 0, a->T, kv), w->dk, ldk, a->params.scale);
    pack(rows_of(a->dv, b, 0, a->T, kv), w->dv, ldv, 1.0f);
}

void cpu_attention_grad(Backend *be, Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                        Tensor k, Tensor v, AttentionParams params) {
    Attention a = attention_of(q, k, v, out, lse, params);
    a.dq = dq, a.dk = dk, a.dv = dv, a.dout = dout;
    int64_t floats = backward_workspace(NULL, a.extent, a.depth).used;
    float *workspaces = thread_workspaces(be, "attention", maxima_bytes(a.B, a.H), floats);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t item = 0; item < a.B * a.K; item++) {
        Workspace w = backward_workspace(workspaces + omp_get_thread_num() * floats, a.extent, a.depth);
        differentiate_group(&a, &w, item / a.K, item % a.K);
    }
}
