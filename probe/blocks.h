/* The blocks that the probes of updates watch (probe.blocks), and what these probes work in.
 *
 * A kind of block is watched in all layers; each (kind, layer) has a slot, where a probe keeps what it found. A run of
 * matrices is taken in chunks of layers: up to BLOCK_SETS sets of them (weights, updates, ..) are fetched into host
 * memory side by side, then measured in parallel, one thread a matrix.
 *
 *      host     | set 0: layer a, a+1, .. | set 1: layer a, a+1, .. | ..        matrices
 *      found    | set 0: layer a, a+1, .. | set 1: layer a, a+1, .. | ..        their triples
 *      weights  | slot 0 | slot 1 | ..                                          triples of W before the step
 *
 * The probes use one WatchedBlocks in turn: nothing in `host` and `found` outlives a call. On a device, fetching waits.
 */
#pragma once

#include "base/config.h"
#include "model/params.h"
#include "probe/memory.h"
#include "probe/triples.h"

enum { BLOCK_SETS = 3 };

typedef struct {
    const ParamTable *params;
    Backend *be;
    int threads;
    int64_t top;                        /* k; see blocks_top */
    int64_t slots;                      /* watched (kind, layer) pairs */
    int64_t first_slot[BLOCK_KIND_MAX]; /* of a kind's layer 0; -1: it is not watched */
    int64_t chunk, elements;            /* layers at a time, elements of the largest block */
    float *host;
    int64_t found_size; /* doubles */
    double *found;
    Triples *weights;
    bool *weights_known;    /* of a slot, in this step */
    int64_t workspace_size; /* doubles a thread */
    double *workspaces;
    Tensor stage; /* (elements) f32: of the largest block */
} WatchedBlocks;

/* Kinds that the model does not have are passed over; NULL if it has none of them. The caller frees it. */
Status blocks_plan(WatchedBlocks **blocks, const ParamTable *params, const ProbeConfig *config, Backend *be);
void blocks_layout(WatchedBlocks *blocks, ProbeMemory *memory);

bool blocks_watched(const WatchedBlocks *blocks, int kind);
int64_t blocks_slot(const WatchedBlocks *blocks, int kind, int64_t layer);
/* Whole blocks: (rows, columns), and how many triples of them are taken: `top`, but min(rows, columns) at most. */
int64_t blocks_rows(const WatchedBlocks *blocks, int kind);
int64_t blocks_columns(const WatchedBlocks *blocks, int kind);
int64_t blocks_top(const WatchedBlocks *blocks, int kind);

/* A step begins: its weights are not known yet. */
void blocks_begin(WatchedBlocks *blocks);
/* The weights of a run of a watched kind, before the step: their triples, unless they are known, stay for the step. */
void blocks_keep_weights(WatchedBlocks *blocks, int kind, int64_t first_layer, Tensor weights);

/* Triples of every slot. */
Triples *blocks_layout_triples(const WatchedBlocks *blocks, Arena *host);

/* The layers of `run` (at most `chunk`) become set `set`. Waits. */
void blocks_fetch(WatchedBlocks *blocks, int set, int kind, Tensor run);
/* Of a set's layer, counted from the chunk's first. */
const float *blocks_matrix(const WatchedBlocks *blocks, int set, int64_t layer);
Triples blocks_found(const WatchedBlocks *blocks, int set, int kind, int64_t layer);
/* The triples of `layers` layers of the sets [0, sets) of a kind. */
void blocks_find(WatchedBlocks *blocks, int sets, int kind, int64_t layers);

/* task(context, i, workspace) for i < count, in parallel: every thread has its own workspace, large enough for
 * triples_find and for spectrum_singular_values with their values. */
typedef void BlockTask(void *context, int64_t i, double *workspace);
void blocks_parallel(WatchedBlocks *blocks, int64_t count, BlockTask *task, void *context);
