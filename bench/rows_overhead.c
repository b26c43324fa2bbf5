/* What watching and keeping costs: MaxLogit, spectra, metrics, checkpoints, and memory beside its plan; see rows.h. */
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/rows.h"
#include "core/clock.h"
#include "core/ops.h"
#include "run/report.h"

/* ---- MaxLogit --------------------------------------------------------------------------------------------------- */

enum { TILE_ROW = 64, TILE_ROWS_IN_L1 = 64 };

static int32_t float_bits(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The maximum that softmax needs of every row of logits, in the integer order that keeps NaN. */
static int32_t row_maxima(const float *logits) {
    int32_t total = 0;
    for (int row = 0; row < TILE_ROWS_IN_L1; row++) {
        int32_t largest = INT32_MIN;
#pragma omp simd reduction(max : largest)
        for (int i = 0; i < TILE_ROW; i++) {
            int32_t bits = float_bits(logits[row * TILE_ROW + i]), ordered = bits ^ ((bits >> 31) & INT32_MAX);
            largest = ordered > largest ? ordered : largest;
        }
        total ^= largest;
    }
    return total;
}

/* The same, and the largest magnitude beside it: what MaxLogit adds to the pass. */
static int32_t row_maxima_and_magnitudes(const float *logits) {
    int32_t total = 0, magnitude = 0, head = INT32_MIN;
    for (int row = 0; row < TILE_ROWS_IN_L1; row++) {
        int32_t largest = INT32_MIN;
#pragma omp simd reduction(max : largest, magnitude)
        for (int i = 0; i < TILE_ROW; i++) {
            int32_t bits = float_bits(logits[row * TILE_ROW + i]), ordered = bits ^ ((bits >> 31) & INT32_MAX);
            int32_t positive = bits & INT32_MAX;
            largest = ordered > largest ? ordered : largest;
            magnitude = positive > magnitude ? positive : magnitude;
        }
        head = largest > head ? largest : head;
        total ^= largest;
    }
    return total ^ magnitude ^ head;
}

/* Seconds per logit on one thread, the tile in the L1 cache; the least of some rounds. */
static double seconds_per_logit(int32_t (*pass)(const float *)) {
    enum { PASSES = 4000, ROUNDS = 20 };
    static float logits[TILE_ROW * TILE_ROWS_IN_L1];
    volatile int32_t sink = 0;
    double least = HUGE_VAL;
    for (int i = 0; i < TILE_ROW * TILE_ROWS_IN_L1; i++) logits[i] = (float)((i * 7919) % 1000 - 500);
    for (int round = 0; round < ROUNDS; round++) {
        const double start = clock_seconds();
        for (int i = 0; i < PASSES; i++) {
            logits[i % TILE_ROW] += 1; /* else the compiler may do one pass for all */
            sink = sink ^ pass(logits);
        }
        least = fmin(least, (clock_seconds() - start) / PASSES / (TILE_ROW * TILE_ROWS_IN_L1));
    }
    return least;
}

/* Attention has no variant without MaxLogit to compare with. So this is an estimate: the time by which the second
 * maximum lengthens a pass over logits in the L1 cache, times the causal pairs of a step. */
static void estimate_max_logit(Bench *b, const Session *s, double step_seconds) {
    const Trainer *t = &s->trainer;
    const Gpt *g = &t->gpt;
    const double pairs = (double)(t->config.train.batch * g->L * g->H) * (double)(g->T * (g->T + 1)) / 2;
    const double plain = seconds_per_logit(row_maxima), both = seconds_per_logit(row_maxima_and_magnitudes);
    const double seconds = fmax(0, both - plain) * pairs / t->backend.threads;
    Result r = {.row = b->row, .name = "max logit, estimate", .of = "step", .spread = nan(""), .goal = {AT_MOST, .01}};
    r.ratio = seconds / step_seconds;
    r.info[0] = (Info){"ms a step", 1e3 * seconds};
    r.info[1] = (Info){"ps a logit", 1e12 * (both - plain)};
    r.info[2] = (Info){"ps softmax's maximum", 1e12 * plain};
    table_add(&b->table, r);
}

/* ---- spectra, metrics, checkpoints ------------------------------------------------------------------------------ */

/* A cost that comes every so many steps, as a share of those steps' time. */
static void add_cost(Bench *b, const char *name, double seconds, int64_t every, double step_seconds, double goal) {
    Result r = {.row = b->row, .of = "run time", .spread = nan(""), .goal = {AT_MOST, goal}};
    snprintf(r.name, sizeof r.name, "%s", name);
    r.ratio = seconds / ((double)every * step_seconds);
    r.info[0] = (Info){"ms", 1e3 * seconds};
    r.info[1] = (Info){"steps apart", (double)every};
    r.info[2] = (Info){"ms a step", 1e3 * step_seconds};
    table_add(&b->table, r);
}

/* Weights, momenta and updates of one step, on the gradients that are there. */
static Status time_spectra(Session *s, double *seconds) {
    Trainer *t = &s->trainer;
    t->probe_seconds = 0;
    spectrum_probe_begin(t->spectrum);
    optimizer_step(&t->optimizer, ++t->updates, 1e-6, 1, trainer_observe_update, t);
    trainer_measure_weights(t);
    *seconds = t->probe_seconds;
    return backend_sync(&t->backend);
}

static Status time_metrics(Session *s, double *seconds) {
    enum { LINES = 100 };
    StepReport r = {.loss = 1, .applied = true, .val_loss = nan(""), .step_seconds = 1, .optimizer_seconds = 1};
    Trainer *t = &s->trainer;
    t->peak_flops = 1;
    const double start = clock_seconds();
    for (int i = 0; i < LINES; i++) {
        Status status = report_step(t, &r);
        if (status.code) return status;
    }
    *seconds = (clock_seconds() - start) / LINES;
    return status_ok();
}

static Status time_checkpoint(Session *s, double *seconds) {
    const double start = clock_seconds();
    Status status = trainer_save_checkpoint(&s->trainer);
    *seconds = clock_seconds() - start;
    return status;
}

Status row_overhead(Bench *b) {
    Session s;
    StepMeasurement m;
    double spectra = 0, metrics = 0, checkpoint = 0;
    char options[PATH_SIZE + 256];
    snprintf(options, sizeof options, BABY MUON "runs_dir=%s", b->folder);
    Status status = session_open(&s, options);
    if (status.code) return status;
    const Config *c = &s.trainer.config;
    if (FAILED(status, session_measure(&s, bench_budget(b), &m))) goto done;
    if (FAILED(status, trainer_create_run(&s.trainer))) goto done;
    if (FAILED(status, time_spectra(&s, &spectra))) goto done;
    if (FAILED(status, time_metrics(&s, &metrics))) goto done;
    if (FAILED(status, time_checkpoint(&s, &checkpoint))) goto done;

    const double step = step_total(m.seconds);
    estimate_max_logit(b, &s, step);
    add_cost(b, "spectra", spectra, c->probe.spectrum_every, step, .01);
    add_cost(b, "metrics", metrics, 1, step, .001);
    add_cost(b, "checkpoint", checkpoint, c->checkpoint.every, step, .005);
done:
    session_close(&s);
    return status;
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name, *options;
} MemoryCase;

static const MemoryCase memory_cases[] = {
    {"baby fp32 adamw", BABY ADAMW "precision=fp32"},
    {"baby fp32 muon", BABY MUON "precision=fp32"},
    {"baby bf16 muon", BABY MUON "precision=bf16"},
    {"124M bf16 adamw 4x64", GPT2_124M ADAMW "model.context=64 precision=bf16 probe.spectrum_every=0"},
};
enum { MEMORY_CASES = sizeof memory_cases / sizeof memory_cases[0], ARGUMENTS_MAX = 32 };

/* In the child: becomes the program, silent. */
static noreturn void become(const char *program, char *options) {
    char *arguments[ARGUMENTS_MAX] = {(char *)(uintptr_t)program}, *rest = options;
    int count = 1;
    for (char *word = strtok_r(options, " ", &rest); word && count < ARGUMENTS_MAX - 1;
         word = strtok_r(NULL, " ", &rest))
        arguments[count++] = word;
    const int silence = open("/dev/null", O_WRONLY);
    if (silence >= 0) dup2(silence, STDOUT_FILENO);
    execv(program, arguments);
    _exit(127);
}

/* Two steps of a run of its own, and the most memory that the process had at once. A child begins with its parent's
 * resident memory on its account: little, because no session is open here. */
static Status run_and_watch(const char *program, char *options, int64_t *peak) {
    struct rusage usage;
    int status;
    const pid_t child = fork();
    if (child == 0) become(program, options);
    if (child < 0 || wait4(child, &status, 0, &usage) != child)
        return status_error(STATUS_IO, "%s cannot be started", program);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return status_error(STATUS_IO, "%s failed; make builds it", program);
    *peak = (int64_t)usage.ru_maxrss * 1024;
    return status_ok();
}

/* The sum of the plan in the first line of the run's metrics. */
static Status read_plan(const char *run_dir, double *plan) {
    char path[PATH_SIZE], *text;
    int64_t size;
    Status status = path_join(path, run_dir, "metrics.jsonl");
    if (status.code) return status;
    if (FAILED(status, file_read(path, 1 << 24, &text, &size))) return status;
    text[strcspn(text, "\n")] = '\0';
    cJSON *line = cJSON_Parse(text);
    const cJSON *item;
    *plan = 0;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(line, "memory")) *plan +=
        strcmp(item->string, "optimizer_state") ? item->valuedouble : 0; /* a part of "optimizer" */
    cJSON_Delete(line);
    free(text);
    return *plan > 0 ? status : status_error(STATUS_BAD_INPUT, "%s plans no memory", path);
}

