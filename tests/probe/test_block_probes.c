/* The probes of watched blocks (collision, momentum, shadow) and the shadow optimizers: every number against LAPACK's
 * SVD of the matrices, or loops over their elements.
 */
#include "tests/probe/toy_set.h"

#include <lapacke.h>

#include "ops/ops.h"

enum { TOP = 3, WATCHED = 4 };
enum { ELEMENTS_MAX = MLP * WIDTH };

static const char *const watched[WATCHED] = {"q", "k", "o", "up"};

/* Grouped queries: q and k lie within one matrix, o has its heads in columns, up is tall. */
static void open_toy(Toy *t, char *probe) {
    toy_open(t, "cpu",
             (char *[]){"probe.blocks=[\"q\",\"k\",\"o\",\"up\",\"down\"]", "probe.collision_top=3",
                        "optimizer.lr=0.01", "optimizer.muon.per_head=[\"o\"]", probe, NULL});
    assert_int_equal(t->set.blocks->slots, WATCHED * LAYERS); /* the model has no down */
    assert_int_equal(t->set.blocks->chunk, LAYERS);
}

static int kind_of(const Toy *t, const char *name) {
    return params_find_kind(&t->gpt.params, name);
}

/* ---- the oracle ------------------------------------------------------------------------------------------------- */

/* A whole block of one layer, in double, and its singular value decomposition. */
typedef struct {
    int64_t n, m, r;
    double a[ELEMENTS_MAX], sigma[WIDTH], u[MLP * WIDTH], vt[WIDTH * WIDTH];
} Svd;

static Svd *decompose(Toy *t, int kind, Tensor block) {
    const ParamTable *params = &t->gpt.params;
    Svd *s = calloc(1, sizeof *s);
    double copy[ELEMENTS_MAX], superdiagonal[WIDTH];
    double *values = test_read(&t->be, block);
    s->n = params->kinds[kind].rows;
    s->m = params->kinds[kind].columns;
    s->r = s->n < s->m ? s->n : s->m;
    assert_int_equal(tensor_numel(block), s->n * s->m);
    for (int64_t i = 0; i < s->n * s->m; i++) s->a[i] = copy[i] = values[i];
    assert_int_equal(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'S', 'S', (lapack_int)s->n, (lapack_int)s->m, copy,
                                    (lapack_int)s->m, s->sigma, s->u, (lapack_int)s->r, s->vt, (lapack_int)s->m,
                                    superdiagonal),
                     0);
    return s;
}

/* u_iᵀ A v_i with the i-th triple of s. */
static double form(const Svd *s, const double *a, int64_t i) {
    double sum = 0;
    for (int64_t row = 0; row < s->n; row++)
        for (int64_t column = 0; column < s->m; column++)
            sum += s->u[row * s->r + i] * a[row * s->m + column] * s->vt[i * s->m + column];
    return sum;
}

static double squares(const Svd *s) {
    double sum = 0;
    for (int64_t i = 0; i < s->n * s->m; i++) sum += s->a[i] * s->a[i];
    return sum;
}

/* mean c_i² / (|U|_F² / (n m)) */
static double relative_collision(const Svd *w, const Svd *u) {
    double mean_square = 0;
    for (int i = 0; i < TOP; i++) mean_square += form(w, u->a, i) * form(w, u->a, i) / TOP;
    return mean_square / (squares(u) / (double)(u->n * u->m));
}

static Alignment align(const Svd *a, const Svd *b) {
    Alignment result = {0};
    for (int i = 0; i < TOP; i++)
        for (int j = 0; j < TOP; j++) {
            double left = 0, right = 0;
            for (int64_t row = 0; row < a->n; row++) left += a->u[row * a->r + i] * b->u[row * b->r + j];
            for (int64_t column = 0; column < a->m; column++)
                right += a->vt[i * a->m + column] * b->vt[j * b->m + column];
            result.left += left * left / TOP;
            result.right += right * right / TOP;
        }
    return result;
}

static void assert_aligned(const cJSON *row, const char *key, Alignment expected) {
    assert_near(key, element_of(row, key, 0), expected.left, 1e-9);
    assert_near(key, element_of(row, key, 1), expected.right, 1e-9);
}

/* ---- runs ------------------------------------------------------------------------------------------------------- */

