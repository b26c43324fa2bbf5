/* The whole model against PyTorch: loss, MaxLogit, gradients and ten training steps of tiny models (tests/golden/
 * make_model.py), on ref and cpu; then what only the whole model shows: accumulation over micro-batches, QK-Clip's
 * exactness with a layer's input held fixed, and that a batch can be learned by heart. */
#include "tests/tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"
#include "model/gpt.h"
#include "optim/optimizer.h"
#include "optim/qk_clip.h"
#include "tests/golden/model.h"

enum { BATCH = 2 };

typedef struct {
    const GoldenModel *golden;
    ModelConfig model;
    OptimizerKind matrices;
} Case;

/* The configurations of make_model.py. */
static Case gpt2_case(void) {
    return (Case){.golden = &golden_gpt2,
                  .matrices = OPTIMIZER_ADAMW,
                  .model = {.preset = PRESET_GPT2,
                            .layers = 2,
                            .heads = 2,
                            .kv_heads = 2,
                            .width = 12,
                            .context = 9,
                            .vocab = 17,
                            .norm = NORM_LAYERNORM,
                            .position = POSITION_LEARNED,
                            .mlp = MLP_GELU,
                            .mlp_width = 40,
                            .bias = true,
                            .tie_embeddings = true,
                            .rope_theta = 1e4,
                            .norm_eps = 1e-5,
                            .init_std = 0.02}};
}

static Case llama_case(void) {
    return (Case){.golden = &golden_llama,
                  .matrices = OPTIMIZER_MUON,
                  .model = {.preset = PRESET_LLAMA,
                            .layers = 2,
                            .heads = 4,
                            .kv_heads = 2,
                            .width = 24,
                            .context = 7,
                            .vocab = 19,
                            .norm = NORM_RMSNORM,
                            .position = POSITION_ROPE,
                            .mlp = MLP_SWIGLU,
                            .mlp_width = 20,
                            .rope_theta = 1e4,
                            .norm_eps = 1e-5,
                            .init_std = 0.02}};
}

static Case mixed_case(void) {
    return (Case){.golden = &golden_mixed,
                  .matrices = OPTIMIZER_MUON,
                  .model = {.preset = PRESET_LLAMA,
                            .layers = 2,
                            .heads = 3,
                            .kv_heads = 1,
                            .width = 18,
                            .context = 8,
                            .vocab = 23,
                            .norm = NORM_RMSNORM,
                            .position = POSITION_ROPE,
                            .mlp = MLP_SWIGLU,
                            .mlp_width = 11,
                            .bias = true,
                            .qk_norm = true,
                            .attention_softcap = 1.5,
                            .rope_theta = 1e4,
                            .norm_eps = 1e-5,
                            .init_std = 0.02}};
}

/* Multi-head latent attention; no size is another's. */
static Case mla_case(void) {
    return (Case){.golden = &golden_mla,
                  .matrices = OPTIMIZER_MUON,
                  .model = {.preset = PRESET_LLAMA,
                            .layers = 2,
                            .heads = 3,
                            .kv_heads = 3,
                            .width = 20,
                            .context = 8,
                            .vocab = 19,
                            .attention = ATTENTION_MLA,
                            .q_rank = 10,
                            .kv_rank = 7,
                            .head_nope = 5,
                            .head_rope = 4,
                            .head_value = 6,
                            .norm = NORM_RMSNORM,
                            .position = POSITION_ROPE,
                            .mlp = MLP_SWIGLU,
                            .mlp_width = 13,
                            .rope_theta = 1e4,
                            .norm_eps = 1e-5,
                            .init_std = 0.02}};
}

/* Queries without a low rank, rotary parts larger than the others, a tied head and a softcap. */
static Case direct_mla_case(void) {
    Case c = mla_case();
    ModelConfig *m = &c.model;
    c.golden = &golden_mla_direct;
    m->heads = m->kv_heads = 2;
    m->width = 16, m->context = 7, m->vocab = 17, m->mlp_width = 12;
    m->q_rank = 0, m->kv_rank = 9, m->head_nope = 4, m->head_rope = 6, m->head_value = 3;
    m->tie_embeddings = true;
    m->attention_softcap = 1.5;
    return c;
}

