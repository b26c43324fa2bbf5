/* The optimizers' steps over the routes, their state, and its names; see optimizer.h.
 *
 * Memory: `state` holds momentum and second moment of route after route. `scratch` serves one pass at a time; each lays
 * its buffers out from the start, in a copy of the arena:
 *
 *      state     | route 0: M | route 1: M | v | route 2: m | v | ...
 *      scratch   | a pass that orthogonalizes: X, next X, A, B |   or   | an update |
 *
 * A pass takes as many layers of a route as the backend's pieces allow, and at least one: batches big enough to keep it
 * busy with small matrices, scratch that does not grow with the number of layers for large ones.
 */
#include "optim/optimizer.h"

#include <math.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "optim/routing.h"
#include "optim/schedule.h"

/* clang-format off: one row per optimizer */
const OptimizerRule optimizer_rules[OPTIMIZER_COUNT] = {
    [OPTIMIZER_MUON] = {.name = "muon", .first = "momentum", .orthogonalize = true},
    [OPTIMIZER_NORMUON] = {.name = "normuon",
                           .first = "momentum",
                           .orthogonalize = true,
                           .second = "second",
                           .second_moment = SECOND_OF_ROWS},
    [OPTIMIZER_ADAMUON] = {.name = "adamuon",
                           .first = "momentum",
                           .orthogonalize = true,
                           .sign = true,
                           .second = "second",
                           .second_moment = SECOND_OF_ELEMENTS},
    [OPTIMIZER_SGD] = {.name = "sgd", .first = "momentum"},
    [OPTIMIZER_LION] = {.name = "lion", .first = "momentum", .sign = true},
    [OPTIMIZER_ADAMW] = {.name = "adamw", .first = "m", .second = "v", .second_moment = SECOND_OF_ELEMENTS},
};
/* clang-format on */

const char *optimizer_name(OptimizerKind kind) {
    return optimizer_rules[kind].name;
}

static const OptimizerRule *rule_of(const Route *route) {
    return &optimizer_rules[route->optimizer];
}

/* ---- passes over a route ---------------------------------------------------------------------------------------- */

/* The layers [first, first + layers) of a route, counted from its own first, as a route of their own. */
static Route narrow(const Route *route, int64_t first, int64_t layers) {
    Route part = *route;
    part.first += first;
    part.layers = layers;
    part.momentum = tensor_slice(route->momentum, 0, first, layers);
    if (rule_of(route)->second) part.second = tensor_slice(route->second, 0, first, layers);
    return part;
}

/* What a pass over `route` works in: the orthogonalizer's buffers, or the update alone. */
static OrthogonalizeBuffers layout_pass(const Optimizer *opt, Arena *scratch, const Route *route) {
    const int64_t *shape = route->momentum.shape;
    if (rule_of(route)->orthogonalize) return orthogonalizer_layout(&opt->orthogonalizer, scratch, shape);
    return (OrthogonalizeBuffers){.x = arena_take(scratch, DTYPE_F32, 4, shape)};
}

static int64_t layers_per_pass(const Optimizer *opt, const Route *route) {
    Arena measured = arena_measure("one layer");
    Route layer = narrow(route, 0, 1);
    layout_pass(opt, &measured, &layer);
    int64_t fit = opt->be->pieces.optimizer_bytes / measured.used;
    return fit < 1 ? 1 : fit < route->layers ? fit : route->layers;
}

static bool is_observed(const Optimizer *opt, const Route *route) {
    return params_is_hidden_matrix(&opt->params->kinds[route->kind]);
}

/* ---- set-up ----------------------------------------------------------------------------------------------------- */

static void layout_state(Optimizer *opt, Arena *arena) {
    for (int i = 0; i < opt->route_count; i++) {
        Route *route = &opt->routes[i];
        Tensor view = route_shape(route, opt->params);
        route->momentum = arena_take(arena, DTYPE_F32, 4, view.shape);
        if (rule_of(route)->second_moment == SECOND_OF_ROWS) view.shape[3] = 1;
        if (rule_of(route)->second) route->second = arena_take(arena, DTYPE_F32, 4, view.shape);
    }
}

