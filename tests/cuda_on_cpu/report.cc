/* Messages. An error of a kernel ends the process at once: nothing that it computed could be trusted. */
#include "tests/cuda_on_cpu/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

extern "C" char __executable_start[]; /* by the linker */

namespace emulator {

enum { STATUS_OF_FAILURE = 99 };

/* By addr2line of binutils, which came with the compiler. Its two lines are the function and the place. */
void describe_code(const void *address, char *text, size_t size) {
    char program[500] = "", command[700], function[300] = "", place[300] = "";
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) program[0] = '\0';
    snprintf(command, sizeof command, "addr2line -Cfse '%s' %#zx 2>/dev/null", program,
             static_cast<size_t>(static_cast<const char *>(address) - __executable_start));
    FILE *lines = popen(command, "r");
    if (lines && (!fgets(function, sizeof function, lines) || !fgets(place, sizeof place, lines))) place[0] = '\0';
    if (lines) pclose(lines);
    function[strcspn(function, "\n")] = '\0';
    place[strcspn(place, " \n")] = '\0';
    snprintf(text, size, "%s at %s", function[0] ? function : "?", place[0] ? place : "?");
}

static void print_position() {
    if (!running_grid) return;
    char kernel[600];
    describe_code(running_grid->kernel, kernel, sizeof kernel);
    fprintf(stderr, "  in kernel %s\n  block (%u,%u,%u) of (%u,%u,%u)", kernel, blockIdx.x, blockIdx.y, blockIdx.z,
            gridDim.x, gridDim.y, gridDim.z);
    if (running_thread)
        fprintf(stderr, ", thread (%u,%u,%u) of (%u,%u,%u)", threadIdx.x, threadIdx.y, threadIdx.z, blockDim.x,
                blockDim.y, blockDim.z);
    fprintf(stderr, "\n");
}

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fprintf(stderr, "cuda-on-cpu: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    print_position();
    fflush(stderr);
    _exit(STATUS_OF_FAILURE);
}

} // namespace emulator
