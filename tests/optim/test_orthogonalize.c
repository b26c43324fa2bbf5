/* Newton-Schulz and the exact SVD against matrices whose singular values and vectors are known: U = P S Qᵀ is built
 * from random orthogonal P and Q, so that the exact outcome P f(S) Qᵀ is known too, for f the composed polynomials.
 */
#include "tests/tensors.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>

#include "optim/coefficients.h"
#include "optim/orthogonalize.h"

enum { SMALL_MAX = 32 };

/* ---- known matrices --------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t rows, columns, small;
    double *left, *right; /* (rows, small), (small, columns): orthonormal columns and rows */
    double sigma[SMALL_MAX];
} Factors;

static Factors random_factors(int64_t rows, int64_t columns, uint64_t seed) {
    Factors f = {.rows = rows, .columns = columns, .small = rows < columns ? rows : columns};
    assert_true(f.small <= SMALL_MAX);
    double *matrix = malloc((size_t)(rows * columns) * sizeof *matrix);
    f.left = malloc((size_t)(rows * f.small) * sizeof *f.left);
    f.right = malloc((size_t)(f.small * columns) * sizeof *f.right);
    for (int64_t i = 0; i < rows * columns; i++) matrix[i] = test_uniform(seed, i);
    assert_int_equal(LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'S', (lapack_int)rows, (lapack_int)columns, matrix,
                                    (lapack_int)columns, f.sigma, f.left, (lapack_int)f.small, f.right,
                                    (lapack_int)columns),
                     0);
    free(matrix);
    /* from 1 down to .1: with at most 32 of them and norm at most sqrt(32), all lie in [.01, 1] after normalization */
    for (int64_t i = 0; i < f.small; i++) f.sigma[i] = f.small > 1 ? pow(.1, (double)i / (double)(f.small - 1)) : 1;
    return f;
}

static void free_factors(Factors *f) {
    free(f->left);
    free(f->right);
}

static void compose(const Factors *f, const double *sigma, double *matrix) {
    for (int64_t i = 0; i < f->rows; i++)
        for (int64_t j = 0; j < f->columns; j++) {
            double sum = 0;
            for (int64_t k = 0; k < f->small; k++)
                sum += f->left[i * f->small + k] * sigma[k] * f->right[k * f->columns + j];
            matrix[i * f->columns + j] = sum;
        }
}

static void singular_values(double *sigma, const double *matrix, int64_t rows, int64_t columns) {
    double *copy = malloc((size_t)(rows * columns) * sizeof *copy);
    memcpy(copy, matrix, (size_t)(rows * columns) * sizeof *copy);
    assert_int_equal(LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'N', (lapack_int)rows, (lapack_int)columns, copy,
                                    (lapack_int)columns, sigma, NULL, 1, NULL, (lapack_int)columns),
                     0);
    free(copy);
}

static int iterations_of(const CoefficientSet *set) {
    return set->count == 1 ? 5 : set->count;
}

static double iterate_once(const CoefficientSet *set, int i, double s) {
    const double *t = set->triples[set->count == 1 ? 0 : i];
    return t[0] * s + t[1] * pow(s, 3) + t[2] * pow(s, 5);
}

/* What exact arithmetic makes of a singular value, in the default number of iterations. */
static double polynomials(const CoefficientSet *set, double s) {
    for (int i = 0; i < iterations_of(set); i++) s = iterate_once(set, i, s);
    return s;
}

/* |f'(s)|: how much an error of the normalization grows. In a single row s is exactly 1, where some sets are steep. */
static double steepness(const CoefficientSet *set, double s) {
    double slope = 1;
    for (int i = 0; i < iterations_of(set); i++) {
        const double *t = set->triples[set->count == 1 ? 0 : i];
        slope *= t[0] + 3 * t[1] * pow(s, 2) + 5 * t[2] * pow(s, 4);
        s = iterate_once(set, i, s);
    }
    return fabs(slope);
}

/* ---- running the orthogonalizer --------------------------------------------------------------------------------- */

static MuonConfig config_of(const char *set) {
    MuonConfig config = {.iterations = 5};
    snprintf(config.coefficients.set, NAME_SIZE, "%s", set);
    return config;
}