static Status measure_memory(Bench *b, const MemoryCase *c, int number) {
    char options[PATH_SIZE + 512], name[24], run_dir[PATH_SIZE];
    int64_t peak = 0;
    double plan = 0;
    snprintf(name, sizeof name, "memory%d", number);
    snprintf(options, sizeof options, "%s name=%s runs_dir=%s train.steps=2 train.eval_batches=1", c->options, name,
             b->folder);
    Status status = path_join(run_dir, b->folder, name);
    if (status.code) return status;
    if (FAILED(status, run_and_watch(b->program, options, &peak))) return status;
    if (FAILED(status, read_plan(run_dir, &plan))) return status;
    Result r = {.row = b->row, .of = "plan", .ratio = (double)peak / plan, .spread = nan(""), .goal = {AT_MOST, 1.1}};
    snprintf(r.name, sizeof r.name, "%s", c->name);
    r.info[0] = (Info){"MiB peak", (double)peak / 0x1p20};
    r.info[1] = (Info){"MiB planned", plan / 0x1p20};
    table_add(&b->table, r);
    return folder_remove(run_dir);
}

Status row_memory(Bench *b) {
    Status status = status_ok();
    for (int i = 0; i < MEMORY_CASES && !status.code; i++) status = measure_memory(b, &memory_cases[i], i);
    return status;
}