static OptimizerConfig optimizer_config(OptimizerKind matrices) {
    return (OptimizerConfig){.matrices = matrices,
                             .lr = 0.01,
                             .weight_decay = 0.1,
                             .muon = {.momentum = 0.95,
                                      .momentum_form = MUON_MOMENTUM_SUM,
                                      .nesterov = true,
                                      .coefficients = {.set = "muon"},
                                      .iterations = 5,
                                      .scale = SCALE_RMS,
                                      .rms = 0.2},
                             .adamw = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8},
                             .normuon = {.beta2 = 0.95, .eps = 1e-10},
                             .adamuon = {.beta2 = 0.95, .eps = 1e-8},
                             .lion = {.beta1 = 0.9, .beta2 = 0.99}};
}

/* ---- a model with the formula's weights ------------------------------------------------------------------------- */

static void open_model(Gpt *g, Backend *be, const ModelConfig *config, int64_t rows) {
    assert_ok(gpt_plan(g, config, rows, be));
    assert_ok(gpt_allocate(g));
    assert_ok(backend_reserve(be, gpt_op_limits(g)));
}

static void set_golden_weights(Gpt *g) {
    for (int id = 0; id < GPT_PARAM_COUNT; id++) {
        if (g->index[id] < 0) continue;
        const Param *p = &g->params.params[g->index[id]];
        const int64_t n = p->rows * p->columns;
        bool norm = strstr(p->name, "norm") && !strstr(p->name, "bias");
        float *values = calloc((size_t)n, sizeof *values);
        for (int64_t l = 0; l < p->count; l++) {
            for (int64_t i = 0; i < n; i++) {
                double wave = sin(1.0 + 0.7 * (double)i + 13.0 * id + 5.0 * (double)l);
                values[i] = (float)(norm ? 1 + 0.1 * wave : p->vector ? 0.1 * wave : 0.25 * wave);
            }
            backend_from_host(g->be, params_tensor(&g->params, g->params.master, g->index[id], l), values);
        }
        free(values);
    }
    params_refresh_work(g->be, &g->params);
}

static void set_golden_batch(Gpt *g, int64_t step, int64_t first_row) {
    int32_t *tokens = calloc((size_t)g->N, sizeof *tokens), *targets = calloc((size_t)g->N, sizeof *targets);
    for (int64_t b = 0; b < g->B; b++)
        for (int64_t t = 0; t <= g->T; t++) {
            int32_t token = (int32_t)((7 * (b + first_row) + 3 * t * t + 5 * t + 11 * step * t) % g->V);
            if (t < g->T) tokens[b * g->T + t] = token;
            if (t > 0) targets[b * g->T + t - 1] = token;
        }
    gpt_set_batch(g, tokens, targets);
    free(tokens);
    free(targets);
}

/* Loss of one batch, its gradients in g->params.grad. */
static double forward_backward(Gpt *g, int64_t step) {
    float loss;
    gpt_start_gradients(g);
    gpt_reset_statistics(g);
    set_golden_batch(g, step, 0);
    gpt_forward(g);
    gpt_loss_and_gradient(g, 1.0f / (float)g->N);
    gpt_backward(g);
    backend_to_host(g->be, &loss, g->loss_sum);
    assert_ok(backend_sync(g->be));
    return (double)loss / (double)g->N;
}

static void assert_near(const char *what, double got, double expected, Tolerance tolerance) {
    assert_close(what, &got, &expected, 1, tolerance);
}

/* ---- against PyTorch -------------------------------------------------------------------------------------------- */

/* fp32 sums of a few hundred terms against fp64: a few units of 1e-7 each, some of them cancelling. */
static const Tolerance single_pass = {.absolute = 2e-6, .relative = 2e-5};

