/* The harness itself: every planted fault (faults/faults.cu) is caught in the modes and schedules that are meant to
 * catch it, with a message that names it; and the same kernel without the fault passes in all of them. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static const char *const modes[] = {"plain", "asan", "race"};
static const char *const orders[] = {"forward", "reverse", "1", "2", "3"};
enum { MODES = 3, ORDERS = 5 };

/* ---- running one form of a fault --------------------------------------------------------------------------------- */

typedef struct {
    int status;
    char output[8000];
} Outcome;

/* The programs of the three modes lie in folders beside this one. */
static void program_of(const char *mode, char *path, size_t size) {
    char self[PATH_MAX] = "";
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    *strrchr(self, '/') = '\0';
    assert_true(snprintf(path, size, "%s/%s/cuda_faults", self, mode) < (int)size);
}

static void run_program(const char *program, const char *order, const char *fault, const char *form, int out) {
    setenv("CUDA_ON_CPU_ORDER", order, 1);
    setenv("CUDA_ON_CPU_PROTECT", "1", 1);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execl(program, program, fault, form, (char *)NULL);
    _exit(126);
}

static Outcome run(const char *mode, const char *order, const char *fault, const char *form) {
    Outcome outcome = {0};
    char program[PATH_MAX];
    int out[2], status;
    ssize_t count;
    size_t length = 0;
    program_of(mode, program, sizeof program);
    assert_int_equal(pipe(out), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) run_program(program, order, fault, form, out[1]);
    close(out[1]);
    while ((count = read(out[0], outcome.output + length, sizeof outcome.output - 1 - length)) > 0)
        length += (size_t)count;
    close(out[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return outcome;
}

/* ---- what catches what
 * ----------------------------------------------------------------------------------------------- */

typedef enum { EVERY_ORDER, SOME_ORDER } When;

typedef struct {
    const char *fault, *mode; /* mode "all": each of the three */
    When when;
    const char *message;
} Catch;

static const Catch catches[] = {
    {"missing_barrier", "plain", SOME_ORDER, "wrong result"},
    {"missing_barrier", "race", EVERY_ORDER, "shared memory"},
    {"missing_barrier_before_reuse", "plain", SOME_ORDER, "wrong result"},
    {"missing_barrier_before_reuse", "race", EVERY_ORDER, "race in shared memory"},
    {"divergent_barrier", "all", EVERY_ORDER, "divergent barrier"},
    {"barriers_in_two_branches", "all", EVERY_ORDER, "divergent barrier"},
    {"partial_warp_shuffle", "all", EVERY_ORDER, "reads lane 16, which takes no part"},
    {"absent_lanes", "all", EVERY_ORDER, "20 threads wait in __shfl_sync at tests/cuda_on_cpu/faults/faults.cu"},
    {"missing_syncwarp", "plain", SOME_ORDER, "wrong result"},
    {"missing_syncwarp", "race", EVERY_ORDER, "shared memory"},
    {"shuffle_as_fence", "race", EVERY_ORDER, "race in shared memory"},
    {"out_of_bounds_read", "asan", EVERY_ORDER, "use-after-poison"},
    {"out_of_bounds_read", "race", EVERY_ORDER, "access outside every device allocation and shared array"},
    {"shared_overrun", "plain", EVERY_ORDER, "shared memory overrun: byte 0 behind the 256 bytes of \"tile\""},
    {"shared_overrun", "asan", EVERY_ORDER, "out of bounds"},
    {"shared_overrun", "race", EVERY_ORDER, "access outside every device allocation and shared array"},
    {"unwritten_shared_memory", "plain", EVERY_ORDER, "nan"},
    {"unwritten_shared_memory", "race", EVERY_ORDER, "read of shared memory that was not written"},
    {"misaligned_vector", "asan", EVERY_ORDER, "misaligned address"},
    {"freed_memory", "plain", EVERY_ORDER, "segmentation fault"},
    {"freed_memory", "asan", EVERY_ORDER, "SEGV"},
    {"freed_memory", "race", EVERY_ORDER, "access outside every device allocation and shared array"},
    {"benign_race", "race", EVERY_ORDER, "race in shared memory"},
    {"race_between_blocks", "race", EVERY_ORDER, "race between blocks"},
    {"missing_atomic", "race", EVERY_ORDER, "race in global memory"},
    {"weak_async_wait", "all", EVERY_ORDER, "nan"},
    {"missing_barrier_after_async_wait", "plain", SOME_ORDER, "nan"},
    {"missing_barrier_after_async_wait", "race", EVERY_ORDER, "shared memory"},
    {"missing_stream_sync", "all", EVERY_ORDER, "wrong result"},
    {"host_memory_reused_too_early", "all", EVERY_ORDER, "wrong result"},
    {"missing_event_wait", "all", SOME_ORDER, "wrong result"},
    {"host_touches_device_memory", "plain", EVERY_ORDER, "host code touches device memory"},
    {"host_touches_device_memory", "asan", EVERY_ORDER, "SEGV"},
    {"wrong_copy_kind", "all", EVERY_ORDER, "invalid argument"},
    {"shared_memory_not_asked_for", "all", EVERY_ORDER, "launch: invalid argument"},
};
enum { CATCHES = sizeof catches / sizeof catches[0] };

/* ---- the tests
 * --------------------------------------------------------------------------------------------------------- */

static void expect_catch(const Catch *c, const char *mode) {
    int caught = 0;
    for (int o = 0; o < ORDERS; o++) {
        Outcome outcome = run(mode, orders[o], c->fault, "faulty");
        if (outcome.status && strstr(outcome.output, c->message))
            caught++;
        else if (c->when == EVERY_ORDER)
            fail_msg("%s, order %s: status %d, and not \"%s\":\n%s", mode, orders[o], outcome.status, c->message,
                     outcome.output);
    }
    if (caught == 0) fail_msg("%s: no order ends in \"%s\"", mode, c->message);
}

static void fault_is_caught(void **state) {
    const char *fault = *state;
    int rows = 0;
    for (int i = 0; i < CATCHES; i++) {
        if (strcmp(catches[i].fault, fault)) continue;
        rows++;
        for (int m = 0; m < MODES; m++)
            if (!strcmp(catches[i].mode, "all") || !strcmp(catches[i].mode, modes[m]))
                expect_catch(&catches[i], modes[m]);
    }
    if (rows == 0) fail_msg("nothing is said to catch it");
}

static void sound_form_passes(void **state) {
    const char *fault = *state;
    for (int m = 0; m < MODES; m++)
        for (int o = 0; o < ORDERS; o++) {
            Outcome outcome = run(modes[m], orders[o], fault, "sound");
            if (outcome.status || outcome.output[0])
                fail_msg("%s, order %s: status %d\n%s", modes[m], orders[o], outcome.status, outcome.output);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define FAULT(name)                                                                                                    \
    {#name " is caught", fault_is_caught, NULL, NULL, #name},                                                          \
        {"without " #name " the kernel passes", sound_form_passes, NULL, NULL, #name},
#include "tests/cuda_on_cpu/faults/list.h"
#undef FAULT
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
