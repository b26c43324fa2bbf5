/* Tiny models with weights and batches of a formula; see golden_model.h. */
#include "tests/golden_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/weights.h"
#include "tests/golden/model.h"

/* The configurations of make_model.py. */
GoldenCase golden_gpt2_case(void) {
    return (GoldenCase){.golden = &golden_gpt2,
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

GoldenCase golden_llama_case(void) {
    return (GoldenCase){.golden = &golden_llama,
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

GoldenCase golden_mixed_case(void) {
    return (GoldenCase){.golden = &golden_mixed,
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
GoldenCase golden_mla_case(void) {
    return (GoldenCase){.golden = &golden_mla,
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
GoldenCase golden_direct_mla_case(void) {
    GoldenCase c = golden_mla_case();
    ModelConfig *m = &c.model;
    c.golden = &golden_mla_direct;
    m->heads = m->kv_heads = 2;
    m->width = 16, m->context = 7, m->vocab = 17, m->mlp_width = 12;
    m->q_rank = 0, m->kv_rank = 9, m->head_nope = 4, m->head_rope = 6, m->head_value = 3;
    m->tie_embeddings = true;
    m->attention_softcap = 1.5;
    return c;
}

void golden_open(Gpt *g, Backend *be, const ModelConfig *config, int64_t rows) {
    assert_ok(gpt_plan(g, config, rows, be));
    assert_ok(gpt_allocate(g));
    assert_ok(backend_reserve(be, gpt_op_limits(g)));
}

void golden_set_weights(Gpt *g) {
    for (int param = 0; param < g->params.param_count; param++) {
        const Param *p = &g->params.params[param];
        const int64_t n = p->rows * p->columns;
        bool norm = strstr(p->name, "norm") && !strstr(p->name, "bias");
        float *values = calloc((size_t)n, sizeof *values);
        for (int64_t l = 0; l < p->count; l++) {
            for (int64_t i = 0; i < n; i++) {
                double wave = sin(1.0 + 0.7 * (double)i + 13.0 * g->rows[param]->stream + 5.0 * (double)l);
                values[i] = (float)(norm ? 1 + 0.1 * wave : p->vector ? 0.1 * wave : 0.25 * wave);
            }
            backend_from_host(g->be, params_tensor(&g->params, g->params.master, param, l), values);
        }
        free(values);
    }
    params_refresh_work(g->be, &g->params);
}

void golden_set_batch(Gpt *g, int64_t step, int64_t first_row) {
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
double golden_forward_backward(Gpt *g, int64_t step) {
    float loss;
    gpt_start_gradients(g);
    gpt_reset_statistics(g);
    golden_set_batch(g, step, 0);
    gpt_forward(g);
    gpt_loss_and_gradient(g, 1.0f / (float)g->N);
    gpt_backward(g);
    backend_to_host(g->be, &loss, g->loss_sum);
    assert_ok(backend_sync(g->be));
    return (double)loss / (double)g->N;
}

void golden_assert_near(const char *what, double got, double expected, Tolerance tolerance) {
    assert_close(what, &got, &expected, 1, tolerance);
}