static void check_gradients(Gpt *g, const GoldenModel *golden) {
    for (int i = 0; i < golden->gradient_count; i++) {
        const GoldenGradient *expected = &golden->gradients[i];
        Tensor t = params_tensor(&g->params, g->params.grad, g->index[expected->param], expected->layer);
        double *grad = test_read(g->be, t), squares = 0, probe = 0;
        for (int64_t k = 0; k < tensor_numel(t); k++) {
            squares += grad[k] * grad[k];
            probe += grad[k] * cos(0.3 * (double)k);
        }
        char what[80];
        snprintf(what, sizeof what, "gradient of %s, layer %d", g->params.params[g->index[expected->param]].name,
                 expected->layer);
        assert_near(what, sqrt(squares), expected->norm, single_pass);
        assert_near(what, probe, expected->probe, (Tolerance){.absolute = 2e-5 * expected->norm + 2e-6});
    }
}

static void check_single_pass(const char *device, Case c) {
    Backend be;
    Gpt g;
    test_open(&be, device, "fp32");
    open_model(&g, &be, &c.model, BATCH);
    set_golden_weights(&g);

    assert_near("loss", forward_backward(&g, 0), c.golden->loss, single_pass);
    double *max_logit = test_read(&be, g.max_logit), *max_abs = test_read(&be, g.max_abs);
    assert_close("max_logit", max_logit, c.golden->max_logit, g.L * g.H, single_pass);
    assert_close("max_abs", max_abs, c.golden->max_abs, g.L * g.H, single_pass);
    check_gradients(&g, c.golden);

    gpt_free(&g);
    test_close(&be);
}

static void check_training_curve(const char *device, Case c) {
    Backend be;
    Gpt g;
    Optimizer opt;
    OptimizerConfig config = optimizer_config(c.matrices);
    test_open(&be, device, "fp32");
    open_model(&g, &be, &c.model, BATCH);
    assert_ok(optimizer_plan(&opt, &g.params, &config, &be));
    assert_ok(optimizer_allocate(&opt));
    set_golden_weights(&g);

    double curve[10];
    for (int step = 0; step < 10; step++) {
        curve[step] = forward_backward(&g, step);
        op_fill(&be, g.grad_square_sum, 0);
        optimizer_add_grad_squares(&opt, g.grad_square_sum);
        double norm = sqrt(test_get(&be, g.grad_square_sum, 0));
        /* torch's clip_grad_norm_ divides by norm + 1e-6 */
        const StepNumbers numbers = {.update = step + 1,
                                     .step = step + 1,
                                     .lr = config.lr,
                                     .grad_scale = norm > 1 ? (float)(1 / (norm + 1e-6)) : 1};
        optimizer_step(&opt, &numbers, NULL, NULL);
    }
    /* Ten steps amplify rounding: Newton-Schulz multiplies the smallest singular values, which are rounding errors
     * where the gradient has a low rank, by up to 3.44^5 = 485. */
    assert_close("loss curve", curve, c.golden->curve, 10, (Tolerance){.relative = 2e-3});

    optimizer_free(&opt);
    gpt_free(&g);
    test_close(&be);
}

static void gpt2_loss_max_logit_and_gradients_equal_pytorch(void **state) {
    (void)state;
    check_single_pass("ref", gpt2_case());
    check_single_pass("cpu", gpt2_case());
}

static void llama_with_grouped_queries_equals_pytorch(void **state) {
    (void)state;
    check_single_pass("ref", llama_case());
    check_single_pass("cpu", llama_case());
}

static void qk_norm_softcap_and_biases_equal_pytorch(void **state) {
    (void)state;
    check_single_pass("ref", mixed_case());
    check_single_pass("cpu", mixed_case());
}

