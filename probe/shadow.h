/* What an update that is not made would do: its rank and its collisions with the weights (optim/shadow.h makes it).
 *
 * With the weights' triples (sigma_i, u_i, v_i) and W' = (1 - lr wd) W - lr s U:
 *
 *      effective_rank    exp(-sum p ln p), p = sigma(U) / sum sigma(U)
 *      rms               lr s |U|_F / sqrt(n m)
 *      collision         mean over the top k of (u_iᵀ U v_i)², relative to |U|_F² / (n m)      (collision.h)
 *      sigma_change      -lr s u_1ᵀ U v_1 - lr wd sigma_1
 */
#pragma once

#include "probe/blocks.h"

typedef struct {
    int kind, tag; /* tag: of the caller */
    int64_t layer;
    double effective_rank, rms, collision, sigma_change;
} ShadowRecord;

/* A run of updates that were not made: 4-d, as UpdateEvent.update. */
typedef struct {
    int kind, tag;
    int64_t first_layer;
    Tensor update;
    double step, decay; /* lr s and lr wd */
} ShadowUpdate;

typedef struct {
    WatchedBlocks *blocks;
    int64_t record_count, capacity;
    ShadowRecord *records; /* in the order of the calls, by layer */
} ShadowProbe;

Status shadow_create(ShadowProbe *probe, WatchedBlocks *blocks, int tags); /* how many updates a block has in a step */
void shadow_free(ShadowProbe *probe);
int64_t shadow_bytes(const ShadowProbe *probe);
void shadow_begin(ShadowProbe *probe); /* forgets the records */
/* A record a layer. blocks_keep_weights has had the weights. */
void shadow_measure(ShadowProbe *probe, const ShadowUpdate *update);
