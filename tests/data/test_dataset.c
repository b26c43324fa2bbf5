/* The data set: which windows it hands out, in which order, and what it refuses. */
#include "tests/support.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/dataset.h"
#include "data/shard.h"

enum { CONTEXT = 8, VOCAB = 1000 };

static char folder[PATH_SIZE], pattern[PATH_SIZE];
static const DataConfig config = {.synthetic_states = 16, .synthetic_zipf = 1.0};

/* A shard whose tokens are base, base + 1, ...: a token tells where it came from. */
static void write_counting_shard(int number, int32_t base, int64_t count) {
    char name[32], path[PATH_SIZE];
    ShardWriter writer;
    snprintf(name, sizeof name, "part_%02d.bin", number);
    assert_ok(path_join(path, folder, name));
    assert_ok(shard_writer_open(&writer, path, TOKEN_U16));
    for (int32_t i = 0; i < count; i++) assert_ok(shard_writer_add(&writer, &(int32_t){base + i}, 1));
    assert_ok(shard_writer_finish(&writer));
}

/* Lengths on both sides of every border: less than a window, exactly one, one and a rest, many. */
static const struct {
    int32_t base;
    int64_t count;
} shards[] = {{0, 5}, {100, 9}, {200, 20}, {300, 100}, {500, 8}, {600, 17}};

static int make_shards(void **state) {
    (void)state;
    test_folder(folder);
    assert_ok(path_join(pattern, folder, "part_*.bin"));
    for (int i = 0; i < 6; i++) write_counting_shard(i, shards[i].base, shards[i].count);
    return 0;
}

static int remove_shards(void **state) {
    (void)state;
    return (int)folder_remove(folder).code;
}

static Dataset *open_shards(int64_t seed) {
    Dataset *dataset = NULL;
    assert_ok(dataset_open(&dataset, pattern, VOCAB, CONTEXT, seed, &config, false));
    return dataset;
}

/* Consecutive tokens of one shard, and their successors. */
static void check_window(const int32_t *tokens, const int32_t *targets) {
    int s = 5;
    while (shards[s].base > tokens[0]) s--;
    assert_true(tokens[0] + CONTEXT < shards[s].base + shards[s].count);
    for (int i = 0; i < CONTEXT; i++) {
        assert_int_equal(tokens[i], tokens[0] + i);
        assert_int_equal(targets[i], tokens[i] + 1);
    }
}

/* ---- windows ---------------------------------------------------------------------------------------------------- */

static void evaluation_windows_cover_each_shard_in_file_order(void **state) {
    (void)state;
    Dataset *dataset = open_shards(1);
    int64_t index = 0;
    int32_t tokens[CONTEXT], targets[CONTEXT];
    for (int s = 0; s < 6; s++) {
        for (int64_t first = 0; first + CONTEXT < shards[s].count; first += CONTEXT, index++) {
            assert_ok(dataset_window(dataset, index, tokens, targets));
            check_window(tokens, targets);
            assert_int_equal(tokens[0], shards[s].base + first);
        }
    }
    assert_int_equal(index, 0 + 1 + 2 + 12 + 0 + 2);
    assert_int_equal(dataset_facts(dataset)->windows, index);
    assert_int_equal(dataset_facts(dataset)->tokens, 159);
    assert_true(isnan(dataset_facts(dataset)->entropy_floor));
    dataset_close(dataset);
}

static void an_epoch_takes_disjoint_windows_of_every_shard(void **state) {
    (void)state;
    Dataset *dataset = open_shards(7);
    int64_t epoch = dataset_facts(dataset)->epoch;
    assert_int_equal(epoch, 0 + 1 + 1 + 11 + 0 + 1);
    for (int64_t e = 0; e < 50; e++) {
        bool used[VOCAB] = {false};
        for (int64_t i = 0; i < epoch; i++) {
            int32_t tokens[CONTEXT], targets[CONTEXT];
            assert_ok(dataset_train_sample(dataset, e * epoch + i, tokens, targets));
            check_window(tokens, targets);
            for (int t = 0; t < CONTEXT; t++) {
                assert_false(used[tokens[t]]);
                used[tokens[t]] = true;
            }
        }
        assert_true(used[100] && used[107]); /* the shard of exactly one window */
    }
    dataset_close(dataset);
}

