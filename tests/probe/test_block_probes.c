/* The probes of watched blocks (collision, momentum, shadow) and the shadow optimizers: every number against LAPACK's
 * SVD of the matrices, or loops over their elements.
 */
#include "tests/probe/toy_params.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"
#include "optim/optimizer.h"
#include "probe/collision.h"
#include "probe/momentum.h"
#include "probe/shadow.h"

enum { TOP = 3 };
enum { ELEMENTS_MAX = MLP * WIDTH };

typedef struct {
    Backend be;
    Config config;
    ParamTable params;
    Arena weights, gradients;
    WatchedBlocks *blocks;
} Fixture;

/* A grouped-query model's matrices: q and k lie within one of them, o has its heads in columns, up is tall. */
static void describe(ParamTable *t) {
    describe_embedding_and_attention(t);
    params_add_block(t, "up", ROLE_UP, params_add_matrix(t, "up", LAYERS, MLP, WIDTH), 0, MLP, 1, HEADS_IN_ROWS);
}

static void fill(Fixture *f, Tensor storage, uint64_t seed) {
    double *values = calloc((size_t)f->params.elements, sizeof *values);
    for (int64_t i = 0; i < f->params.elements; i++) values[i] = test_uniform(seed, i);
    test_write(&f->be, storage, values);
    free(values);
}

static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    char *options[] = {"probe.blocks=[\"q\",\"k\",\"o\",\"up\",\"gate\"]", "probe.collision_top=3", "optimizer.lr=0.01",
                       "optimizer.muon.per_head=[\"o\"]"};
    assert_ok(config_load(&f->config, NULL, sizeof options / sizeof options[0], options));
    test_open(&f->be, "cpu", "fp32");
    test_reserve(&f->be, (OpLimits){.width = 64});
    describe(&f->params);
    allocate_params(&f->params, &f->weights, &f->gradients, &f->be);
    fill(f, f->params.master, 7);
    assert_ok(blocks_create(&f->blocks, &f->params, &f->config.probe, &f->be));
    assert_int_equal(f->blocks->slots, 4 * LAYERS); /* the model has no gate */
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    blocks_free(f->blocks);
    arena_free(&f->weights);
    arena_free(&f->gradients);
    test_close(&f->be);
    free(f);
    return 0;
}

/* ---- the oracle ------------------------------------------------------------------------------------------------- */

/* A whole block of one layer, in double, and its singular value decomposition. */
typedef struct {
    int64_t n, m, r;
    double a[ELEMENTS_MAX], sigma[WIDTH], u[MLP * WIDTH], vt[WIDTH * WIDTH];
} Svd;

