/* A grouped-query model's parameters, small and without a model: q, k and v lie within one matrix, o has its heads in
 * columns. For tests of what works on blocks.
 */
#pragma once

#include "model/params.h"
#include "tests/tensors.h"

enum { LAYERS = 3, WIDTH = 12, HEADS = 4, KV_HEADS = 2, HEAD_SIZE = 3, MLP = 20 };

static inline void describe_embedding_and_attention(ParamTable *t) {
    params_add_block(t, "embed", ROLE_EMBED, params_add_matrix(t, "wte", 0, 50, WIDTH), 0, 50, 1, HEADS_IN_ROWS);
    int qkv = params_add_matrix(t, "qkv", LAYERS, (HEADS + 2 * KV_HEADS) * HEAD_SIZE, WIDTH);
    params_add_block(t, "q", ROLE_Q, qkv, 0, HEADS * HEAD_SIZE, HEADS, HEADS_IN_ROWS);
    params_add_block(t, "k", ROLE_K, qkv, HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS, HEADS_IN_ROWS);
    params_add_block(t, "v", ROLE_V, qkv, (HEADS + KV_HEADS) * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS,
                     HEADS_IN_ROWS);
    int out = params_add_matrix(t, "out", LAYERS, WIDTH, HEADS * HEAD_SIZE);
    params_add_block(t, "o", ROLE_O, out, 0, WIDTH, HEADS, HEADS_IN_COLUMNS);
}

/* Memory for the table, in fp32. */
static inline void allocate_params(ParamTable *t, Arena *weights, Arena *gradients, Backend *be) {
    *weights = arena_measure("weights");
    *gradients = arena_measure("gradients");
    params_layout(t, weights, gradients, DTYPE_F32);
    assert_ok(arena_allocate(weights, be));
    assert_ok(arena_allocate(gradients, be));
    params_layout(t, weights, gradients, DTYPE_F32);
}
