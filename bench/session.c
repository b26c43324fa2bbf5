/* Measured training steps; see session.h. */
#include "bench/session.h"

#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "train_gpt.h"

enum { OPTIONS_MAX = 32 };

Status session_config(Config *result, const char *config, const char *options) {
    static char device[] = "device=cpu";
    char *text = strdup(options), *list[OPTIONS_MAX] = {device}, *rest = text;
    int count = 1;
    if (!text) return status_error(STATUS_OUT_OF_MEMORY, "no memory for the options %s", options);
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        CHECK(count < OPTIONS_MAX, "%d options", count);
        list[count++] = word;
    }
    Status status = config_load(result, config, count, list);
    free(text);
    return status;
}

/* At the boundaries of a step's phases: a phase ends when its work is done, and between two the ceiling is sampled. */
static void settle(void *session) {
    backend_sync(&((Session *)session)->trainer.backend);
}

static void sample_ceiling(void *session, Phase ended) {
    (void)ended;
    ceiling_refresh(&((Session *)session)->ceiling);
}

Status session_open(Session *s, const char *options) {
    Config config;
    Status status;
    *s = (Session){0};
    if (FAILED(status, session_config(&config, NULL, options))) return status;
    if (FAILED(status, trainer_plan(&s->trainer, &config))) goto failed;
    if (FAILED(status, trainer_allocate(&s->trainer))) goto failed;
    if (FAILED(status, ceiling_open(&s->ceiling, &s->trainer.backend))) goto failed;
    probes_force(&s->trainer.probes, PROBE_COUNT); /* none is due */
    s->trainer.phases = (PhaseClock){.settle = settle, .between = sample_ceiling, .context = s};
    return status;
failed:
    session_close(s);
    return status;
}

Status session_open_gpu(Session *s, const Config *config) {
    Status status;
    *s = (Session){.unbroken = true};
    if (FAILED(status, trainer_plan(&s->trainer, config)) || FAILED(status, trainer_allocate(&s->trainer)))
        session_close(s);
    else
        probes_force(&s->trainer.probes, PROBE_COUNT);
    return status;
}

void session_close(Session *s) {
    ceiling_close(&s->ceiling);
    trainer_free(&s->trainer);
}

double session_tokens(const Session *s) {
    return (double)(s->trainer.config.train.batch * s->trainer.gpt.T);
}

double step_total(StepSeconds s) {
    return s.forward + s.backward + s.optimizer + s.rest;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

static void add_seconds(StepSeconds *sum, const double *phase) {
    sum->forward += phase[PHASE_FORWARD];
    sum->backward += phase[PHASE_BACKWARD];
    sum->optimizer += phase[PHASE_OPTIMIZER];
    sum->rest += phase[PHASE_DATA] + phase[PHASE_NORM] + phase[PHASE_PROBES];
}

Status session_step(Session *s, StepSeconds *seconds) {
    Trainer *t = &s->trainer;
    StepReport r;
    Status status = train_step(t, &r);
    if (status.code) return status;
    if (!r.applied) return status_error(STATUS_DIVERGED, "step %lld is not finite", (long long)t->step);
    s->optimizer_seconds = r.optimizer_seconds;
    if (!s->unbroken) add_seconds(seconds, t->phases.seconds);
    return status;
}

static Status repeat(Session *s, int steps, StepMeasurement *m) {
    const double flops = gpt_flops_per_token(&s->trainer.gpt);
    StepSeconds seconds = {0};
    for (int i = 0; i < steps; i++) {
        Status status = session_step(s, &seconds);
        if (status.code) return status;
    }
    ceiling_sample(&s->ceiling);
    const double rate = steps * session_tokens(s) / step_total(seconds), ceiling = ceiling_take(&s->ceiling);
    samples_add(&m->rate, rate);
    samples_add(&m->ceiling, ceiling);
    samples_add(&m->mfu, rate * flops / ceiling);
    m->seconds.forward += seconds.forward / steps;
    m->seconds.backward += seconds.backward / steps;
    m->seconds.optimizer += seconds.optimizer / steps;
    m->seconds.rest += seconds.rest / steps;
    return status_ok();
}

Status session_measure(Session *s, double budget, StepMeasurement *m) {
    StepSeconds warm_up = {0};
    Status status = session_step(s, &warm_up);
    if (status.code) return status;
    const int steps = (int)fmax(1, ceil(0.25 / step_total(warm_up)));

    *m = (StepMeasurement){0};
    ceiling_sample(&s->ceiling);
    ceiling_take(&s->ceiling); /* forgets the samples of the warm-up but for the newest */
    const double start = clock_seconds();
    while (m->mfu.count < 2 || (m->mfu.count < REPETITIONS_MAX && clock_seconds() - start < budget))
        if (FAILED(status, repeat(s, steps, m))) return status;
    const double count = m->mfu.count;
    m->seconds.forward /= count;
    m->seconds.backward /= count;
    m->seconds.optimizer /= count;
    m->seconds.rest /= count;
    return status;
}
