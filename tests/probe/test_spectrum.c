/* Singular values against LAPACK's SVD and known spectra; the statistics against formulas; the probe's assembly of
 * whole matrices and heads from every form of run, and its records.
 */
#include "tests/probe/toy_set.h"

#include <lapacke.h>

#include "ops/ops.h"
#include "probe/singular_values.h"

static double *values_of(const float *matrix, int64_t rows, int64_t columns) {
    int64_t r = rows < columns ? rows : columns;
    double *sigma = calloc((size_t)r, sizeof *sigma);
    double *workspace = calloc((size_t)singular_workspace_size(rows, columns), sizeof *workspace);
    singular_values(sigma, matrix, rows, columns, columns, workspace);
    free(workspace);
    return sigma;
}

static float *random_matrix(int64_t rows, int64_t columns, uint64_t seed) {
    float *matrix = calloc((size_t)(rows * columns), sizeof *matrix);
    for (int64_t i = 0; i < rows * columns; i++) matrix[i] = (float)test_uniform(seed, i);
    return matrix;
}

static Spectrum spectrum_of(const float *matrix, int64_t rows, int64_t columns) {
    double *sigma = values_of(matrix, rows, columns);
    Spectrum spectrum = spectrum_from_values(sigma, rows < columns ? rows : columns, rows < columns ? columns : rows);
    free(sigma);
    return spectrum;
}

static void assert_value(double got, double expected, double tolerance) {
    assert_close("value", &got, &expected, 1, (Tolerance){.absolute = tolerance});
}

static void assert_spectrum(Spectrum got, Spectrum expected, double tolerance) {
    assert_value(got.sigma_max, expected.sigma_max, tolerance);
    assert_value(got.sigma_min, expected.sigma_min, tolerance);
    assert_value(got.rms, expected.rms, tolerance);
    assert_value(got.orthogonality_error, expected.orthogonality_error, tolerance);
    assert_value(got.below_half, expected.below_half, tolerance);
    assert_value(got.entropy, expected.entropy, tolerance);
    assert_value(got.entropy_sq, expected.entropy_sq, tolerance);
    assert_value(got.effective_rank, expected.effective_rank, tolerance);
    assert_value(got.stable_rank, expected.stable_rank, tolerance);
}

/* ---- singular values -------------------------------------------------------------------------------------------- */

/* |O Oᵀ - I|_F and the root mean square, element by element, against what comes from the singular values. */
static void orthogonality_and_rms_are_those_of_the_elements(void **state) {
    (void)state;
    enum { ROWS = 9, COLUMNS = 14 };
    for (int tall = 0; tall < 2; tall++) {
        int64_t rows = tall ? COLUMNS : ROWS, columns = tall ? ROWS : COLUMNS, r = ROWS;
        float *matrix = random_matrix(rows, columns, 77);
        double error = 0, squares = 0;
        for (int64_t a = 0; a < r; a++)
            for (int64_t b = 0; b < r; b++) {
                double product = a == b ? -1 : 0;
                for (int64_t i = 0; i < COLUMNS; i++)
                    product += tall ? (double)matrix[i * columns + a] * (double)matrix[i * columns + b]
                                    : (double)matrix[a * columns + i] * (double)matrix[b * columns + i];
                error += product * product;
            }
        for (int64_t i = 0; i < rows * columns; i++) squares += (double)matrix[i] * (double)matrix[i];
        Spectrum got = spectrum_of(matrix, rows, columns);
        assert_value(got.orthogonality_error, sqrt(error), 1e-12 * error);
        assert_value(got.rms, sqrt(squares / (double)(rows * columns)), 1e-13);
        free(matrix);
    }
}

