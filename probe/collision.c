/* Collisions of a step with the top triples of the weights; see collision.h. */
#include "probe/collision.h"

#include <math.h>
#include <stdlib.h>

#include "probe/matrix.h"

typedef enum { SET_UPDATE, SET_WEIGHTS, SET_MOMENTUM, SET_COUNT } Set;
_Static_assert((int)SET_COUNT <= (int)BLOCK_SETS, "too few sets");

int64_t collision_bytes(const CollisionProbe *p) {
    return p->blocks->slots * (int64_t)sizeof *p->records;
}

Status collision_create(CollisionProbe *p, WatchedBlocks *blocks) {
    *p = (CollisionProbe){.blocks = blocks, .records = calloc((size_t)blocks->slots + 1, sizeof *p->records)};
    if (p->records) return status_ok();
    return status_error(STATUS_OUT_OF_MEMORY, "no memory for %lld bytes on the host; set probe.collision_every=0",
                        (long long)collision_bytes(p));
}

void collision_free(CollisionProbe *p) {
    free(p->records);
    *p = (CollisionProbe){0};
}

void collision_begin(CollisionProbe *p) {
    p->record_count = 0;
}

double collision_with(const Triples *t, const float *update, double *c) {
    double squares = 0, norm_sq = 0;
    for (int64_t i = 0; i < t->count; i++) {
        c[i] = triples_form(t->left + i * t->rows, update, t->right + i * t->columns, t->rows, t->columns);
        squares += c[i] * c[i];
    }
    const int64_t elements = t->rows * t->columns;
#pragma omp simd reduction(+ : norm_sq)
    for (int64_t i = 0; i < elements; i++) norm_sq += (double)update[i] * (double)update[i];
    return squares / (double)t->count / (norm_sq / (double)elements);
}

/* A chunk of a run under measurement. */
typedef struct {
    const WatchedBlocks *blocks;
    const CollisionStep *step;
    int64_t first_layer;
    CollisionRecord *records;
} Chunk;

static void compare(void *context, int64_t layer, double *workspace) {
    (void)workspace;
    const Chunk *c = context;
    const WatchedBlocks *b = c->blocks;
    const CollisionStep *s = c->step;
    const Triples *before = &b->weights[blocks_slot(b, s->kind, c->first_layer + layer)];
    const Triples update = blocks_found(b, SET_UPDATE, s->kind, layer);
    const Triples after = blocks_found(b, SET_WEIGHTS, s->kind, layer);
    CollisionRecord *r = &c->records[layer];

    *r = (CollisionRecord){.kind = s->kind, .layer = c->first_layer + layer, .count = before->count};
    r->relative = collision_with(before, blocks_matrix(b, SET_UPDATE, layer), r->c);
    for (int64_t i = 0; i < before->count; i++) {
        r->sigma[i] = before->sigma[i];
        r->predicted[i] = -s->step * r->c[i] - s->decay * before->sigma[i];
        r->realised[i] = after.sigma[i] - before->sigma[i];
    }
    r->with_update = triples_align(before, &update);
    r->with_step = triples_align(before, &after);
    r->with_momentum = (Alignment){(double)NAN, (double)NAN};
    if (!tensor_present(s->momentum)) return;
    const Triples momentum = blocks_found(b, SET_MOMENTUM, s->kind, layer);
    r->with_momentum = triples_align(before, &momentum);
}

void collision_measure(CollisionProbe *p, const CollisionStep *s) {
    WatchedBlocks *b = p->blocks;
    const Tensor sources[SET_COUNT] = {
        [SET_UPDATE] = s->update, [SET_WEIGHTS] = s->weights, [SET_MOMENTUM] = s->momentum};
    const int sets = tensor_present(s->momentum) ? SET_COUNT : SET_MOMENTUM;
    CHECK(p->record_count + s->update.shape[0] <= b->slots, "kind %d was added twice in a step", s->kind);
    for (int64_t start = 0; start < s->update.shape[0]; start += b->chunk) {
        const int64_t layers = smaller(b->chunk, s->update.shape[0] - start);
        Chunk c = {b, s, s->first_layer + start, p->records + p->record_count};
        for (int set = 0; set < sets; set++)
            blocks_fetch(b, set, s->kind, tensor_slice(sources[set], 0, start, layers));
        blocks_find(b, sets, s->kind, layers);
        blocks_parallel(b, layers, compare, &c);
        p->record_count += layers;
    }
}