static void latent_attention_equals_pytorch(void **state) {
    (void)state;
    check_single_pass("ref", mla_case());
    check_single_pass("cpu", mla_case());
    check_single_pass("ref", direct_mla_case());
    check_single_pass("cpu", direct_mla_case());
}

static void ten_adamw_steps_follow_pytorchs_curve(void **state) {
    (void)state;
    check_training_curve("ref", gpt2_case());
    check_training_curve("cpu", gpt2_case());
}

static void ten_muon_steps_follow_pytorchs_curve(void **state) {
    (void)state;
    check_training_curve("ref", llama_case());
    check_training_curve("cpu", llama_case());
    check_training_curve("ref", mixed_case());
    check_training_curve("cpu", mixed_case());
}

static void ten_muon_steps_of_latent_attention_follow_pytorchs_curve(void **state) {
    (void)state;
    check_training_curve("ref", mla_case());
    check_training_curve("cpu", mla_case());
    check_training_curve("ref", direct_mla_case());
    check_training_curve("cpu", direct_mla_case());
}

/* ---- the whole model -------------------------------------------------------------------------------------------- */

static void check_micro_batches(Case c) {
    Backend be;
    Gpt whole, part;
    test_open(&be, "ref", "fp32");
    open_model(&whole, &be, &c.model, 2);
    set_golden_weights(&whole);
    double loss = forward_backward(&whole, 0);

    assert_ok(gpt_plan(&part, &c.model, 1, &be));
    assert_ok(gpt_allocate(&part));
    set_golden_weights(&part);
    gpt_start_gradients(&part);
    gpt_reset_statistics(&part);
    for (int64_t row = 0; row < 2; row++) {
        set_golden_batch(&part, 0, row);
        gpt_forward(&part);
        gpt_loss_and_gradient(&part, 1.0f / (float)whole.N);
        gpt_backward(&part);
    }
    assert_near("loss", test_get(&be, part.loss_sum, 0) / (double)whole.N, loss, single_pass);
    assert_tensors_close("gradients", &be, part.params.grad, &be, whole.params.grad, single_pass);
    assert_tensors_close("max_logit", &be, part.max_logit, &be, whole.max_logit, (Tolerance){.relative = 1e-6});
    gpt_free(&part);
    gpt_free(&whole);
    test_close(&be);
}

static void micro_batches_accumulate_to_the_gradient_of_the_batch(void **state) {
    (void)state;
    check_micro_batches(llama_case());
    check_micro_batches(mla_case());
    check_micro_batches(direct_mla_case());
}

/* Every parameter's gradient is set or starts from zero: what is left of an earlier step, NaN or not, is gone. */
static void check_fresh_gradients(Case c) {
    Backend be;
    Gpt g;
    test_open(&be, "ref", "fp32");
    open_model(&g, &be, &c.model, BATCH);
    set_golden_weights(&g);
    forward_backward(&g, 0);
    double *first = test_read(&be, g.params.grad);
    for (int i = 0; i < g.params.param_count; i++) op_fill(&be, params_stack(&g.params, g.params.grad, i), NAN);
    forward_backward(&g, 0);
    const double *second = test_read(&be, g.params.grad);
    assert_close("gradients", second, first, g.params.elements, (Tolerance){0});
    gpt_free(&g);
    test_close(&be);
}

static void a_step_forgets_the_gradients_of_the_one_before(void **state) {
    (void)state;
    check_fresh_gradients(gpt2_case());
    check_fresh_gradients(llama_case());
    check_fresh_gradients(mixed_case());
    check_fresh_gradients(mla_case());
    check_fresh_gradients(direct_mla_case());
}

/* Layer 0 reads the embeddings, which QK-Clip does not touch: its input is fixed, so its new maxima are known exactly.
 */
