/* Bounds of attention logits; see logit_bound.h.
 *
 * Weights come from the backend one layer at a time, as fp32, and heads are measured in parallel:
 *
 *      work copies --op_copy--> stage (device, f32) --to_host--> | W_q: head 0, 1, .. | W_k: head 0, 1, .. |
 *                                                                | W_qr: head 0, 1, .. | W_kr |    latent attention
 */
#include "probe/logit_bound.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "probe/matrix.h"

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
    int64_t panel = gram_panel_size(size), work = eigen_work_size(size);
    return 3 * size * size + size + larger(panel, work);
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
    if (!gram_matrix(a, w_q, n, q_inputs, q_inputs, GRAM_OF_ROWS, scratch)) return;
    if (!gram_matrix(b, w_k, n, k_inputs, k_inputs, GRAM_OF_ROWS, scratch)) return;
    fill_lower(b, n);
    if (!eigen_symmetric(values, a, n, EIGENVECTORS, scratch)) return;
    const double norm_q = root_of_largest(values, n);
    for (int64_t i = 0; i < n; i++) /* the rows of a, U's columns, become those of U L^½ */
        for (int64_t j = 0; j < n; j++) a[i * n + j] *= sqrt(fmax(values[i], 0));
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)n, (int)n, 1, a, (int)n, b, (int)n, 0, c,
                (int)n);
    if (!eigen_symmetric(values, b, n, EIGENVALUES, scratch)) return;
    const double norm_k = root_of_largest(values, n);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)n, (int)n, 1, c, (int)n, a, (int)n, 0, b, (int)n);
    if (!eigen_symmetric(values, b, n, EIGENVALUES, scratch)) return;
    part->w_q = norm_q, part->w_k = norm_k, part->w_qk = root_of_largest(values, n);
}

/* ---- the probe -------------------------------------------------------------------------------------------------- */

/* The weights of one factor of a part, and where they lie in the copy of a layer. */
typedef struct {
    int kind, bias; /* block kinds; bias -1: none */
    LogitInput input;
    int64_t heads, size, inputs; /* W of a head is (size, inputs) */
    int64_t first, first_bias;   /* element of W's first head, and of its bias */
} Side;

typedef struct {
    Side q, k;
} PartSides;

struct LogitBoundProbe {
    const ParamTable *params;
    Backend *be;
    int threads, part_count;
    PartSides parts[LOGIT_PARTS_MAX];
    int64_t layers, heads;
    int64_t elements, vector_elements; /* of a layer's matrices, and of their biases */
    Arena arena;
    Tensor stage;   /* (elements) f32 */
    Tensor vectors; /* (vector_elements) f32 */
    Tensor norms;   /* (layers, LOGIT_INPUTS) f32 */

    float *host, *host_vectors, *host_norms;
    double *workspaces; /* one a thread */
    LogitBoundRecord *records;
};

static Side add_side(LogitBoundProbe *probe, const char *name, const char *bias, LogitInput input) {
    const ParamTable *params = probe->params;
    const int kind = params_find_kind(params, name);
    CHECK(kind >= 0 && params->kinds[kind].head_axis == HEADS_IN_ROWS, "there are no heads in rows of \"%s\"", name);
    const BlockKind *block = &params->kinds[kind];
    Side side = {.kind = kind,
                 .bias = params_find_kind(params, bias),
                 .input = input,
                 .heads = block->heads,
                 .size = block->rows / block->heads,
                 .inputs = params->params[block->param].columns,
                 .first = probe->elements,
                 .first_bias = probe->vector_elements};
    probe->elements += block->rows * side.inputs;
    probe->vector_elements += block->rows;
    return side;
}

/* Latent attention has a rotary part beside the content. */
static void find_parts(LogitBoundProbe *probe) {
    const bool latent = params_find_kind(probe->params, "q_rope") >= 0;
    const bool low_rank = params_find_kind(probe->params, "q_down") >= 0;
    const LogitInput of_q = low_rank ? LOGIT_INPUT_Q_LATENT : LOGIT_INPUT_STREAM;
    PartSides *content = &probe->parts[probe->part_count++];
    content->q = add_side(probe, "q", "q_bias", of_q);
    content->k = add_side(probe, "k", "k_bias", latent ? LOGIT_INPUT_KV_LATENT : LOGIT_INPUT_STREAM);
    if (!latent) return;
    PartSides *rotary = &probe->parts[probe->part_count++];
    rotary->q = add_side(probe, "q_rope", "", of_q);
    rotary->k = add_side(probe, "k_rope", "", LOGIT_INPUT_STREAM);
}

static void layout(LogitBoundProbe *probe) {
    probe->stage = arena_take_1d(&probe->arena, DTYPE_F32, probe->elements);
    probe->vectors = arena_take_1d(&probe->arena, DTYPE_F32, probe->vector_elements);
    probe->norms = arena_take_2d(&probe->arena, DTYPE_F32, probe->layers, LOGIT_INPUTS);
}

static int64_t workspace_size(const LogitBoundProbe *probe) {
    int64_t size = 0;
    for (int i = 0; i < probe->part_count; i++) size = larger(size, logit_part_workspace_size(probe->parts[i].q.size));
    return size;
}

