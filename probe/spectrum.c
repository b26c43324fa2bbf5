/* Singular values through the fp64 Gram matrix, and the statistics of their distribution; see spectrum.h.
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
#include "probe/spectrum.h"

#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "probe/matrix.h"

static const double nan_value = (double)NAN;

/* ---- statistics ------------------------------------------------------------------------------------------------- */

static double plogp(double p) {
    return p > 0 ? p * log(p) : 0;
}

static Spectrum spectrum_of_nan(void) {
    return (Spectrum){.sigma_max = nan_value,
                      .sigma_min = nan_value,
                      .rms = nan_value,
                      .entropy = nan_value,
                      .entropy_sq = nan_value,
                      .effective_rank = nan_value,
                      .stable_rank = nan_value,
                      .orthogonality_error = nan_value,
                      .below_half = nan_value};
}

/* Entropies of values given in units of the largest, so that no square over- or underflows. */
static void add_entropies(Spectrum *s, const double *sigma, int64_t r, double sum, double sum_sq) {
    for (int64_t i = 0; i < r; i++) {
        double x = sigma[i] / s->sigma_max;
        s->entropy -= plogp(x / sum);
        s->entropy_sq -= plogp(x * x / sum_sq);
    }
    s->entropy_sq = r > 1 ? s->entropy_sq / log((double)r) : 1;
    s->effective_rank = exp(s->entropy);
    s->stable_rank = sum_sq;
}

Spectrum spectrum_from_values(const double *sigma, int64_t r, int64_t length) {
    Spectrum s = {.sigma_min = HUGE_VAL};
    double sum = 0, sum_sq = 0, error_sq = 0;
    for (int64_t i = 0; i < r; i++) {
        if (!isfinite(sigma[i])) return spectrum_of_nan();
        const double deviation = sigma[i] * sigma[i] - 1;
        s.sigma_max = fmax(s.sigma_max, sigma[i]);
        s.sigma_min = fmin(s.sigma_min, sigma[i]);
        s.below_half += sigma[i] < 0.5 ? 1 : 0;
        error_sq += deviation * deviation;
    }
    s.below_half /= (double)r;
    s.orthogonality_error = sqrt(error_sq);
    if (s.sigma_max == 0) return s;
    for (int64_t i = 0; i < r; i++) {
        double x = sigma[i] / s.sigma_max;
        sum += x;
        sum_sq += x * x;
    }
    s.rms = s.sigma_max * sqrt(sum_sq / ((double)r * (double)length));
    add_entropies(&s, sigma, r, sum, sum_sq);
    return s;
}

/* ---- singular values -------------------------------------------------------------------------------------------- */

/* workspace: | Gram r x r | panel, and after it the work of the eigenvalues | */
int64_t spectrum_workspace_size(int64_t rows, int64_t columns) {
    int64_t r = smaller(rows, columns);
    return r * r + larger(gram_panel_size(r), eigen_work_size(r));
}

/* As spectrum_singular_values, of a matrix whose rows lie `stride` apart. */
static void singular_values(double *sigma, const float *matrix, int64_t rows, int64_t columns, int64_t stride,
                            double *workspace) {
    int64_t r = smaller(rows, columns);
    double *gram = workspace, *scratch = workspace + r * r;
    bool known = gram_matrix(gram, matrix, rows, columns, stride, gram_smaller_side(rows, columns), scratch) &&
                 eigen_symmetric(sigma, gram, r, EIGENVALUES, scratch);
    if (!known) {
        for (int64_t i = 0; i < r; i++) sigma[i] = nan_value;
        return;
    }
    double noise = gram_noise(r, sigma[r - 1]);
    for (int64_t i = 0; i < r; i++) sigma[i] = sigma[i] > noise ? sqrt(sigma[i]) : 0;
    for (int64_t i = 0, j = r - 1; i < j; i++, j--) {
        double ascending = sigma[i];
        sigma[i] = sigma[j];
        sigma[j] = ascending;
    }
}

void spectrum_singular_values(double *sigma, const float *matrix, int64_t rows, int64_t columns, double *workspace) {
    singular_values(sigma, matrix, rows, columns, columns, workspace);
}

/* ---- the probe -------------------------------------------------------------------------------------------------- */

/* A run of matrices in host memory, and where its records go. */
typedef struct {
    SpectrumRun what;
    int64_t layers, host_offset, first_record;
} Batch;

struct SpectrumProbe {
    const ParamTable *params;
    Backend *be;
    SpectrumHeads heads;
    int threads;
    bool asynchronous; /* copies are on their way after spectrum_probe_add */
    int64_t record_count, record_capacity;
    SpectrumRecord *records;
    int64_t batch_count; /* not measured yet; a batch has a record or more */
    Batch *batches;
    int64_t host_used, host_elements;
    float *host;
    int64_t workspace_size; /* doubles a thread: singular values, then spectrum_singular_values' workspace */
    double *workspaces;
    int64_t stage_elements; /* of the largest matrix */
    void *stage;            /* in the backend's memory */

