/* The ceilings; see measure.h. */
#include "bench/measure.h"

#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "ops/ops.h"
#include "base/rng.h"
#include "device/device.h"

/* ---- samples ---------------------------------------------------------------------------------------------------- */

void samples_add(Samples *s, double value) {
    CHECK(s->count < REPETITIONS_MAX, "%d repetitions", s->count);
    s->values[s->count++] = value;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double samples_median(const Samples *s) {
    Samples sorted = *s;
    if (s->count == 0) return nan("");
    qsort(sorted.values, (size_t)sorted.count, sizeof sorted.values[0], ascending);
    return (sorted.values[(s->count - 1) / 2] + sorted.values[s->count / 2]) / 2;
}

double samples_spread(const Samples *s) {
    double low = HUGE_VAL, high = -HUGE_VAL;
    for (int i = 0; i < s->count; i++) {
        low = fmin(low, s->values[i]);
        high = fmax(high, s->values[i]);
    }
    return s->count < 2 ? nan("") : (high - low) / samples_median(s);
}

double samples_best(const Samples *s) {
    double best = nan("");
    for (int i = 0; i < s->count; i++) best = fmax(best, s->values[i]);
    return best;
}

Status bench_open_backend(Backend *be, const char *precision) {
    char note[256];
    return device_open(be, (BackendRequest){.device = "cpu", .precision = precision}, note, sizeof note);
}

Status bench_fill_random(Backend *be, Tensor tensor, float scale) {
    const int64_t n = tensor_numel(tensor);
    float *values = malloc((size_t)n * sizeof *values);
    if (!values) return status_error(STATUS_OUT_OF_MEMORY, "no memory for %lld random numbers", (long long)n);
    bf16 *rounded = (bf16 *)(void *)values;
    for (int64_t i = 0; i < n; i++) {
        float value = scale * (float)(2 * rng_uniform(1, RNG_TEST, (uint64_t)i) - 1);
        if (tensor.dtype == DTYPE_BF16)
            rounded[i] = bf16_from_f32(value);
        else
            values[i] = value;
    }
    backend_from_host(be, tensor, values);
    free(values);
    return status_ok();
}

/* ---- matrix products -------------------------------------------------------------------------------------------- */

/* Candidates for the side; multiples of every tile size, none a power of two, whose rows would share cache sets. */
static const int64_t sides[] = {960, 1344, 1920};
enum { SIDES = sizeof sides / sizeof sides[0], PRODUCTS_PER_SAMPLE = 15 };

static double one_rate(const Ceiling *c, int64_t side) {
    char *base = c->memory;
    const DType t = c->be->compute_dtype;
    const int64_t bytes = side * side * dtype_size(t);
    Tensor out = tensor_2d(base, t, side, side), a = tensor_2d(base + bytes, t, side, side);
    Tensor b = tensor_2d(base + 2 * bytes, t, side, side);
    const double start = clock_seconds();
    op_matmul(c->be, out, a, b, tensor_none(), (MatmulScale){.alpha = 1});
    if (backend_sync(c->be).code) return nan("");
    return 2 * pow((double)side, 3) / (clock_seconds() - start);
}

static void choose_side(Ceiling *c) {
    double best = 0;
    for (int i = 0; i < SIDES; i++) {
        Samples rates = {0};
        one_rate(c, sides[i]); /* generates the code */
        for (int round = 0; round < 3; round++) samples_add(&rates, one_rate(c, sides[i]));
        if (samples_best(&rates) > best) {
            best = samples_best(&rates);
            c->side = sides[i];
        }
    }
}

Status ceiling_open(Ceiling *c, Backend *be) {
    const int64_t largest = sides[SIDES - 1];
    Status status;
    *c = (Ceiling){.be = be, .bytes = 3 * largest * largest * dtype_size(be->compute_dtype)};
    if (FAILED(status, backend_alloc(be, &c->memory, c->bytes, "the matrix products of the ceiling", NULL)))
        return status;
    if (FAILED(status, bench_fill_random(be, tensor_1d(c->memory, be->compute_dtype, 3 * largest * largest), 0.5f)))
        return status;
    choose_side(c);
    return backend_sync(be);
}

void ceiling_close(Ceiling *c) {
    if (c->memory) backend_free(c->be, c->memory, c->bytes);
    *c = (Ceiling){0};
}

double ceiling_sample(Ceiling *c) {
    Samples rates = {0};
    const double start = clock_seconds();
    one_rate(c, c->side); /* brings the matrices back into cache */
    while (rates.count < 3 || (rates.count < PRODUCTS_PER_SAMPLE && clock_seconds() - start < 0.05))
        samples_add(&rates, one_rate(c, c->side));
    c->last = samples_median(&rates);
    c->last_time = clock_seconds();
    c->sum += c->last;
    c->count++;
    return c->last;
}

void ceiling_refresh(Ceiling *c) {
    if (clock_seconds() - c->last_time > 1) ceiling_sample(c);
}

double ceiling_take(Ceiling *c) {
    double mean = c->sum / c->count;
    c->sum = c->last;
    c->count = 1;
    return mean;
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

/* Elements from one array to the next: not a power of two, or the three would compete for the same cache sets and
 * banks of memory. */
enum { TRIAD_COUNT = 32 << 20, TRIAD_STRIDE = TRIAD_COUNT + 1040, TRIAD_BYTES = 3 * TRIAD_STRIDE * 4 };

Status triad_open(Triad *t, Backend *be) {
    *t = (Triad){.be = be};
    Status status = backend_alloc(be, &t->memory, TRIAD_BYTES, "the triad", NULL);
    if (!status.code) triad_sample(t); /* touches it for the first time */
    return status;
}

void triad_close(Triad *t) {
    if (t->memory) backend_free(t->be, t->memory, TRIAD_BYTES);
    *t = (Triad){0};
}

double triad_sample(Triad *t) {
    float *restrict a = t->memory;
    const float *restrict b = a + TRIAD_STRIDE, *restrict c = b + TRIAD_STRIDE;
    const double start = clock_seconds();
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < TRIAD_COUNT; i++) a[i] = b[i] + 3.0f * c[i];
    return 3.0 * sizeof(float) * TRIAD_COUNT / (clock_seconds() - start);
}
