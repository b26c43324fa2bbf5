/* Routing, steps and state of the optimizer on a toy model that has every kind of block; values from PyTorch. */
#include "tests/tensors.h"

#include <math.h>
#include <stdlib.h>

#include "device/device.h"
#include "ops/ops.h"
#include "optim/optimizer.h"
#include "tests/golden/optim.h"

/* ---- a toy model ------------------------------------------------------------------------------------------------ */

enum { LAYERS = 3, H = 2, D = 3, C = 6, F = 10, V = 11 };

typedef struct {
    Backend be;
    ParamTable params;
    Arena weights, gradients;
    OptimizerConfig config;
    Optimizer opt;
} Toy;

static void describe_toy(ParamTable *p) {
    int wte = params_add(p, "wte", 0, V, C);
    params_add_block(p, "embed", ROLE_EMBED, wte, 0, V, 1, HEADS_IN_ROWS);
    int norm = params_add(p, "norm1", LAYERS, C, 0);
    params_add_block(p, "norm1", ROLE_NORM, norm, 0, C, 1, HEADS_IN_ROWS);
    int qkv = params_add(p, "qkv", LAYERS, 3 * H * D, C);
    params_add_block(p, "q", ROLE_Q, qkv, 0, H * D, H, HEADS_IN_ROWS);
    params_add_block(p, "k", ROLE_K, qkv, H * D, H * D, H, HEADS_IN_ROWS);
    params_add_block(p, "v", ROLE_V, qkv, 2 * H * D, H * D, H, HEADS_IN_ROWS);
    int bias = params_add(p, "qkv_bias", LAYERS, 3 * H * D, 0);
    params_add_block(p, "qkv_bias", ROLE_BIAS, bias, 0, 3 * H * D, 1, HEADS_IN_ROWS);
    int out = params_add(p, "out", LAYERS, C, H * D);
    params_add_block(p, "o", ROLE_O, out, 0, C, H, HEADS_IN_COLUMNS);
    int up = params_add(p, "up", LAYERS, F, C);
    params_add_block(p, "up", ROLE_UP, up, 0, F, 1, HEADS_IN_ROWS);
    int down = params_add(p, "down", LAYERS, C, F);
    params_add_block(p, "down", ROLE_DOWN, down, 0, C, 1, HEADS_IN_ROWS);
    int normf = params_add(p, "normf", 0, C, 0);
    params_add_block(p, "normf", ROLE_NORM, normf, 0, C, 1, HEADS_IN_ROWS);
}

static OptimizerConfig default_config(void) {
    OptimizerConfig config = {.matrices = OPTIMIZER_MUON, .lr = .02, .weight_decay = .1};
    config.muon = (MuonConfig){.momentum = .95, .nesterov = true, .iterations = 5, .scale = SCALE_RMS, .rms = .2};
    snprintf(config.muon.coefficients.set, NAME_SIZE, "muon");
    config.adamw = (AdamwConfig){.beta1 = .9, .beta2 = .95, .eps = 1e-8};
    config.normuon = (AdaptConfig){.beta2 = .95, .eps = 1e-10};
    config.adamuon = (AdaptConfig){.beta2 = .95, .eps = 1e-8};
    config.lion = (LionConfig){.beta1 = .9, .beta2 = .99};
    return config;
}

static void split_heads_of(OptimizerConfig *config, int count, const char *const *names) {
    config->muon.per_head_count = count;
    for (int i = 0; i < count; i++) snprintf(config->muon.per_head[i], NAME_SIZE, "%s", names[i]);
}

static void override(OptimizerConfig *config, const char *pattern, OptimizerKind optimizer) {
    RouteOverride *row = &config->overrides[config->override_count++];
    row->optimizer = optimizer;
    snprintf(row->pattern, NAME_SIZE, "%s", pattern);
}

/* Random weights and gradients; padding stays zero. */
static void randomize(Toy *toy, Tensor storage, uint64_t seed) {
    ParamTable *p = &toy->params;
    for (int kind = 0; kind < p->kind_count; kind++) {
        Tensor run = params_block_run(p, storage, kind, 0, p->kinds[kind].layers, SPLIT_WHOLE);
        for (int64_t i = 0; i < tensor_numel(run); i++)
            test_set(&toy->be, run, i, test_uniform(seed + 1000 * (uint64_t)kind, i));
    }
}

/* Memory for params that are described already, then the optimizer. */
static void open_described(Toy *toy, const char *device, const char *precision, const OptimizerConfig *config) {
    toy->weights = arena_measure("weights"), toy->gradients = arena_measure("gradients");
    toy->config = *config;
    test_open(&toy->be, device, precision);
    test_reserve(&toy->be, (OpLimits){.width = 64});
    params_layout(&toy->params, &toy->weights, &toy->gradients, toy->be.compute_dtype);
    assert_ok(optimizer_plan(&toy->opt, &toy->params, config, &toy->be));
    assert_ok(arena_allocate(&toy->weights, &toy->be));
    assert_ok(arena_allocate(&toy->gradients, &toy->be));
    params_layout(&toy->params, &toy->weights, &toy->gradients, toy->be.compute_dtype);
    assert_ok(optimizer_allocate(&toy->opt));
}

static void open_toy(Toy *toy, const char *precision, const OptimizerConfig *config) {
    *toy = (Toy){0};
    describe_toy(&toy->params);
    open_described(toy, "ref", precision, config);
    randomize(toy, toy->params.master, 1);
    randomize(toy, toy->params.grad, 2);
    params_refresh_work(&toy->be, &toy->params);
}

static void close_toy(Toy *toy) {
    optimizer_free(&toy->opt);
    arena_free(&toy->weights);
    arena_free(&toy->gradients);
    test_close(&toy->be);
}

/* Of GOLDEN_STEPS, where a schedule asks. */
static StepNumbers numbers_of(const Toy *toy, int64_t number) {
    return (StepNumbers){
        .update = number, .step = number, .steps = GOLDEN_STEPS, .lr = toy->config.lr, .grad_scale = 1};
}

