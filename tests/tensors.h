/* Backends and tensors with reproducible content, for the tests of every floor above ops.
 *
 * Everything that a test_* function here allocates belongs to the backend and is freed by test_close. A failure inside
 * ends the running test through cmocka.
 *
 *      Backend be;
 *      test_open(&be, "ref", "fp32");
 *      Tensor x = test_random(&be, DTYPE_F32, shape2(3, 7), 1);
 *      op_scale(&be, x, 2.0f);
 *      double *values = test_read(&be, x);             // row-major, whatever the strides and the dtype
 *      test_close(&be);
 */
#pragma once

#include "ops/backend.h"
#include "tests/support.h"

/* ---- backends and tensors --------------------------------------------------------------------------------------- */

void test_open(Backend *be, const char *device, const char *precision); /* with 2 threads at most */
void test_reserve(Backend *be, OpLimits limits);
void test_release(Backend *be); /* what test_* functions allocated on it, between two rounds of one test */
void test_close(Backend *be);

typedef struct {
    int ndim;
    int64_t size[TENSOR_MAX_DIMS];
} Shape;

Shape shape1(int64_t a);
Shape shape2(int64_t a, int64_t b);
Shape shape3(int64_t a, int64_t b, int64_t c);
Shape shape4(int64_t a, int64_t b, int64_t c, int64_t d);

Tensor test_zeros(Backend *be, DType dtype, Shape shape);
Tensor test_random(Backend *be, DType dtype, Shape shape, uint64_t seed); /* uniform in [-1, 1) */
/* The same values at odd strides: a view whose every dimension but the first is part of a longer one. */
Tensor test_random_strided(Backend *be, DType dtype, Shape shape, uint64_t seed);
/* Such a view at strides of whole 16 bytes, and beginning on 16 bytes: what vector code takes. */
Tensor test_random_aligned(Backend *be, DType dtype, Shape shape, uint64_t seed);
/* i32 in [low, high). */
Tensor test_random_tokens(Backend *be, Shape shape, int64_t low, int64_t high, uint64_t seed);

void test_write(Backend *be, Tensor t, const double *values); /* row-major; rounds to the dtype */
double *test_read(Backend *be, Tensor t);
void test_fill(Backend *be, Tensor t, double value);
double test_get(Backend *be, Tensor t, int64_t i); /* the i-th element in row-major order */
void test_set(Backend *be, Tensor t, int64_t i, double value);

bool same_shape(Tensor a, Tensor b);
void assert_tensors_close(const char *what, Backend *got_be, Tensor got, Backend *expected_be, Tensor expected,
                          Tolerance tolerance);
