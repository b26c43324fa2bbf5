/* The prediction of --dry-run device=cuda: what each op is taken to cost, by hand; what a step adds up to; and the
 * program as a user without a GPU meets it.
 *
 * `test_roofline --markdown` prints what belongs between the markers of docs/roofline.md. */
#include "tests/tensors.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/config_options.h"
#include "cuda/open.h"
#include "ops/ops.h"
#include "run/roofline.h"
#include "train_gpt.h"

/* ---- one op ----------------------------------------------------------------------------------------------------- */

static void open_counting(Backend *be, GpuKind gpu) {
    assert_ok(cost_backend_open(be, &gpus[gpu], "auto", cuda_scratch_bytes));
}

/* Of the calls since the last look. */
static CostRow take(Backend *be, OpId op) {
    CostRow row = cost_rows(be)[op];
    cost_reset(be);
    return row;
}

static void assert_number(double got, double expected) {
    if (fabs(got - expected) > 1e-9 * fabs(expected)) fail_msg("got %.17g, expected %.17g", got, expected);
}

static void assert_bytes(Backend *be, OpId op, double expected) {
    assert_number(take(be, op).bytes, expected);
}

static void streaming_ops_move_what_they_read_and_write(void **state) {
    (void)state;
    Backend be;
    open_counting(&be, GPU_H100);
    Tensor half = test_zeros(&be, DTYPE_BF16, shape2(6, 10)), other = test_zeros(&be, DTYPE_BF16, shape2(6, 10));
    Tensor full = test_zeros(&be, DTYPE_F32, shape2(6, 10)), m = test_zeros(&be, DTYPE_F32, shape2(6, 10));
    Tensor v = test_zeros(&be, DTYPE_F32, shape2(6, 10)), g = test_zeros(&be, DTYPE_F32, shape2(6, 10));
    Tensor vector = test_zeros(&be, DTYPE_F32, shape1(10)), rows = test_zeros(&be, DTYPE_F32, shape1(6));
    Tensor targets = test_zeros(&be, DTYPE_I32, shape1(6)), none = tensor_none();

    op_fill(&be, half, 0);
    assert_bytes(&be, OP_FILL, 60 * 2);
    op_copy(&be, half, full);
    assert_bytes(&be, OP_COPY, 60 * (4 + 2));
    op_copy(&be, tensor_as_3d(full, 3, 2, 10), (Tensor){half.data, DTYPE_BF16, 3, {3, 2, 10}, {10, 0, 1}});
    assert_bytes(&be, OP_COPY, 60 * 4 + 30 * 2);
    op_sum_heads(&be, tensor_slice(half, 0, 0, 3), tensor_as_3d(other, 3, 2, 10));
    assert_bytes(&be, OP_SUM_HEADS, (30 + 60) * 2);
    op_scale(&be, full, 2);
    assert_bytes(&be, OP_SCALE, 60 * 2 * 4);
    op_gelu_grad(&be, half, half, other);
    assert_bytes(&be, OP_GELU_GRAD, 60 * 3 * 2);
    op_adamw(&be, full, half, m, v, g, (AdamwStep){0});
    assert_bytes(&be, OP_ADAMW, 60 * (7 * 4 + 2));
    op_adamw(&be, full, none, m, v, g, (AdamwStep){0});
    assert_bytes(&be, OP_ADAMW, 60 * 7 * 4);
    op_momentum(&be, half, m, g, (MomentumStep){0});
    assert_bytes(&be, OP_MOMENTUM, 60 * (3 * 4 + 2));
    op_adapt(&be, half, v, other, (AdaptStep){0});
    assert_bytes(&be, OP_ADAPT, 60 * (2 + 2 * 4 + 2));
    op_adapt(&be, half, tensor_slice(v, 1, 0, 1), other, (AdaptStep){0});
    assert_bytes(&be, OP_ADAPT, 60 * (2 + 2) + 6 * 2 * 4);
    op_apply_update(&be, full, half, other, (UpdateStep){0});
    assert_bytes(&be, OP_APPLY_UPDATE, 60 * (2 * 4 + 2 + 2));
    op_layernorm(&be, half, rows, rows, other, vector, vector, 1e-5f);
    assert_bytes(&be, OP_LAYERNORM, 60 * 2 * 2 + 2 * 6 * 4 + 2 * 10 * 4);
    op_cross_entropy(&be, rows, half, targets);
    assert_bytes(&be, OP_CROSS_ENTROPY, 60 * 2 + 2 * 6 * 4);
    op_cross_entropy_grad(&be, rows, half, targets, 1); /* reads twice and writes once */
    assert_bytes(&be, OP_CROSS_ENTROPY_GRAD, 3 * 60 * 2 + 2 * 6 * 4);
    test_close(&be);
}