static void step(Toy *toy, int64_t number) {
    const StepNumbers numbers = numbers_of(toy, number);
    optimizer_step(&toy->opt, &numbers, NULL, NULL);
}

static const Route *find_route(const Toy *toy, const char *kind, int64_t layer) {
    for (int i = 0; i < toy->opt.route_count; i++) {
        const Route *r = &toy->opt.routes[i];
        bool inside = r->first <= layer && layer < r->first + r->layers;
        if (inside && strcmp(toy->params.kinds[r->kind].name, kind) == 0) return r;
    }
    fail_msg("no route for %s in layer %lld", kind, (long long)layer);
    return NULL;
}

static Tensor weights_of(Toy *toy, Tensor storage, const char *kind) {
    int index = params_find_kind(&toy->params, kind);
    return params_block_run(&toy->params, storage, index, 0, toy->params.kinds[index].layers, SPLIT_WHOLE);
}

static Tensor weights_of_route(const Toy *toy, const Route *r) {
    return params_block_run(&toy->params, toy->params.master, r->kind, r->first, r->layers, r->split);
}

/* ---- routing ---------------------------------------------------------------------------------------------------- */

static void check_cover(const OptimizerConfig *config) {
    Toy toy;
    open_toy(&toy, "fp32", config);
    double *covered = calloc((size_t)toy.params.elements, sizeof *covered);
    for (int i = 0; i < toy.opt.route_count; i++) {
        const Route *r = &toy.opt.routes[i];
        op_fill(&toy.be, toy.params.grad, 0);
        op_fill(&toy.be, params_block_run(&toy.params, toy.params.grad, r->kind, r->first, r->layers, r->split), 1);
        for (int64_t k = 0; k < toy.params.elements; k++) covered[k] += test_get(&toy.be, toy.params.grad, k);
    }
    int64_t ones = 0;
    for (int64_t k = 0; k < toy.params.elements; k++) {
        assert_true(covered[k] == 0 || covered[k] == 1);
        ones += covered[k] == 1;
    }
    assert_int_equal(ones, toy.params.count); /* and so the rest is padding */
    free(covered);
    close_toy(&toy);
}

static void routes_cover_every_element_exactly_once(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    check_cover(&config);
    split_heads_of(&config, 4, (const char *const[]){"q", "k", "v", "o"});
    override(&config, "layers.1.*", OPTIMIZER_ADAMW);
    override(&config, "embed", OPTIMIZER_MUON);
    check_cover(&config);
}

/* Columns of each tensor of the state, 0: as many as the matrix has. */
static void check_state(const Toy *toy, const Route *r) {
    static const struct {
        OptimizerKind optimizer;
        int count, columns[2];
    } rows[] = {{OPTIMIZER_MUON, 1, {0}},       {OPTIMIZER_SGD, 1, {0}},        {OPTIMIZER_LION, 1, {0}},
                {OPTIMIZER_NORMUON, 2, {0, 1}}, {OPTIMIZER_ADAMUON, 2, {0, 0}}, {OPTIMIZER_ADAMW, 2, {0, 0}}};
    const Tensor matrices = weights_of_route(toy, r);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (int k = 0; k < STATE_MAX && r->optimizer == rows[i].optimizer; k++) {
            assert_true(tensor_present(r->state[k]) == (k < rows[i].count));
            if (k >= rows[i].count) continue;
            for (int dim = 0; dim < 3; dim++) assert_int_equal(r->state[k].shape[dim], matrices.shape[dim]);
            assert_int_equal(r->state[k].shape[3], rows[i].columns[k] ? rows[i].columns[k] : matrices.shape[3]);
        }
}

static void hidden_matrices_go_to_the_chosen_optimizer_and_the_rest_to_adamw(void **state) {
    (void)state;
    for (int matrices = 0; matrices < OPTIMIZER_COUNT; matrices++) {
        OptimizerConfig config = default_config();
        config.matrices = (OptimizerKind)matrices;
        Toy toy;
        open_toy(&toy, "fp32", &config);
        assert_int_equal(toy.opt.route_count, toy.params.kind_count);
        for (int i = 0; i < toy.opt.route_count; i++) {
            const Route *r = &toy.opt.routes[i];
            const BlockKind *kind = &toy.params.kinds[r->kind];
            bool vector = kind->role == ROLE_NORM || kind->role == ROLE_BIAS;
            assert_int_equal(r->optimizer, params_is_hidden_matrix(kind) ? config.matrices : OPTIMIZER_ADAMW);
            assert_true(r->decay == (vector ? 0.0f : .1f));
            assert_int_equal(r->split, SPLIT_WHOLE);
            check_state(&toy, r);
        }
        close_toy(&toy);
    }
}

static void the_last_override_that_matches_wins_and_splits_the_run(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    override(&config, "layers.*.q", OPTIMIZER_ADAMW);
    override(&config, "layers.[12].*", OPTIMIZER_ADAMW);
    override(&config, "layers.2.[qkvo]", OPTIMIZER_MUON);
    Toy toy;
    open_toy(&toy, "fp32", &config);
    static const OptimizerKind q[] = {OPTIMIZER_ADAMW, OPTIMIZER_ADAMW, OPTIMIZER_MUON};
    static const OptimizerKind up[] = {OPTIMIZER_MUON, OPTIMIZER_ADAMW, OPTIMIZER_ADAMW};
    for (int layer = 0; layer < LAYERS; layer++) {
        assert_int_equal(find_route(&toy, "q", layer)->optimizer, q[layer]);
        assert_int_equal(find_route(&toy, "up", layer)->optimizer, up[layer]);
    }
    assert_int_equal(find_route(&toy, "q", 0)->layers, 2);
    assert_int_equal(find_route(&toy, "up", 1)->first, 1);
    close_toy(&toy);
}

static void assert_refused(const OptimizerConfig *config, const char *part) {
    Backend be;
    test_open(&be, "ref", "fp32");
    ParamTable params = {0};
    Optimizer opt;
    describe_toy(&params);
    assert_fails(optimizer_plan(&opt, &params, config, &be), STATUS_BAD_INPUT, part);
    test_close(&be);
}

