/* Which probes a step owes, whom it tells, what its line has; memory that is planned before it is taken; state. */
#include "tests/probe/toy_set.h"

#include "ops/ops.h"

static const ProbeId all_on[] = {PROBE_COLLISION, PROBE_MOMENTUM, PROBE_SHADOW, PROBE_LOGITS, PROBE_SPECTRUM};
enum { ON = sizeof all_on / sizeof all_on[0] };

/* All but `bound`, which needs a model. */
#define ALL_ON                                                                                                         \
    "probe.collision_every=1", "probe.momentum_every=1", "probe.shadow_every=1", "probe.logits_every=1",               \
        "probe.spectrum_every=1"

/* ---- due or not ------------------------------------------------------------------------------------------------- */

static void the_first_step_and_multiples_of_the_interval_are_due(void **state) {
    (void)state;
    Toy t;
    toy_open(&t, "ref", (char *[]){"probe.collision_every=3", "probe.spectrum_every=4", NULL});
    assert_int_equal(probe_interval(&t.set, PROBE_COLLISION), 3);
    assert_int_equal(probe_interval(&t.set, PROBE_SPECTRUM), 4);
    assert_int_equal(probe_interval(&t.set, PROBE_LOGITS), 0);
    assert_string_equal(probe_name(PROBE_COLLISION), "collision");
    for (int64_t step = 1; step <= 13; step++) {
        const bool collision = step == 1 || step % 3 == 0, spectrum = step == 1 || step % 4 == 0;
        toy_begin(&t, step);
        assert_int_equal(t.set.due[PROBE_COLLISION], collision);
        assert_int_equal(t.set.due[PROBE_SPECTRUM], spectrum);
        assert_false(t.set.due[PROBE_LOGITS]);
        cJSON *line = toy_end(&t);
        assert_int_equal(cJSON_GetObjectItem(line, "collision") != NULL, collision);
        assert_int_equal(cJSON_GetObjectItem(line, "spectrum") != NULL, spectrum);
        assert_int_equal(cJSON_GetObjectItem(line, "probe_ms") != NULL, collision || spectrum);
        assert_null(cJSON_GetObjectItem(line, "logits"));
        cJSON_Delete(line);
    }
    toy_close(&t);
}

static void a_forced_probe_is_due_in_every_step_and_alone(void **state) {
    (void)state;
    static const ProbeId forced[] = {PROBE_LOGITS, PROBE_SPECTRUM, PROBE_BOUND, PROBE_COUNT}; /* bound is off */
    Toy t;
    toy_open(&t, "ref", (char *[]){ALL_ON, NULL});
    for (size_t i = 0; i < sizeof forced / sizeof forced[0]; i++) {
        probes_force(&t.set, forced[i]);
        for (int64_t step = 1; step <= 3; step++) {
            probes_begin(&t.set, step, 0);
            for (int id = 0; id < PROBE_COUNT; id++)
                assert_int_equal(t.set.due[(ProbeId)id], id == (int)forced[i] && id != PROBE_BOUND);
        }
    }
    toy_close(&t);
}

