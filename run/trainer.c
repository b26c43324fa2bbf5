/* Set-up and tear-down of a run, and the step's pieces; see trainer.h. */
#include "run/trainer.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "ops/ops.h"
#include "model/checkpoint.h"
#include "optim/schedule.h"
#include "cuda/open.h"
#include "device/device.h"

/* Bytes of this process that are in memory now; 0 where /proc does not say. */
static int64_t resident_bytes(void) {
    long long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file) return 0;
    int fields = fscanf(file, "%lld %lld", &total, &resident);
    fclose(file);
    return fields == 2 ? (int64_t)resident * sysconf(_SC_PAGESIZE) : 0;
}

/* ---- set-up ----------------------------------------------------------------------------------------------------- */

/* "linear:37": the op's output becomes NaN after 37 calls. */
static Status plant_fault(Backend *be, const char *fault) {
    const char *colon = strchr(fault, ':');
    char *end = NULL;
    long long calls = colon ? strtoll(colon + 1, &end, 10) : -1;
    for (int op = 0; op < OP_COUNT && colon && end > colon + 1 && !*end && calls >= 0; op++) {
        if (strlen(op_names[op]) != (size_t)(colon - fault) || strncmp(op_names[op], fault, strlen(op_names[op])))
            continue;
        be->fault_op = (OpId)op;
        be->fault_countdown = calls;
        return status_ok();
    }
    return status_error(STATUS_BAD_INPUT,
                        "debug.fault: \"%s\" is not an op's name and a number of calls, as in linear:37", fault);
}

static Status open_backend(Trainer *t) {
    BackendRequest request = {
        .device = t->config.device, .precision = t->config.precision, .threads = (int)t->config.threads};
    Status status = device_open(&t->backend, request, t->device_note, sizeof t->device_note);
    if (status.code) return status;
    t->backend.profile = t->config.profile;
    t->backend.scan_nan = t->config.debug.scan_nan;
    return strcmp(t->config.debug.fault, "off") ? plant_fault(&t->backend, t->config.debug.fault) : status;
}

static Status open_data(Dataset **dataset, const Config *c, const char *source, bool validation) {
    return dataset_open(dataset, source, c->model.vocab, c->model.context, c->seed, &c->data, validation);
}

Status trainer_plan_model(Trainer *t, const Config *config, int64_t micro_batch) {
    *t = (Trainer){.config = *config};
    Status status = open_backend(t);
    return status.code ? status : gpt_plan(&t->gpt, &t->config.model, micro_batch, &t->backend);
}

Status trainer_plan_evaluation(Trainer *t, const Config *config) {
    Status status = trainer_plan_model(t, config, config->train.micro_batch);
    return status.code ? status : open_data(&t->val_data, &t->config, t->config.data.val, true);
}

/* What training needs beside model and validation data. */
static Status plan_training(Trainer *t) {
    Status status;
    if (FAILED(status, open_data(&t->train_data, &t->config, t->config.data.train, false))) return status;
    if (FAILED(status, optimizer_plan(&t->optimizer, &t->gpt.params, &t->config.optimizer, &t->backend))) return status;
    t->base_memory = resident_bytes();
    return status;
}

Status trainer_plan(Trainer *t, const Config *config) {
    Status status = trainer_plan_evaluation(t, config);
    return status.code ? status : plan_training(t);
}

Status trainer_plan_for_gpu(Trainer *t, const Config *config, const Gpu *gpu) {
    Status status;
    *t = (Trainer){.config = *config};
    if (FAILED(status, cost_backend_open(&t->backend, gpu, config->precision, cuda_scratch_bytes))) return status;
    if (FAILED(status, gpt_plan(&t->gpt, &t->config.model, config->train.micro_batch, &t->backend))) return status;
    if (FAILED(status, open_data(&t->val_data, &t->config, t->config.data.val, true))) return status;
    if (FAILED(status, plan_training(t))) return status;
    return measure_create(t); /* their part of a step is predicted, too */
}

static Status allocate_host_buffers(Trainer *t) {
    const Gpt *g = &t->gpt;
    t->tokens = calloc((size_t)g->N, sizeof *t->tokens);
    t->targets = calloc((size_t)g->N, sizeof *t->targets);
    t->statistics = calloc((size_t)tensor_numel(g->statistics), sizeof *t->statistics);
    t->clips = calloc((size_t)(g->L * g->H), sizeof *t->clips);
    if (t->tokens && t->targets && t->statistics && t->clips) return status_ok();
    return status_error(STATUS_OUT_OF_MEMORY, "no memory for a batch of %lld tokens on the host", (long long)g->N);
}