/* A run of the optimizer's own, contiguous as it keeps them. */
static Tensor random_run(Toy *t, int kind, int64_t layers, BlockSplit split, uint64_t seed) {
    Tensor like = params_block_run(&t->gpt.params, t->gpt.params.master, kind, 0, layers, split);
    return test_random(&t->be, DTYPE_F32, shape4(like.shape[0], like.shape[1], like.shape[2], like.shape[3]), seed);
}

/* One layer of a run as (rows, columns): heads are put one below the other, or side by side. */
static Tensor whole_block(Toy *t, int kind, Tensor run, int64_t layer) {
    const BlockKind *block = &t->gpt.params.kinds[kind];
    const int64_t columns = block->columns;
    Tensor whole = test_zeros(&t->be, DTYPE_F32, shape2(block->rows, columns)), part = tensor_index(run, layer);
    Tensor target = tensor_as_3d(whole, part.shape[0], part.shape[1], part.shape[2]);
    if (block->head_axis == HEADS_IN_COLUMNS) target.stride[0] = part.shape[2], target.stride[1] = columns;
    op_copy(&t->be, target, part);
    return whole;
}

static Tensor master_run(Toy *t, const Route *route) {
    return params_block_run(&t->gpt.params, t->gpt.params.master, route->kind, route->first, route->layers,
                            route->split);
}

static void tell(Toy *t, UpdateMoment moment, UpdateEvent event) {
    event.moment = moment;
    probes_update(&t->set, &event);
}

/* ---- collision -------------------------------------------------------------------------------------------------- */

enum { FIRST = 1, COUNT = 2 }; /* the layers of a run */
static const double LR = 2e-3, STEP = 1e-3, DECAY = 2e-4;

/* W <- (1 - DECAY) W - STEP U, of which events tell the rate and the route's scale. */
static Route route_of(int kind, BlockSplit split) {
    return (Route){.kind = kind, .first = FIRST, .layers = COUNT, .split = split, .scale = 0.5f};
}

static void check_collision(Toy *t, const cJSON *row, const Route *route, int64_t i, const Svd *w,
                            const UpdateEvent *e) {
    const int kind = route->kind;
    Svd *u = decompose(t, kind, whole_block(t, kind, e->update, i));
    Svd *m = decompose(t, kind, whole_block(t, kind, e->momentum, i));
    Svd *after = decompose(t, kind, params_block(&t->gpt.params, t->gpt.params.master, kind, FIRST + i));
    assert_block(t, row, kind, FIRST + i);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(row, "c")), TOP);
    for (int k = 0; k < TOP; k++) {
        const double c = form(w, u->a, k), predicted = -STEP * c - DECAY * w->sigma[k];
        assert_near("c", element_of(row, "c", k), c, 1e-9);
        assert_near("sigma", element_of(row, "sigma", k), w->sigma[k], 1e-12);
        assert_near("predicted", element_of(row, "predicted", k), predicted, 1e-11);
        assert_near("realised", element_of(row, "realised", k), after->sigma[k] - w->sigma[k], 1e-11);
        /* to first order: steps of 1e-3 |U|, gaps of .1 */
        assert_near("to first order", element_of(row, "realised", k), predicted, 3e-4);
    }
    assert_near("relative", number_of(row, "relative"), relative_collision(w, u), 1e-9);
    assert_aligned(row, "align_update", align(w, u));
    assert_aligned(row, "align_momentum", align(w, m));
    assert_aligned(row, "align_step", align(w, after));
    free(u);
    free(m);
    free(after);
}

static void collide(Toy *t, const char *name, BlockSplit split) {
    const Route route = route_of(kind_of(t, name), split);
    const UpdateEvent e = {.route = &route,
                           .lr = LR,
                           .keep = 1 - DECAY,
                           .weights = master_run(t, &route),
                           .momentum = random_run(t, route.kind, COUNT, split, 200),
                           .update = random_run(t, route.kind, COUNT, split, 100)};
    Svd *before[COUNT];
    for (int64_t i = 0; i < COUNT; i++)
        before[i] = decompose(t, route.kind, params_block(&t->gpt.params, t->gpt.params.master, route.kind, FIRST + i));

    toy_begin(t, 1);
    tell(t, UPDATE_COMES, e);
    op_apply_update(&t->be, e.weights, tensor_none(), e.update,
                    (UpdateStep){.keep = (float)(1 - DECAY), .step = (float)STEP});
    tell(t, UPDATE_COMES, e); /* known: the old weights stay */
    tell(t, UPDATE_APPLIED, e);
    cJSON *line = toy_end(t);
    const cJSON *row = rows_of(line, "collision")->child;
    for (int64_t i = 0; i < COUNT; i++, row = row->next) {
        check_collision(t, row, &route, i, before[i], &e);
        free(before[i]);
    }
    assert_null(row);
    cJSON_Delete(line);
}

