/* Time by phase; see phases.h. */
#include "base/phases.h"

#include "base/clock.h"

void phases_begin(PhaseClock *clock) {
    for (int i = 0; i < PHASE_COUNT; i++) clock->seconds[i] = 0;
    clock->now = PHASE_DATA;
    clock->since = clock_seconds();
}

void phases_end(PhaseClock *clock) {
    if (clock->settle) clock->settle(clock->context);
    clock->seconds[clock->now] += clock_seconds() - clock->since;
    if (clock->between) clock->between(clock->context, clock->now);
}

Phase phases_enter(PhaseClock *clock, Phase next) {
    const Phase ended = clock->now;
    phases_end(clock);
    clock->now = next;
    clock->since = clock_seconds();
    return ended;
}

double phases_step_seconds(const PhaseClock *clock) {
    double sum = 0;
    for (int i = 0; i < PHASE_COUNT; i++) sum += i == PHASE_PROBES ? 0 : clock->seconds[i];
    return sum;
}
