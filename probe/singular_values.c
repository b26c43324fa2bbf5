/* Singular values through the fp64 Gram matrix, and the statistics of their distribution; see singular_values.h. */
#include "probe/singular_values.h"

#include <cblas.h>
#include <math.h>

#include "probe/matrix.h"

static const double nan_value = (double)NAN;

/* ---- statistics ------------------------------------------------------------------------------------------------- */

static double plogp(double p) {
    return p > 0 ? p * log(p) : 0;
}

static Spectrum spectrum_of_nan(void) {
    return (Spectrum){nan_value, nan_value, nan_value, nan_value, nan_value,
                      nan_value, nan_value, nan_value, nan_value};
}

/* Entropies of values given in units of the largest, so that no square over- or underflows. */
static void add_entropies(Spectrum *s, const double *sigma, int64_t r, double sum, double sum_sq) {
    for (int64_t i = 0; i < r; i++) {
        double x = sigma[i] / s->sigma_max;
        s->entropy -= plogp(x / sum);
        s->entropy_sq -= plogp(x * x / sum_sq);
    }
    s->entropy_sq = r > 1 ? s->entropy_sq / log((double)r) : 1;
    s->effective_rank = exp(s->entropy);
    s->stable_rank = sum_sq;
}

Spectrum spectrum_from_values(const double *sigma, int64_t r, int64_t length) {
    Spectrum s = {.sigma_min = HUGE_VAL};
    double sum = 0, sum_sq = 0, error_sq = 0;
    for (int64_t i = 0; i < r; i++) {
        if (!isfinite(sigma[i])) return spectrum_of_nan();
        const double deviation = sigma[i] * sigma[i] - 1;
        s.sigma_max = fmax(s.sigma_max, sigma[i]);
        s.sigma_min = fmin(s.sigma_min, sigma[i]);
        s.below_half += sigma[i] < 0.5 ? 1 : 0;
        error_sq += deviation * deviation;
    }
    s.below_half /= (double)r;
    s.orthogonality_error = sqrt(error_sq);
    if (s.sigma_max == 0) return s;
    for (int64_t i = 0; i < r; i++) {
        double x = sigma[i] / s.sigma_max;
        sum += x;
        sum_sq += x * x;
    }
    s.rms = s.sigma_max * sqrt(sum_sq / ((double)r * (double)length));
    add_entropies(&s, sigma, r, sum, sum_sq);
    return s;
}

/* ---- singular values -------------------------------------------------------------------------------------------- */

/* workspace: | Gram r x r | panel, and after it the work of the eigenvalues | */
int64_t singular_workspace_size(int64_t rows, int64_t columns) {
    int64_t r = smaller(rows, columns);
    return r * r + larger(gram_panel_size(r), eigen_work_size(r));
}

void singular_values(double *sigma, const float *matrix, int64_t rows, int64_t columns, int64_t stride,
                     double *workspace) {
    int64_t r = smaller(rows, columns);
    double *gram = workspace, *scratch = workspace + r * r;
    bool known = gram_matrix(gram, matrix, rows, columns, stride, gram_smaller_side(rows, columns), scratch) &&
                 eigen_symmetric(sigma, gram, r, EIGENVALUES, scratch);
    if (!known) {
        for (int64_t i = 0; i < r; i++) sigma[i] = nan_value;
        return;
    }
    double noise = gram_noise(r, sigma[r - 1]);
    for (int64_t i = 0; i < r; i++) sigma[i] = sigma[i] > noise ? sqrt(sigma[i]) : 0;
    cblas_dswap((int)(r / 2), sigma, 1, sigma + r - r / 2, -1); /* LAPACK's are ascending */
}

int64_t spectrum_workspace_size(int64_t rows, int64_t columns) {
    return smaller(rows, columns) + singular_workspace_size(rows, columns);
}

Spectrum spectrum_measure(const float *matrix, int64_t rows, int64_t columns, int64_t stride, double *workspace) {
    const int64_t r = smaller(rows, columns);
    singular_values(workspace, matrix, rows, columns, stride, workspace + r);
    return spectrum_from_values(workspace, r, larger(rows, columns));
}
