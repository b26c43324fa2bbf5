/* Token shards and tokenizer files: what is written reads back, and every kind of damage is named with its offset. */
#include "tests/support.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/shard.h"
#include "data/tokenizer.h"

static char folder[PATH_SIZE];

static int make_folder(void **state) {
    (void)state;
    test_folder(folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    return (int)folder_remove(folder).code;
}

static void write_shard(char *path, const char *name, TokenType type, const int32_t *tokens, int64_t count) {
    ShardWriter writer;
    assert_ok(path_join(path, folder, name));
    assert_ok(shard_writer_open(&writer, path, type));
    assert_ok(shard_writer_add(&writer, tokens, count));
    assert_ok(shard_writer_finish(&writer));
}

/* A file of `size` bytes that begins with the given header. Holes take no space on the disk. */
static void write_header(char *path, int32_t magic, int32_t version, int32_t count, int64_t size) {
    int32_t header[256] = {magic, version, count};
    int64_t length = size < SHARD_HEADER_BYTES ? size : SHARD_HEADER_BYTES;
    test_write_file(path, folder, "header.bin", header, length);
    if (truncate(path, size)) fail_msg("cannot make a sparse file of %lld bytes: %s", (long long)size, strerror(errno));
}

static void patch_file(const char *path, int64_t offset, const void *data, size_t size) {
    int file = open(path, O_WRONLY);
    assert_true(file >= 0);
    assert_int_equal(pwrite(file, data, size, offset), size);
    close(file);
}

static void refuses(const char *path, StatusCode code, const char *part) {
    Shard shard;
    Status status = shard_open(&shard, path);
    assert_fails(status, code, part);
    assert_fails(status, code, path);
    assert_null(shard.map);
}

/* ---- shards ----------------------------------------------------------------------------------------------------- */

static void both_token_types_read_back_as_written(void **state) {
    (void)state;
    const int32_t tokens[] = {0, 65535, 7, 300};
    for (int type = TOKEN_U16; type <= TOKEN_U32; type++) {
        char path[PATH_SIZE];
        int32_t back[3];
        Shard shard;
        write_shard(path, "tokens.bin", (TokenType)type, tokens, 4);
        assert_ok(shard_open(&shard, path));
        assert_int_equal(shard.format->type, type);
        assert_int_equal(shard.count, 4);
        assert_int_equal(shard.bytes, 1024 + 4 * (type == TOKEN_U16 ? 2 : 4));
        assert_int_equal(shard_largest_token(&shard), 65535);
        assert_int_equal(shard_token(&shard, 3), 300);
        assert_ok(shard_read(&shard, 1, 3, 65536, back));
        assert_memory_equal(back, tokens + 1, sizeof back);
        shard_close(&shard);
    }
}

static void the_bytes_are_those_of_the_format(void **state) {
    (void)state;
    const int32_t tokens[] = {1, 0x0203};
    char path[PATH_SIZE];
    write_shard(path, "tokens.bin", TOKEN_U16, tokens, 2);
    char *bytes = test_read_file(path);
    const uint8_t header[] = {0x88, 0xd8, 0x34, 0x01, 1, 0, 0, 0, 2, 0, 0, 0}; /* 20240520, 1, 2 */
    const uint8_t body[] = {1, 0, 3, 2};
    assert_memory_equal(bytes, header, sizeof header);
    for (int i = 12; i < 1024; i++) assert_int_equal(bytes[i], 0);
    assert_memory_equal(bytes + 1024, body, sizeof body);
    free(bytes);
}

static void a_missing_file_and_a_folder_are_refused(void **state) {
    (void)state;
    char path[PATH_SIZE];
    assert_ok(path_join(path, folder, "absent.bin"));
    refuses(path, STATUS_IO, "cannot open");
    refuses(folder, STATUS_BAD_INPUT, "not a regular file");
}

static void an_empty_or_short_file_is_refused(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_header(path, 20240520, 1, 1, 0);
    refuses(path, STATUS_BAD_INPUT, "the file is empty");
    write_header(path, 20240520, 1, 1, 1023);
    refuses(path, STATUS_BAD_INPUT, "offset 1023");
}

static void a_foreign_file_is_refused_with_the_way_to_convert_it(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_header(path, 20240521, 1, 1, 1026);
    refuses(path, STATUS_BAD_INPUT, "found the magic number 20240521 at offset 0, expected 20240520");
    refuses(path, STATUS_BAD_INPUT, "./train_gpt prepare");
}

static void a_version_of_the_other_magic_is_refused(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_header(path, 20240520, 7, 1, 1026);
    refuses(path, STATUS_BAD_INPUT, "found version 7 at offset 4");
    write_header(path, 20240801, 1, 1, 1028);
    refuses(path, STATUS_BAD_INPUT, "found version 1 at offset 4");
}

static void a_count_below_one_is_refused(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_header(path, 20240520, 1, 0, 1024);
    refuses(path, STATUS_BAD_INPUT, "found a token count of 0 at offset 8");
    write_header(path, 20240520, 1, -1, 1022 + 1024);
    refuses(path, STATUS_BAD_INPUT, "found a token count of -1 at offset 8");
}

static void a_truncated_shard_is_refused_with_its_offset(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_header(path, 20240520, 1, 100, 1024 + 199);
    refuses(path, STATUS_BAD_INPUT,
            "truncated: the header (offset 8) announces 100 uint16 tokens, which end at offset "
            "1224, but the file has 1223 bytes");
    write_header(path, 20240801, 7, 100, 1024 + 200);
    refuses(path, STATUS_BAD_INPUT, "which end at offset 1424");
}

static void trailing_bytes_are_refused(void **state) {
    (void)state;
    char path[PATH_SIZE];
    write_header(path, 20240520, 1, 100, 1024 + 201);
    refuses(path, STATUS_BAD_INPUT, "trailing bytes");
}

static void a_token_beyond_the_vocabulary_is_named_with_index_and_offset(void **state) {
    (void)state;
    const int32_t tokens[] = {1, 2, 3, 300, 400, 5};
    for (int type = TOKEN_U16; type <= TOKEN_U32; type++) {
        char path[PATH_SIZE];
        int32_t back[6];
        Shard shard;
        write_shard(path, "tokens.bin", (TokenType)type, tokens, 6);
        assert_ok(shard_open(&shard, path));
        const char *expected = type == TOKEN_U16 ? "token 3 (offset 1030) is 300, but the vocabulary has 300"
                                                 : "token 3 (offset 1036) is 300, but the vocabulary has 300";
        assert_fails(shard_check_tokens(&shard, 300), STATUS_BAD_INPUT, expected);
        assert_fails(shard_read(&shard, 2, 4, 300, back), STATUS_BAD_INPUT, expected);
        assert_ok(shard_read(&shard, 0, 3, 300, back));
        assert_ok(shard_check_tokens(&shard, 401));
        shard_close(&shard);
    }
}

/* The largest that a header can announce: offsets pass 2^32, and so does the last token's. */
static void a_shard_of_four_gigabytes_is_read_to_its_end(void **state) {
    (void)state;
    const int32_t count = INT32_MAX;
    const int64_t last = (int64_t)count - 1, offset = 1024 + 2 * last;
    const uint16_t token = 4711;
    char path[PATH_SIZE];
    int32_t back[3];
    Shard shard;
    write_header(path, 20240520, 1, count, 1024 + 2 * (int64_t)count);
    patch_file(path, offset, &token, sizeof token);
    assert_ok(shard_open(&shard, path));
    assert_int_equal(shard_token(&shard, last), 4711);
    assert_ok(shard_read(&shard, last - 2, 3, 4712, back));
    assert_int_equal(back[0], 0);
    assert_int_equal(back[2], 4711);
    char expected[64];
    snprintf(expected, sizeof expected, "token %lld (offset %lld) is 4711", (long long)last, (long long)offset);
    assert_fails(shard_read(&shard, last - 2, 3, 4711, back), STATUS_BAD_INPUT, expected);
    shard_close(&shard);
    remove(path);
}

static void a_hash_sees_contents_and_length(void **state) {
    (void)state;
    int32_t tokens[5000] = {0};
    uint64_t hashes[4];
    for (int i = 0; i < 4; i++) {
        char path[PATH_SIZE];
        Shard shard;
        tokens[4999] = i == 1;
        tokens[2500] = i == 2;
        write_shard(path, "tokens.bin", TOKEN_U16, tokens, i == 3 ? 4999 : 5000);
        assert_ok(shard_open(&shard, path));
        hashes[i] = shard_hash(&shard, FILE_HASH_START);
        assert_true(hashes[i] == shard_hash(&shard, FILE_HASH_START));
        shard_close(&shard);
        for (int k = 0; k < i; k++) assert_true(hashes[i] != hashes[k]);
    }
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static void an_abandoned_writer_leaves_the_old_file(void **state) {
    (void)state;
    const int32_t tokens[] = {1, 2};
    char path[PATH_SIZE];
    ShardWriter writer;
    Shard shard;
    write_shard(path, "tokens.bin", TOKEN_U16, tokens, 2);
    assert_ok(shard_writer_open(&writer, path, TOKEN_U16));
    assert_ok(shard_writer_add(&writer, tokens, 1));
    assert_true(file_exists(writer.out.temporary));
    shard_writer_abandon(&writer);
    assert_false(file_exists(writer.out.temporary));
    assert_ok(shard_open(&shard, path));
    assert_int_equal(shard.count, 2);
    shard_close(&shard);
}

static void a_half_written_shard_is_refused(void **state) {
    (void)state;
    const int32_t tokens[] = {1, 2};
    char path[PATH_SIZE];
    ShardWriter writer;
    assert_ok(path_join(path, folder, "half.bin"));
    assert_ok(shard_writer_open(&writer, path, TOKEN_U32));
    assert_ok(shard_writer_add(&writer, tokens, 2));
    fflush(writer.out.file);
    refuses(writer.out.temporary, STATUS_BAD_INPUT, "magic number 0");
    shard_writer_abandon(&writer);
}

static void a_shard_without_tokens_is_not_written(void **state) {
    (void)state;
    char path[PATH_SIZE];
    ShardWriter writer;
    assert_ok(path_join(path, folder, "none.bin"));
    assert_ok(shard_writer_open(&writer, path, TOKEN_U16));
    assert_fails(shard_writer_finish(&writer), STATUS_BAD_INPUT, "no tokens");
    assert_false(file_exists(path));
    assert_false(file_exists(writer.out.temporary));
}

static void a_place_that_cannot_be_written_is_an_error(void **state) {
    (void)state;
    char path[PATH_SIZE];
    ShardWriter writer;
    assert_ok(path_join(path, folder, "absent/tokens.bin"));
    assert_fails(shard_writer_open(&writer, path, TOKEN_U16), STATUS_IO, "cannot create");
}

/* /dev/full takes no byte: what a full disk looks like. */
static void a_full_disk_is_an_error(void **state) {
    (void)state;
    static int32_t tokens[100000];
    ShardWriter writer;
    char path[PATH_SIZE], link[PATH_SIZE];
    assert_ok(path_join(path, folder, "full.bin"));
    assert_ok(path_join(link, folder, "full.bin.tmp"));
    assert_int_equal(symlink("/dev/full", link), 0);
    assert_ok(shard_writer_open(&writer, path, TOKEN_U16));
    assert_fails(shard_writer_add(&writer, tokens, 100000), STATUS_IO, "No space left");
    assert_false(file_exists(path));
    assert_false(file_exists(link));
}

/* ---- tokenizer files -------------------------------------------------------------------------------------------- */

/* Three tokens, "ab", "" and "c": 1024 + 3 + 1 + 2 bytes. */
static const uint8_t three_tokens[] = {2, 'a', 'b', 0, 1, 'c'};

static void write_tokenizer(char *path, const uint32_t header[4], const uint8_t *tokens, size_t size) {
    uint8_t file[1024 + 64] = {0};
    memcpy(file, header, 4 * sizeof *header);
    memcpy(file + 1024, tokens, size);
    test_write_file(path, folder, "tokenizer.bin", file, 1024 + (int64_t)size);
}

static void a_tokenizer_file_reads_and_writes_back_unchanged(void **state) {
    (void)state;
    char path[PATH_SIZE], copy[PATH_SIZE];
    Tokenizer tokenizer;
    int64_t length = -1;
    write_tokenizer(path, (uint32_t[]){20240328, 2, 3, 2}, three_tokens, sizeof three_tokens);
    assert_ok(tokenizer_read(&tokenizer, path));
    assert_int_equal(tokenizer.count, 3);
    assert_int_equal(tokenizer.end_of_text, 2);
    assert_memory_equal(tokenizer_decode(&tokenizer, 0, &length), "ab", 2);
    assert_int_equal(length, 2);
    tokenizer_decode(&tokenizer, 1, &length);
    assert_int_equal(length, 0);
    tokenizer_decode(&tokenizer, 3, &length); /* outside the vocabulary */
    assert_int_equal(length, 0);
    assert_false(tokenizer_is_byte_level(&tokenizer));

    assert_ok(path_join(copy, folder, "copy.bin"));
    assert_ok(tokenizer_write(&tokenizer, copy));
    char *first = test_read_file(path), *second = test_read_file(copy);
    assert_memory_equal(first, second, 1024 + sizeof three_tokens);
    free(first);
    free(second);
    tokenizer_free(&tokenizer);
}

static void the_byte_level_tokenizer_returns_every_byte(void **state) {
    (void)state;
    char path[PATH_SIZE];
    Tokenizer tokenizer;
    uint8_t text[256];
    int32_t tokens[256];
    assert_ok(path_join(path, folder, "bytes.bin"));
    assert_ok(tokenizer_init_bytes(&tokenizer));
    assert_ok(tokenizer_write(&tokenizer, path));
    tokenizer_free(&tokenizer);
    assert_ok(tokenizer_read(&tokenizer, path));
    assert_true(tokenizer_is_byte_level(&tokenizer));
    for (int i = 0; i < 256; i++) text[i] = (uint8_t)i;
    tokenizer_encode_bytes(text, 256, tokens);
    for (int i = 0; i < 256; i++) {
        int64_t length = 0;
        assert_int_equal(*tokenizer_decode(&tokenizer, tokens[i], &length), i);
        assert_int_equal(length, 1);
    }
    tokenizer.bytes['a'] = 'b';
    assert_false(tokenizer_is_byte_level(&tokenizer));
    tokenizer_free(&tokenizer);
}

static void damaged_tokenizer_files_are_refused(void **state) {
    (void)state;
    const struct {
        uint32_t header[4];
        size_t size;
        const char *message;
    } cases[] = {
        {{20240329, 2, 3, 2}, 6, "found the magic number 20240329 at offset 0"},
        {{20240328, 1, 3, 2}, 6, "found version 1 at offset 4"},
        {{20240328, 2, 0, 0}, 6, "found a token count of 0 at offset 8"},
        {{20240328, 2, 4000000000u, 2}, 6, "found a token count of 4000000000 at offset 8"},
        {{20240328, 2, 3, 3}, 6, "found token 3 as the end of text at offset 12"},
        {{20240328, 2, 3, 2}, 5, "truncated: token 2 of 3 at offset 1028"},
        {{20240328, 2, 3, 2}, 4, "truncated: token 2 of 3 at offset 1028"},
        {{20240328, 2, 2, 1}, 6, "trailing bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[PATH_SIZE];
        Tokenizer tokenizer;
        write_tokenizer(path, cases[i].header, three_tokens, cases[i].size);
        assert_fails(tokenizer_read(&tokenizer, path), STATUS_BAD_INPUT, cases[i].message);
        assert_null(tokenizer.bytes);
    }
    char path[PATH_SIZE];
    Tokenizer tokenizer;
    test_write_file(path, folder, "tokenizer.bin", three_tokens, sizeof three_tokens);
    assert_fails(tokenizer_read(&tokenizer, path), STATUS_BAD_INPUT, "fewer than a tokenizer's header");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_token_types_read_back_as_written),
        cmocka_unit_test(the_bytes_are_those_of_the_format),
        cmocka_unit_test(a_missing_file_and_a_folder_are_refused),
        cmocka_unit_test(an_empty_or_short_file_is_refused),
        cmocka_unit_test(a_foreign_file_is_refused_with_the_way_to_convert_it),
        cmocka_unit_test(a_version_of_the_other_magic_is_refused),
        cmocka_unit_test(a_count_below_one_is_refused),
        cmocka_unit_test(a_truncated_shard_is_refused_with_its_offset),
        cmocka_unit_test(trailing_bytes_are_refused),
        cmocka_unit_test(a_token_beyond_the_vocabulary_is_named_with_index_and_offset),
        cmocka_unit_test(a_shard_of_four_gigabytes_is_read_to_its_end),
        cmocka_unit_test(a_hash_sees_contents_and_length),
        cmocka_unit_test(an_abandoned_writer_leaves_the_old_file),
        cmocka_unit_test(a_half_written_shard_is_refused),
        cmocka_unit_test(a_shard_without_tokens_is_not_written),
        cmocka_unit_test(a_place_that_cannot_be_written_is_an_error),
        cmocka_unit_test(a_full_disk_is_an_error),
        cmocka_unit_test(a_tokenizer_file_reads_and_writes_back_unchanged),
        cmocka_unit_test(the_byte_level_tokenizer_returns_every_byte),
        cmocka_unit_test(damaged_tokenizer_files_are_refused),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
