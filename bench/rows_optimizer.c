/* Muon: what its step costs beside AdamW's, and how fast Newton-Schulz runs; see rows.h. */
#include <math.h>

#include "bench/rows.h"
#include "base/clock.h"
#include "ops/ops.h"

/* ---- a step of 64k tokens --------------------------------------------------------------------------------------- */

typedef struct {
    const char *name, *options;
    bool quick;
} MuonCase;

static const MuonCase muon_cases[] = {
    {"baby fp32", BABY MUON "precision=fp32", false},
    {"baby bf16", BABY MUON "precision=bf16", true},
    {"124M fp32", GPT2_124M MUON "model.context=256 precision=fp32", false},
    {"124M bf16", GPT2_124M MUON "model.context=256 precision=bf16", false},
};
enum { MUON_CASES = sizeof muon_cases / sizeof muon_cases[0] };

/* Mean seconds of an AdamW step on the gradients that the session's last step left. */
static Status time_adamw(Session *s, double *seconds) {
    enum { STEPS = 4 };
    Trainer *t = &s->trainer;
    OptimizerConfig config = t->config.optimizer;
    Optimizer adamw;
    Status status;
    config.matrices = OPTIMIZER_ADAMW;
    if (FAILED(status, optimizer_plan(&adamw, &t->gpt.params, &config, &t->backend))) return status;
    if (FAILED(status, optimizer_allocate(&adamw))) goto done;
    StepNumbers numbers = {.update = 1, .step = 1, .lr = 1e-6, .grad_scale = 1};
    optimizer_step(&adamw, &numbers, NULL, NULL); /* touches its memory for the first time */
    backend_sync(&t->backend);
    const double start = clock_seconds();
    for (numbers.update = 2; numbers.update < 2 + STEPS; numbers.update++) optimizer_step(&adamw, &numbers, NULL, NULL);
    status = backend_sync(&t->backend);
    *seconds = (clock_seconds() - start) / STEPS;
done:
    optimizer_free(&adamw);
    return status;
}

/* Forward and backward are proportional to the tokens, an optimizer's step is not: both are measured, and what a step
 * of 64k tokens would take with either optimizer is computed from them. */
static Status measure_muon(Bench *b, const MuonCase *c) {
    const double tokens = 65536;
    Session s;
    StepMeasurement m;
    double adamw = 0;
    Status status = session_open(&s, c->options);
    if (status.code) return status;
    if (FAILED(status, session_measure(&s, bench_budget(b), &m))) goto done;
    if (FAILED(status, time_adamw(&s, &adamw))) goto done;

    const double a_token = (m.seconds.forward + m.seconds.backward + m.seconds.rest) / session_tokens(&s);
    Result r = {.row = b->row, .of = "AdamW's 64k step", .spread = nan(""), .goal = {AT_MOST, .03}};
    snprintf(r.name, sizeof r.name, "%s", c->name);
    r.ratio = (m.seconds.optimizer - adamw) / (tokens * a_token + adamw);
    r.info[0] = (Info){"ms muon", 1e3 * m.seconds.optimizer};
    r.info[1] = (Info){"ms adamw", 1e3 * adamw};
    r.info[2] = (Info){"us/token forward and backward", 1e6 * a_token};
    r.info[3] = (Info){"of the FLOPs",
                       optimizer_step_flops(&s.trainer.optimizer) / tokens / gpt_flops_per_token(&s.trainer.gpt)};
    table_add(&b->table, r);
done:
    session_close(&s);
    return status;
}

Status row_muon(Bench *b) {
    Status status = status_ok();
    for (int i = 0; i < MUON_CASES && !status.code; i++)
        if (!b->quick || muon_cases[i].quick) status = measure_muon(b, &muon_cases[i]);
    return status;
}

/* ---- Newton-Schulz ---------------------------------------------------------------------------------------------- */

/* Matrices of one role of the two models, as many at once as a pass of the optimizer takes. */
typedef struct {
    const char *name;
    int64_t layers, rows, columns;
    bool quick;
} MatrixShape;

