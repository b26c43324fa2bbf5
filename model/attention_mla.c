/* Multi-head latent attention (DeepSeek-V2 2024, section 2.1 and appendix C; DeepSeek-V3 2024, section 2.1.1): queries,
 * keys and values come from low-rank latent vectors, and one rotated key k^R serves all heads. D = nope + R.
 *
 *      c^Q  = rmsnorm(W^DQ x)       q^C = W^UQ c^Q      q^R = rope(W^QR c^Q)      q = [q^C | q^R] of each head
 *      c^KV = rmsnorm(W^DKV x)      k^C = W^UK c^KV     k^R = rope(W^KR x)        k = [k^C | k^R]
 *                                   v   = W^UV c^KV     with q_rank 0: c^Q = x
 *
 * W^DQ, W^DKV and W^KR are stored as one matrix, W^UQ and W^QR as one, W^UK and W^UV as one; each is a block of its
 * own. The norms of the latent vectors have an epsilon of their own, as in transformers' DeepSeek-V3.
 */
#include "model/layer.h"

#include <stdio.h>

#include "base/integer.h"

static const float LATENT_NORM_EPS = 1e-6f;

/* ---- weights ---------------------------------------------------------------------------------------------------- */

WEIGHT_SIZE(size_R, g->R);
WEIGHT_SIZE(size_HR, g->H * g->R);
WEIGHT_SIZE(size_HE, g->H * g->E);
WEIGHT_SIZE(size_Hnope, g->H * g->config.head_nope);
WEIGHT_SIZE(size_q_rank, g->config.q_rank);
WEIGHT_SIZE(size_kv_rank, g->config.kv_rank);
WEIGHT_CONDITION(with_q_rank, c->q_rank > 0);
WEIGHT_CONDITION(without_q_rank, c->q_rank == 0);

static const WeightRow weights[] = {
    {PARAM_LATENT, "latent", 19, INIT_HIDDEN, .columns = size_C,
     .parts = {{"q_down", ROLE_Q_DOWN, size_q_rank, .llama = "self_attn.q_a_proj.weight"},
               {"kv_down", ROLE_KV_DOWN, size_kv_rank, .llama = "self_attn.kv_a_proj_with_mqa.weight"},
               {"k_rope", ROLE_K_ROPE, size_R, .llama = NULL}}},
    {PARAM_Q_LATENT_NORM, "q_down_norm", 20, INIT_ONE, .from_zero = always,
     .parts = {{"q_down_norm", ROLE_NORM, size_q_rank, .llama = "self_attn.q_a_layernorm.weight"}}},
    {PARAM_Q_UP, "q_up", 21, INIT_HIDDEN, .wanted = with_q_rank, .columns = size_q_rank, .by_head = true,
     .parts = {{"q", ROLE_Q, size_Hnope, "self_attn.q_b_proj.weight", .heads = size_H, .clip = CLIP_QUERY},
               {"q_rope", ROLE_Q_ROPE, size_HR, .heads = size_H, .clip = CLIP_WHOLE}}},
    {PARAM_Q_UP, "q_up", 21, INIT_HIDDEN, .wanted = without_q_rank, .columns = size_C, .by_head = true,
     .parts = {{"q", ROLE_Q, size_Hnope, "self_attn.q_proj.weight", .heads = size_H, .clip = CLIP_QUERY},
               {"q_rope", ROLE_Q_ROPE, size_HR, .heads = size_H, .clip = CLIP_WHOLE}}},
    {PARAM_KV_LATENT_NORM, "kv_down_norm", 22, INIT_ONE, .from_zero = always,
     .parts = {{"kv_down_norm", ROLE_NORM, size_kv_rank, .llama = "self_attn.kv_a_layernorm.weight"}}},
    {PARAM_KV_UP, "kv_up", 23, INIT_HIDDEN, .columns = size_kv_rank, .by_head = true,
     .parts = {{"k", ROLE_K, size_Hnope, "self_attn.kv_b_proj.weight", .heads = size_H, .clip = CLIP_KEY},
               {"v", ROLE_V, size_HE, .heads = size_H}}},
};

/* ---- sizes and memory ------------------------------------------------------------------------------------------- */

static void set_sizes(Gpt *g) {
    g->D = g->config.head_nope + g->config.head_rope;
    g->E = g->config.head_value;
    g->R = g->config.head_rope;
}

static char *describe(const ModelConfig *c, char *buffer, int64_t size) {
    snprintf(buffer, (size_t)size, "latent, ranks %lld and %lld, sizes %lld + %lld and %lld", (long long)c->q_rank,
             (long long)c->kv_rank, (long long)c->head_nope, (long long)c->head_rope, (long long)c->head_value);
    return buffer;
}

static int64_t latent_columns(const Gpt *g) {
    return g->config.q_rank + g->config.kv_rank + g->R;
}

static int64_t longest_row(const Gpt *g) {
    return larger(latent_columns(g), g->H * larger(g->D, g->config.head_nope + g->E));
}

