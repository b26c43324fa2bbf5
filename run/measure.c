/* Which measurements are due, and their ways into metrics.jsonl; see measure.h. */
#include "run/measure.h"

#include <math.h>

#include "core/clock.h"
#include "core/metrics.h"
#include "run/trainer.h"

/* ---- set-up ----------------------------------------------------------------------------------------------------- */

int64_t measure_interval(const Trainer *t, Measurement which) {
    const ProbeConfig *c = &t->config.probe;
    const bool watched = t->measurements.blocks.blocks != NULL;
    const int64_t every[MEASURE_COUNT] = {[MEASURE_SPECTRUM] = c->spectrum_every,
                                          [MEASURE_COLLISION] = watched ? c->collision_every : 0,
                                          [MEASURE_MOMENTUM] = watched ? c->momentum_every : 0,
                                          [MEASURE_SHADOW] = watched ? c->shadow_every : 0};
    return every[which];
}

Status measure_create(Trainer *t) {
    Status status = status_ok();
    Measurements *m = &t->measurements;
    SpectrumHeads heads = t->config.probe.orthogonality ? SPECTRUM_HEADS_AS_SPLIT : SPECTRUM_HEADS_OF_QK;
    if (measure_interval(t, MEASURE_SPECTRUM) > 0)
        if (FAILED(status, spectrum_probe_create(&m->spectrum, &t->gpt.params, &t->backend, heads))) return status;
    return measure_blocks_create(t);
}

void measure_free(Trainer *t) {
    spectrum_probe_free(t->measurements.spectrum);
    measure_blocks_free(t);
    t->measurements = (Measurements){0};
}

int64_t measure_bytes(const Trainer *t) {
    const Measurements *m = &t->measurements;
    return (m->spectrum ? spectrum_probe_bytes(m->spectrum) : 0) + measure_blocks_bytes(t);
}

/* ---- the step's hooks ------------------------------------------------------------------------------------------- */

/* What is due has been decided. */
static void begin(Trainer *t) {
    t->measurements.seconds = t->measurements.update_seconds = 0;
    measure_blocks_begin(t);
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
    measure_cancel(t);
    if (which < MEASURE_COUNT) t->measurements.due[which] = true;
    begin(t);
}

void measure_forward(Trainer *t, int64_t micro_batch) {
    (void)t, (void)micro_batch;
}

void measure_backward(Trainer *t, int64_t micro_batch) {
    (void)micro_batch;
    const double start = clock_seconds();
    measure_blocks_backward(t);
    t->measurements.seconds += clock_seconds() - start;
}

void measure_gradient(Trainer *t, const StepNumbers *numbers) {
    const double start = clock_seconds();
    measure_blocks_gradient(t, numbers);
    t->measurements.seconds += clock_seconds() - start;
}

static void add_spectra(SpectrumProbe *probe, const UpdateEvent *e) {
    if (e->moment != UPDATE_APPLIED) return;
    SpectrumRun what = {.kind = e->route->kind,
                        .first_layer = e->route->first,
                        .split = e->route->split,
                        .of = SPECTRUM_MOMENTUM,
                        .step = e->lr * (double)e->route->scale,
                        .decay = 1 - e->keep};
    if (tensor_present(e->momentum)) spectrum_probe_add(probe, what, e->momentum);
    what.of = SPECTRUM_UPDATE;
    spectrum_probe_add(probe, what, e->update);
}

void measure_update(void *trainer, const UpdateEvent *event) {
    Trainer *t = trainer;
    Measurements *m = &t->measurements;
    const double start = clock_seconds();
    if (m->due[MEASURE_SPECTRUM]) add_spectra(m->spectrum, event);
    measure_blocks_update(t, event);
    m->seconds += clock_seconds() - start;
    m->update_seconds += clock_seconds() - start;
}