static const MatrixShape matrix_shapes[] = {
    {"baby q", 6, 384, 384, true},
    {"baby up", 2, 1536, 384, true},
    {"124M q", 2, 768, 768, false},
    {"124M up", 1, 3072, 768, false},
};
enum { MATRIX_SHAPES = sizeof matrix_shapes / sizeof matrix_shapes[0] };

/* Of the plain form, whatever the implementation saves: A = X Xt, A A and B X in each of 5 iterations. */
static double plain_flops(const MatrixShape *s) {
    const double n = (double)s->rows, m = (double)s->columns, k = fmin(n, m);
    return (double)s->layers * 5 * (4 * n * m * k + 2 * k * k * k);
}

static Result time_orthogonalize(const Orthogonalizer *o, OrthogonalizeBuffers buffers, Ceiling *c, double flops,
                                 double seconds) {
    Samples ratio = {0}, rate = {0};
    orthogonalize(o, buffers);
    ceiling_sample(c);
    ceiling_take(c);
    const double begin = clock_seconds();
    while (ratio.count < 3 || (ratio.count < REPETITIONS_MAX && clock_seconds() - begin < seconds)) {
        int calls = 0;
        const double start = clock_seconds();
        do {
            orthogonalize(o, buffers); /* of what the last call left: as much work as any other matrix */
            backend_sync(o->be);
            calls++;
        } while (clock_seconds() - start < 0.1);
        samples_add(&rate, calls * flops / (clock_seconds() - start));
        ceiling_sample(c);
        samples_add(&ratio, rate.values[rate.count - 1] / ceiling_take(c));
    }
    return (Result){.ratio = samples_median(&ratio),
                    .spread = samples_spread(&ratio),
                    .of = "ceiling",
                    .goal = {AT_LEAST, .70},
                    .info = {{"GFLOP/s in the plain form", samples_median(&rate) / 1e9}}};
}

static Status measure_shape(Bench *b, Backend *be, Ceiling *c, const MatrixShape *shape, const char *precision) {
    const int64_t sizes[4] = {shape->layers, 1, shape->rows, shape->columns};
    MuonConfig config = {
        .orthogonalize = ORTHOGONALIZE_NEWTON_SCHULZ, .coefficients = {.set = "muon"}, .iterations = 5};
    Orthogonalizer o;
    Status status = orthogonalizer_plan(&o, &config, be);
    if (status.code) return status;
    Arena arena = arena_measure("Newton-Schulz");
    orthogonalizer_layout(&o, &arena, sizes);
    if (FAILED(status, arena_allocate(&arena, be))) return status;
    OrthogonalizeBuffers buffers = orthogonalizer_layout(&o, &arena, sizes);
    if (FAILED(status, bench_fill_random(be, buffers.x, 1.0f))) goto done;
    Result r = time_orthogonalize(&o, buffers, c, plain_flops(shape), bench_budget(b) / 2);
    r.row = b->row;
    snprintf(r.name, sizeof r.name, "%s %s", precision, shape->name);
    table_add(&b->table, r);
    status = backend_sync(be);
done:
    arena_free(&arena);
    return status;
}

Status row_newton_schulz(Bench *b) {
    Status status = status_ok();
    for (int p = 0; p < PRECISIONS && !status.code; p++) {
        Backend be;
        Ceiling ceiling = {0};
        if (FAILED(status, bench_open_backend(&be, precisions[p]))) return status;
        if (!FAILED(status, backend_reserve(&be, (OpLimits){.width = 3072}))) status = ceiling_open(&ceiling, &be);
        for (int i = 0; i < MATRIX_SHAPES && !status.code; i++)
            if (!b->quick || matrix_shapes[i].quick)
                status = measure_shape(b, &be, &ceiling, &matrix_shapes[i], precisions[p]);
        ceiling_close(&ceiling);
        backend_close(&be);
    }
    return status;
}
