/* Reads a configuration by the table of options; see config.h and config_options.h.
 *
 *      defaults of the table -> file -> command line        each value: known key? type? range? -> Config
 *      -> defaults of model.preset, for keys not set        needs the final preset
 *      -> values worked out of other values                 kv_heads, mlp_width, micro_batch, ...
 *      -> combinations
 *
 * Everything goes into a fresh Config, which reaches the caller only when it is complete. `origins` remembers where
 * each option was set, so that an error about two options can still name a line.
 */
#include "base/config.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/config_json.h"
#include "base/config_options.h"

enum { FILE_LIMIT = 1 << 20, KEY_SIZE = 128, QUOTE_MAX = 60 };

/* Where an option was set: a line of the file if positive. */
enum { FROM_DEFAULT = 0, FROM_COMMAND_LINE = -1 };

typedef struct {
    Config *config;
    const char *file;             /* NULL: none */
    const JsonDocument *document; /* that is being read; NULL: a bare string of the command line */
    bool in_file;                 /* the document is the file's */
    bool in_table;                /* the value is a default */
    int origins[OPTION_MAX];      /* by row of the table */
} Reader;

static Status read_value(Reader *r, const char *path, const cJSON *item);

/* ---- errors ----------------------------------------------------------------------------------------------------- */

/* "configs/x.json:12" or "command line". */
static void format_place(const Reader *r, int origin, char *buffer, size_t size) {
    if (origin > 0) {
        snprintf(buffer, size, "%s:%d", r->file, origin);
    } else {
        snprintf(buffer, size, "command line");
    }
}

static int origin_of(const Reader *r, const cJSON *item) {
    if (r->in_table) return FROM_DEFAULT;
    return r->in_file ? json_place(r->document, item).line : FROM_COMMAND_LINE;
}

