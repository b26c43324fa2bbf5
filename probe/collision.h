/* The collision meter: how a step meets the largest singular triples (sigma_i, u_i, v_i) of the weights it changes.
 *
 *      W' = (1 - lr wd) W - lr s U                     Muon's U = msign(.), AdamW's m̂ / (sqrt(v̂) + eps), ..
 *      c_i = u_iᵀ U v_i                                 the collision of U with the i-th triple
 *      sigma_i' - sigma_i = -lr s c_i - lr wd sigma_i   predicted: to first order (Stewart & Sun 1990)
 *      relative = mean c_i² / (|U|_F² / (n m))          1: as a U without any direction of its own would meet them
 *
 * A collision with c_i < 0 makes sigma_i grow. Updates of full rank and equal singular values (Muon) have c_i of some
 * size against every triple; updates of low rank only where they point.
 *
 * `realised` compares the i-th largest values before and after, which is the same triple as long as none overtakes.
 */
#pragma once

#include "probe/blocks.h"

typedef struct {
    int kind;
    int64_t layer;
    int64_t count; /* k */
    double c[TRIPLES_MAX], sigma[TRIPLES_MAX], predicted[TRIPLES_MAX], realised[TRIPLES_MAX];
    double relative;
    Alignment with_update, with_momentum, with_step; /* of W before the step, with U, M and W after it */
} CollisionRecord;

/* What a step did to a run of blocks: 4-d tensors as in UpdateEvent. momentum may be absent. */
typedef struct {
    int kind;
    int64_t first_layer;
    Tensor weights, momentum, update; /* after the step */
    double step, decay;               /* lr s and lr wd */
} CollisionStep;

typedef struct {
    WatchedBlocks *blocks;
    int64_t record_count;
    CollisionRecord *records; /* as many as slots; by block and layer */
} CollisionProbe;

Status collision_create(CollisionProbe *probe, WatchedBlocks *blocks);
void collision_free(CollisionProbe *probe);
int64_t collision_bytes(const CollisionProbe *probe);
void collision_begin(CollisionProbe *probe); /* forgets the records */
/* A record a layer. blocks_keep_weights has had the weights before the step. */
void collision_measure(CollisionProbe *probe, const CollisionStep *step);

/* c_i of an update against the triples, and what that comes to relative to chance; NaN of a zero update. */
double collision_with(const Triples *weights, const float *update, double *c);
