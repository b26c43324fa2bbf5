/* The forward and backward pass; see gpt.h for the model and the letters.
 *
 * The residual stream x is never overwritten in the forward pass: layer l reads layers[l].input, leaves `middle` after
 * attention, and writes layers[l+1].input (or gpt.final), because the backward pass of the norms reads all of them.
 * In the backward pass one buffer, gpt.dx, is the gradient of the residual stream: branches add to it.
 *
 *      forward    input -norm1-> -qkv-> -rope-> -attention-> -out-> + input = middle      (or latent attention)
 *                 middle -norm2-> -up-> -act-> -down-> + middle = the next layer's input
 *      backward   the same list, from its end to its beginning
 */
#include "model/gpt.h"

#include <math.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "base/rng.h"

/* ---- parameters ------------------------------------------------------------------------------------------------- */

static void describe_embeddings(Gpt *g) {
    ParamTable *t = &g->params;
    g->index[PARAM_WTE] = params_add_matrix(t, "wte", 0, g->V, g->C);
    params_add_block(t, "embed", ROLE_EMBED, g->index[PARAM_WTE], 0, g->V, 1, HEADS_IN_ROWS);
    if (g->config.position == POSITION_LEARNED) {
        g->index[PARAM_WPE] = params_add_matrix(t, "wpe", 0, g->T, g->C);
        params_add_block(t, "position", ROLE_POSITION, g->index[PARAM_WPE], 0, g->T, 1, HEADS_IN_ROWS);
    }
}

/* A vector that is one block of its own, unless `wanted` is false. */
static void describe_vector(Gpt *g, GptParam id, const char *name, Role role, int64_t layers, int64_t rows,
                            bool wanted) {
    if (!wanted) return;
    g->index[id] = params_add_vector(&g->params, name, layers, rows);
    params_add_block(&g->params, name, role, g->index[id], 0, rows, 1, HEADS_IN_ROWS);
}

static bool is_latent(const Gpt *g) {
    return g->config.attention == ATTENTION_MLA;
}

static int64_t latent_columns(const Gpt *g) {
    return g->config.q_rank + g->config.kv_rank + g->R;
}

static void describe_latent_projections(Gpt *g) {
    ParamTable *t = &g->params;
    const ModelConfig *c = &g->config;
    const int64_t ranks = c->q_rank + c->kv_rank, nope = g->H * c->head_nope;
    const int heads = (int)g->H;

    int latent = g->index[PARAM_LATENT] = params_add_matrix(t, "latent", g->L, latent_columns(g), g->C);
    if (c->q_rank) params_add_block(t, "q_down", ROLE_Q_DOWN, latent, 0, c->q_rank, 1, HEADS_IN_ROWS);
    params_add_block(t, "kv_down", ROLE_KV_DOWN, latent, c->q_rank, c->kv_rank, 1, HEADS_IN_ROWS);
    params_add_block(t, "k_rope", ROLE_K_ROPE, latent, ranks, g->R, 1, HEADS_IN_ROWS);

    describe_vector(g, PARAM_Q_LATENT_NORM, "q_down_norm", ROLE_NORM, g->L, c->q_rank, c->q_rank > 0);
    int q_up = g->index[PARAM_Q_UP] = params_add_matrix(t, "q_up", g->L, g->H * g->D, c->q_rank ? c->q_rank : g->C);
    params_add_block(t, "q", ROLE_Q, q_up, 0, nope, heads, HEADS_IN_ROWS);
    params_add_block(t, "q_rope", ROLE_Q_ROPE, q_up, nope, g->H * g->R, heads, HEADS_IN_ROWS);

    describe_vector(g, PARAM_KV_LATENT_NORM, "kv_down_norm", ROLE_NORM, g->L, c->kv_rank, true);
    int kv_up = g->index[PARAM_KV_UP] = params_add_matrix(t, "kv_up", g->L, nope + g->H * g->E, c->kv_rank);
    params_add_block(t, "k", ROLE_K, kv_up, 0, nope, heads, HEADS_IN_ROWS);
    params_add_block(t, "v", ROLE_V, kv_up, nope, g->H * g->E, heads, HEADS_IN_ROWS);
}

static void describe_projections(Gpt *g) {
    ParamTable *t = &g->params;
    const ModelConfig *c = &g->config;
    int64_t q = g->H * g->D, kv = g->K * g->D;
    int heads = (int)g->H, kv_heads = (int)g->K;

    int qkv = g->index[PARAM_QKV] = params_add_matrix(t, "qkv", g->L, q + 2 * kv, g->C);
    params_add_block(t, "q", ROLE_Q, qkv, 0, q, heads, HEADS_IN_ROWS);
    params_add_block(t, "k", ROLE_K, qkv, q, kv, kv_heads, HEADS_IN_ROWS);
    params_add_block(t, "v", ROLE_V, qkv, q + kv, kv, kv_heads, HEADS_IN_ROWS);
    if (c->bias) {
        int bias = g->index[PARAM_QKV_BIAS] = params_add_vector(t, "qkv_bias", g->L, q + 2 * kv);
        params_add_block(t, "q_bias", ROLE_BIAS, bias, 0, q, heads, HEADS_IN_ROWS);
        params_add_block(t, "k_bias", ROLE_BIAS, bias, q, kv, kv_heads, HEADS_IN_ROWS);
        params_add_block(t, "v_bias", ROLE_BIAS, bias, q + kv, kv, kv_heads, HEADS_IN_ROWS);
    }
    describe_vector(g, PARAM_Q_NORM, "q_norm", ROLE_NORM, g->L, g->D, c->qk_norm);
    describe_vector(g, PARAM_K_NORM, "k_norm", ROLE_NORM, g->L, g->D, c->qk_norm);
}

