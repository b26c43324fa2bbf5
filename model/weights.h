/* Weights: one row each says what a weight of the model is; parameters, blocks, initial values, fresh gradients and the
 * names in files follow from it. A row lies in model/weights.c, or in the file of the attention variant that has it.
 * Private to model/.
 *
 *      {PARAM_QKV, "qkv", 4, INIT_HIDDEN, .columns = size_C, .gpt2 = "attn.c_attn.weight",
 *       .parts = {{"q", ROLE_Q, size_HD, .llama = "self_attn.q_proj.weight", .heads = size_H},
 *                 {"k", ROLE_K, size_KD, .llama = "self_attn.k_proj.weight", .heads = size_K},
 *                 {"v", ROLE_V, size_KD, .llama = "self_attn.v_proj.weight", .heads = size_K}}}
 *
 * is a matrix of H D + 2 K D rows in three blocks, of C columns in each layer, which GPT-2 stores as one tensor and
 * Llama as three.
 */
#pragma once

#include "model/gpt.h"

typedef int64_t WeightSize(const Gpt *g);
typedef bool WeightCondition(const ModelConfig *c);

/* r: muP's base width / C, or 1. */
typedef enum {
    INIT_EMBEDDING, /* normal, of standard deviation init_std */
    INIT_HIDDEN,    /* of init_std sqrt(r) */
    INIT_RESIDUAL,  /* of init_std sqrt(r) / sqrt(2L): what adds to the residual stream */
    INIT_ZERO,
    INIT_ONE,
    INIT_FINAL_NORM /* r */
} WeightInit;

/* Rows of a weight. */
typedef struct {
    const char *block; /* that they are; NULL: they belong to the block before */
    Role role;
    WeightSize *rows;  /* NULL: there is no such part; 0: this model has none */
    const char *llama; /* their tensor in a file of Llama's family; NULL: they lie in that of the rows before */
    WeightSize *heads; /* into which the block splits; NULL: it does not */
    HeadAxis head_axis;
    ClipPower clip;
} WeightPart;

enum { WEIGHT_PARTS = 3 };

/* Names in files: those of a layer's weights without what stands before every layer's ("model.layers.3."). */
struct WeightRow {
    GptParam id;
    const char *name;
    int stream; /* of the seed's random numbers. Never changed, never used twice: initial weights depend on it */
    WeightInit init;
    bool global;                /* one for the whole model instead of one a layer */
    WeightCondition *wanted;    /* by which models; NULL: by all. Where it has no rows, none has it */
    WeightSize *columns;        /* NULL: a vector */
    WeightCondition *from_zero; /* its gradient is added to, and has to start from 0; NULL: the first pass sets it */
    const char *gpt2;           /* the whole in a file of GPT-2's; NULL: GPT-2 has no such weight */
    bool by_head;               /* in Llama's file: head after head, its rows of each part (huggingface.h) */
    WeightPart parts[WEIGHT_PARTS];
};

/* Adds the model's weights and their blocks to g->params, in storage order, and fills g->index and g->rows. */
void weights_describe(Gpt *g);

bool weight_has_part(const WeightRow *row, int part);

/* ---- sizes and conditions for rows ------------------------------------------------------------------------------ */

/* WEIGHT_SIZE(size_HD, g->H * g->D) defines a WeightSize, WEIGHT_CONDITION(with_bias, c->bias) a WeightCondition. */
#define WEIGHT_SIZE(name, expression)                                                                                  \
    static inline int64_t name(const Gpt *g) {                                                                         \
        return expression;                                                                                             \
    }                                                                                                                  \
    static inline int64_t name(const Gpt *g)
#define WEIGHT_CONDITION(name, expression)                                                                             \
    static inline bool name(const ModelConfig *c) {                                                                    \
        return expression;                                                                                             \
    }                                                                                                                  \
    static inline bool name(const ModelConfig *c)

WEIGHT_SIZE(size_C, g->C);
WEIGHT_SIZE(size_H, g->H);
WEIGHT_SIZE(size_K, g->K);
WEIGHT_CONDITION(always, c != NULL);
WEIGHT_CONDITION(with_bias, c->bias);
