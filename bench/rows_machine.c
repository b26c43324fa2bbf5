/* What the machine can do: matrix products and memory traffic; see rows.h. */
#include <math.h>

#include "bench/rows.h"
#include "base/clock.h"
#include "ops/ops.h"

const char *const precisions[PRECISIONS] = {"fp32", "bf16"};

double bench_budget(const Bench *b) {
    return b->quick ? 2 : 4;
}

/* ---- the ceiling ------------------------------------------------------------------------------------------------ */

/* The two precisions take turns, so that both see the same minutes. */
Status row_gemm(Bench *b) {
    Backend backends[PRECISIONS] = {0};
    Ceiling ceilings[PRECISIONS] = {0};
    Samples rates[PRECISIONS] = {0};
    Status status = status_ok();
    for (int p = 0; p < PRECISIONS; p++) {
        if (FAILED(status, bench_open_backend(&backends[p], precisions[p]))) goto done;
        if (FAILED(status, ceiling_open(&ceilings[p], &backends[p]))) goto done;
    }
    for (int round = 0; round < 10 * PRECISIONS; round++)
        samples_add(&rates[round % PRECISIONS], ceiling_sample(&ceilings[round % PRECISIONS]));
    for (int p = 0; p < PRECISIONS; p++) {
        Result r = {
            .row = b->row, .ratio = samples_median(&rates[p]) / samples_best(&rates[p]), .of = "its best sample"};
        snprintf(r.name, sizeof r.name, "%s square", precisions[p]);
        r.spread = samples_spread(&rates[p]);
        r.goal.value = nan("");
        r.info[0] = (Info){"GFLOP/s", samples_median(&rates[p]) / 1e9};
        r.info[1] = (Info){"GFLOP/s best", samples_best(&rates[p]) / 1e9};
        r.info[2] = (Info){"side", (double)ceilings[p].side};
        table_add(&b->table, r);
    }
done:
    for (int p = 0; p < PRECISIONS; p++) {
        ceiling_close(&ceilings[p]);
        backend_close(&backends[p]);
    }
    return status;
}

/* ---- the models' products --------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    int64_t rows, in, out; /* N, I, O */
    bool quick;
} LinearShape;

static const LinearShape linear_shapes[] = {
    {"baby qkv", 4096, 384, 1152, true},      {"baby out", 4096, 384, 384, false},
    {"baby up", 4096, 384, 1536, true},       {"baby down", 4096, 1536, 384, false},
    {"baby head", 4096, 384, 256, false},     {"124M qkv", 4096, 768, 2304, false},
    {"124M out", 4096, 768, 768, false},      {"124M up", 4096, 768, 3072, false},
    {"124M down", 4096, 3072, 768, false},    {"124M head", 512, 768, 50257, false},
    {"124M qkv 4x64", 256, 768, 2304, false},
};
enum { LINEAR_SHAPES = sizeof linear_shapes / sizeof linear_shapes[0] };

typedef struct {
    Tensor x, w, out, dw;
} Linear;

static Linear layout_linear(Arena *arena, DType t, const LinearShape *s) {
    return (Linear){.x = arena_take_2d(arena, t, s->rows, s->in),
                    .w = arena_take_2d(arena, t, s->out, s->in),
                    .out = arena_take_2d(arena, t, s->rows, s->out),
                    .dw = arena_take_2d(arena, DTYPE_F32, s->out, s->in)};
}

enum { FORWARD, GRAD_INPUT, GRAD_WEIGHT, DIRECTIONS };

/* The gradients take turns at `out`, which holds finite numbers after the first forward. */
static void run_linear(Backend *be, const Linear *l, int direction) {
    if (direction == FORWARD) op_linear(be, l->out, l->x, l->w, tensor_none(), tensor_none());
    if (direction == GRAD_INPUT) op_linear_grad_input(be, l->x, l->out, l->w);
    if (direction == GRAD_WEIGHT) op_linear_grad_weight(be, l->dw, tensor_none(), l->out, l->x, GRADIENT_SET);
}

/* Mean seconds of a call, over a twentieth of a second. */
static double time_linear(Backend *be, const Linear *l, int direction) {
    int calls = 0;
    const double start = clock_seconds();
    do {
        run_linear(be, l, direction);
        backend_sync(be);
        calls++;
    } while (clock_seconds() - start < 0.05);
    return (clock_seconds() - start) / calls;
}

static Result compare_linear(Backend *be, const Linear *l, Ceiling *c, double flops) {
    enum { ROUNDS = 5 };
    Samples total = {0}, single[DIRECTIONS] = {0};
    for (int d = 0; d < DIRECTIONS; d++) run_linear(be, l, d);
    bench_fill_random(be, l->x, 0.5f); /* the gradient has overwritten it */
    ceiling_sample(c);
    ceiling_take(c);
    for (int round = 0; round < ROUNDS; round++) {
        double seconds[DIRECTIONS];
        for (int d = 0; d < DIRECTIONS; d++) seconds[d] = time_linear(be, l, d);
        ceiling_sample(c);
        const double ceiling = ceiling_take(c);
        samples_add(&total, 3 * flops / (seconds[FORWARD] + seconds[GRAD_INPUT] + seconds[GRAD_WEIGHT]) / ceiling);
        for (int d = 0; d < DIRECTIONS; d++) samples_add(&single[d], flops / seconds[d] / ceiling);
    }
    return (Result){.ratio = samples_median(&total),
                    .spread = samples_spread(&total),
                    .of = "ceiling",
                    .goal = {AT_LEAST, nan("")},
                    .info = {{"forward", samples_median(&single[FORWARD])},
                             {"grad input", samples_median(&single[GRAD_INPUT])},
                             {"grad weight", samples_median(&single[GRAD_WEIGHT])}}};
}

