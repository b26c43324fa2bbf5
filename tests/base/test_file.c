/* Files: whole reads, atomic writes, folders, globs, checksums. Every refusal names the file. */
#include "tests/support.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

static char folder[PATH_SIZE];

static int open_folder(void **state) {
    (void)state;
    test_folder(folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    assert_ok(folder_remove(folder));
    return 0;
}

/* folder/name; the result lives until the next call but one. */
static const char *inside(const char *name) {
    static char paths[2][PATH_SIZE];
    static int next;
    next = !next;
    assert_ok(path_join(paths[next], folder, name));
    return paths[next];
}

static void what_was_written_is_read_back_with_a_nul_after_it(void **state) {
    (void)state;
    static const char bytes[] = {'a', '\0', '\n', '\xff'};
    char *data = NULL;
    int64_t size = 0;
    assert_ok(file_write(inside("bytes"), bytes, sizeof bytes));
    assert_ok(file_read(inside("bytes"), 100, &data, &size));
    assert_int_equal(size, sizeof bytes);
    assert_memory_equal(data, bytes, sizeof bytes);
    assert_int_equal(data[size], '\0');
    free(data);
}

static void an_empty_file_reads_as_an_empty_string(void **state) {
    (void)state;
    char *data = NULL;
    int64_t size = -1;
    assert_ok(file_write(inside("empty"), "", 0));
    assert_ok(file_read(inside("empty"), 0, &data, &size));
    assert_int_equal(size, 0);
    assert_string_equal(data, "");
    free(data);
}

static void a_file_over_the_limit_is_refused_with_both_sizes(void **state) {
    (void)state;
    char *data = NULL;
    int64_t size = 0;
    assert_ok(file_write(inside("ten"), "0123456789", 10));
    assert_fails(file_read(inside("ten"), 9, &data, &size), STATUS_BAD_INPUT,
                 "ten: the file has 10 bytes; at most 9 are allowed here");
    assert_null(data);
    assert_ok(file_read(inside("ten"), 10, &data, &size));
    free(data);
}

static void what_cannot_be_read_says_why(void **state) {
    (void)state;
    char *data = NULL;
    int64_t size = 0;
    assert_fails(file_read(inside("missing"), 9, &data, &size), STATUS_IO,
                 "missing: cannot open: No such file or directory");
    assert_fails(file_read(folder, 9, &data, &size), STATUS_IO, "cannot read: not a regular file");
    assert_null(data);
}

static void a_write_replaces_the_file_and_leaves_no_temporary_one(void **state) {
    (void)state;
    assert_ok(file_write(inside("twice"), "a long first text", 17));
    assert_ok(file_write(inside("twice"), "second", 6));
    char *text = test_read_file(inside("twice"));
    assert_string_equal(text, "second");
    assert_false(file_exists(inside("twice.tmp")));
    free(text);
}

static void a_failed_write_leaves_the_old_file_and_no_temporary_one(void **state) {
    (void)state;
    assert_ok(folder_create(inside("target/child"))); /* a folder that is not empty cannot be replaced */
    assert_fails(file_write(inside("target"), "x", 1), STATUS_IO, "target: cannot replace: ");
    assert_true(file_exists(inside("target/child")));
    assert_false(file_exists(inside("target.tmp")));
    assert_fails(file_write(inside("missing/file"), "x", 1), STATUS_IO, "missing/file.tmp: cannot create: ");
}

static void a_folder_is_created_with_its_parents_and_may_exist(void **state) {
    (void)state;
    assert_ok(folder_create(inside("a/b/c")));
    assert_ok(folder_create(inside("a/b/c")));
    assert_ok(folder_create(inside("a//b/d/")));
    assert_true(file_exists(inside("a/b/c")) && file_exists(inside("a/b/d")));
    assert_ok(folder_sync(inside("a/b")));
}

static void a_file_in_the_way_of_a_folder_is_named(void **state) {
    (void)state;
    assert_ok(file_write(inside("plain"), "x", 1));
    assert_fails(folder_create(inside("plain/child")), STATUS_IO, "plain: cannot create the folder: Not a directory");
    assert_fails(folder_create(""), STATUS_BAD_INPUT, "without a name");
    /* the reason is mkdir's own, not that of looking at what stands there: a link to nothing does not exist */
    assert_int_equal(symlink("nowhere", inside("link")), 0);
    assert_fails(folder_create(inside("link")), STATUS_IO, "link: cannot create the folder: Not a directory");
    assert_fails(folder_sync(inside("plain")), STATUS_IO, "plain: cannot open the folder: ");
}

static void a_folder_is_removed_with_all_in_it_but_links_are_not_followed(void **state) {
    (void)state;
    assert_ok(folder_create(inside("kept")));
    assert_ok(file_write(inside("kept/file"), "x", 1));
    assert_ok(folder_create(inside("gone/deep")));
    assert_ok(file_write(inside("gone/deep/file"), "x", 1));
    assert_int_equal(symlink(inside("kept"), inside("gone/link")), 0);
    assert_ok(folder_remove(inside("gone")));
    assert_false(file_exists(inside("gone")));
    assert_true(file_exists(inside("kept/file")));
    assert_ok(folder_remove(inside("gone")));
}

static void a_glob_is_sorted_by_bytes(void **state) {
    (void)state;
    static const char *const names[] = {"s_10.bin", "s_2.bin", "s_B.bin", "s_a.bin", "s_1.bin", "other.txt"};
    static const char *const sorted[] = {"s_1.bin", "s_10.bin", "s_2.bin", "s_B.bin", "s_a.bin"};
    FileList list;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) assert_ok(file_write(inside(names[i]), "", 0));
    assert_ok(file_glob(inside("s_*.bin"), &list));
    assert_int_equal(list.count, 5);
    for (int i = 0; i < 5; i++) assert_string_equal(list.paths[i], inside(sorted[i]));
    file_list_free(&list);
    assert_null(list.paths);
}

