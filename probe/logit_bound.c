/* Bounds of attention logits, and the norms that they are made of; see logit_bound.h. */
#include "probe/logit_bound.h"

#include <cblas.h>
#include <math.h>

#include "probe/matrix.h"

/* ---- bounds ----------------------------------------------------------------------------------------------------- */

double logit_bound(const LogitPart *parts, int count, double scale) {
    double sum = 0;
    for (int i = 0; i < count; i++) {
        const LogitPart *p = &parts[i];
        sum += (p->x_q * p->w_q + p->b_q) * (p->x_k * p->w_k + p->b_k);
    }
    return fabs(scale) * sum;
}

double logit_bound_qk(const LogitPart *parts, int count, double scale) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].x_q * parts[i].x_k * parts[i].w_qk;
    return fabs(scale) * sum;
}

/* ---- norms of weights ------------------------------------------------------------------------------------------- */

/* | A, B, C: size x size | eigenvalues: size | panel, and after it the work of the eigenvalues | */
int64_t logit_part_workspace_size(int64_t size) {
    int64_t panel = gram_panel_size(size), work = eigen_work_size(size);
    return 3 * size * size + size + larger(panel, work);
}

static double root_of_largest(const double *ascending, int64_t n) {
    return sqrt(fmax(ascending[n - 1], 0));
}

/* With A = W_q W_qᵀ = U L Uᵀ and B = W_k W_kᵀ, the eigenvalues of A B are those of the symmetric L^½ Uᵀ B U L^½. */
void logit_part_measure(LogitPart *part, const float *w_q, int64_t q_inputs, const float *w_k, int64_t k_inputs,
                        int64_t size, double *workspace) {
    const int64_t n = size, square = n * n;
    double *a = workspace, *b = a + square, *c = b + square, *values = c + square, *scratch = values + n;
    part->w_q = part->w_k = part->w_qk = (double)NAN;
    if (!gram_matrix(a, w_q, n, q_inputs, q_inputs, GRAM_OF_ROWS, scratch)) return;
    if (!gram_matrix(b, w_k, n, k_inputs, k_inputs, GRAM_OF_ROWS, scratch)) return;
    if (!eigen_symmetric(values, a, n, EIGENVECTORS, scratch)) return;
    const double norm_q = root_of_largest(values, n);
    for (int64_t i = 0; i < n; i++) /* the rows of a, U's columns, become those of U L^½ */
        for (int64_t j = 0; j < n; j++) a[i * n + j] *= sqrt(fmax(values[i], 0));
    cblas_dsymm(CblasRowMajor, CblasRight, CblasUpper, (int)n, (int)n, 1, b, (int)n, a, (int)n, 0, c, (int)n);
    if (!eigen_symmetric(values, b, n, EIGENVALUES, scratch)) return;
    const double norm_k = root_of_largest(values, n);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)n, (int)n, 1, c, (int)n, a, (int)n, 0, b, (int)n);
    if (!eigen_symmetric(values, b, n, EIGENVALUES, scratch)) return;
    part->w_q = norm_q, part->w_k = norm_k, part->w_qk = root_of_largest(values, n);
}
