/* Measurements ("probes"): what one is, which of them a step owes, and their fields of metrics.jsonl.
 *
 * A probe is one file, probe/<name>.c, that defines `const Probe probe_<name>`, and one row of PROBE_LIST in
 * base/config.h, from which its number, its key probe.<name>_every and its place in the table follow. The step
 * (train_gpt.c) tells all of them what happens, in this order; each call does nothing for what is not due:
 *
 *      probes_begin        before the first forward pass
 *      probes_forward      after that of a micro-batch: its activations
 *      probes_backward     likewise: the gradients so far
 *      probes_gradient     the host has waited for the passes; the batch's gradients are whole, the weights still old
 *      probes_update       the optimizer's observer: each run of hidden matrices, before and after its step
 *      probes_end          after optimizer and QK-Clip
 *      probes_report       fields of the step's line; probes_report_late those that are computed meanwhile
 *
 * A probe reads and never writes: a run's weights have the same bits with all of them and with none. Its memory is
 * measured first and placed later, like everything else: planning allocates none of it.
 */
#pragma once

#include <cjson/cJSON.h>

#include "base/config.h"
#include "base/phases.h"
#include "data/dataset.h"
#include "model/gpt.h"
#include "optim/optimizer.h"
#include "probe/blocks.h"

typedef struct ProbeSet ProbeSet;

/* One row. `self` is the probe's state, zeroed at first; NULL slots do nothing. */
typedef struct {
    size_t size;    /* of the state */
    bool of_update; /* measures an update: a refused step has nothing for it */
    bool of_blocks; /* works in ProbeSet.blocks: needs a model that has some of probe.blocks */
    bool late;      /* `report` may have to wait for work that goes on beside the next steps */

    Status (*plan)(void *self, ProbeSet *set);
    void (*layout)(void *self, const ProbeSet *set, ProbeMemory *memory); /* called to measure, then to place */
    Status (*allocate)(void *self, ProbeSet *set);                        /* what is not in `memory` */
    int64_t (*bytes)(const void *self);                                   /* of that */
    void (*release)(void *self, ProbeSet *set);                           /* likewise; also after half an allocation */

    /* In steps that are due. */
    void (*begin)(void *self, ProbeSet *set);
    void (*forward)(void *self, ProbeSet *set, int64_t micro_batch); /* counts from 0 */
    void (*backward)(void *self, ProbeSet *set);
    void (*gradient)(void *self, ProbeSet *set);
    void (*update)(void *self, ProbeSet *set, const UpdateEvent *event);
    void (*end)(void *self, ProbeSet *set);
    void (*report)(void *self, ProbeSet *set, cJSON *line);

    /* In every step that is applied, due or not: what keeps a state from step to step. Comes before `gradient`. */
    void (*step)(void *self, ProbeSet *set, const StepNumbers *numbers);
    /* That state, for checkpoints: fills `tensors` unless it is NULL, returns how many there are. Names begin with the
     * probe's and a dot. `resumed`: a checkpoint's have been loaded. */
    int64_t (*state)(void *self, ProbeSet *set, NamedTensor *tensors);
    void (*resumed)(void *self, ProbeSet *set);
} Probe;

struct ProbeSet {
    const Config *config;
    Backend *be;
    Gpt *gpt;
    const Optimizer *optimizer;
    Dataset *data;      /* of training */
    PhaseClock *phases; /* probes are a phase of their own */

    int64_t first_sample;  /* of this step, in the training order */
    const float *max_abs;  /* (layers, heads) on the host, from probes_gradient on */
    WatchedBlocks *blocks; /* what collision, momentum and shadow work in; NULL: nothing is watched */
    ProbeMemory blocks_memory;

    void *states[PROBE_COUNT]; /* NULL: off */
    ProbeMemory memory[PROBE_COUNT];
    bool due[PROBE_COUNT];
    bool forced; /* see probes_force */
    ProbeId only;
};

/* Plans the probes that the configuration in `set` asks for; the first six members have been filled in. After model and
 * optimizer have been planned. probes_free is due after a failure, too. */
Status probes_plan(ProbeSet *set);
Status probes_allocate(ProbeSet *set);
void probes_free(ProbeSet *set);
int64_t probes_bytes(const ProbeSet *set);

void probes_begin(ProbeSet *set, int64_t step, int64_t first_sample);
void probes_forward(ProbeSet *set, int64_t micro_batch);
void probes_backward(ProbeSet *set);
/* numbers NULL: the step is refused, and there will be no update to measure. */
void probes_gradient(ProbeSet *set, const float *max_abs, const StepNumbers *numbers);
UpdateObserver *probes_observer(const ProbeSet *set); /* probes_update, or NULL: no probe wants to see updates */
void probes_update(void *set, const UpdateEvent *event);
void probes_end(ProbeSet *set);

/* True: some fields are still being computed, and the line is to be kept for probes_report_late, which waits. */
bool probes_report(ProbeSet *set, cJSON *line);
void probes_report_late(ProbeSet *set, cJSON *line);

int64_t probes_state(ProbeSet *set, NamedTensor *tensors); /* of all, as Probe.state */
void probes_resumed(ProbeSet *set);

/* For programs that measure or predict a step: in all that follow this probe alone is due; PROBE_COUNT: none. Before
 * probes_allocate, the others then get no memory. */
void probes_force(ProbeSet *set, ProbeId only);
int64_t probe_interval(const ProbeSet *set, ProbeId id); /* steps; 0: off */
const char *probe_name(ProbeId id);
