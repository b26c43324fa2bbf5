/* Dense fp64 algebra on the host that the probes share: a BLAS without threads of its own, and Gram matrices. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* OpenBLAS may be called from several threads at once only while it starts none itself:
 *
 *      int before = dense_serial_blas();
 *      #pragma omp parallel for ...
 *      dense_restore_blas(before);
 */
int dense_serial_blas(void);
void dense_restore_blas(int threads);

typedef enum { GRAM_OF_ROWS, GRAM_OF_COLUMNS } GramSide;

/* The upper triangle of W Wᵀ (rows) or Wᵀ W (columns), row-major, for a row-major fp32 W (rows, columns). fp64 squares
 * of fp32 numbers are exact and cannot overflow. panel: dense_panel_size(order of the Gram matrix) doubles. False if W
 * is not finite. */
int64_t dense_panel_size(int64_t order);
bool dense_gram(double *gram, const float *matrix, int64_t rows, int64_t columns, GramSide side, double *panel);
/* The smaller of the two, of a matrix whose rows lie `stride` apart. */
bool dense_gram_smaller(double *gram, const float *matrix, int64_t rows, int64_t columns, int64_t stride,
                        double *panel);
/* An eigenvalue below this is rounding of the largest: its root would be a singular value that is not there. */
double dense_gram_noise(int64_t order, double largest_eigenvalue);

/* Eigenvalues of a symmetric (n, n) matrix of which the upper triangle is given, ascending; the matrix is overwritten:
 * with its eigenvectors, as rows, if they are wanted. work: dense_eigen_work_size(n) doubles. False if LAPACK fails. */
typedef enum { EIGENVALUES, EIGENVECTORS } EigenJob;
int64_t dense_eigen_work_size(int64_t n);
bool dense_eigen(double *values, double *matrix, int64_t n, EigenJob job, double *work);
