/* The optimizer: a routing table from blocks to Muon or AdamW, their state, and the step.
 *
 * A Route is a run of consecutive layers of one block kind that one optimizer treats alike, so that Newton-Schulz is
 * one batched product over the run. Routes cover every element of the model exactly once.
 */
#pragma once

#include "core/config.h"
#include "core/params.h"
#include "optim/orthogonalize.h"

typedef struct {
    int kind;              /* of the block, in the parameter table */
    int64_t first, layers; /* the run of layers */
    OptimizerKind optimizer;
    BlockSplit split; /* whole matrices, or head by head (muon.per_head) */
    float decay;      /* 0 for norms and biases */
    float scale;      /* Muon: s of W <- (1 - lr wd) W - lr s O; 1 for AdamW */
    Tensor momentum;  /* Muon M, or AdamW m: (layers, heads or 1, rows, columns) f32, contiguous */
    Tensor second;    /* AdamW v; absent for Muon: one buffer a matrix instead of two */
} Route;

/* An observer sees each run of hidden matrices twice: before its step and after it. */
typedef enum {
    UPDATE_COMES,   /* the weights are the old ones; momentum and update are absent */
    UPDATE_APPLIED, /* W <- (1 - lr wd) W - lr * scale * U has been done */
} UpdateMoment;

/* Tensors are 4-d as Route.momentum and valid during the call only. A long run comes in several calls: `route` is then
 * narrowed to the layers of the call. */
typedef struct {
    UpdateMoment moment;
    const Route *route;
    double lr;        /* of this step, which route->scale multiplies */
    float grad_scale; /* that the gradients were multiplied by */
    Tensor weights;   /* f32 masters, strided */
    Tensor gradient;  /* of the whole batch, strided; without grad_scale */
    Tensor momentum;  /* after this step */
    Tensor update;    /* U: Muon's O = msign(.), AdamW's m̂/(sqrt(v̂)+eps) */
} UpdateEvent;

typedef void UpdateObserver(void *context, const UpdateEvent *event);

typedef struct {
    Backend *be;
    ParamTable *params;
    OptimizerConfig config;
    int route_count;
    Route *routes;
    Arena state;   /* momentum and second moments: what a checkpoint saves */
    Arena scratch; /* of one pass: the orthogonalizer's buffers, or the observer's update */
    Orthogonalizer orthogonalizer;
} Optimizer;

/* Builds the routing table and measures memory; allocates no tensor. STATUS_BAD_INPUT names the option: an override
 * that matches no block or sends a norm or bias to muon, a per_head entry that is no q, k, v or o, an unknown
 * coefficient set. After a failure there is nothing to free. */
Status optimizer_plan(Optimizer *opt, ParamTable *params, const OptimizerConfig *config, Backend *be);
Status optimizer_allocate(Optimizer *opt); /* after optimizer_plan and once params has its memory; state is zero */
void optimizer_free(Optimizer *opt);
double optimizer_step_flops(const Optimizer *opt);     /* of the orthogonalizations; the rest is memory traffic */
int64_t optimizer_planned_bytes(const Optimizer *opt); /* of state, scratch, and the svd's host memory */

/* One step with the gradients of the whole batch. `step` counts from 1 (AdamW's bias correction); `lr` is the scheduled
 * rate of optimizer.lr, and AdamW's own rate follows the same schedule; grad_scale is the clipping factor. Updates
 * master weights and their working copies. observer may be NULL.
 * Gradients and grad_scale must be finite: a NaN would stay in the momentum for good, so the caller looks at
 * the gradient's norm first and skips the step. */
void optimizer_step(Optimizer *opt, int64_t step, double lr, float grad_scale, UpdateObserver *observer, void *context);

/* total[0] += sum g² over all parameters.   total (1) f32. Not finite if some gradient is not. */
void optimizer_add_grad_squares(Optimizer *opt, Tensor total);

/* The routing table as text lines: block run, shape, optimizer, scale, decay, state bytes. */
void optimizer_print_routes(const Optimizer *opt, FILE *out);

/* ---- state, tensor by tensor, for checkpoints ---------------------------------------------------------------------
 */

/* State is saved per block and layer, so that files do not depend on how layers are grouped into routes:
 *      "layers.3.q.momentum"                         Muon M
 *      "layers.3.norm1.m", "layers.3.norm1.v"        AdamW m and v
 * Each is (rows, columns) f32, contiguous. A block that is split per head is stored as it lies, head after head:
 * (heads * rows of a head, columns of a head). */
int64_t optimizer_state_count(const Optimizer *opt);
/* The index-th tensor and its name, route by route and layer by layer. */
Tensor optimizer_state_tensor(const Optimizer *opt, int64_t index, char *name, int64_t size);
/* which: 0 for momentum (m), 1 for the second moment (v). layer counts from the model's first. Returns the buffer. */
char *optimizer_state_name(const Optimizer *opt, int route, int64_t layer, int which, char *buffer, int64_t size);