static void collisions_are_those_of_the_svd(void **state) {
    (void)state;
    static const struct {
        const char *name;
        BlockSplit split;
    } cases[] = {
        {"q", SPLIT_WHOLE}, {"q", SPLIT_PER_HEAD}, {"k", SPLIT_WHOLE}, {"o", SPLIT_PER_HEAD}, {"up", SPLIT_WHOLE}};
    static const int64_t chunks[] = {LAYERS, 1}; /* all layers at a time, then one */
    Toy t;
    for (int c = 0; c < 2; c++) {
        open_toy(&t, "probe.collision_every=1");
        t.set.blocks->chunk = chunks[c];
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) collide(&t, cases[i].name, cases[i].split);
        toy_close(&t);
    }
}

static void a_collision_without_momentum_or_of_a_nan_is_told(void **state) {
    (void)state;
    Toy t;
    open_toy(&t, "probe.collision_every=1");
    const Route route = route_of(kind_of(&t, "q"), SPLIT_WHOLE);
    const UpdateEvent e = {.route = &route,
                           .lr = LR,
                           .keep = 1,
                           .weights = master_run(&t, &route),
                           .momentum = tensor_none(),
                           .update = random_run(&t, route.kind, COUNT, SPLIT_WHOLE, 3)};
    test_set(&t.be, e.update, 5, (double)NAN);
    toy_begin(&t, 1);
    tell(&t, UPDATE_COMES, e);
    tell(&t, UPDATE_APPLIED, e);
    cJSON *line = toy_end(&t);
    const cJSON *bad = rows_of(line, "collision")->child, *good = bad->next;
    assert_true(isnan(element_of(bad, "c", 0)) && isnan(number_of(bad, "relative")));
    assert_true(isnan(element_of(bad, "align_update", 0)));
    assert_true(isfinite(element_of(bad, "sigma", 0)) && element_of(bad, "realised", 0) == 0);
    assert_true(isnan(element_of(good, "align_momentum", 0)) && isfinite(element_of(good, "align_update", 1)));
    cJSON_Delete(line);

    test_fill(&t.be, e.update, 0); /* no update meets nothing, but not by chance */
    toy_begin(&t, 2);
    tell(&t, UPDATE_COMES, e);
    tell(&t, UPDATE_APPLIED, e);
    line = toy_end(&t);
    good = cJSON_GetArrayItem(rows_of(line, "collision"), 1);
    assert_true(element_of(good, "c", 0) == 0 && isnan(number_of(good, "relative")));
    cJSON_Delete(line);
    toy_close(&t);
}

static void blocks_that_are_not_watched_leave_no_record(void **state) {
    (void)state;
    Toy t;
    open_toy(&t, "probe.collision_every=1");
    const Route route = route_of(kind_of(&t, "v"), SPLIT_WHOLE);
    const UpdateEvent e = {.route = &route,
                           .keep = 1,
                           .weights = master_run(&t, &route),
                           .momentum = tensor_none(),
                           .update = random_run(&t, route.kind, COUNT, SPLIT_WHOLE, 3)};
    toy_begin(&t, 1);
    tell(&t, UPDATE_COMES, e);
    tell(&t, UPDATE_APPLIED, e);
    cJSON *line = toy_end(&t);
    assert_int_equal(cJSON_GetArraySize(rows_of(line, "collision")), 0);
    cJSON_Delete(line);
    toy_close(&t);
}

