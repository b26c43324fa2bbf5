/* What the test programs share: backends, tensors with reproducible content, comparison, temporary folders.
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

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/backend.h"
#include "core/file.h"

/* ---- statuses --------------------------------------------------------------------------------------------------- */

void assert_ok(Status status);
/* A failure of that code whose message contains `part`. */
void assert_fails(Status status, StatusCode code, const char *part);

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

/* In [-1, 1): a function of the two numbers alone. */
double test_uniform(uint64_t seed, int64_t index);

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

/* ---- comparison ------------------------------------------------------------------------------------------------- */

typedef struct {
    double absolute;
    double relative; /* times |expected| */
} Tolerance;

/* NaN equals NaN and an infinity itself. The message names `what`, the first element that differs, and how many do. */
void assert_close(const char *what, const double *got, const double *expected, int64_t count, Tolerance tolerance);
void assert_tensors_close(const char *what, Backend *got_be, Tensor got, Backend *expected_be, Tensor expected,
                          Tolerance tolerance);

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* A fresh folder under $TMPDIR or /tmp; `path` has PATH_SIZE bytes. folder_remove (core/file.h) removes it. */
void test_folder(char *path);
/* Writes folder/name and puts its path into `path` (PATH_SIZE bytes). */
void test_write_file(char *path, const char *folder, const char *name, const void *data, int64_t size);
/* The whole file as a NUL-terminated string; the caller frees it. */
char *test_read_file(const char *path);
