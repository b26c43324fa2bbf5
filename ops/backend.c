/* Closing backends, their memory, the sticky failure, peak rate and profile; see backend.h. */
#include "ops/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"

const char *const op_names[OP_COUNT] = {
#define X(ID, slot, need) [OP_##ID] = #slot,
    OP_LIST(X)
#undef X
};

const PieceSizes host_pieces = {.optimizer_bytes = 16 << 20, .logits = 32 << 20};
/* All layers of a model of 124 M parameters in one pass; a head whose gradient, read and written for each piece, is no
 * longer what the time goes into. */
const PieceSizes device_pieces = {.optimizer_bytes = 256 << 20, .logits = 256 << 20};

/* ---- life ------------------------------------------------------------------------------------------------------- */

Status backend_check_slots(const Backend *be) {
    enum { OPTIONAL, DEFAULT, REQUIRED };
    const struct {
        const char *name;
        bool missing;
    } slots[] = {
#define X(ID, slot, need) {#slot, need == REQUIRED && !be->ops.slot},
        OP_LIST(X)
#undef X
#define X(slot, need, type, arguments) {#slot, need == REQUIRED && !be->ops.slot},
            SLOT_LIST(X)
#undef X
    };
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        if (slots[i].missing)
            return status_error(STATUS_DEVICE, "backend %s does not fill the required slot %s", be->name,
                                slots[i].name);
    return status_ok();
}