/* msign of a batch (shape: layers, heads, rows, columns), in place. */
static void run(Backend *be, const MuonConfig *config, const int64_t *shape, double *matrices) {
    Orthogonalizer o;
    assert_ok(orthogonalizer_plan(&o, config, be));
    orthogonalizer_admit(&o, shape[2], shape[3]);
    assert_ok(orthogonalizer_allocate(&o));
    Arena scratch = arena_measure("test scratch");
    orthogonalizer_layout(&o, &scratch, shape);
    assert_ok(arena_allocate(&scratch, be));

    OrthogonalizeBuffers buffers = orthogonalizer_layout(&o, &scratch, shape);
    test_write(be, buffers.x, matrices);
    Tensor result = orthogonalize(&o, buffers);
    for (int64_t i = 0; i < tensor_numel(result); i++) matrices[i] = test_get(be, result, i);
    assert_ok(backend_sync(be));
    arena_free(&scratch);
    orthogonalizer_free(&o);
}

static void run_one(Backend *be, const MuonConfig *config, int64_t rows, int64_t columns, double *matrix) {
    run(be, config, (int64_t[]){1, 1, rows, columns}, matrix);
}

/* ---- the table of sets ------------------------------------------------------------------------------------------ */

static void every_set_maps_singular_values_into_its_interval_and_fills_it(void **state) {
    (void)state;
    for (int i = 0; i < COEFFICIENTS_COUNT; i++) {
        const CoefficientSet *set = &coefficient_sets[i];
        double low = (double)INFINITY, high = -low;
        for (int k = 0; k <= 100000; k++) {
            double value = polynomials(set, .01 + .99 * k / 100000);
            low = fmin(low, value);
            high = fmax(high, value);
        }
        if (low < set->low || low > set->low + .0015 || high > set->high + 1e-9 || high < set->high - .0015)
            fail_msg("%s maps [.01, 1] onto [%.5f, %.5f], its row says [%g, %g]", coefficient_set_name(set), low, high,
                     set->low, set->high);
    }
}

static void every_set_can_be_named_in_the_config(void **state) {
    (void)state;
    for (int i = 0; i < COEFFICIENTS_COUNT; i++) {
        char option[128];
        Config config;
        snprintf(option, sizeof option, "optimizer.muon.coefficients=%s", coefficient_set_name(&coefficient_sets[i]));
        assert_ok(config_load(&config, NULL, 1, (char *[]){option}));
        assert_string_equal(config.optimizer.muon.coefficients.set, coefficient_set_name(&coefficient_sets[i]));
    }
}

static void an_unknown_set_is_refused_with_the_names_of_all(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Orthogonalizer o;
    MuonConfig config = config_of("fancy");
    Status status = orthogonalizer_plan(&o, &config, &be);
    assert_fails(status, STATUS_BAD_INPUT, "optimizer.muon.coefficients");
    assert_fails(status, STATUS_BAD_INPUT, "\"fancy\"");
    for (int i = 0; i < COEFFICIENTS_COUNT; i++)
        assert_fails(status, STATUS_BAD_INPUT, coefficient_set_name(&coefficient_sets[i]));
    test_close(&be);
}

/* ---- Newton-Schulz ---------------------------------------------------------------------------------------------- */

/* Wide, tall, square, a single row or column, odd sizes around SIMD widths, and some so long that the Gram form pays.
 */
