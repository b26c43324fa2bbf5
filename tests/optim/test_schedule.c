/* Schedules at points computed by hand. */
#include "tests/support.h"

#include "optim/schedule.h"

static void assert_factor(const ScheduleConfig *schedule, int64_t steps, int64_t step, double expected) {
    char what[64];
    double got = schedule_factor(schedule, steps, step);
    snprintf(what, sizeof what, "step %lld", (long long)step);
    assert_close(what, &got, &expected, 1, (Tolerance){.absolute = 1e-12});
}

static void warm_up_rises_linearly_to_one(void **state) {
    (void)state;
    for (int kind = SCHEDULE_CONSTANT; kind <= SCHEDULE_WSD; kind++) {
        ScheduleConfig schedule = {.kind = (ScheduleKind)kind, .warmup = 4, .cooldown = .1};
        assert_factor(&schedule, 100, 1, .25);
        assert_factor(&schedule, 100, 3, .75);
        assert_factor(&schedule, 100, 4, 1);
    }
}

static void without_warm_up_the_first_step_is_on_the_curve(void **state) {
    (void)state;
    ScheduleConfig linear = {.kind = SCHEDULE_LINEAR};
    assert_factor(&linear, 4, 1, .75);
    ScheduleConfig constant = {.kind = SCHEDULE_CONSTANT};
    assert_factor(&constant, 4, 1, 1);
}

static void constant_stays(void **state) {
    (void)state;
    ScheduleConfig schedule = {.kind = SCHEDULE_CONSTANT, .warmup = 2, .final = .5, .cooldown = .5};
    assert_factor(&schedule, 10, 3, 1);
    assert_factor(&schedule, 10, 10, 1);
}

static void linear_falls_to_final_at_the_last_step(void **state) {
    (void)state;
    ScheduleConfig schedule = {.kind = SCHEDULE_LINEAR, .warmup = 10, .final = .2};
    assert_factor(&schedule, 50, 20, .8);
    assert_factor(&schedule, 50, 30, .6);
    assert_factor(&schedule, 50, 50, .2);
}

static void cosine_is_halfway_in_the_middle(void **state) {
    (void)state;
    ScheduleConfig schedule = {.kind = SCHEDULE_COSINE, .warmup = 10, .final = .2};
    assert_factor(&schedule, 40, 20, .2 + .8 * .75); /* progress 1/3: (1 + cos 60°) / 2 = .75 */
    assert_factor(&schedule, 40, 25, .6);
    assert_factor(&schedule, 40, 40, .2);
}

static void wsd_is_flat_until_the_cooldown(void **state) {
    (void)state;
    ScheduleConfig schedule = {.kind = SCHEDULE_WSD, .warmup = 10, .cooldown = .2, .final = .1};
    assert_factor(&schedule, 100, 11, 1);
    assert_factor(&schedule, 100, 80, 1);
    assert_factor(&schedule, 100, 90, .55);
    assert_factor(&schedule, 100, 100, .1);
    schedule.cooldown = 0;
    assert_factor(&schedule, 100, 100, 1);
}

static void steps_beyond_the_last_stay_at_the_end(void **state) {
    (void)state;
    for (int kind = SCHEDULE_LINEAR; kind <= SCHEDULE_WSD; kind++) {
        ScheduleConfig schedule = {.kind = (ScheduleKind)kind, .warmup = 2, .cooldown = .5, .final = .3};
        assert_factor(&schedule, 10, 25, .3);
    }
}

static void a_run_that_is_all_warm_up_ends_at_one(void **state) {
    (void)state;
    for (int kind = SCHEDULE_CONSTANT; kind <= SCHEDULE_WSD; kind++) {
        ScheduleConfig schedule = {.kind = (ScheduleKind)kind, .warmup = 5, .cooldown = .2};
        assert_factor(&schedule, 5, 4, .8);
        assert_factor(&schedule, 5, 5, 1);
    }
}

/* ---- momentum --------------------------------------------------------------------------------------------------- */

static void assert_momentum(const MuonConfig *config, int64_t steps, int64_t step, double expected) {
    char what[64];
    double got = schedule_momentum(config, steps, step);
    snprintf(what, sizeof what, "step %lld", (long long)step);
    assert_close(what, &got, &expected, 1, (Tolerance){.absolute = 1e-12});
}

static void momentum_rises_from_its_start_and_falls_back_to_it(void **state) {
    (void)state;
    const MuonConfig config = {.momentum = .95, .momentum_start = .85, .momentum_warmup = 10, .momentum_cooldown = 20};
    assert_momentum(&config, 100, 1, .85);
    assert_momentum(&config, 100, 6, .90);
    assert_momentum(&config, 100, 11, .95);
    assert_momentum(&config, 100, 80, .95);
    assert_momentum(&config, 100, 85, .925);
    assert_momentum(&config, 100, 100, .85);
    assert_momentum(&config, 100, 120, .85);
}

static void without_a_schedule_momentum_is_constant(void **state) {
    (void)state;
    const MuonConfig config = {.momentum = .95, .momentum_start = .85};
    for (int step = 1; step <= 10; step++) assert_true(schedule_momentum(&config, 10, step) == .95);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warm_up_rises_linearly_to_one),
        cmocka_unit_test(without_warm_up_the_first_step_is_on_the_curve),
        cmocka_unit_test(constant_stays),
        cmocka_unit_test(linear_falls_to_final_at_the_last_step),
        cmocka_unit_test(cosine_is_halfway_in_the_middle),
        cmocka_unit_test(wsd_is_flat_until_the_cooldown),
        cmocka_unit_test(steps_beyond_the_last_stay_at_the_end),
        cmocka_unit_test(a_run_that_is_all_warm_up_ends_at_one),
        cmocka_unit_test(momentum_rises_from_its_start_and_falls_back_to_it),
        cmocka_unit_test(without_a_schedule_momentum_is_constant),
    };
    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
