/* train_gpt: trains a small GPT with Muon on the hidden matrices and AdamW on the rest, and watches its attention
 * logits.
 *
 * This file reads as the algorithm: options, set-up, the step loop. What it calls:
 *
 *      run/      the run as a whole: set-up, evaluation, checkpoints, reports, the other subcommands
 *      model/    the transformer: forward, loss, backward, checkpoints
 *      optim/    Muon, AdamW, schedules, QK-Clip           probe/   singular-value spectra
 *      data/     token shards, the synthetic language       ops/     tensors, ops, backends      base/    configuration
 *
 * Exit codes: 0 done; 1 a defect (CHECK); 2 bad input or environment; 3 diverged; 130 interrupted, checkpoint written.
 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/threads.h"
#include "run/commands.h"
#include "run/report.h"
#include "run/trainer.h"

enum { EXIT_BAD_INPUT = 2, EXIT_DIVERGED = 3, EXIT_INTERRUPTED = 130 };
enum { SKIPPED_STEPS_LIMIT = 20 }; /* so many steps in a row that are not finite end the run */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    interrupted = signal_number;
    signal(signal_number, SIG_DFL); /* a second Ctrl-C ends the program at once */
}

/* Forward and backward over the whole batch, in micro-batches; gradients of the batch's mean loss accumulate. */
static Status accumulate_gradients(Trainer *t) {
    const TrainConfig *c = &t->config.train;
    const float loss_scale = (float)(1.0 / (double)(c->batch * t->gpt.T));
    gpt_start_gradients(&t->gpt);
    gpt_reset_statistics(&t->gpt);
    for (int64_t done = 0; done < c->batch; done += c->micro_batch) {
        Status status = trainer_load_batch(t);
        if (status.code) return status;
        gpt_forward(&t->gpt); /* also takes MaxLogit of every head */
        measure_forward(t, done / c->micro_batch);
        gpt_loss_and_gradient(&t->gpt, loss_scale);
        gpt_backward(&t->gpt);
        measure_backward(t, done / c->micro_batch);
    }
    return status_ok();
}

/* The optimizer's step, then QK-Clip with the MaxLogit that this step's forward saw. */
static Status update_weights(Trainer *t, StepReport *r) {
    UpdateObserver *observer = measure_sees_updates(t) ? measure_update : NULL;

    const StepNumbers numbers = trainer_next_update(t, r->lr, r->grad_norm);

    measure_gradient(t, &numbers);
    trainer_start_optimizer(t);
    optimizer_step(&t->optimizer, &numbers, observer, t);
    if (t->config.qk_clip.enabled)
        r->clip_count =
            qk_clip_apply(&t->backend, &t->gpt.params, &t->config.qk_clip, t->max_logit, t->clips);
    measure_clips(t, t->clips, r->clip_count);
    trainer_stop_optimizer(t, r);
    return t->backend.failure; /* the device may still be at work: the next step's read-back waits for it, too */
}

static Status refuse_step(const Trainer *t, const StepReport *r, int skipped_in_a_row) {
    if (t->config.train.on_nonfinite == ON_NONFINITE_SKIP && skipped_in_a_row < SKIPPED_STEPS_LIMIT) return status_ok();
    return status_error(
        STATUS_DIVERGED,
        "step %lld: loss %g, gradient norm %g: not finite, the %d. step in a row; try a lower optimizer.lr or a longer "
        "warmup, from the start or from the newest checkpoint: ./train_gpt --resume %s optimizer.lr=...",
        (long long)t->step, r->loss, r->grad_norm, skipped_in_a_row, t->run_dir);
}

/* The probes hold the records of one step: the line that waits for those of an earlier one is finished first. */
static Status begin_measurements(Trainer *t) {
    measure_begin(t);
    return measure_is_due(t) ? report_finish(t) : status_ok();
}

static Status train_step(Trainer *t, StepReport *r, int *skipped_in_a_row) {
    const double start = clock_seconds();
    Status status;

    *r = (StepReport){.lr = trainer_lr(t, t->step + 1)};
    if (FAILED(status, begin_measurements(t))) return status;
    if (FAILED(status, accumulate_gradients(t))) return status;
    if (FAILED(status, trainer_read_step(t, r))) return status;
    measure_read(t);
    t->step++;
    r->applied = isfinite(r->loss) && isfinite(r->grad_norm);
    *skipped_in_a_row = r->applied ? 0 : *skipped_in_a_row + 1;
    status = r->applied ? update_weights(t, r) : refuse_step(t, r, *skipped_in_a_row);
    r->step_seconds = clock_seconds() - start - t->measurements.seconds;
    if (r->applied)
        measure_end(t);
    else
        measure_cancel(t);
    return status;
}