static void describe_attention(Gpt *g) {
    ParamTable *t = &g->params;
    const ModelConfig *c = &g->config;

    describe_vector(g, PARAM_NORM1, "norm1", ROLE_NORM, g->L, g->C, true);
    describe_vector(g, PARAM_NORM1_BIAS, "norm1_bias", ROLE_BIAS, g->L, g->C, c->bias && c->norm == NORM_LAYERNORM);
    if (is_latent(g))
        describe_latent_projections(g);
    else
        describe_projections(g);
    g->index[PARAM_OUT] = params_add_matrix(t, "out", g->L, g->C, g->H * g->E);
    params_add_block(t, "o", ROLE_O, g->index[PARAM_OUT], 0, g->C, (int)g->H, HEADS_IN_COLUMNS);
    describe_vector(g, PARAM_OUT_BIAS, "o_bias", ROLE_BIAS, g->L, g->C, c->bias);
}

static void describe_mlp(Gpt *g) {
    ParamTable *t = &g->params;
    const ModelConfig *c = &g->config;
    bool gated = c->mlp == MLP_SWIGLU;
    int64_t up_rows = gated ? 2 * g->F : g->F;

    describe_vector(g, PARAM_NORM2, "norm2", ROLE_NORM, g->L, g->C, true);
    describe_vector(g, PARAM_NORM2_BIAS, "norm2_bias", ROLE_BIAS, g->L, g->C, c->bias && c->norm == NORM_LAYERNORM);
    int up = g->index[PARAM_UP] = params_add_matrix(t, "up", g->L, up_rows, g->C);
    if (gated) params_add_block(t, "gate", ROLE_GATE, up, 0, g->F, 1, HEADS_IN_ROWS);
    params_add_block(t, "up", ROLE_UP, up, up_rows - g->F, g->F, 1, HEADS_IN_ROWS);
    describe_vector(g, PARAM_UP_BIAS, "up_bias", ROLE_BIAS, g->L, up_rows, c->bias);
    g->index[PARAM_DOWN] = params_add_matrix(t, "down", g->L, g->C, g->F);
    params_add_block(t, "down", ROLE_DOWN, g->index[PARAM_DOWN], 0, g->C, 1, HEADS_IN_ROWS);
    describe_vector(g, PARAM_DOWN_BIAS, "down_bias", ROLE_BIAS, g->L, g->C, c->bias);
}

static void describe_head(Gpt *g) {
    const ModelConfig *c = &g->config;
    describe_vector(g, PARAM_NORMF, "normf", ROLE_NORM, 0, g->C, true);
    describe_vector(g, PARAM_NORMF_BIAS, "normf_bias", ROLE_BIAS, 0, g->C, c->bias && c->norm == NORM_LAYERNORM);
    if (c->tie_embeddings) return;
    g->index[PARAM_HEAD] = params_add_matrix(&g->params, "head", 0, g->V, g->C);
    params_add_block(&g->params, "head", ROLE_HEAD, g->index[PARAM_HEAD], 0, g->V, 1, HEADS_IN_ROWS);
}

static Tensor weight(const Gpt *g, GptParam id, int64_t layer) {
    return g->index[id] < 0 ? tensor_none() : params_weight(&g->params, g->index[id], layer);
}

static const GptParam NO_BIAS = GPT_PARAM_COUNT;

