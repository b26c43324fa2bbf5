/* prepare and inspect: what becomes of text, and that a failure leaves a folder as it was. */
#include "tests/support.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/inspect.h"
#include "data/prepare.h"
#include "data/shard.h"
#include "data/tokenizer.h"

static char folder[PATH_SIZE], corpus[PATH_SIZE], text_a[PATH_SIZE], text_b[PATH_SIZE];

/* 60 and 40 bytes, with every kind of byte among them. */
static int make_texts(void **state) {
    (void)state;
    char text[100];
    for (int i = 0; i < 100; i++) text[i] = (char)(i < 60 ? 'a' + i % 7 : 3 * i);
    test_folder(folder);
    assert_ok(path_join(corpus, folder, "corpus"));
    test_write_file(text_a, folder, "a.txt", text, 60);
    test_write_file(text_b, folder, "b.txt", text + 60, 40);
    return 0;
}

static int remove_texts(void **state) {
    (void)state;
    return (int)folder_remove(folder).code;
}

static int remove_corpus(void **state) {
    (void)state;
    return (int)folder_remove(corpus).code;
}

static Status prepare(int file_count, char **files, PrepareOptions options) {
    FILE *log = fopen("/dev/null", "w");
    assert_non_null(log);
    Status status = prepare_corpus(corpus, file_count, files, options, log);
    fclose(log);
    return status;
}

