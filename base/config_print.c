/* What the table of options looks like to people and programs: --help, --schema, config.json. */
#include <string.h>

#include "base/config.h"
#include "base/config_options.h"
#include "base/metrics.h"

/* ---- words ------------------------------------------------------------------------------------------------------ */

const char *option_describe_values(const Option *option, char *buffer) {
    char choices[LINE_SIZE] = "";
    if (option->choices) option_join_choices(option, choices);
    switch (option->type) {
    case OPTION_WHOLE:
        snprintf(buffer, LINE_SIZE, "whole number, %.0f to %.0f", option->minimum, option->maximum);
        break;
    case OPTION_REAL:
        snprintf(buffer, LINE_SIZE, "number, %g to %g", option->minimum, option->maximum);
        break;
    case OPTION_FLAG:
        snprintf(buffer, LINE_SIZE, "true or false");
        break;
    case OPTION_STRING:
    case OPTION_CHOICE:
        snprintf(buffer, LINE_SIZE, option->choices ? "one of %.400s" : "string%.0s", choices);
        break;
    case OPTION_LIST:
        snprintf(buffer, LINE_SIZE, "list of %.400s", choices);
        break;
    case OPTION_COEFFICIENTS:
        snprintf(buffer, LINE_SIZE, "one of %.400s, or 1 to %d triples", choices, COEFFICIENTS_MAX);
        break;
    case OPTION_OVERRIDES:
        snprintf(buffer, LINE_SIZE, "object: pattern to one of %.400s", choices);
        break;
    }
    return buffer;
}

const char *option_describe_default(const Option *option, char *buffer) {
    if (option->initial) {
        snprintf(buffer, LINE_SIZE, "%s", option->initial);
    } else if (strcmp(option->presets[PRESET_GPT2], option->presets[PRESET_LLAMA]) == 0) {
        snprintf(buffer, LINE_SIZE, "from the preset (%s)", option->presets[PRESET_GPT2]);
    } else {
        snprintf(buffer, LINE_SIZE, "from the preset (gpt2: %s; llama: %s)", option->presets[PRESET_GPT2],
                 option->presets[PRESET_LLAMA]);
    }
    return buffer;
}

bool option_is_in(const Option *option, const Section *section) {
    int length = option_section_length(option->path);
    return (size_t)length == strlen(section->path) && strncmp(option->path, section->path, (size_t)length) == 0;
}

/* ---- help -------------------------------------------------------------------------------------------------------- */

void config_print_help(FILE *out) {
    char values[LINE_SIZE], initial[LINE_SIZE];
    fprintf(out, "Options: keys of the JSON file, or key=value on the command line.\n");
    for (int s = 0; s < config_section_count; s++) {
        const Section *section = &config_sections[s];
        fprintf(out, "\n%s%s%s\n", section->path, *section->path ? ": " : "", section->help);
        for (int i = 0; i < config_option_count; i++) {
            const Option *option = &config_options[i];
            if (!option_is_in(option, section)) continue;
            fprintf(out, "  %s\n      %s\n      %s; default: %s", option->path, option->help,
                    option_describe_values(option, values), option_describe_default(option, initial));
            if (option->unit) fprintf(out, "; unit: %s", option->unit);
            fputc('\n', out);
        }
    }
}

/* ---- nesting ---------------------------------------------------------------------------------------------------- */

/* The object under `key`, created where it is missing. */
static cJSON *child_object(cJSON *parent, const char *key) {
    cJSON *child = cJSON_GetObjectItemCaseSensitive(parent, key);
    return child ? child : cJSON_AddObjectToObject(parent, key);
}

/* The section that the option or section of `path` lies in. */
static const Section *parent_section(const char *path) {
    char parent[LINE_SIZE];
    snprintf(parent, sizeof parent, "%.*s", option_section_length(path), path);
    const Section *section = section_find(parent);
    CHECK(section, "%s lies in no section", path);
    return section;
}

static cJSON *section_object(cJSON *root, const Section *section) {
    if (!*section->path) return root;
    return child_object(section_object(root, parent_section(section->path)), option_key(section->path));
}