/* Without the digits that a field loses. */
static void forms_and_their_mean_square_are_those_of_the_svd(void **state) {
    (void)state;
    Toy t;
    open_toy(&t, "probe.collision_every=1");
    for (int i = 0; i < WATCHED; i++) {
        const int kind = kind_of(&t, watched[i]);
        Tensor U = tensor_index(tensor_index(random_run(&t, kind, 1, SPLIT_WHOLE, 12), 0), 0);
        Svd *w = decompose(&t, kind, params_block(&t.gpt.params, t.gpt.params.master, kind, 0));
        Svd *u = decompose(&t, kind, U);
        double *memory = calloc((size_t)triples_size(w->n, w->m, TOP), sizeof *memory), c[TRIPLES_MAX];
        double *workspace = calloc((size_t)triples_workspace_size(w->n, w->m, TOP), sizeof *workspace);
        float matrix[ELEMENTS_MAX], update[ELEMENTS_MAX];
        for (int64_t j = 0; j < w->n * w->m; j++) matrix[j] = (float)w->a[j], update[j] = (float)u->a[j];
        Triples triples = triples_place(memory, w->n, w->m, TOP);
        triples_find(&triples, matrix, workspace);
        const double relative = triples_collide(&triples, update, c), expected = relative_collision(w, u);
        assert_close("relative", &relative, &expected, 1, (Tolerance){.absolute = 1e-9});
        for (int k = 0; k < TOP; k++) {
            const double in_double = form(w, u->a, k);
            assert_close("c", &c[k], &in_double, 1, (Tolerance){.absolute = 1e-9});
        }
        memset(update, 0, sizeof update);
        assert_true(isnan(triples_collide(&triples, update, c)) && c[0] == 0);
        free(memory);
        free(workspace);
        free(w);
        free(u);
    }
    toy_close(&t);
}

/* ---- momentum --------------------------------------------------------------------------------------------------- */

/* n micro-batches, whose shares of the gradients follow from a seed. */
typedef struct {
    int n;
    uint64_t seed;
} MicroBatches;

/* The shares one after the other into the gradients, which end as their sum G. */
static void add_micro_batches(Toy *t, MicroBatches batches) {
    Tensor grad = t->gpt.params.grad, share = test_zeros(&t->be, DTYPE_F32, shape1(t->gpt.params.elements));
    for (int i = 0; i < batches.n; i++) {
        toy_fill(t, share, batches.seed + (uint64_t)i);
        if (i == 0)
            op_copy(&t->be, grad, share);
        else
            op_apply_update(&t->be, grad, tensor_none(), share, (UpdateStep){.keep = 1, .step = -1});
        probes_backward(&t->set);
    }
}

/* sum |g_i - G|² / (n-1) of a block, with g_i = n times the i-th share. */
static double expected_variance(Toy *t, int kind, int64_t layer, MicroBatches batches) {
    Tensor share = test_zeros(&t->be, DTYPE_F32, shape1(t->gpt.params.elements));
    double *G = test_read(&t->be, params_block(&t->gpt.params, t->gpt.params.grad, kind, layer)), sum = 0;
    for (int i = 0; i < batches.n; i++) {
        toy_fill(t, share, batches.seed + (uint64_t)i);
        Tensor block = params_block(&t->gpt.params, share, kind, layer);
        double *g = test_read(&t->be, block);
        for (int64_t j = 0; j < tensor_numel(block); j++) sum += pow(batches.n * g[j] - G[j], 2);
    }
    return sum / (batches.n - 1);
}

/* Of a layer whose momentum goes from `before` to `after`, whole blocks. */
static void check_momentum(Toy *t, const cJSON *row, int kind, int64_t layer, Tensor before, Tensor after,
                           MicroBatches batches, double grad_scale) {
    Svd *m = decompose(t, kind, after), *old = decompose(t, kind, before);
    Svd *g = decompose(t, kind, params_block(&t->gpt.params, t->gpt.params.grad, kind, layer));
    double product = 0;
    assert_block(t, row, kind, layer);
    for (int64_t i = 0; i < m->n * m->m; i++) product += m->a[i] * g->a[i];
    assert_near("cosine", number_of(row, "cosine"), product / sqrt(squares(m) * squares(g)), 1e-12);
    assert_near("ratio", number_of(row, "ratio"), sqrt(squares(m) / squares(g)) / grad_scale, 1e-12);
    assert_aligned(row, "drift", align(m, old));
    assert_aligned(row, "gradient_alignment", align(m, g));
    if (batches.n == 1) {
        assert_true(isnan(number_of(row, "variance")) && isnan(number_of(row, "noise")));
    } else {
        const double variance = expected_variance(t, kind, layer, batches), noise = variance / squares(g);
        const double scaled = variance * grad_scale * grad_scale;
        assert_near("variance", number_of(row, "variance"), scaled, 3e-6 * variance); /* fp32 sums */
        assert_near("noise", number_of(row, "noise"), noise, 3e-6 * noise);
    }
    free(m);
    free(old);
    free(g);
}

