/* Opening and closing backends, their memory, the sticky failure, peak rate and profile; see backend.h. */
#include "core/backend.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/clock.h"

const char *const op_names[OP_COUNT] = {
#define X(ID, slot) [OP_##ID] = #slot,
    OP_LIST(X)
#undef X
};

typedef struct {
    const char *name;
    Status (*open)(Backend *, BackendRequest);
    bool automatic;    /* "auto" considers it */
    int64_t peak_size; /* n of the n x n product that measures the peak rate: large, yet well below 0.1 s */
} Implementation;

/* Fastest first. */
static const Implementation implementations[] = {
    {"cuda", cuda_backend_open, true, 2048},
    {"cpu", cpu_backend_open, true, 1024},
    {"ref", ref_backend_open, false, 96},
};
enum { IMPLEMENTATIONS = sizeof implementations / sizeof implementations[0] };

static const Implementation *find_implementation(const char *name) {
    for (int i = 0; i < IMPLEMENTATIONS; i++)
        if (!strcmp(implementations[i].name, name)) return &implementations[i];
    return NULL;
}

/* ---- opening and closing ---------------------------------------------------------------------------------------- */

static int usable_cpus(void) {
    cpu_set_t cpus;
    long count = sched_getaffinity(0, sizeof cpus, &cpus) ? sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&cpus);
    return count > 0 ? (int)count : 1;
}

static Status open_one(Backend *be, const Implementation *implementation, BackendRequest request) {
    *be = (Backend){.fault_countdown = -1};
    Status status = implementation->open(be, request);
    if (status.code) *be = (Backend){0};
    return status;
}

static Status open_fastest(Backend *be, BackendRequest request, char *note, int64_t size) {
    Status status = status_ok();
    for (int i = 0; i < IMPLEMENTATIONS; i++) {
        if (!implementations[i].automatic) continue;
        if (!FAILED(status, open_one(be, &implementations[i], request))) return status;
        bool worth_saying = implementations[i].open != cuda_backend_open || cuda_is_built;
        if (worth_saying) snprintf(note, (size_t)size, "%s is not used: %s", implementations[i].name, status.message);
    }
    return status;
}

Status backend_open(Backend *be, BackendRequest request, char *note, int64_t size) {
    CHECK(request.device && request.precision && size > 0, "device %p, precision %p, %lld bytes of note",
          (const void *)request.device, (const void *)request.precision, (long long)size);
    *be = (Backend){0};
    note[0] = '\0';
    bool automatic = !strcmp(request.device, "auto");
    const Implementation *implementation = find_implementation(request.device);
    if (!automatic && !implementation)
        return status_error(STATUS_BAD_INPUT, "device \"%s\" is unknown; use auto, cuda, cpu or ref", request.device);
    const char *precision = request.precision;
    if (strcmp(precision, "auto") && strcmp(precision, "fp32") && strcmp(precision, "bf16"))
        return status_error(STATUS_BAD_INPUT, "precision \"%s\" is unknown; use auto, fp32 or bf16", precision);
    if (request.threads < 0)
        return status_error(STATUS_BAD_INPUT, "threads is %d; use 0 for all cores, or a count", request.threads);

    if (request.threads == 0) request.threads = usable_cpus();
    return automatic ? open_fastest(be, request, note, size) : open_one(be, implementation, request);
}

void backend_close(Backend *be) {
    if (be->scratch) backend_free(be, be->scratch, be->scratch_bytes);
    if (be->ops.close) be->ops.close(be);
    *be = (Backend){0};
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

Status backend_alloc(Backend *be, void **memory, int64_t bytes, const char *purpose) {
    CHECK(bytes >= 0, "%lld bytes for %s", (long long)bytes, purpose);
    *memory = be->ops.alloc(be, bytes);
    if (*memory) return status_ok();
    return status_error(STATUS_OUT_OF_MEMORY,
                        "out of memory on device %s: %s needs %lld bytes (%.2f GiB); use a smaller model, context or "
                        "micro-batch",
                        be->name, purpose, (long long)bytes, (double)bytes / (1 << 30));
}

void backend_free(Backend *be, void *memory, int64_t bytes) {
    if (memory) be->ops.free(be, memory, bytes);
}

int64_t backend_scratch_bytes(const Backend *be, OpLimits limits) {
    return be->ops.scratch_bytes(be, &limits);
}

Status backend_reserve(Backend *be, OpLimits limits) {
    CHECK(!be->scratch, "scratch of %s is reserved already", be->name);
    int64_t bytes = backend_scratch_bytes(be, limits);
    if (bytes == 0) return status_ok();
    Status status = backend_alloc(be, &be->scratch, bytes, "scratch");
    if (!status.code) be->scratch_bytes = bytes;
    return status;
}

/* After a failure all bits are set, a NaN in every float dtype: nobody can take stale memory for a result. */
void backend_to_host(Backend *be, void *host, Tensor src) {
    CHECK(tensor_is_contiguous(src), "a strided view cannot be read back; copy it first");
    if (be->failure.code)
        memset(host, 0xff, (size_t)tensor_bytes(src));
    else
        be->ops.to_host(be, host, src);
}

void backend_from_host(Backend *be, Tensor dst, const void *host) {
    CHECK(tensor_is_contiguous(dst), "a strided view cannot be written from host memory; copy it afterwards");
    if (!be->failure.code) be->ops.from_host(be, dst, host);
}

/* ---- failures --------------------------------------------------------------------------------------------------- */

void backend_fail(Backend *be, const char *op, Status failure) {
    if (be->failure.code) return;
    be->failed_op = op;
    be->failure = status_error(failure.code, "%s on device %s: %s", op, be->name, failure.message);
}

Status backend_sync(Backend *be) {
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
    int64_t n = find_implementation(be->name)->peak_size, bytes = 3 * n * n * dtype_size(be->compute_dtype);
    void *memory = NULL;
    if (backend_alloc(be, &memory, bytes, "the peak measurement").code) return 0;
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
