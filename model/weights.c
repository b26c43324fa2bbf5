/* The weights outside attention, and what rows become: parameters, blocks, initial values. See weights.h. */
#include "model/weights.h"

#include <math.h>
#include <stdlib.h>

#include "base/integer.h"
#include "base/rng.h"
#include "model/attention.h"

WEIGHT_SIZE(size_T, g->T);
WEIGHT_SIZE(size_V, g->V);
WEIGHT_SIZE(size_F, g->F);
WEIGHT_SIZE(size_HE, g->H * g->E);
WEIGHT_SIZE(size_gate, g->config.mlp == MLP_SWIGLU ? g->F : 0);
WEIGHT_CONDITION(with_positions, c->position == POSITION_LEARNED);
WEIGHT_CONDITION(with_norm_bias, c->bias && c->norm == NORM_LAYERNORM);
WEIGHT_CONDITION(untied, !c->tie_embeddings);

static const WeightRow before_attention[] = {
    /* tied, the head's gradient comes first and sets it */
    {PARAM_WTE, "wte", 0, INIT_EMBEDDING, .global = true, .columns = size_C, .from_zero = untied,
     .gpt2 = "transformer.wte.weight", .parts = {{"embed", ROLE_EMBED, size_V, .llama = "model.embed_tokens.weight"}}},
    {PARAM_WPE, "wpe", 1, INIT_EMBEDDING, .global = true, .wanted = with_positions, .columns = size_C,
     .from_zero = always, .gpt2 = "transformer.wpe.weight",
     .parts = {{"position", ROLE_POSITION, size_T, .llama = "model.embed_positions.weight"}}},
    {PARAM_NORM1, "norm1", 2, INIT_ONE, .from_zero = always, .gpt2 = "ln_1.weight",
     .parts = {{"norm1", ROLE_NORM, size_C, .llama = "input_layernorm.weight"}}},
    {PARAM_NORM1_BIAS, "norm1_bias", 3, INIT_ZERO, .wanted = with_norm_bias, .from_zero = always, .gpt2 = "ln_1.bias",
     .parts = {{"norm1_bias", ROLE_BIAS, size_C, .llama = "input_layernorm.bias"}}},
};

static const WeightRow after_attention[] = {
    {PARAM_OUT, "out", 8, INIT_RESIDUAL, .columns = size_HE, .gpt2 = "attn.c_proj.weight",
     .parts = {{"o", ROLE_O, size_C, .llama = "self_attn.o_proj.weight", .heads = size_H,
                .head_axis = HEADS_IN_COLUMNS}}},
    {PARAM_OUT_BIAS, "o_bias", 9, INIT_ZERO, .wanted = with_bias, .gpt2 = "attn.c_proj.bias",
     .parts = {{"o_bias", ROLE_BIAS, size_C, .llama = "self_attn.o_proj.bias"}}},
    {PARAM_NORM2, "norm2", 10, INIT_ONE, .from_zero = always, .gpt2 = "ln_2.weight",
     .parts = {{"norm2", ROLE_NORM, size_C, .llama = "post_attention_layernorm.weight"}}},
    {PARAM_NORM2_BIAS, "norm2_bias", 11, INIT_ZERO, .wanted = with_norm_bias, .from_zero = always, .gpt2 = "ln_2.bias",
     .parts = {{"norm2_bias", ROLE_BIAS, size_C, .llama = "post_attention_layernorm.bias"}}},
    {PARAM_UP, "up", 12, INIT_HIDDEN, .columns = size_C, .gpt2 = "mlp.c_fc.weight",
     .parts = {{"gate", ROLE_GATE, size_gate, .llama = "mlp.gate_proj.weight"},
               {"up", ROLE_UP, size_F, .llama = "mlp.up_proj.weight"}}},
    {PARAM_UP_BIAS, "up_bias", 13, INIT_ZERO, .wanted = with_bias, .gpt2 = "mlp.c_fc.bias",
     .parts = {{"up_bias", ROLE_BIAS, size_gate, .llama = "mlp.gate_proj.bias"},
               {NULL, ROLE_BIAS, size_F, .llama = "mlp.up_proj.bias"}}},
    {PARAM_DOWN, "down", 14, INIT_RESIDUAL, .columns = size_F, .gpt2 = "mlp.c_proj.weight",
     .parts = {{"down", ROLE_DOWN, size_C, .llama = "mlp.down_proj.weight"}}},
    {PARAM_DOWN_BIAS, "down_bias", 15, INIT_ZERO, .wanted = with_bias, .gpt2 = "mlp.c_proj.bias",
     .parts = {{"down_bias", ROLE_BIAS, size_C, .llama = "mlp.down_proj.bias"}}},
    {PARAM_NORMF, "normf", 16, INIT_FINAL_NORM, .global = true, .from_zero = always, .gpt2 = "transformer.ln_f.weight",
     .parts = {{"normf", ROLE_NORM, size_C, .llama = "model.norm.weight"}}},
    {PARAM_NORMF_BIAS, "normf_bias", 17, INIT_ZERO, .global = true, .wanted = with_norm_bias, .from_zero = always,
     .gpt2 = "transformer.ln_f.bias", .parts = {{"normf_bias", ROLE_BIAS, size_C, .llama = "model.norm.bias"}}},
    {PARAM_HEAD, "head", 18, INIT_EMBEDDING, .global = true, .wanted = untied, .columns = size_C,
     .parts = {{"head", ROLE_HEAD, size_V, .llama = "lm_head.weight"}}},
};

