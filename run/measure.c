/* Which measurements are due, and who takes them; see measure.h. */
#include "run/measure.h"

#include "base/clock.h"
#include "base/metrics.h"
#include "run/measure_spectra.h"
#include "run/trainer.h"

/* ---- set-up ----------------------------------------------------------------------------------------------------- */

int64_t measure_interval(const Trainer *t, Measurement which) {
    const ProbeConfig *c = &t->config.probe;
    const bool watched = t->measurements.blocks.blocks != NULL;
    const int64_t every[MEASURE_COUNT] = {[MEASURE_SPECTRUM] = c->spectrum_every,
                                          [MEASURE_COLLISION] = watched ? c->collision_every : 0,
                                          [MEASURE_MOMENTUM] = watched ? c->momentum_every : 0,
                                          [MEASURE_SHADOW] = watched ? c->shadow_every : 0,
                                          [MEASURE_LOGITS] = c->logits_every,
                                          [MEASURE_CLIPS] = t->config.qk_clip.enabled ? c->clips_every : 0,
                                          [MEASURE_BOUND] = c->bound_every};
    return every[which];
}

Status measure_create(Trainer *t) {
    Status status = status_ok();
    Measurements *m = &t->measurements;
    SpectrumHeads heads = t->config.probe.orthogonality ? SPECTRUM_HEADS_AS_SPLIT : SPECTRUM_HEADS_OF_QK;
    if (measure_interval(t, MEASURE_SPECTRUM) > 0)
        if (FAILED(status, spectrum_probe_create(&m->spectrum, &t->gpt.params, &t->backend, heads))) return status;
    if (FAILED(status, measure_blocks_create(t))) return status;
    return measure_logits_create(t);
}

void measure_free(Trainer *t) {
    spectrum_probe_free(t->measurements.spectrum);
    measure_blocks_free(t);
    measure_logits_free(t);
    t->measurements = (Measurements){0};
}

int64_t measure_bytes(const Trainer *t) {
    const SpectrumProbe *spectrum = t->measurements.spectrum;
    return (spectrum ? spectrum_probe_bytes(spectrum) : 0) + measure_blocks_bytes(t) + measure_logits_bytes(t);
}

/* ---- the step's hooks ------------------------------------------------------------------------------------------- */

static void count_time(Trainer *t, double start) {
    t->measurements.seconds += clock_seconds() - start;
}

/* What is due has been decided. */
static void begin(Trainer *t) {
    const double start = clock_seconds();
    t->measurements.seconds = t->measurements.update_seconds = 0;
    measure_blocks_begin(t);
    measure_logits_begin(t);
    count_time(t, start);
}

void measure_begin(Trainer *t) {
    const int64_t step = t->step + 1;
    for (int which = 0; which < MEASURE_COUNT; which++) {
        int64_t every = measure_interval(t, (Measurement)which);
        t->measurements.due[which] = every > 0 && (step == 1 || step % every == 0);
    }
    begin(t);
}

void measure_begin_only(Trainer *t, Measurement which) {
    for (int other = 0; other < MEASURE_COUNT; other++) t->measurements.due[other] = other == (int)which;
    begin(t);
}

void measure_forward(Trainer *t, int64_t micro_batch) {
    const double start = clock_seconds();
    measure_logits_forward(t, micro_batch);
    count_time(t, start);
}

void measure_backward(Trainer *t, int64_t micro_batch) {
    (void)micro_batch;
    const double start = clock_seconds();
    measure_blocks_backward(t);
    count_time(t, start);
}

void measure_read(Trainer *t) {
    const double start = clock_seconds();
    measure_logits_read(t);
    count_time(t, start);
}

void measure_gradient(Trainer *t, const StepNumbers *numbers) {
    const double start = clock_seconds();
    measure_blocks_gradient(t, numbers);
    count_time(t, start);
}

void measure_update(void *trainer, const UpdateEvent *event) {
    Trainer *t = trainer;
    Measurements *m = &t->measurements;
    const double start = clock_seconds();
    if (m->due[MEASURE_SPECTRUM]) measure_spectra_update(m->spectrum, event);
    measure_blocks_update(t, event);
    m->update_seconds += clock_seconds() - start;
    count_time(t, start);
}

void measure_clips(Trainer *t, const ClipEvent *clips, int64_t count) {
    measure_logits_clips(t, clips, count);
}

void measure_end(Trainer *t) {
    Measurements *m = &t->measurements;
    const double start = clock_seconds();
    if (m->due[MEASURE_SPECTRUM]) measure_spectra_weights(m->spectrum, &t->gpt.params);
    count_time(t, start);
}

void measure_cancel(Trainer *t) {
    static const Measurement of_updates[] = {MEASURE_SPECTRUM, MEASURE_COLLISION, MEASURE_MOMENTUM, MEASURE_SHADOW};
    for (int i = 0; i < (int)(sizeof of_updates / sizeof *of_updates); i++) t->measurements.due[of_updates[i]] = false;
}

bool measure_is_due(const Trainer *t) {
    for (int which = 0; which < MEASURE_COUNT; which++)
        if (t->measurements.due[which]) return true;
    return false;
}

bool measure_sees_updates(const Trainer *t) {
    const bool *due = t->measurements.due;
    return due[MEASURE_SPECTRUM] || due[MEASURE_COLLISION] || due[MEASURE_MOMENTUM];
}

/* ---- resuming --------------------------------------------------------------------------------------------------- */

int64_t measure_state(Trainer *t, NamedTensor *tensors) {
    return measure_blocks_state(t, tensors);
}

void measure_resume(Trainer *t) {
    measure_blocks_resume(t);
}

void measure_read_line(void *trainer, const cJSON *line) {
    ClipLedger *clips = &((Trainer *)trainer)->measurements.logits.clips;
    if (clips->entries) clip_ledger_read_line(clips, line);
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------------------------- */

cJSON *measure_add_block(cJSON *list, const Trainer *t, int kind, int64_t layer) {
    cJSON *row = cJSON_CreateObject();
    metrics_add_number(row, "layer", (double)layer);
    cJSON_AddStringToObject(row, "role", role_name(t->gpt.params.kinds[kind].role));
    cJSON_AddItemToArray(list, row);
    return row;
}

bool measure_report(Trainer *t, cJSON *line) {
    const double start = clock_seconds();
    if (!measure_is_due(t)) return false;
    measure_blocks_report(t, line);
    measure_logits_report(t, line);
    count_time(t, start);
    metrics_add_float(line, "probe_ms", (float)(1e3 * t->measurements.seconds));
    if (!t->measurements.due[MEASURE_SPECTRUM]) return false;
    if (backend_is_asynchronous(&t->backend)) return true;
    measure_report_spectra(t, line);
    return false;
}
