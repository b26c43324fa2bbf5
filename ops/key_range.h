/* Which keys a query sees: the one place that says so, for ref/, cpu/, cuda/ and ops/cost.c.
 *
 * Attention is causal: query i of a sequence sees the keys [0, i + 1). Loops take ranges from here, tiled code asks how
 * a tile of queries meets a tile of keys, and code that has a single pair asks query_sees.
 *
 *                 keys              SIGHT_ALL     every query of the tile sees each of its keys
 *            A A A S N N            SIGHT_SOME    on the edge of what is seen: rows and pairs decide
 *   queries  A A A A S N            SIGHT_NONE    no query sees any of its keys: skip it
 *            A A A A A S
 *
 * A later query's range begins and ends no earlier than that of the query before it; so tiles look at their first and
 * last row alone. tests/ops/test_key_range.c checks that all functions say the same.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Kernels count positions in int, and call what is constexpr. */
#ifdef __cplusplus
typedef int Position;
#define KEY_RANGE constexpr
#else
typedef int64_t Position;
#define KEY_RANGE static inline
#endif

/* [first, end) */
typedef struct {
    Position first, end;
} KeyRange;

KEY_RANGE bool query_sees(Position query, Position key) {
    return key <= query;
}

/* The keys that a query sees. */
KEY_RANGE KeyRange keys_of_query(Position query) {
    KeyRange keys = {0, query + 1};
    return keys;
}

/* The queries, of a sequence of `context` positions, that see a key. */
KEY_RANGE KeyRange queries_of_key(Position key, Position context) {
    KeyRange queries = {key, context};
    return queries;
}

/* ---- tiles: queries [first_query, end_query), keys [first_key, end_key), neither empty --------------------------- */

/* The keys that some query sees, and those that every query sees. */
KEY_RANGE KeyRange keys_of_some(Position first_query, Position end_query) {
    KeyRange keys = {keys_of_query(first_query).first, keys_of_query(end_query - 1).end};
    return keys;
}

KEY_RANGE KeyRange keys_of_all(Position first_query, Position end_query) {
    KeyRange keys = {keys_of_query(end_query - 1).first, keys_of_query(first_query).end};
    return keys;
}

/* The queries that see some key, and those that see every key. */
KEY_RANGE KeyRange queries_of_some(Position first_key, Position end_key, Position context) {
    KeyRange queries = {queries_of_key(first_key, context).first, queries_of_key(end_key - 1, context).end};
    return queries;
}

KEY_RANGE KeyRange queries_of_all(Position first_key, Position end_key, Position context) {
    KeyRange queries = {queries_of_key(end_key - 1, context).first, queries_of_key(first_key, context).end};
    return queries;
}

typedef enum { SIGHT_NONE, SIGHT_SOME, SIGHT_ALL } Sight;

KEY_RANGE Sight sight_of_tile(Position first_query, Position end_query, Position first_key, Position end_key) {
    return first_key >= end_query ? SIGHT_NONE : end_key <= first_query + 1 ? SIGHT_ALL : SIGHT_SOME;
}

/* Of square tiles of one size that begin at multiples of it, in one subtraction: below 0 SIGHT_ALL, 0 SIGHT_SOME, above
 * 0 SIGHT_NONE. */
KEY_RANGE Position side_of_square(Position first_query, Position first_key) {
    return first_key - first_query;
}

/* How many pairs of a query and a key that it sees a sequence has. */
KEY_RANGE double seen_pairs(Position context) {
    return (double)context * ((double)context + 1) / 2;
}