static void add_weights(SpectrumProbe *probe, const ParamTable *params) {
    for (int kind = 0; kind < params->kind_count; kind++) {
        if (!params_is_hidden_matrix(&params->kinds[kind])) continue;
        Tensor run = params_block_run(params, params->master, kind, 0, params_kind_layers(params, kind), SPLIT_WHOLE);
        spectrum_probe_add(probe, (SpectrumRun){.kind = kind, .split = SPLIT_WHOLE, .of = SPECTRUM_WEIGHT}, run);
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
    const bool *due = t->measurements.due;
    return due[MEASURE_SPECTRUM] || due[MEASURE_COLLISION] || due[MEASURE_MOMENTUM];
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

int64_t measure_state(Trainer *t, NamedTensor *tensors) {
    return measure_blocks_state(t, tensors);
}

void measure_resume(Trainer *t) {
    measure_blocks_resume(t);
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------------------------- */

static cJSON *add_record(cJSON *list, const Trainer *t, const SpectrumRecord *r) {
    cJSON *row = cJSON_CreateObject();
    metrics_add_number(row, "layer", (double)r->layer);
    cJSON_AddStringToObject(row, "role", role_name(t->gpt.params.kinds[r->kind].role));
    cJSON_AddItemToArray(list, row);
    return row;
}

static void add_head(cJSON *row, const SpectrumRecord *r) {
    cJSON_AddItemToObject(row, "head", r->head < 0 ? cJSON_CreateNull() : metrics_number(r->head));
}

static void report_spectrum(const Trainer *t, cJSON *list, const SpectrumRecord *r) {
    static const char *const of[] = {"weight", "momentum", "update"};
    if (r->head >= 0 && !spectrum_has_heads(&t->gpt.params.kinds[r->kind])) return;
    const Spectrum *s = &r->spectrum;
    cJSON *row = add_record(list, t, r);
    add_head(row, r);
    cJSON_AddStringToObject(row, "of", of[r->of]);
    metrics_add_float(row, "sigma_max", (float)s->sigma_max);
    metrics_add_float(row, "sigma_min", (float)s->sigma_min);
    metrics_add_float(row, "rms", (float)s->rms);
    metrics_add_float(row, "entropy", (float)s->entropy);
    metrics_add_float(row, "entropy_sq", (float)s->entropy_sq);
    metrics_add_float(row, "effective_rank", (float)s->effective_rank);
    metrics_add_float(row, "stable_rank", (float)s->stable_rank);
}

/* The record of the same matrix `of` something else; NULL: there is none. */
static const SpectrumRecord *find_record(const SpectrumRecord *records, int64_t count, const SpectrumRecord *like,
                                         SpectrumOf of) {
    for (const SpectrumRecord *r = records; r < records + count; r++)
        if (r->of == of && r->kind == like->kind && r->layer == like->layer && r->head == like->head) return r;
    return NULL;
}

static OptimizerKind optimizer_of(const Trainer *t, const SpectrumRecord *r) {
    const Optimizer *opt = &t->optimizer;
    for (const Route *route = opt->routes; route < opt->routes + opt->route_count; route++)
        if (route->kind == r->kind && r->layer >= route->first && r->layer < route->first + route->layers)
            return route->optimizer;
    CHECK(false, "no route for kind %d, layer %lld", r->kind, (long long)r->layer);
}

/* U is msign(.) itself. NorMuon and AdaMuon scale its rows or elements; a Schatten norm leaves larger values larger. */
static bool is_orthogonal(const Trainer *t, const SpectrumRecord *update) {
    return optimizer_of(t, update) == OPTIMIZER_MUON &&
           t->config.optimizer.muon.orthogonalize != ORTHOGONALIZE_SCHATTEN;
}

static void report_orthogonality(const Trainer *t, cJSON *line, const SpectrumRecord *records, int64_t count) {
    cJSON *list = cJSON_AddArrayToObject(line, "orthogonality");
    for (const SpectrumRecord *r = records; r < records + count; r++) {
        if (r->of != SPECTRUM_UPDATE || !r->unit || !is_orthogonal(t, r)) continue;
        const SpectrumRecord *momentum = find_record(records, count, r, SPECTRUM_MOMENTUM);
        cJSON *row = add_record(list, t, r);
        add_head(row, r);
        metrics_add_float(row, "min", (float)r->spectrum.sigma_min);
        metrics_add_float(row, "max", (float)r->spectrum.sigma_max);
        metrics_add_float(row, "error", (float)r->spectrum.orthogonality_error);
        metrics_add_float(row, "below_half", (float)r->spectrum.below_half);
        metrics_add_float(row, "momentum_min", momentum ? (float)momentum->spectrum.sigma_min : NAN);
        metrics_add_float(row, "momentum_max", momentum ? (float)momentum->spectrum.sigma_max : NAN);
    }
}

/* The largest |W|_2 that decay allows in the long run: W <- keep W - step U shrinks what is larger than
 * step |U|_2 / (1 - keep). An update of full rank has |U|_2 as measured; elements of size 1 have it up to sqrt(n m).
 * NaN: no such bound. Cautious decay leaves out elements, so that no norm need shrink. */
static double decay_bound(const Trainer *t, const SpectrumRecord *update) {
    const BlockKind *block = &t->gpt.params.kinds[update->kind];
    const double elements = (double)block->rows * (double)t->gpt.params.params[block->param].columns;
    if (!(update->decay > 0) || t->config.optimizer.cautious_decay) return (double)NAN;
    switch (optimizer_of(t, update)) {
    case OPTIMIZER_MUON:
    case OPTIMIZER_NORMUON:
    case OPTIMIZER_ADAMUON:
        return update->step * update->spectrum.sigma_max / update->decay;
    case OPTIMIZER_ADAMW:
    case OPTIMIZER_LION:
        return update->step * sqrt(elements) / update->decay;
    case OPTIMIZER_SGD:
    case OPTIMIZER_COUNT:
        break;
    }
    return (double)NAN;
}

static void report_blocks(const Trainer *t, cJSON *line, const SpectrumRecord *records, int64_t count) {
    cJSON *list = cJSON_AddArrayToObject(line, "blocks");
    for (const SpectrumRecord *r = records; r < records + count; r++) {
        if (r->of != SPECTRUM_WEIGHT || r->head >= 0) continue;
        const SpectrumRecord *update = find_record(records, count, r, SPECTRUM_UPDATE);
        cJSON *row = add_record(list, t, r);
        metrics_add_float(row, "weight_rms", (float)r->spectrum.rms);
        metrics_add_float(row, "update_rms", update ? (float)(update->step * update->spectrum.rms) : NAN);
        metrics_add_float(row, "spectral_norm", (float)r->spectrum.sigma_max);
        metrics_add_float(row, "decay_bound", update ? (float)decay_bound(t, update) : NAN);
    }
}

void measure_report_spectra(Trainer *t, cJSON *line) {
    int64_t count;
    const SpectrumRecord *records = spectrum_probe_records(t->measurements.spectrum, &count);
    cJSON *list = cJSON_AddArrayToObject(line, "spectrum");
    for (int64_t i = 0; i < count; i++) report_spectrum(t, list, &records[i]);
    if (t->config.probe.orthogonality) report_orthogonality(t, line, records, count);
    if (t->config.probe.rms) report_blocks(t, line, records, count);
    spectrum_probe_begin(t->measurements.spectrum);
}

bool measure_report(Trainer *t, cJSON *line) {
    if (!measure_is_due(t)) return false;
    metrics_add_float(line, "probe_ms", (float)(1e3 * t->measurements.seconds));
    measure_blocks_report(t, line);
    if (!t->measurements.due[MEASURE_SPECTRUM]) return false;
    if (backend_is_asynchronous(&t->backend)) return true;
    measure_report_spectra(t, line);
    return false;
}