static Status measure_linear(Bench *b, Backend *be, Ceiling *c, const LinearShape *shape, const char *precision) {
    Arena arena = arena_measure("a linear layer");
    layout_linear(&arena, be->compute_dtype, shape);
    Status status = arena_allocate(&arena, be);
    if (status.code) return status;
    const Linear l = layout_linear(&arena, be->compute_dtype, shape);
    if (FAILED(status, bench_fill_random(be, l.x, 0.5f))) goto done;
    if (FAILED(status, bench_fill_random(be, l.w, 0.05f))) goto done;
    Result r = compare_linear(be, &l, c, 2 * (double)shape->rows * (double)shape->in * (double)shape->out);
    r.row = b->row;
    snprintf(r.name, sizeof r.name, "%s %s", precision, shape->name);
    table_add(&b->table, r);
    status = backend_sync(be);
done:
    arena_free(&arena);
    return status;
}

Status row_linear(Bench *b) {
    Status status = status_ok();
    for (int p = 0; p < PRECISIONS && !status.code; p++) {
        Backend be;
        Ceiling ceiling = {0};
        if (FAILED(status, bench_open_backend(&be, precisions[p]))) return status;
        if (!FAILED(status, backend_reserve(&be, (OpLimits){.width = 50304, .vocab = 50304})))
            status = ceiling_open(&ceiling, &be);
        for (int i = 0; i < LINEAR_SHAPES && !status.code; i++)
            if (!b->quick || linear_shapes[i].quick)
                status = measure_linear(b, &be, &ceiling, &linear_shapes[i], precisions[p]);
        ceiling_close(&ceiling);
        backend_close(&be);
    }
    return status;
}

/* ---- memory traffic --------------------------------------------------------------------------------------------- */

typedef struct {
    Tensor w, copy, m, v, g;
} AdamwBuffers;

static AdamwBuffers layout_adamw(Arena *arena, DType copy_type) {
    enum { COUNT = 16 << 20 };
    AdamwBuffers a = {.w = arena_take_1d(arena, DTYPE_F32, COUNT),
                      .m = arena_take_1d(arena, DTYPE_F32, COUNT),
                      .v = arena_take_1d(arena, DTYPE_F32, COUNT),
                      .g = arena_take_1d(arena, DTYPE_F32, COUNT),
                      .copy = tensor_none()};
    if (copy_type == DTYPE_BF16) a.copy = arena_take_1d(arena, DTYPE_BF16, COUNT);
    return a;
}

/* op_adamw reads w, m, v, g and writes w, m, v, in bf16 mode a copy of w, too: its bytes a second against triad's. */
static Status measure_adamw(Bench *b, Triad *triad, Samples *bandwidth, const char *precision) {
    Backend be;
    Samples ratio = {0}, rate = {0};
    Status status = bench_open_backend(&be, precision);
    if (status.code) return status;
    Arena arena = arena_measure("parameters");
    layout_adamw(&arena, be.compute_dtype);
    if (FAILED(status, arena_allocate(&arena, &be))) goto done;
    const AdamwBuffers a = layout_adamw(&arena, be.compute_dtype);
    if (FAILED(status, bench_fill_random(&be, a.g, 0.01f))) goto done;
    const AdamwStep step = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 1.0f, false};
    const double bytes = (double)tensor_numel(a.w) * (28.0 + (tensor_present(a.copy) ? 2.0 : 0.0));

    op_adamw(&be, a.w, a.copy, a.m, a.v, a.g, step);
    for (int round = 0; round < 10; round++) {
        samples_add(bandwidth, triad_sample(triad));
        const double start = clock_seconds();
        op_adamw(&be, a.w, a.copy, a.m, a.v, a.g, step);
        backend_sync(&be);
        samples_add(&rate, bytes / (clock_seconds() - start));
        samples_add(&ratio, rate.values[round] / bandwidth->values[bandwidth->count - 1]);
    }
    Result r = {.row = b->row, .ratio = samples_median(&ratio), .spread = samples_spread(&ratio), .of = "triad"};
    snprintf(r.name, sizeof r.name, "adamw %s", precision);
    r.goal = (Goal){AT_LEAST, nan("")};
    r.info[0] = (Info){"GB/s", samples_median(&rate) / 1e9};
    table_add(&b->table, r);
done:
    arena_free(&arena);
    backend_close(&be);
    return status;
}

Status row_bandwidth(Bench *b) {
    Backend be;
    Triad triad = {0};
    Samples bandwidth = {0};
    Status status = bench_open_backend(&be, "fp32");
    if (status.code) return status;
    status = triad_open(&triad, &be);
    for (int p = 0; p < PRECISIONS && !status.code; p++) status = measure_adamw(b, &triad, &bandwidth, precisions[p]);
    triad_close(&triad);
    backend_close(&be);
    if (status.code) return status;
    Result r = {.row = b->row, .name = "triad", .of = "its best sample"};
    r.ratio = samples_median(&bandwidth) / samples_best(&bandwidth);
    r.spread = samples_spread(&bandwidth);
    r.goal.value = nan("");
    r.info[0] = (Info){"GB/s", samples_median(&bandwidth) / 1e9};
    r.info[1] = (Info){"GB/s best", samples_best(&bandwidth) / 1e9};
    table_add(&b->table, r);
    return status;
}
