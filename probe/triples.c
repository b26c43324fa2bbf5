/* Top singular triples by the Gram matrix; see triples.h. */
#include "probe/triples.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

#include "probe/matrix.h"

static const double nan_value = (double)NAN;

/* ---- layout ----------------------------------------------------------------------------------------------------- */

int64_t triples_size(int64_t rows, int64_t columns, int64_t count) {
    return count * (1 + rows + columns);
}

Triples triples_place(double *memory, int64_t rows, int64_t columns, int64_t count) {
    return (Triples){.rows = rows,
                     .columns = columns,
                     .count = count,
                     .sigma = memory,
                     .left = memory + count,
                     .right = memory + count + count * rows};
}

void triples_copy(Triples *to, const Triples *from) {
    memcpy(to->sigma, from->sigma, (size_t)triples_size(from->rows, from->columns, from->count) * sizeof *to->sigma);
}

/* dsyevr's work for n, at a block of 64, and its whole numbers, in doubles:
 *      | Gram r x r | all eigenvalues r | panel, and after it work | integers: 10 r, and 2 a vector | */
static int64_t lapack_work(int64_t r) {
    return (64 + 6) * r;
}

static int64_t scratch_size(int64_t r) {
    return larger(gram_panel_size(r), lapack_work(r));
}

int64_t triples_workspace_size(int64_t rows, int64_t columns, int64_t count) {
    int64_t r = smaller(rows, columns), integers = 10 * r + 2 * count;
    return r * r + r + scratch_size(r) + integers;
}

/* ---- vectors ---------------------------------------------------------------------------------------------------- */

static double dot_row(const float *row, const double *v, int64_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += (double)row[i] * v[i];
    return sum;
}

static void fill(double *x, double value, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = value;
}

/* v = Wᵀ u for all vectors, row of W by row. */
static void multiply_transposed(const Triples *t, const float *matrix) {
    fill(t->right, 0, t->count * t->columns);
    for (int64_t row = 0; row < t->rows; row++) {
        const float *w = matrix + row * t->columns;
        for (int64_t i = 0; i < t->count; i++) {
            double *v = t->right + i * t->columns;
            const double factor = t->left[i * t->rows + row];
            for (int64_t j = 0; j < t->columns; j++) v[j] += factor * (double)w[j];
        }
    }
}

/* u = W v for all vectors. */
static void multiply(const Triples *t, const float *matrix) {
    for (int64_t row = 0; row < t->rows; row++)
        for (int64_t i = 0; i < t->count; i++)
            t->left[i * t->rows + row] = dot_row(matrix + row * t->columns, t->right + i * t->columns, t->columns);
}

/* The largest component of u, the first of equals, becomes positive. */
static void choose_sign(double *u, double *v, int64_t rows, int64_t columns) {
    int64_t largest = 0;
    for (int64_t i = 1; i < rows; i++)
        if (fabs(u[i]) > fabs(u[largest])) largest = i;
    if (u[largest] >= 0) return;
    cblas_dscal((int)rows, -1, u, 1);
    cblas_dscal((int)columns, -1, v, 1);
}

/* ---- the decomposition ------------------------------------------------------------------------------------------ */

/* The largest `count` eigenvalues and eigenvectors, ascending, into the head of `values` and the rows of `vectors`. */
static bool largest_eigenvectors(double *values, double *vectors, double *gram, int64_t r, int64_t count,
                                 double *work) {
    lapack_int *integers = (lapack_int *)(void *)(work + scratch_size(r)), found = 0;
    lapack_int n = (lapack_int)r;
    /* row-major upper is LAPACK's lower */
    return LAPACKE_dsyevr_work(LAPACK_COL_MAJOR, 'V', 'I', 'L', n, gram, n, 0, 0, (lapack_int)(r - count + 1), n, 0,
                               &found, values, vectors, n, integers + 10 * r, work, (lapack_int)lapack_work(r),
                               integers, (lapack_int)(10 * r)) == 0 &&
           found == (lapack_int)count;
}

static void reverse_rows(double *x, int64_t count, int64_t length) {
    for (int64_t a = 0, b = count - 1; a < b; a++, b--) cblas_dswap((int)length, x + a * length, 1, x + b * length, 1);
}

static void finish_triple(const Triples *t, int64_t i, double noise) {
    double *u = t->left + i * t->rows, *v = t->right + i * t->columns, eigenvalue = t->sigma[i];
    bool wide = t->rows <= t->columns;
    double *far = wide ? v : u; /* W times a vector of the smaller side: of length sigma */
    const int length = (int)(wide ? t->columns : t->rows);
    if (!(eigenvalue > noise)) {
        t->sigma[i] = 0;
        fill(u, nan_value, t->rows);
        fill(v, nan_value, t->columns);
        return;
    }
    t->sigma[i] = sqrt(eigenvalue);
    cblas_dscal(length, 1 / cblas_dnrm2(length, far, 1), far, 1);
    choose_sign(u, v, t->rows, t->columns);
}

void triples_find(Triples *t, const float *matrix, double *workspace) {
    int64_t r = smaller(t->rows, t->columns);
    double *gram = workspace, *values = gram + r * r, *scratch = values + r;
    bool wide = t->rows <= t->columns;
    double *near = wide ? t->left : t->right;
    bool known =
        gram_matrix(gram, matrix, t->rows, t->columns, t->columns, gram_smaller_side(t->rows, t->columns), scratch) &&
        largest_eigenvectors(values, near, gram, r, t->count, scratch);
    if (!known) {
        fill(t->sigma, nan_value, triples_size(t->rows, t->columns, t->count));
        return;
    }
    for (int64_t i = 0; i < t->count; i++) t->sigma[i] = values[t->count - 1 - i];
    reverse_rows(near, t->count, r);
    if (wide)
        multiply_transposed(t, matrix);
    else
        multiply(t, matrix);
    const double noise = gram_noise(r, t->sigma[0]);
    for (int64_t i = 0; i < t->count; i++) finish_triple(t, i, noise);
}

/* ---- comparison ------------------------------------------------------------------------------------------------- */

static double alignment(const double *a, const double *b, int64_t count, int64_t length) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < count; j++) {
            double c = cblas_ddot((int)length, a + i * length, 1, b + j * length, 1);
            sum += c * c;
        }
    return sum / (double)count;
}

Alignment triples_align(const Triples *a, const Triples *b) {
    return (Alignment){.left = alignment(a->left, b->left, a->count, a->rows),
                       .right = alignment(a->right, b->right, a->count, a->columns)};
}

double triples_form(const double *u, const float *matrix, const double *v, int64_t rows, int64_t columns) {
    double sum = 0;
    for (int64_t row = 0; row < rows; row++) sum += u[row] * dot_row(matrix + row * columns, v, columns);
    return sum;
}

double triples_collide(const Triples *t, const float *update, double *c) {
    double squares = 0, norm_sq = 0;
    for (int64_t i = 0; i < t->count; i++) {
        c[i] = triples_form(t->left + i * t->rows, update, t->right + i * t->columns, t->rows, t->columns);
        squares += c[i] * c[i];
    }
    const int64_t elements = t->rows * t->columns;
#pragma omp simd reduction(+ : norm_sq)
    for (int64_t i = 0; i < elements; i++) norm_sq += (double)update[i] * (double)update[i];
    return squares / (double)t->count / (norm_sq / (double)elements);
}
