/* The plan, the memory and the step of all optimizers over the routes; see optimizer.h. What U is, rows know.
 *
 * Memory: `state` holds the tensors of route after route. `scratch` serves one pass at a time; each lays its buffers
 * out from the start, in a copy of the arena:
 *
 *      state     | route 0: M | route 1: M | v | route 2: m | v | ...
 *      scratch   | a pass that orthogonalizes: X, next X, A, B |   or   | what the row lists: an update |
 *
 * A pass takes as many layers of a route as the backend's pieces allow, and at least one: batches big enough to keep it
 * busy with small matrices, scratch that does not grow with the number of layers for large ones. A row that updates the
 * weights itself takes the whole route, and no scratch, unless its update is observed.
 */
#include "optim/optimizer.h"

#include <stdlib.h>

#include "base/integer.h"
#include "ops/ops.h"
#include "optim/optimizer_row.h"
#include "optim/routing.h"
#include "optim/schedule.h"

static const OptimizerRow *row_of(const Route *route) {
    return optimizer_row(route->optimizer);
}

/* ---- passes over a route ---------------------------------------------------------------------------------------- */

/* The layers [first, first + layers) of a route, counted from its own first, as a route of their own. */
static Route narrow(const Route *route, int64_t first, int64_t layers) {
    Route part = *route;
    part.first += first;
    part.layers = layers;
    for (int i = 0; i < row_state_count(row_of(route)); i++)
        part.state[i] = tensor_slice(route->state[i], 0, first, layers);
    return part;
}

/* Only hidden matrices are observed. */
static bool is_hidden(const Optimizer *opt, const Route *route) {
    return params_is_hidden_matrix(&opt->params->kinds[route->kind]);
}

static bool applies_itself(const Optimizer *opt, const Route *route) {
    return row_of(route)->apply && !opt->shadow;
}

/* What a pass over `route` works in. */
static void layout_pass(UpdatePass *pass, Arena *scratch, const Optimizer *opt, const Route *route) {
    const Tensor matrices = route_shape(route, opt->params);
    const OptimizerRow *row = row_of(route);
    if (row->orthogonalize) pass->buffers = orthogonalizer_layout(&opt->orthogonalizer, scratch, matrices.shape);
    for (int i = 0; i < SCRATCH_MAX && row->scratch[i]; i++)
        pass->scratch[i] = take_by_sides(scratch, matrices.shape, row->scratch[i]);
}

static int64_t layers_per_pass(const Optimizer *opt, const Route *route) {
    Arena measured = arena_measure("one layer");
    const Route layer = narrow(route, 0, 1);
    layout_pass(&(UpdatePass){0}, &measured, opt, &layer);
    return smaller(larger(1, opt->be->pieces.optimizer_bytes / larger(1, measured.used)), route->layers);
}

/* ---- set-up ----------------------------------------------------------------------------------------------------- */

static void layout_state(Optimizer *opt, Arena *arena) {
    for (int i = 0; i < opt->route_count; i++) {
        Route *route = &opt->routes[i];
        const Tensor matrices = route_shape(route, opt->params);
        for (int k = 0; k < row_state_count(row_of(route)); k++)
            route->state[k] = take_by_sides(arena, matrices.shape, row_of(route)->state[k].sides);
    }
}

/* The largest of all passes. */
static Arena measure_scratch(const Optimizer *opt) {
    Arena largest = arena_measure("optimizer scratch");
    for (int i = 0; i < opt->route_count; i++) {
        const Route *route = &opt->routes[i];
        if (applies_itself(opt, route) && !is_hidden(opt, route)) continue;
        const Route part = narrow(route, 0, layers_per_pass(opt, route));
        Arena pass = arena_measure(largest.name);
        layout_pass(&(UpdatePass){0}, &pass, opt, &part);
        if (pass.used > largest.used) largest = pass;
    }
    return largest;
}

/* Rates of their own are given in proportion to optimizer.lr. */
static Status check_rates(const OptimizerConfig *config) {
    for (int kind = 0; kind < OPTIMIZER_COUNT; kind++) {
        const OptimizerRow *row = optimizer_row((OptimizerKind)kind);
        if (config->lr > 0 || !row->own_lr || row->own_lr(config) <= 0) continue;
        return BAD_INPUT("optimizer.%s.lr is %g but optimizer.lr, to which it keeps its proportion over the "
                         "schedule, is 0; give optimizer.lr a value",
                         optimizer_name((OptimizerKind)kind), row->own_lr(config));
    }
    return status_ok();
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
    for (int i = 0; i < opt->route_count; i++) {
        const Tensor matrices = route_shape(&opt->routes[i], opt->params);
        if (row_of(&opt->routes[i])->orthogonalize)
            orthogonalizer_admit(&opt->orthogonalizer, matrices.shape[2], matrices.shape[3]);
    }
}