static const int64_t shapes[][2] = {{5, 5},   {12, 31}, {31, 12}, {1, 9},   {9, 1},  {1, 1},
                                    {17, 33}, {32, 32}, {29, 7},  {6, 150}, {150, 6}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

typedef struct {
    double unit;     /* of rounding */
    double interval; /* by how much a singular value may leave its set's interval */
    double elements; /* by how much O may differ from P f(S) Qᵀ */
} Rounding;

static void check_set(Backend *be, const CoefficientSet *set, int64_t rows, int64_t columns, Rounding rounding) {
    Factors f = random_factors(rows, columns, (uint64_t)(100 * rows + columns));
    double *matrix = malloc((size_t)(rows * columns) * sizeof *matrix);
    double *expected = malloc((size_t)(rows * columns) * sizeof *expected);
    compose(&f, f.sigma, matrix);
    MuonConfig config = config_of(coefficient_set_name(set));
    run_one(be, &config, rows, columns, matrix);

    double norm = 0, image[SMALL_MAX], got[SMALL_MAX];
    for (int64_t i = 0; i < f.small; i++) norm += f.sigma[i] * f.sigma[i];
    for (int64_t i = 0; i < f.small; i++) image[i] = polynomials(set, f.sigma[i] / sqrt(norm));
    double extra = 4 * rounding.unit * steepness(set, f.sigma[0] / sqrt(norm));
    singular_values(got, matrix, rows, columns);
    for (int64_t i = 0; i < f.small; i++)
        if (!(got[i] >= set->low - rounding.interval && got[i] <= set->high + rounding.interval))
            fail_msg("%s, (%lld,%lld): singular value %lld is %g, not in [%g, %g]", coefficient_set_name(set),
                     (long long)rows, (long long)columns, (long long)i, got[i], set->low, set->high);
    compose(&f, image, expected);
    assert_close(coefficient_set_name(set), matrix, expected, rows * columns,
                 (Tolerance){.absolute = rounding.elements + extra});
    free(matrix);
    free(expected);
    free_factors(&f);
}

static void check_all_sets(const char *device, const char *precision, Rounding rounding) {
    Backend be;
    test_open(&be, device, precision);
    test_reserve(&be, (OpLimits){.width = 64});
    for (int i = 0; i < COEFFICIENTS_COUNT; i++)
        for (int s = 0; s < SHAPES; s++) check_set(&be, &coefficient_sets[i], shapes[s][0], shapes[s][1], rounding);
    test_close(&be);
}

/* fp32: errors of some 1e-7 per product grow by the polynomials' slopes, at most 1e3 altogether (polar-express). */
static const Rounding fp32_rounding = {.unit = 0x1p-24, .interval = 1e-4, .elements = 1e-4};
/* bf16: 2^-9 per product; the last three products are hardly amplified. 0.05 is a tenth of a typical element. */
static const Rounding bf16_rounding = {.unit = 0x1p-9, .interval = 0.03, .elements = 0.05};

static void on_ref_singular_values_land_in_the_interval_and_vectors_stay(void **state) {
    (void)state;
    check_all_sets("ref", "fp32", fp32_rounding);
}

static void on_cpu_in_fp32_singular_values_land_in_the_interval_and_vectors_stay(void **state) {
    (void)state;
    check_all_sets("cpu", "fp32", fp32_rounding);
}

static void on_cpu_in_bf16_singular_values_land_in_the_interval_and_vectors_stay(void **state) {
    (void)state;
    check_all_sets("cpu", "bf16", bf16_rounding);
}

/* A rank-1 matrix is the hardest: its singular value is exactly 1, and rounding puts it above in half of the cases. */
static void no_set_diverges_on_matrices_of_rank_one_in_bf16(void **state) {
    (void)state;
    enum { N = 6, M_MAX = 60 };
    Backend be;
    test_open(&be, "ref", "bf16");
    for (int i = 0; i < COEFFICIENTS_COUNT; i++)
        for (uint64_t seed = 0; seed < 20; seed++) {
            int M = seed % 2 ? M_MAX : 10; /* those that run in fp32: in the Gram form and in the plain one */
            double matrix[N * M_MAX], sigma[N];
            for (int r = 0; r < N; r++)
                for (int c = 0; c < M; c++) matrix[r * M + c] = test_uniform(seed, r) * test_uniform(seed, N + c);
            MuonConfig config = config_of(coefficient_set_name(&coefficient_sets[i]));
            run_one(&be, &config, N, M, matrix);
            singular_values(sigma, matrix, N, M);
            if (!(sigma[0] < 1.3)) fail_msg("%s: %g", coefficient_set_name(&coefficient_sets[i]), sigma[0]);
        }
    test_close(&be);
}

static void coefficients_that_would_diverge_in_bf16_run_in_fp32(void **state) {
    (void)state;
    static const char *const fp32_only[] = {"su", "cans"};
    Backend be;
    test_open(&be, "ref", "bf16");
    for (int i = 0; i < COEFFICIENTS_COUNT; i++) {
        Orthogonalizer o;
        MuonConfig config = config_of(coefficient_set_name(&coefficient_sets[i]));
        assert_ok(orthogonalizer_plan(&o, &config, &be));
        bool fp32 = false;
        for (size_t k = 0; k < 2; k++)
            fp32 = fp32 || strcmp(coefficient_set_name(&coefficient_sets[i]), fp32_only[k]) == 0;
        if (o.dtype != (fp32 ? DTYPE_F32 : DTYPE_BF16))
            fail_msg("%s runs in %s", coefficient_set_name(&coefficient_sets[i]), dtype_name(o.dtype));
    }
    test_close(&be);
}

/* ---- both orthogonalizers --------------------------------------------------------------------------------------- */

static MuonConfig svd_config(void) {
    MuonConfig config = config_of("muon");
    config.orthogonalize = ORTHOGONALIZE_SVD;
    return config;
}

static void the_svd_gives_the_orthogonal_factor_itself(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "bf16"); /* exact also in bf16 mode: it stays fp32 on its way to the host and back */
    MuonConfig config = svd_config();
    for (int s = 0; s < SHAPES; s++) {
        Factors f = random_factors(shapes[s][0], shapes[s][1], (uint64_t)s);
        double matrix[33 * 33], expected[33 * 33], ones[SMALL_MAX];
        for (int i = 0; i < SMALL_MAX; i++) ones[i] = 1;
        compose(&f, f.sigma, matrix);
        compose(&f, ones, expected);
        run_one(&be, &config, f.rows, f.columns, matrix);
        /* fp32 input noise of 6e-8 over the smallest singular value, .1 */
        assert_close("svd", matrix, expected, f.rows * f.columns, (Tolerance){.absolute = 4e-6});
        free_factors(&f);
    }
    test_close(&be);
}

