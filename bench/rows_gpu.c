/* Training steps on a GPU, each configuration beside its prediction (run/roofline.h); see rows.h.
 *
 * The ratio is the model's FLOP/s over the rate of a large product, measured on the same GPU just before. Steps are
 * taken as ./train_gpt takes them: the host waits once in each, so only their total is timed, and the optimizer's share
 * by the GPU itself.
 */
#include <math.h>

#include "bench/rows.h"
#include "run/roofline.h"
#include "device/device.h"
#include "train_gpt.h"

typedef struct {
    const char *name, *config, *options;
} GpuCase;

/* clang-format off */
static const GpuCase cases[] = {
    {"124M bf16 muon",       "configs/gpt2-124m.json", ""},
    {"124M bf16 adamw",      "configs/gpt2-124m.json", "optimizer.matrices=adamw"},
    {"124M bf16 context 4k", "configs/gpt2-124m.json", "model.context=4096 train.batch=16 train.micro_batch=16"},
    {"124M bf16 gqa",        "configs/gpt2-124m.json", "model.preset=llama model.kv_heads=4"},
    {"124M fp32 muon",       "configs/gpt2-124m.json", "precision=fp32 train.batch=16 train.micro_batch=16"},
    {"baby bf16 adamw",      "configs/gpt2-baby.json", ""},
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof cases[0], WARM_UP = 3, LEAST_STEPS = 5 };

/* GPU_COUNT: no prediction for this one. */
static GpuKind kind_of(const Backend *be) {
    int kind = 0;
    while (kind < GPU_COUNT && !strstr(be->description, gpus[kind].name)) kind++;
    return (GpuKind)kind;
}

static Status predict(const Config *config, GpuKind kind, Roofline *r) {
    Trainer t;
    Status status = trainer_plan_for_gpu(&t, config, &gpus[kind]);
    if (!status.code) status = roofline_predict(&t, train_step, r);
    trainer_free(&t);
    return status;
}

/* Seconds of a step; each of `rounds` gives one. */
static Status time_steps(Session *s, double budget, Samples *rounds) {
    StepSeconds ignored = {0};
    Status status = status_ok();
    for (int i = 0; i < WARM_UP; i++)
        if (FAILED(status, session_step(s, &ignored))) return status;
    const double begin = clock_seconds();
    while (rounds->count < 2 || (rounds->count < REPETITIONS_MAX && clock_seconds() - begin < budget)) {
        if (FAILED(status, backend_sync(&s->trainer.backend))) return status;
        const double start = clock_seconds();
        for (int i = 0; i < LEAST_STEPS; i++)
            if (FAILED(status, session_step(s, &ignored))) return status;
        if (FAILED(status, backend_sync(&s->trainer.backend))) return status;
        samples_add(rounds, (clock_seconds() - start) / LEAST_STEPS);
    }
    return status;
}

static void add_result(Bench *b, const GpuCase *c, const Session *s, double peak, const Samples *rounds,
                       const Roofline *predicted) {
    const double seconds = samples_median(rounds), tokens = session_tokens(s);
    const double flops = tokens * gpt_flops_per_token(&s->trainer.gpt);
    Result r = {.row = b->row, .of = "measured peak", .ratio = flops / seconds / peak, .goal = {NOT_COMPARED, nan("")}};
    int n = 0;
    snprintf(r.name, sizeof r.name, "%s", c->name);
    r.spread = samples_spread(rounds);
    r.info[n++] = (Info){"tokens/s", tokens / seconds};
    r.info[n++] = (Info){"ms a step", 1e3 * seconds};
    r.info[n++] = (Info){"ms optimizer", 1e3 * s->optimizer_seconds};
    r.info[n++] = (Info){"TFLOP/s peak", peak / 1e12};
    if (predicted->tokens > 0) {
        r.info[n++] = (Info){"MFU by data sheet", roofline_mfu(predicted, seconds)};
        r.info[n++] = (Info){"tokens/s expected", predicted->tokens / predicted->step.expected};
        r.info[n++] = (Info){"x expected time", seconds / predicted->step.expected};
        r.info[n++] = (Info){"x bound", seconds / predicted->step.bound};
    }
    CHECK(n <= INFO_MAX, "%d fields", n);
    table_add(&b->table, r);
}

static Status measure(Bench *b, const GpuCase *c) {
    Session s;
    Config config;
    Samples rounds = {0};
    Roofline predicted = {0};
    char options[256];
    snprintf(options, sizeof options, "%s device=cuda", c->options);
    Status status = session_config(&config, c->config, options);
    if (status.code || FAILED(status, session_open_gpu(&s, &config))) return status;
    const GpuKind kind = kind_of(&s.trainer.backend);
    const double peak = backend_measure_peak(&s.trainer.backend);
    if (kind < GPU_COUNT && FAILED(status, predict(&config, kind, &predicted))) goto done;
    if (FAILED(status, time_steps(&s, bench_budget(b), &rounds))) goto done;
    add_result(b, c, &s, peak, &rounds, &predicted);
done:
    session_close(&s);
    return status;
}

/* Names the GPU first: bench's own head line is about the processor. */
static Status print_device(void) {
    Backend be;
    char note[256];
    Status status = device_open(&be, (BackendRequest){.device = "cuda", .precision = "auto"}, note, sizeof note);
    if (status.code) return status;
    printf("%s\n", be.description);
    backend_close(&be);
    return status;
}

Status row_gpu(Bench *b) {
    Status status = print_device();
    for (int i = 0; i < CASES && !status.code; i++) status = measure(b, &cases[i]);
    return status;
}
