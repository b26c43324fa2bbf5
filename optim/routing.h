/* Routing: which optimizer governs which block; see optimizer.h for Route. Private to optim/. */
#pragma once

#include "optim/optimizer.h"

/* Builds the table without tensors; the caller frees *routes. STATUS_BAD_INPUT as optimizer_plan. */
Status routes_build(Route **routes, int *count, const ParamTable *params, const OptimizerConfig *config);
void routes_print(const Route *routes, int count, const ParamTable *params, FILE *out);

/* (layers, heads or 1, rows, columns) of the route's part of a storage. */
Tensor route_view(const Route *route, const ParamTable *params, Tensor storage);
/* The same without memory: for its shape, before the parameters have theirs. */
Tensor route_shape(const Route *route, const ParamTable *params);
