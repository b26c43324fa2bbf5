/* Which measurements are due, and their ways into metrics.jsonl; see measure.h. */
#include "run/measure.h"

#include "core/clock.h"
#include "core/metrics.h"
#include "run/trainer.h"

/* ---- set-up ----------------------------------------------------------------------------------------------------- */

/* Steps between two of a kind; 0: never. */
static int64_t interval(const Trainer *t, Measurement which) {
    const ProbeConfig *c = &t->config.probe;
    const int64_t every[MEASURE_COUNT] = {[MEASURE_SPECTRUM] = c->spectrum_every};
    return every[which];
}

Status measure_create(Trainer *t) {
    Status status = status_ok();
    Measurements *m = &t->measurements;
    if (interval(t, MEASURE_SPECTRUM) > 0)
        if (FAILED(status, spectrum_probe_create(&m->spectrum, &t->gpt.params, &t->backend))) return status;
    return status;
}

void measure_free(Trainer *t) {
    spectrum_probe_free(t->measurements.spectrum);
    t->measurements = (Measurements){0};
}

int64_t measure_bytes(const Trainer *t) {
    const Measurements *m = &t->measurements;
    return m->spectrum ? spectrum_probe_bytes(m->spectrum) : 0;
}

/* ---- the step's hooks ------------------------------------------------------------------------------------------- */

void measure_begin(Trainer *t) {
    Measurements *m = &t->measurements;
    const int64_t step = t->step + 1;
    m->seconds = 0;
    for (int which = 0; which < MEASURE_COUNT; which++) {
        int64_t every = interval(t, (Measurement)which);
        m->due[which] = every > 0 && (step == 1 || step % every == 0);
    }
}

void measure_forward(Trainer *t, int64_t micro_batch) {
    (void)t, (void)micro_batch;
}

void measure_backward(Trainer *t, int64_t micro_batch) {
    (void)t, (void)micro_batch;
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
    for (int which = 0; which < MEASURE_COUNT; which++) t->measurements.due[which] = false;
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

bool measure_report(Trainer *t, cJSON *line) {
    if (!measure_is_due(t)) return false;
    metrics_add_float(line, "probe_ms", (float)(1e3 * t->measurements.seconds));
    if (!t->measurements.due[MEASURE_SPECTRUM]) return false;
    if (backend_is_asynchronous(&t->backend)) return true;
    measure_report_spectra(t, line);
    return false;
}