/* ---- schema ----------------------------------------------------------------------------------------------------- */

/* The choices as the elements of a JSON array. None needs an escape. */
static const char *quote_choices(const Option *option, char *buffer) {
    int used = 0;
    buffer[0] = '\0';
    for (const char *const *choice = option->choices; choice && *choice; choice++)
        used += snprintf(buffer + used, (size_t)(LINE_SIZE - used), "%s\"%s\"", used ? ", " : "", *choice);
    return buffer;
}

static int count_choices(const Option *option) {
    int count = 0;
    while (option->choices[count]) count++;
    return count;
}

/* What JSON Schema says of the type, as the text of an object. */
static void describe_schema(const Option *option, char *text, size_t size) {
    char choices[LINE_SIZE];
    quote_choices(option, choices);
    switch (option->type) {
    case OPTION_WHOLE:
    case OPTION_REAL:
        snprintf(text, size, "{\"type\": \"%s\"}", option->type == OPTION_WHOLE ? "integer" : "number");
        break;
    case OPTION_FLAG:
        snprintf(text, size, "{\"type\": \"boolean\"}");
        break;
    case OPTION_STRING:
    case OPTION_CHOICE:
        if (option->choices)
            snprintf(text, size, "{\"type\": \"string\", \"enum\": [%s]}", choices);
        else
            snprintf(text, size, "{\"type\": \"string\", \"minLength\": 1, \"maxLength\": %zu}", option->size - 1);
        break;
    case OPTION_LIST:
        snprintf(text, size,
                 "{\"type\": \"array\", \"items\": {\"enum\": [%s]}, \"minItems\": 0, \"maxItems\": %d, "
                 "\"uniqueItems\": true}",
                 choices, count_choices(option));
        break;
    case OPTION_COEFFICIENTS:
        snprintf(text, size,
                 "{\"anyOf\": [{\"enum\": [%s]}, {\"type\": \"array\", \"items\": {\"type\": \"array\", \"items\": "
                 "{\"type\": \"number\", \"minimum\": %g, \"maximum\": %g}, \"minItems\": 3, \"maxItems\": 3}, "
                 "\"minItems\": 1, \"maxItems\": %d}]}",
                 choices, option->minimum, option->maximum, COEFFICIENTS_MAX);
        break;
    case OPTION_OVERRIDES:
        snprintf(text, size,
                 "{\"type\": \"object\", \"maxProperties\": %d, \"propertyNames\": {\"minLength\": 1, "
                 "\"maxLength\": %d}, \"additionalProperties\": {\"enum\": [%s]}}",
                 LIST_MAX, NAME_SIZE - 1, choices);
        break;
    }
}

/* Raw: cJSON would round the largest seed. */
static void add_limit(cJSON *schema, const Option *option, const char *name, double limit) {
    char text[32];
    snprintf(text, sizeof text, option->type == OPTION_WHOLE ? "%.0f" : "%g", limit);
    cJSON_AddRawToObject(schema, name, text);
}

static bool is_written_quoted(const Option *option) {
    return option->type == OPTION_STRING || option->type == OPTION_CHOICE || option->type == OPTION_COEFFICIENTS;
}

static cJSON *option_schema(const Option *option) {
    char text[2 * LINE_SIZE], initial[LINE_SIZE];
    describe_schema(option, text, sizeof text);
    cJSON *schema = cJSON_Parse(text);
    if (option->type == OPTION_WHOLE || option->type == OPTION_REAL) {
        add_limit(schema, option, "minimum", option->minimum);
        add_limit(schema, option, "maximum", option->maximum);
    }
    int length = snprintf(text, sizeof text, "%s", option->help);
    if (option->unit) length += snprintf(text + length, sizeof text - (size_t)length, " Unit: %s.", option->unit);
    if (!option->initial)
        snprintf(text + length, sizeof text - (size_t)length, " Default: %s.",
                 option_describe_default(option, initial));
    cJSON_AddStringToObject(schema, "description", text);
    if (option->initial && is_written_quoted(option)) cJSON_AddStringToObject(schema, "default", option->initial);
    if (option->initial && !is_written_quoted(option)) cJSON_AddRawToObject(schema, "default", option->initial);
    return schema;
}

