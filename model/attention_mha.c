/* Multi-head attention, grouped-query where K < H, with optional qk-norm: D = E = R = C/H.
 *
 *      norm1 -qkv-> | q (H heads) | k (K) | v (K) |;   q, k = rope(rmsnorm(q)), rope(rmsnorm(k))  (norm: qk_norm only)
 *      each key head serves H/K neighbouring query heads
 */
#include "model/layer.h"

#include <stdio.h>

/* ---- weights ---------------------------------------------------------------------------------------------------- */

WEIGHT_SIZE(size_D, g->D);
WEIGHT_SIZE(size_HD, g->H * g->D);
WEIGHT_SIZE(size_KD, g->K * g->D);
WEIGHT_CONDITION(with_qk_norm, c->qk_norm);

static const WeightRow weights[] = {
    {PARAM_QKV, "qkv", 4, INIT_HIDDEN, .columns = size_C, .gpt2 = "attn.c_attn.weight",
     .parts = {{"q", ROLE_Q, size_HD, "self_attn.q_proj.weight", .heads = size_H, .clip = CLIP_QUERY},
               {"k", ROLE_K, size_KD, "self_attn.k_proj.weight", .heads = size_K, .clip = CLIP_KEY},
               {"v", ROLE_V, size_KD, "self_attn.v_proj.weight", .heads = size_K}}},
    {PARAM_QKV_BIAS, "qkv_bias", 5, INIT_ZERO, .wanted = with_bias, .gpt2 = "attn.c_attn.bias",
     .parts = {{"q_bias", ROLE_BIAS, size_HD, "self_attn.q_proj.bias", .heads = size_H, .clip = CLIP_QUERY},
               {"k_bias", ROLE_BIAS, size_KD, "self_attn.k_proj.bias", .heads = size_K, .clip = CLIP_KEY},
               {"v_bias", ROLE_BIAS, size_KD, "self_attn.v_proj.bias", .heads = size_K}}},
    {PARAM_Q_NORM, "q_norm", 6, INIT_ONE, .wanted = with_qk_norm, .from_zero = always,
     .parts = {{"q_norm", ROLE_NORM, size_D, .llama = "self_attn.q_norm.weight"}}},
    {PARAM_K_NORM, "k_norm", 7, INIT_ONE, .wanted = with_qk_norm, .from_zero = always,
     .parts = {{"k_norm", ROLE_NORM, size_D, .llama = "self_attn.k_norm.weight"}}},
};

/* ---- sizes and memory ------------------------------------------------------------------------------------------- */

static void set_sizes(Gpt *g) {
    g->D = g->E = g->R = g->C / g->H;
}

static char *describe(const ModelConfig *c, char *buffer, int64_t size) {
    snprintf(buffer, (size_t)size, "%lld key/value", (long long)c->kv_heads);
    return buffer;
}

static int64_t longest_row(const Gpt *g) {
    return (g->H + 2 * g->K) * g->D;
}

static void layout_layer(const Gpt *g, Arena *arena, LayerActivations *a) {
    const DType t = g->be->compute_dtype;
    a->qkv = arena_take_3d(arena, t, g->N, g->H + 2 * g->K, g->D);
    if (!g->config.qk_norm) return;
    a->q_norm = arena_take_3d(arena, t, g->N, g->H, g->D);
    a->k_norm = arena_take_3d(arena, t, g->N, g->K, g->D);
    a->q_rstd = arena_take_2d(arena, DTYPE_F32, g->N, g->H);
    a->k_rstd = arena_take_2d(arena, DTYPE_F32, g->N, g->K);
}

static void layout_backward(Gpt *g, Arena *arena) {
    const DType t = g->be->compute_dtype;
    g->dqkv = arena_take_3d(arena, t, g->N, g->H + 2 * g->K, g->D);
    if (!g->config.qk_norm) return;
    g->dq_norm = arena_take_3d(arena, t, g->N, g->H, g->D);
    g->dk_norm = arena_take_3d(arena, t, g->N, g->K, g->D);
}

/* ---- views ------------------------------------------------------------------------------------------------------ */