static Svd *decompose(Fixture *f, int kind, Tensor block) {
    Svd *s = calloc(1, sizeof *s);
    double copy[ELEMENTS_MAX], superdiagonal[WIDTH];
    double *values = test_read(&f->be, block);
    s->n = f->params.kinds[kind].rows;
    s->m = f->params.params[f->params.kinds[kind].param].columns;
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

static void assert_near(const char *what, double got, double expected, double tolerance) {
    assert_close(what, &got, &expected, 1, (Tolerance){.absolute = tolerance});
}

static void assert_aligned(const char *what, Alignment got, Alignment expected) {
    assert_near(what, got.left, expected.left, 1e-9);
    assert_near(what, got.right, expected.right, 1e-9);
}

/* ---- runs ------------------------------------------------------------------------------------------------------- */

/* A run of the optimizer's own, contiguous as it keeps them, and whole blocks of it. */
typedef struct {
    Tensor run;
    BlockSplit split;
} Run;

static Run random_run(Fixture *f, int kind, int64_t layers, BlockSplit split, uint64_t seed) {
    Tensor like = params_block_run(&f->params, f->params.master, kind, 0, layers, split);
    return (Run){
        .run = test_random(&f->be, DTYPE_F32, shape4(like.shape[0], like.shape[1], like.shape[2], like.shape[3]), seed),
        .split = split};
}

/* One layer of a run as (rows, columns): heads are put one below the other, or side by side. */
static Tensor whole_block(Fixture *f, int kind, Run run, int64_t layer) {
    const BlockKind *block = &f->params.kinds[kind];
    const int64_t columns = f->params.params[block->param].columns;
    Tensor whole = test_zeros(&f->be, DTYPE_F32, shape2(block->rows, columns)), part = tensor_index(run.run, layer);
    Tensor target = tensor_as_3d(whole, part.shape[0], part.shape[1], part.shape[2]);
    if (block->head_axis == HEADS_IN_COLUMNS) target.stride[0] = part.shape[2], target.stride[1] = columns;
    op_copy(&f->be, target, part);
    return whole;
}

static Tensor master_run(Fixture *f, int kind, int64_t first, int64_t layers, BlockSplit split) {
    return params_block_run(&f->params, f->params.master, kind, first, layers, split);
}

/* ---- collision -------------------------------------------------------------------------------------------------- */

enum { FIRST = 1, COUNT = 2 }; /* the layers of a run */
static const double STEP = 1e-3, DECAY = 2e-4;

static void check_collision(Fixture *f, const CollisionRecord *r, int kind, Svd *const *before, Run update,
                            Run momentum) {
    const int64_t layer = r->layer - FIRST;
    const Svd *w = before[layer];
    Svd *u = decompose(f, kind, whole_block(f, kind, update, layer));
    Svd *m = decompose(f, kind, whole_block(f, kind, momentum, layer));
    Svd *after = decompose(f, kind, params_block(&f->params, f->params.master, kind, r->layer));
    double mean_square = 0;
    assert_int_equal(r->kind, kind);
    assert_int_equal(r->count, TOP);
    for (int i = 0; i < TOP; i++) {
        const double c = form(w, u->a, i), predicted = -STEP * c - DECAY * w->sigma[i];
        mean_square += c * c / TOP;
        assert_near("c", r->c[i], c, 1e-9);
        assert_near("sigma", r->sigma[i], w->sigma[i], 1e-12);
        assert_near("predicted", r->predicted[i], predicted, 1e-11);
        assert_near("realised", r->realised[i], after->sigma[i] - w->sigma[i], 1e-11);
        assert_near("to first order", r->realised[i], predicted, 3e-4); /* steps of 1e-3 |U|, gaps of .1 */
    }
    assert_near("relative", r->relative, mean_square / (squares(u) / (double)(u->n * u->m)), 1e-9);
    assert_aligned("with the update", r->with_update, align(w, u));
    assert_aligned("with the momentum", r->with_momentum, align(w, m));
    assert_aligned("over the step", r->with_step, align(w, after));
    free(u);
    free(m);
    free(after);
}

static void collide(Fixture *f, CollisionProbe *p, const char *name, BlockSplit split) {
    const int kind = params_find_kind(&f->params, name);
    Run update = random_run(f, kind, COUNT, split, 100), momentum = random_run(f, kind, COUNT, split, 200);
    Tensor weights = master_run(f, kind, FIRST, COUNT, split);
    Svd *before[COUNT];
    for (int64_t layer = 0; layer < COUNT; layer++)
        before[layer] = decompose(f, kind, params_block(&f->params, f->params.master, kind, FIRST + layer));

    blocks_begin(f->blocks);
    collision_begin(p);
    blocks_keep_weights(f->blocks, kind, FIRST, weights);
    op_apply_update(&f->be, weights, tensor_none(), update.run,
                    (UpdateStep){.keep = (float)(1 - DECAY), .step = (float)STEP});
    blocks_keep_weights(f->blocks, kind, FIRST, weights); /* known: the old ones stay */
    collision_measure(p, &(CollisionStep){.kind = kind,
                                          .first_layer = FIRST,
                                          .weights = weights,
                                          .momentum = momentum.run,
                                          .update = update.run,
                                          .step = STEP,
                                          .decay = DECAY});
    assert_int_equal(p->record_count, COUNT);
    for (int64_t layer = 0; layer < COUNT; layer++) {
        assert_int_equal(p->records[layer].layer, FIRST + layer);
        check_collision(f, &p->records[layer], kind, before, update, momentum);
        free(before[layer]);
    }
}

static void collisions_are_those_of_the_svd(void **state) {
    Fixture *f = *state;
    static const struct {
        const char *name;
        BlockSplit split;
    } cases[] = {
        {"q", SPLIT_WHOLE}, {"q", SPLIT_PER_HEAD}, {"k", SPLIT_WHOLE}, {"o", SPLIT_PER_HEAD}, {"up", SPLIT_WHOLE}};
    for (int64_t chunk = f->blocks->chunk; chunk >= 1; chunk -= chunk - 1 > 0 ? chunk - 1 : 1) {
        CollisionProbe p;
        f->blocks->chunk = chunk; /* all layers at a time, then one */
        assert_ok(collision_create(&p, f->blocks));
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) collide(f, &p, cases[i].name, cases[i].split);
        assert_true(collision_bytes(&p) > 0);
        collision_free(&p);
    }
}

