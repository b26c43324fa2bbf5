/* Weights by name, linear layers, norms and the attention op; see layer.h. */
#include "model/layer.h"

#include <math.h>

Tensor layer_weight(const Gpt *g, GptParam id, int64_t layer) {
    const ParamTable *p = &g->params;
    const int param = g->index[id];
    if (param < 0) return tensor_none();
    return params_tensor(p, p->params[param].vector ? p->master : p->work, param, layer);
}

Tensor layer_gradient(const Gpt *g, GptParam id, int64_t layer) {
    return g->index[id] < 0 ? tensor_none() : params_tensor(&g->params, g->params.grad, g->index[id], layer);
}

void layer_weight_backward(Gpt *g, Tensor dout, Tensor x, GptParam w, GptParam bias, int64_t layer) {
    op_linear_grad_weight(g->be, layer_gradient(g, w, layer), layer_gradient(g, bias, layer), dout, x,
                          g->gradient_mode);
}

void layer_linear_backward(Gpt *g, Tensor dx, Tensor dout, Tensor x, GptParam w, GptParam bias, int64_t layer) {
    layer_weight_backward(g, dout, x, w, bias, layer);
    op_linear_grad_input(g->be, dx, dout, layer_weight(g, w, layer));
}

void layer_norm(Gpt *g, Tensor out, Tensor mean, Tensor rstd, Tensor x, GptParam w, GptParam bias, int64_t layer) {
    const float eps = (float)g->config.norm_eps;
    if (g->config.norm == NORM_LAYERNORM)
        op_layernorm(g->be, out, mean, rstd, x, layer_weight(g, w, layer), layer_weight(g, bias, layer), eps);
    else
        op_rmsnorm(g->be, out, rstd, x, layer_weight(g, w, layer), eps);
}

void layer_norm_backward(Gpt *g, Tensor x, Tensor mean, Tensor rstd, GptParam w, GptParam bias, int64_t layer) {
    Tensor weight = layer_weight(g, w, layer), dw = layer_gradient(g, w, layer);
    if (g->config.norm == NORM_LAYERNORM)
        op_layernorm_grad(g->be, g->dx, dw, layer_gradient(g, bias, layer), g->branch, x, mean, rstd, weight);
    else
        op_rmsnorm_grad(g->be, g->dx, dw, g->branch, x, rstd, weight);
}

AttentionParams layer_attention_params(const Gpt *g) {
    return (AttentionParams){.scale = (float)(1.0 / sqrt((double)g->D)), .softcap = (float)g->config.attention_softcap};
}

static Tensor by_head(const Gpt *g, Tensor att) {
    return layer_by_sequence(g, tensor_as_3d(att, g->N, g->H, g->E));
}

void layer_attend(Gpt *g, LayerActivations *a, Heads in, int64_t layer) {
    op_attention(g->be, by_head(g, a->att), a->lse, tensor_index(g->max_logit, layer), tensor_index(g->max_abs, layer),
                 in.q, in.k, in.v, layer_attention_params(g));
}

void layer_attend_backward(Gpt *g, Heads d, const LayerActivations *a, Heads in) {
    op_attention_grad(g->be, d.q, d.k, d.v, by_head(g, g->datt), by_head(g, a->att), a->lse, in.q, in.k, in.v,
                      layer_attention_params(g));
}

Tensor layer_by_sequence(const Gpt *g, Tensor t) {
    return (Tensor){.data = t.data,
                    .dtype = t.dtype,
                    .ndim = 4,
                    .shape = {g->B, g->T, t.shape[1], t.shape[2]},
                    .stride = {g->T * t.stride[0], t.stride[0], t.stride[1], t.stride[2]}};
}