static void singular_values_agree_with_the_svd(void **state) {
    (void)state;
    /* around the panel of 384 on either side, and odd sizes */
    static const int64_t shapes[][2] = {{1, 1},  {1, 17},  {17, 1},  {2, 3},    {31, 31},  {64, 33},
                                        {33, 7}, {7, 383}, {384, 9}, {65, 385}, {769, 40}, {40, 900}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        int64_t rows = shapes[s][0], columns = shapes[s][1], r = rows < columns ? rows : columns;
        float *matrix = random_matrix(rows, columns, 10 + s);
        double *copy = calloc((size_t)(rows * columns), sizeof *copy);
        double *expected = calloc((size_t)r, sizeof *expected);
        for (int64_t i = 0; i < rows * columns; i++) copy[i] = (double)matrix[i];
        assert_int_equal(LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'N', (lapack_int)rows, (lapack_int)columns, copy,
                                        (lapack_int)columns, expected, NULL, (lapack_int)r, NULL, (lapack_int)columns),
                         0);
        double *got = values_of(matrix, rows, columns);
        /* an eigenvalue is off by r eps sigma_max^2 at most, so its root by sqrt(r eps) sigma_max where it is small */
        assert_close("sigma", got, expected, r, (Tolerance){.absolute = 2e-7 * expected[0]});
        assert_close("large sigma", got, expected, (r + 1) / 2, (Tolerance){.relative = 1e-12});
        free(got);
        free(expected);
        free(copy);
        free(matrix);
    }
}

static void the_identity_has_a_flat_spectrum(void **state) {
    (void)state;
    float matrix[5 * 8] = {0};
    for (int i = 0; i < 5; i++) matrix[i * 8 + i] = 3;
    Spectrum expected = {.sigma_max = 3,
                         .sigma_min = 3,
                         .rms = sqrt(45.0 / 40),
                         .entropy = log(5),
                         .entropy_sq = 1,
                         .effective_rank = 5,
                         .stable_rank = 5,
                         .orthogonality_error = 8 * sqrt(5)};
    assert_spectrum(spectrum_of(matrix, 5, 8), expected, 1e-12);
}

static void a_matrix_of_rank_one_has_no_entropy(void **state) {
    (void)state;
    float matrix[37 * 70];
    for (int i = 0; i < 37 * 70; i++) matrix[i] = (float)test_uniform(1, i / 70) * (float)test_uniform(2, i % 70);
    Spectrum got = spectrum_of(matrix, 37, 70);
    /* the products above are rounded to fp32, so the rank is one up to 37 singular values of about 1e-7 */
    assert_value(got.entropy, 0, 1e-3);
    assert_value(got.entropy_sq, 0, 1e-6);
    assert_value(got.effective_rank, 1, 1e-3);
    assert_value(got.stable_rank, 1, 1e-6);
}

static void rounding_of_the_gram_matrix_adds_no_singular_values(void **state) {
    (void)state;
    float matrix[48 * 48];
    for (int i = 0; i < 48 * 48; i++) matrix[i] = (float)(1 + i / 48); /* exactly of rank one */
    double *sigma = values_of(matrix, 48, 48);
    assert_true(sigma[0] > 0);
    for (int i = 1; i < 48; i++) assert_true(sigma[i] == 0);
    free(sigma);
}

static void a_zero_matrix_has_a_spectrum_of_zeros(void **state) {
    (void)state;
    float matrix[6 * 4] = {0};
    /* 0 0ᵀ - I has 4 times -1 on its diagonal */
    assert_spectrum(spectrum_of(matrix, 6, 4), (Spectrum){.orthogonality_error = 2, .below_half = 1}, 0);
}

static void a_vector_has_its_length_as_its_only_value(void **state) {
    (void)state;
    Spectrum expected = {.sigma_max = 13,
                         .sigma_min = 13,
                         .rms = 13 / sqrt(3),
                         .entropy = 0,
                         .entropy_sq = 1,
                         .effective_rank = 1,
                         .stable_rank = 1,
                         .orthogonality_error = 168};
    assert_spectrum(spectrum_of((float[]){3, 4, 12}, 1, 3), expected, 1e-12);
    assert_spectrum(spectrum_of((float[]){3, 4, 12}, 3, 1), expected, 1e-12);
}

