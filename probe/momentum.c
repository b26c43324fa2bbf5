/* Momentum against gradient: how much of M is this step's G, how fast its directions turn, how noisy G is.
 *
 *      cosine = <M, G> / (|M| |G|)       ratio = |M| / |G|           M after the step, G as it entered M (clipped)
 *      drift               subspaces of the k largest triples of M, against those of M before the step
 *      gradient_alignment  the same against those of G
 *
 * With n micro-batches of mean gradients g_1 .. g_n, whose mean is G:
 *
 *      variance = 1/(n-1) sum |g_i - G|²                   of one micro-batch's gradient: the trace of its covariance
 *      noise    = variance / |G|²                          (McCandlish et al. 2018, "simple noise scale", but for the
 *                                                          batch size and for G's own noise, variance / n)
 *
 * The gradients accumulate in one buffer. After each micro-batch what is new in it is that one's share g_i / n:
 *
 *      gradient   g_1/n    (g_1+g_2)/n   ..            shares = gradient - earlier
 *      earlier    0         g_1/n        ..
 */
#include <math.h>

#include "base/metrics.h"
#include "ops/ops.h"
#include "probe/matrix.h"
#include "probe/probe.h"
#include "probe/record.h"

typedef enum { SET_MOMENTUM, SET_GRADIENT, SET_COUNT } Set;
_Static_assert((int)SET_COUNT <= (int)BLOCK_SETS, "too few sets");

typedef struct {
    int kind;
    int64_t layer;
    double cosine, ratio;
    Alignment drift, with_gradient;
    double variance, noise; /* NaN with a single micro-batch */
} MomentumRecord;

typedef struct {
    WatchedBlocks *blocks;
    Triples *before;                /* of M, of a slot */
    Tensor earlier[BLOCK_KIND_MAX]; /* a kind's gradients: (layers, 1, rows, columns) */
    Tensor squares;                 /* (slots): sum over micro-batches of |g_i / n|² */
    float *host_squares;
    int64_t micro_batches; /* n: that have been added in this step */
    bool squares_known;    /* host_squares are this step's */
    int64_t record_count;
    MomentumRecord *records; /* as many as slots; by block and layer */
} MomentumProbe;

/* ---- life ------------------------------------------------------------------------------------------------------- */

static void layout(void *self, const ProbeSet *set, ProbeMemory *memory) {
    MomentumProbe *p = self;
    const WatchedBlocks *b = p->blocks = set->blocks;
    for (int kind = 0; kind < b->params->kind_count; kind++) {
        const BlockKind *block = &b->params->kinds[kind];
        const int64_t shape[] = {block->layers, 1, block->rows, block->columns};
        if (blocks_watched(b, kind)) p->earlier[kind] = arena_take(&memory->device, DTYPE_F32, 4, shape);
    }
    p->squares = arena_take_1d(&memory->device, DTYPE_F32, b->slots);
    p->before = blocks_layout_triples(b, &memory->host);
    p->host_squares = arena_take_host(&memory->host, b->slots, sizeof *p->host_squares);
    p->records = arena_take_host(&memory->host, b->slots, sizeof *p->records);
}

static void begin(void *self, ProbeSet *set) {
    (void)set;
    MomentumProbe *p = self;
    p->record_count = 0;
    p->micro_batches = 0;
    p->squares_known = false;
}

/* ---- micro-batches ---------------------------------------------------------------------------------------------- */

/* earlier = the share of this micro-batch, its squares are added, earlier = the gradient. The first one's share is the
 * gradient itself. */
static void add_kind(MomentumProbe *p, int kind) {
    const WatchedBlocks *b = p->blocks;
    const int64_t layers = b->params->kinds[kind].layers;
    Tensor gradient = params_block_run(b->params, b->params->grad, kind, 0, layers, SPLIT_WHOLE);
    Tensor earlier = p->earlier[kind], share = gradient;
    if (p->micro_batches > 0) {
        op_apply_update(b->be, earlier, tensor_none(), gradient, (UpdateStep){.keep = -1, .step = -1});
        share = earlier;
    }
    for (int64_t layer = 0; layer < layers; layer++)
        op_sum_squares(b->be, tensor_slice(p->squares, 0, blocks_slot(b, kind, layer), 1), tensor_index(share, layer));
    op_copy(b->be, earlier, gradient);
}

