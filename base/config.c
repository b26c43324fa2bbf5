/* Reads a configuration by the table of options; see config.h and config_options.h.
 *
 *      defaults of the table -> file -> command line        each value: known key? type? range? -> Config
 *      -> defaults of model.preset, for keys not set        needs the final preset
 *      -> values worked out of other values                 config_rules.c
 *      -> combinations
 *
 * Everything goes into a draft, which reaches the caller only when it is complete.
 */
#include "base/config.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/config_json.h"
#include "base/config_rules.h"

enum { FILE_LIMIT = 1 << 20, KEY_SIZE = 128, QUOTE_MAX = 60 };

typedef struct {
    ConfigDraft draft;
    const JsonDocument *document; /* that is being read; NULL: a bare string of the command line */
    bool in_file;                 /* the document is the file's */
    bool in_table;                /* the value is a default */
} Reader;

static Status read_value(Reader *r, const char *path, const cJSON *item);

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static int origin_of(const Reader *r, const cJSON *item) {
    if (r->in_table) return FROM_DEFAULT;
    return r->in_file ? json_place(r->document, item).line : FROM_COMMAND_LINE;
}

static Status refuse(const Reader *r, const cJSON *item, const char *path, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static Status refuse(const Reader *r, const cJSON *item, const char *path, const char *format, ...) {
    char place[PLACE_SIZE], reason[LINE_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    config_format_place(&r->draft, origin_of(r, item), place);
    return BAD_INPUT("%s: %s: %s", place, path, reason);
}

/* What the user wrote, in words. */
static const char *describe(const Reader *r, const cJSON *item, char *buffer, size_t size) {
    if (cJSON_IsString(item)) {
        snprintf(buffer, size, "the string \"%.*s\"", QUOTE_MAX, item->valuestring);
    } else if (cJSON_IsArray(item)) {
        snprintf(buffer, size, "a list");
    } else if (cJSON_IsObject(item)) {
        snprintf(buffer, size, "an object");
    } else {
        const char *text = json_place(r->document, item).text;
        snprintf(buffer, size, "%.*s", json_token_length(text), text);
    }
    return buffer;
}

static Status refuse_type(const Reader *r, const cJSON *item, const char *path, const char *expected) {
    char found[LINE_SIZE];
    return refuse(r, item, path, "expected %s, found %s", expected, describe(r, item, found, sizeof found));
}

static Status refuse_key(const Reader *r, const cJSON *item, const char *path) {
    const char *nearest = option_nearest_path(path);
    if (!nearest) return refuse(r, item, path, "unknown key; train_gpt --help lists all keys");
    return refuse(r, item, path, "unknown key; did you mean \"%s\"?", nearest);
}

static Status refuse_choice(const Reader *r, const cJSON *item, const char *path, const Option *option) {
    char choices[LINE_SIZE];
    const char *typed = item->valuestring, *nearest = option_nearest_choice(option, typed);
    option_join_choices(option, choices);
    if (!nearest) return refuse(r, item, path, "\"%.*s\" is not one of %s", QUOTE_MAX, typed, choices);
    return refuse(r, item, path, "\"%.*s\" is not one of %s; did you mean \"%s\"?", QUOTE_MAX, typed, choices, nearest);
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static void *member(const Reader *r, size_t offset) {
    return (char *)&r->draft.config + offset;
}

static int *member_count(const Reader *r, const Option *option) {
    return member(r, option->count_offset);
}

/* Whole numbers are read from their digits: a double would round 2^53 + 1. Forms such as 1e3 are whole numbers too. */
static bool parse_whole(const char *text, const cJSON *item, int64_t *value) {
    char *end = NULL;
    *value = strtoll(text, &end, 10); /* beyond int64_t it saturates, outside of every option's range */
    if (*end != '.' && *end != 'e' && *end != 'E') return true;
    double real = item->valuedouble;
    if (real != floor(real)) return false;
    *value = real > 0x1p53 ? INT64_MAX : real < -0x1p53 ? INT64_MIN : (int64_t)real;
    return true;
}

static Status read_whole(Reader *r, const Option *option, const cJSON *item) {
    int64_t value = 0, minimum = (int64_t)option->minimum, maximum = (int64_t)option->maximum;
    const char *text = cJSON_IsNumber(item) ? json_place(r->document, item).text : NULL;
    if (!text || !parse_whole(text, item, &value)) return refuse_type(r, item, option->path, "a whole number");
    if (value < minimum || value > maximum)
        return refuse(r, item, option->path, "%.*s is out of range; it must be from %lld to %lld",
                      json_token_length(text), text, (long long)minimum, (long long)maximum);
    memcpy(member(r, option->offset), &value, sizeof value);
    return status_ok();
}

/* A number within the option's range. An overflow such as 1e999 is infinite, and so outside of it. */
static Status check_real(const Reader *r, const Option *option, const cJSON *item) {
    if (!cJSON_IsNumber(item)) return refuse_type(r, item, option->path, "a number");
    if (item->valuedouble >= option->minimum && item->valuedouble <= option->maximum) return status_ok();
    const char *text = json_place(r->document, item).text;
    return refuse(r, item, option->path, "%.*s is out of range; it must be from %g to %g", json_token_length(text),
                  text, option->minimum, option->maximum);
}

static Status read_real(Reader *r, const Option *option, const cJSON *item) {
    Status status = check_real(r, option, item);
    if (!status.code) memcpy(member(r, option->offset), &item->valuedouble, sizeof(double));
    return status;
}

static Status read_flag(Reader *r, const Option *option, const cJSON *item) {
    if (!cJSON_IsBool(item)) return refuse_type(r, item, option->path, "true or false");
    bool value = cJSON_IsTrue(item);
    memcpy(member(r, option->offset), &value, sizeof value);
    return status_ok();
}

/* Index of the string among the option's choices. */
static Status find_choice(const Reader *r, const Option *option, const char *path, const cJSON *item, int *index) {
    char expected[LINE_SIZE + 16], choices[LINE_SIZE];
    if (!cJSON_IsString(item)) {
        snprintf(expected, sizeof expected, "one of %s", option_join_choices(option, choices));
        return refuse_type(r, item, path, expected);
    }
    for (*index = 0; option->choices[*index]; ++*index)
        if (strcmp(option->choices[*index], item->valuestring) == 0) return status_ok();
    return refuse_choice(r, item, path, option);
}

static Status read_choice(Reader *r, const Option *option, const cJSON *item) {
    int index = 0;
    Status status = find_choice(r, option, option->path, item, &index);
    if (!status.code) memcpy(member(r, option->offset), &index, sizeof index);
    return status;
}

static Status read_string(Reader *r, const Option *option, const cJSON *item) {
    int index = 0;
    Status status;
    if (option->choices && FAILED(status, find_choice(r, option, option->path, item, &index))) return status;
    if (!cJSON_IsString(item)) return refuse_type(r, item, option->path, "a string");
    size_t length = strlen(item->valuestring);
    if (length == 0) return refuse(r, item, option->path, "must not be empty");
    if (length >= option->size)
        return refuse(r, item, option->path, "the string has %zu bytes; at most %zu are allowed", length,
                      option->size - 1);
    memcpy(member(r, option->offset), item->valuestring, length + 1);
    return status_ok();
}

/* ---- lists, coefficients, overrides ------------------------------------------------------------------------------ */

static Status read_list(Reader *r, const Option *option, const cJSON *item) {
    char(*names)[NAME_SIZE] = member(r, option->offset);
    int *count = member_count(r, option), index = 0;
    if (!cJSON_IsArray(item)) return refuse_type(r, item, option->path, "a list such as [\"q\", \"k\"]");
    *count = 0;
    for (const cJSON *entry = item->child; entry; entry = entry->next) {
        Status status = find_choice(r, option, option->path, entry, &index);
        if (status.code) return status;
        const char *name = option->choices[index];
        for (int i = 0; i < *count; i++)
            if (strcmp(names[i], name) == 0) return refuse(r, entry, option->path, "\"%s\" is listed twice", name);
        snprintf(names[(*count)++], NAME_SIZE, "%s", name); /* no overflow: each choice at most once */
    }
    return status_ok();
}

static Status read_triple(Reader *r, const Option *option, const cJSON *item, double triple[3]) {
    static const char expected[] = "triples [a, b, c]";
    const cJSON *number = item->child;
    if (!cJSON_IsArray(item)) return refuse_type(r, item, option->path, expected);
    if (cJSON_GetArraySize(item) != 3)
        return refuse(r, item, option->path, "expected %s, found a list of %d", expected, cJSON_GetArraySize(item));
    for (int i = 0; i < 3; i++, number = number->next) {
        Status status = check_real(r, option, number);
        if (status.code) return status;
        triple[i] = number->valuedouble;
    }
    return status_ok();
}

static Status read_coefficients(Reader *r, const Option *option, const cJSON *item) {
    CoefficientsConfig fresh = {0};
    int index = 0, size = cJSON_GetArraySize(item);
    Status status = status_ok();
    if (cJSON_IsString(item)) {
        status = find_choice(r, option, option->path, item, &index);
        if (!status.code) snprintf(fresh.set, sizeof fresh.set, "%s", option->choices[index]);
    } else if (!cJSON_IsArray(item)) {
        status = refuse_type(r, item, option->path, "the name of a set, or a list of triples [a, b, c]");
    } else if (size < 1 || size > COEFFICIENTS_MAX) {
        status = refuse(r, item, option->path, "expected 1 to %d triples, found %d", COEFFICIENTS_MAX, size);
    } else {
        for (const cJSON *triple = item->child; triple && !status.code; triple = triple->next)
            status = read_triple(r, option, triple, fresh.triples[fresh.count++]);
    }
    if (!status.code) memcpy(member(r, option->offset), &fresh, sizeof fresh);
    return status;
}

/* A pattern that is given again moves to the end: the last match wins. */
static Status read_override_entry(Reader *r, const Option *option, const char *pattern, const cJSON *item) {
    RouteOverride *entries = member(r, option->offset);
    int *count = member_count(r, option), index = 0, kept = 0;
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s.%s", option->path, pattern);
    Status status = find_choice(r, option, path, item, &index);
    if (status.code) return status;
    if (!*pattern || strlen(pattern) >= NAME_SIZE)
        return refuse(r, item, option->path, "expected a pattern of 1 to %d bytes, found %zu", NAME_SIZE - 1,
                      strlen(pattern));
    for (int i = 0; i < *count; i++)
        if (strcmp(entries[i].pattern, pattern) != 0) entries[kept++] = entries[i];
    if (kept == LIST_MAX) return refuse(r, item, option->path, "more than %d patterns", LIST_MAX);
    RouteOverride *entry = &entries[kept];
    *entry = (RouteOverride){.optimizer = (OptimizerKind)index};
    memcpy(entry->pattern, pattern, strlen(pattern) + 1);
    *count = kept + 1;
    return status;
}

static Status refuse_twice(const Reader *r, const cJSON *object, const cJSON *child, const char *path) {
    for (const cJSON *earlier = object->child; earlier != child; earlier = earlier->next)
        if (strcmp(earlier->string, child->string) == 0) return refuse(r, child, path, "the key is given twice");
    return status_ok();
}

static Status read_overrides(Reader *r, const Option *option, const cJSON *item) {
    char path[PATH_SIZE];
    if (!cJSON_IsObject(item)) return refuse_type(r, item, option->path, "an object of block patterns and optimizers");
    *member_count(r, option) = 0;
    for (const cJSON *entry = item->child; entry; entry = entry->next) {
        Status status;
        snprintf(path, sizeof path, "%s.%s", option->path, entry->string);
        if (FAILED(status, refuse_twice(r, item, entry, path))) return status;
        if (FAILED(status, read_override_entry(r, option, entry->string, entry))) return status;
    }
    return status_ok();
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

static Status read_option(Reader *r, const Option *option, const cJSON *item) {
    static Status (*const read[])(Reader *, const Option *, const cJSON *) = {
        [OPTION_WHOLE] = read_whole,
        [OPTION_REAL] = read_real,
        [OPTION_FLAG] = read_flag,
        [OPTION_STRING] = read_string,
        [OPTION_CHOICE] = read_choice,
        [OPTION_LIST] = read_list,
        [OPTION_COEFFICIENTS] = read_coefficients,
        [OPTION_OVERRIDES] = read_overrides,
    };
    Status status = read[option->type](r, option, item);
    if (!status.code) r->draft.origins[option - config_options] = origin_of(r, item);
    return status;
}

static Status read_section(Reader *r, const char *section, const cJSON *item) {
    char path[KEY_SIZE];
    if (!cJSON_IsObject(item))
        return refuse_type(r, item, *section ? section : "the configuration", "an object { ... }");
    for (const cJSON *child = item->child; child; child = child->next) {
        Status status;
        snprintf(path, sizeof path, "%s%s%s", section, *section ? "." : "", child->string);
        /* editors look for the schema of a file under this key */
        if (!*section && strcmp(child->string, "$schema") == 0) continue;
        if (FAILED(status, refuse_twice(r, item, child, path))) return status;
        if (strchr(child->string, '.')) return refuse(r, child, path, "keys in a file contain no dots; nest objects");
        if (FAILED(status, read_value(r, path, child))) return status;
    }
    return status_ok();
}

static Status read_value(Reader *r, const char *path, const cJSON *item) {
    const Option *option = option_find(path);
    if (option) return read_option(r, option, item);
    const RetiredKey *retired = option_find_retired(path);
    if (retired) {
        r->draft.retired[retired - config_retired] = origin_of(r, item);
        return status_ok();
    }
    if (*path && section_find(path)) return read_section(r, path, item);
    for (int i = 0; i < config_option_count; i++) {
        option = &config_options[i];
        size_t length = strlen(option->path);
        if (option->type != OPTION_OVERRIDES || strncmp(path, option->path, length) != 0 || path[length] != '.')
            continue;
        return read_override_entry(r, option, path + length + 1, item);
    }
    return refuse_key(r, item, path);
}

/* ---- sources ---------------------------------------------------------------------------------------------------- */

/* The value of key=value, or of a default: JSON, or else a bare string. */
static Status read_text(Reader *r, const char *path, const char *text) {
    char where[KEY_SIZE + 16];
    JsonDocument document = {0};
    const Option *option = option_find(path);
    bool is_text = option && (option->type == OPTION_STRING || option->type == OPTION_CHOICE);
    snprintf(where, sizeof where, "command line: %.*s", KEY_SIZE - 1, path);
    Status status = json_parse(&document, text, (int64_t)strlen(text), where);
    if (status.code && (*text == '[' || *text == '{')) return status;
    /* name=123 means the string */
    bool bare = status.code || (is_text && !cJSON_IsString(document.tree));
    cJSON *string = bare ? cJSON_CreateString(text) : NULL;
    if (bare && !string) {
        status = NO_MEMORY("%s: no memory to read it", where);
    } else {
        r->document = bare ? NULL : &document;
        status = read_value(r, path, bare ? string : document.tree);
        r->document = NULL;
    }
    cJSON_Delete(string);
    json_free(&document);
    return status;
}

static void read_default(Reader *r, const Option *option, const char *text) {
    r->in_table = true;
    Status status = read_text(r, option->path, text);
    CHECK(!status.code, "the table's default of %s: %s", option->path, status.message);
    r->in_table = false;
}

static Status read_file(Reader *r) {
    char *text = NULL;
    int64_t size = 0;
    JsonDocument document = {0};
    Status status = file_read(r->draft.file, FILE_LIMIT, &text, &size);
    if (status.code) return status;
    if (FAILED(status, json_parse(&document, text, size, r->draft.file))) goto done;
    r->document = &document;
    r->in_file = true;
    status = read_section(r, "", document.tree);
    r->document = NULL;
    r->in_file = false;
done:
    json_free(&document);
    free(text);
    return status;
}

static Status read_override(Reader *r, const char *argument) {
    char path[PATH_SIZE];
    const char *equals = strchr(argument, '=');
    if (!equals || equals == argument || equals - argument >= PATH_SIZE)
        return BAD_INPUT("command line: expected key=value, found \"%.*s\"", QUOTE_MAX, argument);
    snprintf(path, sizeof path, "%.*s", (int)(equals - argument), argument);
    return read_text(r, path, equals + 1);
}

static void apply_preset(Reader *r) {
    for (int i = 0; i < config_option_count; i++) {
        const Option *option = &config_options[i];
        if (!option->presets[0] || option->computed || r->draft.origins[i] != FROM_DEFAULT) continue;
        read_default(r, option, option->presets[r->draft.config.model.preset]);
    }
}

/* A line for each retired key that was given. */
static void note_retired(ConfigDraft *d) {
    char place[PLACE_SIZE];
    size_t used = 0;
    for (int i = 0; i < config_retired_count && used < sizeof d->config.note; i++) {
        if (d->retired[i] == FROM_DEFAULT) continue;
        used += (size_t)snprintf(
            d->config.note + used, sizeof d->config.note - used, "%s: %s is no longer used and is ignored: %s\n",
            config_format_place(d, d->retired[i], place), config_retired[i].path, config_retired[i].reason);
    }
}

Status config_load(Config *config, const char *path, int override_count, char **overrides) {
    Reader r = {.draft.file = path};
    Status status;
    for (int i = 0; i < config_option_count; i++)
        if (config_options[i].initial) read_default(&r, &config_options[i], config_options[i].initial);
    if (path && FAILED(status, read_file(&r))) return status;
    for (int i = 0; i < override_count; i++)
        if (FAILED(status, read_override(&r, overrides[i]))) return status;
    apply_preset(&r);
    config_resolve(&r.draft);
    note_retired(&r.draft);
    status = config_check(&r.draft);
    if (!status.code) *config = r.draft.config;
    return status;
}
