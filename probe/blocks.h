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
#include "optim/optimizer.h"
#include "probe/matrix.h"
#include "probe/triples.h"

/* The memory of a probe: two arenas, which its layout function measures and then places (ops/arena.h). */
typedef struct {
    Arena device; /* tensors of the backend */
    Arena host;   /* arena_take_host */
} ProbeMemory;

enum { BLOCK_SETS = 3 };

typedef struct {
    const ParamTable *params;
    Backend *be;
    int64_t top;                        /* k: how many triples of a matrix are found, min(rows, columns) at most */
    int64_t slots;                      /* watched (kind, layer) pairs */
    int64_t first_slot[BLOCK_KIND_MAX]; /* of a kind's layer 0; -1: it is not watched */
    int64_t chunk, elements;            /* layers at a time, elements of the largest block */
    float *host;
    int64_t found_size; /* doubles */
    double *found;
    Triples *weights;
    bool *weights_known; /* of a slot, in this step */
    Workspaces work;
    Tensor stage; /* (elements) f32: of the largest block */
} WatchedBlocks;

/* Kinds that the model does not have are passed over; NULL if it has none of them. The caller frees it. */
Status blocks_plan(WatchedBlocks **blocks, const ParamTable *params, const ProbeConfig *config, Backend *be);
void blocks_layout(WatchedBlocks *blocks, ProbeMemory *memory);
Triples *blocks_layout_triples(const WatchedBlocks *blocks, Arena *host); /* of every slot */

bool blocks_watched(const WatchedBlocks *blocks, int kind);
int64_t blocks_slot(const WatchedBlocks *blocks, int kind, int64_t layer);

/* A step begins: its weights are not known yet. */
void blocks_begin(WatchedBlocks *blocks);
/* The weights of a route's layers, before the step: their triples, unless they are known, stay for the step. */
void blocks_keep_weights(WatchedBlocks *blocks, const Route *route, Tensor weights);
/* The triples of a route's matrices, into their slots of `to`. */
void blocks_keep(WatchedBlocks *blocks, const Route *route, Tensor run, Triples *to);

/* A layer under measurement, and what of it is on the host. */
typedef struct {
    const WatchedBlocks *blocks;
    int kind;
    int64_t layer, slot;
    int64_t place; /* in the chunk */
} WatchedLayer;
const float *blocks_matrix(const WatchedLayer *at, int set);
Triples blocks_found(const WatchedLayer *at, int set);

/* task(context, layer, workspace) for each layer of a route of a watched kind, in parallel: with the matrices of `runs`
 * as its sets, and the triples of the first `found` of them. A thread's workspace is large enough for triples_find and
 * for spectrum_measure. Waits. */
typedef void BlockTask(void *context, const WatchedLayer *at, double *workspace);
void blocks_measure(WatchedBlocks *blocks, const Route *route, const Tensor *runs, int count, int found,
                    BlockTask *task, void *context);
