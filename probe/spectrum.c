/* Spectra: singular values of all hidden matrices, of their momentum and updates, and of single heads; with them how
 * far updates are from orthogonal, and how large the decay lets weights grow.
 *
 * A probe takes a run of matrices from the backend one layer at a time and measures them in parallel, one thread a
 * matrix, each with a serial BLAS and LAPACK:
 *
 *      run (layers, heads, rows, columns)      stage (device, f32)         host (f32)
 *      | layer 0: h0 h1 ..  | --op_copy-->  | whole matrix | --to_host--> | layer 0 |
 *      | layer 1: h0 h1 ..  |    (heads go side by side or one              | layer 1 |
 *                                 below the other, as in the block)
 *
 * A head is a range of rows, or (of o) of columns, of the host copy of the whole matrix.
 *
 * What is copied is noted as a Batch. Where ops have done their work when they return, a batch is measured at once. A
 * device that runs asynchronously copies into pinned memory while the host goes on; when the last copy of the step has
 * arrived, the device calls announce_copies, and that wakes the thread that measures them:
 *
 *      caller    add  add  add  finish   | next step ...                  | records
 *      device      copy  copy  copy  announce_copies | next step ...      |
 *      worker                            sleeps      | measures           | joined
 *
 * Until it is joined the worker owns the batches, the host copies and the records.
 */
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "base/metrics.h"
#include "probe/matrix.h"
#include "probe/probe.h"
#include "probe/record.h"
#include "probe/singular_values.h"

typedef enum { OF_WEIGHT, OF_MOMENTUM, OF_UPDATE, OF_COUNT } SpectrumOf;

/* A run of matrices and what they are. */
typedef struct {
    int kind;
    int64_t first_layer;
    BlockSplit split; /* how the optimizer takes the matrices */
    OptimizerKind optimizer;
    SpectrumOf of;
    double step, decay; /* lr s and lr wd of an update */
} SpectrumRun;

typedef struct {
    SpectrumRun run;
    int64_t layer;
    int head; /* -1: the whole block */
    Spectrum spectrum;
} SpectrumRecord;

/* A run of matrices in host memory, and where its records go. */
typedef struct {
    SpectrumRun what;
    int64_t layers, host_offset, first_record;
} Batch;

typedef struct {
    const ParamTable *params;
    Backend *be;
    bool split_heads;  /* every head that an optimizer takes by itself has a record, not only those of q and k */
    bool asynchronous; /* copies are on their way when they have been asked for */
    int64_t record_count, record_capacity;
    SpectrumRecord *records;
    int64_t batch_count; /* not measured yet; a batch has a record or more */
    Batch *batches;
    int64_t host_used, host_elements;
    float *host;
    Workspaces work;        /* singular values, then the workspace of singular_values */
    int64_t stage_elements; /* of the largest matrix */
    Tensor stage;           /* (stage_elements) f32 */
    bool unreported;        /* the records are of a step whose line has not had them */
    cJSON *list;            /* the same of an earlier step, as its line will have them; or NULL */

    pthread_t worker;
    bool working; /* there is a worker, to be joined */
    sem_t copied; /* posted when the copies have arrived */
    atomic_bool has_copied;
} SpectrumProbe;

enum { HOST_ELEMENTS_MAX = 1 << 28 }; /* of one step's pinned copies */

static bool has_heads(const BlockKind *kind) {
    return kind->role == ROLE_Q || kind->role == ROLE_Q_ROPE || kind->role == ROLE_K;
}

