/* Training steps: the two models of the goals, and a curve over each size of the model; see rows.h.
 *
 * The ratio is model FLOP/s (6 N + 6 L C T a token) over the ceiling, for all of them: along a curve it falls where
 * time grows faster than FLOPs.
 */
#include <math.h>

#include "bench/rows.h"

typedef struct {
    const char *row, *name, *options;
    double goal; /* 0: none */
    bool quick;
} ModelCase;

#define FP32 "precision=fp32 "
#define BF16 "precision=bf16 "

/* Curves are in the precision that users get by default; what the curve varies comes last, and the last value counts.
 */
#define CURVE BABY ADAMW "train.batch=8 "

/* clang-format off */
static const ModelCase cases[] = {
    {"baby", "fp32 adamw",    BABY FP32 ADAMW,                             .75, true},
    {"baby", "bf16 adamw",    BABY BF16 ADAMW,                             .75, true},
    {"baby", "fp32 muon",     BABY FP32 MUON,                              0,   true},
    {"baby", "bf16 muon",     BABY BF16 MUON,                              0,   true},
    {"gpt2", "fp32 4x64",     GPT2_124M FP32 ADAMW "model.context=64",     .65, false},
    {"gpt2", "bf16 4x64",     GPT2_124M BF16 ADAMW "model.context=64",     .65, true},
    {"gpt2", "fp32 4x1024",   GPT2_124M FP32 ADAMW "model.context=1024",   .65, false},
    {"gpt2", "bf16 4x1024",   GPT2_124M BF16 ADAMW "model.context=1024",   .65, false},
    {"width", "128",          CURVE "model.width=128 model.heads=2",       0,   false},
    {"width", "256",          CURVE "model.width=256 model.heads=4",       0,   false},
    {"width", "384",          CURVE,                                       0,   false},
    {"width", "512",          CURVE "model.width=512 model.heads=8",       0,   false},
    {"width", "768",          CURVE "model.width=768 model.heads=12",      0,   false},
    {"depth", "2",            CURVE "model.layers=2",                      0,   false},
    {"depth", "6",            CURVE,                                       0,   false},
    {"depth", "12",           CURVE "model.layers=12",                     0,   false},
    {"depth", "24",           CURVE "model.layers=24",                     0,   false},
    {"context", "64 x32",     CURVE "model.context=64 train.batch=32",     0,   false},
    {"context", "256 x8",     CURVE,                                       0,   false},
    {"context", "512 x4",     CURVE "model.context=512 train.batch=4",     0,   false},
    {"context", "1024 x2",    CURVE "model.context=1024 train.batch=2",    0,   false},
    {"context", "2048 x1",    CURVE "model.context=2048 train.batch=1",    0,   false},
    {"batch", "1",            CURVE "train.batch=1",                       0,   false},
    {"batch", "2",            CURVE "train.batch=2",                       0,   false},
    {"batch", "8",            CURVE,                                       0,   false},
    {"batch", "32",           CURVE "train.batch=32",                      0,   false},
    {"threads", "1",          CURVE "threads=1",                           0,   false},
    {"threads", "2",          CURVE "threads=2",                           0,   false},
    {"vocabulary", "256",     CURVE,                                       0,   false},
    {"vocabulary", "4096",    CURVE "model.vocab=4096",                    0,   false},
    {"vocabulary", "50257",   CURVE "model.vocab=50257",                   0,   false},
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof cases[0] };

/* Time per token over that of the row's first case: beside the growth of its FLOPs. */
typedef struct {
    double seconds, flops;
} PerToken;

static void describe(Result *r, const Session *s, const StepMeasurement *m, PerToken here, PerToken first) {
    int n = 0;
    r->info[n++] = (Info){"tokens/s", samples_median(&m->rate)};
    r->info[n++] = (Info){"GFLOP/s ceiling", samples_median(&m->ceiling) / 1e9};
    r->info[n++] = (Info){"ms forward", 1e3 * m->seconds.forward};
    r->info[n++] = (Info){"backward", 1e3 * m->seconds.backward};
    r->info[n++] = (Info){"optimizer", 1e3 * m->seconds.optimizer};
    r->info[n++] = (Info){"rest", 1e3 * m->seconds.rest};
    if (!strcmp(r->row, "baby") || !strcmp(r->row, "gpt2")) return;
    r->info[n++] = (Info){"x time a token", here.seconds / first.seconds};
    r->info[n++] = (Info){"x FLOPs", here.flops / first.flops};
    CHECK(n <= INFO_MAX && session_tokens(s) > 0, "%d fields", n);
}

static Status measure(Bench *b, const ModelCase *c, PerToken *first) {
    Session s;
    StepMeasurement m;
    Status status = session_open(&s, c->options);
    if (status.code) return status;
    if (FAILED(status, session_measure(&s, bench_budget(b), &m))) goto done;
    const PerToken here = {1 / samples_median(&m.rate), gpt_flops_per_token(&s.trainer.gpt)};
    if (first->seconds == 0) *first = here;
    Result r = {.row = c->row, .ratio = samples_median(&m.mfu), .spread = samples_spread(&m.mfu), .of = "ceiling"};
    snprintf(r.name, sizeof r.name, "%s", c->name);
    r.goal = (Goal){AT_LEAST, c->goal > 0 ? c->goal : nan("")};
    describe(&r, &s, &m, here, *first);
    table_add(&b->table, r);
done:
    session_close(&s);
    return status;
}

Status row_models(Bench *b) {
    PerToken first = {0};
    Status status = status_ok();
    for (int i = 0; i < CASES && !status.code; i++)
        if (!strcmp(cases[i].row, b->row) && (!b->quick || cases[i].quick)) status = measure(b, &cases[i], &first);
    return status;
}
