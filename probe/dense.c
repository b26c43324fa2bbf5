/* Dense fp64 algebra on the host; see dense.h. */
#include "probe/dense.h"

#include <cblas.h>
#include <float.h>
#include <lapacke.h>
#include <math.h>

enum {
    PANEL = 384,       /* columns (or rows) of the matrix that are converted to fp64 at a time */
    LAPACK_BLOCK = 64, /* dsyev's workspace for n: (2 + block) n, with no block of LAPACK's wider than 64 */
};

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Weak: another BLAS has no such functions, and then the user sees to it (MKL_NUM_THREADS=1 and the like). */
extern void openblas_set_num_threads(int count) __attribute__((weak));
extern int openblas_get_num_threads(void) __attribute__((weak));

int dense_serial_blas(void) {
    int before = openblas_get_num_threads ? openblas_get_num_threads() : 1;
    dense_restore_blas(1);
    return before;
}

void dense_restore_blas(int threads) {
    if (openblas_set_num_threads) openblas_set_num_threads(threads);
}

/* ---- Gram matrices ---------------------------------------------------------------------------------------------- */

int64_t dense_panel_size(int64_t order) {
    return order * PANEL;
}

/* panel = the (rows, columns) part of `matrix`, in fp64. False if some element is not finite. */
static bool convert_panel(double *panel, const float *matrix, int64_t stride, int64_t rows, int64_t columns) {
    bool finite = true;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            float x = matrix[i * stride + j];
            finite &= isfinite(x) != 0;
            panel[i * columns + j] = (double)x;
        }
    }
    return finite;
}

static bool strided_gram(double *gram, const float *matrix, int64_t rows, int64_t columns, int64_t stride,
                         GramSide side, double *panel) {
    bool of_rows = side == GRAM_OF_ROWS;
    int64_t order = of_rows ? rows : columns, length = of_rows ? columns : rows;
    for (int64_t start = 0; start < length; start += PANEL) {
        int64_t count = smaller(PANEL, length - start);
        double beta = start == 0 ? 0 : 1;
        bool finite = of_rows ? convert_panel(panel, matrix + start, stride, rows, count)
                              : convert_panel(panel, matrix + start * stride, stride, count, columns);
        if (!finite) return false;
        cblas_dsyrk(CblasRowMajor, CblasUpper, of_rows ? CblasNoTrans : CblasTrans, (int)order, (int)count, 1, panel,
                    (int)(of_rows ? count : columns), beta, gram, (int)order);
    }
    return true;
}

bool dense_gram(double *gram, const float *matrix, int64_t rows, int64_t columns, GramSide side, double *panel) {
    return strided_gram(gram, matrix, rows, columns, columns, side, panel);
}

bool dense_gram_smaller(double *gram, const float *matrix, int64_t rows, int64_t columns, int64_t stride,
                        double *panel) {
    GramSide side = rows <= columns ? GRAM_OF_ROWS : GRAM_OF_COLUMNS;
    return strided_gram(gram, matrix, rows, columns, stride, side, panel);
}

double dense_gram_noise(int64_t order, double largest_eigenvalue) {
    return (double)order * DBL_EPSILON * largest_eigenvalue;
}

/* ---- eigenvalues ------------------------------------------------------------------------------------------------ */

int64_t dense_eigen_work_size(int64_t n) {
    return (2 + LAPACK_BLOCK) * n;
}

/* Without vectors dsyev, dsyevd and dsyevr are the same reduction and root-free QL, and equally fast (384: 6 ms); the
 * two-stage reduction takes twice as long up to 768. Row-major upper is LAPACK's lower. */
bool dense_eigen(double *values, double *matrix, int64_t n, EigenJob job, double *work) {
    return LAPACKE_dsyev_work(LAPACK_COL_MAJOR, job == EIGENVECTORS ? 'V' : 'N', 'L', (lapack_int)n, matrix,
                              (lapack_int)n, values, work, (lapack_int)dense_eigen_work_size(n)) == 0;
}