static void without_watched_blocks_their_probes_are_off(void **state) {
    (void)state;
    Toy t;
    toy_open(&t, "ref", (char *[]){ALL_ON, "probe.blocks=[\"down\"]", NULL});
    assert_null(t.set.blocks);
    toy_begin(&t, 1);
    for (int i = 0; i < ON; i++) {
        const bool works = all_on[i] == PROBE_LOGITS || all_on[i] == PROBE_SPECTRUM;
        assert_int_equal(probe_interval(&t.set, all_on[i]), works);
        assert_int_equal(t.set.due[all_on[i]], works);
    }
    assert_int_equal(probes_state(&t.set, NULL), 0);
    toy_close(&t);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static void a_refused_step_has_no_record_of_an_update(void **state) {
    (void)state;
    Toy t;
    toy_open(&t, "ref", (char *[]){ALL_ON, NULL});
    probes_begin(&t.set, 1, 0);
    for (int i = 0; i < ON; i++) assert_true(t.set.due[all_on[i]]);
    assert_non_null(probes_observer(&t.set));
    probes_gradient(&t.set, NULL, NULL);
    for (int i = 0; i < ON; i++) assert_int_equal(t.set.due[all_on[i]], all_on[i] == PROBE_LOGITS);
    assert_null(probes_observer(&t.set));
    cJSON *line = toy_report(&t);
    assert_int_equal(cJSON_GetArraySize(rows_of(line, "logits")), LAYERS * HEADS);
    assert_int_equal(cJSON_GetArraySize(line), 2); /* with probe_ms */
    cJSON_Delete(line);
    toy_close(&t);
}

static void updates_are_observed_where_a_probe_of_them_is_due(void **state) {
    (void)state;
    Toy t;
    toy_open(&t, "ref", (char *[]){"probe.logits_every=1", "probe.momentum_every=3", NULL});
    for (int64_t step = 1; step <= 6; step++) {
        toy_begin(&t, step);
        assert_true((probes_observer(&t.set) == probes_update) == (step == 1 || step % 3 == 0));
    }
    toy_close(&t);
}

/* The fields of a line in the order of the list, and no phase but its own takes their time. */
static void a_step_of_all_probes_has_their_fields_in_order(void **state) {
    (void)state;
    static const char *const fields[] = {"collision", "momentum", "shadow", "logits", "probe_ms", "spectrum"};
    const StepNumbers numbers = toy_numbers(1);
    Toy t;
    toy_open(&t, "cpu", (char *[]){ALL_ON, NULL});
    toy_fill(&t, t.gpt.params.grad, 3);
    phases_begin(&t.phases);
    phases_enter(&t.phases, PHASE_OPTIMIZER);
    probes_begin(&t.set, 1, 0);
    probes_backward(&t.set);
    probes_gradient(&t.set, NULL, &numbers);
    optimizer_step(&t.optimizer, &numbers, probes_observer(&t.set), &t.set);
    cJSON *line = toy_end(&t);
    assert_int_equal(t.phases.now, PHASE_OPTIMIZER);
    assert_true(t.phases.seconds[PHASE_PROBES] > 0);
    assert_true(number_of(line, "probe_ms") >= 1e3 * t.phases.seconds[PHASE_PROBES] * (1 - (double)FLT_EPSILON));
    const cJSON *field = line->child;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++, field = field->next) {
        assert_string_equal(field->string, fields[i]);
        if (cJSON_IsArray(field)) assert_true(cJSON_GetArraySize(field) > 0);
    }
    assert_null(field);
    cJSON_Delete(line);
    toy_close(&t);
}

