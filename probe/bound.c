/* Bounds of the attention logits (logit_bound.h) and how near to them the logits come.
 *
 * Measures blocks "q" and "k" of multi-head and grouped-query attention, and of latent attention "q_rope" and "k_rope",
 * too. Weights come from the backend one layer at a time, as fp32, and heads are measured in parallel:
 *
 *      work copies --op_copy--> stage (device, f32) --to_host--> | W_q: head 0, 1, .. | W_k: head 0, 1, .. |
 *                                                                | W_qr: head 0, 1, .. | W_kr |    latent attention
 */
#include <math.h>

#include "base/metrics.h"
#include "ops/ops.h"
#include "probe/logit_bound.h"
#include "probe/matrix.h"
#include "probe/probe.h"
#include "probe/record.h"

/* What weights of queries and keys multiply. */
typedef enum {
    INPUT_STREAM,   /* the normalized residual stream */
    INPUT_Q_LATENT, /* latent attention: the normalized c^Q, c^KV */
    INPUT_KV_LATENT,
    INPUT_COUNT
} Input;

enum { PARTS_MAX = 2 }; /* latent attention: q^C·k^C and q^R·k^R */

/* The weights of one factor of a part, and where they lie in the copy of a layer. */
typedef struct {
    int kind, bias; /* block kinds; bias -1: none */
    Input input;
    int64_t heads, size, inputs; /* W of a head is (size, inputs) */
    int64_t first, first_bias;   /* element of W's first head, and of its bias */
} Side;

typedef struct {
    Side q, k;
} PartSides;

typedef struct {
    const ParamTable *params;
    Backend *be;
    int part_count;
    PartSides parts[PARTS_MAX];
    int64_t layers, heads;
    int64_t elements, vector_elements; /* of a layer's matrices, and of their biases */
    Tensor stage;                      /* (elements) f32 */
    Tensor vectors;                    /* (vector_elements) f32 */
    Tensor norms;                      /* (layers, INPUT_COUNT) f32 */
    float *host, *host_vectors, *host_norms;
    Workspaces work;
    LogitPart (*records)[PARTS_MAX]; /* of (layers, heads) */
} BoundProbe;

/* ---- life ------------------------------------------------------------------------------------------------------- */

static Side add_side(BoundProbe *probe, const char *name, const char *bias, Input input) {
    const ParamTable *params = probe->params;
    const int kind = params_find_kind(params, name);
    CHECK(kind >= 0 && params->kinds[kind].head_axis == HEADS_IN_ROWS, "there are no heads in rows of \"%s\"", name);
    const BlockKind *block = &params->kinds[kind];
    Side side = {.kind = kind,
                 .bias = params_find_kind(params, bias),
                 .input = input,
                 .heads = block->heads,
                 .size = block->rows / block->heads,
                 .inputs = block->columns,
                 .first = probe->elements,
                 .first_bias = probe->vector_elements};
    probe->elements += block->rows * side.inputs;
    probe->vector_elements += block->rows;
    return side;
}

/* Latent attention has a rotary part beside the content. */
static void find_parts(BoundProbe *probe) {
    const bool latent = params_find_kind(probe->params, "q_rope") >= 0;
    const bool low_rank = params_find_kind(probe->params, "q_down") >= 0;
    const Input of_q = low_rank ? INPUT_Q_LATENT : INPUT_STREAM;
    PartSides *content = &probe->parts[probe->part_count++];
    content->q = add_side(probe, "q", "q_bias", of_q);
    content->k = add_side(probe, "k", "k_bias", latent ? INPUT_KV_LATENT : INPUT_STREAM);
    if (!latent) return;
    PartSides *rotary = &probe->parts[probe->part_count++];
    rotary->q = add_side(probe, "q_rope", "", of_q);
    rotary->k = add_side(probe, "k_rope", "", INPUT_STREAM);
}

static Status plan(void *self, ProbeSet *set) {
    BoundProbe *p = self;
    p->params = &set->gpt->params;
    p->be = set->be;
    find_parts(p);
    p->layers = set->gpt->L;
    p->heads = set->gpt->H;
    for (int i = 0; i < p->part_count; i++)
        p->work.size = larger(p->work.size, logit_part_workspace_size(p->parts[i].q.size));
    return status_ok();
}