/* Host copy of one of the model's statistics. */
static float *host_statistic(const Trainer *t, Tensor part) {
    return t->statistics + ((const float *)part.data - (const float *)t->gpt.statistics.data);
}

static int64_t planned_bytes(const Trainer *t) {
    return gpt_planned_bytes(&t->gpt) + optimizer_planned_bytes(&t->optimizer) +
           backend_scratch_bytes(&t->backend, gpt_op_limits(&t->gpt));
}

Status trainer_allocate_evaluation(Trainer *t) {
    Status status;
    t->backend.planned_bytes = planned_bytes(t);
    if (FAILED(status, allocate_host_buffers(t))) return status;
    if (FAILED(status, gpt_allocate(&t->gpt))) return status;
    t->max_logit = host_statistic(t, t->gpt.max_logit);
    t->max_abs = host_statistic(t, t->gpt.max_abs);
    return backend_reserve(&t->backend, gpt_op_limits(&t->gpt));
}

Status trainer_allocate(Trainer *t) {
    Status status;
    if (FAILED(status, trainer_allocate_evaluation(t))) return status;
    if (FAILED(status, optimizer_allocate(&t->optimizer))) return status;
    if (FAILED(status, measure_create(t))) return status; /* last: what is missing then is named by its own key */
    return gpt_init_weights(&t->gpt, t->config.seed, t->config.optimizer.mup_base_width);
}

void trainer_free(Trainer *t) {
    metrics_close(&t->metrics);
    free(t->tokens);
    free(t->targets);
    free(t->statistics);
    free(t->clips);
    cJSON_Delete(t->pending_line);
    measure_free(t);
    optimizer_free(&t->optimizer);
    gpt_free(&t->gpt);
    dataset_close(t->train_data);
    dataset_close(t->val_data);
    backend_close(&t->backend);
    *t = (Trainer){0};
}

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
    if (!json) return status_error(STATUS_OUT_OF_MEMORY, "no memory to write %s", path);
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
    if (FAILED(status, write_config(t)) || FAILED(status, metrics_open(&t->metrics, t->run_dir, 0, NULL, NULL)))
        (void)folder_remove(t->run_dir); /* the first failure is the one to tell of */
    return status;
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

/* The tensors of optimizer and measurements by name; the caller frees *tensors. */
static Status state_tensors(Trainer *t, NamedTensor **tensors, int64_t *count) {
    const Optimizer *opt = &t->optimizer;
    const int64_t of_optimizer = optimizer_state_count(opt);
    *count = of_optimizer + measure_state(t, NULL);
    *tensors = calloc((size_t)*count, sizeof **tensors);
    if (!*tensors) return status_error(STATUS_OUT_OF_MEMORY, "no memory to name %lld tensors", (long long)*count);
    for (int64_t i = 0; i < of_optimizer; i++) {
        NamedTensor *entry = &(*tensors)[i];
        entry->tensor = optimizer_state_tensor(opt, i, entry->name, sizeof entry->name);
    }
    measure_state(t, *tensors + of_optimizer);
    return status_ok();
}

static CheckpointState checkpoint_state(const Trainer *t) {
    return (CheckpointState){.step = t->step,
                             .updates = t->updates,
                             .samples = t->samples,
                             .tokens = t->samples * t->gpt.T,
                             .data_fingerprint = dataset_fingerprint(t->train_data)};
}