static void epochs_differ_in_order_and_in_offset(void **state) {
    (void)state;
    enum { EPOCHS = 200 };
    Dataset *dataset = open_shards(7);
    int64_t epoch = dataset_facts(dataset)->epoch;
    bool seen[VOCAB + 1] = {false}, offset_seen[CONTEXT] = {false};
    int32_t tokens[CONTEXT], targets[CONTEXT], first_epoch[64];
    int same = 0;
    for (int64_t i = 0; i < epoch * EPOCHS; i++) {
        assert_ok(dataset_train_sample(dataset, i, tokens, targets));
        if (i < epoch) first_epoch[i] = tokens[0] / 10;
        if (i >= epoch && i < 2 * epoch) same += first_epoch[i - epoch] == tokens[0] / 10;
        for (int t = 0; t < CONTEXT; t++) seen[targets[t]] = true;
        if (tokens[0] >= 300 && tokens[0] < 400) offset_seen[(tokens[0] - 300) % CONTEXT] = true;
    }
    assert_true(same < epoch / 2);
    for (int o = 0; o < CONTEXT; o++) assert_true(offset_seen[o]);
    /* in time, every token that has a predecessor is a target */
    for (int t = 301; t < 400; t++) assert_true(seen[t]);
    for (int t = 201; t < 220; t++) assert_true(seen[t]);
    dataset_close(dataset);
}

static void a_sample_is_a_function_of_seed_and_index(void **state) {
    (void)state;
    Dataset *forwards = open_shards(42), *backwards = open_shards(42), *other = open_shards(43);
    enum { COUNT = 60 };
    int32_t expected[COUNT][CONTEXT], tokens[CONTEXT], targets[CONTEXT];
    int differing = 0;
    for (int i = 0; i < COUNT; i++) assert_ok(dataset_train_sample(forwards, i, expected[i], targets));
    for (int i = COUNT - 1; i >= 0; i--) {
        assert_ok(dataset_train_sample(backwards, i, tokens, targets));
        assert_memory_equal(tokens, expected[i], sizeof tokens);
        assert_ok(dataset_train_sample(other, i, tokens, targets));
        differing += memcmp(tokens, expected[i], sizeof tokens) != 0;
    }
    assert_true(differing > COUNT / 2);
    dataset_close(forwards);
    dataset_close(backwards);
    dataset_close(other);
}

/* Two epochs, computed apart from the formulas in data/dataset.c: a change here changes every run that users have. */
static void the_order_of_training_is_the_documented_one(void **state) {
    (void)state;
    Dataset *dataset = open_shards(1337);
    const int32_t expected[] = {341, 333, 357, 317, 349, 100, 365, 301, 309, 373, 200, 381,
                                325, 604, 321, 329, 361, 345, 100, 207, 377, 313, 385, 605};
    int32_t tokens[CONTEXT], targets[CONTEXT];
    for (int i = 0; i < 24; i++) {
        assert_ok(dataset_train_sample(dataset, i, tokens, targets));
        assert_int_equal(tokens[0], expected[i]);
    }
    dataset_close(dataset);
}

/* ---- refusals --------------------------------------------------------------------------------------------------- */

static void a_pattern_without_files_says_how_to_make_some(void **state) {
    (void)state;
    Dataset *dataset = NULL;
    char path[PATH_SIZE];
    assert_ok(path_join(path, folder, "absent_*.bin"));
    Status status = dataset_open(&dataset, path, VOCAB, CONTEXT, 1, &config, false);
    assert_fails(status, STATUS_BAD_INPUT, path);
    assert_fails(status, STATUS_BAD_INPUT, "./train_gpt prepare");
    assert_null(dataset);
}

static void shards_without_a_window_are_refused(void **state) {
    (void)state;
    Dataset *dataset = NULL;
    assert_fails(dataset_open(&dataset, pattern, VOCAB, 100, 1, &config, false), STATUS_BAD_INPUT,
                 "159 tokens in 6 files, but none holds the 101 of one window");
}

static void a_token_beyond_the_vocabulary_is_refused_at_open(void **state) {
    (void)state;
    Dataset *dataset = NULL;
    Status status = dataset_open(&dataset, pattern, 616, CONTEXT, 1, &config, false);
    assert_fails(status, STATUS_BAD_INPUT, "part_05.bin: token 16 (offset 1056) is 616, but the vocabulary has 616");
    assert_null(dataset);
}

static void one_foreign_file_among_many_is_refused(void **state) {
    (void)state;
    Dataset *dataset = NULL;
    char path[PATH_SIZE];
    test_write_file(path, folder, "part_03x.bin", "text", 4);
    assert_fails(dataset_open(&dataset, pattern, VOCAB, CONTEXT, 1, &config, false), STATUS_BAD_INPUT, path);
    remove(path);
}