static void a_linear_layer_moves_each_matrix_once_and_takes_two_flops_a_term(void **state) {
    (void)state;
    Backend be;
    open_counting(&be, GPU_H100);
    const double N = 64, O = 24, I = 16, products = 2 * N * O * I;
    Tensor x = test_zeros(&be, DTYPE_BF16, shape2(64, 16)), w = test_zeros(&be, DTYPE_BF16, shape2(24, 16));
    Tensor out = test_zeros(&be, DTYPE_BF16, shape2(64, 24)), pre = test_zeros(&be, DTYPE_BF16, shape2(64, 24));
    Tensor dpre = test_zeros(&be, DTYPE_BF16, shape2(64, 16)), dw = test_zeros(&be, DTYPE_F32, shape2(24, 16));
    Tensor bias = test_zeros(&be, DTYPE_F32, shape1(24)), none = tensor_none();
    const double matrices = 2 * (N * I + O * I + N * O);

    op_linear(&be, out, x, w, none, none);
    CostRow row = take(&be, OP_LINEAR);
    assert_number(row.flops, products);
    assert_number(row.bytes, matrices);
    op_linear(&be, out, x, w, bias, out);
    assert_bytes(&be, OP_LINEAR, matrices + 4 * O + 2 * N * O);

    op_linear_grad_weight(&be, dw, bias, out, x, GRADIENT_SET);
    row = take(&be, OP_LINEAR_GRAD_WEIGHT);
    assert_number(row.flops, products);
    const double gradient = 2 * (N * I + N * O) + 4 * O * I + 4 * O;
    assert_number(row.bytes, gradient);
    op_linear_grad_weight(&be, dw, bias, out, x, GRADIENT_ADD);
    assert_bytes(&be, OP_LINEAR_GRAD_WEIGHT, gradient + 4 * O * I + 4 * O);

    op_linear_gelu(&be, out, pre, x, w, bias); /* one op, not two */
    assert_int_equal(cost_rows(&be)[OP_GELU].calls, 0);
    assert_bytes(&be, OP_LINEAR_GELU, matrices + 2 * N * O + 4 * O);
    op_linear_gelu_grad(&be, dpre, out, w, x);
    row = take(&be, OP_LINEAR_GELU_GRAD);
    assert_number(row.flops, products);
    assert_number(row.bytes, matrices + 2 * N * I);
    assert_int_equal(row.launches, 1);
    test_close(&be);
}

static void before_sm_90_gelu_is_a_pass_of_its_own(void **state) {
    (void)state;
    Backend be;
    open_counting(&be, GPU_A100);
    Tensor x = test_zeros(&be, DTYPE_BF16, shape2(64, 16)), w = test_zeros(&be, DTYPE_BF16, shape2(24, 16));
    Tensor out = test_zeros(&be, DTYPE_BF16, shape2(64, 24)), pre = test_zeros(&be, DTYPE_BF16, shape2(64, 24));
    op_linear_gelu(&be, out, pre, x, w, tensor_none());
    CostRow row = take(&be, OP_LINEAR_GELU);
    assert_int_equal(row.calls, 1);
    assert_int_equal(row.launches, 2);
    assert_number(row.bytes, 2 * (64 * 16 + 24 * 16 + 64 * 24) + 2 * 2 * 64 * 24);
    test_close(&be);
}

