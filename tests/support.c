/* See support.h. */
#include "tests/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

/* AddressSanitizer asks for its options here: memory that there is not is a NULL, as without it, and not the end. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "allocator_may_return_null=1";
}

/* ---- statuses --------------------------------------------------------------------------------------------------- */

void assert_ok(Status status) {
    if (status.code) fail_msg("unexpected failure %d: %s", (int)status.code, status.message);
}

void assert_fails(Status status, StatusCode code, const char *part) {
    if (status.code != code || !strstr(status.message, part))
        fail_msg("expected failure %d with \"%s\", got %d: %s", (int)code, part, (int)status.code, status.message);
}

/* ---- comparison ------------------------------------------------------------------------------------------------- */

static bool close_enough(double got, double expected, Tolerance tolerance) {
    if (isnan(expected)) return isnan(got);
    if (isinf(expected)) return got == expected;
    return fabs(got - expected) <= tolerance.absolute + tolerance.relative * fabs(expected); /* false for NaN */
}

void assert_close(const char *what, const double *got, const double *expected, int64_t count, Tolerance tolerance) {
    int64_t first = -1, wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        if (close_enough(got[i], expected[i], tolerance)) continue;
        if (first < 0) first = i;
        wrong++;
    }
    if (wrong)
        fail_msg("%s: element %lld is %.9g, expected %.9g (tolerance %g + %g relative); %lld of %lld differ", what,
                 (long long)first, got[first], expected[first], tolerance.absolute, tolerance.relative,
                 (long long)wrong, (long long)count);
}

double test_uniform(uint64_t seed, int64_t index) {
    return 2 * rng_uniform(seed, RNG_TEST, (uint64_t)index) - 1;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

void test_folder(char *path) {
    const char *base = getenv("TMPDIR");
    assert_ok(path_join(path, base && *base ? base : "/tmp", "train_gpt_test_XXXXXX"));
    if (!mkdtemp(path)) fail_msg("cannot make the folder %s", path);
}

void test_write_file(char *path, const char *folder, const char *name, const void *data, int64_t size) {
    assert_ok(path_join(path, folder, name));
    assert_ok(file_write(path, data, size));
}

char *test_read_file(const char *path) {
    char *data = NULL;
    int64_t size = 0;
    assert_ok(file_read(path, INT64_C(1) << 30, &data, &size));
    return data;
}