static void statistics_follow_their_formulas(void **state) {
    (void)state;
    double sigma[3] = {0.25, 1.25, 1}; /* in any order */
    double entropy = -(0.1 * log(0.1) + 0.5 * log(0.5) + 0.4 * log(0.4));
    double squares[3] = {1 / 42.0, 25 / 42.0, 16 / 42.0}, entropy_sq = 0;
    for (int i = 0; i < 3; i++) entropy_sq -= squares[i] * log(squares[i]) / log(3);
    Spectrum expected = {.sigma_max = 1.25,
                         .sigma_min = 0.25,
                         .rms = sqrt(42.0 / 16 / (3 * 7)),
                         .entropy = entropy,
                         .entropy_sq = entropy_sq,
                         .effective_rank = exp(entropy),
                         .stable_rank = 42.0 / 25,
                         .orthogonality_error = sqrt(0.9375 * 0.9375 + 0.5625 * 0.5625),
                         .below_half = 1 / 3.0};
    assert_spectrum(spectrum_from_values(sigma, 3, 7), expected, 1e-14);
    assert_value(spectrum_from_values((double[]){0.501, 0.5, 0.499, 1}, 4, 4).below_half, 0.25, 0);
}

static void huge_and_tiny_values_do_not_overflow(void **state) {
    (void)state;
    Spectrum huge = spectrum_from_values((double[]){1e300, 1e300}, 2, 2);
    assert_value(huge.stable_rank, 2, 1e-12);
    assert_value(huge.rms / 1e300, sqrt(0.5), 1e-12);
    Spectrum tiny = spectrum_from_values((double[]){1e-300, 1e-300}, 2, 2);
    assert_value(tiny.effective_rank, 2, 1e-12);
    float matrix[4] = {3e38f, 0, 0, 3e38f};
    assert_value(spectrum_of(matrix, 2, 2).effective_rank, 2, 1e-12);
}

static void a_value_that_is_not_finite_makes_all_nan(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    Spectrum expected = spectrum_from_values((double[]){(double)NAN}, 1, 1);
    for (int b = 0; b < 3; b++) {
        float *matrix = random_matrix(20, 400, 3);
        matrix[19 * 400 + 399] = bad[b]; /* the last panel's last element */
        Spectrum got = spectrum_of(matrix, 20, 400);
        assert_true(isnan(got.sigma_max) && isnan(got.entropy) && isnan(got.stable_rank));
        assert_true(isnan(got.rms) && isnan(got.orthogonality_error) && isnan(got.below_half));
        assert_spectrum(got, expected, 0);
        free(matrix);
    }
}

/* ---- the probe -------------------------------------------------------------------------------------------------- */

static void open_toy(Toy *t, char *orthogonality, char *rms) {
    toy_open(t, "ref", (char *[]){"probe.spectrum_every=1", orthogonality, rms, NULL});
    toy_fill(t, t->gpt.params.grad, 8);
}

static void open_plain(Toy *t) {
    open_toy(t, "probe.orthogonality=false", "probe.rms=false");
}

static int heads_of_qk(const BlockKind *kind) {
    return kind->role == ROLE_Q ? HEADS : kind->role == ROLE_K ? KV_HEADS : 0;
}

/* W <- 0.75 W - 0.5 U. */
static Route route_of(int kind, int64_t first, int64_t layers, BlockSplit split) {
    return (Route){.kind = kind, .first = first, .layers = layers, .split = split, .scale = 0.25f};
}

static void apply(Toy *t, const Route *route, Tensor momentum, Tensor update) {
    const UpdateEvent coming = {.moment = UPDATE_COMES, .route = route, .lr = 2, .keep = 0.75};
    UpdateEvent event = coming;
    event.moment = UPDATE_APPLIED;
    event.momentum = momentum;
    event.update = update;
    probes_update(&t->set, &coming); /* nothing to measure yet */
    probes_update(&t->set, &event);
}