static void a_call_is_bound_by_the_slower_of_flops_and_bytes(void **state) {
    (void)state;
    Backend be;
    open_counting(&be, GPU_A100);
    const Gpu *gpu = cost_gpu(&be);
    Tensor large = test_zeros(&be, DTYPE_BF16, shape2(8192, 8192)), b = test_zeros(&be, DTYPE_BF16, shape2(8192, 8192));
    Tensor out = test_zeros(&be, DTYPE_BF16, shape2(8192, 8192)), none = tensor_none();
    Tensor row = tensor_slice(large, 0, 0, 1), out_row = tensor_slice(out, 0, 0, 1);

    op_matmul(&be, out, large, b, none, (MatmulScale){.alpha = 1});
    CostRow cost = take(&be, OP_MATMUL);
    assert_number(cost.bound, 2 * pow(8192, 3) / gpu->bf16_flops);
    assert_number(cost.bound_compute, cost.bound);
    assert_true(cost.expected > cost.bound / 0.8);

    op_matmul(&be, out_row, row, b, none, (MatmulScale){.alpha = 1});
    cost = take(&be, OP_MATMUL);
    assert_number(cost.bound, (8192. * 8192 + 2 * 8192) * 2 / gpu->bandwidth);
    assert_number(cost.bound_compute, 0);
    assert_number(cost.wait, cost_assumptions.launch_seconds);
    test_close(&be);
}

static void fp32_products_take_the_slower_peak_and_twice_the_bytes(void **state) {
    (void)state;
    Backend be;
    open_counting(&be, GPU_H100);
    const Gpu *gpu = cost_gpu(&be);
    CostRow rows[2];
    static const DType dtypes[] = {DTYPE_BF16, DTYPE_F32};
    for (int i = 0; i < 2; i++) {
        Tensor a = test_zeros(&be, dtypes[i], shape2(4096, 4096)), b = test_zeros(&be, dtypes[i], shape2(4096, 4096));
        Tensor out = test_zeros(&be, dtypes[i], shape2(4096, 4096));
        op_matmul(&be, out, a, b, tensor_none(), (MatmulScale){.alpha = 1});
        rows[i] = take(&be, OP_MATMUL);
    }
    assert_number(rows[1].bytes, 2 * rows[0].bytes);
    assert_number(rows[1].bound / rows[0].bound, gpu->bf16_flops / gpu->fp32_flops);
    test_close(&be);
}

static void symmetric_products_take_the_tiles_on_and_below_the_diagonal(void **state) {
    (void)state;
    Backend be;
    open_counting(&be, GPU_H100);
    Tensor a = test_zeros(&be, DTYPE_BF16, shape3(12, 1024, 1024)),
           out = test_zeros(&be, DTYPE_BF16, shape3(12, 1024, 1024));
    op_matmul_symmetric(&be, out, a, tensor_none(), (MatmulScale){.alpha = 1});
    CostRow row = take(&be, OP_MATMUL_SYMMETRIC);
    assert_number(row.flops, 12 * 36 * 128. * 128 * 2 * 1024); /* 8 x 8 tiles */
    assert_number(row.bytes, 2 * 12 * 1024. * 1024 * 2);
    op_matmul_symmetric(&be, out, a, out, (MatmulScale){.alpha = 1, .beta = 1});
    assert_bytes(&be, OP_MATMUL_SYMMETRIC, 3 * 12 * 1024. * 1024 * 2);
    test_close(&be);
}

static void rows_of_no_multiple_of_16_bytes_slow_a_product_down(void **state) {
    (void)state;
    Backend be;
    open_counting(&be, GPU_H100);
    double expected[2];
    for (int i = 0; i < 2; i++) {
        const int64_t vocab = i == 0 ? 50304 : 50257;
        Tensor x = test_zeros(&be, DTYPE_BF16, shape2(4096, 768)), w = test_zeros(&be, DTYPE_BF16, shape2(vocab, 768));
        Tensor logits = test_zeros(&be, DTYPE_BF16, shape2(4096, vocab));
        op_linear(&be, logits, x, w, tensor_none(), tensor_none());
        expected[i] = take(&be, OP_LINEAR).expected;
    }
    assert_true(expected[1] > 1.9 * expected[0]);
    test_close(&be);
}

