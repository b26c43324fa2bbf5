/* Inside of attention on the CPU: tiles, their memory, and how they meet what queries see. Shared by
 * attention_forward.c, attention_backward.c and census.c.
 *
 * A thread takes one (sequence, key head) at a time with all query heads that read it, so dk and dv are summed in one
 * fixed order and results do not depend on the number of threads. The head's keys and values are unpacked once into the
 * thread's part of the scratch memory in the layouts that tile products read; then, for each query tile and each key
 * tile of which it sees a part, blocks of TILE_ROWS queries have their logits computed, which never leave the L1 cache:
 *
 *                    KEY_TILE
 *               +-------+-------+
 *               | \     |       |
 *    QUERY_TILE |   \   |       |
 *               |     \ |       |
 *               +-------+-------+
 *               |       | \     |
 *               |       |   \   |
 *               |       |     \ |
 *               +-------+-------+
 *
 * Tiles that nobody sees are skipped (ops/key_range.h), and so are such blocks of a tile on the diagonal; only a
 * block's own few logits right of the diagonal are computed in vain. They enter no sum, not even as 0: a NaN never
 * reaches an earlier token.
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
 * Letters: B batch, T context, H query heads, K key heads, D size of q and k, E size of v.
 */
#pragma once

#include <omp.h>

#include "base/integer.h"
#include "base/status.h"
#include "cpu/cpu.h"
#include "cpu/simd.h"
#include "cpu/tile_gemm.h"
#include "ops/key_range.h"

/* A tile of keys or of values (16 KiB in bf16 at D = 64) stays in the L1 cache while a query tile's blocks pass by. Of
 * 64 each, rows are visited more often: forward takes 9 % longer, backward 5 %. */
enum { QUERY_TILE = 128, KEY_TILE = 128 };
_Static_assert(QUERY_TILE % TILE_ROWS == 0 && KEY_TILE % TILE_ROWS == 0, "blocks begin on the diagonal");
_Static_assert(QUERY_TILE >= KEY_TILE, "keys are staged in buffers of QUERY_TILE rows");

static inline int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t context;       /* T, rounded up to whole tiles */
    int64_t key_columns;   /* D, rounded up to whole vectors: row length of q, k and their gradients */
    int64_t value_columns; /* E, likewise */
} Extent;

static inline Extent extent_of(int64_t context, int64_t key_size, int64_t value_size) {
    return (Extent){round_up(context, KEY_TILE), round_up(key_size, TILE_LANES), round_up(value_size, TILE_LANES)};
}

/* A thread's part of the scratch memory, for one head at a time. The transposes lie tile by tile, (T/KEY_TILE, D or E,
 * KEY_TILE): rows as long as the whole context would be a power of two apart and fall into the same few cache sets.
 *
 * Operands are words of `depth` numbers. In "rows" and transposes a word holds neighbours in one row of the tensor, in
 * "pairs" an even row's number in the lower half and the next row's in the upper. At depth 1 both are the same, and
 * what is then twice the same lies there once. Each of forward, backward and census lays out what it uses. */
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

static inline float *take(Workspace *w, int64_t rows, int64_t columns) {
    float *memory = w->base ? w->base + w->used : NULL;
    w->used += rows * columns;
    return memory;
}

static inline TileWord *take_words(Workspace *w, int64_t rows, int64_t columns) {
    return take(w, rows / w->depth, columns);
}

/* Another layout of what lies in `same`, which at depth 1 is that layout too. */
static inline TileWord *take_other(Workspace *w, TileWord *same, int64_t rows, int64_t columns) {
    return w->depth == 1 ? same : take_words(w, rows, columns);
}

/* Lays the buffers out from `base`, or only measures them if it is NULL. */
typedef Workspace LayOut(float *base, Extent x, int depth);

/* Of all threads. limits->head_size covers both D and E. */
static inline int64_t workspaces_bytes(const Backend *be, const OpLimits *limits, LayOut *lay_out) {
    Extent x = extent_of(limits->context, limits->head_size, limits->head_size);
    int64_t floats = larger(lay_out(NULL, x, TILE_DEPTH_F32).used, lay_out(NULL, x, TILE_DEPTH_BF16).used);
    return be->threads * floats * (int64_t)sizeof(float);
}

