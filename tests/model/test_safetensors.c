/* safetensors: what is written is read back; hostile and cut files are refused with their reason. */
#include "tests/support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ops/tensor.h"
#include "tests/model/metadata.h"

typedef struct {
    char folder[PATH_SIZE], path[PATH_SIZE];
} Fixture;

static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    test_folder(f->folder);
    assert_ok(path_join(f->path, f->folder, "x.safetensors"));
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    assert_ok(folder_remove(f->folder));
    free(f);
    return 0;
}

static const SafetensorsEntry example[] = {
    {.name = "zeta", .dtype = SAFETENSORS_F32, .ndim = 2, .shape = {2, 3}},
    {.name = "alpha", .dtype = SAFETENSORS_BF16, .ndim = 1, .shape = {3}},
    {.name = "\"quoted\" \\ name", .dtype = SAFETENSORS_F32, .ndim = 0},
    {.name = "empty", .dtype = SAFETENSORS_F32, .ndim = 2, .shape = {0, 5}},
};
static const float zeta[6] = {1, -2, 3.5f, 1e-40f, 1e38f, 0};
static const float scalar = 42;

static void write_example(const char *path) {
    SafetensorsMetadata metadata[] = {{"format", "pt"}, {"step", "17"}};
    bf16 alpha[3] = {bf16_from_f32(1), bf16_from_f32(-0.5f), bf16_from_f32(3)};
    SafetensorsWriter w;
    assert_ok(safetensors_writer_open(&w, path, example, 4, metadata, 2));
    assert_ok(safetensors_writer_append(&w, zeta, 8)); /* a tensor in two pieces */
    assert_ok(safetensors_writer_append(&w, (const char *)zeta + 8, sizeof zeta - 8));
    assert_ok(safetensors_writer_append(&w, alpha, sizeof alpha));
    assert_ok(safetensors_writer_append(&w, &scalar, sizeof scalar));
    assert_ok(safetensors_writer_finish(&w));
    char *bytes;
    int64_t size;
    assert_ok(file_read(path, 1 << 20, &bytes, &size));
    assert_int_equal(w.size, size);
    assert_true(w.hash == file_hash(FILE_HASH_START, bytes, size));
    free(bytes);
}

/* ---- writing and reading ---------------------------------------------------------------------------------------- */

static void what_is_written_is_read_back(void **state) {
    Fixture *f = *state;
    write_example(f->path);
    SafetensorsFile file;
    assert_ok(safetensors_open(&file, f->path));
    assert_int_equal(file.count, 4);
    for (int i = 0; i < 4; i++) {
        const SafetensorsEntry *entry = safetensors_find(&file, example[i].name);
        assert_non_null(entry);
        assert_int_equal(entry->dtype, example[i].dtype);
        assert_int_equal(entry->ndim, example[i].ndim);
        assert_memory_equal(entry->shape, example[i].shape, sizeof entry->shape);
        assert_string_equal(file.entries[i].name, example[i].name); /* in the order given */
    }
    float values[6];
    assert_ok(safetensors_read_f32(&file, safetensors_find(&file, "zeta"), 0, 6, values));
    assert_memory_equal(values, zeta, sizeof zeta);
    assert_ok(safetensors_read_f32(&file, safetensors_find(&file, "zeta"), 4, 2, values));
    assert_memory_equal(values, zeta + 4, 8);
    assert_ok(safetensors_read_f32(&file, safetensors_find(&file, "alpha"), 1, 2, values));
    assert_true(values[0] == -0.5f && values[1] == 3);
    assert_null(safetensors_find(&file, "beta"));
    assert_string_equal(metadata_of(&file, "step"), "17");
    assert_null(metadata_of(&file, "stop"));
    safetensors_close(&file);
}

static void data_starts_at_a_multiple_of_eight(void **state) {
    Fixture *f = *state;
    char name[16] = "";
    for (int length = 1; length <= 9; length++) {
        memset(name, 'n', (size_t)length);
        SafetensorsEntry entry = {.name = name, .dtype = SAFETENSORS_F32, .ndim = 1, .shape = {1}};
        SafetensorsWriter w;
        SafetensorsFile file;
        assert_ok(safetensors_writer_open(&w, f->path, &entry, 1, NULL, 0));
        assert_ok(safetensors_writer_append(&w, &scalar, sizeof scalar));
        assert_ok(safetensors_writer_finish(&w));
        assert_ok(safetensors_open(&file, f->path));
        assert_int_equal((file.data - (const unsigned char *)file.map) % 8, 0);
        safetensors_close(&file);
    }
}

