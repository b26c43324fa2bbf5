/* Rows of the list fields that probes write into a line of metrics.jsonl. */
#pragma once

#include <cjson/cJSON.h>

#include "model/params.h"
#include "probe/triples.h"

/* A new row, with the layer and role of its block. */
cJSON *record_add_block(cJSON *list, const ParamTable *params, int kind, int64_t layer);
/* A new row, with layer and head. */
cJSON *record_add_head(cJSON *list, int64_t layer, int64_t head);

void record_add_values(cJSON *row, const char *name, const double *values, int64_t count);
void record_add_alignment(cJSON *row, const char *name, Alignment a); /* [left, right] */
