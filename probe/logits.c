/* The census of attention logits; see logits.h. */
#include "probe/logits.h"

#include <math.h>
#include <stdlib.h>

#include "ops/arena.h"
#include "ops/ops.h"

enum { COORDINATES = 3 }; /* row, query, key */

struct LogitProbe {
    Backend *be;
    int64_t layers, heads;
    Arena arena;
    Tensor peak;  /* (layers * heads, PEAKS) f32 */
    Tensor place; /* (layers * heads, PEAKS, COORDINATES) i32 */
    Tensor above; /* (layers * heads) f32 */

    float *host_peak, *host_above;
    int32_t *host_place;
    LogitRecord *records;
};

static void layout(LogitProbe *probe) {
    const int64_t heads = probe->layers * probe->heads;
    probe->peak = arena_take_2d(&probe->arena, DTYPE_F32, heads, PEAKS);
    probe->place = arena_take_3d(&probe->arena, DTYPE_I32, heads, PEAKS, COORDINATES);
    probe->above = arena_take_1d(&probe->arena, DTYPE_F32, heads);
}

static bool allocate_host(LogitProbe *probe) {
    const size_t heads = (size_t)(probe->layers * probe->heads);
    probe->host_peak = calloc(heads * PEAKS, sizeof *probe->host_peak);
    probe->host_place = calloc(heads * PEAKS * COORDINATES, sizeof *probe->host_place);
    probe->host_above = calloc(heads, sizeof *probe->host_above);
    probe->records = calloc(heads, sizeof *probe->records);
    return probe->host_peak && probe->host_place && probe->host_above && probe->records;
}

Status logit_probe_create(LogitProbe **out, int64_t layers, int64_t heads, Backend *be) {
    LogitProbe *probe = calloc(1, sizeof *probe);
    Status status =
        status_error(STATUS_OUT_OF_MEMORY, "no memory for the census of %lld heads; set probe.logits_every=0",
                     (long long)(layers * heads));
    if (!probe) return status;
    *probe = (LogitProbe){.be = be, .layers = layers, .heads = heads, .arena = arena_measure("logit census")};
    layout(probe);
    if (!allocate_host(probe) || FAILED(status, arena_allocate(&probe->arena, be))) {
        logit_probe_free(probe);
        return status;
    }
    layout(probe);
    *out = probe;
    return status;
}

void logit_probe_free(LogitProbe *probe) {
    if (!probe) return;
    arena_free(&probe->arena);
    free(probe->host_peak);
    free(probe->host_place);
    free(probe->host_above);
    free(probe->records);
    free(probe);
}

int64_t logit_probe_bytes(const LogitProbe *probe) {
    return 2 * arena_bytes(&probe->arena) + probe->layers * probe->heads * (int64_t)sizeof *probe->records;
}

void logit_probe_begin(LogitProbe *probe) {
    memset(probe->host_place, 0xff, (size_t)tensor_bytes(probe->place)); /* -1 */
    op_fill(probe->be, probe->peak, -INFINITY);
    op_fill(probe->be, probe->above, 0);
    backend_from_host(probe->be, probe->place, probe->host_place);
}

void logit_probe_add(LogitProbe *probe, int64_t layer, Tensor q, Tensor k, CensusParams p) {
    const int64_t first = layer * probe->heads;
    op_logit_census(probe->be, tensor_slice(probe->peak, 0, first, probe->heads),
                    tensor_slice(probe->place, 0, first, probe->heads),
                    tensor_slice(probe->above, 0, first, probe->heads), q, k, p);
}

void logit_probe_read(LogitProbe *probe) {
    backend_to_host(probe->be, probe->host_peak, probe->peak);
    backend_to_host(probe->be, probe->host_place, probe->place);
    backend_to_host(probe->be, probe->host_above, probe->above);
    for (int64_t i = 0; i < probe->layers * probe->heads; i++) {
        LogitRecord *r = &probe->records[i];
        *r = (LogitRecord){.layer = i / probe->heads, .head = i % probe->heads, .above = (double)probe->host_above[i]};
        for (int which = 0; which < PEAKS; which++) {
            const int32_t *place = probe->host_place + (i * PEAKS + which) * COORDINATES;
            r->peak[which] = (LogitPeak){probe->host_peak[i * PEAKS + which], place[0], place[1], place[2]};
        }
    }
}

const LogitRecord *logit_probe_records(const LogitProbe *probe, int64_t *count) {
    *count = probe->layers * probe->heads;
    return probe->records;
}