static void backward(void *self, ProbeSet *set) {
    (void)set;
    MomentumProbe *p = self;
    if (p->micro_batches == 0) op_fill(p->blocks->be, p->squares, 0);
    for (int kind = 0; kind < p->blocks->params->kind_count; kind++)
        if (blocks_watched(p->blocks, kind)) add_kind(p, kind);
    p->micro_batches++;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

/* A run under measurement. */
typedef struct {
    const MomentumProbe *probe;
    const UpdateEvent *event;
    MomentumRecord *records;
} Run;

typedef struct {
    double mm, mg, gg;
} Products;

static Products multiply(const float *m, const float *g, int64_t elements) {
    double mm = 0, mg = 0, gg = 0;
#pragma omp simd reduction(+ : mm, mg, gg)
    for (int64_t i = 0; i < elements; i++) {
        mm += (double)m[i] * (double)m[i];
        mg += (double)m[i] * (double)g[i];
        gg += (double)g[i] * (double)g[i];
    }
    return (Products){mm, mg, gg};
}

/* With S = sum |g_i/n|²: sum |g_i - G|² = n² S - n |G|², which rounding must not make negative. */
static double variance(double squares, double gradient_sq, double n) {
    if (n < 2) return (double)NAN;
    double sum = n * n * squares - n * gradient_sq;
    return (sum < 0 ? 0 : sum) / (n - 1);
}

static void compare(void *context, const WatchedLayer *at, double *workspace) {
    (void)workspace;
    const Run *run = context;
    const MomentumProbe *probe = run->probe;
    const UpdateEvent *e = run->event;
    const Triples momentum = blocks_found(at, SET_MOMENTUM), gradient = blocks_found(at, SET_GRADIENT);
    const Products p =
        multiply(blocks_matrix(at, SET_MOMENTUM), blocks_matrix(at, SET_GRADIENT), momentum.rows * momentum.columns);
    const double scale = (double)e->grad_scale;
    const double spread = variance((double)probe->host_squares[at->slot], p.gg, (double)probe->micro_batches);
    run->records[at->layer - e->route->first] =
        (MomentumRecord){.kind = at->kind,
                         .layer = at->layer,
                         .cosine = p.mg / sqrt(p.mm) / sqrt(p.gg),
                         .ratio = sqrt(p.mm) / (scale * sqrt(p.gg)),
                         .drift = triples_align(&momentum, &probe->before[at->slot]),
                         .with_gradient = triples_align(&momentum, &gradient),
                         .variance = scale * scale * spread,
                         .noise = spread / p.gg};
}

static void measure(MomentumProbe *p, const UpdateEvent *e) {
    WatchedBlocks *b = p->blocks;
    const Tensor runs[SET_COUNT] = {[SET_MOMENTUM] = e->momentum, [SET_GRADIENT] = e->gradient};
    CHECK(p->record_count + e->route->layers <= b->slots, "kind %d was added twice in a step", e->route->kind);
    if (!p->squares_known) backend_to_host(b->be, p->host_squares, p->squares);
    p->squares_known = true;
    blocks_measure(b, e->route, runs, SET_COUNT, SET_COUNT, compare, &(Run){p, e, p->records + p->record_count});
    p->record_count += e->route->layers;
}

static void update(void *self, ProbeSet *set, const UpdateEvent *e) {
    MomentumProbe *p = self;
    if (!blocks_watched(set->blocks, e->route->kind) || !tensor_present(e->momentum)) return;
    if (e->moment == UPDATE_COMES)
        blocks_keep(set->blocks, e->route, e->momentum, p->before);
    else
        measure(p, e);
}

/* ---- the record ------------------------------------------------------------------------------------------------- */

static void report(void *self, ProbeSet *set, cJSON *line) {
    const MomentumProbe *p = self;
    cJSON *list = cJSON_AddArrayToObject(line, "momentum");
    for (const MomentumRecord *r = p->records; r < p->records + p->record_count; r++) {
        cJSON *row = record_add_block(list, &set->gpt->params, r->kind, r->layer);
        metrics_add_float(row, "cosine", (float)r->cosine);
        metrics_add_float(row, "ratio", (float)r->ratio);
        record_add_alignment(row, "drift", r->drift);
        record_add_alignment(row, "gradient_alignment", r->with_gradient);
        metrics_add_float(row, "variance", (float)r->variance);
        metrics_add_float(row, "noise", (float)r->noise);
    }
}

const Probe probe_momentum = {.size = sizeof(MomentumProbe),
                              .of_update = true,
                              .of_blocks = true,
                              .layout = layout,
                              .begin = begin,
                              .backward = backward,
                              .update = update,
                              .report = report};
