/* Pieces of a layer that gpt.c and the attention variants share: weights by name, linear layers, norms, the attention
 * op. Private to model/.
 */
#pragma once

#include "model/attention.h"
#include "ops/ops.h"

/* Vectors from the masters, matrices from the working copies. Absent where the model has no such weight. */
Tensor layer_weight(const Gpt *g, GptParam id, int64_t layer);
Tensor layer_gradient(const Gpt *g, GptParam id, int64_t layer);

/* dw = or += doutᵀ x, dbias = or += sum dout, by g->gradient_mode. */
void layer_weight_backward(Gpt *g, Tensor dout, Tensor x, GptParam w, GptParam bias, int64_t layer);
/* The same, and dx = dout w. */
void layer_linear_backward(Gpt *g, Tensor dx, Tensor dout, Tensor x, GptParam w, GptParam bias, int64_t layer);

/* out = the model's norm of x. mean: LayerNorm's only. */
void layer_norm(Gpt *g, Tensor out, Tensor mean, Tensor rstd, Tensor x, GptParam w, GptParam bias, int64_t layer);
/* g->dx += gradient through a norm whose output's gradient is g->branch. */
void layer_norm_backward(Gpt *g, Tensor x, Tensor mean, Tensor rstd, GptParam w, GptParam bias, int64_t layer);

/* a->att, a->lse and the layer's maxima of logits = attention of `in`. */
void layer_attend(Gpt *g, LayerActivations *a, Heads in, int64_t layer);
/* d = gradients of `in`, from g->datt. */
void layer_attend_backward(Gpt *g, Heads d, const LayerActivations *a, Heads in);
AttentionParams layer_attention_params(const Gpt *g);

/* (N,heads,size) as (B,T,heads,size). */
Tensor layer_by_sequence(const Gpt *g, Tensor t);