/* ---- Schatten-p ------------------------------------------------------------------------------------------------- */

static MuonConfig schatten_config(double p) {
    MuonConfig config = config_of("muon");
    config.orthogonalize = ORTHOGONALIZE_SCHATTEN;
    config.schatten_p = p;
    return config;
}

static double power_sum(const double *x, int64_t n, double power) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += pow(x[i], power);
    return sum;
}

/* By what makes it the steepest: it lies on the ball, and <U, O> is all that Hölder's inequality allows. */
static void check_steepest(Backend *be, Factors *f, double p) {
    double matrix[33 * 33], U[33 * 33], got[SMALL_MAX], along = 0;
    const double q = p / (p - 1), k = (double)f->small;
    MuonConfig config = schatten_config(p);
    compose(f, f->sigma, U);
    memcpy(matrix, U, sizeof matrix);
    run_one(be, &config, f->rows, f->columns, matrix);
    singular_values(got, matrix, f->rows, f->columns);
    for (int64_t i = 0; i < f->rows * f->columns; i++) along += U[i] * matrix[i];
    const double norm = pow(power_sum(got, f->small, p), 1 / p), radius = pow(k, 1 / p);
    const double most = radius * pow(power_sum(f->sigma, f->small, q), 1 / q);
    assert_close("norm", &norm, &radius, 1, (Tolerance){.relative = 1e-5});
    assert_close("<U, O>", &along, &most, 1, (Tolerance){.relative = 1e-5});
}

static void schatten_is_the_steepest_descent_in_its_norm(void **state) {
    (void)state;
    static const double powers[] = {2, 3, 4, 10, 100};
    Backend be;
    test_open(&be, "ref", "bf16");
    for (int s = 0; s < SHAPES; s++) {
        Factors f = random_factors(shapes[s][0], shapes[s][1], (uint64_t)s);
        for (size_t i = 0; i < sizeof powers / sizeof powers[0]; i++) check_steepest(&be, &f, powers[i]);
        free_factors(&f);
    }
    test_close(&be);
}

static void schatten_runs_from_the_normalised_gradient_to_msign_whatever_the_size(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    static const double sizes[] = {1e-30, 1, 1e30};
    Factors f = random_factors(7, 12, 1);
    double ones[SMALL_MAX], normalised[SMALL_MAX], U[7 * 12], matrix[7 * 12], expected[7 * 12];
    for (int i = 0; i < 7; i++) ones[i] = 1, normalised[i] = f.sigma[i] * sqrt(7 / power_sum(f.sigma, 7, 2));
    compose(&f, f.sigma, U);
    for (int limit = 0; limit < 2; limit++)
        for (int s = 0; s < 3; s++) {
            MuonConfig config = schatten_config(limit ? 1e6 : 2);
            for (int i = 0; i < 7 * 12; i++) matrix[i] = sizes[s] * U[i];
            compose(&f, limit ? ones : normalised, expected);
            run_one(&be, &config, 7, 12, matrix);
            assert_close(limit ? "msign" : "gradient", matrix, expected, 7 * 12, (Tolerance){.absolute = 4e-6});
        }
    free_factors(&f);
    test_close(&be);
}

/* Directions without signal stay without: Newton-Schulz multiplies their rounding noise by its slope at 0. */
static void check_missing_ranks(Backend *be, const MuonConfig *config, int64_t columns) {
    Factors f = random_factors(12, columns, 3);
    double matrix[12 * 90], got[12];
    for (int i = 8; i < 12; i++) f.sigma[i] = 0;
    compose(&f, f.sigma, matrix);
    run_one(be, config, 12, columns, matrix);
    singular_values(got, matrix, 12, columns);
    for (int i = 0; i < 12; i++)
        if (i < 8 ? got[i] < .6 || got[i] > 1.2 : got[i] > 1e-3)
            fail_msg("(12,%lld): singular value %d is %g", (long long)columns, i, got[i]);
    free_factors(&f);
}

