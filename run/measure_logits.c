/* Census, bounds and clips of attention logits, into metrics.jsonl; see measure_logits.h. */
#include "run/measure_logits.h"

#include <stdlib.h>

#include "base/metrics.h"
#include "run/trainer.h"

static LogitMeasurements *of(Trainer *t) {
    return &t->measurements.logits;
}

static bool is_due(const Trainer *t, Measurement which) {
    return t->measurements.due[which];
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static Status create_census(Trainer *t) {
    LogitMeasurements *m = of(t);
    m->tokens_of = -1;
    m->tokens = calloc((size_t)t->gpt.T, sizeof *m->tokens);
    m->targets = calloc((size_t)t->gpt.T, sizeof *m->targets);
    if (!m->tokens || !m->targets)
        return status_error(STATUS_OUT_OF_MEMORY, "no memory for the tokens of a sequence; set probe.logits_every=0");
    return logit_probe_create(&m->census, t->gpt.L, t->gpt.H, &t->backend);
}

Status measure_logits_create(Trainer *t) {
    const ProbeConfig *c = &t->config.probe;
    LogitMeasurements *m = of(t);
    Status status = status_ok();
    if (c->logits_every > 0 && FAILED(status, create_census(t))) return status;
    if (c->bound_every > 0)
        if (FAILED(status, logit_bound_probe_create(&m->bound, &t->gpt.params, &t->backend))) return status;
    if (c->clips_every > 0 && t->config.qk_clip.enabled) status = clip_ledger_init(&m->clips, t->gpt.L, t->gpt.H);
    return status;
}

void measure_logits_free(Trainer *t) {
    LogitMeasurements *m = of(t);
    logit_probe_free(m->census);
    logit_bound_probe_free(m->bound);
    clip_ledger_free(&m->clips);
    free(m->tokens);
    free(m->targets);
    *m = (LogitMeasurements){0};
}

int64_t measure_logits_bytes(const Trainer *t) {
    const LogitMeasurements *m = &t->measurements.logits;
    return (m->census ? logit_probe_bytes(m->census) : 0) + (m->bound ? logit_bound_probe_bytes(m->bound) : 0) +
           clip_ledger_bytes(&m->clips);
}

/* ---- the step's hooks ------------------------------------------------------------------------------------------- */

void measure_logits_begin(Trainer *t) {
    LogitMeasurements *m = of(t);
    m->first_sample = t->samples;
    if (is_due(t, MEASURE_LOGITS)) logit_probe_begin(m->census);
    if (is_due(t, MEASURE_BOUND)) logit_bound_probe_begin(m->bound);
}

static void add_census(Trainer *t, int64_t layer, int64_t micro_batch) {
    const Gpt *g = &t->gpt;
    const AttentionInputs in = gpt_attention_inputs(g, layer);
    logit_probe_add(of(t)->census, layer, in.q, in.k,
                    (CensusParams){.scale = in.scale,
                                   .threshold = (float)t->config.qk_clip.threshold,
                                   .first_row = micro_batch * g->B});
}

static void add_inputs(Trainer *t, int64_t layer) {
    const LayerActivations *a = &t->gpt.layers[layer];
    LogitBoundProbe *bound = of(t)->bound;
    logit_bound_probe_add(bound, layer, LOGIT_INPUT_STREAM, a->norm1);
    if (tensor_present(a->q_latent)) logit_bound_probe_add(bound, layer, LOGIT_INPUT_Q_LATENT, a->q_latent);
    if (tensor_present(a->kv_latent)) logit_bound_probe_add(bound, layer, LOGIT_INPUT_KV_LATENT, a->kv_latent);
}

void measure_logits_forward(Trainer *t, int64_t micro_batch) {
    for (int64_t l = 0; l < t->gpt.L; l++) {
        if (is_due(t, MEASURE_LOGITS)) add_census(t, l, micro_batch);
        if (is_due(t, MEASURE_BOUND)) add_inputs(t, l);
    }
}

void measure_logits_read(Trainer *t) {
    LogitMeasurements *m = of(t);
    if (is_due(t, MEASURE_LOGITS)) logit_probe_read(m->census);
    if (is_due(t, MEASURE_BOUND)) logit_bound_probe_read(m->bound);
}

void measure_logits_clips(Trainer *t, const ClipEvent *clips, int64_t count) {
    ClipLedger *ledger = &of(t)->clips;
    for (int64_t i = 0; i < count && ledger->entries; i++)
        clip_ledger_note(ledger, t->step, clips[i].layer, clips[i].head, clips[i].gamma);
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------------------------- */

/* The tokens of a training sequence, or NULL. */
static const int32_t *tokens_of(Trainer *t, int64_t sequence) {
    LogitMeasurements *m = of(t);
    if (m->tokens_of == sequence) return m->tokens;
    const Status status = dataset_train_sample(t->train_data, sequence, m->tokens, m->targets);
    m->tokens_of = status.code ? -1 : sequence;
    return status.code ? NULL : m->tokens;
}

static void add_place(cJSON *row, const char *name, bool known, int64_t value) {
    cJSON_AddItemToObject(row, name, known ? metrics_number((double)value) : cJSON_CreateNull());
}

static void add_peak(Trainer *t, cJSON *row, int which, const LogitPeak *peak) {
    static const char *const names[PEAKS][6] = {
        [PEAK_SIGNED] = {"max", "sequence", "query", "key", "query_token", "key_token"},
        [PEAK_MAGNITUDE] = {"max_abs", "abs_sequence", "abs_query", "abs_key", "abs_query_token", "abs_key_token"},
    };
    const bool somewhere = peak->row >= 0;
    const int64_t sequence = of(t)->first_sample + peak->row;
    const int32_t *tokens = somewhere ? tokens_of(t, sequence) : NULL;
    metrics_add_float(row, names[which][0], peak->value);
    add_place(row, names[which][1], somewhere, sequence);
    add_place(row, names[which][2], somewhere, peak->query);
    add_place(row, names[which][3], somewhere, peak->key);
    add_place(row, names[which][4], tokens, tokens ? tokens[peak->query] : 0);
    add_place(row, names[which][5], tokens, tokens ? tokens[peak->key] : 0);
}

static cJSON *add_head(cJSON *list, int64_t layer, int64_t head) {
    cJSON *row = cJSON_CreateObject();
    metrics_add_number(row, "layer", (double)layer);
    metrics_add_number(row, "head", (double)head);
    cJSON_AddItemToArray(list, row);
    return row;
}

static void report_logits(Trainer *t, cJSON *line) {
    const double pairs = (double)t->config.train.batch * (double)t->gpt.T * (double)(t->gpt.T + 1) / 2;
    int64_t count;
    const LogitRecord *records = logit_probe_records(of(t)->census, &count);
    cJSON *list = cJSON_AddArrayToObject(line, "logits");
    for (int64_t i = 0; i < count; i++) {
        cJSON *row = add_head(list, records[i].layer, records[i].head);
        for (int which = 0; which < PEAKS; which++) add_peak(t, row, which, &records[i].peak[which]);
        metrics_add_float(row, "above", (float)(records[i].above / pairs));
    }
}

/* The first part has its keys as they are, a rotary one beside it has them with "rope_" before. */
static void add_parts(cJSON *row, const LogitBoundRecord *r) {
    static const char *const names[LOGIT_PARTS_MAX][5] = {
        {"x_norm", "x_k_norm", "q_norm", "k_norm", "qk_norm"},
        {"rope_x_norm", "rope_x_k_norm", "rope_q_norm", "rope_k_norm", "rope_qk_norm"},
    };
    for (int i = 0; i < r->count; i++) {
        const LogitPart *p = &r->parts[i];
        metrics_add_float(row, names[i][0], (float)p->x_q);
        if (r->count > 1) metrics_add_float(row, names[i][1], (float)p->x_k); /* otherwise the same */
        metrics_add_float(row, names[i][2], (float)p->w_q);
        metrics_add_float(row, names[i][3], (float)p->w_k);
        metrics_add_float(row, names[i][4], (float)p->w_qk);
    }
}

static void report_bounds(Trainer *t, cJSON *line) {
    int64_t count;
    const LogitBoundRecord *records = logit_bound_probe_records(of(t)->bound, &count);
    const double scale = (double)gpt_attention_inputs(&t->gpt, 0).scale;
    cJSON *list = cJSON_AddArrayToObject(line, "logit_bound");
    for (int64_t i = 0; i < count; i++) {
        const LogitBoundRecord *r = &records[i];
        const double bound = logit_bound(r->parts, r->count, scale);
        cJSON *row = add_head(list, r->layer, r->head);
        add_parts(row, r);
        metrics_add_float(row, "bound", (float)bound);
        metrics_add_float(row, "bound_qk", (float)logit_bound_qk(r->parts, r->count, scale));
        metrics_add_float(row, "tightness", (float)((double)t->max_abs[r->layer * t->gpt.H + r->head] / bound));
    }
}

static void report_clips(const ClipLedger *ledger, cJSON *line) {
    cJSON *object = cJSON_AddObjectToObject(line, "clip_ledger");
    metrics_add_number(object, "ever", clip_ledger_share(ledger));
    cJSON *list = cJSON_AddArrayToObject(object, "heads");
    for (int64_t i = 0; i < ledger->layers * ledger->heads; i++) {
        const ClipEntry *entry = &ledger->entries[i];
        if (entry->times == 0) continue;
        cJSON *row = add_head(list, i / ledger->heads, i % ledger->heads);
        metrics_add_number(row, "first", (double)entry->first);
        metrics_add_number(row, "last", (double)entry->last);
        metrics_add_number(row, "times", (double)entry->times);
        metrics_add_number(row, "gamma", entry->gamma);
    }
}

void measure_logits_report(Trainer *t, cJSON *line) {
    if (is_due(t, MEASURE_LOGITS)) report_logits(t, line);
    if (is_due(t, MEASURE_BOUND)) report_bounds(t, line);
    if (is_due(t, MEASURE_CLIPS)) report_clips(&of(t)->clips, line);
}