static void what_is_allocated_cannot_be_touched_and_what_is_read_is_zero(void **state) {
    (void)state;
    Backend be;
    open_counting(&be, GPU_H100);
    Tensor x = test_zeros(&be, DTYPE_F32, shape1(1000)), y = test_zeros(&be, DTYPE_F32, shape1(1000));
    assert_ptr_not_equal(x.data, y.data);
    float values[1000];
    for (int i = 0; i < 1000; i++) values[i] = 1;
    backend_to_host(&be, values, x);
    for (int i = 0; i < 1000; i++) assert_true(values[i] == 0);
    assert_int_equal(cost_rows(&be)[COST_TRANSFERS].calls, 1);

    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile float *)x.data = 1;
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    test_close(&be);
}

/* ---- a step ----------------------------------------------------------------------------------------------------- */

enum { MOST_KEYS = 16 };

typedef struct {
    Trainer trainer;
    Roofline roofline;
} Prediction;

/* `keys`: space-separated key=value on top of a configuration file, or of none. The caller frees with forget. */
static Prediction *predict_file(const char *path, const char *keys) {
    char text[1000], *overrides[MOST_KEYS];
    int count = 0;
    Config config;
    Prediction *p = calloc(1, sizeof *p);
    assert_non_null(p);
    snprintf(text, sizeof text, "%s", keys);
    for (char *key = strtok(text, " "); key; key = strtok(NULL, " ")) {
        assert_true(count < MOST_KEYS);
        overrides[count++] = key;
    }
    assert_ok(config_load(&config, path, count, overrides));
    assert_ok(trainer_plan_for_gpu(&p->trainer, &config, &gpus[config.dry_run.gpu]));
    assert_ok(roofline_predict(&p->trainer, train_step, &p->roofline));
    return p;
}

static Prediction *predict(const char *keys) {
    return predict_file(NULL, keys);
}

static void forget(Prediction *p) {
    trainer_free(&p->trainer);
    free(p);
}

#define SMALL                                                                                                          \
    "model.preset=gpt2 model.layers=3 model.heads=4 model.width=64 model.context=32 model.vocab=96 train.batch=6 "
#define GPT2_124M                                                                                                      \
    "model.preset=gpt2 model.layers=12 model.heads=12 model.width=768 model.context=1024 model.vocab=50304 "           \
    "train.batch=64 "

/* D = 24 + 8, E = 20. */
#define LATENT                                                                                                         \
    "model.layers=3 model.heads=4 model.width=64 model.context=32 model.vocab=96 train.batch=6 model.attention=mla "   \
    "model.head_nope=24 model.head_rope=8 model.head_value=20 "

static const OpId linear_ops[] = {OP_LINEAR, OP_LINEAR_GRAD_INPUT, OP_LINEAR_GRAD_WEIGHT, OP_LINEAR_GELU,
                                  OP_LINEAR_GELU_GRAD};
enum { LINEAR_OPS = sizeof linear_ops / sizeof linear_ops[0] };

static double linear_flops(const Prediction *p) {
    double flops = 0;
    for (int i = 0; i < LINEAR_OPS; i++) flops += p->roofline.rows[linear_ops[i]].flops;
    return flops;
}

/* The tied head's matrix is wte; wpe is in no product. */
static double parameters_in_products(const Gpt *g) {
    double count = 0;
    for (int i = 0; i < g->params.param_count; i++) {
        const Param *p = &g->params.params[i];
        if (!p->vector && i != g->index[PARAM_WPE]) count += (double)(p->count * p->rows * p->columns);
    }
    return count;
}

static void linear_layers_take_six_flops_a_parameter_and_token(void **state) {
    (void)state;
    static const char *const keys[] = {SMALL "optimizer.matrices=adamw",
                                       SMALL "model.mlp=swiglu model.kv_heads=2 train.micro_batch=2", LATENT};
    for (int i = 0; i < 3; i++) {
        Prediction *p = predict(keys[i]);
        assert_number(linear_flops(p), 6 * parameters_in_products(&p->trainer.gpt) * 6 * 32);
        forget(p);
    }
}

