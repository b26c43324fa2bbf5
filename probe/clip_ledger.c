/* The ledger of QK-Clip; see clip_ledger.h. */
#include "probe/clip_ledger.h"

#include <stdlib.h>

Status clip_ledger_init(ClipLedger *ledger, int64_t layers, int64_t heads) {
    ClipEntry *entries = calloc((size_t)(layers * heads), sizeof *entries);
    if (!entries)
        return status_error(STATUS_OUT_OF_MEMORY, "no memory for the clips of %lld heads", (long long)(layers * heads));
    for (int64_t i = 0; i < layers * heads; i++) entries[i].gamma = 1;
    *ledger = (ClipLedger){.layers = layers, .heads = heads, .entries = entries};
    return status_ok();
}

void clip_ledger_free(ClipLedger *ledger) {
    free(ledger->entries);
    *ledger = (ClipLedger){0};
}

int64_t clip_ledger_bytes(const ClipLedger *ledger) {
    return ledger->layers * ledger->heads * (int64_t)sizeof *ledger->entries;
}

void clip_ledger_note(ClipLedger *ledger, int64_t step, int64_t layer, int64_t head, float gamma) {
    ClipEntry *entry = &ledger->entries[layer * ledger->heads + head];
    if (entry->times++ == 0) entry->first = step;
    entry->last = step;
    entry->gamma *= (double)gamma;
}

/* A whole number in [0, end), or -1. */
static int64_t index_of(const cJSON *object, const char *name, int64_t end) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < (double)end)) return -1;
    return (int64_t)item->valuedouble;
}

void clip_ledger_read_line(void *context, const cJSON *line) {
    ClipLedger *ledger = context;
    const cJSON *clipped = cJSON_GetObjectItemCaseSensitive(line, "clipped"), *record;
    const int64_t step = index_of(line, "step", INT64_MAX / 2);
    if (step < 0) return;
    cJSON_ArrayForEach(record, clipped) {
        const int64_t layer = index_of(record, "layer", ledger->layers), head = index_of(record, "head", ledger->heads);
        const cJSON *gamma = cJSON_GetObjectItemCaseSensitive(record, "gamma");
        if (layer < 0 || head < 0 || !cJSON_IsNumber(gamma)) continue;
        clip_ledger_note(ledger, step, layer, head, (float)gamma->valuedouble);
    }
}

double clip_ledger_share(const ClipLedger *ledger) {
    int64_t clipped = 0;
    for (int64_t i = 0; i < ledger->layers * ledger->heads; i++) clipped += ledger->entries[i].times > 0;
    return (double)clipped / (double)(ledger->layers * ledger->heads);
}
