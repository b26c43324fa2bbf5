/* Collisions, momentum and shadows of the watched blocks, and their fields of metrics.jsonl; see measure_blocks.h. */
#include "run/measure_blocks.h"

#include "base/metrics.h"
#include "ops/ops.h"
#include "run/trainer.h"

static const OptimizerKind shadow_kinds[SHADOWS] = {OPTIMIZER_ADAMW, OPTIMIZER_MUON};

static bool has_shadows(const BlockMeasurements *m) {
    return m->shadows[0].route_count > 0;
}

static BlockMeasurements *of(Trainer *t) {
    return &t->measurements.blocks;
}

static bool is_due(const Trainer *t, Measurement which) {
    return t->measurements.due[which];
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static Status create_shadows(Trainer *t) {
    BlockMeasurements *m = of(t);
    bool watched[BLOCK_KIND_MAX];
    Status status = status_ok();
    for (int kind = 0; kind < t->gpt.params.kind_count; kind++) watched[kind] = blocks_watched(m->blocks, kind);
    for (int i = 0; i < SHADOWS; i++) {
        status = optimizer_plan_shadow(&m->shadows[i], &t->optimizer, shadow_kinds[i], watched);
        if (status.code || FAILED(status, optimizer_allocate(&m->shadows[i]))) return status;
    }
    m->shadow_arena = arena_measure("shadow optimizers");
    arena_take_1d(&m->shadow_arena, DTYPE_F32, 1);
    if (FAILED(status, arena_allocate(&m->shadow_arena, &t->backend))) return status;
    m->shadow_count = arena_take_1d(&m->shadow_arena, DTYPE_F32, 1);
    return shadow_create(&m->shadow, m->blocks, SHADOWS);
}

Status measure_blocks_create(Trainer *t) {
    const ProbeConfig *c = &t->config.probe;
    BlockMeasurements *m = of(t);
    Status status = status_ok();
    if (c->collision_every + c->momentum_every + c->shadow_every == 0) return status;
    if (FAILED(status, blocks_create(&m->blocks, &t->gpt.params, c, &t->backend))) return status;
    if (m->blocks->slots == 0) { /* the model has none of them */
        measure_blocks_free(t);
        return status;
    }
    if (c->collision_every > 0 && FAILED(status, collision_create(&m->collision, m->blocks))) return status;
    if (c->momentum_every > 0 && FAILED(status, momentum_create(&m->momentum, m->blocks))) return status;
    if (c->shadow_every > 0) status = create_shadows(t);
    return status;
}

void measure_blocks_free(Trainer *t) {
    BlockMeasurements *m = of(t);
    for (int i = 0; i < SHADOWS; i++) optimizer_free(&m->shadows[i]);
    arena_free(&m->shadow_arena);
    shadow_free(&m->shadow);
    momentum_free(&m->momentum);
    collision_free(&m->collision);
    blocks_free(m->blocks);
    *m = (BlockMeasurements){0};
}

int64_t measure_blocks_bytes(const Trainer *t) {
    const BlockMeasurements *m = &t->measurements.blocks;
    if (!m->blocks) return 0;
    int64_t bytes = blocks_bytes(m->blocks) + arena_bytes(&m->shadow_arena);
    if (m->collision.blocks) bytes += collision_bytes(&m->collision);
    if (m->momentum.blocks) bytes += momentum_bytes(&m->momentum);
    if (m->shadow.blocks) bytes += shadow_bytes(&m->shadow);
    for (int i = 0; i < SHADOWS; i++) bytes += has_shadows(m) ? optimizer_planned_bytes(&m->shadows[i]) : 0;
    return bytes;
}

/* ---- the step's hooks ------------------------------------------------------------------------------------------- */

void measure_blocks_begin(Trainer *t) {
    BlockMeasurements *m = of(t);
    if (!m->blocks) return;
    blocks_begin(m->blocks);
    if (is_due(t, MEASURE_COLLISION)) collision_begin(&m->collision);
    if (is_due(t, MEASURE_MOMENTUM)) momentum_begin(&m->momentum);
    if (is_due(t, MEASURE_SHADOW)) shadow_begin(&m->shadow);
}

void measure_blocks_backward(Trainer *t) {
    if (is_due(t, MEASURE_MOMENTUM)) momentum_add_micro_batch(&of(t)->momentum);
}

static void observe_shadow(void *trainer, const UpdateEvent *e) {
    BlockMeasurements *m = of(trainer);
    blocks_keep_weights(m->blocks, e->route->kind, e->route->first, e->weights);
    shadow_measure(&m->shadow, &(ShadowUpdate){.kind = e->route->kind,
                                               .tag = (int)e->route->optimizer,
                                               .first_layer = e->route->first,
                                               .update = e->update,
                                               .step = e->lr * (double)e->route->scale,
                                               .decay = 1 - e->keep});
}

void measure_blocks_gradient(Trainer *t, const StepNumbers *numbers) {
    BlockMeasurements *m = of(t);
    if (!has_shadows(m)) return;
    StepNumbers own = *numbers;
    own.update = ++m->shadow_updates;
    for (int i = 0; i < SHADOWS; i++)
        optimizer_step(&m->shadows[i], &own, is_due(t, MEASURE_SHADOW) ? observe_shadow : NULL, t);
}

static void keep_before(Trainer *t, const UpdateEvent *e) {
    BlockMeasurements *m = of(t);
    const Route *route = e->route;
    if (is_due(t, MEASURE_COLLISION)) blocks_keep_weights(m->blocks, route->kind, route->first, e->weights);
    if (is_due(t, MEASURE_MOMENTUM)) momentum_keep(&m->momentum, route->kind, route->first, route->momentum);
}

static void measure_after(Trainer *t, const UpdateEvent *e) {
    BlockMeasurements *m = of(t);
    const Route *route = e->route;
    if (is_due(t, MEASURE_COLLISION))
        collision_measure(&m->collision, &(CollisionStep){.kind = route->kind,
                                                          .first_layer = route->first,
                                                          .weights = e->weights,
                                                          .momentum = e->momentum,
                                                          .update = e->update,
                                                          .step = e->lr * (double)route->scale,
                                                          .decay = 1 - e->keep});
    if (is_due(t, MEASURE_MOMENTUM))
        momentum_measure(&m->momentum, &(MomentumState){.kind = route->kind,
                                                        .first_layer = route->first,
                                                        .momentum = e->momentum,
                                                        .gradient = e->gradient,
                                                        .grad_scale = (double)e->grad_scale});
}

void measure_blocks_update(Trainer *t, const UpdateEvent *e) {
    BlockMeasurements *m = of(t);
    if (!m->blocks || !blocks_watched(m->blocks, e->route->kind)) return;
    if (e->moment == UPDATE_COMES)
        keep_before(t, e);
    else
        measure_after(t, e);
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

int64_t measure_blocks_state(Trainer *t, NamedTensor *tensors) {
    BlockMeasurements *m = of(t);
    int64_t count = 0;
    if (!has_shadows(m)) return 0;
    for (int i = 0; i < SHADOWS; i++) {
        for (int64_t j = 0; j < optimizer_state_count(&m->shadows[i]); j++, count++) {
            if (!tensors) continue;
            NamedTensor *entry = &tensors[count];
            entry->tensor = optimizer_state_tensor(&m->shadows[i], j, entry->name, sizeof entry->name);
            entry->optional = true;
        }
    }
    if (!tensors) return count + 1;
    op_fill(&t->backend, m->shadow_count, (float)m->shadow_updates);
    tensors[count] = (NamedTensor){.name = "shadow.updates", .tensor = m->shadow_count, .optional = true};
    return count + 1;
}

void measure_blocks_resume(Trainer *t) {
    BlockMeasurements *m = of(t);
    float updates = 0;
    if (!has_shadows(m)) return;
    backend_to_host(&t->backend, &updates, m->shadow_count);
    m->shadow_updates = (int64_t)updates;
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------------------------- */

static void add_values(cJSON *row, const char *name, const double *values, int64_t count) {
    cJSON *list = cJSON_AddArrayToObject(row, name);
    for (int64_t i = 0; i < count; i++) cJSON_AddItemToArray(list, metrics_float((float)values[i]));
}

static void add_alignment(cJSON *row, const char *name, Alignment a) {
    add_values(row, name, (const double[]){a.left, a.right}, 2);
}

static void report_collisions(Trainer *t, cJSON *line) {
    const CollisionProbe *p = &of(t)->collision;
    cJSON *list = cJSON_AddArrayToObject(line, "collision");
    for (const CollisionRecord *r = p->records; r < p->records + p->record_count; r++) {
        cJSON *row = measure_add_block(list, t, r->kind, r->layer);
        add_values(row, "c", r->c, r->count);
        add_values(row, "sigma", r->sigma, r->count);
        add_values(row, "predicted", r->predicted, r->count);
        add_values(row, "realised", r->realised, r->count);
        metrics_add_float(row, "relative", (float)r->relative);
        add_alignment(row, "align_update", r->with_update);
        add_alignment(row, "align_momentum", r->with_momentum);
        add_alignment(row, "align_step", r->with_step);
    }
}

static void report_momentum(Trainer *t, cJSON *line) {
    const MomentumProbe *p = &of(t)->momentum;
    cJSON *list = cJSON_AddArrayToObject(line, "momentum");
    for (const MomentumRecord *r = p->records; r < p->records + p->record_count; r++) {
        cJSON *row = measure_add_block(list, t, r->kind, r->layer);
        metrics_add_float(row, "cosine", (float)r->cosine);
        metrics_add_float(row, "ratio", (float)r->ratio);
        add_alignment(row, "drift", r->drift);
        add_alignment(row, "gradient_alignment", r->with_gradient);
        metrics_add_float(row, "variance", (float)r->variance);
        metrics_add_float(row, "noise", (float)r->noise);
    }
}

static void report_shadows(Trainer *t, cJSON *line) {
    const ShadowProbe *p = &of(t)->shadow;
    cJSON *list = cJSON_AddArrayToObject(line, "shadow");
    for (const ShadowRecord *r = p->records; r < p->records + p->record_count; r++) {
        cJSON *row = measure_add_block(list, t, r->kind, r->layer);
        cJSON_AddStringToObject(row, "optimizer", optimizer_name((OptimizerKind)r->tag));
        metrics_add_float(row, "effective_rank", (float)r->effective_rank);
        metrics_add_float(row, "rms", (float)r->rms);
        metrics_add_float(row, "collision", (float)r->collision);
        metrics_add_float(row, "sigma_change", (float)r->sigma_change);
    }
}

void measure_blocks_report(Trainer *t, cJSON *line) {
    if (!of(t)->blocks) return;
    if (is_due(t, MEASURE_COLLISION)) report_collisions(t, line);
    if (is_due(t, MEASURE_MOMENTUM)) report_momentum(t, line);
    if (is_due(t, MEASURE_SHADOW)) report_shadows(t, line);
}
