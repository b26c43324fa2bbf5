/* What a run tells: metrics.jsonl, the progress line, the plan of a run and its summary. */
#pragma once

#include "run/trainer.h"

typedef struct {
    double started, last_line; /* clock_seconds */
    int64_t first_step;        /* of this process */
    bool terminal;             /* rewrite one line in place */
    bool open;                 /* the cursor stands on such a line */
} Progress;

/* First line of metrics.jsonl: the run's configuration, model, device and planned memory. */
Status report_start(Trainer *t);
/* One line of metrics.jsonl for the step. Where spectra are computed while the device goes on, the line of a step that
 * has some waits for them in the writer. */
Status report_step(Trainer *t, const StepReport *r);

Progress progress_begin(const Trainer *t);
void progress_step(Progress *p, const Trainer *t, const StepReport *r);
/* After a failure only leaves the line that is being rewritten: the error stands below it. */
void progress_end(const Progress *p, const Trainer *t, Status status);

/* Model, data, device, routing: the lines printed before training. */
void report_print_header(const Trainer *t);
/* Memory by purpose; FLOPs. */
void report_print_plan(const Trainer *t, FILE *out);
