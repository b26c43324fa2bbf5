/* The three implementations, and which of them a run gets; see device.h. */
#include "device/device.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cpu/open.h"
#include "cuda/open.h"
#include "ref/open.h"

typedef struct {
    const char *name;
    Status (*open)(Backend *, BackendRequest);
    void (*below)(BackendOps *); /* fills the slots that `open` leaves as they are; or NULL */
    bool automatic;              /* "auto" considers it */
} Implementation;

/* Fastest first. */
static const Implementation implementations[] = {
    {"cuda", cuda_backend_open, NULL, true},
    {"cpu", cpu_backend_open, ref_fill_ops, true},
    {"ref", ref_backend_open, NULL, false},
};
enum { IMPLEMENTATIONS = sizeof implementations / sizeof implementations[0] };

static const Implementation *find_implementation(const char *name) {
    for (int i = 0; i < IMPLEMENTATIONS; i++)
        if (!strcmp(implementations[i].name, name)) return &implementations[i];
    return NULL;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static int usable_cpus(void) {
    cpu_set_t cpus;
    long count = sched_getaffinity(0, sizeof cpus, &cpus) ? sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&cpus);
    return count > 0 ? (int)count : 1;
}

static Status open_one(Backend *be, const Implementation *implementation, BackendRequest request) {
    *be = (Backend){.fault_countdown = -1};
    if (implementation->below) implementation->below(&be->ops);
    Status status = implementation->open(be, request);
    if (status.code)
        *be = (Backend){0};
    else if (FAILED(status, backend_check_slots(be)))
        backend_close(be);
    return status;
}

static Status open_named(Backend *be, const Implementation *implementation, BackendRequest request) {
    Status status = open_one(be, implementation, request);
    if (status.code != STATUS_DEVICE) return status;
    return status_error(status.code, "device=%s cannot be used: %s", implementation->name, status.message);
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

Status device_open(Backend *be, BackendRequest request, char *note, int64_t size) {
    CHECK(request.device && request.precision && size > 0, "device %p, precision %p, %lld bytes of note",
          (const void *)request.device, (const void *)request.precision, (long long)size);
    *be = (Backend){0};
    note[0] = '\0';
    bool automatic = !strcmp(request.device, "auto");
    const Implementation *implementation = find_implementation(request.device);
    if (!automatic && !implementation)
        return BAD_INPUT("device \"%s\" is unknown; use auto, cuda, cpu or ref", request.device);
    const char *precision = request.precision;
    if (strcmp(precision, "auto") && strcmp(precision, "fp32") && strcmp(precision, "bf16"))
        return BAD_INPUT("precision \"%s\" is unknown; use auto, fp32 or bf16", precision);
    if (request.threads < 0) return BAD_INPUT("threads is %d; use 0 for all cores, or a count", request.threads);

    if (request.threads == 0) request.threads = usable_cpus();
    return automatic ? open_fastest(be, request, note, size) : open_named(be, implementation, request);
}