/* 2 L C (T + 1) a token forward, for two products over the pairs that are seen; 7 products backward.
 * gpt_flops_per_token counts 6 L C T for both, with 4 products backward. */
static void attention_takes_two_products_forward_and_seven_backward(void **state) {
    (void)state;
    Prediction *p = predict(SMALL);
    const double one = 3 * 64 * (32 + 1) * 6 * 32;
    assert_number(p->roofline.rows[OP_ATTENTION].flops, 2 * one);
    assert_number(p->roofline.rows[OP_ATTENTION_GRAD].flops, 7 * one);
    const double model = gpt_flops_per_token(&p->trainer.gpt) * 6 * 32;
    assert_number(p->roofline.model_flops, model);
    forget(p);
}

/* gpt_flops_per_token counts T pairs of all, forward once and backward twice; the op counts the T (T + 1) / 2 that are
 * seen. */
static void latent_attention_has_products_of_two_sizes(void **state) {
    (void)state;
    Prediction *p = predict(LATENT);
    const Gpt *g = &p->trainer.gpt;
    const double pair = 3 * 4 * (32 + 1) * 6 * 32; /* layers, heads, pairs that one of the tokens sees, twice */
    assert_number(p->roofline.rows[OP_ATTENTION].flops, pair * (32 + 20));
    assert_number(p->roofline.rows[OP_ATTENTION_GRAD].flops, pair * (4 * 32 + 3 * 20));
    const double attention = gpt_flops_per_token(g) - 6 * (double)g->params.count;
    assert_number(attention * 6 * 32, 3 * p->roofline.rows[OP_ATTENTION].flops * 32 / (32 + 1));
    assert_int_equal(p->roofline.rows[OP_SUM_HEADS].calls, 3);
    forget(p);
}

static void gpt2_124m_on_an_h100_is_bound_above_55_percent(void **state) {
    (void)state;
    static const char *const optimizers[] = {GPT2_124M "optimizer.matrices=muon", GPT2_124M "optimizer.matrices=adamw"};
    for (int i = 0; i < 2; i++) {
        Prediction *p = predict(optimizers[i]);
        const Roofline *r = &p->roofline;
        assert_true(roofline_mfu(r, r->step.bound) >= 0.55);
        assert_true(roofline_mfu(r, r->step.bound) < 1);
        assert_true(r->step.expected > r->step.bound);
        assert_true(r->step.bound > r->model_flops / gpus[GPU_H100].bf16_flops);
        assert_true(r->device_bytes > 15e9 && r->device_bytes < gpus[GPU_H100].memory);
        forget(p);
    }
}

static void micro_batches_share_the_work_of_a_batch(void **state) {
    (void)state;
    Prediction *whole = predict(SMALL), *parts = predict(SMALL "train.micro_batch=2");
    const CostRow *a = whole->roofline.rows, *b = parts->roofline.rows;
    assert_number(linear_flops(parts), linear_flops(whole));
    assert_number(b[OP_ATTENTION_GRAD].flops, a[OP_ATTENTION_GRAD].flops);
    assert_int_equal(b[OP_ATTENTION].calls, 3 * a[OP_ATTENTION].calls);
    assert_int_equal(b[OP_SUM_SQUARES].calls, a[OP_SUM_SQUARES].calls); /* the norm and the optimizer: once a step */
    assert_int_equal(b[OP_APPLY_UPDATE].calls, a[OP_APPLY_UPDATE].calls);
    assert_number(b[OP_MATMUL].flops, a[OP_MATMUL].flops);
    /* The second and third micro-batch add to gradients, and so read them. */
    assert_true(b[OP_LINEAR_GRAD_WEIGHT].bytes > a[OP_LINEAR_GRAD_WEIGHT].bytes);
    assert_true(parts->roofline.device_bytes < whole->roofline.device_bytes);
    forget(whole);
    forget(parts);
}

