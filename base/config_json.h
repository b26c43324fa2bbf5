/* JSON text for configuration: cJSON's tree, and what cJSON does not give: strict syntax errors with line and column,
 * and for every value the line it is on and the characters it was written with.
 */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "base/status.h"

typedef struct {
    int line;         /* of its key, or of the value itself where it has none */
    const char *text; /* first character of the value, in the caller's text */
} JsonPlace;

typedef struct {
    cJSON *tree;
    JsonPlace *places; /* one per value, in the order of the text, which is the tree's preorder */
    int64_t count, capacity;
} JsonDocument;

/* Parses `text`, `size` bytes and a NUL, which must outlive the document. Errors read "where:line:column: ...". */
Status json_parse(JsonDocument *document, const char *text, int64_t size, const char *where);
void json_free(JsonDocument *document);

/* Where a value of the document's tree stands in the text. */
JsonPlace json_place(const JsonDocument *document, const cJSON *item);

/* Whether `item` is a count: whole, not negative, and no larger than a JSON number, which is a double, holds exactly.
 */
bool json_get_count(const cJSON *item, int64_t *count);

/* Length of the number, string or word that starts at `text`. */
int json_token_length(const char *text);