/* ---- parameters and blocks -------------------------------------------------------------------------------------- */

bool weight_has_part(const WeightRow *row, int part) {
    return part < WEIGHT_PARTS && row->parts[part].rows;
}

static int64_t count_rows(const Gpt *g, const WeightRow *row) {
    int64_t rows = 0;
    for (int i = 0; weight_has_part(row, i); i++) rows += row->parts[i].rows(g);
    return rows;
}

static void add_blocks(Gpt *g, const WeightRow *row, int param) {
    int64_t first = 0;
    for (int i = 0; weight_has_part(row, i);) {
        const WeightPart *part = &row->parts[i];
        int64_t rows = part->rows(g);
        for (i++; weight_has_part(row, i) && !row->parts[i].block; i++) rows += row->parts[i].rows(g);
        if (rows == 0) continue;
        const int heads = part->heads ? (int)part->heads(g) : 1;
        int kind = params_add_block(&g->params, part->block, part->role, param, first, rows, heads, part->head_axis);
        g->params.kinds[kind].clip = part->clip;
        first += rows;
    }
}

static void add_weight(Gpt *g, const WeightRow *row) {
    const int64_t rows = count_rows(g, row), layers = row->global ? 0 : g->L;
    if (rows == 0 || (row->wanted && !row->wanted(&g->config))) return;
    const int param = params_add(&g->params, row->name, layers, rows, row->columns ? row->columns(g) : 0);
    g->index[row->id] = param;
    g->rows[param] = row;
    add_blocks(g, row, param);
}

static void add_weights(Gpt *g, const WeightRow *rows, size_t count) {
    for (size_t i = 0; i < count; i++) add_weight(g, &rows[i]);
}

void weights_describe(Gpt *g) {
    for (int id = 0; id < GPT_PARAM_COUNT; id++) g->index[id] = -1;
    add_weights(g, before_attention, sizeof before_attention / sizeof before_attention[0]);
    add_weights(g, g->attention->weights, g->attention->weight_count);
    add_weights(g, after_attention, sizeof after_attention / sizeof after_attention[0]);
}

/* ---- initial weights -------------------------------------------------------------------------------------------- */

typedef struct {
    double std, constant; /* constant + std * normal */
} Distribution;

static void init_param(Gpt *g, int param, int64_t seed, Distribution d, float *host) {
    const Param *p = &g->params.params[param];
    int64_t n = p->rows * p->columns;
    for (int64_t layer = 0; layer < p->count; layer++) {
        /* Stream, layer and element make the counter: no tensor's values depend on what else the model has. */
        uint64_t first = ((uint64_t)g->rows[param]->stream << 48) + ((uint64_t)layer << 37);
#pragma omp parallel for
        for (int64_t i = 0; i < n; i++)
            host[i] = (float)(d.constant +
                              (d.std > 0 ? d.std * rng_normal((uint64_t)seed, RNG_INIT, first + (uint64_t)i) : 0));
        backend_from_host(g->be, params_tensor(&g->params, g->params.master, param, layer), host);
    }
}

Status gpt_init_weights(Gpt *g, int64_t seed, int64_t mup_base_width) {
    const ParamTable *params = &g->params;
    int64_t largest = 0;
    for (int p = 0; p < params->param_count; p++)
        largest = larger(largest, params->params[p].rows * params->params[p].columns);
    float *host = malloc((size_t)largest * sizeof *host);
    if (!host) return NO_MEMORY("no memory for %lld initial weights", (long long)largest);

    const double r = mup_base_width > 0 ? (double)mup_base_width / (double)g->C : 1, std = g->config.init_std;
    const double hidden_std = std * sqrt(r);
    const Distribution distributions[] = {[INIT_EMBEDDING] = {.std = std},
                                          [INIT_HIDDEN] = {.std = hidden_std},
                                          [INIT_RESIDUAL] = {.std = hidden_std / sqrt(2.0 * (double)g->L)},
                                          [INIT_ZERO] = {0},
                                          [INIT_ONE] = {.constant = 1},
                                          [INIT_FINAL_NORM] = {.constant = r}};
    for (int p = 0; p < params->param_count; p++) init_param(g, p, seed, distributions[g->rows[p]->init], host);
    free(host);
    params_refresh_work(g->be, &g->params);
    return status_ok();
}
