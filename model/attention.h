/* Attention variants: what lies between a layer's first norm and its output projection, one table and one file each.
 * Private to model/.
 *
 * A variant reads a->norm1 and leaves a->att (N,HE) in the forward pass, and its heads' maxima in the rows of max_logit
 * and max_abs of the layer. In the backward pass it reads g->datt, the gradient of a->att, sets g->branch to that of
 * a->norm1, and the gradients of its weights by g->gradient_mode.
 */
#pragma once

#include "model/weights.h"

/* What attention reads or writes: (B,T,heads,D or E) views. */
typedef struct {
    Tensor q, k, v;
} Heads;

struct AttentionVariant {
    const WeightRow *weights; /* between norm1 and out */
    size_t weight_count;
    const char *flops;         /* gpt_flops_per_token as a formula, in the letters that its users know */
    void (*set_sizes)(Gpt *g); /* D, E, R, from the configuration */
    char *(*describe)(const ModelConfig *c, char *buffer, int64_t size); /* gpt_describe_heads */
    int64_t (*longest_row)(const Gpt *g);                                /* of what is projected, for OpLimits */
    void (*layout_layer)(const Gpt *g, Arena *arena, LayerActivations *a);
    void (*layout_backward)(Gpt *g, Arena *arena); /* gradients and temporaries that all layers share */
    void (*forward)(Gpt *g, LayerActivations *a, int64_t layer);
    void (*backward)(Gpt *g, LayerActivations *a, int64_t layer);
    Heads (*inputs)(const Gpt *g, const LayerActivations *a); /* what op_attention reads */
};

extern const AttentionVariant attention_mha, attention_mla;
