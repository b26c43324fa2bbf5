/* metrics.jsonl: one JSON object a line, each with "step". Numbers are finite, or null. */
#pragma once

#include <cjson/cJSON.h>
#include <stdio.h>

#include "base/status.h"

typedef struct {
    FILE *file;
    char path[1100];
} MetricsWriter;

/* Sees a line that stays in the file, in the file's order. */
typedef void MetricsReader(void *context, const cJSON *line);

/* Opens run_dir/metrics.jsonl for appending. Lines with a step > `resume_step` are dropped first (a resumed run writes
 * them again), as is a last line that a crash cut short; resume_step 0 starts an empty file. reader may be NULL. */
Status metrics_open(MetricsWriter *w, const char *run_dir, int64_t resume_step, MetricsReader *reader, void *context);
void metrics_close(MetricsWriter *w);

/* Writes the object as one line, flushed, and deletes it. */
Status metrics_write(MetricsWriter *w, cJSON *line);

/* Number, or null if it is not finite. Digits enough to read the same double (or float) back, and no more. */
void metrics_add_number(cJSON *object, const char *name, double value);
void metrics_add_float(cJSON *object, const char *name, float value);
cJSON *metrics_number(double value); /* for arrays */
cJSON *metrics_float(float value);
