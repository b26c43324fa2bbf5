/* Singular values against LAPACK's SVD and known spectra; the statistics against formulas; the probe's assembly of
 * whole matrices and heads from every form of run.
 */
#include "tests/probe/toy_params.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>

#include "probe/spectrum.h"

static double *singular_values(const float *matrix, int64_t rows, int64_t columns) {
    int64_t r = rows < columns ? rows : columns;
    double *sigma = calloc((size_t)r, sizeof *sigma);
    double *workspace = calloc((size_t)spectrum_workspace_size(rows, columns), sizeof *workspace);
    spectrum_singular_values(sigma, matrix, rows, columns, workspace);
    free(workspace);
    return sigma;
}

static float *random_matrix(int64_t rows, int64_t columns, uint64_t seed) {
    float *matrix = calloc((size_t)(rows * columns), sizeof *matrix);
    for (int64_t i = 0; i < rows * columns; i++) matrix[i] = (float)test_uniform(seed, i);
    return matrix;
}

static Spectrum spectrum_of(const float *matrix, int64_t rows, int64_t columns) {
    double *sigma = singular_values(matrix, rows, columns);
    Spectrum spectrum = spectrum_from_values(sigma, rows < columns ? rows : columns, rows < columns ? columns : rows);
    free(sigma);
    return spectrum;
}

static void assert_near(double got, double expected, double tolerance) {
    assert_close("value", &got, &expected, 1, (Tolerance){.absolute = tolerance});
}

static void assert_spectrum(Spectrum got, Spectrum expected, double tolerance) {
    assert_near(got.sigma_max, expected.sigma_max, tolerance);
    assert_near(got.sigma_min, expected.sigma_min, tolerance);
    assert_near(got.rms, expected.rms, tolerance);
    assert_near(got.orthogonality_error, expected.orthogonality_error, tolerance);
    assert_near(got.below_half, expected.below_half, tolerance);
    assert_near(got.entropy, expected.entropy, tolerance);
    assert_near(got.entropy_sq, expected.entropy_sq, tolerance);
    assert_near(got.effective_rank, expected.effective_rank, tolerance);
    assert_near(got.stable_rank, expected.stable_rank, tolerance);
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
        assert_near(got.orthogonality_error, sqrt(error), 1e-12 * error);
        assert_near(got.rms, sqrt(squares / (double)(rows * columns)), 1e-13);
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
        double *got = singular_values(matrix, rows, columns);
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
    assert_near(got.entropy, 0, 1e-3);
    assert_near(got.entropy_sq, 0, 1e-6);
    assert_near(got.effective_rank, 1, 1e-3);
    assert_near(got.stable_rank, 1, 1e-6);
}

static void rounding_of_the_gram_matrix_adds_no_singular_values(void **state) {
    (void)state;
    float matrix[48 * 48];
    for (int i = 0; i < 48 * 48; i++) matrix[i] = (float)(1 + i / 48); /* exactly of rank one */
    double *sigma = singular_values(matrix, 48, 48);
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
    assert_near(spectrum_from_values((double[]){0.501, 0.5, 0.499, 1}, 4, 4).below_half, 0.25, 0);
}

static void huge_and_tiny_values_do_not_overflow(void **state) {
    (void)state;
    Spectrum huge = spectrum_from_values((double[]){1e300, 1e300}, 2, 2);
    assert_near(huge.stable_rank, 2, 1e-12);
    assert_near(huge.rms / 1e300, sqrt(0.5), 1e-12);
    Spectrum tiny = spectrum_from_values((double[]){1e-300, 1e-300}, 2, 2);
    assert_near(tiny.effective_rank, 2, 1e-12);
    float matrix[4] = {3e38f, 0, 0, 3e38f};
    assert_near(spectrum_of(matrix, 2, 2).effective_rank, 2, 1e-12);
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

typedef struct {
    Backend be;
    ParamTable params;
    Arena weights, gradients;
    SpectrumProbe *probe;
} Fixture;

/* A grouped-query model's hidden matrices between parameters that the probe must leave alone. */
static void describe(ParamTable *t) {
    describe_embedding_and_attention(t);
    int up = params_add_matrix(t, "up", LAYERS, 2 * MLP, WIDTH);
    params_add_block(t, "gate", ROLE_GATE, up, 0, MLP, 1, HEADS_IN_ROWS);
    params_add_block(t, "up", ROLE_UP, up, MLP, MLP, 1, HEADS_IN_ROWS);
    params_add_block(t, "norm", ROLE_NORM, params_add_vector(t, "norm", LAYERS, WIDTH), 0, WIDTH, 1, HEADS_IN_ROWS);
}

static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    test_open(&f->be, "ref", "fp32");
    describe(&f->params);
    allocate_params(&f->params, &f->weights, &f->gradients, &f->be);
    float *master = f->params.master.data;
    for (int64_t i = 0; i < f->params.elements; i++) master[i] = (float)test_uniform(7, i);
    assert_ok(spectrum_probe_create(&f->probe, &f->params, &f->be, SPECTRUM_HEADS_OF_QK));
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    spectrum_probe_free(f->probe);
    arena_free(&f->weights);
    arena_free(&f->gradients);
    test_close(&f->be);
    free(f);
    return 0;
}

