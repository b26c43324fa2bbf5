/* Causal attention, tile by tile (Dao et al. 2022, FlashAttention; Dao 2023, FlashAttention-2), on the tiles of
 * cpu/attention.h.
 *
 *      for each block of rows of a query tile, for each key tile:
 *          s = scale q kᵀ;  m' = max(m, max s);  p = exp(s - m')
 *          o = o exp(m - m') + p v;  sum = sum exp(m - m') + sum p
 *      at the row's end: out = o / sum, lse = m + log sum
 *
 * MaxLogit comes from the same pass: it looks at each row's logits anyway.
 *
 *      scratch:  | maxima of every head in every sequence | workspace of thread 0 | 1 | ...
 */
#include <float.h>

#include "cpu/attention.h"

/* ---- memory ----------------------------------------------------------------------------------------------------- */

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

/* Maxima of one head's logits in one sequence, as integers that order as the numbers do; all heads' lie in front of the
 * threads' workspaces and are merged at the end. */
typedef struct {
    int32_t logit;     /* order_from_float */
    int32_t magnitude; /* bits of |logit|; a NaN's are above infinity's, so the maximum keeps it */
} HeadMax;

static int64_t maxima_bytes(int64_t batch, int64_t heads) {
    return round_up(batch * heads * (int64_t)sizeof(HeadMax), 64);
}

int64_t cpu_attention_forward_scratch_bytes(const Backend *be, const OpLimits *limits) {
    return maxima_bytes(limits->batch, limits->heads) + workspaces_bytes(be, limits, forward_workspace);
}

/* ---- the softmax of a row --------------------------------------------------------------------------------------- */

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

/* s = exp(s - shift), 0 right of the diagonal; sum += these, lane by lane. */
static void exponentiate_row(LogitRow row, float shift, TileVector *sum) {
    hide(row, -INFINITY);
#pragma omp simd
    for (int64_t c = 0; c < row.width; c++) row.s[c] = fast_expf(row.s[c] - shift);
    for (int64_t c = 0; c < row.width; c += TILE_LANES) *sum += *(const TileVector *)(row.s + c);
}

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

/* ---- the pass --------------------------------------------------------------------------------------------------- */

static void attend_block(const Attention *a, Workspace *w, Meeting m, int64_t r, HeadMax *head) {
    int64_t keys = keys_of_block(a, m, r), ldk = a->extent.key_columns, ldv = a->extent.value_columns;
    if (keys == 0) return;
    block_product(a, w->s, w->q_rows + r * ldk / a->depth, ldk, w->k_transposed + m.j0 * a->key_words, keys, a->D);
    for (int64_t i = r; i < smaller(r + TILE_ROWS, m.rows); i++)
        softmax_row(a, w, i, logit_row(a, m, i, w->s + (i - r) * KEY_TILE), head);
    const TileWord *p = block_rows(a->depth, w->rows, w->s, keys);
    add_from_keys(a, m, r, w->o + r * ldv, p, w->v_pairs + m.j0 * ldv / a->depth, ldv, a->E);
}

/* By address, because how vectors are passed by value depends on the instruction set. */
static float lane_sum(const TileVector *x) {
    float sum = 0;
    for (int l = 0; l < TILE_LANES; l++) sum += (*x)[l];
    return sum;
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
        int64_t rows = smaller(QUERY_TILE, a->T - i0);
        unpack_rows(a->depth, w->q_rows, a->extent.key_columns, rows_of(a->q, b, i0, rows, head));
        memset(w->o, 0, (size_t)(QUERY_TILE * a->extent.value_columns) * sizeof(float));
        memset(w->row_sum, 0, (size_t)(QUERY_TILE * TILE_LANES) * sizeof(float));
        for (int64_t r = 0; r < rows; r++) w->row_max[r] = -FLT_MAX;
        const KeyRange keys = keys_of_tile(i0, rows);
        for (int64_t j0 = keys.first; j0 < keys.end; j0 += KEY_TILE)
            for (int64_t r = 0; r < rows; r += TILE_ROWS) {
                if (j0 == keys.first) prefetch_next_head(a, b, i0 + r, head);
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

void cpu_attention(Backend *be, Tensor out, Tensor lse, Tensor max_logit, Tensor max_abs, Tensor q, Tensor k, Tensor v,
                   AttentionParams params) {
    Attention a = attention_of(q, k, v, out, lse, params);
    HeadMax *maxima = tensor_present(max_logit) ? be->scratch : NULL;
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t item = 0; item < a.B * a.K; item++) {
        Workspace w = thread_workspace(be, "attention", forward_workspace, a.extent, a.depth, maxima_bytes(a.B, a.H));
        attend_group(&a, &w, item / a.K, item % a.K, maxima);
    }
    if (maxima) merge_maxima(&a, maxima, max_logit.data, max_abs.data);
}
