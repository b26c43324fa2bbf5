/* Which measurements are due, and their ways into metrics.jsonl; see measure.h. */
#include "run/measure.h"

#include <stdlib.h>

#include "core/clock.h"
#include "core/metrics.h"
#include "run/trainer.h"

/* ---- set-up ----------------------------------------------------------------------------------------------------- */

/* Steps between two of a kind; 0: never. */
static int64_t interval(const Trainer *t, Measurement which) {
    const ProbeConfig *c = &t->config.probe;
    const int64_t every[MEASURE_COUNT] = {[MEASURE_SPECTRUM] = c->spectrum_every,
                                          [MEASURE_LOGITS] = c->logits_every,
                                          [MEASURE_CLIPS] = t->config.qk_clip.enabled ? c->clips_every : 0,
                                          [MEASURE_BOUND] = c->bound_every};
    return every[which];
}

static Status create_logits(Trainer *t) {
    Measurements *m = &t->measurements;
    m->tokens_of = -1;
    m->tokens = calloc((size_t)t->gpt.T, sizeof *m->tokens);
    m->targets = calloc((size_t)t->gpt.T, sizeof *m->targets);
    if (!m->tokens || !m->targets)
        return status_error(STATUS_OUT_OF_MEMORY, "no memory for the tokens of a sequence; set probe.logits_every=0");
    return logit_probe_create(&m->logits, t->gpt.L, t->gpt.H, &t->backend);
}

Status measure_create(Trainer *t) {
    Status status = status_ok();
    Measurements *m = &t->measurements;
    if (interval(t, MEASURE_SPECTRUM) > 0)
        if (FAILED(status, spectrum_probe_create(&m->spectrum, &t->gpt.params, &t->backend))) return status;
    if (interval(t, MEASURE_LOGITS) > 0)
        if (FAILED(status, create_logits(t))) return status;
    if (interval(t, MEASURE_CLIPS) > 0)
        if (FAILED(status, clip_ledger_init(&m->clips, t->gpt.L, t->gpt.H))) return status;
    if (interval(t, MEASURE_BOUND) > 0)
        if (FAILED(status, logit_bound_probe_create(&m->bound, &t->gpt.params, &t->backend))) return status;
    return status;
}

void measure_free(Trainer *t) {
    Measurements *m = &t->measurements;
    spectrum_probe_free(m->spectrum);
    logit_probe_free(m->logits);
    logit_bound_probe_free(m->bound);
    clip_ledger_free(&m->clips);
    free(m->tokens);
    free(m->targets);
    *m = (Measurements){0};
}

int64_t measure_bytes(const Trainer *t) {
    const Measurements *m = &t->measurements;
    return (m->spectrum ? spectrum_probe_bytes(m->spectrum) : 0) + (m->logits ? logit_probe_bytes(m->logits) : 0) +
           (m->bound ? logit_bound_probe_bytes(m->bound) : 0) + clip_ledger_bytes(&m->clips);
}

void measure_read_line(void *trainer, const cJSON *line) {
    ClipLedger *clips = &((Trainer *)trainer)->measurements.clips;
    if (clips->entries) clip_ledger_read_line(clips, line);
}

/* ---- the step's hooks ------------------------------------------------------------------------------------------- */

void measure_begin(Trainer *t) {
    Measurements *m = &t->measurements;
    const int64_t step = t->step + 1;
    const double start = clock_seconds();
    for (int which = 0; which < MEASURE_COUNT; which++) {
        int64_t every = interval(t, (Measurement)which);
        m->due[which] = every > 0 && (step == 1 || step % every == 0);
    }
    m->first_sample = t->samples;
    if (m->due[MEASURE_LOGITS]) logit_probe_begin(m->logits);
    if (m->due[MEASURE_BOUND]) logit_bound_probe_begin(m->bound);
    m->seconds = clock_seconds() - start;
}

void measure_forward(Trainer *t, int64_t micro_batch) {
    Measurements *m = &t->measurements;
    const Gpt *g = &t->gpt;
    const double start = clock_seconds();
    for (int64_t l = 0; l < g->L && m->due[MEASURE_LOGITS]; l++) {
        AttentionInputs in = gpt_attention_inputs(g, l);
        logit_probe_add(m->logits, l, in.q, in.k,
                        (CensusParams){.scale = in.scale,
                                       .threshold = (float)t->config.qk_clip.threshold,
                                       .first_row = micro_batch * g->B});
    }
    for (int64_t l = 0; l < g->L && m->due[MEASURE_BOUND]; l++) logit_bound_probe_add(m->bound, l, g->layers[l].norm1);
    m->seconds += clock_seconds() - start;
}

void measure_backward(Trainer *t, int64_t micro_batch) {
    (void)t, (void)micro_batch;
}

void measure_read(Trainer *t) {
    Measurements *m = &t->measurements;
    const double start = clock_seconds();
    if (m->due[MEASURE_LOGITS]) logit_probe_read(m->logits);
    if (m->due[MEASURE_BOUND]) logit_bound_probe_read(m->bound);
    m->seconds += clock_seconds() - start;
}

static void add_spectra(SpectrumProbe *probe, const UpdateEvent *e) {
    if (e->moment != UPDATE_APPLIED) return;
    spectrum_probe_add(probe, e->route->kind, e->route->first, e->route->split, e->momentum, SPECTRUM_MOMENTUM);
    spectrum_probe_add(probe, e->route->kind, e->route->first, e->route->split, e->update, SPECTRUM_UPDATE);
}

