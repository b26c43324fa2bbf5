/* Shadow optimizers: what AdamW and Muon would each do with the run's gradients, whichever of them it uses.
 *
 * Each keeps a state of its own, moved on in every step, and changes no weights (optimizer_plan_shadow). With the
 * weights' triples (sigma_i, u_i, v_i) and W' = (1 - lr wd) W - lr s U:
 *
 *      effective_rank    exp(-sum p ln p), p = sigma(U) / sum sigma(U)
 *      rms               lr s |U|_F / sqrt(n m)
 *      collision         mean over the top k of (u_iᵀ U v_i)², relative to |U|_F² / (n m)      (triples_collide)
 *      sigma_change      -lr s u_1ᵀ U v_1 - lr wd sigma_1
 */
#include "base/metrics.h"
#include "ops/ops.h"
#include "probe/matrix.h"
#include "probe/probe.h"
#include "probe/record.h"
#include "probe/singular_values.h"

enum { SHADOWS = 2 };
static const OptimizerKind shadow_kinds[SHADOWS] = {OPTIMIZER_ADAMW, OPTIMIZER_MUON};

typedef struct {
    int kind;
    OptimizerKind optimizer;
    int64_t layer;
    double effective_rank, rms, collision, sigma_change;
} ShadowRecord;

typedef struct {
    Optimizer optimizers[SHADOWS];
    int64_t updates; /* that they have seen: AdamW's t */
    Tensor count;    /* (1) f32: the same number, for checkpoints */
    int64_t record_count;
    ShadowRecord *records; /* in the order of the updates, by layer */
    WatchedBlocks *blocks;
} ShadowProbe;

/* ---- life ------------------------------------------------------------------------------------------------------- */

static Status plan(void *self, ProbeSet *set) {
    ShadowProbe *p = self;
    bool watched[BLOCK_KIND_MAX];
    Status status = status_ok();
    p->blocks = set->blocks;
    for (int kind = 0; kind < set->gpt->params.kind_count; kind++) watched[kind] = blocks_watched(set->blocks, kind);
    for (int i = 0; i < SHADOWS && !status.code; i++) {
        Optimizer *shadow = &p->optimizers[i];
        status = optimizer_plan_shadow(shadow, set->optimizer, shadow_kinds[i], watched);
        shadow->state.remedy = shadow->scratch.remedy = set->memory[PROBE_SHADOW].device.remedy;
    }
    return status;
}

static void layout(void *self, const ProbeSet *set, ProbeMemory *memory) {
    (void)set;
    ShadowProbe *p = self;
    p->count = arena_take_1d(&memory->device, DTYPE_F32, 1);
    p->records = arena_take_host(&memory->host, SHADOWS * p->blocks->slots, sizeof *p->records);
}

static Status allocate(void *self, ProbeSet *set) {
    (void)set;
    ShadowProbe *p = self;
    Status status = status_ok();
    for (int i = 0; i < SHADOWS && !status.code; i++) status = optimizer_allocate(&p->optimizers[i]);
    return status;
}

static int64_t bytes(const void *self) {
    const ShadowProbe *p = self;
    int64_t sum = 0;
    for (int i = 0; i < SHADOWS; i++) sum += optimizer_planned_bytes(&p->optimizers[i]);
    return sum;
}

static void release(void *self, ProbeSet *set) {
    (void)set;
    for (int i = 0; i < SHADOWS; i++) optimizer_free(&((ShadowProbe *)self)->optimizers[i]);
}

static void begin(void *self, ProbeSet *set) {
    (void)set;
    ((ShadowProbe *)self)->record_count = 0;
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

/* A run under measurement. */
typedef struct {
    const UpdateEvent *event;
    ShadowRecord *records;
} Run;

static void measure(void *context, const WatchedLayer *at, double *workspace) {
    const Run *run = context;
    const UpdateEvent *e = run->event;
    const double step = e->lr * (double)e->route->scale, decay = 1 - e->keep;
    const float *update = blocks_matrix(at, 0);
    const Triples *weights = &at->blocks->weights[at->slot];
    double collisions[TRIPLES_MAX];
    const Spectrum spectrum = spectrum_measure(update, weights->rows, weights->columns, weights->columns, workspace);
    const double relative = triples_collide(weights, update, collisions);
    run->records[at->layer - e->route->first] =
        (ShadowRecord){.kind = at->kind,
                       .optimizer = e->route->optimizer,
                       .layer = at->layer,
                       .effective_rank = spectrum.effective_rank,
                       .rms = step * spectrum.rms,
                       .collision = relative,
                       .sigma_change = -step * collisions[0] - decay * weights->sigma[0]};
}

/* An UpdateObserver of the shadows: the weights of its events are the old ones. */
static void observe(void *self, const UpdateEvent *e) {
    ShadowProbe *p = self;
    CHECK(p->record_count + e->route->layers <= SHADOWS * p->blocks->slots, "kind %d was added twice in a step",
          e->route->kind);
    blocks_keep_weights(p->blocks, e->route, e->weights);
    blocks_measure(p->blocks, e->route, &e->update, 1, 0, measure, &(Run){e, p->records + p->record_count});
    p->record_count += e->route->layers;
}

static void step(void *self, ProbeSet *set, const StepNumbers *numbers) {
    ShadowProbe *p = self;
    StepNumbers own = *numbers;
    own.update = ++p->updates;
    for (int i = 0; i < SHADOWS; i++)
        optimizer_step(&p->optimizers[i], &own, set->due[PROBE_SHADOW] ? observe : NULL, p);
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

static int64_t state(void *self, ProbeSet *set, NamedTensor *tensors) {
    ShadowProbe *p = self;
    int64_t count = 0;
    for (int i = 0; i < SHADOWS; i++) count += optimizer_state(&p->optimizers[i], tensors ? tensors + count : NULL);
    if (!tensors) return count + 1;
    op_fill(set->be, p->count, (float)p->updates);
    tensors[count] = (NamedTensor){.name = "shadow.updates", .tensor = p->count};
    return count + 1;
}

static void resumed(void *self, ProbeSet *set) {
    ShadowProbe *p = self;
    float updates = 0;
    backend_to_host(set->be, &updates, p->count);
    p->updates = (int64_t)updates;
}

/* ---- the record ------------------------------------------------------------------------------------------------- */

static void report(void *self, ProbeSet *set, cJSON *line) {
    const ShadowProbe *p = self;
    cJSON *list = cJSON_AddArrayToObject(line, "shadow");
    for (const ShadowRecord *r = p->records; r < p->records + p->record_count; r++) {
        cJSON *row = record_add_block(list, &set->gpt->params, r->kind, r->layer);
        cJSON_AddStringToObject(row, "optimizer", optimizer_name(r->optimizer));
        metrics_add_float(row, "effective_rank", (float)r->effective_rank);
        metrics_add_float(row, "rms", (float)r->rms);
        metrics_add_float(row, "collision", (float)r->collision);
        metrics_add_float(row, "sigma_change", (float)r->sigma_change);
    }
}

const Probe probe_shadow = {.size = sizeof(ShadowProbe),
                            .of_update = true,
                            .of_blocks = true,
                            .plan = plan,
                            .layout = layout,
                            .allocate = allocate,
                            .bytes = bytes,
                            .release = release,
                            .begin = begin,
                            .report = report,
                            .step = step,
                            .state = state,
                            .resumed = resumed};
