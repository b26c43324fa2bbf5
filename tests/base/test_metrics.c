/* metrics.jsonl: whole lines, numbers that read back, and a resumed run that continues where its checkpoint was. */
#include "tests/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/metrics.h"

static char folder[PATH_SIZE], path[PATH_SIZE];

static int open_folder(void **state) {
    (void)state;
    test_folder(folder);
    assert_ok(path_join(path, folder, "metrics.jsonl"));
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    assert_ok(folder_remove(folder));
    return 0;
}

static void write_step(MetricsWriter *w, int64_t step) {
    cJSON *line = cJSON_CreateObject();
    metrics_add_number(line, "step", (double)step);
    assert_ok(metrics_write(w, line));
}

static void expect_file(const char *expected) {
    char *text = test_read_file(path);
    assert_string_equal(text, expected);
    free(text);
}

/* What metrics.jsonl holds after a run with this file resumes at `step`. */
static void expect_resumed(const char *before, int64_t step, const char *expected) {
    MetricsWriter w;
    char ignored[PATH_SIZE];
    test_write_file(ignored, folder, "metrics.jsonl", before, (int64_t)strlen(before));
    assert_ok(metrics_open(&w, folder, step));
    metrics_close(&w);
    expect_file(expected);
}

static void each_object_is_one_line_and_on_disk_at_once(void **state) {
    (void)state;
    MetricsWriter w;
    assert_ok(metrics_open(&w, folder, 0));
    write_step(&w, 1);
    expect_file("{\"step\":1}\n");
    cJSON *line = cJSON_CreateObject();
    metrics_add_number(line, "step", 2);
    cJSON_AddStringToObject(line, "event", "two\nlines");
    assert_ok(metrics_write(&w, line));
    expect_file("{\"step\":1}\n{\"step\":2,\"event\":\"two\\nlines\"}\n");
    metrics_close(&w);
}

static void a_new_run_starts_an_empty_file(void **state) {
    (void)state;
    expect_resumed("{\"step\":1}\n", 0, "");
}

static void a_resumed_run_drops_the_lines_after_its_checkpoint(void **state) {
    (void)state;
    MetricsWriter w;
    expect_resumed("{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n", 2,
                   "{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n");
    assert_ok(metrics_open(&w, folder, 2));
    write_step(&w, 3);
    metrics_close(&w);
    expect_file("{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
}

static void a_line_that_a_crash_cut_short_is_dropped(void **state) {
    (void)state;
    expect_resumed("{\"step\":1}\n{\"step\":2,\"lo", 9, "{\"step\":1}\n");
    expect_resumed("{\"step\":1}\n{\"step\":2}", 9, "{\"step\":1}\n"); /* without its newline it may be cut: 2, or 20 */
    expect_resumed("{\"step\":1,\"lo{\"step\":2}\n{\"step\":3}\n[4]\n{}\n", 9, "{\"step\":3}\n");
}

static void a_resumed_run_without_a_file_starts_one(void **state) {
    (void)state;
    assert_ok(folder_remove(path));
    MetricsWriter w;
    assert_ok(metrics_open(&w, folder, 5));
    write_step(&w, 6);
    metrics_close(&w);
    expect_file("{\"step\":6}\n");
}

static void lines_of_any_length_survive_and_no_temporary_file_stays(void **state) {
    (void)state;
    enum { LONG = 300000 };
    char *before = malloc(LONG + 64), temporary[PATH_SIZE];
    assert_non_null(before);
    int used = snprintf(before, 64, "{\"step\":1,\"pad\":\"");
    memset(before + used, 'x', LONG);
    strcpy(before + used + LONG, "\"}\n");
    expect_resumed(before, 1, before);
    assert_ok(path_join(temporary, folder, "metrics.jsonl.tmp"));
    assert_false(file_exists(temporary));
    free(before);
}

static void a_folder_that_is_not_there_is_named(void **state) {
    (void)state;
    MetricsWriter w;
    assert_fails(metrics_open(&w, "no/such/run", 0), STATUS_IO,
                 "no/such/run/metrics.jsonl: cannot open: No such file or directory");
}

static void assert_printed(cJSON *object, const char *expected) {
    char *text = cJSON_PrintUnformatted(object);
    assert_string_equal(text, expected);
    free(text);
    cJSON_Delete(object);
}

static void numbers_that_are_not_finite_are_null(void **state) {
    (void)state;
    cJSON *object = cJSON_CreateObject();
    metrics_add_number(object, "a", (double)NAN);
    metrics_add_number(object, "b", (double)-INFINITY);
    metrics_add_float(object, "c", INFINITY);
    cJSON_AddItemToObject(object, "d", metrics_number((double)NAN));
    assert_printed(object, "{\"a\":null,\"b\":null,\"c\":null,\"d\":null}");
}

static void numbers_have_the_fewest_digits_that_read_back(void **state) {
    (void)state;
    cJSON *object = cJSON_CreateObject();
    metrics_add_number(object, "a", 0.1);
    metrics_add_number(object, "b", 0.1 + 0.2);
    metrics_add_number(object, "c", 123456789012.0);
    metrics_add_number(object, "d", -2e300);
    metrics_add_float(object, "e", 0.1f);
    metrics_add_float(object, "f", 5.0f / 3.0f);
    metrics_add_float(object, "g", 16777216.0f);
    assert_printed(object, "{\"a\":0.1,\"b\":0.30000000000000004,\"c\":123456789012,\"d\":-2e+300,\"e\":0.1,"
                           "\"f\":1.6666666,\"g\":16777216}");
}

static void doubles_and_floats_of_any_size_read_back_the_same(void **state) {
    (void)state;
    for (int i = 0; i < 2000; i++) {
        double value = ldexp(test_uniform(7, i), i % 2000 - 1000);
        float single = (float)ldexp(test_uniform(8, i), i % 240 - 120);
        cJSON *number = metrics_number(value), *object = cJSON_CreateObject();
        metrics_add_float(object, "x", single);
        assert_true(strtod(number->valuestring, NULL) == value);
        assert_true(strtof(object->child->valuestring, NULL) == single);
        cJSON_Delete(number);
        cJSON_Delete(object);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_object_is_one_line_and_on_disk_at_once),
        cmocka_unit_test(a_new_run_starts_an_empty_file),
        cmocka_unit_test(a_resumed_run_drops_the_lines_after_its_checkpoint),
        cmocka_unit_test(a_line_that_a_crash_cut_short_is_dropped),
        cmocka_unit_test(a_resumed_run_without_a_file_starts_one),
        cmocka_unit_test(lines_of_any_length_survive_and_no_temporary_file_stays),
        cmocka_unit_test(a_folder_that_is_not_there_is_named),
        cmocka_unit_test(numbers_that_are_not_finite_are_null),
        cmocka_unit_test(numbers_have_the_fewest_digits_that_read_back),
        cmocka_unit_test(doubles_and_floats_of_any_size_read_back_the_same),
    };
    return cmocka_run_group_tests(tests, open_folder, remove_folder);
}
