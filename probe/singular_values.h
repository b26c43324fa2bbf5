/* Singular values of a matrix, and the statistics of their distribution.
 *
 * With sigma_1 .. sigma_r the r = min(n,m) singular values of an (n,m) matrix W:
 *
 *      p_i = sigma_i / sum sigma        entropy        = -sum p ln p   (nats)            (Roy & Vetterli 2007)
 *                                       effective_rank = exp(entropy)
 *      p_i = sigma_i^2 / sum sigma^2    entropy_sq     = -(1/ln r) sum p ln p, in [0,1]  (Moonlight 2025)
 *                                       stable_rank    = |W|_F^2 / sigma_max^2
 *      rms = |W|_F / sqrt(n m)          |O Oᵀ - I|_F   = sqrt(sum (sigma_i^2 - 1)^2)     (I of the smaller side)
 *
 * The values are square roots of the eigenvalues of the fp64 Gram matrix, by LAPACK: several times faster than an SVD
 * (the tests' oracle), and exact to fp32's own rounding: values below about sqrt(r) 1.5e-8 sigma_max come out as 0.
 */
#pragma once

#include <stdint.h>

typedef struct {
    double sigma_max, sigma_min, rms, entropy, entropy_sq, effective_rank, stable_rank;
    double orthogonality_error; /* |O Oᵀ - I|_F */
    double below_half;          /* share of the values that are below 1/2 */
} Spectrum;

/* Of r singular values in any order, of a matrix whose larger side is `length`. All zero: so is every field but the
 * last two. Some value not finite: every field is NaN. r = 1: entropy_sq is 1, the limit of equal values. */
Spectrum spectrum_from_values(const double *sigma, int64_t r, int64_t length);

/* All singular values of a (rows, columns) matrix whose rows lie `stride` apart, descending, into sigma (min(rows,
 * columns) of them). workspace: singular_workspace_size(rows, columns) doubles. NaN if the matrix is not finite. Where
 * several threads call it, the BLAS must not start threads of its own. */
int64_t singular_workspace_size(int64_t rows, int64_t columns);
void singular_values(double *sigma, const float *matrix, int64_t rows, int64_t columns, int64_t stride,
                     double *workspace);

/* The spectrum of such a matrix. workspace: spectrum_workspace_size(rows, columns) doubles. */
int64_t spectrum_workspace_size(int64_t rows, int64_t columns);
Spectrum spectrum_measure(const float *matrix, int64_t rows, int64_t columns, int64_t stride, double *workspace);
