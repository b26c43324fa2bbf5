/* The state of an optimizer as a checkpoint names it: block by block and layer by layer; see optimizer.h. */
#include "optim/optimizer_row.h"

static int tensors_per_layer(const Route *route) {
    return row_state_count(optimizer_row(route->optimizer));
}

int64_t optimizer_state_count(const Optimizer *opt) {
    int64_t count = 0;
    for (int i = 0; i < opt->route_count; i++) count += opt->routes[i].layers * tensors_per_layer(&opt->routes[i]);
    return count;
}

/* layer: from the model's first. */
static void name_state(const Optimizer *opt, const Route *route, int64_t layer, int which, char *name, int64_t size) {
    char block[2 * NAME_SIZE];
    params_block_name(opt->params, route->kind, layer, block, sizeof block);
    snprintf(name, (size_t)size, "%s%s.%s", opt->shadow ? "shadow." : "", block,
             optimizer_row(route->optimizer)->state[which].name);
}

Tensor optimizer_state_tensor(const Optimizer *opt, int64_t index, char *name, int64_t size) {
    CHECK(index >= 0 && index < optimizer_state_count(opt), "state tensor %lld", (long long)index);
    const Route *route = opt->routes;
    for (; index >= route->layers * tensors_per_layer(route); route++)
        index -= route->layers * tensors_per_layer(route);
    const int64_t layer = index / tensors_per_layer(route);
    const int which = (int)(index % tensors_per_layer(route));
    name_state(opt, route, route->first + layer, which, name, size);
    Tensor of_layer = tensor_index(route->state[which], layer);
    return tensor_as_2d(of_layer, of_layer.shape[0] * of_layer.shape[1], of_layer.shape[2]);
}
