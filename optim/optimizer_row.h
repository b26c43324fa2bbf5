/* What makes an optimizer: one row, defined in the file of its family. Private to optim/.
 *
 * To add one: a line in OPTIMIZER_LIST (base/config.h), its options if it has any (base/config.h, config_options.c),
 * and `const OptimizerRow optimizer_NAME` in a file of optim/. State, scratch, checkpoints, routing, muP, shadows and
 * measurements follow from the row.
 *
 * Shapes are given by their two sides, of a matrix with n rows and m columns: "nm" is (n,m), "n1" (n,1), a number a
 * row, "1m" (1,m), "nn" (n,n), "mm" (m,m), "11" (1,1). Under muon.per_head the matrix is one head's.
 */
#pragma once

#include "optim/optimizer.h"

enum { SCRATCH_MAX = 4 };

/* What an update is like: this decides s, muP's factor and the bound that decay sets (scale.c). */
typedef enum {
    UPDATE_ORTHOGONAL,    /* singular values of 1 */
    UPDATE_UNIT_NORM,     /* Frobenius norm 1, and of full rank */
    UPDATE_UNIT_ELEMENTS, /* elements of size 1, and of low rank */
    UPDATE_LIKE_GRADIENT, /* as large as the gradient */
} UpdateSize;

/* One pass: as many layers of a route as scratch has room for. */
typedef struct {
    const Optimizer *opt;
    const Route *route; /* narrowed to these layers */
    const StepNumbers *numbers;
    double lr;         /* of this optimizer and step; route->scale comes on top */
    double decay;      /* factor of route->decay at this step */
    bool wanted;       /* somebody will read U; otherwise only the state has to go on */
    bool state_is_new; /* `apply` has been here: U is wanted of the state as it is */
    Tensor gradient;   /* (layers, heads or 1, n, m), strided; without grad_scale */
    Tensor scratch[SCRATCH_MAX];
    OrthogonalizeBuffers buffers; /* of rows that orthogonalize */
} UpdatePass;

typedef struct {
    struct {
        const char *name, *sides; /* in checkpoints: "layers.3.q.NAME" */
    } state[STATE_MAX];
    const char *scratch[SCRATCH_MAX]; /* sides of f32 tensors for one pass; what is in them is arbitrary */
    UpdateSize size;
    bool matrices_only; /* refuses norms and biases */
    bool orthogonalize; /* works in the orthogonalizer's buffers; by heads under muon.per_head */
    /* Of options: a peak rate of its own, 0 for optimizer.lr; in the file its key is optimizer.NAME.lr. May be NULL. */
    double (*own_lr)(const OptimizerConfig *config);
    /* state <- the next state. Returns U (layers, heads or 1, n, m), which lies in the pass' memory; absent if it is
     * not wanted. */
    Tensor (*update)(const UpdatePass *pass);
    /* state <- the next state and w <- (1 - lr wd) w - lr s U in one sweep, without scratch; copy <- w if present.
     * NULL: U is made and applied. */
    void (*apply)(const UpdatePass *pass, Tensor w, Tensor copy);
} OptimizerRow;

const OptimizerRow *optimizer_row(OptimizerKind kind);
int row_state_count(const OptimizerRow *row);

/* The tensor of these sides for matrices (layers, heads or 1, n, m). */
Tensor take_by_sides(Arena *arena, const int64_t *matrices, const char *sides);

/* Muon's momentum at this step, by the keys of optimizer.muon: that of normuon, adamuon and sgd, too. */
MomentumStep muon_momentum(const UpdatePass *pass);
