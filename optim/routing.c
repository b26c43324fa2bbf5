/* The routing table: built from block names and overrides, and printed; see routing.h.
 *
 *      default                      hidden matrices -> optimizer.matrices, everything else -> AdamW
 *      optimizer.overrides          shell patterns on block names ("layers.0.*", "embed"); the last that matches wins
 *      optimizer.muon.per_head      kinds that are orthogonalized head by head
 *
 * Decisions fall per layer; neighbouring layers with the same one make a route.
 */
#include "optim/routing.h"

#include <fnmatch.h>
#include <stdlib.h>

#include "optim/optimizer_row.h"

/* ---- checks ----------------------------------------------------------------------------------------------------- */

/* Every kind once, as a pattern would name it. Returns the buffer. */
static char *list_blocks(const ParamTable *params, char *buffer, int64_t size) {
    int64_t used = 0;
    for (int kind = 0; kind < params->kind_count && used < size; kind++) {
        const BlockKind *b = &params->kinds[kind];
        const char *prefix = params->params[b->param].per_layer ? "layers.*." : "";
        used += snprintf(buffer + used, (size_t)(size - used), "%s%s%s", kind ? ", " : "", prefix, b->name);
    }
    return buffer;
}

static bool matches(const ParamTable *params, const RouteOverride *override, int kind, int64_t layer) {
    char name[2 * NAME_SIZE];
    params_block_name(params, kind, layer, name, sizeof name);
    return fnmatch(override->pattern, name, 0) == 0;
}

static bool is_vector(const ParamTable *params, int kind) {
    return params->params[params->kinds[kind].param].vector;
}

static Status check_override(const ParamTable *params, const RouteOverride *override) {
    char blocks[700];
    bool matched = false;
    for (int kind = 0; kind < params->kind_count; kind++)
        for (int64_t layer = 0; layer < params->kinds[kind].layers; layer++) {
            if (!matches(params, override, kind, layer)) continue;
            matched = true;
            if (!optimizer_row(override->optimizer)->matrices_only || !is_vector(params, kind)) continue;
            return BAD_INPUT("optimizer.overrides.%s sends %s to %s, which takes matrices only; blocks are: %s",
                             override->pattern, params->kinds[kind].name, optimizer_name(override->optimizer),
                             list_blocks(params, blocks, sizeof blocks));
        }
    if (matched) return status_ok();
    return BAD_INPUT("optimizer.overrides.%s matches no block; blocks are: %s", override->pattern,
                     list_blocks(params, blocks, sizeof blocks));
}

static Status check_per_head(const ParamTable *params, const char *name) {
    int kind = params_find_kind(params, name);
    if (kind >= 0 && params_splits_into_heads(&params->kinds[kind])) return status_ok();
    return BAD_INPUT("optimizer.muon.per_head: \"%s\" does not split into heads; use q, k, v, o", name);
}

static Status check_options(const Optimizer *opt) {
    Status status = status_ok();
    for (int i = 0; i < opt->config.override_count; i++)
        if (FAILED(status, check_override(opt->params, &opt->config.overrides[i]))) return status;
    for (int i = 0; i < opt->config.muon.per_head_count; i++)
        if (FAILED(status, check_per_head(opt->params, opt->config.muon.per_head[i]))) return status;
    return status;
}

/* ---- building --------------------------------------------------------------------------------------------------- */

static OptimizerKind choose_optimizer(const Optimizer *opt, int kind, int64_t layer) {
    const OptimizerConfig *c = &opt->config;
    OptimizerKind choice = params_is_hidden_matrix(&opt->params->kinds[kind]) ? c->matrices : OPTIMIZER_ADAMW;
    for (int i = 0; i < c->override_count; i++)
        if (matches(opt->params, &c->overrides[i], kind, layer)) choice = c->overrides[i].optimizer;
    return choice;
}

static BlockSplit choose_split(const BlockKind *kind, const MuonConfig *config) {
    for (int i = 0; i < config->per_head_count; i++)
        if (strcmp(config->per_head[i], kind->name) == 0 && kind->heads > 1) return SPLIT_PER_HEAD;
    return SPLIT_WHOLE;
}