/* The spectrum of a (rows, columns) view, copied element by element. */
static Spectrum expected_spectrum(Fixture *f, Tensor block) {
    double *values = test_read(&f->be, block);
    int64_t count = tensor_numel(block);
    float *matrix = calloc((size_t)count, sizeof *matrix);
    for (int64_t i = 0; i < count; i++) matrix[i] = (float)values[i];
    Spectrum spectrum = spectrum_of(matrix, block.shape[0], block.shape[1]);
    free(matrix);
    return spectrum;
}

/* Every record of `kind` equals the spectrum of that block, or that head of it, in the parameter table. */
static void assert_records(Fixture *f, int kind, int64_t first, int64_t layers, int heads, BlockSplit split,
                           double tolerance) {
    int64_t count;
    const SpectrumRecord *r = spectrum_probe_records(f->probe, &count);
    assert_int_equal(count, layers * (1 + heads));
    for (int64_t i = 0; i < count; i++) {
        bool whole = i < layers;
        assert_int_equal(r[i].kind, kind);
        assert_int_equal(r[i].of, SPECTRUM_MOMENTUM);
        assert_int_equal(r[i].layer, first + (whole ? i : (i - layers) / heads));
        assert_int_equal(r[i].head, whole ? -1 : (i - layers) % heads);
        assert_int_equal(r[i].unit, whole == (split == SPLIT_WHOLE));
        assert_true(r[i].step == 0.5 && r[i].decay == 0.25);
        Tensor block = whole ? params_block(&f->params, f->params.master, kind, r[i].layer)
                             : params_block_head(&f->params, f->params.master, kind, r[i].layer, r[i].head);
        assert_spectrum(r[i].spectrum, expected_spectrum(f, block), tolerance);
    }
}

static SpectrumRun momentum_of(int kind, int64_t first, BlockSplit split) {
    return (SpectrumRun){
        .kind = kind, .first_layer = first, .split = split, .of = SPECTRUM_MOMENTUM, .step = 0.5, .decay = 0.25};
}

static void check_kind(Fixture *f, const char *name, BlockSplit split, int heads) {
    int kind = params_find_kind(&f->params, name);
    spectrum_probe_begin(f->probe);
    Tensor run = params_block_run(&f->params, f->params.master, kind, 1, 2, split);
    spectrum_probe_add(f->probe, momentum_of(kind, 1, split), run);
    assert_records(f, kind, 1, 2, heads, split, 1e-12);
}

static void whole_runs_give_the_matrix_and_the_heads_of_q_and_k(void **state) {
    check_kind(*state, "q", SPLIT_WHOLE, HEADS);
    check_kind(*state, "k", SPLIT_WHOLE, KV_HEADS);
    check_kind(*state, "v", SPLIT_WHOLE, 0);
    check_kind(*state, "o", SPLIT_WHOLE, 0);
    check_kind(*state, "gate", SPLIT_WHOLE, 0);
    check_kind(*state, "up", SPLIT_WHOLE, 0);
}

static void runs_split_by_rows_are_put_together(void **state) {
    check_kind(*state, "q", SPLIT_PER_HEAD, HEADS);
    check_kind(*state, "k", SPLIT_PER_HEAD, KV_HEADS);
    check_kind(*state, "v", SPLIT_PER_HEAD, 0);
}

static void runs_split_by_columns_are_put_together(void **state) {
    check_kind(*state, "o", SPLIT_PER_HEAD, 0);
}

static void split_heads_of_every_kind_are_measured_where_asked_for(void **state) {
    Fixture *f = *state;
    spectrum_probe_free(f->probe);
    assert_ok(spectrum_probe_create(&f->probe, &f->params, &f->be, SPECTRUM_HEADS_AS_SPLIT));
    check_kind(f, "q", SPLIT_PER_HEAD, HEADS);
    check_kind(f, "v", SPLIT_PER_HEAD, KV_HEADS);
    check_kind(f, "v", SPLIT_WHOLE, 0);
    check_kind(f, "o", SPLIT_PER_HEAD, HEADS);
    check_kind(f, "o", SPLIT_WHOLE, 0);
}

