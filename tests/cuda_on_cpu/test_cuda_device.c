/* What the cuda backend does when something is missing, and how often it waits: the emulated device is told what to
 * lack, and counts.
 */
#include "tests/cuda_on_cpu/training.h"

#include "tests/cuda_on_cpu/control.h"
#include "device/device.h"

enum { DRIVER_ERROR = 35, NO_DEVICE_ERROR = 100 };

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

/* One that measures nothing but spectra: those come later, what else is due is waited for. */
static void a_step_waits_for_the_device_once(void **state) {
    (void)state;
    Trainer t;
    int64_t clips = 0;
    assert_ok(open_trainer(&t, &gpt2_like,
                           (Setting){"cuda",
                                     "bf16",
                                     {"probe.logits_every=0", "probe.bound_every=0", "probe.collision_every=0",
                                      "probe.momentum_every=0", "probe.shadow_every=0"}}));
    assert_ok(backend_sync(&t.backend)); /* the initial weights are there */
    for (int step = 0; step < 5; step++) {
        StepReport r;
        const int64_t backend_waits = t.backend.waits, device_waits = cuda_on_cpu.waits;
        assert_ok(train_step(&t, &r));
        assert_int_equal(t.backend.waits - backend_waits, 1);
        assert_int_equal(cuda_on_cpu.waits - device_waits, 1);
        clips += r.clip_count;
        assert_true(step == 0 ? isnan(r.optimizer_seconds) : r.optimizer_seconds > 0);
    }
    assert_true(clips > 0);
    trainer_free(&t);
}

/* ---- what is missing --------------------------------------------------------------------------------------------- */

static void without_enough_memory_the_message_has_the_figures_and_the_option(void **state) {
    (void)state;
    const CudaOnCpu usual = cuda_on_cpu;
    Trainer t;
    cuda_on_cpu.memory_bytes = 600 << 10;
    Status status = open_trainer(&t, &llama_like, (Setting){"cuda", "fp32", {"train.micro_batch=4"}});
    cuda_on_cpu = usual;
    assert_fails(status, STATUS_OUT_OF_MEMORY, "out of memory on device cuda: activations needs ");
    assert_non_null(strstr(status.message, " that the run plans in all, and "));
    assert_non_null(strstr(status.message, " bytes is free; lower train.micro_batch or model.context"));
    assert_false(t.backend.failure.code); /* no failure of the device */
    trainer_free(&t);
}

typedef struct {
    int error, driver, capability;
    const char *reason;
} MissingDevice;

static const MissingDevice missing[] = {
    {DRIVER_ERROR, 0, 90, "no NVIDIA driver is installed"},
    {DRIVER_ERROR, 11040, 90, "the NVIDIA driver knows CUDA up to 11.4, and this build needs "},
    {NO_DEVICE_ERROR, 13000, 90, "there is no NVIDIA GPU that this process may use"},
    {0, 13000, 75, "has compute capability 7.5; this backend needs 8.0 (Ampere) or newer"},
};

static void without_a_device_auto_takes_the_cpu_and_says_why(void **state) {
    (void)state;
    const CudaOnCpu usual = cuda_on_cpu;
    for (size_t i = 0; i < sizeof missing / sizeof missing[0]; i++) {
        Backend be;
        char note[256] = "";
        cuda_on_cpu.device_count_error = missing[i].error;
        cuda_on_cpu.driver_version = missing[i].driver;
        cuda_on_cpu.capability = missing[i].capability;
        Status by_name = device_open(&be, (BackendRequest){"cuda", "auto", 1}, note, sizeof note);
        assert_fails(by_name, STATUS_DEVICE, missing[i].reason);
        assert_ok(device_open(&be, (BackendRequest){"auto", "auto", 1}, note, sizeof note));
        assert_string_equal(be.name, "cpu");
        assert_int_equal(strncmp(note, "cuda is not used: ", 18), 0);
        assert_non_null(strstr(note, missing[i].reason));
        backend_close(&be);
    }
    cuda_on_cpu = usual;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_waits_for_the_device_once),
        cmocka_unit_test(without_enough_memory_the_message_has_the_figures_and_the_option),
        cmocka_unit_test(without_a_device_auto_takes_the_cpu_and_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