static void check_clip(Case c, const char *device) {
    Backend be;
    Gpt g;
    test_open(&be, device, "fp32");
    open_model(&g, &be, &c.model, BATCH);
    set_golden_weights(&g);
    forward_backward(&g, 0);
    double *before = test_read(&be, g.max_logit);
    float *max_logit = calloc((size_t)(g.L * g.H), sizeof *max_logit);
    for (int64_t i = 0; i < g.L * g.H; i++) max_logit[i] = (float)before[i];

    /* Between the smallest and the largest: some heads are clipped, some are not. */
    double low = before[0], high = before[0];
    for (int64_t h = 1; h < g.H; h++) low = fmin(low, before[h]), high = fmax(high, before[h]);
    const double tau = (low + high) / 2;
    QkClipConfig config = {.enabled = true, .threshold = tau, .alpha = 0.3};
    ClipEvent events[16];
    int64_t count = qk_clip_apply(&be, &g.params, &config, g.K, max_logit, events);
    assert_in_range(count, 1, g.L * g.H - 1);

    forward_backward(&g, 0);
    double *after = test_read(&be, g.max_logit);
    for (int64_t h = 0; h < g.H; h++)
        assert_near("max_logit of layer 0", after[h], fmin(before[h], tau), (Tolerance){.relative = 2e-6});
    free(max_logit);
    gpt_free(&g);
    test_close(&be);
}

static void qk_clip_brings_each_clipped_head_to_tau_and_moves_no_other(void **state) {
    (void)state;
    check_clip(gpt2_case(), "ref"); /* biases are clipped with their weights */
    check_clip(gpt2_case(), "cpu");
    check_clip(llama_case(), "ref"); /* grouped queries: siblings share a key */
    check_clip(llama_case(), "cpu");
    check_clip(mla_case(), "ref"); /* the heads share a rotated key */
    check_clip(mla_case(), "cpu");
    check_clip(direct_mla_case(), "ref");
}

static double learn_by_heart(const char *device, const char *precision, OptimizerKind matrices, double lr,
                             ModelConfig model) {
    Backend be;
    Gpt g;
    Optimizer opt;
    model.width = 32;
    model.mlp_width = 64;
    OptimizerConfig config = optimizer_config(matrices);
    config.lr = lr;
    test_open(&be, device, precision);
    open_model(&g, &be, &model, BATCH);
    assert_ok(optimizer_plan(&opt, &g.params, &config, &be));
    assert_ok(optimizer_allocate(&opt));
    assert_ok(gpt_init_weights(&g, 1, 0));
    double loss = 0;
    for (int step = 1; step <= 60; step++) {
        loss = forward_backward(&g, 0);
        optimizer_step(&opt, &(StepNumbers){.update = step, .step = step, .lr = config.lr, .grad_scale = 1}, NULL,
                       NULL);
    }
    optimizer_free(&opt);
    gpt_free(&g);
    test_close(&be);
    return loss;
}

static void a_batch_is_learned_by_heart(void **state) {
    (void)state;
    const ModelConfig llama = llama_case().model, mla = mla_case().model;
    for (int matrices = 0; matrices < OPTIMIZER_COUNT; matrices++)
        if (matrices != OPTIMIZER_LION)
            assert_true(learn_by_heart("cpu", "fp32", (OptimizerKind)matrices, 0.01, llama) < 0.05);
    assert_true(learn_by_heart("cpu", "fp32", OPTIMIZER_LION, 0.003, llama) < 0.1);
    assert_true(learn_by_heart("cpu", "bf16", OPTIMIZER_MUON, 0.01, llama) < 0.05);
    assert_true(learn_by_heart("cpu", "bf16", OPTIMIZER_NORMUON, 0.01, llama) < 0.05);
    assert_true(learn_by_heart("cpu", "fp32", OPTIMIZER_MUON, 0.01, mla) < 0.05);
    assert_true(learn_by_heart("cpu", "bf16", OPTIMIZER_MUON, 0.01, mla) < 0.05);
}

/* ---- muP -------------------------------------------------------------------------------------------------------- */