/* The largest of all passes. */
static Arena measure_scratch(const Optimizer *opt) {
    Arena largest = arena_measure("optimizer scratch");
    for (int i = 0; i < opt->route_count; i++) {
        const Route *route = &opt->routes[i];
        if (route->optimizer == OPTIMIZER_ADAMW && !is_observed(opt, route)) continue;
        Route part = narrow(route, 0, layers_per_pass(opt, route));
        Arena pass = arena_measure(largest.name);
        layout_pass(opt, &pass, &part);
        if (pass.used > largest.used) largest = pass;
    }
    return largest;
}

static Status check_rates(const OptimizerConfig *config) {
    if (config->lr > 0 || config->adamw.lr <= 0) return status_ok();
    return status_error(
        STATUS_BAD_INPUT,
        "optimizer.adamw.lr is %g but optimizer.lr, to which it keeps its proportion over the schedule, "
        "is 0; give optimizer.lr a value",
        config->adamw.lr);
}

/* State and scratch of the routes. */
static void plan_memory(Optimizer *opt) {
    opt->state =
        opt->shadow
            ? arena_measure("shadow optimizers")
            : arena_measure_for(
                  "optimizer state",
                  "lower model.layers or model.width, or use optimizer.matrices=muon, which keeps less than adamw");
    layout_state(opt, &opt->state);
    opt->scratch = measure_scratch(opt);
    for (int i = 0; i < opt->route_count; i++)
        if (rule_of(&opt->routes[i])->orthogonalize)
            orthogonalizer_admit(&opt->orthogonalizer, opt->routes[i].momentum.shape[2],
                                 opt->routes[i].momentum.shape[3]);
}

Status optimizer_plan(Optimizer *opt, ParamTable *params, const OptimizerConfig *config, Backend *be) {
    *opt = (Optimizer){.be = be, .params = params, .config = *config};
    Status status = check_rates(config);
    if (status.code) return status;
    if (FAILED(status, orthogonalizer_plan(&opt->orthogonalizer, &config->muon, be))) return status;
    if (FAILED(status, routes_build(&opt->routes, &opt->route_count, params, config))) return status;
    plan_memory(opt);
    return status;
}

Status optimizer_plan_shadow(Optimizer *shadow, const Optimizer *opt, OptimizerKind kind, const bool *kinds) {
    OptimizerConfig config = opt->config;
    config.matrices = kind;
    config.override_count = 0;
    Status status = optimizer_plan(shadow, opt->params, &config, opt->be);
    if (status.code) return status;
    int kept = 0;
    for (int i = 0; i < shadow->route_count; i++)
        if (kinds[shadow->routes[i].kind]) shadow->routes[kept++] = shadow->routes[i];
    shadow->route_count = kept;
    shadow->shadow = true;
    plan_memory(shadow);
    return status;
}

Status optimizer_allocate(Optimizer *opt) {
    Status status = status_ok();
    if (FAILED(status, orthogonalizer_allocate(&opt->orthogonalizer))) goto failed;
    if (FAILED(status, arena_allocate(&opt->state, opt->be))) goto failed;
    if (FAILED(status, arena_allocate(&opt->scratch, opt->be))) goto failed;
    layout_state(opt, &opt->state);
    return status;
failed:
    optimizer_free(opt);
    return status;
}

void optimizer_free(Optimizer *opt) {
    orthogonalizer_free(&opt->orthogonalizer);
    arena_free(&opt->state);
    arena_free(&opt->scratch);
    free(opt->routes);
    opt->routes = NULL;
    opt->route_count = 0;
}

int64_t optimizer_planned_bytes(const Optimizer *opt) {
    return arena_bytes(&opt->state) + arena_bytes(&opt->scratch) + orthogonalizer_host_bytes(&opt->orthogonalizer);
}