static Status refuse(const Reader *r, const cJSON *item, const char *path, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static Status refuse(const Reader *r, const cJSON *item, const char *path, const char *format, ...) {
    char place[PATH_SIZE + 16], reason[LINE_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    format_place(r, origin_of(r, item), place, sizeof place);
    return status_error(STATUS_BAD_INPUT, "%s: %s: %s", place, path, reason);
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

static Status refuse_type(const Reader *r, const cJSON *item, const char *path, const char *wanted) {
    char found[LINE_SIZE];
    return refuse(r, item, path, "wants %s, got %s", wanted, describe(r, item, found, sizeof found));
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
    return (char *)r->config + offset;
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
    if (value < minimum || value > maximum) {
        return refuse(r, item, option->path, "%.*s is out of range; it must be from %lld to %lld",
                      json_token_length(text), text, (long long)minimum, (long long)maximum);
    }
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
    char wanted[LINE_SIZE + 16], choices[LINE_SIZE];
    if (!cJSON_IsString(item)) {
        snprintf(wanted, sizeof wanted, "one of %s", option_join_choices(option, choices));
        return refuse_type(r, item, path, wanted);
    }
    for (*index = 0; option->choices[*index]; ++*index) {
        if (strcmp(option->choices[*index], item->valuestring) == 0) return status_ok();
    }
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
    if (length >= option->size) {
        return refuse(r, item, option->path, "the string has %zu bytes; at most %zu are allowed", length,
                      option->size - 1);
    }
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
        for (int i = 0; i < *count; i++) {
            if (strcmp(names[i], name) == 0) return refuse(r, entry, option->path, "\"%s\" is listed twice", name);
        }
        snprintf(names[(*count)++], NAME_SIZE, "%s", name); /* no overflow: each choice at most once */
    }
    return status_ok();
}

static Status read_triple(Reader *r, const Option *option, const cJSON *item, double triple[3]) {
    static const char wanted[] = "triples [a, b, c]";
    const cJSON *number = item->child;
    if (!cJSON_IsArray(item)) return refuse_type(r, item, option->path, wanted);
    if (cJSON_GetArraySize(item) != 3) {
        return refuse(r, item, option->path, "wants %s, got a list of %d", wanted, cJSON_GetArraySize(item));
    }
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
        status = refuse(r, item, option->path, "wants 1 to %d triples, got %d", COEFFICIENTS_MAX, size);
    } else {
        for (const cJSON *triple = item->child; triple && !status.code; triple = triple->next) {
            status = read_triple(r, option, triple, fresh.triples[fresh.count++]);
        }
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
    if (!*pattern || strlen(pattern) >= NAME_SIZE) {
        return refuse(r, item, option->path, "a pattern has 1 to %d bytes, this one %zu", NAME_SIZE - 1,
                      strlen(pattern));
    }
    for (int i = 0; i < *count; i++) {
        if (strcmp(entries[i].pattern, pattern) != 0) entries[kept++] = entries[i];
    }
    if (kept == LIST_MAX) return refuse(r, item, option->path, "more than %d patterns", LIST_MAX);
    RouteOverride *entry = &entries[kept];
    *entry = (RouteOverride){.optimizer = (OptimizerKind)index};
    memcpy(entry->pattern, pattern, strlen(pattern) + 1);
    *count = kept + 1;
    return status;
}

static Status refuse_twice(const Reader *r, const cJSON *object, const cJSON *child, const char *path) {
    for (const cJSON *earlier = object->child; earlier != child; earlier = earlier->next) {
        if (strcmp(earlier->string, child->string) == 0) return refuse(r, child, path, "the key is given twice");
    }
    return status_ok();
}

static Status read_overrides(Reader *r, const Option *option, const cJSON *item) {
    char path[PATH_SIZE];
    if (!cJSON_IsObject(item)) {
        return refuse_type(r, item, option->path, "an object of block patterns and optimizers");
    }
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
    if (!status.code) r->origins[option - config_options] = origin_of(r, item);
    return status;
}

static Status read_section(Reader *r, const char *section, const cJSON *item) {
    char path[KEY_SIZE];
    if (!cJSON_IsObject(item)) {
        return refuse_type(r, item, *section ? section : "the configuration", "an object { ... }");
    }
    for (const cJSON *child = item->child; child; child = child->next) {
        Status status;
        snprintf(path, sizeof path, "%s%s%s", section, *section ? "." : "", child->string);
        /* editors look for the schema of a file under this key */
        if (!*section && strcmp(child->string, "$schema") == 0) continue;
        if (FAILED(status, refuse_twice(r, item, child, path))) return status;
        if (strchr(child->string, '.')) return refuse(r, child, path, "keys hold no dots in a file; nest objects");
        if (FAILED(status, read_value(r, path, child))) return status;
    }
    return status_ok();
}

static Status read_value(Reader *r, const char *path, const cJSON *item) {
    const Option *option = option_find(path);
    if (option) return read_option(r, option, item);
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
        status = status_error(STATUS_OUT_OF_MEMORY, "%s: no memory to read it", where);
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
    Status status = file_read(r->file, FILE_LIMIT, &text, &size);
    if (status.code) return status;
    if (FAILED(status, json_parse(&document, text, size, r->file))) goto done;
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
    if (!equals || equals == argument || equals - argument >= PATH_SIZE) {
        return status_error(STATUS_BAD_INPUT, "command line: \"%.*s\" is not of the form key=value", QUOTE_MAX,
                            argument);
    }
    snprintf(path, sizeof path, "%.*s", (int)(equals - argument), argument);
    return read_text(r, path, equals + 1);
}

/* ---- what depends on more than one option ------------------------------------------------------------------------ */

static int origin_of_path(const Reader *r, const char *path) {
    const Option *option = option_find(path);
    CHECK(option, "no option %s", path);
    return r->origins[option - config_options];
}

static bool is_set(const Reader *r, const char *path) {
    return origin_of_path(r, path) != FROM_DEFAULT;
}

static void apply_preset(Reader *r) {
    for (int i = 0; i < config_option_count; i++) {
        const Option *option = &config_options[i];
        if (!option->presets[0] || option->computed || r->origins[i] != FROM_DEFAULT) continue;
        read_default(r, option, option->presets[r->config->model.preset]);
    }
}

static void default_to(int64_t *value, int64_t computed) {
    if (*value == 0) *value = computed;
}

/* DeepSeek-V3's proportions, but for kv_rank where heads are few: a latent vector as wide as the stream saves nothing.
 */
static void resolve_mla(const Reader *r, ModelConfig *m) {
    int64_t head = m->width > m->heads ? m->width / m->heads : 1, half = m->width > 1 ? m->width / 2 : 1;
    default_to(&m->head_nope, head);
    default_to(&m->head_rope, (m->head_nope + 3) / 4 * 2);
    default_to(&m->head_value, m->head_nope);
    default_to(&m->kv_rank, 4 * m->head_nope < half ? 4 * m->head_nope : half);
    if (!is_set(r, "model.q_rank")) m->q_rank = half;
}

static void resolve(Reader *r) {
    Config *c = r->config;
    ModelConfig *m = &c->model;
    if (!is_set(r, "model.kv_heads")) m->kv_heads = m->heads;
    if (m->attention == ATTENTION_MLA) resolve_mla(r, m);
    if (!is_set(r, "model.mlp_width")) {
        m->mlp_width = m->preset == PRESET_GPT2 ? 4 * m->width : (8 * m->width + 3 * 64 - 1) / (3 * 64) * 64;
    }
    if (c->train.micro_batch == 0) c->train.micro_batch = c->train.batch;
    ScheduleConfig *schedule = &c->optimizer.schedule;
    if (!is_set(r, "optimizer.schedule.warmup") && schedule->warmup > c->train.steps) schedule->warmup = c->train.steps;
    if (!is_set(r, "qk_clip.enabled") && m->qk_norm) c->qk_clip.enabled = false;
    if (!is_set(r, "probe.bound_every") && m->qk_norm) c->probe.bound_every = 0;
}

/* An error about two options, at the place that was read last. */
static Status refuse_pair(const Reader *r, const char *path, const char *other, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static Status refuse_pair(const Reader *r, const char *path, const char *other, const char *format, ...) {
    char place[PATH_SIZE + 16], reason[LINE_SIZE];
    int a = origin_of_path(r, path), b = origin_of_path(r, other);
    bool typed = a == FROM_COMMAND_LINE || b == FROM_COMMAND_LINE;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    format_place(r, typed ? FROM_COMMAND_LINE : a > b ? a : b, place, sizeof place);
    return status_error(STATUS_BAD_INPUT, "%s: %s", place, reason);
}

static Status check_name(const Reader *r) {
    const char *name = r->config->name;
    if (!strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0) return status_ok();
    return refuse_pair(r, "name", "name", "name: \"%s\" is no folder name; the run's folder is runs_dir/name", name);
}

/* Latent attention: what does not go with it. */
static Status check_mla(const Reader *r) {
    const ModelConfig *m = &r->config->model;
    static const char attention[] = "model.attention";
    if (m->position != POSITION_ROPE) {
        return refuse_pair(r, attention, "model.position",
                           "model.attention \"mla\" has its positions from rope; set model.position to \"rope\"");
    }
    if (m->kv_heads != m->heads) {
        return refuse_pair(r, attention, "model.kv_heads",
                           "model.attention \"mla\" gives every head keys and values of its own; leave out "
                           "model.kv_heads (%lld, with model.heads %lld)",
                           (long long)m->kv_heads, (long long)m->heads);
    }
    if (m->qk_norm) {
        return refuse_pair(
            r, attention, "model.qk_norm",
            "model.attention \"mla\" normalises its latent vectors and has no model.qk_norm; turn it off");
    }
    if (m->bias) {
        return refuse_pair(r, attention, "model.bias",
                           "model.attention \"mla\" has no biases; set model.bias to false");
    }
    if (m->head_rope % 2) {
        return refuse_pair(r, attention, "model.head_rope",
                           "rope turns pairs of channels, and model.head_rope (%lld) is odd", (long long)m->head_rope);
    }
    return status_ok();
}

/* Keys that mean nothing without latent attention. */
static Status check_mla_is_off(const Reader *r) {
    const ModelConfig *m = &r->config->model;
    const MuonConfig *muon = &r->config->optimizer.muon;
    const struct {
        const char *path;
        int64_t value;
    } keys[] = {{"model.q_rank", m->q_rank},
                {"model.kv_rank", m->kv_rank},
                {"model.head_nope", m->head_nope},
                {"model.head_rope", m->head_rope},
                {"model.head_value", m->head_value}};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (keys[i].value == 0) continue;
        return refuse_pair(r, keys[i].path, "model.attention",
                           "%s belongs to model.attention \"mla\"; set that, or leave it out", keys[i].path);
    }
    for (int i = 0; i < muon->per_head_count; i++) {
        if (strcmp(muon->per_head[i], "q_rope") != 0) continue;
        return refuse_pair(r, "optimizer.muon.per_head", "model.attention",
                           "optimizer.muon.per_head: \"q_rope\" is a block of model.attention \"mla\" alone");
    }
    return status_ok();
}

static Status check_model(const Reader *r) {
    const ModelConfig *m = &r->config->model;
    long long width = m->width, heads = m->heads, kv_heads = m->kv_heads;
    bool mla = m->attention == ATTENTION_MLA;
    Status status = mla ? check_mla(r) : check_mla_is_off(r);
    if (status.code) return status;
    if (!mla && width % heads) {
        return refuse_pair(r, "model.width", "model.heads", "model.width (%lld) is not divisible by model.heads (%lld)",
                           width, heads);
    }
    if (heads % kv_heads) {
        return refuse_pair(r, "model.heads", "model.kv_heads",
                           "model.heads (%lld) is not divisible by model.kv_heads (%lld)", heads, kv_heads);
    }
    if (!mla && m->position == POSITION_ROPE && width / heads % 2) {
        return refuse_pair(r, "model.width", "model.heads",
                           "rope turns pairs of channels, and a head of model.width / model.heads = %lld channels is "
                           "odd; change them, or set model.position to \"learned\"",
                           width / heads);
    }
    if (m->qk_norm && r->config->qk_clip.enabled) {
        return refuse_pair(r, "model.qk_norm", "qk_clip.enabled",
                           "qk_clip.enabled cannot work with model.qk_norm: the norm undoes the scaling; turn one off");
    }
    if (m->qk_norm && r->config->probe.bound_every > 0) {
        return refuse_pair(
            r, "model.qk_norm", "probe.bound_every",
            "probe.bound_every cannot work with model.qk_norm: there norms of W_q and W_k bound no logit; "
            "set it to 0");
    }
    return status_ok();
}

static Status check_training(const Reader *r) {
    const TrainConfig *t = &r->config->train;
    if (t->batch % t->micro_batch) {
        return refuse_pair(r, "train.batch", "train.micro_batch",
                           "train.batch (%lld) is not divisible by train.micro_batch (%lld)", (long long)t->batch,
                           (long long)t->micro_batch);
    }
    return status_ok();
}

static Status check_warmup(const Reader *r, const char *path, int64_t warmup) {
    const int64_t steps = r->config->train.steps;
    if (warmup <= steps) return status_ok();
    return refuse_pair(r, path, "train.steps", "%s (%lld) is longer than train.steps (%lld)", path, (long long)warmup,
                       (long long)steps);
}

static Status check_optimizer(const Reader *r) {
    const OptimizerConfig *o = &r->config->optimizer;
    const int64_t warmup = o->muon.momentum_warmup, cooldown = o->muon.momentum_cooldown;
    Status status;
    if (FAILED(status, check_warmup(r, "optimizer.schedule.warmup", o->schedule.warmup))) return status;
    if (FAILED(status, check_warmup(r, "optimizer.decay_schedule.warmup", o->decay_schedule.warmup))) return status;
    if (warmup + cooldown > r->config->train.steps) {
        return refuse_pair(r, "optimizer.muon.momentum_warmup", "optimizer.muon.momentum_cooldown",
                           "optimizer.muon.momentum_warmup (%lld) and momentum_cooldown (%lld) are longer than "
                           "train.steps (%lld)",
                           (long long)warmup, (long long)cooldown, (long long)r->config->train.steps);
    }
    if (o->mup_base_width > 0 && o->muon.per_head_count > 0) {
        return refuse_pair(r, "optimizer.mup_base_width", "optimizer.muon.per_head",
                           "optimizer.mup_base_width does not go with optimizer.muon.per_head: its rules are for "
                           "matrices that grow on both sides, and heads do not; turn one off");
    }
    return status;
}

Status config_load(Config *config, const char *path, int override_count, char **overrides) {
    Config fresh = {0};
    Reader r = {.config = &fresh, .file = path};
    Status status;
    for (int i = 0; i < config_option_count; i++) {
        if (config_options[i].initial) read_default(&r, &config_options[i], config_options[i].initial);
    }
    if (path && FAILED(status, read_file(&r))) return status;
    for (int i = 0; i < override_count; i++) {
        if (FAILED(status, read_override(&r, overrides[i]))) return status;
    }
    apply_preset(&r);
    resolve(&r);
    if (FAILED(status, check_name(&r))) return status;
    if (FAILED(status, check_model(&r))) return status;
    if (FAILED(status, check_training(&r))) return status;
    if (FAILED(status, check_optimizer(&r))) return status;
    *config = fresh;
    return status;
}
