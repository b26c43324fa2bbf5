/* Routing: which optimizer governs which block (see optimizer.h for Route), and how large its updates are. Private to
 * optim/. */
#pragma once

#include "optim/optimizer.h"

/* Builds the routes of opt->params by opt->config, without tensors. STATUS_BAD_INPUT as optimizer_plan. */
Status routes_build(Optimizer *opt);

/* (layers, heads or 1, rows, columns) of the route's part of a storage. */
Tensor route_view(const Route *route, const ParamTable *params, Tensor storage);
/* The same without memory: for its shape, before the parameters have theirs. */
Tensor route_shape(const Route *route, const ParamTable *params);

/* s of W <- (1 - lr wd) W - lr s U for U of n rows and m columns, a block's or one head's, with muP's factor (scale.c).
 */
double update_scale(const Optimizer *opt, const BlockKind *block, OptimizerKind optimizer, double n, double m);
