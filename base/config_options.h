/* The table of options: one row per key, from which everything else about keys follows.
 *
 * config.c reads by it, config_print.c prints --help, --schema and config.json from it, and its test
 * docs/configuration.md. A row's defaults are written as a user would write them after key= on the command line, and
 * are read the same way.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/config.h"

typedef enum {
    OPTION_WHOLE,        /* int64_t */
    OPTION_REAL,         /* double */
    OPTION_FLAG,         /* bool */
    OPTION_STRING,       /* char[size]; with choices: one of them */
    OPTION_CHOICE,       /* enum whose values index `choices` */
    OPTION_LIST,         /* char[LIST_MAX][NAME_SIZE] of choices, and a count */
    OPTION_COEFFICIENTS, /* CoefficientsConfig: one of the choices, or triples */
    OPTION_OVERRIDES,    /* RouteOverride[LIST_MAX], and a count: pattern -> choice */
} OptionType;

typedef struct {
    OptionType type;
    const char *path;           /* "model.width": the member of Config, and the JSON key */
    size_t offset, size;        /* of the member */
    size_t count_offset;        /* lists and overrides: of the int that counts their entries */
    const char *initial;        /* default; NULL: it comes from model.preset */
    const char *presets[2];     /* the default of each Preset ... */
    bool computed;              /* ... or, when resolve() works it out of other options, what it is in words */
    double minimum, maximum;    /* both included */
    const char *const *choices; /* NULL-terminated */
    const char *unit, *help;
} Option;

/* Sections are the objects that options lie in; the options of one section follow each other in the table. */
typedef struct {
    const char *path; /* "": the top level */
    const char *help;
} Section;

/* A key that has gone. Files of older versions may still hold it: any value is read and ignored, and Config.note says
 * so. It is not written, and stands in no help or schema. */
typedef struct {
    const char *path, *reason; /* "probe.x", "since 0.2 the record y shows it" */
} RetiredKey;

extern const Option config_options[];
extern const int config_option_count;
extern const RetiredKey config_retired[];
extern const int config_retired_count;
extern const Section config_sections[];
extern const int config_section_count;

enum { OPTION_MAX = 160, RETIRED_MAX = 16 }; /* bounds of the counts, for arrays beside the tables */

/* Rows by path; NULL: there is none. */
const Option *option_find(const char *path);
const Section *section_find(const char *path);
const RetiredKey *option_find_retired(const char *path);

/* "model" of "model.width", "" of "name": the length of the section's path. The key itself: "width". */
int option_section_length(const char *path);
const char *option_key(const char *path);

/* ", "-separated choices into a buffer of LINE_SIZE. Returns it. */
enum { LINE_SIZE = 512 };
char *option_join_choices(const Option *option, char *buffer);

/* What a user may have meant; NULL: nothing is near. A key of the same section comes alone, another with its path. */
const char *option_nearest_path(const char *typed);
const char *option_nearest_choice(const Option *option, const char *typed);

/* In words, into a buffer of LINE_SIZE, which is returned: "whole number, 1 to 1024"; "from the preset (true)". */
const char *option_describe_values(const Option *option, char *buffer);
const char *option_describe_default(const Option *option, char *buffer);
bool option_is_in(const Option *option, const Section *section); /* not in a section of it */