/* This thread's part of the scratch memory behind the first `shared` bytes. */
static inline Workspace thread_workspace(const Backend *be, const char *op, LayOut *lay_out, Extent x, int depth,
                                         int64_t shared) {
    int64_t floats = lay_out(NULL, x, depth).used, need = shared + be->threads * floats * (int64_t)sizeof(float);
    CHECK(need <= be->scratch_bytes, "%s needs %lld bytes of scratch memory, %lld are reserved", op, (long long)need,
          (long long)be->scratch_bytes);
    return lay_out((float *)((char *)be->scratch + shared) + omp_get_thread_num() * floats, x, depth);
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

static inline Attention attention_of(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, AttentionParams params) {
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

static inline Rows rows_of(Tensor x, int64_t b, int64_t i, int64_t rows, int64_t head) {
    void *data = at(x.dtype, x.data, b * x.stride[0] + i * x.stride[1] + head * x.stride[2]);
    return (Rows){x.dtype, data, x.stride[1], rows, x.shape[3]};
}

static inline Rows rows_slice(Rows x, int64_t start, int64_t rows) {
    x.data = at(x.dtype, x.data, start * x.stride);
    x.rows = rows;
    return x;
}

/* Into the L2 cache. A head's rows are far apart, so that the processor does not foresee them, and since they were
 * written they have left the caches: with this, attention takes 6 % less time within a training step. */
static inline void prefetch(Rows x) {
    enum { LINE = 64 };
    for (int64_t i = 0; i < x.rows; i++) {
        const char *row = at(x.dtype, x.data, i * x.stride), *end = at(x.dtype, row, x.size);
        for (const char *line = row; line < end; line += LINE) __builtin_prefetch(line, 0, 2);
    }
}

/* What the next head will read of the queries of one block, while this head computes them. */
static inline void prefetch_next_head(const Attention *a, int64_t b, int64_t i, int64_t head) {
    int64_t rows = smaller(TILE_ROWS, a->T - i), group = a->H / a->K, next = head + 1;
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

static inline float *lse_of(const Attention *a, int64_t b, int64_t head, int64_t i) {
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
static inline void pair(TileWord *restrict words, const bf16 *restrict even, const bf16 *restrict odd, int64_t n) {
#pragma omp simd
    for (int64_t c = 0; c < n; c++) words[c] = float_from_bits((uint32_t)even[c] | (uint32_t)(odd ? odd[c] : 0) << 16);
}

/* Operands: `ld` numbers in a row, 0 beyond the rows' size. */
static inline void unpack_rows(int depth, TileWord *tile, int64_t ld, Rows x) {
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

static inline void unpack_pairs(int depth, TileWord *tile, int64_t ld, Rows x) {
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
static inline void unpack_transposed(int depth, TileWord *tiles, TileWord *staging, int64_t ld, Rows x) {
    int64_t words = (x.size + depth - 1) / depth;
    for (int64_t j0 = 0; j0 < x.rows; j0 += KEY_TILE) {
        TileWord *tile = tiles + j0 * words;
        Rows part = rows_slice(x, j0, smaller(KEY_TILE, x.rows - j0));
        unpack_rows(depth, staging, ld, part);
        for (int64_t j = 0; j < part.rows; j++)
            for (int64_t c = 0; c < words; c++) tile[c * KEY_TILE + j] = staging[j * ld / depth + c];
    }
}

/* A block of p or ds as rows of an operand; where no rounding is needed it is `block` itself. */
static inline const TileWord *block_rows(int depth, TileWord *rows, const float *block, int64_t width) {
    if (depth == 1) return block;
    for (int64_t i = 0; i < TILE_ROWS; i++)
        tile_narrow((bf16 *)(rows + i * KEY_TILE / depth), block + i * KEY_TILE, width);
    return rows;
}

INLINE void pack_row(DType t, Rows x, int64_t i, const float *values, float factor) {
    void *row = at(t, x.data, i * x.stride);
#pragma omp simd
    for (int64_t c = 0; c < x.size; c++) store(t, row, c, factor * values[c]);
}

static inline void pack(Rows x, const float *tile, int64_t ld, float factor) {
    for (int64_t i = 0; i < x.rows; i++) BY_DTYPE(x.dtype, pack_row, x, i, tile + i * ld, factor);
}

/* ---- where tiles meet what queries see -------------------------------------------------------------------------- */

/* One query tile and one key tile. */
typedef struct {
    int64_t i0, rows; /* its queries are [i0, i0 + rows) */
    int64_t j0;       /* its keys start here */
} Meeting;

/* The keys that a query tile passes over, from the start of a key tile on. */
static inline KeyRange keys_of_tile(int64_t i0, int64_t rows) {
    KeyRange keys = keys_of_some(i0, i0 + rows);
    keys.first = keys.first / KEY_TILE * KEY_TILE;
    return keys;
}

/* Both of a block of rows [r, r + TILE_ROWS), in keys of the tile, counted from its first: how many some row sees, and
 * how many, in whole blocks, all rows see. What lies between is the block on the diagonal. */
static inline int64_t keys_of_block(const Attention *a, Meeting m, int64_t r) {
    int64_t end = smaller(m.i0 + r + TILE_ROWS, a->T);
    return larger(0, smaller(KEY_TILE, keys_of_some(m.i0 + r, end).end - m.j0));
}

static inline int64_t keys_before_block(Meeting m, int64_t r) {
    int64_t end = keys_of_all(m.i0 + r, m.i0 + r + TILE_ROWS).end;
    return smaller(KEY_TILE, end / TILE_ROWS * TILE_ROWS - m.j0);
}

/* A block of rows gathers from the keys it sees: c (TILE_ROWS,n) += weights (TILE_ROWS,KEY_TILE) x (KEY_TILE,n). */
static inline void add_from_keys(const Attention *a, Meeting m, int64_t r, float *c, const TileWord *weights,
                                 const TileWord *x, int64_t ld, int64_t n) {
    int64_t whole = keys_before_block(m, r), keys = keys_of_block(a, m, r), words = whole / a->depth;
    TileOperand left = {weights, KEY_TILE / a->depth, 1}, diagonal = {weights + words, KEY_TILE / a->depth, 1};
    tile_product(a->depth, c, ld, left, x, ld, n, whole, TILE_ADD);
    if (keys > whole) tile_triangle_add(a->depth, c, ld, diagonal, x + words * ld, ld, n, keys - whole, TILE_LOWER);
}

/* One block's part of x yᵀ, to `s`. */
static inline void block_product(const Attention *a, float *s, const TileWord *x, int64_t ld,
                                 const TileWord *y_transposed, int64_t keys, int64_t size) {
    TileOperand rows = {x, ld / a->depth, 1};
    tile_product(a->depth, s, KEY_TILE, rows, y_transposed, KEY_TILE, keys, size, TILE_SET);
}

/* ---- rows of logits --------------------------------------------------------------------------------------------- */

/* The part of one row that lies in a tile: `visible` logits (at least 1), then some right of the diagonal, `width` in
 * all. These are whole vectors: loops run over all of them and have no remainder. */
typedef struct {
    float *s;
    int64_t visible, width;
} LogitRow;

static inline LogitRow logit_row(const Attention *a, Meeting m, int64_t r, float *s) {
    int64_t block = r / TILE_ROWS * TILE_ROWS;
    int64_t visible = smaller(KEY_TILE, keys_of_query(m.i0 + r).end - m.j0);
    return (LogitRow){s, visible, round_up(keys_of_block(a, m, block), TILE_LANES)};
}

/* What is right of the diagonal becomes `value`. A loop of its own: a comparison with `visible` inside the others makes
 * gcc split them there, which leaves a remainder that it does one by one. It writes whole vectors: reading a vector in
 * which single numbers were just written waits for these to reach the cache. */
static inline void hide(LogitRow row, float value) {
#pragma omp simd
    for (int64_t c = row.visible / TILE_LANES * TILE_LANES; c < row.width; c++)
        row.s[c] = c < row.visible ? row.s[c] : value;
}

/* s = cap(scale s) */
static inline void cap_row(LogitRow row, float scale, float softcap) {
#pragma omp simd
    for (int64_t c = 0; c < row.width; c++) row.s[c] = softcap * fast_tanhf(scale * row.s[c] / softcap);
}