static Tensor run_of(Toy *t, Tensor storage, const Route *r) {
    return params_block_run(&t->gpt.params, storage, r->kind, r->first, r->layers, r->split);
}

/* The spectrum of a (rows, columns) view, copied element by element. */
static Spectrum expected_spectrum(Toy *t, Tensor block) {
    double *values = test_read(&t->be, block);
    int64_t count = tensor_numel(block);
    float *matrix = calloc((size_t)count, sizeof *matrix);
    for (int64_t i = 0; i < count; i++) matrix[i] = (float)values[i];
    Spectrum spectrum = spectrum_of(matrix, block.shape[0], block.shape[1]);
    free(matrix);
    return spectrum;
}

static void assert_spectrum_of(const cJSON *row, const Spectrum *expected) {
    assert_near("sigma_max", number_of(row, "sigma_max"), expected->sigma_max, 1e-12);
    assert_near("sigma_min", number_of(row, "sigma_min"), expected->sigma_min, 1e-12);
    assert_near("rms", number_of(row, "rms"), expected->rms, 1e-12);
    assert_near("entropy", number_of(row, "entropy"), expected->entropy, 1e-12);
    assert_near("entropy_sq", number_of(row, "entropy_sq"), expected->entropy_sq, 1e-12);
    assert_near("effective_rank", number_of(row, "effective_rank"), expected->effective_rank, 1e-12);
    assert_near("stable_rank", number_of(row, "stable_rank"), expected->stable_rank, 1e-12);
}

static bool has(const cJSON *row, const char *key) {
    return cJSON_GetObjectItem(row, key) != NULL;
}

/* What only updates have: of the units that are orthogonalized, and of whole blocks. */
static void assert_update_fields(const Toy *t, const cJSON *row, const Spectrum *expected, bool whole, bool unit) {
    const bool orthogonality = t->config.probe.orthogonality && unit, rms = t->config.probe.rms && whole;
    assert_true(has(row, "error") == orthogonality && has(row, "below_half") == orthogonality);
    assert_true(has(row, "step_rms") == rms && has(row, "decay_bound") == rms);
    if (orthogonality) {
        assert_near("error", number_of(row, "error"), expected->orthogonality_error, 1e-12);
        assert_near("below_half", number_of(row, "below_half"), expected->below_half, 1e-12);
    }
    if (rms) {
        assert_near("step_rms", number_of(row, "step_rms"), 0.5 * expected->rms, 1e-12);
        assert_near("decay_bound", number_of(row, "decay_bound"), 0.5 * expected->sigma_max / 0.25, 1e-12);
    }
}

/* Whole blocks layer by layer, then heads: every one has the spectrum of that part of `storage`. Returns the row behind
 * them. */
static const cJSON *check_rows(Toy *t, const cJSON *row, const char *of, Tensor storage, const Route *r, int heads) {
    for (int64_t i = 0; i < r->layers * (1 + heads); i++, row = row->next) {
        const bool whole = i < r->layers;
        const int64_t layer = r->first + (whole ? i : (i - r->layers) / heads);
        const int head = whole ? -1 : (int)((i - r->layers) % heads);
        const ParamTable *params = &t->gpt.params;
        assert_block(t, row, r->kind, layer);
        assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(row, "of")), of);
        if (whole)
            assert_true(cJSON_IsNull(cJSON_GetObjectItem(row, "head")));
        else
            assert_int_equal((int)number_of(row, "head"), head);
        const Spectrum expected =
            expected_spectrum(t, whole ? params_block(params, storage, r->kind, layer)
                                       : params_block_head(params, storage, r->kind, layer, head));
        assert_spectrum_of(row, &expected);
        if (strcmp(of, "update") == 0)
            assert_update_fields(t, row, &expected, whole, whole == (r->split == SPLIT_WHOLE));
        else
            assert_false(has(row, "error") || has(row, "step_rms"));
    }
    return row;
}