static bool allocate_host(LogitBoundProbe *probe) {
    probe->host = calloc((size_t)probe->elements, sizeof *probe->host);
    probe->host_vectors = calloc((size_t)probe->vector_elements, sizeof *probe->host_vectors);
    probe->host_norms = calloc((size_t)(probe->layers * LOGIT_INPUTS), sizeof *probe->host_norms);
    probe->workspaces = calloc((size_t)(probe->threads * workspace_size(probe)), sizeof *probe->workspaces);
    probe->records = calloc((size_t)(probe->layers * probe->heads), sizeof *probe->records);
    return probe->host && probe->host_vectors && probe->host_norms && probe->workspaces && probe->records;
}

Status logit_bound_probe_create(LogitBoundProbe **out, const ParamTable *params, Backend *be) {
    LogitBoundProbe *probe = calloc(1, sizeof *probe);
    Status status = status_error(STATUS_OUT_OF_MEMORY, "no memory for the bounds of logits; set probe.bound_every=0");
    if (!probe) return status;
    *probe = (LogitBoundProbe){.params = params, .be = be, .arena = arena_measure("logit bound")};
    probe->threads = be->threads > 0 ? be->threads : omp_get_max_threads();
    find_parts(probe);
    probe->layers = params_kind_layers(params, probe->parts[0].q.kind);
    probe->heads = probe->parts[0].q.heads;
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
    return 2 * arena_bytes(&probe->arena) +
           probe->threads * workspace_size(probe) * (int64_t)sizeof *probe->workspaces +
           probe->layers * probe->heads * (int64_t)sizeof *probe->records;
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Matrices from their working copies, vectors from the masters: what the forward pass reads. */
static void stage_side(LogitBoundProbe *probe, const Side *side, int64_t layer) {
    const ParamTable *params = probe->params;
    const int64_t rows = side->heads * side->size;
    Tensor matrix = tensor_as_2d(tensor_slice(probe->stage, 0, side->first, rows * side->inputs), rows, side->inputs);
    Tensor vector = tensor_slice(probe->vectors, 0, side->first_bias, rows);
    op_copy(probe->be, matrix, params_block(params, params->work, side->kind, layer));
    if (side->bias >= 0)
        op_copy(probe->be, tensor_as_2d(vector, rows, 1), params_block(params, params->master, side->bias, layer));
    else
        op_fill(probe->be, vector, 0);
}

static double norm_of(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* Query heads share the keys of a group, or a single one. */
static LogitPart measure_part(const LogitBoundProbe *probe, const PartSides *s, int64_t head, double *workspace) {
    const int64_t size = s->q.size, key_head = head / (s->q.heads / s->k.heads);
    LogitPart part = {.b_q = norm_of(probe->host_vectors + s->q.first_bias + head * size, size),
                      .b_k = norm_of(probe->host_vectors + s->k.first_bias + key_head * size, size)};
    logit_part_measure(&part, probe->host + s->q.first + head * size * s->q.inputs, s->q.inputs,
                       probe->host + s->k.first + key_head * size * s->k.inputs, s->k.inputs, size, workspace);
    return part;
}

static void measure_layer(LogitBoundProbe *probe, LogitBoundRecord *records, int64_t layer) {
#pragma omp parallel for schedule(dynamic) num_threads(probe->threads)
    for (int64_t h = 0; h < probe->heads; h++) {
        double *workspace = probe->workspaces + omp_get_thread_num() * workspace_size(probe);
        records[h] = (LogitBoundRecord){.layer = layer, .head = h, .count = probe->part_count};
        for (int i = 0; i < probe->part_count; i++)
            records[h].parts[i] = measure_part(probe, &probe->parts[i], h, workspace);
    }
}

void logit_bound_probe_begin(LogitBoundProbe *probe) {
    op_fill(probe->be, probe->norms, 0);
    const int threads_before = blas_begin_serial();
    for (int64_t layer = 0; layer < probe->layers; layer++) {
        for (int i = 0; i < probe->part_count; i++) {
            stage_side(probe, &probe->parts[i].q, layer);
            stage_side(probe, &probe->parts[i].k, layer);
        }
        backend_to_host(probe->be, probe->host, probe->stage);
        backend_to_host(probe->be, probe->host_vectors, probe->vectors);
        measure_layer(probe, probe->records + layer * probe->heads, layer);
    }
    blas_end_serial(threads_before);
}

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

void logit_bound_probe_add(LogitBoundProbe *probe, int64_t layer, LogitInput which, Tensor x) {
    op_max_norm(probe->be, tensor_slice(tensor_index(probe->norms, layer), 0, which, 1), x);
}

void logit_bound_probe_read(LogitBoundProbe *probe) {
    backend_to_host(probe->be, probe->host_norms, probe->norms);
    for (LogitBoundRecord *r = probe->records; r < probe->records + probe->layers * probe->heads; r++) {
        const float *norms = probe->host_norms + r->layer * LOGIT_INPUTS;
        for (int i = 0; i < r->count; i++) {
            r->parts[i].x_q = (double)norms[probe->parts[i].q.input];
            r->parts[i].x_k = (double)norms[probe->parts[i].k.input];
        }
    }
}

const LogitBoundRecord *logit_bound_probe_records(const LogitBoundProbe *probe, int64_t *count) {
    *count = probe->layers * probe->heads;
    return probe->records;
}
