/* Momentum against gradient, and the gradient's noise; see momentum.h. */
#include "probe/momentum.h"

#include <math.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "probe/matrix.h"

typedef enum { SET_MOMENTUM, SET_GRADIENT, SET_COUNT } Set;
_Static_assert((int)SET_COUNT <= (int)BLOCK_SETS, "too few sets");

/* ---- life ------------------------------------------------------------------------------------------------------- */

static void layout(MomentumProbe *p) {
    const WatchedBlocks *b = p->blocks;
    for (int kind = 0; kind < b->params->kind_count; kind++) {
        if (!blocks_watched(b, kind)) continue;
        const int64_t shape[] = {params_kind_layers(b->params, kind), 1, blocks_rows(b, kind), blocks_columns(b, kind)};
        p->earlier[kind] = arena_take(&p->arena, DTYPE_F32, 4, shape);
    }
    p->squares = arena_take_1d(&p->arena, DTYPE_F32, b->slots);
}

int64_t momentum_bytes(const MomentumProbe *p) {
    const int64_t a_slot = (int64_t)sizeof *p->records + (int64_t)sizeof *p->host_squares;
    return blocks_triples_bytes(p->blocks) + p->blocks->slots * a_slot + arena_bytes(&p->arena);
}

Status momentum_create(MomentumProbe *p, WatchedBlocks *blocks) {
    Status status = status_ok();
    *p = (MomentumProbe){.blocks = blocks, .arena = arena_measure("block probes")};
    layout(p);
    p->before = blocks_create_triples(blocks, &p->before_memory);
    p->host_squares = calloc((size_t)blocks->slots + 1, sizeof *p->host_squares);
    p->records = calloc((size_t)blocks->slots + 1, sizeof *p->records);
    if (!p->before || !p->host_squares || !p->records)
        status = status_error(STATUS_OUT_OF_MEMORY, "no memory for %lld bytes on the host; set probe.momentum_every=0",
                              (long long)momentum_bytes(p));
    if (!status.code) status = arena_allocate(&p->arena, blocks->be);
    if (!status.code) layout(p);
    if (status.code) momentum_free(p);
    return status;
}

void momentum_free(MomentumProbe *p) {
    arena_free(&p->arena);
    free(p->before);
    free(p->before_memory);
    free(p->host_squares);
    free(p->records);
    *p = (MomentumProbe){0};
}

void momentum_begin(MomentumProbe *p) {
    p->record_count = 0;
    p->micro_batches = 0;
    p->squares_known = false;
}

/* ---- micro-batches ---------------------------------------------------------------------------------------------- */

/* earlier = the share of this micro-batch, its squares are added, earlier = the gradient. The first one's share is the
 * gradient itself. */
static void add_kind(MomentumProbe *p, int kind) {
    const WatchedBlocks *b = p->blocks;
    const int64_t layers = params_kind_layers(b->params, kind);
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

void momentum_add_micro_batch(MomentumProbe *p) {
    if (p->micro_batches == 0) op_fill(p->blocks->be, p->squares, 0);
    for (int kind = 0; kind < p->blocks->params->kind_count; kind++)
        if (blocks_watched(p->blocks, kind)) add_kind(p, kind);
    p->micro_batches++;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

void momentum_keep(MomentumProbe *p, int kind, int64_t first_layer, Tensor momentum) {
    WatchedBlocks *b = p->blocks;
    for (int64_t start = 0; start < momentum.shape[0]; start += b->chunk) {
        const int64_t layers = smaller(b->chunk, momentum.shape[0] - start);
        blocks_fetch(b, SET_MOMENTUM, kind, tensor_slice(momentum, 0, start, layers));
        blocks_find(b, 1, kind, layers);
        for (int64_t layer = 0; layer < layers; layer++) {
            const Triples found = blocks_found(b, SET_MOMENTUM, kind, layer);
            triples_copy(&p->before[blocks_slot(b, kind, first_layer + start + layer)], &found);
        }
    }
}

/* A chunk of a run under measurement. */
typedef struct {
    const MomentumProbe *probe;
    const MomentumState *state;
    int64_t first_layer;
    MomentumRecord *records;
} Chunk;

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

static void compare(void *context, int64_t layer, double *workspace) {
    (void)workspace;
    const Chunk *c = context;
    const WatchedBlocks *b = c->probe->blocks;
    const int kind = c->state->kind;
    const int64_t slot = blocks_slot(b, kind, c->first_layer + layer);
    const Triples momentum = blocks_found(b, SET_MOMENTUM, kind, layer);
    const Triples gradient = blocks_found(b, SET_GRADIENT, kind, layer);
    const Products p = multiply(blocks_matrix(b, SET_MOMENTUM, layer), blocks_matrix(b, SET_GRADIENT, layer),
                                blocks_rows(b, kind) * blocks_columns(b, kind));
    const double scale = c->state->grad_scale;
    const double spread = variance((double)c->probe->host_squares[slot], p.gg, (double)c->probe->micro_batches);
    c->records[layer] = (MomentumRecord){.kind = kind,
                                         .layer = c->first_layer + layer,
                                         .cosine = p.mg / sqrt(p.mm) / sqrt(p.gg),
                                         .ratio = sqrt(p.mm) / (scale * sqrt(p.gg)),
                                         .drift = triples_align(&momentum, &c->probe->before[slot]),
                                         .with_gradient = triples_align(&momentum, &gradient),
                                         .variance = scale * scale * spread,
                                         .noise = spread / p.gg};
}

void momentum_measure(MomentumProbe *p, const MomentumState *s) {
    WatchedBlocks *b = p->blocks;
    if (!tensor_present(s->momentum)) return;
    CHECK(p->record_count + s->momentum.shape[0] <= b->slots, "kind %d was added twice in a step", s->kind);
    if (!p->squares_known) backend_to_host(b->be, p->host_squares, p->squares);
    p->squares_known = true;
    for (int64_t start = 0; start < s->momentum.shape[0]; start += b->chunk) {
        const int64_t layers = smaller(b->chunk, s->momentum.shape[0] - start);
        Chunk c = {p, s, s->first_layer + start, p->records + p->record_count};
        blocks_fetch(b, SET_MOMENTUM, s->kind, tensor_slice(s->momentum, 0, start, layers));
        blocks_fetch(b, SET_GRADIENT, s->kind, tensor_slice(s->gradient, 0, start, layers));
        blocks_find(b, SET_COUNT, s->kind, layers);
        blocks_parallel(b, layers, compare, &c);
        p->record_count += layers;
    }
}