static void momentum_is_compared_with_the_gradient(void **state) {
    (void)state;
    static const int64_t chunks[] = {LAYERS, LAYERS, 1};
    const StepNumbers numbers = toy_numbers(1);
    Toy t;
    open_toy(&t, "probe.momentum_every=1");
    for (int n = 1; n <= 3; n++) { /* steps one after the other: nothing may be left of the last one */
        const MicroBatches batches = {n, 40};
        Tensor before[WATCHED], after[WATCHED];
        t.set.blocks->chunk = chunks[n - 1];
        probes_begin(&t.set, n, 0);
        add_micro_batches(&t, batches);
        probes_gradient(&t.set, NULL, &numbers);
        for (int i = 0; i < WATCHED; i++) {
            const int kind = kind_of(&t, watched[i]);
            const BlockSplit split = i == 2 ? SPLIT_PER_HEAD : SPLIT_WHOLE;
            const Route route = {.kind = kind, .layers = LAYERS, .split = split, .scale = 1};
            UpdateEvent e = {
                .route = &route,
                .keep = 1,
                .grad_scale = 0.25f,
                .weights = master_run(&t, &route),
                .gradient = params_block_run(&t.gpt.params, t.gpt.params.grad, kind, 0, LAYERS, split),
                .momentum = before[i] = random_run(&t, kind, LAYERS, split, 8),
            };
            tell(&t, UPDATE_COMES, e);
            e.momentum = after[i] = random_run(&t, kind, LAYERS, split, 9);
            e.update = random_run(&t, kind, LAYERS, split, 10);
            tell(&t, UPDATE_APPLIED, e);
        }
        cJSON *line = toy_end(&t);
        const cJSON *row = rows_of(line, "momentum")->child;
        for (int i = 0; i < WATCHED; i++)
            for (int64_t layer = 0; layer < LAYERS; layer++, row = row->next) {
                const int kind = kind_of(&t, watched[i]);
                check_momentum(&t, row, kind, layer, whole_block(&t, kind, before[i], layer),
                               whole_block(&t, kind, after[i], layer), batches, 0.25);
            }
        assert_null(row);
        cJSON_Delete(line);
    }
    toy_close(&t);
}

static void equal_micro_batches_have_no_variance_and_an_empty_momentum_no_direction(void **state) {
    (void)state;
    const StepNumbers numbers = toy_numbers(1);
    Toy t;
    open_toy(&t, "probe.momentum_every=1");
    const Route route = {.kind = kind_of(&t, "q"), .layers = 1, .scale = 1};
    UpdateEvent e = {.route = &route,
                     .keep = 1,
                     .grad_scale = 1,
                     .weights = master_run(&t, &route),
                     .gradient = params_block_run(&t.gpt.params, t.gpt.params.grad, route.kind, 0, 1, SPLIT_WHOLE),
                     .momentum = test_zeros(&t.be, DTYPE_F32, shape4(1, 1, HEADS * HEAD_SIZE, WIDTH))};
    probes_begin(&t.set, 1, 0);
    toy_fill(&t, t.gpt.params.grad, 1);
    probes_backward(&t.set);
    op_scale(&t.be, t.gpt.params.grad, 2);
    probes_backward(&t.set);
    probes_gradient(&t.set, NULL, &numbers);
    tell(&t, UPDATE_COMES, e);
    e.momentum = random_run(&t, route.kind, 1, SPLIT_WHOLE, 8);
    tell(&t, UPDATE_APPLIED, e);
    cJSON *line = toy_end(&t);
    const cJSON *row = rows_of(line, "momentum")->child;
    assert_true(number_of(row, "variance") >= 0 && number_of(row, "noise") < 1e-6);
    assert_true(isnan(element_of(row, "drift", 0)) && isnan(element_of(row, "drift", 1)));
    cJSON_Delete(line);

    e.momentum = tensor_none();
    toy_begin(&t, 2);
    tell(&t, UPDATE_COMES, e);
    tell(&t, UPDATE_APPLIED, e);
    line = toy_end(&t);
    assert_int_equal(cJSON_GetArraySize(rows_of(line, "momentum")), 0);
    cJSON_Delete(line);
    toy_close(&t);
}

