/* Fitting Newton-Schulz coefficients to the spectra that they will meet.
 *
 * One iteration is g(x) = a x + b x³ + c x⁵, written by its fixed points ±x1 and ±x2:
 *
 *      g(x) = x + kappa x (x² - x1²)(x² - x2²)
 *      a = 1 + kappa x1² x2²,   b = -kappa (x1² + x2²),   c = kappa
 *
 * The objective is the mean of (g(g(...g(sigma))) - 1)² over the singular values of random normal matrices, each
 * divided by its Frobenius norm (Su Jianlin 2024, "Appreciating the Muon optimizer"). Gradient descent over (kappa, x1,
 * x2) with Adam's step; the same seed gives the same bits.
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

enum { FIT_SHAPES_MAX = 8 };

typedef struct {
    int64_t iterations; /* of Newton-Schulz */
    int64_t seed;
    int64_t samples; /* matrices of each shape */
    int64_t steps;   /* of the descent */
    int shape_count;
    int64_t shapes[FIT_SHAPES_MAX][2]; /* rows, columns */
} FitRequest;

typedef struct {
    double kappa, x1, x2;
    double a, b, c;
    double objective;       /* mean squared distance from 1, of the samples */
    double published;       /* the same with the set "muon" */
    double least, greatest; /* sample before the first iteration */
    double low, high;       /* sample after the last */
} Fit;

/* "512x512,512x2048" into request->shapes. STATUS_BAD_INPUT names what is wrong. */
Status fit_parse_shapes(FitRequest *request, const char *text);

/* STATUS_OUT_OF_MEMORY if the matrices do not fit. */
Status fit_coefficients(Fit *fit, const FitRequest *request);

/* a x + b x³ + c x⁵, `iterations` times. */
double fit_polynomial(const Fit *fit, int64_t iterations, double x);
