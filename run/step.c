/* The pieces of a step that are not the algorithm; see trainer.h. */
#include "run/trainer.h"

#include <math.h>

#include "ops/ops.h"
#include "optim/schedule.h"

Status trainer_load_batch(Trainer *t) {
    const Gpt *g = &t->gpt;
    for (int64_t b = 0; b < g->B; b++) {
        Status status =
            dataset_train_sample(t->train_data, t->samples + b, t->tokens + b * g->T, t->targets + b * g->T);
        if (status.code) return status;
    }
    t->samples += g->B;
    gpt_set_batch(&t->gpt, t->tokens, t->targets);
    return status_ok();
}

/* The largest value; NaN if one is NaN, which must not hide behind larger numbers. */
static double max_of(const float *values, int64_t count) {
    float max = -INFINITY;
    for (int64_t i = 0; i < count; i++)
        if (!(values[i] <= max)) {
            max = values[i];
            if (isnan(max)) break;
        }
    return (double)max;
}

/* Of the optimizer step whose end has been waited for; NaN: the step was refused, or it is the first. */
static double take_optimizer_seconds(Trainer *t) {
    if (!t->optimizer_pending) return (double)NAN;
    t->optimizer_pending = false;
    return backend_elapsed(&t->backend, MARK_OPTIMIZER_BEGIN, MARK_OPTIMIZER_END);
}

Status trainer_read_step(Trainer *t, StepReport *r) {
    Gpt *g = &t->gpt;
    op_sum_squares(g->be, g->grad_square_sum, g->params.grad);
    backend_to_host(&t->backend, t->statistics, g->statistics);
    r->loss = (double)*trainer_statistic(t, g->loss_sum) / (double)(t->config.train.batch * g->T);
    r->grad_norm = sqrt((double)*trainer_statistic(t, g->grad_square_sum));
    r->max_logit = max_of(t->max_logit, g->L * g->H);
    r->max_abs = max_of(t->max_abs, g->L * g->H);
    if (backend_is_asynchronous(&t->backend)) r->optimizer_seconds = take_optimizer_seconds(t);
    return t->backend.failure;
}

void trainer_clip_heads(Trainer *t, StepReport *r) {
    if (!t->config.qk_clip.enabled) return;
    r->clip_count = qk_clip_apply(&t->backend, &t->gpt.params, &t->config.qk_clip, t->max_logit, t->clips);
}

void trainer_mark_update(Trainer *t, int mark) {
    if (!backend_is_asynchronous(&t->backend)) return;
    backend_mark(&t->backend, mark);
    t->optimizer_pending = mark == MARK_OPTIMIZER_END;
}

void trainer_time_step(const Trainer *t, StepReport *r) {
    r->step_seconds = phases_step_seconds(&t->phases);
    if (!backend_is_asynchronous(&t->backend)) r->optimizer_seconds = t->phases.seconds[PHASE_OPTIMIZER];
}

/* What brings a gradient of this norm down to train.grad_clip. */
static float grad_scale(const Trainer *t, double grad_norm) {
    double limit = t->config.train.grad_clip;
    return limit > 0 && grad_norm > limit ? (float)(limit / grad_norm) : 1.0f;
}

double trainer_lr(const Trainer *t, int64_t step) {
    return t->config.optimizer.lr * schedule_factor(&t->config.optimizer.schedule, t->config.train.steps, step);
}

StepNumbers trainer_next_update(Trainer *t, const StepReport *r) {
    return (StepNumbers){.update = ++t->updates,
                         .step = t->step,
                         .steps = t->config.train.steps,
                         .lr = r->lr,
                         .grad_scale = grad_scale(t, r->grad_norm)};
}