void measure_update(void *trainer, const UpdateEvent *event) {
    Trainer *t = trainer;
    Measurements *m = &t->measurements;
    const double start = clock_seconds();
    if (m->due[MEASURE_SPECTRUM]) add_spectra(m->spectrum, event);
    m->seconds += clock_seconds() - start;
}

void measure_clips(Trainer *t, const ClipEvent *clips, int64_t count) {
    ClipLedger *ledger = &t->measurements.clips;
    for (int64_t i = 0; i < count && ledger->entries; i++)
        clip_ledger_note(ledger, t->step, clips[i].layer, clips[i].head, clips[i].gamma);
}

static void add_weights(SpectrumProbe *probe, const ParamTable *params) {
    for (int kind = 0; kind < params->kind_count; kind++) {
        if (!params_is_hidden_matrix(&params->kinds[kind])) continue;
        Tensor run = params_block_run(params, params->master, kind, 0, params_kind_layers(params, kind), SPLIT_WHOLE);
        spectrum_probe_add(probe, kind, 0, SPLIT_WHOLE, run, SPECTRUM_WEIGHT);
    }
    spectrum_probe_finish(probe);
}

void measure_end(Trainer *t) {
    Measurements *m = &t->measurements;
    const double start = clock_seconds();
    if (m->due[MEASURE_SPECTRUM]) add_weights(m->spectrum, &t->gpt.params);
    m->seconds += clock_seconds() - start;
}

void measure_cancel(Trainer *t) {
    t->measurements.due[MEASURE_SPECTRUM] = false;
}

bool measure_is_due(const Trainer *t) {
    for (int which = 0; which < MEASURE_COUNT; which++)
        if (t->measurements.due[which]) return true;
    return false;
}

bool measure_sees_updates(const Trainer *t) {
    return t->measurements.due[MEASURE_SPECTRUM];
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------------------------- */

void measure_report_spectra(Trainer *t, cJSON *line) {
    static const char *const of[] = {"weight", "momentum", "update"};
    int64_t count;
    const SpectrumRecord *records = spectrum_probe_records(t->measurements.spectrum, &count);
    cJSON *list = cJSON_AddArrayToObject(line, "spectrum");
    for (int64_t i = 0; i < count; i++) {
        const SpectrumRecord *r = &records[i];
        cJSON *row = cJSON_CreateObject();
        metrics_add_number(row, "layer", (double)r->layer);
        cJSON_AddStringToObject(row, "role", role_name(t->gpt.params.kinds[r->kind].role));
        cJSON_AddItemToObject(row, "head", r->head < 0 ? cJSON_CreateNull() : metrics_number(r->head));
        cJSON_AddStringToObject(row, "of", of[r->of]);
        metrics_add_float(row, "sigma_max", (float)r->spectrum.sigma_max);
        metrics_add_float(row, "entropy", (float)r->spectrum.entropy);
        metrics_add_float(row, "entropy_sq", (float)r->spectrum.entropy_sq);
        metrics_add_float(row, "effective_rank", (float)r->spectrum.effective_rank);
        metrics_add_float(row, "stable_rank", (float)r->spectrum.stable_rank);
        cJSON_AddItemToArray(list, row);
    }
    spectrum_probe_begin(t->measurements.spectrum);
}

/* The tokens of a training sequence, or NULL. */
static const int32_t *tokens_of(Trainer *t, int64_t sequence) {
    Measurements *m = &t->measurements;
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
    const int64_t sequence = t->measurements.first_sample + peak->row;
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
    const LogitRecord *records = logit_probe_records(t->measurements.logits, &count);
    cJSON *list = cJSON_AddArrayToObject(line, "logits");
    for (int64_t i = 0; i < count; i++) {
        cJSON *row = add_head(list, records[i].layer, records[i].head);
        for (int which = 0; which < PEAKS; which++) add_peak(t, row, which, &records[i].peak[which]);
        metrics_add_float(row, "above", (float)(records[i].above / pairs));
    }
}

static void report_bounds(Trainer *t, cJSON *line) {
    int64_t count;
    const LogitBoundRecord *records = logit_bound_probe_records(t->measurements.bound, &count);
    const double scale = (double)gpt_attention_inputs(&t->gpt, 0).scale;
    cJSON *list = cJSON_AddArrayToObject(line, "logit_bound");
    for (int64_t i = 0; i < count; i++) {
        const LogitBoundRecord *r = &records[i];
        const double bound = logit_bound(&r->part, 1, scale);
        cJSON *row = add_head(list, r->layer, r->head);
        metrics_add_float(row, "x_norm", (float)r->part.x_q);
        metrics_add_float(row, "q_norm", (float)r->part.w_q);
        metrics_add_float(row, "k_norm", (float)r->part.w_k);
        metrics_add_float(row, "qk_norm", (float)r->part.w_qk);
        metrics_add_float(row, "bound", (float)bound);
        metrics_add_float(row, "bound_qk", (float)logit_bound_qk(&r->part, 1, scale));
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

bool measure_report(Trainer *t, cJSON *line) {
    Measurements *m = &t->measurements;
    const double start = clock_seconds();
    if (!measure_is_due(t)) return false;
    if (m->due[MEASURE_LOGITS]) report_logits(t, line);
    if (m->due[MEASURE_BOUND]) report_bounds(t, line);
    if (m->due[MEASURE_CLIPS]) report_clips(&m->clips, line);
    m->seconds += clock_seconds() - start;
    metrics_add_float(line, "probe_ms", (float)(1e3 * m->seconds));
    if (!m->due[MEASURE_SPECTRUM]) return false;
    if (backend_is_asynchronous(&t->backend)) return true;
    measure_report_spectra(t, line);
    return false;
}