static NamedTensor *state_of(Toy *t, int64_t *count) {
    *count = probes_state(&t->set, NULL);
    NamedTensor *tensors = calloc((size_t)*count + 1, sizeof *tensors);
    assert_int_equal(probes_state(&t->set, tensors), *count);
    return tensors;
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static int64_t bases(const ProbeSet *set) {
    int64_t count = (set->blocks_memory.device.base != NULL) + (set->blocks_memory.host.base != NULL);
    for (int id = 0; id < PROBE_COUNT; id++)
        count += (set->memory[id].device.base != NULL) + (set->memory[id].host.base != NULL);
    return count;
}

static void planning_counts_the_memory_and_takes_none(void **state) {
    (void)state;
    Toy t;
    toy_prepare(&t, "ref", (char *[]){ALL_ON, NULL});
    toy_plan(&t);
    const int64_t planned = probes_bytes(&t.set);
    assert_true(planned > 0);
    assert_int_equal(bases(&t.set), 0);
    assert_ok(probes_allocate(&t.set));
    assert_int_equal(probes_bytes(&t.set), planned);
    assert_int_equal(bases(&t.set), 2 + 2 * ON);
    toy_close(&t);

    toy_open(&t, "ref", (char *[]){NULL});
    assert_int_equal(probes_bytes(&t.set), 0);
    toy_close(&t);
}

static void the_state_of_a_probe_is_counted(void **state) {
    (void)state;
    int64_t count, of_state = 0, with;
    Toy t;
    toy_open(&t, "ref", (char *[]){"probe.collision_every=1", "probe.shadow_every=1", NULL});
    NamedTensor *tensors = state_of(&t, &count);
    for (int64_t i = 0; i < count; i++) of_state += tensor_bytes(tensors[i].tensor);
    with = probes_bytes(&t.set);
    free(tensors);
    toy_close(&t);
    toy_open(&t, "ref", (char *[]){"probe.collision_every=1", NULL});
    assert_true(of_state > 0 && with - probes_bytes(&t.set) >= of_state);
    toy_close(&t);
}

/* Memory that ends after some allocations, and counts them. */
static int left, taken;
static BackendOps real;

static void *take(Backend *be, int64_t bytes) {
    if (left-- <= 0) return NULL;
    taken++;
    return real.alloc(be, bytes);
}

static void put_back(Backend *be, void *memory, int64_t bytes) {
    taken--;
    real.free(be, memory, bytes);
}

static void *take_host(Backend *be, int64_t bytes) {
    (void)be;
    if (left-- <= 0) return NULL;
    taken++;
    return malloc((size_t)bytes);
}

static void put_back_host(Backend *be, void *memory) {
    (void)be;
    taken--;
    free(memory);
}

/* However many allocations succeed, the message of the one that fails names `remedy`, and nothing is left. */
static void check_failures(char *probe, const char *remedy) {
    Toy t;
    Status status;
    int allocations = -1;
    toy_prepare(&t, "ref", (char *[]){probe, NULL});
    real = t.be.ops;
    t.be.ops.alloc = take, t.be.ops.free = put_back;
    t.be.ops.alloc_host = take_host, t.be.ops.free_host = put_back_host;
    do {
        left = ++allocations, taken = 0;
        toy_plan(&t);
        status = probes_allocate(&t.set);
        if (status.code) assert_fails(status, STATUS_OUT_OF_MEMORY, remedy);
        probes_free(&t.set);
        assert_int_equal(taken, 0);
    } while (status.code);
    assert_true(allocations >= 2);
    t.be.ops = real;
    toy_close(&t);
}

static void without_memory_a_probe_names_its_key_and_leaves_nothing(void **state) {
    (void)state;
    check_failures("probe.logits_every=1", "set probe.logits_every=0");
    check_failures("probe.spectrum_every=1", "set probe.spectrum_every=0");
    check_failures("probe.collision_every=1", "probe.collision_every");
    check_failures("probe.momentum_every=1", "momentum_every");
    check_failures("probe.shadow_every=1", "shadow_every");
}

/* ---- state ------------------------------------------------------------------------------------------------------ */

static void state_has_names_of_its_own_and_counts_updates(void **state) {
    (void)state;
    int64_t count;
    Toy t;
    toy_open(&t, "ref", (char *[]){ALL_ON, "probe.shadow_every=2", "probe.blocks=[\"q\"]", NULL});
    for (int64_t step = 1; step <= 3; step++) toy_begin(&t, step); /* due or not */
    probes_begin(&t.set, 4, 0);
    probes_gradient(&t.set, NULL, NULL); /* refused */
    NamedTensor *tensors = state_of(&t, &count);
    assert_int_equal(count, LAYERS * 3 + 1); /* AdamW's m and v, Muon's momentum, and the number of updates */
    for (int64_t i = 0; i < count; i++) {
        assert_int_equal(strncmp(tensors[i].name, "shadow.", strlen("shadow.")), 0);
        assert_true(tensor_present(tensors[i].tensor));
        for (int64_t j = 0; j < i; j++) assert_string_not_equal(tensors[i].name, tensors[j].name);
    }
    Tensor updates = tensors[count - 1].tensor;
    assert_string_equal(tensors[count - 1].name, "shadow.updates");
    assert_true(test_get(&t.be, updates, 0) == 3);
    free(tensors);

    test_set(&t.be, updates, 0, 7); /* as a checkpoint has it */
    probes_resumed(&t.set);
    toy_begin(&t, 5);
    free(state_of(&t, &count));
    assert_true(test_get(&t.be, updates, 0) == 8);
    toy_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_step_and_multiples_of_the_interval_are_due),
        cmocka_unit_test(a_forced_probe_is_due_in_every_step_and_alone),
        cmocka_unit_test(without_watched_blocks_their_probes_are_off),
        cmocka_unit_test(a_refused_step_has_no_record_of_an_update),
        cmocka_unit_test(updates_are_observed_where_a_probe_of_them_is_due),
        cmocka_unit_test(a_step_of_all_probes_has_their_fields_in_order),
        cmocka_unit_test(planning_counts_the_memory_and_takes_none),
        cmocka_unit_test(the_state_of_a_probe_is_counted),
        cmocka_unit_test(without_memory_a_probe_names_its_key_and_leaves_nothing),
        cmocka_unit_test(state_has_names_of_its_own_and_counts_updates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
