/* The ledger of QK-Clip: what it keeps of each head, and that it can be had from the lines of metrics.jsonl. That a
 * resumed run has the ledger of an uninterrupted one is a test of the program (test_train_gpt.c). */
#include "tests/support.h"

#include <stdlib.h>
#include <string.h>

#include "base/metrics.h"
#include "probe/clip_ledger.h"

enum { LAYERS = 2, HEADS = 3 };

static void assert_entry(const ClipLedger *ledger, int64_t layer, int64_t head, ClipEntry expected) {
    const ClipEntry *got = &ledger->entries[layer * HEADS + head];
    assert_int_equal(got->first, expected.first);
    assert_int_equal(got->last, expected.last);
    assert_int_equal(got->times, expected.times);
    assert_true(got->gamma == expected.gamma);
}

static void heads_keep_first_and_last_step_times_and_the_product_of_their_factors(void **state) {
    (void)state;
    ClipLedger ledger;
    assert_ok(clip_ledger_init(&ledger, LAYERS, HEADS));
    assert_true(clip_ledger_share(&ledger) == 0);
    clip_ledger_note(&ledger, 3, 1, 2, 0.5f);
    clip_ledger_note(&ledger, 3, 0, 1, 0.75f);
    clip_ledger_note(&ledger, 7, 1, 2, 0.25f);
    clip_ledger_note(&ledger, 9, 1, 2, 0.1f);
    assert_entry(&ledger, 1, 2, (ClipEntry){3, 9, 3, 0.5 * 0.25 * (double)0.1f});
    assert_entry(&ledger, 0, 1, (ClipEntry){3, 3, 1, 0.75});
    assert_entry(&ledger, 0, 0, (ClipEntry){0, 0, 0, 1});
    assert_true(clip_ledger_share(&ledger) == 2.0 / 6);
    clip_ledger_free(&ledger);
}

/* Thousands of factors with all digits of an fp32, through a file, up to a step in its middle. */
static void lines_of_metrics_give_the_same_ledger_to_the_bit(void **state) {
    (void)state;
    enum { STEPS = 300, RESUMED = 250 };
    char folder[PATH_SIZE];
    ClipLedger written, read;
    MetricsWriter w;
    test_folder(folder);
    assert_ok(clip_ledger_init(&written, LAYERS, HEADS));
    assert_ok(clip_ledger_init(&read, LAYERS, HEADS));
    assert_ok(metrics_open(&w, folder, 0, NULL, NULL));
    for (int64_t step = 1; step <= STEPS; step++) {
        cJSON *line = cJSON_CreateObject(), *clipped = cJSON_AddArrayToObject(line, "clipped");
        metrics_add_number(line, "step", (double)step);
        for (int64_t i = 0; i < LAYERS * HEADS; i++) {
            float gamma = (float)(0.75 + 0.25 * test_uniform(1, step * 100 + i));
            if (i == 4 || (step + i) % 3 == 0) continue; /* head 4 never */
            cJSON *event = cJSON_CreateObject();
            metrics_add_number(event, "layer", (double)(i / HEADS));
            metrics_add_number(event, "head", (double)(i % HEADS));
            metrics_add_float(event, "gamma", gamma);
            cJSON_AddItemToArray(clipped, event);
            if (step <= RESUMED) clip_ledger_note(&written, step, i / HEADS, i % HEADS, gamma);
        }
        assert_ok(metrics_write(&w, line));
    }
    metrics_close(&w);
    assert_ok(metrics_open(&w, folder, RESUMED, clip_ledger_read_line, &read));
    metrics_close(&w);
    assert_memory_equal(read.entries, written.entries, sizeof(ClipEntry) * LAYERS * HEADS);
    assert_true(read.entries[0].times > 100 && read.entries[0].last >= RESUMED - 2 && read.entries[4].times == 0);
    clip_ledger_free(&written);
    clip_ledger_free(&read);
    assert_ok(folder_remove(folder));
}

static void records_that_make_no_sense_are_passed_over(void **state) {
    (void)state;
    static const char *const lines[] = {
        "{\"step\":1}",
        "{\"step\":\"one\",\"clipped\":[{\"layer\":0,\"head\":0,\"gamma\":0.5}]}",
        "{\"step\":1,\"clipped\":7}",
        "{\"step\":1,\"clipped\":[3,{}]}",
        "{\"step\":1,\"clipped\":[{\"layer\":2,\"head\":0,\"gamma\":0.5},{\"layer\":0,\"head\":3,\"gamma\":0.5}]}",
        "{\"step\":1,\"clipped\":[{\"layer\":-1,\"head\":0,\"gamma\":0.5},{\"layer\":0,\"head\":0,\"gamma\":null}]}",
        "[]",
    };
    ClipLedger ledger;
    assert_ok(clip_ledger_init(&ledger, LAYERS, HEADS));
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        cJSON *line = cJSON_Parse(lines[i]);
        assert_non_null(line);
        clip_ledger_read_line(&ledger, line);
        cJSON_Delete(line);
    }
    assert_true(clip_ledger_share(&ledger) == 0);
    clip_ledger_free(&ledger);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_keep_first_and_last_step_times_and_the_product_of_their_factors),
        cmocka_unit_test(lines_of_metrics_give_the_same_ledger_to_the_bit),
        cmocka_unit_test(records_that_make_no_sense_are_passed_over),
    };
    return cmocka_run_group_tests_name("clip_ledger", tests, NULL, NULL);
}