Status optimizer_plan(Optimizer *opt, ParamTable *params, const OptimizerConfig *config, Backend *be) {
    *opt = (Optimizer){.be = be, .params = params, .config = *config};
    Status status = check_rates(config);
    if (status.code) return status;
    if (FAILED(status, orthogonalizer_plan(&opt->orthogonalizer, &config->muon, be))) return status;
    if (FAILED(status, routes_build(opt))) return status;
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

/* ---- what it takes ---------------------------------------------------------------------------------------------- */

int64_t optimizer_planned_bytes(const Optimizer *opt) {
    return arena_bytes(&opt->state) + arena_bytes(&opt->scratch) + arena_bytes(&opt->orthogonalizer.host);
}

double optimizer_step_flops(const Optimizer *opt) {
    double flops = 0;
    for (int i = 0; i < opt->route_count; i++) {
        const Tensor matrices = route_shape(&opt->routes[i], opt->params);
        const int64_t *shape = matrices.shape;
        if (row_of(&opt->routes[i])->orthogonalize)
            flops += (double)(shape[0] * shape[1]) * orthogonalizer_flops(&opt->orthogonalizer, shape[2], shape[3]);
    }
    return flops;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

typedef struct {
    const StepNumbers *numbers;
    double decay; /* factor of weight_decay */
    UpdateObserver *observer;
    void *context;
} StepContext;

/* A rate of its own follows the same schedule: it stays in proportion to optimizer.lr. */
static double scheduled_lr(const OptimizerConfig *config, const OptimizerRow *row, double lr) {
    const double own = row->own_lr ? row->own_lr(config) : 0;
    return own > 0 ? lr * own / config->lr : lr;
}

static double keep_of(const UpdatePass *p) {
    return 1 - p->lr * p->decay * (double)p->route->decay;
}

static Tensor master_of(const UpdatePass *p) {
    return route_view(p->route, p->opt->params, p->opt->params->master);
}

static Tensor working_copy_of(const UpdatePass *p) {
    const ParamTable *params = p->opt->params;
    bool separate = params->work.data != params->master.data;
    return separate ? route_view(p->route, params, params->work) : tensor_none();
}

static void notify(const UpdatePass *p, const StepContext *s, UpdateMoment moment, Tensor update) {
    const UpdateEvent event = {.moment = moment,
                               .route = p->route,
                               .lr = p->lr,
                               .keep = keep_of(p),
                               .grad_scale = p->numbers->grad_scale,
                               .weights = master_of(p),
                               .gradient = p->gradient,
                               .momentum = p->route->state[0],
                               .update = update};
    s->observer(s->context, &event);
}

/* Weights, and the update if it is wanted. */
static Tensor apply_fused(UpdatePass *p) {
    const OptimizerRow *row = row_of(p->route);
    row->apply(p, master_of(p), working_copy_of(p));
    p->state_is_new = true;
    return p->wanted ? row->update(p) : tensor_none();
}

static Tensor apply_update(const UpdatePass *p) {
    Tensor U = row_of(p->route)->update(p);
    op_apply_update(p->opt->be, master_of(p), working_copy_of(p), U,
                    (UpdateStep){.keep = (float)keep_of(p),
                                 .step = (float)(p->lr * (double)p->route->scale),
                                 .cautious = p->opt->config.cautious_decay});
    return U;
}

static void step_part(const Optimizer *opt, const Route *part, const StepContext *s) {
    const bool fused = applies_itself(opt, part), observed = s->observer && is_hidden(opt, part);
    UpdatePass p = {.opt = opt,
                    .route = part,
                    .numbers = s->numbers,
                    .lr = scheduled_lr(&opt->config, row_of(part), s->numbers->lr),
                    .decay = s->decay,
                    .wanted = observed || !(fused || opt->shadow),
                    .gradient = route_view(part, opt->params, opt->params->grad)};
    Arena scratch = opt->scratch;
    if (!fused || observed) layout_pass(&p, &scratch, opt, part);
    if (observed && !opt->shadow) notify(&p, s, UPDATE_COMES, tensor_none());
    Tensor U = opt->shadow ? row_of(part)->update(&p) : fused ? apply_fused(&p) : apply_update(&p);
    if (observed) notify(&p, s, UPDATE_APPLIED, U);
}

static void step_route(const Optimizer *opt, const Route *route, const StepContext *s) {
    const bool observed = s->observer && is_hidden(opt, route);
    const int64_t most = applies_itself(opt, route) && !observed ? route->layers : layers_per_pass(opt, route);
    for (int64_t first = 0; first < route->layers; first += most) {
        const Route part = narrow(route, first, smaller(most, route->layers - first));
        step_part(opt, &part, s);
    }
}

void optimizer_step(Optimizer *opt, const StepNumbers *numbers, UpdateObserver *observer, void *context) {
    CHECK(numbers->update >= 1, "update %lld; updates count from 1", (long long)numbers->update);
    const StepContext s = {.numbers = numbers,
                           .decay = schedule_factor(&opt->config.decay_schedule, numbers->steps, numbers->step),
                           .observer = observer,
                           .context = context};
    for (int i = 0; i < opt->route_count; i++) step_route(opt, &opt->routes[i], &s);
}