static bool due(int64_t every, int64_t step, int64_t steps) {
    return (every > 0 && step % every == 0) || step == steps;
}

/* No checkpoint is ahead of the metrics: a run that goes on from it does not write the lines before it again. */
static Status save_checkpoint(Trainer *t) {
    Status status = report_finish(t);
    return status.code ? status : trainer_save_checkpoint(t);
}

static Status train_loop(Trainer *t, Progress *progress) {
    const Config *c = &t->config;
    const int64_t steps = c->train.steps;
    int skipped_in_a_row = 0;
    bool saved = t->step > 0; /* an interrupt before the first step leaves a run that can be resumed, too */
    Status status = status_ok();

    while (t->step < steps && !interrupted) {
        StepReport r;
        Status failure = train_step(t, &r, &skipped_in_a_row);
        if (failure.code && failure.code != STATUS_DIVERGED) return failure;

        r.evaluated = due(c->train.eval_every, t->step, steps);
        if (r.evaluated && FAILED(status, trainer_evaluate(t, c->train.eval_batches, &r.val_loss))) return status;
        if (FAILED(status, report_step(t, &r))) return status;
        progress_step(progress, t, &r);
        if (failure.code) return failure;

        saved = due(c->checkpoint.every, t->step, steps);
        if (saved && FAILED(status, save_checkpoint(t))) return status;
    }
    return saved ? status : save_checkpoint(t);
}

static Status command_train(const Config *config, const char *resume_dir) {
    Trainer t;
    Progress progress;
    Status status;
    if (FAILED(status, trainer_plan(&t, config))) goto done;
    if (FAILED(status, trainer_allocate(&t))) goto done;
    signal(SIGINT, on_interrupt); /* from here on there is a run folder: it gets its checkpoint */
    signal(SIGTERM, on_interrupt);
    if (signal(SIGHUP, on_interrupt) == SIG_IGN) signal(SIGHUP, SIG_IGN); /* nohup asked for that */
    if (FAILED(status, resume_dir ? trainer_resume(&t, resume_dir) : trainer_create_run(&t))) goto done;
    report_print_header(&t);
    t.peak_flops = backend_measure_peak(&t.backend);
    if (FAILED(status, report_start(&t))) goto done;
    progress = progress_begin(&t);
    status = train_loop(&t, &progress);
    Status unfinished = report_finish(&t); /* a run that ends early has a last line, too */
    if (!status.code) status = unfinished;
    progress_end(&progress, &t, status);
    if (config->profile) backend_print_profile(&t.backend);
done:
    trainer_free(&t);
    return status;
}

/* ---- command line ----------------------------------------------------------------------------------------------- */

static int finish(Status status) {
    if (status.code == STATUS_OK) return interrupted ? EXIT_INTERRUPTED : EXIT_SUCCESS;
    fprintf(stderr, "train_gpt: %s\n", status.message);
    return status.code == STATUS_DIVERGED ? EXIT_DIVERGED : EXIT_BAD_INPUT;
}

int main(int argc, char **argv) {
    threads_shorten_spinning(argv);
    CommandLine line;
    Config config;
    Status status = command_line_parse(&line, argc, argv);
    if (status.code) return finish(status);

    switch (line.command) {
    case COMMAND_TRAIN:
        if (FAILED(status, command_line_config(&line, &config))) return finish(status);
        return finish(command_train(&config, line.resume_dir));
    case COMMAND_DRY_RUN:
        if (FAILED(status, command_line_config(&line, &config))) return finish(status);
        return finish(command_dry_run(&config));
    case COMMAND_SAMPLE:
        return finish(command_sample(&line));
    case COMMAND_EVAL:
        return finish(command_eval(&line));
    case COMMAND_PREPARE:
        return finish(command_prepare(&line));
    case COMMAND_INSPECT:
        return finish(command_inspect(&line));
    case COMMAND_FIT_COEFFICIENTS:
        return finish(command_fit_coefficients(&line));
    case COMMAND_HELP:
        command_help(stdout);
        return finish(status);
    case COMMAND_VERSION:
        command_version(stdout);
        return finish(status);
    case COMMAND_SCHEMA:
        config_print_schema(stdout);
        return finish(status);
    }
    return finish(status);
}