static void layout_layer(const Gpt *g, Arena *arena, LayerActivations *a) {
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

static void layout_backward(Gpt *g, Arena *arena) {
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

/* ---- views ------------------------------------------------------------------------------------------------------ */

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

static Heads inputs(const Gpt *g, const LayerActivations *a) {
    return (Heads){.q = layer_by_sequence(g, a->q), .k = layer_by_sequence(g, a->k), .v = layer_by_sequence(g, a->v)};
}

/* ---- forward and backward --------------------------------------------------------------------------------------- */

/* The formulas above, in their order. */
static void forward(Gpt *g, LayerActivations *a, int64_t l) {
    Backend *be = g->be;
    const LatentParts x = latent_parts(g, a->latent);
    const Tensor none = tensor_none();
    const bool low_rank = g->config.q_rank > 0;

    op_linear(be, a->latent, a->norm1, layer_weight(g, PARAM_LATENT, l), none, none);
    if (low_rank)
        op_rmsnorm(be, a->q_latent, a->q_latent_rstd, x.q_latent, layer_weight(g, PARAM_Q_LATENT_NORM, l),
                   LATENT_NORM_EPS);
    op_rmsnorm(be, a->kv_latent, a->kv_latent_rstd, x.kv_latent, layer_weight(g, PARAM_KV_LATENT_NORM, l),
               LATENT_NORM_EPS);
    op_linear(be, g->q_parts, low_rank ? a->q_latent : a->norm1, layer_weight(g, PARAM_Q_UP, l), none, none);
    op_linear(be, g->kv_parts, a->kv_latent, layer_weight(g, PARAM_KV_UP, l), none, none);
    op_rope(be, layer_by_sequence(g, x.q_rope), g->rope);
    op_rope(be, layer_by_sequence(g, x.k_rope), g->rope);

    op_copy(be, content_of(g, a->q), x.q);
    op_copy(be, rotary_of(g, a->q), x.q_rope);
    op_copy(be, content_of(g, a->k), x.k);
    op_copy(be, rotary_of(g, a->k), for_all_heads(g, x.k_rope));
    op_copy(be, a->v, x.v);
    layer_attend(g, a, inputs(g, a), l);
}

/* dlatent's columns of c^Q and c^KV = gradient through their norms. */
static void latent_norms_backward(Gpt *g, LayerActivations *a, int64_t l) {
    const LatentParts x = latent_parts(g, a->latent), d = latent_parts(g, g->dlatent);
    op_fill(g->be, tensor_slice(g->dlatent, 1, 0, g->config.q_rank + g->config.kv_rank), 0); /* grads of norms add */
    if (g->config.q_rank)
        op_rmsnorm_grad(g->be, d.q_latent, layer_gradient(g, PARAM_Q_LATENT_NORM, l), g->dq_latent, x.q_latent,
                        a->q_latent_rstd, layer_weight(g, PARAM_Q_LATENT_NORM, l));
    op_rmsnorm_grad(g->be, d.kv_latent, layer_gradient(g, PARAM_KV_LATENT_NORM, l), g->dkv_latent, x.kv_latent,
                    a->kv_latent_rstd, layer_weight(g, PARAM_KV_LATENT_NORM, l));
}

/* forward's list from its end to its beginning. What the heads share adds up before rope
 * turns it back, once instead of for each head. */
static void backward(Gpt *g, LayerActivations *a, int64_t l) {
    Backend *be = g->be;
    const LatentParts d = latent_parts(g, g->dlatent);
    const Heads dh = {
        .q = layer_by_sequence(g, g->dq), .k = layer_by_sequence(g, g->dk), .v = layer_by_sequence(g, d.v)};

    layer_attend_backward(g, dh, a, inputs(g, a));
    op_copy(be, d.q, content_of(g, g->dq));
    op_copy(be, d.q_rope, rotary_of(g, g->dq));
    op_copy(be, d.k, content_of(g, g->dk));
    op_sum_heads(be, tensor_slice(g->dlatent, 1, g->config.q_rank + g->config.kv_rank, g->R), rotary_of(g, g->dk));
    op_rope_grad(be, layer_by_sequence(g, d.q_rope), g->rope);
    op_rope_grad(be, layer_by_sequence(g, d.k_rope), g->rope);

    layer_linear_backward(g, g->dkv_latent, g->kv_parts, a->kv_latent, PARAM_KV_UP, PARAM_NONE, l);
    if (g->config.q_rank) layer_linear_backward(g, g->dq_latent, g->q_parts, a->q_latent, PARAM_Q_UP, PARAM_NONE, l);
    latent_norms_backward(g, a, l);
    layer_linear_backward(g, g->branch, g->dlatent, a->norm1, PARAM_LATENT, PARAM_NONE, l);
    if (g->config.q_rank) return;
    layer_weight_backward(g, g->q_parts, a->norm1, PARAM_Q_UP, PARAM_NONE, l);
    op_matmul(be, g->branch, g->q_parts, layer_weight(g, PARAM_Q_UP, l), g->branch,
              (MatmulScale){.alpha = 1, .beta = 1});
}

const AttentionVariant attention_mla = {.weights = weights,
                                        .weight_count = sizeof weights / sizeof weights[0],
                                        .flops = "6 N + 3 L H (D + E) T",
                                        .set_sizes = set_sizes,
                                        .describe = describe,
                                        .longest_row = longest_row,
                                        .layout_layer = layout_layer,
                                        .layout_backward = layout_backward,
                                        .forward = forward,
                                        .backward = backward,
                                        .inputs = inputs};
