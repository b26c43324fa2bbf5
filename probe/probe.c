/* The table of probes, and who of them is told what; see probe.h. */
#include "probe/probe.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/metrics.h"

#define X(ID, name, every, help) extern const Probe probe_##name;
PROBE_LIST(X)
#undef X

static const Probe *const probes[PROBE_COUNT] = {
#define X(ID, name, every, help) [PROBE_##ID] = &probe_##name,
    PROBE_LIST(X)
#undef X
};

#define X(ID, name, every, help) #name,
static const char *const names[PROBE_COUNT] = {PROBE_LIST(X)};
#undef X

#define X(ID, name, every, help) "set probe." #name "_every=0",
static const char *const remedies[PROBE_COUNT] = {PROBE_LIST(X)};
#undef X

static const char BLOCKS_REMEDY[] =
    "watch fewer probe.blocks, or set probe.collision_every, momentum_every and shadow_every to 0";

const char *probe_name(ProbeId id) {
    return names[id];
}

static int64_t configured_interval(const ProbeConfig *c, ProbeId id) {
    const int64_t every[PROBE_COUNT] = {
#define X(ID, name, every, help) [PROBE_##ID] = c->name##_every,
        PROBE_LIST(X)
#undef X
    };
    return every[id];
}

int64_t probe_interval(const ProbeSet *set, ProbeId id) {
    return set->states[id] ? configured_interval(&set->config->probe, id) : 0;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static bool is_wanted(const ProbeSet *set, ProbeId id) {
    return configured_interval(&set->config->probe, id) > 0 && (set->blocks || !probes[id]->of_blocks);
}

static void lay_out(ProbeSet *set, int id) {
    if (probes[id]->layout) probes[id]->layout(set->states[id], set, &set->memory[id]);
}

static ProbeMemory measure_memory(const char *name, const char *remedy) {
    return (ProbeMemory){.device = arena_measure_for(name, remedy), .host = arena_measure_host(name, remedy)};
}

/* Blocks are shared: planned if a probe that wants them is on. */
static Status plan_blocks(ProbeSet *set) {
    const ProbeConfig *c = &set->config->probe;
    int64_t wanted = 0;
    for (int id = 0; id < PROBE_COUNT; id++) wanted += probes[id]->of_blocks ? configured_interval(c, (ProbeId)id) : 0;
    if (wanted == 0) return status_ok();
    Status status = blocks_plan(&set->blocks, &set->gpt->params, c, set->be);
    if (status.code || !set->blocks) return status;
    set->blocks_memory = measure_memory("block probes", BLOCKS_REMEDY);
    blocks_layout(set->blocks, &set->blocks_memory);
    return status;
}

Status probes_plan(ProbeSet *set) {
    Status status = plan_blocks(set);
    for (int id = 0; id < PROBE_COUNT && !status.code; id++) {
        if (!is_wanted(set, (ProbeId)id)) continue;
        set->states[id] = calloc(1, probes[id]->size);
        if (!set->states[id]) return NO_MEMORY("no memory for the probe %s; %s", names[id], remedies[id]);
        set->memory[id] = measure_memory(names[id], remedies[id]);
        if (probes[id]->plan) status = probes[id]->plan(set->states[id], set);
        if (!status.code) lay_out(set, id);
    }
    return status;
}

static Status allocate_memory(ProbeMemory *memory, Backend *be) {
    Status status = arena_allocate(&memory->device, be);
    return status.code ? status : arena_allocate(&memory->host, be);
}

/* A probe that will never be due needs memory only for a state that it keeps. */
static bool needs_memory(const ProbeSet *set, int id) {
    return set->states[id] && (!set->forced || id == (int)set->only || probes[id]->step);
}

Status probes_allocate(ProbeSet *set) {
    const bool watches = set->blocks && !(set->forced && set->only == PROBE_COUNT);
    Status status = status_ok();
    if (watches && FAILED(status, allocate_memory(&set->blocks_memory, set->be))) return status;
    if (watches) blocks_layout(set->blocks, &set->blocks_memory);
    for (int id = 0; id < PROBE_COUNT && !status.code; id++) {
        if (!needs_memory(set, id) || FAILED(status, allocate_memory(&set->memory[id], set->be))) continue;
        lay_out(set, id);
        if (probes[id]->allocate) status = probes[id]->allocate(set->states[id], set);
    }
    return status;
}

static void free_memory(ProbeMemory *memory) {
    arena_free(&memory->device);
    arena_free(&memory->host);
}

void probes_free(ProbeSet *set) {
    for (int id = 0; id < PROBE_COUNT; id++) {
        if (set->states[id] && probes[id]->release) probes[id]->release(set->states[id], set);
        free_memory(&set->memory[id]);
        free(set->states[id]);
    }
    free_memory(&set->blocks_memory);
    free(set->blocks);
    *set = (ProbeSet){0};
}

static int64_t memory_bytes(const ProbeMemory *memory) {
    return arena_bytes(&memory->device) + arena_bytes(&memory->host);
}

int64_t probes_bytes(const ProbeSet *set) {
    int64_t bytes = memory_bytes(&set->blocks_memory);
    for (int id = 0; id < PROBE_COUNT; id++) {
        bytes += memory_bytes(&set->memory[id]);
        if (set->states[id] && probes[id]->bytes) bytes += probes[id]->bytes(set->states[id]);
    }
    return bytes;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

static bool any_is_due(const ProbeSet *set) {
    for (int id = 0; id < PROBE_COUNT; id++)
        if (set->due[id]) return true;
    return false;
}

/* slot(self, set, ...) of every probe that is due and has it, as a phase of its own. */
#define TELL(set, slot, ...)                                                                                           \
    do {                                                                                                               \
        if (!any_is_due(set)) break;                                                                                   \
        const Phase before = phases_enter((set)->phases, PHASE_PROBES);                                                \
        for (int id = 0; id < PROBE_COUNT; id++)                                                                       \
            if ((set)->due[id] && probes[id]->slot) probes[id]->slot((set)->states[id], __VA_ARGS__);                  \
        phases_enter((set)->phases, before);                                                                           \
    } while (0)

void probes_force(ProbeSet *set, ProbeId only) {
    set->forced = true;
    set->only = only;
    for (int id = 0; id < PROBE_COUNT; id++) set->due[id] = false; /* until the next step begins */
}

void probes_begin(ProbeSet *set, int64_t step, int64_t first_sample) {
    set->first_sample = first_sample;
    for (int id = 0; id < PROBE_COUNT; id++) {
        const int64_t every = probe_interval(set, (ProbeId)id);
        const bool its_step = set->forced ? id == (int)set->only : step == 1 || (every > 0 && step % every == 0);
        set->due[id] = every > 0 && its_step;
    }
    if (set->blocks && any_is_due(set)) blocks_begin(set->blocks);
    TELL(set, begin, set);
}

void probes_forward(ProbeSet *set, int64_t micro_batch) {
    TELL(set, forward, set, micro_batch);
}

void probes_backward(ProbeSet *set) {
    TELL(set, backward, set);
}

/* The states that are kept up in every step. */
static void step_states(ProbeSet *set, const StepNumbers *numbers) {
    for (int id = 0; id < PROBE_COUNT; id++) {
        if (!set->states[id] || !probes[id]->step) continue;
        const Phase before = phases_enter(set->phases, PHASE_PROBES);
        probes[id]->step(set->states[id], set, numbers);
        phases_enter(set->phases, before);
    }
}

void probes_gradient(ProbeSet *set, const float *max_abs, const StepNumbers *numbers) {
    set->max_abs = max_abs;
    for (int id = 0; id < PROBE_COUNT; id++) set->due[id] = set->due[id] && (numbers || !probes[id]->of_update);
    if (numbers) step_states(set, numbers);
    TELL(set, gradient, set);
}

UpdateObserver *probes_observer(const ProbeSet *set) {
    for (int id = 0; id < PROBE_COUNT; id++)
        if (set->due[id] && probes[id]->update) return probes_update;
    return NULL;
}

void probes_update(void *context, const UpdateEvent *event) {
    ProbeSet *set = context;
    TELL(set, update, set, event);
}

void probes_end(ProbeSet *set) {
    TELL(set, end, set);
}

/* ---- metrics.jsonl ---------------------------------------------------------------------------------------------- */

static void report(ProbeSet *set, cJSON *line, bool late) {
    for (int id = 0; id < PROBE_COUNT; id++)
        if (set->due[id] && probes[id]->late == late) probes[id]->report(set->states[id], set, line);
}

bool probes_report(ProbeSet *set, cJSON *line) {
    const double start = clock_seconds();
    bool late = false;
    if (!any_is_due(set)) return false;
    report(set, line, false);
    for (int id = 0; id < PROBE_COUNT; id++) late = late || (set->due[id] && probes[id]->late);
    metrics_add_float(line, "probe_ms", (float)(1e3 * (set->phases->seconds[PHASE_PROBES] + clock_seconds() - start)));
    if (late && !backend_is_asynchronous(set->be)) report(set, line, true), late = false;
    return late;
}

/* By now the next step may have decided what is due in it. */
void probes_report_late(ProbeSet *set, cJSON *line) {
    for (int id = 0; id < PROBE_COUNT; id++)
        if (set->states[id] && probes[id]->late) probes[id]->report(set->states[id], set, line);
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

int64_t probes_state(ProbeSet *set, NamedTensor *tensors) {
    int64_t count = 0;
    for (int id = 0; id < PROBE_COUNT; id++)
        if (set->states[id] && probes[id]->state)
            count += probes[id]->state(set->states[id], set, tensors ? tensors + count : NULL);
    for (int64_t i = 0; tensors && i < count; i++) tensors[i].optional = true;
    return count;
}

void probes_resumed(ProbeSet *set) {
    for (int id = 0; id < PROBE_COUNT; id++)
        if (set->states[id] && probes[id]->resumed) probes[id]->resumed(set->states[id], set);
}