static void the_total_is_the_sum_of_the_rows(void **state) {
    (void)state;
    Prediction *p = predict(SMALL);
    double bound = 0, expected = 0, flops = 0;
    for (int i = 0; i < COST_ROWS; i++) {
        const CostRow *row = &p->roofline.rows[i];
        bound += row->bound, expected += row->expected, flops += row->flops;
        assert_true(row->bound_compute <= row->bound && row->expected >= row->bound);
    }
    assert_number(p->roofline.step.bound, bound);
    assert_number(p->roofline.step.expected, expected);
    assert_number(p->roofline.step.flops, flops);
    forget(p);
}

static void faster_gpus_are_predicted_faster(void **state) {
    (void)state;
    static const GpuKind order[] = {GPU_4090, GPU_A100, GPU_H100, GPU_H200, GPU_B200};
    double last = (double)INFINITY;
    for (int i = 0; i < GPU_COUNT; i++) {
        char keys[1000];
        snprintf(keys, sizeof keys, GPT2_124M "dry_run.gpu=%s", gpus[order[i]].name);
        Prediction *p = predict(keys);
        assert_ptr_equal(cost_gpu(&p->trainer.backend), &gpus[order[i]]);
        assert_true(p->roofline.step.bound < last && p->roofline.step.expected > p->roofline.step.bound);
        last = p->roofline.step.bound;
        forget(p);
    }
}

static void every_gpu_of_the_option_has_its_row(void **state) {
    (void)state;
    const Option *option = option_find("dry_run.gpu");
    assert_non_null(option);
    for (int i = 0; i < GPU_COUNT; i++) assert_string_equal(option->choices[i], gpus[i].name);
    assert_null(option->choices[GPU_COUNT]);
}

static int64_t resident_pages(void) {
    long long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lld %lld", &total, &resident), 2);
    fclose(file);
    return (int64_t)resident;
}

static void a_model_larger_than_this_machine_is_planned_without_its_memory(void **state) {
    (void)state;
    const int64_t before = resident_pages();
    Prediction *p = predict("model.layers=48 model.heads=64 model.width=8192 model.context=4096 model.vocab=50304 "
                            "train.batch=16 train.micro_batch=8 probe.spectrum_every=0");
    assert_true(p->roofline.device_bytes > 500e9);
    assert_true((resident_pages() - before) * sysconf(_SC_PAGESIZE) < 64 << 20);
    forget(p);
}

/* ---- the document ----------------------------------------------------------------------------------------------- */

static const char document_config[] = "configs/gpt2-124m.json";

static void print_document_table(const char *optimizer, FILE *out) {
    char keys[100];
    snprintf(keys, sizeof keys, "optimizer.matrices=%s", optimizer);
    Prediction *p = predict_file(document_config, keys);
    fprintf(out, "```\n./train_gpt --dry-run %s device=cuda %s\n\n", document_config, keys);
    roofline_print_table(&p->trainer, &p->roofline, out);
    fprintf(out, "```\n\n");
    forget(p);
}

static void print_document_row(const Gpu *gpu, FILE *out) {
    static const char *const optimizers[] = {"muon", "adamw"};
    fprintf(out, "| `%s` | %s ", gpu->name, gpu->form);
    for (int i = 0; i < 2; i++) {
        char keys[100];
        snprintf(keys, sizeof keys, "optimizer.matrices=%s dry_run.gpu=%s", optimizers[i], gpu->name);
        Prediction *p = predict_file(document_config, keys);
        const Roofline *r = &p->roofline;
        fprintf(out, "| %.1f ms, %.1f %% | %.1f ms, %.1f %% | %.0f k ", 1e3 * r->step.bound,
                100 * roofline_mfu(r, r->step.bound), 1e3 * r->step.expected, 100 * roofline_mfu(r, r->step.expected),
                r->tokens / r->step.expected / 1e3);
        forget(p);
    }
    fprintf(out, "|\n");
}

static void print_document_speeds(const Gpu *gpu, FILE *out) {
    fprintf(out, "| %s | %.4g | %.4g | %.4g | %.0f | %s |\n", gpu->form, gpu->bf16_flops / 1e12, gpu->fp32_flops / 1e12,
            gpu->bandwidth / 1e12, gpu->memory / 1e9, gpu->source);
}

