/* The folder of a run: its configuration, checkpoints, resuming; see trainer.h. */
#include "run/trainer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/config_options.h"
#include "model/checkpoint.h"

/* ---- the run folder --------------------------------------------------------------------------------------------- */

/* runs_dir/name, or the first of name-2, name-3, ... that is free. mkdir itself decides, so that two runs that start
 * at the same time do not share a folder: a run never overwrites another. */
static Status make_run_dir(Trainer *t) {
    const Config *c = &t->config;
    char name[NAME_SIZE + 24];
    for (int number = 1;; number++) {
        if (number == 1)
            snprintf(name, sizeof name, "%s", c->name);
        else
            snprintf(name, sizeof name, "%s-%d", c->name, number);
        Status status = path_join(t->run_dir, c->runs_dir, name);
        if (status.code || mkdir(t->run_dir, 0777) == 0) return status;
        if (errno != EEXIST) return file_error(t->run_dir, "create the folder");
    }
}

static Status write_config(const Trainer *t) {
    char path[PATH_SIZE];
    Status status = path_join(path, t->run_dir, "config.json");
    if (status.code) return status;
    char *json = config_to_json(&t->config);
    if (!json) return NO_MEMORY("no memory to write %s", path);
    status = file_write(path, json, (int64_t)strlen(json));
    free(json);
    return status;
}

static Status take_initial_weights(Trainer *t) {
    const char *from = t->config.train.init_from;
    return strcmp(from, "seed") == 0 ? status_ok() : checkpoint_load_weights(from, &t->gpt, t->weights_from);
}

Status trainer_create_run(Trainer *t) {
    Status status;
    if (FAILED(status, take_initial_weights(t))) return status;
    if (FAILED(status, folder_create(t->config.runs_dir))) return status;
    if (FAILED(status, make_run_dir(t))) return status;
    if (FAILED(status, write_config(t)) || FAILED(status, metrics_open(&t->metrics, t->run_dir, 0)))
        (void)folder_remove(t->run_dir); /* the first failure is the one to tell of */
    return status;
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

/* The tensors of optimizer and probes by name; the caller frees *tensors. */
static Status state_tensors(Trainer *t, NamedTensor **tensors, int64_t *count) {
    const Optimizer *opt = &t->optimizer;
    const int64_t of_optimizer = optimizer_state(opt, NULL);
    *count = of_optimizer + probes_state(&t->probes, NULL);
    *tensors = calloc((size_t)*count, sizeof **tensors);
    if (!*tensors) return NO_MEMORY("no memory to name %lld tensors", (long long)*count);
    optimizer_state(opt, *tensors);
    probes_state(&t->probes, *tensors + of_optimizer);
    return status_ok();
}

static CheckpointState checkpoint_state(const Trainer *t) {
    return (CheckpointState){.step = t->step,
                             .updates = t->updates,
                             .samples = t->samples,
                             .tokens = t->samples * t->gpt.T,
                             .data_fingerprint = dataset_facts(t->train_data)->fingerprint};
}

Status trainer_save_checkpoint(Trainer *t) {
    NamedTensor *tensors = NULL;
    int64_t count = 0;
    char *config = NULL, dir[PATH_SIZE];
    CheckpointState state = checkpoint_state(t);
    Status status;

    /* No checkpoint is ahead of the metrics: a run that goes on from it does not write the lines before it again. */
    if (FAILED(status, metrics_flush(&t->metrics))) goto done;
    if (FAILED(status, checkpoint_path(dir, t->run_dir, t->step))) goto done;
    if (FAILED(status, state_tensors(t, &tensors, &count))) goto done;
    config = config_to_json(&t->config);
    state.config_json = config;
    if (FAILED(status, checkpoint_save(dir, &t->gpt, &state, tensors, count))) goto done;
    status = checkpoint_prune(t->run_dir, t->step, t->config.checkpoint.keep);
done:
    free(config);
    free(tensors);
    return status;
}

/* Not every key of the model shows in the shape of a tensor: a run that goes on with another context, norm_eps or
 * softcap would load, and be neither the old model nor a new one. The seed orders the data. */
static Status check_same_run(const Config *config, const char *run_dir) {
    char path[PATH_SIZE];
    Config trained;
    Status status = path_join(path, run_dir, "config.json");
    if (status.code || FAILED(status, config_load(&trained, path, 0, NULL))) return status;
    if (trained.seed != config->seed)
        return BAD_INPUT("%s was trained with seed=%lld, which orders its data: leave the key out", run_dir,
                         (long long)trained.seed);
    for (const Option *option = config_options; option < config_options + config_option_count; option++) {
        const void *was = (const char *)&trained + option->offset, *is = (const char *)config + option->offset;
        if (strncmp(option->path, "model.", strlen("model.")) != 0 || memcmp(was, is, option->size) == 0) continue;
        return BAD_INPUT("%s was trained with another %s; a resumed run keeps its model: leave the key out", run_dir,
                         option->path);
    }
    return status;
}

Status trainer_resume(Trainer *t, const char *run_dir) {
    NamedTensor *tensors = NULL;
    int64_t count = 0;
    char dir[PATH_SIZE];
    CheckpointState state = {0};
    Status status;

    snprintf(t->run_dir, sizeof t->run_dir, "%s", run_dir);
    if (FAILED(status, check_same_run(&t->config, run_dir))) goto done;
    if (FAILED(status, checkpoint_find_newest_intact(run_dir, dir, stderr))) goto done;
    if (FAILED(status, state_tensors(t, &tensors, &count))) goto done;
    if (FAILED(status, checkpoint_load(dir, &t->gpt, &state, tensors, count))) goto done;
    if (state.data_fingerprint != dataset_facts(t->train_data)->fingerprint) {
        status =
            BAD_INPUT("%s was trained on other data than data.train=%s names now; resume with the same token files",
                      dir, t->config.data.train);
        goto done;
    }
    t->step = state.step;
    t->updates = state.updates;
    t->samples = state.samples;
    probes_resumed(&t->probes);
    if (FAILED(status, write_config(t))) goto done; /* what was changed holds for the next resume too */
    status = metrics_open(&t->metrics, run_dir, t->step);
done:
    free(tensors);
    return status;
}