/* ---- the optimizer's own events --------------------------------------------------------------------------------- */

/* A copy of one layer's momentum as the optimizer has it now. */
static Tensor momentum_now(Toy *t, const char *name) {
    NamedTensor all[64];
    const int64_t count = optimizer_state(&t->optimizer, NULL);
    assert_true(count <= 64);
    optimizer_state(&t->optimizer, all);
    for (int64_t i = 0; i < count; i++) {
        const Tensor state = all[i].tensor;
        if (strcmp(all[i].name, name) != 0) continue;
        Tensor copy = test_zeros(&t->be, DTYPE_F32, shape2(state.shape[0], state.shape[1]));
        op_copy(&t->be, copy, state);
        return copy;
    }
    fail_msg("there is no state %s", name);
    return tensor_none();
}

/* Every second step is measured; the first has no momentum before it. */
static void an_optimizers_steps_are_measured(void **state) {
    (void)state;
    Toy t;
    toy_open(&t, "cpu",
             (char *[]){"probe.blocks=[\"q\"]", "probe.collision_top=3", "optimizer.lr=0.01", "probe.collision_every=2",
                        "probe.momentum_every=2", NULL});
    const int kind = kind_of(&t, "q");
    for (int64_t step = 2; step <= 5; step++) { /* 2 and 4 are due */
        const StepNumbers numbers = toy_numbers(step);
        const MicroBatches batches = {2, 50 * (uint64_t)step};
        Tensor before[LAYERS];
        Svd *w[LAYERS];
        char name[LAYERS][32];
        for (int64_t layer = 0; layer < LAYERS; layer++) {
            snprintf(name[layer], sizeof name[layer], "layers.%d.q.momentum", (int)layer);
            before[layer] = momentum_now(&t, name[layer]);
            w[layer] = decompose(&t, kind, params_block(&t.gpt.params, t.gpt.params.master, kind, layer));
        }
        probes_begin(&t.set, step, 0);
        add_micro_batches(&t, batches);
        probes_gradient(&t.set, NULL, &numbers);
        assert_true((probes_observer(&t.set) != NULL) == (step % 2 == 0));
        optimizer_step(&t.optimizer, &numbers, probes_observer(&t.set), &t.set);
        cJSON *line = toy_end(&t);
        assert_int_equal(cJSON_GetObjectItem(line, "momentum") != NULL, step % 2 == 0);
        for (int64_t layer = 0; layer < LAYERS; layer++) {
            Svd *after = decompose(&t, kind, params_block(&t.gpt.params, t.gpt.params.master, kind, layer));
            if (step == 4) {
                const cJSON *collision = cJSON_GetArrayItem(rows_of(line, "collision"), (int)layer);
                assert_block(&t, collision, kind, layer);
                for (int i = 0; i < TOP; i++) {
                    const double change = after->sigma[i] - w[layer]->sigma[i];
                    assert_near("sigma", element_of(collision, "sigma", i), w[layer]->sigma[i], 1e-12);
                    assert_near("realised", element_of(collision, "realised", i), change, 1e-11);
                }
                assert_aligned(collision, "align_step", align(w[layer], after));
                check_momentum(&t, cJSON_GetArrayItem(rows_of(line, "momentum"), (int)layer), kind, layer,
                               before[layer], momentum_now(&t, name[layer]), batches, (double)numbers.grad_scale);
            }
            free(after);
            free(w[layer]);
        }
        cJSON_Delete(line);
    }
    toy_close(&t);
}

/* ---- shadow ----------------------------------------------------------------------------------------------------- */

/* A shadow's updates of one step, as an optimizer of the test's own makes them. */
typedef struct {
    Toy *t;
    const cJSON *row; /* the next record */
    OptimizerKind optimizer;
} Shadowed;

