/* Parameter table: every weight of the model, by name, and the *blocks* that optimizers, QK-Clip and probes work on.
 *
 * A Param is a stack of equal tensors, one per layer, at a constant stride; forward and backward read it whole. A Block
 * is the part of it with a meaning of its own: W_q inside the fused qkv matrix, one head of it, the gate half of
 * gate|up.
 *
 *      storage (master, gradient, or working copies: the same offsets in each)
 *      | wte | qkv 0 | qkv 1 | ... | out 0 | out 1 | ...
 *               |
 *               +-- q: rows 0..H*D        head h: rows h*D..(h+1)*D
 *               +-- k: rows H*D..         ...
 *               +-- v
 *
 * Invariants: every element of every Param belongs to exactly one Block (tests check it); blocks of one kind have one
 * shape in all layers, so a run of layers is one strided 4-d view: (layers, heads or 1, rows, columns). Matrices W are
 * (out, in) = (n, m), row-major. A vector is a Param with one column; its blocks are (n, 1).
 */
#pragma once

#include "base/roles.h"
#include "ops/arena.h"

enum { PARAM_MAX = 32, BLOCK_KIND_MAX = 48 };

typedef struct {
    const char *name; /* "qkv", unique */
    bool per_layer;   /* false: one tensor for the whole model */
    bool vector;      /* (rows) instead of (rows, columns); always fp32 where the model reads it */
    int64_t count;    /* layers, or 1 */
    int64_t rows, columns;
    int64_t offset;       /* of the first layer's first element */
    int64_t layer_stride; /* elements from one layer's tensor to the next: rows*columns rounded up to 64 bytes */
} Param;

typedef enum { HEADS_IN_ROWS, HEADS_IN_COLUMNS } HeadAxis;

/* What QK-Clip does to a head's part of a block (optim/qk_clip.h). */
typedef enum {
    CLIP_NONE,
    CLIP_QUERY, /* *= gamma^alpha; gamma, where the heads share keys */
    CLIP_KEY,   /* *= gamma^(1-alpha); nothing, where heads share it */
    CLIP_WHOLE  /* *= gamma: of queries whose key all heads share */
} ClipPower;

/* Names are unique: "q", "o", "gate", "embed", "q_bias". Patterns in the config match "layers.3.q" or "embed". */
typedef struct {
    const char *name;
    Role role;
    int param;          /* index of its Param */
    int64_t layers;     /* its Param's count */
    int64_t row, rows;  /* its rows within the Param's */
    int64_t columns;    /* all of the Param's */
    int heads;          /* how many heads it splits into; 1: it does not */
    HeadAxis head_axis; /* along which axis (rows for q, k, v; columns for o) */
    ClipPower clip;     /* CLIP_NONE unless whoever adds the block sets it */
} BlockKind;

typedef struct {
    int param_count, kind_count;
    Param params[PARAM_MAX];
    BlockKind kinds[BLOCK_KIND_MAX];
    int64_t elements; /* of a storage, padding included */
    int64_t count;    /* of parameters, padding excluded */

    Tensor master; /* (elements) f32 */
    Tensor grad;   /* (elements) f32; zero in the padding between parameters */
    Tensor work;   /* (elements) bf16: rounded copies that forward and backward read; in fp32 mode master itself */
} ParamTable;

/* ---- building --------------------------------------------------------------------------------------------------- */

/* Of `layers` layers, or one for the whole model where that is 0. columns 0: a vector. Returns the parameter's index.
 */
int params_add(ParamTable *table, const char *name, int64_t layers, int64_t rows, int64_t columns);
/* The rows [row, row+rows) of `param` under a name of their own. Returns the kind's index. */
int params_add_block(ParamTable *table, const char *name, Role role, int param, int64_t row, int64_t rows, int heads,
                     HeadAxis axis);

/* Lays out master and working copies in `weights`, gradients in `gradients` (one call measures, the next places). */
void params_layout(ParamTable *table, Arena *weights, Arena *gradients, DType compute_dtype);

/* ---- views ------------------------------------------------------------------------------------------------------ */

/* The tensor of one layer (0 for a global one): (rows, columns), or (rows) for a vector. */
Tensor params_tensor(const ParamTable *table, Tensor storage, int param, int64_t layer);
/* All layers' tensors of a Param, each as one row: (layers or 1, elements), strided. */
Tensor params_stack(const ParamTable *table, Tensor storage, int param);

/* (rows, columns), strided. */
Tensor params_block(const ParamTable *table, Tensor storage, int kind, int64_t layer);
Tensor params_block_head(const ParamTable *table, Tensor storage, int kind, int64_t layer, int head);

/* All blocks of a kind in `layers` layers from `first` on: (layers, 1, rows, columns), or split per head
 * (layers, heads, rows of a head, columns of a head). */
typedef enum { SPLIT_WHOLE, SPLIT_PER_HEAD } BlockSplit;
Tensor params_block_run(const ParamTable *table, Tensor storage, int kind, int64_t first, int64_t layers,
                        BlockSplit split);

int params_find_kind(const ParamTable *table, const char *name); /* -1: the model has none */
bool params_is_hidden_matrix(const BlockKind *kind);             /* what optimizer.matrices governs */
bool params_has_decay(const BlockKind *kind);                    /* matrices and embeddings; not norms and biases */
bool params_splits_into_heads(const BlockKind *kind);            /* a matrix that optimizer.muon.per_head may name */
const char *role_name(Role role);

/* "layers.3.q", "embed". Returns the buffer. */
char *params_block_name(const ParamTable *table, int kind, int64_t layer, char *buffer, int64_t size);

/* work = master, rounded. Does nothing in fp32 mode. */
void params_refresh_work(Backend *be, const ParamTable *table);
