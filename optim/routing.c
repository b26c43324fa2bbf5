/* The routing table: built from block names and overrides, and printed; see routing.h.
 *
 *      default                      hidden matrices -> optimizer.matrices, everything else -> AdamW
 *      optimizer.overrides          shell patterns on block names ("layers.0.*", "embed"); the last that matches wins
 *      optimizer.muon.per_head      kinds that are orthogonalized head by head
 *
 * Decisions fall per layer; neighbouring layers with the same one make a route.
 *
 * muP (optimizer.mup_base_width). With r = base width / width, every route's scale gets the factor that keeps what an
 * update does to activations independent of the width. The spectral condition (Yang, Simon & Bernstein 2023, "A
 * Spectral Condition for Feature Learning", condition 1) asks of a hidden (n, m) matrix that |W| and |dW|, as spectral
 * norms, are of order sqrt(n/m): of order 1 if both sides grow with the width. What one step has, and the factor:
 *
 *      update of a hidden matrix                                     spectral norm        factor
 *      adamw, lion: elements of size 1, of one rank                  width                r
 *      muon, scale rms: rms sqrt(max(n, m)) msign                    sqrt(width)          sqrt(r)
 *      muon, scale original, spectral, none                          1                    1
 *      normuon, adamuon: elements of a fixed rms, full rank          sqrt(width)          sqrt(r)
 *      schatten: k^(1/p) more in the largest singular value          width^(1/p) more     r^(1/p) more
 *      sgd: a gradient of norm 1 (|x| = sqrt(width), |dx| = 1/sqrt(width))    1           1
 *
 * The full rank of normuon and adamuon is that of gradients of more tokens than the width. Embeddings, positions, head,
 * norms and biases act on each channel by itself, and their elements have to move by the same at any width: so do those
 * of adamw, lion, normuon, adamuon, of muon under rms and none. sgd's gradients shrink with the width, and muon under
 * original and spectral spreads a norm over it: factors 1/r and 1/sqrt(r). Logits sum over the width what the weights
 * of head and activations have in common: muP multiplies them by r. Here the final norm does it. Its weight begins at r
 * instead of 1, and r is the factor of its rate (and of its bias'): the same as a multiplier r behind it.
 *
 * The decay per step, lr wd, has no factor: over how many steps weights average is a property of the run, not of the
 * width (Wang & Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size").
 */
#include "optim/routing.h"

#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>

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
    params_block_name(params, kind, layer, -1, name, sizeof name);
    return fnmatch(override->pattern, name, 0) == 0;
}

static bool is_vector(const ParamTable *params, int kind) {
    return params->params[params->kinds[kind].param].vector;
}

static Status check_override(const ParamTable *params, const RouteOverride *override) {
    char blocks[700];
    bool matched = false;
    for (int kind = 0; kind < params->kind_count; kind++)
        for (int64_t layer = 0; layer < params_kind_layers(params, kind); layer++) {
            if (!matches(params, override, kind, layer)) continue;
            matched = true;
            if (!optimizer_rules[override->optimizer].orthogonalize || !is_vector(params, kind)) continue;
            return status_error(STATUS_BAD_INPUT,
                                "optimizer.overrides.%s sends %s to %s, which takes matrices only; blocks are: %s",
                                override->pattern, params->kinds[kind].name, optimizer_name(override->optimizer),
                                list_blocks(params, blocks, sizeof blocks));
        }
    if (matched) return status_ok();
    return status_error(STATUS_BAD_INPUT, "optimizer.overrides.%s matches no block; blocks are: %s", override->pattern,
                        list_blocks(params, blocks, sizeof blocks));
}

static Status check_per_head(const ParamTable *params, const char *name) {
    int kind = params_find_kind(params, name);
    if (kind >= 0 && params_splits_into_heads(&params->kinds[kind])) return status_ok();
    return status_error(STATUS_BAD_INPUT, "optimizer.muon.per_head: \"%s\" does not split into heads; use q, k, v, o",
                        name);
}

