/* Top singular triples and subspace alignment against LAPACK's SVD and explicit loops. */
#include "tests/support.h"

#include <float.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>

#include "probe/triples.h"

/* A set of triples with its own memory. */
typedef struct {
    Triples t;
    double *memory;
} Found;

static Found find(const float *matrix, int64_t rows, int64_t columns, int64_t count) {
    Found f = {.memory = calloc((size_t)triples_size(rows, columns, count), sizeof *f.memory)};
    double *workspace = calloc((size_t)triples_workspace_size(rows, columns, count), sizeof *workspace);
    f.t = triples_place(f.memory, rows, columns, count);
    triples_find(&f.t, matrix, workspace);
    free(workspace);
    return f;
}

static float *random_matrix(int64_t rows, int64_t columns, uint64_t seed) {
    float *matrix = calloc((size_t)(rows * columns), sizeof *matrix);
    for (int64_t i = 0; i < rows * columns; i++) matrix[i] = (float)test_uniform(seed, i);
    return matrix;
}

/* The same from a full SVD, with its own signs: u is stored by columns, v by rows. */
static Found oracle(const float *matrix, int64_t rows, int64_t columns, int64_t count) {
    int64_t r = rows < columns ? rows : columns;
    Found f = {.memory = calloc((size_t)triples_size(rows, columns, count), sizeof *f.memory)};
    f.t = triples_place(f.memory, rows, columns, count);
    double *a = calloc((size_t)(rows * columns), sizeof *a), *sigma = calloc((size_t)r, sizeof *sigma);
    double *u = calloc((size_t)(rows * r), sizeof *u), *vt = calloc((size_t)(r * columns), sizeof *vt);
    double *superdiagonal = calloc((size_t)r, sizeof *superdiagonal);
    for (int64_t i = 0; i < rows * columns; i++) a[i] = (double)matrix[i];
    assert_int_equal(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'S', 'S', (lapack_int)rows, (lapack_int)columns, a,
                                    (lapack_int)columns, sigma, u, (lapack_int)r, vt, (lapack_int)columns,
                                    superdiagonal),
                     0);
    for (int64_t i = 0; i < count; i++) {
        f.t.sigma[i] = sigma[i];
        for (int64_t row = 0; row < rows; row++) f.t.left[i * rows + row] = u[row * r + i];
        for (int64_t column = 0; column < columns; column++) f.t.right[i * columns + column] = vt[i * columns + column];
    }
    free(a);
    free(sigma);
    free(u);
    free(vt);
    free(superdiagonal);
    return f;
}

/* The largest component of u made positive; the oracle's vectors have no margin between their largest two, for
 * random ones. */
static void flip(Triples *t, int64_t i) {
    double *u = t->left + i * t->rows, *v = t->right + i * t->columns, largest = 0;
    for (int64_t row = 0; row < t->rows; row++)
        if (fabs(u[row]) > fabs(largest)) largest = u[row];
    if (largest > 0) return;
    for (int64_t row = 0; row < t->rows; row++) u[row] = -u[row];
    for (int64_t column = 0; column < t->columns; column++) v[column] = -v[column];
}

static void release(Found f) {
    free(f.memory);
}

static void triples_agree_with_the_svd(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1},   {1, 7, 1},    {7, 1, 1},    {2, 2, 2},
                                        {5, 9, 5},   {9, 5, 3},    {31, 31, 8},  {33, 64, 33},
                                        {64, 33, 8}, {40, 500, 8}, {500, 40, 8}, {96, 97, 64}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        int64_t rows = shapes[s][0], columns = shapes[s][1], count = shapes[s][2];
        float *matrix = random_matrix(rows, columns, 20 + s);
        Found got = find(matrix, rows, columns, count), expected = oracle(matrix, rows, columns, count);
        /* the Gram matrix squares the condition: half of the digits for the smallest of a square matrix */
        double smallest = expected.t.sigma[count - 1] / expected.t.sigma[0];
        Tolerance tolerance = {.absolute = 1e-12 / (smallest * smallest)};
        for (int64_t i = 0; i < count; i++) flip(&expected.t, i);
        assert_close("sigma", got.t.sigma, expected.t.sigma, count, tolerance);
        assert_close("u", got.t.left, expected.t.left, count * rows, tolerance);
        assert_close("v", got.t.right, expected.t.right, count * columns, tolerance);
        release(got);
        release(expected);
        free(matrix);
    }
}

