/* The census of logits: attention's first product alone (cpu/attention.h), with a look at each block of logits; rows
 * are looked at one by one where a block changes the census.
 *
 *      scratch:  | census of every head in every sequence | workspace of thread 0 | 1 | ...
 */
#include "cpu/attention.h"

/* ---- memory ----------------------------------------------------------------------------------------------------- */

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

int64_t cpu_census_scratch_bytes(const Backend *be, const OpLimits *limits) {
    return census_bytes(limits->batch, limits->heads) + workspaces_bytes(be, limits, census_workspace);
}

/* ---- extremes of logits ----------------------------------------------------------------------------------------- */

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

/* ---- the pass --------------------------------------------------------------------------------------------------- */

static void census_block(const Attention *a, Workspace *w, Meeting m, int64_t r, HeadCensus *head, CensusParams p) {
    int64_t keys = keys_of_block(a, m, r), ldk = a->extent.key_columns, rows = smaller(TILE_ROWS, m.rows - r);
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
        int64_t rows = smaller(QUERY_TILE, a->T - i0);
        unpack_rows(a->depth, w->q_rows, a->extent.key_columns, rows_of(a->q, b, i0, rows, h));
        const KeyRange keys = keys_of_tile(i0, rows);
        for (int64_t j0 = keys.first; j0 < keys.end; j0 += KEY_TILE)
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

/* Costs little more than the products q kᵀ, which are a third of attention, and gives logits of the same bits.
 * Processor time as above: 3.4 ms with bf16 operands (attention 9.2), 6.4 with fp32 (14.0); where half of all logits
 * are above the threshold, 0.9 ms more. */
void cpu_logit_census(Backend *be, Tensor peak, Tensor place, Tensor above, Tensor q, Tensor k, CensusParams p) {
    Attention a = attention_of(q, k, k, tensor_none(), tensor_none(), (AttentionParams){.scale = p.scale});
    HeadCensus *heads = be->scratch;
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t item = 0; item < a.B * a.K; item++) {
        Workspace w = thread_workspace(be, "logit_census", census_workspace, a.extent, a.depth, census_bytes(a.B, a.H));
        census_group(&a, &w, item / a.K, item % a.K, heads, p);
    }
    merge_census(&a, heads, peak.data, place.data, above.data, p);
}
