/* The inspect command: what a token file, a file of tensors, a checkpoint or a run holds; see commands.h. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cjson/cJSON.h>

#include "data/inspect.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"
#include "optim/optimizer.h"
#include "run/commands.h"

/* ---- tensors and checkpoints ------------------------------------------------------------------------------------ */

static const char *plural(int64_t count) {
    return count == 1 ? "" : "s";
}

static Status inspect_safetensors(const char *path) {
    SafetensorsFile file;
    Status status = safetensors_open(&file, path);
    if (status.code) return status;
    int64_t elements = 0;
    char text[128];
    for (int64_t i = 0; i < file.count; i++) {
        printf("%-64s %s\n", file.entries[i].name, safetensors_describe(&file.entries[i], text, sizeof text));
        elements += safetensors_numel(&file.entries[i]);
    }
    printf("%s: %lld tensor%s, %lld elements, %lld bytes\n", path, (long long)file.count, plural(file.count),
           (long long)elements, (long long)file.size);
    safetensors_close(&file);
    return status;
}

/* A line for each checkpoint: where it stands, or what is broken. */
static Status print_checkpoints(const char *run_dir) {
    char pattern[PATH_SIZE];
    FileList list;
    Status status = path_join(pattern, run_dir, "checkpoints/step_*[0-9]");
    if (status.code) return status;
    if (file_glob(pattern, &list).code) {
        printf("no checkpoint yet\n");
        return status;
    }
    for (int64_t i = 0; i < list.count; i++) {
        CheckpointState state;
        Status checkpoint = checkpoint_verify(list.paths[i], &state);
        if (checkpoint.code)
            printf("%s: broken: %s\n", list.paths[i], checkpoint.message);
        else
            printf("%s: intact, %lld tokens seen, on %s in %s\n", list.paths[i], (long long)state.tokens, state.backend,
                   state.precision);
    }
    file_list_free(&list);
    return status;
}

/* ---- clips ------------------------------------------------------------------------------------------------------ */

/* What QK-Clip has done to a head since the run began, summed up from the "clipped" records of metrics.jsonl. gamma is
 * the product of all factors gamma_t = tau / S_t (Kimi K2 report 2025, algorithm 1): how much smaller q·k is for all
 * the clipping, had the optimizer not worked against it. */
typedef struct {
    int64_t first, last; /* steps that clipped the head */
    int64_t times;
    double gamma;
} ClippedHead;

/* A whole number in [0, end), or -1. */
static int64_t index_of(const cJSON *object, const char *name, int64_t end) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < (double)end)) return -1;
    return (int64_t)item->valuedouble;
}

/* A record that is not understood, or of another model, is passed over. */
static void add_clips(ClippedHead *heads, const ModelConfig *m, const cJSON *line) {
    const cJSON *clipped = cJSON_GetObjectItemCaseSensitive(line, "clipped"), *record;
    const int64_t step = index_of(line, "step", INT64_MAX / 2);
    cJSON_ArrayForEach(record, clipped) {
        const int64_t layer = index_of(record, "layer", m->layers), head = index_of(record, "head", m->heads);
        const cJSON *gamma = cJSON_GetObjectItemCaseSensitive(record, "gamma");
        if (step < 0 || layer < 0 || head < 0 || !cJSON_IsNumber(gamma)) continue;
        ClippedHead *h = &heads[layer * m->heads + head];
        if (h->times++ == 0) h->first = step, h->gamma = 1;
        h->last = step;
        h->gamma *= gamma->valuedouble;
    }
}

static void read_clips(ClippedHead *heads, const ModelConfig *m, FILE *metrics) {
    char *text = NULL;
    size_t capacity = 0;
    while (getline(&text, &capacity, metrics) >= 0) {
        if (!strstr(text, "\"clipped\"")) continue;
        cJSON *line = cJSON_Parse(text);
        add_clips(heads, m, line);
        cJSON_Delete(line);
    }
    free(text);
}

static void print_clipped_heads(const ClippedHead *heads, const ModelConfig *m) {
    const int64_t count = m->layers * m->heads;
    int64_t clipped = 0;
    for (int64_t i = 0; i < count; i++) clipped += heads[i].times > 0;
    printf("QK-Clip has clipped %lld of %lld heads\n", (long long)clipped, (long long)count);
    if (clipped > 0) printf("  layer  head  first step  last step  times  product of gamma\n");
    for (int64_t i = 0; i < count; i++) {
        const ClippedHead *h = &heads[i];
        if (h->times == 0) continue;
        printf("  %5lld %5lld %11lld %10lld %6lld  %.4g\n", (long long)(i / m->heads), (long long)(i % m->heads),
               (long long)h->first, (long long)h->last, (long long)h->times, h->gamma);
    }
}

/* A run without metrics has nothing to tell. */
static Status print_clips(const char *run_dir, const ModelConfig *m) {
    char path[PATH_SIZE];
    Status status = path_join(path, run_dir, "metrics.jsonl");
    if (status.code) return status;
    FILE *metrics = fopen(path, "r");
    if (!metrics) return status;
    ClippedHead *heads = calloc((size_t)(m->layers * m->heads), sizeof *heads);
    if (heads) {
        read_clips(heads, m, metrics);
        print_clipped_heads(heads, m);
    } else {
        status = NO_MEMORY("no memory for the clips of %lld heads", (long long)(m->layers * m->heads));
    }
    free(heads);
    fclose(metrics);
    return status;
}

/* ---- what a path is --------------------------------------------------------------------------------------------- */

static Status inspect_run(const CommandLine *line) {
    Config config;
    Status status = command_line_run_config(line, &config);
    if (status.code) return status;
    printf("%s: %s, %lld layer%s, width %lld, %s on the matrices, lr %g, %lld step%s of %lld x %lld tokens\n",
           line->path, config.name, (long long)config.model.layers, plural(config.model.layers),
           (long long)config.model.width, optimizer_name(config.optimizer.matrices), config.optimizer.lr,
           (long long)config.train.steps, plural(config.train.steps), (long long)config.train.batch,
           (long long)config.model.context);
    if (config.qk_clip.enabled && FAILED(status, print_clips(line->path, &config.model))) return status;
    return print_checkpoints(line->path);
}

Status command_inspect(const CommandLine *line) {
    const char *path = line->path;
    char model[PATH_SIZE];
    struct stat info;
    if (stat(path, &info) != 0) return BAD_INPUT("%s: no such file or folder", path);
    if (S_ISDIR(info.st_mode)) {
        Status status = path_join(model, path, "model.safetensors");
        if (status.code) return status;
        return file_exists(model) ? inspect_safetensors(model) : inspect_run(line);
    }
    const char *dot = strrchr(path, '.');
    return dot && strcmp(dot, ".safetensors") == 0 ? inspect_safetensors(path) : inspect_token_file(path, stdout);
}
