/* The forward and backward pass; see gpt.h for the model and the letters.
 *
 * The residual stream x is never overwritten in the forward pass: layer l reads layers[l].input, leaves `middle` after
 * attention, and writes layers[l+1].input (or gpt.final), because the backward pass of the norms reads all of them.
 * In the backward pass one buffer, gpt.dx, is the gradient of the residual stream: branches add to it.
 *
 *      forward    input -norm1-> -attention-> -out-> + input = middle      (attention: one of model/attention_*.c)
 *                 middle -norm2-> -up-> -act-> -down-> + middle = the next layer's input
 *      backward   the same list, from its end to its beginning
 */
#include "model/layer.h"

#include "base/integer.h"

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void forward_attention(Gpt *g, LayerActivations *a, int64_t l) {
    layer_norm(g, a->norm1, a->mean1, a->rstd1, a->input, PARAM_NORM1, PARAM_NORM1_BIAS, l);
    g->attention->forward(g, a, l);
    op_linear(g->be, a->middle, a->att, layer_weight(g, PARAM_OUT, l), layer_weight(g, PARAM_OUT_BIAS, l), a->input);
}

static void forward_mlp(Gpt *g, LayerActivations *a, Tensor output, int64_t l) {
    Backend *be = g->be;
    layer_norm(g, a->norm2, a->mean2, a->rstd2, a->middle, PARAM_NORM2, PARAM_NORM2_BIAS, l);
    Tensor w = layer_weight(g, PARAM_UP, l), bias = layer_weight(g, PARAM_UP_BIAS, l);
    if (g->config.mlp == MLP_SWIGLU) {
        op_linear(be, a->up, a->norm2, w, bias, tensor_none());
        op_swiglu(be, a->act, a->up);
    } else {
        op_linear_gelu(be, a->act, a->up, a->norm2, w, bias);
    }
    op_linear(be, output, a->act, layer_weight(g, PARAM_DOWN, l), layer_weight(g, PARAM_DOWN_BIAS, l), a->middle);
}

void gpt_forward(Gpt *g) {
    op_embed(g->be, g->layers[0].input, g->tokens, layer_weight(g, PARAM_WTE, 0), layer_weight(g, PARAM_WPE, 0));
    for (int64_t l = 0; l < g->L; l++) {
        forward_attention(g, &g->layers[l], l);
        forward_mlp(g, &g->layers[l], l + 1 < g->L ? g->layers[l + 1].input : g->final, l);
    }
    layer_norm(g, g->normf, g->meanf, g->rstdf, g->final, PARAM_NORMF, PARAM_NORMF_BIAS, 0);
}

/* ---- loss ------------------------------------------------------------------------------------------------------- */

static GptParam head_param(const Gpt *g) {
    return g->config.tie_embeddings ? PARAM_WTE : PARAM_HEAD;
}

typedef struct {
    Tensor x, logits, targets, losses, dx; /* the rows of one chunk */
} Chunk;

static Chunk loss_chunk(const Gpt *g, int64_t first) {
    int64_t rows = smaller(g->N - first, g->logits.shape[0]);
    return (Chunk){.x = tensor_slice(g->normf, 0, first, rows),
                   .logits = tensor_slice(g->logits, 0, 0, rows),
                   .targets = tensor_slice(tensor_reshape(g->targets, 1, &g->N), 0, first, rows),
                   .losses = tensor_slice(g->losses, 0, first, rows),
                   .dx = tensor_slice(g->branch, 0, first, rows)};
}

void gpt_loss(Gpt *g) {
    for (int64_t first = 0; first < g->N; first += g->logits.shape[0]) {
        Chunk c = loss_chunk(g, first);
        op_linear(g->be, c.logits, c.x, layer_weight(g, head_param(g), 0), tensor_none(), tensor_none());
        op_cross_entropy(g->be, c.losses, c.logits, c.targets);
    }
    op_sum(g->be, g->loss_sum, g->losses);
}

