/* What measurements are compared with: the machine's matrix-product rate and its memory bandwidth, at the same time.
 *
 * On a shared machine the absolute rates of one minute say little about the next. So the ceiling is sampled before,
 * between and after the pieces of every measurement, and each repetition is divided by the mean of its own samples:
 *
 *      | ceiling | forward | ceiling | backward | ceiling | optimizer | ceiling |
 *                                                                               \ starts the next repetition, too
 */
#pragma once

#include "ops/backend.h"
#include "base/clock.h"

enum { REPETITIONS_MAX = 64 };

/* Values of the repetitions of one measurement. */
typedef struct {
    int count;
    double values[REPETITIONS_MAX];
} Samples;

void samples_add(Samples *samples, double value);
double samples_median(const Samples *samples); /* NaN: none */
double samples_spread(const Samples *samples); /* (largest - smallest) / median; NaN with fewer than 2 */
double samples_best(const Samples *samples);

/* The CPU, in this precision and with all cores. */
Status bench_open_backend(Backend *be, const char *precision);

/* Uniform in [-scale, scale); tensor contiguous, f32 or bf16. */
Status bench_fill_random(Backend *be, Tensor tensor, float scale);

/* The rate of the fastest large square product in the backend's precision and with its threads, in FLOP/s. */
typedef struct {
    Backend *be;
    void *memory;
    int64_t bytes, side;
    double sum, last, last_time; /* of the samples since ceiling_take; the newest, and when it ended */
    int count;
} Ceiling;

Status ceiling_open(Ceiling *ceiling, Backend *be); /* chooses the side of the square */
void ceiling_close(Ceiling *ceiling);
double ceiling_sample(Ceiling *ceiling); /* median of some products, about 50 ms */
void ceiling_refresh(Ceiling *ceiling);  /* a sample, if the newest is older than a second */
double ceiling_take(Ceiling *ceiling);   /* mean of the samples since the last call; the newest counts again */

/* STREAM triad a = b + s c in fp32 over arrays beyond any cache, in bytes/s: 12 per element, as STREAM counts. On
 * backends whose tensors lie in host memory. */
typedef struct {
    Backend *be; /* its memory, as that of the tensors it is compared with */
    void *memory;
} Triad;

Status triad_open(Triad *triad, Backend *be);
void triad_close(Triad *triad);
double triad_sample(Triad *triad);