double optimizer_step_flops(const Optimizer *opt) {
    double flops = 0;
    for (int i = 0; i < opt->route_count; i++) {
        const int64_t *shape = opt->routes[i].momentum.shape;
        if (rule_of(&opt->routes[i])->orthogonalize)
            flops += (double)(shape[0] * shape[1]) * orthogonalizer_flops(&opt->orthogonalizer, shape[2], shape[3]);
    }
    return flops;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

typedef struct {
    double lr, adamw_lr;
    double decay;      /* factor of weight_decay */
    AdamwStep adamw;   /* but for lr and decay, which are the route's */
    MomentumStep muon; /* and normuon, adamuon, sgd; but for the sign */
    MomentumStep lion;
    UpdateObserver *observer;
    void *context;
} StepContext;

static Tensor working_copy(const ParamTable *params, const Route *route) {
    bool separate = params->work.data != params->master.data;
    return separate ? route_view(route, params, params->work) : tensor_none();
}

static double lr_of(const Route *route, const StepContext *s) {
    return route->optimizer == OPTIMIZER_ADAMW ? s->adamw_lr : s->lr;
}

static double keep_of(const Route *route, const StepContext *s) {
    return 1 - lr_of(route, s) * s->decay * (double)route->decay;
}

static void notify(const Optimizer *opt, const Route *route, const StepContext *s, UpdateMoment moment, Tensor update) {
    if (!s->observer || !is_observed(opt, route)) return;
    bool applied = moment == UPDATE_APPLIED;
    const UpdateEvent event = {.moment = moment,
                               .route = route,
                               .lr = lr_of(route, s),
                               .keep = keep_of(route, s),
                               .grad_scale = s->adamw.grad_scale,
                               .weights = route_view(route, opt->params, opt->params->master),
                               .gradient = route_view(route, opt->params, opt->params->grad),
                               .momentum = applied ? route->momentum : tensor_none(),
                               .update = update};
    s->observer(s->context, &event);
}

static MomentumStep momentum_step(const Route *route, const StepContext *s) {
    MomentumStep step = route->optimizer == OPTIMIZER_LION ? s->lion : s->muon;
    step.sign = rule_of(route)->sign;
    return step;
}

/* O / (sqrt(v) + eps), then of norm 1: route->scale gives it the root mean square that it is to have. */
static void adapt(Optimizer *opt, const Route *route, Tensor O) {
    const AdaptConfig *c = route->optimizer == OPTIMIZER_NORMUON ? &opt->config.normuon : &opt->config.adamuon;
    op_adapt(opt->be, O, route->second, O, (AdaptStep){.beta2 = (float)c->beta2, .eps = (float)c->eps});
    op_normalize(opt->be, O, O, 1e-7f); /* 0 stays 0 */
}

/* All optimizers but AdamW. */
static void momentum_pass(Optimizer *opt, const Route *route, const StepContext *s) {
    Tensor W = route_view(route, opt->params, opt->params->master), copy = working_copy(opt->params, route);
    Tensor G = route_view(route, opt->params, opt->params->grad), M = route->momentum;
    Arena scratch = opt->scratch;
    OrthogonalizeBuffers buffers = layout_pass(opt, &scratch, route);
    Tensor U = buffers.x;

    if (!opt->shadow) notify(opt, route, s, UPDATE_COMES, tensor_none());
    op_momentum(opt->be, U, M, G, momentum_step(route, s));
    if (opt->shadow && !s->observer && !rule_of(route)->second) return; /* nobody asks for the update */
    if (rule_of(route)->orthogonalize) U = orthogonalize(&opt->orthogonalizer, buffers);
    if (rule_of(route)->second) adapt(opt, route, U);
    if (!opt->shadow)
        op_apply_update(opt->be, W, copy, U,
                        (UpdateStep){.keep = (float)keep_of(route, s),
                                     .step = (float)(s->lr * (double)route->scale),
                                     .cautious = opt->config.cautious_decay});
    notify(opt, route, s, UPDATE_APPLIED, U);
}

/* The route's scale is in the rate, but not in the decay. */
static void adamw_pass(Optimizer *opt, const Route *route, const StepContext *s) {
    Tensor w = route_view(route, opt->params, opt->params->master), copy = working_copy(opt->params, route);
    Tensor g = route_view(route, opt->params, opt->params->grad);
    AdamwStep step = s->adamw;
    step.lr = (float)(s->adamw_lr * (double)route->scale);
    step.decay = (float)(s->decay * (double)route->decay / (double)route->scale);
    op_adamw(opt->be, w, copy, route->momentum, route->second, g, step);
}

/* After the step, hands out m̂/(sqrt(v̂)+eps): what one more AdamW step would add to a zero weight at lr = -1, with betas
 * of 1, which leave m and v as they are. Unlike the difference of the weights this loses no digits, also at lr = 0. */
static void observe_adamw(Optimizer *opt, const Route *route, const StepContext *s) {
    Arena scratch = opt->scratch;
    Tensor update = layout_pass(opt, &scratch, route).x;
    Tensor g = route_view(route, opt->params, opt->params->grad);
    AdamwStep step = s->adamw;
    step.lr = -1, step.beta1 = 1, step.beta2 = 1, step.decay = 0;
    op_fill(opt->be, update, 0);
    op_adamw(opt->be, update, tensor_none(), route->momentum, route->second, g, step);
    notify(opt, route, s, UPDATE_APPLIED, update);
}

static void announce_adamw(Optimizer *opt, const Route *route, const StepContext *s) {
    notify(opt, route, s, UPDATE_COMES, tensor_none());
}

/* The update alone, into a zero weight at lr = -1. */
static void shadow_adamw_pass(Optimizer *opt, const Route *route, const StepContext *s) {
    Arena scratch = opt->scratch;
    Tensor update = layout_pass(opt, &scratch, route).x;
    Tensor g = route_view(route, opt->params, opt->params->grad);
    AdamwStep step = s->adamw;
    step.lr = -1, step.decay = 0;
    if (s->observer) op_fill(opt->be, update, 0); /* else only the moments count */
    op_adamw(opt->be, update, tensor_none(), route->momentum, route->second, g, step);
    notify(opt, route, s, UPDATE_APPLIED, update);
}

static void for_each_pass(Optimizer *opt, const Route *route, const StepContext *s,
                          void (*pass)(Optimizer *, const Route *, const StepContext *)) {
    int64_t most = layers_per_pass(opt, route);
    for (int64_t first = 0; first < route->layers; first += most) {
        int64_t rest = route->layers - first;
        Route part = narrow(route, first, rest < most ? rest : most);
        pass(opt, &part, s);
    }
}

/* sum: M' = mu M + g,  ema: M' = mu M + (1-mu) g;  U = M', or with Nesterov mu M' + what M' has got of g. */
static MomentumStep muon_momentum(const MuonConfig *c, double mu, float grad_scale) {
    double add = c->momentum_form == MUON_MOMENTUM_EMA ? 1 - mu : 1;
    return (MomentumStep){.keep = (float)mu,
                          .add = (float)add,
                          .old = (float)(c->nesterov ? mu * mu : mu),
                          .fresh = (float)(c->nesterov ? (1 + mu) * add : add),
                          .grad_scale = grad_scale};
}

static MomentumStep lion_momentum(const LionConfig *c, float grad_scale) {
    return (MomentumStep){.keep = (float)c->beta2,
                          .add = (float)(1 - c->beta2),
                          .old = (float)c->beta1,
                          .fresh = (float)(1 - c->beta1),
                          .grad_scale = grad_scale};
}

static AdamwStep adamw_step(const OptimizerConfig *c, int64_t update, float grad_scale) {
    return (AdamwStep){.beta1 = (float)c->adamw.beta1,
                       .beta2 = (float)c->adamw.beta2,
                       .eps = (float)c->adamw.eps,
                       .correction1 = (float)(1 - pow(c->adamw.beta1, (double)update)),
                       .correction2 = (float)(1 - pow(c->adamw.beta2, (double)update)),
                       .grad_scale = grad_scale,
                       .cautious = c->cautious_decay};
}

/* AdamW's own rate follows the same schedule: it stays in proportion to optimizer.lr. */
static StepContext prepare_step(const OptimizerConfig *c, const StepNumbers *n) {
    return (StepContext){.lr = n->lr,
                         .adamw_lr = c->adamw.lr > 0 ? n->lr * c->adamw.lr / c->lr : n->lr,
                         .decay = schedule_factor(&c->decay_schedule, n->steps, n->step),
                         .adamw = adamw_step(c, n->update, n->grad_scale),
                         .muon = muon_momentum(&c->muon, schedule_momentum(&c->muon, n->steps, n->step), n->grad_scale),
                         .lion = lion_momentum(&c->lion, n->grad_scale)};
}

static void step_adamw(Optimizer *opt, const Route *route, const StepContext *s) {
    bool observed = s->observer && is_observed(opt, route);
    if (observed) for_each_pass(opt, route, s, announce_adamw);
    adamw_pass(opt, route, s); /* needs no scratch, and so no passes */
    if (observed) for_each_pass(opt, route, s, observe_adamw);
}

void optimizer_step(Optimizer *opt, const StepNumbers *numbers, UpdateObserver *observer, void *context) {
    CHECK(numbers->update >= 1, "update %lld; updates count from 1", (long long)numbers->update);
    StepContext s = prepare_step(&opt->config, numbers);
    s.observer = observer, s.context = context;
    for (int i = 0; i < opt->route_count; i++) {
        const Route *route = &opt->routes[i];
        if (route->optimizer == OPTIMIZER_ADAMW && opt->shadow)
            for_each_pass(opt, route, &s, shadow_adamw_pass);
        else if (route->optimizer == OPTIMIZER_ADAMW)
            step_adamw(opt, route, &s);
        else
            for_each_pass(opt, route, &s, momentum_pass);
    }
}

void optimizer_add_grad_squares(Optimizer *opt, Tensor total) {
    op_sum_squares(opt->be, total, opt->params->grad); /* the padding between parameters stays zero */
}

/* ---- state, tensor by tensor ------------------------------------------------------------------------------------ */

static int tensors_per_layer(const Route *route) {
    return rule_of(route)->second ? 2 : 1;
}

int64_t optimizer_state_count(const Optimizer *opt) {
    int64_t count = 0;
    for (int i = 0; i < opt->route_count; i++) count += opt->routes[i].layers * tensors_per_layer(&opt->routes[i]);
    return count;
}

Tensor optimizer_state_tensor(const Optimizer *opt, int64_t index, char *name, int64_t size) {
    CHECK(index >= 0 && index < optimizer_state_count(opt), "state tensor %lld", (long long)index);
    int i = 0;
    while (index >= opt->routes[i].layers * tensors_per_layer(&opt->routes[i])) {
        index -= opt->routes[i].layers * tensors_per_layer(&opt->routes[i]);
        i++;
    }
    const Route *route = &opt->routes[i];
    int64_t layer = index / tensors_per_layer(route);
    int which = (int)(index % tensors_per_layer(route));
    optimizer_state_name(opt, i, route->first + layer, which, name, size);
    Tensor of_layer = tensor_index(which == 0 ? route->momentum : route->second, layer);
    return tensor_as_2d(of_layer, of_layer.shape[0] * of_layer.shape[1], of_layer.shape[2]);
}

char *optimizer_state_name(const Optimizer *opt, int route, int64_t layer, int which, char *buffer, int64_t size) {
    const Route *r = &opt->routes[route];
    char block[2 * NAME_SIZE];
    params_block_name(opt->params, r->kind, layer, -1, block, sizeof block);
    snprintf(buffer, (size_t)size, "%s%s.%s", opt->shadow ? "shadow." : "", block,
             which == 0 ? rule_of(r)->first : rule_of(r)->second);
    return buffer;
}
