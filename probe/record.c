/* Rows of list fields; see record.h. */
#include "probe/record.h"

#include "base/metrics.h"

static cJSON *add_row(cJSON *list, int64_t layer) {
    cJSON *row = cJSON_CreateObject();
    metrics_add_number(row, "layer", (double)layer);
    cJSON_AddItemToArray(list, row);
    return row;
}

cJSON *record_add_block(cJSON *list, const ParamTable *params, int kind, int64_t layer) {
    cJSON *row = add_row(list, layer);
    cJSON_AddStringToObject(row, "role", role_name(params->kinds[kind].role));
    return row;
}

cJSON *record_add_head(cJSON *list, int64_t layer, int64_t head) {
    cJSON *row = add_row(list, layer);
    metrics_add_number(row, "head", (double)head);
    return row;
}

void record_add_values(cJSON *row, const char *name, const double *values, int64_t count) {
    cJSON *list = cJSON_AddArrayToObject(row, name);
    for (int64_t i = 0; i < count; i++) cJSON_AddItemToArray(list, metrics_float((float)values[i]));
}

void record_add_alignment(cJSON *row, const char *name, Alignment a) {
    record_add_values(row, name, (const double[]){a.left, a.right}, 2);
}
