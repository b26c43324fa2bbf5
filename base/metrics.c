/* metrics.jsonl, written one flushed line at a time; see metrics.h. */
#include "base/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

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
static Status copy_lines(FILE *from, FILE *to, const char *path, int64_t resume_step) {
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length = 0;
    Status status = status_ok();
    while ((length = getline(&line, &capacity, from)) >= 0) {
        if (!line_stays(line, length, resume_step)) continue;
        if (fwrite(line, 1, (size_t)length, to) != (size_t)length) break;
    }
    if (ferror(to)) {
        status = file_error(path, "rewrite");
    } else if (!feof(from)) {
        status = file_error(path, "read");
    }
    free(line);
    return status;
}

/* Through a temporary file: a crash in the middle leaves the old lines in place. */
static Status drop_lines_after(const char *path, int64_t resume_step) {
    char temporary[sizeof((MetricsWriter *)0)->path + sizeof ".tmp"];
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    FILE *from = fopen(path, "r");
    if (!from) return errno == ENOENT ? status_ok() : file_error(path, "open");
    FILE *to = fopen(temporary, "w");
    if (!to) {
        fclose(from);
        return file_error(temporary, "create");
    }
    Status status = copy_lines(from, to, path, resume_step);
    if (!status.code && (fflush(to) != 0 || fsync(fileno(to)) != 0)) status = file_error(temporary, "write");
    fclose(from);
    if (fclose(to) != 0 && !status.code) status = file_error(temporary, "write");
    if (!status.code && rename(temporary, path) != 0) status = file_error(path, "replace");
    if (status.code) unlink(temporary);
    return status;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

Status metrics_open(MetricsWriter *w, const char *run_dir, int64_t resume_step) {
    MetricsWriter fresh = {0};
    int length = snprintf(fresh.path, sizeof fresh.path, "%s/metrics.jsonl", run_dir);
    if (length < 0 || (size_t)length >= sizeof fresh.path)
        return status_error(STATUS_BAD_INPUT, "%s/metrics.jsonl: the path is longer than %zu bytes", run_dir,
                            sizeof fresh.path - 1);
    if (resume_step > 0) {
        Status status = drop_lines_after(fresh.path, resume_step);
        if (status.code) return status;
    }
    fresh.file = fopen(fresh.path, resume_step > 0 ? "a" : "w");
    if (!fresh.file) return file_error(fresh.path, "open");
    *w = fresh;
    return status_ok();
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
    if (!text) return status_error(STATUS_OUT_OF_MEMORY, "%s: no memory for a line", w->path);
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

static double parse_double(const char *text) {
    return strtod(text, NULL);
}

static double parse_float(const char *text) {
    return (double)strtof(text, NULL);
}

/* cJSON prints up to 17 digits and compares with a tolerance; these are the fewest digits that `parse` reads back as
 * the same value. Whole numbers come without an exponent. NULL: not finite. */
static const char *format_number(char *buffer, size_t size, double value, double (*parse)(const char *)) {
    if (!isfinite(value)) return NULL;
    if (value == floor(value) && fabs(value) < 1e15) {
        snprintf(buffer, size, "%.0f", value);
        return buffer;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(buffer, size, "%.*g", digits, value);
        if (parse(buffer) == value) break;
    }
    return buffer;
}

cJSON *metrics_number(double value) {
    char buffer[32];
    const char *text = format_number(buffer, sizeof buffer, value, parse_double);
    return text ? cJSON_CreateRaw(text) : cJSON_CreateNull();
}

void metrics_add_number(cJSON *object, const char *name, double value) {
    cJSON_AddItemToObject(object, name, metrics_number(value));
}

cJSON *metrics_float(float value) {
    char buffer[32];
    const char *text = format_number(buffer, sizeof buffer, (double)value, parse_float);
    return text ? cJSON_CreateRaw(text) : cJSON_CreateNull();
}

void metrics_add_float(cJSON *object, const char *name, float value) {
    cJSON_AddItemToObject(object, name, metrics_float(value));
}