static void a_file_appears_under_its_name_only_when_it_is_whole(void **state) {
    Fixture *f = *state;
    SafetensorsWriter w;
    assert_ok(safetensors_writer_open(&w, f->path, example, 1, NULL, 0));
    assert_ok(safetensors_writer_append(&w, zeta, 12));
    assert_false(file_exists(f->path));
    assert_true(file_exists(w.out.temporary));
    safetensors_writer_abandon(&w);
    assert_false(file_exists(f->path));
    assert_false(file_exists(w.out.temporary));
}

static void a_folder_that_is_not_there_is_named(void **state) {
    Fixture *f = *state;
    char path[PATH_SIZE];
    assert_ok(path_join(path, f->folder, "none/x.safetensors"));
    SafetensorsWriter w;
    SafetensorsFile file;
    assert_fails(safetensors_writer_open(&w, path, example, 1, NULL, 0), STATUS_IO, path);
    assert_fails(safetensors_open(&file, path), STATUS_IO, path);
}

static void other_dtypes_are_listed_but_not_converted(void **state) {
    Fixture *f = *state;
    SafetensorsEntry entry = {.name = "mask", .dtype = SAFETENSORS_BOOL, .ndim = 1, .shape = {4}};
    SafetensorsWriter w;
    SafetensorsFile file;
    float values[4];
    assert_ok(safetensors_writer_open(&w, f->path, &entry, 1, NULL, 0));
    assert_ok(safetensors_writer_append(&w, "\1\0\1\0", 4));
    assert_ok(safetensors_writer_finish(&w));
    assert_ok(safetensors_open(&file, f->path));
    assert_fails(safetensors_read_f32(&file, &file.entries[0], 0, 4, values), STATUS_BAD_INPUT, "BOOL");
    char text[32];
    assert_string_equal(safetensors_describe(&file.entries[0], text, sizeof text), "BOOL (4)");
    safetensors_close(&file);
}

/* ---- refusals --------------------------------------------------------------------------------------------------- */

/* A file of this header and so many data bytes; `claimed` is the header length that it states, or -1 for the true one.
 */
static Status parse(const char *header, int64_t data, int64_t claimed) {
    int64_t length = (int64_t)strlen(header), size = 8 + length + data;
    unsigned char *bytes = calloc((size_t)size, 1); /* exactly: a read beyond it is seen by the sanitizer */
    uint64_t stated = claimed < 0 ? (uint64_t)length : (uint64_t)claimed;
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(stated >> 8 * i);
    memcpy(bytes + 8, header, (size_t)length);
    SafetensorsFile file;
    Status status = safetensors_parse(&file, "x.safetensors", bytes, size);
    if (!status.code) safetensors_close(&file);
    free(bytes);
    return status;
}

typedef struct {
    const char *header;
    int64_t data;
    const char *reason;
} Hostile;

