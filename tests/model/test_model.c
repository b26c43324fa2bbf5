/* The model against PyTorch: loss, MaxLogit and gradients of tiny models (tests/golden/make_model.py), on ref and cpu;
 * then accumulation over micro-batches, fresh gradients, and the parameters' rows.
 */
#include "tests/golden_model.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "model/weights.h"
#include "ops/ops.h"

/* ---- against PyTorch -------------------------------------------------------------------------------------------- */

static int find_param(const Gpt *g, int stream) {
    for (int param = 0; param < g->params.param_count; param++)
        if (g->rows[param]->stream == stream) return param;
    fail_msg("no weight has stream %d", stream);
    return -1;
}

static void check_gradients(Gpt *g, const GoldenModel *golden) {
    for (int i = 0; i < golden->gradient_count; i++) {
        const GoldenGradient *expected = &golden->gradients[i];
        const int param = find_param(g, expected->param);
        Tensor t = params_tensor(&g->params, g->params.grad, param, expected->layer);
        double *grad = test_read(g->be, t), squares = 0, probe = 0;
        for (int64_t k = 0; k < tensor_numel(t); k++) {
            squares += grad[k] * grad[k];
            probe += grad[k] * cos(0.3 * (double)k);
        }
        char what[80];
        snprintf(what, sizeof what, "gradient of %s, layer %d", g->params.params[param].name, expected->layer);
        golden_assert_near(what, sqrt(squares), expected->norm, golden_single_pass);
        golden_assert_near(what, probe, expected->probe, (Tolerance){.absolute = 2e-5 * expected->norm + 2e-6});
    }
}

static void check_single_pass(const char *device, GoldenCase c) {
    Backend be;
    Gpt g;
    test_open(&be, device, "fp32");
    golden_open(&g, &be, &c.model, GOLDEN_BATCH);
    golden_set_weights(&g);

    golden_assert_near("loss", golden_forward_backward(&g, 0), c.golden->loss, golden_single_pass);
    double *max_logit = test_read(&be, g.max_logit), *max_abs = test_read(&be, g.max_abs);
    assert_close("max_logit", max_logit, c.golden->max_logit, g.L * g.H, golden_single_pass);
    assert_close("max_abs", max_abs, c.golden->max_abs, g.L * g.H, golden_single_pass);
    check_gradients(&g, c.golden);

    gpt_free(&g);
    test_close(&be);
}

static void gpt2_loss_max_logit_and_gradients_equal_pytorch(void **state) {
    (void)state;
    check_single_pass("ref", golden_gpt2_case());
    check_single_pass("cpu", golden_gpt2_case());
}

static void llama_with_grouped_queries_equals_pytorch(void **state) {
    (void)state;
    check_single_pass("ref", golden_llama_case());
    check_single_pass("cpu", golden_llama_case());
}

static void qk_norm_softcap_and_biases_equal_pytorch(void **state) {
    (void)state;
    check_single_pass("ref", golden_mixed_case());
    check_single_pass("cpu", golden_mixed_case());
}

static void latent_attention_equals_pytorch(void **state) {
    (void)state;
    check_single_pass("ref", golden_mla_case());
    check_single_pass("cpu", golden_mla_case());
    check_single_pass("ref", golden_direct_mla_case());
    check_single_pass("cpu", golden_direct_mla_case());
}

/* ---- gradients of a step ---------------------------------------------------------------------------------------- */

static void check_micro_batches(GoldenCase c) {
    Backend be;
    Gpt whole, part;
    test_open(&be, "ref", "fp32");
    golden_open(&whole, &be, &c.model, 2);
    golden_set_weights(&whole);
    double loss = golden_forward_backward(&whole, 0);

    assert_ok(gpt_plan(&part, &c.model, 1, &be));
    assert_ok(gpt_allocate(&part));
    golden_set_weights(&part);
    gpt_start_gradients(&part);
    gpt_reset_statistics(&part);
    for (int64_t row = 0; row < 2; row++) {
        golden_set_batch(&part, 0, row);
        gpt_forward(&part);
        gpt_loss_and_gradient(&part, 1.0f / (float)whole.N);
        gpt_backward(&part);
    }
    golden_assert_near("loss", test_get(&be, part.loss_sum, 0) / (double)whole.N, loss, golden_single_pass);
    assert_tensors_close("gradients", &be, part.params.grad, &be, whole.params.grad, golden_single_pass);
    assert_tensors_close("max_logit", &be, part.max_logit, &be, whole.max_logit, (Tolerance){.relative = 1e-6});
    gpt_free(&part);
    gpt_free(&whole);
    test_close(&be);
}

static void micro_batches_accumulate_to_the_gradient_of_the_batch(void **state) {
    (void)state;
    check_micro_batches(golden_llama_case());
    check_micro_batches(golden_mla_case());
    check_micro_batches(golden_direct_mla_case());
}

/* Every parameter's gradient is set or starts from zero: what is left of an earlier step, NaN or not, is gone. */
static void check_fresh_gradients(GoldenCase c) {
    Backend be;
    Gpt g;
    test_open(&be, "ref", "fp32");
    golden_open(&g, &be, &c.model, GOLDEN_BATCH);
    golden_set_weights(&g);
    golden_forward_backward(&g, 0);
    double *first = test_read(&be, g.params.grad);
    for (int i = 0; i < g.params.param_count; i++) op_fill(&be, params_stack(&g.params, g.params.grad, i), NAN);
    golden_forward_backward(&g, 0);
    const double *second = test_read(&be, g.params.grad);
    assert_close("gradients", second, first, g.params.elements, (Tolerance){0});
    gpt_free(&g);
    test_close(&be);
}

