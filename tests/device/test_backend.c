/* Opening backends, arenas, the sticky failure, and what the op wrappers do beside calling a slot. On `ref`. */
#include "tests/tensors.h"

#include <math.h>

#include "ops/arena.h"
#include "ops/ops.h"
#include "device/device.h"

static Status open_with(Backend *be, const char *device, const char *precision, int threads) {
    char note[256];
    return device_open(be, (BackendRequest){device, precision, threads}, note, sizeof note);
}

static bool is_closed(const Backend *be) {
    return !be->name && !be->ops.fill && !be->state && !be->scratch && !be->failure.code;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static void unknown_devices_and_precisions_are_refused_with_the_known_ones(void **state) {
    (void)state;
    Backend be;
    memset(&be, 0x55, sizeof be);
    assert_fails(open_with(&be, "gpu", "auto", 0), STATUS_BAD_INPUT, "use auto, cuda, cpu or ref");
    assert_true(is_closed(&be));
    assert_fails(open_with(&be, "ref", "fp16", 0), STATUS_BAD_INPUT, "use auto, fp32 or bf16");
    assert_fails(open_with(&be, "ref", "fp32", -1), STATUS_BAD_INPUT, "threads is -1");
    assert_true(is_closed(&be));
}

static void ref_stores_fp32_unless_bf16_is_asked_for(void **state) {
    (void)state;
    Backend be;
    assert_ok(open_with(&be, "ref", "auto", 0));
    assert_int_equal(be.compute_dtype, DTYPE_F32);
    backend_close(&be);
    assert_ok(open_with(&be, "ref", "bf16", 0));
    assert_int_equal(be.compute_dtype, DTYPE_BF16);
    backend_close(&be);
    assert_true(is_closed(&be));
}

static void the_peak_rate_is_measured_without_a_trace_in_the_profile(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    be.profile = true;
    assert_true(backend_measure_peak(&be) > 1e6);
    assert_int_equal(be.timers[OP_MATMUL].calls, 0);
    test_close(&be);
}

static void a_table_without_a_required_slot_is_refused_by_its_name(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    const BackendOps whole = be.ops;
    assert_ok(backend_check_slots(&be));
    be.ops.rmsnorm_grad = NULL;
    assert_fails(backend_check_slots(&be), STATUS_DEVICE, "backend ref does not fill the required slot rmsnorm_grad");
    be.ops = whole;
    be.ops.from_host = NULL;
    assert_fails(backend_check_slots(&be), STATUS_DEVICE, "backend ref does not fill the required slot from_host");
    be.ops = whole;
    test_close(&be);
}

static void default_and_optional_slots_may_be_missing(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    assert_true(!be.ops.linear_gelu && !be.ops.mark && !be.ops.close);
    be.ops.linear = NULL;
    assert_ok(backend_check_slots(&be));
    test_close(&be);
}

static void *no_memory(Backend *be, int64_t bytes) {
    (void)be, (void)bytes;
    return NULL;
}

static void memory_that_cannot_be_had_is_named_with_its_purpose_and_size(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    be.ops.alloc = no_memory;
    void *memory = &be;
    assert_fails(backend_alloc(&be, &memory, 12345, "activations", NULL), STATUS_OUT_OF_MEMORY,
                 "activations needs 12345 bytes");
    assert_null(memory);
    test_close(&be);
}

static int64_t little_is_free(Backend *be) {
    (void)be;
    return 5 << 20;
}

static void out_of_memory_tells_what_is_free_and_planned_and_which_option_lowers_it(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    be.ops.alloc = no_memory;
    void *memory;
    assert_non_null(
        strstr(backend_alloc(&be, &memory, 1 << 30, "weights", NULL).message, " GiB is free")); /* of the host */
    be.ops.free_bytes = little_is_free;
    be.planned_bytes = (int64_t)3 << 30;
    assert_fails(backend_alloc(&be, &memory, 1 << 30, "spectra", "set probe.spectrum_every=0"), STATUS_OUT_OF_MEMORY,
                 "spectra needs 1.00 GiB of 3.00 GiB that the run plans in all, and 5.00 MiB is free; set "
                 "probe.spectrum_every=0 (--dry-run shows the plan)");
    assert_non_null(strstr(backend_alloc(&be, &memory, 1, "the triad", NULL).message, "lower train.micro_batch"));
    test_close(&be);
}

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

static void note_call(void *called) {
    *(bool *)called = true;
}

static void where_ops_are_done_when_they_return_later_is_now(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    assert_false(backend_is_asynchronous(&be));
    Tensor x = test_random(&be, DTYPE_F32, shape1(5), 1);
    float *host = backend_alloc_host(&be, tensor_bytes(x));
    bool called = false;
    backend_mark(&be, MARK_OPTIMIZER_BEGIN);
    backend_to_host_later(&be, host, x);
    assert_memory_equal(host, x.data, (size_t)tensor_bytes(x));
    backend_call_later(&be, note_call, &called);
    assert_true(called);
    backend_mark(&be, MARK_OPTIMIZER_END);
    assert_true(backend_elapsed(&be, MARK_OPTIMIZER_BEGIN, MARK_OPTIMIZER_END) >= 0);
    backend_free_host(&be, host);
    test_close(&be);
}

static void every_read_back_and_sync_counts_as_a_wait(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_random(&be, DTYPE_F32, shape1(5), 1);
    float host[5];
    const int64_t before = be.waits;
    backend_to_host(&be, host, x);
    assert_ok(backend_sync(&be));
    backend_to_host_later(&be, host, x);
    assert_int_equal(be.waits - before, 2);
    test_close(&be);
}

/* ---- arenas ----------------------------------------------------------------------------------------------------- */

typedef struct {
    Tensor a, b, c;
} Layout;

static Layout lay_out(Arena *arena) {
    return (Layout){.a = arena_take_1d(arena, DTYPE_F32, 3),
                    .b = arena_take_2d(arena, DTYPE_BF16, 5, 7),
                    .c = arena_take_3d(arena, DTYPE_I32, 2, 3, 4)};
}

static void an_arena_allocates_what_it_measured(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Arena arena = arena_measure("test");
    assert_false(tensor_present(lay_out(&arena).a));
    int64_t measured = arena.used;
    assert_ok(arena_allocate(&arena, &be));
    assert_int_equal(arena.size, measured);
    Layout layout = lay_out(&arena);
    assert_int_equal(arena.used, measured);
    assert_int_equal((uintptr_t)layout.a.data % 64 + (uintptr_t)layout.b.data % 64 + (uintptr_t)layout.c.data % 64, 0);
    for (int64_t i = 0; i < 24; i++) assert_true(test_get(&be, layout.c, i) == 0);
    arena_free(&arena);
    test_close(&be);
}

static void an_empty_arena_can_be_allocated(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Arena arena = arena_measure("nothing");
    assert_ok(arena_allocate(&arena, &be));
    arena_free(&arena);
    test_close(&be);
}

static void an_arena_keeps_its_remedy(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Arena arena = arena_measure_for("weights", "lower model.width");
    assert_ok(arena_allocate(&arena, &be));
    arena_free(&arena);
    be.ops.alloc = no_memory;
    assert_fails(arena_allocate(&arena, &be), STATUS_OUT_OF_MEMORY, "free; lower model.width");
    test_close(&be);
}

static void a_layout_too_large_to_count_is_out_of_memory(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Arena arena = arena_measure("activations");
    const int64_t side = (int64_t)1 << 31;
    for (int layer = 0; layer < 1024; layer++) arena_take_3d(&arena, DTYPE_F32, side, side / 2, 1 + layer % 2);
    assert_true(arena.used > INT64_MAX / 32);
    assert_fails(arena_allocate(&arena, &be), STATUS_OUT_OF_MEMORY, "activations");
    arena_free(&arena);
    test_close(&be);
}

/* ---- failures --------------------------------------------------------------------------------------------------- */

static void the_first_failure_stays_and_ops_do_nothing_after_it(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_zeros(&be, DTYPE_F32, shape1(4));
    backend_fail(&be, "matmul", status_error(STATUS_DEVICE, "the first"));
    backend_fail(&be, "gelu", status_error(STATUS_DEVICE, "the second"));
    op_fill(&be, x, 1);
    assert_true(*(float *)x.data == 0);
    assert_string_equal(be.failed_op, "matmul");
    assert_fails(backend_sync(&be), STATUS_DEVICE, "matmul on device ref: the first");
    test_close(&be);
}

/* A configuration can ask for them, so they end in a sentence and not in a failed check. */
static void heads_that_ref_cannot_take_are_a_failure_that_says_what_to_do(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_random(&be, DTYPE_F32, shape4(1, 2, 1, 1025), 1);
    Tensor out = test_zeros(&be, DTYPE_F32, shape4(1, 2, 1, 1025)), lse = test_zeros(&be, DTYPE_F32, shape3(1, 1, 2));
    Tensor max_logit = test_zeros(&be, DTYPE_F32, shape1(1)), max_abs = test_zeros(&be, DTYPE_F32, shape1(1));
    op_attention(&be, out, lse, max_logit, max_abs, x, x, x, (AttentionParams){.scale = 1});
    assert_fails(backend_sync(&be), STATUS_BAD_INPUT, "attention on device ref: head size 1025");
    assert_non_null(strstr(backend_sync(&be).message, "use device=cpu"));
    test_close(&be);
}

static void values_read_after_a_failure_are_nan(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_zeros(&be, DTYPE_F32, shape1(2));
    backend_fail(&be, "matmul", status_error(STATUS_DEVICE, "gone"));
    float values[2] = {0};
    backend_to_host(&be, values, x);
    assert_true(isnan(values[0]) && isnan(values[1]));
    test_close(&be);
}

static void a_fault_hits_the_first_element_of_the_call_it_was_set_for(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_random_strided(&be, DTYPE_F32, shape2(2, 3), 1);
    be.fault_op = OP_SCALE;
    be.fault_countdown = 1;
    op_scale(&be, x, 2);
    assert_true(!isnan(test_get(&be, x, 0)));
    op_fill(&be, x, 1);
    op_scale(&be, x, 2);
    assert_true(isnan(test_get(&be, x, 0)));
    assert_true(test_get(&be, x, 1) == 2);
    op_fill(&be, x, 1);
    op_scale(&be, x, 2);
    assert_true(test_get(&be, x, 0) == 2);
    test_close(&be);
}

static void no_fault_is_set_in_a_fresh_backend(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_zeros(&be, DTYPE_F32, shape1(1));
    op_fill(&be, x, 1);
    assert_true(test_get(&be, x, 0) == 1);
    test_close(&be);
}

/* ---- scanning --------------------------------------------------------------------------------------------------- */

static void check_scan(DType dtype, double value, bool found) {
    Backend be;
    test_open(&be, "ref", "fp32");
    be.scan_nan = true;
    Tensor x = test_random_strided(&be, dtype, shape3(2, 3, 5000), 1); /* rows longer than the scan's buffer */
    test_set(&be, x, tensor_numel(x) - 1, value);
    op_scale(&be, x, 1);
    if (found)
        assert_fails(backend_sync(&be), STATUS_DIVERGED, "scale");
    else
        assert_ok(backend_sync(&be));
    test_close(&be);
}

static void a_scan_finds_the_nan_and_names_the_op(void **state) {
    (void)state;
    check_scan(DTYPE_F32, (double)NAN, true);
    check_scan(DTYPE_BF16, (double)NAN, true);
}

static void a_scan_lets_infinities_pass(void **state) {
    (void)state;
    check_scan(DTYPE_F32, -HUGE_VAL, false);
    check_scan(DTYPE_BF16, HUGE_VAL, false);
}

/* ---- profile and fallbacks -------------------------------------------------------------------------------------- */

static void profiled_ops_are_counted_and_others_are_not(void **state) {
    (void)state;
    Backend be;
    test_open(&be, "ref", "fp32");
    Tensor x = test_random(&be, DTYPE_F32, shape2(50, 50), 1);
    op_scale(&be, x, 1);
    be.profile = true;
    op_scale(&be, x, 1);
    op_scale(&be, x, 1);
    assert_int_equal(be.timers[OP_SCALE].calls, 2);
    assert_true(be.timers[OP_SCALE].seconds > 0);
    assert_int_equal(be.timers[OP_GELU].calls, 0);
    test_close(&be);
}

static void empty_linear_slots_fall_back_to_matmul(void **state) {
    (void)state;
    const Tolerance exact = {0};
    Backend be, bare;
    test_open(&be, "ref", "fp32");
    test_open(&bare, "ref", "fp32");
    bare.ops.linear = NULL;
    bare.ops.linear_grad_input = NULL;
    bare.ops.linear_grad_weight = NULL;
    Backend *both[] = {&be, &bare};
    Tensor out[2], dx[2], dw[2];
    for (int i = 0; i < 2; i++) {
        Tensor x = test_random(both[i], DTYPE_F32, shape2(3, 5), 1);
        Tensor w = test_random_strided(both[i], DTYPE_F32, shape2(4, 5), 2);
        out[i] = test_zeros(both[i], DTYPE_F32, shape2(3, 4));
        dx[i] = test_random(both[i], DTYPE_F32, shape2(3, 5), 3);
        dw[i] = test_random(both[i], DTYPE_F32, shape2(4, 5), 4);
        op_linear(both[i], out[i], x, w, tensor_none(), out[i]);
        op_linear_grad_input(both[i], dx[i], out[i], w);
        op_linear_grad_weight(both[i], dw[i], tensor_none(), out[i], x, GRADIENT_ADD);
    }
    assert_tensors_close("linear", &bare, out[1], &be, out[0], exact);
    assert_tensors_close("linear_grad_input", &bare, dx[1], &be, dx[0], exact);
    assert_tensors_close("linear_grad_weight", &bare, dw[1], &be, dw[0], exact);
    test_close(&be);
    test_close(&bare);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_devices_and_precisions_are_refused_with_the_known_ones),
        cmocka_unit_test(ref_stores_fp32_unless_bf16_is_asked_for),
        cmocka_unit_test(the_peak_rate_is_measured_without_a_trace_in_the_profile),
        cmocka_unit_test(a_table_without_a_required_slot_is_refused_by_its_name),
        cmocka_unit_test(default_and_optional_slots_may_be_missing),
        cmocka_unit_test(memory_that_cannot_be_had_is_named_with_its_purpose_and_size),
        cmocka_unit_test(out_of_memory_tells_what_is_free_and_planned_and_which_option_lowers_it),
        cmocka_unit_test(where_ops_are_done_when_they_return_later_is_now),
        cmocka_unit_test(every_read_back_and_sync_counts_as_a_wait),
        cmocka_unit_test(an_arena_allocates_what_it_measured),
        cmocka_unit_test(an_empty_arena_can_be_allocated),
        cmocka_unit_test(an_arena_keeps_its_remedy),
        cmocka_unit_test(a_layout_too_large_to_count_is_out_of_memory),
        cmocka_unit_test(the_first_failure_stays_and_ops_do_nothing_after_it),
        cmocka_unit_test(heads_that_ref_cannot_take_are_a_failure_that_says_what_to_do),
        cmocka_unit_test(values_read_after_a_failure_are_nan),
        cmocka_unit_test(a_fault_hits_the_first_element_of_the_call_it_was_set_for),
        cmocka_unit_test(no_fault_is_set_in_a_fresh_backend),
        cmocka_unit_test(a_scan_finds_the_nan_and_names_the_op),
        cmocka_unit_test(a_scan_lets_infinities_pass),
        cmocka_unit_test(profiled_ops_are_counted_and_others_are_not),
        cmocka_unit_test(empty_linear_slots_fall_back_to_matmul),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
