/* What one option means for another. Private to base/: config.c reads options one by one, config_rules.c comes after.
 *
 * A draft remembers where each option was set, so that an error about two options can still name a line, and a default
 * bends only where nobody set the option.
 */
#pragma once

#include "base/config_options.h"

/* Where an option was set: a line of the file if positive. */
enum { FROM_DEFAULT = 0, FROM_COMMAND_LINE = -1 };

typedef struct {
    Config config;
    const char *file;         /* NULL: none */
    int origins[OPTION_MAX];  /* by row of config_options */
    int retired[RETIRED_MAX]; /* by row of config_retired */
} ConfigDraft;

/* "configs/x.json:12" or "command line", into a buffer of PLACE_SIZE. Returns it. */
enum { PLACE_SIZE = PATH_SIZE + 16 };
const char *config_format_place(const ConfigDraft *d, int origin, char *buffer);

/* Works out the options that are computed of others: kv_heads, mlp_width, micro_batch, ... */
void config_resolve(ConfigDraft *d);

/* STATUS_BAD_INPUT for what cannot be combined. */
Status config_check(const ConfigDraft *d);