static void a_step_forgets_the_gradients_of_the_one_before(void **state) {
    (void)state;
    check_fresh_gradients(golden_gpt2_case());
    check_fresh_gradients(golden_llama_case());
    check_fresh_gradients(golden_mixed_case());
    check_fresh_gradients(golden_mla_case());
    check_fresh_gradients(golden_direct_mla_case());
}

/* ---- initial weights -------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    int stream; /* of random numbers: a seed's weights are the same for good */
    enum { EMBEDDING, HIDDEN, RESIDUAL, ONE, ZERO, FINAL } kind;
} InitialWeight;

static const InitialWeight initial_weights[] = {
    {"wte", 0, EMBEDDING},    {"wpe", 1, EMBEDDING},    {"norm1", 2, ONE},         {"norm1_bias", 3, ZERO},
    {"qkv", 4, HIDDEN},       {"qkv_bias", 5, ZERO},    {"q_norm", 6, ONE},        {"k_norm", 7, ONE},
    {"out", 8, RESIDUAL},     {"o_bias", 9, ZERO},      {"norm2", 10, ONE},        {"norm2_bias", 11, ZERO},
    {"up", 12, HIDDEN},       {"up_bias", 13, ZERO},    {"down", 14, RESIDUAL},    {"down_bias", 15, ZERO},
    {"normf", 16, FINAL},     {"normf_bias", 17, ZERO}, {"head", 18, EMBEDDING},   {"latent", 19, HIDDEN},
    {"q_down_norm", 20, ONE}, {"q_up", 21, HIDDEN},     {"kv_down_norm", 22, ONE}, {"kv_up", 23, HIDDEN},
};

static const InitialWeight *find_initial(const char *name) {
    for (size_t i = 0; i < sizeof initial_weights / sizeof initial_weights[0]; i++)
        if (strcmp(initial_weights[i].name, name) == 0) return &initial_weights[i];
    fail_msg("%s is not listed", name);
    return NULL;
}

static float initial_value(const InitialWeight *w, const Gpt *g, double r, int64_t layer, int64_t i) {
    const double std = g->config.init_std, of_kind[] = {[EMBEDDING] = std,
                                                        [HIDDEN] = std * sqrt(r),
                                                        [RESIDUAL] = std * sqrt(r) / sqrt(2.0 * (double)g->L),
                                                        [FINAL] = 0};
    if (w->kind == ONE || w->kind == ZERO) return w->kind == ONE ? 1 : 0;
    if (w->kind == FINAL) return (float)r;
    const uint64_t counter = ((uint64_t)w->stream << 48) + ((uint64_t)layer << 37) + (uint64_t)i;
    return (float)(of_kind[w->kind] * rng_normal(5, RNG_INIT, counter));
}

static void check_initial_weights(GoldenCase c, int64_t base_width) {
    Backend be;
    Gpt g;
    test_open(&be, "ref", "fp32");
    golden_open(&g, &be, &c.model, 1);
    assert_ok(gpt_init_weights(&g, 5, base_width));
    const double r = base_width ? (double)base_width / (double)g.C : 1;
    for (int param = 0; param < g.params.param_count; param++)
        for (int64_t layer = 0; layer < g.params.params[param].count; layer++) {
            const InitialWeight *w = find_initial(g.params.params[param].name);
            const Tensor t = params_tensor(&g.params, g.params.master, param, layer);
            for (int64_t i = 0; i < tensor_numel(t); i++)
                assert_true(((float *)t.data)[i] == initial_value(w, &g, r, layer, i));
        }
    gpt_free(&g);
    test_close(&be);
}

static void a_seeds_initial_weights_are_these(void **state) {
    (void)state;
    check_initial_weights(golden_gpt2_case(), 0);
    check_initial_weights(golden_llama_case(), 6);
    check_initial_weights(golden_mixed_case(), 0);
    check_initial_weights(golden_mla_case(), 5);
    check_initial_weights(golden_direct_mla_case(), 0);
}

/* ---- parameters ------------------------------------------------------------------------------------------------- */

static void every_parameter_element_belongs_to_exactly_one_block(void **state) {
    (void)state;
    Backend be;
    Gpt g;
    GoldenCase cases[] = {golden_gpt2_case(), golden_llama_case(), golden_mixed_case(), golden_mla_case(),
                          golden_direct_mla_case()};
    test_open(&be, "ref", "fp32");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_ok(gpt_plan(&g, &cases[i].model, 1, &be));
        assert_ok(gpt_allocate(&g));
        int64_t covered = 0;
        for (int kind = 0; kind < g.params.kind_count; kind++)
            for (int64_t l = 0; l < g.params.kinds[kind].layers; l++) {
                Tensor block = params_block(&g.params, g.params.grad, kind, l);
                double *seen = test_read(&be, block);
                for (int64_t k = 0; k < tensor_numel(block); k++) assert_true(seen[k] == 0);
                op_fill(&be, block, 1);
                covered += tensor_numel(block);
            }
        assert_int_equal(covered, g.params.count);
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
        cmocka_unit_test(a_step_forgets_the_gradients_of_the_one_before),
        cmocka_unit_test(micro_batches_accumulate_to_the_gradient_of_the_batch),
        cmocka_unit_test(every_parameter_element_belongs_to_exactly_one_block),
        cmocka_unit_test(a_seeds_initial_weights_are_these),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