static void layout(void *self, const ProbeSet *set, ProbeMemory *memory) {
    (void)set;
    BoundProbe *p = self;
    Arena *device = &memory->device, *host = &memory->host;
    p->stage = arena_take_1d(device, DTYPE_F32, p->elements);
    p->vectors = arena_take_1d(device, DTYPE_F32, p->vector_elements);
    p->norms = arena_take_2d(device, DTYPE_F32, p->layers, INPUT_COUNT);
    p->host = arena_take_host(host, p->elements, sizeof *p->host);
    p->host_vectors = arena_take_host(host, p->vector_elements, sizeof *p->host_vectors);
    p->host_norms = arena_take_host(host, p->layers * INPUT_COUNT, sizeof *p->host_norms);
    workspaces_layout(&p->work, p->be, host);
    p->records = arena_take_host(host, p->layers * p->heads, sizeof *p->records);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Matrices from their working copies, vectors from the masters: what the forward pass reads. */
static void stage_side(BoundProbe *probe, const Side *side, int64_t layer) {
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
static LogitPart measure_part(const BoundProbe *probe, const PartSides *s, int64_t head, double *workspace) {
    const int64_t size = s->q.size, key_head = head / (s->q.heads / s->k.heads);
    LogitPart part = {.b_q = norm_of(probe->host_vectors + s->q.first_bias + head * size, size),
                      .b_k = norm_of(probe->host_vectors + s->k.first_bias + key_head * size, size)};
    logit_part_measure(&part, probe->host + s->q.first + head * size * s->q.inputs, s->q.inputs,
                       probe->host + s->k.first + key_head * size * s->k.inputs, s->k.inputs, size, workspace);
    return part;
}

typedef struct {
    const BoundProbe *probe;
    int64_t layer;
} BoundLayer;

static void measure_head(void *context, int64_t head, double *workspace) {
    const BoundLayer *at = context;
    const BoundProbe *probe = at->probe;
    LogitPart *parts = probe->records[at->layer * probe->heads + head];
    for (int i = 0; i < probe->part_count; i++) parts[i] = measure_part(probe, &probe->parts[i], head, workspace);
}

/* Forgets the inputs, and measures the weights that the step's forward passes read. */
static void begin(void *self, ProbeSet *set) {
    BoundProbe *p = self;
    op_fill(set->be, p->norms, 0);
    for (int64_t layer = 0; layer < p->layers; layer++) {
        for (int i = 0; i < p->part_count; i++) {
            stage_side(p, &p->parts[i].q, layer);
            stage_side(p, &p->parts[i].k, layer);
        }
        backend_to_host(set->be, p->host, p->stage);
        backend_to_host(set->be, p->host_vectors, p->vectors);
        workspaces_run(&p->work, p->heads, measure_head, &(BoundLayer){p, layer});
    }
}

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

static void add_input(BoundProbe *p, int64_t layer, Input which, Tensor x) {
    if (!tensor_present(x)) return;
    op_max_norm(p->be, tensor_slice(tensor_index(p->norms, layer), 0, which, 1), x);
}

static void forward(void *self, ProbeSet *set, int64_t micro_batch) {
    (void)micro_batch;
    for (int64_t layer = 0; layer < set->gpt->L; layer++) {
        const LayerActivations *a = &set->gpt->layers[layer];
        add_input(self, layer, INPUT_STREAM, a->norm1);
        add_input(self, layer, INPUT_Q_LATENT, a->q_latent);
        add_input(self, layer, INPUT_KV_LATENT, a->kv_latent);
    }
}

static void gradient(void *self, ProbeSet *set) {
    BoundProbe *p = self;
    backend_to_host(set->be, p->host_norms, p->norms);
}

/* ---- the record ------------------------------------------------------------------------------------------------- */

/* The first part has its keys as they are, a rotary one beside it has them with "rope_" before. */
static void add_parts(cJSON *row, const LogitPart *parts, int count) {
    static const char *const names[PARTS_MAX][5] = {
        {"x_norm", "x_k_norm", "q_norm", "k_norm", "qk_norm"},
        {"rope_x_norm", "rope_x_k_norm", "rope_q_norm", "rope_k_norm", "rope_qk_norm"},
    };
    for (int i = 0; i < count; i++) {
        metrics_add_float(row, names[i][0], (float)parts[i].x_q);
        if (count > 1) metrics_add_float(row, names[i][1], (float)parts[i].x_k); /* otherwise the same */
        metrics_add_float(row, names[i][2], (float)parts[i].w_q);
        metrics_add_float(row, names[i][3], (float)parts[i].w_k);
        metrics_add_float(row, names[i][4], (float)parts[i].w_qk);
    }
}

static void report(void *self, ProbeSet *set, cJSON *line) {
    const BoundProbe *p = self;
    const double scale = (double)gpt_attention_inputs(set->gpt, 0).scale;
    const int count = p->part_count;
    cJSON *list = cJSON_AddArrayToObject(line, "logit_bound");
    for (int64_t i = 0; i < p->layers * p->heads; i++) {
        LogitPart *parts = p->records[i];
        const float *norms = p->host_norms + i / p->heads * INPUT_COUNT;
        for (int k = 0; k < count; k++) {
            parts[k].x_q = (double)norms[p->parts[k].q.input];
            parts[k].x_k = (double)norms[p->parts[k].k.input];
        }
        const double bound = logit_bound(parts, count, scale);
        cJSON *row = record_add_head(list, i / p->heads, i % p->heads);
        add_parts(row, parts, count);
        metrics_add_float(row, "bound", (float)bound);
        metrics_add_float(row, "bound_qk", (float)logit_bound_qk(parts, count, scale));
        metrics_add_float(row, "tightness", (float)((double)set->max_abs[i] / bound));
    }
}

const Probe probe_bound = {.size = sizeof(BoundProbe),
                           .plan = plan,
                           .layout = layout,
                           .begin = begin,
                           .forward = forward,
                           .gradient = gradient,
                           .report = report};
