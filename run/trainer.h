/* Trainer: everything that one run owns, put together from a Config, and the pieces of the step that are not the
 * algorithm.
 *
 *      trainer.c       set-up and tear-down              run_folder.c    configuration, checkpoints, resuming
 *      step.c          pieces of the step                evaluate.c      validation loss
 *
 * Order of set-up: backend, data, plan of model and optimizer, memory, weights (initial, or of a checkpoint), run
 * folder. Nothing is written to disk before all of the input has been found good.
 */
#pragma once

#include "base/config.h"
#include "ops/cost.h"
#include "base/metrics.h"
#include "data/dataset.h"
#include "model/gpt.h"
#include "optim/optimizer.h"
#include "optim/qk_clip.h"
#include "probe/probe.h"

typedef struct {
    Config config;
    char run_dir[PATH_SIZE];
    Backend backend;
    Dataset *train_data, *val_data;
    Gpt gpt;
    Optimizer optimizer;
    ProbeSet probes;
    PhaseClock phases; /* of the newest step */
    MetricsWriter metrics;

    /* What a checkpoint keeps beside weights and optimizer state. */
    int64_t step;    /* finished */
    int64_t updates; /* steps that changed the weights: AdamW's t */
    int64_t samples; /* training sequences seen */

    int refused_in_a_row; /* steps that were not finite */

    char weights_from[PATH_SIZE]; /* checkpoint that train.init_from led to; "" if the seed made the weights */
    char device_note[256];        /* why device=auto passed over a faster device; "" if it did not */
    double peak_flops;
    bool optimizer_pending;    /* the device has marked an optimizer step that has not been reported */
    int64_t base_memory;       /* resident before the run's own allocations: program, libraries, data tables */
    int32_t *tokens, *targets; /* (micro_batch, context) on the host */
    float *statistics;         /* the model's, on the host */
    float *max_logit;          /* within them: (layers, heads) of this step */
    float *max_abs;            /* likewise */
    ClipEvent *clips;          /* room for layers * heads */
} Trainer;

/* What happened in one step: filled by the loop, printed and logged by report.h. */
typedef struct {
    double loss, lr, grad_norm, max_logit, max_abs;
    bool applied; /* false: the step was not finite and the weights are untouched */
    int64_t clip_count;
    bool evaluated; /* there is a val_loss; it may be NaN */
    double val_loss;
    double step_seconds;      /* without the probes' */
    double optimizer_seconds; /* of this step; of the step before where the device runs asynchronously; NaN: unknown */
} StepReport;

typedef Status TrainStep(Trainer *t, StepReport *r); /* train_step of train_gpt.c, for those below it */

/* Backend, data, model and optimizer planned, nothing allocated: what --dry-run shows. */
Status trainer_plan(Trainer *t, const Config *config);
/* The same on a GPU that need not be here: what it allocates is never touched, and its ops only count (ops/cost.h). */
Status trainer_plan_for_gpu(Trainer *t, const Config *config, const Gpu *gpu);
/* Allocates and initialises everything, from the seed. After trainer_plan. */
Status trainer_allocate(Trainer *t);
/* Parts of the two for programs that do not train: a model alone, or with its validation data; no training data, no
 * optimizer, weights left zero. */
Status trainer_plan_model(Trainer *t, const Config *config, int64_t micro_batch);
Status trainer_plan_evaluation(Trainer *t, const Config *config);
Status trainer_allocate_evaluation(Trainer *t);
/* New run: takes the weights of train.init_from, if it names some, makes the run folder (name, or name-2, name-3, ...
 * when it exists) and writes config.json. After a failure the folder is gone again. */
Status trainer_create_run(Trainer *t);
/* Resume: weights, optimizer state and position from run_dir's newest intact checkpoint; config.json becomes the
 * configuration that it goes on with. Refuses another model and other data. After trainer_allocate. */
Status trainer_resume(Trainer *t, const char *run_dir);
void trainer_free(Trainer *t);

/* The next micro-batch of the training order into the model. */
Status trainer_load_batch(Trainer *t);
/* Waits for the step's forward and backward and reads loss, gradient norm and MaxLogit: the one host sync of a step. */
Status trainer_read_step(Trainer *t, StepReport *r);
double trainer_lr(const Trainer *t, int64_t step);
/* Of the optimizer step that comes, at the report's rate and gradient norm: counts it among the updates. */
StepNumbers trainer_next_update(Trainer *t, const StepReport *r);
/* QK-Clip, if it is on, with this step's MaxLogit. */
void trainer_clip_heads(Trainer *t, StepReport *r);
/* Around optimizer and QK-Clip on a device that runs asynchronously, which tells their time with the next
 * trainer_read_step. */
void trainer_mark_update(Trainer *t, int mark);
/* The times of a step whose phases have ended. */
void trainer_time_step(const Trainer *t, StepReport *r);
/* Host copy of one of the model's statistics. */
float *trainer_statistic(const Trainer *t, Tensor part);

/* Mean loss in nats per token over the first `batches` micro-batches of the validation windows; 0: over all of them. */
Status trainer_evaluate(Trainer *t, int64_t batches, double *loss);
Status trainer_save_checkpoint(Trainer *t); /* metrics are flushed first */
