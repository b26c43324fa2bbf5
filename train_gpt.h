/* The training step and the loop around it: the one place where they are composed. The prediction of --dry-run, bench
 * and the tests take this step, too.
 */
#pragma once

#include "run/report.h"
#include "run/trainer.h"

/* One optimizer step: a TrainStep (run/trainer.h). Fills the report. STATUS_DIVERGED: the step was refused, and the run
 * is to end; a step that is refused and skipped is no failure, and has r->applied false. */
Status train_step(Trainer *t, StepReport *r);

/* Steps up to train.steps, with evaluations, metrics and checkpoints, or until *interrupted is set. The trainer has its
 * run folder. */
Status train_loop(Trainer *t, Progress *progress);

/* Trains a new run, or goes on with the one in `resume_dir` (NULL: none). SIGINT, SIGTERM and SIGHUP end the step,
 * write a checkpoint and set *interrupted. */
Status train_run(const Config *config, const char *resume_dir, bool *interrupted);