static void missing_ranks_stay_missing(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    MuonConfig configs[] = {config_of("muon"), config_of("polar-express"), config_of("deepseek-v4"), svd_config(),
                            schatten_config(1000)};
    for (size_t c = 0; c < sizeof configs / sizeof configs[0]; c++) {
        if (c != 2) check_missing_ranks(&be, &configs[c], 19); /* its ten plain iterations lift the noise to 1 */
        check_missing_ranks(&be, &configs[c], 90);
    }
    test_close(&be);
}

/* And the form that is asked for is the one that runs. */
static void every_form_gives_the_same_up_to_rounding(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{24, 24}, {20, 90}, {90, 20}};
    static const char *const devices[] = {"ref", "cpu"};
    for (int d = 0; d < 2; d++) {
        Backend be;
        test_open(&be, devices[d], "fp32");
        test_reserve(&be, (OpLimits){.width = 90});
        be.profile = true; /* counts calls */
        for (int s = 0; s < 3; s++) {
            const int64_t n = sizes[s][0], m = sizes[s][1];
            double got[4][90 * 90];
            for (int form = FORM_AUTO; form <= FORM_GRAM; form++) {
                MuonConfig config = config_of("muon");
                Orthogonalizer o;
                config.form = (NewtonSchulzForm)form;
                assert_ok(orthogonalizer_plan(&o, &config, &be));
                if (form != FORM_AUTO) assert_int_equal(orthogonalizer_uses_gram(&o, n, m), form == FORM_GRAM);
                for (int64_t i = 0; i < n * m; i++) got[form][i] = test_uniform(7, i);
                const int64_t halves = be.timers[OP_MATMUL_SYMMETRIC].calls;
                run_one(&be, &config, n, m, got[form]);
                assert_int_equal(be.timers[OP_MATMUL_SYMMETRIC].calls == halves, form == FORM_PLAIN);
            }
            for (int form = FORM_PLAIN; form <= FORM_GRAM; form++)
                assert_close("form", got[form], got[FORM_AUTO], n * m, (Tolerance){.absolute = 2e-5});
        }
        test_close(&be);
    }
}

static void the_gram_form_in_bf16_runs_in_fp32(void **state) {
    (void)state;
    Backend be;
    Orthogonalizer o;
    MuonConfig config = config_of("muon");
    config.form = FORM_GRAM;
    test_open(&be, "ref", "bf16");
    assert_ok(orthogonalizer_plan(&o, &config, &be));
    assert_true(o.dtype == DTYPE_F32 && orthogonalizer_uses_gram(&o, 64, 64));
    test_close(&be);
}

static void the_gram_form_is_taken_in_fp32_where_it_is_cheaper(void **state) {
    (void)state;
    static const char *const precisions[] = {"fp32", "bf16"};
    MuonConfig muon = config_of("muon"), svd = svd_config();
    for (int p = 0; p < 2; p++) {
        Backend be;
        Orthogonalizer o;
        test_open(&be, "ref", precisions[p]);
        assert_ok(orthogonalizer_plan(&o, &muon, &be));
        assert_false(orthogonalizer_uses_gram(&o, 64, 64));
        assert_int_equal(orthogonalizer_uses_gram(&o, 64, 256), p == 0);
        assert_int_equal(orthogonalizer_uses_gram(&o, 256, 64), p == 0);
        assert_ok(orthogonalizer_plan(&o, &svd, &be));
        assert_false(orthogonalizer_uses_gram(&o, 64, 256));
        test_close(&be);
    }
}

static void a_zero_matrix_gives_zero_and_one_that_is_not_finite_gives_nan(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    MuonConfig configs[] = {config_of("muon"), svd_config(), schatten_config(2), schatten_config(4)};
    for (size_t c = 0; c < 4; c++) {
        double matrices[3 * 12] = {0}, zero[12] = {0};
        for (int i = 12; i < 36; i++) matrices[i] = 1 + .1 * i;
        matrices[17] = (double)NAN, matrices[30] = (double)INFINITY;
        run(&be, &configs[c], (int64_t[]){3, 1, 3, 4}, matrices);
        assert_close("zero", matrices, zero, 12, (Tolerance){0});
        for (int i = 12; i < 36; i++) assert_true(isnan(matrices[i]) != 0);
    }
    test_close(&be);
}

