/* What a run tells: metrics.jsonl, the progress line, the plan of a run and its summary. */
#pragma once

#include "run/trainer.h"

typedef struct {
    double started, last_line; /* wall_seconds */
    int64_t first_step;        /* of this process */
    bool terminal;             /* rewrite one line in place */
} Progress;

/* First line of metrics.jsonl: the run's configuration, model, device and planned memory. */
Status report_start(Trainer *t);
/* One line of metrics.jsonl for the step. */
Status report_step(Trainer *t, const StepReport *r);

Progress progress_begin(const Trainer *t);
void progress_step(Progress *p, const Trainer *t, const StepReport *r);
void progress_end(const Progress *p, const Trainer *t);

/* Model, data, device, routing: the lines printed before training. */
void report_print_header(const Trainer *t);
/* Memory by purpose, total in bytes; FLOPs. */
int64_t report_print_plan(const Trainer *t, FILE *out);