/* A step's last rows. */
static void check_weights(Toy *t, const cJSON *row) {
    const ParamTable *params = &t->gpt.params;
    for (int kind = 0; kind < params->kind_count; kind++) {
        if (!params_is_hidden_matrix(&params->kinds[kind])) continue;
        const Route all = route_of(kind, 0, LAYERS, SPLIT_WHOLE);
        row = check_rows(t, row, "weight", params->master, &all, heads_of_qk(&params->kinds[kind]));
    }
    assert_null(row);
}

/* A step in which momentum and update of layers 1 and 2 of one kind are the weights and the gradient. */
static void check_kind(Toy *t, const char *name, BlockSplit split, int heads) {
    const ParamTable *params = &t->gpt.params;
    const Route route = route_of(params_find_kind(params, name), 1, 2, split);
    toy_begin(t, 1);
    apply(t, &route, run_of(t, params->master, &route), run_of(t, params->grad, &route));
    cJSON *line = toy_end(t);
    const cJSON *row = rows_of(line, "spectrum")->child;
    row = check_rows(t, row, "momentum", params->master, &route, heads);
    row = check_rows(t, row, "update", params->grad, &route, heads);
    check_weights(t, row);
    cJSON_Delete(line);
}

static void whole_runs_give_the_matrix_and_the_heads_of_q_and_k(void **state) {
    (void)state;
    Toy t;
    open_plain(&t);
    check_kind(&t, "q", SPLIT_WHOLE, HEADS);
    check_kind(&t, "k", SPLIT_WHOLE, KV_HEADS);
    check_kind(&t, "v", SPLIT_WHOLE, 0);
    check_kind(&t, "o", SPLIT_WHOLE, 0);
    check_kind(&t, "gate", SPLIT_WHOLE, 0);
    check_kind(&t, "up", SPLIT_WHOLE, 0);
    toy_close(&t);
}

static void runs_split_by_rows_are_put_together(void **state) {
    (void)state;
    Toy t;
    open_plain(&t);
    check_kind(&t, "q", SPLIT_PER_HEAD, HEADS);
    check_kind(&t, "k", SPLIT_PER_HEAD, KV_HEADS);
    check_kind(&t, "v", SPLIT_PER_HEAD, 0);
    toy_close(&t);
}

static void runs_split_by_columns_are_put_together(void **state) {
    (void)state;
    Toy t;
    open_plain(&t);
    check_kind(&t, "o", SPLIT_PER_HEAD, 0);
    toy_close(&t);
}

/* With what orthogonality and the size of the step add to the rows. */
static void split_heads_of_every_kind_are_measured_where_asked_for(void **state) {
    (void)state;
    Toy t;
    for (int rms = 0; rms < 2; rms++) {
        open_toy(&t, "probe.orthogonality=true", rms ? "probe.rms=true" : "probe.rms=false");
        check_kind(&t, "q", SPLIT_PER_HEAD, HEADS);
        check_kind(&t, "v", SPLIT_PER_HEAD, KV_HEADS);
        check_kind(&t, "v", SPLIT_WHOLE, 0);
        check_kind(&t, "o", SPLIT_PER_HEAD, HEADS);
        check_kind(&t, "o", SPLIT_WHOLE, 0);
        toy_close(&t);
    }
}

