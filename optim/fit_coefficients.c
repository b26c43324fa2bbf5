/* Sampling spectra, and the descent; see fit_coefficients.h. */
#include "optim/fit_coefficients.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/integer.h"
#include "base/rng.h"
#include "optim/coefficients.h"

/* ---- samples ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t count;
    double *sigma;
} Samples;

Status fit_parse_shapes(FitRequest *request, const char *text) {
    enum { SIDE_MAX = 8192 };
    request->shape_count = 0;
    for (const char *at = text;; at++) {
        char *end;
        long long rows = strtoll(at, &end, 10), columns = *end == 'x' ? strtoll(end + 1, &end, 10) : 0;
        bool good = rows > 0 && columns > 0 && rows <= SIDE_MAX && columns <= SIDE_MAX && (*end == ',' || !*end);
        if (!good || request->shape_count == FIT_SHAPES_MAX)
            return BAD_INPUT(
                "--shapes %s: expected at most %d shapes such as 512x512,512x2048, with sides from 1 to %d", text,
                FIT_SHAPES_MAX, SIDE_MAX);
        request->shapes[request->shape_count][0] = rows;
        request->shapes[request->shape_count++][1] = columns;
        at = end;
        if (!*at) return status_ok();
    }
}

/* The singular values of a random normal matrix over its Frobenius norm. */
static Status sample_matrix(double *sigma, int64_t rows, int64_t columns, uint64_t seed, uint64_t first) {
    double *matrix = malloc((size_t)(rows * columns) * sizeof *matrix), square_sum = 0;
    if (!matrix) goto no_memory;
    for (int64_t i = 0; i < rows * columns; i++) {
        matrix[i] = rng_normal(seed, RNG_FIT, first + (uint64_t)i);
        square_sum += matrix[i] * matrix[i];
    }
    lapack_int info = LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'N', (lapack_int)rows, (lapack_int)columns, matrix,
                                     (lapack_int)columns, sigma, NULL, 1, NULL, (lapack_int)columns);
    free(matrix);
    if (info) goto no_memory; /* of finite numbers nothing else can fail */
    for (int64_t i = 0; i < smaller(rows, columns); i++) sigma[i] /= sqrt(square_sum);
    return status_ok();
no_memory:
    return NO_MEMORY("no memory for the singular values of a matrix of %lld x %lld", (long long)rows,
                     (long long)columns);
}

static Status sample_spectra(Samples *samples, const FitRequest *request) {
    uint64_t drawn = 0; /* numbers: no two matrices share one */
    *samples = (Samples){0};
    for (int i = 0; i < request->shape_count; i++)
        samples->count += request->samples * smaller(request->shapes[i][0], request->shapes[i][1]);
    samples->sigma = malloc((size_t)samples->count * sizeof *samples->sigma);
    if (!samples->sigma) return NO_MEMORY("no memory for %lld singular values", (long long)samples->count);
    double *next = samples->sigma;
    for (int i = 0; i < request->shape_count; i++)
        for (int64_t k = 0; k < request->samples; k++) {
            int64_t rows = request->shapes[i][0], columns = request->shapes[i][1];
            Status status = sample_matrix(next, rows, columns, (uint64_t)request->seed, drawn);
            if (status.code) return status;
            next += smaller(rows, columns);
            drawn += (uint64_t)(rows * columns);
        }
    return status_ok();
}

/* ---- the objective ---------------------------------------------------------------------------------------------- */

enum { KAPPA, X1, X2, PARAMETERS };

typedef struct {
    double value, gradient[PARAMETERS];
} Objective;

/* One iteration of y and of its derivatives by the three parameters. */
static void iterate(const double *p, double *y, double *dy) {
    const double x = *y, k = p[KAPPA], A = x * x - p[X1] * p[X1], B = x * x - p[X2] * p[X2];
    const double slope = 1 + k * (A * B + 2 * x * x * (A + B));
    const double own[PARAMETERS] = {x * A * B, -2 * p[X1] * k * x * B, -2 * p[X2] * k * x * A};
    *y = x + k * x * A * B;
    for (int i = 0; i < PARAMETERS; i++) dy[i] = slope * dy[i] + own[i];
}

