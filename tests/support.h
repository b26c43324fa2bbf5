/* What the test programs of every floor share: statuses, comparison, temporary folders. tests/tensors.h adds backends
 * and tensors. A failure inside ends the running test through cmocka.
 */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/status.h"

/* ---- statuses --------------------------------------------------------------------------------------------------- */

void assert_ok(Status status);
/* A failure of that code whose message contains `part`. */
void assert_fails(Status status, StatusCode code, const char *part);

/* ---- comparison ------------------------------------------------------------------------------------------------- */

typedef struct {
    double absolute;
    double relative; /* times |expected| */
} Tolerance;

/* NaN equals NaN and an infinity itself. The message names `what`, the first element that differs, and how many do. */
void assert_close(const char *what, const double *got, const double *expected, int64_t count, Tolerance tolerance);
/* In [-1, 1): a function of the two numbers alone. */
double test_uniform(uint64_t seed, int64_t index);

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* A fresh folder under $TMPDIR or /tmp; `path` has PATH_SIZE bytes. folder_remove (base/file.h) removes it. */
void test_folder(char *path);
/* Writes folder/name and puts its path into `path` (PATH_SIZE bytes). */
void test_write_file(char *path, const char *folder, const char *name, const void *data, int64_t size);
/* The whole file as a NUL-terminated string; the caller frees it. */
char *test_read_file(const char *path);