static Status check_options(const ParamTable *params, const OptimizerConfig *config) {
    Status status = status_ok();
    for (int i = 0; i < config->override_count; i++)
        if (FAILED(status, check_override(params, &config->overrides[i]))) return status;
    for (int i = 0; i < config->muon.per_head_count; i++)
        if (FAILED(status, check_per_head(params, config->muon.per_head[i]))) return status;
    return status;
}

/* ---- building --------------------------------------------------------------------------------------------------- */

static OptimizerKind choose_optimizer(const ParamTable *params, const OptimizerConfig *config, int kind,
                                      int64_t layer) {
    OptimizerKind choice = params_is_hidden_matrix(&params->kinds[kind]) ? config->matrices : OPTIMIZER_ADAMW;
    for (int i = 0; i < config->override_count; i++)
        if (matches(params, &config->overrides[i], kind, layer)) choice = config->overrides[i].optimizer;
    return choice;
}

static BlockSplit choose_split(const BlockKind *kind, const MuonConfig *config) {
    for (int i = 0; i < config->per_head_count; i++)
        if (strcmp(config->per_head[i], kind->name) == 0 && kind->heads > 1) return SPLIT_PER_HEAD;
    return SPLIT_WHOLE;
}

/* s of W <- (1 - lr wd) W - lr s O for a matrix of n rows (outputs) and m columns (inputs). rms makes the update's root
 * mean square that of AdamW's: an orthogonal O has rms 1/sqrt(max(n,m)) (Moonlight 2025, section 2.2). */
static double update_scale(const MuonConfig *config, double n, double m) {
    switch (config->scale) {
    case SCALE_RMS:
        return config->rms * sqrt(fmax(n, m));
    case SCALE_ORIGINAL:
        return sqrt(fmax(1, n / m));
    case SCALE_SPECTRAL:
        return sqrt(n / m);
    case SCALE_NONE:
        break;
    }
    return 1;
}

/* NorMuon and AdaMuon apply updates of norm 1. */
static double scale_of(const OptimizerConfig *config, const Route *route, double n, double m) {
    const OptimizerRule *rule = &optimizer_rules[route->optimizer];
    if (!rule->orthogonalize) return 1;
    return rule->second ? config->muon.rms * sqrt(n * m) : update_scale(&config->muon, n, m);
}

/* r; 1 without muP. */
static double width_ratio(const ParamTable *params, const OptimizerConfig *config) {
    for (int kind = 0; kind < params->kind_count; kind++)
        if (config->mup_base_width > 0 && params->kinds[kind].role == ROLE_EMBED)
            return (double)config->mup_base_width / (double)params->params[params->kinds[kind].param].columns;
    return 1;
}

static double mup_hidden_factor(const MuonConfig *muon, OptimizerKind optimizer, double r) {
    const double largest = muon->orthogonalize == ORTHOGONALIZE_SCHATTEN ? pow(r, 1 / muon->schatten_p) : 1;
    switch (optimizer) {
    case OPTIMIZER_MUON:
        return largest * (muon->scale == SCALE_RMS ? sqrt(r) : 1);
    case OPTIMIZER_NORMUON:
    case OPTIMIZER_ADAMUON:
        return largest * sqrt(r);
    case OPTIMIZER_ADAMW:
    case OPTIMIZER_LION:
        return r;
    default:
        return 1;
    }
}

static double mup_channel_factor(const MuonConfig *muon, OptimizerKind optimizer, double r) {
    if (optimizer == OPTIMIZER_SGD) return 1 / r;
    const bool spread = muon->scale == SCALE_ORIGINAL || muon->scale == SCALE_SPECTRAL;
    return optimizer == OPTIMIZER_MUON && spread ? 1 / sqrt(r) : 1;
}

/* See the head of the file. */
static double mup_factor(const ParamTable *params, const OptimizerConfig *config, const BlockKind *block,
                         OptimizerKind optimizer) {
    const double r = width_ratio(params, config);
    if (r == 1) return 1;
    if (params_is_hidden_matrix(block)) return mup_hidden_factor(&config->muon, optimizer, r);
    if (strcmp(block->name, "normf") == 0 || strcmp(block->name, "normf_bias") == 0) return r;
    return mup_channel_factor(&config->muon, optimizer, r);
}

Tensor route_view(const Route *route, const ParamTable *params, Tensor storage) {
    return params_block_run(params, storage, route->kind, route->first, route->layers, route->split);
}