static void check_shadow(void *context, const UpdateEvent *e) {
    Shadowed *s = context;
    Toy *t = s->t;
    const int kind = e->route->kind;
    const double step = e->lr * (double)e->route->scale, decay = 1 - e->keep;
    for (int64_t i = 0; i < e->route->layers; i++, s->row = s->row->next) {
        const cJSON *row = s->row;
        Svd *u = decompose(t, kind, whole_block(t, kind, e->update, i));
        Svd *w = decompose(t, kind, params_block(&t->gpt.params, t->gpt.params.master, kind, e->route->first + i));
        double sum = 0, entropy = 0;
        for (int64_t j = 0; j < u->r; j++) sum += u->sigma[j];
        for (int64_t j = 0; j < u->r; j++) entropy -= u->sigma[j] / sum * log(u->sigma[j] / sum);
        assert_block(t, row, kind, e->route->first + i);
        assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(row, "optimizer")), optimizer_name(s->optimizer));
        assert_near("effective rank", number_of(row, "effective_rank"), exp(entropy), 1e-6);
        assert_near("rms", number_of(row, "rms"), step * sqrt(squares(u) / (double)(u->n * u->m)), 1e-12);
        assert_near("collision", number_of(row, "collision"), relative_collision(w, u), 1e-9);
        assert_near("change", number_of(row, "sigma_change"), -step * form(w, u->a, 0) - decay * w->sigma[0], 1e-11);
        free(u);
        free(w);
    }
}

static void plan_shadow(Toy *t, Optimizer *shadow, const Optimizer *real, OptimizerKind kind, const char *const *names,
                        int count) {
    bool kinds[BLOCK_KIND_MAX] = {false};
    for (int i = 0; i < count; i++) kinds[kind_of(t, names[i])] = true;
    assert_ok(optimizer_plan_shadow(shadow, real, kind, kinds));
    assert_ok(optimizer_allocate(shadow));
}

/* In every second step; the states move on in each that is not refused. */
static void shadow_updates_are_measured(void **state) {
    (void)state;
    static const OptimizerKind kinds[] = {OPTIMIZER_ADAMW, OPTIMIZER_MUON}; /* in this order */
    static const int64_t chunks[] = {LAYERS, LAYERS, 1, 1};
    Optimizer expected[2];
    Toy t;
    open_toy(&t, "probe.shadow_every=2");
    for (int i = 0; i < 2; i++) plan_shadow(&t, &expected[i], &t.optimizer, kinds[i], watched, WATCHED);
    for (int64_t step = 1; step <= 4; step++) {
        StepNumbers numbers = toy_numbers(step);
        t.set.blocks->chunk = chunks[step - 1];
        toy_fill(&t, t.gpt.params.grad, 300 + (uint64_t)step);
        toy_fill(&t, t.gpt.params.master, 400 + (uint64_t)step);
        probes_begin(&t.set, step, 0); /* refused, and taken again */
        probes_gradient(&t.set, NULL, NULL);
        probes_end(&t.set);

        double *before = test_read(&t.be, t.gpt.params.master);
        numbers.update = step + 100; /* shadows count for themselves */
        probes_begin(&t.set, step, 0);
        probes_gradient(&t.set, NULL, &numbers);
        numbers.update = step;
        double *after = test_read(&t.be, t.gpt.params.master);
        assert_memory_equal(before, after, (size_t)t.gpt.params.elements * sizeof *before);
        cJSON *line = toy_end(&t);
        const bool due = step == 1 || step % 2 == 0;
        assert_int_equal(cJSON_GetObjectItem(line, "shadow") != NULL, due);
        Shadowed s = {.t = &t, .row = due ? rows_of(line, "shadow")->child : NULL};
        for (int i = 0; i < 2; i++) {
            s.optimizer = kinds[i];
            optimizer_step(&expected[i], &numbers, due ? check_shadow : NULL, &s);
        }
        assert_null(s.row);
        if (due) assert_int_equal(cJSON_GetArraySize(rows_of(line, "shadow")), 2 * WATCHED * LAYERS);
        cJSON_Delete(line);
    }
    for (int i = 0; i < 2; i++) optimizer_free(&expected[i]);
    toy_close(&t);
}

/* The updates of q and o that an observer is told of, whole blocks of all layers. */
typedef struct {
    Toy *t;
    double values[2][LAYERS * WIDTH * WIDTH];
    double lr[2], keep[2], scale[2];
    int events;
} Seen;

