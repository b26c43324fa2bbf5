/* GPT: weights, forward, backward. A pre-norm decoder-only transformer in the GPT-2 and Llama families and between
 * them.
 *
 *      x = wte[tokens] (+ wpe)
 *      per layer:  x += out(attention(rope(qkv(norm1(x)))));   x += down(act(up(norm2(x))))
 *      logits = head(normf(x))
 *
 * Letters: B batch, T context, N = B*T, C width, H heads, K key/value heads, D head size of queries and keys, E of
 * values, R the part of D that rope turns, F mlp width, V vocabulary, L layers. Multi-head attention has D = E = R =
 * C/H; latent attention (model/attention_mla.c) has sizes of its own. The model holds activations for one micro-batch;
 * gradients accumulate over micro-batches.
 */
#pragma once

#include "base/config.h"
#include "model/params.h"

/* Weights; their rows, with shapes, are in model/weights.c and with the attention variants. */
typedef enum {
    PARAM_NONE, /* where a layer has no bias */
    PARAM_WTE,
    PARAM_WPE,
    PARAM_NORM1,
    PARAM_NORM1_BIAS,
    PARAM_QKV,
    PARAM_QKV_BIAS,
    PARAM_Q_NORM,
    PARAM_K_NORM,
    PARAM_LATENT,
    PARAM_Q_LATENT_NORM,
    PARAM_Q_UP,
    PARAM_KV_LATENT_NORM,
    PARAM_KV_UP,
    PARAM_OUT,
    PARAM_OUT_BIAS,
    PARAM_NORM2,
    PARAM_NORM2_BIAS,
    PARAM_UP,
    PARAM_UP_BIAS,
    PARAM_DOWN,
    PARAM_DOWN_BIAS,
    PARAM_NORMF,
    PARAM_NORMF_BIAS,
    PARAM_HEAD,
    GPT_PARAM_COUNT
} GptParam;

typedef struct WeightRow WeightRow;               /* model/weights.h */
typedef struct AttentionVariant AttentionVariant; /* model/attention.h */

/* Activations that the backward pass reads, one set per layer. */
typedef struct {
    Tensor input;                         /* (N,C): the residual stream as it enters the layer */
    Tensor norm1, mean1, rstd1;           /* (N,C), (N), (N) */
    Tensor qkv;                           /* (N,H+2K,D); after rope unless qk_norm */
    Tensor q_norm, q_rstd;                /* (N,H,D) after rope, (N,H): qk_norm only */
    Tensor k_norm, k_rstd;                /* (N,K,D), (N,K) */
    Tensor latent;                        /* (N,q_rank+kv_rank+R): mla only, like what follows; k^R after rope */
    Tensor q_latent, kv_latent;           /* (N,q_rank), (N,kv_rank), normalized */
    Tensor q_latent_rstd, kv_latent_rstd; /* (N) */
    Tensor q, k, v;                       /* (N,H,D), (N,H,D), (N,H,E): what attention reads */
    Tensor att, lse;                      /* (N,HE), (B,H,T) */
    Tensor middle;                        /* (N,C): the residual stream between attention and mlp */
    Tensor norm2, mean2, rstd2;
    Tensor up;  /* (N,F) or (N,2F): before the activation */
    Tensor act; /* (N,F) */
} LayerActivations;