static Objective objective_of(const double *p, const Samples *samples, int64_t iterations) {
    Objective total = {0};
    const double share = 1 / (double)samples->count;
    for (int64_t s = 0; s < samples->count; s++) {
        double y = samples->sigma[s], dy[PARAMETERS] = {0};
        for (int64_t i = 0; i < iterations; i++) iterate(p, &y, dy);
        total.value += share * (y - 1) * (y - 1);
        for (int i = 0; i < PARAMETERS; i++) total.gradient[i] += share * 2 * (y - 1) * dy[i];
    }
    return total;
}

/* ---- the descent ------------------------------------------------------------------------------------------------ */

/* Gradients near the edge, where the iteration runs off, are huge: they keep their direction. */
static void clip(double *gradient) {
    double norm = 0;
    for (int i = 0; i < PARAMETERS; i++) norm += gradient[i] * gradient[i];
    norm = sqrt(norm);
    for (int i = 0; i < PARAMETERS && norm > 1; i++) gradient[i] /= norm;
}

/* Adam with a rate that falls linearly to 0. A step that runs off goes back to the best point with half the rate. */
static void descend(double *best, double *least, const Samples *samples, const FitRequest *request) {
    const double beta1 = .9, beta2 = .99, eps = 1e-10;
    double p[PARAMETERS], m[PARAMETERS] = {0}, v[PARAMETERS] = {0}, rate = .02;
    memcpy(p, best, sizeof p);
    *least = HUGE_VAL;
    for (int64_t t = 1; t <= request->steps; t++) {
        Objective o = objective_of(p, samples, request->iterations);
        if (!isfinite(o.value)) {
            memcpy(p, best, sizeof p);
            rate /= 2;
            continue;
        }
        if (o.value < *least) {
            *least = o.value;
            memcpy(best, p, sizeof p);
        }
        clip(o.gradient);
        const double left = 1 - (double)t / (double)(request->steps + 1);
        for (int i = 0; i < PARAMETERS; i++) {
            m[i] = beta1 * m[i] + (1 - beta1) * o.gradient[i];
            v[i] = beta2 * v[i] + (1 - beta2) * o.gradient[i] * o.gradient[i];
            const double step = m[i] / (1 - pow(beta1, (double)t));
            p[i] -= rate * left * step / (sqrt(v[i] / (1 - pow(beta2, (double)t))) + eps);
        }
    }
}

/* ---- the result ------------------------------------------------------------------------------------------------- */

double fit_polynomial(const Fit *fit, int64_t iterations, double x) {
    for (int64_t i = 0; i < iterations; i++) x *= fit->a + x * x * (fit->b + x * x * fit->c);
    return x;
}

static void describe(Fit *fit, const Samples *samples, int64_t iterations) {
    const double *abc = coefficient_sets[COEFFICIENTS_MUON].triples[0];
    const Fit muon = {.a = abc[0], .b = abc[1], .c = abc[2]};
    fit->least = fit->low = HUGE_VAL;
    for (int64_t s = 0; s < samples->count; s++) {
        const double before = samples->sigma[s], after = fit_polynomial(fit, iterations, before);
        const double distance = fit_polynomial(&muon, iterations, before) - 1;
        fit->published += distance * distance;
        fit->least = fmin(fit->least, before);
        fit->greatest = fmax(fit->greatest, before);
        fit->low = fmin(fit->low, after);
        fit->high = fmax(fit->high, after);
    }
    fit->published /= (double)samples->count;
}

Status fit_coefficients(Fit *fit, const FitRequest *request) {
    CHECK(request->shape_count > 0 && request->iterations > 0 && request->samples > 0 && request->steps > 0,
          "%d shapes, %lld iterations", request->shape_count, (long long)request->iterations);
    Samples samples;
    double p[PARAMETERS] = {[KAPPA] = 2, [X1] = .9, [X2] = 1.2}; /* near "muon" */
    *fit = (Fit){0};
    Status status = sample_spectra(&samples, request);
    if (status.code) goto done;
    descend(p, &fit->objective, &samples, request);
    fit->kappa = p[KAPPA], fit->x1 = p[X1], fit->x2 = p[X2];
    fit->a = 1 + fit->kappa * fit->x1 * fit->x1 * fit->x2 * fit->x2;
    fit->b = -fit->kappa * (fit->x1 * fit->x1 + fit->x2 * fit->x2);
    fit->c = fit->kappa;
    describe(fit, &samples, request->iterations);
done:
    free(samples.sigma);
    return status;
}
