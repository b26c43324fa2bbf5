/* Private to probe/: matrices in host memory, their Gram matrices, and a BLAS that several threads call at once. */
#pragma once

#include "base/integer.h"
#include "model/params.h"

/* The whole matrix of every layer of a run, row-major at `host`, one behind the other, whatever the run's split,
 * strides and dtype. host: backend_alloc_host; it holds them after backend_sync, or later as backend_to_host_later
 * says. stage: a matrix of f32 in the backend's memory. */
void fetch_run(Backend *be, void *stage, Tensor run, HeadAxis axis, float *host);

/* The upper triangle of W Wᵀ (of rows) or of Wᵀ W (of columns), row-major. stride: from one row of W to the next.
 * panel: gram_panel_size(order of the Gram matrix) doubles. False if W is not finite. */
typedef enum { GRAM_OF_ROWS, GRAM_OF_COLUMNS } GramSide;
int64_t gram_panel_size(int64_t order);
bool gram_matrix(double *gram, const float *matrix, int64_t rows, int64_t columns, int64_t stride, GramSide side,
                 double *panel);
GramSide gram_smaller_side(int64_t rows, int64_t columns);

/* An eigenvalue of a Gram matrix below this is rounding of the larger ones: its root would be a singular value that is
 * not there. */
double gram_noise(int64_t r, double largest_eigenvalue);

/* Eigenvalues of a symmetric (n, n) matrix of which the upper triangle is given, ascending. The matrix is overwritten:
 * with its eigenvectors, as rows, if they are wanted. work: eigen_work_size(n) doubles. False if LAPACK fails. */
typedef enum { EIGENVALUES, EIGENVECTORS } EigenJob;
int64_t eigen_work_size(int64_t n);
bool eigen_symmetric(double *values, double *matrix, int64_t n, EigenJob job, double *work);

/* Threads that measure matrices side by side, each with `size` doubles of its own to work in. */
typedef struct {
    int threads;
    int64_t size;
    double *memory;
} Workspaces;
void workspaces_layout(Workspaces *work, const Backend *be, Arena *host);

/* task(context, i, workspace) for i < count, in parallel. Meanwhile BLAS and LAPACK start no threads of their own. */
typedef void WorkspaceTask(void *context, int64_t i, double *workspace);
void workspaces_run(const Workspaces *work, int64_t count, WorkspaceTask *task, void *context);