static void vectors_beyond_the_rank_are_nan(void **state) {
    (void)state;
    float wide[3 * 5], tall[5 * 3], zero[4 * 4] = {0};
    for (int i = 0; i < 15; i++) wide[i] = (float)((i / 5 + 1) * (i % 5 + 1));
    for (int i = 0; i < 15; i++) tall[i] = (float)((i / 3 + 1) * (i % 3 + 1));
    Found a = find(wide, 3, 5, 3), b = find(tall, 5, 3, 3), c = find(zero, 4, 4, 2);
    double length = sqrt(14.0 * 55.0);
    assert_close("sigma", a.t.sigma, (double[]){length, 0, 0}, 3, (Tolerance){.absolute = 1e-12});
    assert_close("sigma", b.t.sigma, (double[]){length, 0, 0}, 3, (Tolerance){.absolute = 1e-12});
    assert_close("u", a.t.left, (double[]){1 / sqrt(14), 2 / sqrt(14), 3 / sqrt(14)}, 3,
                 (Tolerance){.absolute = 1e-14});
    for (int i = 1; i < 3; i++)
        assert_true(isnan(a.t.left[i * 3]) && isnan(a.t.right[i * 5]) && isnan(b.t.left[i * 5 + 4]));
    assert_true(c.t.sigma[0] == 0 && isnan(c.t.left[0]) && isnan(c.t.right[7]));
    assert_true(isnan(triples_align(&a.t, &a.t).left));
    release(a);
    release(b);
    release(c);
}

static void a_matrix_that_is_not_finite_has_nan_triples(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
        float *matrix = random_matrix(6, 9, 5);
        matrix[53] = bad[i];
        Found f = find(matrix, 6, 9, 2);
        for (int64_t j = 0; j < triples_size(6, 9, 2); j++) assert_true(isnan(f.memory[j]));
        release(f);
        free(matrix);
    }
}

static void alignment_is_that_of_the_projections(void **state) {
    (void)state;
    enum { ROWS = 11, COLUMNS = 17, K = 4 };
    float *x = random_matrix(ROWS, COLUMNS, 1), *y = random_matrix(ROWS, COLUMNS, 2);
    Found a = find(x, ROWS, COLUMNS, K), b = find(y, ROWS, COLUMNS, K);
    /* tr(P Q) / k of the projections P = sum u uᵀ, Q = sum u' u'ᵀ */
    double left = 0, right = 0;
    for (int64_t i = 0; i < ROWS; i++)
        for (int64_t j = 0; j < ROWS; j++) {
            double p = 0, q = 0;
            for (int k = 0; k < K; k++) p += a.t.left[k * ROWS + i] * a.t.left[k * ROWS + j];
            for (int k = 0; k < K; k++) q += b.t.left[k * ROWS + i] * b.t.left[k * ROWS + j];
            left += p * q / K;
        }
    for (int64_t i = 0; i < COLUMNS; i++)
        for (int64_t j = 0; j < COLUMNS; j++) {
            double p = 0, q = 0;
            for (int k = 0; k < K; k++) p += a.t.right[k * COLUMNS + i] * a.t.right[k * COLUMNS + j];
            for (int k = 0; k < K; k++) q += b.t.right[k * COLUMNS + i] * b.t.right[k * COLUMNS + j];
            right += p * q / K;
        }
    Alignment got = triples_align(&a.t, &b.t), same = triples_align(&a.t, &a.t);
    assert_close("alignment", (double[]){got.left, got.right, same.left, same.right}, (double[]){left, right, 1, 1}, 4,
                 (Tolerance){.absolute = 1e-13});
    assert_true(left > 0.05 && left < 0.95);
    release(a);
    release(b);
    free(x);
    free(y);
}

static void diagonal_matrices_span_what_their_largest_elements_do(void **state) {
    (void)state;
    float a[4 * 5] = {0}, b[4 * 5] = {0};
    for (int i = 0; i < 4; i++) a[i * 6] = (float)(4 - i), b[i * 6] = (float)(1 + (i + 1) % 4);
    /* a: axes 0, 1; b = 2, 3, 4, 1: axes 2, 1 */
    Found x = find(a, 4, 5, 2), y = find(b, 4, 5, 2);
    Alignment got = triples_align(&x.t, &y.t);
    assert_close("alignment", (double[]){got.left, got.right}, (double[]){0.5, 0.5}, 2, (Tolerance){.absolute = 1e-14});
    release(x);
    release(y);
}

static void the_form_is_the_double_sum(void **state) {
    (void)state;
    float *matrix = random_matrix(6, 19, 3);
    double u[6], v[19], expected = 0;
    for (int i = 0; i < 6; i++) u[i] = test_uniform(4, i);
    for (int i = 0; i < 19; i++) v[i] = test_uniform(5, i);
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 19; j++) expected += u[i] * (double)matrix[i * 19 + j] * v[j];
    double got = triples_form(u, matrix, v, 6, 19);
    assert_close("form", &got, &expected, 1, (Tolerance){.absolute = 1e-14});
    free(matrix);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(triples_agree_with_the_svd),
        cmocka_unit_test(vectors_beyond_the_rank_are_nan),
        cmocka_unit_test(a_matrix_that_is_not_finite_has_nan_triples),
        cmocka_unit_test(alignment_is_that_of_the_projections),
        cmocka_unit_test(diagonal_matrices_span_what_their_largest_elements_do),
        cmocka_unit_test(the_form_is_the_double_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