static void hostile_headers_are_refused_with_their_reason(void **state) {
    (void)state;
#define TENSOR(name, shape, begin, end)                                                                                \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"
    static const Hostile cases[] = {
        {"{" TENSOR("a", "[2]", "0", "8") "," TENSOR("b", "[2]", "4", "12") "}", 12, "\"b\" overlaps"},
        {"{" TENSOR("a", "[2]", "0", "8") "," TENSOR("b", "[2]", "0", "8") "}", 8, "overlaps"},
        {"{" TENSOR("a", "[2]", "0", "8") "," TENSOR("b", "[1]", "12", "16") "}", 16, "\"b\" leaves a hole"},
        {"{" TENSOR("a", "[2]", "4", "12") "}", 12, "\"a\" leaves a hole"},
        {"{" TENSOR("a", "[2]", "0", "8") "}", 9, "the file goes on to 9"},
        {"{" TENSOR("a", "[2]", "0", "8") "}", 7, "cut short"},
        {"{" TENSOR("a", "[2]", "0", "1e18") "}", 8, "data_offsets"},
        {"{" TENSOR("a", "[2]", "0", "9007199254740992") "}", 8, "cut short"},
        {"{" TENSOR("a", "[2]", "8", "0") "}", 8, "data_offsets"},
        {"{" TENSOR("a", "[2]", "-8", "0") "}", 8, "data_offsets"},
        {"{" TENSOR("a", "[2]", "0", "8.5") "}", 8, "data_offsets"},
        {"{" TENSOR("a", "[2]", "0", "\"8\"") "}", 8, "data_offsets"},
        {"{" TENSOR("a", "[3]", "0", "8") "}", 8, "shape that does not match"},
        {"{" TENSOR("a", "[4294967296,4294967296,4]", "0", "0") "}", 0, "shape that does not match"},
        {"{" TENSOR("a", "[-2]", "0", "8") "}", 8, "dimension"},
        {"{" TENSOR("a", "[2.5]", "0", "10") "}", 10, "dimension"},
        {"{" TENSOR("a", "2", "0", "8") "}", 8, "shape"},
        {"{" TENSOR("a", "[1,1,1,1,1,1,1,1,2]", "0", "8") "}", 8, "more than 8"},
        {"{" TENSOR("a", "[1]", "0", "4") "," TENSOR("a", "[1]", "4", "8") "}", 8, "\"a\" is there twice"},
        {"{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype"},
        {"{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "exactly the fields"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "exactly the fields"},
        {"{\"a\":[1,2,3]}", 0, "exactly the fields"},
        {"{\"a\":null}", 0, "exactly the fields"},
        {"{\"__metadata__\":{\"step\":17}}", 0, "\"step\""},
        {"{\"__metadata__\":[]}", 0, "__metadata__"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__"},
        {"", 0, "not one JSON object"},
        {"[]", 0, "not one JSON object"},
        {"{\"a\":", 0, "not one JSON object"},
        {"{} x", 0, "not one JSON object"},
        {"{}{}", 0, "not one JSON object"},
    };
#undef TENSOR
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Status status = parse(cases[i].header, cases[i].data, -1);
        assert_fails(status, STATUS_BAD_INPUT, cases[i].reason);
        assert_fails(status, STATUS_BAD_INPUT, "x.safetensors");
    }
}

static void padded_and_empty_headers_are_fine(void **state) {
    (void)state;
    assert_ok(parse("{}      ", 0, -1));
    assert_ok(parse("{\"a\":{\"shape\":[2],\"data_offsets\":[0,8],\"dtype\":\"F32\"}}   ", 8, -1));
}

static void a_header_longer_than_the_file_is_refused(void **state) {
    (void)state;
    assert_fails(parse("{}", 0, 3), STATUS_BAD_INPUT, "3 bytes");
    assert_fails(parse("{}", 0, INT64_MAX), STATUS_BAD_INPUT, "the header would have");
    SafetensorsFile file;
    assert_fails(safetensors_parse(&file, "x", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), STATUS_BAD_INPUT, "x: ");
}

static void a_header_over_100_mib_is_not_even_parsed(void **state) {
    Fixture *f = *state;
    const uint64_t length = (100u << 20) + 1;
    char path[PATH_SIZE];
    SafetensorsFile file;
    test_write_file(path, f->folder, "large.safetensors", &length, sizeof length);
    assert_int_equal(truncate(path, 101 << 20), 0); /* sparse: takes no room */
    assert_fails(safetensors_open(&file, path), STATUS_BAD_INPUT, "100 MiB is the limit");
}

static void deeply_nested_headers_are_refused(void **state) {
    (void)state;
    enum { DEPTH = 100000 };
    char *header = calloc(DEPTH + 1, 1);
    memset(header, '[', DEPTH);
    assert_fails(parse(header, 0, -1), STATUS_BAD_INPUT, "not one JSON object");
    free(header);
}

static void every_truncation_is_refused(void **state) {
    Fixture *f = *state;
    write_example(f->path);
    char *bytes;
    int64_t size;
    assert_ok(file_read(f->path, 1 << 20, &bytes, &size));
    for (int64_t length = 0; length < size; length++) {
        char path[PATH_SIZE];
        SafetensorsFile file;
        test_write_file(path, f->folder, "cut.safetensors", bytes, length);
        assert_fails(safetensors_open(&file, path), STATUS_BAD_INPUT, "cut.safetensors");
    }
    free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_written_is_read_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(data_starts_at_a_multiple_of_eight, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_file_appears_under_its_name_only_when_it_is_whole, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_folder_that_is_not_there_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(other_dtypes_are_listed_but_not_converted, set_up, tear_down),
        cmocka_unit_test(hostile_headers_are_refused_with_their_reason),
        cmocka_unit_test(padded_and_empty_headers_are_fine),
        cmocka_unit_test(a_header_longer_than_the_file_is_refused),
        cmocka_unit_test_setup_teardown(a_header_over_100_mib_is_not_even_parsed, set_up, tear_down),
        cmocka_unit_test(deeply_nested_headers_are_refused),
        cmocka_unit_test_setup_teardown(every_truncation_is_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