static void a_batch_gives_what_its_matrices_give_alone(void **state) {
    (void)state;
    static const char *const devices[] = {"ref", "cpu"};
    enum { LAYERS = 3, HEADS = 2, ROWS = 9, COLUMNS = 4, SIZE = ROWS * COLUMNS };
    for (int d = 0; d < 2; d++) {
        Backend be;
        test_open(&be, devices[d], "fp32");
        test_reserve(&be, (OpLimits){.width = 64});
        MuonConfig config = config_of("muon");
        double batch[LAYERS * HEADS * SIZE], alone[LAYERS * HEADS * SIZE];
        for (int i = 0; i < LAYERS * HEADS * SIZE; i++) batch[i] = alone[i] = test_uniform(4, i);
        run(&be, &config, (int64_t[]){LAYERS, HEADS, ROWS, COLUMNS}, batch);
        for (int i = 0; i < LAYERS * HEADS; i++) run_one(&be, &config, ROWS, COLUMNS, alone + i * SIZE);
        assert_close("batch", batch, alone, LAYERS * HEADS * SIZE, (Tolerance){.absolute = 2e-6});
        test_close(&be);
    }
}

static void given_triples_work_like_the_set_that_has_them(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    for (int i = 0; i < COEFFICIENTS_COUNT; i++) {
        const CoefficientSet *set = &coefficient_sets[i];
        MuonConfig named = config_of(coefficient_set_name(set)), given = config_of("");
        given.coefficients.count = set->count;
        memcpy(given.coefficients.triples, set->triples, sizeof set->triples);
        double a[6 * 5], b[6 * 5];
        for (int k = 0; k < 6 * 5; k++) a[k] = b[k] = test_uniform(6, k);
        run_one(&be, &named, 6, 5, a);
        run_one(&be, &given, 6, 5, b);
        assert_close(coefficient_set_name(set), a, b, 6 * 5, (Tolerance){0});
    }
    test_close(&be);
}

static void a_single_triple_is_iterated_as_often_as_asked(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    MuonConfig config = config_of("cubic");
    config.iterations = 2;
    double one[] = {3, 0, 0, 4}; /* normalized: .6 and .8 */
    double expected[4] = {.6, 0, 0, .8};
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 4; k++) expected[k] = 1.5 * expected[k] - .5 * pow(expected[k], 3);
    run_one(&be, &config, 2, 2, one);
    assert_close("two iterations", one, expected, 4, (Tolerance){.absolute = 1e-6});
    test_close(&be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_set_maps_singular_values_into_its_interval_and_fills_it),
        cmocka_unit_test(every_set_can_be_named_in_the_config),
        cmocka_unit_test(an_unknown_set_is_refused_with_the_names_of_all),
        cmocka_unit_test(on_ref_singular_values_land_in_the_interval_and_vectors_stay),
        cmocka_unit_test(on_cpu_in_fp32_singular_values_land_in_the_interval_and_vectors_stay),
        cmocka_unit_test(on_cpu_in_bf16_singular_values_land_in_the_interval_and_vectors_stay),
        cmocka_unit_test(no_set_diverges_on_matrices_of_rank_one_in_bf16),
        cmocka_unit_test(coefficients_that_would_diverge_in_bf16_run_in_fp32),
        cmocka_unit_test(the_svd_gives_the_orthogonal_factor_itself),
        cmocka_unit_test(schatten_is_the_steepest_descent_in_its_norm),
        cmocka_unit_test(schatten_runs_from_the_normalised_gradient_to_msign_whatever_the_size),
        cmocka_unit_test(missing_ranks_stay_missing),
        cmocka_unit_test(every_form_gives_the_same_up_to_rounding),
        cmocka_unit_test(the_gram_form_in_bf16_runs_in_fp32),
        cmocka_unit_test(the_gram_form_is_taken_in_fp32_where_it_is_cheaper),
        cmocka_unit_test(a_zero_matrix_gives_zero_and_one_that_is_not_finite_gives_nan),
        cmocka_unit_test(a_batch_gives_what_its_matrices_give_alone),
        cmocka_unit_test(given_triples_work_like_the_set_that_has_them),
        cmocka_unit_test(a_single_triple_is_iterated_as_often_as_asked),
    };
    return cmocka_run_group_tests_name("orthogonalize", tests, NULL, NULL);
}
