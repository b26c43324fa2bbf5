/* The state of an optimizer as a checkpoint names it: block by block and layer by layer; see optimizer.h. */
#include "optim/optimizer_row.h"

/* layer: from the route's first. */
static NamedTensor name_state(const Optimizer *opt, const Route *route, int64_t layer, int which) {
    char block[NAME_SIZE + 16];
    NamedTensor entry = {0};
    params_block_name(opt->params, route->kind, route->first + layer, block, sizeof block);
    snprintf(entry.name, sizeof entry.name, "%s%s.%s", opt->shadow ? "shadow." : "", block,
             optimizer_row(route->optimizer)->state[which].name);
    const Tensor t = tensor_index(route->state[which], layer);
    entry.tensor = tensor_as_2d(t, t.shape[0] * t.shape[1], t.shape[2]);
    return entry;
}

int64_t optimizer_state(const Optimizer *opt, NamedTensor *tensors) {
    int64_t count = 0;
    for (const Route *route = opt->routes; route < opt->routes + opt->route_count; route++)
        for (int64_t layer = 0; layer < route->layers; layer++)
            for (int i = 0; i < row_state_count(optimizer_row(route->optimizer)); i++, count++)
                if (tensors) tensors[count] = name_state(opt, route, layer, i);
    return count;
}