    pthread_t worker;
    bool working; /* there is a worker, to be joined */
    sem_t copied; /* posted when the copies have arrived */
    atomic_bool has_copied;
};

enum { SPECTRUM_OF_COUNT = SPECTRUM_UPDATE + 1 };
enum { HOST_ELEMENTS_MAX = 1 << 28 }; /* of one step's pinned copies */

bool spectrum_has_heads(const BlockKind *kind) {
    return kind->role == ROLE_Q || kind->role == ROLE_Q_ROPE || kind->role == ROLE_K;
}

/* How many heads of each matrix of a run get a record of their own. */
static int measured_heads(const SpectrumProbe *probe, const SpectrumRun *what) {
    const BlockKind *kind = &probe->params->kinds[what->kind];
    bool split = probe->heads == SPECTRUM_HEADS_AS_SPLIT && what->split == SPLIT_PER_HEAD;
    return spectrum_has_heads(kind) || split ? kind->heads : 0;
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static void measure(SpectrumProbe *probe, SpectrumRecord *record, const float *matrix, int64_t rows, int64_t columns,
                    int64_t stride) {
    double *sigma = probe->workspaces + omp_get_thread_num() * probe->workspace_size;
    int64_t r = smaller(rows, columns);
    singular_values(sigma, matrix, rows, columns, stride, sigma + r);
    record->spectrum = spectrum_from_values(sigma, r, larger(rows, columns));
}

/* A range of rows, or of columns, of a (rows, columns) matrix of the host. */
static void measure_head(SpectrumProbe *probe, SpectrumRecord *record, const BlockKind *block, const float *matrix,
                         int64_t columns) {
    bool in_rows = block->head_axis == HEADS_IN_ROWS;
    int64_t head_rows = in_rows ? block->rows / block->heads : block->rows;
    int64_t head_columns = in_rows ? columns : columns / block->heads;
    int64_t offset = record->head * (in_rows ? head_rows * columns : head_columns);
    measure(probe, record, matrix + offset, head_rows, head_columns, columns);
}

static void measure_batch(SpectrumProbe *probe, const Batch *batch) {
    const SpectrumRun *what = &batch->what;
    const BlockKind *block = &probe->params->kinds[what->kind];
    int64_t layers = batch->layers, rows = block->rows, columns = probe->params->params[block->param].columns;
    int64_t heads = measured_heads(probe, what), matrices = layers * (1 + heads);
    SpectrumRecord *records = probe->records + batch->first_record;
    /* the large ones first: then no thread starts one when the others have finished */
#pragma omp parallel for schedule(dynamic) num_threads(probe->threads)
    for (int64_t i = 0; i < matrices; i++) {
        bool whole = i < layers;
        int64_t layer = whole ? i : (i - layers) / heads, head = whole ? -1 : (i - layers) % heads;
        const float *matrix = probe->host + batch->host_offset + layer * rows * columns;
        records[i] = (SpectrumRecord){.kind = what->kind,
                                      .layer = what->first_layer + layer,
                                      .head = (int)head,
                                      .of = what->of,
                                      .unit = whole == (what->split == SPLIT_WHOLE),
                                      .step = what->step,
                                      .decay = what->decay};
        if (whole)
            measure(probe, &records[i], matrix, rows, columns, columns);
        else
            measure_head(probe, &records[i], block, matrix, columns);
    }
}

/* All that have been copied, and forgets them. */
static void measure_batches(SpectrumProbe *probe) {
    int threads_before = blas_begin_serial();
    for (int64_t i = 0; i < probe->batch_count; i++) measure_batch(probe, &probe->batches[i]);
    blas_end_serial(threads_before);
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
    for (int of = 0; of < SPECTRUM_OF_COUNT; of++) {
        BlockSplit split = of == SPECTRUM_WEIGHT ? SPLIT_WHOLE : SPLIT_PER_HEAD;
        records += 1 + measured_heads(probe, &(SpectrumRun){.kind = kind, .split = split});
    }
    return records;
}

/* Sizes of everything. Host copies hold the longest run at least, and more of the step's where that is of use. */
static void plan(SpectrumProbe *probe) {
    const ParamTable *params = probe->params;
    int64_t all_elements = 0;
    for (int i = 0; i < params->kind_count; i++) {
        const BlockKind *kind = &params->kinds[i];
        if (!params_is_hidden_matrix(kind)) continue;
        int64_t layers = params_kind_layers(params, i), columns = params->params[kind->param].columns;
        int64_t elements = kind->rows * columns;
        int64_t workspace = smaller(kind->rows, columns) + spectrum_workspace_size(kind->rows, columns);
        probe->record_capacity += layers * records_per_layer(probe, i);
        probe->stage_elements = larger(probe->stage_elements, elements);
        probe->host_elements = larger(probe->host_elements, layers * elements);
        probe->workspace_size = larger(probe->workspace_size, workspace);
        all_elements += SPECTRUM_OF_COUNT * layers * elements;
    }
    if (probe->asynchronous)
        probe->host_elements = larger(probe->host_elements, smaller(all_elements, HOST_ELEMENTS_MAX));
}

static bool allocate_host(SpectrumProbe *probe) {
    probe->records = calloc((size_t)probe->record_capacity + 1, sizeof *probe->records);
    probe->batches = calloc((size_t)probe->record_capacity + 1, sizeof *probe->batches);
    probe->host = backend_alloc_host(probe->be, (probe->host_elements + 1) * (int64_t)sizeof *probe->host);
    probe->workspaces = calloc((size_t)(probe->threads * probe->workspace_size) + 1, sizeof *probe->workspaces);
    return probe->records && probe->batches && probe->host && probe->workspaces;
}

Status spectrum_probe_create(SpectrumProbe **out, const ParamTable *params, Backend *be, SpectrumHeads heads) {
    SpectrumProbe *probe = calloc(1, sizeof *probe);
    if (!probe) return status_error(STATUS_OUT_OF_MEMORY, "no memory for the spectrum probe");
    probe->params = params;
    probe->be = be;
    probe->heads = heads;
    probe->threads = be->threads > 0 ? be->threads : omp_get_max_threads();
    probe->asynchronous = backend_is_asynchronous(be);
    sem_init(&probe->copied, 0, 0);
    plan(probe);
    Status status = status_ok();
    if (!allocate_host(probe)) {
        status = status_error(STATUS_OUT_OF_MEMORY,
                              "no memory for the spectrum probe's %lld bytes on the host; set probe.spectrum_every=0",
                              (long long)spectrum_probe_bytes(probe));
        goto fail;
    }
    int64_t stage_bytes = probe->stage_elements * dtype_size(DTYPE_F32);
    if (stage_bytes > 0 && FAILED(status, backend_alloc(be, &probe->stage, stage_bytes, "spectrum probe"))) goto fail;
    *out = probe;
    return status;
fail:
    spectrum_probe_free(probe);
    return status;
}

void spectrum_probe_free(SpectrumProbe *probe) {
    if (!probe) return;
    join_worker(probe);
    if (probe->stage) backend_free(probe->be, probe->stage, probe->stage_elements * dtype_size(DTYPE_F32));
    backend_free_host(probe->be, probe->host);
    sem_destroy(&probe->copied);
    free(probe->workspaces);
    free(probe->batches);
    free(probe->records);
    free(probe);
}

int64_t spectrum_probe_bytes(const SpectrumProbe *probe) {
    return probe->record_capacity * (int64_t)(sizeof *probe->records + sizeof *probe->batches) +
           (probe->host_elements + probe->stage_elements) * (int64_t)sizeof *probe->host +
           probe->threads * probe->workspace_size * (int64_t)sizeof *probe->workspaces;
}

/* ---- copying ---------------------------------------------------------------------------------------------------- */

void spectrum_probe_add(SpectrumProbe *probe, SpectrumRun what, Tensor run) {
    const BlockKind *block = &probe->params->kinds[what.kind];
    int64_t layers = run.shape[0], rows = block->rows, columns = probe->params->params[block->param].columns;
    int64_t elements = layers * rows * columns, matrices = layers * (1 + measured_heads(probe, &what));
    CHECK(run.ndim == 4 && run.shape[1] == (what.split == SPLIT_PER_HEAD ? block->heads : 1) &&
              run.shape[1] * run.shape[2] * run.shape[3] == rows * columns,
          "the run is not one of %s", block->name);
    CHECK(elements <= probe->host_elements, "%lld layers of %s", (long long)layers, block->name);
    CHECK(probe->record_count + matrices <= probe->record_capacity, "%s was added twice in a step", block->name);
    CHECK(!probe->working, "%s was added after the step was finished", block->name);
    if (probe->host_used + elements > probe->host_elements) measure_now(probe);

    fetch_run(probe->be, probe->stage, run, block->head_axis, probe->host + probe->host_used);
    probe->batches[probe->batch_count++] =
        (Batch){.what = what, .layers = layers, .host_offset = probe->host_used, .first_record = probe->record_count};
    probe->host_used += elements;
    probe->record_count += matrices;
    if (!probe->asynchronous) measure_batches(probe);
}

void spectrum_probe_begin(SpectrumProbe *probe) {
    join_worker(probe);
    probe->record_count = 0;
}

void spectrum_probe_finish(SpectrumProbe *probe) {
    if (probe->batch_count == 0) return;
    atomic_store(&probe->has_copied, false);
    probe->working = pthread_create(&probe->worker, NULL, work, probe) == 0;
    if (probe->working)
        backend_call_later(probe->be, announce_copies, probe);
    else
        measure_now(probe);
}

const SpectrumRecord *spectrum_probe_records(SpectrumProbe *probe, int64_t *count) {
    if (probe->working)
        join_worker(probe);
    else if (probe->batch_count > 0)
        measure_now(probe);
    *count = probe->record_count;
    return probe->records;
}
