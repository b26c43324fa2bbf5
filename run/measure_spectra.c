/* Spectra and what follows from them, into metrics.jsonl; see measure_spectra.h. */
#include "run/measure_spectra.h"

#include <math.h>

#include "base/metrics.h"
#include "run/trainer.h"

void measure_spectra_update(SpectrumProbe *probe, const UpdateEvent *e) {
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

void measure_spectra_weights(SpectrumProbe *probe, const ParamTable *params) {
    for (int kind = 0; kind < params->kind_count; kind++) {
        if (!params_is_hidden_matrix(&params->kinds[kind])) continue;
        Tensor run = params_block_run(params, params->master, kind, 0, params_kind_layers(params, kind), SPLIT_WHOLE);
        spectrum_probe_add(probe, (SpectrumRun){.kind = kind, .split = SPLIT_WHOLE, .of = SPECTRUM_WEIGHT}, run);
    }
    spectrum_probe_finish(probe);
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------------------------- */

static void add_head(cJSON *row, const SpectrumRecord *r) {
    cJSON_AddItemToObject(row, "head", r->head < 0 ? cJSON_CreateNull() : metrics_number(r->head));
}

static void report_spectrum(const Trainer *t, cJSON *list, const SpectrumRecord *r) {
    static const char *const of[] = {"weight", "momentum", "update"};
    if (r->head >= 0 && !spectrum_has_heads(&t->gpt.params.kinds[r->kind])) return;
    const Spectrum *s = &r->spectrum;
    cJSON *row = measure_add_block(list, t, r->kind, r->layer);
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

static const Route *route_of(const Trainer *t, const SpectrumRecord *r) {
    const Optimizer *opt = &t->optimizer;
    for (const Route *route = opt->routes; route < opt->routes + opt->route_count; route++)
        if (route->kind == r->kind && r->layer >= route->first && r->layer < route->first + route->layers) return route;
    CHECK(false, "no route for kind %d, layer %lld", r->kind, (long long)r->layer);
}

static bool is_orthogonal(const Trainer *t, const SpectrumRecord *update) {
    return optimizer_is_orthogonal(&t->optimizer, route_of(t, update)->optimizer);
}

static void report_orthogonality(const Trainer *t, cJSON *line, const SpectrumRecord *records, int64_t count) {
    cJSON *list = cJSON_AddArrayToObject(line, "orthogonality");
    for (const SpectrumRecord *r = records; r < records + count; r++) {
        if (r->of != SPECTRUM_UPDATE || !r->unit || !is_orthogonal(t, r)) continue;
        const SpectrumRecord *momentum = find_record(records, count, r, SPECTRUM_MOMENTUM);
        cJSON *row = measure_add_block(list, t, r->kind, r->layer);
        add_head(row, r);
        metrics_add_float(row, "min", (float)r->spectrum.sigma_min);
        metrics_add_float(row, "max", (float)r->spectrum.sigma_max);
        metrics_add_float(row, "error", (float)r->spectrum.orthogonality_error);
        metrics_add_float(row, "below_half", (float)r->spectrum.below_half);
        metrics_add_float(row, "momentum_min", momentum ? (float)momentum->spectrum.sigma_min : NAN);
        metrics_add_float(row, "momentum_max", momentum ? (float)momentum->spectrum.sigma_max : NAN);
    }
}

static double decay_bound(const Trainer *t, const SpectrumRecord *update) {
    return optimizer_decay_bound(&t->optimizer, route_of(t, update), update->step, update->spectrum.sigma_max,
                                 update->decay);
}

static void report_blocks(const Trainer *t, cJSON *line, const SpectrumRecord *records, int64_t count) {
    cJSON *list = cJSON_AddArrayToObject(line, "blocks");
    for (const SpectrumRecord *r = records; r < records + count; r++) {
        if (r->of != SPECTRUM_WEIGHT || r->head >= 0) continue;
        const SpectrumRecord *update = find_record(records, count, r, SPECTRUM_UPDATE);
        cJSON *row = measure_add_block(list, t, r->kind, r->layer);
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
