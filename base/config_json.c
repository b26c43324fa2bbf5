/* A strict JSON scanner (RFC 8259) that runs before cJSON; see config_json.h.
 *
 * cJSON builds the tree, but it takes "01" and "1." for numbers, cuts strings at \u0000 and does not say where things
 * are. The scanner walks the same grammar, records the place of every value, and stops at the first fault:
 *
 *      { "model" : { "width" : 100 } , ... }        places:  0 the root
 *      ^0          ^1          ^2                            1 model's value, 2 width's value: preorder
 */
#include "base/config_json.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 32, NUMBER_MAX = 60 /* cJSON reads 63 characters */ };

typedef struct {
    const char *at, *end, *line_start;
    int line;
    const char *where;
    JsonDocument *document;
    Status status;
} Scanner;

static bool scan_value(Scanner *s, int line, int depth);

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static Status out_of_memory(const char *where) {
    return NO_MEMORY("%s: no memory to read it", where);
}

static bool refuse(Scanner *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(Scanner *s, const char *format, ...) {
    char reason[300];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    s->status = BAD_INPUT("%s:%d:%d: %s", s->where, s->line, (int)(s->at - s->line_start) + 1, reason);
    return false;
}

static bool expected(Scanner *s, const char *what) {
    if (s->at == s->end) return refuse(s, "expected %s, found the end of the text", what);
    unsigned char c = (unsigned char)*s->at;
    if (c < 0x20 || c >= 0x7f) return refuse(s, "expected %s, found the byte 0x%02x", what, c);
    if (c == '/' || c == '#') return refuse(s, "expected %s, found '%c'; JSON has no comments", what, c);
    if (c == '\'') return refuse(s, "expected %s, found '; strings need double quotes", what);
    int length = json_token_length(s->at);
    return refuse(s, "expected %s, found %.*s", what, length < 40 ? length : 40, s->at);
}

int json_token_length(const char *text) {
    if (*text != '"') {
        int length = (int)strcspn(text, " \t\r\n,:[]{}\"");
        return length > 0 ? length : 1;
    }
    int length = 1;
    while (text[length] && text[length] != '"' && text[length] != '\n')
        length += text[length] == '\\' && text[length + 1] ? 2 : 1;
    return length + (text[length] == '"');
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

static bool next_is(const Scanner *s, char c) {
    return s->at < s->end && *s->at == c;
}

static bool next_is_digit(const Scanner *s) {
    return s->at < s->end && *s->at >= '0' && *s->at <= '9';
}

static bool take(Scanner *s, char c) {
    if (!next_is(s, c)) return false;
    s->at++;
    return true;
}

static void skip_space(Scanner *s) {
    for (; next_is(s, ' ') || next_is(s, '\t') || next_is(s, '\r') || next_is(s, '\n'); s->at++) {
        if (*s->at == '\n') {
            s->line++;
            s->line_start = s->at + 1;
        }
    }
}

static bool scan_hex(Scanner *s, unsigned *code) {
    if (s->end - s->at < 4 || strspn(s->at, "0123456789abcdefABCDEF") < 4)
        return refuse(s, "\\u needs four hex digits");
    char digits[5] = {s->at[0], s->at[1], s->at[2], s->at[3], '\0'};
    *code = (unsigned)strtoul(digits, NULL, 16);
    s->at += 4;
    return true;
}

/* After the backslash. Characters beyond 16 bits are two escapes, a high and a low surrogate. */
static bool scan_escape(Scanner *s) {
    unsigned code = 0, low = 0;
    if (!take(s, 'u')) {
        if (s->at == s->end || !memchr("\"\\/bfnrt", *s->at, 8)) return refuse(s, "unknown escape in a string");
        s->at++;
        return true;
    }
    if (!scan_hex(s, &code)) return false;
    if (code == 0) return refuse(s, "\\u0000 is not allowed in a string");
    if (code < 0xd800 || code > 0xdfff) return true;
    bool paired = code < 0xdc00 && take(s, '\\') && take(s, 'u') && scan_hex(s, &low) && low >= 0xdc00 && low <= 0xdfff;
    return paired || refuse(s, "half a surrogate pair is not a character");
}

static bool scan_string(Scanner *s) {
    s->at++;
    while (!take(s, '"')) {
        if (s->at == s->end || *s->at == '\n') return refuse(s, "a string has no closing quote");
        unsigned char c = (unsigned char)*s->at;
        if (c < 0x20) return refuse(s, "the byte 0x%02x must be written as an escape in a string", c);
        s->at++;
        if (c == '\\' && !scan_escape(s)) return false;
    }
    return true;
}

static bool scan_digits(Scanner *s) {
    if (!next_is_digit(s)) return expected(s, "a digit");
    while (next_is_digit(s)) s->at++;
    return true;
}

static bool scan_number(Scanner *s) {
    int length = json_token_length(s->at);
    if (length > NUMBER_MAX) return refuse(s, "a number of %d characters; at most %d are allowed", length, NUMBER_MAX);
    take(s, '-');
    if (take(s, '0')) {
        if (next_is_digit(s)) return refuse(s, "a number cannot start with 0 and another digit");
    } else if (!scan_digits(s)) {
        return false;
    }
    if (take(s, '.') && !scan_digits(s)) return false;
    if (take(s, 'e') || take(s, 'E')) {
        if (!take(s, '+')) take(s, '-');
        return scan_digits(s);
    }
    return true;
}

static bool scan_word(Scanner *s) {
    static const char *const words[] = {"true", "false", "null", "NaN", "nan", "inf", "Infinity", "-Infinity", "-inf"};
    size_t length = s->at < s->end ? (size_t)json_token_length(s->at) : 0;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (length != strlen(words[i]) || memcmp(s->at, words[i], length) != 0) continue;
        if (i >= 3) return refuse(s, "%s is not a JSON number; numbers are finite", words[i]);
        s->at += length;
        return true;
    }
    return expected(s, "a value");
}

/* ---- grammar ---------------------------------------------------------------------------------------------------- */

static bool scan_key(Scanner *s) {
    if (!next_is(s, '"')) return expected(s, "a key in double quotes");
    if (!scan_string(s)) return false;
    skip_space(s);
    if (!take(s, ':')) return expected(s, "a colon");
    skip_space(s);
    return true;
}

/* An array, or an object, whose values have keys. */
static bool scan_list(Scanner *s, char close, int depth) {
    s->at++;
    skip_space(s);
    if (take(s, close)) return true;
    for (;;) {
        skip_space(s);
        if (next_is(s, close)) return refuse(s, "a comma before %c is not allowed", close);
        int line = s->line;
        if (close == '}' && !scan_key(s)) return false;
        if (!scan_value(s, line, depth)) return false;
        skip_space(s);
        if (take(s, close)) return true;
        if (!take(s, ',')) return expected(s, close == '}' ? "a comma or }" : "a comma or ]");
    }
}

static bool record_place(Scanner *s, int line) {
    JsonDocument *document = s->document;
    if (document->count == document->capacity) {
        int64_t capacity = document->capacity ? 2 * document->capacity : 128;
        JsonPlace *places = realloc(document->places, (size_t)capacity * sizeof *places);
        if (!places) return s->status = out_of_memory(s->where), false;
        document->places = places;
        document->capacity = capacity;
    }
    document->places[document->count++] = (JsonPlace){.line = line, .text = s->at};
    return true;
}

static bool scan_value(Scanner *s, int line, int depth) {
    if (depth == DEPTH_MAX) return refuse(s, "nested deeper than %d levels", DEPTH_MAX);
    if (!record_place(s, line)) return false;
    if (next_is(s, '{')) return scan_list(s, '}', depth + 1);
    if (next_is(s, '[')) return scan_list(s, ']', depth + 1);
    if (next_is(s, '"')) return scan_string(s);
    if (next_is_digit(s) || (next_is(s, '-') && s->at[1] != 'I' && s->at[1] != 'i')) return scan_number(s);
    return scan_word(s);
}

static bool scan_document(Scanner *s) {
    if (s->end - s->at >= 3 && memcmp(s->at, "\xef\xbb\xbf", 3) == 0)
        return refuse(s, "starts with a byte order mark; save it as UTF-8 without one");
    skip_space(s);
    if (!scan_value(s, s->line, 0)) return false;
    skip_space(s);
    return s->at == s->end || expected(s, "the end of the text");
}

/* ---- documents -------------------------------------------------------------------------------------------------- */

Status json_parse(JsonDocument *document, const char *text, int64_t size, const char *where) {
    JsonDocument fresh = {0};
    Scanner s = {.at = text, .end = text + size, .line_start = text, .line = 1, .where = where, .document = &fresh};
    if (scan_document(&s)) {
        fresh.tree = cJSON_ParseWithLength(text, (size_t)size);
        if (!fresh.tree) s.status = out_of_memory(where);
    }
    if (s.status.code)
        json_free(&fresh);
    else
        *document = fresh;
    return s.status;
}

void json_free(JsonDocument *document) {
    cJSON_Delete(document->tree);
    free(document->places);
    *document = (JsonDocument){0};
}

/* Counts values in preorder up to `item`. */
static bool count_until(const cJSON *node, const cJSON *item, int64_t *index) {
    if (node == item) return true;
    ++*index;
    for (const cJSON *child = node->child; child; child = child->next)
        if (count_until(child, item, index)) return true;
    return false;
}

JsonPlace json_place(const JsonDocument *document, const cJSON *item) {
    int64_t index = 0;
    bool found = count_until(document->tree, item, &index);
    CHECK(found && index < document->count, "value %lld of %lld", (long long)index, (long long)document->count);
    return document->places[index];
}

bool json_get_count(const cJSON *item, int64_t *count) {
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 0x1p53)) return false;
    *count = (int64_t)item->valuedouble;
    return (double)*count == item->valuedouble;
}
