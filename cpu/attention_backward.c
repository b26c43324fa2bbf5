/* The gradient of causal attention, tile by tile (Dao et al. 2022, algorithm 4; Dao 2023), on the tiles of
 * cpu/attention.h.
 *
 *      for each block of rows of a query tile, for each key tile, p recomputed from the logsumexp:
 *          p = exp(s - lse);  dp = dout vᵀ;  ds = p (dp - dout·out)
 *          dq += ds k;  dk += dsᵀ q;  dv += pᵀ dout
 */
#include "cpu/attention.h"

/* ---- memory ----------------------------------------------------------------------------------------------------- */

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

int64_t cpu_attention_backward_scratch_bytes(const Backend *be, const OpLimits *limits) {
    return workspaces_bytes(be, limits, backward_workspace);
}

/* ---- rows and blocks -------------------------------------------------------------------------------------------- */

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

INLINE float dot_row(DType t, Rows x, Rows y, int64_t i) {
    const void *a = at(t, x.data, i * x.stride), *b = at(t, y.data, i * y.stride);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < x.size; c++) sum += load(t, a, c) * load(t, b, c);
    return sum;
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

/* The keys [j, j + TILE_ROWS) of the tile gather from the rows that see them: c (TILE_ROWS,n) += weightsᵀ x, with
 * weights (QUERY_TILE,KEY_TILE), x (QUERY_TILE,n), both in pairs. */
static void add_from_queries(const Attention *a, Meeting m, int64_t j, float *c, const TileWord *weights,
                             const TileWord *x, int64_t ld, int64_t n) {
    int64_t key = m.j0 + j, end = key + TILE_ROWS;
    int64_t own = queries_of_some(key, end, a->T).first - m.i0; /* the row on the diagonal, if it is in this tile */
    int64_t r = larger(0, round_up(queries_of_all(key, end, a->T).first, TILE_ROWS) - m.i0); /* from here on, all */
    if (own >= 0 && own < m.rows) {
        TileOperand diagonal = {weights + own / a->depth * KEY_TILE + j, 1, KEY_TILE};
        tile_triangle_add(a->depth, c, ld, diagonal, x + own / a->depth * ld, ld, n, smaller(TILE_ROWS, m.rows - own),
                          TILE_UPPER);
    }
    if (r < m.rows) {
        TileOperand below = {weights + r / a->depth * KEY_TILE + j, 1, KEY_TILE};
        tile_product(a->depth, c, ld, below, x + r / a->depth * ld, ld, n, m.rows - r, TILE_ADD);
    }
}

/* ---- the pass --------------------------------------------------------------------------------------------------- */

/* p and ds of a block of rows, and its part of dq. */
static void differentiate_block(const Attention *a, Workspace *w, Meeting m, int64_t r) {
    int64_t keys = keys_of_block(a, m, r), rows = smaller(TILE_ROWS, m.rows - r);
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
        int64_t rows = smaller(QUERY_TILE, a->T - i0);
        load_queries(a, w, b, head, i0, rows);
        const KeyRange keys = keys_of_tile(i0, rows);
        for (int64_t j0 = keys.first; j0 < keys.end; j0 += KEY_TILE) {
            Meeting m = {i0, rows, j0};
            for (int64_t r = 0; r < rows; r += TILE_ROWS) {
                if (j0 == keys.first) prefetch_next_head(a, b, i0 + r, head);
                differentiate_block(a, w, m, r);
            }
            for (int64_t j = 0; j < smaller(KEY_TILE, a->T - j0); j += TILE_ROWS) {
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
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t item = 0; item < a.B * a.K; item++) {
        Workspace w = thread_workspace(be, "attention_grad", backward_workspace, a.extent, a.depth, 0);
        differentiate_group(&a, &w, item / a.K, item % a.K);
    }
}