static void options_that_do_not_fit_the_model_are_refused_by_name(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    override(&config, "layers.3.q", OPTIMIZER_ADAMW);
    assert_refused(&config, "optimizer.overrides.layers.3.q");
    assert_refused(&config, "embed, layers.*.norm1, layers.*.q, layers.*.k");

    config = default_config();
    override(&config, "layers.0.*", OPTIMIZER_MUON);
    assert_refused(&config, "optimizer.overrides.layers.0.* sends norm1 to muon");

    config = default_config();
    override(&config, "layers.*.qkv_bias", OPTIMIZER_NORMUON);
    assert_refused(&config, "sends qkv_bias to normuon, which takes matrices only");
    config.overrides[0].optimizer = OPTIMIZER_ADAMUON;
    assert_refused(&config, "sends qkv_bias to adamuon");

    config = default_config();
    split_heads_of(&config, 1, (const char *const[]){"up"});
    assert_refused(&config, "optimizer.muon.per_head: \"up\"");

    config = default_config();
    snprintf(config.muon.coefficients.set, NAME_SIZE, "none");
    assert_refused(&config, "optimizer.muon.coefficients");

    config = default_config();
    config.lr = 0, config.adamw.lr = .1;
    assert_refused(&config, "optimizer.adamw.lr");
}

static void any_block_may_go_to_sgd_lion_or_adamw(void **state) {
    (void)state;
    static const OptimizerKind kinds[] = {OPTIMIZER_SGD, OPTIMIZER_LION, OPTIMIZER_ADAMW};
    for (int k = 0; k < 3; k++) {
        OptimizerConfig config = default_config();
        override(&config, "*", kinds[k]);
        Toy toy;
        open_toy(&toy, "bf16", &config);
        double *before = test_read(&toy.be, toy.params.master);
        step(&toy, 1);
        double *master = test_read(&toy.be, toy.params.master), *work = test_read(&toy.be, toy.params.work);
        int64_t moved = 0;
        for (int64_t i = 0; i < toy.params.elements; i++) {
            assert_true(work[i] == (double)bf16_to_f32(bf16_from_f32((float)master[i])));
            moved += master[i] != before[i];
        }
        assert_int_equal(moved, toy.params.count);
        for (int i = 0; i < toy.opt.route_count; i++) assert_int_equal(toy.opt.routes[i].optimizer, kinds[k]);
        close_toy(&toy);
    }
}

