/* A clock at the boundaries between the phases of a training step: where its time goes, without a clock in its lines.
 *
 *      phases_begin | DATA | FORWARD | PROBES | BACKWARD | DATA | .. | NORM | OPTIMIZER | PROBES | OPTIMIZER |
 * phases_end
 *
 * Times are the host's. On a device that runs asynchronously a phase ends when its work has been handed over, unless
 * `settle` waits for it.
 */
#pragma once

typedef enum {
    PHASE_DATA,      /* loading tokens, clearing sums */
    PHASE_FORWARD,   /* with MaxLogit */
    PHASE_BACKWARD,  /* with the loss */
    PHASE_NORM,      /* of the gradient, and the wait for it: the step's results are read */
    PHASE_OPTIMIZER, /* and QK-Clip */
    PHASE_PROBES,    /* measurements, wherever they are taken */
    PHASE_COUNT
} Phase;

typedef struct {
    double seconds[PHASE_COUNT]; /* of the step */
    Phase now;
    double since;

    /* For programs that watch a step; NULL otherwise. At each boundary, `settle` is part of the phase that ends, and
     * `between` of none. */
    void (*settle)(void *context);
    void (*between)(void *context, Phase ended);
    void *context;
} PhaseClock;

void phases_begin(PhaseClock *clock);              /* all times are 0; PHASE_DATA begins */
Phase phases_enter(PhaseClock *clock, Phase next); /* returns the phase that ends */
void phases_end(PhaseClock *clock);
double phases_step_seconds(const PhaseClock *clock); /* of all phases but PHASE_PROBES */