void gpt_loss_and_gradient(Gpt *g, float loss_scale) {
    Backend *be = g->be;
    Tensor w = layer_weight(g, head_param(g), 0), dw = layer_gradient(g, head_param(g), 0);
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

static void backward_mlp(Gpt *g, LayerActivations *a, int64_t l) {
    layer_weight_backward(g, g->dx, a->act, PARAM_DOWN, PARAM_DOWN_BIAS, l);
    if (g->config.mlp == MLP_SWIGLU) {
        op_linear_grad_input(g->be, g->dact, g->dx, layer_weight(g, PARAM_DOWN, l));
        op_swiglu_grad(g->be, g->dup, g->dact, a->up);
    } else {
        op_linear_gelu_grad(g->be, g->dup, g->dx, layer_weight(g, PARAM_DOWN, l), a->up);
    }
    layer_linear_backward(g, g->branch, g->dup, a->norm2, PARAM_UP, PARAM_UP_BIAS, l);
    layer_norm_backward(g, a->middle, a->mean2, a->rstd2, PARAM_NORM2, PARAM_NORM2_BIAS, l);
}

static void backward_attention(Gpt *g, LayerActivations *a, int64_t l) {
    layer_linear_backward(g, g->datt, g->dx, a->att, PARAM_OUT, PARAM_OUT_BIAS, l);
    g->attention->backward(g, a, l);
    layer_norm_backward(g, a->input, a->mean1, a->rstd1, PARAM_NORM1, PARAM_NORM1_BIAS, l);
}

void gpt_backward(Gpt *g) {
    op_fill(g->be, g->dx, 0);
    layer_norm_backward(g, g->final, g->meanf, g->rstdf, PARAM_NORMF, PARAM_NORMF_BIAS, 0);
    for (int64_t l = g->L - 1; l >= 0; l--) {
        backward_mlp(g, &g->layers[l], l);
        backward_attention(g, &g->layers[l], l);
    }
    op_embed_grad(g->be, layer_gradient(g, PARAM_WTE, 0), layer_gradient(g, PARAM_WPE, 0), g->dx, g->tokens);
    g->gradient_mode = GRADIENT_ADD;
}

/* ---- the rest --------------------------------------------------------------------------------------------------- */

void gpt_set_batch(Gpt *g, const int32_t *tokens, const int32_t *targets) {
    backend_from_host(g->be, g->tokens, tokens);
    if (targets) backend_from_host(g->be, g->targets, targets);
}

void gpt_start_gradients(Gpt *g) {
    for (int p = 0; p < g->params.param_count; p++) {
        WeightCondition *from_zero = g->rows[p]->from_zero;
        if (from_zero && from_zero(&g->config)) op_fill(g->be, params_stack(&g->params, g->params.grad, p), 0);
    }
    g->gradient_mode = GRADIENT_SET;
}

AttentionInputs gpt_attention_inputs(const Gpt *g, int64_t layer) {
    const Heads h = g->attention->inputs(g, &g->layers[layer]);
    return (AttentionInputs){.q = h.q, .k = h.k, .scale = layer_attention_params(g).scale};
}

void gpt_logits_at(Gpt *g, int64_t position, float *logits) {
    CHECK(position >= 0 && position < g->T, "position %lld of %lld", (long long)position, (long long)g->T);
    Tensor row = tensor_slice(g->logits, 0, 0, 1);
    for (int64_t b = 0; b < g->B; b++) {
        Tensor x = tensor_slice(g->normf, 0, b * g->T + position, 1);
        op_linear(g->be, row, x, layer_weight(g, head_param(g), 0), tensor_none(), tensor_none());
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

double gpt_flops_per_token(const Gpt *g) {
    int64_t n =
        g->params.count - (g->index[PARAM_WPE] >= 0 ? g->T * g->C : 0) - (g->index[PARAM_HEAD] >= 0 ? g->V * g->C : 0);
    return 6.0 * (double)n + 3.0 * (double)(g->L * g->H * (g->D + g->E) * g->T);
}

const char *gpt_flops_formula(const Gpt *g) {
    return g->attention->flops;
}

char *gpt_describe_heads(const Gpt *g, char *buffer, int64_t size) {
    return g->attention->describe(&g->config, buffer, size);
}