static int count_entries(const char *path) {
    DIR *dir = opendir(path);
    int count = 0;
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

/* The tokens of corpus/name as bytes, appended to `bytes`; returns how many. */
static int64_t read_back(const char *name, uint8_t *bytes) {
    char path[PATH_SIZE];
    Shard shard;
    assert_ok(path_join(path, corpus, name));
    assert_ok(shard_open(&shard, path));
    assert_int_equal(shard.format->type, TOKEN_U16);
    int64_t count = shard.count;
    for (int64_t i = 0; i < count; i++) {
        assert_in_range(shard_token(&shard, i), 0, 255);
        bytes[i] = (uint8_t)shard_token(&shard, i);
    }
    shard_close(&shard);
    return count;
}

static void check_text(const uint8_t *bytes) {
    char *a = test_read_file(text_a), *b = test_read_file(text_b);
    assert_memory_equal(bytes, a, 60);
    assert_memory_equal(bytes + 60, b, 40);
    free(a);
    free(b);
}

/* ---- prepare ---------------------------------------------------------------------------------------------------- */

static void the_splits_hold_every_byte_in_order(void **state) {
    (void)state;
    uint8_t bytes[128];
    char *files[] = {text_a, text_b};
    assert_ok(prepare(2, files, prepare_defaults()));
    assert_int_equal(read_back("train_000001.bin", bytes), 90);
    assert_int_equal(read_back("val_000000.bin", bytes + 90), 10);
    check_text(bytes);
    assert_int_equal(count_entries(corpus), 3);

    char path[PATH_SIZE];
    Tokenizer tokenizer;
    assert_ok(path_join(path, corpus, "tokenizer.bin"));
    assert_ok(tokenizer_read(&tokenizer, path));
    assert_true(tokenizer_is_byte_level(&tokenizer));
    tokenizer_free(&tokenizer);
}

static void shards_are_cut_at_the_limit(void **state) {
    (void)state;
    uint8_t bytes[128];
    char *files[] = {text_a, text_b};
    assert_ok(prepare(2, files, (PrepareOptions){.validation_fraction = 0.25, .shard_tokens = 20}));
    const char *names[] = {"train_000001.bin", "train_000002.bin", "train_000003.bin",
                           "train_000004.bin", "val_000000.bin",   "val_000001.bin"};
    const int64_t counts[] = {20, 20, 20, 15, 20, 5};
    int64_t used = 0;
    for (int i = 0; i < 6; i++) {
        assert_int_equal(read_back(names[i], bytes + used), counts[i]);
        used += counts[i];
    }
    check_text(bytes);
    assert_int_equal(count_entries(corpus), 7);
}

static void a_second_corpus_replaces_the_first_wholly(void **state) {
    (void)state;
    char *files[] = {text_a, text_b}, other[PATH_SIZE];
    uint8_t bytes[128];
    assert_ok(prepare(2, files, (PrepareOptions){.validation_fraction = 0.25, .shard_tokens = 20}));
    test_write_file(other, corpus, "train_notes.bin", "mine", 4);
    assert_ok(prepare(1, files, prepare_defaults()));
    assert_int_equal(count_entries(corpus), 4); /* train, val, tokenizer, and the file that is not prepare's */
    assert_int_equal(read_back("train_000001.bin", bytes), 54);
    assert_true(file_exists(other));
}

static void neither_split_is_ever_empty(void **state) {
    (void)state;
    uint8_t bytes[8];
    char path[PATH_SIZE], *files[] = {path};
    test_write_file(path, folder, "two.txt", "xy", 2);
    const double fractions[] = {1e-9, 0.1, 0.4999};
    for (int i = 0; i < 3; i++) {
        assert_ok(prepare(1, files, (PrepareOptions){.validation_fraction = fractions[i], .shard_tokens = 100}));
        assert_int_equal(read_back("train_000001.bin", bytes), 1);
        assert_int_equal(read_back("val_000000.bin", bytes), 1);
    }
}

static void the_log_names_files_counts_and_the_fraction(void **state) {
    (void)state;
    char *files[] = {text_a, text_b}, *written = NULL;
    size_t size = 0;
    FILE *log = open_memstream(&written, &size);
    assert_ok(prepare_corpus(corpus, 2, files, prepare_defaults(), log));
    fclose(log);
    assert_non_null(strstr(written, text_b));
    assert_non_null(strstr(written, "train_000001.bin, 90 tokens"));
    assert_non_null(strstr(written, "10 (10.00 %) for validation, vocabulary 256"));
    free(written);
}

static void a_failure_leaves_no_folder_behind(void **state) {
    (void)state;
    char empty[PATH_SIZE], absent[PATH_SIZE];
    PrepareOptions options = prepare_defaults();
    test_write_file(empty, folder, "empty.txt", "", 0);
    assert_ok(path_join(absent, folder, "absent.txt"));
    assert_fails(prepare(0, NULL, options), STATUS_BAD_INPUT, "no text file");
    assert_fails(prepare(1, (char *[]){empty}, options), STATUS_BAD_INPUT, "0 bytes of text");
    assert_fails(prepare(2, (char *[]){text_a, absent}, options), STATUS_IO, absent);
    assert_fails(prepare(2, (char *[]){text_a, folder}, options), STATUS_BAD_INPUT, "not a regular file");
    options.validation_fraction = 0.5;
    assert_fails(prepare(1, (char *[]){text_a}, options), STATUS_BAD_INPUT, "below 0.5, found 0.5");
    options = (PrepareOptions){.validation_fraction = 0.1, .shard_tokens = 0};
    assert_fails(prepare(1, (char *[]){text_a}, options), STATUS_BAD_INPUT,
                 "shard size of 1 to 2147483647 tokens, found 0");
    assert_false(file_exists(corpus));
}

/* /proc/self/mem is a regular file that opens, but reading it from its start is an error: a bad sector, as it were. */
static void a_failure_while_writing_leaves_the_old_corpus(void **state) {
    (void)state;
    uint8_t bytes[128];
    assert_ok(prepare(2, (char *[]){text_a, text_b}, prepare_defaults()));
    Status status = prepare(2, (char *[]){"/proc/self/mem", text_a}, prepare_defaults());
    assert_fails(status, STATUS_IO, "/proc/self/mem: cannot read");
    assert_int_equal(count_entries(corpus), 3);
    assert_int_equal(read_back("train_000001.bin", bytes), 90);
    assert_int_equal(read_back("val_000000.bin", bytes + 90), 10);
    check_text(bytes);

    assert_ok(folder_remove(corpus));
    assert_fails(prepare(2, (char *[]){"/proc/self/mem", text_a}, prepare_defaults()), STATUS_IO, "cannot read");
    assert_false(file_exists(corpus));
}

static void what_a_crash_left_is_cleared_away(void **state) {
    (void)state;
    char left[PATH_SIZE], path[PATH_SIZE];
    assert_ok(path_join(left, corpus, "prepare.tmp/new"));
    assert_ok(folder_create(left));
    test_write_file(path, left, "train_000009.bin", "half", 4);
    assert_ok(prepare(1, (char *[]){text_a}, prepare_defaults()));
    assert_int_equal(count_entries(corpus), 3);
}

static void a_folder_that_cannot_be_made_is_an_error(void **state) {
    (void)state;
    char below_a_file[PATH_SIZE];
    assert_ok(path_join(below_a_file, text_a, "corpus"));
    FILE *log = fopen("/dev/null", "w");
    assert_fails(prepare_corpus(below_a_file, 1, (char *[]){text_b}, prepare_defaults(), log), STATUS_IO,
                 "a.txt: cannot create the folder");
    fclose(log);
}

/* ---- inspect ---------------------------------------------------------------------------------------------------- */

static char *inspect(const char *path) {
    char report[PATH_SIZE];
    assert_ok(path_join(report, folder, "report.txt"));
    FILE *out = fopen(report, "w");
    assert_non_null(out);
    Status status = inspect_token_file(path, out);
    fclose(out);
    assert_ok(status);
    return test_read_file(report);
}

static void write_tokens(char *path, TokenType type, const int32_t *tokens, int64_t count) {
    ShardWriter writer;
    assert_ok(folder_create(corpus));
    assert_ok(path_join(path, corpus, "tokens.bin"));
    assert_ok(shard_writer_open(&writer, path, type));
    assert_ok(shard_writer_add(&writer, tokens, count));
    assert_ok(shard_writer_finish(&writer));
}

static void a_token_file_is_described_in_numbers(void **state) {
    (void)state;
    const int32_t tokens[] = {70000, 5, 5, 5, 9, 9, 70000, 5};
    char path[PATH_SIZE];
    write_tokens(path, TOKEN_U32, tokens, 8);
    char *text = inspect(path);
    assert_non_null(strstr(text, "uint32, version 7"));
    assert_non_null(strstr(text, "1056 bytes"));
    assert_non_null(strstr(text, "tokens         8\n"));
    assert_non_null(strstr(text, "largest token  70000: needs model.vocab >= 70001"));
    assert_non_null(strstr(text, "distinct       3 tokens"));
    assert_non_null(strstr(text, "1.0397 nats = 1.5000 bits")); /* 1/2, 1/4, 1/4 */
    assert_non_null(strstr(text, "begins         70000 5 5 5 9 9 70000 5\n"));
    const char *first = strstr(text, "50.00 %       5\n"), *second = strstr(text, "25.00 %       9\n"),
               *third = strstr(text, "25.00 %   70000\n");
    assert_true(first && second && third && first < second && second < third);
    free(text);
}

static void only_the_ten_most_frequent_tokens_are_listed(void **state) {
    (void)state;
    int32_t tokens[12 * 13 / 2];
    char path[PATH_SIZE];
    int64_t count = 0;
    for (int32_t t = 1; t <= 12; t++) /* token t appears t times */
        for (int32_t i = 0; i < t; i++) tokens[count++] = t;
    write_tokens(path, TOKEN_U16, tokens, count);
    char *text = inspect(path);
    int listed = 0;
    for (const char *at = text; (at = strstr(at, " %  ")); at++) {
        assert_int_equal(atoi(at + 2), 12 - listed);
        listed++;
    }
    assert_int_equal(listed, 10);
    free(text);
}

static void tokens_beyond_the_table_are_not_counted(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_tokens(path, TOKEN_U32, (const int32_t[]){1, -1}, 2); /* -1 is 2^32 - 1 */
    char *text = inspect(path);
    assert_non_null(strstr(text, "largest token  4294967295"));
    assert_non_null(strstr(text, "not counted"));
    free(text);
}

static void text_is_shown_where_a_tokenizer_lies_beside(void **state) {
    (void)state;
    char *files[] = {text_a, text_b}, path[PATH_SIZE];
    assert_ok(prepare(2, files, prepare_defaults()));
    assert_ok(path_join(path, corpus, "train_000001.bin"));
    char *text = inspect(path);
    assert_non_null(strstr(text, "begins         \"abcdefgabc"));
    assert_non_null(strstr(text, "\\xb4\\xb7\\xba\\xbd\"\n")); /* 64 tokens: four of the second file */
    free(text);
}

static void a_file_without_tokens_is_not_described(void **state) {
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_fails(inspect_token_file(text_a, out), STATUS_BAD_INPUT, text_a);
    fclose(out);
    assert_int_equal(size, 0);
    free(text);
}

#define TEST(name) cmocka_unit_test_teardown(name, remove_corpus)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(the_splits_hold_every_byte_in_order),           TEST(shards_are_cut_at_the_limit),
        TEST(a_second_corpus_replaces_the_first_wholly),     TEST(neither_split_is_ever_empty),
        TEST(the_log_names_files_counts_and_the_fraction),   TEST(a_failure_leaves_no_folder_behind),
        TEST(a_failure_while_writing_leaves_the_old_corpus), TEST(what_a_crash_left_is_cleared_away),
        TEST(a_folder_that_cannot_be_made_is_an_error),      TEST(a_token_file_is_described_in_numbers),
        TEST(only_the_ten_most_frequent_tokens_are_listed),  TEST(tokens_beyond_the_table_are_not_counted),
        TEST(text_is_shown_where_a_tokenizer_lies_beside),   TEST(a_file_without_tokens_is_not_described),
    };
    return cmocka_run_group_tests(tests, make_texts, remove_texts);
}