/* What the optimizer hands over: its own contiguous (layers, heads, rows, columns), here rounded to bf16. */
static void contiguous_runs_of_bf16_are_measured_too(void **state) {
    (void)state;
    static const char *const names[] = {"q", "o"};
    static const int heads[] = {HEADS, 0};
    Toy t;
    open_plain(&t);
    const ParamTable *params = &t.gpt.params;
    for (int i = 0; i < 2; i++) {
        const Route route = route_of(params_find_kind(params, names[i]), 0, LAYERS, SPLIT_PER_HEAD);
        Tensor source = run_of(&t, params->master, &route);
        double *values = test_read(&t.be, source);
        Tensor run =
            test_zeros(&t.be, DTYPE_BF16, shape4(source.shape[0], source.shape[1], source.shape[2], source.shape[3]));
        test_write(&t.be, run, values);
        test_write(&t.be, source, test_read(&t.be, run)); /* the weights are what bf16 made of them */
        toy_begin(&t, 1);
        apply(&t, &route, run, run);
        cJSON *line = toy_end(&t);
        const cJSON *row = rows_of(line, "spectrum")->child;
        row = check_rows(&t, row, "momentum", params->master, &route, heads[i]);
        row = check_rows(&t, row, "update", params->master, &route, heads[i]);
        check_weights(&t, row);
        cJSON_Delete(line);
    }
    toy_close(&t);
}

static void a_step_has_room_for_weight_momentum_and_update(void **state) {
    (void)state;
    Toy t;
    for (int split = SPLIT_WHOLE; split <= SPLIT_PER_HEAD; split++) {
        int of_weights = 0, of_updates = 0;
        open_toy(&t, split == SPLIT_WHOLE ? "probe.orthogonality=false" : "probe.orthogonality=true", "probe.rms=true");
        const ParamTable *params = &t.gpt.params;
        toy_begin(&t, 1);
        for (int kind = 0; kind < params->kind_count; kind++) {
            const BlockKind *block = &params->kinds[kind];
            const bool splits = split == SPLIT_PER_HEAD && block->heads > 1;
            if (!params_is_hidden_matrix(block)) continue;
            of_weights += LAYERS * (1 + heads_of_qk(block));
            of_updates += LAYERS * (1 + (splits ? block->heads : heads_of_qk(block)));
            for (int64_t layer = 0; layer < LAYERS; layer++) {
                const Route route = route_of(kind, layer, 1, splits ? SPLIT_PER_HEAD : SPLIT_WHOLE);
                apply(&t, &route, run_of(&t, params->master, &route), run_of(&t, params->grad, &route));
            }
        }
        cJSON *line = toy_end(&t);
        assert_int_equal(cJSON_GetArraySize(rows_of(line, "spectrum")), 2 * of_updates + of_weights);
        cJSON_Delete(line);
        toy_begin(&t, 2); /* has nothing of the step before */
        line = toy_end(&t);
        assert_int_equal(cJSON_GetArraySize(rows_of(line, "spectrum")), of_weights);
        check_weights(&t, rows_of(line, "spectrum")->child);
        cJSON_Delete(line);
        assert_true(probes_bytes(&t.set) > 0);
        toy_close(&t);
    }
}

static void a_nan_in_one_head_stays_in_that_head_and_the_whole(void **state) {
    (void)state;
    Toy t;
    open_plain(&t);
    const ParamTable *params = &t.gpt.params;
    const int q = params_find_kind(params, "q");
    test_set(&t.be, params_block_head(params, params->master, q, 0, 2), 0, (double)NAN);
    toy_begin(&t, 1);
    cJSON *line = toy_end(&t);
    for (const cJSON *row = rows_of(line, "spectrum")->child; row; row = row->next) {
        const bool of_block = strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(row, "role")), role_name(ROLE_Q)) == 0 &&
                              (int)number_of(row, "layer") == 0;
        const double head = number_of(row, "head");
        const bool expected = of_block && (isnan(head) || head == 2);
        assert_int_equal(isnan(number_of(row, "entropy")) != 0, expected);
        assert_int_equal(isnan(number_of(row, "sigma_max")) != 0, expected);
    }
    check_weights(&t, rows_of(line, "spectrum")->child);
    cJSON_Delete(line);
    toy_close(&t);
}

/* ---- fields of updates ------------------------------------------------------------------------------------------ */

typedef enum { BOUND_NONE, BOUND_OF_NORM, BOUND_OF_ELEMENTS } Bound;