typedef struct {
    Backend *be;
    ModelConfig config;
    int64_t B, T, N, C, H, K, D, E, R, F, V, L;
    const AttentionVariant *attention;
    ParamTable params;
    const WeightRow *rows[PARAM_MAX]; /* what each of params is */
    int index[GPT_PARAM_COUNT];       /* place in params; -1: this model has none */
    GradientMode gradient_mode;       /* of the matrices, in the next backward pass */

    Arena weights, gradients, activations;
    LayerActivations *layers;   /* L of them, on the host */
    Tensor tokens, targets;     /* (B,T) i32 */
    Tensor final;               /* (N,C): the residual stream after the last layer */
    Tensor normf, meanf, rstdf; /* (N,C), (N), (N) */
    Tensor rope;                /* (T,R) f32: cosines, sines */
    Tensor logits;              /* (chunk,V): never the whole batch; see gpt_loss */
    Tensor losses;              /* (N) f32 */
    Tensor statistics;          /* f32, of a step, side by side so that one copy reads them back: */
    Tensor loss_sum;            /*   (1) */
    Tensor grad_square_sum;     /*   (1): whoever wants the gradient's norm adds to it */
    Tensor max_logit, max_abs;  /*   (L,H): running maxima */
    Tensor branch;              /* (N,C): backward: the gradient of a norm's output */
    Tensor dx;                  /* (N,C): gradient of the residual stream */
    Tensor dqkv, datt, dup;     /* backward temporaries, shapes as in LayerActivations */
    Tensor dact;                /* swiglu only */
    Tensor dq_norm, dk_norm;    /* qk_norm only */
    Tensor q_parts, kv_parts;   /* mla only: (N,H(nope+R)), (N,H(nope+E)): what W^UQ and W^UK give, or its gradient */
    Tensor dq, dk;              /* (N,H,D) */
    Tensor dlatent, dq_latent, dkv_latent;
} Gpt;

/* Describes the parameters and measures memory; allocates nothing. --dry-run stops here. */
Status gpt_plan(Gpt *gpt, const ModelConfig *config, int64_t micro_batch, Backend *be);
int64_t gpt_planned_bytes(const Gpt *gpt); /* of the three arenas */
OpLimits gpt_op_limits(const Gpt *gpt);    /* for backend_reserve */
Status gpt_allocate(Gpt *gpt);             /* after gpt_plan */
void gpt_free(Gpt *gpt);                   /* also after either failed */

/* Weights from the seed: normal with init_std, residual projections ("out", "down") scaled by 1/sqrt(2L) (Radford et
 * al. 2019, section 2.3), norms 1, biases 0. The same values on every backend. muP (optim/scale.c): with a base
 * width, and r = base width / C, hidden matrices have sqrt(r) of that, and the final norm is r. 0: without. */
Status gpt_init_weights(Gpt *gpt, int64_t seed, int64_t mup_base_width);

/* tokens, targets: B*T int32 on the host; targets may be NULL when no loss is wanted. */
void gpt_set_batch(Gpt *gpt, const int32_t *tokens, const int32_t *targets);

/* The next backward pass is the first of a step: it sets the gradients, the ones after it add to them. */
void gpt_start_gradients(Gpt *gpt);
void gpt_reset_statistics(Gpt *gpt); /* sums = 0; max_logit, max_abs = -infinity: no logit seen */

void gpt_forward(Gpt *gpt);
/* Adds the sum of the batch's losses (nats) to loss_sum. */
void gpt_loss(Gpt *gpt);
/* The same, and the gradient of loss_scale * sum: the head's here, the rest in gpt_backward. */
void gpt_loss_and_gradient(Gpt *gpt, float loss_scale);
void gpt_backward(Gpt *gpt);

/* What a layer's attention multiplied in the last forward pass, normed and rotated: q (B,T,H,D), k (B,T,K,D), strided;
 * its logits are scale q·k. */
typedef struct {
    Tensor q, k;
    float scale;
} AttentionInputs;
AttentionInputs gpt_attention_inputs(const Gpt *gpt, int64_t layer);

/* Logits of position t of every row, to the host: B*V floats. After gpt_forward. */
void gpt_logits_at(Gpt *gpt, int64_t t, float *logits);

/* Training FLOPs per token: 6 N + 3 L H (D + E) T, N = parameters without the position table, the embedding counted
 * once. The second term is attention's two products, q kᵀ of size D and p v of size E, over half of the context on
 * average, 2 FLOPs each in forward and 4 in backward; multi-head attention, with H D = H E = C, has 6 L C T. */
double gpt_flops_per_token(const Gpt *gpt);
const char *gpt_flops_formula(const Gpt *gpt);

/* Its heads in words: "4 key/value". Returns the buffer. */
char *gpt_describe_heads(const Gpt *gpt, char *buffer, int64_t size);