void backend_close(Backend *be) {
    if (be->scratch) backend_free(be, be->scratch, be->scratch_bytes);
    if (be->ops.close) be->ops.close(be);
    *be = (Backend){0};
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

/* Activations are most of a run's memory, and the micro-batch changes nothing else: it helps whatever does not fit. */
static const char general_remedy[] = "lower train.micro_batch, model.context or model.width";

/* Of host memory, from the kernel; -1 where it does not say. */
static int64_t host_free_bytes(void) {
    long long kilobytes = -1;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "r");
    if (!file) return -1;
    while (kilobytes < 0 && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %lld kB", &kilobytes) != 1) kilobytes = -1;
    fclose(file);
    return kilobytes < 0 ? -1 : (int64_t)kilobytes * 1024;
}

static const char *describe_bytes(int64_t bytes, char *buffer, size_t size) {
    if (bytes < 0)
        snprintf(buffer, size, "an unknown amount");
    else if (bytes < 1 << 20)
        snprintf(buffer, size, "%lld bytes", (long long)bytes);
    else if (bytes < 1 << 30)
        snprintf(buffer, size, "%.2f MiB", (double)bytes / (1 << 20));
    else
        snprintf(buffer, size, "%.2f GiB", (double)bytes / (1 << 30));
    return buffer;
}

static Status out_of_memory(Backend *be, int64_t bytes, const char *purpose, const char *remedy) {
    char asked[32], left[32], planned[32], of_planned[64] = "";
    int64_t free_now = be->ops.free_bytes ? be->ops.free_bytes(be) : host_free_bytes();
    if (be->planned_bytes > 0)
        snprintf(of_planned, sizeof of_planned, " of %s that the run plans in all",
                 describe_bytes(be->planned_bytes, planned, sizeof planned));
    return NO_MEMORY("out of memory on device %s: %s needs %s%s, and %s is free; %s (--dry-run shows the plan)",
                     be->name, purpose, describe_bytes(bytes, asked, sizeof asked), of_planned,
                     describe_bytes(free_now, left, sizeof left), remedy ? remedy : general_remedy);
}

Status backend_alloc(Backend *be, void **memory, int64_t bytes, const char *purpose, const char *remedy) {
    CHECK(bytes >= 0, "%lld bytes for %s", (long long)bytes, purpose);
    *memory = be->ops.alloc(be, bytes);
    if (*memory) return status_ok();
    return be->failure.code ? be->failure : out_of_memory(be, bytes, purpose, remedy);
}

void backend_free(Backend *be, void *memory, int64_t bytes) {
    if (memory) be->ops.free(be, memory, bytes);
}

int64_t backend_scratch_bytes(const Backend *be, OpLimits limits) {
    return be->ops.scratch_bytes ? be->ops.scratch_bytes(be, &limits) : 0;
}

Status backend_reserve(Backend *be, OpLimits limits) {
    CHECK(!be->scratch, "scratch of %s is reserved already", be->name);
    int64_t bytes = backend_scratch_bytes(be, limits);
    if (bytes == 0) return status_ok();
    Status status = backend_alloc(be, &be->scratch, bytes, "scratch", "lower train.micro_batch or model.context");
    if (!status.code) be->scratch_bytes = bytes;
    return status;
}

/* After a failure all bits are set, a NaN in every float dtype: nobody can take stale memory for a result. */
void backend_to_host(Backend *be, void *host, Tensor src) {
    CHECK(tensor_is_contiguous(src), "a strided view cannot be read back; copy it first");
    be->waits++;
    if (!be->failure.code) be->ops.to_host(be, host, src);
    if (be->failure.code) memset(host, 0xff, (size_t)tensor_bytes(src));
}

void backend_from_host(Backend *be, Tensor dst, const void *host) {
    CHECK(tensor_is_contiguous(dst), "a strided view cannot be written from host memory; copy it afterwards");
    if (!be->failure.code) be->ops.from_host(be, dst, host);
}

/* ---- devices that run asynchronously ----------------------------------------------------------------------------- */

bool backend_is_asynchronous(const Backend *be) {
    return be->ops.mark != NULL;
}

void *backend_alloc_host(Backend *be, int64_t bytes) {
    return be->ops.alloc_host ? be->ops.alloc_host(be, bytes) : malloc((size_t)bytes);
}

void backend_free_host(Backend *be, void *memory) {
    if (!be->ops.free_host)
        free(memory);
    else if (memory)
        be->ops.free_host(be, memory);
}

void backend_to_host_later(Backend *be, void *host, Tensor src) {
    CHECK(tensor_is_contiguous(src), "a strided view cannot be read back; copy it first");
    if (be->failure.code)
        memset(host, 0xff, (size_t)tensor_bytes(src));
    else if (be->ops.to_host_later)
        be->ops.to_host_later(be, host, src);
    else
        be->ops.to_host(be, host, src);
}

/* At once after a failure, too: whoever waits for the call must not wait forever. */
void backend_call_later(Backend *be, void (*function)(void *), void *argument) {
    if (be->ops.call_later && !be->failure.code)
        be->ops.call_later(be, function, argument);
    else
        function(argument);
}

void backend_mark(Backend *be, int mark) {
    CHECK(mark >= 0 && mark < MARK_COUNT, "mark %d", mark);
    if (!be->ops.mark)
        be->marks[mark] = clock_seconds();
    else if (!be->failure.code)
        be->ops.mark(be, mark);
}

double backend_elapsed(Backend *be, int from, int to) {
    if (!be->ops.elapsed) return be->marks[to] - be->marks[from];
    return be->failure.code ? (double)NAN : be->ops.elapsed(be, from, to);
}

/* ---- failures --------------------------------------------------------------------------------------------------- */

void backend_fail(Backend *be, const char *op, Status failure) {
    if (be->failure.code) return;
    be->failed_op = op;
    be->failure = status_error(failure.code, "%s on device %s: %s", op, be->name, failure.message);
}

Status backend_sync(Backend *be) {
    be->waits++;
    Status status = be->ops.sync(be);
    if (status.code) backend_fail(be, "sync", status);
    return be->failure;
}

/* ---- measurements ----------------------------------------------------------------------------------------------- */

/* Calls the slots, so that the measurement does not show in the profile and triggers no fault meant for training. The
 * first product is not counted: it pays for code generation and for waking the threads. */
static double best_rate(Backend *be, Tensor out, Tensor a, Tensor b) {
    int64_t n = out.shape[0];
    double flops = 2.0 * (double)n * (double)n * (double)n, best = 0, begin = clock_seconds();
    for (int i = 0; i < 4 || (i < 1000 && clock_seconds() - begin < 0.1); i++) {
        double start = clock_seconds();
        be->ops.matmul(be, out, a, b, tensor_none(), (MatmulScale){.alpha = 1});
        if (backend_sync(be).code) return 0;
        double rate = flops / (clock_seconds() - start);
        if (i > 0 && rate > best) best = rate;
    }
    return best;
}

double backend_measure_peak(Backend *be) {
    int64_t n = be->peak_size, bytes = 3 * n * n * dtype_size(be->compute_dtype);
    void *memory = NULL;
    if (backend_alloc(be, &memory, bytes, "the peak measurement", NULL).code) return 0;
    Tensor all = tensor_3d(memory, be->compute_dtype, 3, n, n);
    be->ops.fill(be, all, 0.5f);
    double rate = best_rate(be, tensor_index(all, 0), tensor_index(all, 1), tensor_index(all, 2));
    backend_free(be, memory, bytes);
    return rate;
}

typedef struct {
    const char *name;
    OpTimer timer;
} ProfileRow;

static int slower_first(const void *a, const void *b) {
    double x = ((const ProfileRow *)a)->timer.seconds, y = ((const ProfileRow *)b)->timer.seconds;
    return (x < y) - (x > y);
}

void backend_print_profile(const Backend *be) {
    ProfileRow rows[OP_COUNT];
    double total = 0;
    for (int i = 0; i < OP_COUNT; i++) {
        rows[i] = (ProfileRow){.name = op_names[i], .timer = be->timers[i]};
        total += be->timers[i].seconds;
    }
    qsort(rows, OP_COUNT, sizeof rows[0], slower_first);
    printf("%-20s %10s %10s %7s\n", "op", "calls", "seconds", "share");
    for (int i = 0; i < OP_COUNT; i++) {
        OpTimer timer = rows[i].timer;
        double share = total > 0 ? 100 * timer.seconds / total : 0;
        if (timer.calls == 0) continue;
        printf("%-20s %10lld %10.3f %6.1f%%\n", rows[i].name, (long long)timer.calls, timer.seconds, share);
    }
}
