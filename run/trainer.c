/* Set-up and tear-down of a run; see trainer.h. */
#include "run/trainer.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda/open.h"
#include "device/device.h"
#include "ops/ops.h"

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
    return BAD_INPUT("debug.fault: \"%s\" is not an op's name and a number of calls, as in linear:37", fault);
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
    t->probes = (ProbeSet){.config = &t->config,
                           .be = &t->backend,
                           .gpt = &t->gpt,
                           .optimizer = &t->optimizer,
                           .data = t->train_data,
                           .phases = &t->phases};
    if (FAILED(status, probes_plan(&t->probes))) return status;
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
    return plan_training(t);
}

static Status allocate_host_buffers(Trainer *t) {
    const Gpt *g = &t->gpt;
    t->tokens = calloc((size_t)g->N, sizeof *t->tokens);
    t->targets = calloc((size_t)g->N, sizeof *t->targets);
    t->statistics = calloc((size_t)tensor_numel(g->statistics), sizeof *t->statistics);
    t->clips = calloc((size_t)(g->L * g->H), sizeof *t->clips);
    if (t->tokens && t->targets && t->statistics && t->clips) return status_ok();
    return NO_MEMORY("no memory for a batch of %lld tokens on the host", (long long)g->N);
}

float *trainer_statistic(const Trainer *t, Tensor part) {
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
    t->max_logit = trainer_statistic(t, t->gpt.max_logit);
    t->max_abs = trainer_statistic(t, t->gpt.max_abs);
    return backend_reserve(&t->backend, gpt_op_limits(&t->gpt));
}

Status trainer_allocate(Trainer *t) {
    Status status;
    if (FAILED(status, trainer_allocate_evaluation(t))) return status;
    if (FAILED(status, optimizer_allocate(&t->optimizer))) return status;
    if (FAILED(status, probes_allocate(&t->probes))) return status; /* last: what is missing then is named by its key */
    return gpt_init_weights(&t->gpt, t->config.seed, t->config.optimizer.mup_base_width);
}

void trainer_free(Trainer *t) {
    metrics_close(&t->metrics);
    free(t->tokens);
    free(t->targets);
    free(t->statistics);
    free(t->clips);
    probes_free(&t->probes);
    optimizer_free(&t->optimizer);
    gpt_free(&t->gpt);
    dataset_close(t->train_data);
    dataset_close(t->val_data);
    backend_close(&t->backend);
    *t = (Trainer){0};
}
