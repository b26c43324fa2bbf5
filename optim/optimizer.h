/* The optimizer: a routing table from blocks to one of several optimizers, their state, and the step.
 *
 * Every step ends with W <- (1 - lr wd) W - lr s U. An optimizer is what turns the gradient and its state into U: a
 * row, defined with its formulas and sources in the file of its family (optimizer_row.h says how to add one):
 *
 *      muon.c          muon, normuon, adamuon      a momentum, orthogonalized
 *      momentum.c      sgd, lion                   a momentum, or its sign
 *      adamw.c         adamw                       a mean over the root of a mean square
 *
 * s gives the update its size, with muP's factor (scale.c). wd may follow a schedule; cautious decay leaves out weights
 * that U moves away from 0.
 *
 * A Route is a run of consecutive layers of one block kind that one optimizer treats alike, so that Newton-Schulz is
 * one batched product over the run. Routes cover every element of the model exactly once.
 */
#pragma once

#include "base/config.h"
#include "model/params.h"
#include "optim/orthogonalize.h"

enum { STATE_MAX = 6 };

typedef struct {
    int kind;              /* of the block, in the parameter table */
    int64_t first, layers; /* the run of layers */
    OptimizerKind optimizer;
    BlockSplit split;        /* whole matrices, or head by head (muon.per_head) */
    float decay;             /* 0 for norms and biases */
    float scale;             /* s of W <- (1 - lr wd) W - lr s U, with muP's factor */
    Tensor state[STATE_MAX]; /* as the optimizer's row lists them; (layers, heads or 1, ., .) f32, contiguous */
} Route;

/* An observer sees each run of hidden matrices twice: before its step and after it. */
typedef enum {
    UPDATE_COMES,   /* weights and momentum are the old ones; update is absent */
    UPDATE_APPLIED, /* W <- keep W - lr * scale * U has been done */
} UpdateMoment;

/* Tensors are (layers, heads or 1, rows, columns) and valid during the call only. A long run comes in several calls:
 * `route` is then narrowed to the layers of the call. */
typedef struct {
    UpdateMoment moment;
    const Route *route;
    double lr;        /* of this step, which route->scale multiplies */
    double keep;      /* 1 - lr wd; under cautious_decay only where U and the old W have one sign, and 1 elsewhere */
    float grad_scale; /* that the gradients were multiplied by */
    Tensor weights;   /* f32 masters, strided */
    Tensor gradient;  /* of the whole batch, strided; without grad_scale */
    Tensor momentum;  /* the first tensor of the state */
    Tensor update;    /* U */
} UpdateEvent;

typedef void UpdateObserver(void *context, const UpdateEvent *event);

/* The numbers of one step. */
typedef struct {
    int64_t update;      /* counts from 1 the steps that changed the weights: AdamW's bias correction */
    int64_t step, steps; /* place in the run, from 1: the schedules of momentum and decay */
    double lr;           /* the scheduled rate of optimizer.lr; AdamW's own rate follows the same schedule */
    float grad_scale;    /* clipping factor */
} StepNumbers;

typedef struct {
    Backend *be;
    ParamTable *params;
    OptimizerConfig config;
    bool shadow; /* changes no weights: see optimizer_plan_shadow */
    int route_count;
    Route *routes;
    Arena state;   /* what a checkpoint saves */
    Arena scratch; /* of one pass: the orthogonalizer's buffers, or an update */
    Orthogonalizer orthogonalizer;
} Optimizer;

/* Builds the routing table and measures memory; allocates no tensor. STATUS_BAD_INPUT names the option: an override
 * that matches no block or sends a norm or bias to an optimizer of matrices, a per_head entry that is not q, k, v or o,
 * an unknown coefficient set. After a failure there is nothing to free. */
Status optimizer_plan(Optimizer *opt, ParamTable *params, const OptimizerConfig *config, Backend *be);
/* What `kind` would do with the gradients that a run's optimizer gets, on the hidden matrices of the chosen kinds
 * (kinds[i] for the i-th): keeps its own state and changes no weights. Its observer is told of UPDATE_APPLIED alone,
 * with weights that are the old ones. After a failure there is nothing to free. */
Status optimizer_plan_shadow(Optimizer *shadow, const Optimizer *opt, OptimizerKind kind, const bool *kinds);
Status optimizer_allocate(Optimizer *opt); /* after optimizer_plan and once params has its memory; state is zero */
void optimizer_free(Optimizer *opt);
double optimizer_step_flops(const Optimizer *opt);     /* of the orthogonalizations; the rest is memory traffic */
int64_t optimizer_planned_bytes(const Optimizer *opt); /* of state, scratch, and the svd's host memory */

/* One step with the gradients of the whole batch. Updates master weights and their working copies. observer may be
 * NULL.
 * Gradients and grad_scale must be finite: a NaN would stay in the momentum for good, so the caller looks at
 * the gradient's norm first and skips the step. */
void optimizer_step(Optimizer *opt, const StepNumbers *numbers, UpdateObserver *observer, void *context);

/* The routing table as text lines: block run, shape, optimizer, scale, decay, state bytes. */
void optimizer_print_routes(const Optimizer *opt, FILE *out);

/* ---- what is known of an optimizer ------------------------------------------------------------------------------ */

/* As in the config. */
const char *optimizer_name(OptimizerKind kind);
/* Whether U has singular values of 1: it does not if rows or elements are scaled, or under a Schatten norm. */
bool optimizer_is_orthogonal(const Optimizer *opt, OptimizerKind kind);
/* The largest |W|_2 that decay allows a block in the long run: W <- keep W - step U shrinks what is larger than
 * step |U|_2 / (1 - keep). step: lr * route->scale; sigma_max: |U|_2 as measured; decay: 1 - keep. NaN: no bound. */
double optimizer_decay_bound(const Optimizer *opt, const Route *route, double step, double sigma_max, double decay);

/* ---- state, tensor by tensor, for checkpoints ------------------------------------------------------------------- */

/* State is saved per block and layer, so that files do not depend on how layers are grouped into routes:
 *
 *      "layers.3.q.momentum"                       M of all optimizers but AdamW
 *      "layers.3.q.second"                         v of NorMuon, a number a row, and of AdaMuon
 *      "layers.3.norm1.m", "layers.3.norm1.v"      AdamW's m and v
 *      "shadow.layers.3.q.m"                       of a shadow
 *
 * Each is (rows, columns) f32, contiguous. A block that is split per head is stored as it lies, head after head:
 * (heads * rows of a head, columns of a head). Fills `tensors`, route by route and layer by layer, unless it is NULL;
 * returns how many there are. */
int64_t optimizer_state(const Optimizer *opt, NamedTensor *tensors);
