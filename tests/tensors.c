/* See tensors.h. */
#include "tests/tensors.h"

#include <math.h>
#include <stdlib.h>

#include "device/device.h"

/* ---- backends --------------------------------------------------------------------------------------------------- */

/* What test_release frees: memory of a backend, or host memory (bytes < 0). */
typedef struct Owned {
    Backend *be;
    void *memory;
    int64_t bytes;
    struct Owned *next;
} Owned;

static Owned *owned;

static void own(Backend *be, void *memory, int64_t bytes) {
    Owned *entry = malloc(sizeof *entry);
    assert_non_null(entry);
    *entry = (Owned){.be = be, .memory = memory, .bytes = bytes, .next = owned};
    owned = entry;
}

void test_open(Backend *be, const char *device, const char *precision) {
    char note[256];
    assert_ok(
        device_open(be, (BackendRequest){.device = device, .precision = precision, .threads = 2}, note, sizeof note));
}

void test_reserve(Backend *be, OpLimits limits) {
    assert_ok(backend_reserve(be, limits));
}

void test_release(Backend *be) {
    for (Owned **link = &owned; *link;) {
        Owned *entry = *link;
        if (entry->be != be) {
            link = &entry->next;
            continue;
        }
        if (entry->bytes < 0)
            free(entry->memory);
        else
            backend_free(be, entry->memory, entry->bytes);
        *link = entry->next;
        free(entry);
    }
}

