/* What watching and keeping costs: MaxLogit, probes, spectra, metrics, checkpoints, and memory beside its plan; see
 * rows.h. */
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/rows.h"
#include "base/clock.h"
#include "ops/ops.h"
#include "run/report.h"

/* ---- MaxLogit --------------------------------------------------------------------------------------------------- */

/* The attention of every layer on the activations that are there, of a model whose attention reads qkv itself. */
static double time_attention(Gpt *g, Tensor max_logit, Tensor max_abs) {
    const AttentionParams params = {.scale = (float)(1 / sqrt((double)g->D))};
    const double start = clock_seconds();
    for (int64_t l = 0; l < g->L; l++) {
        const LayerActivations *a = &g->layers[l];
        Tensor qkv = tensor_as_4d(a->qkv, g->B, g->T, g->H + 2 * g->K, g->D);
        Tensor q = tensor_slice(qkv, 2, 0, g->H), k = tensor_slice(qkv, 2, g->H, g->K);
        op_attention(g->be, tensor_as_4d(a->att, g->B, g->T, g->H, g->D), a->lse, max_logit, max_abs, q, k,
                     tensor_slice(qkv, 2, g->H + g->K, g->K), params);
    }
    backend_sync(g->be);
    return clock_seconds() - start;
}

/* Attention with and without the maxima, in turns that change places: the difference over a step. */
static void measure_max_logit(Bench *b, Session *s, double step_seconds) {
    enum { ROUNDS = 40 };
    Trainer *t = &s->trainer;
    Gpt *g = &t->gpt;
    const Tensor max_logit = tensor_index(g->max_logit, 0), max_abs = tensor_index(g->max_abs, 0), none = tensor_none();
    const double micro_batches = (double)(t->config.train.batch / t->config.train.micro_batch);
    Samples watched = {0}, unwatched = {0};
    for (int round = 0; round < ROUNDS; round++) {
        if (round % 2) samples_add(&watched, time_attention(g, max_logit, max_abs));
        samples_add(&unwatched, time_attention(g, none, none));
        if (round % 2 == 0) samples_add(&watched, time_attention(g, max_logit, max_abs));
    }
    const double seconds = micro_batches * (samples_median(&watched) - samples_median(&unwatched));
    Result r = {.row = b->row, .name = "max logit", .of = "step", .spread = nan(""), .goal = {AT_MOST, .01}};
    r.ratio = seconds / step_seconds;
    r.info[0] = (Info){"ms a step", 1e3 * seconds};
    r.info[1] = (Info){"of attention", samples_median(&watched) / samples_median(&unwatched) - 1};
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

/* One step in which this alone is measured, or, for PROBE_COUNT, nothing that is due: what the host spends on it. */
static Status time_probe(Session *s, ProbeId which, double *seconds) {
    StepSeconds ignored = {0};
    probes_force(&s->trainer.probes, which);
    Status status = session_step(s, &ignored);
    *seconds = s->trainer.phases.seconds[PHASE_PROBES];
    probes_force(&s->trainer.probes, PROBE_COUNT);
    return status;
}

/* All of them, each at its interval, over a step; what is kept up in every step is part of it. */
static Status measure_probes(Bench *b, Session *s, double step_seconds) {
#define X(ID, name, every, help) "ms " #name,
    static const char *const titles[PROBE_COUNT] = {PROBE_LIST(X)};
#undef X
    Result r = {.row = b->row, .name = "probes", .of = "run time", .spread = nan(""), .goal = {AT_MOST, .03}};
    double always = 0, total = 0;
    int used = 0;
    Status status = time_probe(s, PROBE_COUNT, &always);
    total += always;
    r.info[used++] = (Info){"ms every step", 1e3 * always};
    for (int which = 0; which < PROBE_COUNT && !status.code; which++) {
        const int64_t every = probe_interval(&s->trainer.probes, (ProbeId)which);
        double seconds = 0;
        if (every == 0) continue;
        status = time_probe(s, (ProbeId)which, &seconds);
        total += (seconds - always) / (double)every;
        if (used < INFO_MAX) r.info[used++] = (Info){titles[which], 1e3 * (seconds - always)};
    }
    r.ratio = total / step_seconds;
    if (!status.code) table_add(&b->table, r);
    return status;
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
    if (FAILED(status, time_probe(&s, PROBE_SPECTRUM, &spectra))) goto done;
    if (FAILED(status, time_metrics(&s, &metrics))) goto done;
    if (FAILED(status, time_checkpoint(&s, &checkpoint))) goto done;

    const double step = step_total(m.seconds);
    measure_max_logit(b, &s, step);
    if (FAILED(status, measure_probes(b, &s, step))) goto done;
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
static _Noreturn void become(const char *program, char *options) {
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
    snprintf(options, sizeof options, "device=cpu %s name=%s runs_dir=%s train.steps=2 train.eval_batches=1",
             c->options, name, b->folder);
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