Status trainer_save_checkpoint(Trainer *t) {
    NamedTensor *tensors = NULL;
    int64_t count = 0;
    char *config = NULL, dir[PATH_SIZE];
    CheckpointState state = checkpoint_state(t);
    Status status;

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

static cJSON *model_section(const Config *config) {
    char *text = config_to_json(config);
    cJSON *whole = text ? cJSON_Parse(text) : NULL;
    cJSON *model = cJSON_DetachItemFromObjectCaseSensitive(whole, "model");
    cJSON_Delete(whole);
    free(text);
    return model;
}

/* Not every key of the model shows in the shape of a tensor: a run that goes on with another context, norm_eps or
 * softcap would load, and be neither the old model nor a new one. The seed orders the data. */
static Status check_same_run(const Config *config, const char *run_dir) {
    char path[PATH_SIZE];
    Config trained;
    Status status = path_join(path, run_dir, "config.json");
    if (status.code || FAILED(status, config_load(&trained, path, 0, NULL))) return status;
    if (trained.seed != config->seed)
        return status_error(STATUS_BAD_INPUT, "%s was trained with seed=%lld, which orders its data: leave the key out",
                            run_dir, (long long)trained.seed);
    cJSON *was = model_section(&trained), *is = model_section(config);
    const cJSON *key = was ? was->child : NULL;
    while (key && cJSON_Compare(key, cJSON_GetObjectItemCaseSensitive(is, key->string), true)) key = key->next;
    if (key)
        status = status_error(STATUS_BAD_INPUT,
                              "%s was trained with another model.%s; a resumed run keeps its model: leave the key out",
                              run_dir, key->string);
    cJSON_Delete(was);
    cJSON_Delete(is);
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
    if (state.data_fingerprint != dataset_fingerprint(t->train_data)) {
        status =
            status_error(STATUS_BAD_INPUT,
                         "%s was trained on other data than data.train=%s names now; resume with the same token files",
                         dir, t->config.data.train);
        goto done;
    }
    t->step = state.step;
    t->updates = state.updates;
    t->samples = state.samples;
    measure_resume(t);
    if (FAILED(status, write_config(t))) goto done; /* what was changed holds for the next resume too */
    status = metrics_open(&t->metrics, run_dir, t->step, measure_read_line, t);
done:
    free(tensors);
    return status;
}

/* ---- the step's pieces ------------------------------------------------------------------------------------------ */

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
    optimizer_add_grad_squares(&t->optimizer, g->grad_square_sum);
    backend_to_host(&t->backend, t->statistics, g->statistics);
    r->loss = (double)*host_statistic(t, g->loss_sum) / (double)(t->config.train.batch * g->T);
    r->grad_norm = sqrt((double)*host_statistic(t, g->grad_square_sum));
    r->max_logit = max_of(t->max_logit, g->L * g->H);
    r->max_abs = max_of(t->max_abs, g->L * g->H);
    if (backend_is_asynchronous(&t->backend)) r->optimizer_seconds = take_optimizer_seconds(t);
    return t->backend.failure;
}

void trainer_start_optimizer(Trainer *t) {
    backend_mark(&t->backend, MARK_OPTIMIZER_BEGIN);
}

void trainer_stop_optimizer(Trainer *t, StepReport *r) {
    backend_mark(&t->backend, MARK_OPTIMIZER_END);
    t->optimizer_pending = true;
    if (!backend_is_asynchronous(&t->backend))
        r->optimizer_seconds = take_optimizer_seconds(t) - t->measurements.update_seconds;
}

float trainer_grad_scale(const Trainer *t, double grad_norm) {
    double limit = t->config.train.grad_clip;
    return limit > 0 && grad_norm > limit ? (float)(limit / grad_norm) : 1.0f;
}

double trainer_lr(const Trainer *t, int64_t step) {
    return t->config.optimizer.lr * schedule_factor(&t->config.optimizer.schedule, t->config.train.steps, step);
}

StepNumbers trainer_next_update(Trainer *t, double lr, double grad_norm) {
    return (StepNumbers){.update = ++t->updates,
                         .step = t->step,
                         .steps = t->config.train.steps,
                         .lr = lr,
                         .grad_scale = trainer_grad_scale(t, grad_norm)};
}

/* ---- evaluation ------------------------------------------------------------------------------------------------- */

/* One micro-batch of validation windows from `first` on; rows beyond the last window are ignored. Returns through
 * `count` how many windows it holds. */
static Status load_windows(Trainer *t, int64_t first, int64_t *count) {
    const Gpt *g = &t->gpt;
    const int64_t windows = dataset_windows(t->val_data);
    *count = windows - first < g->B ? windows - first : g->B;
    for (int64_t b = 0; b < g->B; b++) {
        int32_t *targets = t->targets + b * g->T;
        Status status = dataset_window(t->val_data, b < *count ? first + b : first, t->tokens + b * g->T, targets);
        if (status.code) return status;
        for (int64_t i = 0; b >= *count && i < g->T; i++) targets[i] = -1;
    }
    gpt_set_batch(&t->gpt, t->tokens, t->targets);
    return status_ok();
}

Status trainer_evaluate(Trainer *t, int64_t batches, double *loss) {
    Gpt *g = &t->gpt;
    const int64_t windows = dataset_windows(t->val_data);
    const int64_t limit = batches > 0 && batches * g->B < windows ? batches * g->B : windows;
    double sum = 0;
    for (int64_t first = 0, count; first < limit; first += g->B) {
        float batch_sum = 0;
        Status status = load_windows(t, first, &count);
        if (status.code) return status;
        op_fill(&t->backend, g->loss_sum, 0);
        gpt_forward(g);
        gpt_loss(g);
        backend_to_host(&t->backend, &batch_sum, g->loss_sum);
        sum += (double)batch_sum;
    }
    *loss = sum / (double)(limit * g->T);
    return backend_sync(&t->backend);
}
