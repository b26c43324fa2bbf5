/* The trainer as train_gpt.c steps it, on models that fit into a test: that file is included, its main under another
 * name.
 */
#pragma once

#include "tests/tensors.h"

#include <stdlib.h>

int train_gpt_main(int argc, char **argv);
#define main train_gpt_main
#include "train_gpt.c"
#undef main

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

static Status open_trainer(Trainer *t, const ModelCase *model, Setting setting) {
    Config config;
    load_config(&config, model, setting);
    Status status = trainer_plan(t, &config);
    return status.code ? status : trainer_allocate(t);
}

/* accumulate_gradients of train_gpt.c with a look at the activations of each forward pass; `done` sequences came before
 * it. */
typedef void SeePass(Trainer *t, void *context, int64_t done);

static inline void accumulate_and_see(Trainer *t, SeePass *see, void *context) {
    const TrainConfig *c = &t->config.train;
    gpt_start_gradients(&t->gpt);
    gpt_reset_statistics(&t->gpt);
    for (int64_t done = 0; done < c->batch; done += c->micro_batch) {
        assert_ok(trainer_load_batch(t));
        gpt_forward(&t->gpt);
        measure_forward(t, done / c->micro_batch);
        see(t, context, done);
        gpt_loss_and_gradient(&t->gpt, (float)(1.0 / (double)(c->batch * t->gpt.T)));
        gpt_backward(&t->gpt);
    }
}