static void a_collision_without_momentum_or_of_a_nan_is_told(void **state) {
    Fixture *f = *state;
    CollisionProbe p;
    const int kind = params_find_kind(&f->params, "q");
    Run update = random_run(f, kind, COUNT, SPLIT_WHOLE, 3);
    CollisionStep step = {.kind = kind,
                          .weights = master_run(f, kind, 0, COUNT, SPLIT_WHOLE),
                          .momentum = tensor_none(),
                          .update = update.run,
                          .step = STEP};
    test_set(&f->be, update.run, 5, (double)NAN);
    assert_ok(collision_create(&p, f->blocks));
    blocks_begin(f->blocks);
    blocks_keep_weights(f->blocks, kind, 0, step.weights);
    collision_measure(&p, &step);
    assert_true(isnan(p.records[0].c[0]) && isnan(p.records[0].relative) && isnan(p.records[0].with_update.left));
    assert_true(isfinite(p.records[0].sigma[0]) && p.records[0].realised[0] == 0);
    assert_true(isnan(p.records[1].with_momentum.left) && isfinite(p.records[1].with_update.right));
    test_fill(&f->be, update.run, 0); /* no update meets nothing, but not by chance */
    collision_begin(&p);
    collision_measure(&p, &step);
    assert_true(p.records[1].c[0] == 0 && isnan(p.records[1].relative));
    collision_free(&p);
}

/* ---- momentum --------------------------------------------------------------------------------------------------- */

/* Shares of n micro-batches one after the other into the gradients, which end as their sum G. */
static void add_micro_batches(Fixture *f, MomentumProbe *p, int n) {
    Tensor share = test_zeros(&f->be, DTYPE_F32, shape1(f->params.elements));
    for (int i = 0; i < n; i++) {
        fill(f, share, 40 + (uint64_t)i);
        if (i == 0)
            op_copy(&f->be, f->params.grad, share);
        else
            op_apply_update(&f->be, f->params.grad, tensor_none(), share, (UpdateStep){.keep = 1, .step = -1});
        momentum_add_micro_batch(p);
    }
}

/* sum |g_i - G|² / (n-1) of a block, with g_i = n times the i-th share. */
static double expected_variance(Fixture *f, int kind, int64_t layer, int n) {
    Tensor share = test_zeros(&f->be, DTYPE_F32, shape1(f->params.elements));
    double *G = test_read(&f->be, params_block(&f->params, f->params.grad, kind, layer)), sum = 0;
    for (int i = 0; i < n; i++) {
        fill(f, share, 40 + (uint64_t)i);
        Tensor block = params_block(&f->params, share, kind, layer);
        double *g = test_read(&f->be, block);
        for (int64_t j = 0; j < tensor_numel(block); j++) sum += (n * g[j] - G[j]) * (n * g[j] - G[j]);
    }
    return sum / (n - 1);
}

static void check_momentum(Fixture *f, const MomentumRecord *r, int kind, Run before, Run after, int n,
                           double grad_scale) {
    Svd *m = decompose(f, kind, whole_block(f, kind, after, r->layer));
    Svd *old = decompose(f, kind, whole_block(f, kind, before, r->layer));
    Svd *g = decompose(f, kind, params_block(&f->params, f->params.grad, kind, r->layer));
    double product = 0;
    for (int64_t i = 0; i < m->n * m->m; i++) product += m->a[i] * g->a[i];
    assert_near("cosine", r->cosine, product / sqrt(squares(m) * squares(g)), 1e-12);
    assert_near("ratio", r->ratio, sqrt(squares(m) / squares(g)) / grad_scale, 1e-12);
    assert_aligned("drift", r->drift, align(m, old));
    assert_aligned("with the gradient", r->with_gradient, align(m, g));
    if (n == 1) {
        assert_true(isnan(r->variance) && isnan(r->noise));
    } else {
        double variance = expected_variance(f, kind, r->layer, n);
        assert_near("variance", r->variance, variance * grad_scale * grad_scale, 3e-6 * variance); /* fp32 sums */
        assert_near("noise", r->noise, variance / squares(g), 3e-6 * variance / squares(g));
    }
    free(m);
    free(old);
    free(g);
}

