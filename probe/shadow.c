/* Updates that are not made, against the weights; see shadow.h. */
#include "probe/shadow.h"

#include <stdlib.h>

#include "probe/collision.h"
#include "probe/matrix.h"
#include "probe/spectrum.h"

int64_t shadow_bytes(const ShadowProbe *p) {
    return p->capacity * (int64_t)sizeof *p->records;
}

Status shadow_create(ShadowProbe *p, WatchedBlocks *blocks, int tags) {
    *p = (ShadowProbe){.blocks = blocks, .capacity = blocks->slots * tags};
    p->records = calloc((size_t)p->capacity + 1, sizeof *p->records);
    if (p->records) return status_ok();
    return status_error(STATUS_OUT_OF_MEMORY, "no memory for %lld bytes on the host; set probe.shadow_every=0",
                        (long long)shadow_bytes(p));
}

void shadow_free(ShadowProbe *p) {
    free(p->records);
    *p = (ShadowProbe){0};
}

void shadow_begin(ShadowProbe *p) {
    p->record_count = 0;
}

/* A chunk of a run under measurement. */
typedef struct {
    const WatchedBlocks *blocks;
    const ShadowUpdate *update;
    int64_t first_layer;
    ShadowRecord *records;
} Chunk;

static void measure(void *context, int64_t layer, double *workspace) {
    const Chunk *c = context;
    const ShadowUpdate *s = c->update;
    const float *update = blocks_matrix(c->blocks, 0, layer);
    const Triples *weights = &c->blocks->weights[blocks_slot(c->blocks, s->kind, c->first_layer + layer)];
    const int64_t rows = weights->rows, columns = weights->columns, r = smaller(rows, columns);
    double collisions[TRIPLES_MAX];

    spectrum_singular_values(workspace, update, rows, columns, workspace + r);
    const Spectrum spectrum = spectrum_from_values(workspace, r, larger(rows, columns));
    const double relative = collision_with(weights, update, collisions);
    c->records[layer] = (ShadowRecord){.kind = s->kind,
                                       .tag = s->tag,
                                       .layer = c->first_layer + layer,
                                       .effective_rank = spectrum.effective_rank,
                                       .rms = s->step * spectrum.rms,
                                       .collision = relative,
                                       .sigma_change = -s->step * collisions[0] - s->decay * weights->sigma[0]};
}

void shadow_measure(ShadowProbe *p, const ShadowUpdate *s) {
    WatchedBlocks *b = p->blocks;
    CHECK(p->record_count + s->update.shape[0] <= p->capacity, "kind %d was added twice in a step", s->kind);
    for (int64_t start = 0; start < s->update.shape[0]; start += b->chunk) {
        const int64_t layers = smaller(b->chunk, s->update.shape[0] - start);
        Chunk c = {b, s, s->first_layer + start, p->records + p->record_count};
        blocks_fetch(b, 0, s->kind, tensor_slice(s->update, 0, start, layers));
        blocks_parallel(b, layers, measure, &c);
        p->record_count += layers;
    }
}