void test_close(Backend *be) {
    test_release(be);
    backend_close(be);
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

Shape shape1(int64_t a) {
    return (Shape){1, {a}};
}
Shape shape2(int64_t a, int64_t b) {
    return (Shape){2, {a, b}};
}
Shape shape3(int64_t a, int64_t b, int64_t c) {
    return (Shape){3, {a, b, c}};
}
Shape shape4(int64_t a, int64_t b, int64_t c, int64_t d) {
    return (Shape){4, {a, b, c, d}};
}

Tensor test_zeros(Backend *be, DType dtype, Shape shape) {
    int64_t count = 1;
    for (int i = 0; i < shape.ndim; i++) count *= shape.size[i];
    void *memory = NULL;
    assert_ok(backend_alloc(be, &memory, count * dtype_size(dtype), "a test tensor", NULL));
    own(be, memory, count * dtype_size(dtype));
    return tensor_reshape(tensor_1d(memory, dtype, count), shape.ndim, shape.size);
}

static void fill_random(Backend *be, Tensor t, uint64_t seed) {
    int64_t count = tensor_numel(t);
    double *values = malloc((size_t)count * sizeof *values + 1);
    assert_non_null(values);
    for (int64_t i = 0; i < count; i++) values[i] = test_uniform(seed, i);
    test_write(be, t, values);
    free(values);
}

Tensor test_random(Backend *be, DType dtype, Shape shape, uint64_t seed) {
    Tensor t = test_zeros(be, dtype, shape);
    fill_random(be, t, seed);
    return t;
}

/* With `margin` elements in front of each dimension but the first, and twice as many behind. */
static Tensor random_view(Backend *be, DType dtype, Shape shape, int64_t margin, uint64_t seed) {
    Shape whole = shape;
    for (int i = 1; i < shape.ndim; i++) whole.size[i] += 3 * margin;
    Tensor t = test_zeros(be, dtype, whole);
    for (int i = 1; i < shape.ndim; i++) t = tensor_slice(t, i, margin, shape.size[i]);
    fill_random(be, t, seed);
    return t;
}

Tensor test_random_strided(Backend *be, DType dtype, Shape shape, uint64_t seed) {
    return random_view(be, dtype, shape, 1, seed);
}

Tensor test_random_aligned(Backend *be, DType dtype, Shape shape, uint64_t seed) {
    return random_view(be, dtype, shape, 8, seed);
}

Tensor test_random_tokens(Backend *be, Shape shape, int64_t low, int64_t high, uint64_t seed) {
    Tensor t = test_zeros(be, DTYPE_I32, shape);
    for (int64_t i = 0; i < tensor_numel(t); i++)
        test_set(be, t, i, floor((double)low + (double)(high - low) * 0.5 * (test_uniform(seed, i) + 1)));
    return t;
}

/* ---- elements --------------------------------------------------------------------------------------------------- */

enum { MAX_RUN = 256 };

/* What backends move between host and device: up to MAX_RUN elements of one dtype. */
typedef union {
    float f32[MAX_RUN];
    bf16 b16[MAX_RUN];
    int32_t i32[MAX_RUN];
} Run;

/* `count` elements that lie side by side, beginning with the i-th in row-major order. */
static Tensor run_at(Tensor t, int64_t i, int64_t count) {
    int64_t offset = 0;
    for (int dim = t.ndim - 1; dim >= 0; dim--) {
        offset += i % t.shape[dim] * t.stride[dim];
        i /= t.shape[dim];
    }
    return tensor_1d((char *)t.data + offset * dtype_size(t.dtype), t.dtype, count);
}

/* How many elements from the i-th on, up to `limit`, lie side by side in one row. */
static int64_t run_length(Tensor t, int64_t i, int64_t limit) {
    int last = t.ndim - 1;
    int64_t length = t.stride[last] == 1 ? t.shape[last] - i % t.shape[last] : 1;
    if (length > limit) length = limit;
    return length < MAX_RUN ? length : MAX_RUN;
}

static void read_elements(Backend *be, Tensor t, int64_t first, int64_t count, double *values) {
    for (int64_t done = 0, n; done < count; done += n) {
        Run run;
        n = run_length(t, first + done, count - done);
        backend_to_host(be, &run, run_at(t, first + done, n));
        for (int64_t i = 0; i < n; i++)
            values[done + i] = t.dtype == DTYPE_F32    ? (double)run.f32[i]
                               : t.dtype == DTYPE_BF16 ? (double)bf16_to_f32(run.b16[i])
                                                       : run.i32[i];
    }
}

static void write_elements(Backend *be, Tensor t, int64_t first, int64_t count, const double *values) {
    for (int64_t done = 0, n; done < count; done += n) {
        Run run;
        n = run_length(t, first + done, count - done);
        for (int64_t i = 0; i < n; i++) {
            double value = values[done + i];
            if (t.dtype == DTYPE_F32)
                run.f32[i] = (float)value;
            else if (t.dtype == DTYPE_BF16)
                run.b16[i] = bf16_from_f32((float)value);
            else
                run.i32[i] = (int32_t)value;
        }
        backend_from_host(be, run_at(t, first + done, n), &run);
    }
}

double test_get(Backend *be, Tensor t, int64_t i) {
    double value;
    read_elements(be, t, i, 1, &value);
    return value;
}

void test_set(Backend *be, Tensor t, int64_t i, double value) {
    write_elements(be, t, i, 1, &value);
}

void test_write(Backend *be, Tensor t, const double *values) {
    write_elements(be, t, 0, tensor_numel(t), values);
}

double *test_read(Backend *be, Tensor t) {
    double *values = malloc((size_t)tensor_numel(t) * sizeof *values + 1);
    assert_non_null(values);
    own(be, values, -1);
    read_elements(be, t, 0, tensor_numel(t), values);
    return values;
}

void test_fill(Backend *be, Tensor t, double value) {
    for (int64_t i = 0; i < tensor_numel(t); i++) test_set(be, t, i, value);
}

/* ---- comparison ------------------------------------------------------------------------------------------------- */

bool same_shape(Tensor a, Tensor b) {
    if (a.ndim != b.ndim) return false;
    for (int i = 0; i < a.ndim; i++)
        if (a.shape[i] != b.shape[i]) return false;
    return true;
}

void assert_tensors_close(const char *what, Backend *got_be, Tensor got, Backend *expected_be, Tensor expected,
                          Tolerance tolerance) {
    assert_ok(backend_sync(got_be));
    assert_ok(backend_sync(expected_be));
    if (!same_shape(got, expected)) fail_msg("%s: the shapes differ", what);
    assert_close(what, test_read(got_be, got), test_read(expected_be, expected), tensor_numel(got), tolerance);
}
