/* Momentum against gradient: how much of M is this step's G, how fast its directions turn, how noisy G is.
 *
 *      cosine = <M, G> / (|M| |G|)       ratio = |M| / |G|           M after the step, G as it entered M (clipped)
 *      drift               subspaces of the k largest triples of M, against those of M before the step
 *      gradient_alignment  the same against those of G
 *
 * With n micro-batches of mean gradients g_1 .. g_n, whose mean is G:
 *
 *      variance = 1/(n-1) sum |g_i - G|²                   of one micro-batch's gradient: the trace of its covariance
 *      noise    = variance / |G|²                          (McCandlish et al. 2018, "simple noise scale", but for the
 *                                                          batch size and for G's own noise, variance / n)
 *
 * The gradients accumulate in one buffer. After each micro-batch what is new in it is that one's share g_i / n:
 *
 *      gradient   g_1/n    (g_1+g_2)/n   ..            shares = gradient - earlier
 *      earlier    0         g_1/n        ..
 */
#pragma once

#include "ops/arena.h"
#include "probe/blocks.h"

typedef struct {
    int kind;
    int64_t layer;
    double cosine, ratio;
    Alignment drift, with_gradient;
    double variance, noise; /* NaN with a single micro-batch */
} MomentumRecord;

/* 4-d tensors of a run as in UpdateEvent, after the step. */
typedef struct {
    int kind;
    int64_t first_layer;
    Tensor momentum, gradient; /* gradient: of the whole batch; momentum absent: nothing is recorded */
    double grad_scale;         /* that the gradient was multiplied by on its way into the momentum */
} MomentumState;

typedef struct {
    WatchedBlocks *blocks;
    Triples *before; /* of M, of a slot */
    double *before_memory;
    Arena arena;
    Tensor earlier[BLOCK_KIND_MAX]; /* a kind's gradients: (layers, 1, rows, columns) */
    Tensor squares;                 /* (slots): sum over micro-batches of |g_i / n|² */
    float *host_squares;
    int64_t micro_batches; /* n: that have been added in this step */
    bool squares_known;    /* host_squares are this step's */
    int64_t record_count;
    MomentumRecord *records; /* as many as slots; by block and layer */
} MomentumProbe;

Status momentum_create(MomentumProbe *probe, WatchedBlocks *blocks);
void momentum_free(MomentumProbe *probe);
int64_t momentum_bytes(const MomentumProbe *probe);
void momentum_begin(MomentumProbe *probe); /* a step that is measured begins: forgets the last one */
/* A micro-batch has been added to the gradients; all of a step's, in their order. */
void momentum_add_micro_batch(MomentumProbe *probe);
/* The momentum of a run of watched blocks before the step: keeps its triples. */
void momentum_keep(MomentumProbe *probe, int kind, int64_t first_layer, Tensor momentum);
void momentum_measure(MomentumProbe *probe, const MomentumState *state);