/* The first update's row of a step of "up" with an optimizer's rules. */
static void check_fields(char *matrices, char *option, double keep, bool orthogonal, Bound bound) {
    Toy t;
    toy_open(&t, "ref", (char *[]){"probe.spectrum_every=1", matrices, option, "optimizer.normuon.beta2=0.9", NULL});
    const ParamTable *params = &t.gpt.params;
    Route route = route_of(params_find_kind(params, "up"), 0, 1, SPLIT_WHOLE);
    route.optimizer = t.config.optimizer.matrices;
    const UpdateEvent e = {.moment = UPDATE_APPLIED,
                           .route = &route,
                           .lr = 2,
                           .keep = keep,
                           .momentum = tensor_none(),
                           .update = run_of(&t, params->master, &route)};
    toy_begin(&t, 1);
    probes_update(&t.set, &e);
    cJSON *line = toy_end(&t);
    const cJSON *row = rows_of(line, "spectrum")->child;
    const Spectrum u = expected_spectrum(&t, params_block(params, params->master, route.kind, 0));
    const double norm = bound == BOUND_OF_NORM ? u.sigma_max : sqrt(MLP * WIDTH);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(row, "of")), "update"); /* no momentum, no row of it */
    assert_near("step_rms", number_of(row, "step_rms"), 0.5 * u.rms, 1e-12);
    assert_near("decay_bound", number_of(row, "decay_bound"),
                bound == BOUND_NONE ? (double)NAN : 0.5 * norm / (1 - keep), 1e-12);
    assert_true(has(row, "error") == orthogonal && has(row, "below_half") == orthogonal);
    cJSON_Delete(line);
    toy_close(&t);
}

static void fields_of_updates_follow_the_optimizer(void **state) {
    (void)state;
    static char none[] = "name=toy";
    check_fields("optimizer.matrices=muon", none, 0.75, true, BOUND_OF_NORM);
    check_fields("optimizer.matrices=muon", none, 1, true, BOUND_NONE);
    check_fields("optimizer.matrices=muon", "optimizer.cautious_decay=true", 0.75, true, BOUND_NONE);
    check_fields("optimizer.matrices=muon", "optimizer.muon.orthogonalize=schatten", 0.75, false, BOUND_OF_NORM);
    check_fields("optimizer.matrices=normuon", none, 0.75, false, BOUND_OF_NORM);
    check_fields("optimizer.matrices=adamuon", none, 0.75, false, BOUND_OF_NORM);
    check_fields("optimizer.matrices=adamw", none, 0.75, false, BOUND_OF_ELEMENTS);
    check_fields("optimizer.matrices=adamw", none, 1, false, BOUND_NONE);
    check_fields("optimizer.matrices=lion", none, 0.75, false, BOUND_OF_ELEMENTS);
    check_fields("optimizer.matrices=sgd", none, 0.75, false, BOUND_NONE);
}

/* ---- a device that runs beside the host ------------------------------------------------------------------------- */

/* What it has been asked to call once its work is done, which is when somebody waits. */
static struct {
    void (*function)(void *);
    void *argument;
    bool broken; /* the device: it calls nothing any more */
} later;

static void call_later(Backend *be, void (*function)(void *), void *argument) {
    (void)be;
    assert_null(later.function);
    later.function = function;
    later.argument = argument;
}

static Status sync(Backend *be) {
    (void)be;
    if (later.broken) return status_error(STATUS_DEVICE, "broken");
    void (*function)(void *) = later.function;
    later.function = NULL;
    if (function) function(later.argument);
    return status_ok();
}

static void mark(Backend *be, int moment) {
    (void)be;
    (void)moment;
}

static void open_asynchronous(Toy *t) {
    toy_prepare(t, "ref", (char *[]){"probe.spectrum_every=2", NULL});
    memset(&later, 0, sizeof later);
    t->be.ops.mark = mark;
    t->be.ops.call_later = call_later;
    t->be.ops.sync = sync;
    toy_plan(t);
    assert_ok(probes_allocate(&t->set));
}