static void momentum_is_compared_with_the_gradient(void **state) {
    Fixture *f = *state;
    static const char *const names[] = {"q", "k", "o", "up"};
    MomentumProbe p;
    assert_ok(momentum_create(&p, f->blocks));
    for (int n = 1; n <= 3; n++) { /* steps one after the other: nothing may be left of the last one */
        momentum_begin(&p);
        add_micro_batches(f, &p, n);
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
            const int kind = params_find_kind(&f->params, names[i]);
            BlockSplit split = i == 2 ? SPLIT_PER_HEAD : SPLIT_WHOLE;
            Run before = random_run(f, kind, LAYERS, split, 8), after = random_run(f, kind, LAYERS, split, 9);
            momentum_keep(&p, kind, 0, before.run);
            momentum_measure(
                &p, &(MomentumState){.kind = kind,
                                     .momentum = after.run,
                                     .gradient = params_block_run(&f->params, f->params.grad, kind, 0, LAYERS, split),
                                     .grad_scale = 0.25});
            assert_int_equal(p.record_count, (int64_t)(i + 1) * LAYERS);
            for (int64_t layer = 0; layer < LAYERS; layer++)
                check_momentum(f, &p.records[(int64_t)i * LAYERS + layer], kind, before, after, n, 0.25);
        }
    }
    momentum_free(&p);
}

static void equal_micro_batches_have_no_variance_and_an_empty_momentum_no_direction(void **state) {
    Fixture *f = *state;
    MomentumProbe p;
    const int kind = params_find_kind(&f->params, "q");
    Tensor gradient = params_block_run(&f->params, f->params.grad, kind, 0, 1, SPLIT_WHOLE);
    Run momentum = random_run(f, kind, 1, SPLIT_WHOLE, 8), zero = momentum;
    zero.run = test_zeros(&f->be, DTYPE_F32, shape4(1, 1, HEADS * HEAD_SIZE, WIDTH));
    assert_ok(momentum_create(&p, f->blocks));
    momentum_begin(&p);
    fill(f, f->params.grad, 1);
    momentum_add_micro_batch(&p);
    op_scale(&f->be, f->params.grad, 2);
    momentum_add_micro_batch(&p);
    momentum_keep(&p, kind, 0, zero.run);
    momentum_measure(&p,
                     &(MomentumState){.kind = kind, .momentum = momentum.run, .gradient = gradient, .grad_scale = 1});
    assert_true(p.records[0].variance >= 0 && p.records[0].noise < 1e-6);
    assert_true(isnan(p.records[0].drift.left) && isnan(p.records[0].drift.right));
    momentum_begin(&p);
    momentum_measure(&p, &(MomentumState){.kind = kind, .momentum = tensor_none(), .gradient = gradient});
    assert_int_equal(p.record_count, 0);
    momentum_free(&p);
}

/* ---- shadow ----------------------------------------------------------------------------------------------------- */

static void shadow_updates_are_measured(void **state) {
    Fixture *f = *state;
    ShadowProbe p;
    const int kind = params_find_kind(&f->params, "up");
    Tensor weights = master_run(f, kind, FIRST, COUNT, SPLIT_WHOLE);
    assert_ok(shadow_create(&p, f->blocks, 2));
    blocks_begin(f->blocks);
    shadow_begin(&p);
    blocks_keep_weights(f->blocks, kind, FIRST, weights);
    for (int tag = 0; tag < 2; tag++) {
        Run update = random_run(f, kind, COUNT, SPLIT_WHOLE, 60 + (uint64_t)tag);
        shadow_measure(
            &p,
            &(ShadowUpdate){
                .kind = kind, .tag = tag, .first_layer = FIRST, .update = update.run, .step = STEP, .decay = DECAY});
        for (int64_t layer = 0; layer < COUNT; layer++) {
            const ShadowRecord *r = &p.records[tag * COUNT + layer];
            Svd *u = decompose(f, kind, whole_block(f, kind, update, layer));
            Svd *w = decompose(f, kind, tensor_index(tensor_index(weights, layer), 0));
            double sum = 0, entropy = 0, mean_square = 0, elements = (double)(u->n * u->m);
            for (int64_t i = 0; i < u->r; i++) sum += u->sigma[i];
            for (int64_t i = 0; i < u->r; i++) entropy -= u->sigma[i] / sum * log(u->sigma[i] / sum);
            for (int i = 0; i < TOP; i++) mean_square += form(w, u->a, i) * form(w, u->a, i) / TOP;
            assert_true(r->kind == kind && r->tag == tag && r->layer == FIRST + layer);
            assert_near("effective rank", r->effective_rank, exp(entropy), 1e-6);
            assert_near("rms", r->rms, STEP * sqrt(squares(u) / elements), 1e-12);
            assert_near("collision", r->collision, mean_square / (squares(u) / elements), 1e-9);
            assert_near("change", r->sigma_change, -STEP * form(w, u->a, 0) - DECAY * w->sigma[0], 1e-11);
            free(u);
            free(w);
        }
    }
    assert_int_equal(p.record_count, 2 * COUNT);
    shadow_free(&p);
}

