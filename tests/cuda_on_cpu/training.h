/* Trainers as train_gpt.c steps them, on models that fit into a test. */
#pragma once

#include "tests/tensors.h"

#include <math.h>
#include <stdlib.h>

#include "train_gpt.h"

enum { OPTIONS_MAX = 32 };

/* ---- runs -------------------------------------------------------------------------------------------------------- */

/* Odd sizes: no tile is full, and the micro-batches are two. Initial weights are large, so that logits and gradients
 * are more than rounding errors, and the threshold so low that QK-Clip acts. */
#define COMMON                                                                                                         \
    "data.train=synthetic", "data.val=synthetic", "threads=2", "model.layers=2", "model.vocab=61", "model.context=21", \
        "train.batch=4", "train.micro_batch=2", "train.steps=20", "train.eval_batches=1", "optimizer.matrices=muon",   \
        "optimizer.lr=0.01", "optimizer.adamw.lr=0.001", "model.init_std=0.1", "qk_clip.threshold=0.1"

typedef struct {
    const char *name;
    const char *options[OPTIONS_MAX]; /* NULL ends them */
} ModelCase;

static const ModelCase gpt2_like = {"gpt2-like", {COMMON, "model.preset=gpt2", "model.width=36", "model.heads=3"}};
static const ModelCase llama_like = {
    "llama-like, grouped queries",
    {COMMON, "model.preset=llama", "model.width=48", "model.heads=4", "model.kv_heads=2", "model.mlp_width=72"}};

static const ModelCase mla_like = {"with latent attention",
                                   {COMMON, "model.preset=llama", "model.width=40", "model.heads=3",
                                    "model.attention=mla", "model.q_rank=21", "model.kv_rank=19", "model.head_nope=10",
                                    "model.head_rope=6", "model.head_value=13", "model.mlp_width=72"}};

typedef struct {
    const char *device, *precision;
    const char *extra[8]; /* options; NULL ends them */
} Setting;

static int gather(const char **list, const char *const *options, int count) {
    for (; *options; options++) {
        assert_in_range(count, 0, OPTIONS_MAX + 6);
        list[count++] = *options;
    }
    return count;
}

static void load_config(Config *config, const ModelCase *model, Setting setting) {
    char device[32], precision[32];
    const char *list[OPTIONS_MAX + 8] = {device, precision};
    snprintf(device, sizeof device, "device=%s", setting.device);
    snprintf(precision, sizeof precision, "precision=%s", setting.precision);
    int count = gather(list, setting.extra, gather(list, model->options, 2));
    assert_ok(config_load(config, NULL, count, (char **)(uintptr_t)list));
}

/* The line that the newest step would write, as a reader has it. */
static inline cJSON *reported(Trainer *t) {
    cJSON *line = cJSON_CreateObject();
    probes_report(&t->probes, line);
    char *text = cJSON_PrintUnformatted(line);
    cJSON *read = cJSON_Parse(text);
    assert_non_null(read);
    free(text);
    cJSON_Delete(line);
    return read;
}

static Status open_trainer(Trainer *t, const ModelCase *model, Setting setting) {
    Config config;
    load_config(&config, model, setting);
    Status status = trainer_plan(t, &config);
    return status.code ? status : trainer_allocate(t);
}

/* One step with a look at the activations of each forward pass; `done` sequences came before it. */
typedef void SeePass(Trainer *t, void *context, int64_t done);

typedef struct {
    Trainer *trainer;
    SeePass *see;
    void *context;
    int64_t done;
    bool seen; /* this micro-batch: probes interrupt the phase */
} Watcher;

static inline void watch_forward(void *watcher, Phase ended) {
    Watcher *w = watcher;
    if (ended == PHASE_DATA) w->seen = false;
    if (ended != PHASE_FORWARD || w->seen) return;
    w->seen = true;
    w->see(w->trainer, w->context, w->done);
    w->done += w->trainer->gpt.B;
}

static inline void step_and_see(Trainer *t, StepReport *r, SeePass *see, void *context) {
    Watcher watcher = {t, see, context, 0, false};
    t->phases.between = watch_forward;
    t->phases.context = &watcher;
    assert_ok(train_step(t, r));
    t->phases.between = NULL;
}
