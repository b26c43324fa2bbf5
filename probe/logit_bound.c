/* Bounds of attention logits; see logit_bound.h.
 *
 * Weights come from the backend one layer at a time, as fp32, and heads are measured in parallel:
 *
 *      work copies --op_copy--> stage (device, f32) --to_host--> | W_q: head 0, 1, .. | W_k: head 0, 1, .. |
 */
#include "probe/logit_bound.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "core/ops.h"
#include "probe/dense.h"

/* ---- bounds ----------------------------------------------------------------------------------------------------- */

double logit_bound(const LogitPart *parts, int count, double scale) {
    double sum = 0;
    for (int i = 0; i < count; i++) {
        const LogitPart *p = &parts[i];
        sum += (p->x_q * p->w_q + p->b_q) * (p->x_k * p->w_k + p->b_k);
    }
    return fabs(scale) * sum;
}

double logit_bound_qk(const LogitPart *parts, int count, double scale) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].x_q * parts[i].x_k * parts[i].w_qk;
    return fabs(scale) * sum;
}

/* ---- norms of weights ------------------------------------------------------------------------------------------- */

/* | A, B, C: size x size | eigenvalues: size | panel, and after it the work of the eigenvalues | */
int64_t logit_part_workspace_size(int64_t size) {
    int64_t panel = dense_panel_size(size), work = dense_eigen_work_size(size);
    return 3 * size * size + size + (panel > work ? panel : work);
}

static double root_of_largest(const double *ascending, int64_t n) {
    return sqrt(fmax(ascending[n - 1], 0));
}

static void fill_lower(double *matrix, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++) matrix[i * n + j] = matrix[j * n + i];
}

/* With A = W_q W_qᵀ = U L Uᵀ and B = W_k W_kᵀ, the eigenvalues of A B are those of the symmetric L^½ Uᵀ B U L^½. */
void logit_part_measure(LogitPart *part, const float *w_q, int64_t q_inputs, const float *w_k, int64_t k_inputs,
                        int64_t size, double *workspace) {
    const int64_t n = size, square = n * n;
    double *a = workspace, *b = a + square, *c = b + square, *values = c + square, *scratch = values + n;
    part->w_q = part->w_k = part->w_qk = (double)NAN;
    if (!dense_gram(a, w_q, n, q_inputs, GRAM_OF_ROWS, scratch)) return;
    if (!dense_gram(b, w_k, n, k_inputs, GRAM_OF_ROWS, scratch)) return;
    fill_lower(b, n);
    if (!dense_eigen(values, a, n, EIGENVECTORS, scratch)) return;
    const double norm_q = root_of_largest(values, n);
    for (int64_t i = 0; i < n; i++) /* the rows of a, U's columns, become those of U L^½ */
        for (int64_t j = 0; j < n; j++) a[i * n + j] *= sqrt(fmax(values[i], 0));
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)n, (int)n, 1, a, (int)n, b, (int)n, 0, c,
                (int)n);
    if (!dense_eigen(values, b, n, EIGENVALUES, scratch)) return;
    const double norm_k = root_of_largest(values, n);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)n, (int)n, 1, c, (int)n, a, (int)n, 0, b, (int)n);
    if (!dense_eigen(values, b, n, EIGENVALUES, scratch)) return;
    part->w_q = norm_q, part->w_k = norm_k, part->w_qk = root_of_largest(values, n);
}

/* ---- the probe -------------------------------------------------------------------------------------------------- */

typedef struct {
    int kind, bias; /* block kinds; bias -1: none */
    int64_t heads;
    int64_t first_row; /* of the host copy */
} Side;

struct LogitBoundProbe {
    const ParamTable *params;
    Backend *be;
    int threads;
    Side q, k;
    int64_t layers, head_size, width;
    Arena arena;
    Tensor stage;   /* (rows, width) f32: a layer's W_q, then W_k */
    Tensor vectors; /* (rows) f32: its biases */
    Tensor norms;   /* (layers) f32 */

    float *host, *host_vectors, *host_norms;
    double *workspaces; /* one a thread */
    LogitBoundRecord *records;
};

static Side side_of(const ParamTable *params, const char *name, const char *bias, int64_t first_row) {
    const int kind = params_find_kind(params, name);
    CHECK(kind >= 0 && params->kinds[kind].head_axis == HEADS_IN_ROWS, "there are no heads in rows of \"%s\"", name);
    return (Side){kind, params_find_kind(params, bias), params->kinds[kind].heads, first_row};
}

static int64_t rows_of_layer(const LogitBoundProbe *probe) {
    return (probe->q.heads + probe->k.heads) * probe->head_size;
}

static void layout(LogitBoundProbe *probe) {
    probe->stage = arena_take_2d(&probe->arena, DTYPE_F32, rows_of_layer(probe), probe->width);
    probe->vectors = arena_take_1d(&probe->arena, DTYPE_F32, rows_of_layer(probe));
    probe->norms = arena_take_1d(&probe->arena, DTYPE_F32, probe->layers);
}

static int64_t workspace_doubles(const LogitBoundProbe *probe) {
    return probe->threads * logit_part_workspace_size(probe->head_size);
}