static Tensor gradient(const Gpt *g, GptParam id, int64_t layer) {
    return id == NO_BIAS || g->index[id] < 0 ? tensor_none()
                                             : params_tensor(&g->params, g->params.grad, g->index[id], layer);
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

/* Logits are made and used up in chunks of tokens: as many as the backend's pieces hold, whatever the vocabulary. */
static int64_t logits_chunk(const Gpt *g) {
    int64_t rows = g->be->pieces.logits / g->V / 64 * 64;
    return rows < 64 ? (g->N < 64 ? g->N : 64) : rows < g->N ? rows : g->N;
}

static void layout_latent(Gpt *g, Arena *arena, LayerActivations *a) {
    const DType t = g->be->compute_dtype;
    const ModelConfig *c = &g->config;
    a->latent = arena_take_2d(arena, t, g->N, latent_columns(g));
    if (c->q_rank) {
        a->q_latent = arena_take_2d(arena, t, g->N, c->q_rank);
        a->q_latent_rstd = arena_take_1d(arena, DTYPE_F32, g->N);
    }
    a->kv_latent = arena_take_2d(arena, t, g->N, c->kv_rank);
    a->kv_latent_rstd = arena_take_1d(arena, DTYPE_F32, g->N);
    a->q = arena_take_3d(arena, t, g->N, g->H, g->D);
    a->k = arena_take_3d(arena, t, g->N, g->H, g->D);
    a->v = arena_take_3d(arena, t, g->N, g->H, g->E);
}

static void layout_layer(Gpt *g, Arena *arena, LayerActivations *a) {
    const DType t = g->be->compute_dtype;
    const int64_t N = g->N, C = g->C, F = g->F;
    bool layernorm = g->config.norm == NORM_LAYERNORM;

    a->input = arena_take_2d(arena, t, N, C);
    a->norm1 = arena_take_2d(arena, t, N, C);
    a->rstd1 = arena_take_1d(arena, DTYPE_F32, N);
    if (is_latent(g))
        layout_latent(g, arena, a);
    else
        a->qkv = arena_take_3d(arena, t, N, g->H + 2 * g->K, g->D);
    a->att = arena_take_2d(arena, t, N, g->H * g->E);
    a->lse = arena_take_3d(arena, DTYPE_F32, g->B, g->H, g->T);
    a->middle = arena_take_2d(arena, t, N, C);
    a->norm2 = arena_take_2d(arena, t, N, C);
    a->rstd2 = arena_take_1d(arena, DTYPE_F32, N);
    a->up = arena_take_2d(arena, t, N, g->config.mlp == MLP_SWIGLU ? 2 * F : F);
    a->act = arena_take_2d(arena, t, N, F);
    if (layernorm) {
        a->mean1 = arena_take_1d(arena, DTYPE_F32, N);
        a->mean2 = arena_take_1d(arena, DTYPE_F32, N);
    }
    if (g->config.qk_norm) {
        a->q_norm = arena_take_3d(arena, t, N, g->H, g->D);
        a->k_norm = arena_take_3d(arena, t, N, g->K, g->D);
        a->q_rstd = arena_take_2d(arena, DTYPE_F32, N, g->H);
        a->k_rstd = arena_take_2d(arena, DTYPE_F32, N, g->K);
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

static void layout_latent_gradients(Gpt *g, Arena *arena) {
    const DType t = g->be->compute_dtype;
    const ModelConfig *c = &g->config;
    g->q_parts = arena_take_2d(arena, t, g->N, g->H * g->D);
    g->kv_parts = arena_take_2d(arena, t, g->N, g->H * (c->head_nope + g->E));
    g->dq = arena_take_3d(arena, t, g->N, g->H, g->D);
    g->dk = arena_take_3d(arena, t, g->N, g->H, g->D);
    g->dlatent = arena_take_2d(arena, t, g->N, latent_columns(g));
    if (c->q_rank) g->dq_latent = arena_take_2d(arena, t, g->N, c->q_rank);
    g->dkv_latent = arena_take_2d(arena, t, g->N, c->kv_rank);
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
    if (is_latent(g))
        layout_latent_gradients(g, arena);
    else
        g->dqkv = arena_take_3d(arena, t, N, g->H + 2 * g->K, g->D);
    g->dup = arena_take_2d(arena, t, N, g->config.mlp == MLP_SWIGLU ? 2 * g->F : g->F);
    if (g->config.mlp == MLP_SWIGLU) g->dact = arena_take_2d(arena, t, N, g->F);
    if (g->config.qk_norm) {
        g->dq_norm = arena_take_3d(arena, t, N, g->H, g->D);
        g->dk_norm = arena_take_3d(arena, t, N, g->K, g->D);
    }
}

Status gpt_plan(Gpt *g, const ModelConfig *config, int64_t micro_batch, Backend *be) {
    const bool latent = config->attention == ATTENTION_MLA;
    const int64_t head = config->width / config->heads;
    *g = (Gpt){.be = be,
               .config = *config,
               .B = micro_batch,
               .T = config->context,
               .N = micro_batch * config->context,
               .C = config->width,
               .H = config->heads,
               .K = config->kv_heads,
               .D = latent ? config->head_nope + config->head_rope : head,
               .E = latent ? config->head_value : head,
               .R = latent ? config->head_rope : head,
               .F = config->mlp_width,
               .V = config->vocab,
               .L = config->layers,
               .weights = arena_measure_for("weights", "lower model.layers or model.width"),
               .gradients = arena_measure_for("gradients", "lower model.layers or model.width"),
               .activations = arena_measure_for("activations", "lower train.micro_batch or model.context")};
    for (int i = 0; i < GPT_PARAM_COUNT; i++) g->index[i] = -1;
    g->layers = calloc((size_t)g->L, sizeof *g->layers);
    if (!g->layers)
        return status_error(STATUS_OUT_OF_MEMORY, "no memory for the tables of %lld layers", (long long)g->L);
    describe_embeddings(g);
    describe_attention(g);
    describe_mlp(g);
    describe_head(g);
    params_layout(&g->params, &g->weights, &g->gradients, be->compute_dtype);
    layout_activations(g, &g->activations);
    return status_ok();
}

int64_t gpt_planned_bytes(const Gpt *g) {
    return g->weights.used + g->gradients.used + g->activations.used;
}

static int64_t max_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* The longest row between the residual stream and attention. */
static int64_t projected_columns(const Gpt *g) {
    if (!is_latent(g)) return (g->H + 2 * g->K) * g->D;
    return max_i64(latent_columns(g), g->H * (max_i64(g->D, g->config.head_nope + g->E)));
}

OpLimits gpt_op_limits(const Gpt *g) {
    return (OpLimits){.width = max_i64(max_i64(g->C, 2 * g->F), projected_columns(g)),
                      .vocab = g->V,
                      .batch = g->B,
                      .context = g->T,
                      .heads = g->H,
                      .head_size = max_i64(g->D, g->E)};
}

/* Cosines and sines of t * theta^(-2i/R), halves side by side as op_rope wants them. */
static Status fill_rope_table(Gpt *g) {
    int64_t half = g->R / 2;
    float *table = calloc((size_t)(g->T * g->R), sizeof *table);
    if (!table) return status_error(STATUS_OUT_OF_MEMORY, "no memory for the table of rotary angles");
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

/* ---- initial weights -------------------------------------------------------------------------------------------- */

static void init_param(Gpt *g, GptParam id, int64_t seed, double std, double constant, float *host) {
    const Param *p = &g->params.params[g->index[id]];
    int64_t n = p->rows * p->columns;
    for (int64_t layer = 0; layer < p->count; layer++) {
        /* Parameter, layer and element make the counter: no tensor's values depend on what else the model has. */
        uint64_t first = ((uint64_t)id << 48) + ((uint64_t)layer << 37);
#pragma omp parallel for
        for (int64_t i = 0; i < n; i++)
            host[i] =
                (float)(constant + (std > 0 ? std * rng_normal((uint64_t)seed, RNG_INIT, first + (uint64_t)i) : 0));
        backend_from_host(g->be, params_tensor(&g->params, g->params.master, g->index[id], layer), host);
    }
}

static bool is_norm(GptParam id) {
    switch (id) {
    case PARAM_NORM1:
    case PARAM_NORM2:
    case PARAM_NORMF:
    case PARAM_Q_NORM:
    case PARAM_K_NORM:
    case PARAM_Q_LATENT_NORM:
    case PARAM_KV_LATENT_NORM:
        return true;
    default:
        return false;
    }
}

Status gpt_init_weights(Gpt *g, int64_t seed, int64_t mup_base_width) {
    int64_t largest = 0;
    for (int p = 0; p < g->params.param_count; p++)
        largest = max_i64(largest, g->params.params[p].rows * g->params.params[p].columns);
    float *host = malloc((size_t)largest * sizeof *host);
    if (!host) return status_error(STATUS_OUT_OF_MEMORY, "no memory for %lld initial weights", (long long)largest);

    const double r = mup_base_width > 0 ? (double)mup_base_width / (double)g->C : 1, std = g->config.init_std;
    const double hidden_std = std * sqrt(r), residual_std = hidden_std / sqrt(2.0 * (double)g->L);
    for (int id = 0; id < GPT_PARAM_COUNT; id++) {
        if (g->index[id] < 0) continue;
        bool residual = id == PARAM_OUT || id == PARAM_DOWN;
        bool norm = is_norm((GptParam)id);
        bool bias = g->params.params[g->index[id]].vector && !norm;
        bool embedding = id == PARAM_WTE || id == PARAM_WPE || id == PARAM_HEAD;
        init_param(g, (GptParam)id, seed,
                   norm || bias ? 0.0
                   : residual   ? residual_std
                   : embedding  ? std
                                : hidden_std,
                   id == PARAM_NORMF ? r
                   : norm            ? 1.0
                                     : 0.0,
                   host);
    }
    free(host);
    params_refresh_work(g->be, &g->params);
    return status_ok();
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void norm(Gpt *g, Tensor out, Tensor mean, Tensor rstd, Tensor x, GptParam w, GptParam bias, int64_t layer) {
    const float eps = (float)g->config.norm_eps;
    if (g->config.norm == NORM_LAYERNORM)
        op_layernorm(g->be, out, mean, rstd, x, weight(g, w, layer), weight(g, bias, layer), eps);
    else
        op_rmsnorm(g->be, out, rstd, x, weight(g, w, layer), eps);
}

/* What attention reads or writes: (B,T,heads,D or E) views. */
typedef struct {
    Tensor q, k, v;
} Heads;

/* (N,heads,size) as (B,T,heads,size). */
static Tensor by_sequence(const Gpt *g, Tensor t) {
    return (Tensor){.data = t.data,
                    .dtype = t.dtype,
                    .ndim = 4,
                    .shape = {g->B, g->T, t.shape[1], t.shape[2]},
                    .stride = {g->T * t.stride[0], t.stride[0], t.stride[1], t.stride[2]}};
}

static Tensor heads_4d(const Gpt *g, Tensor fused, int64_t first, int64_t count) {
    return by_sequence(g, tensor_slice(fused, 1, first, count));
}

/* The parts of a fused (N,H+2K,D) tensor; with qk-norm, attention reads the normalized copies. */
static Heads split_heads(const Gpt *g, Tensor qkv, Tensor q_norm, Tensor k_norm) {
    bool normed = g->config.qk_norm;
    return (Heads){.q = normed ? heads_4d(g, q_norm, 0, g->H) : heads_4d(g, qkv, 0, g->H),
                   .k = normed ? heads_4d(g, k_norm, 0, g->K) : heads_4d(g, qkv, g->H, g->K),
                   .v = heads_4d(g, qkv, g->H + g->K, g->K)};
}

static AttentionParams attention_params(const Gpt *g) {
    return (AttentionParams){.scale = (float)(1.0 / sqrt((double)g->D)), .softcap = (float)g->config.attention_softcap};
}

static Tensor flat(Tensor t, int64_t rows) {
    return tensor_as_2d(t, rows, tensor_numel(t) / rows);
}

static void project_heads(Gpt *g, LayerActivations *a, int64_t l) {
    Backend *be = g->be;
    Heads h = split_heads(g, a->qkv, a->q_norm, a->k_norm);

    op_linear(be, flat(a->qkv, g->N), a->norm1, weight(g, PARAM_QKV, l), weight(g, PARAM_QKV_BIAS, l), tensor_none());
    if (g->config.qk_norm) {
        const float eps = (float)g->config.norm_eps;
        op_rmsnorm(be, a->q_norm, a->q_rstd, tensor_slice(a->qkv, 1, 0, g->H), weight(g, PARAM_Q_NORM, l), eps);
        op_rmsnorm(be, a->k_norm, a->k_rstd, tensor_slice(a->qkv, 1, g->H, g->K), weight(g, PARAM_K_NORM, l), eps);
    }
    if (g->config.position == POSITION_ROPE) {
        op_rope(be, h.q, g->rope);
        op_rope(be, h.k, g->rope);
    }
}

static const float LATENT_NORM_EPS = 1e-6f;

/* Columns of the products with stacked matrices, by the paper's names; in the backward pass, of their gradients. */
typedef struct {
    Tensor q_latent, kv_latent; /* (N,q_rank), (N,kv_rank) */
    Tensor k_rope;              /* (N,1,R) */
    Tensor q, q_rope, k, v;     /* (N,H,nope), (N,H,R), (N,H,nope), (N,H,E) */
} LatentParts;

/* Columns [first, first + heads * size) of a (N,..) matrix as (N,heads,size). */
static Tensor columns_by_head(Tensor x, int64_t first, int64_t heads, int64_t size) {
    Tensor part = tensor_slice(x, 1, first, heads * size);
    return (Tensor){.data = part.data,
                    .dtype = x.dtype,
                    .ndim = 3,
                    .shape = {x.shape[0], heads, size},
                    .stride = {x.stride[0], size, 1}};
}

static LatentParts latent_parts(const Gpt *g, Tensor latent) {
    const ModelConfig *c = &g->config;
    const int64_t nope = c->head_nope;
    return (LatentParts){.q_latent = tensor_slice(latent, 1, 0, c->q_rank),
                         .kv_latent = tensor_slice(latent, 1, c->q_rank, c->kv_rank),
                         .k_rope = columns_by_head(latent, c->q_rank + c->kv_rank, 1, g->R),
                         .q = columns_by_head(g->q_parts, 0, g->H, nope),
                         .q_rope = columns_by_head(g->q_parts, g->H * nope, g->H, g->R),
                         .k = columns_by_head(g->kv_parts, 0, g->H, nope),
                         .v = columns_by_head(g->kv_parts, g->H * nope, g->H, g->E)};
}

/* The parts of an assembled (N,H,D) query or key. */
static Tensor content_of(const Gpt *g, Tensor x) {
    return tensor_slice(x, 2, 0, g->config.head_nope);
}
static Tensor rotary_of(const Gpt *g, Tensor x) {
    return tensor_slice(x, 2, g->config.head_nope, g->R);
}

/* (N,1,R), repeated for all heads without being stored again. */
static Tensor for_all_heads(const Gpt *g, Tensor x) {
    x.shape[1] = g->H;
    x.stride[1] = 0;
    return x;
}

/* gpt.h's formulas, in their order. */
static void project_latent(Gpt *g, LayerActivations *a, int64_t l) {
    Backend *be = g->be;
    const LatentParts x = latent_parts(g, a->latent);
    const Tensor none = tensor_none();
    const bool low_rank = g->config.q_rank > 0;

    op_linear(be, a->latent, a->norm1, weight(g, PARAM_LATENT, l), none, none);
    if (low_rank)
        op_rmsnorm(be, a->q_latent, a->q_latent_rstd, x.q_latent, weight(g, PARAM_Q_LATENT_NORM, l), LATENT_NORM_EPS);
    op_rmsnorm(be, a->kv_latent, a->kv_latent_rstd, x.kv_latent, weight(g, PARAM_KV_LATENT_NORM, l), LATENT_NORM_EPS);
    op_linear(be, g->q_parts, low_rank ? a->q_latent : a->norm1, weight(g, PARAM_Q_UP, l), none, none);
    op_linear(be, g->kv_parts, a->kv_latent, weight(g, PARAM_KV_UP, l), none, none);
    op_rope(be, by_sequence(g, x.q_rope), g->rope);
    op_rope(be, by_sequence(g, x.k_rope), g->rope);

    op_copy(be, content_of(g, a->q), x.q);
    op_copy(be, rotary_of(g, a->q), x.q_rope);
    op_copy(be, content_of(g, a->k), x.k);
    op_copy(be, rotary_of(g, a->k), for_all_heads(g, x.k_rope));
    op_copy(be, a->v, x.v);
}

static Heads attention_inputs(const Gpt *g, const LayerActivations *a) {
    if (!is_latent(g)) return split_heads(g, a->qkv, a->q_norm, a->k_norm);
    return (Heads){.q = by_sequence(g, a->q), .k = by_sequence(g, a->k), .v = by_sequence(g, a->v)};
}

static Tensor attended(const Gpt *g, Tensor att) {
    return by_sequence(g, tensor_as_3d(att, g->N, g->H, g->E));
}

static void forward_attention(Gpt *g, LayerActivations *a, int64_t l) {
    Backend *be = g->be;
    norm(g, a->norm1, a->mean1, a->rstd1, a->input, PARAM_NORM1, PARAM_NORM1_BIAS, l);
    if (is_latent(g))
        project_latent(g, a, l);
    else
        project_heads(g, a, l);
    const Heads h = attention_inputs(g, a);
    op_attention(be, attended(g, a->att), a->lse, tensor_index(g->max_logit, l), tensor_index(g->max_abs, l), h.q, h.k,
                 h.v, attention_params(g));
    op_linear(be, a->middle, a->att, weight(g, PARAM_OUT, l), weight(g, PARAM_OUT_BIAS, l), a->input);
}

static void forward_mlp(Gpt *g, LayerActivations *a, Tensor output, int64_t l) {
    Backend *be = g->be;
    norm(g, a->norm2, a->mean2, a->rstd2, a->middle, PARAM_NORM2, PARAM_NORM2_BIAS, l);
    Tensor w = weight(g, PARAM_UP, l), bias = weight(g, PARAM_UP_BIAS, l);
    if (g->config.mlp == MLP_SWIGLU) {
        op_linear(be, a->up, a->norm2, w, bias, tensor_none());
        op_swiglu(be, a->act, a->up);
    } else {
        op_linear_gelu(be, a->act, a->up, a->norm2, w, bias);
    }
    op_linear(be, output, a->act, weight(g, PARAM_DOWN, l), weight(g, PARAM_DOWN_BIAS, l), a->middle);
}

void gpt_forward(Gpt *g) {
    op_embed(g->be, g->layers[0].input, g->tokens, weight(g, PARAM_WTE, 0), weight(g, PARAM_WPE, 0));
    for (int64_t l = 0; l < g->L; l++) {
        forward_attention(g, &g->layers[l], l);
        forward_mlp(g, &g->layers[l], l + 1 < g->L ? g->layers[l + 1].input : g->final, l);
    }
    norm(g, g->normf, g->meanf, g->rstdf, g->final, PARAM_NORMF, PARAM_NORMF_BIAS, 0);
}

/* ---- loss ------------------------------------------------------------------------------------------------------- */

static GptParam head_param(const Gpt *g) {
    return g->config.tie_embeddings ? PARAM_WTE : PARAM_HEAD;
}

typedef struct {
    Tensor x, logits, targets, losses, dx; /* the rows of one chunk */
} Chunk;

static Chunk loss_chunk(const Gpt *g, int64_t first) {
    int64_t left = g->N - first, rows = left < g->logits.shape[0] ? left : g->logits.shape[0];
    return (Chunk){.x = tensor_slice(g->normf, 0, first, rows),
                   .logits = tensor_slice(g->logits, 0, 0, rows),
                   .targets = tensor_slice(tensor_reshape(g->targets, 1, &g->N), 0, first, rows),
                   .losses = tensor_slice(g->losses, 0, first, rows),
                   .dx = tensor_slice(g->branch, 0, first, rows)};
}

void gpt_loss(Gpt *g) {
    for (int64_t first = 0; first < g->N; first += g->logits.shape[0]) {
        Chunk c = loss_chunk(g, first);
        op_linear(g->be, c.logits, c.x, weight(g, head_param(g), 0), tensor_none(), tensor_none());
        op_cross_entropy(g->be, c.losses, c.logits, c.targets);
    }
    op_sum(g->be, g->loss_sum, g->losses);
}

void gpt_loss_and_gradient(Gpt *g, float loss_scale) {
    Backend *be = g->be;
    Tensor w = weight(g, head_param(g), 0), dw = gradient(g, head_param(g), 0);
    for (int64_t first = 0; first < g->N; first += g->logits.shape[0]) {
        Chunk c = loss_chunk(g, first);
        op_linear(be, c.logits, c.x, w, tensor_none(), tensor_none());
        op_cross_entropy_grad(be, c.losses, c.logits, c.targets, loss_scale); /* logits now hold their gradient */
        op_linear_grad_input(be, c.dx, c.logits, w);
        op_linear_grad_weight(be, dw, tensor_none(), c.logits, c.x, first == 0 ? g->gradient_mode : GRADIENT_ADD);
    }
    op_sum(be, g->loss_sum, g->losses);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* g->dx += gradient through a norm whose output's gradient is g->branch. */
static void norm_backward(Gpt *g, Tensor x, Tensor mean, Tensor rstd, GptParam w, GptParam bias, int64_t layer) {
    if (g->config.norm == NORM_LAYERNORM)
        op_layernorm_grad(g->be, g->dx, gradient(g, w, layer), gradient(g, bias, layer), g->branch, x, mean, rstd,
                          weight(g, w, layer));
    else
        op_rmsnorm_grad(g->be, g->dx, gradient(g, w, layer), g->branch, x, rstd, weight(g, w, layer));
}

/* dw = or += doutᵀ x, dbias = or += sum dout. */
static void weight_backward(Gpt *g, Tensor dout, Tensor x, GptParam w, GptParam bias, int64_t layer) {
    op_linear_grad_weight(g->be, gradient(g, w, layer), gradient(g, bias, layer), dout, x, g->gradient_mode);
}

/* The same, and dx = dout w. */
static void linear_backward(Gpt *g, Tensor dx, Tensor dout, Tensor x, GptParam w, GptParam bias, int64_t layer) {
    weight_backward(g, dout, x, w, bias, layer);
    op_linear_grad_input(g->be, dx, dout, weight(g, w, layer));
}

static void backward_mlp(Gpt *g, LayerActivations *a, int64_t l) {
    weight_backward(g, g->dx, a->act, PARAM_DOWN, PARAM_DOWN_BIAS, l);
    if (g->config.mlp == MLP_SWIGLU) {
        op_linear_grad_input(g->be, g->dact, g->dx, weight(g, PARAM_DOWN, l));
        op_swiglu_grad(g->be, g->dup, g->dact, a->up);
    } else {
        op_linear_gelu_grad(g->be, g->dup, g->dx, weight(g, PARAM_DOWN, l), a->up);
    }
    linear_backward(g, g->branch, g->dup, a->norm2, PARAM_UP, PARAM_UP_BIAS, l);
    norm_backward(g, a->middle, a->mean2, a->rstd2, PARAM_NORM2, PARAM_NORM2_BIAS, l);
}

/* dqkv's q and k parts = gradient through the per-head norms. */
static void qk_norm_backward(Gpt *g, LayerActivations *a, int64_t l) {
    Tensor x_q = tensor_slice(a->qkv, 1, 0, g->H), dx_q = tensor_slice(g->dqkv, 1, 0, g->H);
    Tensor x_k = tensor_slice(a->qkv, 1, g->H, g->K), dx_k = tensor_slice(g->dqkv, 1, g->H, g->K);
    op_fill(g->be, tensor_slice(g->dqkv, 1, 0, g->H + g->K), 0); /* the norm's gradient accumulates */
    op_rmsnorm_grad(g->be, dx_q, gradient(g, PARAM_Q_NORM, l), g->dq_norm, x_q, a->q_rstd, weight(g, PARAM_Q_NORM, l));
    op_rmsnorm_grad(g->be, dx_k, gradient(g, PARAM_K_NORM, l), g->dk_norm, x_k, a->k_rstd, weight(g, PARAM_K_NORM, l));
}

/* branch = gradient of the norm's output, from that of attention's queries, keys and values. */
static void heads_backward(Gpt *g, LayerActivations *a, Heads d, int64_t l) {
    if (g->config.position == POSITION_ROPE) {
        op_rope_grad(g->be, d.q, g->rope);
        op_rope_grad(g->be, d.k, g->rope);
    }
    if (g->config.qk_norm) qk_norm_backward(g, a, l);
    linear_backward(g, g->branch, flat(g->dqkv, g->N), a->norm1, PARAM_QKV, PARAM_QKV_BIAS, l);
}

/* dlatent's columns of c^Q and c^KV = gradient through their norms. */
static void latent_norms_backward(Gpt *g, LayerActivations *a, int64_t l) {
    const LatentParts x = latent_parts(g, a->latent), d = latent_parts(g, g->dlatent);
    op_fill(g->be, tensor_slice(g->dlatent, 1, 0, g->config.q_rank + g->config.kv_rank), 0); /* grads of norms add */
    if (g->config.q_rank)
        op_rmsnorm_grad(g->be, d.q_latent, gradient(g, PARAM_Q_LATENT_NORM, l), g->dq_latent, x.q_latent,
                        a->q_latent_rstd, weight(g, PARAM_Q_LATENT_NORM, l));
    op_rmsnorm_grad(g->be, d.kv_latent, gradient(g, PARAM_KV_LATENT_NORM, l), g->dkv_latent, x.kv_latent,
                    a->kv_latent_rstd, weight(g, PARAM_KV_LATENT_NORM, l));
}

/* As heads_backward: project_latent's list from its end to its beginning. What the heads share adds up before rope
 * turns it back, once instead of for each head. */
static void latent_backward(Gpt *g, LayerActivations *a, int64_t l) {
    Backend *be = g->be;
    const LatentParts d = latent_parts(g, g->dlatent);

    op_copy(be, d.q, content_of(g, g->dq));
    op_copy(be, d.q_rope, rotary_of(g, g->dq));
    op_copy(be, d.k, content_of(g, g->dk));
    op_sum_heads(be, tensor_slice(g->dlatent, 1, g->config.q_rank + g->config.kv_rank, g->R), rotary_of(g, g->dk));
    op_rope_grad(be, by_sequence(g, d.q_rope), g->rope);
    op_rope_grad(be, by_sequence(g, d.k_rope), g->rope);

    linear_backward(g, g->dkv_latent, g->kv_parts, a->kv_latent, PARAM_KV_UP, NO_BIAS, l);
    if (g->config.q_rank) linear_backward(g, g->dq_latent, g->q_parts, a->q_latent, PARAM_Q_UP, NO_BIAS, l);
    latent_norms_backward(g, a, l);
    linear_backward(g, g->branch, g->dlatent, a->norm1, PARAM_LATENT, NO_BIAS, l);
    if (g->config.q_rank) return;
    weight_backward(g, g->q_parts, a->norm1, PARAM_Q_UP, NO_BIAS, l);
    op_matmul(be, g->branch, g->q_parts, weight(g, PARAM_Q_UP, l), g->branch, (MatmulScale){.alpha = 1, .beta = 1});
}

static Heads attention_gradients(const Gpt *g) {
    if (!is_latent(g)) return split_heads(g, g->dqkv, g->dq_norm, g->dk_norm);
    const Tensor dv = latent_parts(g, g->dlatent).v;
    return (Heads){.q = by_sequence(g, g->dq), .k = by_sequence(g, g->dk), .v = by_sequence(g, dv)};
}

static void backward_attention(Gpt *g, LayerActivations *a, int64_t l) {
    const Heads h = attention_inputs(g, a), d = attention_gradients(g);

    linear_backward(g, g->datt, g->dx, a->att, PARAM_OUT, PARAM_OUT_BIAS, l);
    op_attention_grad(g->be, d.q, d.k, d.v, attended(g, g->datt), attended(g, a->att), a->lse, h.q, h.k, h.v,
                      attention_params(g));
    if (is_latent(g))
        latent_backward(g, a, l);
    else
        heads_backward(g, a, d, l);
    norm_backward(g, a->input, a->mean1, a->rstd1, PARAM_NORM1, PARAM_NORM1_BIAS, l);
}

void gpt_backward(Gpt *g) {
    op_fill(g->be, g->dx, 0);
    norm_backward(g, g->final, g->meanf, g->rstdf, PARAM_NORMF, PARAM_NORMF_BIAS, 0);
    for (int64_t l = g->L - 1; l >= 0; l--) {
        backward_mlp(g, &g->layers[l], l);
        backward_attention(g, &g->layers[l], l);
    }
    op_embed_grad(g->be, gradient(g, PARAM_WTE, 0), gradient(g, PARAM_WPE, 0), g->dx, g->tokens);
    g->gradient_mode = GRADIENT_ADD;
}

/* ---- the rest --------------------------------------------------------------------------------------------------- */

void gpt_set_batch(Gpt *g, const int32_t *tokens, const int32_t *targets) {
    backend_from_host(g->be, g->tokens, tokens);
    if (targets) backend_from_host(g->be, g->targets, targets);
}

/* Linear layers set their gradients; what norms and embeddings add to starts from zero. A tied embedding's gradient is
 * the head's first. */
static bool starts_from_zero(const Gpt *g, GptParam id) {
    switch (id) {
    case PARAM_WTE:
        return !g->config.tie_embeddings;
    case PARAM_WPE:
    case PARAM_NORM1_BIAS:
    case PARAM_NORM2_BIAS:
    case PARAM_NORMF_BIAS:
        return true;
    default:
        return is_norm(id);
    }
}

void gpt_start_gradients(Gpt *g) {
    for (int id = 0; id < GPT_PARAM_COUNT; id++) {
        if (g->index[id] < 0 || !starts_from_zero(g, (GptParam)id)) continue;
        op_fill(g->be, params_stack(&g->params, g->params.grad, g->index[id]), 0);
    }
    g->gradient_mode = GRADIENT_SET;
}

void gpt_reset_statistics(Gpt *g) {
    op_fill(g->be, tensor_slice(g->statistics, 0, 0, SUMS), 0);
    op_fill(g->be, tensor_slice(g->statistics, 0, SUMS, MAXIMA * g->L * g->H), -INFINITY);
}

AttentionInputs gpt_attention_inputs(const Gpt *g, int64_t layer) {
    const Heads h = attention_inputs(g, &g->layers[layer]);
    return (AttentionInputs){.q = h.q, .k = h.k, .scale = attention_params(g).scale};
}

void gpt_logits_at(Gpt *g, int64_t position, float *logits) {
    CHECK(position >= 0 && position < g->T, "position %lld of %lld", (long long)position, (long long)g->T);
    Tensor row = tensor_slice(g->logits, 0, 0, 1);
    for (int64_t b = 0; b < g->B; b++) {
        Tensor x = tensor_slice(g->normf, 0, b * g->T + position, 1);
        op_linear(g->be, row, x, weight(g, head_param(g), 0), tensor_none(), tensor_none());
        float *out = logits + b * g->V;
        backend_to_host(g->be, out, row);
        if (row.dtype != DTYPE_BF16) continue;
        const bf16 *packed = (const bf16 *)(const void *)out; /* the row fills the lower half: widen it from the end */
        for (int64_t v = g->V - 1; v >= 0; v--) {
            bf16 narrow = packed[v];
            out[v] = bf16_to_f32(narrow);
        }
    }
}

int64_t gpt_parameters(const Gpt *g) {
    return g->params.count;
}

double gpt_flops_per_token(const Gpt *g) {
    int64_t n =
        g->params.count - (g->index[PARAM_WPE] >= 0 ? g->T * g->C : 0) - (g->index[PARAM_HEAD] >= 0 ? g->V * g->C : 0);
    return 6.0 * (double)n + 3.0 * (double)(g->L * g->H * (g->D + g->E) * g->T);
}