/* Too large to be read through at open: the bad token shows when its window comes, and nothing is handed out. */
static void a_bad_token_in_a_huge_shard_is_reported_when_it_is_read(void **state) {
    (void)state;
    const int32_t header[256] = {20240801, 7, 300 * 1000 * 1000};
    const uint32_t bad = UINT32_MAX;
    char path[PATH_SIZE];
    Dataset *dataset = NULL;
    int32_t tokens[CONTEXT], targets[CONTEXT];
    test_write_file(path, folder, "huge.bin", header, sizeof header);
    assert_int_equal(truncate(path, 1024 + 4 * (int64_t)header[2]), 0);
    int file = open(path, O_WRONLY);
    assert_int_equal(pwrite(file, &bad, sizeof bad, 1024 + 4 * 80), sizeof bad);
    close(file);

    assert_ok(dataset_open(&dataset, path, VOCAB, CONTEXT, 1, &config, true));
    assert_ok(dataset_window(dataset, 8, tokens, targets));
    /* token 80 is the last target of window 9 and the first input of window 10 */
    const char *expected = "token 80 (offset 1344) is 4294967295";
    assert_fails(dataset_window(dataset, 9, tokens, targets), STATUS_BAD_INPUT, expected);
    assert_fails(dataset_window(dataset, 10, tokens, targets), STATUS_BAD_INPUT, expected);
    assert_ok(dataset_window(dataset, dataset_facts(dataset)->windows - 1, tokens, targets));
    dataset_close(dataset);
    remove(path);
}

/* ---- identity --------------------------------------------------------------------------------------------------- */

static void the_fingerprint_tells_contents_apart(void **state) {
    (void)state;
    Dataset *dataset = open_shards(1), *same = open_shards(2);
    uint64_t before = dataset_facts(dataset)->fingerprint;
    assert_true(before == dataset_facts(same)->fingerprint);
    dataset_close(dataset);
    dataset_close(same);
    write_counting_shard(1, 101, 9);
    dataset = open_shards(1);
    assert_true(dataset_facts(dataset)->fingerprint != before);
    dataset_close(dataset);
    write_counting_shard(1, shards[1].base, shards[1].count);
}

static void the_synthetic_language_is_a_data_set_without_files(void **state) {
    (void)state;
    Dataset *train = NULL, *val = NULL;
    int32_t tokens[CONTEXT], targets[CONTEXT], other[CONTEXT];
    assert_ok(dataset_open(&train, "synthetic", 256, CONTEXT, 1, &config, false));
    assert_ok(dataset_open(&val, "synthetic", 256, CONTEXT, 1, &config, true));
    assert_int_equal(dataset_facts(train)->tokens, 0);
    assert_int_equal(dataset_facts(train)->epoch, 0);
    assert_int_equal(dataset_facts(val)->tokens, 65536);
    assert_int_equal(dataset_facts(val)->windows, 8192);
    assert_true(fabs(dataset_facts(train)->entropy_floor - 4.31246) < 1e-4);
    assert_true(dataset_facts(train)->entropy_floor == dataset_facts(val)->entropy_floor);
    assert_true(dataset_facts(train)->fingerprint != dataset_facts(val)->fingerprint);
    assert_ok(dataset_train_sample(train, 1000000, tokens, targets));
    assert_memory_equal(tokens + 1, targets, (CONTEXT - 1) * sizeof *tokens);
    assert_ok(dataset_window(val, 8191, other, targets));
    assert_memory_not_equal(tokens, other, sizeof tokens);
    dataset_close(train);
    dataset_close(val);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(evaluation_windows_cover_each_shard_in_file_order),
        cmocka_unit_test(an_epoch_takes_disjoint_windows_of_every_shard),
        cmocka_unit_test(epochs_differ_in_order_and_in_offset),
        cmocka_unit_test(a_sample_is_a_function_of_seed_and_index),
        cmocka_unit_test(the_order_of_training_is_the_documented_one),
        cmocka_unit_test(a_pattern_without_files_says_how_to_make_some),
        cmocka_unit_test(shards_without_a_window_are_refused),
        cmocka_unit_test(a_token_beyond_the_vocabulary_is_refused_at_open),
        cmocka_unit_test(one_foreign_file_among_many_is_refused),
        cmocka_unit_test(a_bad_token_in_a_huge_shard_is_reported_when_it_is_read),
        cmocka_unit_test(the_fingerprint_tells_contents_apart),
        cmocka_unit_test(the_synthetic_language_is_a_data_set_without_files),
    };
    return cmocka_run_group_tests(tests, make_shards, remove_shards);
}