/* The updates of q and o that an observer is told of, whole blocks of all layers. */
typedef struct {
    Fixture *f;
    double values[2][LAYERS * WIDTH * WIDTH];
    double lr[2], keep[2], scale[2];
    int events;
} Seen;

static void note(void *context, const UpdateEvent *e) {
    Seen *seen = context;
    const char *name = seen->f->params.kinds[e->route->kind].name;
    const int index = strcmp(name, "q") == 0 ? 0 : strcmp(name, "o") == 0 ? 1 : -1;
    if (index < 0 || e->moment != UPDATE_APPLIED) return;
    for (int64_t layer = 0; layer < e->route->layers; layer++) {
        Run run = {.run = e->update, .split = e->route->split};
        double *whole = test_read(&seen->f->be, whole_block(seen->f, e->route->kind, run, layer));
        memcpy(seen->values[index] + (e->route->first + layer) * WIDTH * WIDTH, whole, WIDTH * WIDTH * sizeof *whole);
    }
    seen->lr[index] = e->lr;
    seen->keep[index] = e->keep;
    seen->scale[index] = (double)e->route->scale;
    seen->events++;
}

static void compare_with_real(Fixture *f, OptimizerKind kind) {
    Optimizer real, shadow;
    Seen *expected = calloc(1, sizeof *expected), *got = calloc(1, sizeof *got);
    bool kinds[BLOCK_KIND_MAX] = {false};
    char name[96];
    expected->f = got->f = f;
    kinds[params_find_kind(&f->params, "q")] = kinds[params_find_kind(&f->params, "o")] = true;
    f->config.optimizer.matrices = kind;
    assert_ok(optimizer_plan(&real, &f->params, &f->config.optimizer, &f->be));
    assert_ok(optimizer_plan_shadow(&shadow, &real, kind, kinds));
    assert_ok(optimizer_allocate(&real));
    assert_ok(optimizer_allocate(&shadow));
    assert_int_equal(shadow.route_count, 2);
    optimizer_state_tensor(&shadow, 0, name, sizeof name);
    assert_string_equal(name, kind == OPTIMIZER_ADAMW ? "shadow.layers.0.q.m" : "shadow.layers.0.q.momentum");

    for (int64_t step = 1; step <= 4; step++) {
        const StepNumbers numbers = {.update = step, .step = step, .steps = 10, .lr = 0.01, .grad_scale = 0.5f};
        UpdateObserver *observer = step % 2 == 0 ? note : NULL; /* in other steps it only keeps its state */
        fill(f, f->params.grad, 300 + (uint64_t)step);
        double *before = test_read(&f->be, f->params.master);
        optimizer_step(&shadow, &numbers, observer, got);
        double *after = test_read(&f->be, f->params.master);
        assert_memory_equal(before, after, (size_t)f->params.elements * sizeof *before);
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
    compare_with_real(*state, OPTIMIZER_MUON);
    compare_with_real(*state, OPTIMIZER_ADAMW);
    compare_with_real(*state, OPTIMIZER_NORMUON);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(collisions_are_those_of_the_svd),
        CASE(a_collision_without_momentum_or_of_a_nan_is_told),
        CASE(momentum_is_compared_with_the_gradient),
        CASE(equal_micro_batches_have_no_variance_and_an_empty_momentum_no_direction),
        CASE(shadow_updates_are_measured),
        CASE(a_shadow_makes_the_updates_of_the_real_one_and_changes_no_weight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