static void a_path_without_wildcards_is_a_glob_of_itself(void **state) {
    (void)state;
    FileList list;
    assert_ok(file_write(inside("one"), "", 0));
    assert_ok(file_glob(inside("one"), &list));
    assert_int_equal(list.count, 1);
    assert_string_equal(list.paths[0], inside("one"));
    file_list_free(&list);
}

static void a_glob_without_a_match_names_the_pattern(void **state) {
    (void)state;
    FileList list;
    assert_fails(file_glob(inside("none_*.bin"), &list), STATUS_BAD_INPUT, "none_*.bin: no file matches");
}

static void the_hash_is_fnv_1a_in_any_pieces(void **state) {
    (void)state;
    /* vectors of the FNV authors */
    assert_true(file_hash(FILE_HASH_START, "", 0) == UINT64_C(0xcbf29ce484222325));
    assert_true(file_hash(FILE_HASH_START, "a", 1) == UINT64_C(0xaf63dc4c8601ec8c));
    assert_true(file_hash(FILE_HASH_START, "foobar", 6) == UINT64_C(0x85944171f73967e8));
    assert_true(file_hash(file_hash(FILE_HASH_START, "foo", 3), "bar", 3) == UINT64_C(0x85944171f73967e8));
}

static void paths_join_with_one_slash_and_never_overflow(void **state) {
    (void)state;
    char path[PATH_SIZE], name[PATH_SIZE];
    assert_ok(path_join(path, "runs", "x"));
    assert_string_equal(path, "runs/x");
    assert_ok(path_join(path, "/", "x"));
    assert_string_equal(path, "/x");
    memset(name, 'n', sizeof name);
    name[PATH_SIZE - 3] = '\0';
    assert_ok(path_join(path, "d", name)); /* d, /, the name and the NUL fill it */
    name[PATH_SIZE - 3] = 'n';
    name[PATH_SIZE - 2] = '\0';
    assert_fails(path_join(path, "d", name), STATUS_BAD_INPUT, "d/nnn");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read_back_with_a_nul_after_it),
        cmocka_unit_test(an_empty_file_reads_as_an_empty_string),
        cmocka_unit_test(a_file_over_the_limit_is_refused_with_both_sizes),
        cmocka_unit_test(what_cannot_be_read_says_why),
        cmocka_unit_test(a_write_replaces_the_file_and_leaves_no_temporary_one),
        cmocka_unit_test(a_failed_write_leaves_the_old_file_and_no_temporary_one),
        cmocka_unit_test(a_folder_is_created_with_its_parents_and_may_exist),
        cmocka_unit_test(a_file_in_the_way_of_a_folder_is_named),
        cmocka_unit_test(a_folder_is_removed_with_all_in_it_but_links_are_not_followed),
        cmocka_unit_test(a_glob_is_sorted_by_bytes),
        cmocka_unit_test(a_path_without_wildcards_is_a_glob_of_itself),
        cmocka_unit_test(a_glob_without_a_match_names_the_pattern),
        cmocka_unit_test(the_hash_is_fnv_1a_in_any_pieces),
        cmocka_unit_test(paths_join_with_one_slash_and_never_overflow),
    };
    return cmocka_run_group_tests(tests, open_folder, remove_folder);
}
