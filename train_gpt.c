/* train_gpt: trains a small GPT with Muon on the hidden matrices and AdamW on the rest, and watches its attention
 * logits.
 *
 * This file is the algorithm: the step, and the loop around it. main.c leads here. What it calls:
 *
 *      run/      the run as a whole: set-up, evaluation, checkpoints, reports
 *      probe/    measurements                               optim/   Muon, AdamW, ..., schedules, QK-Clip
 *      model/    the transformer: forward, loss, backward   data/    token shards, the synthetic language
 */
#include "train_gpt.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>

/* ---- the step --------------------------------------------------------------------------------------------------- */

/* Forward and backward over the whole batch, in micro-batches; gradients of the batch's mean loss accumulate. */
static Status accumulate_gradients(Trainer *t) {
    const TrainConfig *c = &t->config.train;
    const float loss_scale = (float)(1.0 / (double)(c->batch * t->gpt.T));
    gpt_start_gradients(&t->gpt);
    gpt_reset_statistics(&t->gpt);
    for (int64_t i = 0; i < c->batch / c->micro_batch; i++) {
        phases_enter(&t->phases, PHASE_DATA);
        Status status = trainer_load_batch(t);
        if (status.code) return status;

        phases_enter(&t->phases, PHASE_FORWARD);
        gpt_forward(&t->gpt); /* takes MaxLogit of every head in the same pass */
        probes_forward(&t->probes, i);

        phases_enter(&t->phases, PHASE_BACKWARD);
        gpt_loss_and_gradient(&t->gpt, loss_scale);
        gpt_backward(&t->gpt);
        probes_backward(&t->probes);
    }
    return status_ok();
}

/* The optimizer's step, then QK-Clip with the MaxLogit that this step's forward saw. */
static Status update_weights(Trainer *t, StepReport *r) {
    const StepNumbers numbers = trainer_next_update(t, r);
    probes_gradient(&t->probes, t->max_abs, &numbers);

    phases_enter(&t->phases, PHASE_OPTIMIZER);
    trainer_mark_update(t, MARK_OPTIMIZER_BEGIN);
    optimizer_step(&t->optimizer, &numbers, probes_observer(&t->probes), &t->probes);
    trainer_clip_heads(t, r);
    trainer_mark_update(t, MARK_OPTIMIZER_END);
    probes_end(&t->probes);
    return t->backend.failure; /* the device may still be at work: the next step's read-back waits for it, too */
}

/* Not finite: the weights stay as they are, and the run goes on or ends, as configured. */
static Status refuse_step(Trainer *t, const StepReport *r) {
    enum { LIMIT = 20 }; /* so many in a row end the run */
    probes_gradient(&t->probes, t->max_abs, NULL);
    if (t->config.train.on_nonfinite == ON_NONFINITE_SKIP && t->refused_in_a_row < LIMIT) return status_ok();
    return status_error(
        STATUS_DIVERGED,
        "step %lld: the loss (%g) or the gradient's norm (%g) is not finite, refused steps in a row: %d; try a lower "
        "optimizer.lr or a longer warmup, from the start or from the newest checkpoint: ./train_gpt --resume %s "
        "optimizer.lr=...",
        (long long)t->step, r->loss, r->grad_norm, t->refused_in_a_row, t->run_dir);
}

static Status take_step(Trainer *t, StepReport *r) {
    Status status;
    probes_begin(&t->probes, t->step + 1, t->samples);
    if (FAILED(status, accumulate_gradients(t))) return status;

    phases_enter(&t->phases, PHASE_NORM);
    if (FAILED(status, trainer_read_step(t, r))) return status;
    t->step++;
    r->applied = isfinite(r->loss) && isfinite(r->grad_norm);
    t->refused_in_a_row = r->applied ? 0 : t->refused_in_a_row + 1;
    return r->applied ? update_weights(t, r) : refuse_step(t, r);
}

Status train_step(Trainer *t, StepReport *r) {
    *r = (StepReport){.lr = trainer_lr(t, t->step + 1)};
    phases_begin(&t->phases);
    Status status = take_step(t, r);
    phases_end(&t->phases);
    trainer_time_step(t, r);
    return status;
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    interrupted = signal_number;
    signal(signal_number, SIG_DFL); /* a second Ctrl-C ends the program at once */
}

static void listen_for_interrupts(void) {
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    if (signal(SIGHUP, on_interrupt) == SIG_IGN) signal(SIGHUP, SIG_IGN); /* nohup asked for that */
}

static bool due(int64_t every, int64_t step, int64_t steps) {
    return (every > 0 && step % every == 0) || step == steps;
}

Status train_loop(Trainer *t, Progress *progress) {
    const Config *c = &t->config;
    const int64_t steps = c->train.steps;
    bool saved = t->step > 0; /* an interrupt before the first step leaves a run that can be resumed, too */
    Status status = status_ok();

    while (t->step < steps && !interrupted) {
        StepReport r;
        Status failure = train_step(t, &r);
        if (failure.code && failure.code != STATUS_DIVERGED) return failure;

        r.evaluated = due(c->train.eval_every, t->step, steps);
        if (r.evaluated && FAILED(status, trainer_evaluate(t, c->train.eval_batches, &r.val_loss))) return status;
        if (FAILED(status, report_step(t, &r))) return status;
        progress_step(progress, t, &r);
        if (failure.code) return failure;

        saved = due(c->checkpoint.every, t->step, steps);
        if (saved && FAILED(status, trainer_save_checkpoint(t))) return status;
    }
    return saved ? status : trainer_save_checkpoint(t);
}

Status train_run(const Config *config, const char *resume_dir, bool *was_interrupted) {
    Trainer t;
    Progress progress;
    Status status;
    if (FAILED(status, trainer_plan(&t, config))) goto done;
    if (FAILED(status, trainer_allocate(&t))) goto done;
    listen_for_interrupts(); /* from here on there is a run folder: it gets its checkpoint */
    if (FAILED(status, resume_dir ? trainer_resume(&t, resume_dir) : trainer_create_run(&t))) goto done;
    report_print_header(&t);
    t.peak_flops = backend_measure_peak(&t.backend);
    if (FAILED(status, report_start(&t))) goto done;
    progress = progress_begin(&t);
    status = train_loop(&t, &progress);
    Status unfinished = metrics_flush(&t.metrics); /* a run that ends early has a last line, too */
    if (!status.code) status = unfinished;
    progress_end(&progress, &t, status);
    if (config->profile) backend_print_profile(&t.backend);
done:
    *was_interrupted = interrupted;
    trainer_free(&t);
    return status;
}