/* What the optimizer hands over: its own contiguous (layers, heads, rows, columns), here rounded to bf16. */
static void contiguous_runs_of_bf16_are_measured_too(void **state) {
    Fixture *f = *state;
    static const char *const names[] = {"q", "o"};
    static const int heads[] = {HEADS, 0};
    for (int i = 0; i < 2; i++) {
        int kind = params_find_kind(&f->params, names[i]);
        Tensor source = params_block_run(&f->params, f->params.master, kind, 0, LAYERS, SPLIT_PER_HEAD);
        double *values = test_read(&f->be, source);
        Tensor run =
            test_zeros(&f->be, DTYPE_BF16, shape4(source.shape[0], source.shape[1], source.shape[2], source.shape[3]));
        test_write(&f->be, run, values);
        spectrum_probe_begin(f->probe);
        spectrum_probe_add(f->probe, momentum_of(kind, 0, SPLIT_PER_HEAD), run);
        /* bf16 has 8 bits: entries within 2^-9 of themselves, effective ranks up to 12 within about that part */
        assert_records(f, kind, 0, LAYERS, heads[i], SPLIT_PER_HEAD, 0.05);
    }
}

static void a_step_has_room_for_weight_momentum_and_update(void **state) {
    Fixture *f = *state;
    int64_t expected = 0, count;
    spectrum_probe_begin(f->probe);
    for (int kind = 0; kind < f->params.kind_count; kind++) {
        if (!params_is_hidden_matrix(&f->params.kinds[kind])) continue;
        Role role = f->params.kinds[kind].role;
        expected += 3 * LAYERS * (1 + (role == ROLE_Q ? HEADS : role == ROLE_K ? KV_HEADS : 0));
        for (int of = SPECTRUM_WEIGHT; of <= SPECTRUM_UPDATE; of++) {
            for (int64_t layer = 0; layer < LAYERS; layer++) {
                Tensor run = params_block_run(&f->params, f->params.master, kind, layer, 1, SPLIT_WHOLE);
                SpectrumRun what = {.kind = kind, .first_layer = layer, .of = (SpectrumOf)of};
                spectrum_probe_add(f->probe, what, run);
            }
        }
    }
    spectrum_probe_records(f->probe, &count);
    assert_int_equal(count, expected);
    spectrum_probe_begin(f->probe);
    spectrum_probe_records(f->probe, &count);
    assert_int_equal(count, 0);
    assert_true(spectrum_probe_bytes(f->probe) > 0);
}

static void a_nan_in_one_head_stays_in_that_head_and_the_whole(void **state) {
    Fixture *f = *state;
    int kind = params_find_kind(&f->params, "q");
    Tensor head = params_block_head(&f->params, f->params.master, kind, 0, 2);
    *(float *)head.data = NAN;
    spectrum_probe_begin(f->probe);
    Tensor run = params_block_run(&f->params, f->params.master, kind, 0, 1, SPLIT_WHOLE);
    spectrum_probe_add(f->probe, (SpectrumRun){.kind = kind, .of = SPECTRUM_WEIGHT}, run);
    int64_t count;
    const SpectrumRecord *r = spectrum_probe_records(f->probe, &count);
    for (int64_t i = 0; i < count; i++) {
        bool expected = r[i].head == -1 || r[i].head == 2;
        assert_int_equal(isnan(r[i].spectrum.entropy) != 0, expected);
        assert_int_equal(isnan(r[i].spectrum.sigma_max) != 0, expected);
    }
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
        cmocka_unit_test_setup_teardown(whole_runs_give_the_matrix_and_the_heads_of_q_and_k, set_up, tear_down),
        cmocka_unit_test_setup_teardown(runs_split_by_rows_are_put_together, set_up, tear_down),
        cmocka_unit_test_setup_teardown(runs_split_by_columns_are_put_together, set_up, tear_down),
        cmocka_unit_test_setup_teardown(split_heads_of_every_kind_are_measured_where_asked_for, set_up, tear_down),
        cmocka_unit_test_setup_teardown(contiguous_runs_of_bf16_are_measured_too, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_step_has_room_for_weight_momentum_and_update, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_nan_in_one_head_stays_in_that_head_and_the_whole, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
