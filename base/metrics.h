/* metrics.jsonl: one JSON object a line, each with "step". Numbers are finite, or null. */
#pragma once

#include <cjson/cJSON.h>

#include "base/file.h"

/* Adds what is still missing to a line, and waits for it if it must. After a failure the line is dropped. */
typedef Status MetricsFinish(void *context, cJSON *line);

typedef struct {
    FILE *file;
    char path[PATH_SIZE];
    cJSON *waiting; /* the newest line, until `finish` has been called; or NULL */
    MetricsFinish *finish;
    void *context;
} MetricsWriter;

/* Opens run_dir/metrics.jsonl for appending. Lines with a step > `resume_step` are dropped first (a resumed run writes
 * them again), as is a last line that a crash cut short; resume_step 0 starts an empty file. */
Status metrics_open(MetricsWriter *w, const char *run_dir, int64_t resume_step);
void metrics_close(MetricsWriter *w); /* a line that still waits is lost: metrics_flush comes before */

/* Writes the object as one line, flushed, and deletes it. A line that waits is finished and written before it. */
Status metrics_write(MetricsWriter *w, cJSON *line);
/* The same, but the line waits for what `finish` will add, until the next call for this writer. */
Status metrics_write_later(MetricsWriter *w, cJSON *line, MetricsFinish *finish, void *context);
Status metrics_flush(MetricsWriter *w); /* no line waits any more */

/* Number, or null if it is not finite. Digits enough to read the same double (or float) back, and no more. */
void metrics_add_number(cJSON *object, const char *name, double value);
void metrics_add_float(cJSON *object, const char *name, float value);
cJSON *metrics_number(double value); /* for arrays */
cJSON *metrics_float(float value);