/* The line of a step whose weights follow from it, without the spectrum. */
static cJSON *step_with_late_line(Toy *t, int64_t step) {
    cJSON *line = cJSON_CreateObject();
    toy_fill(t, t->gpt.params.master, 60 + (uint64_t)step);
    toy_begin(t, step);
    probes_end(&t->set);
    assert_true(probes_report(&t->set, line) == (step % 2 == 0));
    assert_null(cJSON_GetObjectItem(line, "spectrum"));
    return line;
}

static void check_late_line(Toy *t, cJSON *line, int64_t step) {
    probes_report_late(&t->set, line);
    line = toy_reread(line);
    toy_fill(t, t->gpt.params.master, 60 + (uint64_t)step); /* as it was */
    check_weights(t, rows_of(line, "spectrum")->child);
    cJSON_Delete(line);
}

static void a_line_gets_the_spectrum_of_its_own_step_while_others_run(void **state) {
    (void)state;
    Toy t;
    open_asynchronous(&t);
    cJSON *line = step_with_late_line(&t, 2);
    assert_non_null(later.function);
    cJSON_Delete(step_with_late_line(&t, 3)); /* is not due */
    assert_non_null(later.function);
    check_late_line(&t, line, 2);
    assert_null(later.function);

    line = step_with_late_line(&t, 4);
    toy_fill(&t, t.gpt.params.master, 1);
    toy_begin(&t, 6); /* is due, and needs the memory */
    check_late_line(&t, line, 4);
    toy_fill(&t, t.gpt.params.master, 66);
    probes_end(&t.set);
    line = cJSON_CreateObject();
    assert_true(probes_report(&t.set, line));
    check_late_line(&t, line, 6);

    cJSON_Delete(step_with_late_line(&t, 8)); /* is still being measured at the end */
    toy_close(&t);
}

static void a_line_does_not_wait_for_a_device_that_has_failed(void **state) {
    (void)state;
    Toy t;
    open_asynchronous(&t);
    cJSON *line = step_with_late_line(&t, 2);
    later.broken = true;
    probes_report_late(&t.set, line);
    assert_true(cJSON_GetArraySize(rows_of(line, "spectrum")) > 0);
    assert_non_null(later.function);
    cJSON_Delete(line);
    toy_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(orthogonality_and_rms_are_those_of_the_elements),
        cmocka_unit_test(singular_values_agree_with_the_svd),
        cmocka_unit_test(the_identity_has_a_flat_spectrum),
        cmocka_unit_test(a_matrix_of_rank_one_has_no_entropy),
        cmocka_unit_test(rounding_of_the_gram_matrix_adds_no_singular_values),
        cmocka_unit_test(a_zero_matrix_has_a_spectrum_of_zeros),
        cmocka_unit_test(a_vector_has_its_length_as_its_only_value),
        cmocka_unit_test(statistics_follow_their_formulas),
        cmocka_unit_test(huge_and_tiny_values_do_not_overflow),
        cmocka_unit_test(a_value_that_is_not_finite_makes_all_nan),
        cmocka_unit_test(whole_runs_give_the_matrix_and_the_heads_of_q_and_k),
        cmocka_unit_test(runs_split_by_rows_are_put_together),
        cmocka_unit_test(runs_split_by_columns_are_put_together),
        cmocka_unit_test(split_heads_of_every_kind_are_measured_where_asked_for),
        cmocka_unit_test(contiguous_runs_of_bf16_are_measured_too),
        cmocka_unit_test(a_step_has_room_for_weight_momentum_and_update),
        cmocka_unit_test(a_nan_in_one_head_stays_in_that_head_and_the_whole),
        cmocka_unit_test(fields_of_updates_follow_the_optimizer),
        cmocka_unit_test(a_line_gets_the_spectrum_of_its_own_step_while_others_run),
        cmocka_unit_test(a_line_does_not_wait_for_a_device_that_has_failed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
