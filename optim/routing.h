/* Routing: which optimizer governs which block; see optimizer.h for Route. Private to optim/. */
#pragma once

#include "optim/optimizer.h"

/* Second moments: none, one number for each row of the update, one for each element. */
typedef enum { SECOND_NONE, SECOND_OF_ROWS, SECOND_OF_ELEMENTS } SecondMoment;

/* What makes an optimizer, once: the table is in optimizer.c, by OptimizerKind. */
typedef struct {
    const char *name;           /* in the config */
    const char *first, *second; /* state in checkpoints: "layers.3.q.momentum" */
    SecondMoment second_moment; /* of the orthogonalized update; AdamW's: of the gradient */
    bool sign;                  /* of the momentum's update */
    bool orthogonalize;         /* takes matrices only, whole or by heads */
} OptimizerRule;

extern const OptimizerRule optimizer_rules[OPTIMIZER_COUNT];

/* Builds the table without tensors; the caller frees *routes. STATUS_BAD_INPUT as optimizer_plan. */
Status routes_build(Route **routes, int *count, const ParamTable *params, const OptimizerConfig *config);

/* (layers, heads or 1, rows, columns) of the route's part of a storage. */
Tensor route_view(const Route *route, const ParamTable *params, Tensor storage);
/* The same without memory: for its shape, before the parameters have theirs. */
Tensor route_shape(const Route *route, const ParamTable *params);