static bool allocate_host(LogitBoundProbe *probe) {
    const int64_t rows = rows_of_layer(probe);
    probe->host = calloc((size_t)(rows * probe->width), sizeof *probe->host);
    probe->host_vectors = calloc((size_t)rows, sizeof *probe->host_vectors);
    probe->host_norms = calloc((size_t)probe->layers, sizeof *probe->host_norms);
    probe->workspaces = calloc((size_t)workspace_doubles(probe), sizeof *probe->workspaces);
    probe->records = calloc((size_t)(probe->layers * probe->q.heads), sizeof *probe->records);
    return probe->host && probe->host_vectors && probe->host_norms && probe->workspaces && probe->records;
}

Status logit_bound_probe_create(LogitBoundProbe **out, const ParamTable *params, Backend *be) {
    LogitBoundProbe *probe = calloc(1, sizeof *probe);
    Status status = status_error(STATUS_OUT_OF_MEMORY, "no memory for the bounds of logits; set probe.bound_every=0");
    if (!probe) return status;
    *probe = (LogitBoundProbe){.params = params, .be = be, .arena = arena_measure("logit bound")};
    probe->threads = be->threads > 0 ? be->threads : omp_get_max_threads();
    probe->q = side_of(params, "q", "q_bias", 0);
    const BlockKind *q = &params->kinds[probe->q.kind];
    probe->layers = params_kind_layers(params, probe->q.kind);
    probe->head_size = q->rows / q->heads;
    probe->width = params->params[q->param].columns;
    probe->k = side_of(params, "k", "k_bias", q->rows);
    layout(probe);
    if (!allocate_host(probe) || FAILED(status, arena_allocate(&probe->arena, be))) {
        logit_bound_probe_free(probe);
        return status;
    }
    layout(probe);
    *out = probe;
    return status;
}

void logit_bound_probe_free(LogitBoundProbe *probe) {
    if (!probe) return;
    arena_free(&probe->arena);
    free(probe->host);
    free(probe->host_vectors);
    free(probe->host_norms);
    free(probe->workspaces);
    free(probe->records);
    free(probe);
}

int64_t logit_bound_probe_bytes(const LogitBoundProbe *probe) {
    return 2 * arena_bytes(&probe->arena) + workspace_doubles(probe) * (int64_t)sizeof *probe->workspaces +
           probe->layers * probe->q.heads * (int64_t)sizeof *probe->records;
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Matrices from their working copies, vectors from the masters: what the forward pass reads. */
static void stage_side(LogitBoundProbe *probe, Side side, int64_t layer) {
    const ParamTable *params = probe->params;
    const int64_t rows = side.heads * probe->head_size;
    op_copy(probe->be, tensor_slice(probe->stage, 0, side.first_row, rows),
            params_block(params, params->work, side.kind, layer));
    Tensor vector = tensor_slice(probe->vectors, 0, side.first_row, rows);
    if (side.bias >= 0)
        op_copy(probe->be, tensor_as_2d(vector, rows, 1), params_block(params, params->master, side.bias, layer));
    else
        op_fill(probe->be, vector, 0);
}

static double norm_of(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static void measure_layer(LogitBoundProbe *probe, LogitBoundRecord *records, int64_t layer) {
    const int64_t D = probe->head_size, C = probe->width, group = probe->q.heads / probe->k.heads;
#pragma omp parallel for schedule(dynamic) num_threads(probe->threads)
    for (int64_t h = 0; h < probe->q.heads; h++) {
        double *workspace = probe->workspaces + omp_get_thread_num() * logit_part_workspace_size(D);
        const int64_t q = probe->q.first_row + h * D, k = probe->k.first_row + h / group * D;
        LogitPart part = {.b_q = norm_of(probe->host_vectors + q, D), .b_k = norm_of(probe->host_vectors + k, D)};
        logit_part_measure(&part, probe->host + q * C, C, probe->host + k * C, C, D, workspace);
        records[h] = (LogitBoundRecord){.layer = layer, .head = h, .part = part};
    }
}

void logit_bound_probe_begin(LogitBoundProbe *probe) {
    op_fill(probe->be, probe->norms, 0);
    const int blas_threads = dense_serial_blas();
    for (int64_t layer = 0; layer < probe->layers; layer++) {
        stage_side(probe, probe->q, layer);
        stage_side(probe, probe->k, layer);
        backend_to_host(probe->be, probe->host, probe->stage);
        backend_to_host(probe->be, probe->host_vectors, probe->vectors);
        measure_layer(probe, probe->records + layer * probe->q.heads, layer);
    }
    dense_restore_blas(blas_threads);
}

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

void logit_bound_probe_add(LogitBoundProbe *probe, int64_t layer, Tensor x) {
    op_max_norm(probe->be, tensor_slice(probe->norms, 0, layer, 1), x);
}

void logit_bound_probe_read(LogitBoundProbe *probe) {
    backend_to_host(probe->be, probe->host_norms, probe->norms);
    for (int64_t i = 0; i < probe->layers * probe->q.heads; i++) {
        LogitPart *part = &probe->records[i].part;
        part->x_q = part->x_k = (double)probe->host_norms[probe->records[i].layer];
    }
}

const LogitBoundRecord *logit_bound_probe_records(const LogitBoundProbe *probe, int64_t *count) {
    *count = probe->layers * probe->q.heads;
    return probe->records;
}
