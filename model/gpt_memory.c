/* What a model needs of memory: sizes from the configuration, weights from their rows, activations in one list that is
 * measured first and placed when the memory is there. See gpt.h for the letters.
 */
#include "model/attention.h"

#include <math.h>
#include <stdlib.h>

#include "base/integer.h"
#include "ops/ops.h"

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* Logits are made and used up in chunks of tokens: as many as the backend's pieces hold, whatever the vocabulary. */
static int64_t logits_chunk(const Gpt *g) {
    int64_t rows = g->be->pieces.logits / g->V / 64 * 64;
    return smaller(larger(rows, 64), g->N);
}

static int64_t up_columns(const Gpt *g) {
    return g->config.mlp == MLP_SWIGLU ? 2 * g->F : g->F;
}

static void layout_layer(Gpt *g, Arena *arena, LayerActivations *a) {
    const DType t = g->be->compute_dtype;
    const int64_t N = g->N, C = g->C, F = g->F;

    a->input = arena_take_2d(arena, t, N, C);
    a->norm1 = arena_take_2d(arena, t, N, C);
    a->rstd1 = arena_take_1d(arena, DTYPE_F32, N);
    g->attention->layout_layer(g, arena, a);
    a->att = arena_take_2d(arena, t, N, g->H * g->E);
    a->lse = arena_take_3d(arena, DTYPE_F32, g->B, g->H, g->T);
    a->middle = arena_take_2d(arena, t, N, C);
    a->norm2 = arena_take_2d(arena, t, N, C);
    a->rstd2 = arena_take_1d(arena, DTYPE_F32, N);
    a->up = arena_take_2d(arena, t, N, up_columns(g));
    a->act = arena_take_2d(arena, t, N, F);
    if (g->config.norm == NORM_LAYERNORM) {
        a->mean1 = arena_take_1d(arena, DTYPE_F32, N);
        a->mean2 = arena_take_1d(arena, DTYPE_F32, N);
    }
}

/* | loss_sum | grad_square_sum | max_logit (L,H) | max_abs (L,H) | */
enum { SUMS = 2, MAXIMA = 2 };

static void layout_statistics(Gpt *g, Arena *arena) {
    const int64_t heads = g->L * g->H;
    g->statistics = arena_take_1d(arena, DTYPE_F32, SUMS + MAXIMA * heads);
    g->loss_sum = tensor_slice(g->statistics, 0, 0, 1);
    g->grad_square_sum = tensor_slice(g->statistics, 0, 1, 1);
    g->max_logit = tensor_as_2d(tensor_slice(g->statistics, 0, SUMS, heads), g->L, g->H);
    g->max_abs = tensor_as_2d(tensor_slice(g->statistics, 0, SUMS + heads, heads), g->L, g->H);
}

void gpt_reset_statistics(Gpt *g) {
    op_fill(g->be, tensor_slice(g->statistics, 0, 0, SUMS), 0);
    op_fill(g->be, tensor_slice(g->statistics, 0, SUMS, MAXIMA * g->L * g->H), -INFINITY);
}

static void layout_activations(Gpt *g, Arena *arena) {
    const DType t = g->be->compute_dtype;
    const int64_t N = g->N, C = g->C;

    g->tokens = arena_take_2d(arena, DTYPE_I32, g->B, g->T);
    g->targets = arena_take_2d(arena, DTYPE_I32, g->B, g->T);
    for (int64_t l = 0; l < g->L; l++) layout_layer(g, arena, &g->layers[l]);
    g->final = arena_take_2d(arena, t, N, C);
    g->normf = arena_take_2d(arena, t, N, C);
    g->meanf = arena_take_1d(arena, DTYPE_F32, N);
    g->rstdf = arena_take_1d(arena, DTYPE_F32, N);
    g->rope = arena_take_2d(arena, DTYPE_F32, g->T, g->R);
    g->logits = arena_take_2d(arena, t, logits_chunk(g), g->V);
    g->losses = arena_take_1d(arena, DTYPE_F32, N);
    layout_statistics(g, arena);
    g->branch = arena_take_2d(arena, t, N, C);

    g->dx = arena_take_2d(arena, t, N, C);
    g->datt = arena_take_2d(arena, t, N, g->H * g->E);
    g->attention->layout_backward(g, arena);
    g->dup = arena_take_2d(arena, t, N, up_columns(g));
    if (g->config.mlp == MLP_SWIGLU) g->dact = arena_take_2d(arena, t, N, g->F);
}

/* ---- plan and allocation ---------------------------------------------------------------------------------------- */

static const AttentionVariant *const variants[] = {[ATTENTION_MHA] = &attention_mha, [ATTENTION_MLA] = &attention_mla};

Status gpt_plan(Gpt *g, const ModelConfig *config, int64_t micro_batch, Backend *be) {
    *g = (Gpt){.be = be,
               .config = *config,
               .B = micro_batch,
               .T = config->context,
               .N = micro_batch * config->context,
               .C = config->width,
               .H = config->heads,
               .K = config->kv_heads,
               .F = config->mlp_width,
               .V = config->vocab,
               .L = config->layers,
               .attention = variants[config->attention],
               .weights = arena_measure_for("weights", "lower model.layers or model.width"),
               .gradients = arena_measure_for("gradients", "lower model.layers or model.width"),
               .activations = arena_measure_for("activations", "lower train.micro_batch or model.context")};
    g->layers = calloc((size_t)g->L, sizeof *g->layers);
    if (!g->layers) return NO_MEMORY("no memory for the tables of %lld layers", (long long)g->L);
    g->attention->set_sizes(g);
    weights_describe(g);
    params_layout(&g->params, &g->weights, &g->gradients, be->compute_dtype);
    layout_activations(g, &g->activations);
    return status_ok();
}

int64_t gpt_planned_bytes(const Gpt *g) {
    return g->weights.used + g->gradients.used + g->activations.used;
}

OpLimits gpt_op_limits(const Gpt *g) {
    return (OpLimits){.width = larger(larger(g->C, 2 * g->F), g->attention->longest_row(g)),
                      .vocab = g->V,
                      .batch = g->B,
                      .context = g->T,
                      .heads = g->H,
                      .head_size = larger(g->D, g->E)};
}

/* Cosines and sines of t * theta^(-2i/R), halves side by side as op_rope wants them. */
static Status fill_rope_table(Gpt *g) {
    int64_t half = g->R / 2;
    float *table = calloc((size_t)(g->T * g->R), sizeof *table);
    if (!table) return NO_MEMORY("no memory for the table of rotary angles");
    for (int64_t t = 0; t < g->T; t++) {
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)t * pow(g->config.rope_theta, -2.0 * (double)i / (double)g->R);
            table[t * g->R + i] = (float)cos(angle);
            table[t * g->R + half + i] = (float)sin(angle);
        }
    }
    backend_from_host(g->be, g->rope, table);
    free(table);
    return status_ok();
}

Status gpt_allocate(Gpt *g) {
    Status status;
    if (FAILED(status, arena_allocate(&g->weights, g->be))) return status;
    if (FAILED(status, arena_allocate(&g->gradients, g->be))) return status;
    if (FAILED(status, arena_allocate(&g->activations, g->be))) return status;
    params_layout(&g->params, &g->weights, &g->gradients, g->be->compute_dtype);
    layout_activations(g, &g->activations);
    return fill_rope_table(g);
}

void gpt_free(Gpt *g) {
    arena_free(&g->weights);
    arena_free(&g->gradients);
    arena_free(&g->activations);
    free(g->layers);
    *g = (Gpt){0};
}