/* Fills an object's schema, if it is new, and returns its "properties". */
static cJSON *open_section_schema(cJSON *schema, const Section *section) {
    cJSON *properties = cJSON_GetObjectItemCaseSensitive(schema, "properties");
    if (properties) return properties;
    cJSON_AddStringToObject(schema, "type", "object");
    cJSON_AddStringToObject(schema, "description", section->help);
    cJSON_AddFalseToObject(schema, "additionalProperties");
    return cJSON_AddObjectToObject(schema, "properties");
}

static cJSON *section_properties(cJSON *root, const Section *section) {
    if (!*section->path) return open_section_schema(root, section);
    cJSON *siblings = section_properties(root, parent_section(section->path));
    return open_section_schema(child_object(siblings, option_key(section->path)), section);
}

void config_print_schema(FILE *out) {
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "$schema", "https://json-schema.org/draft/2020-12/schema");
    cJSON_AddStringToObject(root, "title", "Configuration of train_gpt");
    cJSON *top = section_properties(root, section_find(""));
    cJSON_AddStringToObject(child_object(top, "$schema"), "type", "string");
    for (int i = 0; i < config_option_count; i++) {
        const Option *option = &config_options[i];
        cJSON *properties = section_properties(root, parent_section(option->path));
        cJSON_AddItemToObject(properties, option_key(option->path), option_schema(option));
    }
    char *text = cJSON_Print(root);
    fprintf(out, "%s\n", text ? text : "");
    cJSON_free(text);
    cJSON_Delete(root);
}

/* ---- config.json ------------------------------------------------------------------------------------------------ */

static cJSON *coefficients_to_json(const CoefficientsConfig *coefficients) {
    if (*coefficients->set) return cJSON_CreateString(coefficients->set);
    cJSON *array = cJSON_CreateArray();
    for (int i = 0; i < coefficients->count; i++) {
        cJSON *triple = cJSON_CreateArray();
        for (int j = 0; j < 3; j++) cJSON_AddItemToArray(triple, metrics_number(coefficients->triples[i][j]));
        cJSON_AddItemToArray(array, triple);
    }
    return array;
}

static cJSON *list_to_json(const char (*names)[NAME_SIZE], int count) {
    cJSON *array = cJSON_CreateArray();
    for (int i = 0; i < count; i++) cJSON_AddItemToArray(array, cJSON_CreateString(names[i]));
    return array;
}

static cJSON *overrides_to_json(const RouteOverride *entries, int count, const Option *option) {
    cJSON *object = cJSON_CreateObject();
    for (int i = 0; i < count; i++)
        cJSON_AddStringToObject(object, entries[i].pattern, option->choices[entries[i].optimizer]);
    return object;
}

static cJSON *option_to_json(const Config *config, const Option *option) {
    const void *member = (const char *)config + option->offset;
    const int *count = (const void *)((const char *)config + option->count_offset);
    switch (option->type) {
    case OPTION_WHOLE:
        return metrics_number((double)*(const int64_t *)member);
    case OPTION_REAL:
        return metrics_number(*(const double *)member);
    case OPTION_FLAG:
        return cJSON_CreateBool(*(const bool *)member);
    case OPTION_STRING:
        return cJSON_CreateString(member);
    case OPTION_CHOICE:
        return cJSON_CreateString(option->choices[*(const int *)member]);
    case OPTION_LIST:
        return list_to_json(member, *count);
    case OPTION_COEFFICIENTS:
        return coefficients_to_json(member);
    case OPTION_OVERRIDES:
        return overrides_to_json(member, *count, option);
    }
    return NULL;
}

char *config_to_json(const Config *config) {
    cJSON *root = cJSON_CreateObject();
    for (int i = 0; i < config_option_count; i++) {
        const Option *option = &config_options[i];
        cJSON *section = section_object(root, parent_section(option->path));
        cJSON_AddItemToObject(section, option_key(option->path), option_to_json(config, option));
    }
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    return text;
}
