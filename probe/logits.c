/* The census of a step's attention logits: of each head the largest logit and the largest magnitude, between which two
 * tokens of which sequence they are, and how many logits are beyond QK-Clip's threshold. op_logit_census over layers
 * and micro-batches; running results stay with the backend until they are read.
 */
#include <math.h>
#include <string.h>

#include "base/metrics.h"
#include "ops/ops.h"
#include "probe/probe.h"
#include "probe/record.h"

enum { COORDINATES = 3 }; /* sequence within the step, query and key within the sequence; -1: nowhere */

typedef struct {
    int64_t heads; /* of all layers */
    Tensor peak;   /* (heads, PEAKS) f32 */
    Tensor place;  /* (heads, PEAKS, COORDINATES) i32 */
    Tensor above;  /* (heads) f32: logits beyond the threshold */
    float *host_peak, *host_above;
    int32_t *host_place;

    int32_t *tokens, *targets; /* (context): a sequence that logits are in, read again */
    int64_t tokens_of;         /* its number; -1: none */
} LogitProbe;

static void layout(void *self, const ProbeSet *set, ProbeMemory *memory) {
    LogitProbe *p = self;
    const int64_t heads = p->heads = set->gpt->L * set->gpt->H, context = set->gpt->T;
    p->peak = arena_take_2d(&memory->device, DTYPE_F32, heads, PEAKS);
    p->place = arena_take_3d(&memory->device, DTYPE_I32, heads, PEAKS, COORDINATES);
    p->above = arena_take_1d(&memory->device, DTYPE_F32, heads);
    p->host_peak = arena_take_host(&memory->host, heads * PEAKS, sizeof *p->host_peak);
    p->host_place = arena_take_host(&memory->host, heads * PEAKS * COORDINATES, sizeof *p->host_place);
    p->host_above = arena_take_host(&memory->host, heads, sizeof *p->host_above);
    p->tokens = arena_take_host(&memory->host, context, sizeof *p->tokens);
    p->targets = arena_take_host(&memory->host, context, sizeof *p->targets);
    p->tokens_of = -1;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

static void begin(void *self, ProbeSet *set) {
    LogitProbe *p = self;
    memset(p->host_place, 0xff, (size_t)tensor_bytes(p->place)); /* -1 */
    op_fill(set->be, p->peak, -INFINITY);
    op_fill(set->be, p->above, 0);
    backend_from_host(set->be, p->place, p->host_place);
}

static void forward(void *self, ProbeSet *set, int64_t micro_batch) {
    LogitProbe *p = self;
    const Gpt *g = set->gpt;
    for (int64_t layer = 0; layer < g->L; layer++) {
        const AttentionInputs in = gpt_attention_inputs(g, layer);
        const int64_t first = layer * g->H;
        op_logit_census(set->be, tensor_slice(p->peak, 0, first, g->H), tensor_slice(p->place, 0, first, g->H),
                        tensor_slice(p->above, 0, first, g->H), in.q, in.k,
                        (CensusParams){.scale = in.scale,
                                       .threshold = (float)set->config->qk_clip.threshold,
                                       .first_row = micro_batch * g->B});
    }
}

static void gradient(void *self, ProbeSet *set) {
    LogitProbe *p = self;
    backend_to_host(set->be, p->host_peak, p->peak);
    backend_to_host(set->be, p->host_place, p->place);
    backend_to_host(set->be, p->host_above, p->above);
}

/* ---- the record ------------------------------------------------------------------------------------------------- */

/* The tokens of a training sequence, or NULL. */
static const int32_t *tokens_of(LogitProbe *p, Dataset *data, int64_t sequence) {
    if (p->tokens_of == sequence) return p->tokens;
    const Status status = dataset_train_sample(data, sequence, p->tokens, p->targets);
    p->tokens_of = status.code ? -1 : sequence;
    return status.code ? NULL : p->tokens;
}

static void add_place(cJSON *row, const char *name, bool known, int64_t value) {
    cJSON_AddItemToObject(row, name, known ? metrics_number((double)value) : cJSON_CreateNull());
}

/* A NaN if some logit is; -infinity, as null, where none was seen. */
static void add_peak(LogitProbe *p, ProbeSet *set, cJSON *row, int64_t head, int which) {
    static const char *const names[PEAKS][6] = {
        [PEAK_SIGNED] = {"max", "sequence", "query", "key", "query_token", "key_token"},
        [PEAK_MAGNITUDE] = {"max_abs", "abs_sequence", "abs_query", "abs_key", "abs_query_token", "abs_key_token"},
    };
    const int64_t peak = head * PEAKS + which;
    const int32_t *place = p->host_place + peak * COORDINATES, query = place[1], key = place[2];
    const bool somewhere = place[0] >= 0;
    const int64_t sequence = set->first_sample + place[0];
    const int32_t *tokens = somewhere ? tokens_of(p, set->data, sequence) : NULL;
    metrics_add_float(row, names[which][0], p->host_peak[peak]);
    add_place(row, names[which][1], somewhere, sequence);
    add_place(row, names[which][2], somewhere, query);
    add_place(row, names[which][3], somewhere, key);
    add_place(row, names[which][4], tokens, tokens ? tokens[query] : 0);
    add_place(row, names[which][5], tokens, tokens ? tokens[key] : 0);
}

static void report(void *self, ProbeSet *set, cJSON *line) {
    LogitProbe *p = self;
    const int64_t T = set->gpt->T, H = set->gpt->H;
    const double pairs = (double)set->config->train.batch * (double)T * (double)(T + 1) / 2;
    cJSON *list = cJSON_AddArrayToObject(line, "logits");
    for (int64_t i = 0; i < p->heads; i++) {
        cJSON *row = record_add_head(list, i / H, i % H);
        for (int which = 0; which < PEAKS; which++) add_peak(p, set, row, i, which);
        metrics_add_float(row, "above", (float)((double)p->host_above[i] / pairs));
    }
}

const Probe probe_logits = {.size = sizeof(LogitProbe),
                            .layout = layout,
                            .begin = begin,
                            .forward = forward,
                            .gradient = gradient,
                            .report = report};
