/* The clock of a step's phases: what is counted where. */
#include "base/phases.h"

#include "base/clock.h"
#include "tests/support.h"

enum { MS = 2 };
static const double ROUNDING = 1e-6; /* of seconds since some moment long ago */

/* At least so long. */
static void wait_ms(double ms) {
    const double start = clock_seconds();
    while (clock_seconds() - start < ms / 1e3) continue;
}

static double sum_of(const PhaseClock *clock) {
    double sum = 0;
    for (int i = 0; i < PHASE_COUNT; i++) sum += clock->seconds[i];
    return sum;
}

static void assert_lasted(const PhaseClock *clock, Phase phase, double ms) {
    if (clock->seconds[phase] < ms / 1e3 - ROUNDING)
        fail_msg("phase %d lasted %g ms, expected %g at least", (int)phase, 1e3 * clock->seconds[phase], ms);
}

static void the_times_of_a_step_add_up(void **state) {
    (void)state;
    PhaseClock clock = {.seconds = {[PHASE_NORM] = 100}}; /* of the step before */
    const double start = clock_seconds();
    phases_begin(&clock);
    wait_ms(MS);
    for (int micro_batch = 0; micro_batch < 2; micro_batch++) {
        assert_int_equal(phases_enter(&clock, PHASE_FORWARD), micro_batch == 0 ? PHASE_DATA : PHASE_BACKWARD);
        wait_ms(MS);
        assert_int_equal(phases_enter(&clock, PHASE_BACKWARD), PHASE_FORWARD);
        wait_ms(2 * MS);
    }
    phases_end(&clock);
    const double whole = clock_seconds() - start;
    assert_lasted(&clock, PHASE_DATA, MS);
    assert_lasted(&clock, PHASE_FORWARD, 2 * MS);
    assert_lasted(&clock, PHASE_BACKWARD, 4 * MS);
    assert_true(clock.seconds[PHASE_NORM] == 0 && clock.seconds[PHASE_OPTIMIZER] == 0);
    assert_true(sum_of(&clock) <= whole + ROUNDING);
}

/* Like every probe, within the phase that it interrupts. */
static void a_phase_within_another_takes_nothing_from_it(void **state) {
    (void)state;
    PhaseClock clock = {0};
    phases_begin(&clock);
    phases_enter(&clock, PHASE_OPTIMIZER);
    wait_ms(MS);
    const Phase before = phases_enter(&clock, PHASE_PROBES);
    wait_ms(20 * MS);
    assert_int_equal(phases_enter(&clock, before), PHASE_PROBES);
    assert_int_equal(clock.now, PHASE_OPTIMIZER);
    wait_ms(MS);
    phases_end(&clock);
    assert_lasted(&clock, PHASE_OPTIMIZER, 2 * MS);
    assert_lasted(&clock, PHASE_PROBES, 20 * MS);
    const double step = phases_step_seconds(&clock), others = sum_of(&clock) - clock.seconds[PHASE_PROBES];
    assert_true(step < others + ROUNDING && step > others - ROUNDING);
}

enum { WAIT = 5 };

typedef struct {
    int settled, ended_count;
    Phase ended[8];
} Watched;

static void settle(void *context) {
    wait_ms(WAIT);
    ((Watched *)context)->settled++;
}

static void look(void *context, Phase ended) {
    Watched *w = context;
    wait_ms(WAIT);
    assert_int_equal(w->settled, w->ended_count + 1); /* the phase has been waited for */
    w->ended[w->ended_count++] = ended;
}

static void settling_is_part_of_the_phase_and_looking_of_none(void **state) {
    (void)state;
    static const Phase expected[] = {PHASE_DATA, PHASE_FORWARD, PHASE_PROBES};
    Watched w = {0};
    PhaseClock clock = {.settle = settle, .between = look, .context = &w};
    const double start = clock_seconds();
    phases_begin(&clock);
    phases_enter(&clock, PHASE_FORWARD);
    phases_enter(&clock, PHASE_PROBES);
    phases_end(&clock);
    const double whole = clock_seconds() - start;
    assert_int_equal(w.ended_count, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(w.ended[i], expected[i]);
        assert_lasted(&clock, expected[i], WAIT);
    }
    assert_true(sum_of(&clock) <= whole - 3 * WAIT / 1e3 + ROUNDING); /* what `look` took is in no phase */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_times_of_a_step_add_up),
        cmocka_unit_test(a_phase_within_another_takes_nothing_from_it),
        cmocka_unit_test(settling_is_part_of_the_phase_and_looking_of_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