/* The columns of q, k and v of a (N,H+2K,D) tensor: (N,heads,D). */
static Tensor q_of(const Gpt *g, Tensor qkv) {
    return tensor_slice(qkv, 1, 0, g->H);
}
static Tensor k_of(const Gpt *g, Tensor qkv) {
    return tensor_slice(qkv, 1, g->H, g->K);
}
static Tensor v_of(const Gpt *g, Tensor qkv) {
    return tensor_slice(qkv, 1, g->H + g->K, g->K);
}

/* With qk-norm, attention reads the normalized copies. */
static Heads heads(const Gpt *g, Tensor qkv, Tensor q_norm, Tensor k_norm) {
    const bool normed = g->config.qk_norm;
    return (Heads){.q = layer_by_sequence(g, normed ? q_norm : q_of(g, qkv)),
                   .k = layer_by_sequence(g, normed ? k_norm : k_of(g, qkv)),
                   .v = layer_by_sequence(g, v_of(g, qkv))};
}

static Heads inputs(const Gpt *g, const LayerActivations *a) {
    return heads(g, a->qkv, a->q_norm, a->k_norm);
}

static Tensor flat(const Gpt *g, Tensor qkv) {
    return tensor_as_2d(qkv, g->N, tensor_numel(qkv) / g->N);
}

/* ---- forward and backward --------------------------------------------------------------------------------------- */

static void forward(Gpt *g, LayerActivations *a, int64_t l) {
    Backend *be = g->be;
    const Heads h = inputs(g, a);
    const float eps = (float)g->config.norm_eps;

    op_linear(be, flat(g, a->qkv), a->norm1, layer_weight(g, PARAM_QKV, l), layer_weight(g, PARAM_QKV_BIAS, l),
              tensor_none());
    if (g->config.qk_norm) {
        op_rmsnorm(be, a->q_norm, a->q_rstd, q_of(g, a->qkv), layer_weight(g, PARAM_Q_NORM, l), eps);
        op_rmsnorm(be, a->k_norm, a->k_rstd, k_of(g, a->qkv), layer_weight(g, PARAM_K_NORM, l), eps);
    }
    if (g->config.position == POSITION_ROPE) {
        op_rope(be, h.q, g->rope);
        op_rope(be, h.k, g->rope);
    }
    layer_attend(g, a, h, l);
}

/* dqkv's q and k parts = gradient through the per-head norms. */
static void qk_norm_backward(Gpt *g, LayerActivations *a, int64_t l) {
    op_fill(g->be, tensor_slice(g->dqkv, 1, 0, g->H + g->K), 0); /* the norm's gradient accumulates */
    op_rmsnorm_grad(g->be, q_of(g, g->dqkv), layer_gradient(g, PARAM_Q_NORM, l), g->dq_norm, q_of(g, a->qkv), a->q_rstd,
                    layer_weight(g, PARAM_Q_NORM, l));
    op_rmsnorm_grad(g->be, k_of(g, g->dqkv), layer_gradient(g, PARAM_K_NORM, l), g->dk_norm, k_of(g, a->qkv), a->k_rstd,
                    layer_weight(g, PARAM_K_NORM, l));
}

static void backward(Gpt *g, LayerActivations *a, int64_t l) {
    const Heads d = heads(g, g->dqkv, g->dq_norm, g->dk_norm);

    layer_attend_backward(g, d, a, inputs(g, a));
    if (g->config.position == POSITION_ROPE) {
        op_rope_grad(g->be, d.q, g->rope);
        op_rope_grad(g->be, d.k, g->rope);
    }
    if (g->config.qk_norm) qk_norm_backward(g, a, l);
    layer_linear_backward(g, g->branch, flat(g, g->dqkv), a->norm1, PARAM_QKV, PARAM_QKV_BIAS, l);
}

const AttentionVariant attention_mha = {.weights = weights,
                                        .weight_count = sizeof weights / sizeof weights[0],
                                        .flops = "6 N + 6 L C T",
                                        .set_sizes = set_sizes,
                                        .describe = describe,
                                        .longest_row = longest_row,
                                        .layout_layer = layout_layer,
                                        .layout_backward = layout_backward,
                                        .forward = forward,
                                        .backward = backward,
                                        .inputs = inputs};