Tensor route_view(const Route *route, const ParamTable *params, Tensor storage) {
    return params_block_run(params, storage, route->kind, route->first, route->layers, route->split);
}

Tensor route_shape(const Route *route, const ParamTable *params) {
    return route_view(route, params, tensor_1d(NULL, DTYPE_F32, params->elements));
}

static Route make_route(const Optimizer *opt, int kind, int64_t first, OptimizerKind optimizer) {
    const BlockKind *block = &opt->params->kinds[kind];
    Route route = {.kind = kind, .first = first, .layers = 1, .optimizer = optimizer};
    if (params_has_decay(block)) route.decay = (float)opt->config.weight_decay;
    if (optimizer_row(optimizer)->orthogonalize) route.split = choose_split(block, &opt->config.muon);
    const Tensor view = route_shape(&route, opt->params);
    route.scale = (float)update_scale(opt, block, optimizer, (double)view.shape[2], (double)view.shape[3]);
    return route;
}

Status routes_build(Optimizer *opt) {
    const ParamTable *params = opt->params;
    Status status = check_options(opt);
    if (status.code) return status;
    int64_t most = 0;
    for (int kind = 0; kind < params->kind_count; kind++) most += params->kinds[kind].layers;
    Route *table = calloc((size_t)most, sizeof *table);
    if (!table) return NO_MEMORY("out of memory for a routing table of %lld rows", (long long)most);

    int used = 0;
    for (int kind = 0; kind < params->kind_count; kind++)
        for (int64_t layer = 0; layer < params->kinds[kind].layers; layer++) {
            OptimizerKind optimizer = choose_optimizer(opt, kind, layer);
            if (layer > 0 && table[used - 1].optimizer == optimizer)
                table[used - 1].layers++;
            else
                table[used++] = make_route(opt, kind, layer, optimizer);
        }
    opt->routes = table;
    opt->route_count = used;
    return status;
}

/* ---- printing --------------------------------------------------------------------------------------------------- */

/* "embed", "layers.3.q", "layers.0-5.q", "layers.0-5.q per head". Returns the buffer. */
static char *describe_run(const ParamTable *params, const Route *route, char *buffer, int64_t size) {
    const char *heads = route->split == SPLIT_PER_HEAD ? " per head" : "";
    const long long first = route->first, last = first + route->layers - 1;
    char name[2 * NAME_SIZE];
    if (route->layers > 1)
        snprintf(name, sizeof name, "layers.%lld-%lld.%s", first, last, params->kinds[route->kind].name);
    else
        params_block_name(params, route->kind, route->first, name, sizeof name);
    snprintf(buffer, (size_t)size, "%s%s", name, heads);
    return buffer;
}

static int64_t state_bytes(const Route *route) {
    int64_t bytes = 0;
    for (int i = 0; i < row_state_count(optimizer_row(route->optimizer)); i++) bytes += tensor_bytes(route->state[i]);
    return bytes;
}

static void print_route(const ParamTable *params, const Route *route, FILE *out) {
    char run[2 * NAME_SIZE + 16], shape[48];
    const Tensor view = route_shape(route, params);
    const int64_t *s = view.shape;
    snprintf(shape, sizeof shape, "%lld x %lld", (long long)s[2], (long long)s[3]);
    fprintf(out, "%-28s %8lld %16s  %-9s %8.4g %8.4g %10.2f\n", describe_run(params, route, run, sizeof run),
            (long long)(s[0] * s[1]), shape, optimizer_name(route->optimizer), (double)route->scale,
            (double)route->decay, (double)state_bytes(route) / (1 << 20));
}

void optimizer_print_routes(const Optimizer *opt, FILE *out) {
    int64_t bytes = 0;
    fprintf(out, "%-28s %8s %16s  %-9s %8s %8s %10s\n", "blocks", "matrices", "shape", "optimizer", "scale", "decay",
            "state MiB");
    for (const Route *route = opt->routes; route < opt->routes + opt->route_count; route++) {
        print_route(opt->params, route, out);
        bytes += state_bytes(route);
    }
    fprintf(out, "%-28s %8s %16s  %-9s %8s %8s %10.2f\n", "all", "", "", "", "", "", (double)bytes / (1 << 20));
}