/* As wide as asked, with heads of 8 channels. A batch has 4 * 32 tokens, more than channels. */
static ModelConfig coordinate_model(int64_t width) {
    ModelConfig model = llama_case().model;
    model.width = width;
    model.heads = model.kv_heads = width / 8;
    model.mlp_width = 2 * width;
    model.context = 32;
    model.vocab = 61;
    model.tie_embeddings = true;
    return model;
}

/* How far the first steps move activations: root mean squares of the changes of their elements. */
typedef struct {
    double final, logits; /* the last layer's output; the logits at the last position */
} Movement;

static double rms_of_change(const double *before, const double *after, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (after[i] - before[i]) * (after[i] - before[i]);
    return sqrt(sum / (double)n);
}

static double *read_logits(Gpt *g) {
    float *logits = calloc((size_t)(g->B * g->V), sizeof *logits);
    double *values = calloc((size_t)(g->B * g->V), sizeof *values);
    gpt_logits_at(g, g->T - 1, logits);
    for (int64_t i = 0; i < g->B * g->V; i++) values[i] = (double)logits[i];
    free(logits);
    return values;
}

static Movement movement(const OptimizerConfig *config, int64_t width) {
    enum { ROWS = 4, STEPS = 3 };
    Backend be;
    Gpt g;
    Optimizer opt;
    const ModelConfig model = coordinate_model(width);
    test_open(&be, "cpu", "fp32");
    open_model(&g, &be, &model, ROWS);
    assert_ok(optimizer_plan(&opt, &g.params, config, &be));
    assert_ok(optimizer_allocate(&opt));
    assert_ok(gpt_init_weights(&g, 1, config->mup_base_width));
    set_golden_batch(&g, 0, 0);
    gpt_forward(&g);
    double *final = test_read(&be, g.final), *logits = read_logits(&g);
    for (int step = 1; step <= STEPS; step++) {
        forward_backward(&g, 0);
        optimizer_step(&opt, &(StepNumbers){.update = step, .step = step, .lr = config->lr, .grad_scale = 1}, NULL,
                       NULL);
    }
    gpt_forward(&g);
    double *logits_after = read_logits(&g);
    const Movement moved = {.final = rms_of_change(final, test_read(&be, g.final), tensor_numel(g.final)),
                            .logits = rms_of_change(logits, logits_after, g.B * g.V)};
    free(logits);
    free(logits_after);
    optimizer_free(&opt);
    gpt_free(&g);
    test_close(&be);
    return moved;
}

static void assert_ratio(const char *optimizer, const char *of, double got, double low, double high) {
    if (!(got >= low && got <= high)) fail_msg("%s moves %s by %g times, not %g to %g", optimizer, of, got, low, high);
}

typedef struct {
    OptimizerKind matrices;
    UpdateScale scale;
    OrthogonalizeKind orthogonalize;
    double lr;
    double growth; /* of the last layer's movement from width 16 to 64, at least, without muP */
} CoordinateCheck;

/* The "coordinate check" of Yang et al. 2022 (Tensor Programs V, appendix D.1). What AdamW does to the embedding moves
 * the last layer, too, and by the same at any width: a low rate keeps it out. */
