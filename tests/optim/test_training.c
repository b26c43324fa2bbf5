/* The model with its optimizers: ten training steps of tiny models against PyTorch (tests/golden/make_model.py), on ref
 * and cpu; then what only both show: QK-Clip's exactness with a layer's input held fixed, that a batch can be learned
 * by heart, and muP.
 */
#include "tests/golden_model.h"

#include <math.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "optim/optimizer.h"
#include "optim/qk_clip.h"

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

/* ---- against PyTorch -------------------------------------------------------------------------------------------- */

static void check_training_curve(const char *device, GoldenCase c) {
    Backend be;
    Gpt g;
    Optimizer opt;
    OptimizerConfig config = optimizer_config(c.matrices);
    test_open(&be, device, "fp32");
    golden_open(&g, &be, &c.model, GOLDEN_BATCH);
    assert_ok(optimizer_plan(&opt, &g.params, &config, &be));
    assert_ok(optimizer_allocate(&opt));
    golden_set_weights(&g);

    double curve[10];
    for (int step = 0; step < 10; step++) {
        curve[step] = golden_forward_backward(&g, step);
        op_fill(&be, g.grad_square_sum, 0);
        op_sum_squares(g.be, g.grad_square_sum, g.params.grad);
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

static void ten_adamw_steps_follow_pytorchs_curve(void **state) {
    (void)state;
    check_training_curve("ref", golden_gpt2_case());
    check_training_curve("cpu", golden_gpt2_case());
}

static void ten_muon_steps_follow_pytorchs_curve(void **state) {
    (void)state;
    check_training_curve("ref", golden_llama_case());
    check_training_curve("cpu", golden_llama_case());
    check_training_curve("ref", golden_mixed_case());
    check_training_curve("cpu", golden_mixed_case());
}

static void ten_muon_steps_of_latent_attention_follow_pytorchs_curve(void **state) {
    (void)state;
    check_training_curve("ref", golden_mla_case());
    check_training_curve("cpu", golden_mla_case());
    check_training_curve("ref", golden_direct_mla_case());
    check_training_curve("cpu", golden_direct_mla_case());
}

/* ---- QK-Clip and learning --------------------------------------------------------------------------------------- */

/* Layer 0 reads the embeddings, which QK-Clip does not touch: its input is fixed, so its new maxima are known exactly.
 */
static void check_clip(GoldenCase c, const char *device) {
    Backend be;
    Gpt g;
    test_open(&be, device, "fp32");
    golden_open(&g, &be, &c.model, GOLDEN_BATCH);
    golden_set_weights(&g);
    golden_forward_backward(&g, 0);
    double *before = test_read(&be, g.max_logit);
    float *max_logit = calloc((size_t)(g.L * g.H), sizeof *max_logit);
    for (int64_t i = 0; i < g.L * g.H; i++) max_logit[i] = (float)before[i];

    /* Between the smallest and the largest: some heads are clipped, some are not. */
    double low = before[0], high = before[0];
    for (int64_t h = 1; h < g.H; h++) low = fmin(low, before[h]), high = fmax(high, before[h]);
    const double tau = (low + high) / 2;
    QkClipConfig config = {.enabled = true, .threshold = tau, .alpha = 0.3};
    ClipEvent events[16];
    int64_t count = qk_clip_apply(&be, &g.params, &config, max_logit, events);
    assert_in_range(count, 1, g.L * g.H - 1);

    golden_forward_backward(&g, 0);
    double *after = test_read(&be, g.max_logit);
    for (int64_t h = 0; h < g.H; h++)
        golden_assert_near("max_logit of layer 0", after[h], fmin(before[h], tau), (Tolerance){.relative = 2e-6});
    free(max_logit);
    gpt_free(&g);
    test_close(&be);
}

static void qk_clip_brings_each_clipped_head_to_tau_and_moves_no_other(void **state) {
    (void)state;
    check_clip(golden_gpt2_case(), "ref"); /* biases are clipped with their weights */
    check_clip(golden_gpt2_case(), "cpu");
    check_clip(golden_llama_case(), "ref"); /* grouped queries: siblings share a key */
    check_clip(golden_llama_case(), "cpu");
    check_clip(golden_mla_case(), "ref"); /* the heads share a rotated key */
    check_clip(golden_mla_case(), "cpu");
    check_clip(golden_direct_mla_case(), "ref");
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
    golden_open(&g, &be, &model, GOLDEN_BATCH);
    assert_ok(optimizer_plan(&opt, &g.params, &config, &be));
    assert_ok(optimizer_allocate(&opt));
    assert_ok(gpt_init_weights(&g, 1, 0));
    double loss = 0;
    for (int step = 1; step <= 60; step++) {
        loss = golden_forward_backward(&g, 0);
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
    const ModelConfig llama = golden_llama_case().model, mla = golden_mla_case().model;
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
    ModelConfig model = golden_llama_case().model;
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
    golden_open(&g, &be, &model, ROWS);
    assert_ok(optimizer_plan(&opt, &g.params, config, &be));
    assert_ok(optimizer_allocate(&opt));
    assert_ok(gpt_init_weights(&g, 1, config->mup_base_width));
    golden_set_batch(&g, 0, 0);
    gpt_forward(&g);
    double *final = test_read(&be, g.final), *logits = read_logits(&g);
    for (int step = 1; step <= STEPS; step++) {
        golden_forward_backward(&g, 0);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_adamw_steps_follow_pytorchs_curve),
        cmocka_unit_test(ten_muon_steps_follow_pytorchs_curve),
        cmocka_unit_test(ten_muon_steps_of_latent_attention_follow_pytorchs_curve),
        cmocka_unit_test(qk_clip_brings_each_clipped_head_to_tau_and_moves_no_other),
        cmocka_unit_test(a_batch_is_learned_by_heart),
        cmocka_unit_test(under_mup_updates_move_activations_by_the_same_at_any_width),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
