/* Printing, storing and comparing results; see table.h. */
#include "bench/table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/metrics.h"

/* A ratio may fall by this much, and a cost may grow by it and by a point, before it counts as a regression: above the
 * differences between runs on a quiet machine, below those that matter. */
static const double tolerance = 0.15, cost_slack = 0.01;

Status table_open(Table *t, const char *json_path) {
    *t = (Table){0};
    if (!json_path) return status_ok();
    t->json = fopen(json_path, "w");
    return t->json ? status_ok() : status_error(STATUS_IO, "%s cannot be written", json_path);
}

void table_close(Table *t) {
    if (t->json) fclose(t->json);
    t->json = NULL;
}

/* ---- printing --------------------------------------------------------------------------------------------------- */

static void write_line(Table *t, cJSON *line) {
    char *text = t->json ? cJSON_PrintUnformatted(line) : NULL;
    if (text) fprintf(t->json, "%s\n", text), fflush(t->json);
    free(text);
    cJSON_Delete(line);
}

void table_describe_machine(Table *t, const char *processor, const char *backend, double load) {
    char date[32];
    const time_t now = time(NULL);
    strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", localtime(&now));
    printf("%s   %s   %s   load %.2f\n", date, processor, backend, load);
    if (load > 0.5) printf("the machine is busy: absolute numbers are low, and ratios uncertain\n");
    printf("%-14s %-22s %8s %-18s %9s %6s\n", "row", "case", "ratio", "of", "goal", "spread");

    cJSON *line = cJSON_CreateObject();
    cJSON_AddStringToObject(line, "date", date);
    cJSON_AddStringToObject(line, "processor", processor);
    cJSON_AddStringToObject(line, "backend", backend);
    metrics_add_number(line, "load", load);
    write_line(t, line);
}

static void print_optional(const char *format, int width, double value) {
    if (isnan(value))
        printf(" %*s", width, "");
    else
        printf(format, width, value);
}

static bool goal_is_met(const Result *r) {
    return r->goal.kind == AT_LEAST ? r->ratio >= r->goal.value : r->ratio <= r->goal.value;
}

static void print_result(const Result *r) {
    char goal[24] = "";
    if (!isnan(r->goal.value))
        snprintf(goal, sizeof goal, "%s%g %c", r->goal.kind == AT_LEAST ? ">=" : "<=", r->goal.value,
                 goal_is_met(r) ? '+' : '-');
    printf("%-14s %-22s", r->row, r->name);
    print_optional(" %*.4f", 8, r->ratio);
    printf(" %-18s %9s", r->of ? r->of : "", goal);
    print_optional(" %*.2f", 6, r->spread);
    for (int i = 0; i < INFO_MAX && r->info[i].name; i++)
        printf("%s%.4g %s", i ? ", " : "   ", r->info[i].value, r->info[i].name);
    printf("\n");
    fflush(stdout);
}

static const char *bound_name(GoalKind kind) {
    return kind == AT_LEAST ? "at_least" : "at_most";
}

void table_add(Table *t, Result r) {
    CHECK(t->count < RESULTS_MAX, "%d results", t->count);
    t->results[t->count++] = r;
    print_result(&r);

    cJSON *line = cJSON_CreateObject();
    cJSON_AddStringToObject(line, "row", r.row);
    cJSON_AddStringToObject(line, "case", r.name);
    metrics_add_number(line, "ratio", r.ratio);
    if (r.of) cJSON_AddStringToObject(line, "of", r.of);
    if (!isnan(r.goal.value)) metrics_add_number(line, bound_name(r.goal.kind), r.goal.value);
    metrics_add_number(line, "spread", r.spread);
    for (int i = 0; i < INFO_MAX && r.info[i].name; i++) metrics_add_number(line, r.info[i].name, r.info[i].value);
    write_line(t, line);
}

/* ---- stored ratios ---------------------------------------------------------------------------------------------- */

Status table_store_ratios(const Table *t, const char *path) {
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < t->count; i++) {
        const Result *r = &t->results[i];
        if (isnan(r->ratio) || r->goal.kind == NOT_COMPARED) continue;
        const double bound =
            r->goal.kind == AT_LEAST ? r->ratio * (1 - tolerance) : r->ratio * (1 + tolerance) + cost_slack;
        cJSON *entry = cJSON_CreateObject();
        cJSON_AddStringToObject(entry, "row", r->row);
        cJSON_AddStringToObject(entry, "case", r->name);
        metrics_add_number(entry, "ratio", round(1e4 * r->ratio) / 1e4);
        metrics_add_number(entry, bound_name(r->goal.kind), round(1e4 * bound) / 1e4);
        cJSON_AddItemToArray(list, entry);
    }
    char *text = cJSON_Print(list);
    cJSON_Delete(list);
    if (!text) return status_error(STATUS_OUT_OF_MEMORY, "no memory to write %s", path);
    Status status = file_write(path, text, (int64_t)strlen(text));
    free(text);
    return status;
}

static const Result *find_result(const Table *t, const cJSON *entry) {
    const char *row = cJSON_GetStringValue(cJSON_GetObjectItem(entry, "row"));
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(entry, "case"));
    for (int i = 0; i < t->count && row && name; i++)
        if (!strcmp(t->results[i].row, row) && !strcmp(t->results[i].name, name)) return &t->results[i];
    return NULL;
}

/* Prints the line; true if the ratio is within its bound. */
static bool check_entry(const Table *t, const cJSON *entry) {
    const Result *r = find_result(t, entry);
    const cJSON *least = cJSON_GetObjectItem(entry, bound_name(AT_LEAST));
    const cJSON *most = cJSON_GetObjectItem(entry, bound_name(AT_MOST));
    const double ratio = r ? r->ratio : nan(""), bound = cJSON_GetNumberValue(least ? least : most);
    const bool good = least ? ratio >= bound : ratio <= bound; /* false for NaN */
    printf("%-7s %-14s %-22s %8.4f   stored %8.4f   %s %8.4f\n", good ? "ok" : "FAILED",
           cJSON_GetStringValue(cJSON_GetObjectItem(entry, "row")),
           cJSON_GetStringValue(cJSON_GetObjectItem(entry, "case")), ratio,
           cJSON_GetNumberValue(cJSON_GetObjectItem(entry, "ratio")), least ? "at least" : "at most ", bound);
    return good;
}

Status table_check_ratios(const Table *t, const char *path, int *regressions) {
    char *text;
    int64_t size;
    *regressions = 0;
    Status status = file_read(path, 1 << 20, &text, &size);
    if (status.code) return status;
    cJSON *list = cJSON_Parse(text);
    free(text);
    if (!cJSON_IsArray(list)) status = status_error(STATUS_BAD_INPUT, "%s is not a JSON list of ratios", path);
    const cJSON *entry;
    cJSON_ArrayForEach(entry, list) *regressions += !check_entry(t, entry);
    cJSON_Delete(list);
    return status;
}