static void note(void *context, const UpdateEvent *e) {
    Seen *seen = context;
    const char *name = seen->t->gpt.params.kinds[e->route->kind].name;
    const int index = strcmp(name, "q") == 0 ? 0 : strcmp(name, "o") == 0 ? 1 : -1;
    if (index < 0 || e->moment != UPDATE_APPLIED) return;
    for (int64_t layer = 0; layer < e->route->layers; layer++) {
        double *whole = test_read(&seen->t->be, whole_block(seen->t, e->route->kind, e->update, layer));
        memcpy(seen->values[index] + (e->route->first + layer) * WIDTH * WIDTH, whole, WIDTH * WIDTH * sizeof *whole);
    }
    seen->lr[index] = e->lr;
    seen->keep[index] = e->keep;
    seen->scale[index] = (double)e->route->scale;
    seen->events++;
}

static void compare_with_real(Toy *t, OptimizerKind kind) {
    static const char *const names[] = {"q", "o"};
    Optimizer real, shadow;
    Seen *expected = calloc(1, sizeof *expected), *got = calloc(1, sizeof *got);
    NamedTensor states[16];
    expected->t = got->t = t;
    t->config.optimizer.matrices = kind;
    assert_ok(optimizer_plan(&real, &t->gpt.params, &t->config.optimizer, &t->be));
    assert_ok(optimizer_allocate(&real));
    plan_shadow(t, &shadow, &real, kind, names, 2);
    assert_int_equal(shadow.route_count, 2);
    assert_true(optimizer_state(&shadow, NULL) <= 16);
    optimizer_state(&shadow, states);
    assert_string_equal(states[0].name, kind == OPTIMIZER_ADAMW ? "shadow.layers.0.q.m" : "shadow.layers.0.q.momentum");

    for (int64_t step = 1; step <= 4; step++) {
        const StepNumbers numbers = toy_numbers(step);
        UpdateObserver *observer = step % 2 == 0 ? note : NULL; /* in other steps it only keeps its state */
        toy_fill(t, t->gpt.params.grad, 300 + (uint64_t)step);
        double *before = test_read(&t->be, t->gpt.params.master);
        optimizer_step(&shadow, &numbers, observer, got);
        double *after = test_read(&t->be, t->gpt.params.master);
        assert_memory_equal(before, after, (size_t)t->gpt.params.elements * sizeof *before);
        optimizer_step(&real, &numbers, observer, expected);
        if (!observer) continue;
        for (int i = 0; i < 2; i++) {
            /* AdamW's is handed out by one more step with betas of 1: the same but for rounding */
            assert_close("update", got->values[i], expected->values[i], LAYERS * WIDTH * WIDTH,
                         (Tolerance){.relative = kind == OPTIMIZER_ADAMW ? 1e-6 : 0});
            assert_true(got->lr[i] == expected->lr[i] && got->keep[i] == expected->keep[i] &&
                        got->scale[i] == expected->scale[i]);
        }
    }
    assert_int_equal(got->events, expected->events);
    assert_true(got->events > 0);
    optimizer_free(&real);
    optimizer_free(&shadow);
    free(expected);
    free(got);
}

static void a_shadow_makes_the_updates_of_the_real_one_and_changes_no_weight(void **state) {
    (void)state;
    Toy t;
    open_toy(&t, "probe.collision_every=1");
    compare_with_real(&t, OPTIMIZER_MUON);
    compare_with_real(&t, OPTIMIZER_ADAMW);
    compare_with_real(&t, OPTIMIZER_NORMUON);
    toy_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(collisions_are_those_of_the_svd),
        cmocka_unit_test(a_collision_without_momentum_or_of_a_nan_is_told),
        cmocka_unit_test(blocks_that_are_not_watched_leave_no_record),
        cmocka_unit_test(forms_and_their_mean_square_are_those_of_the_svd),
        cmocka_unit_test(momentum_is_compared_with_the_gradient),
        cmocka_unit_test(equal_micro_batches_have_no_variance_and_an_empty_momentum_no_direction),
        cmocka_unit_test(an_optimizers_steps_are_measured),
        cmocka_unit_test(shadow_updates_are_measured),
        cmocka_unit_test(a_shadow_makes_the_updates_of_the_real_one_and_changes_no_weight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
