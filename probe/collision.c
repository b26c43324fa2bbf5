/* The collision meter: how a step meets the largest singular triples (sigma_i, u_i, v_i) of the weights it changes.
 *
 *      W' = (1 - lr wd) W - lr s U                     Muon's U = msign(.), AdamW's m̂ / (sqrt(v̂) + eps), ..
 *      c_i = u_iᵀ U v_i                                 the collision of U with the i-th triple
 *      sigma_i' - sigma_i = -lr s c_i - lr wd sigma_i   predicted: to first order (Stewart & Sun 1990)
 *      relative = mean c_i² / (|U|_F² / (n m))          1: as a U without any direction of its own would meet them
 *
 * A collision with c_i < 0 makes sigma_i grow. Updates of full rank and equal singular values (Muon) have c_i of some
 * size against every triple; updates of low rank only where they point. `realised` compares the i-th largest values
 * before and after, which is the same triple as long as none overtakes.
 */
#include <math.h>

#include "base/metrics.h"
#include "probe/probe.h"
#include "probe/record.h"

typedef enum { SET_UPDATE, SET_WEIGHTS, SET_MOMENTUM, SET_COUNT } Set;
_Static_assert((int)SET_COUNT <= (int)BLOCK_SETS, "too few sets");

typedef struct {
    int kind;
    int64_t layer;
    int64_t count; /* k */
    double c[TRIPLES_MAX], sigma[TRIPLES_MAX], predicted[TRIPLES_MAX], realised[TRIPLES_MAX];
    double relative;
    Alignment with_update, with_momentum, with_step; /* of W before the step, with U, M and W after it */
} CollisionRecord;

typedef struct {
    int64_t record_count;
    CollisionRecord *records; /* as many as slots; by block and layer */
} CollisionProbe;

static void layout(void *self, const ProbeSet *set, ProbeMemory *memory) {
    CollisionProbe *p = self;
    p->records = arena_take_host(&memory->host, set->blocks->slots, sizeof *p->records);
}

static void begin(void *self, ProbeSet *set) {
    (void)set;
    ((CollisionProbe *)self)->record_count = 0;
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

/* A run under measurement. */
typedef struct {
    const UpdateEvent *event;
    CollisionRecord *records;
} Run;

static void compare(void *context, const WatchedLayer *at, double *workspace) {
    (void)workspace;
    const Run *run = context;
    const UpdateEvent *e = run->event;
    const double step = e->lr * (double)e->route->scale, decay = 1 - e->keep;
    const Triples *before = &at->blocks->weights[at->slot];
    const Triples update = blocks_found(at, SET_UPDATE), after = blocks_found(at, SET_WEIGHTS);
    CollisionRecord *r = &run->records[at->layer - e->route->first];

    *r = (CollisionRecord){.kind = at->kind, .layer = at->layer, .count = before->count};
    r->relative = triples_collide(before, blocks_matrix(at, SET_UPDATE), r->c);
    for (int64_t i = 0; i < before->count; i++) {
        r->sigma[i] = before->sigma[i];
        r->predicted[i] = -step * r->c[i] - decay * before->sigma[i];
        r->realised[i] = after.sigma[i] - before->sigma[i];
    }
    r->with_update = triples_align(before, &update);
    r->with_step = triples_align(before, &after);
    r->with_momentum = (Alignment){(double)NAN, (double)NAN};
    if (!tensor_present(e->momentum)) return;
    const Triples momentum = blocks_found(at, SET_MOMENTUM);
    r->with_momentum = triples_align(before, &momentum);
}

static void measure(CollisionProbe *p, WatchedBlocks *b, const UpdateEvent *e) {
    const Tensor runs[SET_COUNT] = {[SET_UPDATE] = e->update, [SET_WEIGHTS] = e->weights, [SET_MOMENTUM] = e->momentum};
    const int sets = tensor_present(e->momentum) ? SET_COUNT : SET_MOMENTUM;
    CHECK(p->record_count + e->route->layers <= b->slots, "kind %d was added twice in a step", e->route->kind);
    blocks_measure(b, e->route, runs, sets, sets, compare, &(Run){e, p->records + p->record_count});
    p->record_count += e->route->layers;
}

static void update(void *self, ProbeSet *set, const UpdateEvent *e) {
    if (!blocks_watched(set->blocks, e->route->kind)) return;
    if (e->moment == UPDATE_COMES)
        blocks_keep_weights(set->blocks, e->route, e->weights);
    else
        measure(self, set->blocks, e);
}

/* ---- the record ------------------------------------------------------------------------------------------------- */

static void report(void *self, ProbeSet *set, cJSON *line) {
    const CollisionProbe *p = self;
    cJSON *list = cJSON_AddArrayToObject(line, "collision");
    for (const CollisionRecord *r = p->records; r < p->records + p->record_count; r++) {
        cJSON *row = record_add_block(list, &set->gpt->params, r->kind, r->layer);
        record_add_values(row, "c", r->c, r->count);
        record_add_values(row, "sigma", r->sigma, r->count);
        record_add_values(row, "predicted", r->predicted, r->count);
        record_add_values(row, "realised", r->realised, r->count);
        metrics_add_float(row, "relative", (float)r->relative);
        record_add_alignment(row, "align_update", r->with_update);
        record_add_alignment(row, "align_momentum", r->with_momentum);
        record_add_alignment(row, "align_step", r->with_step);
    }
}

const Probe probe_collision = {.size = sizeof(CollisionProbe),
                               .of_update = true,
                               .of_blocks = true,
                               .layout = layout,
                               .begin = begin,
                               .update = update,
                               .report = report};
