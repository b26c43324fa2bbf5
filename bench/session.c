/* Measured training steps; see session.h. */
#include "bench/session.h"

#include <math.h>
#include <stdlib.h>

#include "base/clock.h"

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

Status session_open(Session *s, const char *options) {
    Config config;
    Status status;
    *s = (Session){0};
    if (FAILED(status, session_config(&config, NULL, options))) return status;
    if (FAILED(status, trainer_plan(&s->trainer, &config))) goto failed;
    if (FAILED(status, trainer_allocate(&s->trainer))) goto failed;
    if (FAILED(status, ceiling_open(&s->ceiling, &s->trainer.backend))) goto failed;
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

/* The time since *mark, which moves to now, behind a sample of the ceiling if one is due. */
static double lap(Session *s, double *mark) {
    if (s->unbroken) return 0;
    backend_sync(&s->trainer.backend);
    const double seconds = clock_seconds() - *mark;
    ceiling_refresh(&s->ceiling);
    *mark = clock_seconds();
    return seconds;
}

static Status accumulate_gradients(Session *s, StepSeconds *seconds, double *mark) {
    Trainer *t = &s->trainer;
    const TrainConfig *c = &t->config.train;
    gpt_start_gradients(&t->gpt);
    gpt_reset_statistics(&t->gpt);
    for (int64_t done = 0; done < c->batch; done += c->micro_batch) {
        Status status = trainer_load_batch(t);
        if (status.code) return status;
        seconds->rest += lap(s, mark);
        gpt_forward(&t->gpt);
        seconds->forward += lap(s, mark);
        gpt_loss_and_gradient(&t->gpt, (float)(1 / session_tokens(s)));
        gpt_backward(&t->gpt);
        seconds->backward += lap(s, mark);
    }
    return status_ok();
}

Status session_step(Session *s, StepSeconds *seconds) {
    Trainer *t = &s->trainer;
    StepReport r = {0};
    double mark = clock_seconds();
    Status status;

    if (FAILED(status, accumulate_gradients(s, seconds, &mark))) return status;
    if (FAILED(status, trainer_read_step(t, &r))) return status;
    if (!isfinite(r.grad_norm))
        return status_error(STATUS_DIVERGED, "step %lld: the gradient is not finite", (long long)t->step);
    t->step++;
    const StepNumbers numbers = trainer_next_update(t, trainer_lr(t, t->step), r.grad_norm);
    measure_gradient(t, &numbers); /* what measurements do in every step */
    seconds->rest += lap(s, &mark);
    trainer_start_optimizer(t);
    optimizer_step(&t->optimizer, &numbers, NULL, NULL);
    if (t->config.qk_clip.enabled)
        qk_clip_apply(&t->backend, &t->gpt.params, &t->config.qk_clip, t->max_logit, t->clips);
    trainer_stop_optimizer(t, &r);
    s->optimizer_seconds = r.optimizer_seconds;
    seconds->optimizer += lap(s, &mark);
    return s->unbroken ? t->backend.failure : backend_sync(&t->backend);
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