static void print_document(FILE *out) {
    print_document_table("muon", out);
    print_document_table("adamw", out);
    fprintf(out, "Each pair is milliseconds a step and MFU:\n\n"
                 "| `dry_run.gpu` | | Muon: bound | expected | tokens/s | AdamW: bound | expected | tokens/s |\n"
                 "|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < GPU_COUNT; i++) print_document_row(&gpus[i], out);
    fprintf(out, "\nThe GPUs: dense peaks with fp32 accumulation, without sparsity.\n\n"
                 "| | bf16, TFLOP/s | fp32 without tensor cores, TFLOP/s | TB/s | GB | source |\n"
                 "|---|---|---|---|---|---|\n");
    for (int i = 0; i < GPU_COUNT; i++) print_document_speeds(&gpus[i], out);
}

static void the_committed_document_is_the_generated_one(void **state) {
    (void)state;
    static const char begin[] = "<!-- tables: begin -->\n", end[] = "<!-- tables: end -->\n";
    char *generated = NULL, *document = test_read_file("docs/roofline.md");
    size_t size = 0;
    FILE *out = open_memstream(&generated, &size);
    assert_non_null(out);
    print_document(out);
    fclose(out);
    char *from = strstr(document, begin), *to = strstr(document, end);
    assert_true(from && to && from < to);
    *to = '\0';
    if (strcmp(from + strlen(begin), generated) != 0)
        fail_msg("docs/roofline.md is stale: put the output of test_roofline --markdown between its markers");
    free(document);
    free(generated);
}

/* ---- the program ------------------------------------------------------------------------------------------------ */

/* Runs the binary in a temporary folder; its output goes to `output`. Returns the exit code. */
static int run(const char *arguments, char **output) {
    char binary[PATH_SIZE] = "", folder[PATH_SIZE], command[PATH_SIZE * 3];
    assert_true(readlink("/proc/self/exe", binary, sizeof binary - 1) > 0);
    for (int up = 0; up < 2; up++) *strrchr(binary, '/') = 0;
    test_folder(folder);
    snprintf(command, sizeof command, "cd %s && %s/train_gpt %s 2>&1", folder, binary, arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    *output = calloc(1, 1 << 20);
    assert_non_null(*output);
    (*output)[fread(*output, 1, (1 << 20) - 1, pipe)] = 0;
    int status = pclose(pipe);
    assert_ok(folder_remove(folder));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_dry_run_on_cuda_prints_the_table_and_what_it_rests_on(void **state) {
    (void)state;
    static const char *const parts[] = {
        "memory\n",    "roofline of a step on one H200", "linear_grad_weight", "% MFU",   "until a GPU\n  confirms it",
        "assumptions", "NVIDIA H200 data sheet",         "nothing overlaps",   "a launch"};
    char *output;
    assert_int_equal(run("--dry-run device=cuda dry_run.gpu=H200 " SMALL, &output), 0);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (!strstr(output, parts[i])) fail_msg("no \"%s\" in:\n%s", parts[i], output);
    free(output);
}

static void a_dry_run_elsewhere_predicts_nothing(void **state) {
    (void)state;
    char *output;
    assert_int_equal(run("--dry-run device=cpu " SMALL, &output), 0);
    assert_null(strstr(output, "roofline"));
    free(output);
}

static void a_gpu_without_a_row_is_refused_with_the_known_ones(void **state) {
    (void)state;
    char *output;
    assert_int_equal(run("--dry-run device=cuda dry_run.gpu=V100", &output), 2);
    assert_non_null(strstr(output, "dry_run.gpu: \"V100\" is not one of A100, H100, H200, 4090, B200"));
    free(output);
}

/* The number behind an op's name in the table of ops; 0 if there is none. */
static long long calls_in(const char *output, const char *op) {
    char row[64];
    long long calls = 0;
    for (const char *line = strstr(output, "calls"); line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (sscanf(line, " %63s %lld", row, &calls) == 2 && strcmp(row, op) == 0) return calls;
    }
    return 0;
}

/* ref has no slot for these and does them as two ops. */
static const struct {
    OpId fused, product, pass;
} fused_ops[] = {{OP_LINEAR_GELU, OP_LINEAR, OP_GELU}, {OP_LINEAR_GELU_GRAD, OP_LINEAR_GRAD_INPUT, OP_GELU_GRAD}};

static void take_apart(long long calls[OP_COUNT]) {
    for (int i = 0; i < 2; i++) {
        calls[fused_ops[i].product] += calls[fused_ops[i].fused];
        calls[fused_ops[i].pass] += calls[fused_ops[i].fused];
        calls[fused_ops[i].fused] = 0;
    }
}

static void read_calls(const char *arguments, const char *keys, long long calls[OP_COUNT]) {
    char all[1000], *output;
    snprintf(all, sizeof all, "%s %s", arguments, keys);
    assert_int_equal(run(all, &output), 0);
    for (int op = 0; op < OP_COUNT; op++) calls[op] = calls_in(output, op_names[op]);
    take_apart(calls);
    free(output);
}

/* So that the prediction follows train_step of train_gpt.c: runs of one and of two steps differ by one. */
static void the_predicted_calls_are_those_of_a_training_step(void **state) {
    (void)state;
    static const char keys[] = SMALL "train.micro_batch=3 precision=fp32 profile=true probe.spectrum_every=0 "
                                     "train.eval_every=0 train.eval_batches=1 threads=1 ";
    long long one[OP_COUNT], two[OP_COUNT], predicted[OP_COUNT];
    read_calls("device=ref train.steps=1", keys, one);
    read_calls("device=ref train.steps=2", keys, two);
    read_calls("--dry-run device=cuda", keys, predicted);
    assert_true(predicted[OP_LINEAR] > 0);
    for (int op = 0; op < OP_COUNT; op++)
        if (predicted[op] != two[op] - one[op])
            fail_msg("%s: %lld calls a step, %lld predicted", op_names[op], two[op] - one[op], predicted[op]);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--markdown") == 0) return print_document(stdout), 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streaming_ops_move_what_they_read_and_write),
        cmocka_unit_test(a_linear_layer_moves_each_matrix_once_and_takes_two_flops_a_term),
        cmocka_unit_test(before_sm_90_gelu_is_a_pass_of_its_own),
        cmocka_unit_test(a_call_is_bound_by_the_slower_of_flops_and_bytes),
        cmocka_unit_test(fp32_products_take_the_slower_peak_and_twice_the_bytes),
        cmocka_unit_test(symmetric_products_take_the_tiles_on_and_below_the_diagonal),
        cmocka_unit_test(rows_of_no_multiple_of_16_bytes_slow_a_product_down),
        cmocka_unit_test(what_is_allocated_cannot_be_touched_and_what_is_read_is_zero),
        cmocka_unit_test(linear_layers_take_six_flops_a_parameter_and_token),
        cmocka_unit_test(attention_takes_two_products_forward_and_seven_backward),
        cmocka_unit_test(latent_attention_has_products_of_two_sizes),
        cmocka_unit_test(gpt2_124m_on_an_h100_is_bound_above_55_percent),
        cmocka_unit_test(micro_batches_share_the_work_of_a_batch),
        cmocka_unit_test(the_total_is_the_sum_of_the_rows),
        cmocka_unit_test(faster_gpus_are_predicted_faster),
        cmocka_unit_test(every_gpu_of_the_option_has_its_row),
        cmocka_unit_test(a_model_larger_than_this_machine_is_planned_without_its_memory),
        cmocka_unit_test(the_committed_document_is_the_generated_one),
        cmocka_unit_test(a_dry_run_on_cuda_prints_the_table_and_what_it_rests_on),
        cmocka_unit_test(a_dry_run_elsewhere_predicts_nothing),
        cmocka_unit_test(a_gpu_without_a_row_is_refused_with_the_known_ones),
        cmocka_unit_test(the_predicted_calls_are_those_of_a_training_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