static void scales_follow_rows_and_columns_of_what_is_orthogonalized(void **state) {
    (void)state;
    /* up is (10,6); a head of q is (3,6), one of o (6,3) */
    static const struct {
        UpdateScale scale;
        double up, q, o;
    } rows[] = {{SCALE_RMS, .63245553, .48989795, .48989795},
                {SCALE_ORIGINAL, 1.29099445, 1, 1.41421356},
                {SCALE_SPECTRAL, 1.29099445, .70710678, 1.41421356},
                {SCALE_NONE, 1, 1, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OptimizerConfig config = default_config();
        config.muon.scale = rows[i].scale;
        split_heads_of(&config, 2, (const char *const[]){"q", "o"});
        Toy toy;
        open_toy(&toy, "fp32", &config);
        double got[] = {(double)find_route(&toy, "up", 0)->scale, (double)find_route(&toy, "q", 0)->scale,
                        (double)find_route(&toy, "o", 0)->scale, (double)find_route(&toy, "embed", 0)->scale};
        assert_close("scale", got, (double[]){rows[i].up, rows[i].q, rows[i].o, 1}, 4, (Tolerance){.relative = 1e-6});
        close_toy(&toy);
    }
}

/* r = 2/6. Scales without muP are in the test above. */
static void mup_scales_what_the_table_of_scale_c_says(void **state) {
    (void)state;
    const double r = 1. / 3, root = sqrt(r), up_rms = .63245553, up_original = 1.29099445, fixed = .2 * sqrt(60);
    const struct {
        OptimizerKind optimizer;
        UpdateScale scale;
        double schatten_p, up, embed;
    } rows[] = {
        {OPTIMIZER_MUON, SCALE_RMS, 0, up_rms * root, .2 * sqrt(V)},
        {OPTIMIZER_MUON, SCALE_ORIGINAL, 0, up_original, sqrt(11. / 6) / root},
        {OPTIMIZER_MUON, SCALE_SPECTRAL, 0, up_original, sqrt(11. / 6) / root},
        {OPTIMIZER_MUON, SCALE_NONE, 0, 1, 1},
        {OPTIMIZER_MUON, SCALE_RMS, 4, up_rms * root * pow(r, .25), .2 * sqrt(V)},
        {OPTIMIZER_NORMUON, SCALE_RMS, 0, fixed * root, .2 * sqrt(66)},
        {OPTIMIZER_ADAMUON, SCALE_RMS, 0, fixed * root, .2 * sqrt(66)},
        {OPTIMIZER_ADAMW, SCALE_RMS, 0, r, 1},
        {OPTIMIZER_LION, SCALE_RMS, 0, r, 1},
        {OPTIMIZER_SGD, SCALE_RMS, 0, 1, 1 / r},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OptimizerConfig config = default_config();
        config.mup_base_width = 2;
        config.matrices = rows[i].optimizer, config.muon.scale = rows[i].scale;
        config.muon.schatten_p = rows[i].schatten_p;
        if (rows[i].schatten_p > 0) config.muon.orthogonalize = ORTHOGONALIZE_SCHATTEN;
        override(&config, "embed", rows[i].optimizer);
        Toy toy;
        open_toy(&toy, "fp32", &config);
        double got[] = {(double)find_route(&toy, "up", 0)->scale, (double)find_route(&toy, "embed", 0)->scale,
                        (double)find_route(&toy, "norm1", 0)->scale, (double)find_route(&toy, "normf", 0)->scale};
        assert_close(optimizer_name(rows[i].optimizer), got, (double[]){rows[i].up, rows[i].embed, 1, r}, 4,
                     (Tolerance){.relative = 1e-6});
        close_toy(&toy);
    }
}

/* step 3, |U|_2 = 2, decay .5; up is (10,6). */
static void decay_bounds_weights_by_what_updates_are_like(void **state) {
    (void)state;
    static const struct {
        OptimizerKind optimizer;
        double bound; /* NaN: none */
        bool orthogonal;
    } rows[] = {{OPTIMIZER_MUON, 12, true},          {OPTIMIZER_NORMUON, 12, false},
                {OPTIMIZER_ADAMUON, 12, false},      {OPTIMIZER_ADAMW, 46.4758002, false},
                {OPTIMIZER_LION, 46.4758002, false}, {OPTIMIZER_SGD, (double)NAN, false}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OptimizerConfig config = default_config();
        config.matrices = rows[i].optimizer;
        Toy toy;
        open_toy(&toy, "fp32", &config);
        Optimizer *opt = &toy.opt;
        const Route *up = find_route(&toy, "up", 0);
        double bound = optimizer_decay_bound(opt, up, 3, 2, .5);
        assert_close("bound", &bound, &rows[i].bound, 1, (Tolerance){.relative = 1e-6});
        assert_true(isnan(optimizer_decay_bound(opt, up, 3, 2, 0)));
        assert_int_equal(optimizer_is_orthogonal(opt, rows[i].optimizer), rows[i].orthogonal);
        opt->config.muon.orthogonalize = ORTHOGONALIZE_SCHATTEN;
        assert_false(optimizer_is_orthogonal(opt, rows[i].optimizer));
        opt->config.cautious_decay = true;
        assert_true(isnan(optimizer_decay_bound(opt, up, 3, 2, .5)));
        close_toy(&toy);
    }
}

static void the_printed_table_has_a_line_for_every_route(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    split_heads_of(&config, 1, (const char *const[]){"q"});
    override(&config, "layers.2.up", OPTIMIZER_ADAMW);
    Toy toy;
    open_toy(&toy, "fp32", &config);
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    optimizer_print_routes(&toy.opt, out);
    fclose(out);
    static const char *const parts[] = {
        "\nembed ", "\nlayers.0-2.q per head ", "\nlayers.0-1.up ", "\nlayers.2.up ", "10 x 6  muon", "\nall "};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (!strstr(text, parts[i])) fail_msg("no \"%s\" in\n%s", parts[i], text);
    int lines = 0;
    for (const char *c = text; *c; c++) lines += *c == '\n';
    assert_int_equal(lines, toy.opt.route_count + 2);
    free(text);
    close_toy(&toy);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static OptimizerConfig config_of_golden(const GoldenCase *golden) {
    OptimizerConfig config = default_config();
    config.matrices = golden->optimizer;
    config.lr = golden_lr, config.weight_decay = golden->no_decay ? 0 : golden_weight_decay;
    config.cautious_decay = golden->cautious;
    config.mup_base_width = golden->mup_base_width;
    if (golden->decay_schedule) config.decay_schedule = (ScheduleConfig){.kind = SCHEDULE_LINEAR, .final = .2};
    config.muon.momentum_form = golden->form;
    config.muon.momentum_start = .85;
    config.muon.momentum_warmup = golden->momentum_warmup;
    config.muon.momentum_cooldown = golden->momentum_cooldown;
    config.muon.nesterov = golden->nesterov;
    config.muon.scale = golden->scale;
    config.muon.orthogonalize = golden->orthogonalize;
    config.muon.schatten_p = golden->schatten_p;
    if (golden->beta1 > 0) config.lion = (LionConfig){.beta1 = golden->beta1, .beta2 = golden->beta2};
    if (golden->eps > 0) config.normuon = config.adamuon = (AdaptConfig){.beta2 = golden->beta2, .eps = golden->eps};
    if (golden->per_head) split_heads_of(&config, 1, (const char *const[]){"q"});
    return config;
}

/* One matrix, twice: the second layer shows that layers do not mix. The embedding is there for its width. */
static void check_golden(const GoldenCase *golden, const char *device) {
    OptimizerConfig config = config_of_golden(golden);
    Toy toy = {0};
    int embedding = params_add(&toy.params, "wte", 0, 1, golden->columns);
    params_add_block(&toy.params, "embed", ROLE_EMBED, embedding, 0, 1, 1, HEADS_IN_ROWS);
    int matrix = params_add(&toy.params, "w", 2, golden->rows, golden->columns);
    params_add_block(&toy.params, "q", ROLE_Q, matrix, 0, golden->rows, golden->per_head ? 2 : 1, golden->axis);
    open_described(&toy, device, "fp32", &config);

    int64_t size = golden->rows * golden->columns;
    Tensor w = weights_of(&toy, toy.params.master, "q"), g = weights_of(&toy, toy.params.grad, "q");
    for (int64_t i = 0; i < 2 * size; i++) test_set(&toy.be, w, i, golden->start[i % size]);
    for (int number = 1; number <= GOLDEN_STEPS; number++) {
        const double *gradient = golden->gradients + (number - 1) * size;
        for (int64_t i = 0; i < 2 * size; i++) test_set(&toy.be, g, i, i < size ? gradient[i] : 0);
        step(&toy, number);
    }
    /* fp32 against fp64: Newton-Schulz leaves 2e-6 of an update of size .02 * 1, three times */
    char what[64];
    snprintf(what, sizeof what, "%s, %d x %d, on %s", golden->name, golden->rows, golden->columns, device);
    double *got = test_read(&toy.be, w), decayed = pow(1 - config.lr * config.weight_decay, GOLDEN_STEPS);
    assert_close(what, got, golden->expected, size, (Tolerance){.absolute = 1e-6});
    for (int64_t i = 0; i < size && !golden->decay_schedule; i++) {
        double expected = decayed * golden->start[i];
        assert_close("layer without gradient", &got[size + i], &expected, 1, (Tolerance){.absolute = 1e-6});
    }
    close_toy(&toy);
}

static bool is_available(const char *device) {
    Backend be;
    char note[256];
    Status status = device_open(&be, (BackendRequest){device, "fp32", 2}, note, sizeof note);
    if (!status.code) backend_close(&be);
    return !status.code;
}

static void three_steps_agree_with_pytorch(void **state) {
    (void)state;
    static const char *const devices[] = {"ref", "cpu", "cuda"};
    for (size_t d = 0; d < sizeof devices / sizeof devices[0]; d++)
        for (int i = 0; i < GOLDEN_CASES && is_available(devices[d]); i++) check_golden(&golden_cases[i], devices[d]);
}

static double *weights_after(const OptimizerConfig *config, int steps, Toy *toy) {
    open_toy(toy, "fp32", config);
    for (int number = 1; number <= steps; number++) {
        randomize(toy, toy->params.grad, 10 * (uint64_t)number);
        step(toy, number);
    }
    return test_read(&toy->be, toy->params.master);
}

static void sum_and_ema_make_the_same_updates_at_constant_mu(void **state) {
    (void)state;
    for (int nesterov = 0; nesterov < 2; nesterov++) {
        OptimizerConfig sum = default_config(), ema = default_config();
        sum.muon.nesterov = ema.muon.nesterov = nesterov;
        ema.muon.momentum_form = MUON_MOMENTUM_EMA;
        Toy a, b;
        double *of_sum = weights_after(&sum, 4, &a), *of_ema = weights_after(&ema, 4, &b);
        assert_close("weights", of_ema, of_sum, a.params.elements, (Tolerance){.absolute = 2e-6});
        Tensor m = find_route(&a, "up", 0)->state[0]; /* yet ema = (1 - mu) sum: not to be mixed up in checkpoints */
        double small = test_get(&b.be, find_route(&b, "up", 0)->state[0], 3), large = .05 * test_get(&a.be, m, 3);
        assert_close("momentum", &small, &large, 1, (Tolerance){.relative = 1e-5});
        close_toy(&a);
        close_toy(&b);
    }
}

/* A head of q is three rows, one of o three columns: each must move as if it were a matrix of its own. */
static void heads_move_as_if_each_were_a_matrix_of_its_own(void **state) {
    (void)state;
    static const char *const split[] = {"q", "k", "v", "o"};
    OptimizerConfig config = default_config();
    split_heads_of(&config, 4, split);
    Toy whole, alone;
    open_toy(&whole, "fp32", &config);
    for (int b = 0; b < 4; b++)
        for (int head = 0; head < H; head++) {
            bool rows = b < 3;
            alone = (Toy){0};
            int matrix = params_add(&alone.params, "w", LAYERS, rows ? D : C, rows ? C : D);
            params_add_block(&alone.params, "w", ROLE_UP, matrix, 0, rows ? D : C, 1, HEADS_IN_ROWS);
            OptimizerConfig plain = default_config();
            open_described(&alone, "ref", "fp32", &plain);
            int kind = params_find_kind(&whole.params, split[b]);
            for (int layer = 0; layer < LAYERS; layer++) {
                op_copy(&alone.be, params_block(&alone.params, alone.params.master, 0, layer),
                        params_block_head(&whole.params, whole.params.master, kind, layer, head));
                op_copy(&alone.be, params_block(&alone.params, alone.params.grad, 0, layer),
                        params_block_head(&whole.params, whole.params.grad, kind, layer, head));
            }
            Toy stepped;
            open_toy(&stepped, "fp32", &config);
            step(&stepped, 1);
            step(&alone, 1);
            for (int layer = 0; layer < LAYERS; layer++)
                assert_tensors_close(split[b], &stepped.be,
                                     params_block_head(&stepped.params, stepped.params.master, kind, layer, head),
                                     &alone.be, params_block(&alone.params, alone.params.master, 0, layer),
                                     (Tolerance){.absolute = 1e-7});
            close_toy(&stepped);
            close_toy(&alone);
        }
    close_toy(&whole);
}

static void only_matrices_and_embeddings_decay(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    Toy toy;
    open_toy(&toy, "fp32", &config);
    op_fill(&toy.be, toy.params.grad, 0);
    for (int kind = 0; kind < toy.params.kind_count; kind++) {
        Tensor w = weights_of(&toy, toy.params.master, toy.params.kinds[kind].name);
        test_fill(&toy.be, w, 2);
    }
    step(&toy, 1);
    for (int kind = 0; kind < toy.params.kind_count; kind++) {
        bool decays = params_has_decay(&toy.params.kinds[kind]);
        double *w = test_read(&toy.be, weights_of(&toy, toy.params.master, toy.params.kinds[kind].name));
        double expected = decays ? 2 * (1 - .02 * .1) : 2;
        assert_close(toy.params.kinds[kind].name, w, &expected, 1, (Tolerance){.absolute = decays ? 1e-6 : 0});
    }
    close_toy(&toy);
}

static void the_clipping_factor_scales_every_gradient(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    Toy clipped, scaled;
    open_toy(&clipped, "fp32", &config);
    open_toy(&scaled, "fp32", &config);
    op_scale(&scaled.be, scaled.params.grad, .25f);
    StepNumbers numbers = numbers_of(&clipped, 1);
    numbers.grad_scale = .25f;
    optimizer_step(&clipped.opt, &numbers, NULL, NULL);
    step(&scaled, 1);
    assert_tensors_close("weights", &clipped.be, clipped.params.master, &scaled.be, scaled.params.master,
                         (Tolerance){.absolute = 1e-7});
    const Route *a = find_route(&clipped, "up", 0), *b = find_route(&scaled, "up", 0);
    assert_tensors_close("momentum", &clipped.be, a->state[0], &scaled.be, b->state[0], (Tolerance){.relative = 1e-6});
    close_toy(&clipped);
    close_toy(&scaled);
}

/* At half of optimizer.lr AdamW runs at half of its own rate. */
static void adamw_keeps_its_own_rate_in_proportion_to_the_schedule(void **state) {
    (void)state;
    OptimizerConfig own = default_config(), same = default_config();
    own.adamw.lr = .1;
    same.lr = .05;
    Toy a, b;
    open_toy(&a, "fp32", &own);
    open_toy(&b, "fp32", &same);
    StepNumbers half = numbers_of(&a, 1);
    half.lr = own.lr / 2;
    optimizer_step(&a.opt, &half, NULL, NULL);
    step(&b, 1);
    assert_tensors_close("embed", &a.be, weights_of(&a, a.params.master, "embed"), &b.be,
                         weights_of(&b, b.params.master, "embed"), (Tolerance){.absolute = 1e-7});
    close_toy(&a);
    close_toy(&b);
}

static void in_bf16_working_copies_are_the_rounded_masters(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    split_heads_of(&config, 2, (const char *const[]){"k", "o"});
    Toy toy;
    open_toy(&toy, "bf16", &config);
    double *before = test_read(&toy.be, toy.params.master);
    step(&toy, 1);
    double *master = test_read(&toy.be, toy.params.master), *work = test_read(&toy.be, toy.params.work);
    int64_t moved = 0;
    for (int64_t i = 0; i < toy.params.elements; i++) {
        assert_true(work[i] == (double)bf16_to_f32(bf16_from_f32((float)master[i])));
        moved += master[i] != before[i];
    }
    assert_int_equal(moved, toy.params.count);
    close_toy(&toy);
}

static double grad_norm(Toy *toy) {
    Tensor total = test_zeros(&toy->be, DTYPE_F32, shape1(1));
    op_sum_squares(toy->opt.be, total, toy->opt.params->grad);
    return sqrt(test_get(&toy->be, total, 0));
}

static void the_gradient_norm_is_that_of_all_parameters_and_shows_a_nan(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    Toy toy;
    open_toy(&toy, "fp32", &config);
    double sum = 0, *g = test_read(&toy.be, toy.params.grad);
    for (int64_t i = 0; i < toy.params.elements; i++) sum += g[i] * g[i];
    for (int again = 0; again < 2; again++) {
        double norm = grad_norm(&toy), expected = sqrt(sum);
        assert_close("norm", &norm, &expected, 1, (Tolerance){.relative = 1e-6});
    }
    test_set(&toy.be, toy.params.grad, 5, (double)NAN);
    assert_true(isnan(grad_norm(&toy)));
    test_set(&toy.be, toy.params.grad, 5, (double)INFINITY);
    assert_true(isinf(grad_norm(&toy)) != 0);
    close_toy(&toy);
}

/* ---- the observer ----------------------------------------------------------------------------------------------- */

/* Checks each update against the step that it stands for: W = (1 - lr wd) W' - lr scale U. */
typedef struct {
    Toy *toy, *twin;      /* the same before the step */
    const double *before; /* master, before the step */
    double lr;
    int64_t announced, elements; /* seen so far, before and after their steps */
} Observed;

static void check_adamw_update(Toy *toy, const UpdateEvent *e) {
    const AdamwConfig *c = &toy->config.adamw;
    Backend *be = &toy->be;
    double *u = test_read(be, e->update), *m = test_read(be, e->momentum), *v = test_read(be, e->route->state[1]);
    for (int64_t i = 0; i < tensor_numel(e->update); i++) { /* of the second step */
        double expected = m[i] / (1 - pow(c->beta1, 2)) / (sqrt(v[i] / (1 - pow(c->beta2, 2))) + c->eps);
        assert_close("update", &u[i], &expected, 1, (Tolerance){.relative = 1e-5});
    }
}

static void note_update(void *context, const UpdateEvent *e) {
    Observed *o = context;
    Toy *toy = o->toy;
    ParamTable *p = &toy->params;
    int64_t start = (float *)e->weights.data - (float *)p->master.data;
    assert_true(params_is_hidden_matrix(&p->kinds[e->route->kind]));
    assert_true(same_shape(e->weights, e->momentum) && same_shape(e->weights, e->gradient));
    assert_ptr_equal(e->gradient.data, (float *)p->grad.data + start);
    if (e->moment == UPDATE_COMES) {
        assert_false(tensor_present(e->update));
        const Route *old = find_route(o->twin, p->kinds[e->route->kind].name, e->route->first);
        assert_tensors_close("momentum", &toy->be, e->momentum, &o->twin->be, old->state[0], (Tolerance){0});
        for (int64_t i = 0; i < e->weights.shape[3]; i++)
            assert_true(test_get(&toy->be, e->weights, i) == o->before[start + i]);
        o->announced += tensor_numel(e->weights);
        return;
    }
    assert_true(same_shape(e->momentum, e->update) && e->momentum.data == e->route->state[0].data);
    o->elements += tensor_numel(e->update);
    if (e->route->optimizer == OPTIMIZER_ADAMW) check_adamw_update(toy, e);
    assert_close("keep", &e->keep, &(double){1 - o->lr * toy->config.weight_decay}, 1, (Tolerance){.absolute = 1e-9});
    for (int64_t i = 0; o->lr > 0 && i < e->weights.shape[3]; i++) { /* the first row */
        double update = test_get(&toy->be, e->update, i), old = o->before[start + i];
        double keep = toy->config.cautious_decay && update * old < 0 ? 1 : e->keep;
        double applied = (keep * old - test_get(&toy->be, e->weights, i)) / o->lr;
        double expected = (double)e->route->scale * update;
        assert_close("applied", &applied, &expected, 1, (Tolerance){.absolute = 2e-5});
    }
}

static int64_t hidden_elements(const ParamTable *p) {
    int64_t count = 0;
    for (int i = 0; i < p->kind_count; i++)
        if (params_is_hidden_matrix(&p->kinds[i])) count += p->kinds[i].layers * p->kinds[i].rows * p->kinds[i].columns;
    return count;
}

/* The second step, so that there is a momentum before it. */
static void check_observer(const OptimizerConfig *config, double lr) {
    Toy watched, plain;
    weights_after(config, 1, &watched);
    weights_after(config, 1, &plain);
    Observed o = {.toy = &watched, .twin = &plain, .before = test_read(&watched.be, watched.params.master), .lr = lr};
    StepNumbers numbers = numbers_of(&watched, 2);
    numbers.lr = lr;
    optimizer_step(&watched.opt, &numbers, note_update, &o);
    optimizer_step(&plain.opt, &numbers, NULL, NULL);
    assert_int_equal(o.announced, hidden_elements(&watched.params));
    assert_int_equal(o.elements, hidden_elements(&watched.params));
    assert_tensors_close("weights", &watched.be, watched.params.master, &plain.be, plain.params.master, (Tolerance){0});
    for (int i = 0; i < plain.opt.route_count; i++) {
        const Route *a = &watched.opt.routes[i], *b = &plain.opt.routes[i];
        for (int k = 0; k < STATE_MAX && tensor_present(b->state[k]); k++)
            assert_tensors_close("state", &watched.be, a->state[k], &plain.be, b->state[k], (Tolerance){0});
    }
    close_toy(&watched);
    close_toy(&plain);
}

static void the_observer_sees_every_hidden_matrix_and_changes_nothing(void **state) {
    (void)state;
    for (int matrices = 0; matrices < OPTIMIZER_COUNT; matrices++)
        for (int variant = 0; variant < 4; variant++) {
            OptimizerConfig config = default_config();
            config.matrices = (OptimizerKind)matrices;
            config.cautious_decay = variant == 2;
            config.mup_base_width = variant == 3 ? 2 : 0;
            if (variant < 3) split_heads_of(&config, 1, (const char *const[]){"o"});
            check_observer(&config, variant == 1 ? 0 : config.lr);
        }
}

typedef struct {
    Backend *be;
    int calls;
    int64_t first, layers;
    double first_values[4];
} Passes;

static void count_passes(void *context, const UpdateEvent *event) {
    Passes *p = context;
    const Route *route = event->route;
    if (event->moment != UPDATE_APPLIED) return;
    assert_int_equal(route->first, p->first);
    assert_int_equal(route->layers, event->momentum.shape[0]);
    for (int64_t layer = 0; layer < route->layers; layer++)
        p->first_values[route->first + layer] = test_get(p->be, tensor_index(event->update, layer), 0);
    p->calls++;
    p->first += route->layers;
    p->layers += route->layers;
}

/* Four layers of 5 MiB each in passes of 16 MiB: Newton-Schulz needs twice that per layer, the others once. All steps
 * have the sign of their gradient, and of Muon and its kin an rms of .2. */
static void a_run_too_large_for_one_pass_comes_in_several(void **state) {
    (void)state;
    static const struct {
        OptimizerKind optimizer;
        bool pairs;
    } rows[] = {{OPTIMIZER_MUON, true}, {OPTIMIZER_NORMUON, true}, {OPTIMIZER_ADAMUON, true},
                {OPTIMIZER_SGD, false}, {OPTIMIZER_LION, false},   {OPTIMIZER_ADAMW, false}};
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        const bool pairs = rows[r].pairs;
        OptimizerConfig config = default_config();
        config.matrices = rows[r].optimizer;
        config.muon.nesterov = false;
        config.muon.coefficients.count = 1, config.muon.iterations = 1;
        snprintf(config.muon.coefficients.set, NAME_SIZE, "cubic");
        Toy toy = {0};
        int matrix = params_add(&toy.params, "w", 4, 1, 5 << 18);
        params_add_block(&toy.params, "w", ROLE_UP, matrix, 0, 1, 1, HEADS_IN_ROWS);
        open_described(&toy, "cpu", "fp32", &config);
        assert_true(optimizer_planned_bytes(&toy.opt) <= toy.opt.state.size + (16 << 20) + (1 << 12));
        for (int layer = 0; layer < 4; layer++)
            op_fill(&toy.be, params_block(&toy.params, toy.params.grad, 0, layer), (layer % 2 ? -1.0f : 1.0f));
        Passes p = {.be = &toy.be};
        const StepNumbers numbers = numbers_of(&toy, 1);
        optimizer_step(&toy.opt, &numbers, count_passes, &p);
        assert_int_equal(p.layers, 4);
        assert_int_equal(p.calls, pairs ? 4 : 2);
        double size = pairs ? 1 / sqrt(5 << 18) : 1;
        assert_close("updates", p.first_values, (double[]){size, -size, size, -size}, 4, (Tolerance){.relative = 1e-3});
        for (int layer = 0; layer < 4; layer++) {
            Tensor w = params_block(&toy.params, toy.params.master, 0, layer);
            double got = test_get(&toy.be, w, (5 << 18) - 1), rms = pairs ? .2 : 1;
            double expected = (layer % 2 ? .02 : -.02) * rms;
            assert_close("weight", &got, &expected, 1, (Tolerance){.relative = 1e-3});
        }
        close_toy(&toy);
    }
}

/* ---- state ------------------------------------------------------------------------------------------------------ */

static void state_tensors_have_names_of_their_own_and_cover_the_state(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    split_heads_of(&config, 2, (const char *const[]){"q", "o"});
    override(&config, "layers.1.up", OPTIMIZER_ADAMW);
    Toy toy;
    open_toy(&toy, "fp32", &config);
    int64_t count = optimizer_state(&toy.opt, NULL), elements = 0;
    /* embed and normf m v; norm1 and qkv_bias m v in 3 layers; q k v o down in 3; up in 2, and m v in one */
    assert_int_equal(count, 2 * 2 + 2 * 2 * 3 + 5 * 3 + 2 + 2);
    NamedTensor *all = calloc((size_t)count, sizeof *all);
    assert_int_equal(optimizer_state(&toy.opt, all), count);
    for (int64_t i = 0; i < count; i++) {
        const char *name = all[i].name;
        Tensor t = all[i].tensor;
        assert_true(t.ndim == 2 && tensor_is_contiguous(t));
        elements += tensor_numel(t);
        test_fill(&toy.be, t, (double)(i + 1));
        for (int64_t k = 0; k < i; k++) assert_string_not_equal(name, all[k].name);
        if (strcmp(name, "layers.2.o.momentum") == 0) assert_true(t.shape[0] == H * C && t.shape[1] == D);
        if (strcmp(name, "layers.2.q.momentum") == 0) assert_true(t.shape[0] == H * D && t.shape[1] == C);
    }
    int64_t of_muon = LAYERS * (4 * H * D * C + F * C) + 2 * F * C;
    assert_int_equal(elements, of_muon + 2 * (toy.params.count - of_muon));
    for (int64_t i = 0; i < count; i++) { /* nobody wrote over anybody */
        Tensor t = all[i].tensor;
        for (int64_t k = 0; k < tensor_numel(t); k++) assert_true(test_get(&toy.be, t, k) == (double)(i + 1));
    }
    static const char *const expected[] = {"embed.m", "embed.v", "layers.0.norm1.m", "layers.0.norm1.v"};
    for (int i = 0; i < 4; i++) assert_string_equal(all[i].name, expected[i]);
    free(all);
    close_toy(&toy);
}

static void second_moments_of_updates_have_names_and_shapes_of_their_own(void **state) {
    (void)state;
    OptimizerConfig config = default_config();
    config.matrices = OPTIMIZER_NORMUON;
    split_heads_of(&config, 1, (const char *const[]){"o"});
    override(&config, "layers.2.*", OPTIMIZER_LION);
    override(&config, "layers.1.up", OPTIMIZER_ADAMUON);
    static const struct {
        const char *name;
        int64_t rows, columns;
    } expected[] = {{"layers.0.q.second", H * D, 1},   {"layers.0.o.second", H * C, 1}, {"layers.0.up.second", F, 1},
                    {"layers.1.up.second", F, C},      {"layers.1.up.momentum", F, C},  {"layers.2.up.momentum", F, C},
                    {"layers.2.norm1.momentum", C, 1}, {"layers.1.norm1.v", C, 1}};
    Toy toy;
    open_toy(&toy, "fp32", &config);
    size_t found = 0;
    NamedTensor all[64];
    const int64_t count = optimizer_state(&toy.opt, NULL);
    assert_true(count <= 64);
    optimizer_state(&toy.opt, all);
    for (int64_t i = 0; i < count; i++) {
        const char *name = all[i].name;
        Tensor t = all[i].tensor;
        assert_string_not_equal(name, "layers.2.up.second");
        for (size_t k = 0; k < sizeof expected / sizeof expected[0]; k++)
            if (strcmp(name, expected[k].name) == 0) {
                assert_int_equal(t.shape[0], expected[k].rows);
                assert_int_equal(t.shape[1], expected[k].columns);
                found++;
            }
    }
    assert_int_equal(found, sizeof expected / sizeof expected[0]);
    close_toy(&toy);
}

static void the_plan_is_what_is_allocated(void **state) {
    (void)state;
    for (int kind = 0; kind < OPTIMIZER_COUNT + 3; kind++) {
        OptimizerConfig config = default_config();
        if (kind < OPTIMIZER_COUNT)
            config.matrices = (OptimizerKind)kind;
        else
            config.muon.orthogonalize = (OrthogonalizeKind)(kind - OPTIMIZER_COUNT);
        config.muon.schatten_p = 4;
        Toy toy;
        open_toy(&toy, "fp32", &config);
        Optimizer planned;
        assert_ok(optimizer_plan(&planned, &toy.params, &config, &toy.be));
        assert_int_equal(optimizer_planned_bytes(&planned), optimizer_planned_bytes(&toy.opt));
        assert_int_equal(planned.state.used, toy.opt.state.size);
        assert_true(toy.opt.scratch.size > 0);
        optimizer_free(&planned);
        close_toy(&toy);
    }
}

/* The exact SVD and Newton-Schulz with an accurate set are nearly the same optimizer. */
static void the_svd_can_stand_in_for_newton_schulz(void **state) {
    (void)state;
    OptimizerConfig svd = default_config(), accurate = default_config();
    svd.muon.orthogonalize = ORTHOGONALIZE_SVD;
    snprintf(accurate.muon.coefficients.set, NAME_SIZE, "deepseek-v4");
    Toy a, b;
    double *of_svd = weights_after(&svd, 2, &a), *of_accurate = weights_after(&accurate, 2, &b);
    assert_close("weights", of_svd, of_accurate, a.params.elements, (Tolerance){.absolute = 1e-4});
    close_toy(&a);
    close_toy(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routes_cover_every_element_exactly_once),
        cmocka_unit_test(hidden_matrices_go_to_the_chosen_optimizer_and_the_rest_to_adamw),
        cmocka_unit_test(the_last_override_that_matches_wins_and_splits_the_run),
        cmocka_unit_test(options_that_do_not_fit_the_model_are_refused_by_name),
        cmocka_unit_test(any_block_may_go_to_sgd_lion_or_adamw),
        cmocka_unit_test(scales_follow_rows_and_columns_of_what_is_orthogonalized),
        cmocka_unit_test(mup_scales_what_the_table_of_scale_c_says),
        cmocka_unit_test(decay_bounds_weights_by_what_updates_are_like),
        cmocka_unit_test(the_printed_table_has_a_line_for_every_route),
        cmocka_unit_test(three_steps_agree_with_pytorch),
        cmocka_unit_test(sum_and_ema_make_the_same_updates_at_constant_mu),
        cmocka_unit_test(heads_move_as_if_each_were_a_matrix_of_its_own),
        cmocka_unit_test(only_matrices_and_embeddings_decay),
        cmocka_unit_test(the_clipping_factor_scales_every_gradient),
        cmocka_unit_test(adamw_keeps_its_own_rate_in_proportion_to_the_schedule),
        cmocka_unit_test(in_bf16_working_copies_are_the_rounded_masters),
        cmocka_unit_test(the_gradient_norm_is_that_of_all_parameters_and_shows_a_nan),
        cmocka_unit_test(the_observer_sees_every_hidden_matrix_and_changes_nothing),
        cmocka_unit_test(a_run_too_large_for_one_pass_comes_in_several),
        cmocka_unit_test(state_tensors_have_names_of_their_own_and_cover_the_state),
        cmocka_unit_test(second_moments_of_updates_have_names_and_shapes_of_their_own),
        cmocka_unit_test(the_plan_is_what_is_allocated),
        cmocka_unit_test(the_svd_can_stand_in_for_newton_schulz),
    };
    return cmocka_run_group_tests_name("optimizer", tests, NULL, NULL);
}
