/* Matrices in host memory, their Gram matrices, and threads; see matrix.h. */
#include "probe/matrix.h"

#include <cblas.h>
#include <float.h>
#include <lapacke.h>
#include <math.h>
#include <omp.h>

#include "ops/ops.h"

/* ---- copies ----------------------------------------------------------------------------------------------------- */

void fetch_run(Backend *be, void *stage, Tensor run, HeadAxis axis, float *host) {
    int64_t heads = run.shape[1], rows = run.shape[2], columns = run.shape[3];
    int64_t elements = heads * rows * columns;
    bool in_rows = axis == HEADS_IN_ROWS;
    Tensor whole = tensor_1d(stage, DTYPE_F32, elements);
    Tensor by_head = tensor_as_3d(whole, heads, rows, columns);
    if (!in_rows) {
        by_head.stride[0] = columns;
        by_head.stride[1] = heads * columns;
    }
    for (int64_t layer = 0; layer < run.shape[0]; layer++) {
        op_copy(be, by_head, tensor_index(run, layer));
        backend_to_host_later(be, host + layer * elements, whole);
    }
}

/* ---- Gram matrices ---------------------------------------------------------------------------------------------- */

enum { PANEL = 384 }; /* columns (or rows) of the matrix that are converted to fp64 at a time */

int64_t gram_panel_size(int64_t order) {
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

/* Panel by panel. fp64 squares of fp32 numbers are exact and cannot overflow. */
bool gram_matrix(double *gram, const float *matrix, int64_t rows, int64_t columns, int64_t stride, GramSide side,
                 double *panel) {
    bool wide = side == GRAM_OF_ROWS;
    int64_t r = wide ? rows : columns, length = wide ? columns : rows;
    for (int64_t start = 0; start < length; start += PANEL) {
        int64_t count = smaller(PANEL, length - start);
        double beta = start == 0 ? 0 : 1;
        bool finite = wide ? convert_panel(panel, matrix + start, stride, rows, count)
                           : convert_panel(panel, matrix + start * stride, stride, count, columns);
        if (!finite) return false;
        cblas_dsyrk(CblasRowMajor, CblasUpper, wide ? CblasNoTrans : CblasTrans, (int)r, (int)count, 1, panel,
                    (int)(wide ? count : columns), beta, gram, (int)r);
    }
    return true;
}

GramSide gram_smaller_side(int64_t rows, int64_t columns) {
    return rows <= columns ? GRAM_OF_ROWS : GRAM_OF_COLUMNS;
}

double gram_noise(int64_t r, double largest_eigenvalue) {
    return (double)r * DBL_EPSILON * largest_eigenvalue;
}

/* ---- eigenvalues ------------------------------------------------------------------------------------------------ */

enum { LAPACK_BLOCK = 64 }; /* dsyev's workspace for n: (2 + block) n, with no block of LAPACK's wider than 64 */

int64_t eigen_work_size(int64_t n) {
    return (2 + LAPACK_BLOCK) * n;
}

/* Without vectors dsyev, dsyevd and dsyevr are the same reduction and root-free QL, and equally fast (384: 6 ms); the
 * two-stage reduction takes twice as long up to 768. Row-major upper is LAPACK's lower. */
bool eigen_symmetric(double *values, double *matrix, int64_t n, EigenJob job, double *work) {
    return LAPACKE_dsyev_work(LAPACK_COL_MAJOR, job == EIGENVECTORS ? 'V' : 'N', 'L', (lapack_int)n, matrix,
                              (lapack_int)n, values, work, (lapack_int)eigen_work_size(n)) == 0;
}

/* ---- matrices side by side -------------------------------------------------------------------------------------- */

/* OpenBLAS may be called from several threads at once only while it starts none itself. Weak: another BLAS has no such
 * functions, and then the user sees to it (MKL_NUM_THREADS=1 and the like). */
extern void openblas_set_num_threads(int count) __attribute__((weak));
extern int openblas_get_num_threads(void) __attribute__((weak));

static int set_blas_threads(int count) {
    const int before = openblas_get_num_threads ? openblas_get_num_threads() : 1;
    if (openblas_set_num_threads) openblas_set_num_threads(count);
    return before;
}

void workspaces_layout(Workspaces *w, const Backend *be, Arena *host) {
    w->threads = be->threads > 0 ? be->threads : omp_get_max_threads();
    w->memory = arena_take_host(host, w->threads * w->size, sizeof *w->memory);
}

void workspaces_run(const Workspaces *w, int64_t count, WorkspaceTask *task, void *context) {
    const int threads_before = set_blas_threads(1);
#pragma omp parallel for schedule(dynamic) num_threads(w->threads)
    for (int64_t i = 0; i < count; i++) task(context, i, w->memory + omp_get_thread_num() * w->size);
    set_blas_threads(threads_before);
}
