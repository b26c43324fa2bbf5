/* metrics.jsonl, written one flushed line at a time; see metrics.h. */
#include "base/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* ---- resuming --------------------------------------------------------------------------------------------------- */

/* A line stays if it is whole, is an object with a step, and the step is not after the resumed one. */
static bool line_stays(const char *line, ssize_t length, int64_t resume_step) {
    if (length == 0 || line[length - 1] != '\n') return false;
    cJSON *object = cJSON_ParseWithLength(line, (size_t)length);
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(object, "step");
    bool stays = cJSON_IsNumber(step) && step->valuedouble <= (double)resume_step;
    cJSON_Delete(object);
    return stays;
}

/* Line by line: the file of a long run does not fit in memory. */
static Status copy_lines(FILE *from, FileWriter *to, int64_t resume_step) {
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length = 0;
    Status status = status_ok();
    while (!status.code && (length = getline(&line, &capacity, from)) >= 0)
        if (line_stays(line, length, resume_step)) status = file_writer_put(to, line, length);
    if (!status.code && !feof(from)) status = file_error(to->path, "read");
    free(line);
    return status;
}

/* Through a temporary file: a crash in the middle leaves the old lines in place. */
static Status drop_lines_after(const char *path, int64_t resume_step) {
    FileWriter to;
    FILE *from = fopen(path, "r");
    if (!from) return errno == ENOENT ? status_ok() : file_error(path, "open");
    Status status = file_writer_open(&to, path);
    if (!status.code && !FAILED(status, copy_lines(from, &to, resume_step))) status = file_writer_finish(&to);
    file_writer_abandon(&to);
    fclose(from);
    return status;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

Status metrics_open(MetricsWriter *w, const char *run_dir, int64_t resume_step) {
    MetricsWriter fresh = {0};
    Status status = path_join(fresh.path, run_dir, "metrics.jsonl");
    if (!status.code && resume_step > 0) status = drop_lines_after(fresh.path, resume_step);
    if (status.code) return status;
    fresh.file = fopen(fresh.path, resume_step > 0 ? "a" : "w");
    if (!fresh.file) return file_error(fresh.path, "open");
    *w = fresh;
    return status;
}

void metrics_close(MetricsWriter *w) {
    if (w->file) fclose(w->file);
    cJSON_Delete(w->waiting);
    w->file = NULL;
    w->waiting = NULL;
}

static Status write_line(MetricsWriter *w, cJSON *line) {
    char *text = cJSON_PrintUnformatted(line);
    cJSON_Delete(line);
    if (!text) return NO_MEMORY("%s: no memory for a line", w->path);
    Status status = status_ok();
    if (fprintf(w->file, "%s\n", text) < 0 || fflush(w->file) != 0) status = file_error(w->path, "write");
    cJSON_free(text);
    return status;
}

Status metrics_flush(MetricsWriter *w) {
    cJSON *line = w->waiting;
    if (!line) return status_ok();
    w->waiting = NULL;
    Status status = w->finish(w->context, line);
    if (!status.code) return write_line(w, line);
    cJSON_Delete(line);
    return status;
}

Status metrics_write(MetricsWriter *w, cJSON *line) {
    Status status = metrics_flush(w);
    if (!status.code) return write_line(w, line);
    cJSON_Delete(line);
    return status;
}

Status metrics_write_later(MetricsWriter *w, cJSON *line, MetricsFinish *finish, void *context) {
    Status status = metrics_flush(w);
    w->waiting = line;
    w->finish = finish;
    w->context = context;
    return status;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

/* cJSON prints up to 17 digits and compares with a tolerance; these are the fewest digits that are read back as the
 * same double, or float. Whole numbers come without an exponent. */
static cJSON *shortest_number(double value, bool is_float) {
    char text[32];
    if (!isfinite(value)) return cJSON_CreateNull();
    bool whole = value == floor(value) && fabs(value) <= 0x1p53, same = false;
    if (whole) snprintf(text, sizeof text, "%.0f", value);
    for (int digits = 1; !whole && !same && digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        same = (is_float ? (double)strtof(text, NULL) : strtod(text, NULL)) == value;
    }
    return cJSON_CreateRaw(text);
}

cJSON *metrics_number(double value) {
    return shortest_number(value, false);
}

cJSON *metrics_float(float value) {
    return shortest_number((double)value, true);
}

void metrics_add_number(cJSON *object, const char *name, double value) {
    cJSON_AddItemToObject(object, name, metrics_number(value));
}

void metrics_add_float(cJSON *object, const char *name, float value) {
    cJSON_AddItemToObject(object, name, metrics_float(value));
}