/* How many heads of each matrix of a run get a record of their own. */
static int measured_heads(const SpectrumProbe *p, int kind, BlockSplit split) {
    const BlockKind *block = &p->params->kinds[kind];
    return has_heads(block) || (p->split_heads && split == SPLIT_PER_HEAD) ? block->heads : 0;
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

/* A block's matrix, or a head's range of rows, or of columns, of it. */
static Spectrum measure(const BlockKind *block, int head, const float *matrix, double *workspace) {
    const bool in_rows = block->head_axis == HEADS_IN_ROWS;
    const int heads = head < 0 ? 1 : block->heads;
    const int64_t rows = in_rows ? block->rows / heads : block->rows;
    const int64_t columns = in_rows ? block->columns : block->columns / heads;
    const int64_t offset = head < 0 ? 0 : head * (in_rows ? rows * columns : columns);
    return spectrum_measure(matrix + offset, rows, columns, block->columns, workspace);
}

typedef struct {
    const SpectrumProbe *probe;
    const Batch *batch;
} BatchTask;

/* The i-th matrix of a batch. The large ones come first: no thread starts one when the others have finished. */
static void measure_matrix(void *context, int64_t i, double *workspace) {
    const SpectrumProbe *probe = ((BatchTask *)context)->probe;
    const Batch *batch = ((BatchTask *)context)->batch;
    const SpectrumRun *run = &batch->what;
    const BlockKind *block = &probe->params->kinds[run->kind];
    const int64_t layers = batch->layers, heads = measured_heads(probe, run->kind, run->split);
    const bool whole = i < layers;
    const int64_t layer = whole ? i : (i - layers) / heads;
    const int head = whole ? -1 : (int)((i - layers) % heads);
    const float *matrix = probe->host + batch->host_offset + layer * block->rows * block->columns;
    probe->records[batch->first_record + i] = (SpectrumRecord){.run = *run,
                                                               .layer = run->first_layer + layer,
                                                               .head = head,
                                                               .spectrum = measure(block, head, matrix, workspace)};
}

static int64_t matrices_of(const SpectrumProbe *p, const SpectrumRun *run, int64_t layers) {
    return layers * (1 + measured_heads(p, run->kind, run->split));
}

/* All that have been copied, and forgets them. */
static void measure_batches(SpectrumProbe *probe) {
    for (const Batch *batch = probe->batches; batch < probe->batches + probe->batch_count; batch++)
        workspaces_run(&probe->work, matrices_of(probe, &batch->what, batch->layers), measure_matrix,
                       &(BatchTask){probe, batch});
    probe->batch_count = 0;
    probe->host_used = 0;
}

static void measure_now(SpectrumProbe *probe) {
    backend_sync(probe->be); /* the copies */
    measure_batches(probe);
}

static void *work(void *argument) {
    SpectrumProbe *probe = argument;
    while (sem_wait(&probe->copied) != 0) continue; /* a signal's handler has run */
    measure_batches(probe);
    return NULL;
}

static void announce_copies(void *argument) {
    SpectrumProbe *probe = argument;
    atomic_store(&probe->has_copied, true);
    sem_post(&probe->copied);
}

/* A device that has failed does not call announce_copies any more. */
static void join_worker(SpectrumProbe *probe) {
    if (!probe->working) return;
    if (!atomic_load(&probe->has_copied) && backend_sync(probe->be).code) announce_copies(probe);
    pthread_join(probe->worker, NULL);
    probe->working = false;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

/* Of a layer of this kind over a step. */
static int64_t records_per_layer(const SpectrumProbe *probe, int kind) {
    int64_t records = 0;
    for (int of = 0; of < OF_COUNT; of++) {
        BlockSplit split = of == OF_WEIGHT ? SPLIT_WHOLE : SPLIT_PER_HEAD;
        records += 1 + measured_heads(probe, kind, split);
    }
    return records;
}

/* Sizes of everything. Host copies hold the longest run at least, and more of the step's where that is of use. */
static void plan_sizes(SpectrumProbe *probe) {
    const ParamTable *params = probe->params;
    int64_t all_elements = 0;
    for (int i = 0; i < params->kind_count; i++) {
        const BlockKind *kind = &params->kinds[i];
        if (!params_is_hidden_matrix(kind)) continue;
        const int64_t layers = kind->layers, elements = kind->rows * kind->columns;
        const int64_t workspace = spectrum_workspace_size(kind->rows, kind->columns);
        probe->record_capacity += layers * records_per_layer(probe, i);
        probe->stage_elements = larger(probe->stage_elements, elements);
        probe->host_elements = larger(probe->host_elements, layers * elements);
        probe->work.size = larger(probe->work.size, workspace);
        all_elements += OF_COUNT * layers * elements;
    }
    if (probe->asynchronous)
        probe->host_elements = larger(probe->host_elements, smaller(all_elements, HOST_ELEMENTS_MAX));
}

static Status plan(void *self, ProbeSet *set) {
    SpectrumProbe *p = self;
    p->params = &set->gpt->params;
    p->be = set->be;
    p->split_heads = set->config->probe.orthogonality;
    p->asynchronous = backend_is_asynchronous(set->be);
    plan_sizes(p);
    sem_init(&p->copied, 0, 0); /* of one process and a count of 0: cannot fail */
    return status_ok();
}

static void layout(void *self, const ProbeSet *set, ProbeMemory *memory) {
    (void)set;
    SpectrumProbe *p = self;
    Arena *host = &memory->host;
    p->records = arena_take_host(host, p->record_capacity, sizeof *p->records);
    p->batches = arena_take_host(host, p->record_capacity, sizeof *p->batches);
    p->host = arena_take_host(host, p->host_elements, sizeof *p->host);
    workspaces_layout(&p->work, p->be, host);
    p->stage = arena_take_1d(&memory->device, DTYPE_F32, p->stage_elements);
}

static void release(void *self, ProbeSet *set) {
    (void)set;
    SpectrumProbe *p = self;
    join_worker(p);
    cJSON_Delete(p->list);
    sem_destroy(&p->copied);
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

/* Copies a run of blocks to the host and measures its matrices, in parallel: now, or, on a device that runs
 * asynchronously, once `finish` has been called and the device has got there. run: (layers, heads or 1, rows, columns),
 * f32 or bf16, strided, as params_block_run gives it for what.split; a run that comes split per head is put together
 * for the whole block's record. Records come in the order: whole matrices by layer, then heads by layer and head. */
static void add(SpectrumProbe *p, SpectrumRun what, Tensor run) {
    const BlockKind *block = &p->params->kinds[what.kind];
    const int64_t layers = run.shape[0], size = block->rows * block->columns, elements = layers * size;
    const int64_t matrices = matrices_of(p, &what, layers);
    CHECK(run.ndim == 4 && run.shape[1] == (what.split == SPLIT_PER_HEAD ? block->heads : 1) &&
              run.shape[1] * run.shape[2] * run.shape[3] == size,
          "the run is not one of %s", block->name);
    CHECK(elements <= p->host_elements, "%lld layers of %s", (long long)layers, block->name);
    CHECK(p->record_count + matrices <= p->record_capacity, "%s was added twice in a step", block->name);
    CHECK(!p->working, "%s was added after the step was finished", block->name);
    if (p->host_used + elements > p->host_elements) measure_now(p);

    fetch_run(p->be, p->stage.data, run, block->head_axis, p->host + p->host_used);
    p->batches[p->batch_count++] =
        (Batch){.what = what, .layers = layers, .host_offset = p->host_used, .first_record = p->record_count};
    p->host_used += elements;
    p->record_count += matrices;
    if (!p->asynchronous) measure_batches(p);
}

/* All matrices of the step have been added: a thread of the host measures what is still to be measured, while the
 * caller goes on with the next step. */
static void finish(SpectrumProbe *p) {
    if (p->batch_count == 0) return;
    atomic_store(&p->has_copied, false);
    p->working = pthread_create(&p->worker, NULL, work, p) == 0;
    if (p->working)
        backend_call_later(p->be, announce_copies, p);
    else
        measure_now(p);
}

static void update(void *self, ProbeSet *set, const UpdateEvent *e) {
    (void)set;
    if (e->moment != UPDATE_APPLIED) return;
    SpectrumRun what = {.kind = e->route->kind,
                        .first_layer = e->route->first,
                        .split = e->route->split,
                        .optimizer = e->route->optimizer,
                        .of = OF_MOMENTUM,
                        .step = e->lr * (double)e->route->scale,
                        .decay = 1 - e->keep};
    if (tensor_present(e->momentum)) add(self, what, e->momentum);
    what.of = OF_UPDATE;
    add(self, what, e->update);
}

static void end(void *self, ProbeSet *set) {
    SpectrumProbe *p = self;
    (void)set;
    for (int kind = 0; kind < p->params->kind_count; kind++) {
        if (!params_is_hidden_matrix(&p->params->kinds[kind])) continue;
        const int64_t layers = p->params->kinds[kind].layers;
        Tensor run = params_block_run(p->params, p->params->master, kind, 0, layers, SPLIT_WHOLE);
        add(p, (SpectrumRun){.kind = kind, .split = SPLIT_WHOLE, .of = OF_WEIGHT}, run);
    }
    finish(p);
    p->unreported = true;
}

/* ---- the record ------------------------------------------------------------------------------------------------- */

/* How far from orthogonal U = msign(.) is, of what is one matrix to the optimizer. NorMuon and AdaMuon scale its rows
 * or elements, and a Schatten norm leaves larger values larger: there it says nothing. */
static void add_orthogonality(cJSON *row, const ProbeSet *set, const SpectrumRecord *r) {
    const bool unit = (r->head < 0) == (r->run.split == SPLIT_WHOLE);
    if (!unit || !optimizer_is_orthogonal(set->optimizer, r->run.optimizer)) return;
    metrics_add_float(row, "error", (float)r->spectrum.orthogonality_error);
    metrics_add_float(row, "below_half", (float)r->spectrum.below_half);
}

/* Of whole updates: the size of the step, and the largest |W|_2 that decay allows in the long run. */
static void add_sizes(cJSON *row, const ProbeSet *set, const SpectrumRecord *r) {
    const SpectrumRun *run = &r->run;
    const Route route = {.kind = run->kind, .optimizer = run->optimizer};
    if (r->head >= 0) return;
    metrics_add_float(row, "step_rms", (float)(run->step * r->spectrum.rms));
    metrics_add_float(
        row, "decay_bound",
        (float)optimizer_decay_bound(set->optimizer, &route, run->step, r->spectrum.sigma_max, run->decay));
}

static void add_record(cJSON *list, const ProbeSet *set, const SpectrumRecord *r) {
    static const char *const of[] = {"weight", "momentum", "update"};
    const Spectrum *s = &r->spectrum;
    cJSON *row = record_add_block(list, &set->gpt->params, r->run.kind, r->layer);
    cJSON_AddItemToObject(row, "head", r->head < 0 ? cJSON_CreateNull() : metrics_number(r->head));
    cJSON_AddStringToObject(row, "of", of[r->run.of]);
    metrics_add_float(row, "sigma_max", (float)s->sigma_max);
    metrics_add_float(row, "sigma_min", (float)s->sigma_min);
    metrics_add_float(row, "rms", (float)s->rms);
    metrics_add_float(row, "entropy", (float)s->entropy);
    metrics_add_float(row, "entropy_sq", (float)s->entropy_sq);
    metrics_add_float(row, "effective_rank", (float)s->effective_rank);
    metrics_add_float(row, "stable_rank", (float)s->stable_rank);
    if (r->run.of != OF_UPDATE) return;
    if (set->config->probe.orthogonality) add_orthogonality(row, set, r);
    if (set->config->probe.rms) add_sizes(row, set, r);
}

/* Waits for the records and turns them into `list`. */
static void collect(SpectrumProbe *p, const ProbeSet *set) {
    if (p->working)
        join_worker(p);
    else if (p->batch_count > 0)
        measure_now(p);
    cJSON_Delete(p->list);
    p->list = cJSON_CreateArray();
    for (int64_t i = 0; i < p->record_count; i++) add_record(p->list, set, &p->records[i]);
    p->unreported = false;
}

/* The records make room for this step's: where the line before still waits for them, it will find `list`. */
static void begin(void *self, ProbeSet *set) {
    SpectrumProbe *p = self;
    if (p->unreported) collect(p, set);
    p->record_count = 0;
}

static void report(void *self, ProbeSet *set, cJSON *line) {
    SpectrumProbe *p = self;
    if (!p->list) collect(p, set);
    cJSON_AddItemToObject(line, "spectrum", p->list);
    p->list = NULL;
}

const Probe probe_spectrum = {.size = sizeof(SpectrumProbe),
                              .of_update = true,
                              .late = true,
                              .plan = plan,
                              .layout = layout,
                              .release = release,
                              .begin = begin,
                              .update = update,
                              .end = end,
                              .report = report};