Tensor route_shape(const Route *route, const ParamTable *params) {
    return route_view(route, params, tensor_1d(NULL, DTYPE_F32, params->elements));
}

static Route make_route(const ParamTable *params, const OptimizerConfig *config, int kind, int64_t first,
                        OptimizerKind optimizer) {
    const BlockKind *block = &params->kinds[kind];
    Route route = {.kind = kind, .first = first, .layers = 1, .optimizer = optimizer};
    if (params_has_decay(block)) route.decay = (float)config->weight_decay;
    if (optimizer_rules[optimizer].orthogonalize) route.split = choose_split(block, &config->muon);
    Tensor view = route_shape(&route, params);
    route.scale = (float)(scale_of(config, &route, (double)view.shape[2], (double)view.shape[3]) *
                          mup_factor(params, config, block, optimizer));
    return route;
}

Status routes_build(Route **routes, int *count, const ParamTable *params, const OptimizerConfig *config) {
    Status status = check_options(params, config);
    if (status.code) return status;
    int64_t most = 0;
    for (int kind = 0; kind < params->kind_count; kind++) most += params_kind_layers(params, kind);
    Route *table = calloc((size_t)most, sizeof *table);
    if (!table)
        return status_error(STATUS_OUT_OF_MEMORY, "out of memory for a routing table of %lld rows", (long long)most);

    int used = 0;
    for (int kind = 0; kind < params->kind_count; kind++)
        for (int64_t layer = 0; layer < params_kind_layers(params, kind); layer++) {
            OptimizerKind optimizer = choose_optimizer(params, config, kind, layer);
            if (layer > 0 && table[used - 1].optimizer == optimizer)
                table[used - 1].layers++;
            else
                table[used++] = make_route(params, config, kind, layer, optimizer);
        }
    *routes = table;
    *count = used;
    return status;
}

/* ---- printing --------------------------------------------------------------------------------------------------- */

/* "embed", "layers.3.q", "layers.0-5.q", "layers.0-5.q per head". Returns the buffer. */
static char *describe_run(const ParamTable *params, const Route *route, char *buffer, int64_t size) {
    const BlockKind *block = &params->kinds[route->kind];
    const char *heads = route->split == SPLIT_PER_HEAD ? " per head" : "";
    char name[2 * NAME_SIZE];
    params_block_name(params, route->kind, route->first, -1, name, sizeof name);
    if (route->layers > 1)
        snprintf(name, sizeof name, "layers.%lld-%lld.%s", (long long)route->first,
                 (long long)(route->first + route->layers - 1), block->name);
    snprintf(buffer, (size_t)size, "%s%s", name, heads);
    return buffer;
}

static int64_t route_state_bytes(const Route *route) {
    return tensor_bytes(route->momentum) + (optimizer_rules[route->optimizer].second ? tensor_bytes(route->second) : 0);
}

static void print_route(const Optimizer *opt, const Route *route, FILE *out) {
    char run[2 * NAME_SIZE + 16], shape[48];
    const int64_t *s = route->momentum.shape;
    snprintf(shape, sizeof shape, "%lld x %lld", (long long)s[2], (long long)s[3]);
    fprintf(out, "%-28s %8lld %16s  %-9s %8.4g %8.4g %10.2f\n", describe_run(opt->params, route, run, sizeof run),
            (long long)(s[0] * s[1]), shape, optimizer_name(route->optimizer), (double)route->scale,
            (double)route->decay, (double)route_state_bytes(route) / (1 << 20));
}

void optimizer_print_routes(const Optimizer *opt, FILE *out) {
    fprintf(out, "%-28s %8s %16s  %-9s %8s %8s %10s\n", "blocks", "matrices", "shape", "optimizer", "scale", "decay",
            "state MiB");
    int64_t bytes = 0;
    for (int i = 0; i < opt->route_count; i++) {
        print_route(opt, &opt->routes[i], out);
        bytes += route_state_bytes(&opt->routes[i]);
    }
    fprintf(out, "%-28s %8s %16s  %-9s %8s %8s %10.2f\n", "all", "", "", "", "", "", (double)bytes / (1 << 20));
}