static void under_mup_updates_move_activations_by_the_same_at_any_width(void **state) {
    (void)state;
    static const CoordinateCheck checks[] = {
        {OPTIMIZER_MUON, SCALE_RMS, ORTHOGONALIZE_NEWTON_SCHULZ, .05, 1.5},
        {OPTIMIZER_MUON, SCALE_ORIGINAL, ORTHOGONALIZE_NEWTON_SCHULZ, .1, 0},
        {OPTIMIZER_MUON, SCALE_SPECTRAL, ORTHOGONALIZE_NEWTON_SCHULZ, .1, 0},
        {OPTIMIZER_MUON, SCALE_NONE, ORTHOGONALIZE_NEWTON_SCHULZ, .1, 0},
        {OPTIMIZER_MUON, SCALE_RMS, ORTHOGONALIZE_SCHATTEN, .05, 1.5},
        {OPTIMIZER_NORMUON, SCALE_RMS, ORTHOGONALIZE_NEWTON_SCHULZ, .05, 1.5},
        {OPTIMIZER_ADAMUON, SCALE_RMS, ORTHOGONALIZE_NEWTON_SCHULZ, .05, 1.5},
        {OPTIMIZER_ADAMW, SCALE_RMS, ORTHOGONALIZE_NEWTON_SCHULZ, .01, 1.5},
        {OPTIMIZER_LION, SCALE_RMS, ORTHOGONALIZE_NEWTON_SCHULZ, .01, 1.5},
        {OPTIMIZER_SGD, SCALE_RMS, ORTHOGONALIZE_NEWTON_SCHULZ, .3, 1.5},
    };
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        const CoordinateCheck *c = &checks[i];
        OptimizerConfig config = optimizer_config(c->matrices);
        config.lr = c->lr, config.muon.scale = c->scale;
        config.muon.orthogonalize = c->orthogonalize, config.muon.schatten_p = 4;
        if (c->matrices != OPTIMIZER_ADAMW) config.adamw.lr = .001;
        const Movement narrow = movement(&config, 16), wide = movement(&config, 64);
        config.mup_base_width = 16;
        const Movement same = movement(&config, 16), scaled = movement(&config, 64);
        const char *name = optimizer_name(c->matrices);
        assert_true(same.final == narrow.final && same.logits == narrow.logits);
        assert_ratio(name, "the last layer", scaled.final / narrow.final, .5, 2);
        assert_ratio(name, "the logits", scaled.logits / narrow.logits, .35, 1.5);
        assert_ratio(name, "the last layer without muP", wide.final / narrow.final, c->growth, 10);
        assert_ratio(name, "the logits without muP", wide.logits / narrow.logits, 2.5, 10);
    }
}

static void every_parameter_element_belongs_to_exactly_one_block(void **state) {
    (void)state;
    Backend be;
    Gpt g;
    Case cases[] = {gpt2_case(), llama_case(), mixed_case(), mla_case(), direct_mla_case()};
    test_open(&be, "ref", "fp32");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_ok(gpt_plan(&g, &cases[i].model, 1, &be));
        assert_ok(gpt_allocate(&g));
        int64_t covered = 0;
        for (int kind = 0; kind < g.params.kind_count; kind++)
            for (int64_t l = 0; l < params_kind_layers(&g.params, kind); l++) {
                Tensor block = params_block(&g.params, g.params.grad, kind, l);
                double *seen = test_read(&be, block);
                for (int64_t k = 0; k < tensor_numel(block); k++) assert_true(seen[k] == 0);
                op_fill(&be, block, 1);
                covered += tensor_numel(block);
            }
        assert_int_equal(covered, gpt_parameters(&g));
        gpt_free(&g);
    }
    test_close(&be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_loss_max_logit_and_gradients_equal_pytorch),
        cmocka_unit_test(llama_with_grouped_queries_equals_pytorch),
        cmocka_unit_test(qk_norm_softcap_and_biases_equal_pytorch),
        cmocka_unit_test(latent_attention_equals_pytorch),
        cmocka_unit_test(ten_adamw_steps_follow_pytorchs_curve),
        cmocka_unit_test(ten_muon_steps_follow_pytorchs_curve),
        cmocka_unit_test(ten_muon_steps_of_latent_attention_follow_pytorchs_curve),
        cmocka_unit_test(a_step_forgets_the_gradients_of_the_one_before),
        cmocka_unit_test(micro_batches_accumulate_to_the_gradient_of_the_batch),
        cmocka_unit_test(qk_clip_brings_each_clipped_head_to_tau_and_moves_no_other),
        cmocka_unit_test(a_batch_is_learned_by_heart),
        cmocka_unit_test(under_mup_updates_move_activations_by_the_same_at_any_width),
        cmocka_unit_test(every_parameter_element_belongs_to_exactly_one_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
