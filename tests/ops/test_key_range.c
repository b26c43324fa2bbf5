/* Which keys a query sees: every function of ops/key_range.h against query_sees, pair by pair. */
#include "ops/key_range.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { T = 9 };

static bool holds(KeyRange range, int64_t position) {
    return range.first <= position && position < range.end;
}

static void a_query_sees_itself_and_what_came_before(void **state) {
    (void)state;
    for (int64_t i = 0; i < T; i++)
        for (int64_t j = 0; j < T; j++) assert_int_equal(query_sees(i, j), j <= i);
}

static void ranges_hold_the_pairs_that_are_seen(void **state) {
    (void)state;
    int64_t pairs = 0;
    for (int64_t i = 0; i < T; i++)
        for (int64_t j = 0; j < T; j++) {
            assert_int_equal(holds(keys_of_query(i), j), query_sees(i, j));
            assert_int_equal(holds(queries_of_key(j, T), i), query_sees(i, j));
            pairs += query_sees(i, j);
        }
    assert_true(seen_pairs(T) == (double)pairs);
}

static void check_tile(int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
    int64_t seen = 0;
    for (int64_t i = q0; i < q1; i++)
        for (int64_t j = k0; j < k1; j++) seen += query_sees(i, j);
    Sight expected = seen == 0 ? SIGHT_NONE : seen == (q1 - q0) * (k1 - k0) ? SIGHT_ALL : SIGHT_SOME;
    assert_int_equal(sight_of_tile(q0, q1, k0, k1), expected);
}

static void check_rows_of_tile(int64_t first, int64_t end) {
    for (int64_t x = 0; x < T; x++) {
        int64_t queries = 0, keys = 0; /* of the tile: that see key x, that query x sees */
        for (int64_t i = first; i < end; i++) queries += query_sees(i, x), keys += query_sees(x, i);
        assert_int_equal(holds(keys_of_some(first, end), x), queries > 0);
        assert_int_equal(holds(keys_of_all(first, end), x), queries == end - first);
        assert_int_equal(holds(queries_of_some(first, end, T), x), keys > 0);
        assert_int_equal(holds(queries_of_all(first, end, T), x), keys == end - first);
    }
}

static void tiles_are_what_their_pairs_are(void **state) {
    (void)state;
    for (int64_t q0 = 0; q0 < T; q0++)
        for (int64_t q1 = q0 + 1; q1 <= T; q1++) {
            check_rows_of_tile(q0, q1);
            for (int64_t k0 = 0; k0 < T; k0++)
                for (int64_t k1 = k0 + 1; k1 <= T; k1++) check_tile(q0, q1, k0, k1);
        }
}

static void squares_are_tiles(void **state) {
    (void)state;
    for (int64_t size = 2; size <= T; size++)
        for (int64_t q = 0; q + size <= T; q += size)
            for (int64_t k = 0; k + size <= T; k += size) {
                Sight sight = sight_of_tile(q, q + size, k, k + size);
                int64_t side = side_of_square(q, k);
                assert_int_equal(side < 0 ? SIGHT_ALL : side > 0 ? SIGHT_NONE : SIGHT_SOME, sight);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_query_sees_itself_and_what_came_before),
        cmocka_unit_test(ranges_hold_the_pairs_that_are_seen),
        cmocka_unit_test(tiles_are_what_their_pairs_are),
        cmocka_unit_test(squares_are_tiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
